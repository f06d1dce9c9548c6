"""Seconds an image of every method at `fast`, for `salus methods`.

    python benchmarks/bench_methods.py --how "1 x ..., 2 threads, commit abc, 2026-11-22" [--write]

Each method learns for one short epoch from phantom images (banks must not be empty), `ltm` for all of its own, since it
heals nothing before it doubts something; then it looks at batches of 16 with findings. The median of five batches
counts. `--write` puts the figures into the package.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import salus.detectors
from salus.datasets.phantom import FINDINGS, phantom_slice
from salus.detectors import DETECTORS, build, detector_class
from salus.model import detections
from salus.training import fit, make_fabric
from salus.training.loop import fit_score

SIDE = 64


def heads(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, 1, 64, 64) healthy phantoms in [0, 1], and 16 with findings."""
    healthy = [phantom_slice(seed, side=SIDE).image for seed in range(count)]
    found = [phantom_slice(count + n, side=SIDE, finding=FINDINGS[n % len(FINDINGS)]).image for n in range(16)]
    return np.stack(healthy)[:, None], np.stack(found)[:, None]


def seconds(name: str, images: np.ndarray, abnormal: np.ndarray) -> float:
    preset = detector_class(name).PRESETS["fast"]
    torch.manual_seed(0)
    detector = build(name, preset.settings, preset.score)
    size = detector.config.size
    rows, looked_at = (np.repeat(np.repeat(x, size // SIDE, 2), size // SIDE, 3) for x in (images, abnormal))
    fabric = make_fabric("cpu", "auto" if detector.parts() else "fp32")
    precision = "bf16" if "bf16" in str(fabric._precision.precision) else "fp32"
    recipe = preset.recipe if name == "ltm" else preset.recipe.in_epochs(1)
    with tempfile.TemporaryDirectory() as progress:
        fit(detector, recipe, rows, rows[:16], Path(progress), 0, fabric)
    fit_score(detector, rows[:16], precision)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        detections(detector, looked_at, precision=precision)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:]) / 16


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--how", required=True, help="Where, when and of which commit.")
    options.add_argument("--methods", nargs="+", default=sorted(DETECTORS), choices=sorted(DETECTORS))
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    images, abnormal = heads(64)
    found = {}
    for name in chosen.methods:
        found[name] = round(seconds(name, images, abnormal), 5)
        print(f"{name:16} {1000 * found[name]:9.2f} ms", flush=True)
    if chosen.write:
        place = Path(salus.detectors.__file__).parent / "seconds.json"
        place.write_text(json.dumps({"how": chosen.how, "seconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
