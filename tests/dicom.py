"""DICOM files as scanners write them, with pixels drawn by the test."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, FileMetaDataset, Sequence
from pydicom.uid import (
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

AXIAL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]


def dicom(pixels: NDArray[Any], **changed: Any) -> Dataset:
    """In memory a CT slice of integer `pixels` (rows, columns); attributes as keywords, None deletes one."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = CTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = generate_uid()
    file.PatientName, file.PatientID, file.PatientBirthDate, file.PatientSex = "Doe^Jane", "MRN4711", "19500101", "F"
    file.StudyInstanceUID, file.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    file.StudyDate, file.StudyTime, file.StudyID, file.AccessionNumber = "20200101", "120000", "1", "1"
    file.FrameOfReferenceUID, file.Modality, file.InstanceNumber, file.SeriesNumber = "1.2.3.5", "CT", 1, 1
    file.ImageOrientationPatient, file.ImagePositionPatient = AXIAL, [-10.0, -20.0, 30.0]
    file.PixelSpacing, file.SliceThickness = [0.5, 0.75], 2.0
    file.Rows, file.Columns = pixels.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 8 * pixels.dtype.itemsize
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(pixels.dtype.kind == "i")
    file.PixelData = pixels.tobytes()
    for name, value in changed.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    return file


def saved(path: Path, file: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, volume: NDArray[Any], step: list[float], **changed: Any) -> list[Path]:
    """A file a slice of (rows, columns, slices), each `step` (LPS, mm) from the one before; names in no order."""
    paths = []
    for index in range(volume.shape[2]):
        position = [float(start + index * mm) for start, mm in zip((-10, -20, 30), step, strict=True)]
        file = dicom(
            np.ascontiguousarray(volume[..., index]), ImagePositionPatient=position, InstanceNumber=index + 1, **changed
        )
        paths.append(saved(folder / f"{index * 7 % 11 + index // 11 * 11:02}.dcm", file))
    return paths


def radiograph(pixels: NDArray[Any], **changed: Any) -> Dataset:
    """A DX without a position."""
    return dicom(
        pixels,
        **{
            "SOPClassUID": DigitalXRayImageStorageForPresentation, "Modality": "DX", "ImagePositionPatient": None,
            "ImageOrientationPatient": None, "FrameOfReferenceUID": None, "SliceThickness": None, **changed,
        },
    )  # fmt: skip


def program(name: str, package: str) -> str:
    """A program of Debian's; `.ci/run` installs it."""
    if not (found := shutil.which(name)):
        if os.environ.get("SALUS_REQUIRE_SHARED") == "1":
            pytest.fail(f"{name} is not installed: apt-get install {package}")
        pytest.skip(f"{name} (Debian's {package}) is not installed")
    return found


def enhanced(frames: NDArray[Any], heights: list[float]) -> Dataset:
    """An axial multi-frame file: frames (n, rows, columns) at heights (mm), rescaled by 2 x + 5."""
    none = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    file = dicom(frames, NumberOfFrames=len(frames), SOPClassUID=EnhancedCTImageStorage, **none)
    file.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    del file.PixelSpacing
    shared, values = Dataset(), Dataset()
    values.RescaleSlope, values.RescaleIntercept = 2, 5
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient, measures.PixelSpacing, measures.SliceThickness = (
        [1, 0, 0, 0, 1, 0],
        [0.5, 0.75],
        2,
    )
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    shared.PixelValueTransformationSequence = Sequence([values])
    groups = []
    for height in heights:
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = [-10, -20, height]
        group.PlanePositionSequence = Sequence([position])
        groups.append(group)
    file.SharedFunctionalGroupsSequence, file.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(groups)
    return file
