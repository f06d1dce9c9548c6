"""Rules that published tables follow, kept to the letter to compare with them; `detection` has the sound ones.

Each bears its source's name, and says where it differs from the rest of `metrics`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from salus.metrics import curves
from salus.metrics.detection import CAP, scale_free_false_positives
from salus.metrics.localisation import Map, Mask, checked, is_hit, size_of


def threshold_grid_ra2024(maps: Iterable[Map], *, false_alarms: float = 0.05) -> float:
    """The first thousandth that on average at most a share of `false_alarms` of an image lies above; to compare only.

    Of the grid 0, 0.001 ... 0.999. Each image counts the same, background included. Where several thousandths
    flag equally many pixels, the published walk may end at any of them; this is the smallest.

    Args:
        maps: of healthy images that no test uses, any shapes.
        false_alarms: the share allowed, in [0, 1).

    Returns:
        k / 1000. The search takes pixels strictly above it, the evaluation (`hit_ra2024`) those at it too.

    Raises:
        ValueError: no image, one without pixels, a pixel is nan or infinite, `false_alarms` lies outside [0, 1), or
            too many pixels lie above the whole grid.

    Source: Bercea et al., arXiv:2401.10637, as the public code computes it. RA's maps are of order 0.01: a coarse
    grid for them. `pixel_threshold` is the exact rule.
    """
    if not 0 <= false_alarms < 1:
        raise ValueError(f"need false_alarms in [0, 1), got {false_alarms}")
    grid = np.arange(1000) / 1000
    above, images = np.zeros(len(grid)), 0
    for a in maps:
        rising = np.sort(checked(a), axis=None).astype(np.float64)
        if not rising.size:
            raise ValueError("need maps with pixels, got an empty one")
        above += 1 - np.searchsorted(rising, grid, side="right") / rising.size
        images += 1
    if not images:
        raise ValueError("need at least one healthy image, got none")
    allowed = above / images <= false_alarms + 1e-12  # a sum of shares is not exact
    if not allowed.any():
        raise ValueError(f"a share of {above[-1] / images:.3g} of the pixels lies above the whole grid: scale the maps")
    return float(grid[np.argmax(allowed)])


def threshold_uad_imag(maps: Iterable[Map], *, false_alarms: float) -> float:
    """The last point of the ROC curve, thresholds falling, with a false positive rate below `false_alarms`.

    The smallest value that less than this share of the healthy pixels reach: they count at the threshold, too,
    unlike with `pixel_threshold`. All pixels are held in memory.

    Args:
        maps: foreground pixels of healthy validation cases, any shapes.
        false_alarms: the target, in (0, 1).

    Returns:
        A value of the maps; positive means at or above it. Infinity, the first point of the curve, where even the
        largest value is reached too often.

    Raises:
        ValueError: no pixel, a pixel is nan or infinite, or `false_alarms` lies outside (0, 1).

    Source: the benchmark UAD-IMAG, 2025.
    """
    if not 0 < false_alarms < 1:
        raise ValueError(f"need false_alarms in (0, 1), got {false_alarms}")
    rising = np.sort(np.concatenate([np.ravel(checked(a)) for a in maps] or [np.empty(0)]))
    if not rising.size:
        raise ValueError("need at least one healthy pixel, got none")
    reached = math.ceil(round(false_alarms * rising.size, 6)) - 1  # the most that is still below the target
    above = rising[rising > rising[-reached - 1]]
    return float(above[0]) if above.size else math.inf


class BoxHit(NamedTuple):
    """What `hit_ra2024` says of one finding."""

    hit: bool
    false_positives: int
    precision: float
    recall: float
    f1: float


def hit_ra2024(a: Map, inside: NDArray[np.generic], outside: NDArray[np.generic], threshold: float) -> BoxHit:
    """Hit, false positives and F1 of one annotated box, as the RA tables were computed; for comparison only.

    "False positives" are no regions but a ratio of summed map values, with a floor that depends on the
    map's scale: maps of small values look better. Do not compare maps of different scale by it.

    Args:
        a: (rows, columns) the map; values at or above `threshold` are kept, not binarised.
        inside: the same shape, in [0, 1], the finding; a fractional rim counts as the published code counts it.
        outside: the same shape, in [0, 1], pixels of the image known to be healthy.
        threshold: one for all images.

    Returns:
        Whether more than 10 % of the finding is kept, the false positives, and precision, recall and F1 of
        this one finding. Averages over findings are plain means.

    Raises:
        ValueError: shapes differ, a pixel is nan or infinite, or the finding is empty.

    Source: Bercea et al., arXiv:2401.10637, Tables 1 and 2; rewritten from the published computation.
    """
    if not a.shape == inside.shape == outside.shape:
        raise ValueError(f"need masks of the map's shape {a.shape}, got {inside.shape} and {outside.shape}")
    kept = np.where(checked(a) >= np.float64(threshold), a, 0).astype(np.float64)
    within, without = kept * inside.astype(np.float64), kept * outside.astype(np.float64)
    hit = bool(np.count_nonzero(within) > 0.10 * size_of(inside))
    false_positives = math.floor(without.sum() / max(within.sum(), 1.0))
    return _box_hit(hit, false_positives)


def hit_thor2024(a: Map, inside: NDArray[np.generic], outside: NDArray[np.generic], threshold: float) -> BoxHit:
    """`hit_ra2024` with at most ten false positives a box, so that a hit gets an F1 of at least 2 / 12.

    Arguments and errors as for `hit_ra2024`; to compare with published wrist results only.

    Source: the published computation of THOR, Bercea et al., MICCAI 2024.
    """
    seen = hit_ra2024(a, inside, outside, threshold)
    return _box_hit(seen.hit, min(seen.false_positives, CAP))


def hit_scale_free(a: Map, inside: Mask, outside: Mask, threshold: float) -> BoxHit:
    """`hit_ra2024` without its defects: `is_hit`, and the false positives of `scale_free_false_positives`.

    Arguments and errors as for these two.
    """
    return _box_hit(is_hit(a, inside, threshold), scale_free_false_positives(a, inside, outside, threshold))


class ClassAverages(NamedTuple):
    """What `class_averages` says: never one of the averages without the numbers behind it."""

    n: dict[str, int]
    mean: dict[str, float]
    micro: float
    macro: float


def class_averages(values: Mapping[str, Sequence[float]]) -> ClassAverages:
    """Means of one value a finding (hit, precision, F1): of each class, of all findings, and of the classes.

    Args:
        values: class to the values of its findings; a class may have none.

    Returns:
        N and mean of each class, nan where it has no finding; the micro average, in which each finding counts the
        same; and the macro average, in which each class with findings does.

    Raises:
        ValueError: no class has a finding, or a value is nan or infinite.

    Source: "Total" and "Average" in Tables 1 and 2 of Bercea et al., arXiv:2401.10637, are micro averages.
    """
    known = {name: np.asarray(own, dtype=np.float64) for name, own in values.items() if len(own)}
    if not known:
        raise ValueError(f"need at least one finding, got none in {len(values)} classes")
    together = np.concatenate(list(known.values()))
    if not np.isfinite(together).all():
        raise ValueError("need finite values, got nan or infinity")
    mean = {name: float(known[name].mean()) if name in known else math.nan for name in values}
    macro = float(np.mean([mean[name] for name in known]))
    return ClassAverages({name: len(own) for name, own in values.items()}, mean, float(together.mean()), macro)


def best_dice_medianomaly(maps: Iterable[Map], masks: Iterable[Mask]) -> tuple[float, float]:
    """`best_dice` on MedIAnomaly's grid, every floor(n / 200)-th of the n sorted pixels; oracle, to compare only.

    No threshold stands between the 99.5th percentile and the last few pixels, so lesions rarer than 0.5 % of the
    pixels get too low a value. All pixels are held in memory.

    Args:
        maps: one an image, higher is more abnormal; sizes may differ between images.
        masks: True inside a lesion, each of its map's shape; all False for a normal image.

    Returns:
        The Dice in [0, 1], and the lowest threshold that gives it to pixels strictly above.

    Raises:
        ValueError: shapes differ, a pixel is nan or infinite, lesion pixels are missing, or there are fewer than 200.

    Source: MedIAnomaly, arXiv:2404.04518, as the public code computes it.
    """
    pairs = [(np.ravel(checked(a, mask)), np.ravel(mask)) for a, mask in zip(maps, masks, strict=True)]
    rising = np.sort(np.concatenate([a for a, _ in pairs] or [np.empty(0)]))
    lesion = np.sort(np.concatenate([a[mask] for a, mask in pairs] or [np.empty(0)]))
    if rising.size < 200 or not lesion.size:
        raise ValueError(f"need lesion pixels and 200 pixels in all, got {lesion.size} and {rising.size}")
    grid = rising[:: rising.size // 200]
    tp = lesion.size - np.searchsorted(lesion, grid, side="right").astype(np.float64)
    flagged = rising.size - np.searchsorted(rising, grid, side="right").astype(np.float64)
    overlap = curves.dice(tp, flagged - tp, np.array([float(lesion.size)]))
    best = int(np.argmax(overlap))
    return float(overlap[best]), float(grid[best])


def _box_hit(hit: bool, false_positives: int) -> BoxHit:
    precision, recall = hit / max(hit + false_positives, 1), float(hit)
    return BoxHit(hit, false_positives, precision, recall, 2 * precision * recall / (precision + recall + 1e-8))
