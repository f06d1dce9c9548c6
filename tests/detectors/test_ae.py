import pytest
import torch
import torch.nn.functional as F

from salus.detectors import build, detector_class
from salus.detectors.ae import AE


def small(**settings) -> AE:
    torch.manual_seed(0)
    return build("ae", {"size": 32, "latent": 3, "hidden": 12, "widths": (4, 6, 8, 8), **settings}, {"name": "squared"})


def parameters(**settings) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build("ae", settings, {"name": "squared"}).parameters())


@pytest.mark.parametrize("latent", [1, 4, 16, 128, 1024])
def test_the_number_of_parameters_grows_with_the_code_as_published(latent):
    assert parameters(latent=latent) == 2_318_400 + 2049 * latent


def test_larger_and_spatial_networks_have_the_published_sizes():
    assert parameters(size=128) == 8_645_712
    assert parameters(code="spatial") == 382_016


def test_a_spatial_code_has_its_entries_at_each_place():
    ae = small(code="spatial").eval()
    with torch.no_grad():
        assert ae.code(torch.rand(2, 1, 32, 32)).shape == (2, 3, 2, 2)
        assert ae.restore(torch.rand(2, 1, 32, 32)).shape == (2, 1, 32, 32)


def test_the_loss_is_the_mean_squared_error_between_minus_one_and_one():
    ae, x = small(), torch.rand(5, 1, 32, 32)
    torch.testing.assert_close(ae.losses(x)["rec"], F.mse_loss(ae.decoder(ae.encoder(2 * x - 1)), 2 * x - 1))


def test_the_map_is_a_quarter_of_the_published_one_where_nothing_is_clamped():
    ae, x = small().eval(), torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        unclamped, seen = ae.unclamped(x), ae.detect(x)
        inside = (unclamped > 0) & (unclamped < 1)
        published = (ae.reconstruct(x) - (2 * x - 1)).square()
    assert inside.float().mean() > 0.9
    torch.testing.assert_close(4 * seen.map[inside], published[inside])
    torch.testing.assert_close(seen.score, seen.map.mean((1, 2, 3)))


def test_the_paper_preset_is_the_published_recipe():
    preset = detector_class("ae").PRESETS["paper"]
    recipe = preset.recipe
    assert (recipe.learning_rate, recipe.batch, recipe.epochs, recipe.select) == (1e-3, 64, 250, "last")
    assert preset.score == {"name": "squared"}
