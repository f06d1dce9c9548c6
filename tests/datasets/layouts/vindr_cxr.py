from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.datasets.layouts import ABNORMAL, HEALTHY, pictures, text
from tests.datasets.layouts.rsna import dicom

HEADER = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
NOTHING = "No finding,14,{reader},,,,"
LABELS = (
    *("Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation"),
    *("Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst"),
    *("Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax"),
    *("Pulmonary fibrosis", "Rib fracture", "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis"),
    *("Other diseases", "No finding"),
)


def write(root: Path) -> None:
    """Three readers an image who draw apart from each other, one MONOCHROME1, 12 bits, a test without labels."""
    rows = [HEADER]
    for number, picture in enumerate(pictures(HEALTHY), start=1):
        dicom(root / "train" / f"{number:032x}.dicom", picture, bits=12, inverted=number == 1)
        rows += [f"{number:032x},{NOTHING.format(reader=reader)}" for reader in ("R1", "R2", "R3")]
    for number, picture in enumerate(pictures(ABNORMAL, hole=True), start=101):
        dicom(root / "train" / f"{number:032x}.dicom", picture, bits=12)
        rows += [
            f"{number:032x},Nodule/Mass,8,R8,12,12,20,20",
            f"{number:032x},Nodule/Mass,8,R9,12,14,20,22",
            f"{number:032x},Cardiomegaly,3,R10,2,20,30,30",
        ]
    dicom(root / "test" / f"{301:032x}.dicom", pictures(1, seed=3)[0], bits=12)
    text(root / "train.csv", "\n".join(rows) + "\n")


def write_physionet(root: Path) -> None:
    """Labels apart from boxes, three readers in the training part, and in the test none named; a label spelled anew."""
    labels = {"train": ["image_id,rad_id," + ",".join(LABELS)], "test": ["image_id," + ",".join(LABELS)]}
    labels["test"][0] = labels["test"][0].replace("Other diseases", "Other disease")
    boxes = {
        "train": ["image_id,rad_id,class_name,x_min,y_min,x_max,y_max"],
        "test": ["image_id,class_name,x_min,y_min,x_max,y_max"],
    }

    def image(part: str, number: int, picture: NDArray[np.float32], *said: tuple[str, str, str]) -> None:
        dicom(root / part / f"{number:032x}.dicom", picture, bits=12, inverted=number == 1)
        for reader, name, corners in said:
            who = f"{number:032x},{reader}" if part == "train" else f"{number:032x}"
            labels[part].append(f"{who},{ones(name)}")
            if corners or name == "No finding":
                boxes[part].append(f"{who},{name},{corners or ',,,'}")

    nothing = [(reader, "No finding", "") for reader in ("R1", "R2", "R3")]
    for number, picture in enumerate(pictures(HEALTHY), start=1):
        image("train", number, picture, *nothing)
    image("train", 101, pictures(1, hole=True, seed=1)[0], *nothing[:2], ("R3", "Nodule/Mass", "12,12,20,20"))
    for number, picture in enumerate(pictures(ABNORMAL, seed=2), start=201):
        image("test", number, picture, ("", "No finding", ""))
    for number, picture in enumerate(pictures(ABNORMAL, hole=True), start=301):
        image("test", number, picture, ("", "Nodule/Mass", "12.5,12,20,20"))
    for part in ("train", "test"):
        text(root / "annotations" / f"image_labels_{part}.csv", "\n".join(labels[part]) + "\n")
        text(root / "annotations" / f"annotations_{part}.csv", "\n".join(boxes[part]) + "\n")


def ones(*names: str) -> str:
    """The cells of a row of labels: 1 for these, 0 for the others."""
    return ",".join(str(int(label in names)) for label in LABELS)
