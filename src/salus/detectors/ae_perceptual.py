"""AE-perceptual: an autoencoder that restores what a trained network sees.

Written from Shvetsova, Bakker, Fedulova, Schulz, Dylov, "Anomaly Detection in Medical Imaging with Deep Perceptual
Autoencoders", arXiv:2006.13265, as in `MedIAnomaly`; where this differs: docs/methods/ae_perceptual.md.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from salus.detectors.ae import AE, AEConfig
from salus.detectors.base import Preset
from salus.scores.base import Score
from salus.scores.features import Layer, TrunkName, relative


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class AEPerceptualConfig(AEConfig):
    """Settings of `AEPerceptual`."""

    trunk: TrunkName = "vgg16"  # whose features are to come back; published: VGG19's. AlexNet travels with Salus
    enlarge: int = Field(1, ge=1)  # factor by which the trunk's pictures are enlarged; AlexNet was made for large ones


class AEPerceptual(AE):
    """Autoencoder trained on the share of a frozen network's features that its restoration lacks."""

    Config = AEPerceptualConfig
    PAPER = "Shvetsova et al. 2021, arXiv:2006.13265"
    NEEDS = "alexnet-tv"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": replace(
            AE.PRESETS["paper"],
            score={"name": "relative-features", "trunk": "vgg16"},
            about="MedIAnomaly's: 64 px, d = 16, Adam 1e-3, batch 64, 250 epochs; VGG16 for its VGG19",
        ),
        "fast": replace(
            AE.PRESETS["fast"],
            recipe=replace(AE.PRESETS["fast"].recipe, epochs=100, batch=16),
            settings={"trunk": "alexnet", "enlarge": 2},
            score={"name": "relative-features", "trunk": "alexnet", "enlarge": 2},
            about="AlexNet, which travels with Salus, on pictures enlarged twofold; smaller batches, fewer epochs",
        ),
        "tiny": replace(
            AE.PRESETS["tiny"],
            settings={**AE.PRESETS["tiny"].settings, "trunk": "alexnet", "enlarge": 2},
            about="tests; the score is ae's, as the features of 32 pixels have few places",
        ),
    }

    def __init__(self, config: AEPerceptualConfig, score: Score) -> None:
        super().__init__(config, score)
        self.layer = Layer(config.trunk, config.enlarge)

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        # Not clamped: a pixel outside [0, 1] would be out of reach of the gradient.
        return {"rec": relative(self.layer(x), self.layer(self.unclamped(x)), (1, 2, 3)).flatten()}
