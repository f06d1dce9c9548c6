"""How well models of several sizes tell healthy slices from the same ones with painted lesions.

The slices are of validation images, which weights were not learned from; no label is looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from salus.core import Dataset
from salus.core.errors import LayoutError
from salus.detectors import Detector
from salus.metrics import resample, weighted_auroc
from salus.model import Precision, detections
from salus.preprocess.cache import Prepared
from salus.preprocess.lesions import LEAST, PLACES, foreground, has_room, unknown

FEWEST = 5  # patients; the standard error of fewer says nothing
ROUNDS = 4  # lesions at each place of each image
REPLICATES = 500

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Painted:
    """Healthy slices, and the same ones with lesions.

    Attributes:
        bare: (n, 1, H, W).
        lesions: (m, 1, H, W), `ROUNDS` at each place of each slice.
        of: (m,) for each painted slice the index of its bare one.
        patients: (n,) whom a slice belongs to.
    """

    bare: Rows
    lesions: Rows
    of: NDArray[np.int64]
    patients: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """What one model says of `Painted`: (n,) scores of the bare slices, (m,) of the painted ones."""

    bare: Floats
    lesions: Floats


@dataclass(frozen=True, kw_only=True)
class Sight:
    """How well one size tells painted from bare.

    Attributes:
        auroc: of painted against bare slices.
        behind: AUROC of the best size less this one's; `standard_error` its own, over patients.
    """

    auroc: float
    behind: float
    standard_error: float


def painted(prepared: Prepared, cases: Dataset, seed: int) -> Painted:
    """Lesions on every prepared slice that has room for them.

    Raises:
        LayoutError: fewer than `FEWEST` patients have.
    """
    rng = np.random.default_rng([seed, 0])
    kept: list[int] = []
    lesions: list[Rows] = []
    of: list[int] = []
    for index, row in enumerate(prepared.rows):
        picture, inside = np.asarray(row[0]), foreground(row[0])
        if not has_room(inside, LEAST):
            continue
        lesions += [one.picture for _ in range(ROUNDS) for one in unknown(picture, inside, rng)]
        of += [len(kept)] * (ROUNDS * len(PLACES))
        kept.append(index)
    patients = tuple(cases[int(prepared.case[index])].patient_id for index in kept)
    if len(set(patients)) < FEWEST:
        raise LayoutError(
            f"{cases.name}: sizes of the code are compared on {FEWEST} validation patients or more whose foreground "
            f"has room for lesions, here {len(set(patients))}."
        )
    return Painted(
        bare=prepared.rows[kept],
        lesions=np.stack(lesions)[:, None],
        of=np.array(of),
        patients=patients,
    )


def look(detector: Detector, pictures: Painted, precision: Precision) -> Look:
    """What a trained model scores."""
    bare, lesions = (detections(detector, rows, precision=precision)[1] for rows in (pictures.bare, pictures.lesions))
    return Look(bare=bare.astype(np.float64), lesions=lesions.astype(np.float64))


def sights(looks: Sequence[Look], pictures: Painted) -> list[Sight]:
    """How far each model stays behind the best one, on the same draws of patients."""
    truth = np.arange(len(pictures.patients) + len(pictures.of)) >= len(pictures.patients)
    drawn = resample(pictures.patients, np.zeros(len(pictures.patients), dtype=bool), replicates=REPLICATES)
    weights = np.concatenate([np.ones_like(drawn[:1]), drawn])  # first all patients as they are
    weights = np.concatenate([weights, weights[:, pictures.of]], axis=1)
    replicates = np.stack([weighted_auroc(truth, np.concatenate([one.bare, one.lesions]), weights) for one in looks])
    behind = replicates[replicates[:, 0].argmax()] - replicates
    return [
        Sight(auroc=float(auroc[0]), behind=float(less[0]), standard_error=float(less[1:].std(ddof=1)))
        for auroc, less in zip(replicates, behind, strict=True)
    ]


def smallest(seen: Sequence[Sight]) -> int:
    """Index of the first, so the smallest, size that is not behind the best by more than a standard error."""
    return next(index for index, one in enumerate(seen) if one.behind <= one.standard_error)
