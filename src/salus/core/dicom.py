"""How pydicom is used here: quietly. What it says of odd values would tell names and dates of patients."""

import logging
import re
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import Any

DEFLATED = "1.2.840.10008.1.2.1.99"
PIECE = 2**20  # bytes unpacked at a time
QUIET = {re.compile(r"pydicom(\..*)?$"), re.compile(r"highdicom(\..*)?$")}


def pydicom() -> Any:
    """The package, set to read what is there without comment.

    Raises:
        ImportError: it is not installed.
    """
    import pydicom as package

    if QUIET.issubset(entry[3] for entry in warnings.filters):  # set before; to set it again costs every later warning
        return package
    package.config.settings.reading_validation_mode = package.config.IGNORE
    package.config.settings.writing_validation_mode = package.config.IGNORE
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    for modules in QUIET:
        # For the whole process: a filter for a while is shared by all threads, and one would end another's.
        warnings.filterwarnings("ignore", module=modules.pattern)
    return package


@cache
def tag_of(keyword: str) -> Any:
    """The tag of an attribute, looked up once: pydicom takes either, and for thousands of headers that counts.

    Raises:
        ImportError: pydicom is not installed.
    """
    return pydicom().tag.Tag(keyword)


def opened(path: Path, most: float, **how: Any) -> Any:
    """The data set in a file, by pydicom's `dcmread`, which unpacks the whole of a deflated one even for its header.

    Raises:
        MemoryError: a deflated file unpacks to more than `most` bytes.
        Exception: of any kind, where it is damaged.
    """
    package = pydicom()
    with path.open("rb") as file:
        if DEFLATED.encode() in file.peek():  # no more work for any other
            meta = package.filereader.read_file_meta_info(path)
            if meta.get("TransferSyntaxUID") == DEFLATED:
                _inflates(path, 144 + int(meta.FileMetaInformationGroupLength), most)
        return package.dcmread(file, **how)


def _inflates(path: Path, start: int, most: float) -> None:
    """Refuse what unpacks from byte `start` on to more than `most`; a piece is held at a time."""
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(start)
        while not inflater.eof and (packed := inflater.unconsumed_tail or file.read(PIECE)):
            size += len(inflater.decompress(packed, PIECE))
            if size > most:
                raise MemoryError
