"""What every detector promises.

A detector says *what* is learned and in which order by calling `update(part, loss)`; the loop in
`salus.training` knows *how*. Images go in as (B, 1, H, W) float32 in [0, 1]; higher is more abnormal, everywhere.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
import torch.distributed
import torch.nn.functional as F
from pydantic import Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn

from salus.core.errors import ConfigError, complaint, did_you_mean
from salus.nets.trunks import Frozen
from salus.scores.base import Score

OF_A_PART = ("optimiser", "learning_rate", "betas", "weight_decay")

# No network here is wider, and what a slip of the finger asks for must not end in an exhausted machine.
Channels = Annotated[int, Field(gt=0, le=2**14)]
Entries = Annotated[int, Field(gt=0, le=2**16)]
Side = Annotated[int, Field(le=4096)]  # pixels; what images can be prepared to
Beta = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]

# Pixels that go through a network together: more leave a processor's cache, fewer leave a GPU idle.
PIXELS_AT_ONCE = {"cpu": 2**17, "cuda": 2**21}

SMOOTHED: Mapping[str, Any] = {"name": "smoothed", "sigma": 2.0, "image": "top1"}  # of `fast`; docs/fast-preset.md


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
        steps: in their place, batches to learn from in all, as the nearest number of whole passes, one at the least.
        batch: images a step; an incomplete last batch is dropped, unless it is the only one.
        learning_rate: of the optimiser.
        optimiser: "adam", "amsgrad", "adamw" (decoupled decay) or "rmsprop" (which takes no betas).
        betas, weight_decay: of the optimiser.
        schedule: "constant", or "cosine": from learning_rate down to 0 over `period` steps, then up again, and so on.
        period: steps of half a cosine; 0 for the whole training.
        warm: share of the training over which the rate first rises linearly from 0.
        parts: other values of optimiser, learning_rate, betas or weight_decay for a part of the detector, by its name.
        clip: largest gradient norm of a part, 0 for none.
        select: weights kept: of the epoch with the lowest healthy validation loss, or of the last one.
        select_after: share of training before which no epoch is eligible as best (a warm-up is not the method).
        patience: epochs without a better validation loss before stopping early, 0 for never.
        augment: "none", or "affine": +-10 degrees, +-10 % shift, 0.9-1.1 scale, left-right flip (RA's release).
        average: decay a step of an exponential moving average of the weights, which is then what is kept; 0 for none.
    """

    epochs: int = Field(default=1, ge=1)
    steps: int = Field(default=0, ge=0)
    batch: int = Field(ge=1)
    learning_rate: float = Field(gt=0, le=1e30)  # more is no single-precision step
    optimiser: Literal["adam", "amsgrad", "adamw", "rmsprop"] = "adam"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    period: int = Field(default=0, ge=0)
    warm: float = Field(default=0.0, ge=0, lt=1)
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    clip: float = Field(default=0.0, ge=0)
    select: Literal["best", "last"] = "best"
    select_after: float = Field(default=0.0, ge=0, lt=1)
    patience: int = Field(default=0, ge=0)
    augment: Literal["none", "affine"] = "none"
    average: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def parts_are_recipes(self) -> "Recipe":
        """What a part overrides must exist and fit."""
        for name, values in self.parts.items():
            for key in values:
                if key not in OF_A_PART:
                    raise ValueError(f"part {name} cannot have its own '{key}'.{did_you_mean(key, OF_A_PART)}")
            try:
                self.of(name)
            except ValidationError as error:
                raise ValueError(f"part {name}: {complaint(error)}") from None
        return self

    @property
    def validated(self) -> bool:
        """Whether healthy validation images choose the epoch."""
        return self.select == "best" or self.patience > 0

    def of(self, part: str) -> "Recipe":
        """The recipe as `part` sees it."""
        return replace(self, parts={}, **self.parts.get(part, {}))

    def for_images(self, images: int, processes: int = 1) -> "Recipe":
        """The same where `epochs` is what will be trained: of so many images as many as `steps` asks for."""
        an_epoch = max(1, images // (self.batch * processes))
        return replace(self, epochs=max(1, round(self.steps / an_epoch))) if self.steps else self

    def in_epochs(self, epochs: int) -> "Recipe":
        """The same for so many epochs, whatever it counted."""
        return replace(self, epochs=epochs, steps=0)

    def used(self, images: int, processes: int = 1) -> int:
        """How many of so many images an epoch shows."""
        together = self.batch * processes
        return images // together * together or images


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
    NEEDS: ClassVar[str] = ""  # id of the pretrained weights that `fast` cannot do without, of `salus weights list`

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

    @property
    def judged_by(self) -> str:
        """What tables name beside the method: where its map and its image score come from."""
        return ""

    def at_once(self, device: str) -> int:
        """How many images `detect` is best given together on a device of this type."""
        pixels: int = self.config.size**2
        return max(1, PIXELS_AT_ONCE[device] // pixels)

    def check(self, recipe: Recipe, images: int, validation: int) -> None:
        """Refuse before training what could only fail in it or after it; in evaluation mode afterwards.

        Args:
            images, validation: how many there are to learn from, and to watch the learning.

        Raises:
            ConfigError: says what to set.
        """
        self.eval()
        if min(images, recipe.batch) < 2 and self.normalises_single_values():
            raise ConfigError(
                f"The batch norm of this method needs two images a step or more: recipe.batch is {recipe.batch}, and "
                f"there are {images} training images."
            )

    def too_large(self) -> str:
        """Why a training would need more memory than there is beyond the tensors of the network; empty where not."""
        return ""

    def normalises_single_values(self) -> bool:
        """Whether a batch norm that learns gets one value a channel of an image, so that one image has no spread."""
        single: list[bool] = []
        norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.weight.requires_grad]
        hooks = [norm.register_forward_pre_hook(lambda _, x: single.append(x[0][0, 0].numel() == 1)) for norm in norms]
        try:
            with torch.no_grad():
                self.validation_loss(torch.zeros(1, 1, self.config.size, self.config.size))
        finally:
            for hook in hooks:
                hook.remove()
        return any(single)

    @abstractmethod
    def validation_loss(self, x: Tensor) -> Tensor:
        """(B,) how badly healthy images are explained; decides the best epoch. Lower is better."""

    @property
    def fitted(self) -> bool:
        """Whether `fit_score` takes something from the images it is shown that a map or a score depends on."""
        return False

    def finish_training(self) -> None:
        """Called once after the last step, before the weights are saved."""
        self.eval()

    def learned(self) -> dict[str, Tensor]:
        """The tensors a trained detector consists of, by name: its state without frozen trunks, which have a source."""
        frozen = tuple(f"{name}." for name, module in self.named_modules() if isinstance(module, Frozen))
        return {name: value for name, value in self.state_dict().items() if not name.startswith(frozen)}


class Restorer(Detector):
    """A detector that restores a pseudo-healthy image and compares; the comparison is interchangeable."""

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score

    @abstractmethod
    def restore(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) in [0, 1]: what `x` would look like if it were healthy."""

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """What scores made of gradients differentiate in `x`, by name, (B,) each.

        "rec" is the error of the restoration, for most methods what they minimise; what is variational adds "kl".
        """
        return {"rec": mean_squared(self.restore(x), x)}

    @property
    def judged_by(self) -> str:
        image = getattr(self.config, "image_score", "map")
        return self.score.name if image == "map" else f"{self.score.name}, image {image}"

    def check(self, recipe: Recipe, images: int, validation: int) -> None:
        super().check(recipe, images, validation)
        if validation < self.score.LEAST:
            raise ConfigError(f"score {self.score.name} needs {self.score.LEAST} healthy validation images or more.")
        x = torch.linspace(0, 1, self.config.size**2).view(1, 1, self.config.size, self.config.size)
        try:  # what a score asks of a network or a picture's size shows on any picture
            self.score.compare(x, x.flip(2), self.terms)
        except ValueError as error:
            raise ConfigError(f"score {self.score.name} at {self.config.size} pixels: {error}") from None

    def detect(self, x: Tensor) -> Detection:
        restored = self.restore(x)
        anomaly = self.score.compare(x, restored, self.terms)
        return Detection(map=anomaly, score=self.score.reduce(anomaly), restored=restored)

    @property
    def fitted(self) -> bool:
        return self.score.learns

    def fit_score(self, healthy: Iterable[Tensor]) -> None:
        """Let the score learn from healthy (B, 1, H, W) batches that nothing was trained on, if it learns at all."""
        self.score.fit(((x, self.restore(x)) for x in healthy), self.terms)

    def validation_loss(self, x: Tensor) -> Tensor:
        return mean_squared(self.restore(x), x)


def mean_squared(a: Tensor, b: Tensor) -> Tensor:
    """(B,) squared difference, mean over everything of an image."""
    return (a - b).square().flatten(1).mean(1)


def unlike(a: Tensor, b: Tensor, error_weight: float) -> Tensor:
    """(B,) `error_weight` x mean squared difference + 1 - cosine, both over everything of an image."""
    return error_weight * mean_squared(a, b) + 1 - F.cosine_similarity(a.flatten(1), b.flatten(1))


def inner(x: Tensor) -> Tensor:
    """[0, 1] to [-1, 1], the scale inside many networks."""
    return 2 * x - 1


def outer(x: Tensor) -> Tensor:
    """Inverse of `inner`; what lies outside stays outside."""
    return (x + 1) / 2


def fitting(size: int, multiple: int, least: int = 1, given: str = "") -> None:
    """Refuse a size that a network cannot halve often enough.

    Args:
        size: side of the square input, pixels.
        multiple: what the size must be a multiple of.
        least: smallest size; the next multiple counts.
        given: what decides the multiple, such as "4 widths".

    Raises:
        ValueError: names the nearest sizes that fit.
    """
    least = -(-least // multiple) * multiple
    if size < least or size % multiple:
        below, above = size // multiple * multiple, max(least, -(-size // multiple) * multiple)
        nearest = f"{below} and {above} are the nearest" if below >= least else f"{above} is the nearest"
        rule = f"size must be a multiple of {multiple}{f' from {least} on' if least > multiple else ''}"
        raise ValueError(f"{f'with {given}, ' if given else ''}{rule}, not {size}; {nearest}")


def check_stages(name: str, part: str, stage: float, recipe: Recipe, images: int) -> None:
    """Refuse before training what could end with weights from before `part` began to learn, `stage` of the way."""
    if (recipe.select == "best" or recipe.patience) and recipe.select_after < stage:
        raise ConfigError(
            f"{name}: an epoch could be chosen, or the training stop, before the {part} has learned. Use "
            f"recipe.select=last and recipe.patience=0, or recipe.select_after={stage:g} or more."
        )
    steps = recipe.epochs * max(1, images // recipe.batch)
    if (steps - 1) / steps < stage:
        raise first_stage(name, part, stage)


def first_stage(name: str, part: str, stage: float) -> ConfigError:
    """What to raise where the weights kept would be from before `part` began to learn, `stage` of the way."""
    epochs = math.ceil(1 / (1 - stage) - 1e-9)  # so many steps reach the second stage, and an epoch has at least one
    return ConfigError(
        f"{name}: the {part} would not learn at all, it begins after {stage:g} of the training. Train for {epochs} "
        "epochs or more."
    )


def of_all(value: Tensor) -> Tensor:
    """The mean of a scalar over the processes of this training, detached: all must decide alike."""
    value = value.detach().clone()
    if several_processes():
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
    return value


def several_processes() -> bool:
    """Whether others train the same detector."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return there and torch.distributed.get_world_size() > 1
