"""EfficientNet-Lite0 without its classifier: small, fast, and better on grey slices than its size promises.

Written from Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
arXiv:1905.11946, table 1 (B0), with what the Lite family leaves out: no squeeze-and-excitation, ReLU6 for Swish.
Trained in TensorFlow, so a stride pads as "SAME" does there: what is uneven goes below and to the right.
"""

import re

import torch.nn.functional as F
from torch import Tensor, nn

# Expansion, kernel, stride, channels, blocks of each stage: table 1 of the paper.
STAGES = (
    *((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3)),
    *((6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)),
)
EPSILON = 1e-3  # of the batch norms, as trained
THEIRS = {  # what the published checkpoint calls the halves of a block
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
ENDS = {"_conv_stem": "0.conv", "_bn0": "0.norm", "_conv_head": "17.conv", "_bn1": "17.norm"}


class Unit(nn.Module):
    """Convolution without bias, batch norm, and ReLU6 unless `linear`."""

    def __init__(
        self, ins: int, outs: int, kernel: int, stride: int = 1, groups: int = 1, *, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ins, outs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outs, eps=EPSILON)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(padded(x, self.conv.kernel_size[0], self.conv.stride[0])))
        return x if self.linear else F.relu6(x, inplace=True)


class Block(nn.Module):
    """Inverted residual: widen, look around channel by channel, narrow (arXiv:1801.04381)."""

    def __init__(self, ins: int, outs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = ins * expansion
        self.expand = Unit(ins, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = Unit(wide, wide, kernel, stride, groups=wide)
        self.project = Unit(wide, outs, 1, linear=True)
        self.shortcut = stride == 1 and ins == outs

    def forward(self, x: Tensor) -> Tensor:
        narrow: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + narrow if self.shortcut else narrow


def padded(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around `x` so that the convolution gives ceil(size / stride) places, the odd one last."""
    lacking = [max(0, (-(-size // stride) - 1) * stride + kernel - size) for size in (x.shape[3], x.shape[2])]
    return F.pad(x, [part for total in lacking for part in (total // 2, total - total // 2)])


def lite0_layers() -> list[nn.Module]:
    """0 the stem, 1 to 16 the blocks, 17 the head; strides 2, 4, 8, 16, 32 end at 1, 3, 5, 11 and 17."""
    layers: list[nn.Module] = [Unit(3, 32, 3, 2)]
    channels = 32
    for expansion, kernel, stride, width, depth in STAGES:
        for number in range(depth):
            layers.append(Block(channels, width, expansion, kernel, stride if number == 0 else 1))
            channels = width
    return [*layers, Unit(channels, 1280, 1)]


def lite0_name(theirs: str) -> str:
    """Our name of a tensor in the published checkpoint; empty for what is left out.

    lite0_name("_blocks.3._bn1.running_var") == "features.4.depthwise.norm.running_var"
    """
    if found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(weight|bias|running_mean|running_var)", theirs):
        return f"features.{int(found[1]) + 1}.{THEIRS[found[2]]}.{found[3]}"
    layer, _, kind = theirs.partition(".")
    return f"features.{ENDS[layer]}.{kind}" if layer in ENDS and kind != "num_batches_tracked" else ""
