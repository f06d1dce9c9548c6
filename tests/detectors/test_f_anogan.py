import itertools
import math
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from salus.core.errors import ConfigError
from salus.detectors import Recipe, build, detector_class
from salus.detectors.f_anogan import FAnoGAN, gradient_penalty
from salus.nets.gan import Doubling, Halving, pooled_conv
from salus.training import Stepper, fit, make_fabric
from tests.conftest import discs

SMALL = {"size": 32, "latent": 6, "widths": (4, 8, 8, 8), "stage": 0.5}


def small(seed: int = 0, score: str = "residual", **settings) -> FAnoGAN:
    torch.manual_seed(seed)
    return build("f-anogan", {**SMALL, **settings}, {"name": score})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def stepper(detector: FAnoGAN, precision: str = "fp32", **recipe) -> Stepper:
    values = {"epochs": 1, "batch": 8, "learning_rate": 1e-2, **recipe}
    return Stepper(make_fabric("cpu", precision), detector, Recipe(**values))


def asked(detector: FAnoGAN, x: torch.Tensor, progress: float) -> dict[str, torch.Tensor]:
    """Losses a step asks to be descended, by part, without descending."""
    losses = {}

    def update(part, loss, *, keep_graph=False):
        losses[part] = loss.detach()

    torch.manual_seed(1)
    detector.train().training_step(x, update, progress)
    return losses


def test_parameters_are_those_of_the_residual_networks_at_width_64():
    with torch.device("meta"):
        detector = build("f-anogan", {}, {"name": "residual"})
    widths = (64, 128, 256, 512, 512)
    pairs = list(itertools.pairwise(widths))
    # Norms, a convolution without bias, one with, and the projection of the shortcut.
    halving = sum(4 * a + 9 * a * a + 9 * a * b + b + a * b + b for a, b in pairs)
    doubling = sum(2 * b + 2 * a + 9 * b * a + 9 * a * a + a + b * a + a for a, b in pairs)
    flat = 512 * 16
    assert count(detector.critic) == (9 + 1) * 64 + halving + flat + 1
    assert count(detector.encoder) == (9 + 1) * 64 + halving + flat * 128 + 128
    assert count(detector.generator) == (128 + 1) * flat + doubling + 2 * 64 + 9 * 64 + 1
    counts = tuple(count(m) for m in (detector.generator, detector.critic, detector.encoder))
    assert counts == (8_539_329, 7_490_689, 8_531_200)


def test_blocks_double_and_halve_the_picture():
    x = torch.rand(2, 3, 8, 8)
    assert Doubling(3, 5)(x).shape == (2, 5, 16, 16)
    assert Halving(3, 5)(x).shape == (2, 5, 4, 4)


@pytest.mark.parametrize("side", [2, 6, 16])
def test_a_convolution_that_is_averaged_needs_no_full_picture(side):
    x, weight, bias = torch.rand(2, 3, side, side).double(), torch.randn(5, 3, 3, 3).double(), torch.randn(5).double()
    expected = F.avg_pool2d(F.conv2d(x, weight, bias, padding=1), 2)
    torch.testing.assert_close(pooled_conv(x, weight, bias), expected)


def test_the_critic_judges_each_image_by_itself_even_in_training():
    detector, x = small().train(), torch.rand(4, 1, 32, 32)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in detector.critic.modules())
    assert not list(detector.critic.buffers())
    torch.testing.assert_close(detector.critic(x)[:1], detector.critic(x[:1]))


class Plane(nn.Module):
    """A critic whose slope is known: `w` everywhere."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((64,), slope / 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.w


def test_the_penalty_of_a_plane_and_its_gradient_by_hand():
    critic = Plane(3.0)
    penalty = gradient_penalty(critic, torch.rand(5, 1, 8, 8), torch.rand(5, 1, 8, 8))
    (slope,) = torch.autograd.grad(penalty, critic.w)
    assert penalty.item() == pytest.approx((3 - 1) ** 2)
    torch.testing.assert_close(slope, 2 * (3 - 1) * critic.w.detach() / 3)


def test_the_penalty_is_taken_between_the_two_images_of_a_pair():
    seen = []

    def critic(x):
        seen.append(x.detach())
        return x.square().sum((1, 2, 3))

    gradient_penalty(critic, torch.zeros(50, 1, 2, 2), torch.ones(50, 1, 2, 2))
    points = seen[0].flatten(1)
    assert torch.equal(points.amin(1), points.amax(1))  # one share an image
    assert points.min() >= 0
    assert points.max() <= 1
    assert points.std() > 0.2


def test_the_penalty_is_single_precision_under_half_precision():
    detector = small()
    real, drawn = torch.rand(2, 8, 1, 32, 32)
    torch.manual_seed(1)
    expected = gradient_penalty(detector.critic, real, drawn)
    torch.manual_seed(1)
    with make_fabric("cpu", "bf16").autocast():
        found = gradient_penalty(detector.critic, real, drawn)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_the_critics_loss_by_hand():
    detector, x = small(critic_steps=3, penalty=10.0), torch.rand(8, 1, 32, 32)
    found = asked(detector, x, 0.0)["critic"]
    torch.manual_seed(1)
    real, drawn = 2 * x - 1, detector.generator(torch.randn(8, 6)).detach()
    share = torch.rand(8, 1, 1, 1)
    between = ((1 - share) * real + share * drawn).requires_grad_()
    slopes = torch.stack([torch.autograd.grad(detector.critic(b[None]).sum(), b)[0] for b in between])
    penalty = (slopes.flatten(1).norm(dim=1) - 1).pow(2).mean()
    torch.testing.assert_close(found, detector.critic(drawn).mean() - detector.critic(real).mean() + 10 * penalty)


def test_one_step_of_the_generator_for_five_of_the_critic_each_with_its_own_images():
    detector, seen = small(critic_steps=5).train(), []
    update = stepper(detector)
    again = small(critic_steps=5).train()
    for step in range(7):
        if step == 3:  # what a resume hands over
            again.load_state_dict(detector.state_dict())
            detector, update = again, stepper(again)

        def noted(part, loss, *, keep_graph=False, update=update, step=step):
            update(part, loss, keep_graph=keep_graph)
            seen.append((step, part))

        detector.training_step(torch.rand(8, 1, 32, 32), noted, 0.1)
    assert [step for step, part in seen if part == "critic"] == [0, 1, 2, 3, 4, 5, 6]
    assert [step for step, part in seen if part == "generator"] == [0, 5]


@pytest.mark.parametrize("part", ["critic", "generator"])
def test_in_the_first_stage_each_step_leaves_the_others_bit_identical(part):
    detector = small().train()
    real, x = stepper(detector), torch.rand(8, 1, 32, 32)
    before = {key: value.clone() for key, value in detector.named_parameters()}
    getattr(detector, f"{part}_step")(x, real)
    for key, value in detector.named_parameters():
        if not torch.equal(value, before[key]):
            assert key.startswith(part)
    assert any(not torch.equal(value, before[key]) for key, value in detector.named_parameters())


def test_in_the_second_stage_generator_and_critic_rest_buffers_included():
    detector, x = small(), torch.rand(8, 1, 32, 32)
    update = stepper(detector)
    detector.train().training_step(x, update, 0.49)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    for _ in range(3):
        detector.train()  # as the loop does at each epoch
        logged = detector.training_step(x, update, 0.5)
    assert set(logged) == {"mse", "features"}
    after = detector.state_dict()
    assert any("running_mean" in key for key in before if key.startswith("generator"))
    for key, value in before.items():
        assert torch.equal(after[key], value) != key.startswith("encoder"), key


def test_the_generators_statistics_move_in_the_first_stage():
    detector, x = small().eval(), torch.rand(8, 1, 32, 32)
    before = detector.generator.norm.running_mean.clone()
    detector.training_step(x, stepper(detector), 0.0)
    assert not torch.equal(detector.generator.norm.running_mean, before)


def test_the_encoders_loss_and_the_score_are_residual_plus_kappa_features():
    detector, x = small(kappa=0.3), torch.rand(8, 1, 32, 32)
    found = asked(detector, x, 0.9)["encoder"]
    detector.eval()
    inner = 2 * x - 1
    with torch.no_grad():
        rebuilt = detector.generator(detector.encoder(inner))
        features = [detector.critic.blocks(detector.critic.first(picture)) for picture in (inner, rebuilt)]
        seen = detector.detect(x)
    pixels = (inner - rebuilt).pow(2).mean((1, 2, 3))
    expected = pixels + 0.3 * (features[0] - features[1]).pow(2).mean((1, 2, 3))
    torch.testing.assert_close(found, expected.mean())
    torch.testing.assert_close(seen.score, expected)
    torch.testing.assert_close(seen.map, (inner - rebuilt).abs() / 2)


def test_the_score_of_the_map_can_be_had_instead():
    detector, x = small(image_score="map").eval(), torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        seen = detector.detect(x)
    torch.testing.assert_close(seen.score, seen.map.mean((1, 2, 3)))


def test_tanh_keeps_every_code_within_one_which_a_normal_draw_is_not():
    x, codes = torch.rand(4, 1, 32, 32), []
    for tanh in (True, False):
        detector = small(tanh=tanh).eval()
        with torch.no_grad():
            detector.encoder.last.weight.mul_(100)
            detector.generator.register_forward_pre_hook(lambda module, inputs: codes.append(inputs[0]))
            detector.restore(x)
    bounded, free = codes
    assert bounded.abs().max() <= 1
    assert free.abs().max() > 1
    torch.testing.assert_close(bounded, free.tanh())
    within = math.erf(1 / math.sqrt(2)) ** 128
    assert within < 1e-20  # the share of N(0, I) in 128 dimensions that such codes can reach


@pytest.mark.parametrize(("progress", "moved"), [(0.0, {"critic", "generator"}), (0.9, {"encoder"})])
def test_half_precision_moves_what_is_to_move(progress, moved):
    detector = small().train()
    update = stepper(detector, "bf16")
    before = {key: value.clone() for key, value in detector.named_parameters()}
    with update.fabric.autocast():
        logged = detector.training_step(torch.rand(8, 1, 32, 32), update, progress)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in logged.values())
    after = detector.named_parameters()
    assert {key.split(".")[0] for key, value in after if not torch.equal(value, before[key])} == moved


def test_sizes_that_cannot_be_halved_are_explained():
    with pytest.raises(ConfigError, match=r"^f-anogan: with 5 widths, size must be a multiple of 16, not 60; 48"):
        build("f-anogan", {"size": 60}, {})


def test_a_training_without_an_encoder_is_refused():
    with pytest.raises(ConfigError, match=r"f-anogan: stage: Input should be less than 1"):
        build("f-anogan", {"stage": 1.0}, {})


def test_weights_kept_before_the_encoder_learned_are_refused():
    with pytest.raises(ConfigError, match=r"the encoder would not learn at all.*Train for 2 epochs or more"):
        trained(epochs=1)
    detector = trained(epochs=2)
    assert detector.encoder_stepped == 1
    assert not detector.training


def trained(epochs: int) -> FAnoGAN:
    """After as many steps as epochs; half of them are the encoder's stage."""
    detector, images = small(), discs(8)
    recipe = Recipe(epochs=epochs, batch=8, learning_rate=1e-3, select="last")
    with tempfile.TemporaryDirectory() as progress:
        fit(detector, recipe, images, images, Path(progress), 0, make_fabric("cpu", "fp32"))
    return detector


def test_the_paper_preset_is_the_published_recipe():
    preset = detector_class("f-anogan").PRESETS["paper"]
    with torch.device("meta"):
        config = build("f-anogan", preset.settings, preset.score).config
    assert (config.size, config.latent, config.widths[0]) == (64, 128, 64)
    assert (config.critic_steps, config.penalty, config.kappa, config.tanh) == (5, 10, 1, True)
    optimisers = Stepper(make_fabric("cpu", "fp32"), small(), preset.recipe).optimisers
    for part in ("generator", "critic"):
        assert isinstance(optimisers[part], torch.optim.Adam)
        assert optimisers[part].param_groups[0]["betas"] == (0.0, 0.9)
        assert optimisers[part].param_groups[0]["lr"] == 1e-4
    assert isinstance(optimisers["encoder"], torch.optim.RMSprop)
    assert optimisers["encoder"].param_groups[0]["lr"] == 5e-5
    assert preset.recipe.epochs * (4000 // preset.recipe.batch) * (1 - config.stage) == pytest.approx(50_000, rel=0.01)
