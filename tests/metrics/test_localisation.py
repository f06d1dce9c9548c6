import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import label
from sklearn.metrics import average_precision_score, roc_auc_score

from salus.metrics import (
    PixelCounts,
    aupro,
    best_dice,
    dice,
    hit_ra2024,
    hit_rate,
    is_hit,
    pixel_ap,
    pixel_auroc,
    pixel_edges,
    pixel_threshold,
    resample,
)


def images(seed, *, count=5, decimals=1):
    """Maps of different sizes with a few regions each; the first image is normal. Few decimals make ties."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(count):
        shape = (6 + i, 9)
        mask = rng.random(shape) < (0.15 if i else 0)
        mask[-1, -1] |= i == 1  # one lesion pixel at least
        maps.append(np.round(rng.random(shape) + 0.3 * mask, decimals).astype(np.float32))
        masks.append(mask)
    return maps, masks


def flat(maps, masks):
    return np.concatenate([m.ravel() for m in masks]), np.concatenate([a.ravel() for a in maps])


def dice_by_brute_force(maps, masks):
    truth, value = flat(maps, masks)
    return max(2 * (truth & (value >= v)).sum() / ((value >= v).sum() + truth.sum()) for v in np.unique(value))


def aupro_by_brute_force(maps, masks, limit=0.3):
    truth, value = flat(maps, masks)
    regions = [
        a[labels == i]
        for a, labels in ((a, label(m, connectivity=2)) for a, m in zip(maps, masks, strict=True))
        for i in range(1, labels.max() + 1)
    ]
    fpr, pro = [0.0], [0.0]
    for v in np.unique(value)[::-1]:
        fpr.append((value[~truth] >= v).mean())
        pro.append(np.mean([(region >= v).mean() for region in regions]))
    beyond = next((i for i, share in enumerate(fpr) if share > limit), len(fpr))
    x, y = fpr[:beyond], pro[:beyond]
    if beyond < len(fpr):
        at_limit = np.interp(limit, fpr[beyond - 1 : beyond + 1], pro[beyond - 1 : beyond + 1])
        x, y = [*x, limit], [*y, at_limit]
    return np.trapezoid(y, x) / limit


# Threshold from healthy pixels


def test_the_worked_threshold_comes_out():
    values = np.arange(100) / 100 + 0.0005
    assert pixel_threshold([values[:40], values[40:].reshape(6, 10)]) == pytest.approx(0.9405)
    assert (values > 0.9405).sum() == 5
    assert np.quantile(values, 0.95) == pytest.approx(0.9410)  # interpolated: what it must not be


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([0.0, 0.01, 0.05, 0.07, 0.1, 0.29, 0.5, 0.999]))
def test_false_alarms_never_exceed_the_promise_and_a_lower_value_would_break_it(seed, n, share):
    values = np.round(np.random.default_rng(seed).random(n), 1)
    threshold = pixel_threshold([values], false_alarms=share)
    assert (values > threshold).sum() <= share * n + 1e-9
    lower = values[values < threshold]
    assert not lower.size or (values > lower.max()).sum() > share * n


def test_a_threshold_holds_for_the_float32_map_it_came_from():
    healthy = np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32)
    threshold = pixel_threshold([healthy], false_alarms=0.25)
    assert is_hit(healthy, np.ones(4, dtype=bool), threshold, share=0.24)
    assert not is_hit(healthy, np.ones(4, dtype=bool), threshold, share=0.25)


def test_a_plain_threshold_is_not_rounded_to_the_map():
    a = np.full((2, 2), 0.1, dtype=np.float32)  # a little more than 0.1
    assert dice([a], [np.ones((2, 2), dtype=bool)], 0.1) == 1


# Exact pixel metrics


def test_the_worked_pixels_come_out():
    a = np.linspace(0.9, 0, 10)
    mask = np.array([1, 1, 0, 1, 0, 0, 1, 0, 0, 0], dtype=bool)
    best, threshold = best_dice([a], [mask])
    assert best == 0.75
    assert (a > threshold).sum() == 4
    assert dice([a], [mask], threshold) == best
    falling = [dice([a], [mask], value - 1e-6) for value in a]
    of_ten = [0.4, 0.6667, 0.5714, 0.75, 0.6667, 0.6, 0.7273, 0.6667, 0.6154, 0.5714]
    assert falling == pytest.approx(of_ten, abs=5e-5)
    assert pixel_ap([a], [mask]) == pytest.approx(0.830357, abs=1e-6)
    assert pixel_auroc([a], [mask]) == pytest.approx(0.833333, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_pooled_pixels_agree_with_independent_computations(seed):
    maps, masks = images(seed)
    truth, value = flat(maps, masks)
    assert pixel_ap(maps, masks) == pytest.approx(average_precision_score(truth, value))
    assert pixel_auroc(maps, masks) == pytest.approx(roc_auc_score(truth, value))
    assert aupro(maps, masks) == pytest.approx(aupro_by_brute_force(maps, masks))
    best, threshold = best_dice(maps, masks)
    assert best == pytest.approx(dice_by_brute_force(maps, masks))
    assert dice(maps, masks, threshold) == pytest.approx(best)


def test_tied_pixels_turn_positive_together():
    mask = np.array([1, 0, 0, 0], dtype=bool)
    best, threshold = best_dice([np.zeros(4)], [mask])
    assert best == pytest.approx(0.4)  # all four or none
    assert threshold < 0


def test_the_order_of_images_does_not_matter():
    maps, masks = images(7)
    assert aupro(maps[::-1], masks[::-1]) == pytest.approx(aupro(maps, masks))
    assert pixel_ap(maps[::-1], masks[::-1]) == pytest.approx(pixel_ap(maps, masks))


def test_a_perfect_map_gets_everything():
    _, masks = images(3)
    maps = [mask.astype(float) for mask in masks]
    assert pixel_ap(maps, masks) == pixel_auroc(maps, masks) == best_dice(maps, masks)[0] == 1
    assert aupro(maps, masks) == pytest.approx(1)


def test_a_map_that_says_nothing_gets_fifteen_percent_aupro():
    maps, masks = images(3)
    assert aupro([np.zeros_like(a) for a in maps], masks) == pytest.approx(0.15)


def test_regions_that_touch_by_a_corner_are_one_and_count_alike():
    mask = np.zeros((4, 10), dtype=bool)
    mask[0, 0] = mask[1, 1] = True  # one region of two
    mask[3, 2:10] = True  # one of eight
    assert aupro([np.where(mask & (np.arange(4) < 2)[:, None], 1.0, 0.0)], [mask]) == pytest.approx(
        0.5 + 0.5 * 0.15  # the small one at once, the large one along the diagonal
    )


def test_a_volume_is_judged_like_a_picture():
    rng = np.random.default_rng(0)
    mask = ndimage.binary_dilation(rng.random((6, 7, 8)) < 0.01)
    a = rng.random((6, 7, 8)) + mask
    assert pixel_ap([a], [mask]) == pytest.approx(average_precision_score(mask.ravel(), a.ravel()))
    assert 0 < aupro([a], [mask]) <= 1


@pytest.mark.parametrize("metric", [pixel_ap, pixel_auroc, best_dice, aupro, lambda a, m: dice(a, m, 0.5)])
def test_refuses_what_has_no_value(metric):
    a, mask = np.zeros((3, 3)), np.eye(3, dtype=bool)
    with pytest.raises(ValueError, match="need lesion"):
        metric([a], [np.zeros((3, 3), dtype=bool)])
    with pytest.raises(ValueError, match="need lesion"):
        metric([], [])
    with pytest.raises(ValueError, match="finite maps"):
        metric([np.full((3, 3), np.nan)], [mask])
    with pytest.raises(ValueError, match=r"boolean mask of the map's shape \(3, 3\), got bool \(2, 3\)"):
        metric([a], [mask[:2]])
    with pytest.raises(ValueError, match="got uint8"):
        metric([a], [mask.astype(np.uint8)])


def test_refuses_a_threshold_from_nothing():
    with pytest.raises(ValueError, match="at least one healthy pixel"):
        pixel_threshold([])
    with pytest.raises(ValueError, match="finite maps"):
        pixel_threshold([np.array([np.nan])])
    with pytest.raises(ValueError, match=r"false_alarms in \[0, 1\), got 5"):
        pixel_threshold([np.zeros(3)], false_alarms=5)


# Histograms


def lesions(seed, *, count=30, size=64, shift=1.0, share_normal=0.4):
    """Smooth noise, brighter inside a round lesion of random size; about 1 % lesion pixels."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    maps, masks = [], []
    for i in range(count):
        centre, radius = rng.uniform(8, size - 8, 2), rng.uniform(2, 7)
        mask = (np.hypot(rows - centre[0], columns - centre[1]) < radius) & (i >= share_normal * count)
        noise = ndimage.gaussian_filter(rng.standard_normal((size, size)), 1)
        maps.append(np.exp(4 * noise + shift * rng.uniform(0, 2) * mask).astype(np.float32))
        masks.append(mask)
    return maps, masks


def counted(maps, masks, edges):
    return PixelCounts.merge([PixelCounts.of(a, m, edges) for a, m in zip(maps, masks, strict=True)])


def test_with_an_edge_at_each_value_the_histogram_is_exact():
    maps, masks = images(11)
    values = np.unique(flat(maps, masks)[1]).astype(float)
    pool = counted(maps, masks, np.append(values[0] - 1, values)).pooled()
    assert pool.ap()[0] == pytest.approx(pixel_ap(maps, masks))
    assert pool.auroc()[0] == pytest.approx(pixel_auroc(maps, masks))
    assert pool.aupro()[0] == pytest.approx(aupro(maps, masks), rel=1e-6)
    value, threshold = pool.best_dice()
    assert (value[0], threshold[0]) == pytest.approx(best_dice(maps, masks))


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_4096_bins_stay_within_a_thousandth(seed, shift):
    maps, masks = lesions(seed, shift=shift)
    pool = counted(maps, masks, pixel_edges(maps, thresholds=(1.3,))).pooled()
    assert pool.ap()[0] == pytest.approx(pixel_ap(maps, masks), abs=1e-3)
    assert pool.auroc()[0] == pytest.approx(pixel_auroc(maps, masks), abs=1e-3)
    assert pool.aupro()[0] == pytest.approx(aupro(maps, masks), abs=1e-3)
    assert pool.best_dice()[0][0] == pytest.approx(best_dice(maps, masks)[0], abs=1e-3)
    assert pool.dice(1.3)[0] == pytest.approx(dice(maps, masks, 1.3))


@pytest.mark.parametrize("bins", [8, 64, 4096])
@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0, 10.0])
def test_exact_values_lie_between_the_extremes_of_the_bins(shift, bins):
    maps, masks = lesions(3, shift=shift)
    pool = counted(maps, masks, pixel_edges(maps, bins=bins)).pooled()
    exact = pixel_ap(maps, masks), pixel_auroc(maps, masks), aupro(maps, masks), best_dice(maps, masks)[0]
    assert between(pool, exact)


def test_extremes_hold_where_a_map_tells_lesions_apart_and_where_its_edges_are_few(monkeypatch):
    monkeypatch.setattr("salus.metrics.pixel_counts.SAMPLE", 300)
    maps, masks = lesions(5, count=4)
    for found in ([a + 100 * m for a, m in zip(maps, masks, strict=True)], [np.round(a) for a in maps]):
        pool = counted(found, masks, pixel_edges(found)).pooled()
        assert between(
            pool, (pixel_ap(found, masks), pixel_auroc(found, masks), aupro(found, masks), best_dice(found, masks)[0])
        )
        low, high = pool.bounds()["ap"]
        assert high[0] - low[0] > 1e-3, "else the bins cost nothing"


def between(pool: PixelCounts, exact: Sequence[float]) -> bool:
    """Whether AP, AUROC, AUPRO and best Dice lie where the counts say, and so do the counts' own."""
    counted = pool.ap(), pool.auroc(), pool.aupro(), pool.best_dice()[0]
    bounds = [(low[0] - 1e-7, high[0] + 1e-7) for low, high in pool.bounds().values()]
    values = zip(bounds, counted, exact, strict=True)
    return all(low <= own[0] <= high and low <= value <= high for (low, high), own, value in values)


def test_the_lowest_and_the_highest_are_reached_by_hand():
    """Two bins: 2 lesion and 1 healthy pixels, then 1 and 2."""
    masks = [np.array([[True, True, False, True, False, False]])]
    worst, best = (np.array([order]) for order in ([5.0, 6, 7, 1, 2, 3], [7.0, 6, 5, 3, 2, 1]))
    for map_, end in ((worst, 0), (best, 1)):
        pool = counted([map_], masks, np.array([0.0, 4.0])).pooled()
        found = {name: ends[end][0] for name, ends in pool.bounds().items()}
        assert found["auroc"] == pytest.approx(pixel_auroc([map_], masks))
        assert found["aupro"] == pytest.approx(aupro([map_], masks), rel=1e-6)
        if end == 0:
            assert found["ap"] == pytest.approx((1 / 2 + 2 / 3 + 3 / 6) / 3) == pixel_ap([map_], masks)
        else:
            assert found["best_dice"] == pytest.approx(best_dice([map_], masks)[0])


def test_fewer_edges_are_some_of_all_of_them():
    maps, masks = lesions(0)
    cases = counted(maps, masks, pixel_edges(maps, bins=101))
    fewer = cases.every(4)
    assert set(fewer.edges.tolist()) < set(cases.edges.tolist())
    for edge in fewer.edges:
        np.testing.assert_array_equal(fewer.dice(edge), cases.dice(edge))
    assert fewer.lesion[:, -1].tolist() == [mask.sum() for mask in masks]
    assert fewer.lesion.shape[1] == math.ceil(cases.lesion.shape[1] / 4)


def test_a_map_that_is_mostly_zero_keeps_its_ties():
    maps, masks = lesions(2)
    maps = [np.where(a > 3, a, 0) for a in maps]
    pool = counted(maps, masks, pixel_edges(maps)).pooled()
    assert pool.ap()[0] == pytest.approx(pixel_ap(maps, masks), abs=1e-3)
    assert pool.auroc()[0] == pytest.approx(pixel_auroc(maps, masks), abs=1e-3)


def test_a_replicate_equals_the_metric_of_the_cases_drawn():
    maps, masks = images(5, count=8)
    edges = np.append(-1, np.unique(flat(maps, masks)[1]).astype(float))
    weights = resample([str(i // 2) for i in range(8)], np.array([m.any() for m in masks]), replicates=6)
    pool = counted(maps, masks, edges).pooled(weights)
    for row, replicate in enumerate(weights):
        drawn = [i for i, times in enumerate(replicate) for _ in range(times)]
        some_maps, some_masks = [maps[i] for i in drawn], [masks[i] for i in drawn]
        assert pool.ap()[row] == pytest.approx(pixel_ap(some_maps, some_masks))
        assert pool.auroc()[row] == pytest.approx(pixel_auroc(some_maps, some_masks))
        assert pool.aupro()[row] == pytest.approx(aupro(some_maps, some_masks), rel=1e-6)
        assert pool.best_dice()[0][row] == pytest.approx(best_dice(some_maps, some_masks)[0])
        assert pool.dice(edges[4])[row] == pytest.approx(dice(some_maps, some_masks, edges[4]))


def test_rows_that_are_not_pooled_are_cases():
    maps, masks = images(6)
    threshold = 0.45
    cases = counted(maps, masks, pixel_edges(maps, thresholds=(threshold,)))
    own = cases.dice(threshold)
    assert np.isnan(own[0])  # the normal image
    assert own[1:] == pytest.approx([dice([a], [m], threshold) for a, m in zip(maps[1:], masks[1:], strict=True)])
    assert np.isnan([cases.ap()[0], cases.auroc()[0], cases.aupro()[0], cases.best_dice()[0][0]]).all()


def test_edges_cover_all_maps_and_hold_the_thresholds():
    maps, _ = lesions(4)
    edges = pixel_edges(maps, thresholds=(0.123, 4.5))
    assert edges[0] < min(a.min() for a in maps)
    assert {0.123, 4.5} <= set(edges.tolist())
    assert (np.diff(edges) > 0).all()
    assert len(edges) + 1 <= 4096 + 2


def test_a_sample_of_the_pixels_chooses_edges_as_good(monkeypatch):
    maps, masks = lesions(1, shift=3.0)
    monkeypatch.setattr("salus.metrics.pixel_counts.SAMPLE", 20_000)
    pool = counted(maps, masks, pixel_edges(maps)).pooled()
    assert pool.ap()[0] == pytest.approx(pixel_ap(maps, masks), abs=2e-3)
    assert pool.auroc()[0] == pytest.approx(pixel_auroc(maps, masks), abs=1e-3)


def test_histograms_refuse_what_does_not_fit_together():
    maps, masks = images(0)
    cases = counted(maps, masks, np.array([0.2, 0.6]))
    with pytest.raises(ValueError, match=r"0\.5 is not an edge"):
        cases.dice(0.5)
    with pytest.raises(ValueError, match="not an edge"):
        cases.dice(7.0)
    with pytest.raises(ValueError, match="the same edges"):
        PixelCounts.merge([cases, counted(maps, masks, np.array([0.3]))])
    with pytest.raises(ValueError, match=r"need weights \(replicates, 5\), got \(2, 4\)"):
        cases.pooled(np.ones((2, 4), dtype=int))
    with pytest.raises(ValueError, match="finite maps"):
        PixelCounts.of(np.full((2, 2), np.inf), np.eye(2, dtype=bool), cases.edges)
    with pytest.raises(ValueError, match="at least one pixel"):
        pixel_edges([])


# Findings


def example():
    """Worked example D1 of the protocols: a box of 20 pixels, two of them positive."""
    a = np.zeros((8, 8))
    a[2, 2:4] = a[0] = 0.5
    a[7, :4] = 0.25
    inside = np.zeros((8, 8), dtype=bool)
    inside[2:6, 2:7] = True
    return a, inside


def with_a_third():
    a, inside = example()
    a[2, 4] = 0.5
    return a, inside


@pytest.mark.parametrize(
    ("case", "factor", "threshold", "hit", "false_positives", "precision", "f1"),
    [
        (example, 1, 0.3, False, 4, 0, 0),
        (with_a_third, 1, 0.3, True, 2, 1 / 3, 0.5),  # P = 1.5, Q = 4
        (with_a_third, 1, 0.2, True, 3, 0.25, 0.4),
        (with_a_third, 10, 3, True, 2, 1 / 3, 0.5),
        (with_a_third, 0.1, 0.03, True, 0, 1, 1),  # small values are rewarded: the metric's flaw
        (lambda: (np.ones((8, 8)), example()[1]), 1, 0.3, True, 2, 1 / 3, 0.5),
    ],
)
def test_the_worked_boxes_come_out(case, factor, threshold, hit, false_positives, precision, f1):
    a, inside = case()
    seen = hit_ra2024(a * factor, inside, ~inside, threshold)
    assert (seen.hit, seen.false_positives) == (hit, false_positives)
    assert (seen.precision, seen.recall, seen.f1) == pytest.approx((precision, float(hit), f1), abs=1e-7)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.9), st.floats(0.1, 20))
def test_f1_takes_only_the_values_of_its_lattice(seed, threshold, factor):
    rng = np.random.default_rng(seed)
    inside = np.zeros((8, 8), dtype=bool)
    inside[2:4, 2:5] = True
    seen = hit_ra2024(factor * rng.random((8, 8)), inside, ~inside, factor * threshold)
    assert seen.f1 == pytest.approx(2 / (2 + seen.false_positives) if seen.hit else 0, abs=1e-7)


def test_a_higher_threshold_never_turns_a_miss_into_a_hit():
    a, inside = np.random.default_rng(0).random((8, 8)), example()[1]
    hits = [hit_ra2024(a, inside, ~inside, t).hit for t in np.linspace(0, 1, 21)]
    assert hits == sorted(hits, reverse=True)


def test_the_published_hit_keeps_the_threshold_itself_and_ours_does_not():
    a, inside = np.full((4, 4), 0.5), np.eye(4, dtype=bool)
    assert hit_ra2024(a, inside, ~inside, 0.5).hit
    assert not is_hit(a, inside, 0.5)


def test_a_fractional_rim_counts_as_published():
    a, inside = np.ones((2, 2)), np.array([[1.0, 0.25], [0.0, 0.0]])
    seen = hit_ra2024(a, inside, np.array([[0.0, 0.0], [2.0, 2.0]]), 0.5)
    assert seen.false_positives == 3  # 4 over 1.25


def test_more_than_a_tenth_of_a_finding_makes_a_hit():
    a, inside = example()
    assert not is_hit(a, inside, 0.3)  # two of twenty
    assert is_hit(with_a_third()[0], inside, 0.3)
    assert hit_rate([a, with_a_third()[0]], [inside, inside], 0.3) == 0.5


def test_findings_refuse_what_has_no_value():
    a, empty = np.ones((3, 3)), np.zeros((3, 3), dtype=bool)
    with pytest.raises(ValueError, match="finding of at least one pixel"):
        is_hit(a, empty, 0.5)
    with pytest.raises(ValueError, match="finding of at least one pixel"):
        hit_ra2024(a, empty, ~empty, 0.5)
    with pytest.raises(ValueError, match=r"masks of the map's shape \(3, 3\)"):
        hit_ra2024(a, ~empty, empty[:2], 0.5)
    with pytest.raises(ValueError, match="finite maps"):
        hit_ra2024(np.full((3, 3), np.nan), ~empty, empty, 0.5)
    with pytest.raises(ValueError, match="at least one finding"):
        hit_rate([], [], 0.5)
