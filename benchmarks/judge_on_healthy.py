"""Scores compared without a labelled image: findings painted on held-out healthy images against the same images bare.

    python benchmarks/judge_on_healthy.py DATA [--epochs 60] [--set beta_kl=0.3 ...]

Trains `ra` at `fast` (with `--set` and `--epochs` in its place) on the training part of DATA, then paints soft blobs,
brighter and darker, and foreign patches on the validation and calibration parts, and prints image AUROC by score and
reduction, pixel AP in brackets. This is how docs/fast-preset.md was measured; test images are never opened.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from salus.cli.common import settings
from salus.core import Label, Split
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.detectors import build, detector_class
from salus.io import read_study, study_sha256
from salus.metrics import auroc, pixel_ap
from salus.preprocess import Preparation, PreparedCache
from salus.scores import build_score
from salus.training import Run, fit, make_fabric

SCORES = (
    {"name": "residual"},
    {"name": "smoothed", "sigma": 1.0},
    {"name": "smoothed", "sigma": 2.0},
    {"name": "equation5", "calibration": "none"},
    {"name": "equation5"},
)


def painted(
    picture: NDArray[np.float32], other: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A finding somewhere in the foreground of (H, W), and where it is."""
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    places = np.argwhere(gaussian_filter(picture, 2) > 0.15)
    y, x = places[rng.integers(len(places))]
    long, short, angle = *(rng.uniform(3, 9, 2) * picture.shape[0] / 64), rng.uniform(0, np.pi)
    along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
    across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
    mask = gaussian_filter((np.hypot(along / long, across / short) < 1).astype(np.float32), 1.0)
    kind = rng.integers(3)
    if kind < 2:
        changed = picture + (1 if kind else -1) * rng.uniform(0.12, 0.3) * mask
    else:
        changed = picture * (1 - mask) + np.roll(other, tuple(rng.integers(-20, 20, 2)), (0, 1)) * mask
    return np.clip(changed, 0, 1).astype(np.float32), mask > 0.5


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", type=Path)
    options.add_argument("--epochs", type=int)
    options.add_argument("--set", action="append", default=[])
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    preset = detector_class("ra").PRESETS["fast"]
    recipe = preset.recipe.in_epochs(chosen.epochs) if chosen.epochs else preset.recipe
    torch.manual_seed(chosen.seed)
    detector = build("ra", {**preset.settings, **settings(chosen.set)}, {"name": "residual"})
    cases = split(open_dataset("folder", chosen.data))
    preparation = Preparation(size=detector.config.size).resolve(read_study(cases[0].images))
    rows = {
        part: PreparedCache()
        .prepare(cases.only(split=part, label=Label.NORMAL), preparation, read_study, study_sha256)
        .rows
        for part in (Split.TRAIN, Split.VALIDATION, Split.CALIBRATION)
    }

    def tell(run: Run, epochs: int) -> None:
        if run.epoch % max(1, epochs // 8) == 0:
            print({k: round(v, 4) for k, v in run.rows[-1].items()}, flush=True)

    with tempfile.TemporaryDirectory() as progress:
        place, fabric = Path(progress), make_fabric("auto", "auto")
        fit(detector, recipe, rows[Split.TRAIN], rows[Split.VALIDATION], place, chosen.seed, fabric, tell)
    bare = np.concatenate([rows[Split.VALIDATION], rows[Split.CALIBRATION]])
    rng = np.random.default_rng(1)
    pairs = [painted(picture[0], bare[rng.integers(len(bare)), 0], rng) for picture in bare]
    findings, masks = np.stack([p for p, _ in pairs])[:, None], [m for _, m in pairs]
    truth = np.arange(2 * len(bare)) >= len(bare)
    with torch.no_grad():
        images = [torch.from_numpy(np.array(v)) for v in (bare, findings)]
        restored = [detector.restore(x) for x in images]
        for score in SCORES:
            found = []
            for image in ("mean", "top5", "top1", "max"):
                compare = build_score(**score, image=image)
                maps = [compare(x, r) for x, r in zip(images, restored, strict=True)]
                value = auroc(truth, torch.cat([compare.reduce(m) for m in maps]).double().numpy())
                found.append(f"{image} {value:.3f}")
            exact = pixel_ap([m[0].numpy() for m in maps[1]], masks)
            print(build_score(**score).name, " ".join(found), f"({exact:.2f})", flush=True)


if __name__ == "__main__":
    main()
