"""Residuals: how far each pixel is from its restoration."""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, validate_call
from torch import Tensor

from salus.scores.base import Reduction, Score
from salus.scores.clahe import clahe

Sign = Literal["both", "bright", "dark"]


def of_sign(difference: Tensor, sign: Sign) -> Tensor:
    """|d|; for "bright" d where the image is brighter than restored, for "dark" -d where it is darker, 0 elsewhere."""
    if sign == "both":
        return difference.abs()
    return (difference if sign == "bright" else -difference).clamp(min=0)


class Difference(Score):
    """What `Residual` and `Smoothed` can do alike: which differences count, of which pictures, and where.

    Args:
        name: without what is said here.
        sign: "both", or where findings are known to be bright (on FLAIR, say) or dark, these alone.
        equalised: whether the two pictures' contrast is equalised first (CLAHE), as equation 5's first factor is.
        foreground: whether the map is 0 where the image is, as around a brain that was cut out; what is black in the
            image, such as a hole, is then never found.
        image: see `Score`.
    """

    def __init__(self, name: str, sign: Sign, equalised: bool, foreground: bool, image: Reduction) -> None:
        said = {f"-{sign}": sign != "both", "-equalised": equalised, "-foreground": foreground}
        super().__init__(name + "".join(text for text, unusual in said.items() if unusual), image)
        self.sign, self.equalised, self.foreground = sign, equalised, foreground

    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        first, second = clahe(torch.cat([x, restored])).chunk(2) if self.equalised else (x, restored)
        anomaly = of_sign(self.blurred(first - second), self.sign)
        return anomaly * (x > 0) if self.foreground else anomaly

    def blurred(self, difference: Tensor) -> Tensor:
        """The difference, (B, 1, H, W), before its sign is dropped."""
        return difference


class Residual(Difference):
    """|x - restored|.

    Args:
        sign, equalised, foreground: see `Difference`.
        image: see `Score`.
    """

    @validate_call
    def __init__(
        self, *, sign: Sign = "both", equalised: bool = False, foreground: bool = False, image: Reduction = "mean"
    ) -> None:
        super().__init__("residual", sign, equalised, foreground, image)


class Squared(Score):
    """(x - restored)^2 on [0, 1]; a quarter of the values Cai et al. print, who work on [-1, 1]."""

    @validate_call
    def __init__(self, *, image: Reduction = "mean") -> None:
        super().__init__("squared", image)

    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        return (x - restored).square()


class Smoothed(Difference):
    """|G(x - restored)|, G a Gaussian: the residual is smoothed *before* its sign is dropped.

    Noise, and the light and dark rims along an edge that is restored a little beside its place, then cancel; a region
    that is brighter or darker as a whole stays. Ours; how it was chosen: docs/fast-preset.md.

    Args:
        sigma: of the Gaussian, pixels of the network's grid; 0 smooths nothing.
        sign, equalised, foreground: see `Difference`.
        image: see `Score`.
    """

    @validate_call
    def __init__(
        self,
        *,
        sigma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0,
        sign: Sign = "both",
        equalised: bool = False,
        foreground: bool = False,
        image: Reduction = "mean",
    ) -> None:
        super().__init__(f"smoothed-{sigma:g}", sign, equalised, foreground, image)
        self.sigma = sigma

    def blurred(self, difference: Tensor) -> Tensor:
        return gaussian(difference, self.sigma)


def gaussian(maps: Tensor, sigma: float) -> Tensor:
    """Blur (B, 1, H, W) as `scipy.ndimage.gaussian_filter` does: symmetric border, cut at 4 sigma; 0 leaves it."""
    if sigma == 0:
        return maps
    radius = math.floor(4 * sigma + 0.5)
    at = torch.arange(-radius, radius + 1, device=maps.device, dtype=torch.float32)
    weights = torch.exp(-0.5 * (at / sigma) ** 2)
    weights = (weights / weights.sum()).to(maps.dtype)
    for axis in (2, 3):
        size = maps.shape[axis]
        # scipy's "reflect" repeats the edge pixel and goes on folding where the picture is smaller than the kernel.
        index = torch.arange(-radius, size + radius, device=maps.device) % (2 * size)
        index = torch.where(index >= size, 2 * size - 1 - index, index)
        wide = maps.index_select(axis, index)
        kernel = weights.view(1, 1, -1, 1) if axis == 2 else weights.view(1, 1, 1, -1)
        with torch.autocast(maps.device.type, enabled=False):
            maps = F.conv2d(wide, kernel)
    return maps
