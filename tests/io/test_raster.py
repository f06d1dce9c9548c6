import contextlib
import errno
import os
import resource
import signal
import struct
import subprocess
import zlib
from hashlib import sha256

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from salus.core import Image
from salus.core.errors import ImageError, StorageError
from salus.io import file_sha256, read_image, write_image

RAMP = np.arange(240, dtype=np.uint8).reshape(12, 20)
DEEP = (np.arange(240, dtype=np.uint16) * 273).reshape(12, 20)


def png(width: int, height: int, bits: int, colour: int, data: bytes) -> bytes:
    """A PNG written by hand, for what Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff"])
@pytest.mark.parametrize(("stored", "depth"), [(RAMP, 8), (DEEP, 16)])
def test_grey_pictures_keep_their_stored_values_and_depth(tmp_path, suffix, stored, depth):
    path = tmp_path / f"picture{suffix}"
    Pillow.fromarray(stored).save(path)
    image = read_image(path)
    assert image.depth == depth
    assert image.unit == "px"
    assert image.array.dtype == np.float32
    np.testing.assert_array_equal(image.array, stored)
    np.testing.assert_array_equal(image.affine, np.eye(4))


def test_origin_names_the_file_and_the_hash_of_its_bytes(tmp_path):
    path = tmp_path / "picture.PNG"  # suffixes count in any case
    Pillow.fromarray(RAMP).save(path)
    origin = read_image(path).origin
    assert origin.files == (path,)
    assert origin.sha256 == sha256(path.read_bytes()).hexdigest() == file_sha256([path])
    assert file_sha256([path, path]) == sha256(path.read_bytes() * 2).hexdigest()


def test_float_tiff_keeps_values_beyond_a_byte_and_what_is_not_finite(tmp_path):
    stored = np.array([[-1.5, np.nan], [np.inf, 1e30]], np.float32)
    tifffile.imwrite(tmp_path / "map.tif", stored)
    image = read_image(tmp_path / "map.tif")
    assert image.depth == 0
    np.testing.assert_array_equal(image.array, stored)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_colour_that_is_grey_is_exactly_that_grey(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    Pillow.fromarray(np.full((16, 16, 3), 137, np.uint8)).save(path)
    image = read_image(path)
    assert image.depth == 8
    assert (image.array == 137).all()


def test_every_grey_level_survives_the_luma(tmp_path):
    Pillow.fromarray(np.repeat(RAMP[..., None], 3, axis=2)).save(tmp_path / "picture.png")
    np.testing.assert_array_equal(read_image(tmp_path / "picture.png").array, RAMP)


def test_colour_becomes_itu_r_601_luma_without_rounding(tmp_path):
    Pillow.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)).save(tmp_path / "primaries.png")
    np.testing.assert_allclose(read_image(tmp_path / "primaries.png").array, [[76.245, 149.685, 29.07]], rtol=1e-6)


def test_alpha_is_ignored(tmp_path):
    for name, mode in (("la.png", "LA"), ("rgba.png", "RGBA"), ("rgba.tif", "RGBA"), ("la.tif", "LA")):
        picture = Pillow.fromarray(RAMP).convert(mode)
        picture.putalpha(3)
        picture.save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name).array, RAMP, err_msg=name)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_palettes_are_looked_up(tmp_path, suffix):
    picture = Pillow.fromarray(RAMP % 3)
    picture.putpalette([10, 10, 10, 200, 200, 200, 255, 0, 0])
    picture.save(tmp_path / f"palette{suffix}")
    image = read_image(tmp_path / f"palette{suffix}")
    assert image.depth == 8
    np.testing.assert_allclose(image.array, np.array([10, 200, 76.245])[RAMP % 3], rtol=1e-6)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_one_bit_is_stretched_to_black_and_white(tmp_path, suffix):
    Pillow.fromarray(RAMP % 2 == 0).save(tmp_path / f"mask{suffix}")
    image = read_image(tmp_path / f"mask{suffix}")
    assert image.depth == 8
    np.testing.assert_array_equal(image.array, np.where(RAMP % 2 == 0, 255, 0))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("stored", [RAMP, DEEP])
def test_compressed_tiffs_are_read(tmp_path, compression, stored):
    Pillow.fromarray(stored).save(tmp_path / "picture.tif", compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "picture.tif").array, stored)


def test_lzw_in_float_is_read_and_in_32_bit_integers_refused(tmp_path):
    Pillow.fromarray(DEEP / np.float32(7)).save(tmp_path / "float.tif", compression="tiff_lzw")
    image = read_image(tmp_path / "float.tif")
    assert image.depth == 0
    np.testing.assert_array_equal(image.array, DEEP / np.float32(7))
    Pillow.fromarray(DEEP.astype(np.int32)).save(tmp_path / "long.tif", compression="tiff_lzw")
    with pytest.raises(ImageError, match=r"holds pixels of kind I"):
        read_image(tmp_path / "long.tif")


def test_tiff_colour_in_16_bits_keeps_its_depth(tmp_path):
    tifffile.imwrite(tmp_path / "deep.tif", np.repeat(DEEP[..., None], 3, axis=2), photometric="rgb")
    tifffile.imwrite(tmp_path / "planes.tif", np.repeat(DEEP[None], 3, axis=0), photometric="rgb")
    for name in ("deep.tif", "planes.tif"):
        image = read_image(tmp_path / name)
        assert image.depth == 16
        np.testing.assert_array_equal(image.array, DEEP)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])  # LZW goes through another decoder
@pytest.mark.parametrize(("stored", "white"), [(RAMP, 255), (DEEP, 65535)])
def test_a_tiff_whose_zero_is_white_is_turned_round(tmp_path, compression, stored, white):
    Pillow.fromarray(stored).save(tmp_path / "film.tif", compression=compression)
    with tifffile.TiffFile(tmp_path / "film.tif", mode="r+b") as file:
        file.pages.first.tags["PhotometricInterpretation"].overwrite(0)
    np.testing.assert_array_equal(read_image(tmp_path / "film.tif").array, white - stored.astype(np.float32))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(tmp_path, orientation):
    from PIL import ImageOps

    exif = Pillow.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    Pillow.fromarray(RAMP).save(path, exif=exif, quality=95)
    with Pillow.open(path) as picture:
        np.testing.assert_array_equal(read_image(path).array, np.asarray(ImageOps.exif_transpose(picture)))


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])  # LZW goes through another decoder
def test_tiff_orientation_is_applied(tmp_path, compression):
    Pillow.fromarray(RAMP).save(tmp_path / "turned.tif", tiffinfo={274: 6}, compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.tif").array, RAMP.T[:, ::-1])


def test_a_jpeg_named_png_is_read_as_the_jpeg_it_is(tmp_path):
    Pillow.fromarray(np.full((9, 9), 50, np.uint8)).save(tmp_path / "picture.png", format="JPEG")
    assert (read_image(tmp_path / "picture.png").array == 50).all()


@pytest.mark.parametrize("colour", [2, 4, 6])
def test_sixteen_bit_colour_png_is_refused_rather_than_halved(tmp_path, colour):
    samples = {2: 3, 4: 2, 6: 4}[colour]
    (tmp_path / "deep.png").write_bytes(png(4, 2, 16, colour, (b"\0" + bytes(4 * 2 * samples)) * 2))
    with pytest.raises(ImageError, match=r"deep\.png is a PNG with 16 bits a sample and (colour|alpha)"):
        read_image(tmp_path / "deep.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".nii", ".nii.gz"])
def test_an_empty_file_is_named(tmp_path, suffix):
    (tmp_path / f"nothing{suffix}").touch()
    with pytest.raises(ImageError, match=r"nothing.* is empty"):
        read_image(tmp_path / f"nothing{suffix}")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_text_file_is_told_from_a_picture(tmp_path, suffix):
    (tmp_path / f"notes{suffix}").write_text("patient 7: normal")
    with pytest.raises(ImageError, match=r"notes.* is text, starting with 'patient 7"):
        read_image(tmp_path / f"notes{suffix}")


@pytest.mark.parametrize(
    ("content", "found"), [(b"GIF89a....", "GIF"), (b"%PDF-1.7", "PDF"), (b"\x00\x01\x02\x03", "bytes 00 01 02 03")]
)
def test_other_kinds_are_named(tmp_path, content, found):
    (tmp_path / "picture.png").write_bytes(content)
    with pytest.raises(ImageError, match=found):
        read_image(tmp_path / "picture.png")


def test_what_is_not_there_or_of_no_known_kind_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png cannot be opened: No such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match=r"table\.csv is of no kind that can be read"):
        read_image(tmp_path / "table.csv")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=r"folder\.png cannot be opened: Is a directory"):
        read_image(tmp_path / "folder.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_a_truncated_picture_is_refused(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = tmp_path / f"cut{suffix}"
    Pillow.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ImageError, match=r"cut\."):
        read_image(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from([".png", ".jpg", ".tif"]), place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_damaged_byte_gives_a_picture_or_an_image_error(tmp_path, suffix, place, byte):
    path = tmp_path / f"damaged{suffix}"
    Pillow.fromarray(DEEP if suffix == ".png" else RAMP).save(path)
    content = bytearray(path.read_bytes())
    content[place % len(content)] = byte
    path.write_bytes(content)
    with contextlib.suppress(ImageError):
        assert read_image(path).array.ndim == 2


def test_several_pages_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((3, 16, 16), np.uint8), photometric="minisblack")
    tifffile.imwrite(tmp_path / "imagej.tif", np.zeros((3, 16, 16), np.uint8), imagej=True)
    for name in ("stack.tif", "imagej.tif"):
        with pytest.raises(ImageError, match=r"is a TIFF of 3 pages"):
            read_image(tmp_path / name)


def test_a_strip_of_20_000_pixels_is_readable(tmp_path):
    Pillow.fromarray(np.zeros((3, 20_000), np.uint8)).save(tmp_path / "strip.png")
    assert read_image(tmp_path / "strip.png").array.shape == (3, 20_000)


def test_a_picture_pillow_takes_for_a_bomb_is_read_and_a_real_one_refused(tmp_path):
    Pillow.fromarray(np.zeros((9_500, 9_500), bool)).save(tmp_path / "large.png")  # above Pillow's warning
    assert read_image(tmp_path / "large.png").array.shape == (9_500, 9_500)
    (tmp_path / "bomb.png").write_bytes(png(10**6, 10**6, 8, 0, b""))
    with pytest.raises(ImageError, match=r"bomb\.png claims 1,000,000 x 1,000,000 pixels"):
        read_image(tmp_path / "bomb.png")


def test_integers_float32_cannot_keep_apart_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "large.tif", np.array([[2**24 + 1, 0]], np.uint32))
    with pytest.raises(ImageError, match=r"32-bit integers above 2\*\*24"):
        read_image(tmp_path / "large.tif")


# Writing


def picture(array) -> Image:
    return Image(array=np.asarray(array, np.float32))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_tiff_map_written_and_read_is_equal(tmp_path, seed):
    rng = np.random.default_rng(seed)
    written = picture(rng.standard_normal(rng.integers(1, 40, 2)) * 10.0 ** rng.integers(-30, 30))
    write_image(written, tmp_path / "map.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "map.tif").array, written.array)


def test_a_png_of_255ths_written_and_read_is_equal(tmp_path):
    write_image(picture(RAMP / 255), tmp_path / "map.png")
    np.testing.assert_array_equal(read_image(tmp_path / "map.png").array, RAMP)


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("one.tif", "two.tif", "one.png", "two.png"):
        write_image(picture(RAMP / 255), tmp_path / name)
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "two.tif").read_bytes()
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_written_file_has_the_rights_of_any_other_new_file(tmp_path):
    write_image(picture(RAMP), tmp_path / "map.tif")
    (tmp_path / "other").touch()
    assert (tmp_path / "map.tif").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("array", [[[1.5, 0.0]], [[np.nan, 0.0]], np.zeros((2, 2, 2))])
def test_what_a_png_cannot_hold_is_refused(tmp_path, array):
    with pytest.raises(ValueError, match=r"a PNG holds one picture with values in \[0, 1\]"):
        write_image(picture(array), tmp_path / "map.png")


def test_what_no_format_holds_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"write a volume as \.nii\.gz"):
        write_image(picture(np.zeros((2, 2, 2))), tmp_path / "map.tif")
    with pytest.raises(ValueError, match=r"has no place in mm"):
        write_image(picture(RAMP), tmp_path / "map.nii.gz")
    with pytest.raises(ValueError, match=r"written as \.nii\.gz, \.tif or \.png"):
        write_image(picture(RAMP), tmp_path / "map.jpg")
    assert not list(tmp_path.iterdir())


def test_the_longest_name_a_file_may_have_can_be_written(tmp_path):
    write_image(picture(RAMP), tmp_path / ("n" * 251 + ".tif"))
    assert len(list(tmp_path.iterdir())) == 1


def test_an_interruption_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_image(picture(RAMP), tmp_path / "map.tif")
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"map\.tif cannot be written: No such file"):
        write_image(picture(RAMP), tmp_path / "gone" / "map.tif")


NOISE = np.random.default_rng(0).random((800, 800))  # 2.5 MB that do not compress


@pytest.fixture
def full_disk(tmp_path):
    """A file system of one megabyte, where this process may mount one."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(full_disk):
    write_image(picture(RAMP), full_disk / "map.tif")
    before = (full_disk / "map.tif").read_bytes()
    with pytest.raises(StorageError, match=r"^disk full: .*map\.tif needs [\d,]+ bytes"):
        write_image(picture(NOISE), full_disk / "map.tif")
    assert [path.name for path in full_disk.iterdir()] == ["map.tif"]
    assert (full_disk / "map.tif").read_bytes() == before


def test_a_file_larger_than_the_process_may_write_counts_as_a_full_disk(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else the kernel kills instead of refusing
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"disk full"):
            write_image(picture(NOISE), tmp_path / "map.tif")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(tmp_path.iterdir())


def test_a_failed_rename_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match=r"disk full"):
        write_image(picture(RAMP / 255), tmp_path / "map.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_real_radiographs_keep_their_sixteen_bits(shared_data):
    files = sorted((shared_data / "wrist_xray_samples" / "images").glob("*.png"))
    assert len(files) == 3
    for file in files:
        image = read_image(file)
        with Pillow.open(file) as picture:
            np.testing.assert_array_equal(image.array, np.asarray(picture))
        assert image.depth == 16
        assert len(np.unique(image.array)) > 256
