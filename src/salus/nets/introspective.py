"""Encoder and decoder of the introspective VAE family (Soft-IntroVAE, arXiv:2012.13253; RA, arXiv:2401.10637).

The last feature map is 4 x 4 at every size: the number of widths is log2(size) - 2.
"""

import itertools

import torch
from torch import Tensor, nn


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm on the residual branch; the shortcut carries neither bias nor norm."""

    def __init__(self, ins: int, outs: int, *, project: bool = False) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(ins, outs, 1, bias=False) if project or ins != outs else nn.Identity()
        self.first = nn.Conv2d(ins, outs, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outs)
        self.second = nn.Conv2d(outs, outs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outs)
        self.activation = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.first_norm(self.first(x)))
        h = self.second_norm(self.second(h))
        return self.activation(h + self.shortcut(x))  # type: ignore[no-any-return]


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
    """(B, latent) to (B, 1, size, size) in (0, 1)."""

    def __init__(self, size: int, latent: int, widths: tuple[int, ...], *, quirk: bool = False) -> None:
        super().__init__()
        self.deepest = widths[-1]
        self.code = nn.Sequential(nn.Linear(latent, self.deepest * 16), nn.ReLU(inplace=True))
        outs = list(reversed(widths))
        ins = [self.deepest, *outs[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResBlock(a, b, project=quirk and a == b and depth == 1), nn.Upsample(scale_factor=2, mode="nearest")
            )
            for depth, (a, b) in enumerate(zip(ins, outs, strict=True))
        )
        self.last = ResBlock(widths[0], widths[0])
        self.picture = nn.Conv2d(widths[0], 1, 5, padding=2)

    def forward(self, z: Tensor) -> Tensor:
        h = self.code(z).unflatten(1, (self.deepest, 4, 4))
        for stage in self.stages:
            h = stage(h)
        return full(self.picture(self.last(h))).sigmoid()


def full(x: Tensor) -> Tensor:
    """At least single precision: losses are not summed in bfloat16."""
    return x if x.dtype == torch.float64 else x.float()
