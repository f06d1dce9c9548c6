"""Several trained models as one, see `salus.detectors.ensemble`; the command `salus combine`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from salus.core import Dataset, Label, Split
from salus.core.errors import ConfigError
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.detectors import ENSEMBLE
from salus.detectors.ensemble import Ensemble, EnsembleConfig, Member
from salus.io import read_study, study_sha256
from salus.io.files import file_sha256
from salus.model import WEIGHTS, Model, Precision, detections
from salus.preprocess.cache import PreparedCache
from salus.threshold import finished
from salus.training import Run, manifest
from salus.training.plan import at_random


def combine(folders: Sequence[Path], data: Path, out: Path, *, dataset: str = "folder") -> Model:
    """One model of those in `folders`: each keeps its weights, the units and the threshold are found anew.

    Args:
        folders: two models or more that `train` (or this) made of the same healthy people, prepared alike.
        data, dataset: what they learned from, of several data sets the one they are for: its validation part gives
            the units, so that its calibration part alone sets the threshold.
        out: the new model's folder; one that holds this model already is left as it is.

    Returns:
        The model in `out`.

    Raises:
        ConfigError: fewer than two, one of them twice, models of other people or preparation, other data, or another
            model in `out`.
        LayoutError: a part has no image that can be used.
        ModelError, StorageError: see their messages.
    """
    if len(folders) < 2:
        raise ConfigError("An ensemble has two members or more. Name another model.")
    models = [Model.load(folder) for folder in folders]
    members = [told(folder, model) for folder, model in zip(folders, models, strict=True)]
    for index, (folder, model) in enumerate(zip(folders, models, strict=True)):
        if differs := unlike(models[0], model):
            raise ConfigError(f"{folders[0]} and {folder} cannot be combined: {differs}.")
        if members[index] in members[:index]:
            raise ConfigError(f"{folders[members.index(members[index])]} and {folder} are one model. Name it once.")
    cases = split(open_dataset(dataset, data))
    if manifest(cases) != models[0].card["plan"]["manifest_sha256"]:
        raise ConfigError(f"{folders[0]} did not learn from {data}: files, or their parts, differ. Name its own data.")
    if (out / "model.json").is_file():
        there = Model.load(out)
        if there.card.get("members") != members:
            raise ConfigError(f"{out} holds another model. Choose another folder.")
        return there
    made = joined(models, members, cases.only(split=Split.VALIDATION, label=Label.NORMAL))
    made = finished(made, dataset, cases)
    made.save(out)
    return made


def unlike(first: Model, other: Model) -> str:
    """Why two models cannot judge together; empty where they can."""
    if first.preparation != other.preparation:
        mine, theirs = asdict(first.preparation), asdict(other.preparation)
        key = next(key for key in mine if mine[key] != theirs[key])
        return f"they see images prepared with {key} {mine[key]} and {theirs[key]}"
    if first.card["manifest_sha256"] != other.card["manifest_sha256"]:
        return "they learned from other images, or from other parts of them"
    if at_random(first.settings) != at_random(other.settings):
        return "one sees with a random trunk, the other does not"
    return ""


def joined(models: Sequence[Model], members: Sequence[Mapping[str, Any]], validation: Dataset) -> Model:
    """The ensemble, in units of healthy cases that its members did not learn from; not yet calibrated.

    Args:
        members: of each model, what the card says of it.
    """
    built = tuple(Member(detector=m.name, settings=m.settings, score=m.score) for m in models)
    config = EnsembleConfig(size=models[0].preparation.size, members=built)
    net = Ensemble(config)
    for into, model in zip(net.detectors, models, strict=True):
        into.load_state_dict(model.detector.state_dict())
    rows = PreparedCache().prepare(validation, models[0].preparation, read_study, study_sha256).rows
    # What one of them needs in single precision, all can have.
    precision: Precision = "bf16" if all(model.precision == "bf16" for model in models) else "fp32"
    looks = [detections(one, rows, precision=precision) for one in net.eval().detectors]
    net.settle([(torch.from_numpy(maps), torch.from_numpy(scores)) for maps, scores, _ in looks])
    return Model(
        name=ENSEMBLE,
        settings=asdict(config),
        score={},
        detector=net,
        preparation=models[0].preparation,
        precision=precision,
        card=card_of(models, members),
    )


# What is the same for all that learned from the same people, prepared alike.
SHARED = ("dataset", "counts", "manifest_sha256", "also", "learned_from", "unit", "modality", "left_out", "remarks")


def card_of(models: Sequence[Model], members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the members share; what differs is added up, or stands with each in `members`."""
    first = models[0].card
    trainings = {one["weights_sha256"]: model.card for one, model in zip(members, models, strict=True)}.values()
    nothing: dict[str, Any] = {"preset": "", "seed": "", "settings": {}, "score": {}, "recipe": {}}
    return {
        **{key: first[key] for key in SHARED if key in first},
        # Those of models from before patients were kept know fewer.
        "learned_from": sorted({mark for model in models for mark in model.card.get("learned_from", ())}),
        "parameters": sum(card["parameters"] for card in trainings),
        "plan": {**first["plan"], **nothing, "detector": ENSEMBLE},
        "run": asdict(Run(best=0.0, seconds=sum(card["run"]["seconds"] for card in trainings))),
        "members": list(members),
    }


def told(folder: Path, model: Model) -> dict[str, Any]:
    """What an ensemble's card says of a member, as JSON brings it back."""
    known: dict[str, Any] = json.loads(json.dumps({"score": dict(model.score), "plan": model.card["plan"]}))
    return {"method": model.summary, **known, "weights_sha256": file_sha256([folder / WEIGHTS])}
