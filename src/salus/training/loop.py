"""The training loop: healthy images in, a model folder out.

A detector calls `update(part, loss)`; here that becomes gradients of that part alone, their mean over processes,
clipping, and one step of an optimiser. All noise of a step is seeded from (seed, step, process), and everything else
that moves is in one file, `progress/state.safetensors`, replaced at the end of each epoch. So a run that was killed and
goes on equals one that was not, bit for bit (CPU, same number of threads).
"""

import copy
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from salus.core.errors import ConfigError, ModelError, TrainingError, did_you_mean
from salus.core.machine import keep_freed_memory
from salus.detectors import Detector, Recipe, Restorer
from salus.io.files import write_whole
from salus.model import Precision, device_of, halves_fast, learned

BLOWN_UP = 1e6  # times a part's first loss, or times 1 where that is less: what no training comes back from
BLOWN_UP_AFTER = 1e9  # of the error after an epoch: young running statistics can be off by millions and come right


def cure(recipe: Recipe) -> str:
    """What to do about a training that has diverged."""
    clip = "" if 0 < recipe.clip <= 1 else " or recipe.clip=1"
    return f"The training has diverged: begin anew in another --out with a lower recipe.learning_rate{clip}."


class Images(Protocol):
    """(n, 1, size, size) in [0, 1]: an array, usually memory-mapped, or what can be indexed like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice | NDArray[np.int64], /) -> NDArray[np.float32]: ...


@dataclass(kw_only=True)
class Run:
    """Where a training stands. `rows` is `train.csv`, one row an epoch; `first` are losses of parts, see `Stepper`."""

    epoch: int = 0
    step: int = 0
    best: float = math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)


class Stepper:
    """The loop's side of `Update`: one optimiser a part.

    Attributes:
        first: the size of each part's first loss, which later ones are measured by.
    """

    def __init__(self, fabric: Fabric, detector: Detector, recipe: Recipe) -> None:
        self.fabric, self.recipe = fabric, recipe
        self.parts = {name: list(parameters) for name, parameters in detector.parts().items()}
        for name in recipe.parts:
            if name not in self.parts:
                raise ConfigError(f"recipe.parts: there is no part '{name}'.{did_you_mean(name, self.parts)}")
        self.optimisers = {name: optimiser(p, recipe.of(name)) for name, p in self.parts.items()}
        self.first: dict[str, float] = {}

    def at(self, step: int, steps: int) -> None:
        """Set the learning rates for a step, counted from 0, of `steps` in all."""
        share = rate(self.recipe, step, steps)
        for name, stepped in self.optimisers.items():
            for group in stepped.param_groups:
                group["lr"] = share * self.recipe.of(name).learning_rate

    def __call__(self, part: str | tuple[str, ...], loss: Tensor, *, keep_graph: bool = False) -> None:
        names = (part,) if isinstance(part, str) else part
        parameters = [p for name in names for p in self.parts[name]]
        # A loss that is not a number would poison the weights: look before stepping.
        together, value = "+".join(names), loss.item()
        if not abs(value) < BLOWN_UP * max(1.0, self.first.setdefault(together, abs(value))):
            raise TrainingError(f"the loss of {together} is {value:g}")
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
        """The optimisers' moments as flat names to tensors."""
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


def optimiser(parameters: list[torch.nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser that `recipe` names, over one part."""
    if recipe.optimiser == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    return kind(
        parameters,
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        amsgrad=recipe.optimiser == "amsgrad",
    )


def rate(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of a step as a share of the recipe's."""
    warm = recipe.warm * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (recipe.period or steps - warm)))


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
        TrainingError: a loss is no number or has blown up, see `BLOWN_UP`; the batch is saved as
            `progress/failed_batch.safetensors`.
        StorageError: the disk is full; the last finished epoch is kept.
    """
    fabric.launch()
    recipe = recipe.for_images(len(training), fabric.world_size)
    state_file = progress / "state.safetensors"
    detector.to(fabric.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stepper, run = Stepper(fabric, detector, recipe), Run()
    if recipe.average and not stepper.parts:
        raise ConfigError("recipe.average: nothing here is learned in steps whose weights could be averaged.")
    average = copied(detector) if recipe.average else {}
    best: dict[str, Tensor] = {}
    if state_file.is_file():
        run, average, best = load_state(state_file, detector, stepper)
    stepper.first = run.first
    while run.epoch < recipe.epochs and not out_of_patience(run, recipe):
        started = time.perf_counter()
        logged = one_epoch(detector, recipe, training, progress, seed, stepper, run, average)
        run.epoch += 1
        loss = validation_loss(detector, average, validation, recipe, fabric)
        if not abs(loss) < BLOWN_UP_AFTER:
            said = f"the error on healthy validation images is {loss:g}"
            raise TrainingError(f"Epoch {run.epoch}: {said}. {cure(recipe)}")
        if run.epoch > recipe.select_after * recipe.epochs and loss < run.best:
            run.best, run.best_epoch = loss, run.epoch
            if recipe.select == "best":
                best = copy.deepcopy(average) or copied(detector)
        run.seconds += time.perf_counter() - started
        run.rows.append({"epoch": run.epoch, **means(logged), "validation": loss, "seconds": run.seconds})
        if fabric.global_rank == 0:
            save_state(state_file, run, detector, stepper, average, best)
        fabric.barrier()
        on_epoch(run, recipe.epochs)
    chosen = best or average
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
        stepper.at(run.step, steps)
        x = augmented(x) if recipe.augment == "affine" else x
        x = x.contiguous(memory_format=torch.channels_last)  # faster for convolutions, whatever the precision
        try:
            with fabric.autocast():
                logged.append(detector.training_step(x, stepper, run.step / steps))
        except TrainingError as error:
            saved = progress / "failed_batch.safetensors"
            write_whole(saved, save_tensors({"x": x.cpu().contiguous()}))
            raise TrainingError(
                f"Epoch {run.epoch + 1}, step {run.step + 1}: {error}. The batch is in {saved}. {cure(recipe)}"
            ) from None
        run.step += 1
        if average:
            averaged(average, detector, min(recipe.average, (1 + run.step) / (10 + run.step)))
    return logged


@torch.no_grad()
def fit_score(net: Detector, validation: Images, precision: Precision) -> None:
    """Let a score that learns, learn from the healthy validation part, a batch of 32 at a time."""
    if isinstance(net, Restorer):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            net.fit_score(torch.from_numpy(np.array(validation[i : i + 32])) for i in range(0, len(validation), 32))


def half_precision(fabric: Fabric) -> bool:
    """Whether matrix products run in bfloat16."""
    return str(fabric._precision.precision).startswith("bf16")


def make_fabric(device: str, precision: str) -> Fabric:
    """Fabric for a device and a precision by the names of the command line; under torchrun, for its processes.

    Raises:
        ConfigError: no such device or precision here.
    """
    keep_freed_memory()
    place = device_of(device)
    if precision not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"There is no precision '{precision}'. Use auto, fp32 or bf16.")
    if precision == "auto":
        precision = "bf16" if halves_fast(place) else "fp32"
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    together, here = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return Fabric(
        accelerator=place.type,
        devices=here if place.index is None else [place.index],
        num_nodes=together // here,
        strategy="ddp" if together > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )


def batches(images: Images, recipe: Recipe, seed: int, epoch: int, fabric: Fabric) -> Iterator[Tensor]:
    """One epoch in an order that only (seed, epoch) decide; each process takes its share of every batch."""
    order = np.random.default_rng([seed, epoch]).permutation(len(images))
    together = recipe.batch * fabric.world_size
    for start in range(0, recipe.used(len(order), fabric.world_size), together):
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
    return {k: v.detach().clone() for k, v in detector.learned().items()}


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
