"""Residual generator and critic of WGAN-GP (Gulrajani et al. 2017, arXiv:1704.00028), as f-AnoGAN uses them.

Pre-activation blocks: norm, ReLU, 3 x 3 convolution, twice, beside a 1 x 1 shortcut. The generator doubles the picture
in each and has batch norm; the critic halves it and has layer norm, since a gradient penalty is a matter of one image.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salus.nets.introspective import SingleChannelConv, enlarged_conv


class Doubling(nn.Module):
    """(B, ins, h, w) to (B, outs, 2 h, 2 w)."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.first_norm = nn.BatchNorm2d(ins)
        self.first = nn.Conv2d(ins, outs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outs)
        self.second = nn.Conv2d(outs, outs, 3, padding=1)
        self.shortcut = nn.Conv2d(ins, outs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = enlarged_conv(F.relu(self.first_norm(x)), self.first.weight)
        h = self.second(F.relu(self.second_norm(h)))
        return h + F.interpolate(self.shortcut(x), scale_factor=2.0, mode="nearest")  # type: ignore[no-any-return]


class Halving(nn.Module):
    """(B, ins, h, w) to (B, outs, h / 2, w / 2); h and w are even."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(1, ins)
        self.first = nn.Conv2d(ins, ins, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(1, ins)
        self.second = nn.Conv2d(ins, outs, 3, padding=1)
        self.shortcut = nn.Conv2d(ins, outs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.relu(self.first_norm(x)))
        h = pooled_conv(F.relu(self.second_norm(h)), self.second.weight, self.second.bias)
        return h + self.shortcut(F.avg_pool2d(x, 2))  # type: ignore[no-any-return]


def pooled_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """3 x 3 convolution, padding 1, then the mean of each 2 x 2: one convolution, 4 products a pixel instead of 9.

    Args:
        x: (B, C, h, w), h and w even.
        weight: (D, C, 3, 3).
        bias: (D,) or none.

    Returns:
        (B, D, h / 2, w / 2), equal to `F.avg_pool2d(F.conv2d(x, weight, bias, padding=1), 2)` to rounding.
    """
    wide = F.pad(weight, (1, 1, 1, 1))
    down = wide[:, :, :-1] + wide[:, :, 1:]
    return F.conv2d(x, (down[..., :-1] + down[..., 1:]) / 4, bias, stride=2, padding=1)


class ResidualGenerator(nn.Module):
    """(B, latent) to (B, 1, size, size) in (-1, 1).

    Args:
        size: side of the picture, a multiple of 2 ** (len(widths) - 1).
        latent: entries of z.
        widths: channels from the full picture down to the smallest map.
    """

    def __init__(self, size: int, latent: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.smallest = (widths[-1], side(size, widths), side(size, widths))
        self.first = nn.Linear(latent, widths[-1] * side(size, widths) ** 2)
        self.blocks = nn.Sequential(*(Doubling(a, b) for a, b in itertools.pairwise(reversed(widths))))
        self.norm = nn.BatchNorm2d(widths[0])
        self.picture = SingleChannelConv(widths[0], 1, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.blocks(self.first(z).unflatten(1, self.smallest))
        return torch.tanh(self.picture(F.relu(self.norm(h))).float())


class ResidualCritic(nn.Module):
    """(B, 1, size, size) to (B, outs): one number for a critic, a code for an encoder. No image sees its neighbours.

    Args:
        size: side of the picture, a multiple of 2 ** (len(widths) - 1).
        outs: numbers an image.
        widths: channels from the full picture down to the smallest map.
    """

    def __init__(self, size: int, outs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(*(Halving(a, b) for a, b in itertools.pairwise(widths)))
        self.last = nn.Linear(widths[-1] * side(size, widths) ** 2, outs)

    def features(self, x: Tensor) -> Tensor:
        """(B, F) what the last layer sees: the smallest map."""
        return self.blocks(self.first(x)).flatten(1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x)).float()  # type: ignore[no-any-return]


def side(size: int, widths: tuple[int, ...]) -> int:
    """Pixels along the smallest map."""
    return size >> (len(widths) - 1)
