from pathlib import Path

import numpy as np
from PIL import Image as Picture

from tests.datasets.layouts import ABNORMAL, HEALTHY, pictures, text

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def write(root: Path) -> None:
    """The unpacked archives: colour JPEGs wider than high, one-hot tables, and two images a lesion in the training."""
    learned = HEALTHY - ABNORMAL
    kinds = ["NV"] * HEALTHY + ["MEL", "BCC", "VASC", "DF"] + ["BKL"]
    drawn = [*pictures(HEALTHY), *pictures(ABNORMAL, hole=True), *pictures(1, hole=True, seed=2)]
    tables = {part: [",".join(("image", *CLASSES))] for part in ("Training", "Test")}
    lesions = ["image,lesion_id,diagnosis_confirm_type"]
    for number, (kind, picture) in enumerate(zip(kinds, drawn, strict=True)):
        part = "Training" if number < learned or kind == "BKL" else "Test"
        name = f"ISIC_{24306 + number:07}"
        file = root / f"ISIC2018_Task3_{part}_Input/{name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        grey = np.pad(np.round(picture * 255).astype(np.uint8), ((0, 0), (4, 4)), mode="edge")
        Picture.fromarray(np.stack([grey, grey // 2 + 64, grey // 2], axis=-1)).save(file, quality=95)
        tables[part].append(",".join((name, *("1.0" if kind == one else "0.0" for one in CLASSES))))
        if part == "Training":
            lesions.append(f"{name},HAM_{number // 2:07},histopathology")
    for part, rows in tables.items():
        truth = f"ISIC2018_Task3_{part}_GroundTruth"
        text(root / truth / f"{truth}.csv", "\n".join(rows) + "\n")
    text(root / "ISIC2018_Task3_Training_LesionGroupings.csv", "\n".join(lesions) + "\n")
