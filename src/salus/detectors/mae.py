"""Masked autoencoder (MAE): each patch is predicted from others of the image, never from itself.

Written from He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv:2111.06377; as a detector as the
authors of RA (arXiv:2401.10637) use it, described in docs/methods/mae.md.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salus.detectors.base import SMOOTHED, Preset, Recipe, Restorer, Side, Update, fitting, mean_squared
from salus.nets.vit import MaskedAutoencoder, patched, unpatched
from salus.scores.base import Score


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class MAEConfig:
    """Settings of `MAE`. The defaults are the RA authors'; `test_masks` is ours."""

    size: Side = 128  # side of the square input, pixels; a multiple of `patch`
    patch: int = Field(16, ge=1)  # side of a patch, pixels
    width: int = Field(512, ge=4, multiple_of=4)  # entries of the encoder's tokens
    depth: int = Field(12, ge=1)  # blocks of the encoder
    heads: int = Field(16, ge=1)  # of the encoder's attention; they divide the width
    decoder_width: int = Field(512, ge=4, multiple_of=4)
    decoder_depth: int = Field(8, ge=1)
    decoder_heads: int = Field(16, ge=1)
    mask_ratio: float = Field(0.75, gt=0, lt=1)  # share of the patches that is hidden, in training and after
    test_masks: Literal["partition", "random"] = "partition"  # 1 / (1 - ratio) masks that share out the image; RA's
    draws: int = Field(30, ge=1)  # masks of "random"

    @model_validator(mode="after")
    def fits(self) -> "MAEConfig":
        """Patches tile the image, heads share the widths, and masks leave something to see and something to hide."""
        shown = 1 / (1 - self.mask_ratio)  # so many patches there are for each one that is seen
        given, side = f"patches of {self.patch} and a mask_ratio of {self.mask_ratio:g}", self.patch
        if self.test_masks == "partition":
            if abs(shown - round(shown)) > 1e-9:
                raise ValueError(
                    f"test_masks 'partition' shows each patch once, in 1 / (1 - mask_ratio) = {shown:.10g} images: "
                    "take a ratio such as 0.75, 0.6666666667 or 0.5, or test_masks 'random'"
                )
            given += " and test_masks 'partition'"
            side *= next(number for number in itertools.count(1) if number**2 % round(shown) == 0)
        fitting(self.size, side, self.patch * max(2, math.ceil(math.sqrt(shown) - 1e-9)), given)
        for width, heads in ((self.width, self.heads), (self.decoder_width, self.decoder_heads)):
            if width % heads:
                raise ValueError(f"{heads} heads cannot share a width of {width} evenly")
        patches = (self.size // self.patch) ** 2
        if not 0 < self.seen < patches:
            raise ValueError(f"of {patches} patches, a mask_ratio of {self.mask_ratio} leaves {self.seen} to see")
        return self

    @property
    def seen(self) -> int:
        """Patches that are not hidden; a fraction is hidden, as in He et al."""
        return int((self.size // self.patch) ** 2 * (1 - self.mask_ratio) + 1e-9)


class MAE(Restorer):
    """A restoration is made of predictions of hidden patches only; no patch is ever explained by itself."""

    Config = MAEConfig
    FAMILY = "transformer"
    PAPER = "He et al. 2022, arXiv:2111.06377"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            recipe=Recipe(epochs=1500, batch=8, learning_rate=1e-4, patience=500, augment="affine"),
            settings={"size": 128, "patch": 16, "test_masks": "random", "draws": 30},
            score={"name": "residual"},
            about="as the RA authors compare with it: 128 px, patches of 16, Adam 1e-4, batch 8, up to 1500 epochs",
        ),
        "fast": Preset(
            recipe=Recipe(
                epochs=120, batch=8, learning_rate=2e-3, optimiser="adamw", betas=(0.9, 0.95), weight_decay=0.05,
                schedule="cosine", warm=0.05, select="last",
            ),
            settings={
                "size": 64, "patch": 8, "width": 128, "depth": 4, "heads": 4,
                "decoder_width": 64, "decoder_depth": 2, "decoder_heads": 4,
            },
            score=SMOOTHED,
            about="ours: a small transformer at 64 px, He et al.'s optimiser",
        ),
        "tiny": Preset(
            recipe=Recipe(
                epochs=40, batch=8, learning_rate=2e-3, optimiser="adamw", betas=(0.9, 0.95), weight_decay=0.05,
                average=0.98, select="last",
            ),
            settings={
                "size": 32, "patch": 8, "width": 64, "depth": 1, "heads": 4,
                "decoder_width": 64, "decoder_depth": 1, "decoder_heads": 4,
            },
            score={"name": "residual", "image": "top5"},
            about="tests",
        ),
    }  # fmt: skip

    def __init__(self, config: MAEConfig, score: Score) -> None:
        super().__init__(score)
        self.config = c = config
        self.net = MaskedAutoencoder(
            1, c.size, c.patch, (c.width, c.depth, c.heads), (c.decoder_width, c.decoder_depth, c.decoder_heads)
        )
        self.patches = (c.size // c.patch) ** 2

    def parts(self) -> Mapping[str, Iterable[nn.Parameter]]:
        return {"transformer": self.net.parameters()}

    def training_step(self, x: Tensor, update: Update, progress: float) -> dict[str, Tensor]:
        order = torch.rand(len(x), self.patches, device=x.device).argsort(1)
        error = self.error(x, order).mean()
        update("transformer", error)
        return {"mse": error.detach()}

    def error(self, x: Tensor, order: Tensor) -> Tensor:
        """(B,) mean squared error over the hidden patches alone: all but the first `seen` of `order` (B, N)."""
        hidden = order[:, self.config.seen :, None]
        predicted = self.predicted(x, order).take_along_dim(hidden, 1)
        return mean_squared(predicted, patched(x, self.config.patch).take_along_dim(hidden, 1))

    def predicted(self, x: Tensor, order: Tensor) -> Tensor:
        """(B, N, patch^2) what the first `seen` patches of `order` (B, N) say about all."""
        out: Tensor = self.net(x, order, self.config.seen).float()
        return out

    def validation_loss(self, x: Tensor) -> Tensor:
        """(B,) the training loss under masks that are the same at every call."""
        order = torch.rand(len(x), self.patches, generator=torch.Generator().manual_seed(0)).argsort(1)
        return self.error(x, order.to(x.device))

    def restore(self, x: Tensor) -> Tensor:
        return self.reconstruct(x).clamp(0, 1)

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        return {"rec": mean_squared(self.reconstruct(x), x)}

    def reconstruct(self, x: Tensor) -> Tensor:
        """(B, 1, H, W), not clamped: each patch is the mean of its predictions under the masks that hid it.

        A patch that no mask hid (possible with few `draws`) is left as it is: nothing is known about it.
        """
        c = self.config
        total, times = torch.zeros_like(patched(x, c.patch)), torch.zeros(self.patches, 1, device=x.device)
        for order in self.test_orders().to(x.device):
            hidden = torch.ones_like(times).index_fill(0, order[: c.seen], 0)
            total = total + hidden * self.predicted(x, order.expand(len(x), -1))
            times = times + hidden
        mean = torch.where(times > 0, total / times.clamp(min=1), patched(x, c.patch))
        return unpatched(mean, c.patch, c.size)

    def test_orders(self) -> Tensor:
        """(masks, N) permutations whose first `seen` patches are shown; the same for every image and call."""
        generator = torch.Generator().manual_seed(0)
        if self.config.test_masks == "random":
            return torch.rand(self.config.draws, self.patches, generator=generator).argsort(1)
        shared = torch.randperm(self.patches, generator=generator)
        return torch.stack([shared.roll(-first) for first in range(0, self.patches, self.config.seen)])
