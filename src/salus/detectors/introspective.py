"""What introspective variational autoencoders share: networks, the argument between encoder and decoder, its order.

Written from Daniel and Tamar, "Soft-IntroVAE: Analyzing and Improving the Introspective Variational Autoencoder",
arXiv:2012.13253, with the arithmetic of its descendant, Bercea et al., arXiv:2401.10637, whose equation numbers are
used below. `s` is 1 over the number of pixels; KL and errors are sums.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salus.detectors.base import Channels, Entries, Restorer, Side, Update, Weight
from salus.detectors.variational import bound, draw, kl, squared
from salus.nets.introspective import Decoder, Encoder
from salus.scores.base import Score

Code = tuple[Tensor, Tensor, list[Tensor]]  # mean (B, latent), log-variance (B, latent), feature maps


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class IntrospectiveConfig:
    """Settings of every `Introspective`."""

    size: Side = 128  # side of the square input, pixels
    latent: Entries = 128  # entries of z
    widths: tuple[Channels, ...] = Field((64, 128, 256, 512, 512), min_length=1)  # after each halving; log2(size) - 2
    alpha: float = Field(2.0, gt=0)  # eq. 2 and 4, Soft-IntroVAE's value
    beta_rec: float = Field(0.5, ge=0)
    beta_kl: float = Field(1.0, ge=0)
    beta_neg: Weight | Literal["auto"] = "auto"  # KL of fakes in the exponent; auto: pixels / 128 (128 at 128 px)
    gamma_rec: float = Field(1e-8, ge=0)  # numerically nil in the release; 0 saves its two decoder passes
    bn_mode: Literal["train", "frozen"] = "train"  # frozen: norms stay at their first statistics, as the release ran
    bn_statistics: Literal["all", "real"] = "all"  # which pictures move the running statistics the detector uses
    grad_target: Literal["code", "detached"] = "code"  # restoration as a target in the exponent: live, or not
    latent_infer: str = Field("mean", pattern=r"^(mean|sample|avg:[1-9]\d*)$")  # the release samples
    shortcut_quirk: bool = False  # one more 1 x 1 shortcut a network, as in the released weights
    warmup: float = Field(0.0, ge=0, le=1)  # share of the training as a plain VAE
    ramp: float = Field(0.0, ge=0, le=1)  # share over which the argument then grows to full weight; ours

    @model_validator(mode="after")
    def fits(self) -> "IntrospectiveConfig":
        """The last feature map must be 4 x 4."""
        fits = 4 * 2 ** len(self.widths)
        if self.size != fits:
            below = 2 ** (max(self.size, 8).bit_length() - 1)
            nearest = (below,) if self.size <= below else (below, 2 * below)
            takes = ", ".join(f"{size} takes {size.bit_length() - 3} of them" for size in nearest)
            raise ValueError(f"{len(self.widths)} widths fit a size of {fits}, not {self.size}: {takes}")
        return self


class Introspective(Restorer):
    """A variational autoencoder whose encoder repels what its decoder makes, while the decoder tries to please it."""

    config: IntrospectiveConfig

    def __init__(self, config: IntrospectiveConfig, score: Score, *, sigmoid: bool = True) -> None:
        super().__init__(score)
        self.config = config
        self.encoder = Encoder(config.size, config.latent, config.widths, quirk=config.shortcut_quirk)
        self.decoder = Decoder(config.size, config.latent, config.widths, quirk=config.shortcut_quirk, sigmoid=sigmoid)
        pixels = config.size**2
        self.beta_neg = pixels / 128 if config.beta_neg == "auto" else config.beta_neg
        self.norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]

    def parts(self) -> Mapping[str, Iterable[nn.Parameter]]:
        return {"encoder": self.encoder.parameters(), "decoder": self.decoder.parameters()}

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.config.bn_mode == "frozen":
            for norm in self.norms:
                norm.eval()
        return self

    def restore(self, x: Tensor) -> Tensor:
        mean, log_var, _ = self.encoder(x)
        how = self.config.latent_infer
        if how == "mean":
            return self.decoder(mean).clamp(0, 1)  # type: ignore[no-any-return]
        # The same draws for every image and call: a score must not depend on its neighbours in the batch.
        draws = 1 if how == "sample" else int(how.removeprefix("avg:"))
        noise = torch.randn(draws, mean.shape[1], generator=torch.Generator().manual_seed(0)).to(mean)
        pictures = [self.decoder(draw(mean, log_var, eps)) for eps in noise]
        return torch.stack(pictures).mean(0).clamp(0, 1)

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        code = self.encoder(x)
        c, error = self.config, squared(x, self.decoder(code[0]))
        return bound(error, divergence(code), c.beta_rec, c.beta_kl)

    def training_step(self, x: Tensor, update: Update, progress: float) -> dict[str, Tensor]:
        c = self.config
        argument = self.argument(progress)
        if argument == 0:
            return self.warmup_step(x, update)
        s = 1 / x[0].numel()

        # Encoder (eq. 4). Fakes and restorations keep their graphs: the decoder's step needs the same two again.
        fake = self.pictured(torch.randn(len(x), c.latent, device=x.device))
        code = self.encoder(x)
        rec = self.decoder(drawn(code))
        with self.statistics_kept():
            code_rec, code_fake = self.encoder(rec.detach()), self.encoder(fake.detach())
        error, kl_real = squared(x, rec), divergence(code)
        repelled = self.repelled(rec if c.grad_target == "code" else rec.detach(), code_rec)
        repelled = repelled + self.repelled(fake.detach(), code_fake)
        alike = self.alike(code, code_rec)
        loss = self.bound(error, kl_real)
        loss = loss + argument * (repelled / (2 * c.alpha) + sum(weight * value for weight, value in alike.values()))
        update("encoder", loss, keep_graph=True)

        # Decoder (eq. 2): restorations and samples that look likely to the updated, now resting encoder.
        with self.statistics_kept():
            code_rec, code_fake = self.encoder(rec), self.encoder(fake)
        kl_rec, kl_fake = divergence(code_rec), divergence(code_fake)
        loss_decoder = c.beta_rec * squared(x, rec) + argument * c.beta_kl * (kl_rec + kl_fake) / 2
        if c.gamma_rec > 0:
            again = squared(rec.detach(), self.pictured(drawn(code_rec).detach()))
            again = again + squared(fake.detach(), self.pictured(drawn(code_fake).detach()))
            loss_decoder = loss_decoder + c.gamma_rec * c.beta_rec * again / 2
        update("decoder", s * loss_decoder.mean())
        return {
            "loss_encoder": loss.detach(),
            "loss_decoder": s * loss_decoder.detach().mean(),
            "mse": s * error.detach().mean(),
            "kl_real": kl_real.detach().mean(),
            "kl_restored": kl_rec.detach().mean(),
            "kl_fake": kl_fake.detach().mean(),
            **{name: value.detach() for name, (_, value) in alike.items()},
        }

    def warmup_step(self, x: Tensor, update: Update) -> dict[str, Tensor]:
        """One step of a plain VAE, both halves together."""
        code = self.encoder(x)
        error, kl_real = squared(x, self.decoder(drawn(code))), divergence(code)
        loss = self.bound(error, kl_real)
        update(("encoder", "decoder"), loss)
        mse = error.detach().mean() / x[0].numel()
        return {"loss_encoder": loss.detach(), "mse": mse, "kl_real": kl_real.detach().mean()}

    def bound(self, error: Tensor, kl_real: Tensor) -> Tensor:
        """Scalar: what a plain VAE minimises a pixel, from squared errors and divergences, (B,) each."""
        terms = bound(error, kl_real, self.config.beta_rec, self.config.beta_kl)
        return (terms["rec"] + terms["kl"]).mean() / self.config.size**2

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
        error = squared(picture, self.pictured(drawn(code)))
        terms = bound(error, divergence(code), c.beta_rec, self.beta_neg)
        return torch.exp(-c.alpha * (terms["rec"] + terms["kl"]) / picture[0].numel()).mean()

    def alike(self, code: Code, code_rec: Code) -> dict[str, tuple[float, Tensor]]:
        """What else the encoder minimises on an image and its restoration: (weight, scalar) by name."""
        return {}

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


def drawn(code: Code) -> Tensor:
    """(B, latent) sample of a code's Gaussian."""
    return draw(code[0], code[1])


def divergence(code: Code) -> Tensor:
    """(B,) KL of a code from the prior, nats."""
    return kl(code[0], code[1])
