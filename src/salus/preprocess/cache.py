"""Prepared images on disk, computed once and mapped into memory.

    <folder>/<key>/rows.f32       (n, 1, size, size) float32, little-endian, no header
    <folder>/<key>/index.json     n, size, which case each row belongs to, and which cases could not be read

The key is the SHA-256 of the source files' hashes in order, the preparation and the format's version, so that nothing
is ever found under a key it does not belong to. An entry is built in a folder of another name and renamed when whole.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from salus.core import Case, Image, Source
from salus.core.errors import ConfigError, ImageError, StorageError
from salus.core.machine import sweep
from salus.preprocess.preparation import Preparation

FORMAT = 2  # raise it whenever the same preparation gives other values
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SAMPLE = np.dtype("<f4")

Read = Callable[[Sequence[Source]], Image]
Digest = Callable[[Sequence[Source]], str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """Prepared slices of many cases.

    Attributes:
        rows: (n, 1, size, size) float32 in [0, 1], read-only, mapped from disk.
        case: (n,) for each row the index of its case among those asked for; increasing.
        failures: (name of the file, reason) of what could not be read or judged; it has no rows.
    """

    rows: NDArray[np.float32]
    case: NDArray[np.int64]
    failures: tuple[tuple[str, str], ...]


def default_folder() -> Path:
    """$SALUS_CACHE, else $XDG_CACHE_HOME/salus/prepared, else ~/.cache/salus/prepared."""
    if chosen := os.environ.get("SALUS_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "salus" / "prepared"


class PreparedCache:
    """Prepares many cases, or finds them prepared."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = default_folder() if folder is None else folder

    def prepare(
        self,
        cases: Sequence[Case],
        preparation: Preparation,
        read: Read,
        digest: Digest,
        progress: Callable[[int, int], None] | None = None,
    ) -> Prepared:
        """All slices of `cases` in their order.

        Args:
            preparation: resolved: 'auto' would let each image decide for itself.
            read, digest: `salus.io.read_study` and `study_sha256`, or their likes.
            progress: called with (cases done, cases in all) after each case, and once with all when found on disk.

        Raises:
            ConfigError: the preparation is not resolved.
            StorageError: the disk is full or cannot be written; nothing of this entry is left on it.
        """
        if preparation.intensity == "auto":
            raise ConfigError("prepare() needs a decided intensity: call preparation.resolve(first image) before.")
        entry = self.folder / _key(cases, preparation, digest)
        if (found := _open(entry, cases, preparation.size)) is not None:
            if progress:
                progress(len(cases), len(cases))
            return found
        try:
            self._build(entry, cases, preparation, read, progress)
        except OSError as error:
            what = "disk full" if error.errno in FULL else "the cache cannot be written"
            raise StorageError(
                f"{what}: {entry.parent} ({error.strerror or error}) while preparing {len(cases):,} images. Nothing of "
                "it was kept; make room or set SALUS_CACHE to another folder."
            ) from error
        prepared = _open(entry, cases, preparation.size)
        if prepared is None:
            raise StorageError(f"{entry} was written and cannot be read back; is something else changing the cache?")
        return prepared

    def _build(
        self,
        entry: Path,
        cases: Sequence[Case],
        preparation: Preparation,
        read: Read,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder, ".building-*")
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=self.folder))
        try:
            # Written as a stream: a full disk is an error here, and would be a crash under a memory map.
            with (building / "rows.f32").open("wb") as file:
                index = _write_rows(file, cases, preparation, read, progress)
                _to_disk(file)
            with (building / "index.json").open("wb") as file:
                file.write(json.dumps(index).encode())
                _to_disk(file)
            try:
                os.rename(building, entry)
            except OSError:
                # Another process may have been faster, with the same rows; only a damaged entry makes room.
                if _open(entry, cases, preparation.size) is None:
                    shutil.rmtree(entry, ignore_errors=True)
                    os.rename(building, entry)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _write_rows(
    file: BinaryIO,
    cases: Sequence[Case],
    preparation: Preparation,
    read: Read,
    progress: Callable[[int, int], None] | None,
) -> dict[str, object]:
    of_row: list[int] = []
    failures: list[tuple[int, str]] = []
    for index, case in enumerate(cases):
        try:
            array = preparation(read(case.images)).array
        except (ImageError, OSError) as error:  # reading failed; writing below is not inside this try
            failures.append((index, case.without_folders(str(error))))
        else:
            slices = np.moveaxis(array.reshape(*array.shape[:2], -1), -1, 0)
            file.write(np.ascontiguousarray(slices, dtype=SAMPLE).tobytes())
            of_row += [index] * len(slices)
        if progress:
            progress(index + 1, len(cases))
    return {"format": FORMAT, "size": preparation.size, "case": of_row, "failures": failures}


def _open(entry: Path, cases: Sequence[Case], size: int) -> Prepared | None:
    """The entry, or None where it is missing or not whole."""
    try:
        index = json.loads((entry / "index.json").read_text())
        shape = (len(index["case"]), 1, size, size)
        if (entry / "rows.f32").stat().st_size != int(np.prod(shape)) * SAMPLE.itemsize:
            return None
        failures = tuple((cases[case].images[0].name, str(reason)) for case, reason in index["failures"])
        # An empty file cannot be mapped.
        rows = np.memmap(entry / "rows.f32", SAMPLE, "r", shape=shape) if shape[0] else np.empty(shape, np.float32)
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
    return Prepared(rows=rows, case=np.array(index["case"], dtype=np.int64), failures=failures)


def _key(cases: Sequence[Case], preparation: Preparation, digest: Digest) -> str:
    key = hashlib.sha256(json.dumps([FORMAT, asdict(preparation)], sort_keys=True).encode())
    for case in cases:
        try:
            key.update(bytes.fromhex(digest(case.images)))
        except ImageError:
            # It becomes a failure of this entry; once it can be read, the key is another.
            key.update(b"unreadable")
    return key.hexdigest()


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
