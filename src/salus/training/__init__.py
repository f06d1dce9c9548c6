"""Training: healthy images in, a model folder out. The loop is in `loop`, what decides a training in `plan`."""

import csv
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from salus.core import Dataset, Image, Label, Split
from salus.core.errors import ConfigError, ImageError, LayoutError
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.detectors import Detector, Restorer, build
from salus.io import read_study, study_sha256
from salus.io.files import make_folder, write_whole
from salus.model import Model, Precision, shortfall
from salus.preprocess.cache import Prepared, PreparedCache
from salus.preprocess.preparation import Preparation
from salus.threshold import HELD_OUT, finished, people
from salus.training.further import LEARNED, Joined, further_sets
from salus.training.latent import SIZES, chosen, settings_of
from salus.training.loop import Images, Run, Stepper, fit, fit_score, half_precision, make_fabric
from salus.training.plan import AUTO, Plan, refuse_another, refuse_too_large, resolved
from salus.training.tracking import Tracker

HEALTHY = (Split.TRAIN, Split.VALIDATION, Split.CALIBRATION)

__all__ = [
    "Plan", "Run", "Stepper", "Trained", "first_image", "fit", "make_fabric", "manifest", "rescored", "train",
    "trained_before", "with_score",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What `train` did.

    Attributes:
        folder: the model's.
        latent: the size that `latent=auto` took; None where nothing was to choose.
        left_out: (file, reason) of images that could not be used.
        remarks: what is wrong with cases that were used, and how many files were passed over, a sentence each.
        warning: why it will judge nobody; "" where it will.
    """

    folder: Path
    run: Run
    latent: int | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()
    warning: str = ""


def train(
    detector: str,
    data: Path,
    out: Path,
    *,
    dataset: str = "folder",
    also: Sequence[tuple[str, Path]] = (),
    preset: str = "fast",
    settings: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    resume: bool = False,
    tracked: Tracker | None = None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    on_warning: Callable[[str], None] = lambda warning: None,
    on_epoch: Callable[[Run, int], None] = lambda run, epochs: None,
) -> Trained:
    """Train on the healthy images of a data set, calibrate, and write a model folder; the command of the same name.

    Args:
        data, dataset: folder and reader of the data set that the model is for.
        also: reader and folder of further data sets to learn from, see `salus.training.further`.
        detector, preset: keys of `DETECTORS` and of the detector's `PRESETS`.
        settings: the detector's own by name; `recipe.*`, `score.*` and `prepare.*` for the rest.
        epochs: in place of the preset's.
        resume: go on where an interrupted training in `out` stopped; start one if there is none.
        tracked: told of the plan and of each epoch; it changes nothing in what is learned.
        on_image: called with images prepared and images in all, for each part of the data.
        on_warning: called before the first epoch with why the model will judge nobody, if it will not.
        on_epoch: called after each epoch with the run and the number of epochs.

    Raises:
        ConfigError, LayoutError, TrainingError, StorageError: see their messages. Nothing in `out` is lost.
    """
    plan = resolved(
        detector, preset, {**(settings or {}), **({} if epochs is None else {"recipe.epochs": epochs})}, seed
    )
    progress = out / "progress"
    begun = (out / "model.json").is_file() or any(progress.rglob("state.safetensors"))
    if begun and not resume:
        raise ConfigError(f"{out} holds a training already. Add --resume to go on with it, or choose another --out.")
    cases = split(open_dataset(dataset, data))
    further = further_sets(also, dataset, cases)
    as_built = (plan.detector, settings_of(plan, SIZES[0]), plan.score)
    refuse_too_large(*as_built)
    torch.manual_seed(seed)
    net = build(*as_built)
    # What is not learned by descent gains nothing from less precision.
    fabric = make_fabric(device, "fp32" if precision == "auto" and not net.parts() else precision)
    used: Precision = "bf16" if half_precision(fabric) else "fp32"
    plan = replace(plan, **sources(dataset, cases, also, further), precision=used)
    if begun:
        refuse_another(out, plan)
    if (out / "model.json").is_file():
        return trained_before(out)
    found = gathered(plan, cases, further, on_image)
    plan = replace(plan, recipe=plan.recipe.for_images(len(found.training), fabric.world_size))
    net.check(plan.recipe, len(found.training), len(found.own))
    make_progress(progress, plan)
    if few := shortfall(found.strangers(plan.recipe.validated or net.fitted)):
        on_warning(f"Every study will be CANNOT_JUDGE: {few}")
    watched = tracked or Tracker()
    watched.begin(asdict(plan))

    def ended(run: Run, epochs: int) -> None:
        watched.log(run.rows)
        on_epoch(run, epochs)

    told: dict[str, Any] = {"left_out": found.left_out, "remarks": found.remarks}
    settings, size, choice = plan.settings, None, {}
    if settings.get("latent") == AUTO:
        size, dimension = chosen(found.training, found.patients)
        settings, choice = settings_of(plan, size), {"latent": {"dimension": dimension, "size": size}}
        torch.manual_seed(seed)
        net = build(plan.detector, settings, plan.score)
    run = fit(net, plan.recipe, found.training, found.validation, progress, seed, fabric, ended)
    watched.log(run.rows)  # of one that was killed after its last epoch, too
    if fabric.global_rank > 0:
        return Trained(folder=out, run=run, **told)
    card = card_of(plan, found, net, run) | told | choice
    model = made(replace(plan, settings=settings), cases, found, net, card)
    write_rows(out / "train.csv", run.rows)
    loss_figure(out / "loss.png", run)
    model.save(out)
    shutil.rmtree(progress)
    return Trained(folder=out, run=run, latent=size, **told, warning=model.shortfall)


def rescored(folder: Path, score: Mapping[str, Any], data: Path, out: Path, *, dataset: str = "folder") -> Path:
    """The model in `folder` with another score, fitted and calibrated anew; nothing else is trained again.

    Args:
        score: `name` and the score's settings, as `score.*` of `train`.
        data, dataset: what the model learned from, of several data sets the one that it is for: its validation part
            is what the score is fitted on, and who then decided nothing sets the threshold, see `salus.threshold`.
        out: the new model's folder; one that holds this model already is left as it is.

    Returns:
        `out`.

    Raises:
        ConfigError: the method makes no restoration to be scored, no such score or setting, other data, or another
            model in `out`.
        ModelError, LayoutError: see their messages.
    """
    model = Model.load(folder)
    if (out / "model.json").is_file():
        there = Model.load(out)
        if (uncalibrated(there), dict(there.score)) != (uncalibrated(model), dict(score)):
            raise ConfigError(f"{out} holds another model. Choose another folder.")
        return out
    cases = split(open_dataset(dataset, data))
    if manifest(cases) != model.card["plan"]["manifest_sha256"]:
        raise ConfigError(f"{folder} did not learn from {data}: files, or their parts, differ. Name its own data.")
    other = with_score(model, score, cases.only(split=Split.VALIDATION, label=Label.NORMAL))
    finished(other, dataset, cases).save(out)
    return out


def uncalibrated(model: Model) -> dict[str, Any]:
    """A card without the people on whom score and threshold rest."""
    return {key: value for key, value in model.card.items() if key not in ("fitted_on", "calibrated_on")}


def with_score(model: Model, score: Mapping[str, Any], validation: Dataset) -> Model:
    """`model` with another score, fitted on healthy cases that it did not learn from; not yet calibrated.

    Raises:
        ConfigError: it makes no restoration to be scored, or there is no such score or setting.
        WeightsError: the score needs weights that are missing.
    """
    if not isinstance(model.detector, Restorer):
        raise ConfigError(f"{model.name} makes its map itself; there is nothing for another score to compare.")
    detector = build(model.name, model.settings, score)
    kept = {name: value for name, value in model.detector.learned().items() if not name.startswith("score.")}
    detector.load_state_dict(kept, strict=False)
    rows = PreparedCache().prepare(validation, model.preparation, read_study, study_sha256).rows
    fit_score(detector.eval(), rows, model.precision)
    return replace(model, detector=detector, score=dict(score), calibration=None)


def trained_before(out: Path) -> Trained:
    """What `train` said when it finished the model in `out`."""
    model = Model.load(out)
    left_out = tuple((name, reason) for name, reason in model.card["left_out"])
    told = tuple(model.card.get("remarks", ()))
    latent = model.settings["latent"] if "latent" in model.card else None
    return Trained(
        folder=out,
        run=Run(**model.card["run"]),
        latent=latent,
        left_out=left_out,
        remarks=told,
        warning=model.shortfall,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Gathered:
    """Everything healthy that a training uses.

    Attributes:
        parts: cases of each part, of the set that the model is for first, then of each further set.
        training, validation: prepared slices of all sets.
        patients: whom each training slice belongs to; nobody is in two sets.
        own: the validation slices of the first set alone.
        first: the image that decided what "auto" means.
        left_out, remarks: see `Trained`.
    """

    parts: tuple[Mapping[Split, Dataset], ...]
    training: Images
    validation: Images
    patients: tuple[str, ...]
    own: Images
    first: Image
    preparation: Preparation
    left_out: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]

    def strangers(self, validated: bool) -> int:
        """How many patients can set the threshold: as `threshold.setting`, copies among validation images aside."""
        parts = [Split.CALIBRATION] if validated else HELD_OUT
        return len({case.patient_id for part in parts for case in self.parts[0][part]})


def sources(
    dataset: str, cases: Dataset, also: Sequence[tuple[str, Path]], further: Sequence[Dataset]
) -> dict[str, Any]:
    """What a plan says of the data: `dataset`, `manifest_sha256` and `also`."""
    more = [{"dataset": name, "manifest_sha256": manifest(one)} for (name, _), one in zip(also, further, strict=True)]
    return {"dataset": dataset, "manifest_sha256": manifest(cases), "also": tuple(more)}


def gathered(
    plan: Plan,
    cases: Dataset,
    further: Sequence[Dataset],
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Gathered:
    """Healthy cases of all sets, prepared alike.

    Raises:
        LayoutError: a part of a set has no usable image.
    """
    healthy = {part: cases.only(split=part, label=Label.NORMAL) for part in HEALTHY}
    first = first_image(healthy[Split.TRAIN])
    preparation = Preparation(**plan.preparation).resolve(first)
    mine, left_out = prepared(healthy, preparation, on_image)
    parts, everybody, said = [healthy], [mine], remarks(healthy, cases)
    for one in further:
        more = {part: one.only(split=part) for part in LEARNED}
        # As the first set is; only whether they are bare pictures or lie in the patient, each set decides.
        alike = replace(preparation, unit=plan.preparation["unit"]).resolve(first_image(more[Split.TRAIN]))
        others, failures = prepared(more, alike, on_image)
        parts, everybody = [*parts, more], [*everybody, others]
        left_out, said = left_out + failures, said + remarks(more, one)
    training, validation = (
        Joined([one[part].rows for one in everybody]) if further else mine[part].rows for part in LEARNED
    )
    return Gathered(
        parts=tuple(parts),
        training=training,
        validation=validation,
        patients=tuple(
            f"{number} {of[Split.TRAIN][int(index)].patient_id}"
            for number, (of, one) in enumerate(zip(parts, everybody, strict=True))
            for index in one[Split.TRAIN].case
        ),
        own=mine[Split.VALIDATION].rows,
        first=first,
        preparation=preparation,
        left_out=left_out,
        remarks=said,
    )


def prepared(
    healthy: Mapping[Split, Dataset], preparation: Preparation, on_image: Callable[[int, int], None]
) -> tuple[dict[Split, Prepared], tuple[tuple[str, str], ...]]:
    """Prepared slices of each part, and (file, reason) of images that could not be used.

    Raises:
        LayoutError: a part has no usable image.
    """
    parts: dict[Split, Prepared] = {}
    left_out: list[tuple[str, str]] = []
    for part, cases in healthy.items():
        found = PreparedCache().prepare(cases, preparation, read_study, study_sha256, on_image)
        left_out += found.failures
        if not len(found.rows):
            raise LayoutError(f"{cases.name}: no {part} image can be used. {left_out[-1][1]}")
        parts[part] = found
    return parts, tuple(left_out)


def remarks(healthy: Mapping[Split, Dataset], cases: Dataset) -> tuple[str, ...]:
    """What is wrong with cases that are learned from, and what the data set passed over, by its reason."""
    used = [case for part in healthy.values() for case in part if case.remark]
    passed_over = Counter(reason for _, reason in cases.left_out)
    return (
        *(f"{case.images[0].name}: {case.remark}" for case in used),
        *(f"{count:,} passed over: {reason}" for reason, count in passed_over.most_common()),
    )


def card_of(plan: Plan, found: Gathered, net: Detector, run: Run) -> dict[str, Any]:
    """What people and audits want to know of a model. It names no file."""
    own, *more = found.parts
    manifests = [plan.manifest_sha256, *(one["manifest_sha256"] for one in plan.also)]
    return {
        "dataset": " + ".join([plan.dataset, *(one["dataset"] for one in plan.also)]),
        "counts": {part: sum(len(parts.get(part, ())) for parts in found.parts) for part in own},
        "manifest_sha256": hashlib.sha256("\n".join(manifests).encode()).hexdigest() if more else manifests[0],
        "also": [
            {**source, "counts": {part: len(cases) for part, cases in parts.items()}}
            for source, parts in zip(plan.also, more, strict=True)
        ],
        "learned_from": sorted(learned_from(plan, found)),
        "unit": found.first.unit,
        "modality": found.first.modality,
        "parameters": sum(p.numel() for part in net.parts().values() for p in part),
        "plan": asdict(plan),
        "run": {**asdict(run), "rows": []},
    }


def learned_from(plan: Plan, found: Gathered) -> set[str]:
    """Marks of all whom the weights come from: of the training parts, and of validation where it chose the epoch."""
    readers = [plan.dataset, *(one["dataset"] for one in plan.also)]
    pairs = zip(readers, found.parts, strict=True)
    parts = LEARNED if plan.recipe.validated else [Split.TRAIN]
    return {mark for reader, one in pairs for part in parts for mark in people(reader, one[part])}


def made(plan: Plan, cases: Dataset, found: Gathered, net: Detector, card: Mapping[str, Any]) -> Model:
    """The model of a trained detector, its score fitted and its threshold set.

    Args:
        plan: with the settings that `net` has, no `auto` among them.
        cases: those of the set it is for, all parts.
    """
    fit_score(net, found.own, plan.precision)
    model = Model(
        name=plan.detector,
        settings=plan.settings,
        score=plan.score,
        detector=net,
        preparation=found.preparation,
        precision=plan.precision,
        card=card,
    )
    return finished(model, plan.dataset, cases)


def make_progress(progress: Path, plan: Plan) -> None:
    """The folder of a training under way, with its plan."""
    for left in make_folder(progress).glob(".*.part"):  # of a run that was killed while it wrote
        left.unlink()
    write_whole(progress / "plan.json", json.dumps(asdict(plan), indent=1).encode())


def first_image(cases: Dataset) -> Image:
    """The first readable image; it decides what 'auto' means.

    Raises:
        LayoutError: none can be read.
    """
    reason = "no healthy training images"
    for case in cases:
        try:
            return read_study(case.images)
        except ImageError as error:
            reason = str(error)
    raise LayoutError(f"{cases.name}: none of {len(cases)} healthy training images can be read. {reason}")


def manifest(cases: Dataset) -> str:
    """SHA-256 over case, split and file hash of everything healthy that shaped the model."""
    rows = [
        f"{case.case_id}\t{case.split}\t{study_sha256(case.images)}"
        for case in cases.only(label=Label.NORMAL)
        if case.split != Split.TEST
    ]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def write_rows(path: Path, rows: list[dict[str, float]]) -> None:
    """`train.csv`: one row an epoch, the union of what epochs logged as columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def loss_figure(path: Path, run: Run) -> None:
    """Every logged quantity over the epochs, one panel each, the kept epoch marked."""
    from matplotlib.figure import Figure

    names = [k for k in dict.fromkeys(key for row in run.rows for key in row) if k not in ("epoch", "seconds")]
    figure = Figure(figsize=(3.2 * len(names), 2.6), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        points = [(row["epoch"], row[name]) for row in run.rows if name in row]
        axes.plot(*zip(*points, strict=True), color="#1f5a7a")
        if run.best_epoch:
            axes.axvline(run.best_epoch, color="#b0492f", linewidth=0.8)
        axes.set(title=name.replace("_", " "), xlabel="epoch")
        if all(value > 0 for _, value in points):
            axes.set_yscale("log")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_whole(path, picture.getvalue())
