"""Which methods of a data set differ: every two of them, paired on the same cases.

What another training would change is not in these intervals and p-values; `seed_sd` beside them is that.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import norm

from salus.benchmark.measures import DIGITS
from salus.metrics import delong_test, holm

if TYPE_CHECKING:
    from salus.benchmark.tables import Scored


def differences(lines: Sequence[tuple[str, "Scored"]]) -> list[dict[str, Any]]:
    """Every two methods that judged the same cases: the AUROC of the first, mean over trainings, less the second's.

    Paired DeLong by patient. Holm's correction is over all pairs, not over those with the best method alone: which
    one is best was read off the same cases.

    Args:
        lines: name and scores, best first.
    """
    pairs = [
        (first, second, delong_test(one.abnormal, np.stack(one.runs), np.stack(other.runs), one.patients))
        for (first, one), (second, other) in combinations(lines, 2)
        if one.cases == other.cases and enough(one)
    ]
    # No p, where two orders do not overlap at all, is a comparison all the same.
    adjusted = holm([1.0 if np.isnan(test.p) else test.p for *_, test in pairs])
    made = []
    for (first, second, test), p in zip(pairs, adjusted, strict=True):
        half = norm.ppf(0.975) * test.variance**0.5
        made.append({
            "first": first,
            "second": second,
            "value": round(test.difference, DIGITS),
            "ci95": [round(float(end), DIGITS) for end in (test.difference - half, test.difference + half)],
            "p": None if np.isnan(test.p) else significant(test.p),
            "p_holm": None if np.isnan(test.p) else significant(float(p)),
        })  # fmt: skip
    return made


def enough(scored: "Scored") -> bool:
    """Whether two patients or more have cases of each class."""
    whose = np.array(scored.patients)
    return min(len(set(whose[scored.abnormal])), len(set(whose[~scored.abnormal]))) > 1


def significant(p: float) -> float:
    """Three digits: a p of 0.00000012 is not 0."""
    return float(f"{p:.3g}")
