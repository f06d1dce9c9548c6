import json
from dataclasses import asdict, replace

import nibabel
import numpy as np
import pytest
from pydantic import ValidationError

from salus.core import Image, Origin
from salus.core.errors import ImageError
from salus.preprocess import Preparation, resample

RNG = np.random.default_rng(0)


def picture(shape=(40, 30), depth=8) -> Image:
    return Image(array=np.round(RNG.random(shape) * 255).astype(np.float32), depth=depth)


def volume(shape=(40, 30, 20), spacing=(1, 1, 1)) -> Image:
    return Image(array=RNG.random(shape).astype(np.float32), affine=np.diag([*spacing, 1.0]), unit="mm")


def test_a_recipe_goes_through_json_and_back():
    recipe = Preparation(size=128, intensity="zscore", lower=1, upper=98, plane="coronal", slices="all")
    assert Preparation(**json.loads(json.dumps(asdict(recipe)))) == recipe


@pytest.mark.parametrize(
    "wrong",
    [{"size": 7}, {"intensity": "log"}, {"plane": "oblique"}, {"lower": 60, "upper": 40}, {"upper": 101}, {"sise": 64}],
)
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong)) if len(wrong) == 1 else "lower must be below upper"):
        Preparation(**wrong)


@pytest.mark.parametrize(
    ("first", "decided"),
    [
        (picture(depth=8), "depth"),
        (picture(depth=16), "percentile"),
        (picture(depth=0), "percentile"),
        (replace(volume(), depth=8), "percentile"),
    ],
)
def test_auto_is_decided_by_the_first_image(first, decided):
    depth = first.depth if decided == "depth" else 0
    assert Preparation().resolve(first) == Preparation(intensity=decided, unit=first.unit, depth=depth)
    assert Preparation(intensity="minmax").resolve(first).intensity == "minmax"


@pytest.mark.parametrize("intensity", ["auto", "depth", "percentile", "minmax", "zscore"])
def test_a_picture_becomes_a_square_in_0_to_1(intensity):
    seen = Preparation(size=32, intensity=intensity)(picture())
    assert seen.array.shape == (32, 32)
    assert seen.array.dtype == np.float32
    assert 0 <= seen.array.min() < seen.array.max() <= 1


@pytest.mark.parametrize(("slices", "n"), [("mid", 1), ("all", 20)])
def test_a_volume_becomes_a_stack_of_the_plane(slices, n):
    seen = Preparation(size=32, slices=slices)(volume())
    assert seen.array.shape == (32, 32, n)
    assert seen.array.min() >= 0
    assert seen.array.max() <= 1


def test_the_middle_slice_is_the_middle_one_of_all():
    source = volume()
    middle, every = (Preparation(size=32, slices=slices)(source) for slices in ("mid", "all"))
    np.testing.assert_array_equal(middle.array[..., 0], every.array[..., 10])
    home = resample(replace(middle, array=np.ones_like(middle.array)), like=source)
    assert [k for k in range(20) if home.array[..., k].any()] == [10]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_the_place_of_a_bright_spot_is_kept_through_preparation(plane):
    source = volume((40, 34, 12), (1, 1.2, 5))
    source = replace(
        source, affine=nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.2, 0.1, 0.3)) @ source.affine
    )
    array = np.zeros_like(source.array)
    array[9, 20, 4] = 1
    seen = Preparation(size=128, intensity="minmax", plane=plane, slices="all")(replace(source, array=array))
    home = resample(seen, like=source).array
    assert np.unravel_index(home.argmax(), home.shape) == (9, 20, 4)


def test_thick_slices_seen_from_the_side_keep_their_proportions():
    seen = Preparation(size=64, plane="coronal", intensity="minmax", slices="all")(volume((40, 30, 10), (1, 1, 4)))
    np.testing.assert_allclose(seen.spacing, [40 / 64, 40 / 64, 1])


def test_slices_of_a_volume_share_one_scale():
    source = volume()
    source.array[..., 0] *= 0.1
    seen = Preparation(size=32, intensity="minmax", slices="all")(source)
    assert seen.array[..., 0].max() < 0.11


def test_deep_and_shallow_copies_of_a_radiograph_are_prepared_alike():
    shallow = picture(depth=8)
    deep = replace(shallow, array=shallow.array * 257, depth=16)
    recipe = Preparation(intensity="depth")
    np.testing.assert_allclose(recipe(deep).array, recipe(shallow).array, atol=1e-6)


def changed(image: Image, index, value) -> Image:
    image.array[index] = value
    return image


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (changed(picture(), (3, 4), np.nan), "1 of 1,200 voxels are NaN or infinite"),
        (changed(volume(), (..., 0), np.inf), "1,200 of 24,000 voxels are NaN or infinite"),
        (Image(array=np.full((20, 20), 7, np.float32)), "every voxel is 7: the image is constant"),
        (picture((7, 40)), "7 x 40 pixels; a picture to be judged has at least 8"),
        (picture((3, 20_000)), "3 x 20,000 pixels"),
        (picture((10, 81)), "10 x 81 pixels, 8.1 times as long as wide"),
        (volume((40, 3, 20)), "3 x 40 pixels"),
        (Image(array=np.broadcast_to(np.float32(0), (2**11, 2**11, 2**9 + 1))), r"2,151,677,952 voxels; at most"),
    ],
)
def test_the_gate_refuses_what_cannot_be_judged_and_says_what_was_found(image, found):
    with pytest.raises(ImageError, match=found):
        Preparation()(image)
    with pytest.raises(ImageError, match=found):
        Preparation().check(image)


def test_the_gate_names_the_file(tmp_path):
    with pytest.raises(ImageError, match=r"scan\.png: "):
        Preparation()(replace(picture((4, 4)), origin=Origin(files=(tmp_path / "scan.png",))))


def test_the_gate_lets_by_thick_slices_and_short_stacks():
    Preparation().check(volume((40, 30, 3)))
    Preparation(plane="coronal").check(volume((320, 320, 26), (0.75, 0.75, 5.5)))


@pytest.mark.slow
def test_a_real_volume_is_shown_face_up_and_comes_home(shared_data):
    file = nibabel.load(shared_data / "formats" / "nifti" / "mni_icbm152_t1_1mm.nii.gz")
    source = Image(array=file.get_fdata(dtype=np.float32), affine=file.affine, unit="mm", depth=8)
    seen = Preparation(slices="all", size=128)(source)
    assert seen.array.shape == (128, 128, 189)
    home = resample(seen, like=source)
    assert np.corrcoef(home.array[::3, ::3, ::3].ravel(), source.array[::3, ::3, ::3].ravel())[0, 1] > 0.99
