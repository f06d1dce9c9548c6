from collections import Counter
from functools import partial
from itertools import combinations_with_replacement, permutations
from math import factorial, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from salus.metrics import (
    PixelCounts,
    auroc,
    by_stratum,
    compare_ranks,
    critical_difference,
    delong_test,
    delong_variance,
    fpr_at_tpr,
    hanley_mcneil,
    holm,
    interval,
    mcnemar,
    paired_difference,
    resample,
    seed_spread,
    weighted_auroc,
    weighted_average_precision,
    weighted_mean,
)
from salus.metrics import comparison as module

# Demšar 2006, table 6: AUC of four variants of C4.5 on 14 data sets. His ranks of "voting" tell 0.975 from 0.975.
C45 = np.array([
    [0.763, 0.768, 0.771, 0.798],
    [0.599, 0.591, 0.590, 0.569],
    [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657],
    [0.882, 0.888, 0.886, 0.898],
    [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685],
    [0.583, 0.583, 0.563, 0.625],
    [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000],
    [0.940, 0.962, 0.965, 0.962],
    [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.9751, 0.975],
    [0.957, 0.978, 0.946, 0.970],
])  # fmt: skip


def cohort(seed, n=60, decimals=1):
    """Two methods that share half of what they see; one case in three abnormal."""
    rng = np.random.default_rng(seed)
    abnormal = np.arange(n) % 3 == 0
    shared = rng.normal(size=n) + 1.2 * abnormal
    return abnormal, *(np.round(shared + rng.normal(size=n), decimals) for _ in range(2))


# paired DeLong


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0, 1, 6]))
def test_delong_equals_its_definition_pair_by_pair(seed, decimals):
    abnormal, first, second = cohort(seed, decimals=decimals)

    def order(score):
        return np.array([[(p > n) + (p == n) / 2 for n in score[~abnormal]] for p in score[abnormal]])

    a, b = order(first), order(second)
    s10, s01 = np.cov(a.mean(1), b.mean(1)), np.cov(a.mean(0), b.mean(0))
    covariance = s10 / len(a) + s01 / a.shape[1]
    test = delong_test(abnormal, first, second)
    assert test.difference == pytest.approx(a.mean() - b.mean(), abs=1e-12)
    assert test.variance == pytest.approx(np.array([1, -1]) @ covariance @ np.array([1, -1]))


def test_delong_of_mirrored_scores_is_twice_as_far_from_chance():
    abnormal, first, _ = cohort(0)
    mirrored = delong_test(abnormal, first, -first)
    assert mirrored.difference == pytest.approx(2 * auroc(abnormal, first) - 1)
    assert mirrored.variance == pytest.approx(4 * delong_variance(abnormal, first))


def test_delong_finds_5_percent_where_there_is_nothing_to_find():
    p = [delong_test(*cohort(seed, n=150, decimals=6)).p for seed in range(2000)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.015)
    assert np.mean(p) == pytest.approx(0.5, abs=0.03)


def test_delong_is_blind_to_scales_and_to_who_is_first():
    abnormal, first, second = cohort(1)
    test = delong_test(abnormal, first, second)
    assert delong_test(abnormal, np.exp(first), 3 * second - 7) == pytest.approx(test)
    assert delong_test(abnormal, second, first) == pytest.approx((-test.difference, test.variance, test.p))


def test_delong_knows_no_p_without_variance():
    abnormal = np.arange(9) >= 4
    score = np.arange(9.0)
    assert delong_test(abnormal, score, score**3) == (0.0, 0.0, 1.0)
    assert delong_test(abnormal, score, -score) == pytest.approx((1.0, 0.0, np.nan), nan_ok=True)


def test_cases_that_are_there_twice_are_one_patient_each():
    abnormal, first, second = cohort(2)
    twice = [np.tile(one, 2) for one in (abnormal, first, second)]
    patients = [f"{case:02}" for case in range(60)]
    once = delong_test(abnormal, first, second)
    assert delong_test(abnormal, first, second, patients) == pytest.approx(once)
    assert delong_test(*twice, patients * 2) == pytest.approx(once)
    assert delong_test(*twice).variance < 0.55 * once.variance, "which taken as independent cases look surer"


def test_delong_of_patients_with_cases_of_both_classes_equals_its_definition():
    """Obuchowski 1997, equations 3 to 5, patient by patient."""
    abnormal, first, second = cohort(6, n=90, decimals=6)
    patients = np.array([f"{case // 5:02}" for case in range(90)])
    order = first[abnormal][:, None] > first[~abnormal]
    other = second[abnormal][:, None] > second[~abnormal]
    gap = order.astype(float) - other
    ill, well = gap.mean(1) - gap.mean(), gap.mean(0) - gap.mean()
    names = sorted(set(patients))
    a = np.array([ill[patients[abnormal] == name].sum() for name in names])
    b = np.array([well[patients[~abnormal] == name].sum() for name in names])
    k, (m, n) = len(names), gap.shape
    variance = k / (k - 1) * ((a**2).sum() / m**2 + (b**2).sum() / n**2 + 2 * (a * b).sum() / (m * n))
    assert delong_test(abnormal, first, second, patients).variance == pytest.approx(variance)


def test_delong_of_patients_finds_5_percent_where_there_is_nothing_to_find():
    def p(seed, **known):
        rng = np.random.default_rng(seed)
        patients = np.repeat(np.arange(60), 4)
        abnormal = patients % 3 == 0
        noise = rng.normal(size=(2, 60))[:, patients] + 0.5 * rng.normal(size=(2, 240))
        first, second = abnormal + noise
        return delong_test(abnormal, first, second, **({"patients": list(map(str, patients))} if known else {})).p

    assert np.mean([p(seed, known=True) < 0.05 for seed in range(1000)]) == pytest.approx(0.05, abs=0.025)
    assert np.mean([p(seed) < 0.05 for seed in range(200)]) > 0.15, "patients matter"


def test_delong_of_several_trainings_is_of_their_mean():
    abnormal, first, second = cohort(5)
    _, third, fourth = cohort(7)
    several = delong_test(abnormal, np.stack([first, third]), np.stack([second, fourth]))
    each = delong_test(abnormal, first, second), delong_test(abnormal, third, fourth)
    assert several.difference == pytest.approx((each[0].difference + each[1].difference) / 2)
    assert delong_test(abnormal, np.stack([first, first, first]), second) == pytest.approx(each[0])
    many = resample([str(case) for case in range(60)], abnormal, replicates=4000)
    gap = sum(weighted_auroc(abnormal, up, many) - weighted_auroc(abnormal, down, many)
              for up, down in ((first, second), (third, fourth))) / 2  # fmt: skip
    assert several.variance == pytest.approx(gap.var(), rel=0.15)


# paired bootstrap


def test_the_bootstrap_and_delong_agree_on_a_large_sample():
    abnormal, first, second = cohort(3, n=1500, decimals=6)
    weights = resample([str(i) for i in range(1500)], abnormal)
    difference, (low, high) = paired_difference(partial(weighted_auroc, abnormal), first, second, weights)
    test = delong_test(abnormal, first, second)
    half = 1.96 * test.variance**0.5
    assert difference == pytest.approx(test.difference)
    assert (low, high) == pytest.approx((difference - half, difference + half), abs=0.07 * half)


def test_pairing_narrows_the_interval():
    abnormal, first, second = cohort(4, n=600, decimals=6)
    patients = [str(i) for i in range(600)]
    weights = resample(patients, abnormal)
    _, (low, high) = paired_difference(partial(weighted_average_precision, abnormal), first, second, weights)
    apart = weighted_average_precision(abnormal, first, weights) - weighted_average_precision(
        abnormal, second, resample(patients, abnormal, seed=1)
    )
    assert high - low < 0.85 * np.ptp(interval(apart))


def test_a_difference_of_means_follows_the_patients():
    """By hand: two patients, the draw (2, 0) or (0, 2) shows one of them alone."""
    first, second = np.array([1.0, 0.0, np.nan]), np.array([0.0, 0.5, np.nan])
    weights = np.array([[2, 0, 0], [0, 2, 1], [1, 1, 2]])
    value, ends = paired_difference(weighted_mean, first, second, weights)
    assert value == pytest.approx(0.25)
    assert ends == pytest.approx(interval(np.array([1.0, -0.5, 0.25])))


def test_pixels_are_compared_by_case_too():
    rng = np.random.default_rng(0)
    masks = rng.random((8, 6, 6)) > 0.7
    edges = np.linspace(-0.01, 2, 30)
    one, other = (
        PixelCounts.merge([PixelCounts.of(m + rng.random((6, 6)), m, edges) for m in masks]) for _ in range(2)
    )
    weights = resample(list("abcdefgh"), np.ones(8, dtype=bool), replicates=50)
    value, ends = paired_difference(lambda counts, weights: counts.pooled(weights).ap(), one, other, weights)
    assert value == pytest.approx((one.pooled().ap() - other.pooled().ap())[0])
    assert ends == interval(one.pooled(weights).ap() - other.pooled(weights).ap())


def test_what_is_not_paired_is_refused():
    weights = np.ones((5, 3), dtype=int)
    with pytest.raises(ValueError, match=r"same cases of both, got \(3,\) and \(2,\)"):
        paired_difference(weighted_mean, np.zeros(3), np.zeros(2), weights)
    with pytest.raises(ValueError, match="got 1 cases with a value of one only"):
        paired_difference(weighted_mean, np.zeros(3), np.array([0, 1, np.nan]), weights)
    with pytest.raises(ValueError, match=r"need weights \(replicates, 4\)"):
        paired_difference(weighted_mean, np.zeros(4), np.zeros(4), weights)


# McNemar


def test_mcnemar_tosses_a_coin_for_the_trials_in_dispute():
    first = np.array([1] * 20 + [1] * 9 + [0] * 2 + [0] * 5, dtype=bool)
    second = np.array([1] * 20 + [0] * 9 + [1] * 2 + [0] * 5, dtype=bool)
    by_hand = 2 * (1 + 11 + 55) / 2**11  # none, one or two of eleven, either side
    assert mcnemar(first, second) == (9, 2, pytest.approx(by_hand))
    assert mcnemar(second, first) == (2, 9, pytest.approx(by_hand))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_mcnemar_equals_the_binomial_test(seed):
    first, second = np.random.default_rng(seed).random((2, 40)) > [[0.3], [0.5]]
    only = sum(a and not b for a, b in zip(first, second, strict=True))
    disputed = sum(a != b for a, b in zip(first, second, strict=True))
    assert mcnemar(first, second).p == pytest.approx(binomtest(only, disputed, 0.5).pvalue)


def test_mcnemar_without_dispute_finds_nothing():
    assert mcnemar(np.array([True, False]), np.array([True, False])) == (0, 0, 1.0)


def test_mcnemar_refuses_what_is_not_paired_verdicts():
    with pytest.raises(ValueError, match=r"same trials of both methods, got \(3,\) and \(2,\)"):
        mcnemar(np.ones(3, dtype=bool), np.ones(2, dtype=bool))
    with pytest.raises(ValueError, match="need booleans, got bool and float64"):
        mcnemar(np.ones(2, dtype=bool), np.array([1, np.nan]))


# Holm


def test_holm_by_hand():
    """0.01 times 4, 0.02 times 3, 0.03 times 2 (not below 0.06), 0.04 times 1 (not below either)."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx(np.array([0.06, 0.04, 0.06, 0.06]))


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [  # R's multtest, as statsmodels keeps it in its tests; the first to six digits
        (
            [
                0.838541,
                0.642194,
                0.680846,
                0.967834,
                0.716269,
                0.177097,
                5.23657e-05,
                0.0202733,
                0.000281405,
                0.0149877,
            ],
            [1, 1, 1, 1, 1, 1, 5.23657e-04, 0.141913, 2.53265e-03, 0.119902],
        ),
        ([0.002, 0.004, 0.006, 0.008, 0.01, 0.012], [0.012, 0.02, 0.024, 0.024, 0.024, 0.024]),
        (
            [0.001, 0.002, 0.003, 0.004, 0.005, 0.05, 0.06, 0.07, 0.08, 0.09],
            [0.01, 0.018, 0.024, 0.028, 0.03, 0.25, 0.25, 0.25, 0.25, 0.25],
        ),
    ],
)
def test_holm_gives_the_values_of_multtest(raw, adjusted):
    assert holm(raw) == pytest.approx(np.array(adjusted), rel=5e-6)


def test_holm_errs_in_5_percent_of_the_families():
    p = np.random.default_rng(0).random((4000, 8))
    assert np.mean([holm(family).min() < 0.05 for family in p]) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("p", [[0.1, np.nan], [0.1, 1.01], [-0.1], [[0.1]]])
def test_holm_refuses_what_is_no_p(p):
    with pytest.raises(ValueError, match=r"p-values in \[0, 1\]"):
        holm(p)


# Hanley and McNeil


@pytest.mark.parametrize(
    ("area", "abnormal", "normal", "half"),
    [  # protocols.md, A12: half widths of published figures, points
        (84.64, 6012, 1019, 1.0),  # pneumonia, RA
        (82.60, 6012, 1019, 1.1),  # pneumonia, DAE
        (84.69, 2474, 1283, 1.2),  # COVID-19, RA
        (78.90, 2474, 1283, 1.4),  # COVID-19, DAE
        (73.00, 1000, 1000, 2.2),
        (75.00, 600, 600, 2.7),
        (82.60, 1948, 828, 1.5),  # BraTS
    ],
)
def test_hanley_mcneil_gives_the_half_widths_of_the_published_figures(area, abnormal, normal, half):
    assert round(100 * hanley_mcneil(area / 100, abnormal, normal), 1) == half


def test_hanley_mcneil_to_the_last_digit():
    assert hanley_mcneil(0.8464, 6012, 1019) == pytest.approx(0.01017, abs=5e-6)  # protocols.md, D7


def test_hanley_mcneil_is_right_for_exponential_scores():
    rng = np.random.default_rng(0)
    ill, well = 4 * rng.exponential(size=(20_000, 15)), rng.exponential(size=(20_000, 25))  # AUROC 4 / 5
    areas = (ill[:, :, None] > well[:, None]).mean(axis=(1, 2))
    assert hanley_mcneil(0.8, 15, 25) == pytest.approx(1.96 * areas.std(), rel=0.02)


@pytest.mark.parametrize(("area", "ill", "well"), [(1.1, 5, 5), (np.nan, 5, 5), (0.8, 0, 5), (0.8, 5, 0)])
def test_hanley_mcneil_refuses_what_is_no_auroc(area, ill, well):
    with pytest.raises(ValueError, match=f"got {area}, {ill}, {well}"):
        hanley_mcneil(area, ill, well)


# seeds


def test_seeds_and_patients_are_told_apart():
    """Trainings that agree to a hair on few patients, and trainings that differ on patients all alike."""
    rng = np.random.default_rng(0)
    patients = rng.random(30)
    weights = resample([str(i) for i in range(30)], np.zeros(30, dtype=bool))
    agreed = seed_spread(weighted_mean, [patients, patients + 0.001, patients - 0.001], weights)
    assert agreed.seed_sd == pytest.approx(0.001)
    assert agreed.case_interval == pytest.approx(interval(weighted_mean(patients, weights)))
    alike = seed_spread(weighted_mean, [np.full(30, 0.2), np.full(30, 0.5), np.full(30, 0.8)], weights)
    assert alike == (pytest.approx(0.5), pytest.approx(0.3), pytest.approx((0.5, 0.5)))


def test_the_spread_of_seeds_is_that_of_the_plain_metric():
    abnormal, *runs = cohort(5)
    weights = resample([str(i) for i in range(60)], abnormal, replicates=200)
    spread = seed_spread(partial(weighted_auroc, abnormal), runs, weights)
    values = [auroc(abnormal, run) for run in runs]
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.seed_sd == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert spread.case_interval == interval(np.mean([weighted_auroc(abnormal, run, weights) for run in runs], axis=0))


def test_one_training_has_no_spread():
    with pytest.raises(ValueError, match="at least two trainings, got 1"):
        seed_spread(weighted_mean, [np.zeros(3)], np.ones((2, 3), dtype=int))
    with pytest.raises(ValueError, match="got 1 cases with a value of one only"):
        seed_spread(weighted_mean, [np.zeros(2), np.array([0, np.nan])], np.ones((2, 2), dtype=int))


# strata


def test_each_stratum_has_its_counts_and_its_value():
    abnormal = np.array([0, 1, 0, 1, 1, 0, 0], dtype=bool)
    score = np.array([0.1, 0.2, 0.3, 0.9, 0.2, 0.5, 0.4])
    view = ["AP", "AP", "PA", "PA", "AP", "AP", "lateral"]
    strata = by_stratum(auroc, view, abnormal, score)
    assert strata == {"AP": (2, 2, 0.5), "PA": (1, 1, 1.0), "lateral": (0, 1, None)}
    assert list(strata) == ["AP", "PA", "lateral"]
    assert by_stratum(partial(fpr_at_tpr, tpr=0.95), view, abnormal, score)["AP"].value == 0.5


def test_a_group_that_gives_the_label_away_shows_as_strata_without_value():
    abnormal = np.arange(6) >= 3
    strata = by_stratum(auroc, ["old"] * 3 + ["new"] * 3, abnormal, np.arange(6.0))
    assert {s.value for s in strata.values()} == {None}


def test_strata_refuse_groups_of_other_cases():
    abnormal, first, _ = cohort(0)
    with pytest.raises(ValueError, match="one group a case, got 2 groups and 60 cases"):
        by_stratum(auroc, ["a", "b"], abnormal, first)


# ranks over data sets


@pytest.mark.parametrize(
    ("alpha", "printed"),
    [  # Demšar 2006, table 5 (a): q of 2 to 10 methods
        (0.05, [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]),
        (0.10, [1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920]),
    ],
)
def test_nemenyi_has_the_q_of_the_printed_table(alpha, printed):
    q = [critical_difference(k, 20, alpha=alpha) / (k * (k + 1) / 120) ** 0.5 for k in range(2, 11)]
    assert q == pytest.approx(printed, abs=0.0011)


def test_ranks_of_the_published_example():
    ranks, statistic, p, distance = compare_ranks(C45)
    assert ranks == pytest.approx(np.array([3.143, 2.000, 2.893, 1.964]), abs=5e-4)
    ties = 3 * (2**3 - 2) + (4**3 - 4)  # three pairs and a four; he prints 9.28 without correcting for them
    assert statistic * (1 - ties / (14 * (4**3 - 4))) == pytest.approx(9.28, abs=0.005)
    assert p < 0.05
    assert round(distance, 2) == 1.25
    assert round(compare_ranks(C45, alpha=0.10).critical_difference, 2) == 1.12


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_friedman_with_ties_equals_its_definition(seed):
    values = np.random.default_rng(seed).integers(0, 3, size=(7, 4)).astype(float)
    rank = np.array([[(row > v).sum() + ((row == v).sum() + 1) / 2 for v in row] for row in values])
    between = 3 * ((rank.sum(0) - 7 * 2.5) ** 2).sum()  # Conover: (k - 1) times
    within = (rank**2).sum() - 7 * 4 * 25 / 4
    comparison = compare_ranks(values)
    assert comparison.ranks == pytest.approx(rank.mean(0))
    assert comparison.statistic == pytest.approx(between / within)


def test_five_data_sets_are_enough_for_an_honest_test_and_four_are_not(monkeypatch):
    """How often three equal methods seem to differ, over all equally likely tables of ranks."""

    def errors(datasets):
        wrong = np.zeros(2)
        for orders in combinations_with_replacement(list(permutations(range(3))), datasets):
            test = compare_ranks(np.array(orders, dtype=float))
            tables = factorial(datasets) / prod(factorial(n) for n in Counter(orders).values())
            wrong += tables * np.array([test.p < 0.05, np.ptp(test.ranks) >= test.critical_difference])
        return wrong / 6**datasets

    assert errors(5) == pytest.approx(np.array([0.039, 0.039]), abs=5e-4)
    monkeypatch.setattr(module, "MIN_DATASETS", 4)
    assert errors(4) == pytest.approx(np.array([0.069, 0.042]), abs=5e-4)


def test_methods_that_always_tie_do_not_differ():
    ranks, statistic, p, _ = compare_ranks(np.ones((5, 3)))
    assert (ranks.tolist(), statistic, p) == ([2, 2, 2], 0, 1)


def test_ranks_refuse_too_little_and_gaps():
    with pytest.raises(ValueError, match="two methods and 5 data sets, got 3 methods and 4 data sets"):
        compare_ranks(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="got 1 methods and 6 data sets"):
        compare_ranks(np.zeros((6, 1)))
    with pytest.raises(ValueError, match="at least three methods, got 2"):
        compare_ranks(np.zeros((6, 2)))
    with pytest.raises(ValueError, match="every data set, got 1 not"):
        compare_ranks(np.array([[1, 2, 3]] * 5 + [[1, np.nan, 3]]))
    with pytest.raises(ValueError, match=r"need values \(data sets, methods\), got \(3,\)"):
        compare_ranks(np.zeros(3))


# what all of it refuses


@pytest.mark.parametrize("broken", [np.zeros(59), np.full(60, np.nan)])
def test_scores_that_do_not_fit_are_refused(broken):
    abnormal, first, _ = cohort(0)
    weights = resample([str(i) for i in range(60)], abnormal, replicates=3)
    for refused in (
        lambda: delong_test(abnormal, first, broken),
        lambda: delong_test(abnormal, broken, first),
        lambda: by_stratum(auroc, ["a"] * 60, abnormal, broken),
        lambda: paired_difference(partial(weighted_auroc, abnormal), first, broken, weights),
    ):
        with pytest.raises(
            ValueError, match=r"need (one score a case|finite scores|the same cases|values of the same)"
        ):
            refused()


def test_one_class_has_no_comparison():
    score = np.arange(4.0)
    with pytest.raises(ValueError, match="normal and abnormal cases, got 4 abnormal of 4"):
        delong_test(np.ones(4, dtype=bool), score, score)
    with pytest.raises(ValueError, match="two cases of each class, got 1 abnormal and 3 normal"):
        delong_test(score > 2, score, score)
    with pytest.raises(ValueError, match="two patients of each class, got 1 with abnormal and 2 with normal cases"):
        delong_test(score > 1, score, score, ["a", "b", "c", "c"])
    with pytest.raises(ValueError, match="one patient a case, got 3 and 4"):
        delong_test(score > 1, score, score, ["a", "b", "c"])
    with pytest.raises(ValueError, match="normal and abnormal cases, got 0 abnormal of 4"):
        paired_difference(partial(weighted_auroc, score > 9), score, -score, np.ones((2, 4), dtype=int))
