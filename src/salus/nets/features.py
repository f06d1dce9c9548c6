"""What a frozen trunk sees in grey images, at a fine and at a coarse stride: the ground of feature-bank methods."""

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salus.nets.trunks import Frozen, build_trunk
from salus.nets.weights import PRETRAINED, digest_of, find

TrunkName = Literal["efficientnet_lite0", "vgg16", "alexnet"]

# The last layers of two neighbouring strides in the middle of a trunk (8 and 16 pixels; VGG16: 4 and 8), and its end.
TAPS = {"efficientnet_lite0": (5, 11, 17), "vgg16": (15, 22, 29), "alexnet": (4, 9, 11)}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and spread of a channel, as the trunks were trained
SCALES = {"efficientnet_lite0": ((127 / 255,) * 3, (128 / 255,) * 3), "vgg16": IMAGENET, "alexnet": IMAGENET}


class Features(Frozen):
    """Two or three layers of a trunk.

    Args:
        trunk: a key of `TAPS`.
        weights: "pretrained" on ImageNet, or "random": drawn from torch's global generator.
        side: pixels; smaller images are enlarged to it.
        end: whether the trunk's last layer is wanted, too.

    Raises:
        WeightsError: the pretrained weights are missing or not the ones they claim to be.

    `name` and `digest` (empty for random weights) say which network this is and belong into every result. Frozen, in
    evaluation mode.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, trunk: TrunkName, weights: Literal["pretrained", "random"], side: int, *, end: bool) -> None:
        super().__init__()
        self.side = side
        self.trunk = build_trunk(trunk, taps=taps(trunk, end=end))
        if weights == "random":
            self.name, self.digest = f"{trunk}-random", ""
            self.trunk.drawn()
        else:
            found = find(next(entry.id for entry in PRETRAINED.values() if entry.trunk == trunk))
            self.name, self.digest = trunk, digest_of(found)
            self.trunk.fill(found)
        mean, spread = SCALES[trunk]
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("spread", torch.tensor(spread).view(3, 1, 1))
        self.freeze()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of `x` (B, 1, H, W) in [0, 1], float32 (B, channels, height, width) a layer.

        Grey becomes three equal channels, scaled as in the trunk's training.
        """
        if x.shape[-1] < self.side:
            x = F.interpolate(x, size=(self.side, self.side), mode="bilinear", align_corners=False)
        scaled = ((x - self.mean) / self.spread).contiguous(memory_format=torch.channels_last)
        return [layer.float() for layer in self.trunk(scaled)]


def taps(trunk: TrunkName, *, end: bool) -> tuple[int, ...]:
    """Numbers of the layers."""
    return TAPS[trunk] if end else TAPS[trunk][:2]


@functools.cache
def widest(trunk: TrunkName, side: int) -> int:
    """Numbers that one layer takes and gives for an image of `side` pixels, the layer with the most; computes none.

    So much memory, four bytes each, an image of a batch takes, roughly.
    """
    most = 0

    def look(layer: nn.Module, taken: tuple[Tensor], given: Tensor) -> None:
        nonlocal most
        most = max(most, taken[0].numel() + given.numel())

    with torch.device("meta"):
        network = build_trunk(trunk, taps=taps(trunk, end=True))
        for layer in network.modules():
            if not any(layer.children()):
                layer.register_forward_hook(look)
        network(torch.empty(1, 3, side, side))
    return most


@functools.cache
def shapes(trunk: TrunkName, side: int, *, end: bool) -> tuple[tuple[int, int, int], ...]:
    """(channels, height, width) of the layers for images of `side` pixels; computes no pixel.

    Raises:
        ValueError: the images are too small for the trunk.
    """
    with torch.device("meta"):
        seen = build_trunk(trunk, taps=taps(trunk, end=end))(torch.empty(1, 3, side, side))
    return tuple((layer.shape[1], layer.shape[2], layer.shape[3]) for layer in seen)
