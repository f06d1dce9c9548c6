"""Every look at test labels: what was trained and scored and then evaluated on labelled cases, whoever asks for it now.

OUT/ledger.csv   data, test_sha256, method, score, map, seed, evaluated (day, UTC)

Whoever has looked at the labels of a test a hundred times has a best of a hundred. Rows are read from the cells on
disk, so what was taken out of a suite still counts. Drawn heads and painted lesions have no labels to be looked at.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from salus.benchmark.card import listed
from salus.benchmark.cells import ENDED, drawn

COLUMNS = ("data", "test_sha256", "method", "score", "map", "seed", "evaluated")


def looks(out: Path) -> list[tuple[str, ...]]:
    """A row of `COLUMNS` for each evaluation below `out`, sorted."""
    found: list[tuple[str, ...]] = []
    for report in sorted(out.glob("cells/*/*/seed*/*/report/metrics.json")):
        data, method, seed, score = report.relative_to(out).parts[1:5]
        if drawn(out, data).exists():
            continue
        ended = report.parents[2] / ENDED
        day = json.loads(ended.read_bytes()).get("evaluated", "") if ended.is_file() else ""
        with (report.parent / "cases.csv").open(newline="", encoding="utf-8") as file:
            test = listed(csv.DictReader(file))
        called = json.loads(report.read_bytes())["method"]
        found.append((data, test, method, score, called, seed.removeprefix("seed"), day))
    return found


def ledger(rows: Sequence[tuple[str, ...]]) -> str:
    """`ledger.csv`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue()
