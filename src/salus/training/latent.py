"""How many entries the code should have, from healthy images alone: `latent: auto`.

A code that is too small draws healthy people badly, and lesions drown in that error; one that is too large draws the
lesions, too. Both show where lesions are painted on healthy images that were not learned from. So every size is
trained, each model looks at the validation images bare and painted, and the smallest size is taken that tells them
apart as well as the best does, within the standard error of the difference (Breiman et al. 1984, section 3.4.3).

Cai et al. (arXiv:2403.09303) choose the size by test labels and name this choice as open. Ours; what it was tried on
and against: docs/latent-size.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from salus.core import Dataset
from salus.core.errors import LayoutError
from salus.detectors import Detector, build
from salus.metrics import resample, weighted_auroc
from salus.model import Precision, detections
from salus.preprocess.cache import Prepared
from salus.preprocess.lesions import draw, foreground, has_room, intensity_range
from salus.training.loop import Images, Run, fit, fit_score, half_precision
from salus.training.plan import AUTO, Plan

SIZES = tuple(2**power for power in range(11))  # entries of the code that are tried
PATIENCE = 2  # sizes in a row that are not the best one, after which `auto` tries no larger ones
FEWEST = 5  # patients; the standard error of fewer says nothing
ROUNDS = 4  # lesions at each place of each image
DIAMETERS = (1 / 16, 1 / 4)  # of the grid's side; their logarithms are uniform
CONTRASTS = (-0.5, -0.3, -0.2, -0.1, 0.1, 0.2, 0.3, 0.5)  # of the range of the image's intensities
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
        behind: AUROC of the best size less this one's; `error` its standard error over patients.
    """

    auroc: float
    behind: float
    error: float


def painted(prepared: Prepared, cases: Dataset, seed: int) -> Painted:
    """Lesions on every prepared slice that has room for them.

    Raises:
        LayoutError: fewer than `FEWEST` patients have.
    """
    rng = np.random.default_rng([seed, 0])
    kept: list[int] = []
    lesions, of = [], []
    for index, row in enumerate(prepared.rows):
        picture, inside = np.asarray(row[0]), foreground(row[0])
        largest = DIAMETERS[1] * len(picture)
        if not has_room(inside, largest):
            continue
        full = intensity_range(picture, inside)
        for lesion in (one for _ in range(ROUNDS) for one in draw(inside, rng)):
            size = len(picture) * np.exp(rng.uniform(*np.log(DIAMETERS)))
            lesions.append(lesion.painted(picture, size, float(rng.choice(CONTRASTS)) * full))
            of.append(len(kept))
        kept.append(index)
    patients = tuple(cases[int(prepared.case[index])].patient_id for index in kept)
    if len(set(patients)) < FEWEST:
        raise LayoutError(
            f"{cases.name}: a size of the code is chosen by {FEWEST} validation patients or more whose foreground has "
            f"room for lesions, here {len(set(patients))}. Set latent to a number."
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
        Sight(auroc=float(auroc[0]), behind=float(less[0]), error=float(less[1:].std(ddof=1)))
        for auroc, less in zip(replicates, behind, strict=True)
    ]


def smallest(seen: Sequence[Sight]) -> int:
    """Index of the first, so the smallest, size that is not behind the best by more than a standard error."""
    return next(index for index, one in enumerate(seen) if one.behind <= one.error)


def settings_of(plan: Plan, size: int) -> dict[str, Any]:
    """A plan's settings with a size in the place of `auto`; prices that follow the size stay those of the usual one."""
    return plan.settings | ({"latent": size} if plan.settings.get("latent") == AUTO else {})


def chosen(
    plan: Plan,
    training: Images,
    validation: Images,
    pictures: Painted,
    progress: Path,
    fabric: Fabric,
    on_epoch: Callable[[Run, int], None],
) -> tuple[Detector, dict[str, Any], Run, list[dict[str, float]]]:
    """The model of the smallest size that sees painted lesions as well as any, the same as `latent=<size>` trains.

    Args:
        progress: each size has a folder of its own in it; sizes that are done are not done again.

    Returns:
        The detector, its settings, its run, and a row a size that was tried.
    """
    nets: list[Detector] = []
    runs: list[Run] = []
    looks: list[Look] = []
    precision: Precision = "bf16" if half_precision(fabric) else "fp32"
    seen: list[Sight] = []
    for size in SIZES:
        torch.manual_seed(plan.seed)
        net = build(plan.detector, settings_of(plan, size), plan.score)
        place = progress / f"latent-{size}"
        place.mkdir(exist_ok=True)
        runs.append(fit(net, plan.recipe, training, validation, place, plan.seed, fabric, on_epoch))
        fit_score(net, validation, precision)
        nets.append(net)
        looks.append(look(net, pictures, precision))
        seen = sights(looks, pictures)
        if min(range(len(seen)), key=lambda index: seen[index].behind) < len(seen) - PATIENCE:
            break
    index = smallest(seen)
    rows = [{"latent": size, **vars(sight)} for size, sight in zip(SIZES, seen, strict=False)]
    return nets[index], settings_of(plan, SIZES[index]), runs[index], rows
