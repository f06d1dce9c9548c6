"""Which result belongs to which test case, and what the case's truth looks like.

A result and a case are the same study when the SHA-256 of their source files agree; names, folders and order say
nothing. What does not fit is never dropped in silence: it becomes a problem, a case id and a reason.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from salus.core import Case, Dataset, Finding, Image, Label, Result, Split, Verdict
from salus.core.errors import ImageError, LayoutError, SalusError
from salus.datasets import open_dataset
from salus.io import read_image, read_study, study_sha256
from salus.io.results import read_results
from salus.preprocess.geometry import resample
from salus.preprocess.preparation import Preparation
from salus.threshold import marks

Mask = NDArray[np.bool_]

KNOWN = {  # by the card
    "learned_from": "The model learned from",
    "fitted_on": "The model's score was fitted on",
    "calibrated_on": "The model's threshold was set on",
}
UNMATCHED = "no result: it was not screened, its file changed, or its result.json is damaged; screen it again"
KEPT = 1 << 28  # bytes of maps that stay in memory; the rest is read again when asked for
ABSOLUTE = re.compile(r"(?<![\w.])(?:[A-Za-z]:[\\/]|/)(?:[^\s/\\:'\"]+[\\/])+([^\s/\\:'\"]+)")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A case that is missing from some or all numbers, and why."""

    case_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A labelled test case that has a score, and the folder of its result."""

    case: Case
    result: Result
    folder: Path
    score: float

    @property
    def abnormal(self) -> bool:
        """The truth."""
        return self.case.label == Label.ABNORMAL


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A run of `salus screen` beside the data set it is measured on.

    Attributes:
        run: `run.json`.
        preparation: of the model.
        dataset: the whole data set, training cases too.
        cases: its labelled test cases.
        judged: those with a score, in the same order.
        results: case id to result, also of those without a score.
        problems: test cases without a result or a score, results without a case.
        notes: what a reader must know of the selection.
    """

    run: Mapping[str, Any]
    preparation: Preparation
    dataset: Dataset
    cases: tuple[Case, ...]
    judged: tuple[Judged, ...]
    results: Mapping[str, Result]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def pair(results: Path, data: Path, dataset: str) -> Paired:
    """Read both sides and match them by the hash of the source files.

    Raises:
        LayoutError: `results` is not what `salus screen` writes; no labelled case; no result fits any case; the model
            knew test cases.
        ConfigError: no reader is called `dataset`.
    """
    found = list(read_results(results))
    run, preparation = read_run(results / "run.json")
    whole = open_dataset(dataset, data)
    cases, notes = labelled_test_cases(whole)
    by_hash, problems = by_content(found, run["model"])
    judged: list[Judged] = []
    matched: dict[str, Result] = {}
    used: set[tuple[str, ...]] = set()
    for case in cases:
        try:
            key = tuple(sorted(study_sha256([image]) for image in case.images))
        except ImageError as error:
            problems.append(Problem(case_id=case.case_id, reason=bare(str(error), data)))
            continue
        if key not in by_hash:
            problems.append(Problem(case_id=case.case_id, reason=UNMATCHED))
            continue
        used.add(key)
        # Equal files have equal results; the one of the same name is preferred for its pictures' sake only.
        folder, result = max(by_hash[key], key=lambda entry: entry[1].case_id == case.case_id)
        matched[case.case_id] = result
        if result.score is None:
            problems.append(Problem(case_id=case.case_id, reason=bare("; ".join(result.reasons), data, results)))
        else:
            judged.append(Judged(case=case, result=result, folder=folder, score=result.score))
    if not matched:
        raise LayoutError(
            f"none of {len(found)} results in {results} is of one of the {len(cases)} labelled cases in {data}: no "
            "source file has the same SHA-256. Were these images screened, and are they unchanged?"
        )
    known = known_before(run["card"], dataset, whole, [case for case in cases if case.case_id in matched], data)
    left = [result.case_id for key, rest in by_hash.items() if key not in used for _, result in rest]
    problems += [Problem(case_id=name, reason="a result without a labelled test case") for name in sorted(left)]
    return Paired(
        run=run,
        preparation=preparation,
        dataset=whole,
        cases=tuple(cases),
        judged=tuple(judged),
        results=matched,
        problems=tuple(problems),
        notes=(*notes, *known, *undecided(judged, data)),
    )


def known_before(card: Mapping[str, Any], dataset: str, whole: Dataset, cases: Sequence[Case], data: Path) -> list[str]:
    """What to say of measured cases that the model knew, where they are among the data set's own other cases, too.

    Raises:
        LayoutError: it knew them or their patients from elsewhere: someone trained, or set the threshold, on the test.
    """
    notes, marks_of = [], {case.case_id: marks(dataset, whole.name, case) for case in cases}
    for part, what in KNOWN.items():
        known = set(card.get(part, ()))
        again = {name: seen & known for name, seen in marks_of.items() if seen & known}
        others = [case for case in whole if again and case.split != Split.TEST]
        own = {mark for case in others for mark in marks(dataset, whole.name, case)}
        if used := [name for name, seen in again.items() if seen - own]:
            patient = next(case.patient_id for case in cases if case.case_id == used[0])
            raise LayoutError(
                f"{what} {len(used)} of the {len(cases)} test cases in {data} or other images of their patients, such "
                f"as {used[0]}, patient '{patient}'. Test cases are for measuring: use other people's images for that, "
                "and screen again. Two people with one patient_id need two."
            )
        if again:
            notes.append(
                f"{what} copies of {len(again)} of the {len(cases)} cases measured, or other images of their patients: "
                "these numbers flatter it."
            )
    return notes


def by_content(
    found: Sequence[tuple[Path, Result]], model: str
) -> tuple[dict[tuple[str, ...], list[tuple[Path, Result]]], list[Problem]]:
    """Folders and results by the hashes of their sources; those of another model are problems."""
    by_hash: dict[tuple[str, ...], list[tuple[Path, Result]]] = {}
    problems = []
    for folder, result in found:
        if result.model == model:
            by_hash.setdefault(tuple(sorted(result.sources.values())), []).append((folder, result))
        else:
            problems.append(Problem(case_id=result.case_id, reason="its result was made by another model"))
    return by_hash, problems


def undecided(judged: Sequence[Judged], data: Path) -> list[str]:
    """Why cases that have a score have no verdict: the model's calibration, so it is the same for all."""
    without = [one.result for one in judged if one.result.verdict == Verdict.CANNOT_JUDGE]
    reasons = sorted({reason for result in without for reason in result.reasons})
    return [f"There are scores but no verdicts: {bare(reason, data)}." for reason in reasons]


def read_run(path: Path) -> tuple[dict[str, Any], Preparation]:
    """`run.json` and the preparation it names.

    Raises:
        LayoutError: it is not the file that `salus screen` wrote.
    """
    try:
        run = json.loads(path.read_bytes())
        preparation = Preparation(**run["preparation"])
        run["model"], run["method"], run["calibration"], run["card"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LayoutError(f"{path} is not the run.json that `salus screen` writes ({error}). Screen again.") from error
    return run, preparation


def labelled_test_cases(whole: Dataset) -> tuple[Dataset, tuple[str, ...]]:
    """The cases to measure on, and what to say about the choice.

    Raises:
        LayoutError: none is labelled.
    """
    test = whole.only(split=Split.TEST)
    chosen = Dataset(whole.name, [case for case in (test or whole) if case.label != Label.UNKNOWN])
    if not len(chosen):
        raise LayoutError(
            f"{whole.name}: none of {len(whole)} cases is labelled normal or abnormal; nothing to measure."
        )
    notes = []
    if not len(test):
        notes.append(
            "The data set names no test part, so all its labelled cases were taken. If the model learned from some "
            "of them, these numbers flatter it."
        )
    if unlabelled := len(test or whole) - len(chosen):
        notes.append(f"{unlabelled} cases of unknown label were left out.")
    return chosen, tuple(notes)


class Maps(Sequence[NDArray[np.float32]]):
    """Maps of judged cases on the grid of their sources, read when asked for; the first 256 MiB stay."""

    def __init__(self, judged: Sequence[Judged]) -> None:
        self.judged = judged
        self.kept: dict[int, NDArray[np.float32]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self.judged)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if index in self.kept:
            return self.kept[index]
        if not 0 <= index < len(self):
            raise IndexError(index)
        one = self.judged[index]
        if "map" not in one.result.files:
            raise ImageError(f"{one.case.case_id}: its result names no map.")
        array = read_image(one.folder / one.result.files["map"]).array
        if not np.isfinite(array).all():
            raise ImageError(f"{one.case.case_id}: its map holds NaN or infinite values.")
        if self.bytes + array.nbytes <= KEPT:
            self.kept[index], self.bytes = array, self.bytes + array.nbytes
        return array


def truth(one: Judged, shape: tuple[int, ...]) -> list[tuple[Finding, Mask]]:
    """Where the findings of a case lie.

    Args:
        one: normal cases have none.
        shape: of the source; a mask must have it too, after axes of length one are dropped. A mask with a place in
            the patient is brought to the grid of a map with one: files of two kinds order their axes differently.

    Returns:
        Each finding and its mask, True inside; from the mask's file (> 0), else from the box: the pixels whose
        centres lie in it.

    Raises:
        ImageError: a finding has neither, its mask cannot be read, has another size, or is empty.
    """
    found = []
    for finding in one.case.findings if one.abnormal else ():
        if finding.mask is not None:
            mask = on_grid(finding, one, shape)
            if mask.shape != shape:
                raise ImageError(
                    f"the mask of '{finding.name}' is {by(mask.shape)}, the image {by(shape)}: left out of the pixel "
                    "metrics"
                )
        elif finding.box is not None and len(shape) == 2:
            mask = inside_box(finding.box, shape)
        else:
            raise ImageError(f"'{finding.name}' has no mask: left out of the pixel metrics")
        if not mask.any():
            raise ImageError(f"the mask of '{finding.name}' is empty: left out of the pixel metrics")
        found.append((finding, mask))
    return found


def on_grid(finding: Finding, one: Judged, shape: tuple[int, ...]) -> Mask:
    """A finding's mask; one in mm on the grid of a map in mm, voxel by voxel the nearest.

    Raises:
        ImageError: it cannot be read, or half of it or more lies beside the image.
    """
    if finding.mask is None:
        raise ValueError("only findings with a mask are laid on a grid")
    image = read_study([finding.mask])
    mask: Mask = image.array > finding.above
    path = one.folder / one.result.files.get("map", "")
    if image.unit != "mm" or not path.name.endswith((".nii", ".nii.gz")):
        return mask
    affine = np.asarray(nibabel.load(path).affine, dtype=np.float64)  # type: ignore[attr-defined]
    if mask.shape == shape and np.allclose(image.affine, affine, atol=1e-3):
        return mask
    grid = Image(array=np.zeros(shape, np.float32), affine=affine, unit="mm")
    moved: Mask = resample(replace(image, array=mask.astype(np.float32)), like=grid, order=0).array > 0.5
    share = moved.sum() * abs(np.linalg.det(affine[:3, :3])) / max(mask.sum(), 1)
    if share < 0.5 * abs(np.linalg.det(image.affine[:3, :3])):
        raise ImageError(f"the mask of '{finding.name}' lies beside the image: left out of the pixel metrics")
    return moved


def inside_box(box: tuple[float, float, float, float], shape: tuple[int, ...]) -> Mask:
    """`shape` mask of the pixels whose centres lie in (x, y, width, height)."""
    x, y, width, height = box
    rows, columns = np.arange(shape[0]) + 0.5, np.arange(shape[1]) + 0.5
    return np.outer((rows >= y) & (rows < y + height), (columns >= x) & (columns < x + width))


def localised(cases: Iterable[Case]) -> bool:
    """Whether any of the cases says where its findings lie."""
    return any(f.mask is not None or f.box is not None for case in cases for f in case.findings)


def masked(case: Case) -> bool:
    """Whether the case can count pixel by pixel: normal, or all its findings have masks; a box holds healthy pixels."""
    return case.label == Label.NORMAL or (bool(case.findings) and all(f.mask is not None for f in case.findings))


def usable(judged: Sequence[Judged], maps: Maps, data: Path) -> tuple[list[int], list[Problem]]:
    """Indices of the cases whose map and truth can be laid on each other, and why the others cannot."""
    good, problems = [], []
    for index, one in enumerate(judged):
        try:
            truth(one, maps[index].shape)
        except SalusError as error:
            problems.append(Problem(case_id=one.case.case_id, reason=bare(str(error), data, one.folder)))
        else:
            good.append(index)
    return good, problems


def bare(text: str, *roots: Path) -> str:
    """`text` without the folders of this machine: a report travels, and its paths should not."""
    for root in roots:
        for name in {str(root), str(root.resolve())} - {".", "/"}:
            text = text.replace(f"{name}/", "")
    return ABSOLUTE.sub(r"\1", text)


def by(shape: tuple[int, ...]) -> str:
    """'128 x 128'."""
    return " x ".join(map(str, shape))
