"""The rows of a benchmark, read from what its cells left on disk."""

import csv
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from salus.benchmark.cells import ENDED
from salus.benchmark.floors import FLOORS, SAME_MAP
from salus.benchmark.measures import DIGITS
from salus.benchmark.suite import Suite
from salus.detectors import detector_class

COSTS = ("seconds", "ms", "mib")
MEASURES = (
    *("auroc", "auprc", "fpr_at_tpr95", "fpr_at_tpr99", "sensitivity", "false_alarm_rate", "pixel_ap", "pixel_auroc"),
    *("aupro", "best_dice", "dice", "hit_rate", "f1_ra2024", "ssim", "lpips", "mae"),
)
HEALTHY = ("false_alarm_rate", "ssim", "lpips", "mae")

Entry = Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training judged with one score; or a floor; or what is missing of it.

    Attributes:
        method, score: as the suite calls them; a floor has no score.
        map: what its report calls method and map.
        seed: None for a floor.
        reason: why there is nothing; empty where there is.
        entries: by measure, as in metrics.json.
        costs: seconds of training, ms an image, MiB at most.
        metrics: all of metrics.json; nothing of a floor.
        folder: of its results and report.
        evaluated: day of the evaluation, UTC; empty where the cell did not write it down.
    """

    data: str
    method: str
    score: str
    seed: int | None
    map: str = ""
    reason: str = ""
    floor: bool = False
    entries: Mapping[str, Entry] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    evaluated: str = ""

    @cached_property
    def run(self) -> Mapping[str, Any]:
        """What its results say of the model."""
        found: dict[str, Any] = {}
        if self.folder is not None:
            found = json.loads((self.folder / "results" / "run.json").read_bytes())
        return found

    @property
    def cases(self) -> list[dict[str, str]]:
        """The lines of its cases.csv, every labelled test case."""
        if self.folder is None:
            return []
        with (self.folder / "report" / "cases.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


def rows_of(suite: Suite, out: Path) -> Iterator[Row]:
    """A row for each training and score, and of each data set one for each floor that is not among the methods."""
    for data in suite.datasets:
        floors: dict[str, Row] = {}
        listed: set[str] = set()
        for cell in (cell for cell in suite.cells if cell.data == data):
            place = out / cell.place
            ended = json.loads((place / ENDED).read_bytes())
            for score in suite.scores_of(cell.method):
                named = Row(
                    data=data, method=cell.method, score=score, seed=cell.seed, floor=cell.method in suite.floors
                )
                if reason := ended["failed"].get(score):
                    yield replace(named, reason=reason)
                    continue
                metrics = json.loads((place / score / "report" / "metrics.json").read_bytes())
                done = replace(
                    named, map=metrics["method"], entries=entries_of(metrics), metrics=metrics, folder=place / score,
                    costs={key: ended[key] for key in COSTS if key in ended}, evaluated=ended.get("evaluated", ""),
                )  # fmt: skip
                listed.add(floor_of(done))
                yield done
                for floor, seen in metrics["floors"].items():
                    called = floor_name(floor, metrics["method"])
                    if seen is not None and called not in floors:
                        floors[called] = Row(
                            data=data, method=called, score="", seed=None, floor=True, entries=entries_of(seen)
                        )
        yield from (floor for called, floor in floors.items() if called not in listed)


def over_trainings(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over trainings; of one, its interval over patients."""
    values = [entry["value"] for entry in entries]
    several = len(values) > 1
    return {
        "mean": round(statistics.fmean(values), DIGITS),
        "seed_sd": round(statistics.stdev(values), DIGITS) if several else None,
        "ci95": None if several else entries[0].get("ci95"),
    }


def floor_name(floor: str, method: str) -> str:
    """How the table of a data set calls a floor; PCA with the map of a method by that map."""
    return f"PCA + {method.partition(' + ')[2]}" if floor == SAME_MAP else FLOORS[floor]


def floor_of(row: Row) -> str:
    """How the table would call the floor that a method of the suite is, with that floor's settings; else empty."""
    detector, settings = row.run["detector"], row.run["settings"]
    if detector not in FLOORS or settings != asdict(detector_class(detector).Config(size=settings["size"])):
        return ""
    return FLOORS[detector] if row.map in (detector, f"{detector} + residual") else floor_name(SAME_MAP, row.map)


def name_of(line: Mapping[str, Any]) -> str:
    """How ranks and pairs call a line of a table."""
    return f"{line['method']} + {line['score']}"


def entries_of(metrics: Mapping[str, Any]) -> dict[str, Entry]:
    """The measures of a method or floor, over all its cases."""
    overall, healthy = metrics["overall"] or {}, metrics["healthy"] or {}
    return {name: (healthy if name in HEALTHY else overall).get(name) for name in MEASURES}
