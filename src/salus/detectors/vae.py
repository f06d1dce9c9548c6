"""VAE: a variational autoencoder, whose code can be priced in nats and judged by its gradients.

Written from Zimmerer et al., "Unsupervised Anomaly Localization using Variational Auto-Encoders", arXiv:1907.02796;
the network "cai" from Cai et al., arXiv:2403.09303. What was published and what was released: docs/methods/vae.md.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salus.detectors import ae
from salus.detectors.base import (
    SMOOTHED,
    Channels,
    Entries,
    Preset,
    Recipe,
    Restorer,
    Side,
    Update,
    Weight,
    fitting,
    inner,
    of_all,
    outer,
)
from salus.detectors.variational import bound, draw, kl, squared
from salus.nets.introspective import full
from salus.scores.base import Score

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Auto = Literal["auto"]
GAIN = 0.01  # how far the logarithm of the price moves in a step where the nats are off by a factor of e or more


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class VAEConfig:
    """Settings of `VAE`. "auto" and None are what the network's authors took; the model holds the number.

    loss = scale x (beta_rec x squared error, summed over pixels + beta_kl x KL in nats, summed over the code)
    """

    size: Side = 128  # side of the square input, pixels
    network: Literal["zimmerer", "cai"] = "zimmerer"  # convolutions alone, on [0, 1]; or ae's network, on [-1, 1]
    latent: Entries | None = None  # entries of z; None is zimmerer's 256, cai's 16
    widths: tuple[Channels, ...] | Auto = "auto"  # channels after each halving; zimmerer 16 32 64 256 256, cai ae's
    beta_rec: Positive | Auto = "auto"  # zimmerer 0.5 (a Gaussian of variance 1), cai 1
    beta_kl: Weight | Auto = "auto"  # zimmerer 1, cai 0.005 pixels / latent (0.005 x mean KL + mean error)
    rate: Positive | None = None  # nats that a code shall hold: beta_kl is where the price starts, and follows; ours
    scale: Positive | Auto = "auto"  # zimmerer 1, cai 1 / pixels
    quirk_std: bool = False  # as released for zimmerer: the KL takes the standard deviation for its logarithm
    latent_train: Literal["sample", "mean"] = "sample"  # mean: what training in eval mode made of the RA authors' VAE

    @model_validator(mode="after")
    def fits(self) -> "VAEConfig":
        """One halving a width; ae's network has four. A price of 0 cannot follow a rate."""
        if self.rate is not None and self.beta_kl == 0:
            raise ValueError("a rate is held by the price of nats: give beta_kl a weight, or leave rate out")
        widths = usual_widths(self) if self.widths == "auto" else self.widths
        if not widths or (self.network == "cai" and len(widths) != 4):
            raise ValueError(f"network {self.network} takes {'4' if self.network == 'cai' else 'some'} widths")
        fitting(self.size, 2 ** len(widths), 8, f"network {self.network} and {len(widths)} widths")
        return self


def usual_widths(config: VAEConfig) -> tuple[int, ...]:
    """The published widths; those of zimmerer go on until the map is 4 to 7 pixels wide."""
    if config.network == "cai":
        return 16, 32, 64, 64
    halvings = max(1, config.size.bit_length() - 3)
    return (16, 32, 64, *[256] * halvings)[:halvings]


def resolved(config: VAEConfig) -> dict[str, Any]:
    """Settings that stand for "auto" and None in `config`, by name."""
    pixels = config.size**2
    latent = {"zimmerer": 256, "cai": 16}[config.network] if config.latent is None else config.latent
    usual = {
        "zimmerer": {"beta_rec": 0.5, "beta_kl": 1.0, "scale": 1.0},
        "cai": {"beta_rec": 1.0, "beta_kl": 0.005 * pixels / latent, "scale": 1 / pixels},
    }[config.network]
    values = {"latent": latent, "widths": usual_widths(config), **usual}
    return {name: value for name, value in values.items() if getattr(config, name) in ("auto", None)}


class VAE(Restorer):
    """Encoder and decoder that weigh what an image's code costs against how well it is restored."""

    Config: ClassVar[type] = VAEConfig
    FAMILY = "reconstruction"
    PAPER = "Zimmerer et al. 2019, arXiv:1907.02796"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            recipe=Recipe(epochs=1500, batch=8, learning_rate=5e-4, augment="affine"),
            score={"name": "residual"},
            about="the RA authors' on brain MRI without its two faults: 128 px, Adam 5e-4, batch 8, 1500 epochs",
        ),
        "cai": Preset(
            settings={"size": 64, "network": "cai"},
            recipe=Recipe(epochs=250, batch=64, learning_rate=1e-3, select="last"),
            score={"name": "squared"},
            about="MedIAnomaly's: ae's network and recipe, mean squared error + 0.005 x mean KL",
        ),
        "fast": Preset(
            settings={"size": 64, "network": "cai", "latent": 32, "beta_rec": 0.125, "beta_kl": 0.25},
            recipe=Recipe(epochs=250, batch=16, learning_rate=2e-3, schedule="cosine", select="last"),
            score=SMOOTHED,
            about="ours: a price at which a phantom's code costs 12 nats; score of ra's fast (docs/fast-preset.md)",
        ),
        "tiny": Preset(
            settings={"size": 32, "latent": 8, "widths": (16, 32, 32), "beta_kl": 0.1},
            recipe=Recipe(epochs=30, batch=16, learning_rate=4e-3),
            score={"name": "residual"},
            about="tests",
        ),
    }

    price: Tensor  # of a nat, scalar; with a rate only

    def __init__(self, config: VAEConfig, score: Score) -> None:
        super().__init__(score)
        c: Any = replace(config, **resolved(config))
        self.config = c
        if c.network == "cai":
            backbone = ae.AEConfig(**{name: getattr(c, name) for name in ("size", "latent", "widths")})
            self.encoder, self.decoder = ae.encoder(backbone, 2 * c.latent), ae.decoder(backbone, 1)
        else:
            self.encoder = convolutions(c.size, c.latent, c.widths)
            self.decoder = transposed_convolutions(c.size, c.latent, c.widths)
        if c.rate is not None:
            self.register_buffer("price", torch.tensor(c.beta_kl, dtype=torch.float32))

    @property
    def beta_kl(self) -> float:
        """The price of a nat: the setting, or what holds `rate` at this step of the training."""
        return self.config.beta_kl if self.config.rate is None else float(self.price)

    def parts(self) -> Mapping[str, Iterable[nn.Parameter]]:
        return {"autoencoder": [*self.encoder.parameters(), *self.decoder.parameters()]}

    def inner(self, x: Tensor) -> Tensor:
        """[0, 1] to the network's scale."""
        return inner(x) if self.config.network == "cai" else x

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, (B, latent) each, of the code of (B, 1, H, W) in [0, 1]."""
        mean, spread = full(self.encoder(self.inner(x))).chunk(2, dim=1)
        # Zimmerer's network gives the logarithm of the standard deviation, Cai's that of the variance.
        return mean, spread if self.config.network == "cai" else 2 * spread

    def decode(self, z: Tensor) -> Tensor:
        """(B, 1, H, W) on the network's scale, not clamped: the output layer has no activation."""
        return full(self.decoder(z))

    def restore(self, x: Tensor) -> Tensor:
        restored = self.decode(self.encode(x)[0])
        return (outer(restored) if self.config.network == "cai" else restored).clamp(0, 1)

    def error(self, x: Tensor, z: Tensor) -> Tensor:
        """(B,) squared error of the restoration from `z`, summed over pixels, on the network's scale."""
        return squared(self.inner(x), self.decode(z))

    def divergence(self, mean: Tensor, log_var: Tensor) -> Tensor:
        """(B,) KL of the code from the prior, nats; `quirk_std`: of one whose log-deviation is its deviation."""
        return kl(mean, 2 * torch.exp(log_var / 2) if self.config.quirk_std else log_var)

    @property
    def weights(self) -> dict[str, float]:
        """What each of `losses` counts, by name."""
        return {"rec": self.config.beta_rec, "kl": self.beta_kl}

    def parted(self, x: Tensor, *, sampled: bool) -> dict[str, Tensor]:
        """The two terms of -ELBO(x) by name, (B,) each, without their weights."""
        mean, log_var = self.encode(x)
        z = draw(mean, log_var) if sampled else mean
        return {"rec": self.error(x, z), "kl": self.divergence(mean, log_var)}

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        parted = self.parted(x, sampled=False)
        return bound(parted["rec"], parted["kl"], self.config.beta_rec, self.beta_kl)

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        """What is minimised, by name: means over the images, without their weights."""
        parted = self.parted(x, sampled=self.config.latent_train == "sample")
        return {name: value.mean() for name, value in parted.items()}

    def training_step(self, x: Tensor, update: Update, progress: float) -> dict[str, Tensor]:
        losses, weights = self.losses(x), self.weights
        loss = self.config.scale * torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        update("autoencoder", loss)
        told = {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}
        if self.config.rate is None:
            return told
        told["beta_kl"] = self.price.clone()
        self.price *= torch.exp(GAIN * torch.log(of_all(told["kl"]) / self.config.rate).clamp(-1, 1))
        return told


def convolutions(size: int, latent: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Zimmerer et al.'s encoder, (B, 1, size, size) to (B, 2 latent): no norms, no biases."""
    layers: list[nn.Module] = []
    for ins, outs in itertools.pairwise((1, *widths)):
        layers += [nn.Conv2d(ins, outs, 4, 2, 1, bias=False), nn.LeakyReLU(0.01, inplace=True)]
    side = size >> len(widths)
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 2 * latent, side, bias=False), nn.Flatten())


def transposed_convolutions(size: int, latent: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Zimmerer et al.'s decoder, (B, latent) to (B, 1, size, size)."""
    side = size >> len(widths)
    first = nn.ConvTranspose2d(latent, widths[-1], side, bias=False)
    layers: list[nn.Module] = [nn.Unflatten(1, (latent, 1, 1)), first]
    for ins, outs in itertools.pairwise((*reversed(widths), 1)):
        layers += [nn.LeakyReLU(0.01, inplace=True), nn.ConvTranspose2d(ins, outs, 4, 2, 1, bias=False)]
    return nn.Sequential(*layers)
