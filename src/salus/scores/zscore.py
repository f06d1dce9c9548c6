"""How unusual a difference is at its place, or in tissue of its brightness, among healthy images."""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, validate_call
from torch import Tensor

from salus.core.errors import ConfigError
from salus.scores.base import Reduction, Score, Terms
from salus.scores.residual import gaussian

LEVELS = 32  # grey levels that are told apart


class ZScore(Score):
    """(map - mean) / SD of another score's map, mean and SD from healthy images; below the mean is 0.

    Where healthy images are always restored badly, such as at the cortex, a difference then counts for less. Few
    images give noisy statistics, so both are smoothed over neighbours, and the SD never falls under a share of its
    mean.

    Args:
        of: the other score, by name, or as its settings: {"name": "smoothed", "sigma": 2}.
        by: "pixel" has a mean and an SD for each pixel, "level" for each of 32 grey levels of the restoration.
        sigma: of the Gaussian that smooths mean and variance, pixels or levels.
        least: share of the mean SD below which none falls.
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
        by: Literal["pixel", "level"] = "pixel",
        sigma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0,
        least: Annotated[float, Field(gt=0, le=1)] = 0.1,
        image: Reduction = "mean",
    ) -> None:
        from salus.scores import build_score

        inner = build_score(**({"name": of} if isinstance(of, str) else of))
        if isinstance(inner, ZScore):
            raise ConfigError("score.of: a z-score of a z-score says nothing new.")
        name = f"zscore-{inner.name}{'' if by == 'pixel' else '-by-level'}"
        name += f"{'' if sigma == 1 else f'-sigma-{sigma:g}'}{'' if least == 0.1 else f'-least-{least:g}'}"
        super().__init__(name, image)
        self.of, self.by, self.sigma, self.least = inner, by, sigma, least

    def sized(self, size: int) -> None:
        self.of.sized(size)
        shape = (1, 1, size, size) if self.by == "pixel" else (LEVELS,)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("spread", torch.ones(shape))

    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        return self.standardised(self.of(x, restored), restored)

    def compare(self, x: Tensor, restored: Tensor, terms: Terms) -> Tensor:
        return self.standardised(self.of.compare(x, restored, terms), restored)

    def standardised(self, anomaly: Tensor, restored: Tensor) -> Tensor:
        """(B, 1, H, W) in units of the healthy SD, 0 below the healthy mean."""
        at = slice(None) if self.by == "pixel" else level(restored)
        return ((anomaly - self.mean[at]) / self.spread[at]).clamp(min=0)

    def fit(self, healthy: Iterable[tuple[Tensor, Tensor]], terms: Terms) -> None:
        pairs = [(self.of.compare(x, restored, terms).float(), restored) for x, restored in healthy]
        maps, pictures = (torch.cat(both) for both in zip(*pairs, strict=True))
        if len(maps) < self.LEAST:
            raise ConfigError(f"score zscore needs {self.LEAST} healthy validation images or more, got {len(maps)}.")
        mean, variance = self.by_pixel(maps) if self.by == "pixel" else self.by_level(maps, level(pictures))
        spread = variance.sqrt()
        self.mean.copy_(mean)
        self.spread.copy_(spread.clamp(min=max(self.least * float(spread.mean()), 1e-8)))

    def by_pixel(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, each (1, 1, H, W)."""
        variance, mean = torch.var_mean(maps, 0, keepdim=True)
        return gaussian(mean, self.sigma), gaussian(variance, self.sigma)

    def by_level(self, maps: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, each (LEVELS,); smoothed as levels, however many pixels each has.

        Where no level with pixels is near, those of all pixels.
        """
        values, at = maps.double().flatten(), levels.flatten()
        count = torch.bincount(at, minlength=LEVELS).double()
        seen = count > 1
        mean = torch.bincount(at, values, LEVELS) / count.clamp(min=1)
        variance = torch.bincount(at, (values - mean[at]).square(), LEVELS) / (count - 1).clamp(min=1)
        near, *sums = (
            gaussian((s * seen).view(1, 1, 1, -1), self.sigma).flatten() for s in (seen.double(), mean, variance)
        )
        return (
            torch.where(near > 0, sums[0] / near, values.mean()),
            torch.where(near > 0, sums[1] / near, values.var()),
        )


def level(restored: Tensor) -> Tensor:
    """Which of LEVELS equal steps of [0, 1] each pixel is in."""
    return (restored.clamp(0, 1) * LEVELS).long().clamp(max=LEVELS - 1)
