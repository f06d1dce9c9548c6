"""DDPM: drown the image in noise part of the way, and let a network that knows healthy images bring it back.

Written from Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239; Song, Meng, Ermon,
"Denoising Diffusion Implicit Models", arXiv:2010.02502; and, for the use on anomalies and for simplex noise, Wyatt,
Leach, Schmon, Willcocks, "AnoDDPM: Anomaly Detection with Denoising Diffusion Probabilistic Models using Simplex
Noise", CVPR workshops 2022. Network and schedule are MONAI's. Levels of noise are counted as in the papers: 0 is the
clean image, level m is m steps of noise, and the network knows it as step m - 1.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salus.detectors.base import (
    SMOOTHED,
    Channels,
    Preset,
    Recipe,
    Restorer,
    Side,
    Update,
    fitting,
    inner,
    mean_squared,
    outer,
)
from salus.nets.simplex import SPREAD, simplex_noise
from salus.scores.base import Score

STEPS = 1000  # T; the noise's variance rises linearly from 1e-4 to 0.02
JUDGED = 4  # levels of noise at which the validation loss looks
SEED = 2022  # of all noise in `restore` and in the validation loss


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class DDPMConfig:
    """Settings of `DDPM`. The defaults are those of RA's authors; AnoDDPM's are named beside them."""

    size: Side = 128  # side of the square input, pixels; AnoDDPM 256
    widths: tuple[Channels, ...] = Field((128, 256, 256), min_length=1)  # a level; AnoDDPM 128 128 256 256 512 512
    attention: tuple[bool, ...] = (False, True, True)  # which levels attend; AnoDDPM the last three
    blocks: int = Field(1, ge=1)  # residual blocks a level, and one more on the way up; AnoDDPM 2
    groups: int = Field(32, ge=1)  # of the group norms
    heads: int = Field(1, ge=1)  # of each attention; AnoDDPM 2
    projection: bool = True  # attention's output goes through a linear layer; off: left out, as the release ran
    resampling: Literal["convolution", "residual"] = "convolution"  # between levels; AnoDDPM: residual blocks
    noise: Literal["gaussian", "simplex"] = "gaussian"  # AnoDDPM simplex
    normalize_noise: bool = False  # simplex divided by its standard deviation; ours, and changes results
    train_steps: int = Field(STEPS, ge=1, le=STEPS)  # levels seen in training; AnoDDPM 800
    steps_back: int = Field(250, ge=1, le=STEPS)  # L, level to which an image is noised; AnoDDPM's release 200
    sampler: Literal["ddpm", "ddim"] = "ddpm"  # each level with fresh noise; some levels, without (arXiv:2010.02502)
    ddim_steps: int = Field(25, ge=1)  # network passes an image with "ddim"; "ddpm" takes L
    variance: Literal["small", "large"] = "small"  # of "ddpm": posterior's at either end; AnoDDPM large
    clip: bool = True  # the guessed clean image is clipped to the range of images at each level

    @model_validator(mode="after")
    def fits(self) -> "DDPMConfig":
        """Levels, widths and steps must go together."""
        fitting(self.size, 2 ** (len(self.widths) - 1), 8, f"{len(self.widths)} widths")
        if len(self.attention) != len(self.widths):
            raise ValueError(f"{len(self.widths)} widths need as many entries of attention, not {len(self.attention)}")
        if any(width % self.groups or width % self.heads for width in self.widths):
            raise ValueError(f"widths must be multiples of {self.groups} groups and {self.heads} heads")
        if self.train_steps < self.steps_back:
            raise ValueError(f"training up to train_steps {self.train_steps} never sees steps_back {self.steps_back}")
        if self.sampler == "ddim" and self.ddim_steps > self.steps_back:
            raise ValueError(f"{self.ddim_steps} ddim_steps do not fit into {self.steps_back} steps_back")
        if self.normalize_noise and self.noise == "gaussian":
            raise ValueError("normalize_noise is for simplex noise; Gaussian noise has unit variance already")
        return self


class DDPM(Restorer):
    """A diffusion model of healthy images, values scaled to [-1, 1] inside."""

    Config = DDPMConfig
    FAMILY = "diffusion"
    PAPER = "Wyatt et al. 2022 (AnoDDPM), doi:10.1109/CVPRW56347.2022.00080"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            recipe=Recipe(epochs=1500, batch=16, learning_rate=1e-4, select="last", average=0.9999, augment="affine"),
            score={"name": "residual"},
            about="RA's authors: 128 px, Gaussian noise, L 250, Adam 1e-4, batch 16, 1500 epochs; AnoDDPM's average",
        ),
        "fast": Preset(
            recipe=Recipe(epochs=45, batch=16, learning_rate=1e-3, select="last", average=0.995),
            settings={
                "size": 64,
                "widths": (16, 32, 64, 64),
                "attention": (False, False, False, False),
                "groups": 8,
                "train_steps": 300,
                "steps_back": 200,
                "sampler": "ddim",
                "ddim_steps": 5,
            },
            score=SMOOTHED,
            about="ours: 64 px, a small network that attends in its middle only, L 200 in five steps without noise",
        ),
        "tiny": Preset(
            recipe=Recipe(epochs=10, batch=8, learning_rate=5e-3, select="last", average=0.97),
            settings={
                "size": 32,
                "widths": (8, 16, 16),
                "attention": (False, False, False),
                "groups": 4,
                "train_steps": 300,
                "steps_back": 150,
                "sampler": "ddim",
                "ddim_steps": 4,
            },
            score={"name": "residual", "image": "top5"},
            about="tests",
        ),
    }

    def __init__(self, config: DDPMConfig, score: Score) -> None:
        super().__init__(score)
        self.config = config
        self.unet, self.schedule = unet(config), schedule()

    def parts(self) -> Mapping[str, Iterable[nn.Parameter]]:
        return {"unet": self.unet.parameters()}

    def training_step(self, x: Tensor, update: Update, progress: float) -> dict[str, Tensor]:
        level = torch.randint(1, self.config.train_steps + 1, (len(x),))
        error = self.error(x, level, self.drawn(len(x), x)).mean()
        update("unet", error)
        return {"error": error.detach()}

    def validation_loss(self, x: Tensor) -> Tensor:
        return self.terms(x)["rec"]

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """How badly fixed noise is told from the image, at some levels up to L."""
        draws, last = torch.Generator().manual_seed(SEED), self.config.steps_back
        levels = [max(1, last * i // JUDGED) for i in range(1, JUDGED + 1)]
        errors = [self.error(x, torch.full((len(x),), m), self.drawn(1, x, draws).expand_as(x)) for m in levels]
        return {"rec": torch.stack(errors).mean(0)}

    def error(self, x: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """(B,) mean squared error of the noise that the network sees in `x` at its level (B,)."""
        return mean_squared(self.seen_noise(self.noised(x, noise, level), level), noise)

    def noised(self, x: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """(B, 1, H, W) on the inner scale: images in [0, 1] taken to their level (B,) in one jump."""
        noised: Tensor = self.schedule.add_noise(inner(x.float()), noise, level - 1)
        return noised

    def seen_noise(self, noised: Tensor, level: Tensor) -> Tensor:
        """(B, 1, H, W) float32: the noise that the network sees in images of these levels (B,)."""
        guess: Tensor = self.unet(noised, (level - 1).to(noised.device))
        return guess.float()

    def drawn(self, count: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(count, 1, H, W) noise, from the CPU's generator: a seed means the same on every device."""
        size = self.config.size
        if self.config.noise == "gaussian":
            return torch.randn(count, 1, size, size, generator=generator).to(like.device)
        seeds = torch.randint(2**62, (count,), generator=generator)
        planes = torch.randint(STEPS, (count,), generator=generator)
        noise = simplex_noise(seeds, planes.to(like.device), size)
        return noise / SPREAD if self.config.normalize_noise else noise

    def restore(self, x: Tensor) -> Tensor:
        # One picture of noise a level for all images: a score must not depend on the neighbours in the batch.
        draws = torch.Generator().manual_seed(SEED)
        picture = self.noised(x, self.drawn(1, x, draws), torch.full((len(x),), self.config.steps_back))
        for level, below in self.levels():
            guess = self.seen_noise(picture, torch.full((len(x),), level))
            picture, spread = self.step_down(picture, guess, level, below)
            if spread > 0:
                picture = picture + spread * self.drawn(1, x, draws)
        return outer(picture).clamp(0, 1)

    def levels(self) -> Iterator[tuple[int, int]]:
        """Pairs (level, level below) from L down to 0."""
        last = self.config.steps_back
        count = self.config.ddim_steps if self.config.sampler == "ddim" else last
        stops = [last * left // count for left in range(count, -1, -1)]
        return pairwise(stops)

    def step_down(self, picture: Tensor, guess: Tensor, level: int, below: int) -> tuple[Tensor, float]:
        """From a picture at `level` and the noise seen in it: the mean of the picture at `below`, and its deviation.

        Arithmetic of our own: MONAI's schedulers draw noise themselves, Gaussian and another for each image of a
        batch, and their DDIM steps down by T // steps, which need not divide L. Where they apply, both agree.
        """
        kept, kept_below = self.kept(level), self.kept(below)
        clean = (picture - math.sqrt(1 - kept) * guess) / math.sqrt(kept)
        if self.config.clip:
            clean = clean.clamp(-1, 1)
        if self.config.sampler == "ddim":  # eq. 12 of arXiv:2010.02502, sigma 0, with the noise that fits `clean`
            guess = (picture - math.sqrt(kept) * clean) / math.sqrt(1 - kept)
            return math.sqrt(kept_below) * clean + math.sqrt(1 - kept_below) * guess, 0.0
        # Eq. 7 of arXiv:2006.11239; its beta is 1 - kept / kept_below.
        beta, ratio = 1 - kept / kept_below, (1 - kept_below) / (1 - kept)
        mean = math.sqrt(kept_below) * beta / (1 - kept) * clean + math.sqrt(kept / kept_below) * ratio * picture
        variance = beta if self.config.variance == "large" else beta * ratio
        return mean, math.sqrt(variance) if below > 0 else 0.0

    def kept(self, level: int) -> float:
        """Share of the clean image's variance that is left at a level: the papers' alpha-bar."""
        return float(self.schedule.alphas_cumprod[level - 1]) if level > 0 else 1.0


def unet(config: DDPMConfig) -> nn.Module:
    """MONAI's diffusion U-Net: (B, 1, H, W) and steps (B,) to (B, 1, H, W)."""
    # MONAI takes seconds to import: only who builds a network waits for it.
    from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

    net: nn.Module = DiffusionModelUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=config.widths,
        attention_levels=config.attention,
        num_res_blocks=config.blocks,
        norm_num_groups=config.groups,
        num_head_channels=[width // config.heads for width in config.widths],
        include_fc=config.projection,
        resblock_updown=config.resampling == "residual",
    )
    return net


def schedule() -> Any:
    """MONAI's table of how much noise each step adds."""
    from monai.networks.schedulers.ddpm import DDPMScheduler

    return DDPMScheduler(STEPS, "linear_beta", beta_start=1e-4, beta_end=0.02)
