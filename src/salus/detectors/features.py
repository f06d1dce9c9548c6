"""What `padim`, `patchcore` and `knn` share: a frozen trunk, patches of its features, and a bank that is bounded."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salus.core.errors import ConfigError
from salus.core.machine import in_words, memory
from salus.detectors.base import Detector, Recipe, Side, Update, several_processes
from salus.nets.features import Features, TrunkName, shapes, widest
from salus.scores.residual import gaussian

COPIES = 4  # of the bank while an epoch ends, at the most, with what is written (measured: 3.4)
AT_ONCE = 2**24  # entries of a table of distances


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class FeatureConfig:
    """Settings of every method on frozen features."""

    size: Side = Field(64, ge=16)  # side of the square input, pixels
    trunk: TrunkName = "efficientnet_lite0"  # the papers' WideResNet50-2 is in no package registry
    weights: Literal["pretrained", "random"] = "pretrained"  # random ones only to show what pretraining is worth
    enlarge: int = Field(224, ge=32)  # smaller images are enlarged to this side; the papers' input
    sigma: float = Field(4.0, ge=0)  # Gaussian over the map, pixels of the enlarged image; both papers: 4 at 224

    @property
    def side(self) -> int:
        """Pixels of what the trunk sees."""
        return max(self.size, self.enlarge)

    @property
    def patches(self) -> int:
        """Places of the finer layer in an image."""
        return math.prod(shapes(self.trunk, self.side, end=False)[0][1:])

    @property
    def channels_in_all(self) -> int:
        """Of both layers together: the length of a patch's features."""
        return sum(shape[0] for shape in shapes(self.trunk, self.side, end=False))

    def kept(self) -> tuple[int, str, str]:
        """Numbers that the trained method holds, what they are, and the settings that make them fewer."""
        raise NotImplementedError

    @model_validator(mode="after")
    def fits_into_memory(self) -> "FeatureConfig":
        """Refuse a bank that cannot be held."""
        if complaint := self.too_large(1):
            raise ValueError(complaint)
        return self

    def too_large(self, copies: int) -> str:
        """Why so many copies of the bank do not fit into this machine's memory; empty where they do."""
        numbers, what, cure = self.kept()
        needed, there = 4 * numbers, memory()
        if copies * needed <= there:
            return ""
        saved = f", and {copies} times that while they are saved" if copies > 1 else ""
        return f"{what} take {in_words(needed)}{saved}, but this machine has {in_words(there)} of memory. Lower {cure}"


class FeatureDetector(Detector):
    """Collects features of healthy images in one pass; nothing is learned by descent."""

    config: FeatureConfig

    def __init__(self, config: FeatureConfig, *, end: bool = False) -> None:
        super().__init__()
        self.config = config
        self.features = Features(config.trunk, config.weights, config.side, end=end)

    @property
    def judged_by(self) -> str:
        """The trunk and its weights."""
        return self.features.name

    @abstractmethod
    def collect(self, x: Tensor) -> dict[str, Tensor]:
        """Take in healthy images (B, 1, H, W); returns scalars to log."""

    def too_large(self) -> str:
        return self.config.too_large(COPIES)

    @property
    def an_image(self) -> int:
        """Bytes that the trunk's widest layer takes."""
        return 4 * widest(self.config.trunk, self.config.side)

    def at_once(self, device: str) -> int:
        # By default the usual number; of large pictures as many as take half of the memory.
        return max(1, int(min(super().at_once(device), memory() / 2 // self.an_image)))

    def parts(self) -> Mapping[str, Iterable[nn.Parameter]]:
        return {}

    def check(self, recipe: Recipe, images: int, validation: int) -> None:
        super().check(recipe, images, validation)
        c, together = self.config, min(recipe.batch, max(images, validation))
        if (needed := together * self.an_image) > memory():
            raise ConfigError(
                f"{together} images of {c.side} pixels at a time take {in_words(needed)} in {c.trunk}, but this "
                f"machine has {in_words(memory())} of memory. Lower recipe.batch, enlarge or size."
            )

    @torch.no_grad()
    def training_step(self, x: Tensor, update: Update, progress: float) -> dict[str, Tensor]:
        if several_processes():
            raise ConfigError("A feature bank is collected in one process: train without torchrun.")
        with torch.autocast(x.device.type, enabled=False):
            return self.collect(x)

    def validation_loss(self, x: Tensor) -> Tensor:
        return self.detect(x).score

    def learned(self) -> dict[str, Tensor]:
        """With random weights the trunk, too: nobody else has them."""
        return self.state_dict() if self.config.weights == "random" else super().learned()

    def picture(self, distances: Tensor) -> Tensor:
        """(B, 1, size, size) map of (B, patches) distances: enlarged (bilinear), then smoothed."""
        c = self.config
        height, width = shapes(c.trunk, c.side, end=False)[0][1:]
        coarse = distances.reshape(-1, 1, height, width)
        fine = F.interpolate(coarse, size=(c.size, c.size), mode="bilinear", align_corners=False)
        return gaussian(fine, c.sigma * c.size / c.side)


def joined(layers: Sequence[Tensor], *, neighbourhood: int, mode: Literal["nearest", "bilinear"]) -> Tensor:
    """(B, patches, channels) of layers averaged around each place, then the coarse ones brought to the finest grid.

    Args:
        layers: (B, channels, height, width) each, the finest first.
        neighbourhood: odd side of the square that is averaged; beyond the border there is nothing to average.
        mode: how the coarse grid becomes a fine one.
    """
    around = neighbourhood // 2
    local = [F.avg_pool2d(layer, neighbourhood, 1, around, count_include_pad=False) for layer in layers]
    grid = local[0].shape[2:]
    align = {"align_corners": False} if mode == "bilinear" else {}
    fine = [local[0], *(F.interpolate(layer, size=grid, mode=mode, **align) for layer in local[1:])]
    return torch.cat(fine, 1).flatten(2).transpose(1, 2)


def deviated(rows: Tensor, mean: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """What a batch adds to sums of squares around a mean that moves with it.

    Args:
        rows: (..., n, channels).
        mean: (..., channels) of the rows before; `seen` of them.

    Returns:
        (..., n + 1, channels) whose products with themselves are to be added: deviations from the batch's own mean,
        and one row for how far that lies from the mean before; and the mean of all rows.
    """
    batch, n = rows.mean(-2), rows.shape[-2]
    total, shift = seen + n, batch - mean
    between = (seen * n / total).sqrt() * shift
    return torch.cat([rows - batch[..., None, :], between[..., None, :]], -2), mean + shift * (n / total)


def nearest(rows: Tensor, bank: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """Squared Euclidean distances to the nearest entries of a bank, ascending, and where they are, both (n, count).

    The neighbours are found by a matrix product, and their distances then computed anew from differences: a product
    loses the digits of what lies close together, and does so differently in every batch.

    Args:
        rows: (n, channels).
        bank: (m, channels), m at least `count`.
    """
    norms, found = bank.square().sum(1), []
    for part in torch.split(rows, max(1, AT_ONCE // len(bank))):
        roughly = torch.addmm(norms, part, bank.T, alpha=-2)
        where = roughly.topk(count, 1, largest=False).indices if count > 1 else roughly.argmin(1, keepdim=True)
        exact = torch.stack([(part - bank[where[:, k]]).square().sum(1) for k in range(count)], 1)
        ordered, order = exact.sort(1)
        found.append((ordered, where.gather(1, order)))
    distances, places = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(places)
