"""What heads are drawn with: shared and own randomness, layers, smooth fields, meandering curves."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GRID = 256  # rows and columns of the drawing

Field = NDArray[np.float32]
Points = NDArray[np.float64]
Generator = np.random.Generator


class Kin:
    """Draws of a generator that are mostly alike in every head: people share their large folds, not the details.

    Args:
        own: what makes this head itself.
        share: of each draw's spread that is this head's own, in [0, 1].
    """

    def __init__(self, own: Generator, share: float) -> None:
        self.own, self.share = own, share
        self.about(0)

    def about(self, *what: int) -> None:
        """Go on with the common draws of one structure, whatever was drawn for the ones before."""
        self.common = np.random.default_rng([11, *what])

    def normal(self, mean: float = 0.0, spread: float = 1.0, size: tuple[int, ...] | None = None) -> Any:
        alike, own = self.common.normal(size=size), self.own.normal(size=size)
        return mean + spread * (np.sqrt(1 - self.share**2) * alike + self.share * own)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        alike, own = self.common.uniform(low, high), self.own.uniform(low, high)
        return float(alike + self.share * (own - alike))


def blend(below: Field, above: float | Field, coverage: Field) -> Field:
    """`above` laid over `below` where `coverage` is 1."""
    return np.asarray(below + coverage * (above - below), dtype=np.float32)


def soft(distance: Field, width: float = 1.0) -> Field:
    """Coverage of what lies on the positive side, rising from 0 to 1 over `width` pixels."""
    return np.asarray(np.clip(distance / width + 0.5, 0, 1), dtype=np.float32)


def smooth_field(rng: Generator | Kin, cells: int) -> Field:
    """(256, 256) random field of unit variance with about `cells` bumps across."""
    coarse = np.asarray(rng.normal(size=(cells + 3, cells + 3)), dtype=np.float32)
    fine = np.asarray(Image.fromarray(coarse).resize((GRID, GRID), Image.Resampling.BICUBIC))
    return np.asarray(fine / (fine.std() + 1e-6), dtype=np.float32)


def smooth_contour(points: Points) -> Points:
    """A closed contour with its corners cut three times (Chaikin), (8 n, 2)."""
    for _ in range(3):
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], 1).reshape(-1, 2)
    return points


def grow(rng: Kin, start: Points, heading: float, length: float, bend: float = 0.4) -> Points:
    """A meandering curve of `length` pixels from `start` (2,) in the direction `heading` (radians, x to y)."""
    steps = max(3, int(length / 1.5))
    along = np.linspace(0, 1, steps)
    waves = sum(rng.normal() * np.sin(k * along + rng.uniform(0, 6.3)) for k in (3.0, 8.0, 0.55 * length))
    turn = bend * waves * np.minimum(1, 4 * along)  # straight where it leaves the surface
    angle = heading + turn
    moves = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (length / steps)
    return np.concatenate([start[None], start + np.cumsum(moves, axis=0)])
