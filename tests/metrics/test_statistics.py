import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from salus.metrics import (
    auroc,
    average_precision,
    curves,
    delong_variance,
    flagged_share,
    fpr_at_tpr,
    interval,
    resample,
    weighted_auroc,
    weighted_average_precision,
    weighted_fpr_at_tpr,
    weighted_mean,
    wilson,
)

PAIRS = [
    (auroc, weighted_auroc),
    (average_precision, weighted_average_precision),
    (
        lambda abnormal, score: fpr_at_tpr(abnormal, score, tpr=0.9),
        lambda abnormal, score, weights: weighted_fpr_at_tpr(abnormal, score, weights, tpr=0.9),
    ),
]


def cohort(seed, n=60, decimals=1):
    """Two images a patient; one image in three abnormal, so that patients are mixed."""
    rng = np.random.default_rng(seed)
    abnormal = np.arange(n) % 3 == 0
    return [f"p{i // 2}" for i in range(n)], abnormal, np.round(rng.random(n) + 0.3 * abnormal, decimals)


@pytest.mark.parametrize(("plain", "weighted"), PAIRS)
def test_weights_of_one_give_the_plain_metric(plain, weighted):
    _, abnormal, score = cohort(0)
    assert weighted(abnormal, score, np.ones((3, 60), dtype=int)) == pytest.approx(np.full(3, plain(abnormal, score)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(PAIRS))
def test_a_replicate_equals_the_metric_of_the_cases_drawn(seed, pair):
    plain, weighted = pair
    patients, abnormal, score = cohort(seed)
    weights = resample(patients, abnormal, replicates=4, seed=seed)
    drawn = [plain(np.repeat(abnormal, row), np.repeat(score, row)) for row in weights]
    assert weighted(abnormal, score, weights) == pytest.approx(np.array(drawn))


def test_blocks_leave_the_values_as_they_are(monkeypatch):
    patients, abnormal, score = cohort(1)
    weights = resample(patients, abnormal, replicates=50)
    whole = weighted_auroc(abnormal, score, weights)
    monkeypatch.setattr(curves, "BLOCK", 7 * 60)
    assert (weighted_auroc(abnormal, score, weights) == whole).all()


def test_all_cases_of_a_patient_are_drawn_together():
    weights = resample(["b", "a", "b", "c"], np.array([True, False, False, False]), replicates=200, seed=1)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 0] == 1).all()  # the one abnormal patient is a stratum of its own
    assert (weights[:, 1] + weights[:, 3] == 2).all()
    assert weights[:, 1].mean() == pytest.approx(1, abs=0.15)


def test_each_stratum_keeps_its_number_of_patients():
    patients, abnormal, _ = cohort(0)
    ill = np.array([abnormal[i // 2 * 2 : i // 2 * 2 + 2].any() for i in range(60)])
    weights = resample(patients, abnormal, replicates=100)
    assert (weights[:, ill].sum(axis=1) == ill.sum()).all()
    assert (weights[:, ~ill].sum(axis=1) == (~ill).sum()).all()


def test_healthy_cases_alone_can_be_resampled():
    weights = resample(["a", "b", "c"], np.zeros(3, dtype=bool), replicates=5)
    assert (weights.sum(axis=1) == 3).all()


def test_the_seed_decides():
    patients, abnormal, _ = cohort(0)
    draw = resample(patients, abnormal, replicates=5, seed=3)
    assert (draw == resample(patients, abnormal, replicates=5, seed=3)).all()
    assert (draw != resample(patients, abnormal, replicates=5, seed=4)).any()


@pytest.mark.parametrize("weighted", [weighted for _, weighted in PAIRS])
def test_a_draw_without_one_class_has_no_value(weighted):
    abnormal, score = np.array([True, True, False]), np.array([0.3, 0.2, 0.1])
    values = weighted(abnormal, score, np.array([[1, 1, 1], [2, 1, 0], [0, 0, 3]]))
    assert np.isnan(values).tolist() == [False, True, True]


def test_an_interval_leaves_out_draws_without_value():
    assert interval(np.append(np.arange(101.0), np.nan)) == pytest.approx((2.5, 97.5))
    assert interval(np.arange(101.0), level=0.8) == pytest.approx((10, 90))
    with pytest.raises(ValueError, match="got none of 2"):
        interval(np.full(2, np.nan))


def test_a_mean_counts_each_case_as_often_as_drawn():
    values = np.array([1.0, 2.0, np.nan])
    means = weighted_mean(values, np.array([[1, 1, 1], [3, 1, 0], [0, 0, 2]]))
    assert means == pytest.approx(np.array([1.5, 1.25, np.nan]), nan_ok=True)


@pytest.mark.parametrize(
    ("found", "total", "lower", "upper"),
    [
        (142, 171, 76.7, 87.9),
        (102, 171, 52.2, 66.7),
        (100, 171, 51.0, 65.6),
        (18, 19, 75.4, 99.1),
        (13, 15, 62.1, 96.3),
        (14, 15, 70.2, 98.8),
        (147, 171, 80.0, 90.4),
        (112, 171, 58.1, 72.2),
        (90, 171, 45.2, 60.0),
        (12, 18, 43.7, 83.7),
        (17, 18, 74.2, 99.0),
        (10, 10, 72.2, 100),
        (3, 4, 30.1, 95.4),
        (2, 3, 20.8, 93.9),
        (24, 76, 22.2, 42.7),
        (1, 1, 20.7, 100),
        (0, 1, 0, 79.3),
    ],
)
def test_wilson_gives_the_intervals_of_the_published_counts(found, total, lower, upper):
    low, high = wilson(found, total)
    assert (round(100 * low, 1), round(100 * high, 1)) == (lower, upper)


@pytest.mark.parametrize(("found", "total"), [(0, 0), (2, 1), (-1, 3)])
def test_wilson_refuses_what_is_no_proportion(found, total):
    with pytest.raises(ValueError, match=f"got {found} of {total}"):
        wilson(found, total)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_delong_equals_its_definition_pair_by_pair(seed):
    _, abnormal, score = cohort(seed)
    order = np.sign(score[abnormal][:, None] - score[~abnormal][None]) / 2 + 0.5
    variance = order.mean(1).var(ddof=1) / len(order) + order.mean(0).var(ddof=1) / order.shape[1]
    assert delong_variance(abnormal, score) == pytest.approx(variance)


def test_delong_and_the_bootstrap_agree():
    _, abnormal, score = cohort(2, n=600, decimals=6)
    replicates = weighted_auroc(abnormal, score, resample([str(i) for i in range(600)], abnormal))
    assert replicates.var() == pytest.approx(delong_variance(abnormal, score), rel=0.1)


def test_clusters_widen_the_interval():
    """Every image ten times over: the bootstrap by patient is not fooled."""
    abnormal, score = cohort(3, n=60)[1:]
    copies = np.repeat(np.arange(60), 10)
    alone = weighted_auroc(abnormal, score, resample([str(i) for i in range(60)], abnormal))
    cloned = weighted_auroc(abnormal[copies], score[copies], resample([str(i) for i in copies], abnormal[copies]))
    assert interval(cloned) == pytest.approx(interval(alone))


def test_refuses_what_does_not_fit_together():
    _, abnormal, score = cohort(0)
    with pytest.raises(ValueError, match="one patient a case, got 1 patients and 60 cases"):
        resample(["a"], abnormal)
    with pytest.raises(ValueError, match=r"need weights \(replicates, 60\), got \(2, 59\)"):
        weighted_auroc(abnormal, score, np.ones((2, 59), dtype=int))
    with pytest.raises(ValueError, match=r"need weights \(replicates, 3\)"):
        weighted_mean(np.zeros(3), np.ones((2, 4), dtype=int))
    with pytest.raises(ValueError, match="two cases of each class, got 1 abnormal and 2 normal"):
        delong_variance(np.array([True, False, False]), np.arange(3.0))


@pytest.mark.parametrize(("n", "above"), [(19, 1), (44, 2), (1000, 50)])
def test_the_share_that_a_threshold_flags_is_where_a_binomial_says(n, above):
    """A threshold flags less than x where at least k of n healthy draws lie among the x most striking."""
    low, high = flagged_share(list(range(n)), n - above)
    assert binom.sf(above - 1, n, low) == pytest.approx(0.025)
    assert binom.sf(above - 1, n, high) == pytest.approx(0.975)


def test_95_of_100_calibrations_flag_what_was_said():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(2000):
        scores = np.sort(rng.random(44))
        low, high = flagged_share(scores, scores[-2])
        inside.append(low <= 1 - scores[-2] <= high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_a_threshold_above_all_scores_is_refused():
    with pytest.raises(ValueError, match="above all 3"):
        flagged_share([0.1, 0.2, 0.3], 0.4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([4, 1 << 15]))
def test_draws_are_those_of_one_generator_draw_by_draw(seed, count, share, at_once):
    rng = np.random.default_rng(seed)
    patients = [str(name) for name in rng.integers(0, max(1, 2 * count // 3), count)]
    abnormal = rng.random(count) < share
    names, of = np.unique(patients, return_inverse=True)
    ill = np.array([abnormal[of == number].any() for number in range(len(names))])
    strata = [members for members in (np.flatnonzero(ill), np.flatnonzero(~ill)) if len(members)]
    one, expected = np.random.default_rng(seed), []
    for _ in range(30):
        drawn = [int(members[one.integers(len(members))]) for members in strata for _ in members]
        expected.append([drawn.count(number) for number in of])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("salus.metrics.statistics.DRAWS", at_once)
        assert resample(patients, abnormal, replicates=30, seed=seed).tolist() == expected
