import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from salus.core.errors import ConfigError
from salus.detectors import Recipe, build, detector_class, features
from salus.detectors.features import joined, nearest
from salus.detectors.patchcore import PatchCore, coreset, projection
from salus.nets.features import widest
from tests.conftest import discs

SMALL = {"size": 32, "trunk": "alexnet", "enlarge": 64, "bank": 60}


def small(**settings) -> PatchCore:
    return build("patchcore", {**SMALL, **settings}, {}).eval()


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(discs(count, seed=seed))


def learn(method: PatchCore, *batches: torch.Tensor, seed: int = 0) -> PatchCore:
    torch.manual_seed(seed)
    for batch in batches:
        method.training_step(batch, None, 0.0)
    return method


def filled(rows: torch.Tensor, **settings) -> PatchCore:
    """With a bank of our own making: `rows` (m, 2), followed by zeros."""
    method = small(bank=len(rows), **settings)
    method.bank.zero_()
    method.bank[:, :2] = rows
    method.filled.fill_(len(rows))
    return method


def padded(point: list[float]) -> torch.Tensor:
    return torch.nn.functional.pad(torch.tensor([point]), (0, 446))


def test_a_patch_averages_its_neighbours_and_nothing_beyond_the_border():
    layer = torch.rand(1, 2, 5, 5)
    rows = joined([layer], neighbourhood=3, mode="bilinear")[0].view(5, 5, 2)
    torch.testing.assert_close(rows[2, 3], layer[0, :, 1:4, 2:5].mean((1, 2)))
    torch.testing.assert_close(rows[0, 0], layer[0, :, :2, :2].mean((1, 2)))
    torch.testing.assert_close(joined([layer], neighbourhood=1, mode="bilinear")[0].T.view(2, 5, 5), layer[0])


def test_two_levels_lie_side_by_side_the_coarse_one_interpolated():
    fine, coarse = torch.rand(1, 3, 4, 4), torch.tensor([[[[0.0, 4.0]] * 2]])
    rows = joined([fine, coarse], neighbourhood=1, mode="bilinear")
    assert rows.shape == (1, 16, 4)
    assert rows[0, :4, 3].tolist() == [0, 1, 3, 4]  # halfway between cells, the border repeated


def test_nearest_agrees_with_brute_force_in_double_precision():
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(300, 20)) + 50  # far from the origin, where a product loses digits
    rows = bank[:40] + rng.normal(size=(40, 20)) * 1e-2
    expected = np.sort(cdist(rows, bank, "sqeuclidean"), 1)[:, :4]
    distances, where = nearest(torch.tensor(rows).float(), torch.tensor(bank).float(), 4)
    np.testing.assert_allclose(distances, expected, rtol=5e-3)
    assert where[:, 0].tolist() == list(range(40))


def test_nearest_is_the_same_in_pieces(monkeypatch):
    rows, bank = torch.rand(50, 8), torch.rand(70, 8)
    whole = nearest(rows, bank, 3)
    monkeypatch.setattr(features, "AT_ONCE", 70 * 7)
    for a, b in zip(whole, nearest(rows, bank, 3), strict=True):
        torch.testing.assert_close(a, b)


def greedy(rows: np.ndarray, first: int, count: int) -> list[int]:
    """Algorithm 1 as it reads."""
    chosen = [first]
    while len(chosen) < count:
        chosen.append(int(cdist(rows, rows[chosen]).min(1).argmax()))
    return chosen


def test_the_coreset_is_greedy_k_centre():
    rows = torch.rand(80, 5, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    chosen, radius = coreset(rows, 12)
    assert chosen.tolist() == greedy(rows.numpy(), int(chosen[0]), 12)
    assert radius.item() == pytest.approx(cdist(rows, rows[chosen]).min(1).max(), rel=1e-4)


def test_the_coreset_takes_one_of_each_cluster_however_rare():
    many = torch.randn(500, 2) * 0.01
    rows = torch.cat([many, many[:20] + 5, torch.tensor([[0.0, -9.0]])])
    chosen, _ = coreset(rows, 3)
    assert sorted((chosen >= 500).int() + (chosen >= 520).int()) == [0, 1, 2]


def test_equal_patches_are_not_taken_twice():
    chosen, radius = coreset(torch.ones(10, 3), 7)
    assert len(chosen.unique()) == 7
    assert radius == 0


def test_the_projection_nearly_keeps_distances():
    rows = torch.randn(60, 448, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    small_rows = projection(rows, 128)
    assert small_rows.shape == (60, 128)
    ratio = torch.pdist(small_rows) / torch.pdist(rows)
    assert ratio.mean().item() == pytest.approx(1, abs=0.02)
    assert ratio.std() < 0.1
    assert projection(rows, 448) is rows


def test_the_bank_keeps_its_size_and_holds_patches_as_they_are():
    x = images(24)
    method = learn(small(), *x.split(8))
    assert method.bank.shape == (60, 448)
    assert int(method.filled) == 60
    there = method.rows(x).flatten(0, 1)
    assert nearest(method.bank, there)[0].max() < 1e-3
    assert len(method.bank.unique(dim=0)) == 60


def test_what_came_first_is_not_forgotten():
    odd = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    method = learn(small(), odd, *images(40).split(8))
    before, after = small(), method
    learn(before, *images(40).split(8))
    assert after.detect(odd).score.max() < 0.7 * before.detect(odd).score.min()


def test_the_streamed_bank_covers_as_well_as_one_made_at_once():
    x = images(40)
    rows = small().rows(x).flatten(0, 1)
    radii = [nearest(rows, learn(small(), *x.split(n)).bank)[0].max().sqrt() for n in (40, 8)]
    assert radii[1] < 1.5 * radii[0]


def test_the_map_is_0_where_a_patch_is_in_the_bank():
    x = images(1)
    method = learn(small(bank=49), x)
    assert method.detect(x).map.max() < 1e-2
    assert method.detect(images(1, seed=1)).map.min() > 0


def test_equation_7_by_hand():
    # Patch (3, 0); nearest (2, 0), at 1; among its 3 nearest are also (1, 0), at 2, and (0, 0), at 3.
    method = filled(torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [9.0, 9.0]]), neighbours=3)
    weight = method.weight(padded([3.0, 0.0]), method.bank, torch.tensor([2]))
    assert weight.item() == pytest.approx(1 - math.e / (math.e + math.e**2 + math.e**3))


def test_equation_7_survives_large_distances():
    method = filled(torch.tensor([[0.0, 0.0], [500.0, 0.0], [1000.0, 0.0]]), neighbours=3)
    assert method.weight(padded([900.0, 0.0]), method.bank, torch.tensor([2])).item() == pytest.approx(1)


def test_a_lonely_neighbour_weighs_more_than_a_common_one():
    common = filled(torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1]]), neighbours=3)
    lonely = filled(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]), neighbours=3)
    one, other = (m.weight(padded([-1.0, -1.0]), m.bank, torch.tensor([0])) for m in (common, lonely))
    assert other > one


def test_the_score_is_the_weighted_distance_of_the_worst_patch():
    x = images(3, seed=1)
    plain, weighted = (learn(small(neighbours=n), images(16)) for n in (0, 9))
    distances = nearest(plain.rows(x).flatten(0, 1), plain.bank)[0].sqrt().view(3, -1)
    torch.testing.assert_close(plain.detect(x).score, distances.amax(1))
    assert (weighted.detect(x).score <= plain.detect(x).score).all()


def test_squared_is_the_square():
    x = images(3, seed=1)
    plain, squared = (learn(small(neighbours=0, distance=how), images(16)) for how in ("plain", "squared"))
    torch.testing.assert_close(squared.detect(x).score, plain.detect(x).score.square())


def test_fewer_patches_than_the_bank_holds_is_an_error_that_says_what_to_set():
    recipe = Recipe(epochs=1, batch=2, learning_rate=1.0)
    with pytest.raises(ConfigError, match=r"holds 100 patches, but 2 healthy images give 98\. Set bank=98 or less"):
        small(bank=100).check(recipe, images=3, validation=1)
    small(bank=98).check(recipe, images=3, validation=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neighbours": 1}, "neighbours: is 0 or 2 at least"),
        ({"bank": 0}, "bank: Input should be greater"),
        ({"bank": 10**10}, r"10000000000 patches of 448 channels take 16689\.3 GiB.* Lower bank"),
        ({"neighbourhood": 2}, "neighbourhood: .* an even square has no middle"),
        ({"distance": "cosine"}, "distance: Input should be 'plain' or 'squared'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        small(**settings)


def test_memory_is_as_the_page_says():
    assert 4 * detector_class("patchcore").Config().kept()[0] == 1_216_000


def test_a_batch_that_the_trunk_cannot_hold_is_refused_before_training(monkeypatch):
    # VGG16's widest layers are the first ones: 64 channels in and 64 out at full size. Lite0's is its first expansion.
    assert widest("vgg16", 224) == 2 * 64 * 224**2
    assert widest("efficientnet_lite0", 224) == 2 * 96 * 112**2
    monkeypatch.setattr(features, "memory", lambda: 2**30)
    large = small(size=1024, trunk="vgg16", weights="random", bank=100)
    recipe = Recipe(epochs=1, batch=4, learning_rate=1.0)
    with pytest.raises(ConfigError, match=r"^4 images of 1024 pixels .* 2\.0 GiB in vgg16, .* 1\.0 GiB .* Lower"):
        large.check(recipe, images=8, validation=1)
    large.check(recipe, images=2, validation=1)
    assert large.at_once("cpu") == 1  # of 1024 pixels half a GiB each
    with pytest.raises(ConfigError, match=r"^4 images"):  # validated by fours
        large.check(recipe, images=2, validation=8)
    assert small(size=64, enlarge=224).at_once("cpu") == 32


# The floor.


def test_the_floor_says_that_it_is_random_and_cannot_be_anything_else():
    floor = build("random-features", detector_class("random-features").PRESETS["tiny"].settings, {})
    assert floor.FAMILY == "floor"
    assert floor.judged_by == "alexnet-random"
    with pytest.raises(ConfigError, match="weights: Input should be 'random'"):
        build("random-features", {"weights": "pretrained"}, {})
