"""What readers share: the files of a download, its tables, and what differs from what was published."""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from salus.core.errors import LayoutError, did_you_mean


def find(root: Path, *names: str, expected: str) -> Path:
    """The first of `root`/`names` that exists: a file or folder that circulates in several places.

    Raises:
        LayoutError: none does; the message tells `expected` and what `root` holds.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    raise LayoutError(f"{root} holds no {' or '.join(names)}. Expected {expected}; it holds: {listing(root)}.")


def listing(root: Path) -> str:
    """The first names in a folder, for messages."""
    if not root.is_dir():
        return "nothing, it is no folder"
    names = sorted(path.name for path in root.iterdir())
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "nothing") + more


def by_stem(root: Path, *suffixes: str) -> dict[str, Path]:
    """Files with such a suffix anywhere under `root` by their name without it, hidden ones left out; sorted.

    Raises:
        LayoutError: a name lies in two places.
    """
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        suffix = next((s for s in suffixes if path.name.lower().endswith(s)), None)
        if suffix is None or path.name.startswith("."):
            continue
        stem = path.name[: -len(suffix)]
        if stem in found:
            raise LayoutError(f"{path.name} lies in {found[stem].parent} and in {path.parent}: keep one.")
        found[stem] = path
    return found


def table(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows of a table, UTF-8 with or without byte-order mark; tabs part cells in a .tsv, else commas; .gz is unpacked.

    Cells are stripped; a short row has empty cells at its end.

    Raises:
        LayoutError: it cannot be read, or lacks one of `columns`; the nearest name there is told.
    """
    tabs = ".tsv" in path.suffixes
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if tabs else ",")
        there = reader.fieldnames or []
        if lacking := [name for name in columns if name not in there]:
            raise LayoutError(
                f"{path} has no column '{lacking[0]}'.{did_you_mean(lacking[0], list(there))} It has: "
                f"{', '.join(there) or 'nothing'}."
            )
        for row in reader:
            yield {str(name): (cell or "").strip() for name, cell in row.items() if name is not None}
    except (UnicodeDecodeError, csv.Error, OSError, EOFError, zlib.error) as error:
        kind = "tab" if tabs else "comma"
        raise LayoutError(f"{path} cannot be read as a {kind}-separated table in UTF-8: {error}.") from error


def numbers(path: Path, row: Mapping[str, str], *columns: str) -> tuple[float, ...]:
    """Cells of a row of the table at `path` as numbers.

    Raises:
        LayoutError: one is none; the message tells them all.
    """
    try:
        return tuple(float(row[name]) for name in columns)
    except ValueError as error:
        cells = ", ".join(f"{name} '{row[name]}'" for name in columns)
        raise LayoutError(f"{path}: {cells} of '{next(iter(row.values()))}' are not all numbers.") from error


def differences(found: Mapping[str, int], published: Mapping[str, int]) -> list[str]:
    """A note for each count that is not the published one, e.g. after half a download."""
    return [
        f"{found.get(what, 0):,} {what}, published: {count:,}"
        for what, count in published.items()
        if found.get(what, 0) != count
    ]
