"""Residuals: how far each pixel is from its restoration."""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, validate_call
from torch import Tensor

from salus.scores.base import Reduction, Score

Sign = Literal["both", "bright", "dark"]


def of_sign(difference: Tensor, sign: Sign) -> Tensor:
    """|d|; for "bright" d where the image is brighter than restored, for "dark" -d where it is darker, 0 elsewhere."""
    if sign == "both":
        return difference.abs()
    return (difference if sign == "bright" else -difference).clamp(min=0)


def named(name: str, sign: Sign) -> str:
    """The score's name with its sign, where that is not the usual one."""
    return name if sign == "both" else f"{name}-{sign}"


class Residual(Score):
    """|x - restored|.

    Args:
        sign: "both", or where findings are known to be bright (on FLAIR, say) or dark, these alone.
        image: see `Score`.
    """

    @validate_call
    def __init__(self, *, sign: Sign = "both", image: Reduction = "mean") -> None:
        super().__init__(named("residual", sign), image)
        self.sign = sign

    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        return of_sign(x - restored, self.sign)


class Squared(Score):
    """(x - restored)^2 on [0, 1]; a quarter of the values Cai et al. print, who work on [-1, 1]."""

    @validate_call
    def __init__(self, *, image: Reduction = "mean") -> None:
        super().__init__("squared", image)

    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        return (x - restored).square()


class Smoothed(Score):
    """|G(x - restored)|, G a Gaussian: the residual is smoothed *before* its sign is dropped.

    Noise, and the light and dark rims along an edge that is restored a little beside its place, then cancel; a region
    that is brighter or darker as a whole stays. Ours; how it was chosen: docs/fast-preset.md.

    Args:
        sigma: of the Gaussian, pixels of the network's grid; 0 smooths nothing.
        sign: see `Residual`.
        image: see `Score`.
    """

    @validate_call
    def __init__(
        self,
        *,
        sigma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0,
        sign: Sign = "both",
        image: Reduction = "mean",
    ) -> None:
        super().__init__(named(f"smoothed-{sigma:g}", sign), image)
        self.sigma, self.sign = sigma, sign

    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        return of_sign(gaussian(x - restored, self.sigma), self.sign)


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
