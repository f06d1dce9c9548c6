"""The training loop: healthy images in, a model folder out.

A detector calls `update(part, loss)`; here that becomes gradients of that part alone, their mean over processes,
clipping, and one Adam step. All noise of a step is seeded from (seed, step, process), and everything else that moves
is in one file, `progress/state.safetensors`, replaced at the end of each epoch. So a run that was killed and goes on
equals one that was not, bit for bit (CPU, same number of threads).
"""

import copy
import csv
import hashlib
import io
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from salus.core import Dataset, Image, Label, Split
from salus.core.errors import (
    ConfigError,
    ImageError,
    LayoutError,
    ModelError,
    StorageError,
    TrainingError,
    did_you_mean,
)
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.detectors import Detector, Recipe, build, detector_class
from salus.io import read_image
from salus.io.files import file_sha256, write_whole
from salus.model import Model, calibration_of, learned
from salus.preprocess.cache import PreparedCache
from salus.preprocess.preparation import Preparation

T = TypeVar("T")
Images = NDArray[np.float32]  # (n, 1, size, size) in [0, 1]; usually memory-mapped


@dataclass(kw_only=True)
class Run:
    """Where a training stands. `rows` is `train.csv`, one row an epoch."""

    epoch: int = 0
    step: int = 0
    best: float = math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)


class Stepper:
    """The loop's side of `Update`: one Adam a part."""

    def __init__(self, fabric: Fabric, detector: Detector, recipe: Recipe) -> None:
        self.fabric, self.recipe = fabric, recipe
        self.parts = {name: list(parameters) for name, parameters in detector.parts().items()}
        self.optimisers = {name: torch.optim.Adam(p, lr=recipe.learning_rate) for name, p in self.parts.items()}

    def __call__(self, part: str | tuple[str, ...], loss: Tensor, *, keep_graph: bool = False) -> None:
        names = (part,) if isinstance(part, str) else part
        parameters = [p for name in names for p in self.parts[name]]
        # A loss that is not a number would poison the weights: look before stepping.
        if not bool(torch.isfinite(loss)):
            raise TrainingError(f"the loss of {'+'.join(names)} is {loss.item()}")
        gradients = torch.autograd.grad(loss, parameters, retain_graph=keep_graph)
        if self.fabric.world_size > 1:
            flat = torch.cat([g.reshape(-1) for g in gradients])
            torch.distributed.all_reduce(flat)
            gradients = torch.split(flat / self.fabric.world_size, [p.numel() for p in parameters])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        for name in names:
            if self.recipe.clip > 0:
                torch.nn.utils.clip_grad_norm_(self.parts[name], self.recipe.clip)
            self.optimisers[name].step()
            self.optimisers[name].zero_grad()
        # Autocast remembers a half-precision copy of each weight; after a step it would be the old one.
        torch.clear_autocast_cache()

    def state(self) -> dict[str, Tensor]:
        """Adam's moments as flat names to tensors."""
        return {
            f"{name}.{index}.{key}": value.detach().cpu()
            for name, optimiser in self.optimisers.items()
            for index, entries in optimiser.state_dict()["state"].items()
            for key, value in entries.items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`."""
        for name, optimiser in self.optimisers.items():
            entries: dict[int, dict[str, Tensor]] = {}
            for path, value in state.items():
                part, index, key = path.rsplit(".", 2)
                if part == name:
                    entries.setdefault(int(index), {})[key] = value
            optimiser.load_state_dict({**optimiser.state_dict(), "state": entries})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides a training, resolved; kept beside its progress and in the model's card."""

    detector: str
    preset: str
    settings: dict[str, Any]
    score: dict[str, Any]
    recipe: Recipe
    preparation: dict[str, Any]
    seed: int


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What `train` did: the model's folder, the run, and (file, reason) of images that could not be used."""

    folder: Path
    run: Run
    left_out: tuple[tuple[str, str], ...] = ()


def train(
    detector: str,
    data: Path,
    out: Path,
    *,
    dataset: str = "folder",
    preset: str = "fast",
    settings: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    resume: bool = False,
    on_epoch: Callable[[Run, int], None] = lambda run, epochs: None,
) -> Trained:
    """Train on the healthy images of a data set, calibrate, and write a model folder; the command of the same name.

    Args:
        detector, preset: keys of `DETECTORS` and of the detector's `PRESETS`.
        settings: the detector's own by name; `recipe.*`, `score.*` and `prepare.*` for the rest.
        epochs: in place of the preset's.
        resume: go on where an interrupted training in `out` stopped; start one if there is none.
        on_epoch: called after each epoch with the run and the number of epochs.

    Raises:
        ConfigError, LayoutError, TrainingError, StorageError: see their messages. Nothing in `out` is lost.
    """
    plan = resolved(
        detector, preset, {**(settings or {}), **({} if epochs is None else {"recipe.epochs": epochs})}, seed
    )
    progress = out / "progress"
    if (out / "model.json").is_file() or progress.is_dir():
        refuse_another(out, plan, resume)
        if (out / "model.json").is_file():
            return Trained(folder=out, run=Run(**Model.load(out).card["run"]))
    cases = split(open_dataset(dataset, data))
    healthy = {part: cases.only(split=part, label=Label.NORMAL) for part in (Split.TRAIN, Split.VALIDATION)}
    first = first_image(healthy[Split.TRAIN])
    preparation = Preparation(**plan.preparation).resolve(first)
    prepared = {
        part: PreparedCache().prepare([case.images[0] for case in found], preparation, read_image)
        for part, found in healthy.items()
    }
    left_out = tuple((path.name, reason) for p in prepared.values() for path, reason in p.failures)
    torch.manual_seed(seed)
    net = build(plan.detector, plan.settings, plan.score)
    if precision == "auto" and not net.parts():
        precision = "fp32"  # what is not learned by descent gains nothing from less
    fabric = make_fabric(device, precision)
    make_progress(progress, plan)
    rows = {part: p.rows for part, p in prepared.items()}
    for part, found in rows.items():
        if not len(found):
            raise LayoutError(f"{data}: no {part} image can be used. {left_out[0][0]}: {left_out[0][1]}")
    run = fit(net, plan.recipe, rows[Split.TRAIN], rows[Split.VALIDATION], progress, seed, fabric, on_epoch)
    if fabric.global_rank == 0:
        model = Model(
            name=plan.detector,
            settings=plan.settings,
            score=plan.score,
            detector=net,
            preparation=preparation,
            precision="bf16" if half_precision(fabric) else "fp32",
        )
        model = replace(
            model, calibration=calibration_of(model, cases.only(split=Split.CALIBRATION, label=Label.NORMAL))
        )
        card = {
            "dataset": cases.name,
            "counts": {part: len(cases.only(split=part, label=Label.NORMAL)) for part in (*healthy, Split.CALIBRATION)},
            "manifest_sha256": manifest(cases),
            "left_out": left_out,
            "unit": first.unit,
            "modality": first.modality,
            "parameters": sum(p.numel() for part in net.parts().values() for p in part),
            "plan": asdict(plan),
            "run": {**asdict(run), "rows": []},
        }
        write_rows(out / "train.csv", run.rows)
        loss_figure(out / "loss.png", run)
        replace(model, card=card).save(out)
        shutil.rmtree(progress)
    return Trained(folder=out, run=run, left_out=left_out)


def resolved(detector: str, preset: str, settings: Mapping[str, Any], seed: int) -> Plan:
    """Preset and settings brought together and checked.

    Raises:
        ConfigError: no such detector, preset or setting ("did you mean"), or a value that does not fit.
    """
    kind = detector_class(detector)
    if preset not in kind.PRESETS:
        raise ConfigError(f"{detector} has no preset '{preset}'.{did_you_mean(preset, kind.PRESETS)}")
    chosen = kind.PRESETS[preset]
    own = {key: value for key, value in settings.items() if "." not in key}
    grouped: dict[str, dict[str, Any]] = {"recipe": {}, "score": {}, "prepare": {}}
    for path in settings.keys() - own.keys():
        group, _, key = path.partition(".")
        if group not in grouped:
            raise ConfigError(f"There is no group of settings '{group}' ({path}).{did_you_mean(group, grouped)}")
        grouped[group][key] = settings[path]
    score = dict(chosen.score)
    if grouped["score"].get("name", score.get("name")) != score.get("name"):
        score = {}  # another score does not share the preset's settings
    config = build(detector, {**chosen.settings, **own}, {**score, **grouped["score"]}).config
    return Plan(
        detector=detector,
        preset=preset,
        settings=asdict(config),
        score={**score, **grouped["score"]},
        recipe=checked(Recipe, "recipe", {**asdict(chosen.recipe), **grouped["recipe"]}),
        preparation=asdict(checked(Preparation, "prepare", {**grouped["prepare"], "size": config.size})),
        seed=seed,
    )


def checked(kind: type[T], group: str, values: Mapping[str, Any]) -> T:
    """`kind(**values)`, or a ConfigError that names the setting."""
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f"There is no setting '{group}.{key}'.{did_you_mean(key, known)}")
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{group}.{first['loc'][0] if first['loc'] else ''}: {first['msg']}, got {first['input']!r}."
        ) from None


def refuse_another(out: Path, plan: Plan, resume: bool) -> None:
    """Whether what lies in `out` may be gone on with.

    Raises:
        ConfigError: resuming was not asked for, or what is there was trained otherwise.
    """
    if not resume:
        raise ConfigError(f"{out} holds a training already. Add --resume to go on with it, or choose another --out.")
    finished = out / "model.json"
    there = (
        Model.load(out).card["plan"] if finished.is_file() else json.loads((out / "progress" / "plan.json").read_text())
    )
    mine = json.loads(json.dumps(asdict(plan)))
    if different := sorted(key for key in mine if there.get(key) != mine[key]):
        raise ConfigError(
            f"{out} was begun with another {', '.join(different)}. Use the same settings or another --out."
        )


def make_progress(progress: Path, plan: Plan) -> None:
    """The folder of a training under way, with its plan."""
    try:
        progress.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{progress} cannot be made: {error.strerror or error}.") from error
    write_whole(progress / "plan.json", json.dumps(asdict(plan), indent=1).encode())


def first_image(cases: Dataset) -> Image:
    """The first readable image; it decides what 'auto' means.

    Raises:
        LayoutError: none can be read.
    """
    reason = "no healthy training images"
    for case in cases:
        try:
            return read_image(case.images[0])
        except ImageError as error:
            reason = str(error)
    raise LayoutError(f"{cases.name}: none of {len(cases)} healthy training images can be read. {reason}")


def manifest(cases: Dataset) -> str:
    """SHA-256 over case, split and file hash of everything healthy that shaped the model."""
    rows = [
        f"{case.case_id}\t{case.split}\t{file_sha256(case.images)}"
        for case in cases.only(label=Label.NORMAL)
        if case.split != Split.TEST
    ]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def fit(
    detector: Detector,
    recipe: Recipe,
    training: Images,
    validation: Images,
    progress: Path,
    seed: int,
    fabric: Fabric,
    on_epoch: Callable[[Run, int], None] = lambda run, epochs: None,
) -> Run:
    """Train `detector` in place; on return it holds the weights that the recipe selects, in eval mode, on the CPU.

    Args:
        detector: fresh. If `progress` holds a state, that is gone on with.
        training, validation: (n, 1, size, size) in [0, 1], healthy, of different patients.
        progress: folder of the state; it exists.
        seed: of order and noise.
        fabric: device, precision and processes, from `make_fabric`.

    Raises:
        TrainingError: a loss is NaN or infinite; the batch is saved in `progress/failed_batch.safetensors`.
        StorageError: the disk is full; the last finished epoch is kept.
    """
    fabric.launch()
    state_file = progress / "state.safetensors"
    layout = torch.channels_last if half_precision(fabric) else torch.contiguous_format
    detector.to(fabric.device).to(memory_format=layout)  # type: ignore[call-overload]
    stepper, run = Stepper(fabric, detector, recipe), Run()
    average = copied(detector) if recipe.average else {}
    best: dict[str, Tensor] = {}
    if state_file.is_file():
        run, average, best = load_state(state_file, detector, stepper)
    while run.epoch < recipe.epochs and not out_of_patience(run, recipe):
        started = time.perf_counter()
        logged = one_epoch(detector, recipe, training, progress, seed, stepper, run, average)
        run.epoch += 1
        loss = validation_loss(detector, average, validation, recipe, fabric)
        if run.epoch > recipe.select_after * recipe.epochs and loss < run.best:
            run.best, run.best_epoch = loss, run.epoch
            best = copy.deepcopy(average) or copied(detector)
        run.seconds += time.perf_counter() - started
        run.rows.append({"epoch": run.epoch, **means(logged), "validation": loss, "seconds": run.seconds})
        if fabric.global_rank == 0:
            save_state(state_file, run, detector, stepper, average, best)
        fabric.barrier()
        on_epoch(run, recipe.epochs)
    chosen = best if recipe.select == "best" and best else average
    detector.load_state_dict(chosen, strict=False)
    detector.to("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    detector.finish_training()
    return run


def one_epoch(
    detector: Detector,
    recipe: Recipe,
    training: Images,
    progress: Path,
    seed: int,
    stepper: Stepper,
    run: Run,
    average: dict[str, Tensor],
) -> list[dict[str, Tensor]]:
    """All steps of one epoch; `run.step` and `average` move along. Returns what each step logged."""
    fabric, logged = stepper.fabric, []
    steps = recipe.epochs * max(1, len(training) // (recipe.batch * fabric.world_size))
    detector.train()
    for x in batches(training, recipe, seed, run.epoch, fabric):
        torch.manual_seed(mixed(seed, run.step, fabric.global_rank))
        x = augmented(x) if recipe.augment == "affine" else x
        if half_precision(fabric):
            x = x.contiguous(memory_format=torch.channels_last)
        try:
            with fabric.autocast():
                logged.append(detector.training_step(x, stepper, run.step / steps))
        except TrainingError as error:
            saved = progress / "failed_batch.safetensors"
            write_whole(saved, save_tensors({"x": x.cpu().contiguous()}))
            raise TrainingError(
                f"Epoch {run.epoch + 1}, step {run.step + 1}: {error}. The batch is in {saved}; the last finished "
                "epoch is kept. A lower recipe.learning_rate or recipe.clip=1 usually helps."
            ) from None
        run.step += 1
        if average:
            averaged(average, detector, min(recipe.average, (1 + run.step) / (10 + run.step)))
    return logged


def half_precision(fabric: Fabric) -> bool:
    """Whether matrix products run in bfloat16; channels-last is then the faster layout."""
    return str(fabric._precision.precision).startswith("bf16")


def make_fabric(device: str, precision: str) -> Fabric:
    """Fabric for a device and a precision by the names of the command line; under torchrun, for its processes.

    Raises:
        ConfigError: no such device or precision here.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"There is no device '{device}'. Use auto, cpu, cuda, cuda:0 ...")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but torch sees no CUDA device here. Use --device cpu.")
    if precision not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"There is no precision '{precision}'. Use auto, fp32 or bf16.")
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if kind == "cuda" else torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if fast else "fp32"
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    together, here = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return Fabric(
        accelerator=kind,
        devices=[int(index)] if index else here,
        num_nodes=together // here,
        strategy="ddp" if together > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )


def batches(images: Images, recipe: Recipe, seed: int, epoch: int, fabric: Fabric) -> Iterator[Tensor]:
    """One epoch in an order that only (seed, epoch) decide; each process takes its share of every batch."""
    order = np.random.default_rng([seed, epoch]).permutation(len(images))
    together = recipe.batch * fabric.world_size
    usable = len(order) // together * together or len(order)
    for start in range(0, usable, together):
        mine = order[start : start + together][fabric.global_rank :: fabric.world_size]
        # Sorted, so that a memory-mapped file is read forwards.
        yield torch.from_numpy(np.ascontiguousarray(images[np.sort(mine)])).to(fabric.device)


def augmented(x: Tensor) -> Tensor:
    """Rotate up to 10 degrees, shift up to 10 %, scale 0.9 to 1.1, flip left-right half the time; zeros come in."""
    n = len(x)
    angle, dx, dy, scale, flip = torch.rand(5, n).to(x.device) * 2 - 1
    angle, scale, flip = angle * math.pi / 18, 1 + 0.1 * scale, torch.where(flip > 0, 1.0, -1.0)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = torch.stack([torch.stack([cos * flip, -sin, 0.2 * dx], 1), torch.stack([sin * flip, cos, 0.2 * dy], 1)], 1)
    return F.grid_sample(x, F.affine_grid(rows, list(x.shape), align_corners=False), align_corners=False)


@torch.no_grad()
def validation_loss(
    detector: Detector, average: Mapping[str, Tensor], images: Images, recipe: Recipe, fabric: Fabric
) -> float:
    """Mean over healthy images that nothing is trained on, in eval mode, of the weights that would be kept."""
    detector.eval()
    current = copied(detector) if average else {}
    detector.load_state_dict(average, strict=False)
    total = 0.0
    for start in range(0, len(images), recipe.batch):
        x = torch.from_numpy(np.array(images[start : start + recipe.batch])).to(fabric.device)
        with fabric.autocast():
            total += float(detector.validation_loss(x).float().sum())
    detector.load_state_dict(current, strict=False)
    return total / len(images)


def copied(detector: Detector) -> dict[str, Tensor]:
    """The learned tensors as they are now; later steps do not move them."""
    return {k: v.detach().clone() for k, v in detector.state_dict().items() if not k.startswith("score.")}


@torch.no_grad()
def averaged(average: dict[str, Tensor], detector: Detector, decay: float) -> None:
    """Move the running average of the weights towards the current ones, in place."""
    current = detector.state_dict()
    for key in average:
        value = current[key]
        if value.is_floating_point():
            average[key].lerp_(value, 1 - decay)
        else:
            average[key].copy_(value)


def out_of_patience(run: Run, recipe: Recipe) -> bool:
    """No better validation loss for `patience` epochs after one was eligible."""
    return recipe.patience > 0 and run.best_epoch > 0 and run.epoch - run.best_epoch >= recipe.patience


def save_state(
    path: Path,
    run: Run,
    detector: Detector,
    stepper: Stepper,
    average: Mapping[str, Tensor],
    best: Mapping[str, Tensor],
) -> None:
    """Everything that moves, in one file that is replaced as a whole."""
    parts = {"detector": learned(detector), "average": average, "best": best, "optimiser": stepper.state()}
    tensors = {
        f"{part}/{key}": value.cpu().contiguous() for part, entries in parts.items() for key, value in entries.items()
    }
    write_whole(path, save_tensors(tensors, metadata={"run": json.dumps(asdict(run))}))


def load_state(path: Path, detector: Detector, stepper: Stepper) -> tuple[Run, dict[str, Tensor], dict[str, Tensor]]:
    """Inverse of `save_state`: run, average and best; detector and optimisers are set in place."""
    parts: dict[str, dict[str, Tensor]] = {"detector": {}, "average": {}, "best": {}, "optimiser": {}}
    try:
        with safe_open(path, framework="pt") as file:
            run = Run(**json.loads(file.metadata()["run"]))
            for name in file.keys():  # noqa: SIM118 - not a dict
                part, _, key = name.partition("/")
                parts[part][key] = file.get_tensor(name)
    except Exception as error:
        raise ModelError(f"{path} was altered ({error}). Remove the folder to train from the start.") from error
    detector.load_state_dict(parts["detector"], strict=False)
    stepper.restore(parts["optimiser"])
    device = next(iter(detector.state_dict().values())).device
    average, best = ({k: v.to(device) for k, v in parts[part].items()} for part in ("average", "best"))
    return run, average, best


def mixed(*numbers: int) -> int:
    """A 63-bit seed that differs for every combination."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def means(logged: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean of each logged scalar over the epoch's steps that logged it."""
    keys = dict.fromkeys(key for row in logged for key in row)
    return {key: float(torch.stack([row[key] for row in logged if key in row]).double().mean()) for key in keys}


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
