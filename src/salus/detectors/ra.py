"""Reversed autoencoder (RA): a variational autoencoder that argues with itself.

Written from Bercea, Wiestler, Rueckert, Schnabel, "Towards Universal Unsupervised Anomaly Detection in Medical
Imaging", arXiv:2401.10637. Equation numbers below are theirs; where paper and released code disagree, both
readings are settings (docs/methods/ra.md).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from salus.detectors.base import SMOOTHED, Preset, Recipe, unlike
from salus.detectors.introspective import Code, Introspective, IntrospectiveConfig
from salus.nets.introspective import full
from salus.scores.base import Score

FAST = Preset(
    recipe=Recipe(steps=2400, batch=8, learning_rate=1e-3, select="last", average=0.99),
    settings={
        "size": 64,
        "latent": 32,
        "widths": (16, 32, 64, 128),
        "beta_kl": 0.1,
        "beta_neg": 2048.0,
        "gamma_rec": 0.0,
        "warmup": 0.9,
        "ramp": 0.05,
    },
    score=SMOOTHED,
    about="ours: a VAE, then an argument that leaves the code its information; docs/fast-preset.md",
)


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class RAConfig(IntrospectiveConfig):
    """Settings of `RA`."""

    objective: Literal["code", "paper_literal", "sivae"] = "code"  # weight of eq. 3: lambda; lambda/alpha; 0
    reversed_weight: float = Field(0.005, ge=0)  # lambda of eq. 4 as released; the paper's notation: 0.01
    taps: Literal["avgpool5", "avgpool5+resblock", "avgpool5+resblock+mu"] = "avgpool5"  # layers of eq. 3
    cosine: Literal["flat", "per_position"] = "flat"  # eq. 3 over the whole map, or at each position


class RA(Introspective):
    """Encoder and decoder of an introspective VAE; the encoder must give an image and its restoration like features."""

    Config = RAConfig
    FAMILY = "reconstruction"
    PAPER = "Bercea et al. 2024, arXiv:2401.10637"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            recipe=Recipe(epochs=1500, batch=8, learning_rate=5e-5, patience=500, augment="affine"),
            settings={"size": 128, "latent": 128, "widths": (64, 128, 256, 512, 512)},
            score={"name": "equation5", "reading": "code", "trunk": "squeezenet"},
            about="the released configuration: 128 px, Adam 5e-5, batch 8, up to 1500 epochs, best by validation error",
        ),
        "fast": FAST,
        "best": replace(
            FAST,
            recipe=replace(FAST.recipe, steps=0, epochs=120),
            about="fast, but every image 120 times, longer with 160 people or more; docs/research/ra-longer.md",
        ),
        "tiny": Preset(
            recipe=Recipe(epochs=30, batch=8, learning_rate=2e-3, select="last", average=0.95),
            settings={
                "size": 32,
                "latent": 8,
                "widths": (8, 16, 16),
                "beta_neg": 512.0,
                "warmup": 0.7,
                "ramp": 0.1,
            },
            score={"name": "residual"},
            about="tests",
        ),
    }

    config: RAConfig

    def __init__(self, config: RAConfig, score: Score) -> None:
        super().__init__(config, score)
        weights = {"code": 1.0, "paper_literal": 1 / config.alpha, "sivae": 0.0}
        self.reversed_weight = weights[config.objective] * config.reversed_weight

    def alike(self, code: Code, code_rec: Code) -> dict[str, tuple[float, Tensor]]:
        return {"alike": (self.reversed_weight, self.reversed_loss(code, code_rec))}

    def reversed_loss(self, code: Code, code_rec: Code) -> Tensor:
        """Scalar, eq. 3: half the mean squared difference plus 1 - cosine, summed over the feature maps."""
        total = torch.zeros_like(code[0][0, 0])
        for a, b in zip(self.tapped(code), self.tapped(code_rec), strict=True):
            # In the order of a channels-last memory, neither entries nor their gradients are copied to flatten them.
            a, b = (found.movedim(1, -1) for found in (a, b))
            if self.config.cosine == "per_position":
                a, b = a.flatten(0, -2), b.flatten(0, -2)
            total = total + unlike(full(a), full(b), 0.5).mean()
        return total

    def tapped(self, code: Code) -> list[Tensor]:
        """The feature maps that eq. 3 compares."""
        mean, _, maps = code
        if self.config.taps == "avgpool5":
            return maps[:-1]
        return maps if self.config.taps == "avgpool5+resblock" else [*maps, mean]
