import hashlib
import os

import h5py
import nibabel
import numpy as np
import pytest
import tifffile

from salus import io
from salus.core import Image, Source
from salus.core.errors import ImageError
from salus.io import read_image, read_study, study_sha256, write_image
from salus.io.raster import luma

RNG = np.random.default_rng(0)


@pytest.fixture
def volume(tmp_path):
    """An HDF5 file with five slices as a scanner stores them, a number, and k-space."""
    path = tmp_path / "v.h5"
    with h5py.File(path, "w") as file:
        file["reconstruction_rss"] = RNG.random((5, 12, 10)).astype(np.float32)
        file["kspace"] = np.zeros((5, 2, 12, 10), dtype=np.complex64)
        file["one"] = 3.0
    return path


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "m.npz"
    grey, colour = (RNG.integers(0, 256, shape, dtype=np.uint8) for shape in ((4, 28, 28), (3, 28, 28, 3)))
    np.savez_compressed(path, train_images=grey, val_images=colour, train_labels=np.zeros((4, 1), dtype=np.uint8))
    return path


def sha256(*sources: Source) -> str:
    return study_sha256(sources)


def test_a_slice_of_an_array_is_read_alone_and_turned_up(volume):
    with h5py.File(volume) as file:
        stored = file["reconstruction_rss"][3]
    image = read_study([Source(path=volume, array="reconstruction_rss", index=3, flipped=True)])
    np.testing.assert_array_equal(image.array, stored[::-1])
    assert (image.unit, image.depth, image.array.flags.c_contiguous) == ("px", 0, True)
    assert image.origin.files == (volume,)
    whole = read_study([Source(path=volume, array="reconstruction_rss")])
    np.testing.assert_array_equal(whole.array[3], stored)


def test_rows_of_an_archive_in_grey_and_colour(archive):
    arrays = np.load(archive)
    grey = read_study([Source(path=archive, array="train_images", index=2)])
    np.testing.assert_array_equal(grey.array, arrays["train_images"][2])
    assert grey.depth == 8
    colour = read_study([Source(path=archive, array="val_images", index=1)])
    np.testing.assert_array_equal(colour.array, luma(arrays["val_images"][1]))


def test_an_archive_written_anew_is_read_anew(archive):
    source = Source(path=archive, array="train_images", index=0)
    read_study([source])
    np.savez(archive, train_images=np.ones((1, 30, 30), dtype=np.uint8))
    assert (read_study([source]).array == 1).all()


def test_a_slice_of_a_volume_knows_its_place(tmp_path):
    affine = np.array([[0.9, 0, 0.1, -40], [0, 0.8, 0, 12], [0, 0.2, 2.5, 7], [0, 0, 0, 1]])
    array = RNG.random((6, 7, 4)).astype(np.float32)
    nibabel.Nifti1Image(array, affine).to_filename(tmp_path / "v.nii.gz")
    image = read_study([Source(path=tmp_path / "v.nii.gz", index=2)])
    np.testing.assert_array_equal(image.array, array[..., 2])
    assert image.unit == "mm"
    np.testing.assert_allclose(image.affine @ [1, 3, 0, 1], affine @ [1, 3, 2, 1], rtol=1e-6)


def test_slices_of_a_volume_are_unpacked_once_and_of_a_changed_file_anew(tmp_path, monkeypatch):
    path, reads = tmp_path / "v.nii.gz", []
    monkeypatch.setattr(io, "read_image", lambda path: reads.append(path) or read_image(path))
    for value in (1, 2):
        nibabel.Nifti1Image(np.full((6, 7, 4), value, dtype=np.float32), np.eye(4)).to_filename(path)
        os.utime(path, ns=(value, value))
        slices = [read_study([Source(path=path, index=index)]).array for index in range(4)]
        assert all((picture == value).all() for picture in slices)
    assert len(reads) == 2


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_inverted_means_bright_is_bright_again(tmp_path, kind):
    stored = np.arange(80, dtype=kind).reshape(8, 10)
    tifffile.imwrite(tmp_path / "m.tif", stored)
    image = read_study([Source(path=tmp_path / "m.tif", inverted=True)])
    np.testing.assert_array_equal(image.array, np.iinfo(kind).max - stored)


def test_a_whole_file_is_what_read_image_reads_with_the_hash_of_its_bytes(tmp_path):
    path = tmp_path / "p.png"
    write_image(Image(array=RNG.random((9, 9)).astype(np.float32)), path)
    assert sha256(Source(path=path)) == hashlib.sha256(path.read_bytes()).hexdigest()
    np.testing.assert_array_equal(read_study([Source(path=path)]).array, read_image(path).array)


def test_what_is_read_decides_the_hash(volume):
    base = {"path": volume, "array": "reconstruction_rss", "index": 3}
    variants = [{}, {"index": 2}, {"flipped": True}, {"inverted": True}, {"index": None}]
    assert len({sha256(Source(**{**base, **change})) for change in variants}) == len(variants)
    before = sha256(Source(**base))
    with h5py.File(volume, "r+") as file:
        file["kspace"][0] = 1  # nobody reads it
    assert sha256(Source(**base)) == before
    with h5py.File(volume, "r+") as file:
        file["reconstruction_rss"][3, 0, 0] += 1
    assert sha256(Source(**base)) != before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"array": "rss"}, r"no array 'rss'; it holds: kspace, one, reconstruction_rss"),
        ({"index": 5}, r"of shape \(5, 12, 10\) has no slice 5"),
        ({"array": "one", "index": 0}, r"of shape \(\) has no slice 0"),
        ({"array": "one", "index": None}, r"has shape .1,.; a picture or a volume"),
        ({"array": "kspace"}, "holds complex64; one grey value"),
    ],
)
def test_parts_that_are_not_there_are_named(volume, change, reason):
    with pytest.raises(ImageError, match=reason):
        read_study([Source(**{"path": volume, "array": "reconstruction_rss", "index": 3, **change})])


@pytest.mark.parametrize("name", ["t.h5", "t.npz"])
def test_a_truncated_container_is_an_image_error(volume, archive, tmp_path, name):
    whole = (volume if name == "t.h5" else archive).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=name):
        read_study([Source(path=tmp_path / name, array="train_images", index=0)])
    with pytest.raises(ImageError, match=name):
        sha256(Source(path=tmp_path / name, array="train_images", index=0))


def test_a_slice_beyond_a_volume_is_an_image_error(tmp_path):
    nibabel.Nifti1Image(np.zeros((6, 7, 4), dtype=np.float32), np.eye(4)).to_filename(tmp_path / "v.nii")
    with pytest.raises(ImageError, match="has no slice 4"):
        read_study([Source(path=tmp_path / "v.nii", index=4)])


def test_names_of_parts_hold_no_folder(volume):
    assert Source(path=volume, array="reconstruction_rss", index=3).name == "v.h5[reconstruction_rss, 3]"
    assert Source(path=volume, index=0).name == "v.h5[0]"
    assert Source(path=volume).name == "v.h5"
