import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import mahalanobis

from salus.core.errors import ConfigError, TrainingError, WeightsError
from salus.detectors import Recipe, build, detector_class, features
from salus.detectors.padim import PaDiM
from salus.nets import weights
from salus.training.plan import refuse_too_large
from tests.conftest import discs, needs_weights

SMALL = {"size": 32, "trunk": "alexnet", "enlarge": 64, "channels": 12}


def small(**settings) -> PaDiM:
    return build("padim", {**SMALL, **settings}, {}).eval()


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(discs(count, seed=seed))


def learn(padim: PaDiM, *batches: torch.Tensor) -> PaDiM:
    for batch in batches:
        padim.training_step(batch, None, 0.0)
    return padim


@pytest.fixture(scope="module")
def taught() -> PaDiM:
    return learn(small(), images(40))


@pytest.mark.parametrize("sizes", [(40,), (1, 39), (8, 8, 8, 16)])
def test_the_gaussians_are_those_of_all_images_whatever_the_batches(sizes):
    x = images(40)
    padim = learn(small(), *x.split(sizes))
    rows = padim.rows(x)
    for place in (0, 24, 48):
        together = rows[place].double().numpy()
        np.testing.assert_allclose(padim.mean[place], together.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(padim.spread[place] / 39, np.cov(together.T), rtol=1e-3, atol=1e-4)


def test_distances_are_mahalanobis_with_epsilon_on_the_diagonal(taught):
    x = images(3, seed=1)
    rows, found = taught.rows(x), taught.distances(taught.rows(x))
    for image, place in ((0, 0), (1, 24), (2, 48)):
        covariance = taught.spread[place].double().numpy() / 39 + 0.01 * np.eye(12)
        expected = mahalanobis(rows[place, image], taught.mean[place], np.linalg.inv(covariance))
        assert found[image, place].item() == pytest.approx(expected, rel=1e-4)


def test_finishing_keeps_what_is_seen_and_happens_once():
    padim = learn(small(), images(40))
    x = images(4, seed=1)
    before = padim.detect(x).map
    for _ in range(2):
        padim.finish_training()
        torch.testing.assert_close(padim.detect(x).map, before, rtol=1e-4, atol=1e-4)


def test_the_score_is_the_highest_place_of_the_map(taught):
    seen = taught.detect(images(3, seed=1))
    assert torch.equal(seen.score, seen.map.amax((1, 2, 3)))


def test_each_place_has_its_own_gaussian(taught):
    # A disc in the corner is made of patches that are healthy elsewhere.
    moved = torch.roll(images(8, seed=1), (12, 12), (2, 3))
    assert taught.detect(moved).score.min() > 2 * taught.detect(images(8, seed=1)).score.max()


def test_coarse_cells_are_repeated_on_the_fine_grid():
    fine, coarse = torch.zeros(1, 1, 4, 4), torch.arange(4.0).view(1, 1, 2, 2)
    rows = features.joined([fine, coarse], neighbourhood=1, mode="nearest")
    assert rows[0, :, 1].view(4, 4).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_the_choice_of_channels_is_the_seeds_alone():
    torch.manual_seed(1)
    first, second, other = small(), small(), small(seed=1)
    assert torch.equal(first.chosen, second.chosen)
    assert not torch.equal(first.chosen, other.chosen)
    assert len(first.chosen.unique()) == 12
    assert first.chosen.max() < 192 + 256


def test_the_map_is_smoothed_by_4_pixels_of_the_enlarged_image():
    padim = small(size=64, enlarge=224, trunk="alexnet")
    distances = torch.rand(1, padim.config.patches)
    sharp = small(size=64, enlarge=224, sigma=0.0).picture(distances)[0, 0]
    expected = gaussian_filter(sharp.numpy(), 4 * 64 / 224)
    np.testing.assert_allclose(padim.picture(distances)[0, 0], expected, atol=1e-5)


def test_memory_is_as_the_page_says():
    config = detector_class("padim").Config()
    assert 4 * config.kept()[0] == 31_673_600
    assert sum(v.nbytes for v in small().learned().values()) == pytest.approx(4 * small().config.kept()[0], abs=200)


@needs_weights("efficientnet_lite0")
def test_more_than_the_machine_can_hold_is_refused_before_anything_is_built(monkeypatch):
    monkeypatch.setattr(features, "memory", lambda: 50e6)
    said = r"784 places and 100 channels take 30 MiB, and 4 times .* saved, .* 48 MiB .* Lower channels"
    with pytest.raises(ConfigError, match=said):
        refuse_too_large("padim", {}, {})  # what is trained already can be opened
    monkeypatch.setattr(features, "memory", lambda: 20e6)
    with pytest.raises(ConfigError, match=r"take 30 MiB, but this machine has 19 MiB"):
        build("padim", {}, {})
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="needs two healthy training images or more"):
        build("padim", {}, {}).check(Recipe(epochs=1, batch=2, learning_rate=1.0), images=1, validation=1)
    with pytest.raises(ConfigError, match="Lower channels or enlarge"):
        build("padim", {"trunk": "vgg16", "enlarge": 4096, "channels": 768}, {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 449}, "channels is 449, but alexnet has only 448"),
        ({"epsilon": 0.0}, "epsilon: Input should be greater than 0"),
        ({"trunk": "resnet18"}, "trunk: Input should be 'efficientnet_lite0', 'vgg16' or 'alexnet'"),
        ({"size": 16, "enlarge": 32, "trunk": "alexnet"}, None),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    if message is None:  # the smallest that does
        assert small(**settings).config.side == 32
        return
    with pytest.raises(ConfigError, match=message):
        small(**settings)


def test_one_image_has_no_covariance():
    with pytest.raises(TrainingError, match="two healthy images at least, it saw 1"):
        learn(small(), images(1)).finish_training()


# What holds for every method on frozen features.


def test_a_pretrained_trunk_is_not_saved_with_the_model():
    assert set(small().learned()) == {"chosen", "seen", "mean", "spread", "finished"}


def test_random_weights_are_named_and_saved_for_nobody_else_has_them():
    random = learn(small(weights="random"), images(8))
    random.finish_training()
    torch.manual_seed(99)
    fresh = small(weights="random")
    assert random.judged_by == fresh.judged_by == "alexnet-random"
    x = images(2, seed=1)
    assert not torch.equal(fresh.features(x)[0], random.features(x)[0])
    fresh.load_state_dict(random.learned())
    assert torch.equal(fresh.detect(x).map, random.detect(x).map)


def test_missing_weights_are_an_error_and_never_random(tmp_path, monkeypatch):
    monkeypatch.delenv("SALUS_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(weights, "installed", lambda name: iter(()))
    with pytest.raises(WeightsError, match="salus weights fetch efficientnet_lite0"):
        build("padim", {}, {})


def test_a_second_process_would_learn_half_and_is_refused(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="train without torchrun"):
        learn(small(), images(2))


def test_half_precision_around_it_changes_nothing(taught):
    x = images(2, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        seen = taught.detect(x)
    assert torch.equal(seen.map, taught.detect(x).map)
