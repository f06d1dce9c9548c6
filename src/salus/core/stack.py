"""Which slices make one volume: a rule that reading files and listing cases must share."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

SAME_PLACE = 1e-3  # mm


def normal_of(orientation: ArrayLike) -> NDArray[np.float64]:
    """Unit vector across slices whose rows and columns run along the six cosines of ImageOrientationPatient."""
    along_row, along_column = np.reshape(np.asarray(orientation, dtype=np.float64), (2, 3))
    normal = np.cross(along_row, along_column)
    return np.asarray(normal / np.linalg.norm(normal))


def runs(heights: ArrayLike) -> list[list[int]]:
    """Indices of slices in the order of their heights, cut where one is missing or where another distance begins.

    Args:
        heights: (n,) mm along the normal. Two at one place cut nothing: that is no gap, but several volumes.

    Returns:
        One list a run; a single one where all distances are the usual (median) one to within 2 %.
    """
    height = np.asarray(heights, dtype=np.float64)
    order = np.argsort(height, kind="stable").tolist()
    gaps = np.diff(height[order])
    if len(gaps) == 0 or gaps.min() < SAME_PLACE:
        return [order]
    usual = float(np.median(gaps))
    cuts = np.flatnonzero(np.abs(gaps - usual) > 0.02 * usual + SAME_PLACE) + 1
    return [part.tolist() for part in np.split(np.array(order), cuts)]
