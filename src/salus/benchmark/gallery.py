"""The same few cases as every method restores and maps them, after figures 3 to 5 of arXiv:2401.10637.

Of the findings with most cases, the case that the methods together rank highest and the one in the middle: no method
chooses its own. Each shows its first training with its own score.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from salus.benchmark import figures
from salus.benchmark.cells import Work
from salus.benchmark.pairing import Judged, bare, read_run
from salus.benchmark.report import input_with_truth, last_colour, view
from salus.benchmark.rows import Row
from salus.benchmark.suite import OWN, Suite
from salus.core import Case, Label
from salus.core.errors import SalusError
from salus.datasets import open_dataset
from salus.io.results import read_result

SIDE = 104  # pixels of a picture
FINDINGS = 3  # two cases of each

Views = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A case: what it is, its input with the truth outlined, and of each method the restored image and the map."""

    case_id: str
    what: str
    input: str
    pairs: tuple[tuple[str | None, str | None], ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The pictures of a data set, or the reason why there are none."""

    methods: tuple[str, ...] = ()
    cases: tuple[Shown, ...] = ()
    reason: str = ""


def gallery(suite: Suite, name: str, rows: Sequence[Row], out: Path, data: Path | None) -> Gallery:
    """The cases of a data set; its pictures are read from where they are now."""
    done = [row for row in rows if row.data == name and row.folder is not None and row.seed == suite.seeds[0]]
    first: dict[str, Row] = {}
    for row in sorted(done, key=lambda row: row.score != OWN):
        first.setdefault(row.method, row)
    shown = [first[method] for method in suite.methods if method in first]
    if not shown or (data is None and suite.datasets[name].phantom is None):
        return Gallery()
    here = next(cell for cell in suite.cells if cell.data == name)
    root, reader = Work(suite=suite, cell=here, data=data or out, out=out, threads=1).source
    try:
        cases = {case.case_id: case for case in open_dataset(reader, root)}
    except SalusError as error:
        return Gallery(reason=bare(str(error), root))
    chosen = [(case_id, what) for case_id, what in chosen_of(shown) if case_id in cases]
    views = [seen_by(row, [cases[case_id] for case_id, _ in chosen], shown[0]) for row in shown]
    tops = [last_colour(seen, row.metrics["pixel_threshold"]) for row, seen in zip(shown, views, strict=True)]
    return Gallery(
        methods=tuple(row.method for row in shown),
        cases=tuple(
            Shown(
                case_id=case_id,
                what=what,
                input=input_with_truth(seen[0]),
                pairs=tuple(pictures_of(one, top) for one, top in zip(seen, tops, strict=True)),
            )
            for (case_id, what), seen in zip(chosen, zip(*views, strict=True), strict=True)
            if seen[0]
        ),
    )


def chosen_of(shown: Sequence[Row]) -> list[tuple[str, str]]:
    """Case and what it shows: the best and the middle one of each of the findings with most cases, by mean rank."""
    tables = [{case["case_id"]: case for case in row.cases if case["score"]} for row in shown]
    names = sorted(set.intersection(*(set(table) for table in tables)))
    ranks = np.sum([rankdata([float(table[name]["score"]) for name in names]) for table in tables], axis=0)
    members: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for name, rank in zip(names, ranks, strict=True):
        case = tables[0][name]
        if case["label"] == Label.ABNORMAL:
            for finding in {part for part in case["findings"].split("; ") if part} or {"abnormal"}:
                members[finding].append((-rank, name))
    most = sorted(members, key=lambda finding: (-len(members[finding]), finding))[:FINDINGS]
    found: dict[str, str] = {}
    for finding in most:
        ordered = sorted(members[finding])
        for place, kind in ((0, "ranked highest"), (len(ordered) // 2, "in the middle")):
            found.setdefault(ordered[place][1], f"{finding.replace('_', ' ')}, {kind}")
    return list(found.items())


def seen_by(row: Row, cases: Sequence[Case], first: Row) -> list[Views]:
    """What a method's results hold of the cases; of a volume the slice that the first method scores highest."""
    if row.folder is None or first.folder is None:
        return []
    results = row.folder / "results"
    _, preparation = read_run(results / "run.json")
    views: list[Views] = []
    for case in cases:
        own, other = read_result(results / case.case_id), read_result(first.folder / "results" / case.case_id)
        if own is None or own.score is None or other is None:
            views.append({})
            continue
        result = replace(own, slice_scores=other.slice_scores)
        views.append(
            view(Judged(case=case, result=result, folder=results / case.case_id, score=own.score), preparation, SIDE)
        )
    return views


def pictures_of(seen: Views, top: float | None) -> tuple[str | None, str | None]:
    """The restored image and the map of a case, None of what there is not."""
    return (
        figures.grey_picture(seen["restored"]) if "restored" in seen else None,
        figures.map_picture(seen["map"], top) if "map" in seen and top is not None else None,
    )
