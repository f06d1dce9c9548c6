"""Soft-introspective variational autoencoder (SI-VAE): an encoder that repels what its decoder makes.

Written from Daniel and Tamar, "Soft-IntroVAE: Analyzing and Improving the Introspective Variational Autoencoder",
arXiv:2012.13253. RA is this method with one more loss; what both do is in `introspective`.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic.dataclasses import dataclass

from salus.detectors.base import Preset, Recipe
from salus.detectors.introspective import Introspective, IntrospectiveConfig
from salus.detectors.ra import RA
from salus.scores.base import Score


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class SIVAEConfig(IntrospectiveConfig):
    """Settings of `SIVAE`."""

    sigmoid: bool = True  # on: as the RA authors' baseline; off: the original's linear output


class SIVAE(Introspective):
    """Encoder and decoder of a VAE that argue over what the decoder makes."""

    Config = SIVAEConfig
    FAMILY = "reconstruction"
    PAPER = "Daniel and Tamar 2021, arXiv:2012.13253"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            recipe=Recipe(epochs=1500, batch=8, learning_rate=5e-5, patience=500, augment="affine"),
            settings={"size": 128, "latent": 128, "widths": (64, 128, 256, 512, 512), "beta_rec": 0.5},
            score={"name": "residual"},
            about="the RA authors' baseline: beta_rec 0.5, beta_neg 128, batch 8, 1500 epochs, |x - restored|",
        ),
        "fast": Preset(
            recipe=RA.PRESETS["fast"].recipe,
            settings=RA.PRESETS["fast"].settings,
            score=RA.PRESETS["fast"].score,
            about="RA's fast preset without its reversed loss; docs/fast-preset.md",
        ),
        "tiny": Preset(
            recipe=RA.PRESETS["tiny"].recipe,
            settings=RA.PRESETS["tiny"].settings,
            score=RA.PRESETS["tiny"].score,
            about="tests",
        ),
    }

    def __init__(self, config: SIVAEConfig, score: Score) -> None:
        super().__init__(config, score, sigmoid=config.sigmoid)
