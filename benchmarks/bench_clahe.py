"""How much faster `salus.scores.clahe` is than scikit-image, image by image, and how far apart the two are.

    python benchmarks/bench_clahe.py

32 smooth random images of 128 x 128, the two timed in turn in one run. Exits with 1 below 8x or
when they differ by more than 1e-3.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from skimage.exposure import equalize_adapthist

from salus.scores.clahe import clahe


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="scikit-image uses one, so one is fair")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    generator = np.random.default_rng(0)
    noise = generator.random((options.batch, options.size, options.size), dtype=np.float32)
    smooth = gaussian_filter(noise, (0, 3, 3)) + 0.02 * noise
    images = (smooth - smooth.min()) / np.ptp(smooth)
    batch = torch.from_numpy(images)[:, None]

    expected = np.stack([equalize_adapthist(image) for image in images])
    apart = np.abs(clahe(batch)[:, 0].numpy() - expected).max()
    pairs = [
        (seconds(lambda: [equalize_adapthist(image) for image in images]), seconds(lambda: clahe(batch)))
        for _ in range(options.repeats)
    ]
    theirs, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    faster = theirs / ours
    print(
        f"clahe: {faster:.1f}x (target >= 8x); scikit-image {1e3 * theirs:.1f} ms, ours {1e3 * ours:.1f} ms "
        f"for {options.batch} images of {options.size} px on {options.threads} threads; "
        f"max difference {apart:.1e} (target <= 1e-3)"
    )
    return int(faster < 8 or not apart <= 1e-3)  # a NaN fails too


if __name__ == "__main__":
    sys.exit(main())
