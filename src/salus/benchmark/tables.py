"""The tables of a benchmark, made from what its cells left on disk: a new table needs no cell to be done again.

Rows of one data set, method and score differ in their seed. What another training would change (`seed_sd`) and what
other patients would (`ci95`, of the mean over the trainings) are two numbers everywhere.
"""

import csv
import io
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salus.benchmark.beside import beside
from salus.benchmark.card import card, listed
from salus.benchmark.differences import differences
from salus.benchmark.floors import SAME_MAP
from salus.benchmark.ledger import ledger, looks
from salus.benchmark.measures import DIGITS, REPLICATES
from salus.benchmark.published import Number, published
from salus.benchmark.rows import COSTS, MEASURES, Row, name_of, over_trainings, rows_of
from salus.benchmark.suite import Suite
from salus.benchmark.sweeps import sweeps
from salus.core import Label, Verdict
from salus.core.errors import LayoutError
from salus.io.files import write_whole
from salus.metrics import (
    compare_ranks,
    paired_difference,
    resample,
    seed_spread,
    weighted_auroc,
    weighted_average_precision,
)
from salus.metrics.comparison import MIN_DATASETS
from salus.metrics.statistics import Floats, Weights

OVER_CASES = {"auroc": weighted_auroc, "auprc": weighted_average_precision}  # have an interval over several seeds
FLOOR = "pca"  # the floor to beat, with the method's own map where it has one


def write_tables(suite: Suite, name: str, out: Path, data: Path | None = None) -> tuple[Path, dict[str, str]]:
    """Write the tables; the report's path, and why rows failed by their names.

    Args:
        data: folder of the suite's data sets, for pictures of their cases; None shows those of drawn ones alone.

    Raises:
        LayoutError: rows that are one by the suite's names were made with different maps, or of different cases.
    """
    from salus.benchmark.gallery import gallery
    from salus.benchmark.suite_report import write_suite_report

    rows, seen = list(rows_of(suite, out)), looks(out)
    summary = summarised(suite, name, rows, Counter(test for _, test, *_ in seen))  # refuses what is no table
    write_whole(out / "results.csv", table(rows).encode())
    write_whole(out / "ledger.csv", ledger(seen).encode())
    write_whole(out / "summary.json", (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())
    reasons = {f"{row.data}, {row.method}, {row.score}, seed {row.seed}": row.reason for row in rows if row.reason}
    galleries = {name: gallery(suite, name, rows, out, data) for name in suite.datasets}
    return write_suite_report(out / "report.html", summary, galleries), reasons


def table(rows: Sequence[Row]) -> str:
    """`results.csv`; what times decide comes last."""
    ends = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["data", "method", "score", "map", "seed", "failed", *ends, *COSTS])
    for row in rows:
        numbers: list[Any] = []
        for name in MEASURES:
            entry = row.entries.get(name)
            numbers += ["", "", ""] if entry is None else [entry["value"], *entry["ci95"]]
        seed = "" if row.seed is None else row.seed
        costs = [f"{row.costs[name]:.4g}" if name in row.costs else "" for name in COSTS]
        writer.writerow([row.data, row.method, row.score, row.map, seed, row.reason, *numbers, *costs])
    return text.getvalue()


def summarised(suite: Suite, name: str, rows: Sequence[Row], looks: Mapping[str, int]) -> dict[str, Any]:
    """`summary.json`: of each data set its methods and floors over their seeds, best AUROC first; then the ranks.

    Args:
        looks: how many evaluations there are of each test, by its SHA-256.
    """
    data, pairs = {}, {}
    papers = {table: published(table) for table in suite.published}
    for one in suite.datasets:
        groups = grouped(rows, one)
        lines = [
            (over_seeds(group, scored), scored) for group, scored in zip(groups, map(scored_of, groups), strict=True)
        ]
        lines.sort(key=lambda line: (-((line[0]["measures"]["auroc"] or {}).get("mean", -1)), line[0]["method"]))
        data[one] = [entry for entry, _ in lines]
        pairs[one] = differences([(name_of(entry), scored) for entry, scored in lines if scored])
    return {
        "format": 1,
        "suite": name,
        "seeds": suite.seeds,
        "replicates": REPLICATES,
        "data": data,
        "pairs": pairs,
        "ranks": ranked(data),
        "sweeps": sweeps(rows, papers),
        "published": {table: [number_of(number) for number in numbers] for table, numbers in papers.items()},
        "beside": {table: beside(table, numbers, rows) for table, numbers in papers.items()},
        "card": card(suite, rows, looks),
    }


def number_of(number: Number) -> dict[str, Any]:
    """A published number as summary.json has it."""
    return {**asdict(number), "ci95": number.ci95 and [round(end, DIGITS) for end in number.ci95]}


def grouped(rows: Sequence[Row], data: str) -> list[list[Row]]:
    """Rows of a data set that differ in their seed alone.

    Raises:
        LayoutError: they were made with different maps, or learned from or tested on other cases than the others.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.data == data:
            groups.setdefault((row.method, row.score), []).append(row)
    trained = [row for group in groups.values() for row in group if row.folder is not None]
    for what, lists in (
        ("were tested on", {listed(row.cases): row for row in trained}),
        ("learned from", {row.run["card"].get("manifest_sha256"): row for row in trained}),
    ):
        if len(lists) > 1:
            one, other = (f"{row.method}, seed {row.seed}" for row in list(lists.values())[:2])
            raise LayoutError(
                f"{data}: {one} and {other} {what} different cases. Remove the cells of one list, or use another --out."
            )
    for (method, score), group in groups.items():
        if len(people := sorted({str(row.metrics.get("calibration_cases")) for row in group if row.folder})) > 1:
            raise LayoutError(
                f"{data}, {method}, {score}: thresholds of {' and of '.join(people)} people in one row; another "
                "version of Salus set some. Use another --out."
            )
        if len(maps := sorted({row.map for row in group if not row.reason})) > 1:
            raise LayoutError(f"{data}, {method}, {score}: one row of {' and '.join(maps)}. Use another --out.")
    return list(groups.values())


def scored_of(group: Sequence[Row]) -> "Scored | None":
    """What the trainings of one line said of the cases; None of a floor that is fitted in every cell."""
    return Scored.of([row for row in group if not row.reason and row.folder is not None])


def over_seeds(group: Sequence[Row], scored: "Scored | None") -> dict[str, Any]:
    """One line of a table."""
    done = [row for row in group if not row.reason]
    first = done[0] if done else group[0]
    return {
        "method": first.method,
        "score": first.score,
        "map": first.map,
        "floor": first.floor,
        "seeds": len(done),
        "failed": sorted({row.reason for row in group if row.reason}),
        "measures": {name: spread(name, done, scored) for name in MEASURES},
        "over_floor": scored and over_floor(scored),
        "costs": {name: statistics.fmean(row.costs[name] for row in done) for name in COSTS if name in first.costs},
    }


def spread(name: str, rows: Sequence[Row], scored: "Scored | None") -> dict[str, Any] | None:
    """Mean over trainings, their standard deviation, and the interval of the mean over patients where it is known."""
    entries = [entry for row in rows if (entry := row.entries[name]) is not None]
    if not entries:
        return None
    made = over_trainings(entries)
    if len(rows) > 1 and name in OVER_CASES and scored is not None:
        interval = seed_spread(partial(OVER_CASES[name], scored.abnormal), scored.runs, scored.weights).case_interval
        made["ci95"] = [round(end, DIGITS) for end in interval]
    return made


def over_floor(scored: "Scored") -> dict[str, Any] | None:
    """AUROC, mean over trainings, less that of PCA on the same cases, paired; None without either.

    With the same map, or, where a method makes its own (`same_map` false), with PCA's residual.
    """
    if scored.floor is None or scored.abnormal.all() or not scored.abnormal.any():
        return None

    def mean(runs: list[Floats], weights: Weights) -> Floats:
        return np.asarray(np.mean([weighted_auroc(scored.abnormal, run, weights) for run in runs], axis=0))

    value, ends = paired_difference(mean, scored.runs, [scored.floor], scored.weights)
    return {"value": round(value, DIGITS), "ci95": [round(end, DIGITS) for end in ends], "same_map": scored.same_map}


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What several trainings said of the same cases.

    Attributes:
        cases: (n,) name and patient of each.
        abnormal: (n,) truth.
        runs: (n,) scores of each training; `floor` those of the PCA floor, None where it is not there.
        same_map: whether that floor has the method's own map.
        found: (n,) whether more than half of the trainings flag it; None where any of them gives no verdict.
    """

    cases: tuple[tuple[str, str], ...]
    abnormal: NDArray[np.bool_]
    runs: list[Floats]
    floor: Floats | None
    same_map: bool
    found: NDArray[np.bool_] | None

    @property
    def patients(self) -> tuple[str, ...]:
        """(n,) whom each case belongs to."""
        return tuple(patient for _, patient in self.cases)

    @property
    def weights(self) -> Weights:
        """(replicates, n) draws of patients."""
        return draws(self.patients, tuple(self.abnormal.tolist()))

    @classmethod
    def of(cls, trainings: Sequence[Row]) -> "Scored | None":
        """From each training's `cases.csv`; None where there is none or they did not judge the same cases."""
        read = [[case for case in row.cases if case["score"]] for row in trainings]
        names = [[row["case_id"] for row in rows] for rows in read]
        if not read or not names[0] or any(other != names[0] for other in names[1:]):
            return None
        first = read[0]
        floor = SAME_MAP if SAME_MAP in first[0] else FLOOR
        abnormal = np.array([row["label"] == Label.ABNORMAL for row in first])
        verdicts = np.array([[row["verdict"] for row in rows] for rows in read])
        return cls(
            cases=tuple((row["case_id"], row["patient_id"]) for row in first),
            abnormal=abnormal,
            runs=[np.array([float(row["score"]) for row in rows]) for rows in read],
            floor=np.array([float(row[floor]) for row in first]) if all(row.get(floor) for row in first) else None,
            same_map=floor == SAME_MAP or trainings[0].map.endswith(" + residual"),
            found=None if Verdict.CANNOT_JUDGE in verdicts else (verdicts == Verdict.ABNORMAL).mean(axis=0) > 0.5,
        )


@lru_cache(maxsize=1)  # all lines of a data set share them, and they are large
def draws(patients: tuple[str, ...], abnormal: tuple[bool, ...]) -> Weights:
    """`resample` of the same cases, the same for every method."""
    return resample(patients, np.array(abnormal), seed=0, replicates=REPLICATES)


def ranked(data: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Mean ranks by AUROC over the data sets that all methods have; None with fewer than a test of ranks needs."""
    methods = [name_of(one) for one in next(iter(data.values())) if not one["floor"]]
    values = []
    for entries in data.values():
        here = {name_of(one): one["measures"]["auroc"] for one in entries}
        if all(here.get(method) for method in methods):
            values.append([round(here[method]["mean"], 3) for method in methods])
    if len(methods) < 3 or len(values) < MIN_DATASETS:
        return None
    seen = compare_ranks(np.array(values))
    return {
        "datasets": len(values),
        "mean_rank": dict(zip(methods, [round(float(rank), 3) for rank in seen.ranks], strict=True)),
        "friedman_p": round(seen.p, DIGITS),
        "critical_difference": round(seen.critical_difference, 3),
    }
