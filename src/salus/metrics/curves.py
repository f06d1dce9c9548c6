"""The arithmetic every threshold metric shares, over counts that are already cumulated.

`tp` and `fp` are (..., K): how many abnormal and how many normal entries are flagged at each of K
falling thresholds, so that the last column holds the totals. Entries that tie share a column. The same
few lines thus serve single cases, pooled pixels, histograms of pixels, and 2000 bootstrap replicates at
once (leading axis). Without one of the two classes there is no value: nan.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma

Floats = NDArray[np.float64]

BLOCK = 1 << 22  # entries of one temporary array, 32 MiB: memory stays bounded whatever is resampled


def tie_ends(falling: NDArray[np.floating]) -> NDArray[np.intp]:
    """Index of the last entry of each group of equal values in `falling`, (n,) sorted."""
    return np.flatnonzero(np.append(falling[1:] != falling[:-1], True))


def in_blocks(metric: Callable[..., Floats], *arrays: NDArray[np.number]) -> Floats:
    """`metric(*arrays)` in double precision, a few rows at a time; all arrays and the answer share their rows."""
    rows = max(1, BLOCK // max(1, arrays[0][0].size))
    starts = range(0, len(arrays[0]), rows)
    return np.concatenate(
        [metric(*(array[start : start + rows].astype(np.float64, copy=False) for array in arrays)) for start in starts]
    )


def auroc(tp: Floats, fp: Floats) -> Floats:
    """(...) area under the ROC curve, trapezoids: a tie between the classes counts one half."""
    left_tp, left_fp = _before(tp), _before(fp)
    area = ((fp - left_fp) * (tp + left_tp)).sum(axis=-1) / 2
    return ratio(area, tp[..., -1] * fp[..., -1], empty=np.nan)


def average_precision(tp: Floats, fp: Floats) -> Floats:
    """(...) sum of precision times gain in recall: steps, not trapezoids."""
    total = np.where(fp[..., -1] > 0, tp[..., -1], 0)
    return ratio(((tp - _before(tp)) * ratio(tp, tp + fp, empty=0.0)).sum(axis=-1), total, empty=np.nan)


def least_average_precision(tp: Floats, fp: Floats) -> Floats:
    """(...) the lowest `average_precision` that entries of no ties can have which make these columns.

    All normal entries of a column come before its abnormal ones, and these one by one: of m after t others and f
    normal ones the precisions are (t + i) / (t + i + f), i = 1 ... m.
    """
    found = (tp - _before(tp)) - fp * (digamma(tp + fp + 1) - digamma(_before(tp) + fp + 1))
    return ratio(found.sum(axis=-1), np.where(fp[..., -1] > 0, tp[..., -1], 0), empty=np.nan)


def fpr_at_tpr(tp: Floats, fp: Floats, tpr: float) -> Floats:
    """(...) false positive rate at the first column that finds a share of at least `tpr`."""
    enough = ratio(tp, tp[..., -1:], empty=0.0) >= tpr
    first = np.argmax(enough, axis=-1)[..., None]
    flagged = np.take_along_axis(fp, first, axis=-1)[..., 0]
    return ratio(flagged, np.where(tp[..., -1] > 0, fp[..., -1], 0), empty=np.nan)


def dice(tp: Floats, fp: Floats, lesion: Floats) -> Floats:
    """(...) overlap 2 TP / (flagged + lesion), elementwise; nan where there is no lesion."""
    return np.where(lesion > 0, ratio(2 * tp, tp + fp + lesion, empty=np.nan), np.nan)


def area_up_to(x: Floats, y: Floats, limit: float) -> Floats:
    """(...) mean height, from x = 0 to `limit`, of straight lines through (0, 0) and the points (x, y); y <= 1."""
    x0, y0 = _before(x), _before(y)
    width = np.clip(x, None, limit) - np.clip(x0, None, limit)
    height = y0 + (y - y0) * ratio(width, x - x0, empty=0.0)  # on the line, where it leaves the strip
    mean = (width * (y0 + height)).sum(axis=-1) / (2 * limit)
    return np.asarray(np.minimum(mean, 1.0))  # rounding must not pass 1


def ratio(numerator: Floats, denominator: Floats, *, empty: float) -> Floats:
    """The quotient, elementwise; `empty` where there is nothing to divide by."""
    answer = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), empty)
    np.divide(numerator, denominator, out=answer, where=denominator != 0)
    return answer


def _before(cumulated: Floats) -> Floats:
    shifted = np.zeros_like(cumulated)
    shifted[..., 1:] = cumulated[..., :-1]
    return shifted
