"""PatchCore: how far a patch is from the nearest healthy one.

Written from Roth, Pemula, Zepeda, Scholkopf, Brox, Gehler, "Towards Total Recall in Industrial Anomaly Detection",
arXiv:2106.08265. The bank is thinned while it is filled, so the memory does not grow with the number of images.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from salus.core.errors import ConfigError
from salus.detectors.base import Detection, Preset, Recipe
from salus.detectors.features import FeatureConfig, FeatureDetector, joined, nearest


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class PatchCoreConfig(FeatureConfig):
    """Settings of `PatchCore`."""

    neighbourhood: int = Field(3, ge=1)  # p, side of the square of places that a patch averages
    bank: int = Field(2000, ge=1)  # patches kept; the paper keeps 1, 10 or 25 % of all
    projected: int = Field(128, ge=1)  # channels of the random projection in which the bank is thinned; released
    neighbours: int = Field(9, ge=0)  # b of eq. 7 (none printed); 0: the largest distance as it is, as released
    distance: Literal["plain", "squared"] = "plain"  # eq. 6; squared as the released search gives it

    @field_validator("neighbours")
    @classmethod
    def compares(cls, neighbours: int) -> int:
        """One patch alone says nothing of a neighbourhood."""
        if neighbours == 1:
            raise ValueError("is 0 or 2 at least: among 1 neighbour the weight of eq. 7 is always 0")
        return neighbours

    @field_validator("neighbourhood")
    @classmethod
    def has_a_middle(cls, side: int) -> int:
        """An even square would shift all patches."""
        if side % 2 == 0:
            raise ValueError("is odd: an even square has no middle")
        return side

    def kept(self) -> tuple[int, str, str]:
        return self.bank * self.channels_in_all, f"{self.bank} patches of {self.channels_in_all} channels", "bank"


class PatchCore(FeatureDetector):
    """Distance to the nearest patch in a bank that covers the healthy ones."""

    Config: ClassVar[type] = PatchCoreConfig
    FAMILY = "feature"
    PAPER = "Roth et al. 2022, arXiv:2106.08265"
    NEEDS = "efficientnet_lite0"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            recipe=Recipe(epochs=1, batch=8, learning_rate=1.0, select="last"),
            settings={"size": 224, "bank": 10000},
            about="arXiv:2106.08265, 224 px, p = 3, sigma 4, a few per cent of the patches; Lite0 for WideResNet50",
        ),
        "fast": Preset(
            recipe=Recipe(epochs=1, batch=32, learning_rate=1.0, select="last"),
            settings={"projected": 32},
            about="64 px images enlarged to 224, 2000 patches; thinned in 32 channels, which is quicker",
        ),
        "tiny": Preset(
            recipe=Recipe(epochs=1, batch=16, learning_rate=1.0, select="last"),
            settings={"size": 32, "trunk": "alexnet", "enlarge": 128, "bank": 200, "distance": "squared"},
            about="tests",
        ),
    }

    config: PatchCoreConfig

    def __init__(self, config: PatchCoreConfig) -> None:
        super().__init__(config)
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.register_buffer("bank", torch.zeros(config.bank, config.channels_in_all))
        self.filled: Tensor
        self.bank: Tensor

    def rows(self, x: Tensor) -> Tensor:
        """(B, patches, channels) locally aware patch features (section 3.1)."""
        return joined(self.features(x), neighbourhood=self.config.neighbourhood, mode="bilinear")

    def collect(self, x: Tensor) -> dict[str, Tensor]:
        candidates = torch.cat([self.bank[: int(self.filled)], self.rows(x).flatten(0, 1)])
        radius = candidates.new_zeros(())
        if len(candidates) > len(self.bank):
            chosen, radius = coreset(projection(candidates, self.config.projected), len(self.bank))
            candidates = candidates[chosen]
        self.bank[: len(candidates)] = candidates
        self.filled.fill_(len(candidates))
        return {"radius": radius}

    def detect(self, x: Tensor) -> Detection:
        with torch.autocast(x.device.type, enabled=False):
            rows, bank = self.rows(x), self.bank[: max(1, int(self.filled))]
            distances, where = (found.view(rows.shape[:2]) for found in nearest(rows.flatten(0, 1), bank))
            if self.config.distance == "plain":
                distances = distances.sqrt()
            worst, patch = distances.max(1)
            image = torch.arange(len(x), device=x.device)
            score = self.weight(rows[image, patch], bank, where[image, patch]) * worst
            return Detection(map=self.picture(distances), score=score)

    def weight(self, worst: Tensor, bank: Tensor, where: Tensor) -> Tensor:
        """(B,) eq. 7: nearly 1 where the healthy patch that is nearest is lonely itself, less among many like it.

        Args:
            worst: (B, channels) the patches that decide.
            where: (B,) entries of the bank nearest to them.
        """
        count = min(self.config.neighbours, len(bank))
        if count == 0:
            return worst.new_ones(len(worst))
        around = nearest(bank[where], bank, count)[1]
        distances = torch.linalg.vector_norm(worst[:, None] - bank[around], dim=2)
        nearby = torch.linalg.vector_norm(worst - bank[where], dim=1)
        share = torch.exp(nearby - torch.logsumexp(distances, 1))
        return 1 - share

    def check(self, recipe: Recipe, images: int, validation: int) -> None:
        super().check(recipe, images, validation)
        used = recipe.used(images)
        if (patches := used * self.config.patches) < self.config.bank:
            raise ConfigError(
                f"the bank holds {self.config.bank} patches, but {used} healthy images give {patches}. "
                f"Set bank={patches} or less, or train on more images."
            )


def projection(rows: Tensor, channels: int) -> Tensor:
    """(n, channels) random projection, which nearly keeps distances; `rows` themselves if they have no more."""
    if rows.shape[1] <= channels:
        return rows
    directions = torch.randn(rows.shape[1], channels).to(rows)
    return rows @ directions / math.sqrt(channels)


def coreset(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Greedy k-centre: again and again the row that is farthest from those chosen (algorithm 1), from a random first.

    Args:
        rows: (n, channels), n at least `count`.

    Returns:
        (count,) different indices, and the largest distance of a row to the nearest chosen one.
    """
    norms = rows.square().sum(1)
    chosen = torch.empty(count, dtype=torch.int64, device=rows.device)
    apart = torch.full_like(norms, torch.inf)
    latest = torch.randint(len(rows), (1,)).to(rows.device)
    for number in range(count):
        chosen[number : number + 1] = latest
        centre = rows[latest]
        torch.minimum(apart, torch.addmv(norms, rows, centre[0], alpha=-2).add_(norms[latest]), out=apart)
        apart[latest] = -torch.inf  # never twice, even among equals
        latest = apart.argmax(0, keepdim=True)
    return chosen, apart.max().clamp(min=0).sqrt()
