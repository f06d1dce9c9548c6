"""Looks at test labels: every evaluation on labelled cases that lies in a benchmark's folder, whoever asks for it now.

OUT/ledger.csv   data, test_sha256, method, score, map, seed, evaluated (the last day, UTC)

Whoever has looked at the labels of a test a hundred times has a best of a hundred. Rows are read from the cells on
disk, so what was taken out of a suite still counts. Drawn heads and painted lesions have no labels to be looked at.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from salus.benchmark.card import listed
from salus.benchmark.cells import ENDED

MADE = ("phantom", "painted")  # readers of what nobody labelled
COLUMNS = ("data", "test_sha256", "method", "score", "map", "seed", "evaluated")


def looks(out: Path) -> list[tuple[str, ...]]:
    """A row of `COLUMNS` for each evaluation below `out`, sorted."""
    found: list[tuple[str, ...]] = []
    for metrics in sorted(out.glob("cells/*/*/seed*/*/report/metrics.json")):  # written after cases.csv
        data, method, seed, score = metrics.relative_to(out).parts[1:5]
        place, cases = metrics.parents[1], metrics.with_name("cases.csv")
        if json.loads((place / "results" / "run.json").read_bytes())["card"]["plan"]["dataset"] in MADE:
            continue
        ended = place.parent / ENDED
        day = json.loads(ended.read_bytes()).get("evaluated", "") if ended.is_file() else ""
        with cases.open(newline="", encoding="utf-8") as file:
            test = listed(csv.DictReader(file))
        called = json.loads(metrics.read_bytes())["method"]
        found.append((data, test, method, score, called, seed.removeprefix("seed"), day))
    return found


def ledger(rows: Sequence[tuple[str, ...]]) -> str:
    """`ledger.csv`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue()
