"""MKD: a small network learns to see healthy images as a large one does, at several resolutions.

Written from Salehi, Sadjadi, Baselizadeh, Rohban, Rabiee, "Multiresolution Knowledge Distillation for Anomaly
Detection", CVPR 2021, arXiv:2011.11108; layers and settings of its release as described in docs/methods/mkd.md.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salus.detectors.base import Detection, Detector, Preset, Recipe, Side, Update, fitting, unlike
from salus.nets.trunks import Frozen, build_trunk
from salus.nets.weights import digest_of, find
from salus.scores.residual import gaussian

POOLS = (9, 16, 23, 30)  # the critical points: VGG16's pools 2 to 5, by torchvision's numbers
JUDGED = 3  # of them, the last ones make the image score
NOISE = 0.05  # of SmoothGrad, share of the image's range
SEED = 2011_11108  # of SmoothGrad's noise and of the random teacher's weights

# Channels of the student's convolutions in each stage between two pools. Stages end as wide as the teacher's.
STUDENTS = {
    "small": ((16, 16), (16, 128), (16, 16, 256), (16, 16, 512), (16, 16, 512)),
    "equal": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
}


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class MKDConfig:
    """Settings of `MKD`."""

    size: Side = 128  # side of the square input, pixels; five pools halve it
    teacher: Literal["vgg16-tv", "random"] = "vgg16-tv"  # ImageNet's weights; random ones only to show what they cost
    student: Literal["small", "equal"] = "small"  # the release's; one as large as the teacher, the paper's comparison
    mse_weight: float = Field(0.01, ge=0)  # lambda of the loss as released; 0.5 for MVTec
    map: Literal["gradient", "smoothgrad", "guided"] = "gradient"  # how the score's gradient is taken
    copies: int = Field(50, ge=1)  # noisy images of SmoothGrad
    noise: Literal["method", "code"] = "method"  # their deviation: .05 range; the release's (.05 / range)^2
    sigma: float = Field(4.0, ge=0)  # Gaussian over the map, pixels at size 128; it scales with the size

    @model_validator(mode="after")
    def fits(self) -> "MKDConfig":
        """Five pools must come out even."""
        fitting(self.size, 32)
        return self


class MKD(Detector):
    """Where a student that knows healthy images alone sees otherwise than its teacher, something is unusual."""

    Config = MKDConfig
    FAMILY = "distillation"
    PAPER = "Salehi et al. 2021, arXiv:2011.11108"
    NEEDS = "vgg16-tv"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            recipe=Recipe(epochs=601, batch=64, learning_rate=1e-3, select="last"),
            about="the release on medical images: 128 px, small student, lambda .01, Adam 1e-3, batch 64, 601 epochs",
        ),
        "fast": Preset(
            recipe=Recipe(epochs=24, batch=16, learning_rate=2e-3, select="last"),
            settings={"size": 64},
            about="ours: 64 px and fewer epochs; most of the time is the teacher's",
        ),
        "tiny": Preset(
            recipe=Recipe(epochs=2, batch=8, learning_rate=5e-3, select="last"),
            settings={"size": 32},
            about="tests",
        ),
    }

    def __init__(self, config: MKDConfig) -> None:
        super().__init__()
        self.config = config
        self.student = Student(STUDENTS[config.student])
        self.score = Discrepancy(config.teacher, config.map, config.mse_weight)

    def parts(self) -> Mapping[str, Iterable[nn.Parameter]]:
        return {"student": self.student.parameters()}

    @property
    def judged_by(self) -> str:
        return self.score.name

    def training_step(self, x: Tensor, update: Update, progress: float) -> dict[str, Tensor]:
        loss = self.validation_loss(x).mean()
        update("student", loss)
        return {"loss": loss.detach()}

    def validation_loss(self, x: Tensor) -> Tensor:
        seen = coloured(x)
        loss: Tensor = self.score(self.score.teacher(seen), self.student(seen))
        return loss

    def detect(self, x: Tensor) -> Detection:
        score, gradient = self.sensitivity(coloured(x))
        if self.config.map == "smoothgrad":
            gradient = self.smooth_gradient(x)
        sigma = self.config.sigma * self.config.size / 128
        return Detection(map=gaussian(gradient.abs().sum(1, keepdim=True), sigma), score=score)

    def sensitivity(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Image scores (B,) of `seen` (B, 3, H, W), and their gradient in it, of the same shape; guided if so set."""
        with torch.enable_grad():
            seen = seen.detach().requires_grad_()
            learnt = self.student(seen, guided=self.config.map == "guided")
            score: Tensor = self.score(self.score.teacher(seen)[-JUDGED:], learnt[-JUDGED:])
            (gradient,) = torch.autograd.grad(score.sum(), seen)
        return score.detach(), gradient.float()

    def smooth_gradient(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) mean gradient over noisy copies (SmoothGrad, arXiv:1706.03825)."""
        total = torch.zeros_like(coloured(x))
        for noise in self.noises(x):
            total += self.sensitivity(coloured(x) + noise)[1]
        return total.div(self.config.copies)

    def noises(self, x: Tensor) -> Iterator[Tensor]:
        """One (B, 3, H, W) a copy, the same pattern for each image of a batch and in each call."""
        generator = torch.Generator().manual_seed(SEED)
        deviation = noise_deviation(x, self.config.noise)
        for _ in range(self.config.copies):
            yield deviation * torch.randn(3, *x.shape[2:], generator=generator).to(x.device)


class Student(nn.Module):
    """VGG16's plan without biases; a batch norm after each convolution but the last of a stage.

    Args:
        widths: channels of the convolutions, a tuple a stage; a stage ends with a pool.
    """

    def __init__(self, widths: Sequence[Sequence[int]]) -> None:
        super().__init__()
        ins = (3, *(stage[-1] for stage in widths))
        self.stages = nn.ModuleList(nn.Sequential(*stage_layers(ins[i], outs)) for i, outs in enumerate(widths))

    def forward(self, seen: Tensor, *, guided: bool = False) -> list[Tensor]:
        """Outputs of all pools but the first, of (B, 3, H, W) images.

        With `guided`, gradients below zero stop at each ReLU on their way back (guided backpropagation,
        Springenberg et al., arXiv:1412.6806).
        """
        points = []
        for stage in self.stages:
            for layer in stage.children():
                seen = layer(seen)
                if guided and isinstance(layer, nn.ReLU):
                    seen.register_hook(positive)  # type: ignore[no-untyped-call]
            points.append(seen)
        return points[1:]


class Discrepancy(Frozen):
    """How differently teacher and student see an image. It holds the teacher, which no model folder does.

    Args:
        teacher: "vgg16-tv" for VGG16 with ImageNet's weights; "random" for the same layers with fixed random ones.
        localisation: how maps are made of it; a part of the name and of nothing else here.
        mse_weight: lambda.

    Raises:
        WeightsError: the pretrained weights are missing or not the ones they claim to be.

    `name` says in tables which teacher this is; `digest` is that of its weights, as in `salus.nets.weights`.
    """

    def __init__(self, teacher: str, localisation: str, mse_weight: float) -> None:
        super().__init__()
        self.name = f"{'vgg16-random' if teacher == 'random' else teacher}-{localisation}"
        self.mse_weight = mse_weight
        if teacher == "random":
            with torch.device("cpu"):  # also where only sizes are asked for: these weights have a digest
                self.teacher = build_trunk("vgg16", taps=POOLS).drawn(torch.Generator().manual_seed(SEED))
            self.digest = digest_of(self.teacher.state_dict())
        else:
            found = find(teacher)
            self.digest = digest_of(found)
            self.teacher = build_trunk("vgg16", taps=POOLS).fill(found)
        self.freeze()

    def forward(self, taught: Sequence[Tensor], learnt: Sequence[Tensor]) -> Tensor:
        """(B,) sum over the points of (1 - cosine) + lambda (mean squared error), both over one image's features.

        Args:
            taught, learnt: of teacher and student, (B, channels, height, width) a critical point.
        """
        # Nearly equal features differ in digits that half precision has not.
        with torch.autocast(taught[0].device.type, enabled=False):
            pairs = zip(taught, learnt, strict=True)
            return torch.stack([unlike(a.float(), b.float(), self.mse_weight) for a, b in pairs]).sum(0)


def stage_layers(ins: int, widths: Sequence[int]) -> list[nn.Module]:
    """Convolutions 3 x 3 and a pool."""
    layers: list[nn.Module] = []
    for number, outs in enumerate(widths, start=1):
        convolution = nn.Conv2d(ins, outs, 3, padding=1, bias=False)
        nn.init.xavier_uniform_(convolution.weight)
        norm = [nn.BatchNorm2d(outs)] if number < len(widths) else []
        layers += [convolution, *norm, nn.ReLU(inplace=True)]
        ins = outs
    return [*layers, nn.MaxPool2d(2)]


def coloured(x: Tensor) -> Tensor:
    """(B, 3, H, W): grey as three equal channels, still in [0, 1]; the medical runs do not normalise."""
    return x.expand(-1, 3, -1, -1).contiguous()


def noise_deviation(x: Tensor, reading: str) -> Tensor:
    """(B, 1, 1, 1) standard deviation of SmoothGrad's noise for images (B, 1, H, W).

    "method" is a share of each image's range. "code" divides by the range and squares, as the release does: .0025
    for a range of 1. The quotient is held to 1, or a flat image would be drowned without bound.
    """
    extent = x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True)
    return NOISE * extent if reading == "method" else (NOISE / extent.clamp(min=NOISE)).square()


def positive(gradient: Tensor) -> Tensor:
    """What guided backpropagation lets through."""
    return gradient.clamp(min=0)
