"""AE-Grad: the plain autoencoder, asked how strongly each pixel pulls on its error.

Written from `MedIAnomaly`'s description (docs/methods/ae_grad.md); the idea is that of Zimmerer et al., "Unsupervised
Anomaly Localization using Variational Auto-Encoders", arXiv:1907.02796.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from salus.detectors.ae import AE
from salus.detectors.base import Preset

PULL = {"name": "gradient", "of": "rec", "sigma": 0.0}


class AEGrad(AE):
    """Autoencoder, mean squared error; the map is the absolute gradient of that error by the picture."""

    PAPER = "Zimmerer et al. 2019, arXiv:1907.02796"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": replace(
            AE.PRESETS["paper"],
            score=PULL,
            about="MedIAnomaly's: ae's recipe; the gradient is not smoothed",
        ),
        "fast": replace(AE.PRESETS["fast"], score=PULL),
        "tiny": replace(
            AE.PRESETS["tiny"],
            recipe=replace(AE.PRESETS["tiny"].recipe, epochs=60),
            score={**PULL, "image": "top5"},
            about="tests; a mean over all pixels hides a small hole from a network trained for seconds",
        ),
    }
