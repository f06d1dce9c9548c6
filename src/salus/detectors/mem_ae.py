"""MemAE: an autoencoder that may only restore what a memory of healthy codes holds.

Written from Gong et al., "Memorizing Normality to Detect Anomaly: Memory-augmented Deep Autoencoder for Unsupervised
Anomaly Detection", arXiv:1904.02639, as in `MedIAnomaly`: one code an image, few items.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salus.core.errors import ConfigError
from salus.detectors.ae import AE, AEConfig
from salus.detectors.base import Preset, Recipe, inner, mean_squared
from salus.scores.base import Score

TINY = 1e-12  # keeps 0 / 0 and log 0 away


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class MemAEConfig(AEConfig):
    """Settings of `MemAE`."""

    items: int = Field(25, ge=1)  # N, codes in the memory; MedIAnomaly's. Gong et al.: 2000, one query a position
    threshold: float = Field(0.0025, ge=0)  # shares up to this become 0; released
    entropy_weight: float = Field(2e-4, ge=0)  # of the entropy of the shares; theirs
    similarity: Literal["dot", "cosine"] = "dot"  # of code and item: as released, or as printed

    @model_validator(mode="after")
    def attention_survives(self) -> "MemAEConfig":
        """A code that is like all items alike gives each 1 / N, which must clear the threshold with room to spare."""
        if self.code == "spatial":
            raise ValueError("the memory holds vectors: code must be 'vector'")
        if 2 * self.items * self.threshold > 1:
            raise ValueError(
                f"a memory of {self.items} items gives each a share near {1 / self.items:.2g}, which a threshold of "
                f"{self.threshold:g} would shrink to nothing: take at most {int(0.5 / self.threshold)} items, or a "
                f"threshold of at most {0.5 / self.items:.2g}"
            )
        return self


class MemAE(AE):
    """Autoencoder whose code is replaced by a sparse mixture of learned ones."""

    Config = MemAEConfig
    PAPER = "Gong et al. 2019, arXiv:1904.02639"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": replace(
            AE.PRESETS["paper"],
            about="MedIAnomaly's: 25 items, 64 px, d = 16, Adam 1e-3, batch 64, 250 epochs, last weights",
        ),
        "fast": AE.PRESETS["fast"],
        "tiny": AE.PRESETS["tiny"],
    }

    def __init__(self, config: MemAEConfig, score: Score) -> None:
        super().__init__(config, score)
        bound = config.latent**-0.5  # as torch draws a linear layer
        self.memory = nn.Parameter(torch.empty(config.items, config.latent).uniform_(-bound, bound))

    def check(self, recipe: Recipe, images: int, validation: int) -> None:
        super().check(recipe, images, validation)
        if images < self.config.items:
            raise ConfigError(
                f"a memory of {self.config.items} items needs as many images, not {images}. Set items lower."
            )

    def parts(self) -> Mapping[str, Iterable[nn.Parameter]]:
        return {"autoencoder": [*super().parts()["autoencoder"], self.memory]}

    def code(self, x: Tensor) -> Tensor:
        return self.attention(x) @ self.memory

    def attention(self, x: Tensor) -> Tensor:
        """(B, items) shares >= 0 of the items in the code of each image; they add up to 1."""
        z, items = self.encoder(inner(x)).float(), self.memory.float()
        if self.config.similarity == "cosine":
            z, items = F.normalize(z), F.normalize(items)
        with torch.autocast(x.device.type, enabled=False):
            return shrunk(F.softmax(z @ items.T, dim=1), self.config.threshold)

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        attention = self.attention(x)
        error = mean_squared(self.decode(attention @ self.memory), inner(x)).mean()
        return {"rec": error, "entropy": self.config.entropy_weight * entropy(attention).mean()}


def shrunk(shares: Tensor, threshold: float) -> Tensor:
    """Shares up to `threshold` become 0, the others stay; then they add up to 1 again."""
    above = shares - threshold
    return F.normalize(above.clamp(min=0) * shares / (above.abs() + TINY), p=1, dim=1)


def entropy(shares: Tensor) -> Tensor:
    """(B,) nats, of (B, items)."""
    return -(shares * (shares + TINY).log()).sum(1)
