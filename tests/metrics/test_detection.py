from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.stats import binom
from skimage.measure import label, regionprops
from sklearn.metrics import average_precision_score, roc_curve

from salus.metrics import (
    FALSE_ALARMS,
    FROC_RATES,
    average_precision,
    average_precision_at,
    best_dice,
    best_dice_medianomaly,
    box_to_grid,
    chance_corrected_hit_rate,
    class_averages,
    false_regions,
    froc,
    hit_ra2024,
    hit_rate,
    hit_rate_area,
    hit_rate_curve,
    hit_scale_free,
    hit_thor2024,
    is_hit,
    known_healthy,
    mass_ratio,
    pixel_threshold,
    pointing_game,
    scale_free_false_positives,
    threshold_grid_ra2024,
    threshold_uad_imag,
    weighted_average_precision_at,
)

SEEDS = st.integers(0, 10_000)


def spotty(seed, count=6):
    """Smooth noise in [0, 1] of two decimals, so that scores tie; up to two boxes an image, none in the first."""
    rng = np.random.default_rng(seed)
    maps, boxes = [], []
    for i in range(count):
        noise = ndimage.gaussian_filter(rng.random((20, 24)), 1.2, mode="wrap")
        maps.append(np.round((noise - noise.min()) / np.ptp(noise), 2).astype(np.float32))
        corners = rng.integers([0, 0, 1, 1], [18, 20, 6, 6], size=(rng.integers(1, 3) if i else 0, 4))
        boxes.append([rectangle((20, 24), *corner) for corner in corners])
    return maps, boxes


def rectangle(shape, row, column, rows, columns):
    mask = np.zeros(shape, dtype=bool)
    mask[row : row + rows, column : column + columns] = True
    return mask


def together(boxes, shape=(20, 24)):
    return [np.any([np.zeros(shape, dtype=bool), *own], axis=0) for own in boxes]


def one_a_finding(maps, boxes):
    return [(a, inside) for a, own in zip(maps, boxes, strict=True) for inside in own]


def worked():
    """Worked example D1 of the protocols, its second row: P = 1.5 and Q = 4 at threshold 0.3."""
    a = np.zeros((8, 8))
    a[2, 2:5] = a[0] = 0.5
    a[7, :4] = 0.25
    return a, rectangle((8, 8), 2, 2, 4, 5)


# Thresholds


def test_the_worked_thresholds_come_out():
    values = np.arange(100) / 100 + 0.0005  # D2
    assert threshold_grid_ra2024([values]) == 0.941
    assert {int((values > t).sum()) for t in np.arange(941, 951) / 1000} == {5}  # the tie; the smallest is taken
    assert pixel_threshold([values]) == pytest.approx(0.9405)
    assert threshold_uad_imag([values], false_alarms=0.05) == pytest.approx(0.9605)  # reached by four: below 5 %


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.01, 0.02, 0.05, 0.25, 2 / 3]))
def test_the_published_grid_is_walked_exactly(seed, false_alarms):
    rng = np.random.default_rng(seed)
    maps = [np.round(rng.random((3, 4 + i)) ** 4 * 0.9, 3) for i in range(4)]  # sizes differ, values lie on the grid
    shares = [
        sum(Fraction(int((a > k / 1000).sum()), a.size) for a in maps) / len(maps) for k in range(1000)
    ]  # each image counts the same, and 2/3 is 2/3
    expected = next(k for k, share in enumerate(shares) if share <= Fraction(false_alarms).limit_denominator(1000))
    assert threshold_grid_ra2024(iter(maps), false_alarms=false_alarms) == expected / 1000


def test_the_published_search_takes_pixels_above_and_the_evaluation_those_at_it_too():
    a = np.full((10, 10), 0.25)
    t = threshold_grid_ra2024([a])
    assert t == 0.25
    assert hit_ra2024(a, np.ones_like(a), np.zeros_like(a), t).hit


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 60), st.sampled_from([0.01, 0.05, 0.07, 0.3, 0.5, 0.999]))
def test_the_threshold_of_uad_imag_is_the_last_roc_point_below_the_target(seed, n, false_alarms):
    healthy = np.round(np.random.default_rng(seed).random(n), 1)
    truth, score = np.append(np.zeros(n), 1), np.append(healthy, healthy[0])  # roc_curve wants a positive, too
    fpr, _, thresholds = roc_curve(truth, score, drop_intermediate=False)
    below = np.flatnonzero(fpr < false_alarms - 1e-9)
    assert threshold_uad_imag([healthy], false_alarms=false_alarms) == thresholds[below[-1]]


def test_thresholds_refuse_what_has_none():
    with pytest.raises(ValueError, match="at least one healthy image"):
        threshold_grid_ra2024([])
    with pytest.raises(ValueError, match="an empty one"):
        threshold_grid_ra2024([np.zeros((0, 3))])
    with pytest.raises(ValueError, match=r"0\.25 of the pixels lies above the whole grid"):
        threshold_grid_ra2024([np.array([0.1, 0.2, 0.3, 7.0])])
    with pytest.raises(ValueError, match=r"false_alarms in \[0, 1\), got 5"):
        threshold_grid_ra2024([np.zeros(3)], false_alarms=5)
    with pytest.raises(ValueError, match=r"false_alarms in \(0, 1\), got 0"):
        threshold_uad_imag([np.zeros(3)], false_alarms=0)
    with pytest.raises(ValueError, match="at least one healthy pixel"):
        threshold_uad_imag([], false_alarms=0.05)


# False positives of a box


@pytest.mark.parametrize(
    ("factor", "threshold", "published", "scale_free"),
    [
        (1, 0.3, 2, 2),
        (1, 0.2, 3, 3),
        (10, 3, 2, 2),
        (0.1, 0.03, 0, 2),  # what the published rule makes of small values, and what is there
        (1e-6, 0.3e-6, 0, 2),
    ],
)
def test_the_worked_boxes_keep_their_false_positives_at_any_scale(factor, threshold, published, scale_free):
    a, inside = worked()
    assert hit_ra2024(a * factor, inside, ~inside, threshold).false_positives == published
    assert scale_free_false_positives(a * factor, inside, ~inside, threshold) == scale_free


def test_the_other_worked_boxes_come_out():
    a, inside = worked()
    assert scale_free_false_positives(np.ones_like(a), inside, ~inside, 0.3) == 2  # 44 over 20
    a[2, 4] = 0
    assert scale_free_false_positives(a, inside, ~inside, 0.3) == 4  # P = 1
    assert hit_thor2024(a, inside, ~inside, 0.3) == (False, 4, 0, 0, 0)


def test_nothing_in_the_box_gets_the_cap_and_nothing_at_all_gets_zero():
    a, inside = worked()
    assert scale_free_false_positives(np.where(inside, 0, a), inside, ~inside, 0.3) == 10
    assert scale_free_false_positives(np.where(inside, 1e-9, a), inside, ~inside, 0) == 10
    assert scale_free_false_positives(a, inside, ~inside, 0.5) == 0  # strictly above: no pixel is


def test_three_times_the_mass_is_three_though_decimals_are_not_exact():
    a, inside = np.array([0.1, 0.3]), np.array([True, False])
    assert a[1] / a[0] < 3
    assert scale_free_false_positives(a, inside, ~inside, 0) == 3


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.floats(1e-6, 1e6))
def test_a_factor_changes_neither_false_positives_nor_mass(seed, factor):
    maps, boxes = spotty(seed)
    for a, inside in one_a_finding(maps, boxes):
        a = a.astype(np.float64)
        plain = scale_free_false_positives(a, inside, ~inside, 0.605)
        assert scale_free_false_positives(factor * a, inside, ~inside, factor * 0.605) == plain
        assert mass_ratio(factor * a, inside, ~inside) == pytest.approx(mass_ratio(a, inside, ~inside))
        within = a[inside & (a > 0.605)].sum()
        if within >= 1:  # then the published rule has no other defect than its missing cap
            assert plain == min(10, hit_ra2024(a, inside, ~inside, 0.605).false_positives)


@pytest.mark.parametrize("factor", [1, 10, 0.1])
def test_the_scale_free_hit_of_the_worked_box_is_the_same_at_any_scale(factor):
    a, inside = worked()
    assert hit_scale_free(a * factor, inside, ~inside, 0.3 * factor) == (True, 2, 1 / 3, 1, pytest.approx(0.5))
    assert hit_scale_free(a * factor, inside, ~inside, 0.5 * factor) == (False, 0, 0, 0, 0)  # strictly above


def test_about_seventy_positive_pixels_are_needed_before_the_published_quotient_is_one():
    inside = rectangle((40, 40), 0, 0, 10, 10)
    for positive, expected in ((60, 22), (66, 22), (70, 21), (100, 15)):  # Q = 22.5; P = 0.9, 0.99, 1.05, 1.5
        a = np.full((40, 40), 0.015)
        a[:10, :10].flat[positive:] = 0
        assert hit_ra2024(a, inside, ~inside, 0.01).false_positives == expected


@pytest.mark.parametrize(("printed", "false_positives"), [(15.38, 11), (50.00, 2), (100, 0), (66.67, 1), (40, 3)])
def test_a_single_printed_f1_tells_its_false_positives(printed, false_positives):
    """A5: F1 = 2 / (2 + k); absent septum has one sample, RA 15.38 and MKD 50.00."""
    inside = rectangle((4, 16), 0, 0, 1, 1)
    outside = rectangle((4, 16), 1, 0, 1, false_positives)
    seen = hit_ra2024(np.ones((4, 16)), inside, outside, 0.5)
    assert seen.false_positives == false_positives
    assert 100 * seen.f1 == pytest.approx(printed, abs=0.005)


def test_the_printed_5_82_is_no_single_f1():
    lattice = 200 / (2 + np.arange(200))
    assert lattice[32] == pytest.approx(5.88, abs=0.005)
    assert np.abs(lattice - 5.82).min() > 0.005


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(0.2, 0.9))
def test_thor_counts_at_most_ten_false_positives(seed, threshold):
    maps, boxes = spotty(seed)
    for a, inside in one_a_finding(maps, boxes):
        published, capped = hit_ra2024(a, inside, ~inside, threshold), hit_thor2024(a, inside, ~inside, threshold)
        assert (capped.hit, capped.recall) == (published.hit, published.recall)
        assert capped.false_positives == min(10, published.false_positives)
        assert capped.f1 == pytest.approx(2 / (2 + capped.false_positives) if capped.hit else 0, abs=1e-7)
        assert capped.f1 >= published.f1


def test_the_mass_of_the_worked_box():
    a, inside = worked()
    assert mass_ratio(a, inside, ~inside) == pytest.approx(1.5 / (1.5 + 4 + 1))
    assert mass_ratio(np.ones((8, 8), dtype=np.float32), inside, ~inside) == pytest.approx(20 / 64)
    assert mass_ratio(np.where(inside, 0, a), inside, ~inside) == 0
    assert mass_ratio(np.where(inside, a, 0), inside, ~inside) == 1
    assert np.isnan(mass_ratio(np.zeros((8, 8)), inside, ~inside))  # no value rather than 0


# Averages over classes

WRIST = {"anomaly": 180, "body": 4, "fracture": 10182, "metal": 414, "periosteal": 2036, "pronator": 3, "tissue": 76}
TABLE_2 = {  # per class as printed; printed average; mean of the seven columns, by hand: recall, then F1
    "DAE": [
        ([43.33, 75.00, 59.72, 97.10, 59.18, 33.33, 28.94], 60.42, 56.7),
        ([11.05, 25.38, 15.19, 41.86, 13.65, 7.4, 9.73], 15.71, 17.8),
    ],
    "LTM": [
        ([40.56, 75.00, 25.17, 90.33, 42.36, 66.67, 15.79], 30.16, 50.8),
        ([9.43, 14.58, 4.85, 55.56, 7.66, 11.61, 5.62], 6.99, 15.6),
    ],
    "VAE": [
        ([43.88, 75.00, 38.58, 90.09, 51.23, 66.67, 7.89], 42.14, 53.3),
        ([10.33, 13.33, 7.23, 54.82, 9.54, 11.11, 3.49], 9.15, 15.7),
    ],
    "MAE": [
        ([22.78, 75.00, 19.44, 77.78, 34.97, 100, 10.52], 23.80, 48.6),
        ([5.66, 33.33, 4.06, 45.18, 6.89, 17.77, 4.93], 5.87, 16.8),
    ],
    "SI-VAE": [
        ([42.22, 75.00, 46.86, 92.51, 56.09, 100, 15.79], 49.56, 61.2),
        ([8.99, 25.0, 8.52, 45.47, 10.60, 19.44, 4.90], 10.03, 17.6),
    ],
    "DDPM": [
        ([58.33, 100, 50.99, 97.34, 68.07, 100, 25.00], 55.15, 71.4),
        ([12.49, 19.64, 9.41, 50.70, 12.41, 16.66, 7.59], 11.25, 18.4),
    ],
    "RA": [
        ([65.56, 75.00, 65.20, 96.86, 60.36, 66.67, 31.58], 65.26, 65.9),
        ([22.65, 18.75, 14.40, 46.93, 17.99, 15.00, 11.26], 16.11, 21.0),
    ],
}
TABLE_1_HITS = {  # total of 171; edema, mass, lesions, resection, ventricles, craniotomy, septum; what is left
    "DAE": (102, [17, 19, 19, 6, 9, 6, 0], 26),
    "MKD": (87, [14, 15, 11, 7, 17, 0, 1], 22),
    "LTM": (112, [3, 17, 11, 8, 18, 14, 0], 41),
    "VAE": (90, [2, 16, 9, 8, 7, 12, 0], 36),
    "MAE": (84, [2, 14, 7, 7, 7, 12, 0], 35),
    "SI-VAE": (82, [0, 12, 6, 8, 9, 11, 0], 36),
    "DDPM": (100, [5, 16, 9, 7, 9, 14, 1], 39),
    "RA": (142, [12, 21, 17, 10, 18, 13, 1], 50),
}
BRAIN = (18, 26, 22, 10, 19, 15, 1)


@pytest.mark.parametrize("method", TABLE_2)
@pytest.mark.parametrize("column", [0, 1])
def test_the_printed_averages_are_micro_averages(method, column):
    printed, micro, macro = TABLE_2[method][column]
    seen = class_averages({name: [v] * n for (name, n), v in zip(WRIST.items(), printed, strict=True)})
    assert seen.n == WRIST
    assert sum(seen.n.values()) == 12_895
    assert list(seen.mean.values()) == pytest.approx(printed)
    assert seen.micro == pytest.approx(micro, abs=0.005)
    assert seen.macro == pytest.approx(macro, abs=0.0501)


def test_the_mean_over_classes_ranks_another_method_first():
    macro = {method: np.mean(columns[0][0]) for method, columns in TABLE_2.items()}
    assert max(macro, key=macro.get) == "DDPM"
    assert max(TABLE_2, key=lambda method: TABLE_2[method][0][1]) == "RA"


@pytest.mark.parametrize(("hits", "n", "printed"), [(118, 180, 65.56), (1229, 2036, 60.36), (402, 414, 97.10)])
def test_printed_recalls_are_whole_numbers_of_findings(hits, n, printed):
    assert 100 * class_averages({"one": [1.0] * hits + [0.0] * (n - hits)}).micro == pytest.approx(printed, abs=0.005)


@pytest.mark.parametrize("method", TABLE_1_HITS)
def test_the_hits_of_the_classes_that_are_not_printed_follow_by_subtraction(method):
    total, hits, left = TABLE_1_HITS[method]
    seen = class_averages(
        {str(k): [1.0] * h + [0.0] * (n - h) for k, (h, n) in enumerate(zip(hits, BRAIN, strict=True))}
        | {"rest": [1.0] * left + [0.0] * (60 - left)}
    )
    assert sum(seen.n.values()) == 171
    assert 171 * seen.micro == pytest.approx(total)


def test_the_f1_of_the_classes_that_are_not_printed_follows_too():
    printed = (45.56, 30.78, 29.50, 54.32, 77.54, 34.78, 15.38)
    seen = class_averages(
        {str(k): [f] * n for k, (f, n) in enumerate(zip(printed, BRAIN, strict=True))} | {"rest": [32.9] * 60}
    )
    assert seen.micro == pytest.approx(39.73, abs=0.03)  # 0.1 of 60 of 171


def test_a_class_without_findings_has_no_value_and_moves_nothing():
    seen = class_averages({"mass": [1, 0], "septum": [], "edema": [1]})
    assert seen.n == {"mass": 2, "septum": 0, "edema": 1}
    assert seen.mean["mass"] == 0.5
    assert np.isnan(seen.mean["septum"])
    assert (seen.micro, seen.macro) == (pytest.approx(2 / 3), 0.75)
    with pytest.raises(ValueError, match="got none in 1 classes"):
        class_averages({"septum": []})
    with pytest.raises(ValueError, match="finite values"):
        class_averages({"mass": [np.nan]})


def test_the_order_of_findings_does_not_matter():
    a, inside = worked()
    f1 = [hit_ra2024(a, m, ~m, 0.3).f1 for m in (inside, rectangle((8, 8), 0, 0, 1, 3), rectangle((8, 8), 4, 4, 2, 2))]
    assert class_averages({"x": f1}) == class_averages({"x": f1[::-1]})


# Hit rates


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_the_curve_is_the_hit_rate_at_each_threshold(seed):
    maps, boxes = spotty(seed)
    pairs = one_a_finding(maps, boxes)
    thresholds = [pixel_threshold(maps[:1], false_alarms=share) for share in FALSE_ALARMS]
    curve = hit_rate_curve((a for a, _ in pairs), (m for _, m in pairs), thresholds)
    assert curve.tolist() == [hit_rate([a for a, _ in pairs], [m for _, m in pairs], t) for t in thresholds]
    assert (np.diff(curve) >= 0).all()  # more false alarms, more hits


def test_the_area_is_the_mean_height_on_a_log_axis():
    rates = [0.1, 0.3, 0.35, 0.6, 0.9]
    fine = np.exp(np.linspace(np.log(0.005), np.log(0.1), 100_001))
    assert hit_rate_area(rates) == pytest.approx(np.interp(np.log(fine), np.log(FALSE_ALARMS), rates).mean(), abs=1e-5)
    assert hit_rate_area([0.4] * 5) == pytest.approx(0.4)
    assert hit_rate_area([0, 1, 1], [0.01, 0.1, 1]) == pytest.approx(0.75)  # half a decade and one of two


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.6, 0.7, 0.9]))
def test_chance_is_what_all_rolls_give(seed, threshold):
    maps, boxes = spotty(seed, count=3)
    pairs = one_a_finding(maps, boxes)
    every = [
        is_hit(np.roll(a, (i, j), (0, 1)), inside, threshold)
        for a, inside in pairs
        for i in range(20)
        for j in range(24)
    ]
    seen = chance_corrected_hit_rate(*zip(*pairs, strict=True), threshold)
    assert seen.hit_rate == hit_rate(*zip(*pairs, strict=True), threshold)
    assert seen.chance == pytest.approx(np.mean(every), abs=1e-12)
    if seen.chance < 1:
        assert seen.value == pytest.approx((seen.hit_rate - seen.chance) / (1 - seen.chance))


def test_a_volume_rolls_along_three_axes():
    rng = np.random.default_rng(0)
    a, inside = rng.random((4, 5, 7)), rng.random((4, 5, 7)) > 0.9
    every = [
        is_hit(np.roll(a, (i, j, k), (0, 1, 2)), inside, 0.9) for i in range(4) for j in range(5) for k in range(7)
    ]
    assert chance_corrected_hit_rate([a], [inside], 0.9).chance == pytest.approx(np.mean(every), abs=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (4, 5), (8, 13)])
def test_chance_for_independent_pixels_is_a_binomial(rows, columns):
    n = rows * columns
    rng = np.random.default_rng(0)
    maps = [rng.random((64, 64)) for _ in range(40)]
    seen = chance_corrected_hit_rate(maps, [rectangle((64, 64), 9, 9, rows, columns)] * 40, 0.95)
    assert seen.chance == pytest.approx(binom.sf(np.floor(0.1 * n), n, 0.05), abs=0.02)


def test_a_map_that_is_right_gets_one_and_one_that_is_everywhere_nothing():
    inside = rectangle((40, 40), 5, 7, 4, 4)
    seen = chance_corrected_hit_rate([inside.astype(float)], [inside], 0.5)
    assert seen.value == seen.hit_rate == 1
    assert 0 < seen.chance < 0.1
    flat = chance_corrected_hit_rate([np.ones((40, 40))], [inside], 0.5)
    assert (flat.hit_rate, flat.chance) == (1, 1)
    assert np.isnan(flat.value)
    silent = chance_corrected_hit_rate([np.zeros((40, 40))], [inside], 0.5)
    assert silent == (0, 0, 0)


def test_maps_roll_along_all_of_each_axis():
    a = np.zeros((4, 40))
    a[:, 20:] = 1
    seen = chance_corrected_hit_rate([a], [rectangle(a.shape, 1, 1, 1, 1)], 0.5)
    assert seen.chance == 0.5


def test_hit_rates_refuse_what_has_no_value():
    with pytest.raises(ValueError, match="at least one finding"):
        hit_rate_curve([], [], [0.5])
    with pytest.raises(ValueError, match="at least one finding"):
        chance_corrected_hit_rate([], [], 0.5)
    with pytest.raises(ValueError, match="two or more, got 4 and 5"):
        hit_rate_area([0.1, 0.2, 0.3, 0.4])
    with pytest.raises(ValueError, match="rise from above 0"):
        hit_rate_area([0.1, 0.2], [0.0, 0.1])
    with pytest.raises(ValueError, match="rise from above 0"):
        hit_rate_area([0.1, 0.2], [0.1, 0.1])


# Regions


def test_regions_touch_through_corners_and_those_at_a_box_are_not_false():
    a = np.zeros((8, 10))
    a[0, 0] = a[1, 1] = 1  # one region of two pixels
    a[3:6, 6] = 1  # one of three, whose end lies in the box
    a[7, 0] = 1  # one of a single pixel
    inside = rectangle(a.shape, 5, 6, 2, 2)
    assert false_regions([a], [inside], 0.5, min_area=1) == 2
    assert false_regions([a], [inside], 0.5, min_area=2) == 1
    assert false_regions([a, 0 * a], [inside, ~inside & False], 0.5, min_area=1) == 1  # an image
    assert false_regions([a], [np.zeros(a.shape, dtype=bool)], 0.5, min_area=3) == 1  # healthy: all count
    assert false_regions([a], [np.zeros(a.shape, dtype=bool)], 1, min_area=1) == 0  # strictly above


def regions_by_hand(a, threshold):
    """(pixels, maximum) of each region, by scikit-image."""
    found = regionprops(label(a.astype(np.float64) > threshold, connectivity=2), intensity_image=a)
    return [(tuple(region.coords.T), float(region.intensity_max)) for region in found]


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 6))
def test_false_regions_agree_with_scikit_image(seed, min_area):
    maps, boxes = spotty(seed)
    lesions = together(boxes)
    expected = sum(
        len(pixels[0]) >= min_area and not lesion[pixels].any()
        for a, lesion in zip(maps, lesions, strict=True)
        for pixels, _ in regions_by_hand(a, 0.7)
    )
    assert false_regions(iter(maps), iter(lesions), 0.7, min_area=min_area) == expected / len(maps)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from([0.3, 0.6, 0.8]))
def test_froc_is_the_best_that_any_threshold_on_the_score_reaches(seed, threshold):
    maps, boxes = spotty(seed)
    regions = [regions_by_hand(a, threshold) for a in maps]
    points = []
    for least in [np.inf, *{score for own in regions for _, score in own}]:
        kept = [[pixels for pixels, score in own if score >= least] for own in regions]
        false = sum(not any(m[p].any() for m in own) for ps, own in zip(kept, boxes, strict=True) for p in ps)
        found = sum(any(m[p].any() for p in ps) for ps, own in zip(kept, boxes, strict=True) for m in own)
        points.append((false / len(maps), found / sum(map(len, boxes))))
    expected = [max(share for false, share in points if false <= rate) for rate in FROC_RATES]
    assert froc(iter(maps), iter(boxes), threshold) == pytest.approx(expected)


def test_froc_by_hand():
    shape = (5, 9)
    findings = [rectangle(shape, 0, 0, 1, 1), rectangle(shape, 0, 4, 1, 1), rectangle(shape, 4, 8, 1, 1)]
    ill, healthy = np.zeros(shape), np.zeros(shape)
    ill[0, 0], ill[0, 4] = 0.9, 0.5  # two found, the third shows nothing
    healthy[0, 0], healthy[2, 2], healthy[4, 4] = 0.7, 0.5, 0.4
    seen = froc([ill, healthy], [findings, []], 0.3)
    # Two images: up to 1/4 no false region, 1/2 the one of 0.7, 1 also that of 0.5, which ties with a finding.
    assert seen == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])


def test_two_boxes_of_one_class_on_a_slice_are_two_findings_of_one_region():
    a = np.zeros((6, 6))
    a[2, :] = 1
    boxes = [rectangle(a.shape, 2, 0, 1, 2), rectangle(a.shape, 2, 4, 1, 2)]
    assert froc([a], [boxes], 0.5).tolist() == [1] * 7
    assert froc([a], [[boxes[0]] * 2], 0.5).tolist() == [1] * 7
    assert false_regions([a], [boxes[0] | boxes[1]], 0.5, min_area=1) == 0


def test_a_volume_has_regions_too():
    a = np.zeros((4, 4, 4))
    a[0, 0, 0] = a[1, 1, 1] = a[3, 3, 3] = 1
    inside = np.zeros(a.shape, dtype=bool)
    inside[0, 0, 0] = True
    assert false_regions([a], [inside], 0.5, min_area=1) == 1
    assert froc([a], [[inside]], 0.5).tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_the_highest_pixel_points_at_a_finding_or_not():
    a = np.arange(12.0).reshape(3, 4)
    right, wrong, healthy = rectangle((3, 4), 2, 2, 1, 2), rectangle((3, 4), 0, 0, 1, 1), np.zeros((3, 4), dtype=bool)
    assert pointing_game([a, a, a], [right, wrong, healthy]) == 0.5  # a healthy image is no sample
    assert pointing_game([a], [right | wrong]) == 1  # any one box counts
    assert pointing_game([np.zeros((3, 4))], [right]) == pytest.approx(2 / 12)  # says nothing, gets the area
    assert pointing_game([np.minimum(a, 10)], [rectangle((3, 4), 2, 3, 1, 1)]) == 0.5  # one of two highest


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_the_pointing_game_is_what_a_random_choice_among_the_highest_gives(seed):
    maps, boxes = spotty(seed)
    maps = [np.round(a, 1) for a in maps]
    expected = [
        np.mean([any(m[i, j] for m in own) for i, j in np.argwhere(a == a.max())])
        for a, own in zip(maps, boxes, strict=True)
        if own
    ]
    assert pointing_game(maps, together(boxes)) == pytest.approx(np.mean(expected))


# Boxes


def test_the_worked_boxes_cover_their_pixels():
    """D8: the fastMRI+ box on the unflipped array, and the padding of 233 x 197."""
    covered = np.argwhere(box_to_grid((91, 182, 7, 6), (320, 320)))
    assert covered.min(axis=0).tolist() == [182, 91]
    assert covered.max(axis=0).tolist() == [187, 97]
    assert len(covered) == 6 * 7
    whole = box_to_grid((0, 0, 197, 233), (128, 128), offset=(0, 18), scale=128 / 233)
    columns = np.flatnonzero(whole.any(axis=0))
    assert whole.any(axis=1).all()
    assert (columns[0], columns[-1]) == (10, 117)  # 18 * 128 / 233 = 9.89 and 215 * 128 / 233 = 118.11


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(0, 39), st.integers(0, 29), st.integers(1, 12), st.integers(1, 12)),
    st.integers(2, 60),
    st.booleans(),
)
def test_a_box_lands_on_the_pixels_whose_centres_it_holds(box, size, square):
    """Against fractions: a 30 x 40 source, padded to 40 x 40 or not, on a grid of `size` a side."""
    x, y, width, height = box
    offset, shape = ((5, 0), (size, size)) if square else ((0, 0), (max(1, size * 30 // 40), size))
    s = Fraction(size, 40)
    lower, upper = (s * (y + offset[0]), s * x), (s * (y + offset[0] + height), s * (x + width))
    if not square and lower[0] >= shape[0]:
        return
    half = Fraction(1, 2)
    expected = np.array(
        [
            [lower[0] <= i + half < upper[0] and lower[1] <= j + half < upper[1] for j in range(shape[1])]
            for i in range(shape[0])
        ]
    )
    seen = box_to_grid(box, shape, offset=offset, scale=size / 40)
    if expected.any():
        assert (seen == expected).all()
    else:
        ((row, column),) = np.argwhere(seen)
        centre = [(a + b) / 2 for a, b in zip(lower, upper, strict=True)]
        distance = [
            [(i + half - centre[0]) ** 2 + (j + half - centre[1]) ** 2 for j in range(shape[1])]
            for i in range(shape[0])
        ]
        assert distance[row][column] == min(map(min, distance))


def test_a_box_at_the_border_is_cut_and_a_tiny_one_keeps_a_pixel():
    assert np.argwhere(box_to_grid((-2, 6, 4, 5), (8, 8))).tolist() == [[6, 0], [6, 1], [7, 0], [7, 1]]
    assert np.argwhere(box_to_grid((7.6, -0.3, 4, 0.5), (8, 8))).tolist() == [[0, 7]]
    assert np.argwhere(box_to_grid((100, 60, 3, 2), (8, 8), scale=8 / 320)).tolist() == [[1, 2]]


def test_boxes_side_by_side_share_no_pixel():
    left, right = box_to_grid((1, 0, 2.5, 4), (4, 8)), box_to_grid((3.5, 0, 2, 4), (4, 8))
    assert not (left & right).any()
    assert (left | right).sum() == 4 * 4


def test_an_edge_on_a_centre_is_one_though_decimals_are_not_exact():
    assert 7 / 50 * 25 > 3.5
    assert box_to_grid((0, 0, 25, 50), (7, 7), scale=7 / 50).any(axis=0).tolist() == [True] * 3 + [False] * 4


@pytest.mark.parametrize("box", [(3, 3, 0, 4), (3, 3, 4, 0), (3, 3, -1, 4), (np.nan, 3, 4, 4), (3, 3, np.inf, 4)])
def test_a_box_of_no_size_is_refused(box):
    with pytest.raises(ValueError, match="sides above 0"):
        box_to_grid(box, (8, 8))


def test_a_box_that_was_cropped_away_is_refused():
    for box, offset in [((9, 1, 2, 2), (0, 0)), ((1, 1, 2, 2), (-3, 0)), ((1, 8, 2, 2), (0, 0))]:
        with pytest.raises(ValueError, match="lies outside the grid of 8 x 8"):
            box_to_grid(box, (8, 8), offset=offset)


def test_known_healthy_keeps_two_pixels_away_from_every_finding():
    rng = np.random.default_rng(0)
    foreground = ndimage.binary_dilation(rng.random((30, 40)) < 0.05, iterations=3)
    boxes = [rectangle((30, 40), 0, 0, 3, 5), rectangle((30, 40), 12, 20, 6, 4), rectangle((30, 40), 29, 39, 1, 1)]
    healthy = known_healthy(foreground, iter(boxes))
    away = ndimage.distance_transform_cdt(~np.any(boxes, axis=0), metric="chessboard") > 2
    assert (healthy == (foreground & away)).all()
    assert (known_healthy(foreground, []) == foreground).all()
    assert not known_healthy(foreground, [np.ones((30, 40), dtype=bool)]).any()
    with pytest.raises(ValueError, match=r"foreground's shape \(30, 40\), got \(2, 2\)"):
        known_healthy(foreground, [np.ones((2, 2), dtype=bool)])


# What has no value


def of_one(metric):
    return lambda a, inside: metric(a, inside, ~inside, 0.5)


ONE_MAP = {
    "thor": of_one(hit_thor2024),
    "scale-free": of_one(scale_free_false_positives),
    "mass": lambda a, inside: mass_ratio(a, inside, ~inside),
    "curve": lambda a, inside: hit_rate_curve([a], [inside], [0.5]),
    "chance": lambda a, inside: chance_corrected_hit_rate([a], [inside], 0.5),
    "regions": lambda a, inside: false_regions([a], [inside], 0.5, min_area=1),
    "froc": lambda a, inside: froc([a], [[inside]], 0.5),
    "pointing": lambda a, inside: pointing_game([a], [inside]),
    "grid": lambda a, inside: threshold_grid_ra2024([a]),
    "uad-imag": lambda a, inside: threshold_uad_imag([a], false_alarms=0.05),
    "dice": lambda a, inside: best_dice_medianomaly([a], [inside]),
}


@pytest.mark.parametrize("name", ONE_MAP)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_map_with_nan_is_an_error(name, value):
    a = np.zeros((20, 20))
    a[3, 4] = value
    with pytest.raises(ValueError, match="finite maps"):
        ONE_MAP[name](a, np.eye(20, dtype=bool))


@pytest.mark.parametrize("name", [name for name in ONE_MAP if name not in ("grid", "uad-imag", "thor")])
def test_a_mask_of_another_shape_is_an_error(name):
    with pytest.raises(ValueError, match=r"the map's shape \(20, 20\)"):
        ONE_MAP[name](np.zeros((20, 20)), np.eye(19, dtype=bool))


@pytest.mark.parametrize("name", ["thor", "scale-free", "mass", "curve", "chance", "froc", "pointing"])
def test_an_empty_finding_is_an_error(name):
    with pytest.raises(ValueError, match="finding"):
        ONE_MAP[name](np.ones((20, 20)), np.zeros((20, 20), dtype=bool))


def test_no_image_and_negative_maps_are_errors():
    inside = np.eye(3, dtype=bool)
    for nothing in (lambda: froc([], [], 0.5), lambda: pointing_game([], [])):
        with pytest.raises(ValueError, match="at least one finding"):
            nothing()
    with pytest.raises(ValueError, match="at least one image"):
        false_regions([], [], 0.5, min_area=1)
    with pytest.raises(ValueError, match="min_area 0"):
        false_regions([], [], 0.5, min_area=0)
    with pytest.raises(ValueError, match="at least 0 everywhere, got -1"):
        mass_ratio(-np.ones((3, 3)), inside, ~inside)


# Average precision at a stated prevalence, and MedIAnomaly's Dice


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.floats(0.001, 0.999))
def test_ap_at_a_prevalence_is_ap_of_weighted_cases(seed, prevalence):
    rng = np.random.default_rng(seed)
    abnormal = np.arange(60) % 3 == 0
    score = np.round(rng.random(60) + 0.3 * abnormal, 1)
    weights = np.where(abnormal, prevalence / abnormal.sum(), (1 - prevalence) / (~abnormal).sum())
    expected = average_precision_score(abnormal, score, sample_weight=weights)
    assert average_precision_at(abnormal, score, prevalence=prevalence) == pytest.approx(expected)
    assert average_precision_at(abnormal, score, prevalence=1 / 3) == pytest.approx(average_precision(abnormal, score))


def test_ap_at_a_prevalence_forgets_how_many_cases_there_were():
    abnormal = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1], dtype=bool)  # D3
    score = np.array([0.10, 0.20, 0.30, 0.60, 0.15, 0.40, 0.55, 0.60, 0.80, 0.90])
    assert average_precision_at(abnormal, score, prevalence=0.6) == pytest.approx(0.841667, abs=1e-6)
    more = np.where(abnormal, 7, 1)
    assert average_precision(np.repeat(abnormal, more), np.repeat(score, more)) > 0.95
    for p in (0.1, 0.5, 0.855):
        assert average_precision_at(np.repeat(abnormal, more), np.repeat(score, more), prevalence=p) == pytest.approx(
            average_precision_at(abnormal, score, prevalence=p)
        )
        assert average_precision_at(abnormal, np.zeros(10), prevalence=p) == pytest.approx(p)  # chance


def test_ap_at_a_prevalence_of_replicates():
    rng = np.random.default_rng(0)
    abnormal = rng.random(40) < 0.3
    score = np.round(rng.random(40) + 0.3 * abnormal, 1)
    weights = rng.integers(0, 3, (5, 40)).astype(np.int32)
    drawn = weighted_average_precision_at(abnormal, score, weights, prevalence=0.5)
    for value, counts in zip(drawn, weights, strict=True):
        again = average_precision_at(np.repeat(abnormal, counts), np.repeat(score, counts), prevalence=0.5)
        assert value == pytest.approx(again)
    nobody = weights * ~abnormal
    assert np.isnan(weighted_average_precision_at(abnormal, score, nobody, prevalence=0.5)).all()


@pytest.mark.parametrize("prevalence", [0, 1, -0.1, 50, np.nan])
def test_refuses_a_prevalence_that_leaves_one_class(prevalence):
    with pytest.raises(ValueError, match=r"prevalence in \(0, 1\)"):
        average_precision_at(np.array([True, False]), np.array([0.5, 0.1]), prevalence=prevalence)
    with pytest.raises(ValueError, match="need normal and abnormal cases"):
        average_precision_at(np.array([True, True]), np.array([0.5, 0.1]), prevalence=0.5)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([1, 2, 4]))
def test_the_grid_of_medianomaly_is_tried_value_by_value(seed, decimals):
    rng = np.random.default_rng(seed)
    masks = [rng.random((int(rng.integers(9, 30)), 25)) < share for share in (0.0, 0.1, 0.02)]
    masks[1][0, 0] = True
    maps = [np.round(rng.random(m.shape) + 0.5 * m, decimals) for m in masks]
    value, truth = (np.concatenate([each.ravel() for each in them]) for them in (maps, masks))
    grid = np.sort(value)[np.arange(0, value.size, value.size // 200)]
    expected = [2 * (truth & (value > t)).sum() / ((value > t).sum() + truth.sum()) for t in grid]
    best, threshold = best_dice_medianomaly(iter(maps), iter(masks))
    assert best == pytest.approx(max(expected))
    assert threshold == grid[np.argmax(expected)]
    assert best <= best_dice(maps, masks)[0] + 1e-12


def test_the_grid_of_medianomaly_misses_lesions_rarer_than_half_a_percent():
    a = np.arange(10_000.0).reshape(100, 100)
    lesion = a >= 9_990  # ten pixels, and the highest
    assert best_dice([a], [lesion])[0] == 1
    assert best_dice_medianomaly([a], [lesion])[0] == pytest.approx(20 / (49 + 10))  # the last threshold leaves 49
    assert best_dice_medianomaly([a], [a >= 9_951])[0] == 1


def test_the_worked_pixels_come_out_twenty_times_over():
    a, mask = np.linspace(0.9, 0, 10), np.array([1, 1, 0, 1, 0, 0, 1, 0, 0, 0], dtype=bool)  # D4
    assert best_dice_medianomaly([np.repeat(a, 20)], [np.repeat(mask, 20)])[0] == 0.75
    with pytest.raises(ValueError, match="200 pixels in all, got 4 and 10"):
        best_dice_medianomaly([a], [mask])
    with pytest.raises(ValueError, match="need lesion pixels"):
        best_dice_medianomaly([np.zeros(300)], [np.zeros(300, dtype=bool)])
