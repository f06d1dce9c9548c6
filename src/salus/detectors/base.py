"""What every detector promises.

A detector says *what* is learned and in which order by calling `update(part, loss)`; the loop in
`salus.training` knows *how*. Images go in as (B, 1, H, W) float32 in [0, 1]; higher is more abnormal, everywhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn

from salus.scores.base import Score


class Update(Protocol):
    """One optimiser step of one part (or of several together); the other parts stay as they are.

    With `keep_graph` the graph behind `loss` can serve a second update.
    """

    @abstractmethod
    def __call__(self, part: str | tuple[str, ...], loss: Tensor, *, keep_graph: bool = False) -> None:
        """Step `part` down the gradient of `loss`."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """What a detector saw in a batch.

    Attributes:
        map: (B, 1, H, W) >= 0.
        score: (B,).
        restored: (B, 1, H, W) in [0, 1], the pseudo-healthy image, or None.
    """

    map: Tensor
    score: Tensor
    restored: Tensor | None = None


@checked_dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Recipe:
    """How long and how fast the loop trains. Part of a preset; every value can be set on the command line.

    Attributes:
        epochs: passes over the training images.
        batch: images a step; an incomplete last batch is dropped, unless it is the only one.
        learning_rate: Adam's, constant; betas .9, .999, no weight decay.
        clip: largest gradient norm of a part, 0 for none.
        select: weights kept: of the epoch with the lowest healthy validation loss, or of the last one.
        select_after: share of training before which no epoch is eligible as best (a warm-up is not the method).
        patience: epochs without a better validation loss before stopping early, 0 for never.
        augment: "none", or "affine": +-10 degrees, +-10 % shift, 0.9-1.1 scale, left-right flip (RA's release).
        average: decay a step of an exponential moving average of the weights, which is then what is kept; 0 for none.
    """

    epochs: int = Field(ge=1)
    batch: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    clip: float = Field(default=0.0, ge=0)
    select: Literal["best", "last"] = "best"
    select_after: float = Field(default=0.0, ge=0, lt=1)
    patience: int = Field(default=0, ge=0)
    augment: Literal["none", "affine"] = "none"
    average: float = Field(default=0.0, ge=0, lt=1)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Data: settings of the detector, of its score, and the recipe. `about` says where the values come from."""

    recipe: Recipe
    settings: Mapping[str, Any] = field(default_factory=dict)
    score: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""


class Detector(nn.Module, ABC):
    """A method: its networks, what they learn, and how it sees."""

    Config: ClassVar[type]
    PRESETS: ClassVar[Mapping[str, Preset]]
    FAMILY: ClassVar[str]
    PAPER: ClassVar[str]

    config: Any  # an instance of Config; `config.size` is the side of the square input in pixels

    @abstractmethod
    def parts(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """The groups of parameters that are stepped separately, by name; empty if nothing is learned by descent."""

    @abstractmethod
    def training_step(self, x: Tensor, update: Update, progress: float) -> dict[str, Tensor]:
        """Learn from healthy images.

        Args:
            x: (B, 1, H, W) in [0, 1].
            update: to be called once or more, in the method's order.
            progress: share of the training that is done, in [0, 1).

        Returns:
            Scalars to log, detached.
        """

    @abstractmethod
    def detect(self, x: Tensor) -> Detection:
        """Map and score what does not look healthy. Deterministic; call in eval mode, without gradients."""

    @abstractmethod
    def validation_loss(self, x: Tensor) -> Tensor:
        """(B,) how badly healthy images are explained; decides the best epoch. Lower is better."""

    def finish_training(self) -> None:
        """Called once after the last step, before the weights are saved."""
        self.eval()


class Restorer(Detector):
    """A detector that restores a pseudo-healthy image and compares; the comparison is interchangeable."""

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score

    @abstractmethod
    def restore(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) in [0, 1]: what `x` would look like if it were healthy."""

    def detect(self, x: Tensor) -> Detection:
        restored = self.restore(x)
        anomaly = self.score(x, restored)
        return Detection(map=anomaly, score=self.score.reduce(anomaly), restored=restored)

    def validation_loss(self, x: Tensor) -> Tensor:
        return (self.restore(x) - x).square().flatten(1).mean(1)
