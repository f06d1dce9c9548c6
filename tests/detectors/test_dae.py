import numpy as np
import pytest
import torch
from scipy.ndimage import correlate, median_filter
from torch import nn

from salus.core.errors import ConfigError
from salus.detectors import build, detector_class
from salus.detectors.dae import DAE, coarse_noise, eroded, median
from salus.nets.unet import StandardisedConv, UNet
from salus.training.loop import rate

SMALL = {"size": 32, "widths": (4, 8)}


def small(seed: int = 0, score: str = "residual", image: str = "mean", **settings) -> DAE:
    torch.manual_seed(seed)
    return build("dae", {**SMALL, **settings}, {"name": score, "image": image}).eval()


def copying(**settings) -> DAE:
    """One whose network returns what it is given."""
    dae = small(**settings)
    dae.net = nn.Identity()
    return dae


def half_black() -> torch.Tensor:
    x = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.1
    x[..., :16] = 0
    return x


@pytest.mark.parametrize(("channels", "parameters"), [(1, 7_701_825), (4, 7_703_748)])
def test_the_network_has_as_many_parameters_as_published(channels, parameters):
    with torch.device("meta"):
        net = UNet(channels, (64, 128, 256, 512))
        assert net(torch.rand(1, channels, 128, 128)).shape == (1, channels, 128, 128)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_blocks_are_convolution_swish_and_group_norm_in_the_published_groups():
    with torch.device("meta"):
        net = UNet(1, (64, 128, 256, 512, 1024))
    kinds = [type(layer) for layer in net.first]
    assert kinds == [StandardisedConv, nn.SiLU, nn.GroupNorm] * 2
    groups = {m.num_channels: m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {64: 8, 128: 16, 256: 16, 512: 32, 1024: 32}


def test_filters_are_standardised_and_the_border_is_mirrored():
    torch.manual_seed(0)
    layer, x = StandardisedConv(2, 3), torch.rand(1, 2, 7, 9)
    seen, weight = layer(x)[0].detach().numpy(), layer.weight.detach().numpy()
    for outgoing in range(3):
        filters = (weight[outgoing] - weight[outgoing].mean()) / (weight[outgoing].std(ddof=1) + 1e-5)
        by_hand = sum(correlate(x[0, i].numpy(), filters[i], mode="mirror") for i in range(2))
        np.testing.assert_allclose(seen[outgoing], by_hand + layer.bias[outgoing].item(), atol=1e-4)


def test_the_network_does_not_see_a_constant_added_to_the_image():
    dae, x = small(), torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(dae.denoise(x + 1), dae.denoise(x), rtol=0, atol=1e-4)
        assert (dae.denoise(x * 2) - dae.denoise(x)).abs().max() > 1e-2


def test_noise_is_coarse_enlarged_corner_to_corner_and_rolled():
    noise = coarse_noise(torch.empty(3, 2, 24, 20), 4, 0.5, torch.Generator().manual_seed(7)).numpy()
    draw = torch.Generator().manual_seed(7)
    nodes = 0.5 * torch.randn(3, 2, 4, 4, generator=draw).numpy()
    down = torch.randint(24, (3, 1), generator=draw).flatten().tolist()
    along = torch.randint(20, (3, 1), generator=draw).flatten().tolist()
    assert len(set(down)) > 1, "each image is rolled by itself"
    rows, columns = np.linspace(0, 3, 24), np.linspace(0, 3, 20)
    for image in range(3):
        for channel in range(2):
            tall = np.stack([np.interp(rows, range(4), nodes[image, channel, :, k]) for k in range(4)], 1)
            fine = np.stack([np.interp(columns, range(4), line) for line in tall])
            rolled = np.roll(fine, (-down[image], -along[image]), axis=(0, 1))
            np.testing.assert_allclose(noise[image, channel], rolled, atol=1e-6)


def test_noise_keeps_a_mean_of_0_and_loses_a_third_of_its_deviation():
    torch.manual_seed(0)
    noise = coarse_noise(torch.empty(300, 1, 128, 128), 16, 0.2)
    assert noise.mean().item() == pytest.approx(0, abs=0.003)
    assert noise.std().item() == pytest.approx(0.134, abs=0.001)


@pytest.mark.parametrize(("size", "grid"), [(128, 16), (64, 8), (96, 12)])
def test_the_grid_of_the_noise_keeps_its_pitch_at_other_sizes(size, grid):
    assert small(size=size).grid == small(size=size, noise_grid="auto").grid == grid
    assert small(size=size, noise_grid=16).grid == 16


def test_the_original_error_is_squared_and_counts_the_foreground_in_the_mean_of_all_pixels():
    dae, x = copying(mask="foreground"), half_black()
    dae.denoise = lambda noisy: x + 0.3
    torch.testing.assert_close(dae.error(x, torch.zeros_like(x)), torch.full((2,), 0.3**2 / 2))


def test_the_ra_baselines_error_is_absolute_and_has_no_mask():
    dae, x = copying(loss="l1"), half_black()
    torch.testing.assert_close(dae.error(x, torch.full_like(x, -0.3)), torch.full((2,), 0.3))


def test_the_noise_itself_stays_in_the_foreground():
    dae, x = copying(mask="foreground"), half_black()
    given = []
    dae.net.register_forward_hook(lambda module, inputs, output: given.append(inputs[0]))
    dae.error(x, torch.ones_like(x))
    torch.testing.assert_close(given[0], torch.where(x > 0.01, x + 1, x))


def test_a_network_that_copies_does_not_pass_validation():
    dae, x = copying(mask="foreground"), half_black()
    expected = coarse_noise(x, 4, 0.2, torch.Generator().manual_seed(0)) * (x > 0.01)
    torch.testing.assert_close(dae.validation_loss(x), expected.square().mean((1, 2, 3)))
    torch.testing.assert_close(dae.validation_loss(x), dae.validation_loss(x), rtol=0, atol=0)


def test_an_image_is_judged_without_noise():
    dae, x = small(), half_black()
    with torch.no_grad():
        seen = dae.detect(x)
        torch.testing.assert_close(seen.restored, dae.net(x).clamp(0, 1))
    torch.testing.assert_close(seen.map, (x - seen.restored).abs())
    torch.testing.assert_close(copying().detect(x).map, torch.zeros_like(x))


def test_erosion_forgives_one_dark_pixel_and_no_two():
    foreground = torch.ones(2, 1, 12, 12, dtype=torch.bool)
    foreground[:, 0, 6, 6] = False
    foreground[1, 0, 6, 7] = False
    inside = eroded(foreground)
    assert inside[0].all()
    reached_by_both = torch.zeros(12, 12, dtype=torch.bool)
    reached_by_both[4:9, 5:9] = True
    assert torch.equal(inside[1, 0] == 0, reached_by_both)


def test_the_median_agrees_with_scipys():
    maps = torch.rand(2, 1, 16, 20)
    for ours, seen in zip(median(maps)[:, 0], maps[:, 0], strict=True):
        np.testing.assert_array_equal(ours.numpy(), median_filter(seen.numpy(), size=5, mode="mirror"))


def test_the_original_map_is_masked_and_then_filtered_and_its_mean_is_over_the_mask():
    x, settings = half_black(), {"mask": "foreground", "map_median": True}
    with torch.no_grad():
        plain, seen = small().detect(x), small(**settings).detect(x)
        highest = small(image="top1", **settings).detect(x)
    inside = eroded(x > 0.01)
    torch.testing.assert_close(seen.map, median(plain.map * inside))
    torch.testing.assert_close(seen.score, seen.map.sum((1, 2, 3)) / inside.sum((1, 2, 3)))
    torch.testing.assert_close(highest.score, seen.map.flatten(1).topk(10).values.mean(1))


def test_a_black_finding_is_lost_in_the_original_map():
    x = torch.full((1, 1, 32, 32), 0.6)
    x[..., 10:20, 10:20] = 0
    with torch.no_grad():
        assert small().detect(x).map[..., 10:20, 10:20].max() > 0
        assert small(mask="foreground").detect(x).map[..., 10:20, 10:20].max() == 0


def test_what_no_error_was_counted_on_is_not_judged():
    """With its error in the foreground alone the network may draw anything elsewhere, and does."""
    dae, x = small(mask="foreground"), half_black()
    with torch.no_grad():
        assert (dae.detect(x).map[dae.inside(x) == 0] == 0).all()
        assert (small().detect(x).map[dae.inside(x) == 0] > 0).any()


def test_a_black_image_has_a_score():
    with torch.no_grad():
        assert small(mask="foreground").detect(torch.zeros(1, 1, 32, 32)).score == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 100, "widths": (8, 8, 8, 8)}, "size must be a multiple of 8 from 16 on, not 100; 96 and 104 are"),
        ({"widths": (4,) * 6}, "with 6 widths, size must be a multiple of 32 from 64 on, not 32; 64 is the nearest"),
        ({"noise_grid": 33}, "a noise grid of 33 nodes is finer than an image of 32 pixels"),
        ({"noise_grid": 1}, "noise_grid.*greater than or equal to 2"),
        ({"loss": "l3"}, "loss"),
        ({"widths": (8,)}, "widths"),
    ],
)
def test_settings_that_do_not_fit_are_explained(settings, message):
    with pytest.raises(ConfigError, match=message):
        small(**settings)


def test_the_paper_preset_is_the_original_recipe():
    preset = detector_class("dae").PRESETS["paper"]
    recipe, config = preset.recipe, detector_class("dae").Config(**preset.settings)
    assert (recipe.optimiser, recipe.learning_rate, recipe.weight_decay, recipe.clip) == ("amsgrad", 1e-4, 1e-5, 0.5)
    assert (config.widths, config.noise_std, config.size // 8) == ((64, 128, 256, 512), 0.2, 16)
    assert (config.loss, config.mask, config.map_median) == ("l2", "foreground", True)
    steps = recipe.epochs * 512 // recipe.batch
    assert steps == 67_200
    assert [rate(recipe, step, steps) for step in (0, 3200, 6400, steps)] == pytest.approx([1, 0, 1, 0])


def test_the_ra_baseline_is_a_preset():
    preset = detector_class("dae").PRESETS["ra"]
    config = detector_class("dae").Config(**preset.settings)
    assert (config.loss, config.mask, config.map_median) == ("l1", "none", False)
    assert (preset.recipe.learning_rate, preset.recipe.batch, preset.recipe.epochs) == (1e-4, 16, 1000)
    assert preset.recipe.schedule == "constant"
