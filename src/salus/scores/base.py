"""The face of a score."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

Reduction = Literal["mean", "top5", "top1", "max"]
Terms = Callable[[Tensor], Mapping[str, Tensor]]  # what a network minimises, by name, (B,) each; see `Restorer.terms`
SHARES = {"mean": 1.0, "top5": 0.05, "top1": 0.01, "max": 0.0}


class Score(nn.Module, ABC):
    """(image, restored) -> map -> one number an image. Rebuilt from its settings; only what `fit` found is saved.

    A score checks its settings itself: `pydantic.validate_call` on its constructor, whose annotations name them.

    Args:
        name: how tables call it, with everything that changes the numbers in it.
        image: how a map becomes the image's score: its mean (as published), the mean of its highest 5 or 1 per cent
            of pixels, or its maximum. A small finding is lost in the mean of a large image.
    """

    LEAST: ClassVar[int] = 0  # healthy images that `fit` needs

    def __init__(self, name: str, image: Reduction) -> None:
        super().__init__()
        self.image = image
        self.name = name if image == "mean" else f"{name}-{image}"

    @property
    def learns(self) -> bool:
        """Whether `fit` takes something from the healthy images it is shown."""
        return type(self).fit is not Score.fit

    @abstractmethod
    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        """Compare two (B, 1, H, W) batches in [0, 1]; (B, 1, H, W) >= 0, higher where they disagree more."""

    def compare(self, x: Tensor, restored: Tensor, terms: Terms) -> Tensor:
        """The map when the network is at hand as well; for most scores the two pictures say all."""
        anomaly: Tensor = self(x, restored)
        return anomaly

    def sized(self, size: int) -> None:
        """Make room for what is kept for each pixel of (size, size) pictures; called once, before anything else."""

    def fit(self, healthy: Iterable[tuple[Tensor, Tensor]], terms: Terms) -> None:
        """Learn from healthy (x, restored) batches that nothing was trained on; most scores have nothing to learn."""

    def reduce(self, anomaly: Tensor) -> Tensor:
        """(B,) image scores of (B, 1, H, W) maps."""
        pixels = anomaly.flatten(1)
        if self.image == "mean":
            return pixels.mean(1)
        return pixels.topk(max(1, round(SHARES[self.image] * pixels.shape[1])), dim=1).values.mean(1)
