"""Which methods of a data set differ: every two of them, paired on the same cases.

What another training would change is not in these intervals and p-values; `seed_sd` beside them is that.

What each method finds at its own threshold is compared by McNemar's test, which takes its trials as independent: a
trial is a patient with abnormal cases, found where any of them is.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import norm

from salus.benchmark.measures import DIGITS
from salus.metrics import McNemar, delong_test, holm, mcnemar

if TYPE_CHECKING:
    from salus.benchmark.tables import Scored


def differences(lines: Sequence[tuple[str, "Scored"]]) -> list[dict[str, Any]]:
    """Every two methods that judged the same cases: the AUROC of the first, mean over trainings, less the second's.

    Paired DeLong by patient; and McNemar over the abnormal patients, a case found where most trainings flag it. Holm's
    correction of either is over all pairs, not over those with the best method alone: which one is best was read off
    the same cases.

    Args:
        lines: name and scores, best first.
    """
    pairs = [
        (
            first,
            second,
            delong_test(one.abnormal, np.stack(one.runs), np.stack(other.runs), one.patients),
            found_by(one, other),
        )
        for (first, one), (second, other) in combinations(lines, 2)
        if one.cases == other.cases and enough(one)
    ]
    # No p, where two orders do not overlap at all, is a comparison all the same.
    adjusted = holm([1.0 if np.isnan(test.p) else test.p for *_, test, _ in pairs])
    of_found = iter(holm([found.p for *_, found in pairs if found]))
    made = []
    for (first, second, test, found), p in zip(pairs, adjusted, strict=True):
        half = norm.ppf(0.975) * test.variance**0.5
        made.append({
            "first": first,
            "second": second,
            "value": round(test.difference, DIGITS),
            "ci95": [round(float(end), DIGITS) for end in (test.difference - half, test.difference + half)],
            "p": None if np.isnan(test.p) else significant(test.p),
            "p_holm": None if np.isnan(test.p) else significant(float(p)),
            "found": found and {
                "only_first": found.only_first,
                "only_second": found.only_second,
                "p": significant(found.p),
                "p_holm": significant(float(next(of_found))),
            },
        })  # fmt: skip
    return made


def found_by(one: "Scored", other: "Scored") -> McNemar | None:
    """The abnormal patients that one method alone finds, and the other alone; None where one gives no verdicts."""
    if one.found is None or other.found is None:
        return None
    _, whose = np.unique(np.array(one.patients)[one.abnormal], return_inverse=True)
    first, second = (np.bincount(whose, found[one.abnormal]) > 0 for found in (one.found, other.found))
    return mcnemar(first, second)


def enough(scored: "Scored") -> bool:
    """Whether two patients or more have cases of each class."""
    whose = np.array(scored.patients)
    return min(len(set(whose[scored.abnormal])), len(set(whose[~scored.abnormal]))) > 1


def significant(p: float) -> float:
    """Three digits: a p of 0.00000012 is not 0."""
    return float(f"{p:.3g}")
