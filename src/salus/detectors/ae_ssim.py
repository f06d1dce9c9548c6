"""AE-SSIM: an autoencoder that restores structure rather than values.

Written from Bergmann, Loewe, Fauser, Sattlegger, Steger, "Improving Unsupervised Defect Segmentation by Applying
Structural Similarity to Autoencoders", arXiv:1807.02011, as in `MedIAnomaly`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass
from torch import Tensor

from salus.detectors.ae import AE, AEConfig
from salus.detectors.base import Preset
from salus.scores.similarity import dissimilarity


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class AESSIMConfig(AEConfig):
    """Settings of `AESSIM`."""

    # What a restoration has outside [0, 1] is clamped before SSIM, as released. Its gradient is then 0 and it can stay
    # there for good ("stuck"); or its squared distance from [0, 1] is minimised, too ("pulled", ours).
    outside: Literal["pulled", "stuck"] = "pulled"


class AESSIM(AE):
    """Autoencoder trained on 1 - SSIM of the picture and its restoration, both in [0, 1]."""

    Config = AESSIMConfig
    PAPER = "Bergmann et al. 2019, arXiv:1807.02011"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": replace(
            AE.PRESETS["paper"],
            settings={"outside": "stuck"},
            score={"name": "ssim"},
            about="MedIAnomaly's: 64 px, d = 16, Adam 1e-3, batch 64, 250 epochs, last weights",
        ),
        "fast": replace(
            AE.PRESETS["fast"], score={"name": "ssim"}, about="the published recipe, `pulled`: it fits a laptop"
        ),
        "tiny": replace(AE.PRESETS["tiny"], about="tests; the score is ae's, as SSIM's window is a third of 32 pixels"),
    }

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        return {"rec": clamped_dissimilarity(x, self.unclamped(x))}

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        restored = self.unclamped(x)
        losses = {"rec": clamped_dissimilarity(x, restored).mean()}
        if self.config.outside == "pulled":
            losses["outside"] = (restored - restored.clamp(0, 1)).square().mean()
        return losses


def clamped_dissimilarity(x: Tensor, restored: Tensor) -> Tensor:
    """(B,) mean dissimilarity of (B, 1, H, W) in [0, 1] and a restoration, which is clamped to it."""
    return dissimilarity(x, restored.clamp(0, 1)).flatten(1).mean(1)
