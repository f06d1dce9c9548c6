"""DICOM files that belong together, told from their headers: no pixel is read."""

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salus.core.errors import LayoutError
from salus.core.stack import SAME_PLACE, normal_of, runs

TAGS = (
    "SeriesInstanceUID",
    "PatientID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "InstanceNumber",
    "NumberOfFrames",
    "Rows",
)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Files of one picture or volume.

    Attributes:
        files: in the order of their positions.
        patient: hash of the PatientID, which stays in the files; "" without one.
    """

    files: tuple[Path, ...]
    patient: str = ""


def stacks(files: Iterable[Path]) -> list[Stack]:
    """Series of `files`, by their first file's name.

    A series with a gap comes as several, and so does one that has as many slices at every place (echoes, phases),
    told apart by their instance numbers. A file that cannot be read is a stack of its own: reading it will say why.
    """
    headers = {path: _header(path) for path in sorted(files)}
    series: dict[tuple[str, ...], list[Path]] = {}
    for path, header in headers.items():
        series.setdefault(_together(path, header), []).append(path)
    found = []
    for members in series.values():
        first = headers[members[0]]
        patient = str(first.get("PatientID") or "") if first is not None else ""
        hashed = hashlib.sha256(patient.encode()).hexdigest()[:16] if patient else ""
        if len(members) == 1:
            found.append(Stack(files=(members[0],), patient=hashed))
            continue
        normal = normal_of(first.ImageOrientationPatient)
        height = {path: float(normal @ [float(x) for x in headers[path].ImagePositionPatient]) for path in members}
        for volume in _volumes(members, height, headers):
            parts = runs([height[path] for path in volume])
            found += [Stack(files=tuple(volume[index] for index in part), patient=hashed) for part in parts]
    return sorted(found, key=lambda stack: min(stack.files))


def _volumes(members: list[Path], height: dict[Path, float], headers: dict[Path, Any]) -> list[list[Path]]:
    """The series itself, or each of several volumes in it; where places are not equally often there, the series."""
    number = {path: int(headers[path].get("InstanceNumber") or 0) for path in members}
    ordered = sorted(members, key=lambda path: (round(height[path] / SAME_PLACE), number[path], path))
    places = [list(group) for _, group in itertools.groupby(ordered, key=lambda path: round(height[path] / SAME_PLACE))]
    times = {len(place) for place in places}
    return [list(volume) for volume in zip(*places, strict=True)] if len(times) == 1 else [members]


def _header(path: Path) -> Any:
    try:
        import pydicom
    except ImportError:
        raise LayoutError(f"{path} is DICOM, which needs more packages: pip install 'salus[dicom]'.") from None
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
    except Exception:  # broken in any way at all: a case of its own, whose reading tells the reason
        return None


def _together(path: Path, header: Any) -> tuple[str, ...]:
    """What files of one volume have in common; a file that is whole in itself shares it with none."""
    alone = (str(path),)
    if header is None or int(header.get("NumberOfFrames") or 1) > 1:
        return alone
    directions = header.get("ImageOrientationPatient")
    if not header.get("SeriesInstanceUID") or not directions or not header.get("ImagePositionPatient"):
        return alone
    return (str(header.SeriesInstanceUID), str(header.get("Rows")), *(f"{float(x):.3f}" for x in directions))
