from dataclasses import replace

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine, from_matvec
from nibabel.eulerangles import euler2mat
from scipy import ndimage

from salus.core import Image
from salus.preprocess.geometry import crop, crop_border, pad, pad_to_square, reorient, resample, resize

RNG = np.random.default_rng(0)
OBLIQUE = from_matvec(euler2mat(0.35, -0.2, 0.5) @ np.diag([0.8, 0.9, 3.1]), [-40, 25, 12.5])
PLANES = ("axial", "coronal", "sagittal")


def volume(shape=(24, 30, 12), affine=OBLIQUE) -> Image:
    return Image(array=RNG.random(shape).astype(np.float32), affine=affine, unit="mm", modality="MR")


def spot(like: Image, index) -> Image:
    """`like` with nothing but a bright voxel at `index`."""
    array = np.zeros_like(like.array)
    array[index] = 1
    return replace(like, array=array)


def place(image: Image, index) -> np.ndarray:
    return apply_affine(image.affine, np.array([*index, 0][:3], float))


def brightest(image: Image) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(np.argmax(image.array), image.array.shape))


def test_crop_keeps_the_patient_where_it_was():
    source = spot(volume(), (7, 20, 5))
    seen = crop(source, (3, 10, 2), (12, 25, 9))
    assert seen.array.shape == (9, 15, 7)
    assert brightest(seen) == (4, 10, 3)
    np.testing.assert_allclose(place(seen, (4, 10, 3)), place(source, (7, 20, 5)))


def test_crop_refuses_a_box_beyond_the_image():
    for lower, upper in (((0, 0, 0), (24, 30, 13)), ((-1, 0, 0), (4, 4, 4)), ((4, 0, 0), (4, 4, 4))):
        with pytest.raises(ValueError, match="cannot keep"):
            crop(volume(), lower, upper)


def test_pad_then_crop_is_where_it_began():
    source = volume()
    back = crop(pad(source, (2, 0, 1), (3, 4, 0), 7.0), (2, 0, 1), (26, 30, 13))
    np.testing.assert_array_equal(back.array, source.array)
    np.testing.assert_allclose(back.affine, source.affine)


def test_pad_to_square_centres_and_fills_with_the_minimum():
    source = Image(array=np.arange(2, 8, dtype=np.float32).reshape(2, 3))
    square = pad_to_square(source)
    np.testing.assert_array_equal(square.array, [[2, 3, 4], [5, 6, 7], [2, 2, 2]])
    tall = pad_to_square(Image(array=np.full((5, 1), 4, np.float32)))
    assert tall.array.shape == (5, 5)
    np.testing.assert_array_equal(tall.affine[:2, 3], [0, -2])


@pytest.mark.parametrize("shape", [(8, 8), (40, 17), (24, 30)])
def test_resize_keeps_the_corners_of_the_field_of_view(shape):
    source = volume((24, 30))
    seen = resize(source, shape)
    assert seen.array.shape == shape
    for corner in ((-0.5, -0.5), (1.0, 1.0)):
        old = np.array(corner) * np.where(np.array(corner) > 0, np.array([24, 30]) - 0.5, 1)
        new = np.array(corner) * np.where(np.array(corner) > 0, np.array(shape) - 0.5, 1)
        np.testing.assert_allclose(place(seen, new), place(source, old), atol=1e-9)


def test_resize_agrees_with_the_mean_where_a_half_is_a_mean():
    source = Image(array=np.full((16, 16), 3.5, np.float32))
    np.testing.assert_allclose(resize(source, (5, 7)).array, 3.5, rtol=1e-6)
    ramp = Image(array=np.tile(np.arange(32, dtype=np.float32), (32, 1)))
    # Away from the border, a symmetric filter leaves a ramp as the ramp at the new centres.
    np.testing.assert_allclose(
        resize(ramp, (16, 16)).array[:, 2:-2], np.tile(np.arange(16) * 2 + 0.5, (16, 1))[:, 2:-2]
    )


def test_a_stack_is_resized_slice_by_slice():
    source = volume()
    stack = resize(source, (10, 11))
    assert stack.array.shape == (10, 11, 12)
    for index in (0, 11):
        np.testing.assert_array_equal(stack.array[..., index], resize(volume_slice(source, index), (10, 11)).array)
    np.testing.assert_allclose(stack.affine[:3, 2], source.affine[:3, 2])


def volume_slice(source: Image, index: int) -> Image:
    return Image(array=source.array[..., index])


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "PSR", "IAL", "SLP"])
@pytest.mark.parametrize(("plane", "expected"), [("axial", "PLS"), ("coronal", "ILA"), ("sagittal", "IPL")])
def test_reorient_gives_radiological_display_order(codes, plane, expected):
    axes = nibabel.orientations.axcodes2ornt(codes)
    permuted = np.zeros((3, 3))
    permuted[axes[:, 0].astype(int), [0, 1, 2]] = axes[:, 1]
    source = volume(affine=OBLIQUE @ from_matvec(permuted, [1, 2, 3]))
    stack = reorient(source, plane)
    assert "".join(nibabel.aff2axcodes(stack.affine)) == expected
    index = (5, 6, 7)
    seen = brightest(reorient(spot(source, index), plane))
    np.testing.assert_allclose(place(stack, seen), place(source, index), atol=1e-9)
    assert sorted(stack.array.ravel()) == sorted(source.array.ravel())


def test_axial_shows_the_patients_right_on_the_left_and_the_front_on_top():
    ras = volume((10, 12, 14), np.eye(4))
    stack = reorient(ras, "axial")
    assert stack.array.shape == (12, 10, 14)
    assert stack.array[0, 0, 0] == ras.array[-1, -1, 0]  # right, front, foot
    assert stack.array[-1, -1, -1] == ras.array[0, 0, -1]  # left, back, head


def test_pictures_and_stacks_without_a_patient_stay_as_they_are():
    picture, stack = volume((20, 30)), Image(array=np.zeros((4, 5, 6), np.float32))
    assert reorient(picture, "coronal") is picture
    assert reorient(stack, "coronal") is stack


@pytest.mark.parametrize("plane", PLANES)
def test_a_bright_voxel_of_an_oblique_volume_returns_to_the_voxel_it_came_from(plane):
    source = volume()
    for index in ((0, 0, 0), (23, 29, 11), (5, 17, 3), (12, 1, 10)):
        seen = reorient(spot(source, index), plane)
        seen = resize(pad_to_square(seen), (60, 60))
        back = resample(seen, like=source)
        assert brightest(back) == index
        assert back.array.shape == source.array.shape
        np.testing.assert_array_equal(back.affine, source.affine)


@settings(max_examples=40, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 6)] * 3),
    plane=st.sampled_from(PLANES),
    seed=st.integers(0, 1000),
)
def test_turning_padding_and_cropping_come_home_exactly(angles, spacing, plane, seed):
    affine = from_matvec(euler2mat(*angles) @ np.diag(spacing), [10, -20, 30])
    source = Image(array=np.random.default_rng(seed).random((9, 11, 6)).astype(np.float32), affine=affine, unit="mm")
    back = resample(pad_to_square(reorient(source, plane)), like=source, order=0)
    np.testing.assert_array_equal(back.array, source.array)
    np.testing.assert_allclose(
        resample(pad_to_square(reorient(source, plane)), like=source).array, source.array, atol=1e-5
    )


def test_a_map_resized_down_and_brought_home_is_whole_up_to_the_border():
    source = Image(array=np.ones((192, 192), np.float32))
    back = resample(resize(source, (64, 64)), like=source)
    np.testing.assert_allclose(back.array, 1, rtol=1e-6)
    solid = volume((24, 30, 12))
    solid = replace(solid, array=np.ones_like(solid.array))
    for plane in PLANES:
        home = resample(resize(pad_to_square(reorient(solid, plane)), (64, 64)), like=solid)
        np.testing.assert_array_equal(home.array > 0.4, True)


def test_down_and_up_agrees_with_bilinear_interpolation_at_pixel_centres():
    source = Image(array=RNG.random((192, 192)).astype(np.float32))
    small = resize(source, (64, 64))
    centres = np.clip((np.arange(192) + 0.5) / 3 - 0.5, 0, 63)
    oracle = ndimage.map_coordinates(small.array, np.meshgrid(centres, centres, indexing="ij"), order=1)
    np.testing.assert_allclose(resample(small, like=source).array, oracle, atol=1e-5)


def test_beyond_the_field_of_view_is_outside():
    source = Image(array=np.ones((20, 20), np.float32))
    part = crop(source, (5, 6), (15, 16))
    home = resample(part, like=source, outside=-1)
    expected = np.full((20, 20), -1, np.float32)
    expected[5:15, 6:16] = 1
    np.testing.assert_array_equal(home.array, expected)


def test_one_slice_comes_home_to_its_place_in_the_volume():
    source = volume()
    middle = crop(source, (0, 0, 6), (24, 30, 7))
    home = resample(middle, like=source)
    np.testing.assert_allclose(home.array[..., 6], source.array[..., 6], atol=1e-6)
    assert not np.delete(home.array, 6, axis=2).any()


def test_resample_agrees_with_coordinates_computed_one_by_one():
    image, like = volume((10, 12, 8)), volume((9, 7, 11), OBLIQUE @ from_matvec(euler2mat(0.2, 0.1, -0.3), [2, 1, 0]))
    index = np.moveaxis(np.indices(like.array.shape), 0, -1)
    coordinates = apply_affine(np.linalg.inv(image.affine) @ like.affine, index)
    values = ndimage.map_coordinates(image.array, np.moveaxis(coordinates, -1, 0), order=1, mode="nearest")
    inside = ((coordinates > -0.5) & (coordinates < np.array(image.array.shape) - 0.5)).all(-1)
    assert 0.1 < inside.mean() < 0.9
    np.testing.assert_allclose(resample(image, like).array, np.where(inside, values, 0), atol=1e-5)


def test_resample_keeps_what_the_image_is_and_takes_where_the_grid_is():
    map_, like = volume((8, 8, 8)), replace(volume(), modality="CT", depth=16)
    home = resample(map_, like)
    assert (home.modality, home.depth, home.unit) == ("MR", 0, "mm")
    np.testing.assert_array_equal(home.affine, like.affine)


def test_millimetres_and_pixels_do_not_mix():
    with pytest.raises(ValueError, match="an image in px onto a grid in mm"):
        resample(Image(array=np.zeros((8, 8), np.float32)), like=volume())


def test_a_two_dimensional_nifti_comes_home():
    source = volume((40, 28), np.diag([2.0, 1.5, 5, 1]))
    home = resample(resize(pad_to_square(spot(source, (33, 4))), (80, 80)), like=source)
    assert home.array.shape == (40, 28)
    assert brightest(home) == (33, 4)


def test_an_empty_border_is_cut_and_the_rest_keeps_its_place():
    picture = np.pad(np.arange(20, dtype=np.float32).reshape(4, 5) + 10, ((2, 1), (3, 0)))
    volume = Image(array=np.stack([picture, picture], axis=-1), affine=np.diag([2.0, 3.0, 5.0, 1.0]), unit="mm")
    cut = crop_border(volume)
    np.testing.assert_array_equal(cut.array, volume.array[2:6, 3:])
    np.testing.assert_allclose(cut.affine @ [0, 0, 0, 1], volume.affine @ [2, 3, 0, 1])
    home = resample(cut, like=volume)
    np.testing.assert_allclose(home.array, volume.array, atol=1e-5)


def test_a_border_in_one_slice_alone_stays():
    picture = np.pad(np.arange(20, dtype=np.float32).reshape(4, 5), 2)
    other = np.full_like(picture, 7.0)
    other[0, 0] = 0
    volume = Image(array=np.stack([picture, other], axis=-1))
    assert crop_border(volume).array.shape == (8, 9, 2)


def test_nothing_but_border_comes_back_as_it_is():
    assert crop_border(Image(array=np.zeros((4, 5), np.float32))).array.shape == (4, 5)
