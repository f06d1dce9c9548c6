import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from salus.metrics import auroc, average_precision, fpr_at_tpr, precision_recall_points, roc_points

ABNORMAL = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1], dtype=bool)  # worked example D3 of the protocols
SCORE = np.array([0.10, 0.20, 0.30, 0.60, 0.15, 0.40, 0.55, 0.60, 0.80, 0.90])


def rounded(seed, n=60):
    rng = np.random.default_rng(seed)
    abnormal = np.arange(n) % 3 == 0
    return abnormal, np.round(rng.random(n) + 0.3 * abnormal, 1)  # one decimal, so that ties happen


def by_pairs(abnormal, score):
    pairs = score[abnormal][:, None] - score[~abnormal][None]
    return ((pairs > 0) + 0.5 * (pairs == 0)).mean()


def test_counts_the_normals_above_the_weakest_abnormal_needed():
    abnormal = np.array([0, 0, 0, 0, 1, 1, 1, 1], dtype=bool)
    score = np.array([0.1, 0.2, 0.5, 0.9, 0.4, 0.6, 0.7, 0.8])
    assert fpr_at_tpr(abnormal, score, tpr=0.75) == 0.25  # threshold 0.6: one normal of four


def test_the_worked_example_comes_out():
    assert auroc(ABNORMAL, SCORE) == pytest.approx(0.770833, abs=1e-6)
    assert average_precision(ABNORMAL, SCORE) == pytest.approx(0.841667, abs=1e-6)
    assert fpr_at_tpr(ABNORMAL, SCORE, tpr=0.95) == fpr_at_tpr(ABNORMAL, SCORE, tpr=0.99) == 0.75
    assert fpr_at_tpr(ABNORMAL, SCORE, tpr=0.80) == 0.25


def test_the_roc_curve_keeps_every_point():
    fpr, tpr = roc_points(ABNORMAL, SCORE)
    assert fpr.tolist() == [0, 0, 0, 0.25, 0.25, 0.25, 0.5, 0.75, 0.75, 1]
    assert tpr == pytest.approx(np.array([0, 1, 2, 3, 4, 5, 5, 5, 6, 6]) / 6)
    thresholds = [0.9, 0.8, 0.6, 0.55, 0.4, 0.3, 0.2, 0.15, 0.1]  # after infinity
    for place, threshold in enumerate(thresholds, start=1):
        assert fpr[place] == (SCORE[~ABNORMAL] >= threshold).mean()
        assert tpr[place] == pytest.approx((SCORE[ABNORMAL] >= threshold).mean())


def test_steps_under_the_precision_recall_curve_are_the_average_precision():
    recall, precision = precision_recall_points(ABNORMAL, SCORE)
    assert (recall[0], precision[0], recall[-1]) == (0, 1, 1)
    assert (np.diff(recall) * precision[1:]).sum() == pytest.approx(average_precision(ABNORMAL, SCORE))


def test_average_precision_is_not_the_trapezoid_under_the_curve():
    precision, recall, _ = precision_recall_curve(ABNORMAL, SCORE)
    assert auc(recall, precision) == pytest.approx(0.852083, abs=1e-6)  # what it must not be
    assert average_precision(ABNORMAL, SCORE) == pytest.approx(0.841667, abs=1e-6)
    assert average_precision_score(ABNORMAL, SCORE) == pytest.approx(0.841667, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.8, 0.95, 0.99, 1.0]))
def test_agrees_with_the_full_roc_curve(seed, tpr):
    abnormal, score = rounded(seed)
    fpr, found, _ = roc_curve(abnormal, score, drop_intermediate=False)
    assert fpr_at_tpr(abnormal, score, tpr=tpr) == pytest.approx(fpr[np.argmax(found >= tpr)])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_auroc_is_the_share_of_pairs_in_order(seed):
    abnormal, score = rounded(seed)
    assert auroc(abnormal, score) == pytest.approx(by_pairs(abnormal, score))
    assert auroc(abnormal, score) == pytest.approx(roc_auc_score(abnormal, score))
    assert auroc(abnormal, score) + auroc(abnormal, -score) == pytest.approx(1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_an_increasing_transform_changes_nothing(seed):
    abnormal, score = rounded(seed)
    assert auroc(abnormal, np.exp(3 * score)) == pytest.approx(auroc(abnormal, score))
    assert average_precision(abnormal, np.exp(3 * score)) == pytest.approx(average_precision_score(abnormal, score))
    assert fpr_at_tpr(abnormal, np.exp(3 * score), tpr=0.9) == fpr_at_tpr(abnormal, score, tpr=0.9)


def test_equal_scores_say_nothing():
    score = np.full(10, 0.3)
    assert auroc(ABNORMAL, score) == 0.5
    assert average_precision(ABNORMAL, score) == pytest.approx(0.6)  # the prevalence
    assert fpr_at_tpr(ABNORMAL, score, tpr=0.95) == 1


def test_lesions_that_lower_the_score_are_reported_as_such():
    assert auroc(ABNORMAL, -SCORE) < 0.5


METRICS = [
    auroc,
    average_precision,
    roc_points,
    precision_recall_points,
    lambda abnormal, score: fpr_at_tpr(abnormal, score, tpr=0.95),
]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("truth", [True, False])
def test_a_missing_class_has_no_value(metric, truth):
    with pytest.raises(ValueError, match="need normal and abnormal cases, got"):
        metric(np.full(4, truth), np.arange(4.0))


@pytest.mark.parametrize("metric", METRICS)
def test_refuses_what_is_no_ranking(metric):
    with pytest.raises(ValueError, match="got 1 nan or infinite of 2"):
        metric(np.array([True, False]), np.array([0.5, np.nan]))
    with pytest.raises(ValueError, match="one score a case"):
        metric(np.array([True, False]), np.zeros(3))
    with pytest.raises(ValueError, match="as booleans, got int"):
        metric(np.array([1, 0]), np.zeros(2))


@pytest.mark.parametrize("tpr", [0.0, -0.1, 1.01, 95.0])
def test_refuses_a_share_outside_zero_to_one(tpr):
    with pytest.raises(ValueError, match=r"tpr in \(0, 1\]"):
        fpr_at_tpr(ABNORMAL, SCORE, tpr=tpr)
