"""Does the map light up where the lesion is? Pixels, regions, and findings.

The pooled pixel metrics here are exact and sort all pixels; `pixel_counts` holds their binned siblings, for
bootstraps and for more pixels than fit.

A pixel is positive where its map is strictly above the threshold, in the search and in the use.
Regions touch through corners (8-connected, 26 in volumes).
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from salus.metrics import curves

Map = NDArray[np.floating]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

FPR_LIMIT = 0.3  # of AUPRO
SHARE = 0.10  # of a finding, above which it is hit


def pixel_threshold(maps: Iterable[Map], *, false_alarms: float = 0.05) -> float:
    """The smallest value of healthy pixels that at most a share of `false_alarms` of them lie above.

    The ceil((1 - a) n)-th smallest of all n pixels: an order statistic, never interpolated, so that the
    promise holds exactly, with ties and without.

    Args:
        maps: of healthy images that no test uses, >= 0, any shapes. For a share of the foreground hand in the
            foreground's pixels only; the background of a brain MRI halves the share otherwise.
        false_alarms: a, the share allowed, in [0, 1).

    Returns:
        A value of the maps. Positive means strictly above it.

    Raises:
        ValueError: no pixel, a pixel is nan or infinite, or `false_alarms` lies outside [0, 1).
    """
    if not 0 <= false_alarms < 1:
        raise ValueError(f"need false_alarms in [0, 1), got {false_alarms}")
    pool = np.concatenate([np.ravel(checked(a)) for a in maps] or [np.empty(0)])
    if not pool.size:
        raise ValueError("need at least one healthy pixel, got none")
    allowed = math.floor(round(false_alarms * pool.size, 6))  # 0.07 * 100 is 7.000000000000001
    return float(np.partition(pool, pool.size - allowed - 1)[pool.size - allowed - 1])


def pixel_ap(maps: Sequence[Map], masks: Sequence[Mask]) -> float:
    """Average precision over all pixels of all images as one list.

    Chance is the share of lesion pixels, so the value depends on whether normal images are among `maps`: say so.

    Args:
        maps: one an image, higher is more abnormal; sizes may differ between images.
        masks: True inside a lesion, each of its map's shape; all False for a normal image.

    Returns:
        A share in [0, 1]; higher is better.

    Raises:
        ValueError: shapes differ, a pixel is nan or infinite, or lesion or healthy pixels are missing.
    """
    tp, fp, _ = _pooled(maps, masks)
    return float(curves.average_precision(tp, fp))


def pixel_auroc(maps: Sequence[Map], masks: Sequence[Mask]) -> float:
    """AUROC over the same list as `pixel_ap`. It saturates near 1 where lesions are rare: prefer `pixel_ap`.

    Args:
        maps: one an image, higher is more abnormal; sizes may differ between images.
        masks: True inside a lesion, each of its map's shape; all False for a normal image.

    Returns:
        A share in [0, 1]; 0.5 is chance.

    Raises:
        ValueError: shapes differ, a pixel is nan or infinite, or lesion or healthy pixels are missing.
    """
    tp, fp, _ = _pooled(maps, masks)
    return float(curves.auroc(tp, fp))


def best_dice(maps: Sequence[Map], masks: Sequence[Mask]) -> tuple[float, float]:
    """Pooled Dice at the one threshold that suits these test masks best: an upper bound, marked oracle.

    Args:
        maps: one an image, higher is more abnormal; sizes may differ between images.
        masks: True inside a lesion, each of its map's shape; all False for a normal image.

    Returns:
        The Dice in (0, 1], and the highest threshold that gives it to pixels strictly above.

    Raises:
        ValueError: shapes differ, a pixel is nan or infinite, or lesion or healthy pixels are missing.

    Source: the best Dice of MedIAnomaly (arXiv:2404.04518), whose grid of 201 quantiles misses lesions
    rarer than 0.5 % of the pixels; here every distinct value is tried.
    """
    tp, fp, values = _pooled(maps, masks)
    overlap = curves.dice(tp, fp, tp[-1:])
    best = int(np.argmax(overlap))
    below = values[best + 1] if best + 1 < len(values) else np.nextafter(values[best], -np.inf)
    return float(overlap[best]), float(below)


def dice(maps: Sequence[Map], masks: Sequence[Mask], threshold: float) -> float:
    """Pooled Dice of the pixels strictly above `threshold`: the honest number if healthy images chose it.

    Args:
        maps: one an image, higher is more abnormal; sizes may differ between images.
        masks: True inside a lesion, each of its map's shape; all False for a normal image.
        threshold: one for all images, such as `pixel_threshold` gives.

    Returns:
        A share in [0, 1]; higher is better.

    Raises:
        ValueError: shapes differ, a pixel is nan or infinite, or no image has a lesion.
    """
    hit, flagged, lesion = 0, 0, 0
    for a, mask in zip(maps, masks, strict=True):
        positive = _above(checked(a, mask), threshold)
        hit += int((positive & mask).sum())
        flagged += int(positive.sum())
        lesion += int(mask.sum())
    if not lesion:
        raise ValueError("need lesion pixels, got none")
    return 2 * hit / (flagged + lesion)


def aupro(maps: Sequence[Map], masks: Sequence[Mask]) -> float:
    """Mean covered share of the lesion regions, over pixel false positive rates from 0 to 0.3, divided by 0.3.

    Each connected region counts the same, large or small. A point of the curve stands at each distinct
    value of the maps; straight lines join them, from (0, 0), and the last is cut at 0.3. A map that says
    nothing gets 0.15.

    Args:
        maps: one an image, higher is more abnormal; sizes may differ between images.
        masks: True inside a lesion, each of its map's shape; all False for a normal image. All pixels outside
            lesions, of abnormal images too, are negatives.

    Returns:
        A share in [0, 1]; higher is better.

    Raises:
        ValueError: shapes differ, a pixel is nan or infinite, or lesion or healthy pixels are missing.

    Source: Bergmann et al. 2021, doi:10.1007/s11263-020-01400-4.
    """
    _, fp, values = _pooled(maps, masks)
    rising = np.ascontiguousarray(values[::-1])  # once: searching a reversed view copies it
    covered, regions = np.zeros(len(values)), 0
    for a, mask in zip(maps, masks, strict=True):
        share, count = region_shares(mask)
        np.add.at(covered, _columns(rising, a[mask]), share)
        regions += count
    return float(curves.area_up_to(fp / fp[-1], np.cumsum(covered) / regions, FPR_LIMIT))


def is_hit(a: Map, inside: Mask, threshold: float, *, share: float = SHARE) -> bool:
    """Whether more than `share` of a finding lies strictly above `threshold`.

    Args:
        a: the map.
        inside: the same shape, True inside the finding; rasterised, never interpolated.
        threshold: one for all images, such as `pixel_threshold` gives.
        share: of the finding's pixels, in [0, 1). A tenth: boxes of large findings are mostly normal tissue.

    Raises:
        ValueError: shapes differ, a pixel is nan or infinite, or the finding is empty.
    """
    return bool(np.count_nonzero(_above(checked(a, inside), threshold) & inside) > share * size_of(inside))


def hit_rate(maps: Sequence[Map], insides: Sequence[Mask], threshold: float, *, share: float = SHARE) -> float:
    """Share of findings that are hit, see `is_hit`. A map positive everywhere hits all: state the false alarms.

    Args:
        maps: one a finding; an image with two findings appears twice.
        insides: one a finding, each of its map's shape.
        threshold: one for all images, such as `pixel_threshold` gives.
        share: of a finding's pixels, in [0, 1).

    Returns:
        A share in [0, 1]; higher is better.

    Raises:
        ValueError: no finding, or as for `is_hit`.
    """
    hits = [is_hit(a, inside, threshold, share=share) for a, inside in zip(maps, insides, strict=True)]
    if not hits:
        raise ValueError("need at least one finding, got none")
    return float(np.mean(hits))


def checked(a: Map, mask: Mask | None = None) -> Map:
    """The map itself, once it is known to be finite and its mask to be boolean and of its shape."""
    if mask is not None and (mask.shape != a.shape or mask.dtype != np.bool_):
        raise ValueError(f"need a boolean mask of the map's shape {a.shape}, got {mask.dtype} {mask.shape}")
    if not np.isfinite(a).all():
        raise ValueError(f"need finite maps, got nan or infinity in one of shape {a.shape}")
    return a


def region_shares(mask: Mask) -> tuple[Floats, int]:
    """For each True pixel, in order, one over the size of its region; and how many regions there are."""
    label, regions = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    own = label[mask]
    return 1 / np.bincount(own, minlength=1)[own], int(regions)


def _pooled(maps: Sequence[Map], masks: Sequence[Mask]) -> tuple[Floats, Floats, Map]:
    """(k,) lesion and (k,) healthy pixels at or above each of the (k,) distinct values, falling."""
    values = [np.ravel(checked(a, mask)) for a, mask in zip(maps, masks, strict=True)]
    value = np.concatenate(values or [np.empty(0)])
    truth = np.concatenate([np.ravel(mask) for mask in masks] or [np.empty(0, dtype=bool)])
    if (found := int(truth.sum())) in (0, truth.size):
        raise ValueError(f"need lesion and healthy pixels, got {found} lesion pixels of {truth.size}")
    falling = np.sort(value)[::-1]  # plain sorting is ten times faster than argsort
    ends = curves.tie_ends(falling)
    distinct = falling[ends]
    found_at = _columns(np.ascontiguousarray(distinct[::-1]), value[truth])
    tp = np.cumsum(np.bincount(found_at, minlength=len(distinct))).astype(np.float64)
    return tp, ends + 1 - tp, distinct


def _columns(rising: Map, pixels: Map) -> NDArray[np.intp]:
    """Where each of the pixels stands in the distinct values once these fall."""
    return np.asarray(len(rising) - 1 - np.searchsorted(rising, pixels))


def _above(a: Map, threshold: float) -> Mask:
    # A plain float would be rounded to a float32 map's precision first, and ties would move.
    return np.asarray(a > np.float64(threshold))


def size_of(inside: NDArray[np.generic]) -> int:
    """Pixels of a finding, at least one."""
    if not (size := int(np.count_nonzero(inside))):
        raise ValueError("need a finding of at least one pixel, got an empty mask")
    return size
