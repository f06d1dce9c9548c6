"""Denoising autoencoder (DAE): a U-Net that has learned to take coarse noise out of healthy images.

Written from Kascenas, Pugeault, O'Neil, "Denoising Autoencoders for Unsupervised Anomaly Detection in Brain MRI",
MIDL 2022, PMLR 172:653-664; layers and settings as described in docs/methods/dae.md.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salus.detectors.base import (
    SMOOTHED,
    Channels,
    Detection,
    Preset,
    Recipe,
    Restorer,
    Side,
    Update,
    fitting,
    mean_squared,
)
from salus.nets.unet import UNet
from salus.scores.base import Score

WINDOW = 5  # side, pixels, of the published median filter and of the window of the foreground's erosion


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class DAEConfig:
    """Settings of `DAE`. The original's but for `mask` and the filtered map."""

    size: Side = 128  # side of the square input, pixels; a multiple of 2^(levels - 1)
    widths: tuple[Channels, ...] = Field((64, 128, 256, 512), min_length=2)  # channels of each level of the U-Net
    noise_std: float = Field(0.2, gt=0)  # of the noise on its coarse grid; about 2/3 of it is left when enlarged
    noise_grid: Annotated[int, Field(ge=2)] | Literal["auto"] = "auto"  # nodes along a side; auto: size / 8
    loss: Literal["l2", "l1"] = "l2"  # original; RA's baseline
    mask: Literal["none", "foreground"] = "none"  # of noise, error and map: RA's baseline; original, the map's eroded
    foreground: float = Field(0.01, ge=0, lt=1)  # brighter pixels are foreground
    map_median: bool = False  # RA's baseline; original: a 5 x 5 median filter over the map

    @model_validator(mode="after")
    def fits(self) -> "DAEConfig":
        """The U-Net must be able to halve the image, and the noise to be coarser than it."""
        deepest = 2 ** (len(self.widths) - 1)
        fitting(self.size, deepest, max(16, 2 * deepest), f"{len(self.widths)} widths")
        if self.noise_grid != "auto" and self.noise_grid > self.size:
            raise ValueError(f"a noise grid of {self.noise_grid} nodes is finer than an image of {self.size} pixels")
        return self


class DAE(Restorer):
    """The map compares the clean image with what the U-Net makes of it: what looks like noise has been taken out."""

    Config = DAEConfig
    FAMILY = "reconstruction"
    PAPER = "Kascenas et al. 2022, MIDL (PMLR 172:653-664)"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            recipe=Recipe(
                epochs=2100, batch=16, learning_rate=1e-4, optimiser="amsgrad", weight_decay=1e-5, clip=0.5,
                schedule="cosine", period=3200, select="last",
            ),
            settings={"size": 128, "mask": "foreground", "map_median": True},
            score={"name": "residual"},
            about="Kascenas et al.: 128 px, AMSGrad 1e-4, batch 16, cosine of 3,200 steps; their 67,200 steps are "
            "2100 epochs of 512 images",
        ),
        "ra": Preset(
            recipe=Recipe(epochs=1000, batch=16, learning_rate=1e-4, augment="affine"),
            settings={"size": 128, "loss": "l1"},
            score={"name": "residual"},
            about="as the RA authors compare with it: l1, no masks, Adam 1e-4 all along, 1000 epochs",
        ),
        "fast": Preset(
            recipe=Recipe(epochs=64, batch=16, learning_rate=1e-3, clip=0.5, schedule="cosine", select="last"),
            settings={"size": 64, "widths": (8, 16, 32, 64)},
            score=SMOOTHED,
            about="ours: an eighth of the widths at 64 px",
        ),
        "tiny": Preset(
            recipe=Recipe(epochs=8, batch=8, learning_rate=5e-3, clip=0.5, average=0.98, select="last"),
            settings={"size": 32, "widths": (8, 16, 16, 16), "noise_grid": 8, "noise_std": 0.5},
            score={"name": "residual", "image": "top5"},
            about="tests",
        ),
    }  # fmt: skip

    def __init__(self, config: DAEConfig, score: Score) -> None:
        super().__init__(score)
        self.config = config
        self.grid = config.size // 8 if config.noise_grid == "auto" else config.noise_grid
        self.net = UNet(1, config.widths)

    def parts(self) -> Mapping[str, Iterable[nn.Parameter]]:
        return {"unet": self.net.parameters()}

    def denoise(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) without its noise, not clamped: the output layer has no activation."""
        out: Tensor = self.net(x).float()
        return out

    def restore(self, x: Tensor) -> Tensor:
        return self.denoise(x).clamp(0, 1)

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        return {"rec": mean_squared(self.denoise(x), x)}

    def training_step(self, x: Tensor, update: Update, progress: float) -> dict[str, Tensor]:
        noise = coarse_noise(x, self.grid, self.config.noise_std)
        error = self.error(x, noise).mean()
        update("unet", error)
        return {"error": error.detach()}

    def error(self, x: Tensor, noise: Tensor) -> Tensor:
        """(B,) how well `x` comes back from under `noise`, mean over all pixels, those outside the mask counting 0."""
        mask = self.inside(x)
        difference = (self.denoise(x + noise * mask) - x) * mask
        return (difference.square() if self.config.loss == "l2" else difference.abs()).flatten(1).mean(1)

    def inside(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) 1 where noise is added and error counted, 0 elsewhere."""
        return (x > self.config.foreground).to(x) if self.config.mask == "foreground" else torch.ones_like(x)

    def validation_loss(self, x: Tensor) -> Tensor:
        """(B,) the training loss under noise that is the same at every call.

        The error on clean images would be least for a network that has learned to copy.
        """
        return self.error(x, coarse_noise(x, self.grid, self.config.noise_std, torch.Generator().manual_seed(0)))

    def detect(self, x: Tensor) -> Detection:
        seen, c = super().detect(x), self.config
        inside = eroded(x > c.foreground) if c.mask == "foreground" else torch.ones_like(x)
        anomaly = seen.map * inside
        anomaly = median(anomaly) if c.map_median else anomaly
        score = self.score.reduce(anomaly)
        if self.score.image == "mean":  # over the mask
            score = score / inside.flatten(1).mean(1).clamp(min=1 / x[0].numel())
        return replace(seen, map=anomaly, score=score)


def coarse_noise(x: Tensor, grid: int, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Gaussian noise of mean 0 on a grid x grid lattice, enlarged to the size of `x` and rolled.

    Enlarging is bilinear with the lattice's corners on the image's; it averages neighbours, which leaves a standard
    deviation of about 0.67 `std`. Each image is rolled by its own whole numbers of pixels along both axes, so that no
    pixel is always a node.

    Args:
        x: (B, C, H, W); only its shape and device count.
        generator: of the draws, on the CPU; torch's global one if None.

    Returns:
        (B, C, H, W) float32, channels independent of each other.
    """
    batch, channels, height, width = x.shape
    device = x.device if generator is None else generator.device
    nodes = std * torch.randn(batch, channels, grid, grid, device=device, generator=generator)
    noise = F.interpolate(nodes, (height, width), mode="bilinear", align_corners=True)
    for axis, side in ((2, height), (3, width)):
        shift = torch.randint(side, (batch, 1), device=device, generator=generator)
        turned = (torch.arange(side, device=device) + shift) % side
        noise = noise.take_along_dim(turned.view(batch, 1, *(side if a == axis else 1 for a in (2, 3))), axis)
    return noise.to(x.device)


def eroded(foreground: Tensor) -> Tensor:
    """(B, 1, H, W) bool to 0 or 1: where over 95 % of the window is foreground; at the border, of its part inside."""
    around = F.avg_pool2d(foreground.float(), WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False)
    return (around > 0.95).float()


def median(maps: Tensor) -> Tensor:
    """(B, 1, H, W) median of the window around each pixel, the border mirrored."""
    edge = WINDOW // 2
    windows = F.unfold(F.pad(maps, (edge,) * 4, mode="reflect"), WINDOW)
    return windows.median(dim=1).values.view_as(maps)
