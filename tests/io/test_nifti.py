import contextlib

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from salus.core import Image
from salus.core.errors import ImageError
from salus.io import read_image, write_image

RNG = np.random.default_rng(0)
OBLIQUE = nibabel.affines.from_matvec(
    nibabel.eulerangles.euler2mat(0.3, -0.2, 0.5) @ np.diag([0.75, 0.8, 5.5]), [-90, 20, 33.3]
)


def save(path, array, affine=OBLIQUE, unit="mm"):
    file = nibabel.Nifti1Image(array, affine)
    file.header.set_xyzt_units(unit)
    file.to_filename(path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_values_affine_and_depth_are_those_of_the_file(tmp_path, suffix, kind):
    stored = (RNG.random((9, 10, 4)) * 100).astype(kind)
    image = read_image(save(tmp_path / f"volume{suffix}", stored))
    assert image.unit == "mm"
    assert image.array.dtype == np.float32
    assert image.depth == (0 if kind in (np.float32, np.float64) else 8 * stored.itemsize)
    np.testing.assert_array_equal(image.array, stored.astype(np.float32))
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(image.spacing, [0.75, 0.8, 5.5], rtol=1e-6)


def test_slope_and_intercept_are_applied_and_end_the_claim_of_a_depth(tmp_path):
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    file = nibabel.Nifti1Image(stored, OBLIQUE)
    content = bytearray(file.to_bytes())
    content[112:120] = np.array([0.5, -1024], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "ct.nii").write_bytes(content)
    image = read_image(tmp_path / "ct.nii")
    assert image.depth == 0
    np.testing.assert_array_equal(image.array, stored * 0.5 - 1024)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((9, 10), (9, 10)),
        ((9, 10, 1), (9, 10)),
        ((9, 10, 1, 1), (9, 10)),
        ((9, 10, 4, 1), (9, 10, 4)),
        ((1, 10, 4), (1, 10, 4)),
    ],
)
def test_trailing_axes_of_one_are_dropped(tmp_path, shape, expected):
    stored = RNG.random(shape).astype(np.float32)
    image = read_image(save(tmp_path / "image.nii.gz", stored))
    np.testing.assert_array_equal(image.array, stored.reshape(expected))


@pytest.mark.parametrize("shape", [(4, 4, 4, 3), (4, 4, 1, 3), (4, 4, 4, 1, 3)])
def test_several_volumes_are_refused(tmp_path, shape):
    with pytest.raises(ImageError, match=r"series\.nii\.gz holds 3 volumes"):
        read_image(save(tmp_path / "series.nii.gz", np.zeros(shape, np.float32)))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.95])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    path = save(tmp_path / f"cut{suffix}", RNG.random((20, 20, 20)).astype(np.float32))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ImageError, match=r"cut.* cannot be read as NIfTI") as refused:
        read_image(path)
    assert "\n" not in str(refused.value)  # a reason is a cell of cases.csv


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_text_file_is_refused(tmp_path, suffix):
    (tmp_path / f"notes{suffix}").write_text("not a volume" * 100)
    with pytest.raises(ImageError, match=r"notes.* cannot be read as NIfTI"):
        read_image(tmp_path / f"notes{suffix}")


def test_colour_complex_and_vector_voxels_are_refused(tmp_path):
    colour = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for array in (colour, np.zeros((4, 4, 4), np.complex64)):
        with pytest.raises(ImageError, match=r"one grey value a voxel is needed"):
            read_image(save(tmp_path / "image.nii", array))


def test_an_affine_without_volume_is_refused(tmp_path):
    path = save(tmp_path / "flat.nii", np.zeros((4, 4, 4), np.float32))
    content = bytearray(path.read_bytes())
    content[280:328] = bytes(48)  # the sform's rows
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"an affine that spans no volume"):
        read_image(path)


def test_integers_float32_cannot_keep_apart_are_refused(tmp_path):
    with pytest.raises(ImageError, match=r"32-bit integers above 2\*\*24"):
        read_image(save(tmp_path / "labels.nii", np.full((4, 4, 4), 2**24 + 1, np.int32)))


def test_metres_and_micrometres_become_millimetres(tmp_path):
    for unit, factor in (("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)):
        affine = np.diag([1 / factor, 2 / factor, 3 / factor, 1])
        image = read_image(save(tmp_path / "image.nii", np.zeros((4, 4, 4), np.float32), affine, unit))
        np.testing.assert_allclose(image.spacing, [1, 2, 3], rtol=1e-6)


def test_a_header_that_claims_more_than_memory_is_refused_before_reading(tmp_path):
    content = bytearray(save(tmp_path / "large.nii", np.zeros((4, 4, 4), np.float32)).read_bytes())
    content[42:48] = np.array([30_000, 30_000, 30_000], "<i2").tobytes()
    (tmp_path / "large.nii").write_bytes(content)
    with pytest.raises(ImageError, match=r"claims 27,000,000,000,000 voxels"):
        read_image(tmp_path / "large.nii")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from([".nii", ".nii.gz"]), place=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_damaged_byte_gives_an_image_or_an_image_error(tmp_path, suffix, place, byte):
    path = save(tmp_path / f"damaged{suffix}", RNG.random((4, 5, 6)).astype(np.float32))
    content = bytearray(path.read_bytes())
    content[place % len(content)] = byte
    path.write_bytes(content)
    with contextlib.suppress(ImageError):
        assert read_image(path).array.ndim in (2, 3)


def test_what_is_not_finite_is_left_to_the_gate(tmp_path):
    stored = np.array([[[np.nan, np.inf]]], np.float32)
    np.testing.assert_array_equal(read_image(save(tmp_path / "image.nii", stored)).array, stored)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("shape", [(7, 8), (7, 8, 9)])
def test_a_map_written_and_read_is_equal(tmp_path, suffix, shape):
    written = Image(array=RNG.standard_normal(shape).astype(np.float32), affine=OBLIQUE, unit="mm")
    write_image(written, tmp_path / f"map{suffix}")
    read = read_image(tmp_path / f"map{suffix}")
    np.testing.assert_array_equal(read.array, written.array)
    np.testing.assert_allclose(read.affine, written.affine, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [f"map{suffix}"]


def test_writing_twice_gives_the_same_bytes(tmp_path):
    image = Image(array=RNG.random((7, 8, 9)).astype(np.float32), affine=OBLIQUE, unit="mm")
    for name in ("one.nii.gz", "two.nii.gz"):
        write_image(image, tmp_path / name)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()


@pytest.mark.slow
def test_real_volumes_are_read_as_nibabel_reads_them(shared_data):
    files = sorted((shared_data / "formats" / "nifti").glob("*.nii.gz"))
    assert files
    for file in files[:4] + files[-1:]:
        image, oracle = read_image(file), nibabel.load(file)
        np.testing.assert_array_equal(image.array, np.asarray(oracle.dataobj))
        np.testing.assert_array_equal(image.affine, oracle.affine)
        assert image.depth == 8 * oracle.get_data_dtype().itemsize
