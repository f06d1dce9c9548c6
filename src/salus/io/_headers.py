"""Headers of a study's files, as the objects derived from it need them."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

FORMS = {
    "PatientSex": re.compile("[MFO]?"),
    "PatientAge": re.compile(r"(\d{3}[DWMY])?"),
    "BodyPartExamined": re.compile("[A-Z0-9_ ]{0,16}"),
    "ImageLaterality": re.compile("[RLUB]?"),
    "Laterality": re.compile("[RL]?"),
}
UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
FILLED = (  # there with a value, or not there
    *(*UIDS, *LOSSY, "SpecificCharacterSet", "Modality", "SliceThickness", "ReferencedStudySequence"),
    *("ProcedureCodeSequence", "ReferringPhysicianIdentificationSequence", "PatientSpeciesDescription"),
    "ClinicalTrialSubjectID",
)
TYPE_2 = ("AccessionNumber", "StudyID", "PatientName", "PatientID", "PatientSex", "ReferringPhysicianName")


def blanked(header: Any) -> Any:
    """With what objects must carry there, and empty where it is missing or no date, time or sex that can be copied.

    What may not be empty is not there where it is.
    """
    from pydicom.valuerep import DA, TM

    for item in (header, *measures(header)):
        for keyword in FILLED:
            if keyword in item and item[keyword].is_empty:
                del item[keyword]
    kinds = {"StudyDate": DA, "PatientBirthDate": DA, "StudyTime": TM}
    for keyword in (*TYPE_2, *kinds, *FORMS):
        try:
            value = str(header.get(keyword) or "")
            kinds.get(keyword, str)(value)
            fine = FORMS[keyword].fullmatch(value) is not None if keyword in FORMS else True
        except (ValueError, TypeError):
            fine = False
        if keyword not in header or not fine:
            setattr(header, keyword, "")
    return header


def alphabet(headers: Sequence[Any]) -> Any:
    """SpecificCharacterSet, which is in no header afterwards: highdicom refuses some that pydicom can write.

    Raises:
        KeyError: pydicom does not know it either.
    """
    from pydicom.charset import python_encoding

    terms = headers[0].get("SpecificCharacterSet")
    if unknown := set([terms] if isinstance(terms, str) else terms or ()) - set(python_encoding):
        raise KeyError(*unknown)
    for header in headers:
        header.pop("SpecificCharacterSet", None)
    alone = isinstance(terms, str) and terms.startswith("ISO 2022")  # which no such term may be
    return ["", terms] if alone else terms


def frame_position(header: Any, frame: int) -> Any:
    """Where a frame of a multi-frame instance lies."""
    import highdicom as hd

    group = header.PerFrameFunctionalGroupsSequence[frame]
    position = group.PlanePositionSequence[0].ImagePositionPatient
    return hd.PlanePositionSequence(hd.CoordinateSystemNames.PATIENT, [float(mm) for mm in position])


def measures(header: Any) -> list[Any]:
    """What tells the thickness of slices: an instance, or items of its frames."""
    groups = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    frames = [frame for group in groups for frame in header.get(group) or ()]
    return [item for frame in frames for item in frame.get("PixelMeasuresSequence") or ()] or [header]


def told(header: Any) -> tuple[str, str] | None:
    """What a radiograph says of the directions of its rows and columns."""
    words = tuple(header.get("PatientOrientation") or ())
    return (str(words[0]), str(words[1])) if len(words) == 2 else None


def pixel_area(header: Any) -> float:
    """Of a radiograph's pixel, mm2; nan where the file does not say."""
    try:
        down, right = (float(mm) for mm in header.get("PixelSpacing") or header.get("ImagerPixelSpacing") or ())
    except (ValueError, TypeError):
        return np.nan
    return down * right


def lacking(error: Exception, headers: Sequence[Any]) -> str:
    """What is wrong, by its keyword where that can be known; never what an attribute holds: that could be a name."""
    from pydicom.datadict import keyword_for_tag, tag_for_keyword

    if isinstance(error, ImportError):
        return f"{error.name} is not installed"
    name = getattr(error, "name", None)
    if name and tag_for_keyword(name):
        return f"there is no {name}"
    if tag := re.match(r"With tag \((\w{4}),(\w{4})\)", str(error)):  # how pydicom's writer begins
        return f"{keyword_for_tag(int(tag[1] + tag[2], 16)) or 'an attribute'} cannot be used"
    for keyword in ("SpecificCharacterSet", *UIDS, "PatientName"):
        found = [header[keyword] for header in headers if keyword in header]
        if any(element.VM > 1 or error.args[:1] == (element.value,) for element in found):
            return f"{keyword} cannot be used"
    return f"an attribute makes no sense, {type(error).__name__}"
