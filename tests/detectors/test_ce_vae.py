import pytest
import torch
import torch.nn.functional as F

from salus.core.errors import ConfigError
from salus.detectors import build, detector_class
from salus.detectors.ce_vae import CEVAE, masked
from salus.detectors.vae import VAE
from salus.detectors.variational import kl
from salus.scores import build_score

SMALL = {"size": 16, "latent": 3, "widths": (4, 6)}
CEAE = {**detector_class("ce-vae").PRESETS["ceae"].settings, "size": 32, "widths": (4, 4, 6, 6)}
SIDES = (25 / 128, 50 / 128)


def small(name: str = "ce-vae", **settings) -> VAE:
    """With weights so large that codes, divergences and restorations differ from nothing."""
    torch.manual_seed(0)
    vae = build(name, {**SMALL, **settings}, {"name": "residual"})
    with torch.no_grad():
        for p in vae.parameters():
            p.mul_(3)
    return vae


def loss_of(vae: VAE, x: torch.Tensor) -> torch.Tensor:
    """What a training step asks to be minimised."""
    asked = []
    torch.manual_seed(1)
    vae.train().training_step(x, lambda part, loss, keep_graph=False: asked.append(loss), 0.5)
    (loss,) = asked
    return loss.detach()


def extent(cut: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of the only rectangle in (H, W)."""
    rows, columns = cut.any(1), cut.any(0)
    assert cut.sum() == rows.sum() * columns.sum(), "it is to be a whole rectangle"
    assert rows.nonzero().diff(dim=0).eq(1).all()
    assert columns.nonzero().diff(dim=0).eq(1).all()
    return int(rows.sum()), int(columns.sum())


def test_one_rectangle_is_cut_from_each_image_and_nothing_else_changes():
    x = torch.rand(200, 1, 64, 64) + 2
    seen = masked(x, 1, SIDES, 0.5)
    cut = seen == 0.5
    assert torch.equal(seen[~cut], x[~cut])
    extents = [extent(image[0]) for image in cut]
    assert {side for pair in extents for side in pair} == set(range(12, 26))
    assert len(set(extents)) > 50


def test_rectangles_are_the_ra_authors_at_128_pixels():
    config = small(size=128, widths=(4,) * 5).config
    cut = masked(torch.ones(300, 1, 128, 128), config.rectangles, config.sides, config.fill) == 0
    sides = {side for image in cut for side in extent(image[0])}
    assert (min(sides), max(sides)) == (25, 50)


def test_every_pixel_can_be_cut_and_every_seed_cuts_again_alike():
    x = torch.ones(2000, 1, 16, 16)
    torch.manual_seed(3)
    first = masked(x, 1, SIDES, 0.0)
    assert (first == 0).any(0).all()
    torch.manual_seed(3)
    assert torch.equal(masked(x, 1, SIDES, 0.0), first)
    assert not torch.equal(masked(x, 1, SIDES, 0.0), first)


def test_more_rectangles_cut_more():
    x = torch.ones(500, 1, 32, 32)
    one, three = ((masked(x, n, (0.25, 0.25), 0.0) == 0).float().mean() for n in (1, 3))
    assert one == 1 / 16
    assert 2 / 16 < three < 3 / 16  # some overlap


def test_the_cut_image_must_become_the_whole_one():
    """Baur et al.'s released code takes the cut image as its target, which asks for a copy."""
    ce, x = small(), torch.rand(5, 1, 16, 16)
    plain = loss_of(small("vae"), x)
    torch.manual_seed(1)
    torch.randn(5, 3)  # the code of the whole image is drawn first
    mean = ce.encoder(masked(x, 1, SIDES, 0.0))[:, :3]
    expected = 0.5 * (ce.decoder(mean) - x).square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(loss_of(ce, x) - plain, expected.detach(), rtol=1e-4, atol=0)


def test_without_its_weight_it_is_the_vae():
    x = torch.rand(5, 1, 16, 16)
    ce = small(beta_ce=0.0)
    assert loss_of(ce, x) == loss_of(small("vae"), x)
    assert set(ce.losses(x)) == {"rec", "kl"}


def test_to_detect_nothing_is_cut():
    x = torch.rand(5, 1, 16, 16)
    assert torch.equal(small().eval().restore(x), small("vae").eval().restore(x))


def test_the_ra_authors_weights_are_three_settings():
    pixels = 16 * 16
    ce = small(beta_rec=1 / pixels, beta_ce=1 / pixels, latent_train="mean")
    x = torch.rand(5, 1, 16, 16)
    torch.manual_seed(1)
    cut = masked(x, 1, SIDES, 0.0)
    mean, log_var = ce.encode(x)
    expected = kl(mean, log_var).mean() + F.mse_loss(ce.decoder(mean), x)
    expected = expected + F.mse_loss(ce.decoder(ce.encode(cut)[0]), x)
    torch.testing.assert_close(loss_of(ce, x), expected.detach())


def test_ceae_is_a_mean_squared_error_of_cut_images_alone():
    ce, x = build("ce-vae", CEAE, {"name": "residual"}).train(), torch.rand(5, 1, 32, 32)
    torch.manual_seed(1)
    cut = masked(2 * x - 1, 1, (0.155, 0.155), -1.0)
    assert (cut == -1).sum() == 5 * 5 * 5  # 2.4 % of the area
    with torch.no_grad():
        expected = F.mse_loss(ce.decoder(ce.encoder(cut)[:, :16]), 2 * x - 1)
    before = int(ce.encoder[1].num_batches_tracked)
    torch.testing.assert_close(loss_of(ce, x), expected)
    assert int(ce.encoder[1].num_batches_tracked) == before + 1, "whole images are not to move the norms"


def test_ceae_cuts_ten_pixels_of_64_and_has_the_size_of_the_vae():
    preset = detector_class("ce-vae").PRESETS["ceae"]
    with torch.device("meta"):
        ce = build("ce-vae", preset.settings, preset.score)
    assert sum(p.numel() for p in ce.parameters()) == 2_367_584  # 16,400 of them give a log-variance no one uses
    cut = masked(torch.ones(3, 1, 64, 64), ce.config.rectangles, ce.config.sides, ce.config.fill)
    assert [extent(image[0]) for image in cut == 0] == [(10, 10)] * 3


def test_the_slope_of_the_error_is_not_nil_where_only_cut_images_count():
    ce = build("ce-vae", CEAE, {"name": "residual"}).eval()
    x = torch.rand(3, 1, 32, 32)
    slopes = build_score("gradient", of="rec").compare(x, ce.restore(x).detach(), ce.terms)
    assert (slopes > 0).all()


def test_both_restorations_count_alike_unless_told_otherwise():
    assert small(beta_rec=0.2).config.beta_ce == 0.2
    assert small(beta_ce=0.7).config.beta_ce == 0.7
    assert isinstance(small(), CEVAE)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"beta_rec": 0.0}, r"nothing learns to restore: give beta_rec or beta_ce a weight"),
        ({"beta_rec": 0.0, "beta_ce": 0.0}, r"nothing learns to restore"),
        ({"sides": (0.4, 0.2)}, r"from the shortest to the longest, not from 0.4 to 0.2"),
        ({"sides": (0.2, 1.2)}, r"sides\.1.*less than or equal to 1"),
        ({"rectangles": 0}, r"rectangles.*greater than 0"),
        ({"fill": -1.0}, r"fill.*greater than or equal to 0"),
    ],
    ids=str,
)
def test_a_setting_that_does_not_fit_is_named(settings, match):
    with pytest.raises(ConfigError, match=match):
        small(**settings)


def test_the_paper_preset_is_the_ra_authors_network_and_rate():
    preset = detector_class("ce-vae").PRESETS["paper"]
    assert (preset.recipe.learning_rate, preset.recipe.batch, preset.recipe.epochs) == (5e-4, 8, 3000)
    with torch.device("meta"):
        ce = build("ce-vae", preset.settings, preset.score)
    assert sum(p.numel() for p in ce.parameters()) == 15_237_632
    assert (ce.config.beta_rec, ce.config.beta_kl, ce.config.beta_ce) == (0.5, 1, 0.5)
