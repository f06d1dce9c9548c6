"""Maps of lost similarity: structural (SSIM) and as trained networks see it."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt, validate_call
from torch import Tensor

from salus.scores.base import Reduction, Score
from salus.scores.lpips import LPIPS

WINDOW, SIGMA = 11, 1.5  # Wang et al.'s Gaussian window, pixels


class SSIM(Score):
    """1 - SSIM at each pixel, in [0, 2]; Gaussian window of 11 pixels, sigma 1.5, K .01 and .03, data range 1.

    The pictures are mirrored at their borders, so that the map lies on their grid; MedIAnomaly enlarges the map of the
    inner part instead, which shifts it by up to 5 pixels. Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861.

    Args:
        image: see `Score`.
    """

    @validate_call
    def __init__(self, *, image: Reduction = "mean") -> None:
        super().__init__("ssim", image)

    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        return dissimilarity(x, restored)


def dissimilarity(x: Tensor, restored: Tensor) -> Tensor:
    """1 - SSIM, (B, 1, H, W) in [0, 2], of such batches in [0, 1] with sides of 6 pixels or more; differentiable."""
    from monai.metrics.regression import compute_ssim_and_cs

    border = [WINDOW // 2] * 4
    with torch.autocast(x.device.type, enabled=False):
        # As channels of one picture the images give the same numbers, by torch's far quicker depthwise convolution.
        a, b = (F.pad(v.float().transpose(0, 1), border, mode="reflect") for v in (x, restored))
        similarity, _ = compute_ssim_and_cs(a, b, 2, (WINDOW, WINDOW), (SIGMA, SIGMA))
    lost: Tensor = (1 - similarity).clamp(min=0).transpose(0, 1)
    return lost


class Perceptual(Score):
    """LPIPS at each pixel: how differently a trained network sees the two pictures there.

    Args:
        trunk: network behind it; AlexNet travels with Salus.
        calibration: "lin" uses LPIPS' learned channel weights, "none" counts all channels alike.
        enlarge: factor by which the pictures are enlarged (bilinear) first; the maps are coarse at 64 pixels.
        image: see `Score`.
    """

    @validate_call
    def __init__(
        self,
        *,
        trunk: Literal["alexnet", "vgg16", "squeezenet"] = "alexnet",
        calibration: Literal["lin", "none"] = "lin",
        enlarge: PositiveInt = 1,
        image: Reduction = "mean",
    ) -> None:
        enlarged = f"-x{enlarge}" if enlarge > 1 else ""
        super().__init__(f"perceptual-{trunk}-{calibration}{enlarged}", image)
        self.lpips = LPIPS(trunk, calibration)
        self.enlarge = enlarge

    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        return self.lpips.spatial(x, restored, enlarge_by=self.enlarge)
