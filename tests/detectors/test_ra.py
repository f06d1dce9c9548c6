import copy
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from salus.core.errors import ConfigError
from salus.detectors import Recipe, build, detector_class
from salus.detectors.ra import RA
from salus.detectors.variational import kl
from salus.nets.introspective import SingleChannelConv, enlarged_conv
from salus.training import Stepper, make_fabric

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from published_ra import PublishedStep

SMALL = {"size": 32, "latent": 8, "widths": (8, 16, 16)}


def small(seed: int = 0, **settings) -> RA:
    torch.manual_seed(seed)
    return build("ra", {**SMALL, **settings}, {"name": "residual"})


def paper(**settings) -> RA:
    return build("ra", {**detector_class("ra").PRESETS["paper"].settings, **settings}, {"name": "residual"})


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def stepper(ra: RA) -> Stepper:
    return Stepper(make_fabric("cpu", "fp32"), ra, Recipe(epochs=1, batch=8, learning_rate=5e-5))


def step_losses(ra: RA, x: torch.Tensor, progress: float = 0.5) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return ra.train().training_step(x, stepper(ra), progress)


def test_parameters_are_the_papers():
    ra = paper()
    assert (count(ra.encoder), count(ra.decoder)) == (16_360_896, 13_069_889)
    quirky = paper(shortcut_quirk=True)
    assert (count(quirky.encoder), count(quirky.decoder)) == (16_623_040, 13_332_033)


def test_feature_maps_of_equation_3_have_the_papers_shapes():
    with torch.device("meta"):
        ra = paper()
        taps = ra.tapped(ra.encoder(torch.rand(2, 1, 128, 128)))
    assert [tuple(t.shape[1:]) for t in taps] == [
        (64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8), (512, 4, 4),
    ]  # fmt: skip


def test_the_exponent_falls_by_a_64th_per_nat_at_128_pixels():
    ra = build("ra", {"widths": (4, 4, 4, 4, 4), "beta_rec": 0.0}, {"name": "residual"}).eval()
    picture = torch.rand(1, 1, 128, 128)
    nats = torch.tensor(3.0, requires_grad=True)
    mean = torch.zeros(1, 128)
    mean[0, 0] = 1.0
    code = (mean * torch.sqrt(2 * nats), torch.zeros(1, 128), [])  # its KL is `nats`
    torch.testing.assert_close(kl(*code[:2])[0], nats)
    exponent = torch.log(ra.repelled(picture, code))
    (slope,) = torch.autograd.grad(exponent, nats)
    assert slope.item() == pytest.approx(-1 / 64)


@pytest.mark.parametrize("size", [64, 256])
def test_the_slope_of_the_exponent_is_the_same_at_every_size(size):
    widths = (4,) * (size.bit_length() - 3)
    ra = build("ra", {"size": size, "widths": widths}, {"name": "residual"})
    assert 2 * ra.beta_neg / size**2 == pytest.approx(1 / 64)


def test_an_image_is_like_itself():
    ra = small().eval()
    code = ra.encoder(torch.rand(4, 1, 32, 32))
    assert ra.reversed_loss(code, code).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("cosine", ["flat", "per_position"])
def test_equation_3_is_half_the_squared_difference_and_the_angle(cosine):
    ra = small(cosine=cosine, taps="avgpool5+resblock+mu").eval()
    codes = [ra.encoder(torch.rand(3, 1, 32, 32)) for _ in range(2)]
    expected = 0.0
    for a, b in zip(*((t.detach().double().numpy() for t in ra.tapped(code)) for code in codes), strict=True):
        expected += 0.5 * np.mean((a - b) ** 2)
        axes = 1 if cosine == "per_position" else tuple(range(1, a.ndim))
        angle = (a * b).sum(axes) / np.sqrt((a**2).sum(axes) * (b**2).sum(axes))
        expected += np.mean(1 - angle)
    assert ra.reversed_loss(*codes).item() == pytest.approx(expected, rel=1e-5)


def test_the_gradients_of_equation_3_lie_in_memory_as_the_feature_maps_do():
    ra = small().to(memory_format=torch.channels_last)
    mean, log_var, maps = ra.encoder(torch.rand(3, 1, 32, 32))
    maps = [m.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for m in maps]
    loss = ra.reversed_loss((mean, log_var, maps), ra.encoder(torch.rand(3, 1, 32, 32)))
    gradients = torch.autograd.grad(loss, maps[:-1])
    assert all(gradient.is_contiguous(memory_format=torch.channels_last) for gradient in gradients)


def test_each_step_leaves_the_other_half_bit_identical():
    ra = small().train()
    real = stepper(ra)
    before = {key: value.clone() for key, value in ra.named_parameters()}
    seen = []

    def update(part, loss, *, keep_graph=False):
        snapshot = {key: value.clone() for key, value in ra.named_parameters()}
        real(part, loss, keep_graph=keep_graph)
        for key, value in ra.named_parameters():
            moved = not torch.equal(value, snapshot[key])
            assert moved == key.startswith(part), f"{part}: {key}"
        seen.append(part)

    ra.training_step(torch.rand(8, 1, 32, 32), update, 0.5)
    assert seen == ["encoder", "decoder"]
    assert any(not torch.equal(before[key], value) for key, value in ra.named_parameters())


@pytest.mark.parametrize("bn_mode", ["train", "frozen"])
def test_sharing_passes_changes_nothing(bn_mode):
    """Losses and updated weights equal those of the fourteen published passes, in double precision to rounding."""
    published = small(bn_mode=bn_mode).double().train()
    shared = copy.deepcopy(published)
    x = torch.rand(8, 1, 32, 32, dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(1)
        encoder_loss, decoder_loss = PublishedStep(published)(x)
        logged = step_losses(shared, x)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(logged["loss_encoder"], encoder_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(logged["loss_decoder"], decoder_loss, rtol=1e-12, atol=0)
    for (key, a), (_, b) in zip(published.named_parameters(), shared.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12, msg=key)


def test_the_branch_of_gamma_is_numerically_nil():
    x = torch.rand(8, 1, 32, 32)
    with_it, without = step_losses(small(), x), step_losses(small(gamma_rec=0.0), x)
    torch.testing.assert_close(with_it["loss_decoder"], without["loss_decoder"], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "paper_literal"},
        {"objective": "sivae"},
        {"reversed_weight": 0.5},
        {"alpha": 1.0},
        {"beta_neg": 1.0},
        {"taps": "avgpool5+resblock"},
        {"taps": "avgpool5+resblock+mu"},
        {"cosine": "per_position"},
    ],
    ids=str,
)
def test_every_named_reading_changes_the_encoders_loss(settings):
    x = torch.rand(8, 1, 32, 32)
    assert step_losses(small(), x)["loss_encoder"] != step_losses(small(**settings), x)["loss_encoder"]


def test_a_detached_target_changes_gradients_but_not_the_loss():
    x = torch.rand(8, 1, 32, 32)
    live, detached = small(beta_rec=50.0), small(beta_rec=50.0, grad_target="detached")
    a, b = step_losses(live, x), step_losses(detached, x)
    assert a["loss_encoder"] == b["loss_encoder"]
    weights = [m.encoder.stem[0].weight for m in (live, detached)]
    assert not torch.equal(*weights)


def test_paper_literal_weighs_equation_3_by_one_over_alpha():
    assert small(objective="paper_literal", reversed_weight=0.01).reversed_weight == small().reversed_weight == 0.005
    assert small(objective="sivae").reversed_weight == 0


def test_frozen_norms_never_leave_their_first_statistics():
    ra = small(bn_mode="frozen")
    step_losses(ra, torch.rand(8, 1, 32, 32))
    assert all((n.running_mean == 0).all() and (n.running_var == 1).all() for n in ra.norms)


def test_only_real_images_move_the_statistics_if_so_asked():
    ra, x = small(bn_statistics="real"), torch.rand(8, 1, 32, 32)
    step_losses(ra, x)
    assert all(n.num_batches_tracked >= 1 for n in ra.norms)
    stem = ra.encoder.stem
    with torch.no_grad():
        expected = 0.1 * small().encoder.stem[0](x).mean((0, 2, 3))
    torch.testing.assert_close(stem[1].running_mean, expected)


def test_the_warm_up_is_a_plain_vae_and_the_argument_then_grows():
    ra = small(warmup=0.5, ramp=0.25)
    assert [ra.argument(p) for p in (0.0, 0.49, 0.625, 0.75, 0.9)] == [0, 0, 0.5, 1, 1]
    assert "kl_fake" not in step_losses(ra, torch.rand(8, 1, 32, 32), progress=0.2)


def test_half_precision_sees_the_weights_of_the_last_step():
    """Autocast keeps half-precision copies of weights; the decoder's step must see the updated encoder."""
    ra = small().train()
    fabric = make_fabric("cpu", "bf16")
    step = Stepper(fabric, ra, Recipe(epochs=1, batch=8, learning_rate=0.5))
    x = torch.rand(8, 1, 32, 32)
    with fabric.autocast(), torch.no_grad():
        before = ra.encoder(x)[0]
    with fabric.autocast():
        step("encoder", ra.encoder(x)[0].square().mean())
        with torch.no_grad():
            after = ra.encoder(x)[0]
    assert (before - after).abs().max() > 0.1


def test_sampled_and_averaged_restorations_do_not_change_between_calls():
    x = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        for how in ("sample", "avg:3"):
            ra = small(latent_infer=how).eval()
            torch.testing.assert_close(ra.restore(x), ra.restore(x), rtol=0, atol=0)
            torch.testing.assert_close(ra.restore(x[:1]), ra.restore(x)[:1])
            assert not torch.equal(ra.restore(x), small().eval().restore(x))


def test_the_encoder_is_the_published_one_layer_by_layer():
    """methods.md has: 5 x 5 stem, mean over 2 x 2, then residual blocks whose shortcut carries no norm."""
    encoder, x = small().encoder.eval(), torch.rand(3, 1, 32, 32)
    for norm in encoder.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 2)

    def normed(h, norm):
        return F.batch_norm(h, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    def block(h, b):
        kept = h if isinstance(b.shortcut, nn.Identity) else F.conv2d(h, b.shortcut.weight)
        h = F.leaky_relu(normed(F.conv2d(h, b.first.weight, padding=1), b.first_norm), 0.2)
        return F.leaky_relu(kept + normed(F.conv2d(h, b.second.weight, padding=1), b.second_norm), 0.2)

    stem = encoder.stem
    h = F.avg_pool2d(F.leaky_relu(normed(F.conv2d(x, stem[0].weight, padding=2), stem[1]), 0.2), 2)
    expected = [h]
    for stage in encoder.stages:
        h = F.avg_pool2d(block(h, stage[0]), 2)
        expected.append(h)
    expected.append(block(h, encoder.last))
    both = F.linear(expected[-1].flatten(1), encoder.code.weight, encoder.code.bias)
    with torch.no_grad():
        mean, log_var, taps = encoder(x)
    torch.testing.assert_close(torch.cat([mean, log_var], 1), both)
    for tap, by_hand in zip(taps, expected, strict=True):
        torch.testing.assert_close(tap, by_hand)


def test_widths_that_do_not_fit_the_size_are_explained():
    with pytest.raises(ConfigError, match=r"3 widths fit a size of 32, not 64: 64 takes 4 of them"):
        small(size=64)
    with pytest.raises(ConfigError, match=r"not 100: 64 takes 4 of them, 128 takes 5 of them"):
        small(size=100)
    with pytest.raises(ConfigError, match=r"not 7: 8 takes 1 of them"):
        small(size=7)


@pytest.mark.parametrize("settings", [{"beta_neg": -5}, {"beta_neg": math.inf}, {"widths": ()}])
def test_settings_that_do_not_fit_are_named(settings):
    with pytest.raises(ConfigError, match=f"^ra: {next(iter(settings))}: "):
        small(**settings)


def test_the_paper_preset_is_the_published_recipe():
    preset = detector_class("ra").PRESETS["paper"]
    assert (preset.recipe.learning_rate, preset.recipe.batch, preset.recipe.epochs) == (5e-5, 8, 1500)
    assert (preset.recipe.patience, preset.recipe.augment, preset.recipe.select) == (500, "affine", "best")
    assert preset.score == {"name": "equation5", "reading": "code", "trunk": "squeezenet"}
    config = build("ra", preset.settings, {"name": "residual"}).config
    values = (config.beta_rec, config.beta_kl, config.gamma_rec, config.alpha, config.reversed_weight, config.warmup)
    assert values == (0.5, 1.0, 1e-8, 2.0, 0.005, 0.0)
    assert paper().beta_neg == 128


@pytest.mark.parametrize("side", [4, 16, 20])
def test_a_convolution_of_an_enlarged_picture_needs_no_enlarged_picture(side):
    x, weight = torch.rand(2, 3, side, side).double(), torch.randn(5, 3, 3, 3).double()
    expected = F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=1)
    torch.testing.assert_close(enlarged_conv(x, weight), expected)


def test_the_last_convolution_is_an_ordinary_one():
    layer = SingleChannelConv(4, 1, 5, padding=2).double()
    x = torch.rand(2, 4, 9, 12).double()
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=2))
