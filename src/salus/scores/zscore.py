"""How unusual a difference is at its place, among healthy images."""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, validate_call
from torch import Tensor

from salus.core.errors import ConfigError
from salus.scores.base import Reduction, Score, Terms
from salus.scores.residual import gaussian


class ZScore(Score):
    """(map - mean) / SD of another score's map, mean and SD from healthy images at each pixel; below the mean is 0.

    Where healthy images are always restored badly, such as at the cortex, a difference then counts for less. Few
    images give noisy statistics, so both are smoothed over neighbours, and the SD never falls under a share of its mean
    over the image.

    Args:
        of: the other score, by name, or as its settings: {"name": "smoothed", "sigma": 2}.
        sigma: of the Gaussian that smooths mean and variance, pixels.
        least: share of the image's mean SD below which no pixel's SD falls.
        image: see `Score`.
    """

    LEAST: ClassVar[int] = 2
    mean: Tensor
    spread: Tensor

    @validate_call
    def __init__(
        self,
        *,
        of: str | dict[str, Any] = "residual",
        sigma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0,
        least: Annotated[float, Field(gt=0, le=1)] = 0.1,
        image: Reduction = "mean",
    ) -> None:
        from salus.scores import build_score

        inner = build_score(**({"name": of} if isinstance(of, str) else of))
        if isinstance(inner, ZScore):
            raise ConfigError("score.of: a z-score of a z-score says nothing new.")
        super().__init__(f"zscore-{inner.name}", image)
        self.of, self.sigma, self.least = inner, sigma, least

    def sized(self, size: int) -> None:
        self.of.sized(size)
        self.register_buffer("mean", torch.zeros(1, 1, size, size))
        self.register_buffer("spread", torch.ones(1, 1, size, size))

    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        return self.standardised(self.of(x, restored))

    def compare(self, x: Tensor, restored: Tensor, terms: Terms) -> Tensor:
        return self.standardised(self.of.compare(x, restored, terms))

    def standardised(self, anomaly: Tensor) -> Tensor:
        """(B, 1, H, W) in units of the healthy SD, 0 below the healthy mean."""
        return ((anomaly - self.mean) / self.spread).clamp(min=0)

    def fit(self, healthy: Iterable[tuple[Tensor, Tensor]], terms: Terms) -> None:
        maps = torch.cat([self.of.compare(x, restored, terms) for x, restored in healthy]).float()
        if len(maps) < self.LEAST:
            raise ConfigError(f"score zscore needs {self.LEAST} healthy validation images or more, got {len(maps)}.")
        variance, mean = torch.var_mean(maps, 0, keepdim=True)
        spread = gaussian(variance, self.sigma).sqrt()
        self.mean.copy_(gaussian(mean, self.sigma))
        self.spread.copy_(spread.clamp(min=max(self.least * float(spread.mean()), 1e-8)))
