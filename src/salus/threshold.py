"""Who sets a model's threshold: healthy people, held out, whom nothing in the model comes from."""

import hashlib
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from salus.core import Case, Dataset, Label, Split
from salus.core.errors import ConfigError, ImageError, LayoutError
from salus.datasets import DATASETS, open_dataset
from salus.datasets.protocol import split
from salus.io import read_study, study_sha256
from salus.metrics import FALSE_ALARMS as OF_CURVE
from salus.metrics import pixel_threshold, threshold_grid_ra2024
from salus.model import FALSE_ALARMS, Calibration, Model, case_score, detections
from salus.preprocess.cache import PreparedCache

HELD_OUT = Split.VALIDATION, Split.CALIBRATION  # no weight is learned from them


def calibrate(
    folder: Path, data: Path, *, dataset: str = "folder", false_alarms: float | None = None, device: str = "auto"
) -> tuple[Calibration, tuple[tuple[str, str], ...]]:
    """Set the threshold of the model in `folder` from healthy images, and save it; the command of the same name.

    Args:
        data: healthy images of people the model did not learn from: a plain folder, or a data set's calibration part,
            its own or the one that `train` divides off, and its validation part, see `setting`.
        false_alarms: share of healthy cases that may be flagged; None keeps the model's, 0.05 at first.

    Returns:
        The calibration, and (file, reason) of images that could not be used.

    Raises:
        LayoutError: too few healthy people to divide, people the model learned from, or none that can be used.
        ModelError, ConfigError: see their messages.
    """
    model = Model.load(folder, device=device)
    opened = open_dataset(dataset, data)
    healthy = opened.only(label=Label.NORMAL)
    # Test cases are for measuring, and training cases are known to the model.
    divided = split(opened) if len(healthy.only(split=Split.TRAIN)) else opened
    cases = setting(dataset, divided, known_to(model.card)) or healthy.only(split=Split.NONE)
    if not len(cases):
        raise LayoutError(
            f"{data} is a data set with parts but without calibration/good, and has no train/good to divide. Give "
            "a plain folder of healthy images that are neither learned from nor tested on."
        )
    known = known_to(model.card) or set()
    if again := [case.case_id for case in cases if known & marks(dataset, opened.name, case)]:
        raise LayoutError(
            f"The model learned from {len(again)} of {len(cases)} images in {data} or from others of their "
            f"patients, such as {again[0]}."
        )
    if false_alarms is None:
        false_alarms = model.calibration.false_alarms if model.calibration else FALSE_ALARMS
    calibration, failures = calibration_of(model, cases, false_alarms)
    calibrated(model, calibration, dataset, cases).save(folder)
    return calibration, failures


def finished(model: Model, dataset: str, cases: Dataset) -> Model:
    """`model`, its score fitted, with a threshold, and a card that knows whom the two come from.

    Args:
        dataset: the reader of `cases`: all of the data set the model is for, divided.

    Raises:
        LayoutError: none of those who set the threshold can be judged.
    """
    validation = cases.only(split=Split.VALIDATION, label=Label.NORMAL)
    fitted_on = sorted(people(dataset, validation)) if model.detector.fitted else []
    model = replace(model, card={**model.card, "fitted_on": fitted_on})
    own = setting(dataset, cases, known_to(model.card))
    return calibrated(model, calibration_of(model, own)[0], dataset, own)


def setting(dataset: str, cases: Dataset, known: Set[str] | None) -> Dataset:
    """Who sets a model's threshold: the healthy calibration part, and of the validation part who decided nothing in it.

    The scores of people who chose an epoch, or on whom a score was fitted, are not those of people to come. All others
    in that part are as good as those of calibration, and a threshold is the surer the more there are.

    Args:
        dataset: the reader of `cases`, which are divided.
        known: see `known_to`.
    """
    held = cases.only(split=Split.CALIBRATION if known is None else HELD_OUT, label=Label.NORMAL)
    return Dataset(
        held.name,
        [
            case
            for case in held
            if case.split == Split.CALIBRATION or not marks(dataset, held.name, case) & (known or set())
        ],
    )


def known_to(card: Mapping[str, Any]) -> set[str] | None:
    """Marks of all whom something in a model comes from but its threshold; None of one from before they were kept."""
    if "learned_from" not in card:
        return None
    return {*card["learned_from"], *card.get("fitted_on", ())}


def calibrated(model: Model, calibration: Calibration, dataset: str, cases: Dataset) -> Model:
    """`model` with a threshold, and a card that knows whose scores set it: `cases`, read as `dataset`."""
    return replace(model, calibration=calibration, card={**model.card, "calibrated_on": sorted(people(dataset, cases))})


def people(dataset: str, cases: Dataset) -> dict[str, Case]:
    """Cases by all that tells in another data set who they are, see `marks`."""
    return {mark: case for case in cases for mark in marks(dataset, cases.name, case)}


def marks(dataset: str, name: str, case: Case) -> set[str]:
    """What tells a case in another data set: hashes of what its files hold, and of the patient's id.

    Ids count within a data set. In folders that is any folder, but the name of a file is nobody's id there.

    Args:
        dataset: its reader; `name` what that calls the data set.

    Returns:
        16 hexadecimal digits each. Who can try all ids finds an id by its hash.
    """
    found = set()
    in_folder = DATASETS[dataset] == DATASETS["folder"]
    if not in_folder or case.patient_id != case.case_id:
        patient = f"{'folder' if in_folder else name}: {case.patient_id}"
        found.add(hashlib.sha256(patient.encode()).hexdigest()[:16])
    with suppress(ImageError):  # what cannot be opened is not learned from either
        found.add(study_sha256(case.images)[:16])
    return found


def calibration_of(
    model: Model, cases: Dataset, false_alarms: float = FALSE_ALARMS
) -> tuple[Calibration, tuple[tuple[str, str], ...]]:
    """What the healthy `cases` score, the first usable case of each patient, and (file, reason) of the unusable.

    Raises:
        ConfigError: `false_alarms` is no share.
        LayoutError: none of the cases can be judged.
    """
    if not 0 < false_alarms < 1:
        raise ConfigError(f"false alarms is a share between 0 and 1, got {false_alarms}.")
    prepared = PreparedCache().prepare(cases, model.preparation, read_study, study_sha256)
    failures = prepared.failures
    if not len(prepared.rows):
        raise LayoutError(f"{cases.name}: none of {len(cases)} healthy images can be judged. {failures[:1]}")
    maps, scores, _ = detections(model.detector, prepared.rows, precision=model.precision)
    of_patient: dict[str, float] = {}
    for index in np.unique(prepared.case):
        of_patient.setdefault(cases[int(index)].patient_id, case_score(scores[prepared.case == index]))
    try:
        on_grid = threshold_grid_ra2024(maps)
    except ValueError:  # the values of this map are too large for a grid that ends below 1
        on_grid = None
    calibration = Calibration(
        scores=tuple(sorted(of_patient.values())),
        false_alarms=false_alarms,
        pixel_threshold=pixel_threshold(maps, false_alarms=false_alarms),
        grid_threshold=on_grid,
        curve_thresholds=tuple(pixel_threshold(maps, false_alarms=share) for share in OF_CURVE),
    )
    return calibration, failures
