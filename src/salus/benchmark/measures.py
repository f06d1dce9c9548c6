"""What one method's scores and maps are worth on one group of cases: the entries of `metrics.json`.

Every entry is `{"value": ..., "ci95": [lower, upper]}`, or None where the metric has no value. What each key means:
docs/metrics.md. All methods share a group's draws of patients, so their differences are paired.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salus.benchmark.pairing import Judged, masked, truth
from salus.metrics import (
    BoxHit,
    PixelCounts,
    auroc,
    average_precision,
    average_precision_at,
    fpr_at_tpr,
    hit_ra2024,
    interval,
    is_hit,
    resample,
    weighted_auroc,
    weighted_average_precision,
    weighted_average_precision_at,
    weighted_fpr_at_tpr,
    weighted_mean,
    wilson,
)

Floats = NDArray[np.float64]
Entry = dict[str, Any] | None

REPLICATES = 2000
COARSE = 4  # bins that become one for the intervals, whose ends move by under 0.001
STRATA = 12  # values of a column of groups at the most that are a stratum each
THIRDS = 3  # strata of a column of numbers
UNKNOWN = "unknown"  # the value of a case that has none
ROWS = 250  # replicates of pooled pixels that are held at once
BOUNDED = {"ap": "pixel_ap", "auroc": "pixel_auroc", "aupro": "aupro", "best_dice": "best_dice"}
DIGITS = 6  # beyond what any interval here can tell apart, and a re-run writes the same bytes


@dataclass(frozen=True, kw_only=True)
class CasePixels:
    """One case's map against its truth.

    Attributes:
        counts: histogram of one row; None where the truth is a box.
        overlap: pixels in lesion and above the threshold, above it, in lesion; None without counts or threshold.
        hits: name of each finding, whether it is hit, and what the protocol ra2024 says; empty without a threshold.
    """

    counts: PixelCounts | None
    overlap: tuple[float, float, float] | None
    hits: tuple[tuple[str, bool, BoxHit], ...]

    @property
    def dice(self) -> float | None:
        """Overlap at the calibrated threshold; None for a normal case."""
        if self.overlap is None or not self.overlap[2]:
            return None
        return 2 * self.overlap[0] / (self.overlap[1] + self.overlap[2])


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """What one method says of the judged cases, in their order.

    Attributes:
        score: (n,) higher is more abnormal.
        threshold: a case is flagged above it; None where healthy cases set none.
        pixels: index of a case to its pixels, for those that have a truth to compare with.
    """

    score: Floats
    threshold: float | None
    pixels: dict[int, CasePixels]


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Cases that are measured together: all, or the normal ones with those of one finding.

    Attributes:
        finding: its name, or None for all.
        members: (k,) indices of judged cases.
        abnormal: (k,) their truth.
        weights: (replicates, k) draws of patients, stratified by label.
    """

    finding: str | None
    members: NDArray[np.intp]
    abnormal: NDArray[np.bool_]
    weights: NDArray[np.int32]


def groups(judged: Sequence[Judged], seed: int) -> list[Group]:
    """All cases, then the normal ones beside each finding, by name; nothing of no case."""
    if not judged:
        return []
    names = sorted({f.name for one in judged if one.abnormal for f in one.case.findings})
    made = []
    for name in [None, *names]:
        members = [
            index
            for index, one in enumerate(judged)
            if name is None or not one.abnormal or name in {f.name for f in one.case.findings}
        ]
        abnormal = np.array([judged[index].abnormal for index in members])
        patients = [judged[index].case.patient_id for index in members]
        weights = resample(patients, abnormal, replicates=REPLICATES, seed=seed)
        made.append(Group(finding=name, members=np.array(members), abnormal=abnormal, weights=weights))
    return made


def compared(one: Judged, anomaly: NDArray[np.float32], edges: Floats, threshold: float | None) -> CasePixels:
    """A map on the grid of its source against the truth of its case.

    Raises:
        ImageError: the truth cannot be read or does not fit.
    """
    found = truth(one, anomaly.shape)
    lesion = np.zeros(anomaly.shape, dtype=bool)
    for _, inside in found:
        lesion |= inside
    counts = PixelCounts.of(anomaly, lesion, edges) if masked(one.case) else None
    if threshold is None:
        return CasePixels(counts=counts, overlap=None, hits=())
    above = anomaly > np.float64(threshold)
    overlap = (float((above & lesion).sum()), float(above.sum()), float(lesion.sum()))
    hits = tuple(
        (finding.name, is_hit(anomaly, inside, threshold), hit_ra2024(anomaly, inside, ~lesion, threshold))
        for finding, inside in found
    )
    return CasePixels(counts=counts, overlap=None if counts is None else overlap, hits=hits)


def measured(method: Scored, group: Group) -> dict[str, Any]:
    """All entries of one method on one group."""
    ill = group.abnormal
    pixels = [(k, method.pixels[m]) for k, m in enumerate(group.members) if m in method.pixels]
    return {
        "n_normal": int((~ill).sum()),
        "n_abnormal": int(ill.sum()),
        "prevalence": rounded(float(ill.mean())),
        **ranking(method.score[group.members], group),
        **pixelwise(pixels, group),
        **by_finding(pixels, group),
        "sensitivity": share_flagged(method, group.members[ill], group.weights[:, ill]),
    }


def strata(method: Scored, judged: Sequence[Judged], seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """A method's entries for each stratum of each column of groups, such as scanner, view, age, a lesion's size.

    Draws stay within the stratum. See `divided` for which columns have any.
    """
    made, well = {}, np.array([not one.abnormal for one in judged])
    for column in sorted({name for one in judged for name in one.case.groups}):
        values = np.array([one.case.groups.get(column, UNKNOWN) for one in judged])
        if parts := divided(values, well):
            made[column] = {name: stratum(method, judged, members, seed) for name, members in parts.items()}
    return made


def divided(values: NDArray[np.str_], well: NDArray[np.bool_]) -> dict[str, NDArray[np.intp]]:
    """The strata of a column: their names and cases.

    Up to `STRATA` values, on average two cases of each, are a stratum each, if the healthy have two of them. Otherwise
    numbers are cut into thirds, fewer where ties forbid it; where the healthy all have one value or none, as of a
    lesion's size, the thirds are of the abnormal, and each stands against all healthy. Other columns have none, and
    neither have whole numbers that no two cases share: they say who it is.
    """
    names = sorted(set(values.tolist()))
    try:
        numbers = np.where(values == UNKNOWN, "nan", values).astype(np.float64)
    except ValueError:
        numbers = np.full(len(values), np.nan)
    known = np.isfinite(numbers)
    only_ill = known.any() and len(set(numbers[well & known].tolist())) < 2
    if not only_ill and len(set(values[well].tolist())) > 1 and len(names) <= min(STRATA, len(values) // 2):
        return {name: np.flatnonzero(values == name) for name in names}
    cut = ~well if only_ill else np.full(len(values), True)
    ranked = np.flatnonzero(known & cut)
    whose = not only_ill and len(set(numbers[known].tolist())) == known.sum() and (numbers[known] % 1 == 0).all()
    if len(ranked) < 2 * THIRDS or whose:
        return {}
    edges = np.quantile(numbers[ranked], np.arange(1, THIRDS) / THIRDS)
    third = np.searchsorted(edges, numbers[ranked])
    parts = {}
    for number in np.unique(third).tolist():
        here = ranked[third == number]
        least, largest = (str(values[here[at]]) for at in (numbers[here].argmin(), numbers[here].argmax()))
        parts[least if numbers[here].min() == numbers[here].max() else f"{least} to {largest}"] = here
    if len(parts) < 2:
        return {}
    if len(rest := np.flatnonzero(~known & cut)):
        parts[UNKNOWN] = rest
    return {name: np.union1d(here, np.flatnonzero(~cut)) for name, here in parts.items()}


def stratum(method: Scored, judged: Sequence[Judged], members: NDArray[np.intp], seed: int) -> dict[str, Any]:
    """Counts, AUROC and shares above the threshold of some cases."""
    ill = np.array([judged[index].abnormal for index in members])
    patients = [judged[index].case.patient_id for index in members]
    weights, score = resample(patients, ill, replicates=REPLICATES, seed=seed), method.score[members]
    both = ill.any() and not ill.all()
    return {
        "n_normal": int((~ill).sum()),
        "n_abnormal": int(ill.sum()),
        "auroc": entry(auroc(ill, score), weighted_auroc(ill, score, weights)) if both else None,
        "sensitivity": share_flagged(method, members[ill], weights[:, ill]),
        "false_alarm_rate": share_flagged(method, members[~ill], weights[:, ~ill]),
    }


def ranking(score: Floats, group: Group) -> dict[str, Entry]:
    """How well the scores order the cases; no value unless both classes are there."""
    names = ("auroc", "auprc", "auprc_at_half", "fpr_at_tpr95", "fpr_at_tpr99")
    ill, weights = group.abnormal, group.weights
    if ill.all() or not ill.any():
        return dict.fromkeys(names)
    return {
        "auroc": entry(auroc(ill, score), weighted_auroc(ill, score, weights)),
        "auprc": entry(average_precision(ill, score), weighted_average_precision(ill, score, weights)),
        "auprc_at_half": entry(
            average_precision_at(ill, score, prevalence=0.5),
            weighted_average_precision_at(ill, score, weights, prevalence=0.5),
        ),
        "fpr_at_tpr95": entry(fpr_at_tpr(ill, score, tpr=0.95), weighted_fpr_at_tpr(ill, score, weights, tpr=0.95)),
        "fpr_at_tpr99": entry(fpr_at_tpr(ill, score, tpr=0.99), weighted_fpr_at_tpr(ill, score, weights, tpr=0.99)),
    }


def pixelwise(pixels: Sequence[tuple[int, CasePixels]], group: Group) -> dict[str, Entry]:
    """Pooled pixel metrics over the group's cases with masks, normal images among them."""
    metrics: dict[str, Callable[[PixelCounts], Floats]] = {
        "pixel_ap": PixelCounts.ap,
        "pixel_auroc": PixelCounts.auroc,
        "aupro": PixelCounts.aupro,
        "best_dice": lambda counts: counts.best_dice()[0],
    }
    known = [(k, seen, seen.counts) for k, seen in pixels if seen.counts is not None]
    if not any(counts.lesion.any() for _, _, counts in known):
        return dict.fromkeys([*metrics, "dice"])
    rows = PixelCounts.merge([counts for _, _, counts in known])
    weights = group.weights[:, [k for k, _, _ in known]]
    whole, wide = rows.pooled(), rows.every(COARSE)
    drawn = {name: np.empty(len(weights)) for name in metrics}
    for start in range(0, len(weights), ROWS):
        part = wide.pooled(weights[start : start + ROWS])
        for name, metric in metrics.items():
            drawn[name][start : start + ROWS] = metric(part)
    entries = {name: entry(float(metric(whole)[0]), drawn[name]) for name, metric in metrics.items()}
    for name, ends in whole.bounds().items():
        if (found := entries[BOUNDED[name]]) is not None:
            low, high = (float(end[0]) * 10**DIGITS for end in ends)
            found["exact_within"] = [math.floor(low) / 10**DIGITS, math.ceil(high) / 10**DIGITS]
    if (best := entries["best_dice"]) is not None:
        best["oracle"] = True
    return {**entries, "dice": pooled_dice([seen for _, seen, _ in known], weights)}


def pooled_dice(pixels: Sequence[CasePixels], weights: NDArray[np.int32]) -> Entry:
    """Dice of all pixels above the calibrated threshold, exact."""
    if any(seen.overlap is None for seen in pixels):
        return None
    overlap = np.array([seen.overlap for seen in pixels])

    def of_rows(rows: NDArray[np.floating]) -> Floats:
        hit, flagged, lesion = (rows @ overlap).T
        return np.where(lesion > 0, 2 * hit / np.maximum(flagged + lesion, 1), np.nan)

    return entry(float(of_rows(np.ones((1, len(overlap))))[0]), of_rows(weights.astype(np.float64)))


def by_finding(pixels: Sequence[tuple[int, CasePixels]], group: Group) -> dict[str, Any]:
    """Findings hit at the calibrated threshold; findings follow their case into a draw."""
    hits = [
        (k, hit, ra2024)
        for k, seen in pixels
        for name, hit, ra2024 in seen.hits
        if group.finding is None or name == group.finding
    ]
    if not hits:
        return {"n_findings": None, "hit_rate": None, "f1_ra2024": None, "n_detected": None}
    weights = group.weights[:, [k for k, _, _ in hits]]
    patients = patients_in(weights)
    hit = np.array([float(hit) for _, hit, _ in hits])
    detected = np.array([float(ra2024.hit) for _, _, ra2024 in hits])
    f1 = np.array([ra2024.f1 for _, _, ra2024 in hits])
    return {
        "n_findings": len(hits),
        "hit_rate": entry(float(hit.mean()), weighted_mean(hit, weights), patients=patients),
        "f1_ra2024": entry(float(f1.mean()), weighted_mean(f1, weights), patients=patients),
        "n_detected": entry(float(detected.mean()), weighted_mean(detected, weights), patients=patients, of=len(hits)),
    }


def share_flagged(method: Scored, members: NDArray[np.intp], weights: NDArray[np.int32]) -> Entry:
    """Share of the cases above the calibrated threshold; `weights` are (replicates, k) draws of their patients."""
    if method.threshold is None or not len(members):
        return None
    flagged = (method.score[members] > method.threshold).astype(np.float64)
    share = entry(float(flagged.mean()), weighted_mean(flagged, weights), patients=patients_in(weights))
    return share and {**share, "n": [int(flagged.sum()), len(members)]}


def mean_of(values: Floats, patients: Sequence[str], seed: int) -> Entry:
    """Mean over cases of one value each, nan where a case has none."""
    if not len(values) or np.isnan(values).all():
        return None
    weights = resample(patients, np.zeros(len(values), dtype=bool), replicates=REPLICATES, seed=seed)
    return entry(float(np.nanmean(values)), weighted_mean(values, weights))


def patients_in(weights: NDArray[np.int32]) -> int:
    """How many patients the columns of (replicates, k) draws belong to: one patient's columns are equal."""
    return len({column.tobytes() for column in np.ascontiguousarray(weights.T)})


def entry(value: float, replicates: NDArray[np.floating], *, patients: int = 0, of: int = 1) -> Entry:
    """A value and its 95 % interval, both times `of`.

    A share that is the same in every draw, such as all or none, has no spread to draw from: of `patients` it gets
    Wilson's interval.
    """
    lower, upper = interval(replicates)
    if patients and rounded(lower) == rounded(upper):
        lower, upper = wilson(min(max(value, 0.0), 1.0) * patients, patients)
    return {"value": rounded(value * of), "ci95": [rounded(lower * of), rounded(upper * of)]}


def rounded(value: float) -> float:
    """To six decimals."""
    return round(float(value), DIGITS)
