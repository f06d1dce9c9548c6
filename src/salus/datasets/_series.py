"""DICOM files that belong together, told from their headers: no pixel is read."""

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from salus.core.dicom import pydicom
from salus.core.errors import LayoutError
from salus.core.stack import SAME_PLACE, alike, normal_of, runs

TAGS = (
    *("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "InstanceNumber", "NumberOfFrames", "Rows", "Columns"),
    *("ImagePositionPatient", "ImageOrientationPatient", "Modality", "Manufacturer"),
)
NO_IMAGES = ("SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "REG", "AU", "DOC", "ECG", "PLAN")
OURS = "Salus"  # the manufacturer of what `salus screen --dicom` writes


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Files of one picture or volume.

    Attributes:
        files: in the order of their positions.
        patient: a hash that stands for the PatientID, which stays in the files; "" without one.
        remark: what is wrong with it, though it can be judged; "" where nothing is.
    """

    files: tuple[Path, ...]
    patient: str = ""
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What decides where a file belongs; a file that is whole in itself has no series.

    Attributes:
        series: its UID and the size of its slices, with the folder: a copy elsewhere is another.
        position, orientation: in LPS, mm; empty where a file is whole in itself.
        study: UID.
    """

    patient: str = ""
    study: str = ""
    series: tuple[str, ...] = ()
    number: int = 0
    position: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()
    no_image: str = ""


def stacks(files: Iterable[Path]) -> tuple[list[Stack], list[tuple[Path, str]]]:
    """Series of `files`, by their first file's name, and (file, reason) of those that hold no image of a patient.

    A series with a gap comes as several, each with a remark, and so does one that has as many slices at every place
    (echoes, phases), told apart by their instance numbers. A file that cannot be read is a stack of its own: reading
    it will say why.
    """
    headers = {path: _header(path) for path in sorted(files)}
    names = _patients(headers.values())
    series: list[list[Path]] = []
    last: dict[tuple[str, ...], list[list[Path]]] = {}
    for path, header in headers.items():
        if header.no_image:
            continue
        same = last.setdefault(header.series, []) if header.series else []
        fitting = (members for members in same if alike(headers[members[0]].orientation, header.orientation))
        if (members := next(fitting, None)) is None:
            members = []
            series.append(members)
            same.append(members)
        members.append(path)
    found = []
    for members in series:
        patient = names.get(headers[members[0]].patient, "")
        if len(members) == 1:
            found.append(Stack(files=(members[0],), patient=patient))
            continue
        normal = normal_of(headers[members[0]].orientation)
        height = {path: float(normal @ headers[path].position) for path in members}
        for volume in _volumes(members, height, headers):
            parts = runs([height[path] for path in volume])
            for number, part in enumerate(parts, start=1):
                remark = f"part {number} of {len(parts)} of a series with gaps or of several spacings" * (
                    len(parts) > 1
                )
                found.append(Stack(files=tuple(volume[index] for index in part), patient=patient, remark=remark))
    left_out = [(path, header.no_image) for path, header in headers.items() if header.no_image]
    return sorted(found, key=lambda stack: min(stack.files)), left_out


def _patients(headers: Iterable[Header]) -> dict[str, str]:
    """What stands for each PatientID: a hash of it and of the smallest UID of its studies, which nobody can guess."""
    studies: dict[str, str] = {}
    for header in headers:
        if header.patient:
            studies[header.patient] = min(studies.get(header.patient, header.study), header.study)
    return {
        patient: hashlib.sha256(f"{patient} {study}".encode()).hexdigest()[:16] for patient, study in studies.items()
    }


def _volumes(members: list[Path], height: Mapping[Path, float], headers: Mapping[Path, Header]) -> list[list[Path]]:
    """The series itself, or each of several volumes in it; where places are not equally often there, the series."""
    place = {path: round(height[path] / SAME_PLACE) for path in members}
    ordered = sorted(members, key=lambda path: (place[path], headers[path].number, path))
    places = [list(group) for _, group in itertools.groupby(ordered, key=lambda path: place[path])]
    if len({len(together) for together in places}) > 1:
        return [members]
    return [list(volume) for volume in zip(*places, strict=True)]


def _header(path: Path) -> Header:
    try:
        reading = pydicom()
    except ImportError:
        raise LayoutError(f"{path} is DICOM, which needs more packages: pip install 'salus[dicom]'.") from None
    try:
        file = reading.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
        header = Header(patient=str(file.get("PatientID") or ""), study=str(file.get("StudyInstanceUID") or ""))
        if file.get("Modality") in NO_IMAGES or file.get("Manufacturer") == OURS:
            what = "an object that Salus made" if file.get("Manufacturer") == OURS else f"of kind {file.Modality}"
            return Header(patient=header.patient, study=header.study, no_image=f"{what}, no image of a patient")
    except Exception:  # broken in any way at all: a case of its own, whose reading tells the reason
        return Header()
    try:
        position, orientation = _numbers(file, "ImagePositionPatient", 3), _numbers(file, "ImageOrientationPatient", 6)
        normal_of(orientation)
        if int(file.get("NumberOfFrames") or 1) > 1 or not file.get("SeriesInstanceUID"):
            return header
        return Header(
            patient=header.patient,
            study=header.study,
            series=(str(path.parent), str(file.SeriesInstanceUID), str(file.get("Rows")), str(file.get("Columns"))),
            number=int(file.get("InstanceNumber") or 0),
            position=position,
            orientation=orientation,
        )
    except Exception:  # no place, or none that makes sense: whole in itself
        return header


def _numbers(file: object, keyword: str, count: int) -> tuple[float, ...]:
    values: Sequence[object] = getattr(file, keyword)
    numbers = tuple(float(str(value)) + 0.0 for value in values)
    if len(numbers) != count or not all(abs(number) < float("inf") for number in numbers):
        raise ValueError(f"{keyword} has {len(numbers)} numbers")
    return numbers
