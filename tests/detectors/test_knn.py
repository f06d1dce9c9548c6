import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from salus.core.errors import ConfigError
from salus.detectors import Recipe, build, detector_class
from salus.detectors.knn import KNN
from tests.conftest import discs

SMALL = {"size": 32, "trunk": "alexnet", "enlarge": 64, "images": 20}


def small(**settings) -> KNN:
    return build("knn", {**SMALL, **settings}, {}).eval()


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(discs(count, seed=seed))


def learn(method: KNN, *batches: torch.Tensor) -> KNN:
    torch.manual_seed(0)
    for batch in batches:
        method.training_step(batch, None, 0.0)
    return method


def test_an_images_vector_is_the_last_layers_mean_over_all_places():
    method, x = small(), images(2)
    whole, places = method.rows(x)
    torch.testing.assert_close(whole, method.features(x)[-1].mean((2, 3)))
    assert whole.shape == (2, 256)
    assert places.shape == (2, 49, 448)


@pytest.mark.parametrize("neighbours", [1, 2, 5])
def test_the_score_is_the_mean_squared_distance_to_the_nearest_images(neighbours):
    method = learn(small(neighbours=neighbours), images(12), images(8, seed=1))
    x = images(4, seed=2)
    oracle = NearestNeighbors(n_neighbors=neighbours).fit(method.whole.numpy())
    expected = (oracle.kneighbors(method.rows(x)[0].numpy())[0] ** 2).mean(1)
    np.testing.assert_allclose(method.detect(x).score, expected, rtol=1e-4)
    np.testing.assert_allclose(method.validation_loss(x), expected, rtol=1e-4)


def test_a_healthy_image_that_is_known_differs_nowhere():
    method = learn(small(neighbours=1), images(10))
    seen = method.detect(images(10)[:3])
    assert seen.score.max() < 1e-3
    assert seen.map.max() < 1e-3


def test_a_patch_may_be_healthy_at_another_place():
    method = learn(small(), images(5))
    places = method.places[2][torch.randperm(49)]
    assert method.unlike(places, torch.tensor([2])).max() < 1e-3


def test_the_map_asks_only_the_most_similar_images():
    method = learn(small(gallery=2), images(10))
    x = images(1, seed=1)
    whole, places = method.rows(x)
    order = (whole - method.whole[:10]).square().sum(1).argsort()
    gallery = method.places[order[:2]].flatten(0, 1)
    expected = torch.cdist(places[0].double(), gallery.double()).amin(1).square()
    found = method.unlike(places[0], method.alike(whole, 2)[1][0])
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(method.detect(x).map, method.picture(found[None]))


def test_several_correspondences_are_averaged():
    method = learn(small(correspondences=3), images(6))
    places, alike = method.rows(images(1, seed=1))[1][0], torch.arange(6)
    table = torch.cdist(places.double(), method.places[:6].flatten(0, 1).double()).square()
    expected = table.sort(1).values[:, :3].mean(1)
    torch.testing.assert_close(method.unlike(places, alike), expected.float(), rtol=1e-4, atol=1e-3)


def test_empty_places_of_the_bank_are_no_images():
    method = learn(small(gallery=50), images(4))
    assert method.filled == 4
    distances, alike = method.alike(method.rows(images(2, seed=1))[0], 50)
    assert distances.shape == (2, 4)
    assert alike.max() < 4


def test_of_more_images_than_fit_each_is_kept_with_the_same_chance():
    method = small(images=3)
    method.rows = lambda x: (x.mean((2, 3)).expand(-1, 256), torch.zeros(len(x), 49, 448))
    numbered = torch.arange(1.0, 11).view(10, 1, 1, 1).expand(10, 1, 4, 4)
    kept = torch.zeros(11)
    torch.manual_seed(0)
    for _ in range(600):
        method.seen.zero_()
        method.collect(numbered[:6])
        method.collect(numbered[6:])
        kept[method.whole[:, 0].long()] += 1
    assert kept[0] == 0
    assert kept.sum() == 1800
    assert (kept[1:] / 600 - 0.3).abs().max() < 0.08  # 4 standard deviations


def test_fewer_images_than_neighbours_is_an_error():
    with pytest.raises(ConfigError, match=r"looks for 5 neighbours, but keeps 2 of 3 healthy images\. Set"):
        small(neighbours=5).check(Recipe(epochs=1, batch=2, learning_rate=1.0), images=3, validation=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": 10**9}, r"1000000000 images of 49 patches take \d+\.\d GiB.* Lower images or enlarge"),
        ({"neighbours": 0}, "neighbours: Input should be greater"),
        ({"neighbours": 21}, "neighbours is 21, more than the 20 images kept"),
        ({"correspondences": 50, "gallery": 1}, "correspondences is 50, more than an image's 49 patches"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        small(**settings)


def test_memory_is_as_the_page_says():
    kind = detector_class("knn")
    assert 4 * kind.Config(**kind.PRESETS["fast"].settings).kept()[0] == 106_598_400
