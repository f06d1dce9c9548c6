"""Is one method better than another, or was it the draw of patients, the training, or the data set?

    paired_difference(partial(weighted_auroc, abnormal), score, other, weights)  # any metric, by patient
    delong_test(abnormal, score, other, patients).p                              # AUROC alone, in closed form
    holm([p_against_ae, p_against_vae, p_against_ra])                            # a family of comparisons
    compare_ranks(values)                                                        # methods over many data sets

All comparisons are paired: both methods judged the same cases. `first` minus `second`, everywhere.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, friedmanchisquare, norm, rankdata, studentized_range

from salus.metrics.ranking import check_cases
from salus.metrics.statistics import Floats, Weights, interval, placements

T = TypeVar("T")

MIN_DATASETS = 5  # with 4, Friedman's chi-squared test of three equal methods at 5 % finds a difference in 6.9 %


class PairedDifference(NamedTuple):
    """What `paired_difference` says: first minus second, and the interval of that over patients."""

    value: float
    interval: tuple[float, float]


class DeLong(NamedTuple):
    """What `delong_test` says: first minus second, the variance of that, and the two-sided p."""

    difference: float
    variance: float
    p: float


class McNemar(NamedTuple):
    """What `mcnemar` says: trials that only one of the two got right, and the two-sided p."""

    only_first: int
    only_second: int
    p: float


class SeedSpread(NamedTuple):
    """What `seed_spread` says: training luck in `seed_sd`, the draw of patients in `case_interval`."""

    mean: float
    seed_sd: float
    case_interval: tuple[float, float]


class Stratum(NamedTuple):
    """What `by_stratum` says of one group; no value (None) where a class is missing."""

    n_abnormal: int
    n_normal: int
    value: float | None


class RankComparison(NamedTuple):
    """What `compare_ranks` says: (methods,) mean ranks, Friedman's test, and the distance that separates two ranks."""

    ranks: Floats
    statistic: float
    p: float
    critical_difference: float


def paired_difference(
    metric: Callable[[T, Weights], Floats], first: T, second: T, weights: Weights, *, level: float = 0.95
) -> PairedDifference:
    """Difference of two methods in any metric, with its bootstrap interval over patients.

    Every draw of patients serves both methods, so what makes a patient hard for both cancels out: two wide
    intervals that overlap can still differ surely.

    Args:
        metric: from what a method said of all cases and (replicates, n) weights to (replicates,) values, such as
            `weighted_mean`, `partial(weighted_auroc, abnormal)` or `lambda c, w: c.pooled(w).ap()` for `PixelCounts`.
        first: what the first method said: (n,) scores, hits or values, or whatever else `metric` takes.
        second: the same of the second method, cases in the same order.
        weights: (replicates, n) of `resample`; for findings `weights[:, case_of_finding]`.
        level: share of the replicates inside the interval, in (0, 1).

    Returns:
        The difference on all cases, each counted once, and its interval; both in the metric's unit.

    Raises:
        ValueError: arrays of different shape, or with nan at different cases; as for `metric` and `interval`.

    Source: percentile bootstrap of paired cases, Davison and Hinkley 1997, chapters 3 and 5.
    """
    _check_same_cases(first, second)

    def difference(weights: Weights) -> Floats:
        return metric(first, weights) - metric(second, weights)

    return PairedDifference(float(difference(_everyone(weights))[0]), interval(difference(weights), level=level))


def delong_test(
    abnormal: NDArray[np.bool_],
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    patients: Sequence[str] | NDArray[np.str_] | None = None,
) -> DeLong:
    """Do two AUROCs of the same cases differ?

    Args:
        abnormal: (n,) truth, one entry a case; at least two patients with cases of each class.
        first: (n,) scores of the first method, higher is more abnormal, any scale; or (trainings, n), whose mean AUROC
            is compared. The variance is that over patients; another training is not in it.
        second: the same of the second method, on a scale of its own; as many trainings or not.
        patients: (n,) whom each case belongs to; None takes all cases as independent.

    Returns:
        AUROC of the first minus that of the second, its variance (interval: difference ± 1.96 √variance), and the
        two-sided p. Equal AUROCs without variance have p = 1, different ones (both orders perfect or reversed)
        no p: nan.

    Raises:
        ValueError: as for `auroc` of either, not one patient a case, or one patient alone has the cases of a class.

    Source: DeLong, DeLong and Clarke-Pearson 1988, doi:10.2307/2531595, by midranks (Sun and Xu 2014,
    doi:10.1109/LSP.2014.2337313); several cases a patient: Obuchowski 1997, doi:10.2307/2533958.
    """
    (above, below), (other_above, other_below) = _mean_placements(abnormal, first), _mean_placements(abnormal, second)
    ill, well = len(above), len(below)
    if patients is not None and len(patients) != len(abnormal):
        raise ValueError(f"need one patient a case, got {len(patients)} and {len(abnormal)}")
    whose = np.arange(len(abnormal)) if patients is None else np.unique(patients, return_inverse=True)[1]
    people = whose.max() + 1
    with_ill, with_well = len(set(whose[abnormal])), len(set(whose[~abnormal]))
    if min(with_ill, with_well) < 2:
        if patients is None:
            raise ValueError(f"need two cases of each class, got {ill} abnormal and {well} normal")
        raise ValueError(
            f"need two patients of each class, got {with_ill} with abnormal and {with_well} with normal cases"
        )
    difference = float((above - other_above).mean() / well)
    a = _summed(above - other_above, whose[abnormal], people)
    b = _summed(other_below - below, whose[~abnormal], people)  # abnormal cases above, not below, like `a`
    scatter = (
        a @ a * with_ill / (with_ill - 1) + b @ b * with_well / (with_well - 1) + 2 * (a @ b) * people / (people - 1)
    )
    variance = max(float(scatter), 0.0) / (ill * well) ** 2
    if variance == 0:
        return DeLong(difference, variance, np.nan if difference else 1.0)
    return DeLong(difference, variance, float(2 * norm.sf(abs(difference) / variance**0.5)))


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """Does one method get more verdicts (or hits) right than the other? Exact, from the trials they disagree on.

    It takes the trials as independent; for several findings a patient use `paired_difference` of `weighted_mean`.

    Args:
        first: (n,) whether the first method got each trial right, or hit it.
        second: (n,) the same of the second method, trials in the same order.

    Returns:
        How many trials only the first and only the second got right, and the two-sided p of a fair coin; 1 without
        a disagreement.

    Raises:
        ValueError: shapes differ, or entries are not booleans.

    Source: McNemar 1947, doi:10.1007/BF02295996, with the binomial instead of the chi-squared; SciPy's `binomtest`.
    """
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"need the same trials of both methods, got {first.shape} and {second.shape}")
    if first.dtype != np.bool_ or second.dtype != np.bool_:
        raise ValueError(f"need booleans, got {first.dtype} and {second.dtype}")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    return McNemar(only_first, only_second, float(binomtest(only_first, discordant).pvalue) if discordant else 1.0)


def holm(p: Sequence[float] | Floats) -> Floats:
    """Adjust the p-values of a family of comparisons: at most 5 % of families get one wrong where all below 0.05 count.

    Args:
        p: (m,) all p-values of the family, in [0, 1], any order, dependent or not.

    Returns:
        (m,) adjusted p-values in the same order, in [0, 1].

    Raises:
        ValueError: a p is nan or outside [0, 1].

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    raw = np.asarray(p, dtype=np.float64)
    if raw.ndim != 1 or not ((raw >= 0) & (raw <= 1)).all():
        raise ValueError(f"need a list of p-values in [0, 1], got {p}")
    order = np.argsort(raw, kind="stable")
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1)), 1)
    return adjusted


def hanley_mcneil(area: float, n_abnormal: int, n_normal: int, *, level: float = 0.95) -> float:
    """Half width of an AUROC's interval where only the AUROC and the counts are known, as in a published table.

    With scores at hand use `delong_variance` or `resample`: this one assumes exponential scores.

    Args:
        area: AUROC, in [0, 1].
        n_abnormal: abnormal cases, at least 1, taken as independent.
        n_normal: normal cases, likewise.
        level: confidence, in (0, 1).

    Returns:
        The interval is `area` ± this; at 0 and 1 it is 0, which is not certainty.

    Raises:
        ValueError: no AUROC, or a class without cases.

    Source: Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747.
    """
    if not 0 <= area <= 1 or min(n_abnormal, n_normal) < 1:
        raise ValueError(f"need an AUROC in [0, 1] and cases of both classes, got {area}, {n_abnormal}, {n_normal}")
    two_abnormal = area / (2 - area) - area**2  # both abnormal cases above one normal
    two_normal = 2 * area**2 / (1 + area) - area**2  # one abnormal case above both normal
    within = area * (1 - area) + (n_abnormal - 1) * two_abnormal + (n_normal - 1) * two_normal
    return float(norm.ppf((1 + level) / 2) * np.sqrt(within / (n_abnormal * n_normal)))


def seed_spread(
    metric: Callable[[T, Weights], Floats], runs: Sequence[T], weights: Weights, *, level: float = 0.95
) -> SeedSpread:
    """A metric over trainings that differ in their seed alone: training luck and draw of patients, kept apart.

    The two answer different questions and are never merged into one "±": another training on the same patients
    moves by `seed_sd`, the mean of these trainings on other patients stays in `case_interval`. Three trainings are
    few, five are better. The interval of one seed is `interval(metric(run, weights))`.

    Args:
        metric: as for `paired_difference`.
        runs: what each training said of all cases, cases in the same order; at least two.
        weights: (replicates, n) of `resample`, the same draws for all trainings.
        level: share of the replicates inside the interval, in (0, 1).

    Returns:
        The mean over the trainings, their standard deviation (n - 1), and the interval of that mean over patients.

    Raises:
        ValueError: fewer than two trainings; as for `paired_difference`.
    """
    if len(runs) < 2:
        raise ValueError(f"need at least two trainings, got {len(runs)}")
    for run in runs[1:]:
        _check_same_cases(runs[0], run)
    values = np.array([metric(run, _everyone(weights))[0] for run in runs])
    replicates = np.mean([metric(run, weights) for run in runs], axis=0)
    return SeedSpread(float(values.mean()), float(values.std(ddof=1)), interval(replicates, level=level))


def by_stratum(
    metric: Callable[[NDArray[np.bool_], NDArray[np.floating]], float],
    group: Sequence[str],
    abnormal: NDArray[np.bool_],
    score: NDArray[np.floating],
) -> dict[str, Stratum]:
    """A metric in each group of cases: scanner, view, age band. A good value overall can be one group against another.

    Args:
        metric: from truth and scores to a number, such as `auroc` or `partial(fpr_at_tpr, tpr=0.95)`.
        group: (n,) the group of each case; the unknown is a group too.
        abnormal: (n,) truth, one entry a case.
        score: (n,) higher is more abnormal, any scale.

    Returns:
        By name, sorted: how many cases of each class, and the value in the metric's unit.

    Raises:
        ValueError: not one group a case; as for `auroc` over all cases.
    """
    check_cases(abnormal, score)
    if len(group) != len(abnormal):
        raise ValueError(f"need one group a case, got {len(group)} groups and {len(abnormal)} cases")
    names = np.asarray(group)
    strata = {}
    for name in sorted(set(group)):
        here = names == name
        ill, well = int((here & abnormal).sum()), int((here & ~abnormal).sum())
        value = float(metric(abnormal[here], score[here])) if ill and well else None
        strata[name] = Stratum(ill, well, value)
    return strata


def compare_ranks(values: NDArray[np.floating], *, alpha: float = 0.05) -> RankComparison:
    """Do methods differ over many data sets? Friedman's test, then Nemenyi's critical difference.

    Where `p` is below `alpha`, two methods differ if their mean ranks lie at least `critical_difference` apart.
    Data sets, not cases, are the sample: five can only show large and steady differences.

    Args:
        values: (data sets, methods) one metric, higher is better (hand in -x otherwise); at least five data sets and
            three methods. Equal values share their mean rank: round to what is printed first.
        alpha: 0.05 or whatever else was fixed beforehand, in (0, 1).

    Returns:
        (methods,) mean ranks, 1 is best; Friedman's chi-squared (corrected for ties) with its approximate p; and
        the critical difference, in ranks.

    Raises:
        ValueError: too few data sets or methods, or a value is not finite: every method needs every data set.

    Source: Demšar 2006, JMLR 7, 1-30, section 3.2.2; SciPy's `friedmanchisquare`.
    """
    if values.ndim != 2:
        raise ValueError(f"need values (data sets, methods), got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(
            f"need a finite value of every method on every data set, got {(~np.isfinite(values)).sum()} not"
        )
    datasets, methods = values.shape
    distance = critical_difference(methods, datasets, alpha=alpha)
    if methods == 2:
        raise ValueError("need at least three methods, got 2: two are compared by scipy.stats.wilcoxon over data sets")
    ranks = rankdata(-values, axis=1)
    if (ranks == ranks[:, :1]).all():  # nothing to test, and SciPy would divide by 0
        return RankComparison(ranks.mean(axis=0), 0.0, 1.0, distance)
    test = friedmanchisquare(*ranks.T)
    return RankComparison(ranks.mean(axis=0), float(test.statistic), float(test.pvalue), distance)


def critical_difference(methods: int, datasets: int, *, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference: how far apart the mean ranks of two of `methods` must lie to differ.

    Args:
        methods: how many are compared, all with all; at least 2.
        datasets: over how many, at least 5; with fewer the approximations behind it and Friedman's test fail.
        alpha: chance of any wrong difference, in (0, 1).

    Returns:
        A distance of mean ranks. Above `methods` - 1 nothing can differ.

    Raises:
        ValueError: too few of either.

    Source: Nemenyi 1963, by Demšar 2006, JMLR 7, 1-30: q √(k (k + 1) / 6 N), q the studentized range over √2.
    """
    if methods < 2 or datasets < MIN_DATASETS:
        raise ValueError(
            f"need at least two methods and {MIN_DATASETS} data sets, got {methods} methods and {datasets} data sets"
        )
    q = studentized_range.ppf(1 - alpha, methods, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(methods * (methods + 1) / (6 * datasets)))


def _mean_placements(abnormal: NDArray[np.bool_], scores: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """`placements`, the mean over trainings."""
    runs = np.atleast_2d(scores)
    for run in runs:
        check_cases(abnormal, run)
    above, below = zip(*(placements(abnormal, run) for run in runs), strict=True)
    return np.mean(above, axis=0), np.mean(below, axis=0)


def _summed(values: Floats, whose: NDArray[np.integer], people: int) -> Floats:
    """(people,) each one's sum of distances from the mean."""
    return np.asarray(np.bincount(whose, weights=values - values.mean(), minlength=people), dtype=np.float64)


def _everyone(weights: Weights) -> NDArray[np.int32]:
    return np.ones((1, weights.shape[-1]), dtype=np.int32)


def _check_same_cases(first: object, second: object) -> None:
    if not (isinstance(first, np.ndarray) and isinstance(second, np.ndarray)):
        return
    if first.shape != second.shape:
        raise ValueError(f"need the same cases of both, got {first.shape} and {second.shape}")
    if differ := int((np.isnan(first) != np.isnan(second)).sum()):
        raise ValueError(f"need values of the same cases, got {differ} cases with a value of one only")
