"""The face of a score."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Score(nn.Module, ABC):
    """(image, restored) -> map. Frozen; it is rebuilt from its settings, never saved with a model."""

    name: str  # how tables call it, with everything that changes the numbers in it

    @abstractmethod
    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        """Compare two (B, 1, H, W) batches in [0, 1]; (B, 1, H, W) >= 0, higher where they disagree more."""
