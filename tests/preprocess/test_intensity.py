import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salus.core import Image
from salus.core.errors import ImageError
from salus.preprocess.intensity import by_depth, min_max, percentile, z_score

STEPS = (min_max, percentile, z_score, by_depth)


def image(values, depth=16) -> Image:
    return Image(array=np.asarray(values, np.float32), depth=depth)


@pytest.mark.parametrize("step", STEPS)
@given(values=st.lists(st.integers(0, 65535), min_size=64, max_size=64), shape=st.sampled_from([(8, 8), (4, 4, 4)]))
def test_values_lie_in_0_to_1_and_keep_their_order(step, values, shape):
    source = image(np.reshape(values, shape))
    if len(set(values)) == 1:
        return
    array = step(source).array
    assert array.dtype == np.float32
    assert array.min() >= 0
    assert array.max() <= 1
    assert (np.diff(array.ravel()[np.argsort(values)]) >= 0).all()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("value", [0, 0.1, 1234])
def test_a_constant_image_is_refused(step, value):
    with pytest.raises(ImageError, match=r"a constant image|nothing to scale"):
        step(image(np.full((9, 9), value)))


def test_min_max_spans_the_whole_range():
    np.testing.assert_allclose(min_max(image([[-10, 0, 30]])).array, [[0, 0.25, 1]])


def test_extremes_of_float32_do_not_overflow():
    largest = np.finfo(np.float32).max
    np.testing.assert_array_equal(min_max(image([[-largest, 0, largest]])).array, [[0, 0.5, 1]])


def test_percentiles_clip_the_bright_tail():
    values = np.arange(1000.0).reshape(10, 100)
    values[0, 0] = 1e6
    array = percentile(image(values), 1, 99).array
    assert (array == 1).sum() == 10
    assert array[5, 0] == pytest.approx((500 - np.percentile(values, 1)) / np.diff(np.percentile(values, [1, 99]))[0])


def test_the_mean_comes_to_a_half_and_clip_deviations_to_the_ends():
    values = np.random.default_rng(0).normal(100, 20, (50, 50))
    array = z_score(image(values), clip=2).array
    expected = np.clip((values - values.mean()) / values.std(), -2, 2) / 4 + 0.5
    np.testing.assert_allclose(array, expected, atol=1e-5)


@pytest.mark.parametrize(("depth", "largest"), [(8, 255), (16, 65535)])
def test_the_stored_bits_decide_the_scale(depth, largest):
    np.testing.assert_allclose(by_depth(image([[0, 10, largest]], depth)).array, [[0, 10 / largest, 1]])


@pytest.mark.parametrize(
    ("values", "depth", "found"),
    [([0.5, 1], 0, "floating point"), ([-1, 5], 16, "values -1 to 5 do not fit 16 bits"), ([0, 256], 8, "0 to 256")],
)
def test_what_bits_cannot_scale_is_refused(values, depth, found):
    with pytest.raises(ImageError, match=found):
        by_depth(image([values], depth))


def test_a_larger_background_does_not_change_the_scale_of_the_foreground():
    inside = np.random.default_rng(0).uniform(100, 900, (10, 10)).astype(np.float32)
    small, large = (Image(array=np.pad(inside, width)) for width in (2, 30))
    a, b = (percentile(image, 0.5, 99.5, foreground=True).array for image in (small, large))
    np.testing.assert_array_equal(a[2:-2, 2:-2], b[30:-30, 30:-30])
    assert not np.allclose(percentile(small).array[2:-2, 2:-2], percentile(large).array[30:-30, 30:-30])
