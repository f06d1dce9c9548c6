"""The variants of `ae`: mem-ae, ae-u, ae-ssim, ae-perceptual, ae-grad, constrained-ae."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from salus.core.errors import ConfigError
from salus.detectors import Detector, Recipe, build, detector_class
from salus.detectors.mem_ae import entropy, shrunk
from salus.nets.trunks import build_trunk
from salus.scores import build_score
from salus.scores.features import LAYERS, relative
from salus.scores.similarity import dissimilarity
from salus.training import Stepper, make_fabric
from tests.conftest import discs

SMALL = {"size": 32, "latent": 4, "hidden": 16, "widths": (4, 4, 4, 4)}
ALEXNET = {"ae-perceptual": {"trunk": "alexnet"}}  # what travels with Salus
FAMILY = ["ae-grad", "ae-perceptual", "ae-ssim", "ae-u", "constrained-ae", "mem-ae"]


def small(name: str, score: str = "residual", seed: int = 0, **settings) -> Detector:
    torch.manual_seed(seed)
    return build(name, {**SMALL, **ALEXNET.get(name, {}), **settings}, {"name": score}).eval()


def picture(count: int = 3) -> torch.Tensor:
    return torch.from_numpy(discs(count))


def step(detector: Detector, x: torch.Tensor, learning_rate: float = 1e-3) -> dict[str, torch.Tensor]:
    stepper = Stepper(make_fabric("cpu", "fp32"), detector, Recipe(epochs=1, batch=8, learning_rate=learning_rate))
    return detector.train().training_step(x, stepper, 0.0)


@pytest.mark.parametrize("name", FAMILY)
def test_parameters_are_the_published_ones(name):
    with torch.device("meta"):
        detector = build(name, ALEXNET.get(name, {}), {})
    learned = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    assert learned == {"mem-ae": 2_351_584, "ae-u": 2_351_440}.get(name, 2_351_184)


@pytest.mark.parametrize("name", ["ae-grad", "ae-perceptual", "ae-ssim", "constrained-ae"])
def test_what_differs_in_loss_alone_can_hold_the_weights_of_ae(name):
    plain = small("ae").learned()
    other = small(name, seed=1)
    assert other.learned().keys() == plain.keys()
    other.load_state_dict(plain, strict=False)
    x = picture()
    torch.testing.assert_close(other.restore(x), small("ae").restore(x))


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("ae-grad", {"name": "gradient", "of": "rec", "sigma": 0.0}),
        ("ae-perceptual", {"name": "relative-features", "trunk": "vgg16"}),
        ("ae-ssim", {"name": "ssim"}),
        ("ae-u", {"name": "squared"}),
        ("constrained-ae", {"name": "squared"}),
        ("mem-ae", {"name": "squared"}),
    ],
)
def test_the_paper_preset_is_the_published_recipe(name, score):
    preset = detector_class(name).PRESETS["paper"]
    assert preset.score == score
    assert preset.recipe == Recipe(epochs=250, batch=64, learning_rate=1e-3, select="last")
    assert (config := detector_class(name).Config()).size == 64
    assert config.latent == 16


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mem-ae", {"items": 2000}, "at most 200 items, or a threshold of at most 0.00025"),
        ("mem-ae", {"items": 201}, "shrink to nothing"),
        ("mem-ae", {"code": "spatial"}, "^mem-ae: the memory holds vectors: code must be 'vector'\\.$"),
        ("mem-ae", {"similarity": "euclidean"}, "similarity: .*'dot' or 'cosine'"),
        ("mem-ae", {"entropy_weight": -1}, "entropy_weight: .*greater than or equal to 0"),
        ("ae-u", {"weighted": "perhaps"}, "weighted: .*boolean"),
        ("ae-ssim", {"outside": "in"}, "outside: .*'pulled' or 'stuck'"),
        ("ae-ssim", {"size": 40}, "^ae-ssim: size must be a multiple of 16, not 40; 32 and 48 are the nearest"),
        ("ae-perceptual", {"trunk": "vgg19"}, "trunk: .*'vgg16' or 'alexnet'"),
        ("ae-perceptual", {"enlarge": 0}, "enlarge: .*greater than or equal to 1"),
        ("constrained-ae", {"code_weight": -1}, "code_weight: .*greater than or equal to 0"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        build(name, settings, {})


# mem-ae


def test_shares_under_the_threshold_vanish_and_the_others_add_up_to_one():
    shares = shrunk(torch.tensor([[0.5, 0.3, 0.15, 0.05]]), 0.1)
    torch.testing.assert_close(shares, torch.tensor([[0.5, 0.3, 0.15, 0.0]]) / 0.95)


def test_a_memory_needs_as_many_images_as_items():
    detector = small("mem-ae", items=25)
    detector.check(Recipe(epochs=1, batch=8, learning_rate=1e-3), 25, 4)
    with pytest.raises(ConfigError, match=r"a memory of 25 items needs as many images, not 24\. Set items lower"):
        detector.check(Recipe(epochs=1, batch=8, learning_rate=1e-3), 24, 4)


def test_an_undecided_code_keeps_its_memory_with_25_items_but_not_with_2000():
    undecided = torch.full((1, 25), 1 / 25)
    torch.testing.assert_close(shrunk(undecided, 0.0025), undecided)
    assert (shrunk(torch.full((1, 2000), 1 / 2000), 0.0025) == 0).all()  # hence the error above


def test_entropy_is_that_of_the_shares_and_its_gradient_survives_zeros():
    shares = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]], requires_grad=True)
    found = entropy(shares)
    torch.testing.assert_close(found, torch.tensor([math.log(4), 0.0]))
    (gradient,) = torch.autograd.grad(found.sum(), shares)
    assert gradient.isfinite().all()


def test_the_code_is_the_published_mixture_of_the_memory():
    detector, x = small("mem-ae", threshold=0.02), picture()
    with torch.no_grad():
        detector.memory.mul_(20)  # so that shares differ
        z, memory = detector.encoder(2 * x - 1).numpy().astype(float), detector.memory.numpy().astype(float)
        code = detector.code(x).numpy()
    shares = np.exp(z @ memory.T)
    shares /= shares.sum(1, keepdims=True)
    kept = np.where(shares > 0.02, shares, 0)
    assert (kept == 0).any()
    np.testing.assert_allclose(code, kept / kept.sum(1, keepdims=True) @ memory, rtol=1e-4)


@pytest.mark.parametrize(("similarity", "same"), [("cosine", True), ("dot", False)])
def test_the_length_of_the_code_counts_only_as_released(similarity, same):
    detector, x = small("mem-ae", similarity=similarity), picture()
    with torch.no_grad():
        before = detector.attention(x)
        detector.encoder[-1].weight.mul_(5)
        detector.encoder[-1].bias.mul_(5)
        assert torch.allclose(before, detector.attention(x), atol=1e-5) == same


def test_the_loss_is_the_error_plus_the_weighted_entropy():
    detector, x = small("mem-ae", entropy_weight=0.5), picture()
    losses = detector.losses(x)
    torch.testing.assert_close(losses["rec"], F.mse_loss(detector.reconstruct(x), 2 * x - 1))
    shares = torch.distributions.Categorical(probs=detector.attention(x))
    torch.testing.assert_close(losses["entropy"], 0.5 * shares.entropy().mean())
    assert small("mem-ae", entropy_weight=0.0).losses(x)["entropy"] == 0


def test_the_memory_learns_and_different_images_use_different_items():
    detector, x = small("mem-ae"), picture(24)
    before = detector.memory.detach().clone()
    for _ in range(60):
        step(detector, x, 3e-3)
    assert not torch.equal(before, detector.memory)
    with torch.no_grad():
        assert len(detector.eval().attention(x).argmax(1).unique()) > 2


def test_a_memory_takes_no_spatial_code():
    with pytest.raises(ConfigError, match=r"the memory holds vectors: code must be 'vector'"):
        small("mem-ae", code="spatial")


# ae-u


def test_the_loss_is_twice_the_gaussian_likelihood():
    detector, x = small("ae-u"), picture()
    restored, log_variance = detector.outputs(x)
    expected = 2 * F.gaussian_nll_loss(restored, 2 * x - 1, log_variance.exp(), eps=1e-12)
    torch.testing.assert_close(detector.losses(x)["rec"], expected)


@pytest.mark.parametrize("direction", [-1e6, 1e6])
def test_a_log_variance_that_runs_away_stays_finite(direction):
    detector, x = small("ae-u"), picture()
    with torch.no_grad():
        detector.decoder[-1].weight[:, 1] = direction
    assert detector.outputs(x)[1].abs().max() <= 10
    logged = step(detector, x)
    assert logged["rec"].isfinite()


def test_a_log_variance_far_below_the_truth_is_drawn_back():
    """Cut off at -10 it would weigh its pixel by 22,000 and feel no slope."""
    detector, x = small("ae-u"), picture()
    decoded = torch.cat([2 * x - 0.5, torch.full_like(x, -12.0)], 1).requires_grad_()
    detector.decode = lambda _: decoded
    (slope,) = torch.autograd.grad(detector.losses(x)["rec"], decoded)
    assert (slope[:, 1] < 0).all()
    assert detector.eval().detect(x).map.isfinite().all()


@pytest.mark.parametrize("score", ["squared", "residual", "ssim"])
@torch.no_grad()
def test_errors_that_were_expected_count_less_whatever_the_score(score):
    detector, plain, x = small("ae-u", score), small("ae-u", score, weighted=False), picture()
    seen, bare = detector.detect(x), plain.detect(x)
    torch.testing.assert_close(bare.map, build_score(score)(x, bare.restored))
    torch.testing.assert_close(seen.map, bare.map / detector.outputs(x)[1].exp())
    torch.testing.assert_close(seen.score, seen.map.mean((1, 2, 3)))
    assert not torch.allclose(seen.score, bare.score)


# ae-ssim


def test_the_loss_is_the_mean_of_the_scores_map():
    detector, x = small("ae-ssim"), picture(5)
    detector.unclamped = lambda _: 1.5 * x.roll(1, 0)  # another for each image, partly outside [0, 1]
    expected = dissimilarity(x, detector.restore(x)).mean((1, 2, 3))
    torch.testing.assert_close(detector.terms(x)["rec"], expected)
    torch.testing.assert_close(detector.losses(x)["rec"], expected.mean())


@pytest.mark.parametrize("outside", ["stuck", "pulled"])
def test_what_left_the_range_comes_back_only_if_it_is_pulled(outside):
    detector, x = small("ae-ssim", outside=outside), picture()
    pixels = torch.full_like(x, 1.5).requires_grad_()
    detector.unclamped = lambda _: pixels
    losses = detector.losses(x)
    torch.testing.assert_close(losses["rec"], dissimilarity(x, torch.ones_like(x)).mean())
    (gradient,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), pixels)
    torch.testing.assert_close(gradient, torch.full_like(x, 2 * 0.5 / x.numel() if outside == "pulled" else 0.0))
    inside = small("ae-ssim", outside=outside)
    inside.unclamped = lambda _: pixels - 1
    assert sum(inside.losses(x).values()) == inside.losses(x)["rec"]  # nothing is added within the range


# ae-perceptual and its score


def test_the_share_that_is_lost_by_hand():
    seen = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])  # two channels, two places
    restored = torch.tensor([[[[1.0, 1.0]], [[1.0, 1.0]]]])
    torch.testing.assert_close(relative(seen, restored, (1,)).flatten(), torch.tensor([2 / 4, 2 / 2]))
    assert relative(seen, restored, (1, 2, 3)).item() == pytest.approx(4 / 6)
    assert (relative(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1), (1,)) == 0).all()


def test_the_loss_is_the_share_of_the_features_that_the_restoration_lacks():
    detector, x = small("ae-perceptual", enlarge=2), picture(4)
    large = [F.interpolate(v, scale_factor=2.0, mode="bilinear") for v in (x, detector.unclamped(x))]
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    scaled = [(v.expand(-1, 3, -1, -1) - mean.view(3, 1, 1)) / spread.view(3, 1, 1) for v in large]
    seen, restored = (detector.layer.trunk(v)[0].detach().numpy() for v in scaled)
    expected = np.abs(seen - restored).sum((1, 2, 3)) / np.abs(seen).sum((1, 2, 3))
    np.testing.assert_allclose(detector.terms(x)["rec"].detach().numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(detector.losses(x)["rec"].item(), expected.mean(), rtol=1e-4)


def test_the_trunk_is_neither_trained_nor_saved():
    detector = small("ae-perceptual")
    before = {key: value.clone() for key, value in detector.layer.state_dict().items()}
    step(detector, picture(8))
    assert all(torch.equal(before[key], value) for key, value in detector.layer.state_dict().items())
    assert not any(key.startswith(("layer.", "score.")) for key in detector.learned())
    assert not detector.layer.trunk.training


def test_pixels_outside_the_range_feel_the_loss():
    detector, x = small("ae-perceptual"), picture()
    pixels = torch.full_like(x, 1.5).requires_grad_()
    detector.unclamped = lambda _: pixels
    (gradient,) = torch.autograd.grad(detector.losses(x)["rec"], pixels)
    assert gradient.any()


@pytest.mark.parametrize(("trunk", "shape", "convolutions"), [("vgg16", (512, 8, 8), 10), ("alexnet", (192, 7, 7), 2)])
def test_the_features_lie_at_a_stride_of_8(trunk, shape, convolutions):
    with torch.device("meta"):
        layers = build_trunk(trunk, taps=(LAYERS[trunk],))
        (seen,) = layers(torch.empty(1, 3, 64, 64))
    assert tuple(seen.shape[1:]) == shape
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in layers.features) == convolutions
    assert isinstance(layers.features[-1], torch.nn.ReLU)


def test_the_score_maps_the_share_lost_at_each_place():
    score = build_score("relative-features", enlarge=2)
    assert score.name == "relative-features-alexnet-x2"
    x = torch.from_numpy(discs(2, side=64))
    holed = x.clone()
    holed[:, :, 26:38, 26:38] = 0
    found = score(x, holed)
    assert (score(x, x) == 0).all()
    seen, restored = score.layer(x), score.layer(holed)
    ratio = (seen - restored).abs().sum(1, keepdim=True) / seen.abs().sum(1, keepdim=True)
    torch.testing.assert_close(found, F.interpolate(ratio, size=(64, 64), mode="bilinear"))
    assert found[:, :, 26:38, 26:38].mean() > 4 * found[:, :, :8].mean()


# ae-grad


def test_the_map_is_the_gradient_of_the_mean_squared_error():
    detector = build("ae-grad", SMALL, detector_class("ae-grad").PRESETS["paper"].score).eval()
    x = picture().requires_grad_()
    error = (detector.decoder(detector.encoder(2 * x - 1)) - (2 * x - 1)).square().mean((1, 2, 3))
    (expected,) = torch.autograd.grad(error.sum(), x)
    with torch.no_grad():
        seen = detector.detect(x.detach())
    torch.testing.assert_close(seen.map, expected.abs())
    torch.testing.assert_close(seen.restored, detector.restore(x).detach())


# constrained-ae


def test_the_restoration_is_to_have_the_images_code():
    detector, x = small("constrained-ae", code_weight=3.0), picture()
    z = detector.encoder(2 * x - 1)
    restored = detector.decoder(z)
    losses = detector.losses(x)
    torch.testing.assert_close(losses["rec"], F.mse_loss(restored, 2 * x - 1))
    torch.testing.assert_close(losses["code"], 3 * F.mse_loss(detector.encoder(restored), z), rtol=1e-4, atol=0)


def test_both_codes_feel_the_constraint():
    detector, x = small("constrained-ae"), picture()
    parameters = list(detector.parts()["autoencoder"])
    z = detector.encoder(2 * x - 1)
    expected = torch.autograd.grad(F.mse_loss(detector.encoder(detector.decoder(z)), z), parameters)
    found = torch.autograd.grad(detector.losses(x)["code"], parameters)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_without_its_weight_it_is_ae():
    x = torch.from_numpy(discs(8))
    free, plain = small("constrained-ae", code_weight=0.0), small("ae")
    step(free, x)
    step(plain, x)
    for (key, a), (_, b) in zip(free.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=key)
