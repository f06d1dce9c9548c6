"""Arrays in containers: HDF5 (`.h5`) and NumPy archives (`.npz`), of which one slice is read without the rest.

What is stored is what comes out, as float32 and unscaled; three samples a pixel become grey as in `io.raster`.
"""

import contextlib
import threading
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from salus.core.errors import ImageError
from salus.io.raster import luma

KEPT: dict[str, Any] = {}  # the archive's array read last: a slice of it cannot be unpacked alone
LOCK = threading.Lock()


def read_slice(path: Path, array: str, index: int | None) -> NDArray[Any]:
    """The slice `index` along the first axis of an array, or all of it, in the type it is stored as.

    Raises:
        ImageError: no such file, array or slice, or the file is broken.
    """
    try:
        stored = _hdf5(path, array, index) if path.suffix.lower() in (".h5", ".hdf5") else _npz(path, array, index)
    except ImageError:
        raise
    except Exception as error:  # a damaged byte makes decoders fail in any way at all
        raise ImageError(f"{path}[{array}] cannot be read: {error}. It may be truncated or another format.") from error
    if stored.dtype.kind not in "iufb":
        raise ImageError(f"{path}[{array}] holds {stored.dtype}; one grey value a pixel is needed.")
    return stored


def as_grey(stored: NDArray[Any]) -> tuple[NDArray[np.float32], int]:
    """Float32 of what is stored, colours as luma, and the bits of an integer sample or 0."""
    depth = 0 if stored.dtype.kind == "f" else 8 * stored.dtype.itemsize
    if stored.ndim == 3 and stored.shape[2] == 3:
        return luma(stored), depth
    return np.ascontiguousarray(stored, dtype=np.float32), depth


def _hdf5(path: Path, array: str, index: int | None) -> NDArray[Any]:
    with h5py.File(path, "r") as file:
        if not isinstance(stored := file.get(array), h5py.Dataset):
            raise ImageError(f"{path} holds no array '{array}'; it holds: {_listed(file)}.")
        _check(path, array, index, stored.shape)
        return np.asarray(stored[()] if index is None else stored[index])


def _npz(path: Path, array: str, index: int | None) -> NDArray[Any]:
    stat = path.stat()
    name = f"{path} {array} {stat.st_mtime_ns} {stat.st_size}"
    with LOCK:
        if name not in KEPT:
            with contextlib.closing(_archive(path)) as file:
                if array not in file:
                    raise ImageError(f"{path} holds no array '{array}'; it holds: {_listed(file)}.")
                found = file[array]
            KEPT.clear()
            KEPT[name] = found
        stored = KEPT[name]
    _check(path, array, index, stored.shape)
    return np.asarray(stored if index is None else stored[index])


def _archive(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        raise ImageError(f"{path} is no NumPy archive (.npz).")
    return np.load(path, allow_pickle=False)


def _check(path: Path, array: str, index: int | None, shape: tuple[int, ...]) -> None:
    if index is not None and not 0 <= index < (shape[0] if shape else 0):
        raise ImageError(f"{path}[{array}] of shape {shape} has no slice {index}.")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
