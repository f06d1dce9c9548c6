"""A generated population of brain-like MR slices, with seven findings whose masks are exact.

    root/train/good/0000.png             healthy
    root/test/good/*.png                 healthy
    root/test/<finding>/*.png            the findings below
    root/ground_truth/<finding>/<stem>_mask.png   0 or 255
    root/metadata.csv                    file, patient_id, finding, size, contrast, lesion_px, seed
    root/phantom.json                    what it was made with

Every slice is a T1-like axial cut through the frontal horns, drawn from a seed (`_anatomy`). The findings are those of
Bercea et al., arXiv:2401.10637, Table 1. A slice with a finding is the head its seed gives anyway, plus the finding, so
that its healthy twin is known. A phantom is not a patient: numbers from it say that code works, not that it helps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_closing, distance_transform_edt, gaussian_filter, map_coordinates

from salus.core.errors import ConfigError, did_you_mean
from salus.core.made import made, write_table
from salus.datasets._anatomy import OWN_FOLDS, Anatomy, build, shell
from salus.datasets._drawing import GRID, Field, Generator, blend, smooth_field, soft

FORMAT = 1  # of the folder; raise it whenever a seed's picture changes: an old folder is not mistaken for a new one
FINDINGS: tuple[str, ...] = (
    "absent_septum",
    "craniotomy",
    "edema",
    "enlarged_ventricles",
    "lesions",
    "mass",
    "resection",
)
FLUID = ("absent_septum", "enlarged_ventricles", "resection")  # their signal is the fluid's: one head, one fluid
LARGEST_DIAL = 3.0  # beyond it a finding outgrows the head
HEADS_PER_SEED = 1_000_000  # room for one population's heads before the next seed's begin
MATERIAL = 0.02  # change of signal, times contrast, below which a pixel does not count as altered


@dataclass(frozen=True, eq=False)
class Phantom:
    """One generated slice.

    Attributes:
        image: (H, W) float32 in [0, 1].
        healthy: (H, W) float32, the same head with the same noise and no finding.
        mask: (H, W) bool, the pixels the finding itself altered. Tissue that a mass or wide ventricles merely pushed
            aside differs from the twin too and is not in it.
        finding: one of `FINDINGS`, or "" for a healthy slice.
        size, contrast: what this slice got: the dial times a factor near 1 drawn from the seed (1 for the contrast of
            findings that are fluid); 0 for a healthy slice.
    """

    image: NDArray[np.float32]
    healthy: NDArray[np.float32]
    mask: NDArray[np.bool_]
    finding: str
    size: float
    contrast: float


@dataclass(frozen=True, eq=False)
class Change:
    """A finding on the grid of the drawing: the signal with it, and how far it covers each pixel, in [0, 1]."""

    signal: Field
    coverage: Field


def phantom_slice(
    seed: int,
    *,
    side: int = 128,
    finding: str = "",
    size: float = 1.0,
    contrast: float = 1.0,
    own_folds: float = OWN_FOLDS,
) -> Phantom:
    """Draw the head of `seed`, healthy or with a finding. The same arguments give the same bytes.

    Args:
        seed: which head, at least 0. With `side` it alone decides the anatomy and the noise.
        side: rows and columns of the square picture, at least 16. Drawn at 256, so above that nothing sharpens.
        finding: one of `FINDINGS`; "" for none.
        size: extent of the finding over the usual one, in (0, 3].
        contrast: 1 is the finding's usual signal, 0.5 half way from it to what it replaces; in (0, 3].
        own_folds: how complex the population is: the share of its folds that no other head has, in [0, 1]. At 0
            heads differ in shape and signal alone.

    Returns:
        The slice, its healthy twin and the mask.

    Raises:
        ConfigError: a finding that does not exist, or a number outside its range.
    """
    if finding and finding not in FINDINGS:
        raise ConfigError(f"phantom has no finding '{finding}'.{did_you_mean(finding, FINDINGS)}")
    if seed < 0 or side < 16:
        raise ConfigError(f"phantom needs seed >= 0 and side >= 16, got seed {seed} and side {side}.")
    for name, value in (("size", size), ("contrast", contrast)):
        if not 0 < value <= LARGEST_DIAL:
            raise ConfigError(f"phantom needs {name} in (0, {LARGEST_DIAL:g}], got {value:g}.")
    if not 0 <= own_folds <= 1:
        raise ConfigError(f"phantom needs own_folds in [0, 1], got {own_folds:g}.")
    anatomy = build(seed, own_folds)
    scanner = Scanner(seed, side)
    signal = anatomy.render()
    healthy = scanner.acquire(signal)
    if not finding:
        return Phantom(healthy, healthy, np.zeros((side, side), dtype=bool), "", 0.0, 0.0)
    rng = np.random.default_rng([seed, 2, FINDINGS.index(finding)])
    size, vary = size * float(rng.uniform(0.8, 1.25)), float(rng.uniform(0.8, 1.2))
    contrast *= 1.0 if finding in FLUID else vary
    change = CHANGES[finding](anatomy, signal, rng, size, contrast)
    mask = altered(scanner, signal, change, contrast)
    return Phantom(scanner.acquire(change.signal), healthy, mask, finding, size, contrast)


class Scanner:
    """Turns a drawn signal into a picture: blur, coil, contrast curve, noise. One seed, one scanner."""

    def __init__(self, seed: int, side: int) -> None:
        rng = np.random.default_rng([seed, 1])
        self.side = side
        self.gamma = float(rng.uniform(0.9, 1.15))
        self.blur = float(rng.uniform(0.5, 0.9))
        across, down = np.meshgrid(*2 * [np.linspace(-1, 1, side, dtype=np.float32)])
        a, b, c, d = rng.normal(0, [0.05, 0.05, 0.03, 0.03])
        rim = float(rng.uniform(-0.02, 0.10))  # surface coils see the rim brighter than the middle
        field = (
            a * across + b * down + c * across * down + d * (across**2 - down**2) + rim * (across**2 + down**2 - 0.6)
        )
        self.bias = np.exp(field, dtype=np.float32)
        self.noise = float(rng.uniform(0.012, 0.026)) * rng.standard_normal((2, side, side)).astype(np.float32)

    def resize(self, field: Field) -> Field:
        """(side, side) means over the area of each pixel."""
        kind = Image.Resampling.BOX if self.side <= GRID else Image.Resampling.BICUBIC
        return np.asarray(Image.fromarray(field).resize((self.side, self.side), kind), dtype=np.float32)

    def clean(self, signal: Field) -> Field:
        """(side, side) what would be measured without noise."""
        seen = self.resize(gaussian_filter(signal, self.blur, truncate=3))
        return np.asarray(np.clip(seen * self.bias, 0, None) ** self.gamma, dtype=np.float32)

    def acquire(self, signal: Field) -> NDArray[np.float32]:
        """(side, side) float32 in [0, 1], with the noise of a magnitude image (Rice)."""
        measured = np.hypot(self.clean(signal) + self.noise[0], self.noise[1])
        return np.asarray(np.clip(measured, 0, 1), dtype=np.float32)


def altered(scanner: Scanner, signal: Field, change: Change, contrast: float) -> NDArray[np.bool_]:
    """(side, side) pixels at least half covered by the finding whose signal it changed; never empty.

    A covered pixel between changed ones counts: a tumour's rim is no hole because white matter is as bright.
    """
    covered = scanner.resize(change.coverage)
    difference = np.abs(scanner.clean(change.signal) - scanner.clean(signal))
    inside = covered >= 0.5
    mask = binary_closing(inside & (difference > MATERIAL * contrast), np.ones((3, 3), dtype=bool)) & inside
    if not mask.any():  # smaller than a pixel
        mask.flat[int(np.argmax(covered * difference))] = True
    return np.asarray(mask, dtype=bool)


def replaced(signal: Field, target: float | Field, coverage: Field, contrast: float) -> Field:
    """`contrast` of the way from the signal to the target, where covered; a signal is never negative."""
    return np.asarray(np.maximum(blend(signal, target, contrast * coverage), 0), dtype=np.float32)


def distance_from(column: float, row: float) -> Field:
    """(256, 256) distance of every pixel from one place."""
    rows, columns = np.mgrid[:GRID, :GRID].astype(np.float32)
    return np.asarray(np.hypot(columns - np.float32(column), rows - np.float32(row)), dtype=np.float32)


def somewhere(rng: Generator, allowed: NDArray[np.bool_], otherwise: NDArray[np.bool_]) -> tuple[int, int]:
    """Column and row of a random pixel of `allowed`, or of `otherwise` where no pixel is."""
    places = np.flatnonzero(allowed if allowed.any() else otherwise)
    row, column = divmod(int(rng.choice(places)), GRID)
    return column, row


def edema(anatomy: Anatomy, signal: Field, rng: Generator, size: float, contrast: float) -> Change:
    """Swollen white matter: a dark, soft-edged region that spares the cortex."""
    white = (anatomy.white > 0.9) & (anatomy.brain > 16) & (np.abs(anatomy.x) > 16)
    centre = somewhere(rng, white & (anatomy.depth > 7), white)
    radius = 22 * size * (1 + 0.22 * smooth_field(rng, 7))
    region = soft(radius - distance_from(*centre), 7.0) * (0.12 + 0.88 * anatomy.white)
    region = gaussian_filter(region, 0.8) * soft(anatomy.brain - 2, 2.0)
    target = anatomy.tones.grey * rng.uniform(0.72, 0.86) * (1 + 0.03 * smooth_field(rng, 30))
    return Change(replaced(signal, target, region, contrast), region)


def lesions(anatomy: Anatomy, signal: Field, rng: Generator, size: float, contrast: float) -> Change:
    """Several small dark spots in the white matter, most of them near the ventricles."""
    white = (anatomy.white > 0.9) & (anatomy.brain > 12) & (anatomy.depth > 5)
    near = white & (distance_transform_edt(anatomy.ventricles < 0.5) < 16)
    edge = 1 + 0.18 * smooth_field(rng, 40)
    region = np.zeros_like(signal)
    for i in range(int(rng.integers(5, 11))):
        centre = somewhere(rng, near if rng.random() < 0.6 else white, anatomy.brain > 12)
        radius = size * (rng.uniform(4.0, 5.2) if i == 0 else rng.uniform(2.1, 4.8))
        region = np.maximum(region, soft(radius * edge - distance_from(*centre), 1.6))
    region = region * (1 - anatomy.ventricles)
    target = anatomy.tones.csf + rng.uniform(0.3, 0.55) * (anatomy.tones.grey - anatomy.tones.csf)
    return Change(replaced(signal, target, region, contrast), region)


def mass(anatomy: Anatomy, signal: Field, rng: Generator, size: float, contrast: float) -> Change:
    """A round tumour with a bright rim and a dark core that pushes its surroundings aside."""
    away = distance_transform_edt(anatomy.ventricles < 0.5)
    inside = (anatomy.brain > 17) & (np.abs(anatomy.x) > 19)
    column, row = somewhere(rng, inside & (away > 14) & (anatomy.brain < 40), inside)
    radius = 14.5 * size
    reach, pushed = 2.4 * radius, 0.42 * radius
    away_from = distance_from(column, row)

    # Tissue at distance r comes from nearer the middle; the skull does not give way.
    push = pushed * np.clip(1 - (away_from - radius) / reach, 0, 1) ** 2 * np.minimum(away_from / radius, 1)
    push = push * np.clip(anatomy.brain / 8, 0, 1)
    rows, columns = np.mgrid[:GRID, :GRID].astype(np.float32)
    share = 1 - push / np.maximum(away_from, 1)
    source = np.stack([row + (rows - row) * share, column + (columns - column) * share])
    moved = map_coordinates(signal, source, order=1).astype(np.float32)

    inward = radius * (1 + 0.15 * smooth_field(rng, 9)) - away_from
    body = soft(inward, 1.8) * soft(anatomy.brain - 1, 1.5)
    thick = rng.uniform(2.2, 4.5) * (1 + 0.4 * smooth_field(rng, 14))
    core = soft(inward - thick, 2.4)
    enhancing = anatomy.tones.white * rng.uniform(1.08, 1.28) * (1 + 0.10 * smooth_field(rng, 10))
    necrotic = anatomy.tones.grey * rng.uniform(0.5, 0.85) * (1 + 0.08 * smooth_field(rng, 24))
    swollen = 0.75 * np.clip(1 + inward / (1.1 * radius * (1 + 0.3 * smooth_field(rng, 8))), 0, 1) * anatomy.white
    moved = replaced(moved, anatomy.tones.grey * 0.95, np.asarray(swollen, dtype=np.float32), contrast)
    return Change(replaced(moved, blend(enhancing, necrotic, core), body, contrast), body)


def resection(anatomy: Anatomy, signal: Field, rng: Generator, size: float, contrast: float) -> Change:
    """A cavity left by surgery: fluid, open to the surface, with a dull rim."""
    strip = (np.abs(anatomy.brain - 8) < 1.5) & (np.abs(anatomy.x) > 22)
    centre = somewhere(rng, strip, anatomy.brain > 8)
    offset = rng.uniform(10, 13) * size * np.exp(1j * rng.uniform(0, 2 * np.pi))
    second = centre[0] + float(offset.real), centre[1] + float(offset.imag)
    edge = size * (1 + 0.22 * smooth_field(rng, 10))
    inward = np.maximum(13 * edge - distance_from(*centre), 11 * edge - distance_from(*second))
    within = soft(anatomy.inner - 1, 1.5)
    cavity, rim = soft(inward, 2.2) * within, soft(inward + 3.5, 3.0) * soft(anatomy.brain, 1.5)
    scarred = replaced(signal, anatomy.tones.grey * 0.82, rim, contrast)
    strands = anatomy.tones.csf * (1.05 + 0.10 * smooth_field(rng, 16))
    return Change(replaced(scarred, strands, cavity, contrast), cavity)


def enlarged_ventricles(anatomy: Anatomy, signal: Field, rng: Generator, size: float, contrast: float) -> Change:
    """Lateral ventricles that grew outwards and pushed the brain against the skull; the septum stays."""
    grown = 5.0 * size
    inside = anatomy.ventricles > 0.5
    outward = (distance_transform_edt(~inside) - distance_transform_edt(inside)).astype(np.float32)
    outward = gaussian_filter(outward, 1.5)
    reach = 6 * grown
    push = grown * np.clip(1 - outward / reach, 0, 1) ** 2 * np.clip(anatomy.brain / 10, 0, 1)
    rows, columns = np.mgrid[:GRID, :GRID].astype(np.float32)
    down, across = np.gradient(outward)
    source = np.stack([rows - push * down, columns - push * across])
    moved = map_coordinates(anatomy.tissue, source, order=1).astype(np.float32)
    wall = stretched_septum(anatomy, grown)
    moved = blend(moved, anatomy.tones.white * 0.92, wall)

    now = soft(grown * (1 + 0.1 * smooth_field(rng, 6)) - outward, 1.6) * (1 - wall) * soft(anatomy.brain - 4)
    gained = np.clip(now - anatomy.ventricles, 0, 1)
    fluid = anatomy.ventricles + contrast * gained
    return Change(np.maximum(blend(moved, anatomy.lumen, fluid), 0), gained)


def stretched_septum(anatomy: Anatomy, grown: float) -> Field:
    """The septum made longer at both ends by `grown`, as it is between wide ventricles."""
    rows, columns = np.mgrid[:GRID, :GRID].astype(np.float32)
    inside = anatomy.septum > 0.5
    middle, tall = float(rows[inside].mean()), float(np.ptp(rows[inside]))
    source = middle + (rows - middle) * (tall / (tall + 2.6 * grown))
    return map_coordinates(anatomy.septum, np.stack([source, columns]), order=1).astype(np.float32)


def absent_septum(anatomy: Anatomy, signal: Field, rng: Generator, size: float, contrast: float) -> Change:
    """The wall between the frontal horns is missing: one fluid space, its front squared off."""
    inside = np.flatnonzero(anatomy.septum > 0.5)
    weight = anatomy.septum.flat[inside]
    middle = float(np.average(anatomy.y.flat[inside], weights=weight))
    centre = float(np.average(anatomy.x.flat[inside], weights=weight))
    across, down = np.abs(anatomy.x - centre), anatomy.y - middle
    length, half = 11.5 * size, anatomy.shape.septum / 2 + 1.5 + 2.2 * size
    front = soft(length * 1.15 + down + 0.12 * across, 1.5)  # the front reaches further: a flat roof between the horns
    box = soft(half - across, 1.5) * front * soft(length * 0.8 - down, 1.5)
    gained = np.clip(box - anatomy.ventricles, 0, 1)
    fluid = anatomy.ventricles + contrast * gained
    return Change(np.maximum(blend(anatomy.tissue, anatomy.lumen, fluid), 0), gained)


def craniotomy(anatomy: Anatomy, signal: Field, rng: Generator, size: float, contrast: float) -> Change:
    """A sawn-out and replaced piece of skull: gaps at its ends, no marrow, scarred scalp, fluid under it."""
    tones = anatomy.tones
    direction = rng.choice([-1, 1]) * rng.uniform(0.45, 2.3)
    turn = np.angle(np.exp(1j * (anatomy.phi - direction))).astype(np.float32)
    arc = np.abs(turn) * np.hypot(anatomy.x, anatomy.y)  # pixels along the bone
    half = 34 * size
    flap = soft(half - arc, 5.0)
    bone_and_scalp = anatomy.surface - anatomy.inner
    skull = bone_and_scalp * rng.uniform(0.32, 0.40)
    sunken = rng.uniform(0.0, 4.5) * np.clip(1 - (arc / half) ** 2, 0, 1)
    swelling = rng.uniform(1.0, 3.0)
    scalp = np.maximum(bone_and_scalp - skull - swelling, 2.5)
    surgical = shell(
        np.asarray(anatomy.surface - sunken, dtype=np.float32), tones, scalp, np.zeros_like(scalp), skull, marrow=0.15
    )
    scarred = tones.muscle * (1 + 0.25 * smooth_field(rng, 45)) + 0.12
    scar = soft(anatomy.surface - sunken - 1.6, 1.4) * soft(sunken + scalp - anatomy.surface, 1.4)
    surgical = blend(surgical, scarred, 0.85 * scar)
    gaps = soft(2.6 - np.abs(arc - half + 4), 1.6) * soft(anatomy.surface - 2, 1.5)
    surgical = blend(surgical, tones.muscle, 0.9 * gaps * soft(-anatomy.inner + 1))
    under = soft(anatomy.inner - 0.5 + sunken) * soft(rng.uniform(2.0, 5.0) - anatomy.brain, 1.5)
    surgical = blend(surgical, tones.csf * 1.7, under)
    region = np.asarray(flap * soft(anatomy.surface) * soft(3 - anatomy.brain, 2.0), dtype=np.float32)
    return Change(replaced(signal, surgical, region, contrast), region)


CHANGES: dict[str, Callable[[Anatomy, Field, Generator, float, float], Change]] = {
    "absent_septum": absent_septum,
    "craniotomy": craniotomy,
    "edema": edema,
    "enlarged_ventricles": enlarged_ventricles,
    "lesions": lesions,
    "mass": mass,
    "resection": resection,
}


def write_phantom(
    root: Path,
    *,
    train: int = 400,
    test_normal: int = 60,
    per_finding: int = 12,
    side: int = 128,
    seed: int = 0,
    size: float = 1.0,
    contrast: float = 1.0,
    own_folds: float = OWN_FOLDS,
) -> Path:
    """Write a data set of phantoms in the MVTec layout drawn at the top of this module.

    Every picture is a patient of its own. A folder that already holds exactly this data set is left as it is. The
    folder appears under its name only when it is complete; an interrupted run leaves at most a hidden sibling
    `.<name>.<process>.part`, which may be deleted.

    Args:
        root: the folder to make; absent, empty, or this very data set.
        train, test_normal, per_finding: number of healthy pictures to learn from, healthy ones to test with, and
            pictures of each of the seven findings.
        side, size, contrast, own_folds: see `phantom_slice`.
        seed: another seed, another population; no head is in two of them.

    Returns:
        `root`.

    Raises:
        ConfigError: a number outside its range.
        LayoutError: `root` holds something else.
        StorageError: the folder could not be written.
    """
    settings = {"train": train, "test_normal": test_normal, "per_finding": per_finding, "side": side, "seed": seed}
    dials = {"size": float(size), "contrast": float(contrast), "own_folds": float(own_folds)}
    # Before a folder is made.
    check_phantom(
        train=train, test_normal=test_normal, per_finding=per_finding, side=side, seed=seed,
        size=size, contrast=contrast, own_folds=own_folds,
    )  # fmt: skip
    recorded = {"format": FORMAT, **settings, **dials}
    return made(root, "phantom", recorded, partial(_fill, recorded), {"own_folds": OWN_FOLDS})


def check_phantom(
    *,
    train: int,
    test_normal: int,
    per_finding: int,
    side: int,
    seed: int,
    size: float,
    contrast: float,
    own_folds: float,
) -> None:
    """Whether `write_phantom` would draw it; the arguments are its own.

    Raises:
        ConfigError: a number outside its range.
    """
    settings = {"train": train, "test_normal": test_normal, "per_finding": per_finding, "side": side, "seed": seed}
    if min(settings.values()) < 0 or train + test_normal + len(FINDINGS) * per_finding > HEADS_PER_SEED:
        raise ConfigError(
            f"phantom needs counts and seed from 0 up, at most {HEADS_PER_SEED} pictures; got {settings}."
        )
    phantom_slice(seed, side=side, size=size, contrast=contrast, own_folds=own_folds)


def _fill(recorded: dict[str, float], root: Path) -> None:
    side, dials = int(recorded["side"]), {name: recorded[name] for name in ("size", "contrast", "own_folds")}
    wanted = [("train/good", "", int(recorded["train"])), ("test/good", "", int(recorded["test_normal"]))]
    wanted += [(f"test/{finding}", finding, int(recorded["per_finding"])) for finding in FINDINGS]
    rows: list[list[object]] = []
    for folder, finding, count in wanted:
        truth = root / "ground_truth" / finding
        for place in (root / folder, truth) if finding else (root / folder,):
            place.mkdir(parents=True)
        for number in range(count):
            head = int(recorded["seed"]) * HEADS_PER_SEED + len(rows)
            phantom = phantom_slice(head, side=side, finding=finding, **dials)
            file = f"{folder}/{number:04d}.png"
            Image.fromarray(np.rint(phantom.image * 255).astype(np.uint8)).save(root / file)
            if finding:
                Image.fromarray(phantom.mask.astype(np.uint8) * 255).save(truth / f"{number:04d}_mask.png")
            contrast = "" if finding in FLUID else f"{phantom.contrast:.3f}"  # of water there is one
            got = f"{phantom.size:.3f}", contrast, int(phantom.mask.sum())
            rows.append([file, f"phantom-{head:07d}", finding or "good", *got, head])
    write_table(root, ("file", "patient_id", "finding", "size", "contrast", "lesion_px", "seed"), rows)
