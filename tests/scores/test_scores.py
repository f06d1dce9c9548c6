import re

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.exposure import equalize_adapthist
from skimage.metrics import structural_similarity

from salus.core.errors import ConfigError
from salus.detectors import build
from salus.scores import SCORES, build_score
from salus.scores.residual import gaussian


def pair(side: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    x = gaussian_filter(rng.random((3, 1, side, side)), (0, 0, 2, 2))
    x = (x - x.min()) / np.ptp(x)
    restored = np.clip(x + gaussian_filter(rng.normal(0, 0.3, x.shape), (0, 0, 3, 3)), 0, 1)
    return torch.from_numpy(x).float(), torch.from_numpy(restored).float()


@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("shape", [(20, 9), (5, 4), (64, 64)])
def test_blur_is_scipys(sigma, shape):
    x = torch.rand(2, 1, *shape)
    expected = np.stack([gaussian_filter(v[0].numpy(), sigma)[None] for v in x])
    np.testing.assert_allclose(gaussian(x, sigma).numpy(), expected, atol=1e-6)


def test_residuals_by_hand():
    x, restored = torch.full((1, 1, 8, 8), 0.75), torch.full((1, 1, 8, 8), 0.25)
    assert build_score("residual")(x, restored).unique().item() == 0.5
    assert build_score("squared")(x, restored).unique().item() == 0.25
    torch.testing.assert_close(build_score("smoothed")(x, restored), torch.full_like(x, 0.5))


@pytest.mark.parametrize("settings", [{"name": "residual"}, {"name": "smoothed", "sigma": 0}])
def test_a_sign_keeps_what_is_brighter_or_darker_than_the_restoration_alone(settings):
    x, restored = torch.tensor([[[[0.75, 0.25, 0.5]]]]), torch.full((1, 1, 1, 3), 0.5)
    found = {sign: build_score(**settings, sign=sign)(x, restored).flatten().tolist() for sign in ("bright", "dark")}
    assert found == {"bright": [0.25, 0, 0], "dark": [0, 0.25, 0]}
    assert build_score(**settings, sign="both")(x, restored).flatten().tolist() == [0.25, 0.25, 0]


def test_the_sign_is_dropped_after_smoothing():
    x = ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float()[None, None]
    assert build_score("smoothed", sign="bright")(x, torch.full_like(x, 0.5))[..., 4:12, 4:12].max() < 0.02


def test_smoothing_before_the_sign_is_dropped_cancels_what_alternates():
    chequers = ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float()[None, None]
    restored = torch.full_like(chequers, 0.5)
    assert build_score("residual")(chequers, restored).mean() == 0.5
    assert build_score("smoothed")(chequers, restored)[..., 4:12, 4:12].max() < 0.02


@pytest.mark.parametrize("reading", ["code", "paper"])
def test_equation_5_is_the_published_product(reading):
    """Against the published way: scikit-image's CLAHE, two separate LPIPS maps, scipy's blur, one image at a time."""
    x, restored = pair()
    score = build_score("equation5", reading=reading)
    found = score(x, restored)
    for i in range(len(x)):
        even = [
            torch.from_numpy(equalize_adapthist(v[i, 0].numpy().astype(float))).float()[None, None]
            for v in (x, restored)
        ]
        perceived = [score.lpips.spatial(restored[i : i + 1], x[i : i + 1]), score.lpips.spatial(even[1], even[0])]
        smoothed = [gaussian_filter(p[0, 0].numpy(), 2) if reading == "code" else p[0, 0].numpy() for p in perceived]
        expected = (even[1] - even[0]).abs()[0, 0].numpy() * smoothed[0] * smoothed[1]
        np.testing.assert_allclose(found[i, 0].numpy(), expected, atol=2e-3 * expected.max())


def test_equation_5_does_not_see_a_global_change_of_brightness_and_contrast_in_its_residual():
    x, _ = pair()
    assert build_score("equation5")(x, 0.5 * x + 0.2).max() < 1e-3


@pytest.mark.parametrize("name", sorted(set(SCORES) - {"gradient"}))
def test_an_image_is_not_abnormal_against_itself(name):
    x, _ = pair(32)
    score = build_score(name)
    score.sized(32)
    assert score(x, x).abs().max() < 1e-6


@pytest.mark.parametrize("name", sorted(set(SCORES) - {"gradient"}))
def test_maps_are_not_stretched_to_a_range_of_their_own(name):
    """What is lost more strongly has the higher map: a map divided by its own maximum would forget how strongly."""
    x, _ = pair()
    lost = torch.zeros_like(x)
    lost[..., 20:32, 20:32] = 0.5
    score = build_score(name)
    score.sized(64)
    weak, strong = (score(x, (x - share * lost).clamp(0, 1)) for share in (0.1, 1.0))
    assert (strong.amax((1, 2, 3)) > 3 * weak.amax((1, 2, 3))).all()


def test_lost_similarity_is_scikit_images_and_lies_where_it_was_lost():
    x, restored = pair()
    found = build_score("ssim")(x, restored)
    for i in range(len(x)):
        _, expected = structural_similarity(
            x[i, 0].double().numpy(), restored[i, 0].double().numpy(), data_range=1, full=True,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        inside = np.s_[5:-5, 5:-5]
        np.testing.assert_allclose(found[i, 0].numpy()[inside], 1 - expected[inside], atol=2e-4)
    flat = torch.full((1, 1, 64, 64), 0.5)
    spot = flat.clone()
    spot[..., 20, 40] = 0.6
    assert torch.unravel_index(build_score("ssim")(flat, spot)[0, 0].argmax(), (64, 64)) == (20, 40)


def test_perceptual_is_lpips_and_enlarging_makes_its_map_finer():
    x, restored = pair()
    score = build_score("perceptual", calibration="none")
    torch.testing.assert_close(score(x, restored), score.lpips.spatial(x, restored))
    spot = x.clone()
    spot[..., 30:34, 30:34] = 1 - spot[..., 30:34, 30:34]
    coarse, fine = (build_score("perceptual", calibration="none", enlarge=e)(x, spot) for e in (1, 2))
    widths = [(m[0, 0] > m[0, 0].max() / 2).sum() for m in (coarse, fine)]
    assert widths[1] < widths[0]


@pytest.mark.parametrize("settings", [{"name": "residual"}, {"name": "smoothed", "sigma": 2}])
def test_equalised_is_the_difference_of_what_scikit_image_equalises(settings):
    x, restored = pair()
    found = build_score(**settings, equalised=True)(x, restored)
    for i in range(len(x)):
        even, even_restored = (equalize_adapthist(v[i, 0].numpy().astype(float)) for v in (x, restored))
        expected = np.abs(gaussian_filter(even - even_restored, settings.get("sigma", 0)))
        np.testing.assert_allclose(found[i, 0].numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("settings", [{"name": "residual"}, {"name": "smoothed", "sigma": 2}])
def test_the_foreground_is_where_the_image_is_not_0(settings):
    x, restored = pair()
    x[..., :20] = 0
    everywhere, inside = (build_score(**settings, foreground=f)(x, restored) for f in (False, True))
    assert everywhere[..., :20].max() > 0.01
    assert inside[..., :20].max() == 0
    assert torch.equal(inside[..., 20:], everywhere[..., 20:] * (x[..., 20:] > 0))


def test_z_scores_by_level_by_hand():
    score = build_score("zscore", of="residual", by="level", sigma=0.0, least=0.1)
    score.sized(2)
    restored = torch.tensor([[0.1, 0.1], [0.8, 0.8]]).expand(2, 1, 2, 2)
    away = torch.tensor([[[0.01, 0.03], [0.05, 0.15]], [[0.01, 0.03], [0.05, 0.15]]])[:, None]
    score.fit([(restored + away, restored)], lambda x: {})
    assert score.mean.shape == (32,)
    dark, bright = np.std([0.01, 0.03] * 2, ddof=1), np.std([0.05, 0.15] * 2, ddof=1)
    # Means .02 of dark and .1 of bright tissue; of a level that nobody has, all pixels' mean .06.
    new = torch.tensor([[[[0.1, 0.8], [0.5, 0.8]]]])
    found = score(new + torch.tensor([[0.05, 0.05], [0.06, 0.2]]), new)[0, 0]
    np.testing.assert_allclose(found, [[0.03 / dark, 0], [0, 0.1 / bright]], atol=1e-4)
    assert score.spread[16] == pytest.approx(away.std())


def test_z_scores_by_level_smooth_levels_not_pixels():
    """A background of many pixels that restore well would make its neighbours look as if they did, too."""
    score = build_score("zscore", of="residual", by="level", sigma=1.0)
    score.sized(32)
    restored = torch.full((2, 1, 32, 32), 0.01)
    restored[..., :2] = 0.05
    away = torch.rand(restored.shape, generator=torch.Generator().manual_seed(0)) * 0.001
    away[..., :2] += 0.02
    score.fit([(restored + away, restored)], lambda x: {})
    seen, mean = np.zeros(32), np.zeros(32)
    seen[:2], mean[:2] = 1, (0.0005, 0.0205)
    expected = gaussian_filter(mean, 1)[:4] / gaussian_filter(seen, 1)[:4]
    np.testing.assert_allclose(score.mean[:4], expected, rtol=0.02)


def test_z_scores_by_hand():
    score = build_score("zscore", of="residual", sigma=0.0, least=0.1)
    score.sized(2)
    x = torch.zeros(4, 1, 2, 2)
    residuals = torch.tensor([[0.1, 0.2], [0.3, 0.4]]) + torch.tensor([-0.1, 0.0, 0.0, 0.1])[:, None, None]
    score.fit([(x[:2], residuals[:2, None]), (x[2:], residuals[2:, None])], lambda x: {})
    spread = np.std([-0.1, 0, 0, 0.1], ddof=1)
    found = score(x[:1], torch.full((1, 1, 2, 2), 0.4))[0, 0]
    np.testing.assert_allclose(found, np.array([[0.3, 0.2], [0.1, 0]]) / spread, atol=1e-5)


def test_a_pixel_that_never_differs_among_the_healthy_does_not_make_z_scores_explode():
    score = build_score("zscore", sigma=0.0, least=0.5)
    score.sized(2)
    residuals = torch.tensor([[0.0, 0.2], [0.2, 0.2]]) * torch.tensor([0.5, 1.5])[:, None, None]
    score.fit([(torch.zeros(2, 1, 2, 2), residuals[:, None])], lambda x: {})
    assert score.spread[0, 0, 0, 0] == pytest.approx(0.5 * float(residuals.std(0).mean()))


def test_z_scores_wrap_any_score_with_its_settings_but_not_themselves():
    assert build_score("zscore", of={"name": "smoothed", "sigma": 2}, image="top1").name == "zscore-smoothed-2-top1"
    with pytest.raises(ConfigError, match="z-score of a z-score"):
        build_score("zscore", of="zscore")
    with pytest.raises(ConfigError, match="2 healthy validation images or more, got 1"):
        build_score("zscore").fit([(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))], lambda x: {})


def test_gradients_of_known_terms_by_hand():
    x, restored = pair(16)
    terms = {"rec": lambda v: v.square().flatten(1).sum(1), "kl": lambda v: 3 * v.flatten(1).sum(1)}

    def both(v):
        return {name: term(v) for name, term in terms.items()}

    with torch.no_grad():  # as detectors are called
        found = {of: build_score("gradient", of=of, sigma=0).compare(x, restored, both) for of in ("rec", "kl", "elbo")}
        combined = build_score("gradient", of="combi", sigma=0).compare(x, restored, both)
    torch.testing.assert_close(found["rec"], 2 * x)
    torch.testing.assert_close(found["kl"], torch.full_like(x, 3.0))
    torch.testing.assert_close(found["elbo"], 2 * x + 3)
    torch.testing.assert_close(combined, 3 * (x - restored).square())
    smooth = build_score("gradient", of="rec", sigma=3).compare(x, restored, both)
    np.testing.assert_allclose(smooth[0, 0], gaussian_filter(2 * x[0, 0].numpy(), 3), atol=1e-5)


def test_a_gradient_of_what_a_method_does_not_minimise_is_refused():
    x, restored = pair(16)
    with pytest.raises(ConfigError, match="gradient of kl needs a method with a kl term"):
        build_score("gradient", of="kl").compare(x, restored, lambda v: {"rec": v.flatten(1).sum(1)})


def test_image_scores_by_hand():
    anomaly = torch.zeros(1, 1, 10, 20)
    anomaly[0, 0, 0, :4] = torch.tensor([8.0, 6.0, 4.0, 2.0])
    found = {
        image: build_score("residual", image=image).reduce(anomaly).item() for image in ("mean", "top5", "top1", "max")
    }
    assert found == pytest.approx({"mean": 0.1, "top5": 2.0, "top1": 7.0, "max": 8.0})


def test_a_name_tells_everything_that_changes_the_numbers():
    names = [
        build_score("equation5", reading=r, calibration=c, image=i, enlarge=e).name
        for r in ("code", "paper") for c in ("lin", "none") for i in ("mean", "top1") for e in (1, 2)
    ]  # fmt: skip
    assert len(set(names)) == 16
    assert build_score("smoothed", sigma=1).name != build_score("smoothed", sigma=2).name
    signed = [
        build_score(name, sign=sign, equalised=e, foreground=f).name
        for name in ("residual", "smoothed") for sign in ("both", "bright", "dark")
        for e in (False, True) for f in (False, True)
    ]  # fmt: skip
    assert len(set(signed)) == 24
    standardised = [{}, {"by": "level"}, {"sigma": 0}, {"sigma": 5}, {"least": 1}, {"sigma": 5, "least": 1}]
    assert len({build_score("zscore", **settings).name for settings in standardised}) == 6


def test_half_precision_changes_a_map_little():
    x, restored = pair()
    for name in sorted(set(SCORES) - {"gradient"}):
        score = build_score(name)
        score.sized(64)
        exact = score(x, restored)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = score(x, restored)
        assert rounded.dtype == torch.float32
        assert (exact - rounded).abs().mean() < 0.02 * exact.mean()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"name": "equation6"}, "Did you mean 'equation5'"),
        ({"name": "residual", "sigma": 1}, "no setting 'sigma'"),
        ({"name": ["residual"]}, "There is no score"),
        ({"name": "smoothed", "sigma": "abc"}, r"^score\.sigma: .*valid number.*, got 'abc'\.$"),
        ({"name": "smoothed", "sigma": -3}, r"^score\.sigma: .*greater than or equal to 0, got -3\.$"),
        ({"name": "smoothed", "sigma": float("inf")}, r"^score\.sigma: .*finite number, got inf\.$"),
        ({"name": "equation5", "reading": "foo"}, r"^score\.reading: .*'code' or 'paper', got 'foo'\.$"),
        ({"name": "equation5", "trunk": "resnet"}, r"^score\.trunk: .*'alexnet'.*, got 'resnet'\.$"),
        ({"name": "equation5", "calibration": "x"}, r"^score\.calibration: .*'lin' or 'none', got 'x'\.$"),
        ({"name": "equation5", "enlarge": 0}, r"^score\.enlarge: .*greater than 0, got 0\.$"),
    ],
)
def test_a_wrong_score_is_named(call, said):
    with pytest.raises(ConfigError, match=said):
        build_score(**call)


@pytest.mark.parametrize("name", sorted(SCORES))
@pytest.mark.parametrize("image", ["median", [1]])
def test_every_score_refuses_an_image_score_that_does_not_exist(name, image):
    with pytest.raises(ConfigError, match=rf"^score\.image: .*'top5'.*, got {re.escape(repr(image))}\.$"):
        build_score(name, image=image)


def test_a_detector_that_restores_nothing_takes_no_score():
    for taken in ({}, {"name": "residual"}):
        assert not hasattr(build("mean-intensity", {}, taken), "score")
    for refused in ({"name": "smoothed"}, {"name": "residual", "image": "top5"}, {"sigma": 1}):
        with pytest.raises(ConfigError, match=r"^mean-intensity restores nothing, so it takes no score\.$"):
            build("mean-intensity", {}, refused)
