"""Comparing an image with its restoration. One score a name; the name is part of every result."""

import importlib
from typing import Any

from pydantic import ValidationError

from salus.core.errors import ConfigError, did_you_mean
from salus.scores.base import Score

SCORES = {
    "residual": "salus.scores.residual:Residual",
    "squared": "salus.scores.residual:Squared",
    "smoothed": "salus.scores.residual:Smoothed",
    "ssim": "salus.scores.similarity:SSIM",
    "perceptual": "salus.scores.similarity:Perceptual",
    "equation5": "salus.scores.equation5:Equation5",
    "gradient": "salus.scores.gradient:Gradient",
    "relative-features": "salus.scores.features:RelativeFeatures",
    "zscore": "salus.scores.zscore:ZScore",
}


def build_score(name: str = "residual", **settings: Any) -> Score:
    """The score called `name`.

    Raises:
        ConfigError: no such score, setting or value; the message names it.
        WeightsError: it needs pretrained weights that are not there.
    """
    if not isinstance(name, str) or name not in SCORES:
        raise ConfigError(f"There is no score '{name}'.{did_you_mean(str(name), SCORES)}")
    module, attribute = SCORES[name].split(":")
    kind = getattr(importlib.import_module(module), attribute)
    known = [k for k in kind.__init__.__annotations__ if k != "return"]
    for key in settings:
        if key not in known:
            raise ConfigError(f"score {name} has no setting '{key}'.{did_you_mean(key, known)}")
    try:
        score: Score = kind(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"score.{first['loc'][0]}: {first['msg']}, got {first['input']!r}.") from None
    return score
