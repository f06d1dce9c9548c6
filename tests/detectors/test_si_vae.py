import pytest
import torch
from torch.distributions import Normal, kl_divergence

from salus.core.errors import ConfigError
from salus.detectors import Recipe, build, detector_class
from salus.detectors.introspective import Introspective
from salus.training import Stepper, make_fabric

SMALL = {"size": 16, "latent": 3, "widths": (4, 6)}


def small(name: str = "si-vae", **settings) -> Introspective:
    torch.manual_seed(0)
    return build(name, {**SMALL, **settings}, {"name": "residual"})


def step(detector: Introspective, x: torch.Tensor, progress: float = 0.5) -> dict[str, torch.Tensor]:
    """One real training step; what it logged."""
    stepper = Stepper(make_fabric("cpu", "fp32"), detector, Recipe(epochs=1, batch=8, learning_rate=1e-3))
    torch.manual_seed(1)
    return detector.train().training_step(x, stepper, progress)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_are_ras():
    with torch.device("meta"):
        si, ra = (build(name, detector_class(name).PRESETS["paper"].settings, {}) for name in ("si-vae", "ra"))
    assert (count(si.encoder), count(si.decoder)) == (16_360_896, 13_069_889)
    assert (count(si.encoder), count(si.decoder)) == (count(ra.encoder), count(ra.decoder))


@pytest.mark.parametrize("settings", [{}, {"warmup": 0.4, "ramp": 0.2}, {"gamma_rec": 0.0}], ids=str)
def test_a_step_is_ras_without_its_reversed_loss_bit_for_bit(settings):
    si, ra = small(**settings), small("ra", objective="sivae", **settings)
    x = torch.rand(8, 1, 16, 16)
    for progress in (0.1, 0.5, 0.9):
        logged, of_ra = step(si, x, progress), step(ra, x, progress)
        assert all(torch.equal(value, of_ra[name]) for name, value in logged.items())
    for (name, a), (_, b) in zip(si.state_dict().items(), ra.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_a_step_is_not_ras():
    """So that the test above means something."""
    si, ra = small(), small("ra", reversed_weight=0.5)
    x = torch.rand(8, 1, 16, 16)
    assert "alike" not in step(si, x)
    step(ra, x)
    assert not torch.equal(si.encoder.stem[0].weight, ra.encoder.stem[0].weight)


def test_losses_are_those_of_soft_introspection():
    """Equations of Daniel and Tamar, pass by pass, every picture made anew."""
    alpha, beta_rec, beta_kl, beta_neg, gamma = 1.5, 0.7, 0.4, 20.0, 0.3
    si = small(alpha=alpha, beta_rec=beta_rec, beta_kl=beta_kl, beta_neg=beta_neg, gamma_rec=gamma).train()
    x, s = torch.rand(8, 1, 16, 16), 1 / 256
    asked = {}
    torch.manual_seed(1)
    si.training_step(x, lambda part, loss, keep_graph=False: asked.update({part: loss.item()}), 0.5)

    torch.manual_seed(1)
    noise = torch.randn(8, 3)
    eps = [torch.randn(8, 3) for _ in range(5)]  # for x, x_rec and x_fake; and for the last two once more

    def posterior(picture):
        mean, log_var, _ = si.encoder(picture)
        return Normal(mean, torch.exp(0.5 * log_var))

    def divergence(picture):
        return kl_divergence(posterior(picture), Normal(0, 1)).sum(1)

    def decoded(picture, eps):
        code = posterior(picture)
        return si.decoder(code.mean + code.stddev * eps)

    def error(a, b):
        return torch.linalg.vector_norm(a - b, dim=(1, 2, 3)) ** 2

    def likely(picture, eps):
        bound = beta_rec * error(picture, decoded(picture, eps)) + beta_neg * divergence(picture)
        return torch.exp(-alpha * s * bound).mean()

    with torch.no_grad():
        rec, fake = decoded(x, eps[0]), si.decoder(noise)
        real = s * (beta_rec * error(x, rec) + beta_kl * divergence(x)).mean()
        encoder = real + (likely(rec, eps[1]) + likely(fake, eps[2])) / (2 * alpha)
        again = error(rec, decoded(rec, eps[3])) + error(fake, decoded(fake, eps[4]))
        attracted = beta_kl / 2 * (divergence(rec) + divergence(fake))
        decoder = s * (beta_rec * error(x, rec) + attracted + gamma * beta_rec / 2 * again).mean()
    assert asked == pytest.approx({"encoder": encoder.item(), "decoder": decoder.item()}, rel=1e-5)


def test_before_the_argument_it_is_a_plain_vae():
    si, x, asked = small(beta_rec=0.7, beta_kl=0.4, warmup=0.5).train(), torch.rand(8, 1, 16, 16), {}
    torch.manual_seed(1)
    si.training_step(x, lambda part, loss, keep_graph=False: asked.update({part: loss.item()}), 0.2)
    torch.manual_seed(1)
    with torch.no_grad():
        mean, log_var, _ = si.encoder(x)
        code = Normal(mean, torch.exp(0.5 * log_var))
        error = (si.decoder(code.mean + code.stddev * torch.randn(8, 3)) - x).square().sum((1, 2, 3))
        loss = (0.7 * error + 0.4 * kl_divergence(code, Normal(0, 1)).sum(1)).mean() / 256
    assert asked == {("encoder", "decoder"): pytest.approx(loss.item(), rel=1e-5)}


@pytest.mark.parametrize("sigmoid", [True, False])
def test_without_a_sigmoid_pictures_leave_the_range_and_restorations_do_not(sigmoid):
    si = small(sigmoid=sigmoid).eval()
    with torch.no_grad():
        si.decoder.picture.weight.mul_(100)
        picture, restored = si.decoder(torch.randn(8, 3)), si.restore(torch.rand(8, 1, 16, 16))
    assert ((picture.min() < 0) and (picture.max() > 1)) == (not sigmoid)
    assert restored.min() >= 0
    assert restored.max() <= 1


@pytest.mark.parametrize(("size", "expected"), [(32, 8), (64, 32), (128, 128), (256, 512)])
def test_the_weight_of_fakes_grows_with_the_pixels(size, expected):
    widths = (4,) * (size.bit_length() - 3)
    with torch.device("meta"):
        assert build("si-vae", {"size": size, "widths": widths}, {}).beta_neg == expected
        assert build("si-vae", {"size": size, "widths": widths, "beta_neg": 256.0}, {}).beta_neg == 256


def test_the_paper_preset_is_the_ra_authors_baseline():
    preset = detector_class("si-vae").PRESETS["paper"]
    assert (preset.recipe.learning_rate, preset.recipe.batch, preset.recipe.epochs) == (5e-5, 8, 1500)
    with torch.device("meta"):
        si = build("si-vae", preset.settings, preset.score)
    assert (si.config.beta_rec, si.config.beta_kl, si.beta_neg, si.config.sigmoid) == (0.5, 1.0, 128, True)
    assert si.score.name == "residual"


def test_what_is_ras_alone_is_not_a_setting():
    with pytest.raises(ConfigError, match=r"si-vae has no setting 'reversed_weight'"):
        small(reversed_weight=0.1)
