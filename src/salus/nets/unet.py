"""U-Net with weight standardisation (Kascenas, Pugeault, O'Neil, MIDL 2022, PMLR 172:653-664).

U-Net: Ronneberger et al., arXiv:1505.04597. Weight standardisation: Qiao et al., arXiv:1903.10520.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StandardisedConv(nn.Conv2d):
    """3 x 3 convolution, mirrored border, whose filters have mean 0 and standard deviation 1 wherever it is used.

    A filter of mean 0 on a mirrored border does not see a constant added to its input.
    """

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__(ins, outs, 3)

    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), (self.weight - mean) / (std + 1e-5), self.bias)


class UNet(nn.Module):
    """(B, channels, H, W) to the same, without activation at the end; H and W are multiples of 2^(len(widths) - 1).

    Args:
        channels: of input and output.
        widths: channels at each level, finest first.
    """

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.first = block(channels, widths[0])
        self.down = nn.ModuleList(nn.Sequential(nn.AvgPool2d(2), block(a, b)) for a, b in pairs)
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.up = nn.ModuleList(block(2 * a, a) for a, _ in reversed(pairs))
        self.picture = nn.Conv2d(widths[0], channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        skipped = []
        for down in self.down:
            skipped.append(h)
            h = down(h)
        for enlarge, up in zip(self.enlarge, self.up, strict=True):
            h = up(torch.cat([skipped.pop(), enlarge(h)], 1))
        picture: Tensor = self.picture(h)
        return picture


def block(ins: int, outs: int) -> nn.Sequential:
    """Twice convolution, Swish, group norm, in this order."""
    return nn.Sequential(
        StandardisedConv(ins, outs), nn.SiLU(), nn.GroupNorm(groups(outs), outs),
        StandardisedConv(outs, outs), nn.SiLU(), nn.GroupNorm(groups(outs), outs),
    )  # fmt: skip


def groups(width: int) -> int:
    """Groups of a group norm: 8, 16, 16, 32 for 64, 128, 256, 512 channels, as published; others by the same rule."""
    return math.gcd(width, min(32, max(1, width // (8 if width <= 128 else 16))))
