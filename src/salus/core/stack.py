"""Which slices make one volume: a rule that reading files and listing cases must share."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

SAME_PLACE = 1e-3  # mm
SAME_DIRECTION = 5e-3  # of cosines, which some scanners write with three digits
GAP = (
    1.5  # times the smaller of its neighbours' distances that a distance may be: positions are written with few digits
)


def normal_of(orientation: ArrayLike) -> NDArray[np.float64]:
    """Unit vector across slices whose rows and columns run along the six cosines of ImageOrientationPatient."""
    a, b, c, d, e, f = np.asarray(orientation, dtype=np.float64).tolist()
    normal = np.array([b * f - c * e, c * d - a * f, a * e - b * d])  # numpy's cross is slow on one pair
    length = math.sqrt(normal @ normal)
    if not length > 0.5:
        raise ValueError(f"rows and columns of a slice cannot run along {np.asarray(orientation).tolist()}")
    return np.asarray(normal / length)


def alike(a: ArrayLike, b: ArrayLike) -> bool:
    """Whether two orientations, or two spacings, are the same but for the digits they are written with."""
    one, other = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return one.shape == other.shape and bool(np.abs(one - other).max(initial=0) <= SAME_DIRECTION)


def runs(heights: ArrayLike) -> list[list[int]]:
    """Indices of slices in the order of their heights, cut where one is missing or another distance begins.

    Args:
        heights: (n,) mm along the normal. Two at one place cut nothing: that is no gap, but several volumes.

    Returns:
        One list a run; a single one where no distance is more than 1.5 times that before or after it.
    """
    height = np.asarray(heights, dtype=np.float64)
    order = np.argsort(height, kind="stable").tolist()
    gaps = np.diff(height[order])
    if len(gaps) < 2 or gaps.min() < SAME_PLACE:
        return [order]
    beside = np.minimum(np.append(gaps[1:], np.inf), np.append(np.inf, gaps[:-1]))
    cuts = np.flatnonzero(gaps > GAP * beside) + 1
    return [part.tolist() for part in np.split(np.array(order), cuts)]
