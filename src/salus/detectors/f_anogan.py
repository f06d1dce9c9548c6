"""f-AnoGAN: a generative adversarial network learns to draw healthy images, an encoder then learns to ask for them.

Written from Schlegl, Seeboeck, Waldstein, Langs, Schmidt-Erfurth, "f-AnoGAN: Fast unsupervised anomaly detection with
generative adversarial networks", doi:10.1016/j.media.2019.01.010 (the encoder training they call izi_f); the
adversarial part from Gulrajani et al., "Improved Training of Wasserstein GANs", arXiv:1704.00028.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

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
    check_stages,
    first_stage,
    fitting,
    inner,
    mean_squared,
    outer,
)
from salus.nets.gan import ResidualCritic, ResidualGenerator
from salus.scores.base import Score


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class FAnoGANConfig:
    """Settings of `FAnoGAN`."""

    size: Side = 64  # side of the square input, pixels
    latent: Entries = 128  # entries of z
    widths: tuple[Channels, ...] = Field((64, 128, 256, 512, 512), min_length=2)  # full picture to smallest map
    stage: float = Field(0.9, gt=0, lt=1)  # share of the training for the GAN, the rest is the encoder's
    critic_steps: int = Field(5, ge=1)  # steps of the critic for one of the generator
    penalty: float = Field(10.0, ge=0)  # weight of the gradient penalty
    kappa: float = Field(1.0, ge=0)  # weight of the critic's features, in the encoder's loss and in the image's score
    tanh: bool = False  # encoder's output in (-1, 1), as published; the generator has learned from N(0, I)
    image_score: Literal["residual+features", "map"] = "residual+features"  # published; or the score of the map

    @model_validator(mode="after")
    def fits(self) -> "FAnoGANConfig":
        """The picture must be halved once for each width after the first."""
        fitting(self.size, 2 ** (len(self.widths) - 1), 8, f"{len(self.widths)} widths")
        return self


class FAnoGAN(Restorer):
    """Wasserstein GAN with gradient penalty, then an encoder into its space; values scaled to [-1, 1] inside."""

    Config = FAnoGANConfig
    FAMILY = "gan"
    PAPER = "Schlegl et al. 2019, doi:10.1016/j.media.2019.01.010"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            settings={"tanh": True},
            recipe=Recipe(
                epochs=8000,
                batch=64,
                learning_rate=1e-4,
                betas=(0.0, 0.9),
                select="last",
                parts={"encoder": {"optimiser": "rmsprop", "learning_rate": 5e-5}},
            ),
            score={"name": "residual"},
            about="doi:10.1016/j.media.2019.01.010: 64 px, z = 128, RMSProp 5e-5 for the encoder; epochs such that "
            "4,000 images make its 50,000 steps (and 450,000 of the critic, ours)",
        ),
        "fast": Preset(
            settings={
                "latent": 16,
                "widths": (8, 16, 32, 64, 64),
                "stage": 0.6,
                "critic_steps": 2,
                "image_score": "map",
            },
            recipe=Recipe(
                epochs=36,
                batch=8,
                learning_rate=2e-3,
                betas=(0.0, 0.9),
                select="last",
                parts={"encoder": {"betas": (0.9, 0.999)}},
            ),
            score=SMOOTHED,
            about="ours: an eighth of the widths, two critic steps, a higher rate, few steps; score of the fast `ra`",
        ),
        "tiny": Preset(
            settings={"size": 32, "latent": 8, "widths": (4, 8, 16, 16), "stage": 0.6, "critic_steps": 2},
            recipe=Recipe(
                epochs=16,
                batch=8,
                learning_rate=3e-3,
                betas=(0.0, 0.9),
                select="last",
                parts={"encoder": {"betas": (0.9, 0.999)}},
            ),
            score={"name": "residual"},
            about="tests",
        ),
    }

    def __init__(self, config: FAnoGANConfig, score: Score) -> None:
        super().__init__(score)
        self.config = config
        self.generator = ResidualGenerator(config.size, config.latent, config.widths)
        self.critic = ResidualCritic(config.size, 1, config.widths)
        self.encoder = ResidualCritic(config.size, config.latent, config.widths)
        self.register_buffer("critic_stepped", torch.zeros((), dtype=torch.int64))  # times, so that a resume goes on
        self.critic_stepped: Tensor
        self.register_buffer("encoder_stepped", torch.zeros((), dtype=torch.int64))
        self.encoder_stepped: Tensor

    def parts(self) -> Mapping[str, Iterable[nn.Parameter]]:
        return {
            "generator": self.generator.parameters(),
            "critic": self.critic.parameters(),
            "encoder": self.encoder.parameters(),
        }

    def restore(self, x: Tensor) -> Tensor:
        return outer(self.rebuild(inner(x)))

    def rebuild(self, x: Tensor) -> Tensor:
        """G(E(x)), (B, 1, H, W), both in [-1, 1]."""
        code = self.encoder(x)
        return self.generator(torch.tanh(code) if self.config.tanh else code)  # type: ignore[no-any-return]

    def detect(self, x: Tensor) -> Detection:
        seen = super().detect(x)
        if self.config.image_score == "map" or seen.restored is None:
            return seen
        residual, features = self.errors(inner(x), inner(seen.restored))
        return replace(seen, score=residual + self.config.kappa * features)

    def errors(self, x: Tensor, rebuilt: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared difference of two (B, 1, H, W) in [-1, 1], (B,) in pixels and (B,) in the critic's features."""
        told, retold = self.critic.features(x), self.critic.features(rebuilt)
        return mean_squared(x, rebuilt), mean_squared(told.float(), retold.float())

    def training_step(self, x: Tensor, update: Update, progress: float) -> dict[str, Tensor]:
        x = inner(x)
        if progress >= self.config.stage:
            return self.encoder_step(x, update)
        self.generator.train()
        logged = self.critic_step(x, update)
        if int(self.critic_stepped) % self.config.critic_steps == 0:
            logged |= self.generator_step(x, update)
        self.critic_stepped += 1
        return logged

    def critic_step(self, x: Tensor, update: Update) -> dict[str, Tensor]:
        """Tell real from drawn: as far apart as a critic of slope one can."""
        drawn = self.generator(self.noise(x)).detach()
        distance = self.critic(x).mean() - self.critic(drawn).mean()
        penalty = gradient_penalty(self.critic, x, drawn)
        update("critic", self.config.penalty * penalty - distance)
        return {"distance": distance.detach(), "penalty": penalty.detach()}

    def generator_step(self, x: Tensor, update: Update) -> dict[str, Tensor]:
        """Draw what the critic takes for real."""
        loss = -self.critic(self.generator(self.noise(x))).mean()
        update("generator", loss)
        return {"loss_generator": loss.detach()}

    def encoder_step(self, x: Tensor, update: Update) -> dict[str, Tensor]:
        """Find the code whose drawing is most like the image; generator and critic rest, running statistics too."""
        self.generator.eval()
        residual, features = (error.mean() for error in self.errors(x, self.rebuild(x)))
        update("encoder", residual + self.config.kappa * features)
        self.encoder_stepped += 1
        return {"mse": residual.detach(), "features": features.detach()}

    def check(self, recipe: Recipe, images: int, validation: int) -> None:
        super().check(recipe, images, validation)
        check_stages("f-anogan", "encoder", self.config.stage, recipe, images)

    def finish_training(self) -> None:
        """Refuse weights of the first stage: their encoder is the one it began with."""
        if not self.encoder_stepped:
            raise first_stage("f-anogan", "encoder", self.config.stage)
        super().finish_training()

    def noise(self, x: Tensor) -> Tensor:
        """(B, latent) of N(0, I), as many as there are images in `x`."""
        return torch.randn(len(x), self.config.latent, device=x.device)


def gradient_penalty(critic: nn.Module, real: Tensor, drawn: Tensor) -> Tensor:
    """Scalar, mean of (|slope of the critic| - 1)^2 at one random point between each real and drawn image.

    It is differentiated once more, so it is taken in single precision whatever runs around it.

    Args:
        critic: judges each image by itself: slopes of a sum over the batch are then those of each image.
        real, drawn: (B, 1, H, W).
    """
    with torch.autocast(real.device.type, enabled=False):
        share = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
        between = torch.lerp(real, drawn.to(real.dtype), share).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        penalty: Tensor = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty
