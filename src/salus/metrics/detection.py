"""Were the findings detected? Sound rules to rely on; `published` has those of the papers.

Siblings of `localisation`, and like there a pixel is positive strictly above the threshold and regions touch
through corners.

Maps come one at a time and none is kept, unless said otherwise. A finding is a mask, True inside; `box_to_grid`
makes it of a box.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from salus.metrics.localisation import SHARE, Map, Mask, checked, is_hit

Floats = NDArray[np.float64]

FALSE_ALARMS = (0.005, 0.01, 0.02, 0.05, 0.10)  # of the hit-rate curve
FROC_RATES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)  # false regions an image
CAP = 10  # false positives of one finding
MARGIN = 2  # pixels around findings that are neither healthy nor ill: boxes are loose


def hit_rate_curve(maps: Iterable[Map], insides: Iterable[Mask], thresholds: Sequence[float]) -> Floats:
    """`hit_rate` at several thresholds.

    Args:
        maps: one a finding; an image with two findings appears twice.
        insides: one a finding, each of its map's shape.
        thresholds: (k,) such as `pixel_threshold` gives for each of `FALSE_ALARMS`.

    Returns:
        (k,) shares in [0, 1]; higher is better.

    Raises:
        ValueError: no finding, or as for `is_hit`.
    """
    hits = [[is_hit(a, inside, t) for t in thresholds] for a, inside in zip(maps, insides, strict=True)]
    if not hits:
        raise ValueError("need at least one finding, got none")
    return np.asarray(np.mean(hits, axis=0))


def hit_rate_area(rates: Sequence[float] | Floats, false_alarms: Sequence[float] = FALSE_ALARMS) -> float:
    """Mean height of the hit-rate curve over the logarithm of the false alarms.

    Args:
        rates: (k,) of `hit_rate_curve`, joined by straight lines on the log axis.
        false_alarms: (k,) shares of healthy pixels, rising, above 0.

    Returns:
        A share in [0, 1]; higher is better.

    Raises:
        ValueError: not two points or more, or false alarms that do not rise from above 0.
    """
    if len(rates) != len(false_alarms) or len(rates) < 2:
        raise ValueError(f"need as many rates as false alarms, two or more, got {len(rates)} and {len(false_alarms)}")
    if min(false_alarms) <= 0 or (np.diff(false_alarms) <= 0).any():
        raise ValueError(f"need false alarms that rise from above 0, got {tuple(false_alarms)}")
    x = np.log(false_alarms)
    return float(np.trapezoid(rates, x) / (x[-1] - x[0]))


class ChanceCorrected(NamedTuple):
    """What `chance_corrected_hit_rate` says, with the two rates it is made of."""

    value: float
    hit_rate: float
    chance: float


def chance_corrected_hit_rate(maps: Iterable[Map], insides: Iterable[Mask], threshold: float) -> ChanceCorrected:
    """How much of the way from chance to all findings the hit rate goes, (h - h0) / (1 - h0).

    Chance h0 is the hit rate of the same maps rolled by every offset along all axes, what leaves one side entering on
    the other: number, size and texture of the positive regions stay, their place does not.

    Args:
        maps: one a finding; an image with two findings appears twice.
        insides: one a finding, each of its map's shape.
        threshold: one for all images, such as `pixel_threshold` gives.

    Returns:
        The corrected rate, at most 1, 0 for chance, negative below; nan where chance hits everything. Beside it
        the hit rate and chance, in [0, 1].

    Raises:
        ValueError: no finding, or as for `is_hit`.
    """
    hits, by_chance = [], []
    for a, inside in zip(maps, insides, strict=True):
        hits.append(is_hit(a, inside, threshold))
        # How many positive pixels lie in the finding at each offset: a correlation around the edges.
        positive = fft.rfftn((a > np.float64(threshold)).astype(np.float64))
        covered = fft.irfftn(positive * np.conj(fft.rfftn(inside.astype(np.float64))), s=a.shape)
        by_chance.append(np.mean(np.round(covered) > SHARE * np.count_nonzero(inside)))
    if not hits:
        raise ValueError("need at least one finding, got none")
    rate, chance = float(np.mean(hits)), float(np.mean(by_chance))
    return ChanceCorrected((rate - chance) / (1 - chance) if chance < 1 else math.nan, rate, chance)


def false_regions(maps: Iterable[Map], findings: Iterable[Mask], threshold: float, *, min_area: int) -> float:
    """How many positive regions an image has that share no pixel with a finding.

    Args:
        maps: one an image; on healthy images all regions count.
        findings: one an image, True inside any finding of it, each of its map's shape.
        threshold: one for all images, such as `pixel_threshold` gives.
        min_area: pixels a region has at least, 1 or more; smaller ones are ignored.

    Returns:
        Regions an image, 0 or more; lower is better.

    Raises:
        ValueError: no image, shapes differ, a pixel is nan or infinite, or `min_area` is below 1.
    """
    if min_area < 1:
        raise ValueError(f"need regions of at least one pixel, got min_area {min_area}")
    false, images = 0, 0
    for a, inside in zip(maps, findings, strict=True):
        label, _ = _regions(checked(a, inside), threshold)
        area = np.bincount(label.ravel(), minlength=1)
        area[label[inside]] = area[0] = 0  # touched; and what is no region
        false += int((area >= min_area).sum())
        images += 1
    if not images:
        raise ValueError("need at least one image, got none")
    return false / images


def froc(maps: Iterable[Map], findings: Iterable[Sequence[Mask]], threshold: float) -> Floats:
    """Share of the findings found where an image has at most 1/8, 1/4, 1/2, 1, 2, 4 and 8 false regions on average.

    The regions above `threshold` are the detections, each scored by its maximum. A finding is found by any region
    that overlaps it; a region that overlaps none is false. Scores that tie are accepted together and nothing is
    interpolated: each value is one that a threshold on the score reaches.

    Args:
        maps: one an image, healthy ones too.
        findings: one sequence of masks an image, each of its map's shape; empty for a healthy image. Leave out
            images of which only is known that they are abnormal.
        threshold: what makes regions, one for all images, such as `pixel_threshold` gives.

    Returns:
        (7,) shares in [0, 1] at `FROC_RATES`; higher is better.

    Raises:
        ValueError: no finding, an empty one, shapes differ, or a pixel is nan or infinite.

    Source: the seven rates are those of LUNA16, Setio et al. 2017, doi:10.1016/j.media.2017.06.015.
    """
    return froc_of(froc_scores(a, masks, threshold) for a, masks in zip(maps, findings, strict=True))


class FrocScores(NamedTuple):
    """What one image adds to the curve of `froc`; it is small, so many images can be kept.

    Attributes:
        found: for each finding the score of its best region, -inf where none overlaps it.
        false: the scores of the regions that overlap no finding.
    """

    found: tuple[float, ...]
    false: tuple[float, ...]


def froc_scores(a: Map, masks: Sequence[Mask], threshold: float) -> FrocScores:
    """The regions of one image above a threshold, each scored by its maximum, for `froc_of`.

    Args:
        a: the map.
        masks: one a finding, each of the map's shape; empty for a healthy image.
        threshold: what makes regions, one for all images.

    Raises:
        ValueError: an empty finding, shapes differ, or a pixel is nan or infinite.
    """
    label, count = _regions(checked(a), threshold)
    score = np.append(-np.inf, ndimage.maximum(a, label, np.arange(1, count + 1)))  # of label 0: not found
    hit = np.zeros(count + 1, dtype=bool)
    found = []
    for inside in masks:
        own = label[_finding(a, inside)]
        hit[own] = True
        found.append(float(score[own].max()))
    return FrocScores(tuple(found), tuple(score[1:][~hit[1:]].tolist()))


def froc_of(images: Iterable[FrocScores]) -> Floats:
    """`froc` of images whose regions are known.

    Raises:
        ValueError: no finding.
    """
    parts = list(images)
    found = np.array([score for part in parts for score in part.found])
    false = np.array([score for part in parts for score in part.false])
    if not found.size:
        raise ValueError("need at least one finding, got none")
    falling = np.append(np.sort(false)[::-1], -np.inf)
    # The best false region that a rate no longer allows: what scores above it is accepted.
    first_refused = [falling[min(math.floor(rate * len(parts)), false.size)] for rate in FROC_RATES]
    return np.array([np.mean(found > refused) for refused in first_refused])


def pointing_game(maps: Iterable[Map], findings: Iterable[Mask]) -> float:
    """Share of the images with findings whose highest map value lies in one of them.

    Args:
        maps: one an image. Of several pixels that share the highest value each counts its part, so that a map
            that says nothing gets the share of the image that findings fill.
        findings: one an image, True inside any finding of it, each of its map's shape. All False: no sample.

    Returns:
        A share in [0, 1]; higher is better.

    Raises:
        ValueError: no image with a finding, shapes differ, or a pixel is nan or infinite.

    Source: Zhang et al. 2018, doi:10.1007/s11263-017-1059-x, without their tolerance of 15 pixels.
    """
    shares = []
    for a, inside in zip(maps, findings, strict=True):
        if checked(a, inside)[inside].size:
            shares.append(inside[a == a.max()].mean())
    if not shares:
        raise ValueError("need at least one finding, got none")
    return float(np.mean(shares))


def mass_ratio(a: Map, inside: Mask, outside: Mask) -> float:
    """Share of the map's sum, over a finding and known healthy pixels, that lies in the finding; no threshold.

    Args:
        a: the map, >= 0.
        inside: the same shape, True inside the finding.
        outside: the same shape, True where the image is known to be healthy, of `known_healthy`.

    Returns:
        A share in [0, 1]; higher is better, and a flat map gets the finding's share of the area. nan where the map
        is zero in both.

    Raises:
        ValueError: shapes differ, a pixel is nan, infinite or negative, or the finding is empty.
    """
    within, without = _masses(a, inside, outside)
    return within / (within + without) if within + without else math.nan


def scale_free_false_positives(a: Map, inside: Mask, outside: Mask, threshold: float) -> int:
    """Times that the positive map outside a finding outweighs that inside: the FP of `hit_ra2024` without its scale.

    Args:
        a: the map, >= 0; values strictly above `threshold` are kept, not binarised.
        inside: the same shape, True inside the finding.
        outside: the same shape, True where the image is known to be healthy, of `known_healthy`.
        threshold: one for all images, such as `pixel_threshold` gives.

    Returns:
        The quotient rounded down, 0 to 10; 10 too where only the outside is positive, 0 where nothing is. Map and
        threshold times any factor leave it as it is.

    Raises:
        ValueError: shapes differ, a pixel is nan, infinite or negative, or the finding is empty.
    """
    within, without = _masses(np.where(checked(a) > np.float64(threshold), a, 0), inside, outside)
    if without >= CAP * within:
        return CAP if without else 0
    return math.floor(round(without / within, 9))  # 0.3 / 0.1 is 2.9999999999999996


def box_to_grid(
    box: tuple[float, float, float, float],
    shape: tuple[int, int],
    *,
    offset: tuple[float, float] = (0, 0),
    scale: float = 1,
) -> Mask:
    """The pixels of the working grid whose centres lie in a box of the source; never an interpolated mask.

    Args:
        box: (x, y, width, height) in source pixels, x to the right; it covers rows y to y + height, that one excluded.
        shape: (rows, columns) of the working grid.
        offset: (rows, columns) that padding put before the source, or cropping took away (negative), in source
            pixels.
        scale: working pixels a source pixel, after the offset.

    Returns:
        `shape` mask, True in the box and at least at one pixel: a box that holds no centre keeps the one nearest to
        its own. What lies beyond the grid is cut off.

    Raises:
        ValueError: a side is not above 0 (leave such a box out, with a note), a number is not finite, or no part of
            the box lies on the grid.
    """
    x, y, width, height = box
    if not (np.isfinite([*box, *offset, scale]).all() and min(width, height, scale) > 0):
        raise ValueError(f"need a box with sides above 0 and a scale above 0, got box {box} and scale {scale}")
    first, sides = np.array([y + offset[0], x + offset[1]]), np.array([height, width])
    lower, upper = np.round(scale * first, 9), np.round(scale * (first + sides), 9)
    if (upper <= 0).any() or (lower >= shape).any():
        raise ValueError(f"box {box} lies outside the grid of {shape[0]} x {shape[1]} pixels")
    rows, columns = (np.arange(n) + 0.5 for n in shape)
    mask = np.outer((rows >= lower[0]) & (rows < upper[0]), (columns >= lower[1]) & (columns < upper[1]))
    if not mask.any():
        row, column = np.clip((lower + upper) // 2, 0, np.array(shape) - 1).astype(int)
        mask[row, column] = True
    return mask


def known_healthy(foreground: Mask, findings: Iterable[Mask]) -> Mask:
    """The foreground without any finding and without two pixels around each, corners included.

    Args:
        foreground: (rows, columns) True inside the patient.
        findings: every one of the image, whatever its class, of the same shape; boxes of artefacts too, which are
            neither healthy nor a target.

    Returns:
        Mask of the same shape; all False where nothing is left.

    Raises:
        ValueError: shapes differ.
    """
    ill = np.zeros(foreground.shape, dtype=bool)
    for inside in findings:
        if inside.shape != foreground.shape:
            raise ValueError(f"need masks of the foreground's shape {foreground.shape}, got {inside.shape}")
        ill |= inside
    square = np.ones((2 * MARGIN + 1,) * foreground.ndim, dtype=bool)
    return foreground & ~ndimage.binary_dilation(ill, structure=square)


def _regions(a: Map, threshold: float) -> tuple[NDArray[np.signedinteger], int]:
    label, count = ndimage.label(a > np.float64(threshold), structure=np.ones((3,) * a.ndim))
    return label, int(count)


def _masses(a: Map, inside: Mask, outside: Mask) -> tuple[float, float]:
    if checked(a, outside).min(initial=0) < 0:
        raise ValueError(f"need a map of at least 0 everywhere, got {a.min()}")
    within, without = a[_finding(a, inside)], a[outside]
    return float(within.sum(dtype=np.float64)), float(without.sum(dtype=np.float64))


def _finding(a: Map, inside: Mask) -> Mask:
    if not checked(a, inside)[inside].size:
        raise ValueError("need a finding of at least one pixel, got an empty mask")
    return inside
