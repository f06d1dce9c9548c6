import math
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from monai.networks.schedulers.ddim import DDIMScheduler
from monai.networks.schedulers.ddpm import DDPMScheduler

from salus.core.errors import ConfigError
from salus.detectors import build, detector_class
from salus.detectors.ddpm import DDPM
from salus.nets.simplex import SPREAD

SMALL = {"size": 16, "widths": (8, 8), "attention": (False, False), "groups": 4, "steps_back": 20, "ddim_steps": 5}
ANODDPM = {"size": 256, "blocks": 2, "heads": 2, "resampling": "residual"}


def small(**settings) -> DDPM:
    torch.manual_seed(0)
    return build("ddpm", {**SMALL, **settings}, {"name": "residual"}).eval()


def lively(**settings) -> DDPM:
    """A network whose zero-initialised layers are not zero, as after some training."""
    detector = small(**settings)
    with torch.no_grad():
        for parameter in detector.unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return detector


def count(**settings) -> int:
    with torch.device("meta"):
        detector = build("ddpm", settings, {"name": "residual"})
    return sum(p.numel() for p in detector.parameters())


class Oracle(torch.nn.Module):
    """Knows the image, so that what it sees in any noised version of it is the noise; counts the steps it was shown."""

    def __init__(self, detector: DDPM, x: torch.Tensor) -> None:
        super().__init__()
        self.detector, self.x, self.steps = detector, x, []

    def forward(self, noised: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        self.steps.append(step.tolist())
        kept = torch.tensor([self.detector.kept(int(s) + 1) for s in step]).view(-1, 1, 1, 1)
        return (noised - kept.sqrt() * (2 * self.x - 1)) / (1 - kept).sqrt()


def test_parameters_are_those_of_ras_authors():
    assert count() == 18_500_993


def test_one_network_of_monai_is_also_anoddpms():
    wide = (128, 128, 256, 256, 512, 512)
    assert count(**ANODDPM, widths=wide, attention=(False,) * 3 + (True,) * 3) == 131_649_793
    assert count(**ANODDPM, widths=wide, attention=(False,) * 4 + (True,) * 2) == 130_331_393
    assert count(**ANODDPM, widths=(128, 128, 256, 384, 512), attention=(False,) * 3 + (True,) * 2) == 98_619_009


def test_without_its_projection_each_of_seven_attentions_is_one_linear_layer_smaller():
    assert count() - count(projection=False) == 7 * (256 * 256 + 256)


def test_this_monai_applies_the_projection_of_its_attention():
    block = lively().unet.middle_block.attention
    x = torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        assert (block(x) - x).abs().max() > 1e-3
        block.attn.out_proj.weight.zero_()
        block.attn.out_proj.bias.zero_()
        torch.testing.assert_close(block(x), x)


def test_without_projection_the_attention_itself_is_added():
    block = lively(projection=False).unet.middle_block.attention
    x = torch.randn(2, 8, 4, 4)
    tokens = block.norm(x).flatten(2).transpose(1, 2)
    q, k, v = (layer(tokens) for layer in (block.attn.to_q, block.attn.to_k, block.attn.to_v))
    seen = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(8), -1) @ v
    torch.testing.assert_close(block(x), x + seen.transpose(1, 2).view_as(x))


@pytest.mark.parametrize(("level", "kept"), [(50, 0.97102), (200, 0.65904), (250, 0.52409), (350, 0.28520)])
def test_what_is_kept_of_the_image_at_a_level_is_the_published_table(level, kept):
    assert small().kept(level) == pytest.approx(kept, abs=5e-6)
    by_hand = math.prod(1 - (1e-4 + (0.02 - 1e-4) * step / 999) for step in range(level))
    assert small().kept(level) == pytest.approx(by_hand, rel=1e-5)


def test_one_jump_mixes_image_and_noise_on_the_scale_from_minus_one_to_one():
    detector, x, noise = small(), torch.rand(2, 1, 16, 16), torch.randn(2, 1, 16, 16)
    noised = detector.noised(x, noise, torch.tensor([250, 350]))
    for i, kept in enumerate((0.52409, 0.28520)):
        by_hand = math.sqrt(kept) * (2 * x[i] - 1) + math.sqrt(1 - kept) * noise[i]
        torch.testing.assert_close(noised[i], by_hand, rtol=0, atol=2e-5)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("level", [1, 2, 37, 250, 1000])
def test_a_step_with_noise_is_monais(level, variance):
    monai = DDPMScheduler(1000, variance_type=f"fixed_{variance}")
    picture, guess = torch.randn(3, 1, 16, 16), torch.randn(3, 1, 16, 16)  # far from any image, so that clipping acts
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(5))
    expected, _ = monai.step(guess, level - 1, picture, generator=torch.Generator().manual_seed(5))
    mean, spread = small(variance=variance).step_down(picture, guess, level, level - 1)
    torch.testing.assert_close(mean + spread * noise, expected, rtol=1e-4, atol=1e-4)
    assert (spread == 0) == (level == 1)


@pytest.mark.parametrize("level", [25, 50, 250])
def test_a_step_without_noise_is_monais(level):
    monai = DDIMScheduler(1000)
    monai.set_timesteps(40)  # steps of 25
    clean, guess = 1.8 * torch.rand(3, 1, 16, 16) - 0.9, torch.randn(3, 1, 16, 16)
    detector = small(sampler="ddim")
    picture = math.sqrt(detector.kept(level)) * clean + math.sqrt(1 - detector.kept(level)) * guess
    expected, _ = monai.step(guess, level - 1, picture)
    mean, spread = detector.step_down(picture, guess, level, level - 25)
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
    assert spread == 0


def test_after_clipping_a_step_without_noise_still_explains_the_picture():
    picture, guess = torch.randn(3, 1, 16, 16), torch.randn(3, 1, 16, 16)
    nowhere, _ = small(sampler="ddim").step_down(picture, guess, 250, 250)
    torch.testing.assert_close(nowhere, picture, rtol=1e-4, atol=1e-5)


def test_clipping_keeps_the_guessed_image_in_range():
    picture, guess = 3 * torch.randn(3, 1, 16, 16), torch.zeros(3, 1, 16, 16)
    clipped, free = (small(clip=clip).step_down(picture, guess, 1, 0)[0] for clip in (True, False))
    assert clipped.abs().max() <= 1 < free.abs().max()


@pytest.mark.parametrize("noise", ["gaussian", "simplex"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_who_sees_all_the_noise_gets_the_image_back(sampler, noise):
    detector, x = small(sampler=sampler, noise=noise), torch.rand(3, 1, 16, 16)
    detector.unet = Oracle(detector, x)
    torch.testing.assert_close(detector.restore(x), x, rtol=0, atol=1e-4)
    assert len(detector.unet.steps) == {"ddpm": 20, "ddim": 5}[sampler]


@pytest.mark.parametrize("steps", [1, 3, 7, 20])
def test_ddim_goes_from_l_to_the_clean_image_in_steps_as_even_as_can_be(steps):
    levels = list(small(sampler="ddim", ddim_steps=steps).levels())
    assert (levels[0][0], levels[-1][1], len(levels)) == (20, 0, steps)
    assert all(below == above for (_, below), (above, _) in pairwise(levels))
    assert max(a - b for a, b in levels) - min(a - b for a, b in levels) <= 1


def test_training_shows_every_level_that_restoring_needs_and_none_beyond():
    detector = small(train_steps=25)
    detector.unet, shown = Oracle(detector, torch.zeros(64, 1, 16, 16)), set()
    for seed in range(20):
        torch.manual_seed(seed)
        logged = detector.training_step(detector.unet.x, lambda part, loss: None, 0.5)
        assert logged["error"] < 1e-6  # the oracle is told noise from these images
        shown |= set(detector.unet.steps[-1])
    assert shown == set(range(25))
    detector.unet.steps.clear()
    detector.restore(detector.unet.x)
    assert sorted({s for steps in detector.unet.steps for s in steps}) == list(range(20))


@pytest.mark.parametrize("noise", ["gaussian", "simplex"])
def test_each_image_of_a_training_batch_gets_noise_of_its_own(noise):
    draws = small(noise=noise).drawn(16, torch.zeros(1)).flatten(1)
    assert torch.corrcoef(draws)[~torch.eye(16, dtype=torch.bool)].max() < 0.99


@pytest.mark.parametrize(
    ("settings", "spread"),
    [({"noise": "gaussian"}, 1), ({"noise": "simplex"}, SPREAD), ({"noise": "simplex", "normalize_noise": True}, 1)],
)
def test_simplex_noise_has_unit_variance_only_if_so_asked(settings, spread):
    noise = small(size=64, **settings).drawn(100, torch.zeros(1), torch.Generator().manual_seed(0))
    assert noise.shape == (100, 1, 64, 64)
    assert noise.std().item() == pytest.approx(spread, rel=0.06)


@pytest.mark.parametrize("settings", [{}, {"sampler": "ddim"}, {"noise": "simplex"}], ids=str)
def test_a_restoration_depends_on_its_image_alone(settings):
    detector, x = lively(**settings), torch.rand(3, 1, 16, 16)
    x[2] = x[0]
    with torch.no_grad():
        together = detector.restore(x)
        assert torch.equal(detector.restore(x), together)
        torch.testing.assert_close(together[2], together[0])
        torch.testing.assert_close(detector.restore(x[1:2])[0], together[1], rtol=0, atol=1e-4)
        torch.testing.assert_close(detector.validation_loss(x[1:2])[0], detector.validation_loss(x)[1])


def test_restoring_and_validating_draw_nothing_from_the_global_generator():
    detector, x = small(noise="simplex"), torch.rand(2, 1, 16, 16)
    before = torch.get_rng_state()
    with torch.no_grad():
        detector.detect(x)
        detector.validation_loss(x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "settings", [{"variance": "large"}, {"sampler": "ddim"}, {"noise": "simplex"}, {"steps_back": 10}, {"clip": False}],
    ids=str,
)  # fmt: skip
def test_every_named_reading_changes_the_restoration(settings):
    x = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert not torch.allclose(lively(**settings).restore(x), lively().restore(x), atol=1e-4)


def test_the_validation_loss_is_small_for_who_sees_the_noise_and_one_for_who_sees_none():
    detector, x = small(size=32), torch.rand(4, 1, 32, 32)
    torch.testing.assert_close(detector.validation_loss(x), torch.ones(4), rtol=0, atol=0.1)  # its last layer is zero
    detector.unet = Oracle(detector, x)
    torch.testing.assert_close(detector.validation_loss(x), torch.zeros(4), rtol=0, atol=1e-5)


def test_scores_made_of_gradients_find_one():
    detector, x = lively(), torch.rand(2, 1, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(detector.terms(x)["rec"].sum(), x)
    assert gradient.abs().amax((1, 2, 3)).min() > 0


def test_half_precision_leaves_the_steps_in_single():
    detector, x = lively(sampler="ddim"), torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        full = detector.restore(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = detector.restore(x)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0, atol=0.03)


def test_the_paper_preset_is_the_published_recipe():
    preset = detector_class("ddpm").PRESETS["paper"]
    recipe, config = preset.recipe, detector_class("ddpm").Config(**preset.settings)
    assert (recipe.learning_rate, recipe.batch, recipe.average) == (1e-4, 16, 0.9999)
    assert (config.size, config.widths, config.attention) == (128, (128, 256, 256), (False, True, True))
    assert (config.steps_back, config.variance, config.noise, config.sampler) == (250, "small", "gaussian", "ddpm")


def test_monai_is_not_loaded_before_a_detector_is_built():
    code = "import sys; from salus.detectors import detector_class as c; c('ddpm'); print('monai' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 18, "widths": (8, 8, 8), "attention": (False,) * 3}, "multiple of 4 from 8 on, not 18; 16 and 20"),
        ({"attention": (True,)}, "2 widths need as many entries of attention, not 1"),
        ({"widths": (8, 10)}, "widths must be multiples of 4 groups and 1 heads"),
        ({"widths": (), "attention": ()}, "widths: .*at least 1 item"),
        ({"heads": 3}, "widths must be multiples of 4 groups and 3 heads"),
        ({"train_steps": 19}, "training up to train_steps 19 never sees steps_back 20"),
        ({"sampler": "ddim", "ddim_steps": 21}, "21 ddim_steps do not fit into 20 steps_back"),
        ({"normalize_noise": True}, "normalize_noise is for simplex noise"),
        ({"variance": "learned"}, "'small' or 'large'"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_explained(settings, message):
    with pytest.raises(ConfigError, match=message):
        small(**settings)
