"""Plain residuals."""

from torch import Tensor

from salus.scores.base import Score


class Residual(Score):
    """|x - restored|."""

    name = "residual"

    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        return (x - restored).abs()


class Squared(Score):
    """(x - restored)^2 on [0, 1]; a quarter of the values Cai et al. print, who work on [-1, 1]."""

    name = "squared"

    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        return (x - restored).square()
