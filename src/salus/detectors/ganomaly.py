"""GANomaly: an autoencoder that is encoded once more; an abnormal image's two codes differ.

Written from Akcay, Atapour-Abarghouei, Breckon, "GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training",
arXiv:1805.06725, and for `layers="dense"` from the description of MedIAnomaly's (docs/methods/ganomaly.md).
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
import torch.distributed
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salus.detectors.ae import down, up
from salus.detectors.base import (
    SMOOTHED,
    Channels,
    Detection,
    Entries,
    Preset,
    Recipe,
    Restorer,
    Side,
    Update,
    fitting,
    inner,
    mean_squared,
    of_all,
    outer,
    several_processes,
)
from salus.scores.base import Score


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class GANomalyConfig:
    """Settings of `GANomaly`."""

    size: Side = 64  # side of the square input, pixels
    layers: Literal["dcgan", "dense"] = "dcgan"  # the paper's; or MedIAnomaly's: `ae` without norm around the code
    latent: Entries = 100  # entries of z; MedIAnomaly 16
    widths: tuple[Channels, ...] = Field((64, 128, 256, 512), min_length=1)  # channels after each halving
    hidden: Entries = 1024  # width of the layers around the code, `dense` only
    contextual_loss: Literal["l1", "l2"] = "l1"  # the paper's; MedIAnomaly's
    adversarial: float = Field(1.0, ge=0)  # weights of the generator's three losses, as released
    contextual: float = Field(50.0, ge=0)
    encoding: float = Field(1.0, ge=0)
    renew_below: float = Field(1e-5, ge=0)  # loss below which the discriminator starts anew; released
    image_score: Literal["latent", "map"] = "latent"  # mean (z - z^)^2 as released; or the score of the map

    @model_validator(mode="after")
    def fits(self) -> "GANomalyConfig":
        """The picture must be halved once for each width."""
        fitting(self.size, 2 ** len(self.widths), 8, f"{len(self.widths)} widths")
        return self


class GANomaly(Restorer):
    """Encoder, decoder and second encoder against a discriminator; values scaled to [-1, 1] inside."""

    Config = GANomalyConfig
    FAMILY = "gan"
    PAPER = "Akcay et al. 2018, arXiv:1805.06725"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            recipe=Recipe(epochs=250, batch=64, learning_rate=2e-4, betas=(0.5, 0.999), select="last"),
            score={"name": "residual"},
            about="arXiv:1805.06725 and its code: 64 feature maps, z = 100, Adam 2e-4 (.5, .999); batch and epochs are "
            "those of MedIAnomaly's autoencoders",
        ),
        "fast": Preset(
            settings={
                "layers": "dense",
                "latent": 16,
                "widths": (16, 32, 64, 64),
                "contextual_loss": "l2",
                "image_score": "map",
            },
            recipe=Recipe(epochs=100, batch=32, learning_rate=1e-3, betas=(0.5, 0.999), select="last"),
            score=SMOOTHED,
            about="MedIAnomaly's layers, code and loss; rate, batch and epochs ours; score and map as in the fast `ra`",
        ),
        "tiny": Preset(
            settings={
                "size": 32,
                "layers": "dense",
                "latent": 4,
                "hidden": 64,
                "widths": (8, 16, 16, 16),
                "image_score": "map",
            },
            recipe=Recipe(epochs=30, batch=16, learning_rate=2e-3, betas=(0.5, 0.999), select="last"),
            score={"name": "squared"},
            about="tests",
        ),
    }

    def __init__(self, config: GANomalyConfig, score: Score) -> None:
        super().__init__(score)
        self.config = config
        self.encoder = Encoder(config, config.latent)
        self.decoder = decoder(config)
        self.second_encoder = Encoder(config, config.latent)
        self.discriminator = Encoder(config, 1)
        for network in (self.encoder, self.decoder, self.second_encoder, self.discriminator):
            initialise(network, config.layers)

    def parts(self) -> Mapping[str, Iterable[nn.Parameter]]:
        generator = (self.encoder, self.decoder, self.second_encoder)
        return {
            "generator": [p for network in generator for p in network.parameters()],
            "discriminator": self.discriminator.parameters(),
        }

    def restore(self, x: Tensor) -> Tensor:
        return self.twice_encoded(x)[1]

    def detect(self, x: Tensor) -> Detection:
        distance, restored = self.twice_encoded(x)
        anomaly = self.score.compare(x, restored, self.terms)
        by_map = self.config.image_score == "map"
        return Detection(map=anomaly, score=self.score.reduce(anomaly) if by_map else distance, restored=restored)

    def twice_encoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) mean (z - z^)^2, raw and so comparable between any two images, and (B, 1, H, W) restored, in [0, 1]."""
        code, rebuilt, again = self.passed(inner(x))
        return mean_squared(code, again), outer(rebuilt).clamp(0, 1)

    def passed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (B, latent), x^ like `x` on the inner scale [-1, 1], and z^ (B, latent)."""
        code = self.encoder(x)
        rebuilt = self.decoder(code).float()
        return code.float(), rebuilt, self.second_encoder(rebuilt).float()

    def training_step(self, x: Tensor, update: Update, progress: float) -> dict[str, Tensor]:
        c, x = self.config, inner(x)
        code, rebuilt, again = self.passed(x)
        real, fake = self.discriminator.body(x), self.discriminator.body(rebuilt)
        losses = {
            "adversarial": F.mse_loss(fake.float(), real.detach().float()),
            "contextual": F.l1_loss(rebuilt, x) if c.contextual_loss == "l1" else F.mse_loss(rebuilt, x),
            "encoding": F.mse_loss(again, code),
        }
        weighted = c.adversarial * losses["adversarial"] + c.contextual * losses["contextual"]
        update("generator", weighted + c.encoding * losses["encoding"], keep_graph=True)

        # The same two passes serve the discriminator: the generator's step has not moved it.
        judged_real, judged_fake = (self.discriminator.head(features).float() for features in (real, fake))
        guess = (F.softplus(-judged_real).mean() + F.softplus(judged_fake).mean()) / 2
        update("discriminator", guess)
        renewed = bool(of_all(guess) < c.renew_below)
        if renewed:
            self.renew()
        losses |= {"discriminator": guess, "renewed": guess.new_tensor(float(renewed))}
        return {key: value.detach() for key, value in losses.items()}

    def renew(self) -> None:
        """Draw the discriminator's weights anew, alike in all processes; its optimiser keeps its moments."""
        initialise(self.discriminator, self.config.layers)
        if several_processes():
            for parameter in self.discriminator.parameters():
                torch.distributed.broadcast(parameter.data, src=0)


class Encoder(nn.Module):
    """(B, 1, size, size) on the inner scale to (B, outs): `body`, the features that are matched, then `head`."""

    def __init__(self, config: GANomalyConfig, outs: int) -> None:
        super().__init__()
        pairs = list(itertools.pairwise((1, *config.widths)))
        smallest = config.size // 2 ** len(pairs)
        if config.layers == "dcgan":
            first, *others = pairs
            self.body = nn.Sequential(
                nn.Conv2d(*first, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True),
                *(layer for pair in others for layer in leaky_down(*pair)),
            )  # fmt: skip
            self.head = nn.Sequential(nn.Conv2d(config.widths[-1], outs, smallest, bias=False), nn.Flatten())
        else:
            flat = config.widths[-1] * smallest**2
            self.body = nn.Sequential(
                *(layer for pair in pairs for layer in down(*pair)),
                nn.Flatten(), nn.Linear(flat, config.hidden), nn.ReLU(inplace=True),
            )  # fmt: skip
            self.head = nn.Sequential(nn.Linear(config.hidden, outs))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


def decoder(config: GANomalyConfig) -> nn.Sequential:
    """(B, latent) to (B, 1, size, size) on the inner scale; `dense` ends without an activation, as `ae` does."""
    widths = list(reversed(config.widths))
    ups = [layer for pair in itertools.pairwise(widths) for layer in up(*pair)]
    last = nn.ConvTranspose2d(widths[-1], 1, 4, 2, 1, bias=False)
    smallest = config.size // 2 ** len(widths)
    if config.layers == "dcgan":
        return nn.Sequential(
            nn.Unflatten(1, (config.latent, 1, 1)),
            nn.ConvTranspose2d(config.latent, widths[0], smallest, bias=False), nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True), *ups, last, nn.Tanh(),
        )  # fmt: skip
    return nn.Sequential(
        nn.Linear(config.latent, config.hidden), nn.ReLU(inplace=True),
        nn.Linear(config.hidden, widths[0] * smallest**2), nn.Unflatten(1, (widths[0], smallest, smallest)),
        *ups, last,
    )  # fmt: skip


def leaky_down(ins: int, outs: int) -> list[nn.Module]:
    """Halve the picture, as DCGAN does."""
    return [nn.Conv2d(ins, outs, 4, 2, 1, bias=False), nn.BatchNorm2d(outs), nn.LeakyReLU(0.2, inplace=True)]


@torch.no_grad()
def initialise(network: nn.Module, layers: str) -> None:
    """Fresh weights: DCGAN's normal distributions of width 0.02, or for `dense` torch's own."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
            if layers == "dcgan":
                module.weight.normal_(1.0 if isinstance(module, nn.BatchNorm2d) else 0.0, 0.02)
