"""Constrained AE: an autoencoder that must give an image and its restoration the same code.

Written from Chen and Konukoglu, "Unsupervised Detection of Lesions in Brain MRI using constrained adversarial
auto-encoders", arXiv:1806.04972, without its adversary, as in `MedIAnomaly`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from salus.detectors.ae import AE, AEConfig
from salus.detectors.base import Preset, inner, mean_squared


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class ConstrainedAEConfig(AEConfig):
    """Settings of `ConstrainedAE`."""

    code_weight: float = Field(1.0, ge=0)  # of the mean squared difference of the two codes; MedIAnomaly's


class ConstrainedAE(AE):
    """Autoencoder whose restoration must be encoded as the image was."""

    Config = ConstrainedAEConfig
    PAPER = "Chen and Konukoglu 2018, arXiv:1806.04972"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": replace(
            AE.PRESETS["paper"], about="MedIAnomaly's: 64 px, d = 16, Adam 1e-3, batch 64, 250 epochs, last weights"
        ),
        "fast": AE.PRESETS["fast"],
        "tiny": AE.PRESETS["tiny"],
    }

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        z = self.code(x)
        restored = self.decode(z)
        again = self.encoder(restored)
        return {
            "rec": mean_squared(restored, inner(x)).mean(),
            "code": self.config.code_weight * mean_squared(z.float(), again.float()).mean(),
        }
