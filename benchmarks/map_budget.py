"""What a map is made of, on phantoms whose healthy twin is known: what it keeps of a finding, and what else it shows.

    python benchmarks/map_budget.py MODEL [MODEL ...] [--per-finding 12]

The heads are another population than `salus demo` draws, at its dials. Each picture is judged with its finding and as
its twin, the same head with the same noise and nothing in it. A line of Markdown a model:

    MAE, SSIM       the twin against its restoration
    kept            share of the finding that is left in the residual: <r(x) - r(twin), x - twin> / |x - twin|^2 in the
                    mask; 1 where nothing of it was restored, 0 where all of it was
    seen            share of the mask where the map is above the 99th percentile of the twin's
    pixel AP        of the pictures with findings
    without rims    the same but for the pixels up to 3 outside a mask, where a blurred map loses

Means over pictures, of `kept` the median; the pixel APs are pooled.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from salus.core import Image
from salus.datasets.phantom import FINDINGS, Phantom, phantom_slice
from salus.detectors import Restorer
from salus.metrics import pixel_ap, ssim
from salus.model import Model, detections
from salus.preprocess.preparation import Preparation

FIRST = 5_000_000  # head; `salus demo` and the presets used those from 0 on
RIM = 3  # pixels of the network's grid
SIZE, CONTRAST = 1.5, 1.25  # dials of `salus demo`

Grey = NDArray[np.float32]


def prepared(preparation: Preparation, pictures: list[Grey]) -> Grey:
    """(n, 1, size, size) as the network sees the 8-bit files of these pictures."""
    stored = [Image(array=np.round(picture * 255), depth=8) for picture in pictures]
    return np.stack([preparation(image).array for image in stored])[:, None]


def budget(model: Model, heads: list[Phantom]) -> list[str]:
    """The cells of one model's line."""
    images, twins = (prepared(model.preparation, [getattr(h, kind) for h in heads]) for kind in ("image", "healthy"))
    masks = prepared(model.preparation, [h.mask.astype(np.float32) for h in heads])[:, 0] > 0.5
    maps, usual = (detections(model.detector, x)[0][:, 0] for x in (images, twins))
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
    return [*cells, f"{found:.2f}", f"{pixel_ap(list(maps), list(masks)):.3f}", f"{blurred:.3f}"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", type=Path, nargs="+")
    options.add_argument("--per-finding", type=int, default=12)
    chosen = options.parse_args()
    every = enumerate(FINDINGS * chosen.per_finding)
    heads = [phantom_slice(FIRST + n, finding=kind, size=SIZE, contrast=CONTRAST) for n, kind in every]
    columns = ("method + map", "MAE", "SSIM", "kept", "seen", "pixel AP", "without rims")
    print("|", " | ".join(columns), "|\n" + "|---" * len(columns) + "|")
    for place in chosen.models:
        model = Model.load(place)
        print("|", " | ".join([f"{model.name} {place}", *budget(model, heads)]), "|", flush=True)


if __name__ == "__main__":
    main()
