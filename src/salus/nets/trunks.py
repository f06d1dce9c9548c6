"""AlexNet, VGG16, SqueezeNet 1.1 and EfficientNet-Lite0 without their classifiers, extractors that never learn.

Written from Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv:1404.5997;
Simonyan and Zisserman, arXiv:1409.1556; Iandola et al., arXiv:1602.07360, with the v1.1 changes of its
authors' repository. Layers are numbered as in torchvision's `features`, so that its weights fit by name; those of
EfficientNet-Lite0 are in `salus.nets.lite0`.
"""

import itertools
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Self

import torch
from torch import Tensor, nn

from salus.core.errors import ConfigError, WeightsError, did_you_mean
from salus.nets.lite0 import lite0_layers


class Frozen(nn.Module):
    """What has learned elsewhere and never learns here; no model folder holds it, its source and digest are known."""

    def freeze(self) -> None:
        """To be called when all layers are there: evaluation mode, no gradients for parameters."""
        self.requires_grad_(False).train(False)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, whatever the network around it does."""
        return super().train(False)


class Trunk(Frozen):
    """A stack of frozen layers whose outputs at some places, the taps, are what one wants.

    Args:
        layers: the stack, numbered from 0.
        taps: numbers of the layers whose outputs `forward` returns; layers after the last are left out.

    It stays in evaluation mode and its parameters take no gradient; the images may.
    """

    def __init__(self, layers: Iterable[nn.Module], taps: tuple[int, ...]) -> None:
        super().__init__()
        self.taps = taps
        self.features = nn.Sequential(*list(layers)[: max(taps) + 1])
        self.freeze()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of `x` (B, 3, H, W), one (B, channels, height, width) a tap, not negative after a ReLU.

        Raises:
            ValueError: `x` is too small for the stack's strides.
        """
        seen, shape = [], x.shape[2:]
        try:
            for number, layer in enumerate(self.features):
                x = layer(x)
                if number in self.taps:
                    seen.append(x)
        except RuntimeError as error:
            if "too small" in str(error) or "greater than actual input size" in str(error):
                least = next(side for side in itertools.count(1) if self.takes(side))
                given = " x ".join(map(str, shape))
                raise ValueError(f"{given} pixels are too few for this trunk, it takes {least} x {least}") from error
            raise
        return seen

    def takes(self, side: int) -> bool:
        """Whether square images of this side survive the strides."""
        with torch.no_grad(), suppress(RuntimeError):
            self.features(next(self.parameters()).new_zeros(1, 3, side, side))
            return True
        return False

    def fill(self, weights: Mapping[str, Tensor]) -> Self:
        """Take over the tensors named `features.N...`; those of layers left out and other names are ignored.

        Raises:
            WeightsError: one is missing or has another shape.
        """
        for name, mine in self.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if name not in weights or weights[name].shape != mine.shape:
                found = tuple(weights[name].shape) if name in weights else "nothing"
                raise WeightsError(f"the trunk needs {name} of shape {tuple(mine.shape)}, found {found}")
            mine.copy_(weights[name])
        return self

    def drawn(self, generator: torch.Generator | None = None) -> Self:
        """Random weights that keep the spread of features from layer to layer (He et al., arXiv:1502.01852).

        Args:
            generator: where they are drawn from; torch's global one when left out.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        return self


class Fire(nn.Module):
    """Squeeze to few channels, then expand by 1x1 and 3x3 convolutions side by side (arXiv:1602.07360, 3.2)."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu_()
        return torch.cat((self.expand1x1(x), self.expand3x3(x)), 1).relu_()


def alexnet_layers() -> list[nn.Module]:
    """torchvision's `alexnet().features`."""
    return [
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), relu(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), relu(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), relu()),
        *(nn.Conv2d(384, 256, 3, padding=1), relu()),
        *(nn.Conv2d(256, 256, 3, padding=1), relu(), nn.MaxPool2d(3, 2)),
    ]


def vgg16_layers() -> list[nn.Module]:
    """torchvision's `vgg16().features`."""
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), relu()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return layers


def squeezenet_layers() -> list[nn.Module]:
    """torchvision's `squeezenet1_1().features`."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return [
        *(nn.Conv2d(3, 64, 3, stride=2), relu(), pool()),
        *(Fire(64, 16, 64), Fire(128, 16, 64), pool()),
        *(Fire(128, 32, 128), Fire(256, 32, 128), pool()),
        *(Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
    ]


def relu() -> nn.Module:
    """ReLU that needs no memory of its own."""
    return nn.ReLU(inplace=True)


# Layers, and the places LPIPS looks at (Zhang et al., arXiv:1801.03924): each is the last ReLU of a stage.
TRUNKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "alexnet": (alexnet_layers, (1, 4, 7, 9, 11)),
    "vgg16": (vgg16_layers, (3, 8, 15, 22, 29)),
    "squeezenet": (squeezenet_layers, (1, 4, 7, 9, 10, 11, 12)),
    "efficientnet_lite0": (lite0_layers, (5, 11, 17)),  # not LPIPS': the ends of strides 8, 16 and 32
}


def build_trunk(name: str, *, taps: tuple[int, ...] | None = None) -> Trunk:
    """A frozen trunk with random weights; `Trunk.fill` gives it those of `salus.nets.weights.find`.

    Args:
        name: alexnet, vgg16, squeezenet (1.1) or efficientnet_lite0.
        taps: layers to return, by torchvision's numbers; the places of `TRUNKS` when left out.

    Raises:
        ConfigError: no such trunk, or a tap that is not among its layers.
    """
    if name not in TRUNKS:
        raise ConfigError(f"There is no trunk '{name}'.{did_you_mean(name, TRUNKS)}")
    make, places = TRUNKS[name]
    layers = make()
    taps = places if taps is None else taps
    if not taps or not set(taps) <= set(range(len(layers))):
        raise ConfigError(f"{name} has layers 0 to {len(layers) - 1}, so its taps cannot be {taps}")
    return Trunk(layers, taps)
