"""kNN: how far an image is from the most similar healthy ones, and where it differs from them.

Written from Bergman, Cohen, Hoshen, "Deep Nearest Neighbor Anomaly Detection" (DN2), arXiv:2002.10445, for the image's
score, and Cohen, Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences" (SPADE), arXiv:2005.02357,
for the map. The images kept are a random sample of those seen, so the memory does not grow with their number.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from salus.core.errors import ConfigError
from salus.detectors.base import Detection, Preset, Recipe
from salus.detectors.features import FeatureConfig, FeatureDetector, joined, nearest
from salus.nets.features import shapes


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class KNNConfig(FeatureConfig):
    """Settings of `KNN`."""

    images: int = Field(500, ge=1)  # kept; of more, a random sample. Ours: the papers keep all
    neighbours: int = Field(2, ge=1)  # k of the image's score; DN2's
    gallery: int = Field(50, ge=1)  # K, most similar healthy images whose patches the map is made of; SPADE's
    correspondences: int = Field(1, ge=1)  # kappa, healthy patches a patch is compared with; SPADE's

    @property
    def end_channels(self) -> int:
        """Of the trunk's last layer."""
        return shapes(self.trunk, self.side, end=True)[-1][0]

    def kept(self) -> tuple[int, str, str]:
        each = self.patches * self.channels_in_all + self.end_channels
        return self.images * each, f"{self.images} images of {self.patches} patches", "images or enlarge"

    @model_validator(mode="after")
    def has_enough_to_compare_with(self) -> "KNNConfig":
        """Neighbours must exist."""
        if self.neighbours > self.images:
            raise ValueError(f"neighbours is {self.neighbours}, more than the {self.images} images kept")
        if self.correspondences > self.patches:
            raise ValueError(f"correspondences is {self.correspondences}, more than an image's {self.patches} patches")
        return self


class KNN(FeatureDetector):
    """Mean squared distance to the nearest healthy images, and patch by patch to the nearest patch in these."""

    Config = KNNConfig
    FAMILY = "feature"
    PAPER = "Bergman et al. 2020, arXiv:2002.10445; map: Cohen and Hoshen 2020, arXiv:2005.02357"
    NEEDS = "efficientnet_lite0"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            recipe=Recipe(epochs=1, batch=32, learning_rate=1.0, select="last"),
            settings={"size": 224},
            about="k = 2 (DN2), K = 50, kappa = 1, sigma 4 (SPADE), 224 px; EfficientNet-Lite0 for their ResNets",
        ),
        "fast": Preset(
            recipe=Recipe(epochs=1, batch=32, learning_rate=1.0, select="last"),
            settings={"enlarge": 192, "images": 300},
            about="the papers' k, K and kappa on 64 px images enlarged to 192, 300 images kept: a bank of 107 MB",
        ),
        "tiny": Preset(
            recipe=Recipe(epochs=1, batch=16, learning_rate=1.0, select="last"),
            settings={"size": 32, "trunk": "alexnet", "enlarge": 128, "images": 20},
            about="tests",
        ),
    }

    config: KNNConfig

    def __init__(self, config: KNNConfig) -> None:
        super().__init__(config, end=True)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # images
        self.register_buffer("whole", torch.zeros(config.images, config.end_channels))
        self.register_buffer("places", torch.zeros(config.images, config.patches, config.channels_in_all))
        self.seen: Tensor
        self.whole: Tensor
        self.places: Tensor

    @property
    def filled(self) -> int:
        """Images in the bank."""
        return min(int(self.seen), self.config.images)

    def rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, end_channels) the last layer's mean over all places, and (B, patches, channels)."""
        *middle, end = self.features(x)
        return end.mean((2, 3)), joined(middle, neighbourhood=1, mode="bilinear")

    def collect(self, x: Tensor) -> dict[str, Tensor]:
        kept = 0
        for whole, places in zip(*self.rows(x), strict=True):
            # Reservoir: each image so far is kept with the same chance.
            seen, room = int(self.seen), self.config.images
            slot = seen if seen < room else int(torch.randint(seen + 1, ()))
            if slot < room:
                self.whole[slot], self.places[slot] = whole, places
            kept += slot < room
            self.seen += 1
        return {"kept": torch.tensor(kept / len(x))}

    def detect(self, x: Tensor) -> Detection:
        with torch.autocast(x.device.type, enabled=False):
            whole, places = self.rows(x)
            score = self.alike(whole, self.config.neighbours)[0].mean(1)
            galleries = self.alike(whole, self.config.gallery)[1]
            found = [self.unlike(one, gallery) for one, gallery in zip(places, galleries, strict=True)]
            return Detection(map=self.picture(torch.stack(found)), score=score)

    def validation_loss(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.alike(self.rows(x)[0], self.config.neighbours)[0].mean(1)

    def alike(self, whole: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Squared distances to the healthy images most like `whole` (B, end_channels), and which: at most `count`."""
        filled = max(1, self.filled)
        return nearest(whole, self.whole[:filled], min(count, filled))

    def unlike(self, places: Tensor, alike: Tensor) -> Tensor:
        """(patches,) mean squared distance of each patch to the nearest ones anywhere in the healthy images `alike`."""
        return nearest(places, self.places[alike].flatten(0, 1), self.config.correspondences)[0].mean(1)

    def check(self, recipe: Recipe, images: int, validation: int) -> None:
        super().check(recipe, images, validation)
        if (used := min(recipe.used(images), self.config.images)) < self.config.neighbours:
            raise ConfigError(
                f"knn looks for {self.config.neighbours} neighbours, but keeps {used} of {images} healthy images. Set "
                "neighbours lower."
            )
