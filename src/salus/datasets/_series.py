"""DICOM files that belong together, told from their headers: no pixel is read."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from salus.core.dicom import opened, tag_of
from salus.core.errors import LayoutError
from salus.core.machine import memory
from salus.core.stack import SAME_PLACE, alike, normal_of, runs

TAGS = (
    *("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "InstanceNumber", "NumberOfFrames", "Rows", "Columns"),
    *("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "Modality", "Manufacturer"),
)
SHARED = ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "Modality", "Rows", "Columns")
WHO = ("PatientName", "PatientBirthDate")  # asked where the PatientID is empty
# What tells volumes at the same places, or between one another's, apart, the first that does; after them, of those at
# the same places, instance numbers one after the other.
APART = ("EchoTime", "EchoNumbers", "TemporalPositionIdentifier", "AcquisitionNumber", "ImageType")
NO_IMAGES = ("SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "REG", "AU", "DOC", "ECG", "PLAN")
MORE = "more slices of its series lie in another folder"
OURS = "Salus"  # the manufacturer of what `salus screen --dicom` writes


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Files of one picture or volume.

    Attributes:
        files: in the order of their positions.
        patient: a hash that stands for the PatientID, which stays in the files, or for the study where it is empty; ""
            without both.
        remark: what is wrong with it, though it can be judged; "" where nothing is.
    """

    files: tuple[Path, ...]
    patient: str = ""
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What decides where a file belongs; a file that is whole in itself has no series.

    Attributes:
        patient: the PatientID; where it is empty, as it often is once names are removed, the UID of the study.
        series: its folder (a copy elsewhere is another), and what its slices must share: UIDs, patient, size.
        position, orientation: in LPS, mm; empty where a file is whole in itself.
        study: UID.
        kinds: of APART, as they are stored.
    """

    patient: str = ""
    study: str = ""
    series: tuple[str, ...] = ()
    kinds: tuple[object, ...] = ()
    number: int = 0
    position: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()
    no_image: str = ""


def stacks(files: Iterable[Path]) -> tuple[list[Stack], list[tuple[Path, str]]]:
    """Series of `files`, by their first file's name, and (file, reason) of those that hold no image of a patient.

    A series with a gap comes as several, each with a remark; so does one that has several slices at a place (echoes,
    phases), where their headers tell them apart, and where they do not, it comes as it is, and reading refuses it. A
    series that has more slices in another folder says so. A file that cannot be read is a stack of its own: reading it
    will say why.
    """
    headers = {path: _header(path) for path in sorted(files)}
    names = _patients(headers.values())
    series: list[list[Path]] = []
    last: dict[tuple[str, ...], list[list[Path]]] = {}
    lie: defaultdict[tuple[str, ...], set[tuple[float, ...]]] = defaultdict(set)  # of a series, in a folder and in all
    for path, header in headers.items():
        if header.no_image:
            continue
        if header.series:
            lie[header.series].add(header.position)
            lie[header.series[1:]].add(header.position)
        same = last.setdefault(header.series, []) if header.series else []
        fitting = (members for members in same if alike(headers[members[0]].orientation, header.orientation))
        if (members := next(fitting, None)) is None:
            members = []
            series.append(members)
            same.append(members)
        members.append(path)
    found = []
    for members in series:
        first = headers[members[0]]
        more = [MORE] * (len(lie[first.series]) < len(lie[first.series[1:]]))
        for part, remarks in _parts(members, headers):
            found.append(Stack(files=part, patient=names.get(first.patient, ""), remark="; ".join(remarks + more)))
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


def _parts(members: list[Path], headers: Mapping[Path, Header]) -> Iterator[tuple[tuple[Path, ...], list[str]]]:
    """The files of each volume of a series in the order of their positions, and what is wrong with it."""
    if len(members) == 1:
        yield tuple(members), []
        return
    normal = normal_of(headers[members[0]].orientation)
    height = {path: float(normal @ headers[path].position) for path in members}
    for volume in _volumes(members, height, headers):
        parts = runs([height[path] for path in volume])
        for number, part in enumerate(parts, start=1):
            remark = f"part {number} of {len(parts)} of a series with gaps or of several spacings"
            yield tuple(volume[index] for index in part), [remark] * (len(parts) > 1)


def _volumes(members: list[Path], height: Mapping[Path, float], headers: Mapping[Path, Header]) -> list[list[Path]]:
    """Volumes at the same places told apart, a slice of each at a place; where nothing tells them apart, all as one.

    So are volumes whose slices lie between one another's, each on an even grid of its own.
    """
    place = {path: round(height[path] / SAME_PLACE) for path in members}
    most = _together(members, place)
    for kind in range(len(APART)):
        groups = defaultdict(list)
        for path in members:
            groups[headers[path].kinds[kind]].append(path)
        fewer = len(groups) <= most and all(_together(group, place) < most for group in groups.values())
        if len(groups) > 1 and (fewer or _interleaved([[height[path] for path in group] for group in groups.values()])):
            return [volume for group in groups.values() for volume in _volumes(group, height, headers)]
    if most == 1:
        return [members]
    ordered = sorted(members, key=lambda path: headers[path].number)
    count, numbers = len({place[path] for path in members}), {headers[path].number for path in members}
    blocks = [ordered[start : start + count] for start in range(0, len(ordered), count)]
    whole = all(len({place[path] for path in block}) == count for block in blocks)
    return blocks if whole and (len(numbers) == len(members) or count == 1) else [members]


def _together(members: Iterable[Path], place: Mapping[Path, int]) -> int:
    """The largest number of slices at one place."""
    return max(Counter(place[path] for path in members).values())


def _interleaved(volumes: list[list[float]]) -> bool:
    """Whether heights are those of volumes of some slices, each on one even grid, that reach into one another."""
    return (
        min(map(len, volumes)) > 2
        and max(map(min, volumes)) < min(map(max, volumes))
        and all(np.diff(sorted(heights)).min() >= SAME_PLACE and len(runs(heights)) == 1 for heights in volumes)
    )


def _header(path: Path) -> Header:
    try:
        file = opened(
            path, memory() / 8, stop_before_pixels=True, specific_tags=[tag_of(tag) for tag in (*TAGS, *WHO, *APART)]
        )
        named, study = str(file.get("PatientID") or ""), str(file.get("StudyInstanceUID") or "")
        header = Header(patient=named or study, study=study)
        if file.get("Modality") in NO_IMAGES or file.get("Manufacturer") == OURS:
            what = "an object that Salus made" if file.get("Manufacturer") == OURS else f"of kind {file.Modality}"
            return replace(header, no_image=f"{what}, no image of a patient")
    except ImportError:
        raise LayoutError(f"{path} is DICOM, which needs more packages: pip install '.[dicom]'.") from None
    except Exception:  # broken in any way at all: a case of its own, whose reading tells the reason
        return Header()
    try:
        position, orientation = _numbers(file, "ImagePositionPatient", 3), _numbers(file, "ImageOrientationPatient", 6)
        normal_of(orientation)
        if int(file.get("NumberOfFrames") or 1) > 1 or not file.get("SeriesInstanceUID"):
            return header
        shared = SHARED if named else (*SHARED, *WHO)
        return replace(
            header,
            series=(str(path.parent), named, *(str(file.get(tag) or "") for tag in shared)),
            kinds=tuple(getattr(file.get_item(tag_of(tag)), "value", None) for tag in APART),
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
