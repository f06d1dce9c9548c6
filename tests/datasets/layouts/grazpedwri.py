from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.datasets.layouts import ABNORMAL, HEALTHY, pictures, png, text


def write(root: Path) -> None:
    """Two parts of images, the table with a byte-order mark, a lateral view, a cast, a side marker on every image."""
    columns = (
        "filestem,patient_id,study_number,timehash,gender,age,laterality,projection,initial_exam,ao_classification,"
        "cast,diagnosis_uncertain,osteopenia,fracture_visible,metal,pixel_spacing,device_manufacturer"
    )
    rows, marker = [columns], "8 0.1 0.1 0.05 0.05\n"

    def image(patient: int, picture: NDArray[np.float32], boxes: str, *, view: int = 1, **flags: str) -> None:
        stem = f"{patient:04}_{patient:010}_01_WRI-L{view}_M0{patient % 10:02}"
        png(root / f"images_part{1 + patient % 4}" / f"{stem}.png", picture, bits=16)
        text(root / "folder_structure/yolov5/labels" / f"{stem}.txt", marker + boxes)
        cell = {"cast": "", "fracture_visible": "", **flags}
        rows.append(
            f"{stem},{patient},1,{patient:010},M,{patient % 10}.5,L,{view},1,,{cell['cast']},,,"
            f"{cell['fracture_visible']},,0.144,Siemens"
        )

    for patient, picture in enumerate(pictures(HEALTHY), start=1):
        image(patient, picture, "")
    for patient, picture in enumerate(pictures(ABNORMAL, hole=True), start=101):
        image(patient, picture, "3 0.5 0.5 0.25 0.25\n", fracture_visible="1")
    image(201, pictures(1, seed=2)[0], "", cast="1")
    image(1, pictures(1, seed=3)[0], "", view=2)
    text(root / "dataset.csv", "\n".join(rows) + "\n", bom=True)
