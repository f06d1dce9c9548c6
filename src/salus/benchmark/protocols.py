"""Published detection protocols, and sound measures beside them: `protocols` of metrics.json.

As in the papers a finding is one sample, and all is measured on the grid that the network saw: the map that came home
with the result is brought back there, boxes and masks are laid on it pixel by pixel, and known healthy is what lies
above the picture's minimum and two pixels off every finding and artefact. Pictures only: the papers know no volumes,
and the slices of a volume would be other samples than theirs. One map is held at a time, but for the protocol that
sorts all pixels; it gets no more than `MOST_PIXELS`.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salus.benchmark.measures import Entry, Floats, entry, patients_in, rounded
from salus.benchmark.pairing import Judged, Maps, Paired, Problem, bare, truth
from salus.core import Finding, Image
from salus.core.errors import ImageError, SalusError
from salus.io import read_study
from salus.metrics import (
    FALSE_ALARMS,
    FROC_RATES,
    BoxHit,
    FrocScores,
    best_dice_medianomaly,
    box_to_grid,
    chance_corrected_hit_rate,
    class_averages,
    false_regions,
    froc_of,
    froc_scores,
    hit_ra2024,
    hit_rate_area,
    hit_scale_free,
    hit_thor2024,
    known_healthy,
    mass_ratio,
    pixel_ap,
    pixel_auroc,
    pointing_game,
    weighted_mean,
    wilson,
)
from salus.metrics.localisation import SHARE
from salus.preprocess import Preparation, resample

Mask = NDArray[np.bool_]
Weights = NDArray[np.int32]

RULES = {"ra2024": hit_ra2024, "thor2024": hit_thor2024, "scale_free": hit_scale_free}
MEASURES = ("recall", "precision", "f1")
LEAST_PIXELS, MOST_PIXELS = 200, 1 << 25  # for what sorts all pixels: its grid, and two gigabytes
MIN_AREA = 5  # pixels of a false region: the smallest box that the RA tables count has as many, at 128 x 128


@dataclass(frozen=True, kw_only=True)
class OnGrid:
    """A picture's map and truth as the network saw them, (size, size) each; of no findings where it is healthy.

    `uncounted` is neither a finding nor healthy; `lesion` holds the masks of all findings as nearest pixels, None where
    one of them has no mask.
    """

    anomaly: NDArray[np.float32]
    findings: tuple[tuple[str, Mask], ...]
    healthy: Mask
    uncounted: Mask
    lesion: Mask | None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What is said of one finding.

    Attributes:
        case: index of its case.
        boxes: by rule and name of the threshold.
        hit: whether more than a tenth of it lies above the sound threshold, 0 or 1; nan without one.
        chance: how often a rolled map hits it; nan without a threshold.
        mass: its `mass_ratio`; nan where the map is zero.
        limit: the finding is hit at every threshold below it.
    """

    case: int
    name: str
    boxes: Mapping[tuple[str, str], BoxHit]
    hit: float
    chance: float
    mass: float
    limit: float


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is said of one picture; `false` and `froc` at the sound threshold, nan and None without one.

    Regions and the highest pixel are looked for where something counts, not in an artefact.

    Attributes:
        case: index of the case.
        samples: its findings.
        false: regions that touch no finding.
        pointing: share of its highest pixels that lie in a finding; nan where it is healthy.
        froc: its part of the curve.
    """

    case: int
    samples: tuple[Sample, ...]
    false: float
    pointing: float
    froc: FrocScores | None


def protocols(
    paired: Paired, maps: Maps, good: Sequence[int], weights: Weights, data: Path
) -> tuple[dict[str, Any] | None, list[Problem], tuple[str, ...]]:
    """The published protocols and the sound measures of a run.

    Args:
        paired: the run.
        maps: of its judged cases.
        good: indices of the cases whose map and truth can be laid on each other.
        weights: (replicates, judged cases) draws of patients behind every interval but Wilson's.
        data: the data set's folder, which no message should name.

    Returns:
        The content of `protocols`, None where no picture has a finding with a place; and what is missing and why.
    """
    calibration = paired.run["calibration"] or {}
    thresholds = {"published": calibration.get("grid_threshold"), "sound": calibration.get("pixel_threshold")}
    seen, problems, notes, volumes = [], [], [], 0
    masked: list[tuple[NDArray[np.float32], Mask]] = []
    room = MOST_PIXELS // paired.preparation.size**2
    for index in good:
        one = paired.judged[index]
        if one.abnormal and not one.case.findings:
            continue  # a lesion lies nobody knows where: neither healthy nor a sample
        if maps[index].ndim == 3:
            volumes += 1
            continue
        try:
            picture = on_grid(one, maps[index], paired.preparation)
        except SalusError as error:
            problems.append(Problem(case_id=one.case.case_id, reason=bare(str(error), data, one.folder)))
        else:
            seen.append(seen_in(picture, index, thresholds))
            if picture.lesion is not None and len(masked) <= room:  # one too many says that they are
                masked.append((picture.anomaly, picture.lesion))
    if volumes:
        notes.append(f"Volumes ({volumes}) are left out of the published protocols, which know pictures only.")
    samples = [sample for picture in seen for sample in picture.samples]
    if not samples:
        return None, problems, tuple(notes)
    if calibration and thresholds["published"] is None:
        notes.append(
            "No published threshold: this map's values are too large for its grid, or the model was calibrated before "
            "Salus kept one; then run `salus calibrate` and screen again."
        )
    curve = hit_curve(samples, calibration.get("curve_thresholds"), weights)
    if calibration and curve["hit_rate_curve"] is None:
        notes.append(
            "No hit-rate curve: the model was calibrated before Salus kept its thresholds. Run `salus calibrate` and "
            "screen again."
        )
    content: dict[str, Any] = {
        "size": paired.preparation.size,
        "findings": len(samples),
        "thresholds": thresholds,
        "sound": {**sound(seen, weights), **curve},
        "medianomaly": medianomaly(masked),
    }
    for rule in RULES:
        content[rule] = {
            which: None if t is None else by_class([(s.case, s.name, s.boxes[rule, which]) for s in samples], weights)
            for which, t in thresholds.items()
        }
    return content, problems, tuple(notes)


def medianomaly(masked: Sequence[tuple[NDArray[np.float32], Mask]]) -> dict[str, Any] | None:
    """Pixel metrics as arXiv:2404.04518 and 2403.09303 have them, all pixels of all pictures as one list, exact.

    Args:
        masked: map and lesions of each picture whose findings have masks, healthy ones among them.
    """
    maps, masks = [a for a, _ in masked], [lesion for _, lesion in masked]
    pixels, lesion = sum(a.size for a in maps), sum(int(mask.sum()) for mask in masks)
    if not 0 < lesion < pixels or not LEAST_PIXELS <= pixels <= MOST_PIXELS:
        return None
    values = {
        "pixel_ap": pixel_ap(maps, masks),
        "pixel_auroc": pixel_auroc(maps, masks),
        "best_dice": best_dice_medianomaly(maps, masks)[0],
    }
    made: dict[str, Any] = {name: {"value": rounded(value), "ci95": None} for name, value in values.items()}
    made["best_dice"]["oracle"] = True
    return {"pictures": len(masked), **made}


def on_grid(one: Judged, anomaly: NDArray[np.float32], preparation: Preparation) -> OnGrid:
    """A map on the grid of its source, and its case's truth, on the network's grid.

    Raises:
        ImageError: source or truth cannot be read, or a finding lies where the network does not look.
    """
    source = read_study(one.case.images)
    prepared = preparation(source)
    found = truth(one, anomaly.shape)
    findings = tuple((finding.name, laid(finding, inside, source, prepared)) for finding, inside in found)
    foreground = prepared.array > prepared.array.min()
    uncounted = []
    for region in one.case.uncounted:
        aside = replace(one, case=replace(one.case, findings=(region,)))
        with suppress(ImageError):  # where nobody looks it hides nothing
            uncounted += [laid(region, inside, source, prepared) for _, inside in truth(aside, anomaly.shape)]
    lesion = None
    if all(finding.mask is not None for finding, _ in found):
        together = np.any([np.zeros(anomaly.shape, dtype=bool), *(inside for _, inside in found)], axis=0)
        lesion = nearest(together, source, prepared)
    return OnGrid(
        anomaly=resample(replace(source, array=anomaly), like=prepared).array,
        findings=findings,
        healthy=known_healthy(foreground, [*(inside for _, inside in findings), *uncounted]),
        uncounted=np.any([np.zeros(foreground.shape, dtype=bool), *uncounted], axis=0),
        lesion=lesion,
    )


def laid(finding: Finding, inside: Mask, source: Image, prepared: Image) -> Mask:
    """The pixels of `prepared` whose centres lie in a finding, `inside` the source; at least the one nearest to it.

    Raises:
        ImageError: there is none.
    """
    to_new = np.linalg.inv(prepared.affine) @ source.affine
    if finding.mask is None and finding.box is not None:
        x, y, width, height = finding.box
        rows = np.clip([y, y + height], 0, source.array.shape[0])  # padding is no part of a finding
        columns = np.clip([x, x + width], 0, source.array.shape[1])
        # A box counts from the first pixel's edge, an affine from its centre.
        edges = to_new @ [rows - 0.5, columns - 0.5, [0, 0], [1, 1]] + 0.5
        (top, bottom), (left, right) = edges[:2]
        try:
            return box_to_grid((left, top, right - left, bottom - top), prepared.array.shape[:2])
        except ValueError as error:
            raise ImageError(
                f"'{finding.name}' lies where the model does not look: left out of the protocols"
            ) from error
    mask = nearest(inside, source, prepared)
    if not mask.any():
        centre = np.round(to_new @ [*np.argwhere(inside).mean(axis=0), 0, 1]).astype(int)[:2]
        if (centre < 0).any() or (centre >= mask.shape).any():
            raise ImageError(f"'{finding.name}' lies where the model does not look: left out of the protocols")
        mask[tuple(centre)] = True
    return mask


def nearest(inside: Mask, source: Image, prepared: Image) -> Mask:
    """A mask of the source on the network's grid, pixel by pixel the nearest."""
    mask: Mask = resample(replace(source, array=inside.astype(np.float32)), like=prepared, order=0).array > 0.5
    return mask


def seen_in(picture: OnGrid, case: int, thresholds: Mapping[str, float | None]) -> Seen:
    """Everything that one picture adds to the numbers."""
    a, calibrated = picture.anomaly, thresholds["sound"]
    masks = [inside for _, inside in picture.findings]
    together = np.any([np.zeros(a.shape, dtype=bool), *masks], axis=0)
    counted = np.where(picture.uncounted & ~together, 0, a)
    samples = []
    for name, inside in picture.findings:
        boxes = {
            (rule, which): hit(a, inside, picture.healthy, threshold)
            for rule, hit in RULES.items()
            for which, threshold in thresholds.items()
            if threshold is not None
        }
        hit, chance = np.nan, np.nan
        if calibrated is not None:
            _, hit, chance = chance_corrected_hit_rate([a], [inside], calibrated)
        mass, limit = mass_ratio(a, inside, picture.healthy), hit_below(a, inside)
        samples.append(Sample(case=case, name=name, boxes=boxes, hit=hit, chance=chance, mass=mass, limit=limit))
    return Seen(
        case=case,
        samples=tuple(samples),
        false=np.nan if calibrated is None else false_regions([counted], [together], calibrated, min_area=MIN_AREA),
        pointing=pointing_game([counted], [together]) if masks else np.nan,
        froc=None if calibrated is None else froc_scores(counted, masks, calibrated),
    )


def hit_below(a: NDArray[np.float32], inside: Mask) -> float:
    """`is_hit` at every threshold below this one, and at no other."""
    falling = np.sort(a[inside])[::-1]
    return float(falling[math.floor(SHARE * len(falling))])


def by_class(samples: Sequence[tuple[int, str, BoxHit]], weights: Weights) -> dict[str, Any]:
    """Recall, precision and F1 of each class of findings, of all findings, and of the classes.

    Args:
        samples: case, class and hit of each finding.
        weights: (replicates, cases) draws of patients; findings follow their case.
    """
    case = np.array([case for case, _, _ in samples])
    members = {
        name: np.array([k for k, (_, other, _) in enumerate(samples) if other == name])
        for name in sorted({name for _, name, _ in samples})
    }
    detected = np.array([hit.hit for _, _, hit in samples])
    patients = {name: patients_in(weights[:, case[own]]) for name, own in members.items()}
    together = patients_in(weights[:, case])
    classes: dict[str, dict[str, Any]] = {
        name: {"n": len(own), "patients": patients[name], "n_detected": int(detected[own].sum())}
        for name, own in members.items()
    }
    micro: dict[str, Any] = {"n": len(samples), "patients": together, "n_detected": int(detected.sum())}
    macro: dict[str, Any] = {}
    for measure in MEASURES:
        values = np.array([float(getattr(hit, measure)) for _, _, hit in samples])
        means = class_averages({name: values[own].tolist() for name, own in members.items()})
        drawn = {name: weighted_mean(values[own], weights[:, case[own]]) for name, own in members.items()}
        for name in members:
            classes[name][measure] = entry(means.mean[name], drawn[name], patients=patients[name])
        of_classes = np.ma.masked_invalid(list(drawn.values())).mean(axis=0).filled(np.nan)
        micro[measure] = entry(means.micro, weighted_mean(values, weights[:, case]), patients=together)
        macro[measure] = entry(means.macro, of_classes, patients=together)
    for own in classes.values():
        if own["patients"] == own["n"]:  # no finding is another's neighbour
            own["recall"]["ci95"] = [rounded(end) for end in wilson(own["n_detected"], own["n"])]
    return {"classes": classes, "micro": micro, "macro": macro}


def sound(seen: Sequence[Seen], weights: Weights) -> dict[str, Any]:
    """What the same maps are worth without the protocols' defects; null what needs a threshold and has none."""
    samples = [sample for picture in seen for sample in picture.samples]
    of_samples = weights[:, [sample.case for sample in samples]]
    hit, chance = np.array([s.hit for s in samples]), np.array([s.chance for s in samples])
    ill = [picture for picture in seen if picture.samples]
    well = [picture for picture in seen if not picture.samples]
    parts = [picture.froc for picture in seen if picture.froc is not None]
    of_ill = weights[:, [picture.case for picture in ill]]
    return {
        "hit_rate": mean(hit, of_samples, patients=patients_in(of_samples)),
        "chance_corrected_hit_rate": beyond_chance(hit, chance, of_samples),
        "min_area": MIN_AREA,
        "false_regions_healthy": mean(np.array([p.false for p in well]), weights[:, [p.case for p in well]]),
        "false_regions_abnormal": mean(np.array([p.false for p in ill]), of_ill),
        "froc": dict(zip(map(str, FROC_RATES), map(rounded, froc_of(parts)), strict=True)) if parts else None,
        "pointing_game": mean(np.array([p.pointing for p in ill]), of_ill, patients=patients_in(of_ill)),
        "mass_ratio": mean(np.array([s.mass for s in samples]), of_samples),
    }


def hit_curve(samples: Sequence[Sample], thresholds: Sequence[float] | None, weights: Weights) -> dict[str, Any]:
    """`hit_rate_curve` by share of false alarms, and `hit_rate_area`; null without thresholds.

    Args:
        samples: the findings.
        thresholds: one for each of `FALSE_ALARMS`, of healthy calibration pixels.
        weights: (replicates, cases) draws of patients; the thresholds stay.
    """
    if thresholds is None:
        return {"hit_rate_curve": None, "hit_rate_area": None}
    limits, own_weights = np.array([s.limit for s in samples]), weights[:, [s.case for s in samples]]
    hits = np.less.outer(thresholds, limits).astype(np.float64)
    areas = np.array([rounded(hit_rate_area(own)) for own in hits.T])  # all hit is 1, not 0.9999999
    patients = patients_in(own_weights)
    points = (mean(own, own_weights, patients=patients) for own in hits)
    return {
        "hit_rate_curve": {f"{share:g}": point for share, point in zip(FALSE_ALARMS, points, strict=True)},
        "hit_rate_area": mean(areas, own_weights, patients=patients),
    }


def mean(values: Floats, weights: Weights, *, patients: int = 0) -> Entry:
    """Mean of what has a value."""
    if not len(values) or np.isnan(values).all():
        return None
    return entry(float(np.nanmean(values)), weighted_mean(values, weights), patients=patients)


def beyond_chance(hit: Floats, chance: Floats, weights: Weights) -> Entry:
    """`chance_corrected_hit_rate` of all findings, and chance beside it; None where chance hits all."""
    rate, by_chance = float(hit.mean()), float(chance.mean())
    if not by_chance < 1:
        return None
    left = 1 - weighted_mean(chance, weights)
    replicates = 1 - (1 - weighted_mean(hit, weights)) / np.where(left > 0, left, np.nan)
    made = entry(1 - (1 - rate) / (1 - by_chance), replicates)
    if made and rate in (0.0, 1.0):  # no draw differs: Wilson's interval of the rate, corrected the same way
        patients = patients_in(weights)
        ends = wilson(round(rate * patients), patients)
        made["ci95"] = [rounded(1 - (1 - end) / (1 - by_chance)) for end in ends]
    return made and {**made, "chance": rounded(by_chance)}
