from pathlib import Path

import numpy as np

from tests.datasets.layouts import ABNORMAL, HEALTHY, pictures, png


def write(root: Path) -> None:
    """As Brain: images in img/, two slices a patient, resampled masks in label/, abnormal images in valid/."""
    learned = HEALTHY - ABNORMAL
    for index, picture in enumerate(pictures(HEALTHY)):
        name = f"{index // 2:05}_{60 + index}.png"
        png(root / ("train" if index < learned else "test") / "good/img" / name, picture)
    for index, picture in enumerate(pictures(ABNORMAL, hole=True)):
        name = f"{100 + index // 2:05}_{60 + index}.png"
        png(root / "test/Ungood/img" / name, picture)
        png(root / "test/Ungood/label" / name, mask())
    png(root / "valid/good/img/00200_60.png", pictures(1, seed=2)[0])
    png(root / "valid/Ungood/img/00201_60.png", pictures(1, hole=True, seed=2)[0])
    png(root / "valid/Ungood/label/00201_60.png", mask())


def mask() -> np.ndarray:
    """(32, 32): 8 x 8 pixels of white, around them 26/255, which is inside, and around that 25/255, which is not."""
    array = np.zeros((32, 32), np.float32)
    array[10:22, 10:22] = 25 / 255
    array[11:21, 11:21] = 26 / 255
    array[12:20, 12:20] = 1
    return array
