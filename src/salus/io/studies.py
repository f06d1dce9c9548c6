"""What a case names, opened: whole files and parts of files, as one image."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from salus.core import Image, Source
from salus.core.errors import ImageError
from salus.io.files import file_sha256

CONTAINERS = (".h5", ".hdf5", ".npz")


def read_study(images: Sequence[Source]) -> Image:
    """The picture or volume of a case.

    A slice of an array is a bare picture in px; a slice of a volume is a picture that knows its place in mm. What is
    flipped or inverted has been put right: row 0 is the top, bright is bright.

    Raises:
        ImageError: it cannot be read as what it claims to be; file and reason are named.
    """
    source = images[0]
    if len(images) > 1:
        from salus.io.dicom import read_dicom

        image = read_dicom([image.path for image in images])
        return replace(image, origin=replace(image.origin, sha256=study_sha256(images)))
    if source.path.name.lower().endswith(CONTAINERS):
        from salus.io.arrays import as_grey, read_slice

        array, depth = as_grey(read_slice(source.path, source.array, source.index))
        if array.ndim not in (2, 3):
            raise ImageError(f"{source.path}[{source.array}] has shape {array.shape}; a picture or a volume is needed.")
        image = Image(array=array, depth=depth)
    else:
        from salus.io import read_image

        image = read_image(source.path) if source.index is None else volume(source.path, modified(source.path))
        if source.index is not None:
            if image.array.ndim != 3 or not 0 <= source.index < image.array.shape[2]:
                raise ImageError(f"{source.path} of shape {image.array.shape} has no slice {source.index}.")
            image = image.slices(source.index, source.index + 1)
            image = replace(image, array=image.array[..., 0])
    if source.flipped:
        image = replace(image, array=np.ascontiguousarray(image.array[::-1]))
    if source.inverted:
        image = replace(image, array=brightest(image) - image.array)
    return replace(image, origin=replace(image.origin, files=(source.path,), sha256=study_sha256(images)))


def study_sha256(images: Sequence[Source]) -> str:
    """SHA-256 (hex) of what `read_study` reads: of the files' bytes, where they are read whole and as they are.

    Of a container only the slice is read and counts; how a part is chosen and turned counts, too.

    Raises:
        ImageError: a file cannot be opened, or has no such part.
    """
    if all(image == Source(path=image.path) for image in images):
        return file_sha256([image.path for image in images])
    digest = hashlib.sha256()
    for image in images:
        if image.path.name.lower().endswith(CONTAINERS):
            from salus.io.arrays import read_slice

            stored = read_slice(image.path, image.array, image.index)
            digest.update(f"{stored.dtype.str} {stored.shape}".encode() + np.ascontiguousarray(stored).tobytes())
        else:
            digest.update(bytes.fromhex(file_sha256([image.path])))
        digest.update(f"{image.array} {image.index} {image.flipped} {image.inverted}".encode())
    return digest.hexdigest()


@lru_cache(maxsize=2)
def volume(path: Path, modified: tuple[int, int]) -> Image:
    """The volume in a file; the last two stay, since slices of one are asked for one after the other."""
    from salus.io import read_image

    return read_image(path)


def modified(path: Path) -> tuple[int, int]:
    """What changes when a file does; zeros of one that is not there, which reading will say."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size


def brightest(image: Image) -> np.float32:
    """The value that stands for white: of the stored bits, or where there are none the largest there is."""
    return np.float32(2**image.depth - 1) if image.depth else image.array.max()
