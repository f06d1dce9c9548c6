"""`salus evaluate`: RESULTS beside the truth, as metrics.json, cases.csv and report.html.

    OUT/metrics.json    every number with its interval, the floors', and the problems; the same bytes on every run
    OUT/cases.csv       one row a labelled test case
    OUT/report.html     one file for people

Maps are read one after the other and kept as histograms; memory grows with cases, not with their pixels.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from salus.benchmark.floors import floor_scores
from salus.benchmark.measures import (
    REPLICATES,
    Group,
    Scored,
    compared,
    groups,
    mean_of,
    measured,
    share_flagged,
    strata,
)
from salus.benchmark.pairing import Judged, Maps, Paired, Problem, bare, localised, pair, usable
from salus.benchmark.protocols import protocols
from salus.core import Dataset, Label, Verdict
from salus.core.errors import SalusError, WeightsError
from salus.io import read_image, read_study
from salus.io.files import make_folder, write_whole
from salus.metrics import flagged_share, mae, pixel_edges, ssim
from salus.model import versions
from salus.preprocess import Preparation, resample
from salus.screening import slices_of

FIDELITY = ("ssim", "lpips", "lpips_ra2024", "mae")  # of restorations of healthy cases
FORMAT = 2  # 1 until 2026-11-27: intervals of findings that were all or none hit took findings for patients
BATCH = 16  # healthy cases that go through LPIPS together
SMALLEST_LPIPS = 32  # pixels a side; AlexNet's poolings leave nothing of less


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """All that the report is written from.

    Attributes:
        paired: run, data set, cases and their results.
        metrics: content of metrics.json.
        ours: the method's scores.
        floors: the floors' by name, None where one cannot be had.
    """

    paired: Paired
    metrics: Mapping[str, Any]
    ours: Scored
    floors: Mapping[str, Scored | None]


def evaluate(results: Path, data: Path, out: Path, *, dataset: str = "folder", seed: int = 0) -> Path:
    """Measure what `salus screen` wrote against what a data set knows; the command of the same name.

    Args:
        results: folder written by `screen`.
        data: the data set; its labelled test cases are measured, its healthy training cases make the PCA floor.
        out: where metrics.json, cases.csv and report.html go.
        dataset: reader of `data`.
        seed: of the draws behind the intervals.

    Returns:
        The report's path.

    Raises:
        LayoutError: not a RESULTS folder, no labelled case, or none that was screened.
        ConfigError, StorageError: see their messages.
    """
    from salus.benchmark.report import write_report

    paired = pair(results, data, dataset)
    make_folder(out)
    maps = Maps(paired.judged)
    good, problems = usable(paired.judged, maps, data) if localised(one.case for one in paired.judged) else ([], [])
    ours = scored(paired, maps, good)
    rest = without_patients(paired.dataset, {case.patient_id for case in paired.cases})
    floors, notes = floor_scores(paired.judged, good, rest, paired.preparation, paired.run.get("score", {}))
    fidelity, more_problems, more_notes = restoration(paired, data)
    together = groups(paired.judged, seed)
    published, unlaid, remarks = protocols(paired, maps, good, together[0].weights, data) if good else (None, [], ())
    metrics = {
        **about(paired, seed),
        **entries(paired, together, ours, floors, fidelity, seed),
        "groups": strata(ours, paired.judged, seed),
        "protocols": published,
        "problems": [asdict(problem) for problem in (*paired.problems, *problems, *more_problems, *unlaid)],
        "notes": [*paired.notes, *one_class(paired.judged), *notes, *more_notes, *remarks],
    }
    write_table(out / "cases.csv", paired, ours, floors)
    report = write_report(out / "report.html", Evaluation(paired=paired, metrics=metrics, ours=ours, floors=floors))
    # Last: where it is, a suite takes all of them for written.
    write_whole(out / "metrics.json", (json.dumps(metrics, indent=1, allow_nan=False) + "\n").encode())
    return report


def about(paired: Paired, seed: int) -> dict[str, Any]:
    """What was measured, with what."""
    calibration = paired.run["calibration"]
    unjudged = [case for case in paired.cases if (r := paired.results.get(case.case_id)) and r.score is None]
    return {
        "format": FORMAT,
        "dataset": paired.dataset.name,
        "method": paired.run["method"],
        "model": paired.run["model"],
        "versions": versions(),
        "seed": seed,
        "replicates": REPLICATES,
        "false_alarms": calibration and calibration["false_alarms"],
        "calibration_cases": calibration and len(calibration["scores"]),
        "threshold": (threshold := paired.run.get("threshold")),
        "flagged_share": None if threshold is None else flagged_share(calibration["scores"], threshold),
        "pixel_threshold": calibration and calibration["pixel_threshold"],
        "counts": {
            "test": len(paired.cases),
            "judged": len(paired.judged),
            "cannot_judge": len(unjudged),
            "without_result": len(paired.cases) - len(paired.results),
        },
    }


def one_class(judged: Sequence[Judged]) -> tuple[str, ...]:
    """Why nothing is ranked; () where something is."""
    kinds = {one.case.label for one in judged}
    return (f"No AUROC: all {len(judged)} judged cases are {kinds.pop()}.",) if len(kinds) == 1 else ()


def entries(
    paired: Paired,
    together: Sequence[Group],
    ours: Scored,
    floors: Mapping[str, Scored | None],
    fidelity: Mapping[str, NDArray[np.float64]],
    seed: int,
) -> dict[str, Any]:
    """`overall`, `findings`, `healthy` and `floors` of metrics.json."""
    if not together:
        empty = dict.fromkeys(floors)
        return {"overall": None, "findings": {}, "healthy": None, "floors": empty}
    whole, *parts = together
    normal, draws = whole.members[~whole.abnormal], whole.weights[:, ~whole.abnormal]
    patients = [paired.judged[index].case.patient_id for index in normal]
    return {
        **grouped(ours, whole, parts),
        "healthy": {
            "n": len(normal),
            **{name: mean_of(fidelity[name][normal], patients, seed) for name in FIDELITY},
            "false_alarm_rate": share_flagged(ours, normal, draws),
        },
        "floors": {
            name: floor
            and {**grouped(floor, whole, parts), "healthy": {"false_alarm_rate": share_flagged(floor, normal, draws)}}
            for name, floor in floors.items()
        },
    }


def grouped(method: Scored, whole: Group, parts: Sequence[Group]) -> dict[str, Any]:
    """All groups of one method."""
    return {
        "overall": measured(method, whole),
        "findings": {str(part.finding): measured(method, part) for part in parts},
    }


def scored(paired: Paired, maps: Maps, good: Sequence[int]) -> Scored:
    """The method's scores, and its maps of the cases in `good` against their truth."""
    calibration = paired.run["calibration"]
    threshold = calibration and calibration["pixel_threshold"]
    pixels = {}
    if good:
        chosen = Maps([paired.judged[index] for index in good])
        chosen.kept = {place: maps.kept[index] for place, index in enumerate(good) if index in maps.kept}
        chosen.bytes = maps.bytes
        edges = pixel_edges(chosen, thresholds=() if threshold is None else (threshold,))
        pixels = {index: compared(paired.judged[index], maps[index], edges, threshold) for index in good}
    score = np.array([one.score for one in paired.judged])
    return Scored(score=score, threshold=paired.run.get("threshold"), pixels=pixels)


def without_patients(dataset: Dataset, patients: set[str]) -> Dataset:
    """The cases of everybody else."""
    return Dataset(dataset.name, [case for case in dataset if case.patient_id not in patients])


def restoration(paired: Paired, data: Path) -> tuple[dict[str, NDArray[np.float64]], list[Problem], tuple[str, ...]]:
    """How far the healthy test cases were left alone: SSIM, MAE and LPIPS a case, nan where there is none."""
    found = {name: np.full(len(paired.judged), np.nan) for name in FIDELITY}
    healthy = [(k, one) for k, one in enumerate(paired.judged) if not one.abnormal and "restored" in one.result.files]
    if not healthy:
        return found, [], ()
    perceptual, notes = perceptual_distance(paired.preparation.size)
    problems, waiting = [], []
    for index, one in healthy:
        try:
            prepared, restored = both(one, paired.preparation)
        except SalusError as error:
            problems.append(Problem(case_id=one.case.case_id, reason=bare(str(error), data, one.folder)))
            continue
        pairs = list(zip(prepared[:, 0], restored[:, 0], strict=True))
        found["ssim"][index] = np.mean([ssim(a, b) for a, b in pairs])
        found["mae"][index] = np.mean([mae(a, b) for a, b in pairs])
        waiting.append((index, prepared, restored))
        if len(waiting) == BATCH:
            compare(perceptual, waiting, found)
            waiting = []
    compare(perceptual, waiting, found)
    return found, problems, notes


def compare(
    perceptual: torch.nn.Module | None,
    waiting: Sequence[tuple[int, NDArray[np.float32], NDArray[np.float32]]],
    found: Mapping[str, NDArray[np.float64]],
) -> None:
    """Write the mean distance over the slices of each waiting (case, prepared, restored) into `found`.

    For `lpips_ra2024` the network gets intensities in [0, 1] where it expects [-1, 1], as the public code of
    arXiv:2401.10637 hands them over.
    """
    if perceptual is None or not waiting:
        return
    prepared = np.concatenate([a for _, a, _ in waiting])
    restored = np.concatenate([b for _, _, b in waiting]).clip(0, 1)
    ends = np.cumsum([len(a) for _, a, _ in waiting])[:-1]
    pair = torch.from_numpy(prepared), torch.from_numpy(restored)
    # 2 v - 1 of (v + 1) / 2 is v again.
    for name, (a, b) in (("lpips", pair), ("lpips_ra2024", [(one + 1) / 2 for one in pair])):
        with torch.no_grad():
            distance = perceptual(a, b).numpy()
        for (index, _, _), slices in zip(waiting, np.split(distance, ends), strict=True):
            found[name][index] = slices.mean()


def both(one: Judged, preparation: Preparation) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(n, 1, size, size) source and restoration on the network's grid.

    Raises:
        ImageError: one of them cannot be read.
    """
    prepared = preparation(read_study(one.case.images))
    restored = read_image(one.folder / one.result.files["restored"])
    return slices_of(prepared), slices_of(resample(restored, like=prepared))


def perceptual_distance(size: int) -> tuple[torch.nn.Module | None, tuple[str, ...]]:
    """LPIPS, or None and a note where it cannot be had; never a stand-in."""
    from salus.scores.lpips import LPIPS

    if size < SMALLEST_LPIPS:
        return None, (f"No LPIPS: it needs {SMALLEST_LPIPS} pixels a side, the model sees {size}.",)
    try:
        return LPIPS("alexnet", "lin").eval(), ()
    except WeightsError as error:
        return None, (f"No LPIPS: {bare(str(error))}",)


def write_table(path: Path, paired: Paired, ours: Scored, floors: Mapping[str, Scored | None]) -> None:
    """`cases.csv`: one row a labelled test case, empty cells where there is no value."""
    place = {one.case.case_id: index for index, one in enumerate(paired.judged)}
    extra = sorted({group for case in paired.cases for group in case.groups})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    known = [name for name, floor in floors.items() if floor is not None]
    head = ["case_id", "patient_id", "label", "findings", "score", "p_value", "verdict", *known, "dice"]
    writer.writerow([*head, *(f"group:{name}" for name in extra)])
    for case in paired.cases:
        result, index = paired.results.get(case.case_id), place.get(case.case_id)
        pixels = None if index is None else ours.pixels.get(index)
        cells: list[Any] = [
            case.case_id,
            case.patient_id,
            case.label,
            "; ".join(finding.name for finding in case.findings),
            result and result.score,
            result and result.p_value,
            result and result.verdict,
            *(None if index is None or floor is None else floor.score[index] for floor in floors.values() if floor),
            pixels and pixels.dice,
            *(case.groups.get(name) for name in extra),
        ]
        writer.writerow(["" if cell is None else cell for cell in cells])
    write_whole(path, text.getvalue().encode())


def flagged(judged: Sequence[Judged], label: Label) -> tuple[int, int]:
    """How many judged cases of a label were called abnormal, of how many with a verdict."""
    verdicts = [one.result.verdict for one in judged if one.case.label == label]
    with_verdict = [verdict for verdict in verdicts if verdict != Verdict.CANNOT_JUDGE]
    return sum(verdict == Verdict.ABNORMAL for verdict in with_verdict), len(with_verdict)
