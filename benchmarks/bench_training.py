"""Seconds that every method takes at `fast` to learn the phantom of `make demo`, from a few of its steps.

    python benchmarks/bench_training.py [--methods ra ae] [--threads 2] [--set size=128 ...]

The quicker of two steps at each of twenty points of the training, times its number of steps. What follows an epoch is
left out (a look at the validation images, the state on disk), and so is what follows the training. Methods that learn
without steps (PCA, banks of features) are passed over. `--set` changes settings of the methods, as `salus train` does.
Exits with 1 where a method takes longer than six minutes, `ddpm` and `ltm` twelve, and with other settings thirty.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from salus.cli.common import settings
from salus.datasets.phantom import phantom_slice
from salus.detectors import DETECTORS, build, detector_class
from salus.training import Stepper, make_fabric
from salus.training.loop import averaged, copied, half_precision

IMAGES = 320  # four fifths of 400 heads
POINTS = [(point + 0.5) / 20 for point in range(20)]
LIMIT, LIMITS, CHANGED = 360, {"ddpm": 720, "ltm": 720}, 1800


def seconds(name: str, changed: Mapping[str, Any]) -> float | None:
    """None where nothing is learned in steps; `changed` are settings in place of the preset's."""
    preset = detector_class(name).PRESETS["fast"]
    recipe = preset.recipe.for_images(IMAGES)
    torch.manual_seed(0)
    detector = build(name, {**preset.settings, **changed}, preset.score).train().to(memory_format=torch.channels_last)
    if not detector.parts():
        return None
    fabric = make_fabric("cpu", "auto")
    stepper = Stepper(fabric, detector, recipe)
    side = detector.config.size
    heads = np.stack([phantom_slice(seed, side=side).image for seed in range(recipe.batch)])[:, None]
    x = torch.from_numpy(heads).contiguous(memory_format=torch.channels_last)

    kept = copied(detector) if recipe.average else {}

    def step(point: float) -> float:
        started = time.perf_counter()
        with fabric.autocast():
            detector.training_step(x, stepper, point)
        if kept:
            averaged(kept, detector, recipe.average)
        return time.perf_counter() - started

    step(POINTS[0])
    quicker = [min(step(point), step(point)) for point in POINTS]
    return recipe.epochs * max(1, IMAGES // recipe.batch) * statistics.mean(quicker)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--methods", nargs="+", default=sorted(DETECTORS), choices=sorted(DETECTORS))
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--set", action="append", default=[], help="key=value, in place of the preset's.")
    chosen = options.parse_args()
    changed = settings(chosen.set)
    torch.set_num_threads(chosen.threads)
    half = half_precision(make_fabric("cpu", "auto"))
    print(f"{chosen.threads} threads, {'bfloat16' if half else 'single precision'}")
    missed = False
    for name in chosen.methods:
        if (taken := seconds(name, changed)) is not None:
            limit = LIMITS.get(name, LIMIT) if not changed else CHANGED
            missed |= taken > limit
            print(f"{name:16} {taken:5.0f} s of {limit}{' MISSED' if taken > limit else ''}", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
