"""Reversed autoencoder (RA): a variational autoencoder that argues with itself.

Written from Bercea, Wiestler, Rueckert, Schnabel, "Towards Universal Unsupervised Anomaly Detection in Medical
Imaging", arXiv:2401.10637. Equation numbers below are theirs; where paper and released code disagree, both
readings are settings (docs/methods/ra.md). `s` is 1 over the number of pixels; KL and errors are sums.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salus.detectors.base import Preset, Recipe, Restorer, Update
from salus.nets.introspective import Decoder, Encoder, full
from salus.scores.base import Score

Code = tuple[Tensor, Tensor, list[Tensor]]  # mean (B, latent), log-variance (B, latent), feature maps


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class RAConfig:
    """Settings of `RA`."""

    size: int = Field(128, ge=8)  # side of the square input, pixels
    latent: int = Field(128, ge=1)  # entries of z
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)  # channels after each halving; log2(size) - 2 of them
    objective: Literal["code", "paper_literal", "sivae"] = "code"  # weight of eq. 3: lambda; lambda/alpha; 0
    reversed_weight: float = Field(0.005, ge=0)  # lambda of eq. 4 as released; the paper's notation: 0.01
    alpha: float = Field(2.0, gt=0)  # eq. 2 and 4, Soft-IntroVAE's value
    beta_rec: float = Field(0.5, ge=0)
    beta_kl: float = Field(1.0, ge=0)
    beta_neg: float | Literal["auto"] = "auto"  # KL of fakes in the exponent; auto: pixels / 128 (128 at 128 px)
    gamma_rec: float = Field(1e-8, ge=0)  # numerically nil in the release; 0 saves its two decoder passes
    bn_mode: Literal["train", "frozen"] = "train"  # frozen: norms stay at their first statistics, as the release ran
    bn_statistics: Literal["all", "real"] = "all"  # which pictures move the running statistics the detector uses
    taps: Literal["avgpool5", "avgpool5+resblock", "avgpool5+resblock+mu"] = "avgpool5"  # layers of eq. 3
    cosine: Literal["flat", "per_position"] = "flat"  # eq. 3 over the whole map, or at each position
    grad_target: Literal["code", "detached"] = "code"  # restoration as a target in the exponent: live, or not
    latent_infer: str = Field("mean", pattern=r"^(mean|sample|avg:[1-9]\d*)$")  # the release samples
    shortcut_quirk: bool = False  # one more 1 x 1 shortcut a network, as in the released weights
    warmup: float = Field(0.0, ge=0, le=1)  # share of the training as a plain VAE; ours
    ramp: float = Field(0.0, ge=0, le=1)  # share over which the argument then grows to full weight; ours

    @model_validator(mode="after")
    def fits(self) -> "RAConfig":
        """The last feature map must be 4 x 4."""
        if self.size != 4 * 2 ** len(self.widths):
            raise ValueError(
                f"{len(self.widths)} widths fit a size of {4 * 2 ** len(self.widths)}, not {self.size}: "
                "give log2(size) - 2 of them"
            )
        return self


class RA(Restorer):
    """Encoder and decoder of an introspective VAE; the encoder must give an image and its restoration like features."""

    Config = RAConfig
    FAMILY = "reconstruction"
    PAPER = "Bercea et al. 2024, arXiv:2401.10637"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            recipe=Recipe(epochs=1500, batch=8, learning_rate=5e-5, patience=500, augment="affine"),
            settings={"size": 128, "latent": 128, "widths": (64, 128, 256, 512, 512)},
            score={"name": "equation5", "reading": "code", "trunk": "squeezenet"},
            about="the released configuration: 128 px, Adam 5e-5, batch 8, up to 1500 epochs, best by validation error",
        ),
        "fast": Preset(
            recipe=Recipe(epochs=80, batch=16, learning_rate=1e-3, select="last"),
            settings={
                "size": 64,
                "latent": 32,
                "widths": (16, 32, 64, 128),
                "beta_kl": 0.3,
                "beta_neg": 2048.0,
                "gamma_rec": 0.0,
                "warmup": 0.85,
                "ramp": 0.05,
            },
            score={"name": "smoothed", "sigma": 2.0, "image": "top1"},
            about="ours: a VAE, then an argument that leaves the code its information; docs/fast-preset.md",
        ),
        "tiny": Preset(
            recipe=Recipe(epochs=30, batch=8, learning_rate=2e-3),
            settings={"size": 32, "latent": 8, "widths": (8, 16, 16), "warmup": 0.7, "ramp": 0.2},
            score={"name": "residual"},
            about="tests",
        ),
    }

    def __init__(self, config: RAConfig, score: Score) -> None:
        super().__init__(score)
        self.config = config
        self.encoder = Encoder(config.size, config.latent, config.widths, quirk=config.shortcut_quirk)
        self.decoder = Decoder(config.size, config.latent, config.widths, quirk=config.shortcut_quirk)
        pixels = config.size**2
        self.beta_neg = pixels / 128 if config.beta_neg == "auto" else config.beta_neg
        self.norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]
        weights = {"code": 1.0, "paper_literal": 1 / config.alpha, "sivae": 0.0}
        self.reversed_weight = weights[config.objective] * config.reversed_weight

    def parts(self) -> Mapping[str, Iterable[nn.Parameter]]:
        return {"encoder": self.encoder.parameters(), "decoder": self.decoder.parameters()}

    def train(self, mode: bool = True) -> "RA":
        super().train(mode)
        if self.config.bn_mode == "frozen":
            for norm in self.norms:
                norm.eval()
        return self

    def restore(self, x: Tensor) -> Tensor:
        mean, log_var, _ = self.encoder(x)
        how = self.config.latent_infer
        if how == "mean":
            return self.decoder(mean)  # type: ignore[no-any-return]
        # The same draws for every image and call: a score must not depend on its neighbours in the batch.
        draws = 1 if how == "sample" else int(how.removeprefix("avg:"))
        noise = torch.randn(draws, mean.shape[1], generator=torch.Generator().manual_seed(0)).to(mean)
        pictures = [self.decoder(mean + torch.exp(log_var / 2) * eps) for eps in noise]
        return torch.stack(pictures).mean(0)

    def training_step(self, x: Tensor, update: Update, progress: float) -> dict[str, Tensor]:
        c = self.config
        argument = self.argument(progress)
        if argument == 0:
            return self.warmup_step(x, update)
        s = 1 / x[0].numel()

        # Encoder (eq. 4). Fakes and restorations keep their graphs: the decoder's step needs the same two again.
        fake = self.pictured(torch.randn(len(x), c.latent, device=x.device))
        code = self.encoder(x)
        rec = self.decoder(draw(code))
        with self.statistics_kept():
            code_rec, code_fake = self.encoder(rec.detach()), self.encoder(fake.detach())
        error, kl_real = squared(x, rec), kl(code)
        repelled = self.repelled(rec if c.grad_target == "code" else rec.detach(), code_rec)
        repelled = repelled + self.repelled(fake.detach(), code_fake)
        alike = self.reversed_loss(code, code_rec)
        loss = s * (c.beta_rec * error + c.beta_kl * kl_real).mean() + argument * (
            repelled / (2 * c.alpha) + self.reversed_weight * alike
        )
        update("encoder", loss, keep_graph=True)

        # Decoder (eq. 2): restorations and samples that look likely to the updated, now resting encoder.
        with self.statistics_kept():
            code_rec, code_fake = self.encoder(rec), self.encoder(fake)
        kl_rec, kl_fake = kl(code_rec), kl(code_fake)
        loss_decoder = c.beta_rec * squared(x, rec) + argument * c.beta_kl * (kl_rec + kl_fake) / 2
        if c.gamma_rec > 0:
            again = squared(rec.detach(), self.pictured(draw(code_rec).detach()))
            again = again + squared(fake.detach(), self.pictured(draw(code_fake).detach()))
            loss_decoder = loss_decoder + c.gamma_rec * c.beta_rec * again / 2
        update("decoder", s * loss_decoder.mean())
        return {
            "loss_encoder": loss.detach(),
            "loss_decoder": s * loss_decoder.detach().mean(),
            "mse": s * error.detach().mean(),
            "kl_real": kl_real.detach().mean(),
            "kl_restored": kl_rec.detach().mean(),
            "kl_fake": kl_fake.detach().mean(),
            "alike": alike.detach(),
        }

    def warmup_step(self, x: Tensor, update: Update) -> dict[str, Tensor]:
        """One step of a plain VAE, both halves together."""
        s, c = 1 / x[0].numel(), self.config
        code = self.encoder(x)
        error, kl_real = squared(x, self.decoder(draw(code))), kl(code)
        loss = s * (c.beta_rec * error + c.beta_kl * kl_real).mean()
        update(("encoder", "decoder"), loss)
        return {"loss_encoder": loss.detach(), "mse": s * error.detach().mean(), "kl_real": kl_real.detach().mean()}

    def argument(self, progress: float) -> float:
        """Weight of everything introspective at this point of the training, in [0, 1]."""
        if progress < self.config.warmup:
            return 0.0
        if self.config.ramp == 0:
            return 1.0
        return float(min(1.0, (progress - self.config.warmup) / self.config.ramp))

    def repelled(self, picture: Tensor, code: Code) -> Tensor:
        """Scalar: mean of exp(alpha * ELBO-) over the batch; ELBO- <= 0 weighs the KL by beta_neg."""
        c = self.config
        bound = -(c.beta_rec * squared(picture, self.pictured(draw(code))) + self.beta_neg * kl(code))
        return torch.exp(c.alpha * bound / picture[0].numel()).mean()

    def reversed_loss(self, code: Code, code_rec: Code) -> Tensor:
        """Scalar, eq. 3: half the mean squared difference plus 1 - cosine, summed over the feature maps."""
        total = torch.zeros_like(code[0][0, 0])
        for a, b in zip(self.tapped(code), self.tapped(code_rec), strict=True):
            a, b = full(a), full(b)
            if self.config.cosine == "flat":
                cosine = F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)
            else:
                cosine = F.cosine_similarity(a, b, dim=1)
            total = total + 0.5 * F.mse_loss(a, b) + (1 - cosine).mean()
        return total

    def tapped(self, code: Code) -> list[Tensor]:
        """The feature maps that eq. 3 compares."""
        mean, _, maps = code
        if self.config.taps == "avgpool5":
            return maps[:-1]
        return maps if self.config.taps == "avgpool5+resblock" else [*maps, mean]

    def pictured(self, z: Tensor) -> Tensor:
        """Decode what is not a real image's code."""
        with self.statistics_kept():
            return self.decoder(z)  # type: ignore[no-any-return]

    def statistics_kept(self) -> "StatisticsKept":
        """While open, no running statistics move (only with `bn_statistics="real"`)."""
        return StatisticsKept(self.norms if self.config.bn_statistics == "real" else [])


class StatisticsKept:
    """Batch norms normalise by the batch as ever, but do not remember it."""

    def __init__(self, norms: list[nn.BatchNorm2d]) -> None:
        self.norms = norms

    def __enter__(self) -> None:
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for norm in self.norms:
            norm.momentum = 0.1


def draw(code: Code) -> Tensor:
    """(B, latent) sample of q(z | x)."""
    mean, log_var, _ = code
    return mean + torch.exp(log_var / 2) * torch.randn_like(mean)


def kl(code: Code) -> Tensor:
    """(B,) KL divergence of q(z | x) from the standard normal, nats, summed over the code."""
    mean, log_var, _ = code
    return -0.5 * (1 + log_var - log_var.exp() - mean.square()).sum(1)


def squared(a: Tensor, b: Tensor) -> Tensor:
    """(B,) squared difference, summed over pixels."""
    return (a - b).square().flatten(1).sum(1)
