"""Which slices make one volume: a rule that reading files and listing cases must share."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

SAME_PLACE = 1e-3  # mm
SAME_DIRECTION = 5e-3  # of cosines, which some scanners write with three digits
ROUNDING = 0.2  # mm that a slice may be off: three coordinates written with one digit are, obliquely, by 0.17


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

    Each run lies on a grid of one distance, but for 0.2 mm, or a tenth of a distance of more than 2 mm, and never by
    more than a third. Of all ways to cut, it is one into the fewest runs, and of these the one that covers least: a
    slice between two distances belongs to the smaller.

    Args:
        heights: (n,) mm along the normal. Two at one place cut nothing: that is no gap, but several volumes.
    """
    height = np.asarray(heights, dtype=np.float64)
    order = np.argsort(height, kind="stable")
    height = height[order]
    gaps, count = np.diff(height), len(height)
    if count < 3 or gaps.min() < SAME_PLACE or _end(height, 0) == count:
        return [order.tolist()]
    after, extent = np.append(gaps, 0.0), height[-1] - height[0] + 1.0
    cost, end = np.zeros(count + 1), np.zeros(count, dtype=int)  # from a slice on: an extent a run, less the mm between
    for start in reversed(range(count)):
        last = _end(height, start)
        costs = cost[start + 1 : last + 1] - after[start:last]
        end[start] = start + 1 + costs.argmin()
        cost[start] = extent + costs.min()
    parts, start = [], 0
    while start < count:
        parts.append(order[start : end[start]].tolist())
        start = end[start]
    return parts


def _end(height: NDArray[np.float64], start: int) -> int:
    """The index after the last slice on one grid with `start` and all between: some step is near enough to each."""
    beyond = height[start + 1 :] - height[start]
    if not len(beyond):
        return start + 1
    off = min(max(ROUNDING, beyond[0] / 10), beyond[0] / 3)
    number = np.arange(1, len(beyond) + 1)
    least, most = np.maximum.accumulate((beyond - off) / number), np.minimum.accumulate((beyond + off) / number)
    return start + 1 + int(np.append(least <= most, False).argmin())
