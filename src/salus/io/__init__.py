"""Files to `Image` and back."""

from dataclasses import replace
from pathlib import Path

from salus.core import Image
from salus.core.errors import ImageError
from salus.core.kinds import SUFFIXES, is_dicom
from salus.io.files import file_sha256
from salus.io.studies import read_study, study_sha256

__all__ = ["file_sha256", "read_image", "read_study", "study_sha256", "write_image"]


def read_image(path: Path) -> Image:
    """The image in `path`, in the values it stores, as float32; NaN and infinity are kept for the gate to judge.

    Args:
        path: a file whose name ends in one of `core.kinds.SUFFIXES`, in any case, or DICOM without a suffix.

    Returns:
        A picture (rows, columns) in unit px, depth 8, 16 or 0 (floating point), from PNG, JPEG or TIFF; or a picture
        or volume in mm from NIfTI or DICOM. See `io.raster`, `io.nifti` and `io.dicom`. Its origin holds the path and
        the SHA-256 of the file's bytes.

    Raises:
        ImageError: the file cannot be read as what its name says; path and what was found are named.
    """
    path = Path(path)
    name = path.name.lower()
    dicom = is_dicom(path)
    if not dicom and not name.endswith(SUFFIXES):
        raise ImageError(f"{path} is of no kind that can be read. Kinds: {', '.join(SUFFIXES)}.")
    sha256 = file_sha256([path])
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes).")
    if name.endswith((".nii", ".nii.gz")):
        from salus.io.nifti import read_nifti

        image = read_nifti(path)
    elif dicom:
        from salus.io.dicom import read_dicom

        image = read_dicom([path])
    else:
        from salus.io.raster import read_raster

        image = read_raster(path, path.read_bytes())
    return replace(image, origin=replace(image.origin, files=(path,), sha256=sha256))


def write_image(image: Image, path: Path) -> None:
    """Write `image` as its suffix says, whole or not at all; a file already there is replaced.

    Args:
        image: any values for .nii, .nii.gz (float32, affine kept) and .tif, .tiff (32-bit float, pictures only);
            in [0, 1] for .png (8 bits, pictures only).
        path: the folder must exist.

    Raises:
        ValueError: the format cannot hold this image.
        StorageError: the disk is full or the place cannot be written; nothing half-written is left.
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        from salus.io.nifti import write_nifti

        write_nifti(image, path)
    elif name.endswith((".tif", ".tiff")):
        from salus.io.raster import write_tiff

        write_tiff(image, path)
    elif name.endswith(".png"):
        from salus.io.raster import write_png

        write_png(image, path)
    else:
        raise ValueError(f"{path.name}: images are written as .nii.gz, .tif or .png")
