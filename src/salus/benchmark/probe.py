"""`salus probe`: what a model cannot see, by lesions painted on healthy images it did not learn from.

OUT/probe.csv     a row a place, size and contrast: shares and means with intervals
OUT/probe.json    model, images, settings, smallest visible sizes, what the columns mean
OUT/probe.html    one file for people

Each image gets one lesion at each place, the same in all sizes and contrasts, and is its own healthy twin: what was
flagged or hit without the lesion is left out and told.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salus.benchmark.measures import REPLICATES, Entry, entry, rounded
from salus.core import Case, Dataset, Label, Split
from salus.core.errors import ImageError, LayoutError
from salus.datasets import open_dataset
from salus.io import read_study, study_sha256
from salus.io.files import make_folder, write_whole
from salus.metrics import auroc, is_hit, resample, weighted_mean, wilson
from salus.model import Model, case_score, detections, model_id, versions
from salus.preprocess.lesions import (
    PLACES,
    Floats,
    Grey,
    Lesion,
    Mask,
    area,
    draw,
    foreground,
    has_room,
    intensity_range,
)
from salus.screening import slices_of
from salus.threshold import known_to, marks

FORMAT = 1
SIZES = (1 / 32, 3 / 64, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4)  # diameter, of the grid's side
SMALLEST = 2  # pixels; of a smaller disc nothing is left on a grid
CONTRASTS = (-0.5, -0.3, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.3, 0.5)
PATIENTS = 60  # more narrow the intervals by little, and the time grows with them
ANYWHERE = "anywhere"
HALF, MOST = 0.5, 0.8
MEASURES = ("flagged", "hit", "auroc", "healed")
DEFINITIONS = {
    "size_px": "Diameter of the disc of the lesion's area, pixels of the model's grid; size_mm by the median spacing.",
    "contrast": "What is added to the image at the lesion, as a share of the range from the image's minimum to the "
    "99th percentile of its foreground; negative is darker.",
    "painted": "Mean contrast that is left once the image is clipped to [0, 1].",
    "place": "Of the lesion's centre, by its distance to the border of the foreground over the largest there is: edge "
    "up to a third, middle up to two thirds, centre beyond. Foreground: above the minimum by 5 % of the image's range, "
    "opened by 3 x 3 pixels, holes filled; nothing is painted outside. 'anywhere' is all three lesions of an image.",
    "flagged": "Share of cases whose score rises above the threshold by the lesion; cases above it without are left "
    "out.",
    "hit": "Share of lesions of whose pixels more than a tenth lie above the pixel threshold in the map; places where "
    "that is so without the lesion are left out.",
    "auroc": "Mean over images of the AUROC of the map's pixels, lesion against the rest of the foreground.",
    "healed": "Mean share of the lesion's contrast that is gone in the restoration, compared with the restoration of "
    "the same image without it: 1 healed, 0 reproduced.",
    "n": "Lesions that count in a row.",
    "low, high": "95 % interval. Shares at one place: Wilson, a lesion a patient; else draws of patients.",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A healthy case, one slice of which is painted on.

    Attributes:
        rows: (n, 1, H, W) its prepared slices.
        chosen: which one is painted on.
        inside, lesions: foreground of that slice, and a lesion at each place.
        scores: (n,) of the slices as they are.
        map, restored: (H, W) of the chosen slice as it is; restored None where the model restores nothing.
        spacing: mm a pixel, or None for a bare picture.
    """

    case_id: str
    rows: NDArray[np.float32]
    chosen: int
    inside: Mask
    lesions: tuple[Lesion, ...]
    scores: NDArray[np.float32]
    map: Grey
    restored: Grey | None
    spacing: float | None

    @property
    def picture(self) -> Grey:
        """(H, W) what is painted on."""
        return np.asarray(self.rows[self.chosen, 0])

    def painted(self, place: int, size: float, contrast: float) -> Grey:
        """The picture with a lesion of `size` pixels."""
        added = contrast * intensity_range(self.picture, self.inside)
        return self.lesions[place].painted(self.picture, size, added)


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """What came of every lesion.

    Attributes:
        subjects: those painted on, a patient each.
        left_out: (file, reason) of those that could not be.
        sizes: diameters in pixels.
        seen: by measure, (subjects, places, sizes, contrasts), nan where it has no value or does not count.
    """

    subjects: Sequence[Subject]
    left_out: Sequence[tuple[str, str]]
    sizes: tuple[float, ...]
    seen: Mapping[str, Floats]


def probe(
    model: Path,
    data: Path,
    out: Path,
    *,
    dataset: str = "folder",
    seed: int = 0,
    device: str = "auto",
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Paint lesions on healthy images and measure which of them a model sees; the command of the same name.

    Args:
        model: folder written by `train`.
        data: healthy images. Those of the test, and of patients the model learned from, are left aside.
        out: where probe.csv, probe.json and probe.html go.
        dataset: reader of `data`.
        seed: of the choice of patients, and of lesions and places.
        on_image: called with images done and images in all.

    Returns:
        The page's path.

    Raises:
        LayoutError: no healthy image that the model did not learn from, or none that it can take.
        ModelError, ConfigError, StorageError: see their messages. An earlier probe in `out` stays whole.
    """
    from salus.benchmark.probe_report import page, sentences

    used = Model.load(model, device=device)
    whole = open_dataset(dataset, data)
    patients, unread = unseen(used, dataset, whole, seed)
    if not patients:
        raise LayoutError(
            f"{data} holds no healthy image that the model may be probed with: none outside a test of patients it did "
            f"not learn from.{f' {unread[0][1]}' if unread else ''} Give a folder of healthy images of other people."
        )
    make_folder(out)
    surface = measured(used, patients, seed, on_image)
    if not surface.subjects:
        raise LayoutError(
            f"{whole.name}: none of {len(patients)} healthy patients can be used. {surface.left_out[0][1]}"
        )
    cells = table(surface, seed)
    about = {
        **described(used, surface, cells),
        "dataset": whole.name,
        "model": model_id(model),
        "seed": seed,
        "left_out": [*unread, *surface.left_out],
    }
    about["summary"] = sentences(about, cells)
    drawn = page(about, cells, surface, used)
    write_table(out / "probe.csv", cells)
    write_whole(out / "probe.json", (json.dumps(about, indent=1, allow_nan=False) + "\n").encode())
    write_whole(out / "probe.html", drawn.encode())
    return out / "probe.html"


def unseen(
    model: Model, reader: str, dataset: Dataset, seed: int
) -> tuple[list[list[tuple[Case, str]]], list[tuple[str, str]]]:
    """Up to `PATIENTS` patients, each with healthy cases and their hashes, and (file, reason) of unreadable ones.

    Whoever the model learned from, by a file or by the patient's id, is not among them. Two models of the same data
    share the order.
    """
    known = known_to(model.card) or set()
    of_patient: dict[str, list[tuple[Case, str]]] = {}
    unread = []
    for case in dataset.only(label=Label.NORMAL):
        if case.split != Split.TEST:
            try:
                of_patient.setdefault(case.patient_id, []).append((case, study_sha256(case.images)))
            except ImageError as error:
                unread.append((case.images[0].name, case.without_folders(str(error))))
    strangers = [
        cases
        for cases in of_patient.values()
        if not any(known & marks(reader, dataset.name, case) for case, _ in cases)
    ]
    strangers.sort(key=lambda cases: hashlib.sha256(f"{seed} {cases[0][1]}".encode()).digest())
    return strangers[:PATIENTS], unread


def measured(
    model: Model,
    patients: Sequence[Sequence[tuple[Case, str]]],
    seed: int,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Surface:
    """Every lesion on the first usable case of each patient."""
    side = model.preparation.size
    sizes = tuple(share * side for share in SIZES if share * side >= SMALLEST)
    subjects: list[Subject] = []
    left_out, seen = [], []
    for done, cases in enumerate(patients, start=1):
        for case, digest in cases:
            try:
                subject = prepared(model, case, np.random.default_rng([seed, int(digest[:8], 16)]), sizes[-1])
            except ImageError as error:
                left_out.append((case.images[0].name, case.without_folders(str(error))))
                continue
            subjects.append(subject)
            seen.append(outcomes(model, subject, sizes))
            break
        on_image(done, len(patients))
    stacked = {name: np.stack([one[name] for one in seen]) for name in seen[0]} if seen else {}
    return Surface(subjects=subjects, left_out=left_out, sizes=sizes, seen=stacked)


def prepared(model: Model, case: Case, rng: np.random.Generator, largest: float) -> Subject:
    """A case as the model sees it, and the lesions that it will get.

    Raises:
        ImageError: it cannot be read or judged, or its foreground is too small.
    """
    image = model.preparation(read_study(case.images))
    rows = slices_of(image)
    bodies = [foreground(row[0]) for row in rows]
    roomy = [index for index, inside in enumerate(bodies) if has_room(inside, largest)]
    if not roomy:
        raise ImageError(
            f"{case.images[0].name}: its foreground is too small for lesions of {largest:g} pixels of the model's grid."
        )
    chosen = int(rng.choice(roomy))
    maps, scores, restored = detections(model.detector, rows, precision=model.precision)
    return Subject(
        case_id=case.case_id,
        rows=rows,
        chosen=chosen,
        inside=bodies[chosen],
        lesions=draw(bodies[chosen], rng),
        scores=scores,
        map=maps[chosen, 0],
        restored=None if restored is None else restored[chosen, 0],
        spacing=float(np.sqrt(np.prod(image.spacing[:2]))) if image.unit == "mm" else None,
    )


def outcomes(model: Model, subject: Subject, sizes: Sequence[float]) -> dict[str, Floats]:
    """By measure, (places, sizes, contrasts) of one subject."""
    shape = (len(PLACES), len(sizes), len(CONTRASTS))
    found = {name: np.full(shape, np.nan) for name in ("painted", *MEASURES)}
    threshold = model.calibration.threshold if model.calibration else None
    pixel_threshold = model.calibration.pixel_threshold if model.calibration else None
    full = intensity_range(subject.picture, subject.inside)
    for place, lesion in enumerate(subject.lesions):
        masks = [lesion.mask(size) for size in sizes]
        every = list(product(range(len(sizes)), range(len(CONTRASTS))))
        pictures = np.stack([subject.painted(place, sizes[s], CONTRASTS[c]) for s, c in every])
        maps, scores, restored = detections(model.detector, pictures[:, None], precision=model.precision)
        for k, (s, c) in enumerate(every):
            at, inside, added = (place, s, c), masks[s], pictures[k] - subject.picture
            found["painted"][at] = added.sum() / (full * lesion.coverage(sizes[s]).sum())
            found["auroc"][at] = auroc(inside[subject.inside], maps[k, 0][subject.inside])
            if threshold is not None and case_score(subject.scores) <= threshold:
                slices = subject.scores.copy()
                slices[subject.chosen] = scores[k]
                found["flagged"][at] = case_score(slices) > threshold
            if pixel_threshold is not None and not is_hit(subject.map, inside, pixel_threshold):
                found["hit"][at] = is_hit(maps[k, 0], inside, pixel_threshold)
            if restored is not None and subject.restored is not None and (strength := float((added**2).sum())):
                found["healed"][at] = 1 - float((added * (restored[k, 0] - subject.restored)).sum()) / strength
    return found


def table(surface: Surface, seed: int) -> list[dict[str, Any]]:
    """The rows of probe.csv, each measure as an entry with its n."""
    people = len(surface.subjects)
    names = [str(index) for index in range(people)]
    weights = resample(names, np.zeros(people, dtype=bool), replicates=REPLICATES, seed=seed)
    spacing = spacings(surface.subjects)
    rows = []
    for place in (*PLACES, ANYWHERE):
        of_place = range(len(PLACES)) if place == ANYWHERE else [PLACES.index(place)]
        for (s, size), (c, contrast) in product(enumerate(surface.sizes), enumerate(CONTRASTS)):
            values = {name: seen[:, of_place, s, c] for name, seen in surface.seen.items()}
            rows.append(
                {
                    "place": place,
                    "size_px": size,
                    "size_mm": spacing and rounded(size * spacing["median"]),
                    "contrast": contrast,
                    "painted": rounded(float(values["painted"].mean())),
                    **{name: told(values[name], weights, share=name in ("flagged", "hit")) for name in MEASURES},
                }
            )
    return rows


def told(values: Floats, weights: NDArray[np.int32], *, share: bool) -> Entry:
    """Mean of (patients, lesions of each), its interval and n; None where no lesion counts."""
    count = int((~np.isnan(values)).sum())
    if not count:
        return None
    value = float(np.nanmean(values))
    if share and values.shape[1] == 1:
        low, high = wilson(round(value * count), count)
        return {"value": rounded(value), "ci95": [rounded(low), rounded(high)], "n": count}
    draws = weighted_mean(values.ravel(), np.repeat(weights, values.shape[1], axis=1))
    found = entry(value, draws, patients=int((~np.isnan(values)).any(axis=1).sum()) if share else 0)
    return found and {**found, "n": count}


def spacings(subjects: Sequence[Subject]) -> dict[str, float] | None:
    """mm a pixel of the model's grid over the images; None for bare pictures."""
    known = [subject.spacing for subject in subjects if subject.spacing is not None]
    if not known:
        return None
    return {
        "median": rounded(float(np.median(known))),
        "lowest": rounded(min(known)),
        "highest": rounded(max(known)),
    }


def described(model: Model, surface: Surface, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """probe.json, but for what only the caller knows."""
    calibration = model.calibration
    threshold = calibration.threshold if calibration else None
    before = [case_score(subject.scores) > threshold for subject in surface.subjects] if threshold is not None else []
    hits_before = np.isnan(surface.seen["hit"]).all(axis=3).mean(axis=(0, 1)) if calibration else []
    return {
        "format": FORMAT,
        "method": model.summary,
        "versions": versions(),
        "images": len(surface.subjects),
        "side": model.preparation.size,
        "mm_per_pixel": spacings(surface.subjects),
        "threshold": threshold,
        "no_threshold": calibration.shortfall if calibration else "the model is not calibrated: run `salus calibrate`",
        "pixel_threshold": calibration and calibration.pixel_threshold,
        "false_alarms": calibration and calibration.false_alarms,
        "flagged_before": sum(before) if before else None,
        "hit_before": {f"{size:g}": rounded(value) for size, value in zip(surface.sizes, hits_before, strict=False)},
        "sizes_px": surface.sizes,
        "contrasts": CONTRASTS,
        "places": PLACES,
        "areas_px": [area(size) for size in surface.sizes],
        "smallest": smallest(cells),
        "replicates": REPLICATES,
        "definitions": DEFINITIONS,
    }


def smallest(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The smallest size, in pixels, of which half and most are flagged or hit: by measure, place and contrast."""
    return [
        {
            "measure": measure,
            "place": place,
            "contrast": contrast,
            **{
                name: next(
                    (
                        cell["size_px"]
                        for cell in cells
                        if (cell["place"], cell["contrast"]) == (place, contrast)
                        and cell[measure] is not None
                        and cell[measure]["value"] >= enough
                    ),
                    None,
                )
                for name, enough in (("half", HALF), ("most", MOST))
            },
        }
        for measure, place, contrast in product(("flagged", "hit"), (ANYWHERE, *PLACES), CONTRASTS)
        if any(cell[measure] for cell in cells)
    ]


def write_table(path: Path, cells: Sequence[Mapping[str, Any]]) -> None:
    """`probe.csv`: empty cells where there is no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    plain = ("place", "size_px", "size_mm", "contrast", "painted")
    writer.writerow([*plain, *(f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high", "_n"))])
    for cell in cells:
        measures = [(m["value"], *m["ci95"], m["n"]) if (m := cell[name]) else ("",) * 4 for name in MEASURES]
        writer.writerow(["" if cell[name] is None else cell[name] for name in plain] + [x for m in measures for x in m])
    write_whole(path, text.getvalue().encode())
