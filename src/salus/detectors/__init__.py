"""The registry: a name of the command line to a class. Adding a method costs one line here."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from salus.core.errors import ConfigError, complaint, did_you_mean
from salus.detectors.base import Detection, Detector, Preset, Recipe, Restorer, Update
from salus.scores import build_score

DETECTORS = {
    "ae": "salus.detectors.ae:AE",
    "ae-grad": "salus.detectors.ae_grad:AEGrad",
    "ae-perceptual": "salus.detectors.ae_perceptual:AEPerceptual",
    "ae-ssim": "salus.detectors.ae_ssim:AESSIM",
    "ae-u": "salus.detectors.ae_u:AEU",
    "ce-vae": "salus.detectors.ce_vae:CEVAE",
    "constrained-ae": "salus.detectors.constrained_ae:ConstrainedAE",
    "dae": "salus.detectors.dae:DAE",
    "ddpm": "salus.detectors.ddpm:DDPM",
    "f-anogan": "salus.detectors.f_anogan:FAnoGAN",
    "ganomaly": "salus.detectors.ganomaly:GANomaly",
    "knn": "salus.detectors.knn:KNN",
    "ltm": "salus.detectors.ltm:LTM",
    "mae": "salus.detectors.mae:MAE",
    "mean-intensity": "salus.detectors.floors:MeanIntensity",
    "mem-ae": "salus.detectors.mem_ae:MemAE",
    "mkd": "salus.detectors.mkd:MKD",
    "padim": "salus.detectors.padim:PaDiM",
    "patchcore": "salus.detectors.patchcore:PatchCore",
    "pca": "salus.detectors.floors:PCA",
    "ra": "salus.detectors.ra:RA",
    "random-features": "salus.detectors.floors:RandomFeatures",
    "si-vae": "salus.detectors.si_vae:SIVAE",
    "vae": "salus.detectors.vae:VAE",
}

ENSEMBLE = "ensemble"
NO_METHOD = "An ensemble is made of trained models, by `salus combine`; there is nothing to train."

__all__ = [
    "DETECTORS",
    "ENSEMBLE",
    "NO_METHOD",
    "Detection",
    "Detector",
    "Preset",
    "Recipe",
    "Restorer",
    "Update",
    "build",
    "detector_class",
]


def detector_class(name: str) -> type[Detector]:
    """The class behind a name of `DETECTORS`, or `ENSEMBLE`.

    Raises:
        ConfigError: no such detector.
    """
    known = {**DETECTORS, ENSEMBLE: "salus.detectors.ensemble:Ensemble"}
    if name not in known:
        raise ConfigError(f"There is no detector '{name}'.{did_you_mean(name, DETECTORS)}")
    module, attribute = known[name].split(":")
    found: type[Detector] = getattr(importlib.import_module(module), attribute)
    return found


def build(name: str, settings: Mapping[str, Any], score: Mapping[str, Any]) -> Detector:
    """A fresh detector, its weights drawn from torch's global generator.

    Args:
        name: key of `DETECTORS`, or `ENSEMBLE`.
        settings: values for its `Config`; what is left out has the default.
        score: `name` and settings of the score; empty for methods that restore nothing.

    Raises:
        ConfigError: no such detector, setting or value, or a score where none is taken; the message names it.
    """
    kind = detector_class(name)
    known = [field.name for field in dataclasses.fields(kind.Config)]
    for key in settings:
        if key not in known:
            raise ConfigError(f"{name} has no setting '{key}'.{did_you_mean(key, known)}")
    try:
        config = kind.Config(**settings)
    except ValidationError as error:
        raise ConfigError(f"{name}: {complaint(error)}.") from None
    if issubclass(kind, Restorer):
        comparison = build_score(**score)
        comparison.sized(config.size)
        return kind(config, comparison)  # type: ignore[call-arg]
    # The plain residual changes no number, and who builds any detector alike (salus.benchmark.floors) may pass it.
    if score and dict(score) != {"name": "residual"}:
        raise ConfigError(f"{name} restores nothing, so it takes no score.")
    return kind(config)
