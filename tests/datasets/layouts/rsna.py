import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.datasets.layouts import ABNORMAL, HEALTHY, pictures, text

NOT_NORMAL = "No Lung Opacity / Not Normal"


def write(root: Path) -> None:
    """The third class, rows that repeat for a second box, a test without labels; 32 x 32 instead of 1024 x 1024."""
    classes, boxes = ["patientId,class"], ["patientId,x,y,width,height,Target"]

    def image(number: int, picture: NDArray[np.float32], name: str, *places: str) -> None:
        dicom(root / "stage_2_train_images" / f"{patient(number)}.dcm", picture)
        for place in places or (",,,,0",):
            classes.append(f"{patient(number)},{name}")
            boxes.append(f"{patient(number)},{place}")

    for number, picture in enumerate(pictures(HEALTHY), start=1):
        image(number, picture, "Normal")
    for number, picture in enumerate(pictures(ABNORMAL, hole=True), start=101):
        second = ("4.0,5.0,6.0,7.0,1",) if number == 101 else ()
        image(number, picture, "Lung Opacity", "12.0,12.0,8.0,8.0,1", *second)
    image(201, pictures(1, seed=2)[0], NOT_NORMAL)
    dicom(root / "stage_2_test_images" / f"{patient(301)}.dcm", pictures(1, seed=3)[0])
    text(root / "stage_2_detailed_class_info.csv", "\n".join(classes) + "\n")
    text(root / "stage_2_train_labels.csv", "\n".join(boxes) + "\n")


def patient(number: int) -> str:
    return f"0004cfab-14fd-4e49-80ba-{number:012}"


def mapping(root: Path, nih: dict[int, str]) -> None:
    """The file the RSNA publishes beside the challenge: NIH image by number here."""
    rows = [{"subset_img_id": patient(number), "img_id": image} for number, image in nih.items()]
    text(root / "pneumonia-challenge-dataset-mappings_2018.json", json.dumps(rows))


def dicom(path: Path, picture: NDArray[np.float32], *, bits: int = 8, inverted: bool = False) -> None:
    """A radiograph as DICOM, MONOCHROME1 where `inverted`."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Modality, file.SamplesPerPixel, file.PixelRepresentation = "DX", 1, 0
    file.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    file.Rows, file.Columns = picture.shape
    file.BitsAllocated, file.BitsStored, file.HighBit = (8 if bits == 8 else 16), bits, bits - 1
    values = np.round((1 - picture if inverted else picture) * (2**bits - 1))
    file.PixelData = values.astype(np.uint8 if bits == 8 else np.uint16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)
