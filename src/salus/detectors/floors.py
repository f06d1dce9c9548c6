"""Floors: what a sceptic would try first. A detector that does not beat them has learned nothing useful."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salus.core.errors import ConfigError
from salus.detectors.base import Detection, Detector, Preset, Recipe, Restorer, Side, Update
from salus.detectors.features import deviated
from salus.detectors.patchcore import PatchCore, PatchCoreConfig
from salus.scores.base import Score


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class MeanIntensityConfig:
    """Settings of `MeanIntensity`."""

    size: Side = Field(64, ge=8)  # side of the square input, pixels


class MeanIntensity(Detector):
    """Brighter is more abnormal: the map is the image, the score its mean. Learns nothing."""

    Config = MeanIntensityConfig
    FAMILY = "floor"
    PAPER = "none"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(recipe=Recipe(epochs=1, batch=64, learning_rate=1.0, select="last")),
        "fast": Preset(recipe=Recipe(epochs=1, batch=64, learning_rate=1.0, select="last")),
        "tiny": Preset(recipe=Recipe(epochs=1, batch=16, learning_rate=1.0, select="last"), settings={"size": 32}),
    }

    def __init__(self, config: MeanIntensityConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("usual", torch.zeros(()))  # mean of the healthy images, for the record only
        self.usual: Tensor

    def parts(self) -> Mapping[str, Iterable[nn.Parameter]]:
        return {}

    def training_step(self, x: Tensor, update: Update, progress: float) -> dict[str, Tensor]:
        self.usual.lerp_(x.mean(), 0.1)
        return {"mean": x.mean()}

    def detect(self, x: Tensor) -> Detection:
        return Detection(map=x.clamp(min=0), score=x.flatten(1).mean(1))

    def validation_loss(self, x: Tensor) -> Tensor:
        return (x.flatten(1).mean(1) - self.usual).square()


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class PCAConfig:
    """Settings of `PCA`."""

    size: Side = Field(64, ge=8)  # side of the square input, pixels
    components: int = Field(40, ge=1)


class PCA(Restorer):
    """Projection on the principal components of healthy images, found in one pass and bounded memory.

    Each batch is merged into the running basis as in Ross et al. 2008 (doi:10.1007/s11263-007-0075-7).
    """

    Config = PCAConfig
    FAMILY = "floor"
    PAPER = "Pearson 1901; incremental form: Ross et al. 2008"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(recipe=Recipe(epochs=1, batch=128, learning_rate=1.0, select="last")),
        "fast": Preset(recipe=Recipe(epochs=1, batch=128, learning_rate=1.0, select="last")),
        "tiny": Preset(
            recipe=Recipe(epochs=1, batch=32, learning_rate=1.0, select="last"),
            settings={"size": 32, "components": 12},
        ),
    }

    def __init__(self, config: PCAConfig, score: Score) -> None:
        super().__init__(score)
        self.config = config
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(config.size**2))
        self.register_buffer("basis", torch.zeros(config.components, config.size**2))  # rows scaled by their spread
        self.seen: Tensor
        self.mean: Tensor
        self.basis: Tensor

    def parts(self) -> Mapping[str, Iterable[nn.Parameter]]:
        return {}

    def check(self, recipe: Recipe, images: int, validation: int) -> None:
        super().check(recipe, images, validation)
        if self.config.components >= (used := recipe.used(images)):
            raise ConfigError(
                f"{self.config.components} components give any of {used} images back as it is. Set components lower."
            )

    def training_step(self, x: Tensor, update: Update, progress: float) -> dict[str, Tensor]:
        deviations, mean = deviated(x.flatten(1).float(), self.mean, self.seen)
        _, spread, rows = torch.linalg.svd(torch.cat([self.basis, deviations]), full_matrices=False)
        kept = min(self.config.components, len(spread))
        self.basis.zero_()
        self.basis[:kept] = spread[:kept, None] * rows[:kept]
        self.mean.copy_(mean)
        self.seen += len(x)
        return {"mse": self.validation_loss(x).mean()}

    def restore(self, x: Tensor) -> Tensor:
        spread = self.basis.norm(dim=1, keepdim=True)
        rows = torch.where(spread > 1e-6 * spread.max(), self.basis / spread.clamp(min=1e-12), 0)
        centred = x.flatten(1) - self.mean
        return (self.mean + centred @ rows.T @ rows).clamp(0, 1).view_as(x)


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class RandomFeaturesConfig(PatchCoreConfig):
    """Settings of `RandomFeatures`: PatchCore's, with nothing to choose in one of them."""

    weights: Literal["random"] = "random"


class RandomFeatures(PatchCore):
    """PatchCore on a trunk that has learned nothing: what pretraining has to beat."""

    Config = RandomFeaturesConfig
    FAMILY = "floor"
    PAPER = "Roth et al. 2022, arXiv:2106.08265, with random weights"
    NEEDS = ""
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        name: replace(preset, about=f"patchcore's `{name}` on random weights")
        for name, preset in PatchCore.PRESETS.items()
    }
