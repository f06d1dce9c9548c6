"""Encoder and decoder of the introspective VAE family (Soft-IntroVAE, arXiv:2012.13253; RA, arXiv:2401.10637).

The last feature map is 4 x 4 at every size: the number of widths is log2(size) - 2.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORTH_IT = 16  # side of a picture, pixels, from which `enlarged_conv` saves time


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm on the residual branch; the shortcut carries neither bias nor norm.

    With `enlarge` the block works on its input enlarged twofold (nearest), without making that picture where it can.
    """

    def __init__(self, ins: int, outs: int, *, project: bool = False, enlarge: bool = False) -> None:
        super().__init__()
        self.enlarge = enlarge
        self.shortcut = nn.Conv2d(ins, outs, 1, bias=False) if project or ins != outs else nn.Identity()
        self.first = nn.Conv2d(ins, outs, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outs)
        self.second = nn.Conv2d(outs, outs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outs)
        self.activation = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.shortcut(x)  # a 1 x 1 convolution may as well come before the enlarging
        if self.enlarge:
            kept = F.interpolate(kept, scale_factor=2.0, mode="nearest")
            h = enlarged_conv(x, self.first.weight)
        else:
            h = self.first(x)
        h = self.activation(self.first_norm(h))
        h = self.second_norm(self.second(h))
        return self.activation(h + kept)  # type: ignore[no-any-return]


def enlarged_conv(x: Tensor, weight: Tensor) -> Tensor:
    """3 x 3 convolution, padding 1, of `x` enlarged twofold (nearest): 4 products an output pixel instead of 9.

    Enlarging and convolving is one transposed convolution of stride 2 whose 4 x 4 kernel holds sums of neighbouring
    weights. Where the picture is small beside the kernel those sums cost more than they save.

    Args:
        x: (B, C, h, w).
        weight: (D, C, 3, 3).

    Returns:
        (B, D, 2 h, 2 w), equal to `F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=1)` to rounding.
    """
    if x.shape[-1] < WORTH_IT:
        return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, padding=1)
    turned = F.pad(weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    down = turned[:, :, :-1] + turned[:, :, 1:]
    return F.conv_transpose2d(x, down[..., :-1] + down[..., 1:], stride=2, padding=1)


class SingleChannelConv(nn.Conv2d):
    """k x k convolution to one channel, padding k // 2: all products as one matrix product, then shifted and added.

    A convolution to a single channel keeps a processor idle; this gives the same values, to rounding, in less time.
    """

    def forward(self, x: Tensor) -> Tensor:
        side = self.kernel_size[0]
        products = F.conv2d(x, self.weight[0].flatten(1).t().flip(0)[:, :, None, None])
        summed = F.fold(products.flatten(2), (x.shape[2], x.shape[3]), side, padding=side // 2)
        return summed if self.bias is None else summed + self.bias.view(1, 1, 1, 1)


class Encoder(nn.Module):
    """(B, 1, size, size) in [0, 1] to mean and log-variance (B, latent) and one feature map a halving.

    Args:
        quirk: give the fifth stage's equal-width block a projecting shortcut, as the released weights need.
    """

    def __init__(self, size: int, latent: int, widths: tuple[int, ...], *, quirk: bool = False) -> None:
        super().__init__()
        if size != 4 * 2 ** len(widths):
            raise ValueError(f"{len(widths)} widths fit images of {4 * 2 ** len(widths)} pixels, got {size}")
        self.stem = nn.Sequential(
            nn.Conv2d(1, widths[0], 5, padding=2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.LeakyReLU(0.2, inplace=True),
            nn.AvgPool2d(2),
        )
        pairs = itertools.pairwise(widths)
        self.stages = nn.ModuleList(
            nn.Sequential(ResBlock(a, b, project=quirk and a == b), nn.AvgPool2d(2)) for a, b in pairs
        )
        self.last = ResBlock(widths[-1], widths[-1])
        self.code = nn.Linear(widths[-1] * 16, 2 * latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        taps = [self.stem(x)]
        for stage in self.stages:
            taps.append(stage(taps[-1]))
        taps.append(self.last(taps[-1]))
        mean, log_var = full(self.code(taps[-1].flatten(1))).chunk(2, dim=1)
        return mean, log_var, taps


class Decoder(nn.Module):
    """(B, latent) to (B, 1, size, size), in (0, 1) with `sigmoid`."""

    def __init__(
        self, size: int, latent: int, widths: tuple[int, ...], *, quirk: bool = False, sigmoid: bool = True
    ) -> None:
        super().__init__()
        self.sigmoid = sigmoid
        self.deepest = widths[-1]
        self.code = nn.Sequential(nn.Linear(latent, self.deepest * 16), nn.ReLU(inplace=True))
        outs = list(reversed(widths))
        ins = [self.deepest, *outs[:-1]]
        # The published order is block, enlarge, block, enlarge ...: each block but the first enlarges its input.
        self.stages = nn.ModuleList(
            ResBlock(a, b, project=quirk and a == b and depth == 1, enlarge=depth > 0)
            for depth, (a, b) in enumerate(zip(ins, outs, strict=True))
        )
        self.last = ResBlock(widths[0], widths[0], enlarge=True)
        self.picture = SingleChannelConv(widths[0], 1, 5, padding=2)

    def forward(self, z: Tensor) -> Tensor:
        h = self.code(z).unflatten(1, (self.deepest, 4, 4))
        for stage in self.stages:
            h = stage(h)
        picture = full(self.picture(self.last(h)))
        return picture.sigmoid() if self.sigmoid else picture


def full(x: Tensor) -> Tensor:
    """At least single precision: losses are not summed in bfloat16."""
    return x if x.dtype == torch.float64 else x.float()
