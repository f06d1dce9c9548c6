import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.exposure import equalize_adapthist

from salus.scores.clahe import clahe, tiling


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def apart(images: NDArray[np.float32], **settings: float) -> float:
    """Largest difference from scikit-image, image by image."""
    names = {"bins": "nbins"}
    theirs = {names.get(key, key): value for key, value in settings.items()}
    expected = np.stack([equalize_adapthist(image, **theirs) for image in images])
    return float(np.abs(clahe(torch.from_numpy(images)[:, None], **settings)[:, 0].numpy() - expected).max())


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


SIZES = [(16, 16), (17, 33), (31, 16), (64, 64), (96, 80), (100, 75), (130, 127), (256, 256), (8, 8), (7, 9), (3, 3)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_agrees_with_scikit_image_at_any_size(size):
    rough = noise(3, *size)
    smooth = gaussian_filter(rough, (0, 3, 3))
    steps = np.round(rough**3 * 255).astype(np.float32) / 255  # as an 8-bit image has them
    empty = np.where(rough > 0.7, rough, np.float32(0))  # mostly background
    for kind in (rough, smooth, steps, empty):
        assert apart(kind) < 1e-3


@pytest.mark.parametrize("clip_limit", [0.0, 0.003, 0.03, 0.5])
@pytest.mark.parametrize("bins", [100, 256, 1000])
def test_agrees_with_scikit_image_for_any_setting(clip_limit, bins):
    assert apart(gaussian_filter(noise(2, 200, 160), (0, 2, 2)), clip_limit=clip_limit, bins=bins) < 1e-3


@pytest.mark.parametrize("size", [(64, 64), (96, 80), (128, 128)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", ["brain_flair_stroke_axial", "chest_xray_pneumonia"])
def test_agrees_with_scikit_image_on_real_images(shared_data, name, size):
    files = sorted((shared_data / name / "test").rglob("*.png"))[::11][:12]
    images = []
    for file in files:
        with Image.open(file) as image:
            images.append(np.asarray(image.convert("L").resize(size[::-1], Image.Resampling.BILINEAR)))
    assert apart(np.stack(images).astype(np.float32) / 255) < 1e-3


def test_gives_the_values_of_the_protocol_for_a_ramp():
    """protocols.md, D6: g_ij = (i + j) / 254."""
    place = torch.arange(128, dtype=torch.float64)
    ramp = ((place[:, None] + place) / 254)[None, None]
    equal = clahe(ramp)
    assert equal.mean().item() == pytest.approx(0.555232, abs=2e-5)
    found = equal[0, 0, [0, 10, 64, 127], [0, 20, 64, 127]].tolist()
    assert found == pytest.approx([0, 0.176673, 0.561024, 1], abs=1e-4)


def test_a_global_change_of_brightness_and_contrast_is_invisible():
    steps = torch.from_numpy(np.round(noise(2, 1, 64, 64) * 200)).double() / 255
    assert torch.allclose(clahe(0.5 * steps + 0.2), clahe(steps), atol=0.02)
    doubled = torch.round(steps * 100) / 255  # both land on whole 16-bit steps: exact
    assert torch.equal(clahe(doubled + 51 / 255), clahe(doubled))


def test_a_constant_image_comes_back_as_it_is_beside_others():
    x = torch.from_numpy(noise(3, 1, 32, 32))
    x[0], x[1] = 0, 0.3
    equal = clahe(x)
    assert torch.equal(equal[:2], x[:2])
    assert torch.equal(equal[2:], clahe(x[2:]))


def test_an_image_is_equalised_alike_in_any_company():
    x = torch.from_numpy(noise(40, 1, 128, 128))  # more than one piece
    assert torch.equal(clahe(x)[33:35], clahe(x[33:35]))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_the_type_and_the_range(kind):
    equal = clahe(torch.from_numpy(noise(2, 1, 40, 40)).to(kind) * 3 - 1)
    assert equal.dtype == kind
    assert equal.min() == 0
    assert equal.max() == 1


def test_works_within_inference_mode_and_after_it():
    x = torch.from_numpy(noise(1, 1, 44, 52))
    with torch.inference_mode():
        inside = clahe(x).clone()
    outside = clahe(x.requires_grad_())
    assert not outside.requires_grad
    assert np.array_equal(inside.numpy(), outside.numpy())


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (8, 8), (0, 1, 8, 8)])
def test_refuses_what_is_no_batch_of_grey_images(shape):
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\)"):
        clahe(torch.zeros(shape))


def test_refuses_a_number_of_bins_it_cannot_tell_apart():
    with pytest.raises(ValueError, match="bins=1"):
        clahe(torch.zeros(1, 1, 8, 8), bins=1)


def test_at_128_pixels_a_tile_is_16_and_two_pixels_fill_a_bin():
    """Published constants: the default limit is that of 2 pixels a bin, and that of 3 gives another picture."""
    assert tiling(128) == (8, 16)
    x = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    same, other = clahe(x, clip_limit=2 / 256), clahe(x, clip_limit=3 / 256)
    torch.testing.assert_close(clahe(x), same, rtol=0, atol=0)
    assert not torch.equal(clahe(x), other)
