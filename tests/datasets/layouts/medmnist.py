from pathlib import Path

import numpy as np

from tests.datasets.layouts import ABNORMAL, HEALTHY, pictures


def write(root: Path) -> None:
    """pneumoniamnist.npz: 28 x 28 pixels, labels (N, 1), pneumonia in all three parts."""
    healthy = {"train": HEALTHY - ABNORMAL - 1, "val": 1, "test": ABNORMAL}
    abnormal = {"train": 2, "val": 1, "test": ABNORMAL}
    arrays = {}
    for seed, part in enumerate(healthy):
        drawn = [*pictures(healthy[part], seed=seed), *pictures(abnormal[part], hole=True, seed=seed)]
        arrays[f"{part}_images"] = np.stack([np.round(one[2:30, 2:30] * 255).astype(np.uint8) for one in drawn])
        arrays[f"{part}_labels"] = np.array([[0]] * healthy[part] + [[1]] * abnormal[part], dtype=np.uint8)
    root.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(root / "pneumoniamnist.npz", **arrays)
