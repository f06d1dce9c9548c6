"""How much of what a trained network sees in a picture is not in its restoration.

Written from the relative L1 loss of Shvetsova, Bakker, Fedulova, Schulz, Dylov, "Anomaly Detection in Medical Imaging
with Deep Perceptual Autoencoders", arXiv:2006.13265; what of it cannot be had here: docs/methods/ae_perceptual.md.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt, validate_call
from torch import Tensor

from salus.nets.features import IMAGENET
from salus.nets.trunks import Frozen, build_trunk
from salus.nets.weights import digest_of, find
from salus.scores.base import Reduction, Score
from salus.scores.lpips import WEIGHTS, enlarge

TrunkName = Literal["vgg16", "alexnet"]

# A ReLU at a stride of 8 pixels. VGG16's follows ten convolutions, as does the published one of VGG19; AlexNet's two
LAYERS = {"vgg16": 22, "alexnet": 4}
TINY = 1e-10  # keeps a place without any feature from a division by zero


class Layer(Frozen):
    """One layer of a network trained on ImageNet.

    Args:
        trunk: vgg16 or alexnet.
        enlarge_by: factor by which pictures are enlarged (bilinear) first; AlexNet was made for large ones.

    Raises:
        WeightsError: the pretrained weights are missing or not the ones they claim to be.

    `name` and `digest` say which network this is and belong into every result. Frozen, in evaluation mode; gradients
    flow to the images alone.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, trunk: TrunkName, enlarge_by: int = 1) -> None:
        super().__init__()
        found = find(WEIGHTS[trunk])
        self.name = trunk if enlarge_by == 1 else f"{trunk}-x{enlarge_by}"
        self.digest = digest_of(found)
        self.enlarge_by = enlarge_by
        self.trunk = build_trunk(trunk, taps=(LAYERS[trunk],)).fill(found)
        mean, spread = IMAGENET
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("spread", torch.tensor(spread).view(3, 1, 1))
        self.freeze()

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) float32 >= 0 of (B, 1, H, W) in [0, 1]; grey becomes three equal channels.

        Raises:
            ValueError: the pictures are too small for the trunk.
        """
        if self.enlarge_by > 1:
            x = F.interpolate(x, scale_factor=self.enlarge_by, mode="bilinear")
        seen: Tensor = self.trunk((x.float() - self.mean) / self.spread)[0]
        return seen.float()


def relative(seen: Tensor, restored: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Sum over `axes` of |seen - restored| as a share of that of |seen|; these axes stay, with length 1."""
    lost = (seen - restored).abs().sum(axes, keepdim=True)
    return lost / seen.abs().sum(axes, keepdim=True).clamp(min=TINY)


class RelativeFeatures(Score):
    """What is lost of the features at each place, as a share of what is there; bilinear on the pictures' grid.

    With sums over the whole picture the same ratio is the loss of `ae-perceptual`.

    Args:
        trunk: network behind it; AlexNet travels with Salus.
        enlarge: factor by which the pictures are enlarged first; a layer has a place for each 8 pixels only.
        image: see `Score`.
    """

    @validate_call
    def __init__(self, *, trunk: TrunkName = "alexnet", enlarge: PositiveInt = 1, image: Reduction = "mean") -> None:
        layer = Layer(trunk, enlarge)
        super().__init__(f"relative-features-{layer.name}", image)
        self.layer = layer

    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        return enlarge(relative(self.layer(x), self.layer(restored), (1,)), x.shape[2:])
