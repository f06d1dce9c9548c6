"""AE: an autoencoder whose code holds as much as healthy images have and no more.

Written from Cai, Chen, Cheng, "Rethinking Autoencoders for Medical Anomaly Detection from A Theoretical
Perspective", arXiv:2403.09303; layers and training settings from `MedIAnomaly` as described in docs/methods/ae.md.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salus.detectors.base import (
    SMOOTHED,
    Channels,
    Entries,
    Preset,
    Recipe,
    Restorer,
    Side,
    Update,
    fitting,
    inner,
    mean_squared,
    outer,
)
from salus.scores.base import Score


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class AEConfig:
    """Settings of `AE`."""

    size: Side = 64  # side of the square input, pixels
    code: Literal["vector", "spatial"] = "vector"  # spatial: AE-Spatial, d entries at each place of the last map
    latent: Entries = 16  # d, entries of the code; the paper's best: X-ray 4, brain 16 to 32
    hidden: int = Field(1024, ge=2, le=2**16)  # D, width of the layers around the code
    widths: tuple[Channels, Channels, Channels, Channels] = (16, 32, 64, 64)  # channels after each halving

    @model_validator(mode="after")
    def fits(self) -> "AEConfig":
        """Four halvings."""
        fitting(self.size, 16)
        return self


class AE(Restorer):
    """Plain autoencoder, mean squared error, values scaled to [-1, 1] inside."""

    Config: ClassVar[type] = AEConfig
    FAMILY = "reconstruction"
    PAPER = "Cai et al. 2024, arXiv:2403.09303"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            recipe=Recipe(epochs=250, batch=64, learning_rate=1e-3, select="last"),
            score={"name": "squared"},
            about="arXiv:2403.09303 and its code: 64 px, d = 16, Adam 1e-3, batch 64, 250 epochs, last weights",
        ),
        "fast": Preset(
            recipe=Recipe(epochs=250, batch=64, learning_rate=1e-3, select="last"),
            score={"name": "squared"},
            about="the published recipe as it is: it fits a laptop",
        ),
        "best": Preset(
            recipe=Recipe(steps=2400, batch=8, learning_rate=1e-3, select="last", average=0.99),
            score=SMOOTHED,
            about="ours: the schedule and the score of ra's fast, which suited it better; docs/research/rivals.md",
        ),
        "tiny": Preset(
            settings={"size": 32, "latent": 8, "hidden": 64, "widths": (8, 16, 16, 16)},
            recipe=Recipe(epochs=30, batch=16, learning_rate=3e-3, select="last"),
            score={"name": "squared"},
            about="tests",
        ),
    }
    CHANNELS: ClassVar[int] = 1  # of what the decoder gives

    def __init__(self, config: AEConfig, score: Score) -> None:
        super().__init__(score)
        self.config = config
        self.encoder = encoder(config, config.latent)
        self.decoder = decoder(config, self.CHANNELS)

    def parts(self) -> Mapping[str, Iterable[nn.Parameter]]:
        return {"autoencoder": [*self.encoder.parameters(), *self.decoder.parameters()]}

    def code(self, x: Tensor) -> Tensor:
        """What the decoder is given: (B, latent), or (B, latent, H / 16, W / 16) where the code is spatial."""
        z: Tensor = self.encoder(inner(x))
        return z

    def decode(self, z: Tensor) -> Tensor:
        """(B, CHANNELS, H, W) on the inner scale [-1, 1], not clamped: the output layer has no activation."""
        out: Tensor = self.decoder(z).float()
        return out

    def reconstruct(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) on the inner scale."""
        return self.decode(self.code(x))

    def unclamped(self, x: Tensor) -> Tensor:
        """(B, 1, H, W), the restoration before what lies outside [0, 1] is cut."""
        return outer(self.reconstruct(x))

    def restore(self, x: Tensor) -> Tensor:
        return self.unclamped(x).clamp(0, 1)

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        return {"rec": mean_squared(self.reconstruct(x), inner(x))}

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        """Scalars by name; their sum is what is minimised."""
        return {"rec": self.terms(x)["rec"].mean()}

    def validation_loss(self, x: Tensor) -> Tensor:
        return self.terms(x)["rec"]

    def training_step(self, x: Tensor, update: Update, progress: float) -> dict[str, Tensor]:
        losses = self.losses(x)
        update("autoencoder", torch.stack(list(losses.values())).sum())
        return {name: loss.detach() for name, loss in losses.items()}


def encoder(config: AEConfig, outs: int) -> nn.Sequential:
    """(B, 1, size, size) to a code with `outs` entries, at each place if it is spatial."""
    a, b, c, d = config.widths
    halved = (*down(1, a), *down(a, b), *down(b, c), *down(c, d))
    if config.code == "spatial":
        return nn.Sequential(*halved, *mixed(d, config.hidden), nn.Conv2d(config.hidden, outs, 1, bias=False))
    flat = d * (config.size // 16) ** 2
    return nn.Sequential(
        *halved, nn.Flatten(), nn.Linear(flat, config.hidden), nn.BatchNorm1d(config.hidden), nn.ReLU(inplace=True),
        nn.Linear(config.hidden, outs),
    )  # fmt: skip


def decoder(config: AEConfig, channels: int) -> nn.Sequential:
    """A code to (B, channels, size, size)."""
    a, b, c, d = config.widths
    side = config.size // 16
    doubled = (*up(d, c), *up(c, b), *up(b, a), nn.ConvTranspose2d(a, channels, 4, 2, 1, bias=False))
    if config.code == "spatial":
        return nn.Sequential(*mixed(config.latent, config.hidden), nn.Conv2d(config.hidden, d, 1, bias=False), *doubled)
    return nn.Sequential(
        nn.Linear(config.latent, config.hidden), nn.BatchNorm1d(config.hidden), nn.ReLU(inplace=True),
        nn.Linear(config.hidden, d * side**2), nn.Unflatten(1, (d, side, side)), *doubled,
    )  # fmt: skip


def mixed(ins: int, outs: int) -> list[nn.Module]:
    """A layer within each place."""
    return [nn.Conv2d(ins, outs, 1, bias=False), nn.BatchNorm2d(outs), nn.ReLU(inplace=True)]


def down(ins: int, outs: int) -> list[nn.Module]:
    """Halve the picture."""
    return [nn.Conv2d(ins, outs, 4, 2, 1, bias=False), nn.BatchNorm2d(outs), nn.ReLU(inplace=True)]


def up(ins: int, outs: int) -> list[nn.Module]:
    """Double the picture."""
    return [nn.ConvTranspose2d(ins, outs, 4, 2, 1, bias=False), nn.BatchNorm2d(outs), nn.ReLU(inplace=True)]
