"""Floors: what the same cases give without any method worth the name.

Mean intensity needs nothing. The PCA residual is fitted here, on the data set's own healthy training cases, and all
get their threshold from its held-out cases, as a method would. Where a method's map is another than the residual,
PCA gets that map as well: else a good map would pass for a good restoration.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from salus.benchmark.measures import Scored, compared
from salus.benchmark.pairing import Judged
from salus.core import Dataset, Label, Split
from salus.core.errors import LayoutError, SalusError
from salus.datasets.protocol import split
from salus.detectors import build, detector_class
from salus.io import read_study, study_sha256
from salus.metrics import pixel_edges
from salus.model import Model, detections
from salus.preprocess.cache import Prepared, PreparedCache
from salus.preprocess.preparation import Preparation
from salus.screening import at_home
from salus.threshold import HELD_OUT, calibration_of
from salus.training import fit, make_fabric, with_score

BATCH = 32  # slices that go through a floor together
SAME_MAP = "pca-same-map"
FLOORS = {"mean-intensity": "mean intensity", "pca": "PCA residual", SAME_MAP: "PCA, same map"}  # how tables call them
RESIDUAL = {"name": "residual"}


def floor_scores(
    judged: Sequence[Judged],
    localised: Sequence[int],
    dataset: Dataset,
    preparation: Preparation,
    score: Mapping[str, Any],
) -> tuple[dict[str, Scored | None], tuple[str, ...]]:
    """What the floors say of the judged cases.

    Args:
        judged: the cases.
        localised: indices of those whose truth is compared pixel by pixel.
        dataset: the data set without the patients of the test; its healthy cases are used.
        preparation: the method's own, so that the floors see what it sees.
        score: the method's; {} of one that makes its map itself.

    Returns:
        A floor a name of `FLOORS`, None where it cannot be had, and notes that say why.
    """
    models, notes = floor_models(dataset, preparation, score)
    prepared = PreparedCache().prepare([one.case for one in judged], preparation, read_study, study_sha256)
    scored = {
        name: None if model is None else floor_scored(model, judged, localised, prepared, preparation)
        for name, model in models.items()
    }
    return scored, notes


def unbeaten(metrics: Mapping[str, Any]) -> str:
    """A sentence on the best floor where the method's AUROC does not beat it, from `metrics.json`; empty where it does.

    A method below a floor has learned nothing that this test shows, and a number without its floor hides it.
    """
    with_auroc = {
        FLOORS[name]: floor["overall"]["auroc"]["value"]
        for name, floor in (metrics["floors"] or {}).items()
        if floor is not None and floor["overall"]["auroc"] is not None
    }
    auroc = metrics["overall"] and metrics["overall"]["auroc"]
    if not with_auroc or auroc is None:
        return ""
    best = max(with_auroc, key=with_auroc.__getitem__)
    if auroc["value"] > with_auroc[best]:
        return ""
    return f"The floor {best} has AUROC {with_auroc[best]:.3f}: this method does not beat it."


def floor_models(
    dataset: Dataset, preparation: Preparation, score: Mapping[str, Any]
) -> tuple[dict[str, Model | None], tuple[str, ...]]:
    """The floors, fitted and calibrated as far as the data set's healthy cases allow."""
    models: dict[str, Model | None] = {"mean-intensity": floor_model("mean-intensity", preparation), "pca": None}
    if score and score != RESIDUAL:
        models[SAME_MAP] = None
    try:
        parts = split(dataset)
    except LayoutError:
        few = len(dataset.only(label=Label.NORMAL))
        return models, (f"No PCA floor: {few} healthy cases outside the test are too few to fit it on.",)
    training = parts.only(split=Split.TRAIN, label=Label.NORMAL)
    rows = PreparedCache().prepare(training, preparation, read_study, study_sha256).rows
    if not len(rows):
        return models, (f"No PCA floor: none of {len(training)} healthy training images can be used.",)
    model = floor_model("pca", preparation)
    recipe = detector_class("pca").PRESETS["fast"].recipe
    with tempfile.TemporaryDirectory() as progress:
        # Nothing validates a closed form; the loop wants images for its log, and a few will do.
        fit(model.detector, recipe, rows, rows[:1], Path(progress), 0, make_fabric("cpu", "fp32"))
    models["pca"] = model
    notes: tuple[str, ...] = ()
    if SAME_MAP in models:
        try:
            models[SAME_MAP] = with_score(model, score, parts.only(split=Split.VALIDATION, label=Label.NORMAL))
        except SalusError as error:
            notes = (f"No PCA floor with the method's map: {error}",)
    held = parts.only(split=HELD_OUT, label=Label.NORMAL)
    try:
        return {name: one and thresholded(one, held) for name, one in models.items()}, notes
    except LayoutError:
        without = f"The floors have no threshold: none of {len(held)} held-out images can be used."
        return models, (*notes, without)


def floor_model(name: str, preparation: Preparation) -> Model:
    """A floor that has learned nothing yet."""
    settings = {"size": preparation.size}
    detector = build(name, settings, RESIDUAL).eval()
    return Model(name=name, settings=settings, score=RESIDUAL, detector=detector, preparation=preparation)


def thresholded(model: Model, held: Dataset) -> Model:
    """A floor with its threshold, of all that are held out, or of those by whom its score was not fitted."""
    own = held.only(split=Split.CALIBRATION) if model.detector.fitted else held
    return replace(model, calibration=calibration_of(model, own)[0])


def floor_scored(
    model: Model, judged: Sequence[Judged], localised: Sequence[int], prepared: Prepared, preparation: Preparation
) -> Scored:
    """One floor's scores, and its maps brought home and compared with the truth."""
    calibration = model.calibration
    pixel_threshold = calibration.pixel_threshold if calibration else None
    score, pixels = np.full(len(judged), -np.inf), {}
    with tempfile.TemporaryDirectory() as folder:
        # On disk, as the prepared images are: memory stays bounded for volumes, too.
        maps = np.lib.format.open_memmap(Path(folder) / "maps.npy", "w+", np.float32, prepared.rows.shape)
        for start in range(0, len(maps), BATCH):
            rows = slice(start, start + BATCH)
            maps[rows], of_slice, _ = detections(model.detector, prepared.rows[rows])
            np.maximum.at(score, prepared.case[rows], of_slice)  # `model.case_score`, a batch at a time
        if localised:
            # The network's own grid chooses the bins: bringing home interpolates between these values.
            thresholds = () if pixel_threshold is None else (pixel_threshold,)
            edges = pixel_edges(list(maps), thresholds=thresholds)
            for index in localised:
                source = read_study(judged[index].case.images)
                home = at_home(np.asarray(maps[prepared.case == index]), preparation(source), source).array
                pixels[index] = compared(judged[index], home, edges, pixel_threshold)
    return Scored(score=score, threshold=calibration.threshold if calibration else None, pixels=pixels)
