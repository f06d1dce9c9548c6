"""How well one score a case tells abnormal from normal.

Nothing here ever flips a sign: an AUROC below 0.5 says that lesions lower the score, which is a finding.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from salus.metrics import curves


def auroc(abnormal: NDArray[np.bool_], score: NDArray[np.floating]) -> float:
    """Probability that an abnormal case scores above a normal one; a tie counts one half.

    Args:
        abnormal: (n,) truth, one entry a case.
        score: (n,) higher is more abnormal, any scale.

    Returns:
        A share in [0, 1]; 0.5 is chance.

    Raises:
        ValueError: only one of the two classes is present, or a score is not finite.

    Source: scikit-learn's `roc_auc_score`.
    """
    check_cases(abnormal, score)
    return float(roc_auc_score(abnormal, score))


def average_precision(abnormal: NDArray[np.bool_], score: NDArray[np.floating]) -> float:
    """Area under the precision-recall curve as a sum of steps (`auprc` in metrics.json).

    Not the trapezoid, which is optimistic. Chance is the prevalence: compare values only at equal prevalence.

    Args:
        abnormal: (n,) truth, one entry a case.
        score: (n,) higher is more abnormal, any scale. Cases that tie share one step.

    Returns:
        A share in [0, 1]; higher is better.

    Raises:
        ValueError: only one of the two classes is present, or a score is not finite.

    Source: scikit-learn's `average_precision_score`.
    """
    check_cases(abnormal, score)
    return float(average_precision_score(abnormal, score))


def average_precision_at(abnormal: NDArray[np.bool_], score: NDArray[np.floating], *, prevalence: float) -> float:
    """`average_precision` had a share of `prevalence` of the cases been abnormal: comparable between test sets.

    Precision at each threshold becomes p TPR / (p TPR + (1 - p) FPR); recall stays.

    Args:
        abnormal: (n,) truth, one entry a case.
        score: (n,) higher is more abnormal, any scale. Cases that tie share one step.
        prevalence: p, in (0, 1), which is also what chance gets. At the cases' own it changes nothing.

    Returns:
        A share in [0, 1]; higher is better.

    Raises:
        ValueError: only one of the two classes is present, a score is not finite, or `prevalence` lies outside
            (0, 1).

    Source: Siblini et al. 2020, arXiv:1909.02827, calibrated precision.
    """
    check_prevalence(prevalence)
    fpr, tpr = roc_points(abnormal, score)
    return float(curves.average_precision(prevalence * tpr, (1 - prevalence) * fpr))


def fpr_at_tpr(abnormal: NDArray[np.bool_], score: NDArray[np.floating], *, tpr: float) -> float:
    """Share of normal cases flagged once at least `tpr` of the abnormal ones are (FP@TP95: 0.95).

    Args:
        abnormal: (n,) truth, one entry a case.
        score: (n,) higher is more abnormal, any scale. A case on the threshold is flagged.
        tpr: share of the abnormal cases to find, in (0, 1].

    Returns:
        A share in [0, 1]; lower is better.

    Raises:
        ValueError: only one of the two classes is present, so the share has no meaning; a score is not
            finite; `tpr` lies outside (0, 1].

    Source: Bercea et al., arXiv:2401.10637, section 7.2. Read off scikit-learn's `roc_curve` it
    needs `drop_intermediate=False`: the default drops points and can overstate the share.
    """
    check_cases(abnormal, score)
    check_tpr(tpr)
    found = int(abnormal.sum())
    enough = np.arange(1, found + 1) / found >= tpr
    threshold = np.sort(score[abnormal])[::-1][np.argmax(enough)]
    return float(np.mean(score[~abnormal] >= threshold))


def roc_points(
    abnormal: NDArray[np.bool_], score: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ROC curve, every point of it, for plotting.

    Args:
        abnormal: (n,) truth, one entry a case.
        score: (n,) higher is more abnormal, any scale.

    Returns:
        (k,) false positive rate and (k,) true positive rate, both rising from 0 to 1.

    Raises:
        ValueError: only one of the two classes is present, or a score is not finite.
    """
    check_cases(abnormal, score)
    fpr, tpr, _ = roc_curve(abnormal, score, drop_intermediate=False)
    return np.asarray(fpr, dtype=float), np.asarray(tpr, dtype=float)


def precision_recall_points(
    abnormal: NDArray[np.bool_], score: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The precision-recall curve for plotting. Draw it as steps (`where="pre"`), as `average_precision` sums it.

    Args:
        abnormal: (n,) truth, one entry a case.
        score: (n,) higher is more abnormal, any scale.

    Returns:
        (k,) recall, rising from 0 to 1, and (k,) precision; the first point is (0, 1) by convention.

    Raises:
        ValueError: only one of the two classes is present, or a score is not finite.
    """
    check_cases(abnormal, score)
    precision, recall, _ = precision_recall_curve(abnormal, score, drop_intermediate=False)
    return np.asarray(recall[::-1], dtype=float), np.asarray(precision[::-1], dtype=float)


def check_cases(abnormal: NDArray[np.bool_], score: NDArray[np.floating]) -> None:
    """Refuse what has no ranking: shapes that differ, truth that is not yes or no, no number, a class missing."""
    if abnormal.ndim != 1 or abnormal.shape != score.shape:
        raise ValueError(f"need one score a case, got abnormal {abnormal.shape} and score {score.shape}")
    if abnormal.dtype != np.bool_:
        raise ValueError(f"need abnormal as booleans, got {abnormal.dtype}")
    if bad := int((~np.isfinite(score)).sum()):
        raise ValueError(f"need finite scores, got {bad} nan or infinite of {score.size}")
    if (found := int(abnormal.sum())) in (0, abnormal.size):
        raise ValueError(f"need normal and abnormal cases, got {found} abnormal of {abnormal.size}")


def check_tpr(tpr: float) -> None:
    """Refuse a share of nothing, or of more than all."""
    if not 0 < tpr <= 1:
        raise ValueError(f"need tpr in (0, 1], got {tpr}")


def check_prevalence(prevalence: float) -> None:
    """Refuse a share that leaves one class."""
    if not 0 < prevalence < 1:
        raise ValueError(f"need prevalence in (0, 1), got {prevalence}")
