"""What a map is made of, on images whose healthy twin is known: what it keeps of a finding, and what else it shows.

    python benchmarks/map_budget.py MODEL [MODEL ...] [--data DATA]

Without DATA on phantoms: heads of another population than `salus demo` draws, at its dials, each with its finding and
as its twin, the same head with the same noise and nothing in it. With DATA, a folder that the models learned from, on
its healthy validation and calibration images, bare and with painted lesions (`salus.benchmark.sight`). Test images are
not opened. A line of Markdown a model:

    MAE, SSIM       the twin against its restoration
    kept            share of the finding that is left in the residual: <r(x) - r(twin), x - twin> / |x - twin|^2 in the
                    mask; 1 where nothing of it was restored, 0 where all of it was
    seen            share of the mask where the map is above the 99th percentile of the twin's
    pixel AP        of the pictures with findings
    without rims    the same but for the pixels up to 3 outside a mask, where a blurred map loses
    AUROC           of the score, pictures with findings against twins

Means over pictures, of `kept` the median; the pixel APs are pooled.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from salus.benchmark.sight import painted
from salus.core import Image, Label, Split
from salus.datasets import open_dataset
from salus.datasets.phantom import FINDINGS, phantom_slice
from salus.datasets.protocol import split
from salus.detectors import Restorer
from salus.io import read_study, study_sha256
from salus.metrics import auroc, pixel_ap, ssim
from salus.model import Model, detections
from salus.preprocess import Preparation, PreparedCache

FIRST = 5_000_000  # head; `salus demo` and the presets used those from 0 on
RIM = 3  # pixels of the network's grid
SIZE, CONTRAST = 1.5, 1.25  # dials of `salus demo`

PER_FINDING = 12

Rows = NDArray[np.float32]  # (n, 1, size, size)


def phantoms(preparation: Preparation) -> tuple[Rows, Rows, Rows]:
    """Pictures with findings, their twins, and masks from 0 to 1."""
    every = enumerate(FINDINGS * PER_FINDING)
    heads = [phantom_slice(FIRST + n, finding=kind, size=SIZE, contrast=CONTRAST) for n, kind in every]

    def prepared(pictures: list[NDArray[np.float32]]) -> Rows:
        """As the network sees the 8-bit files of these pictures."""
        stored = [Image(array=np.round(picture * 255), depth=8) for picture in pictures]
        return np.stack([preparation(image).array for image in stored])[:, None]

    masks = prepared([head.mask.astype(np.float32) for head in heads])
    return prepared([head.image for head in heads]), prepared([head.healthy for head in heads]), masks


def lesions(preparation: Preparation, data: Path) -> tuple[Rows, Rows, Rows]:
    """The same of healthy images with painted lesions; a lesion is where half of what it changed most is reached."""
    healthy = split(open_dataset("folder", data)).only(label=Label.NORMAL)
    images, twins = [], []
    for part in (Split.VALIDATION, Split.CALIBRATION):
        cases = healthy.only(split=part)
        made = painted(PreparedCache().prepare(cases, preparation, read_study, study_sha256), cases, 0)
        images.append(made.lesions)
        twins.append(made.bare[made.of])
    changed = np.abs(np.concatenate(images) - np.concatenate(twins))
    strongest = changed.max(axis=(2, 3), keepdims=True)
    seen = strongest[:, 0, 0, 0] > 0  # nothing is left of what was painted beyond [0, 1]
    return np.concatenate(images)[seen], np.concatenate(twins)[seen], (changed / np.maximum(strongest, 1e-9))[seen]


def budget(model: Model, images: Rows, twins: Rows, shares: Rows) -> list[str]:
    """The cells of one model's line."""
    masks = shares[:, 0] > 0.5
    (maps, scores, _), (usual, usually, _) = (detections(model.detector, x) for x in (images, twins))
    maps, usual = maps[:, 0], usual[:, 0]
    cells = ["", "", ""]
    if isinstance(model.detector, Restorer):
        with torch.no_grad():
            restored, again = (model.detector.restore(torch.from_numpy(x)).numpy() for x in (images, twins))
        left, added = (images - restored) - (twins - again), images - twins
        kept = [a[0, m] @ b[0, m] / (b[0, m] @ b[0, m]) for a, b, m in zip(left, added, masks, strict=True)]
        similar = np.mean([ssim(a[0], b[0]) for a, b in zip(twins, again, strict=True)])
        cells = [f"{np.abs(twins - again).mean():.3f}", f"{similar:.3f}", f"{np.median(kept):.2f}"]
    pairs = list(zip(maps, usual, masks, strict=True))
    found = np.mean([(a[m] > np.percentile(b, 99)).mean() for a, b, m in pairs])
    far = [m | (distance_transform_edt(~m) > RIM) for m in masks]
    blurred = pixel_ap([a[f] for a, f in zip(maps, far, strict=True)], [m[f] for m, f in zip(masks, far, strict=True)])
    ranked = auroc(np.arange(2 * len(scores)) >= len(scores), np.concatenate([usually, scores]))
    return [*cells, f"{found:.2f}", f"{pixel_ap(list(maps), list(masks)):.3f}", f"{blurred:.3f}", f"{ranked:.3f}"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", type=Path, nargs="+")
    options.add_argument("--data", type=Path)
    chosen = options.parse_args()
    columns = ("method + map", "MAE", "SSIM", "kept", "seen", "pixel AP", "without rims", "AUROC")
    print("|", " | ".join(columns), "|\n" + "|---" * len(columns) + "|")
    for place in chosen.models:
        model = Model.load(place)
        pairs = lesions(model.preparation, chosen.data) if chosen.data else phantoms(model.preparation)
        print("|", " | ".join([f"{model.name} {place}", *budget(model, *pairs)]), "|", flush=True)


if __name__ == "__main__":
    main()
