import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from skimage.metrics import structural_similarity

from salus.metrics import mae, mse, ssim

ROW, COLUMN = np.mgrid[:16, :16]
PATTERN = ((7 * ROW + 13 * COLUMN) % 32) / 31  # worked example D5 of the protocols


def by_windows(a, b):
    """The formula of the protocols at each 7 x 7 window, then the mean."""
    a, b = (sliding_window_view(x, (7, 7)).reshape(-1, 49) for x in (a, b))
    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = a.mean(1), b.mean(1)
    covariance = ((a - mean_a[:, None]) * (b - mean_b[:, None])).sum(1) / 48
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (a.var(1, ddof=1) + b.var(1, ddof=1) + c2)
    return (above / below).mean()


def test_the_worked_example_comes_out():
    assert ssim(PATTERN, 0.8 * PATTERN + 0.1) == pytest.approx(0.975722, abs=1e-6)
    assert ssim(PATTERN, PATTERN[:, ::-1]) == pytest.approx(0.042101, abs=1e-6)
    assert ssim(PATTERN, PATTERN) == 1


def test_ssim_has_a_uniform_window_and_not_the_gaussian_of_the_first_paper():
    other = 0.8 * PATTERN + 0.1
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # 11 x 11
    assert structural_similarity(PATTERN, other, data_range=1, **gaussian) == pytest.approx(0.975657, abs=1e-6)
    assert structural_similarity(PATTERN, other, data_range=1) == pytest.approx(0.975722, abs=1e-6)
    assert ssim(PATTERN, other) == pytest.approx(0.975722, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_ssim_is_the_mean_over_all_windows(seed):
    a, b = np.random.default_rng(seed).random((2, 11, 14))
    assert ssim(a, b) == pytest.approx(by_windows(a, b))


def test_ssim_clamps_both_images():
    loud = 3 * PATTERN - 1
    assert ssim(loud, PATTERN) == ssim(loud.clip(0, 1), PATTERN)
    assert ssim(PATTERN, loud) == ssim(PATTERN, loud.clip(0, 1))


def test_float32_loses_nothing_to_its_precision():
    flat = np.full((16, 16), 0.9, dtype=np.float32)
    assert ssim(flat, flat) == 1


def test_ssim_takes_a_volume():
    volume = np.random.default_rng(0).random((8, 9, 10))
    assert ssim(volume, volume) == pytest.approx(1)


def test_errors_go_by_their_right_names():
    a, b = np.array([0.0, 0.5, 1.0]), np.array([0.5, 0.5, 0.0])
    assert mae(a, b) == pytest.approx(0.5)
    assert mse(a, b) == pytest.approx(1.25 / 3)


@pytest.mark.parametrize("metric", [ssim, mae, mse])
def test_refuses_images_that_cannot_be_compared(metric):
    with pytest.raises(ValueError, match="two images of one shape"):
        metric(PATTERN, PATTERN[:8])
    with pytest.raises(ValueError, match="finite pixels"):
        metric(PATTERN, np.full((16, 16), np.nan))


def test_ssim_refuses_an_image_smaller_than_its_window():
    with pytest.raises(ValueError, match=r"at least 7 pixels a side, got \(6, 16\)"):
        ssim(PATTERN[:6], PATTERN[:6])
