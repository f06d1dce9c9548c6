"""Folders that Salus fills itself: made once, whole or not at all, and known again."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from salus.core.errors import LayoutError, StorageError

TABLE = "metadata.csv"


def made(
    root: Path,
    kind: str,
    recorded: Mapping[str, Any],
    fill: Callable[[Path], None],
    usual: Mapping[str, Any] | None = None,
) -> Path:
    """`root`, holding the data set that `recorded` describes; one that is there already is left as it is.

    The folder appears under its name only when it is complete; an interrupted run leaves at most a hidden sibling
    `.<name>.<process>.part`, which may be deleted.

    Args:
        root: absent, empty, or this very data set.
        kind: what the folder is called in messages; its description is `<kind>.json`.
        fill: writes everything else into an empty folder, the table of its files among it.
        usual: what older descriptions do not say.

    Raises:
        LayoutError: `root` holds something else.
        StorageError: the folder could not be written.
    """
    if holds(root, kind, recorded, usual or {}):
        return root
    part = root.parent / f".{root.name}.{os.getpid()}.part"
    try:
        part.mkdir(parents=True)
        fill(part)
        (part / f"{kind}.json").write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
        if root.exists():
            root.rmdir()  # empty, or `holds` would have refused
        part.rename(root)
    except OSError as error:
        raise StorageError(f"{kind}: {root} could not be written: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return root


def holds(root: Path, kind: str, recorded: Mapping[str, Any], usual: Mapping[str, Any]) -> bool:
    """Whether `root` is the finished data set; refuses a folder that is anything else and not empty."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise LayoutError(f"{kind}: {root} is a file where a folder is to be made. Choose another name.")
    found = sorted(path.name for path in root.iterdir())
    if not found:
        return False
    try:
        made_with = {**usual, **json.loads((root / f"{kind}.json").read_text(encoding="utf-8"))}
        with (root / TABLE).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        missing = [row["file"] for row in rows if not (root / row["file"]).is_file()]
    except (OSError, ValueError, KeyError, TypeError):
        made_with, missing = None, []
    if made_with == recorded and not missing:
        return True
    what = f"it was made with {made_with}" if made_with else f"it holds: {', '.join(found[:8])}"
    what = f"{len(missing)} of its pictures are missing, first {missing[0]}" if missing else what
    raise LayoutError(
        f"{kind}: {root} is not the data set asked for ({dict(recorded)}): {what}. Choose another folder, or delete it."
    )


def write_table(root: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """`metadata.csv`; the first column is `file`."""
    with (root / TABLE).open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
