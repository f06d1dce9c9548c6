"""From what a file stores to what a network sees: one serialisable recipe, the same in training and in screening."""

from dataclasses import replace
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from salus.core import Image
from salus.core.errors import ImageError
from salus.preprocess.geometry import Plane, crop_border, pad_to_square, reorient, resize
from salus.preprocess.intensity import by_depth, min_max, percentile, z_score

SMALLEST_SIDE = 8  # pixels
LARGEST_RATIO = 8.0  # of the sides' lengths
MOST_VOXELS = 2**31
KINDS = {"mm": "a scan with a place in the patient (mm)", "px": "a bare picture (px)"}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Preparation:
    """How images are prepared. `dataclasses.asdict` gives plain JSON values; `Preparation(**values)` reads them back.

    Values scaled over the whole image -> volumes turned to `plane` -> slices chosen -> empty border cut off, if so
    set -> padded to a square with the minimum -> resized. Where pixels are not square in mm, resized to the right
    proportions and then padded.
    """

    size: Annotated[int, Field(ge=8, le=4096)] = 64  # side of the square output, pixels
    # depth: by stored bits; auto: depth for 8-bit pictures in px, else percentile
    intensity: Literal["auto", "depth", "percentile", "minmax", "zscore"] = "auto"
    lower: Annotated[float, Field(ge=0, le=100)] = 0.5  # percentile that becomes 0
    upper: Annotated[float, Field(ge=0, le=100)] = 99.5  # percentile that becomes 1
    foreground: bool = False  # percentiles of what is above the minimum alone
    border: Literal["keep", "crop"] = "keep"  # crop: outer rows and columns that hold next to nothing
    plane: Plane = "axial"
    slices: Literal["mid", "all"] = "mid"
    unit: Literal["any", "px", "mm"] = "any"  # only such images are accepted; decided by the first training image
    depth: Annotated[int, Field(ge=0)] = 0  # stored bits that are accepted where they scale the values; 0: any

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.lower < self.upper:
            raise ValueError(f"lower must be below upper, got {self.lower:g} and {self.upper:g}")
        return self

    def resolve(self, first: Image) -> "Preparation":
        """The same recipe with what is open decided by the first training image; a model stores only a resolved one."""
        intensity = self.intensity
        if intensity == "auto":
            intensity = "depth" if first.unit == "px" and first.depth == 8 else "percentile"
        return replace(
            self,
            intensity=intensity,
            unit=first.unit if self.unit == "any" else self.unit,
            depth=first.depth if intensity == "depth" and not self.depth else self.depth,
        )

    def __call__(self, image: Image) -> Image:
        """`image` in [0, 1] on the network's grid, still knowing where it is.

        Args:
            image: a picture or volume as read. With intensity 'auto', each image decides for itself.

        Returns:
            (size, size) for a picture, (size, size, n) for a volume, with n = 1 for `slices` "mid" (slice n // 2 of n).

        Raises:
            ImageError: the image does not pass `check`, or its values cannot be scaled.
        """
        self.check(image)
        stack = reorient(self._scaled(image), self.plane)
        if stack.array.ndim == 3 and self.slices == "mid":
            middle = stack.array.shape[2] // 2
            stack = stack.slices(middle, middle + 1)
        return _squared(crop_border(stack) if self.border == "crop" else stack, self.size)

    def check(self, image: Image) -> None:
        """The gate: refuse what cannot be judged, before anything is computed from it.

        Raises:
            ImageError: another kind of image than in training; more than 2**31 voxels; a side of the slices to be seen
                below 8 px, or eight times as long as the other; NaN or infinite values; a constant image.
        """
        name = f"{image.origin.files[0]}: " if image.origin.files else ""
        if image.array.size > MOST_VOXELS:
            raise ImageError(f"{name}{image.array.size:,} voxels; at most {MOST_VOXELS:,} are judged.")
        seen = reorient(image, self.plane)
        rows, columns = seen.array.shape[:2]
        if min(rows, columns) < SMALLEST_SIDE:
            raise ImageError(
                f"{name}{rows:,} x {columns:,} pixels; a picture to be judged has at least {SMALLEST_SIDE} a side."
            )
        lengths = np.array([rows, columns]) * seen.spacing[:2]
        if lengths.max() > LARGEST_RATIO * lengths.min():
            raise ImageError(
                f"{name}{rows:,} x {columns:,} pixels, {lengths.max() / lengths.min():.1f} times as long as wide; "
                f"at most {LARGEST_RATIO:g} is judged. A strip or a line of text?"
            )
        if bad := int(image.array.size - np.isfinite(image.array).sum()):
            raise ImageError(f"{name}{bad:,} of {image.array.size:,} voxels are NaN or infinite.")
        if (low := image.array.min()) == image.array.max():
            raise ImageError(f"{name}every voxel is {low:g}: the image is constant, there is nothing to judge.")
        if self.unit not in ("any", image.unit):
            raise ImageError(f"{name}{KINDS[image.unit]}; expected, as in training, {KINDS[self.unit]}.")
        if self.depth not in (0, image.depth):
            stored = f"{image.depth} bits" if image.depth else "floating point"
            raise ImageError(f"{name}{stored} a value; expected, as in training, {self.depth} bits.")

    def _scaled(self, image: Image) -> Image:
        match self.resolve(image).intensity:
            case "depth":
                return by_depth(image)
            case "percentile":
                return percentile(image, self.lower, self.upper, foreground=self.foreground)
            case "minmax":
                return min_max(image)
            case _:
                return z_score(image)


def _squared(stack: Image, size: int) -> Image:
    lengths = np.array(stack.array.shape[:2]) * stack.spacing[:2]
    if stack.unit == "px" or np.ptp(stack.spacing[:2]) < 0.01 * stack.spacing[:2].min():
        return resize(pad_to_square(stack), (size, size))
    # Thick slices seen from the side: padding voxel by voxel would leave the patient a thin strip.
    rows, columns = np.maximum(1, np.round(size * lengths / lengths.max())).astype(int)
    return pad_to_square(resize(stack, (int(rows), int(columns))))
