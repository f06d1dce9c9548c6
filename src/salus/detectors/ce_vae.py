"""ceVAE: a variational autoencoder that also restores images from which pieces were cut.

Written from Zimmerer et al., "Context-encoding Variational Autoencoder for Unsupervised Anomaly Detection",
arXiv:1812.05941. Without the variational part it is MedIAnomaly's ceAE; docs/methods/ce_vae.md.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from salus.detectors.base import Preset, Recipe, Weight
from salus.detectors.vae import VAE, Auto, VAEConfig
from salus.scores.base import Score

Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class CEVAEConfig(VAEConfig):
    """Settings of `CEVAE`.

    loss = scale x (beta_rec x squared error + beta_kl x KL + beta_ce x squared error of what is restored from `masked`)
    """

    beta_rec: Weight | Auto = "auto"  # 0 as well: with beta_kl 0, only cut images are learned from
    beta_ce: Weight | Auto = "auto"  # that of beta_rec, so that both restorations count alike
    rectangles: PositiveInt = 1  # cut out of each image; the RA authors' number
    sides: tuple[Share, Share] = (25 / 128, 50 / 128)  # shortest and longest, over the image's; the RA authors'
    fill: float = Field(0.0, ge=0, le=1)  # what a rectangle is set to; the RA authors' 0, ceAE's -1 on [-1, 1]

    @model_validator(mode="after")
    def learns_to_restore(self) -> "CEVAEConfig":
        """Some restoration must count, and sides run from the shortest to the longest."""
        if self.beta_rec == 0 and self.beta_ce in (0, "auto"):
            raise ValueError("nothing learns to restore: give beta_rec or beta_ce a weight")
        if self.sides[0] > self.sides[1]:
            raise ValueError(f"sides run from the shortest to the longest, not from {self.sides[0]} to {self.sides[1]}")
        return self


class CEVAE(VAE):
    """A VAE that must fill in what is missing, too, and so knows better what belongs where."""

    Config = CEVAEConfig
    PAPER = "Zimmerer et al. 2018, arXiv:1812.05941"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            settings={"widths": (16, 64, 256, 256)},
            recipe=Recipe(epochs=3000, batch=8, learning_rate=5e-4, augment="affine"),
            score={"name": "gradient", "of": "combi"},
            about="the RA authors' network, rectangles and rate, 128 px; weights of the losses and score by the paper",
        ),
        "ceae": Preset(
            settings={
                "size": 64,
                "network": "cai",
                "beta_rec": 0.0,
                "beta_kl": 0.0,
                "beta_ce": 1.0,
                "sides": (0.155, 0.155),
            },
            recipe=Recipe(epochs=250, batch=64, learning_rate=1e-3, select="last"),
            score={"name": "squared"},
            about="MedIAnomaly's ceAE: ae's network, no KL, one square of 2.4 % of the area cut out of every image",
        ),
        "fast": Preset(
            settings={**VAE.PRESETS["fast"].settings, "beta_kl": 0.5},
            recipe=VAE.PRESETS["fast"].recipe,
            score=VAE.PRESETS["fast"].score,
            about="vae's fast preset with the RA authors' rectangles; two restorations, so twice the price",
        ),
        "tiny": Preset(
            settings=VAE.PRESETS["tiny"].settings,
            recipe=VAE.PRESETS["tiny"].recipe,
            score=VAE.PRESETS["tiny"].score,
            about="tests",
        ),
    }

    def __init__(self, config: CEVAEConfig, score: Score) -> None:
        super().__init__(config, score)
        if config.beta_ce == "auto":
            self.config = replace(self.config, beta_ce=self.config.beta_rec)

    @property
    def weights(self) -> dict[str, float]:
        return super().weights | {"ce": self.config.beta_ce}

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        c = self.config
        # What has no weight is left out altogether: a pass would move the statistics of batch norms.
        losses = super().losses(x) if c.beta_rec or c.beta_kl else {}
        if c.beta_ce:
            mean, _ = self.encode(masked(x, c.rectangles, c.sides, c.fill))
            losses["ce"] = self.error(x, mean).mean()
        return losses

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        terms = super().terms(x)
        if self.config.beta_rec == 0:  # an image from which nothing is cut counts as the cut ones did
            terms["rec"] = self.weights["ce"] * self.error(x, self.encode(x)[0])
        return terms


def masked(x: Tensor, rectangles: int, sides: tuple[float, float], fill: float) -> Tensor:
    """`x` with random rectangles set to `fill`, others in each image; drawn from torch's global generator.

    Args:
        x: (B, C, size, size).
        rectangles: in each image; they lie wholly inside it and may overlap.
        sides: shortest and longest side over the image's; lengths are whole pixels, all equally likely.
        fill: what a rectangle is set to, in all channels.
    """
    size = x.shape[-1]
    shortest, longest = (max(1, round(share * size)) for share in sides)
    for_lengths, for_starts = torch.rand(2, 2, len(x), rectangles, 1, device=x.device)
    lengths = shortest + (for_lengths * (longest - shortest + 1)).floor()
    starts = (for_starts * (size - lengths + 1)).floor()
    at = torch.arange(size, device=x.device)
    rows, columns = (at >= starts) & (at < starts + lengths)  # (B, rectangles, size) each
    cut = (rows[..., :, None] & columns[..., None, :]).any(1, keepdim=True)
    return torch.where(cut, fill, x)
