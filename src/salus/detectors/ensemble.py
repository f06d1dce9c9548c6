"""Several trained detectors that judge together: made of models by `salus combine`, not by training.

Maps and scores of different methods have different units, so each member is measured by what *healthy* images reach
with it, images that no member learned its weights from. docs/how-to/combine.md
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salus.core.errors import ConfigError
from salus.detectors import build
from salus.detectors.base import Detection, Detector, Preset, Update


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Member:
    """A detector as `build` takes it."""

    detector: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    score: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class EnsembleConfig:
    """Settings of `Ensemble`."""

    size: int  # that of every member
    members: Annotated[tuple[Member, ...], Field(min_length=2)]


class Ensemble(Detector):
    """The mean of its members' maps and of their image scores, each in units of what healthy images reach."""

    Config = EnsembleConfig
    PRESETS: ClassVar[Mapping[str, Preset]] = {}  # nothing to train
    FAMILY = "ensemble"
    PAPER = "none"

    config: EnsembleConfig
    highest: Tensor
    middle: Tensor
    spread: Tensor

    def __init__(self, config: EnsembleConfig) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(build(one.detector, one.settings, one.score) for one in config.members)
        if sizes := [size for size in (one.config.size for one in self.detectors) if size != config.size]:
            raise ConfigError(
                f"The members of an ensemble see pictures of one size, not of {config.size} and {sizes[0]}."
            )
        for name, value in (("highest", 1.0), ("middle", 0.0), ("spread", 1.0)):
            self.register_buffer(name, torch.full((len(self.members),), value))

    @property
    def detectors(self) -> list[Detector]:
        """The members, in order."""
        return [one for one in self.members if isinstance(one, Detector)]

    @property
    def judged_by(self) -> str:
        named = []
        for one, net in zip(self.config.members, self.detectors, strict=True):
            judged_by = f"({net.judged_by})" if isinstance(net, Ensemble) else net.judged_by
            named.append(f"{one.detector} {judged_by}".strip())
        return ", ".join(named)

    @property
    def fitted(self) -> bool:
        """Its units are."""
        return True

    def parts(self) -> Mapping[str, Iterable[nn.Parameter]]:
        return {}

    def training_step(self, x: Tensor, update: Update, progress: float) -> dict[str, Tensor]:
        """Nothing: the members have learned."""
        return {}

    def settle(self, seen: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Learn the members' units.

        Args:
            seen: of each member the maps (n, 1, H, W) and scores (n,) of the same healthy images.

        Raises:
            ConfigError: a member tells no healthy image from another, so that it has no unit.
        """
        for index, (maps, scores) in enumerate(seen):
            pixels = maps.flatten(1)
            self.highest[index] = pixels.topk(max(1, round(0.01 * pixels.shape[1])), dim=1).values.mean()
            self.middle[index], self.spread[index] = scores.mean(), scores.std() if len(scores) > 1 else 0.0
            if not (self.highest[index] > 0 and self.spread[index] > 0):
                raise ConfigError(
                    f"{self.config.members[index].detector} judges all {len(scores)} healthy validation images alike, "
                    "so there is nothing to compare it by. Give it more, or leave it out."
                )

    def detect(self, x: Tensor) -> Detection:
        seen = [one.detect(x) for one in self.detectors]
        maps = torch.stack([one.map.float() for one in seen]) / self.highest.view(-1, 1, 1, 1, 1)
        scores = torch.stack([one.score.float() for one in seen])
        restored = [one.restored.float() for one in seen if one.restored is not None]
        return Detection(
            map=maps.mean(0),
            score=((scores - self.middle[:, None]) / self.spread[:, None]).mean(0),
            restored=torch.stack(restored).mean(0) if len(restored) == len(seen) else None,
        )

    def at_once(self, device: str) -> int:
        return min(one.at_once(device) for one in self.detectors)

    def validation_loss(self, x: Tensor) -> Tensor:
        """(B,) mean over the members, whose losses have units of their own."""
        return torch.stack([one.validation_loss(x) for one in self.detectors]).mean(0)

    def learned(self) -> dict[str, Tensor]:
        """What the members learned, and their units."""
        own = dict(self.named_buffers(recurse=False))
        for index, one in enumerate(self.detectors):
            own |= {f"members.{index}.{name}": value for name, value in one.learned().items()}
        return own
