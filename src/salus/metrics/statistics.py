"""Intervals: what another draw of patients could have given.

    weights = resample(patients, abnormal, seed=0)                   # (2000, n), once for all metrics
    interval(weighted_auroc(abnormal, score, weights))
    interval(weighted_average_precision(abnormal, score, weights)
             - weighted_average_precision(abnormal, other, weights))  # two methods, paired

A replicate is a row of whole numbers: how often each case was drawn. Every metric sorts once and sums.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm, rankdata

from salus.metrics import curves
from salus.metrics.ranking import check_cases, check_prevalence, check_tpr

Floats = NDArray[np.float64]
Weights = NDArray[np.integer]

DRAWS = 1 << 15  # that are made at once; more leave the processor's cache


def resample(
    patients: Sequence[str], abnormal: NDArray[np.bool_], *, replicates: int = 2000, seed: int = 0
) -> NDArray[np.int32]:
    """Draw patients with replacement, normal and abnormal ones apart.

    All cases of a patient go together: slices of one head are not independent, and intervals that take them
    for such are too narrow. A patient is abnormal if any case is, so that both kinds stay present.

    Args:
        patients: (n,) whom each case belongs to.
        abnormal: (n,) truth, one entry a case. All equal: one stratum.
        replicates: how many draws.
        seed: fixes the draws; write it down.

    Returns:
        (replicates, n) how often each case was drawn.

    Raises:
        ValueError: no cases, or not one patient a case.

    Source: stratified cluster bootstrap, Davison and Hinkley 1997, chapter 3.
    """
    if not len(abnormal) or len(patients) != len(abnormal):
        raise ValueError(f"need one patient a case, got {len(patients)} patients and {len(abnormal)} cases")
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    ill = np.bincount(patient, weights=abnormal, minlength=len(names)) > 0
    strata = [members for members in (np.flatnonzero(ill), np.flatnonzero(~ill)) if len(members)]
    rng, everybody = np.random.default_rng(seed), np.concatenate(strata)
    count = np.repeat([len(members) for members in strata], [len(members) for members in strata])
    first = np.repeat(np.cumsum([0, *map(len, strata[:-1])]), [len(members) for members in strata])
    weights = np.empty((replicates, len(abnormal)), dtype=np.int32)
    block = max(1, DRAWS // len(names))
    for start in range(0, replicates, block):
        rows = weights[start : start + block]
        drawn = everybody[first + rng.integers(count, size=(len(rows), len(names)))]
        place = drawn + len(names) * np.arange(len(rows))[:, None]
        times = np.bincount(place.ravel(), minlength=len(rows) * len(names)).reshape(len(rows), len(names))
        rows[:] = times[:, patient]
    return weights


def interval(values: NDArray[np.floating], *, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of a metric's replicates.

    Args:
        values: (replicates,) one value a draw. nan, a draw in which the metric has no value, is left out.
        level: share of the replicates inside, in (0, 1).

    Returns:
        Its lower and upper end.

    Raises:
        ValueError: no replicate has a value.
    """
    known = values[~np.isnan(values)]
    if not known.size:
        raise ValueError(f"need replicates with a value, got none of {values.size}")
    lower, upper = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(lower), float(upper)


def weighted_auroc(abnormal: NDArray[np.bool_], score: NDArray[np.floating], weights: Weights) -> Floats:
    """`auroc` of each replicate.

    Args:
        abnormal: (n,) truth, one entry a case.
        score: (n,) higher is more abnormal, any scale.
        weights: (replicates, n) how often each case counts.

    Returns:
        (replicates,) shares in [0, 1]; nan where a class was not drawn.

    Raises:
        ValueError: as for `auroc`, or weights of another length.
    """
    return _replicated(abnormal, score, weights, curves.auroc)


def weighted_average_precision(abnormal: NDArray[np.bool_], score: NDArray[np.floating], weights: Weights) -> Floats:
    """`average_precision` of each replicate; arguments, answer and errors as for `weighted_auroc`."""
    return _replicated(abnormal, score, weights, curves.average_precision)


def weighted_average_precision_at(
    abnormal: NDArray[np.bool_], score: NDArray[np.floating], weights: Weights, *, prevalence: float
) -> Floats:
    """`average_precision_at` of each replicate; arguments, answer and errors as for `weighted_auroc`."""
    check_prevalence(prevalence)

    def at(tp: Floats, fp: Floats) -> Floats:
        tpr, fpr = (curves.ratio(found, found[..., -1:], empty=0.0) for found in (tp, fp))
        return curves.average_precision(prevalence * tpr, (1 - prevalence) * fpr)

    return _replicated(abnormal, score, weights, at)


def weighted_fpr_at_tpr(
    abnormal: NDArray[np.bool_], score: NDArray[np.floating], weights: Weights, *, tpr: float
) -> Floats:
    """`fpr_at_tpr` of each replicate; arguments, answer and errors as for `weighted_auroc`, `tpr` in (0, 1]."""
    check_tpr(tpr)
    return _replicated(abnormal, score, weights, lambda tp, fp: curves.fpr_at_tpr(tp, fp, tpr))


def weighted_mean(values: NDArray[np.floating], weights: Weights) -> Floats:
    """Mean of one value a case (SSIM, a hit, an F1) in each replicate.

    Args:
        values: (n,) nan where a case has no value; it is left out.
        weights: (replicates, n) how often each case counts.

    Returns:
        (replicates,) means; nan where no case with a value was drawn.

    Raises:
        ValueError: weights of another length.
    """
    _check_weights(weights, len(values))
    known = ~np.isnan(values)

    def of_rows(weights: Weights) -> Floats:
        drawn = weights[:, known].astype(np.float64)
        return curves.ratio(drawn @ values[known].astype(np.float64), drawn.sum(axis=1), empty=np.nan)

    return curves.in_blocks(of_rows, weights)


def wilson(found: float, total: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion, honest for small numbers and for none or all found.

    It takes the trials as independent; for several findings a patient use `resample`.

    Args:
        found: successes, 0 up to `total`; parts of one where a trial is a mean.
        total: trials, at least 1.
        level: confidence, in (0, 1).

    Returns:
        Its lower and upper end, in [0, 1].

    Raises:
        ValueError: numbers that are not a proportion.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if not 0 <= found <= total or total < 1:
        raise ValueError(f"need 0 <= found <= total and total >= 1, got {found} of {total}")
    z = float(norm.ppf((1 + level) / 2))
    share = found / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
    return (0.0 if found == 0 else centre - half), (1.0 if found == total else centre + half)


def flagged_share(calibration: Sequence[float], threshold: float, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of the share of healthy people above a calibrated threshold, over calibrations of as many people.

    With k of n scores at or above the threshold it is k / (n + 1) on average; which people one happened to calibrate
    with moves it for all who follow.

    Args:
        calibration: healthy scores, one a person; ties make the true share smaller.
        threshold: the highest of them or lower.
        level: confidence, in (0, 1).

    Returns:
        Quantiles of a Beta(k, n + 1 - k), in [0, 1].

    Raises:
        ValueError: the threshold is above all scores.

    Source: Vovk 2012, arXiv:1209.2673, proposition 2a.
    """
    above = sum(score >= threshold for score in calibration)
    if above == 0:
        raise ValueError(f"the threshold {threshold} is above all {len(calibration)} calibration scores")
    share = beta(above, len(calibration) + 1 - above)
    return float(share.ppf((1 - level) / 2)), float(share.ppf((1 + level) / 2))


def delong_variance(abnormal: NDArray[np.bool_], score: NDArray[np.floating]) -> float:
    """Variance of the AUROC over draws of independent cases.

    Args:
        abnormal: (n,) truth, one entry a case; at least two of each class.
        score: (n,) higher is more abnormal, any scale.

    Returns:
        The variance; 0 where the classes do not overlap, which is not certainty: use `resample` or more cases.

    Raises:
        ValueError: as for `auroc`, or a class of one.

    Source: DeLong, DeLong and Clarke-Pearson 1988, doi:10.2307/2531595, by midranks (Sun and Xu 2014,
    doi:10.1109/LSP.2014.2337313).
    """
    check_cases(abnormal, score)
    ill, well = score[abnormal], score[~abnormal]
    if min(len(ill), len(well)) < 2:
        raise ValueError(f"need two cases of each class, got {len(ill)} abnormal and {len(well)} normal")
    above, below = placements(abnormal, score)
    return float((above / len(well)).var(ddof=1) / len(ill) + (below / len(ill)).var(ddof=1) / len(well))


def placements(abnormal: NDArray[np.bool_], score: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Of each abnormal case how many normal ones lie below it, of each normal case how many abnormal ones; ties ½.

    Counts, not shares: whole and half numbers stay exact, so that equal orders have exactly no variance.
    """
    rank = rankdata(score)
    return rank[abnormal] - rankdata(score[abnormal]), rank[~abnormal] - rankdata(score[~abnormal])


def _replicated(
    abnormal: NDArray[np.bool_],
    score: NDArray[np.floating],
    weights: Weights,
    metric: Callable[[Floats, Floats], Floats],
) -> Floats:
    check_cases(abnormal, score)
    _check_weights(weights, len(score))
    order = np.argsort(-score, kind="stable")
    ends = curves.tie_ends(score[order])

    def of_rows(weights: Weights) -> Floats:
        drawn = weights[:, order].astype(np.float64)
        tp = np.cumsum(drawn * abnormal[order], axis=1)[:, ends]
        fp = np.cumsum(drawn * ~abnormal[order], axis=1)[:, ends]
        return metric(tp, fp)

    return curves.in_blocks(of_rows, weights)


def _check_weights(weights: Weights, cases: int) -> None:
    if weights.ndim != 2 or weights.shape[1] != cases or not len(weights):
        raise ValueError(f"need weights (replicates, {cases}), got {weights.shape}")
