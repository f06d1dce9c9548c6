"""Zip archives as hospitals send them, unpacked with care."""

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from salus.core.errors import LayoutError, StorageError

FEW = 2**30  # bytes that an archive may always hold
RATIO = 200  # times its own size that a larger one may hold; images rarely shrink to a tenth
ENTRIES = 2**20


def unpack(archive: Path, into: Path) -> Path:
    """All files of a zip archive in the folder `into`, which is made; returns it.

    Nothing is written where one entry lies outside of the archive, is a link or has the name of another, or where all
    of them together are more than 200 times the archive's size.

    Raises:
        LayoutError: no zip archive, a damaged or an encrypted one, or one that should not be unpacked.
        StorageError: there is not enough room.
    """
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(archive) as file:
            entries = [entry for entry in file.infolist() if not entry.is_dir()]
            check(archive, entries, into)
            for entry in entries:
                target = into / PurePosixPath(entry.filename)
                target.parent.mkdir(parents=True, exist_ok=True)
                with file.open(entry) as packed, target.open("xb") as written:
                    shutil.copyfileobj(packed, written)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise LayoutError(
            f"{archive} cannot be unpacked: {error}. It may be truncated, damaged or encrypted."
        ) from error
    except OSError as error:
        raise StorageError(f"{archive} cannot be unpacked to {into}: {error.strerror or error}.") from error
    return into


def check(archive: Path, entries: list[zipfile.ZipInfo], into: Path) -> None:
    """Whether an archive may be unpacked, from its table of contents."""
    names = set()
    for entry in entries:
        entry.filename = entry.filename.replace("\\", "/")  # as some programs write it
        name = PurePosixPath(entry.filename)
        if name.is_absolute() or ".." in name.parts or not name.parts or ":" in name.parts[0]:
            raise LayoutError(f"{archive} holds '{entry.filename}', which lies outside of it. Nothing was unpacked.")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise LayoutError(f"{archive} holds '{entry.filename}', a link. Nothing was unpacked.")
        if name in names:
            raise LayoutError(f"{archive} holds '{name}' twice: one would replace the other. Nothing was unpacked.")
        names.add(name)
    total, size = sum(entry.file_size for entry in entries), archive.stat().st_size
    if len(entries) > ENTRIES or (total > FEW and total > RATIO * size):
        raise LayoutError(
            f"{archive} of {size:,} bytes claims {len(entries):,} files of {total:,} bytes: more than images shrink. "
            "Nothing was unpacked."
        )
    room = shutil.disk_usage(into.parent).free
    if total > room:
        raise StorageError(f"{archive} holds {total:,} bytes; there is room for {room:,} in {into.parent}.")
