from pathlib import Path

from tests.datasets.layouts import ABNORMAL, HEALTHY, pictures, text
from tests.datasets.layouts.rsna import dicom

HEADER = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
NOTHING = "No finding,14,{reader},,,,"


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
