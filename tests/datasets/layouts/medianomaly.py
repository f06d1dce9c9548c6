import json
from pathlib import Path

import numpy as np

from tests.datasets.layouts import ABNORMAL, HEALTHY, pictures, png, text

LEARNED = HEALTHY - ABNORMAL


def write(root: Path) -> None:
    """A set of data.json and images/, with the unlabelled part that DDAD learns from."""
    healthy = [f"{number:04}.png" for number in range(1, HEALTHY + 1)]
    abnormal = [f"{number:04}.png" for number in range(2001, 2001 + ABNORMAL)]
    unlabelled = ["3001.png", "3002.png"]
    for names, hole, seed in ((healthy, False, 0), (abnormal, True, 0), (unlabelled, True, 2)):
        for name, picture in zip(names, pictures(len(names), hole=hole, seed=seed), strict=True):
            png(root / "images" / name, picture)
    lists = {
        "train": {"0": healthy[:LEARNED], "unlabeled": {"0": unlabelled[:1], "1": unlabelled[1:]}},
        "test": {"0": healthy[LEARNED:], "1": abnormal},
    }
    text(root / "data.json", json.dumps(lists))


def write_camelyon16(root: Path) -> None:
    """Patches, numbered anew in every folder."""
    for number, picture in enumerate(pictures(HEALTHY)):
        png(root / ("train" if number < LEARNED else "test") / f"good/{1000 + number % LEARNED}.png", picture)
    for number, picture in enumerate(pictures(ABNORMAL, hole=True)):
        png(root / f"test/Ungood/{1000 + number}.png", picture)


def write_brats2021(root: Path) -> None:
    """Slices, two a patient, with a mask of 0 and 255 for each with a tumour."""
    mask = np.zeros((32, 32), np.float32)
    mask[12:20, 12:20] = 1
    for number, picture in enumerate(pictures(HEALTHY)):
        name = f"BraTS2021_{number // 2:05}_flair_{60 + number}.png"
        png(root / ("train" if number < LEARNED else "test/normal") / name, picture)
    for number, picture in enumerate(pictures(ABNORMAL, hole=True)):
        name = f"BraTS2021_{100 + number // 2:05}_flair_{60 + number}.png"
        png(root / "test/tumor" / name, picture)
        png(root / "test/annotation" / name.replace("flair", "seg"), mask)
