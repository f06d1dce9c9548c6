"""The anomaly map of Reversed Autoencoders, equation 5 of arXiv:2401.10637."""

from typing import Literal

import torch
from pydantic import PositiveInt, validate_call
from torch import Tensor

from salus.scores.base import Reduction, Score
from salus.scores.clahe import clahe
from salus.scores.lpips import LPIPS
from salus.scores.residual import gaussian


class Equation5(Score):
    """|eq(r) - eq(x)| * G[LPIPS(r, x)] * G[LPIPS(eq(r), eq(x))], eq = CLAHE, r = restored.

    Args:
        reading: "code" smooths each LPIPS map with a Gaussian of 2 pixels, as the release does; "paper" does not,
            as printed.
        trunk: network behind LPIPS. The release used SqueezeNet; AlexNet is what travels with Salus.
        image: see `Score`; the paper's is the mean.
        calibration: "lin" uses LPIPS' learned channel weights, "none" counts all channels alike.
        enlarge: factor by which the pictures are enlarged (bilinear) before LPIPS; its maps are coarse at 64 pixels.
    """

    @validate_call
    def __init__(
        self,
        *,
        reading: Literal["code", "paper"] = "code",
        trunk: Literal["alexnet", "vgg16", "squeezenet"] = "alexnet",
        calibration: Literal["lin", "none"] = "lin",
        enlarge: PositiveInt = 1,
        image: Reduction = "mean",
    ) -> None:
        enlarged = f"-x{enlarge}" if enlarge > 1 else ""
        super().__init__(f"equation5-{reading}-{trunk}-{calibration}{enlarged}", image)
        self.lpips = LPIPS(trunk, calibration)
        self.sigma = 2.0 if reading == "code" else 0.0
        self.enlarge = enlarge

    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        even = clahe(torch.cat([restored, x]))
        even_restored, even_x = even.chunk(2)
        first, second = torch.cat([restored, even_restored]), torch.cat([x, even_x])
        perceived = self.lpips.spatial(first, second, enlarge_by=self.enlarge)
        plain, evened = gaussian(perceived, self.sigma).chunk(2)
        return (even_restored - even_x).abs() * plain * evened
