"""What reading and writing share: hashes, folders, our own pages, and writing that is finished or never happened."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from uuid import uuid4

from salus.core.errors import ImageError, StorageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room, no quota, file larger than this process may write


def file_sha256(paths: Iterable[Path]) -> str:
    """SHA-256 (hex) of all bytes of `paths`, one file after the other in the given order.

    Raises:
        ImageError: a file cannot be opened.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise ImageError(f"{path} cannot be opened: {error.strerror or error}.") from error
    return digest.hexdigest()


def make_folder(path: Path) -> Path:
    """The folder, made if need be.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise StorageError(f"{path} is a file, and a folder is needed.") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be made: {error.strerror or error}.") from error
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path`, replacing what is there; a reader sees the old file or the new, never half of one.

    Raises:
        StorageError: the disk is full or the place cannot be written; `path` is as it was, nothing is left beside it.
    """
    # The same folder, since a rename is only atomic within one file system; a short name, since `path`'s may be long.
    temporary = path.with_name(f".salus-{uuid4().hex}.part")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in FULL:
            raise StorageError(
                f"disk full: {path} needs {len(content):,} bytes ({error.strerror}). This file was not "
                "written, what is finished stays: make room and repeat the command, or choose another folder."
            ) from error
        raise StorageError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):  # after the rename there is none; a missing folder has none either
            temporary.unlink(missing_ok=True)


def page_of(kind: str, name: str) -> str:
    """The page of docs/`kind` called like `name`, with _ for -; in an installed wheel they lie in salus/pages."""
    file = f"{name.replace('-', '_')}.md"
    shipped = files("salus") / "pages" / kind / file
    written = Path(__file__).parents[3] / "docs" / kind / file
    return (shipped if shipped.is_file() else written).read_text(encoding="utf-8")
