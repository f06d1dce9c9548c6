import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from sklearn.metrics import average_precision_score

from salus.core.errors import ConfigError, WeightsError
from salus.nets.weights import PRETRAINED
from salus.scores.lpips import LPIPS
from tests.conftest import needs_weights

# Two random pairs of 100 x 100 in [-1, 1] from generator seed 42, through the authors' code and weights.
GOLDEN = {
    ("alexnet", "lin"): (0.131169, 0.141963),
    ("alexnet", "none"): (2.04632, 2.17562),
    ("vgg16", "lin"): (0.358160, 0.345666),
    ("vgg16", "none"): (3.99260, 3.90493),
    ("squeezenet", "lin"): (0.102380, 0.093774),
    ("squeezenet", "none"): (2.52729, 2.33339),
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alex():
    return LPIPS("alexnet")


@pytest.fixture(scope="module")
def squeeze_file(shared_data):
    return shared_data / "weights" / "squeezenet1_1-tv.safetensors"


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(42)
    first = torch.rand(2, 3, 100, 100, generator=generator) * 2 - 1
    return (first + 1) / 2, torch.rand(2, 3, 100, 100, generator=generator)


def texture(count=2, size=64, sigma=2.0, seed=0) -> torch.Tensor:
    field = gaussian_filter(np.random.default_rng(seed).standard_normal((count, 1, size, size)), (0, 0, sigma, sigma))
    return torch.from_numpy((field - field.min()) / np.ptp(field)).float()


@pytest.mark.parametrize("calibration", ["lin", "none"])
def test_gives_the_published_values_alexnet(calibration):
    net = LPIPS("alexnet", calibration)
    exact = net.digest == PRETRAINED["alexnet-tv"].digest
    assert net(*pair()).tolist() == pytest.approx(GOLDEN["alexnet", calibration], rel=1e-5 if exact else 5e-4)


@pytest.mark.parametrize("calibration", ["lin", "none"])
def test_gives_the_published_values_squeezenet(squeeze_file, calibration):
    net = LPIPS("squeezenet", calibration, squeeze_file)
    assert net.digest == PRETRAINED["squeezenet1_1-tv"].digest
    assert net(*pair()).tolist() == pytest.approx(GOLDEN["squeezenet", calibration], rel=1e-5)


@needs_weights("vgg16-tv")
@pytest.mark.parametrize("calibration", ["lin", "none"])
def test_gives_the_published_values_vgg16(calibration):
    assert LPIPS("vgg16", calibration)(*pair()).tolist() == pytest.approx(GOLDEN["vgg16", calibration], rel=1e-5)


def test_equal_images_are_exactly_alike(alex):
    x = texture()
    assert torch.equal(alex(x, x), torch.zeros(2))
    assert torch.equal(alex.spatial(x, x), torch.zeros_like(x))


def test_the_order_of_the_two_does_not_matter(alex):
    a, b = texture(seed=1), texture(seed=2)
    assert torch.equal(alex.spatial(a, b), alex.spatial(b, a))


def test_grey_is_three_equal_channels(alex):
    a, b = texture(seed=1), texture(seed=2)
    assert torch.equal(alex(a, b), alex(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)))


def test_more_blur_is_further_away(alex):
    x = texture(sigma=1.0)
    blurred = [torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, s, s))) for s in (0.5, 1, 2, 4)]
    away = torch.stack([alex(x, b) for b in blurred])
    assert (away.diff(dim=0) > 0).all()


def test_the_number_is_the_mean_of_the_map(alex):
    a, b = pair()
    assert alex.spatial(a, b).mean((1, 2, 3)).tolist() == pytest.approx(alex(a, b).tolist(), rel=1e-4)
    assert alex.spatial(a, b).shape == (2, 1, 100, 100)
    assert alex.spatial(a, b).min() >= 0


def test_an_image_is_judged_alike_in_any_company(alex):
    a, b = texture(4, seed=1), texture(4, seed=2)
    assert torch.allclose(alex.spatial(a, b)[2:], alex.spatial(a[2:], b[2:]), rtol=1e-4, atol=1e-6)


def test_stays_frozen_while_gradients_reach_the_image():
    net = torch.nn.ModuleList([LPIPS("alexnet")]).train()[0]
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    a = texture(seed=1).requires_grad_()
    net(a, torch.zeros_like(a)).sum().backward()
    assert a.grad.isfinite().all()
    assert a.grad.abs().max() > 0


def test_half_precision_convolutions_give_nearly_the_same_map(alex):
    a, b = texture(seed=1), texture(seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        half = alex.spatial(a, b)
        assert torch.equal(alex(a, a), torch.zeros(2))
    assert half.dtype == torch.float32
    assert half.mean().item() == pytest.approx(alex.spatial(a, b).mean().item(), rel=0.05)


def test_name_and_digest_say_which_net_it_is(alex):
    assert alex.name == "lpips-alexnet-lin"
    assert LPIPS("alexnet", "none").name == "lpips-alexnet-none"
    entry = PRETRAINED["alexnet-tv"]
    assert alex.digest in (entry.digest, entry.rounded_digest)


def test_missing_weights_are_never_replaced_by_random_ones(tmp_path):
    with pytest.raises(WeightsError, match="there is no file"):
        LPIPS("squeezenet", weights=tmp_path / "squeezenet1_1-b8a52dc0.pth")


def test_what_does_not_fit_is_refused(alex):
    with pytest.raises(ConfigError, match="Did you mean 'alexnet'"):
        LPIPS("alex")
    with pytest.raises(ConfigError, match="no calibration 'linear'"):
        LPIPS("alexnet", "linear")
    with pytest.raises(ValueError, match=r"got \(2, 1, 64, 64\) and \(1, 1, 64, 64\)"):
        alex(texture(2), texture(1))
    with pytest.raises(ValueError, match="too few for this trunk"):
        alex(torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16))


def foreign_texture(count: int = 4, size: int = 128) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.bool_]]:
    """Tissue with a round patch of another texture, and a restoration: warped, blurred, noisy, no patch."""
    rng = np.random.default_rng(0)

    def field(sigma: float | tuple[float, ...], number: int = count) -> NDArray[np.float64]:
        rough = gaussian_filter(rng.standard_normal((number, size, size)), sigma, axes=(1, 2))
        return (rough - rough.mean((1, 2), keepdims=True)) / rough.std((1, 2), keepdims=True)

    healthy = 0.45 + 0.18 * np.tanh(4 * field(7)) + 0.04 * field(1.5)
    row, column = np.mgrid[:size, :size]
    centre = rng.integers(25, size - 25, (count, 2, 1, 1))
    inside = (row - centre[:, 0]) ** 2 + (column - centre[:, 1]) ** 2 < 11**2
    seen = healthy.copy()
    for image, stripes, where_ in zip(seen, field((1, 5)), inside, strict=True):  # of equal mean and spread
        new, old = stripes[where_], image[where_]
        image[where_] = (new - new.mean()) / new.std() * old.std() + old.mean()
    warp = 0.8 * field(8, 2 * count).reshape(count, 2, size, size)
    restored = [map_coordinates(h, [row + w[0], column + w[1]], order=1) for h, w in zip(healthy, warp, strict=True)]
    restored = gaussian_filter(restored, 0.6, axes=(1, 2)) + 0.015 * rng.standard_normal(seen.shape)
    as_batch = [torch.from_numpy(images.clip(0, 1)).float()[:, None] for images in (seen, restored)]
    return as_batch[0], as_batch[1], inside


@pytest.mark.parametrize("calibration", ["lin", "none"])
def test_trained_features_find_foreign_texture_better_than_random_ones(squeeze_file, calibration):
    """A bright blob would prove nothing: random features find it as well."""
    net = LPIPS("squeezenet", calibration, squeeze_file)
    seen, restored, inside = foreign_texture()

    def precision() -> float:
        return float(average_precision_score(inside.ravel(), net.spatial(seen, restored).numpy().ravel()))

    trained = precision()
    torch.manual_seed(0)
    for layer in net.trunk.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.reset_parameters()
    assert trained > precision() + (0.15 if calibration == "none" else 0.05)
