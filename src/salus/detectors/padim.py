"""PaDiM: one Gaussian of features for each place of a healthy image.

Written from Defard, Setkov, Loesch, Audigier, "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection
and Localization", arXiv:2011.08785. Means and covariances are gathered batch by batch (Chan, Golub, LeVeque 1979), so
the memory does not grow with the number of images.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from salus.core.errors import ConfigError, TrainingError
from salus.detectors.base import Detection, Preset, Recipe
from salus.detectors.features import FeatureConfig, FeatureDetector, deviated, joined

PLACES_AT_ONCE = 64  # whose covariances are inverted together


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class PaDiMConfig(FeatureConfig):
    """Settings of `PaDiM`."""

    channels: int = Field(100, ge=1)  # drawn at random from those of both layers; the paper's 100 for ResNet18
    seed: int = Field(0, ge=0)  # of that choice
    epsilon: float = Field(0.01, gt=0)  # added to the variances, eq. 1

    def kept(self) -> tuple[int, str, str]:
        what = f"the Gaussians of {self.patches} places and {self.channels} channels"
        return self.patches * self.channels * (self.channels + 1), what, "channels or enlarge"

    @model_validator(mode="after")
    def has_these_channels(self) -> "PaDiMConfig":
        """No more can be chosen than there are."""
        if self.channels > self.channels_in_all:
            raise ValueError(f"channels is {self.channels}, but {self.trunk} has only {self.channels_in_all}")
        return self


class PaDiM(FeatureDetector):
    """How many deviations a patch is from its healthy mean (Mahalanobis); the image's score is the map's maximum."""

    Config = PaDiMConfig
    FAMILY = "feature"
    PAPER = "Defard et al. 2020, arXiv:2011.08785"
    NEEDS = "efficientnet_lite0"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            recipe=Recipe(epochs=1, batch=32, learning_rate=1.0, select="last"),
            settings={"size": 224},
            about="arXiv:2011.08785, 224 px, 100 channels, epsilon .01, sigma 4; EfficientNet-Lite0 for ResNet18",
        ),
        "fast": Preset(
            recipe=Recipe(epochs=1, batch=32, learning_rate=1.0, select="last"),
            settings={"channels": 152},
            about="64 px images enlarged to 224; all of Lite0's channels, which found more than 100 of them did",
        ),
        "best": Preset(
            recipe=Recipe(epochs=1, batch=32, learning_rate=1.0, select="last"),
            settings={"enlarge": 128, "channels": 152},
            about="fast on pictures enlarged to 128 only, which found more, sooner; docs/research/rivals.md",
        ),
        "tiny": Preset(
            recipe=Recipe(epochs=1, batch=16, learning_rate=1.0, select="last"),
            settings={"size": 32, "trunk": "alexnet", "enlarge": 128, "channels": 24},
            about="tests",
        ),
    }

    config: PaDiMConfig

    def __init__(self, config: PaDiMConfig) -> None:
        super().__init__(config)
        places, channels = config.patches, config.channels
        generator = torch.Generator("cpu").manual_seed(config.seed)
        order = torch.randperm(config.channels_in_all, generator=generator, device="cpu")
        self.register_buffer("chosen", order[:channels].sort().values)
        self.register_buffer("seen", torch.zeros(()))  # images
        self.register_buffer("mean", torch.zeros(places, channels))
        self.register_buffer("spread", torch.zeros(places, channels, channels))  # sums of products; see `finished`
        self.register_buffer("finished", torch.zeros((), dtype=torch.bool))  # `spread` then holds inverse roots
        self.chosen: Tensor
        self.seen: Tensor
        self.mean: Tensor
        self.spread: Tensor
        self.finished: Tensor

    def rows(self, x: Tensor) -> Tensor:
        """(places, B, channels): each place takes the chosen channels of the two layers' cells that hold it."""
        return joined(self.features(x), neighbourhood=1, mode="nearest")[..., self.chosen].transpose(0, 1)

    def collect(self, x: Tensor) -> dict[str, Tensor]:
        rows = self.rows(x)
        deviations, mean = deviated(rows, self.mean, self.seen)
        self.spread.baddbmm_(deviations.transpose(1, 2), deviations)
        self.mean.copy_(mean)
        self.seen += len(x)
        return {"variance": self.spread.diagonal(dim1=1, dim2=2).mean() / (self.seen - 1).clamp(min=1)}

    def detect(self, x: Tensor) -> Detection:
        with torch.autocast(x.device.type, enabled=False):
            seen = self.picture(self.distances(self.rows(x)))
        return Detection(map=seen, score=seen.flatten(1).amax(1))

    def distances(self, rows: Tensor) -> Tensor:
        """(B, places) Mahalanobis distances of (places, B, channels), eq. 2."""
        found = []
        for here in self.chunks():
            white = (rows[here] - self.mean[here, None]) @ self.roots(here).transpose(1, 2)
            found.append(torch.linalg.vector_norm(white, dim=2))
        return torch.cat(found).T

    def chunks(self) -> list[slice]:
        """All places, some at a time."""
        return [slice(start, start + PLACES_AT_ONCE) for start in range(0, len(self.mean), PLACES_AT_ONCE)]

    def roots(self, here: slice) -> Tensor:
        """(places, channels, channels): W with W'W the inverse of the covariance (eq. 1)."""
        if self.finished:
            return self.spread[here]
        covariance = self.spread[here].double() / (self.seen - 1).clamp(min=1)
        covariance.diagonal(dim1=1, dim2=2).add_(self.config.epsilon)
        unit = torch.eye(covariance.shape[1], dtype=covariance.dtype, device=covariance.device).expand_as(covariance)
        roots: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), unit, upper=False)
        return roots.float()

    def check(self, recipe: Recipe, images: int, validation: int) -> None:
        super().check(recipe, images, validation)
        if images < 2:
            raise ConfigError("padim measures how images vary: it needs two healthy training images or more.")

    def finish_training(self) -> None:
        """Put the inverse roots in the covariances' place.

        Raises:
            TrainingError: one image has no covariance.
        """
        super().finish_training()
        if self.seen < 2:
            raise TrainingError(f"padim needs two healthy images at least, it saw {int(self.seen)}.")
        if not self.finished:
            for here in self.chunks():
                self.spread[here] = self.roots(here)
            self.finished.fill_(True)
