"""report.html of a benchmark: one table a data set, floors among the methods, failures in red with their reason."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from salus.benchmark import figures
from salus.benchmark.published import PAPERS
from salus.benchmark.report import OF_CASES, OF_PIXELS, present, template
from salus.io.files import write_whole

COSTS = (("seconds", "Training", "s"), ("ms", "ms / image", ""), ("mib", "Memory", "MiB"))
NAMED = {
    "n_detected": "#det",
    "f1": "F1",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    **{key: heading for key, heading, _ in (*OF_CASES, *OF_PIXELS)},
}
RESTORATION = (("ssim", "SSIM", "of healthy"), ("lpips", "LPIPS", "lower is closer"))


def write_suite_report(path: Path, summary: Mapping[str, Any]) -> Path:
    """Write the page; every number on it is one of `summary`.

    Raises:
        StorageError: it could not be written; a report already there stays whole.
    """
    entries = {name: [shown(entry) for entry in lines] for name, lines in summary["data"].items()}
    page = template("suite.html.j2").render(
        s=summary,
        data=entries,
        columns={
            name: present((*OF_CASES, *OF_PIXELS, *RESTORATION), [line["measures"] for line in lines])
            for name, lines in entries.items()
        },
        costs=COSTS,
        named=NAMED,
        plots={name: figures.cost_figure(points(lines)) for name, lines in entries.items() if points(lines)},
        published=[printed(name, numbers) for name, numbers in summary["published"].items()],
        failures=sum(bool(line["failed"]) for lines in entries.values() for line in lines),
    )
    write_whole(path, page.encode())
    return path


def shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A line with its measures as `metrics.json` has them, for the filters of a report."""
    measures = {
        name: measure and {**measure, "value": measure["mean"], "oracle": name == "best_dice"}
        for name, measure in entry["measures"].items()
    }
    return {**entry, "measures": measures}


def printed(name: str, numbers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A published table in the paper's layout: a row a method, a column for what was measured of what."""
    paper, _, table = name.partition(" ")
    cells: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}
    for number in numbers:
        cells.setdefault(number["method"], {})[number["of"], number["measure"]] = number
    return {
        "title": f"Table {table} of {PAPERS[paper]}",
        "columns": {(number["of"], number["measure"]): number["n"] for number in numbers},
        "rows": cells,
    }


def points(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Name, ms an image and AUROC of each method with its first score."""
    found: dict[str, tuple[str, float, float]] = {}
    for line in lines:
        if (auroc := line["measures"]["auroc"]) and "ms" in line["costs"]:
            found.setdefault(line["method"], (line["method"], line["costs"]["ms"], auroc["value"]))
    return list(found.values())
