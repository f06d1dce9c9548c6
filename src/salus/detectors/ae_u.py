"""AE-U: an autoencoder that says at each pixel how far off it expects to be.

Written from Mao, Xue, Wang, Zhang, Zheng, Liu, "Abnormality Detection in Chest X-Ray Images Using Uncertainty
Prediction Autoencoders", MICCAI 2020, doi:10.1007/978-3-030-59725-2_51, as in `MedIAnomaly`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from salus.detectors.ae import AE, AEConfig
from salus.detectors.base import Detection, Preset, inner

LIMIT = 10.0  # of |r|: exp(-LIMIT / 2) is less than a grey level of 8 bits. Ours; without it r may run away


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class AEUConfig(AEConfig):
    """Settings of `AEU`."""

    weighted: bool = True  # the score's map times exp(-r), as published with `squared`; off: the score's map alone


class AEU(AE):
    """Autoencoder with a second output r, the log variance of its error; errors that were expected count less."""

    CHANNELS = 2
    Config = AEUConfig
    PAPER = "Mao et al. 2020, doi:10.1007/978-3-030-59725-2_51"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": replace(
            AE.PRESETS["paper"], about="MedIAnomaly's: 64 px, d = 16, Adam 1e-3, batch 64, 250 epochs, last weights"
        ),
        "fast": AE.PRESETS["fast"],
        "tiny": AE.PRESETS["tiny"],
    }

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Restoration on the inner scale and r, (B, 1, H, W) each."""
        restored, log_variance = self.decode(self.code(x)).chunk(2, 1)
        return restored, LIMIT * torch.tanh(log_variance / LIMIT)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.outputs(x)[0]

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        restored, log_variance = self.outputs(x)
        error = torch.exp(-log_variance) * (restored - inner(x)).square()
        return {"rec": (error + log_variance).flatten(1).mean(1)}

    def detect(self, x: Tensor) -> Detection:
        seen = super().detect(x)
        if not self.config.weighted:
            return seen
        anomaly = seen.map * torch.exp(-self.outputs(x)[1])
        return replace(seen, map=anomaly, score=self.score.reduce(anomaly))
