"""Restore + equation 5 + score: Salus' batches against the published way, one image at a time.

    python benchmarks/bench_screening.py [--threads 2] [--images 32]

Salus works in the precision that a model trained on this processor has: bfloat16 where it has such products. The
published way restores each image alone, equalises it and its restoration with scikit-image, runs LPIPS twice, and
smooths with scipy. Both use the same weights and the same LPIPS trunk. Prints a ratio for `paper` and for `fast`.
"""

import argparse
import statistics
import sys
import time

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from skimage.exposure import equalize_adapthist

from salus.core.errors import WeightsError
from salus.detectors import build, detector_class
from salus.model import Precision, detections
from salus.scores.lpips import LPIPS
from salus.training import make_fabric
from salus.training.loop import half_precision


def published(ra, lpips: LPIPS, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    maps, scores = [], []
    for image in images:
        with torch.no_grad():
            x = torch.from_numpy(image[None])
            restored = ra.restore(x).clamp(0, 1)
            even_x, even_restored = (
                torch.from_numpy(equalize_adapthist(v[0, 0].numpy().astype(np.float64)).astype(np.float32))[None, None]
                for v in (x, restored)
            )
            plain = gaussian_filter(lpips.spatial(restored, x)[0, 0].numpy(), 2)
            evened = gaussian_filter(lpips.spatial(even_restored, even_x)[0, 0].numpy(), 2)
        maps.append((even_restored - even_x).abs()[0, 0].numpy() * plain * evened)
        scores.append(maps[-1].mean())
    return np.stack(maps), np.array(scores)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--images", type=int, default=32)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    try:
        trunk = LPIPS("squeezenet", "lin").name and "squeezenet"
    except WeightsError:
        trunk = "alexnet"
    precision: Precision = "bf16" if half_precision(make_fabric("cpu", "auto")) else "fp32"
    missed = False
    for preset in ("paper", "fast"):
        torch.manual_seed(0)
        settings = detector_class("ra").PRESETS[preset].settings
        ra = build("ra", settings, {"name": "equation5", "reading": "code", "trunk": trunk}).eval()
        lpips, side = LPIPS(trunk, "lin"), ra.config.size
        images = np.random.default_rng(0).random((chosen.images, 1, side, side), dtype=np.float32)
        few = max(4, chosen.images // 4)
        detections(ra, images[:2], precision=precision)
        published(ra, lpips, images[:1])
        theirs, mine = [], []
        for _ in range(3):
            started = time.perf_counter()
            expected = published(ra, lpips, images[:few])
            theirs.append((time.perf_counter() - started) / few)
            started = time.perf_counter()
            _, scores, _ = detections(ra, images, precision=precision)
            mine.append((time.perf_counter() - started) / len(images))
        apart = np.abs(scores[:few] / expected[1] - 1).max()
        ratio = statistics.median(theirs) / statistics.median(mine)
        missed |= ratio < 5
        print(
            f"screening, {preset}, {trunk}, {chosen.threads} threads, {precision}: {ratio:.1f}x (target >= 5x), "
            f"{1e3 * statistics.median(mine):.1f} ms an image; scores differ by {apart:.1e}"
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
