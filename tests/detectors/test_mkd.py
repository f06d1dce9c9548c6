import copy

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cosine
from torch import nn

from salus.core.errors import ConfigError, WeightsError
from salus.detectors import build, detector_class
from salus.detectors.mkd import MKD, POOLS, STUDENTS, Student, coloured, noise_deviation
from salus.nets import weights
from salus.nets.trunks import build_trunk
from salus.nets.weights import PRETRAINED
from tests.conftest import needs_weights


@pytest.fixture(scope="module")
def mkd() -> MKD:
    """With random weights on both sides: these tests ask what is computed, not how well it finds anything."""
    torch.manual_seed(0)
    return build("mkd", {"size": 32, "teacher": "random", "copies": 2}, {}).eval()


def variant(mkd: MKD, **settings) -> MKD:
    """The same networks under other settings."""
    other = copy.copy(mkd)
    other.config = detector_class("mkd").Config(**{"size": 32, "teacher": "random", "copies": 2, **settings})
    return other


def picture(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed))


def judged(mkd: MKD, seen: torch.Tensor, student: nn.Module | None = None) -> torch.Tensor:
    """(B,) image score, written out: pools 3 to 5."""
    total = torch.zeros(len(seen))
    for a, b in list(zip(mkd.score.teacher(seen), (student or mkd.student)(seen), strict=True))[1:]:
        a, b = a.flatten(1), b.flatten(1)
        total = total + 1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)) + 0.01 * ((a - b) ** 2).mean(1)
    return total


def gradient(mkd: MKD, seen: torch.Tensor, student: nn.Module | None = None) -> torch.Tensor:
    seen = seen.clone().requires_grad_()
    return torch.autograd.grad(judged(mkd, seen, student).sum(), seen)[0]


@pytest.mark.parametrize(("student", "parameters"), [("small", 343_984), ("equal", 14_715_968)])
def test_students_have_as_many_parameters_as_published(student, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in Student(STUDENTS[student]).parameters()) == parameters


@pytest.mark.parametrize("student", STUDENTS)
def test_student_and_teacher_meet_at_pools_two_to_five(student):
    with torch.device("meta"):
        seen = torch.rand(1, 3, 128, 128)
        pairs = zip(build_trunk("vgg16", taps=POOLS)(seen), Student(STUDENTS[student])(seen), strict=True)
        shapes = [(a.shape[1:], b.shape[1:]) for a, b in pairs]
    assert shapes == [((c, s, s), (c, s, s)) for c, s in ((128, 32), (256, 16), (512, 8), (512, 4))]


def test_every_convolution_of_a_student_is_normalised_but_the_last_of_a_stage():
    stages = Student(STUDENTS["small"]).stages
    kinds = ["".join(type(layer).__name__[0] for layer in stage) for stage in stages]
    assert kinds == ["CBRCRM", "CBRCRM", "CBRCBRCRM", "CBRCBRCRM", "CBRCBRCRM"]
    assert all(m.bias is None for m in stages.modules() if isinstance(m, nn.Conv2d))


def test_the_loss_is_cosine_distance_plus_a_hundredth_of_the_squared_error_at_four_points(mkd):
    seen = coloured(picture())
    with torch.no_grad():
        pairs = [(a.numpy(), b.numpy()) for a, b in zip(mkd.score.teacher(seen), mkd.student(seen), strict=True)]
        loss = mkd.validation_loss(picture())
    for image in range(2):
        points = [(a[image].ravel(), b[image].ravel()) for a, b in pairs]
        by_hand = sum(cosine(a, b) + 0.01 * np.mean((a - b) ** 2) for a, b in points)
        assert loss[image].item() == pytest.approx(by_hand, rel=1e-4)


def test_a_student_like_its_teacher_has_nothing_left_to_lose(mkd):
    taught = mkd.score.teacher(coloured(picture()))
    assert mkd.score(taught, taught).abs().max() < 1e-5


def test_the_image_score_leaves_out_the_first_point(mkd):
    with torch.no_grad():
        torch.testing.assert_close(mkd.detect(picture()).score, judged(mkd, coloured(picture())))


def test_grey_is_three_equal_channels_as_they_are():
    x = picture()
    assert torch.equal(coloured(x), torch.cat([x, x, x], 1))


def test_a_raw_map_is_the_gradient_summed_over_channels_without_signs(mkd):
    x = picture()
    seen = variant(mkd, sigma=0).detect(x).map
    torch.testing.assert_close(seen, gradient(mkd, coloured(x)).abs().sum(1, keepdim=True))
    assert (gradient(mkd, coloured(x)).sum(1, keepdim=True).abs() < 0.9 * seen).any()  # channels disagree


def test_the_gaussian_over_the_map_scales_with_the_size(mkd):
    raw, smooth = (variant(mkd, sigma=sigma).detect(picture(1)).map[0, 0].numpy() for sigma in (0, 4))
    np.testing.assert_allclose(smooth, gaussian_filter(raw, 4 * 32 / 128), rtol=1e-4)


def test_maps_of_different_images_keep_their_scale(mkd):
    x = torch.cat([picture(1), 0.5 + 0.01 * picture(1)])
    low, high = mkd.detect(x).map.amin((1, 2, 3)), mkd.detect(x).map.amax((1, 2, 3))
    assert low.min() > 0
    assert high[0] != pytest.approx(high[1].item(), rel=0.01)


def test_a_map_depends_on_its_image_alone(mkd):
    x = picture(3)
    for way in ("gradient", "smoothgrad", "guided"):
        detector = variant(mkd, map=way)
        torch.testing.assert_close(detector.detect(x[1:2]).map, detector.detect(x).map[1:2], rtol=1e-3, atol=1e-6)


def test_smoothgrad_is_the_mean_gradient_of_noisy_copies(mkd):
    smooth, x = variant(mkd, map="smoothgrad", sigma=0), picture()
    noises = list(smooth.noises(x))
    assert len(noises) == 2
    mean = sum(gradient(mkd, coloured(x) + noise) for noise in noises) / 2
    torch.testing.assert_close(smooth.detect(x).map, mean.abs().sum(1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert torch.equal(smooth.detect(x).score, mkd.detect(x).score)  # of the image itself


def test_smoothgrads_noise_is_a_twentieth_of_each_images_range(mkd):
    x = torch.cat([picture(1), 0.3 * picture(1)])
    noise = torch.stack(list(variant(mkd, map="smoothgrad", copies=20).noises(x)))
    extent = x.amax((1, 2, 3)) - x.amin((1, 2, 3))
    torch.testing.assert_close(noise.std((0, 2, 3, 4)), 0.05 * extent, rtol=0.02, atol=0)


def test_the_release_divides_by_the_range_and_squares():
    x = torch.zeros(3, 1, 32, 32)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = 1.0, 0.5
    assert noise_deviation(x, "code").flatten().tolist() == pytest.approx([0.0025, 0.01, 1.0])  # the last is flat
    assert noise_deviation(x, "method").flatten().tolist() == pytest.approx([0.05, 0.025, 0.0])


def test_smoothgrad_draws_the_same_noise_each_time_and_nothing_from_elsewhere(mkd):
    smooth, before = variant(mkd, map="smoothgrad"), torch.get_rng_state()
    assert torch.equal(smooth.detect(picture()).map, smooth.detect(picture()).map)
    assert torch.equal(torch.get_rng_state(), before)


class Rectifier(torch.autograd.Function):
    """ReLU whose way back lets through only what is positive there and was positive here."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (gradient > 0) * (ctx.saved_tensors[0] > 0)


class Guided(nn.Module):
    def forward(self, x):
        return Rectifier.apply(x)


def test_guided_backpropagation_stops_negative_gradients_at_the_students_relus(mkd):
    student, x = copy.deepcopy(mkd.student), picture()
    for stage in student.stages:
        for number, layer in enumerate(stage):
            if isinstance(layer, nn.ReLU):
                stage[number] = Guided()
    expected = gradient(mkd, coloured(x), student).abs().sum(1, keepdim=True)
    torch.testing.assert_close(variant(mkd, map="guided", sigma=0).detect(x).map, expected)
    assert not torch.allclose(variant(mkd, sigma=0).detect(x).map, expected)


def test_guidance_ends_with_the_map(mkd):
    def learning() -> list[torch.Tensor]:
        return list(torch.autograd.grad(mkd.validation_loss(picture()).sum(), list(mkd.student.parameters())))

    before = learning()
    variant(mkd, map="guided").detect(picture())
    assert all(torch.equal(a, b) for a, b in zip(before, learning(), strict=True))


@pytest.mark.parametrize("way", ["gradient", "smoothgrad", "guided"])
def test_looking_leaves_nothing_behind(mkd, way):
    before, x = {key: value.clone() for key, value in mkd.state_dict().items()}, picture()
    with torch.no_grad():
        seen = variant(mkd, map=way).detect(x)
        assert not torch.is_grad_enabled()
    assert (seen.map > 0).any()
    assert seen.restored is None
    assert not any(value.requires_grad for value in (seen.map, seen.score, x))
    assert all(parameter.grad is None for parameter in mkd.parameters())
    assert all(torch.equal(value, before[key]) for key, value in mkd.state_dict().items())


def test_half_precision_changes_a_score_little(mkd):
    exact = mkd.detect(picture())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        seen = mkd.detect(picture())
    assert seen.score.dtype == seen.map.dtype == torch.float32
    torch.testing.assert_close(seen.score, exact.score, rtol=0.01, atol=0)


def test_a_teacher_does_not_learn_and_is_not_saved(mkd):
    learner = copy.deepcopy(mkd).train()
    assert learner.student.training
    assert not any(module.training for module in learner.score.modules())
    before = {key: value.clone() for key, value in learner.score.state_dict().items()}

    def update(part, loss, *, keep_graph=False):
        assert part == "student"
        loss.backward()
        assert all((p.grad is not None) == p.requires_grad for p in learner.parameters())

    learner.training_step(picture(), update, 0.0)
    assert all(torch.equal(value, before[key]) for key, value in learner.score.state_dict().items())
    assert {id(p) for p in learner.parts()["student"]} == {id(p) for p in learner.parameters() if p.requires_grad}
    assert {key.split(".")[0] for key in learner.learned()} == {"student"}


def test_a_random_teacher_is_named_and_the_same_each_time(mkd):
    assert mkd.score.name == "vgg16-random-gradient"
    torch.manual_seed(7)
    again = build("mkd", {"size": 32, "teacher": "random", "copies": 2}, {}).eval()
    assert again.score.digest == mkd.score.digest
    assert not torch.equal(again.student.stages[0][0].weight, mkd.student.stages[0][0].weight)
    again.load_state_dict(mkd.learned(), strict=False)
    assert torch.equal(again.detect(picture()).map, mkd.detect(picture()).map)


@needs_weights("vgg16-tv")
def test_the_teacher_has_imagenets_weights():
    score = build("mkd", {"size": 32, "map": "guided"}, {}).score
    assert (score.name, score.digest) == ("vgg16-tv-guided", PRETRAINED["vgg16-tv"].digest)
    first = weights.find("vgg16-tv")["features.0.weight"]
    assert torch.equal(score.teacher.state_dict()["features.0.weight"], first)


def test_missing_weights_are_an_error_and_never_replaced(tmp_path, monkeypatch):
    monkeypatch.delenv("SALUS_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(weights, "installed", lambda name: iter(()))
    with pytest.raises(WeightsError, match=r"(?s)pretrained weights are missing.*salus weights fetch vgg16-tv"):
        build("mkd", {"size": 32}, {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 72}, r"^mkd: size must be a multiple of 32, not 72; 64 and 96 are the nearest"),
        ({"size": 16}, r"not 16; 32 is the nearest"),
        ({"teacher": "vgg19"}, r"mkd: teacher: Input should be 'vgg16-tv' or 'random', got 'vgg19'"),
        ({"student": "large"}, r"mkd: student: Input should be 'small' or 'equal'"),
        ({"map": "gradcam"}, r"mkd: map: Input should be 'gradient', 'smoothgrad' or 'guided'"),
        ({"mse_weight": -1}, r"mkd: mse_weight: Input should be greater than or equal to 0"),
        ({"copies": 0}, r"mkd: copies: Input should be greater than or equal to 1"),
        ({"noise": "paper"}, r"mkd: noise: Input should be 'method' or 'code'"),
        ({"lamda": 0.5}, r"mkd has no setting 'lamda'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build("mkd", settings, {})


def test_the_paper_preset_is_the_release_on_medical_images():
    preset = detector_class("mkd").PRESETS["paper"]
    config = detector_class("mkd").Config(**preset.settings)
    recipe = preset.recipe
    assert (recipe.epochs, recipe.batch, recipe.learning_rate, recipe.select) == (601, 64, 1e-3, "last")
    assert (config.size, config.student, config.mse_weight, config.sigma, config.copies) == (128, "small", 0.01, 4, 50)
