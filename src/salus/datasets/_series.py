"""DICOM files that belong together, told from their headers: no pixel is read."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from salus.core.dicom import opened
from salus.core.errors import LayoutError
from salus.core.machine import memory
from salus.core.stack import SAME_PLACE, alike, normal_of, runs

TAGS = (
    *("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "InstanceNumber", "NumberOfFrames", "Rows", "Columns"),
    *("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "Modality", "Manufacturer"),
)
SHARED = ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "Modality", "Rows", "Columns")
# What tells volumes at the same places apart, the first that does; after them, instance numbers one after the other.
APART = ("EchoTime", "EchoNumbers", "TemporalPositionIdentifier", "AcquisitionNumber", "ImageType")
NO_IMAGES = ("SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "REG", "AU", "DOC", "ECG", "PLAN")
MORE = "more slices of its series lie in another folder"
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
        series: its folder (a copy elsewhere is another), and what its slices must share: UIDs, patient, size.
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
    place = {path: round(mm / SAME_PLACE) for path, mm in height.items()}
    kinds = {path: _kinds(path) for path in members} if _together(members, place) > 1 else {}
    for volume in _volumes(members, place, headers, kinds):
        parts = runs([height[path] for path in volume])
        for number, part in enumerate(parts, start=1):
            remark = f"part {number} of {len(parts)} of a series with gaps or of several spacings"
            yield tuple(volume[index] for index in part), [remark] * (len(parts) > 1)


def _volumes(
    members: list[Path], place: Mapping[Path, int], headers: Mapping[Path, Header], kinds: Mapping[Path, Sequence[str]]
) -> list[list[Path]]:
    """Volumes at the same places told apart, a slice of each at a place; where nothing tells them apart, all as one."""
    most = _together(members, place)
    if most == 1:
        return [members]
    for kind in range(len(APART)):
        groups = defaultdict(list)
        for path in members:
            groups[kinds[path][kind]].append(path)
        if 1 < len(groups) <= most and all(_together(group, place) < most for group in groups.values()):
            return [volume for group in groups.values() for volume in _volumes(group, place, headers, kinds)]
    ordered = sorted(members, key=lambda path: headers[path].number)
    count, numbers = len({place[path] for path in members}), {headers[path].number for path in members}
    blocks = [ordered[start : start + count] for start in range(0, len(ordered), count)]
    whole = all(len({place[path] for path in block}) == count for block in blocks)
    return blocks if whole and (len(numbers) == len(members) or count == 1) else [members]


def _together(members: Iterable[Path], place: Mapping[Path, int]) -> int:
    """The largest number of slices at one place."""
    return max(Counter(place[path] for path in members).values())


def _kinds(path: Path) -> list[str]:
    file = opened(path, memory() / 8, stop_before_pixels=True, specific_tags=list(APART))
    return [str(file.get(tag)) for tag in APART]


def _header(path: Path) -> Header:
    try:
        file = opened(path, memory() / 8, stop_before_pixels=True, specific_tags=list(TAGS))
        header = Header(patient=str(file.get("PatientID") or ""), study=str(file.get("StudyInstanceUID") or ""))
        if file.get("Modality") in NO_IMAGES or file.get("Manufacturer") == OURS:
            what = "an object that Salus made" if file.get("Manufacturer") == OURS else f"of kind {file.Modality}"
            return Header(patient=header.patient, study=header.study, no_image=f"{what}, no image of a patient")
    except ImportError:
        raise LayoutError(f"{path} is DICOM, which needs more packages: pip install 'salus[dicom]'.") from None
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
            series=(str(path.parent), header.patient, *(str(file.get(tag) or "") for tag in SHARED)),
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
