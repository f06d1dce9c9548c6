import csv
import gzip
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.datasets.layouts import ABNORMAL, HEALTHY, pictures, png

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"
HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,PhotometricInterpretation_DICOM,"
    "PixelRepresentation_DICOM,PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,"
    "WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,ExposureInuAs_DICOM,ExposureTime,"
    "RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence,"
    "labelCUIS,LocalizationsCUIS"
)
COLUMNS = next(csv.reader([HEADER]))


def write(root: Path) -> None:
    """A gzipped table, two archives, an inverted image, and each kind that is left out or unknown."""
    rows = []

    def image(number: int, picture: NDArray[np.float32], labels: str, *, there: bool = True, **cells: str) -> None:
        row = dict.fromkeys(COLUMNS, "") | {
            "": str(len(rows)),
            "ImageID": f"{number:030}_{number:03x}.png",
            "ImageDir": str(number % 2),
            "PatientID": str(number),
            "PatientSex_DICOM": "F",
            "Projection": "PA",
            "Pediatric": "No",
            "Manufacturer_DICOM": "ImagingDynamicsCompanyLtd",
            "PhotometricInterpretation_DICOM": "MONOCHROME2",
            "Report": "sin hallazgos , silueta normal",
            "MethodLabel": "Physician",
            "Labels": labels,
            **cells,
        }
        rows.append(row)
        if there:
            dark = row["PhotometricInterpretation_DICOM"] == "MONOCHROME1"
            png(root / row["ImageDir"] / row["ImageID"], 1 - picture if dark else picture, bits=16)

    healthy, other = pictures(HEALTHY), pictures(9, seed=2)
    for number, picture in enumerate(healthy, start=1):
        image(number, picture, "['normal']", PhotometricInterpretation_DICOM=f"MONOCHROME{1 if number == 1 else 2}")
    for number, picture in enumerate(pictures(ABNORMAL, hole=True), start=101):
        method = "RNN_model" if number == 101 else "Physician"
        image(number, picture, "['pleural effusion', ' unchanged', 'cardiomegaly ']", MethodLabel=method)
    image(201, other[0], "['normal']", PatientID="101")  # another day
    image(202, other[1], "['normal']", MethodLabel="RNN_model")
    image(203, other[2], "['unchanged']")
    image(204, other[3], "")
    image(205, other[4], "['normal']", Projection="L")
    image(206, other[5], "['normal']", Pediatric="PED")
    image(207, other[6], "['exclude', 'pneumonia']")
    image(208, other[7], "['normal'")
    image(209, other[8], "['normal']", there=False)
    table(root / TABLE, rows)


def table(path: Path, rows: list[dict[str, str]]) -> None:
    content = io.StringIO()
    writer = csv.DictWriter(content, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    data = content.getvalue().encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
