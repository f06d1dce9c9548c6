"""Bare pictures: PNG, JPEG and TIFF, 8 or 16 bits an integer sample, 32 bits a floating-point one.

What a file stores is what comes out, as float32 and unscaled. The exceptions are stated here:

    colour       ITU-R 601 luma, 0.299 R + 0.587 G + 0.114 B, in float; exactly the value where R = G = B
    palette      looked up, then as colour; depth 8
    1 to 4 bits  stretched to 0..255; depth 8
    alpha        ignored
    MINISWHITE   (TIFF) turned round, so that brighter is larger
    orientation  (EXIF of a JPEG, TIFF tag 274) applied, so that row 0 is the top of the picture

Pillow opens a 16-bit colour PNG as 8 bits without a word; such a file is refused.
"""

import io
import warnings
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from PIL.Image import Image as Picture

from salus.core import Image
from salus.core.errors import ImageError
from salus.io.files import write_whole

LARGEST = 2**28  # pixels a raster may claim: 1 GiB as float32, eight times the largest radiograph detector
ORIENTATION = 0x0112
KINDS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"%PDF": "PDF",
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
}

Grey = NDArray[np.float32]


def read_raster(path: Path, content: bytes) -> Image:
    """The picture in `content`, the bytes of `path`: (rows, columns) float32 as stored, unit px, depth 8, 16 or 0.

    The kind is told from the first bytes, so a JPEG named .png is read as the JPEG it is.

    Raises:
        ImageError: not a picture, broken, several pages, 16-bit colour PNG, or more than 2**28 pixels.
    """
    kind = next((kind for start, kind in KINDS.items() if content.startswith(start)), "")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; only pixels matter here
            if kind == "PNG":
                array, depth = _png(path, content)
            elif kind == "JPEG":
                array, depth = _jpeg(path, content)
            elif kind == "TIFF":
                array, depth = _tiff(path, content)
            else:
                raise ImageError(f"{path} is not a PNG, JPEG or TIFF picture: it {_looks_like(kind, content)}.")
    except ImageError:
        raise
    except Exception as error:  # a damaged byte makes decoders fail in any way at all, division by zero included
        raise ImageError(
            f"{path} is a {kind} of {len(content):,} bytes that cannot be decoded: {error or type(error).__name__}. "
            "It may be truncated or damaged."
        ) from error
    return Image(array=array, depth=depth)


def write_png(image: Image, path: Path) -> None:
    """8-bit grey PNG of a picture with values in [0, 1]; 1/255 steps are kept exactly.

    Raises:
        ValueError: not a picture, or values outside [0, 1].
        StorageError: it could not be written.
    """
    if image.array.ndim != 2 or not ((image.array >= 0) & (image.array <= 1)).all():
        raise ValueError(f"a PNG holds one picture with values in [0, 1], got shape {image.array.shape}")
    buffer = io.BytesIO()
    from PIL.Image import fromarray

    fromarray(np.round(image.array * 255).astype(np.uint8)).save(buffer, "PNG")
    write_whole(path, buffer.getvalue())


def write_tiff(image: Image, path: Path) -> None:
    """32-bit float TIFF of a picture; every value is kept. Not compressed: maps would shrink by an eighth or so.

    Raises:
        ValueError: not a picture.
        StorageError: it could not be written.
    """
    if image.array.ndim != 2:
        raise ValueError(f"a TIFF holds one picture, got shape {image.array.shape}; write a volume as .nii.gz")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, image.array, photometric="minisblack", metadata=None)
    write_whole(path, buffer.getvalue())


def _looks_like(kind: str, content: bytes) -> str:
    if not content:
        return "is empty"
    if kind:
        return f"is a {kind} file"
    if all(byte in b"\t\n\r" or byte >= 32 for byte in content[:64]):
        return f"is text, starting with {content[:24].decode(errors='replace')!r}"
    return f"starts with the bytes {content[:8].hex(' ')}"


def _png(path: Path, content: bytes) -> tuple[Grey, int]:
    bits, colour = content[24], content[25]  # of the IHDR chunk, which is always first
    if bits == 16 and colour != 0:
        raise ImageError(
            f"{path} is a PNG with 16 bits a sample and {'alpha' if colour == 4 else 'colour'}, which would lose "
            "half its bits on reading. Save it as 16-bit grey PNG or as TIFF."
        )
    # The plugin rather than PIL.Image.open: that one warns of, or refuses, large pictures by a global setting.
    return _decoded(path, PngImagePlugin.PngImageFile(io.BytesIO(content)))


def _jpeg(path: Path, content: bytes) -> tuple[Grey, int]:
    picture = JpegImagePlugin.JpegImageFile(io.BytesIO(content))
    orientation = picture.getexif().get(ORIENTATION, 1)
    array, depth = _decoded(path, picture)
    return _upright(array, orientation), depth


def _decoded(path: Path, picture: Picture) -> tuple[Grey, int]:
    """Grey values and depth of what Pillow opened."""
    _within_limit(path, picture.height, picture.width)
    if picture.mode == "F":
        return np.asarray(picture, dtype=np.float32), 0
    if picture.mode in ("I;16", "I;16B", "I;16L"):
        return np.asarray(picture).astype(np.float32), 16
    if picture.mode in ("1", "L", "LA"):
        return np.asarray(picture.convert("LA") if picture.mode == "LA" else picture.convert("L"), np.float32).reshape(
            picture.height, picture.width, -1
        )[..., 0], 8
    if picture.mode not in ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        raise ImageError(f"{path} holds pixels of kind {picture.mode}, which are no grey values or colours.")
    return luma(np.asarray(picture.convert("RGB"))), 8


def luma(colour: NDArray[np.generic]) -> Grey:
    """(rows, columns) ITU-R 601 luma of (rows, columns, 3); written so that R = G = B comes out as that very value."""
    red, green, blue = (colour[..., channel].astype(np.float64) for channel in range(3))
    return (green + 0.299 * (red - green) + 0.114 * (blue - green)).astype(np.float32)


def _upright(array: Grey, orientation: int) -> Grey:
    if orientation in (5, 6, 7, 8):
        array = array.T
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def _within_limit(path: Path, rows: int, columns: int) -> None:
    if rows * columns > LARGEST:
        raise ImageError(f"{path} claims {rows:,} x {columns:,} pixels; more than {LARGEST:,} are not read.")


def _tiff(path: Path, content: bytes) -> tuple[Grey, int]:
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        if len(file.pages) != 1 or file.series[0].size != page.size:
            pages = max(len(file.pages), file.series[0].size // max(page.size, 1))
            raise ImageError(f"{path} is a TIFF of {pages} pages; a picture has one. Save each page as its own file.")
        _within_limit(path, page.imagelength, page.imagewidth)
        if not len(page.dataoffsets) or sum(page.databytecounts) > len(content):
            raise ImageError(f"{path} is a truncated TIFF: {len(content):,} bytes, {sum(page.databytecounts):,} named.")
        if page.compression in (5, 6, 7):  # LZW and JPEG, which tifffile cannot decode alone and Pillow can
            return _tiff_by_pillow(path, content, page)
        samples = page.asarray()
        orientation = page.tags.valueof(274, 1)
        if page.photometric == 3:
            # 16-bit entries, of which programs fill the upper half or repeat it in the lower.
            samples, axes = np.moveaxis(np.asarray(page.colormap)[:, samples] >> 8, 0, -1).astype(np.uint8), "YXS"
        else:
            axes = page.axes
        grey = _grey_samples(path, samples, axes, white_is_zero=page.photometric == 0)
    return _upright(grey[0], orientation), grey[1]


def _tiff_by_pillow(path: Path, content: bytes, page: tifffile.TiffPage) -> tuple[Grey, int]:
    if page.bitspersample > 8 and page.samplesperpixel > 1:
        raise ImageError(f"{path} is an LZW-compressed TIFF in deep colour. Save it uncompressed or with Deflate.")
    array, depth = _decoded(path, TiffImagePlugin.TiffImageFile(io.BytesIO(content)))  # and turned upright by Pillow
    if page.photometric == 0 and depth != 8:  # Pillow turns MINISWHITE round in 8 bits only
        if depth == 0:
            raise ImageError(f"{path} is a MINISWHITE TIFF of float32 samples, whose white is unknown.")
        array = np.float32(2**depth - 1) - array
    return array, depth


def _grey_samples(path: Path, samples: NDArray[np.generic], axes: str, *, white_is_zero: bool) -> tuple[Grey, int]:
    """Grey values and depth of a TIFF's samples, axes YX, YXS or SYX."""
    if axes == "SYX":
        samples = np.moveaxis(samples, 0, -1)
    elif axes not in ("YX", "YXS"):
        raise ImageError(f"{path} is a TIFF with axes {axes}; a picture has rows and columns (YX) and perhaps colour.")
    if samples.dtype == np.bool_:
        samples = samples.astype(np.uint8) * np.uint8(255)
    if samples.dtype.kind not in "uif":
        raise ImageError(f"{path} is a TIFF of {samples.dtype} samples, which are no grey values.")
    if samples.ndim != len(axes) or 0 in samples.shape:
        raise ImageError(f"{path} is a TIFF without pixels, shape {samples.shape}. It may be damaged.")
    depth = 0 if samples.dtype.kind == "f" else 8 * samples.dtype.itemsize
    if depth > 16 and np.abs(samples.astype(np.float64)).max() > 2**24:
        raise ImageError(f"{path} holds {depth}-bit integers above 2**24, which float32 cannot keep apart.")
    if white_is_zero:
        if samples.dtype.kind != "u":
            raise ImageError(f"{path} is a MINISWHITE TIFF of {samples.dtype} samples, whose white is unknown.")
        samples = np.iinfo(samples.dtype).max - samples  # type: ignore[type-var]
    if samples.ndim == 3:
        return (luma(samples) if samples.shape[2] >= 3 else samples[..., 0].astype(np.float32)), depth
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, which the gate reports
        return samples.astype(np.float32), depth
