"""How many entries the code should have, from healthy images alone: `latent: auto`.

A code that is too small draws healthy people badly, and lesions drown in that error; one that is too large draws the
lesions, too. Both show where lesions are painted on healthy images that were not learned from. So one autoencoder is
trained that can be read with any number of entries (nested dropout, Rippel et al. 2014, arXiv:1402.0915), it looks at
the validation images bare and painted with each, and the smallest number is taken that tells them apart as well as the
best does, within the standard error of the difference (Breiman et al. 1984, section 3.4.3).

Cai et al. (arXiv:2403.09303) choose the size by test labels and name this choice as open. Ours; what it was tried on
and against: docs/latent-size.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from salus.core import Dataset
from salus.core.errors import LayoutError
from salus.detectors import Detector, Recipe, build, detector_class
from salus.detectors.ae import AE, AEConfig
from salus.metrics import resample, weighted_auroc
from salus.model import Precision, detections
from salus.preprocess.cache import Prepared
from salus.preprocess.lesions import LEAST, PLACES, foreground, has_room, unknown
from salus.scores.base import Score
from salus.training.loop import Images, Run, fit, fit_score, half_precision
from salus.training.plan import AUTO, Plan

SIZES = tuple(2**power for power in range(11))  # entries of the code that are tried
FEWEST = 5  # patients; the standard error of fewer says nothing
ROUNDS = 4  # lesions at each place of each image
REPLICATES = 500
UNDECIDED = (
    "No size of the code sees painted lesions better than the smallest by more than a standard error: too few "
    "validation patients, or too short a training, to choose. The smallest is taken."
)

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]


class Ordered(AE):
    """An autoencoder for codes of every size at once: what its first entries hold matters most.

    In training each image keeps the first entries of its code, a number drawn from `sizes`, and the others are zero.

    Attributes:
        kept: entries that are read otherwise.
    """

    def __init__(self, config: AEConfig, score: Score, sizes: Sequence[int] = SIZES) -> None:
        super().__init__(config, score)
        self.sizes = torch.tensor(sizes)
        self.kept = config.latent

    def code(self, x: Tensor) -> Tensor:
        z = super().code(x)
        kept = torch.full((len(z), 1), self.kept)
        if self.training:
            kept = self.sizes[torch.randint(len(self.sizes), (len(z), 1))]
        return z * (torch.arange(z.shape[1]) < kept).to(z.device)


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
        Sight(auroc=float(auroc[0]), behind=float(less[0]), standard_error=float(less[1:].std(ddof=1)))
        for auroc, less in zip(replicates, behind, strict=True)
    ]


def smallest(seen: Sequence[Sight]) -> int:
    """Index of the first, so the smallest, size that is not behind the best by more than a standard error."""
    return next(index for index, one in enumerate(seen) if one.behind <= one.standard_error)


def settings_of(plan: Plan, size: int) -> dict[str, Any]:
    """A plan's settings with a size in the place of `auto`; prices that follow the size stay those of the usual one."""
    return plan.settings | ({"latent": size} if plan.settings.get("latent") == AUTO else {})


def chosen(
    plan: Plan,
    training: Images,
    validation: Images,
    own: Images,
    pictures: Painted,
    progress: Path,
    fabric: Fabric,
    on_epoch: Callable[[Run, int], None],
    sizes: Sequence[int] = SIZES,
) -> tuple[int, list[dict[str, float]], float]:
    """The smallest size with which one autoencoder sees painted lesions as well as with any, by the plan's score.

    Args:
        own: the validation images that a score learns from, without those of further sets.
        progress: an existing folder for its training, which is not done again when it is done.
        sizes: to choose from, the smallest first.

    Returns:
        The size, for each one how well it sees, and the seconds of training.

    Raises:
        ConfigError: the autoencoder cannot take the plan's size, its score or so few images.
    """
    torch.manual_seed(plan.seed)
    net, recipe = ordered(plan, sizes, len(training))
    net.check(recipe, len(training), len(own))
    run = fit(net, recipe, training, validation, progress, plan.seed, fabric, on_epoch)
    precision: Precision = "bf16" if half_precision(fabric) else "fp32"
    looks: list[Look] = []
    for net.kept in sizes:
        fit_score(net, own, precision)
        looks.append(look(net, pictures, precision))
    seen = sights(looks, pictures)
    rows = [{"latent": size, **vars(sight)} for size, sight in zip(sizes, seen, strict=True)]
    return sizes[smallest(seen)], rows, run.seconds


def ordered(plan: Plan, sizes: Sequence[int], images: int) -> tuple[Ordered, Recipe]:
    """The autoencoder of `ae`'s preset of the same name, and its recipe, as much longer or shorter as the plan's is.

    Methods that are an `ae` themselves give it the width of their layers.
    """
    kind = detector_class(plan.detector)
    preset = AE.PRESETS.get(plan.preset, AE.PRESETS["fast"])
    widths = {name: plan.settings[name] for name in ("hidden", "widths") if issubclass(kind, AE)}
    settings = {**preset.settings, **widths, "size": plan.settings["size"], "latent": max(sizes)}
    usual = cast("AE", build("ae", settings, plan.score))
    longer = plan.recipe.for_images(images).epochs / kind.PRESETS[plan.preset].recipe.for_images(images).epochs
    epochs = max(1, round(longer * preset.recipe.for_images(images).epochs))
    return Ordered(usual.config, usual.score, sizes), preset.recipe.in_epochs(epochs)
