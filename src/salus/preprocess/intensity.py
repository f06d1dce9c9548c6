"""Stored values to float32 in [0, 1], each over the whole picture or volume: slices of one volume share a scale."""

from dataclasses import replace

import numpy as np

from salus.core import Image
from salus.core.errors import ImageError


def min_max(image: Image) -> Image:
    """Smallest value to 0, largest to 1.

    Raises:
        ImageError: the image is constant.
    """
    return _scaled(image, float(image.array.min()), float(image.array.max()), "minimum and maximum")


def percentile(image: Image, lower: float = 0.5, upper: float = 99.5, *, foreground: bool = False) -> Image:
    """Percentile `lower` to 0, `upper` to 1 (both in [0, 100]), what lies beyond clipped.

    Args:
        foreground: percentiles of what is above the image's minimum alone: a background that fills more or less of
            the picture does not change the scale of what is in it.

    Raises:
        ImageError: both percentiles are the same value, as in a constant image.
    """
    values = image.array[image.array > image.array.min()] if foreground else image.array
    low, high = np.percentile(values if values.size else image.array, [lower, upper])
    return _scaled(image, float(low), float(high), f"percentiles {lower:g} and {upper:g}")


def z_score(image: Image, clip: float = 3.0) -> Image:
    """The mean to 0.5; `clip` standard deviations below it to 0, above it to 1, what lies beyond clipped.

    Raises:
        ImageError: the image is constant.
    """
    mean, deviation = (float(f(image.array, dtype=np.float64)) for f in (np.mean, np.std))
    if image.array.min() == image.array.max():
        deviation = 0.0  # the mean of many equal values is off by rounding
    return _scaled(image, mean - clip * deviation, mean + clip * deviation, "mean +- standard deviations")


def by_depth(image: Image) -> Image:
    """0 to 0, the largest value the stored bits can hold (255, 65,535) to 1.

    Raises:
        ImageError: stored as floating point or scaled, negative or larger than its bits allow, or constant.
    """
    largest = 2.0**image.depth - 1
    low, high = float(image.array.min()), float(image.array.max())
    if image.depth == 0:
        raise ImageError(f"{_name(image)}values are stored as floating point and have no bit depth to divide by.")
    if low < 0 or high > largest:
        raise ImageError(f"{_name(image)}values {low:g} to {high:g} do not fit {image.depth} bits without sign.")
    if low == high:
        raise ImageError(f"{_name(image)}every value is {low:g}: a constant image cannot be scaled.")
    return _scaled(image, 0.0, largest, "depth")


def _scaled(image: Image, low: float, high: float, what: str) -> Image:
    if not high > low:
        raise ImageError(f"{_name(image)}{what} are both {low:g}: there is nothing to scale between them.")
    scaled = np.subtract(image.array, low, dtype=np.float64)  # float32 could overflow between its extremes
    scaled /= high - low
    return replace(image, array=np.clip(scaled, 0.0, 1.0).astype(np.float32), depth=0)


def _name(image: Image) -> str:
    return f"{image.origin.files[0]}: " if image.origin.files else ""
