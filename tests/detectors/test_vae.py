import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from salus.core.errors import ConfigError
from salus.detectors import Recipe, build, detector_class
from salus.detectors.vae import VAE
from salus.scores import build_score
from salus.training import Run, fit, make_fabric
from tests.conftest import discs

SMALL = {"size": 16, "latent": 3, "widths": (4, 6)}
CAI = {"size": 16, "latent": 3, "network": "cai", "widths": (4, 4, 6, 6)}
BOTH = pytest.mark.parametrize("settings", [SMALL, CAI], ids=["zimmerer", "cai"])


def small(**settings) -> VAE:
    """With weights so large that codes, divergences and restorations differ from nothing."""
    torch.manual_seed(0)
    vae = build("vae", {**SMALL, **settings}, {"name": "residual"})
    with torch.no_grad():
        for p in vae.parameters():
            p.mul_(3)
    return vae


def loss_of(vae: VAE, x: torch.Tensor, seed: int = 1) -> torch.Tensor:
    """What a training step asks to be minimised."""
    asked = []
    torch.manual_seed(seed)
    vae.train().training_step(x, lambda part, loss, keep_graph=False: asked.append(loss), 0.5)
    (loss,) = asked
    return loss.detach()


def count(settings: dict) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build("vae", settings, {"name": "residual"}).parameters())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 5_849_600),
        ({"size": 64}, 3_752_448),
        ({"size": 64, "network": "cai"}, 2_367_584),
        ({"widths": (16, 64, 256, 256)}, 15_237_632),
    ],
    ids=["zimmerer 128", "zimmerer 64", "cai", "the RA authors' ceVAE"],
)
def test_parameters_are_the_published(settings, expected):
    assert count(settings) == expected


def test_zimmerers_network_has_neither_biases_nor_norms():
    assert all(p.ndim == 4 for p in small().parameters())
    assert not list(small().buffers())


def test_half_of_a_code_is_half_of_zimmerers_image():
    """Why the mean of a cheap code, which is shorter than its draws, comes back too dark: docs/methods/vae.md."""
    vae, z = small(), torch.randn(4, 3)
    torch.testing.assert_close(vae.decode(z / 2), vae.decode(z) / 2)


@BOTH
def test_the_output_layer_is_linear_and_the_restoration_an_image(settings):
    vae, z = small(**settings).eval(), torch.randn(4, 3)
    with torch.no_grad():
        assert vae.decode(1e4 * z).min() < -1
        assert vae.decode(1e4 * z).max() > 1
        for p in vae.decoder.parameters():
            p.mul_(9)
        restored = vae.restore(torch.rand(4, 1, 16, 16))
    assert restored.min() == 0
    assert restored.max() <= 1


@pytest.mark.parametrize(("settings", "black"), [(SMALL, 0.0), (CAI, -1.0)], ids=["zimmerer", "cai"])
def test_a_restoration_is_the_decoded_mean_on_the_scale_of_images(settings, black):
    vae, x = small(**settings).eval(), torch.rand(3, 1, 16, 16)
    with torch.no_grad():
        decoded = vae.decode(vae.encode(x)[0])
        torch.testing.assert_close(black + (1 - black) * vae.restore(x), decoded.clamp(black, 1))
    assert decoded.std() > 0.05


def test_zimmerers_loss_is_a_likelihood_of_variance_1_and_a_summed_divergence():
    vae, x = small(), torch.rand(5, 1, 16, 16)
    torch.manual_seed(1)
    mean, log_std = vae.encoder(x).chunk(2, 1)
    posterior = Normal(mean, log_std.exp())
    z = mean + log_std.exp() * torch.randn_like(mean)
    constant = Normal(torch.zeros(()), 1).log_prob(torch.zeros(())) * 16 * 16
    likelihood = Normal(vae.decoder(z), 1).log_prob(x).sum((1, 2, 3)) - constant
    bound = likelihood - kl_divergence(posterior, Normal(0, 1)).sum(1)
    torch.testing.assert_close(loss_of(vae, x), -bound.mean())


def test_cais_loss_is_two_means():
    vae, x = small(**CAI).train(), torch.rand(5, 1, 16, 16)
    torch.manual_seed(1)
    mean, log_var = vae.encoder(2 * x - 1).chunk(2, 1)
    posterior = Normal(mean, (log_var / 2).exp())
    z = mean + (log_var / 2).exp() * torch.randn_like(mean)
    expected = F.mse_loss(vae.decoder(z), 2 * x - 1) + 0.005 * kl_divergence(posterior, Normal(0, 1)).mean()
    torch.testing.assert_close(loss_of(vae, x), expected)


def test_the_loss_is_one_equation_of_three_numbers():
    vae, x = small(beta_rec=0.3, beta_kl=7.0, scale=0.01, latent_train="mean"), torch.rand(5, 1, 16, 16)
    losses = vae.losses(x)
    torch.testing.assert_close(loss_of(vae, x), 0.01 * (0.3 * losses["rec"] + 7 * losses["kl"]))


def test_the_quirk_takes_the_deviation_for_its_logarithm():
    vae, x = small(quirk_std=True), torch.rand(5, 1, 16, 16)
    mean, log_var = vae.encode(x)
    deviation = (log_var / 2).exp()
    expected = kl_divergence(Normal(mean, deviation.exp()), Normal(0, 1)).sum(1)
    torch.testing.assert_close(vae.divergence(mean, log_var), expected)


@pytest.mark.parametrize(("quirk", "pulls_up"), [(False, True), (True, False)])
def test_only_without_the_quirk_a_narrow_code_is_widened(quirk, pulls_up):
    log_var = torch.full((1, 3), -4.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(small(quirk_std=quirk).divergence(torch.zeros(1, 3), log_var).sum(), log_var)
    assert ((gradient < 0) == pulls_up).all()


def test_a_code_is_drawn_in_training_unless_its_mean_is_asked_for():
    x = torch.rand(5, 1, 16, 16)
    assert loss_of(small(), x, seed=1) != loss_of(small(), x, seed=2)
    still = {"latent_train": "mean"}
    assert loss_of(small(**still), x, seed=1) == loss_of(small(**still), x, seed=2)


@BOTH
def test_nothing_is_drawn_to_restore(settings):
    vae, x = small(**settings).eval(), torch.rand(3, 1, 16, 16)
    first = vae.restore(x)
    torch.manual_seed(5)
    assert torch.equal(vae.restore(x), first)


@BOTH
def test_gradient_maps_are_slopes_of_the_bound(settings):
    """Against central differences, in double precision."""
    vae, x = small(**settings).double().eval(), torch.rand(2, 1, 16, 16, dtype=torch.float64)
    for of, names in (("rec", ["rec"]), ("kl", ["kl"]), ("elbo", ["rec", "kl"])):
        slopes = build_score("gradient", of=of, sigma=0.0).compare(x, vae.restore(x), vae.terms)
        for row, column in ((3, 4), (8, 8)):
            step = torch.zeros_like(x)
            step[..., row, column] = 1e-6
            with torch.no_grad():
                above, below = vae.terms(x + step), vae.terms(x - step)
            slope = sum(above[name] - below[name] for name in names) / 2e-6
            torch.testing.assert_close(slopes[:, 0, row, column], slope.abs().float(), rtol=1e-3, atol=1e-7)
            assert (slope.abs() > 1e-4).all(), of


def test_the_bound_of_a_whole_image_is_what_training_minimises():
    vae, x = small(latent_train="mean", beta_rec=0.3, beta_kl=2.0), torch.rand(5, 1, 16, 16)
    torch.testing.assert_close(sum(term.mean() for term in vae.terms(x).values()).detach(), loss_of(vae, x))


def test_combi_is_the_squared_residual_times_the_slope_of_the_divergence():
    vae, x = small().eval(), torch.rand(2, 1, 16, 16)
    restored = vae.restore(x).detach()
    slope = build_score("gradient", of="kl").compare(x, restored, vae.terms)
    combined = build_score("gradient", of="combi").compare(x, restored, vae.terms)
    torch.testing.assert_close(combined, slope * (x - restored).square(), rtol=1e-5, atol=0)


def test_a_built_vae_knows_the_numbers_behind_auto():
    config = small(**CAI).config
    assert (config.beta_rec, config.scale) == (1, 1 / 256)
    assert config.beta_kl == pytest.approx(0.005 * 256 / 3)
    again = build("vae", dataclasses.asdict(config), {"name": "residual"})
    assert again.config == config


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"size": 100}, r"zimmerer and 4 widths, size must be a multiple of 16, not 100; 96 and 112"),
        ({"size": 72, "network": "cai"}, r"cai and 4 widths, size must be a multiple of 16, not 72; 64 and 80"),
        ({"size": 8, "network": "cai"}, r"not 8; 16 is the nearest"),
        ({"size": 7}, r"not 7; 8 is the nearest"),
        ({"network": "cai", "widths": (4, 4)}, r"network cai takes 4 widths"),
        ({"widths": ()}, r"network zimmerer takes some widths"),
        ({"beta_rec": 0.0}, r"beta_rec.*greater than 0"),
        ({"beta_kl": -1.0}, r"beta_kl.*greater than or equal to 0"),
        ({"latent": 0}, r"^vae: latent: Input should be greater than 0, got 0\.$"),
        ({"widths": (4, 0)}, r"^vae: widths\.1: Input should be greater than 0, got 0\.$"),
        ({"rate": 4.0, "beta_kl": 0.0}, r"a rate is held by the price"),
        ({"rate": 0.0}, r"rate.*greater than 0"),
        ({"latent_train": "median"}, r"latent_train.*'sample' or 'mean'"),
    ],
    ids=str,
)
def test_a_setting_that_does_not_fit_is_named(settings, match):
    with pytest.raises(ConfigError, match=match):
        build("vae", settings, {"name": "residual"})


def fitted(place, rate: float, epochs: int, on_epoch=lambda run, epochs: None) -> tuple[Run, VAE]:
    """Of discs, from wherever a training in `place` stopped."""
    place.mkdir(exist_ok=True)
    torch.manual_seed(0)
    vae = build("vae", {"size": 32, "latent": 8, "widths": (16, 32, 32), "rate": rate}, {"name": "residual"})
    recipe = Recipe(epochs=epochs, batch=16, learning_rate=4e-3, select="last")
    fabric = make_fabric("cpu", "fp32")
    return fit(vae, recipe, discs(64), discs(8, seed=2), place, 0, fabric, on_epoch), vae


@pytest.mark.parametrize("rate", [2.0, 6.0])
def test_the_price_follows_until_the_code_holds_the_rate(rate, tmp_path):
    run, vae = fitted(tmp_path, rate, 200)
    held = [row["kl"] for row in run.rows[-20:]]
    assert sum(held) / len(held) == pytest.approx(rate, rel=0.15)
    assert vae.beta_kl == pytest.approx(run.rows[-1]["beta_kl"], rel=0.1), "what train.csv tells is the price paid"


def test_a_step_moves_the_price_towards_the_rate_by_at_most_a_hundredth():
    for rate, direction in ((1e-6, 1), (1e6, -1)):
        vae = small(rate=rate, beta_kl=0.5)
        loss_of(vae, torch.rand(4, 1, 16, 16))
        assert math.log(vae.beta_kl / 0.5) == pytest.approx(direction * 0.01, rel=1e-3)


def test_all_processes_pay_the_same_price(monkeypatch):
    """Here the other process's code is far above the rate, and so is their mean."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: value.add_(1e9))
    vae = small(rate=1e6, beta_kl=0.5)
    loss_of(vae, torch.rand(4, 1, 16, 16))
    assert math.log(vae.beta_kl / 0.5) == pytest.approx(0.01, rel=1e-3)


def test_a_price_is_kept_when_a_training_goes_on(tmp_path):
    def stop(run, epochs):
        if run.epoch == 2:
            raise KeyboardInterrupt

    _, whole = fitted(tmp_path / "whole", 3.0, 4)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "torn", 3.0, 4, stop)
    _, resumed = fitted(tmp_path / "torn", 3.0, 4)
    assert whole.beta_kl != 1.0
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


def test_presets_hold_the_published_recipes():
    paper, cai = (detector_class("vae").PRESETS[name] for name in ("paper", "cai"))
    assert (paper.recipe.learning_rate, paper.recipe.batch, paper.recipe.epochs) == (5e-4, 8, 1500)
    with torch.device("meta"):
        config, small_code = (build("vae", p.settings, p.score).config for p in (paper, cai))
    assert (config.size, config.latent, config.widths) == (128, 256, (16, 32, 64, 256, 256))
    assert (config.beta_rec, config.beta_kl, config.scale) == (0.5, 1, 1)
    assert not config.quirk_std
    assert (cai.recipe.learning_rate, cai.recipe.batch, cai.recipe.epochs) == (1e-3, 64, 250)
    assert (small_code.size, small_code.latent, small_code.widths) == (64, 16, (16, 32, 64, 64))
