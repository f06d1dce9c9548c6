"""Learned perceptual image patch similarity (LPIPS, v0.1) as a map and as a number.

Written from Zhang, Isola, Efros, Shechtman, Wang, "The Unreasonable Effectiveness of Deep Features as a
Perceptual Metric", arXiv:1801.03924, eq. 1. Example values of the authors' weights are held by the tests.
"""

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from salus.core.errors import ConfigError, did_you_mean
from salus.nets.trunks import Frozen, build_trunk
from salus.nets.weights import PRETRAINED, digest_of, find

WEIGHTS = {entry.trunk: entry.id for entry in PRETRAINED.values() if entry.linear}
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and spread on [-1, 1]
TINY = 1e-10  # keeps a position without any feature from a division by zero; the authors' value


class LPIPS(Frozen):
    """How differently a trained network sees two images, place by place.

    Args:
        trunk: alexnet, vgg16 or squeezenet (1.1, which the published RA maps use).
        calibration: "lin" weighs channels as people's judgements do, as published; "none" adds them up,
            which on grey images marks foreign structure better and has another scale.
        weights: file to read instead of searching, see `salus.nets.weights.find`.

    Raises:
        ConfigError: no such trunk or calibration.
        WeightsError: the pretrained weights are missing or not the ones they claim to be.

    `name` and `digest` say which net this is and belong into every result. The net is frozen and stays in
    evaluation mode; gradients flow to the images alone.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        trunk: str = "squeezenet",
        calibration: Literal["lin", "none"] = "lin",
        weights: Path | str | None = None,
    ) -> None:
        super().__init__()
        if trunk not in WEIGHTS:
            raise ConfigError(f"LPIPS has no trunk '{trunk}'.{did_you_mean(trunk, WEIGHTS)}")
        if calibration not in ("lin", "none"):
            raise ConfigError(f"LPIPS has no calibration '{calibration}'.{did_you_mean(calibration, ('lin', 'none'))}")
        found = find(WEIGHTS[trunk], Path(weights) if weights is not None else None)
        self.name = f"lpips-{trunk}-{calibration}"
        self.digest = digest_of(found)
        self.trunk = build_trunk(trunk).fill(found)
        for number in range(len(self.trunk.taps)):
            linear = found[f"lin{number}"]
            self.register_buffer(f"lin{number}", linear if calibration == "lin" else torch.ones_like(linear))
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1))
        self.freeze()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """How far apart two batches of images are as a whole.

        Args:
            a: (B, 1 or 3, H, W) in [0, 1]; one channel counts as three equal ones.
            b: the same shape.

        Returns:
            (B,) float32, 0 for equal images.

        Raises:
            ValueError: the shapes differ or do not fit, or the images are too small for the trunk.
        """
        return torch.stack([tap.mean((1, 2, 3)) for tap in self.taps(a, b)]).sum(0)

    def spatial(self, a: Tensor, b: Tensor, *, enlarge_by: int = 1) -> Tensor:
        """How far apart they are at each place, on the images' own grid.

        Args:
            a, b: as for `forward`, and so are the errors.
            enlarge_by: factor by which both are enlarged first (bilinear); the map is averaged back.

        Returns:
            (B, 1, H, W) float32. Its mean is `forward`, up to what enlarging a map by an uneven factor shifts.
        """
        if enlarge_by > 1:
            large = [F.interpolate(v, scale_factor=enlarge_by, mode="bilinear") for v in (a, b)]
            return F.avg_pool2d(self.spatial(*large), enlarge_by)
        size = a.shape[2:]
        first, *others = (enlarge(tap, size) for tap in self.taps(a, b))
        for other in others:
            first = first + other
        return first

    def taps(self, a: Tensor, b: Tensor) -> list[Tensor]:
        """The summands of eq. 1, one (B, 1, height, width) a tap, before any averaging."""
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] not in (1, 3):
            raise ValueError(
                f"LPIPS compares two (B, 1 or 3, H, W) batches of one shape, got {tuple(a.shape)} and {tuple(b.shape)}"
            )
        seen = self.trunk(self.scaled(torch.cat((a, b))))
        # Half precision serves for the convolutions; the small differences of large features need float32.
        with torch.autocast(a.device.type, enabled=False):
            return [difference(tap.float(), self.get_buffer(f"lin{number}").float()) for number, tap in enumerate(seen)]

    def scaled(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) as the trunks were trained on. Grey becomes three channels: folding it into the first
        layer instead would change what that layer's zero padding means."""
        shifted = ((2 * x.float() - 1) - self.shift.float()) / self.scale.float()
        return shifted.to(self.shift.dtype).contiguous(memory_format=torch.channels_last)


def difference(features: Tensor, weights: Tensor) -> Tensor:
    """Squared distance of two halves of a batch (2 B, C, h, w), channels normalised at each place: (B, 1, h, w)."""
    lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    a, b = (features / (lengths + TINY)).chunk(2)
    return F.conv2d((a - b).square(), weights.view(1, -1, 1, 1))


def enlarge(x: Tensor, size: torch.Size) -> Tensor:
    """Bilinear, corners not aligned."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
