"""Seconds that every method takes at `fast` to learn the phantom of `make demo`, from a few of its steps.

    python benchmarks/bench_training.py [--methods ra ae] [--threads 2]

The quickest of three steps at each of five points of the training, times its number of steps. What is left out is the
look at the validation images after each epoch. Methods that learn without steps (PCA, banks of features) are passed
over. Exits with 1 where a method takes longer than six minutes, `ddpm` and `ltm` twelve.
"""

import argparse
import statistics
import sys
import time

import torch

from salus.detectors import DETECTORS, build, detector_class
from salus.training import Stepper, make_fabric
from salus.training.loop import half_precision

IMAGES = 320  # four fifths of 400 heads
POINTS = (0.02, 0.25, 0.5, 0.75, 0.95)
LIMIT, LIMITS = 360, {"ddpm": 720, "ltm": 720}


def seconds(name: str) -> float | None:
    """None where nothing is learned in steps."""
    preset = detector_class(name).PRESETS["fast"]
    recipe = preset.recipe.for_images(IMAGES)
    torch.manual_seed(0)
    detector = build(name, preset.settings, preset.score).train().to(memory_format=torch.channels_last)
    if not detector.parts():
        return None
    fabric = make_fabric("cpu", "auto")
    stepper = Stepper(fabric, detector, recipe)
    side = detector.config.size
    x = torch.rand(recipe.batch, 1, side, side).contiguous(memory_format=torch.channels_last)

    def step(point: float) -> float:
        started = time.perf_counter()
        with fabric.autocast():
            detector.training_step(x, stepper, point)
        return time.perf_counter() - started

    quickest = []
    for point in POINTS:
        step(point)
        quickest.append(min(step(point) for _ in range(3)))
    return recipe.epochs * (IMAGES // recipe.batch) * statistics.mean(quickest)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--methods", nargs="+", default=sorted(DETECTORS), choices=sorted(DETECTORS))
    options.add_argument("--threads", type=int, default=2)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    half = half_precision(make_fabric("cpu", "auto"))
    print(f"{chosen.threads} threads, {'bfloat16' if half else 'single precision'}")
    missed = False
    for name in chosen.methods:
        if (taken := seconds(name)) is not None:
            limit = LIMITS.get(name, LIMIT)
            missed |= taken > limit
            print(f"{name:16} {taken:5.0f} s of {limit}{' MISSED' if taken > limit else ''}", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
