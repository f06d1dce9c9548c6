"""A result as DICOM objects that a PACS can keep beside the study they are of.

    map.dcm       Parametric Map: the anomaly map, float32, of slices with a place in the patient
    regions.dcm   Segmentation: where the map exceeds the calibrated pixel threshold, if anywhere
    report.dcm    Structured Report, TID 1500: verdict, score, p-value, extent of the regions, model and its hash
    overlay.dcm   Secondary Capture: overlay.png

Each refers to the instances it was made of, carries their patient and study, and says that it is for research use. The
same result of the same model has the same UIDs. A radiograph has no Parametric Map: the standard's macro for frames
wants a place in the patient, which a projection has not; its float map is the .tif beside these files.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from salus.core import Image, Result, Source, Verdict
from salus.core.dicom import pydicom
from salus.core.errors import ImageError
from salus.core.kinds import is_dicom
from salus.io._headers import LOSSY, alphabet, blanked, frame_position, lacking, measures, pixel_area, told
from salus.io.files import write_whole

UNPAIRED = (  # parts of the body that have no side
    *("ABDOMEN", "BRAIN", "CHEST", "CSPINE", "HEAD", "HEART", "LIVER", "LSPINE", "NECK", "PELVIS", "PROSTATE", "SKULL"),
    *("SPINE", "TSPINE", "WHOLEBODY"),
)
NONE_DERIVED = "no DICOM can be derived"
NOTICE = "Research use only, not for diagnosis"
SCHEME = "99SALUS"  # codes of our own: the standard has none for these
SERIES = {"map": 9101, "regions": 9102, "report": 9103, "overlay": 9104}  # numbers, far from a scanner's


@dataclass(frozen=True, kw_only=True)
class Derived:
    """What objects are made of.

    Attributes:
        sources: instances, without pixels, in the order of the map's slices; or one multi-frame instance.
        anomaly: (slices, rows, columns) float32 on their grid.
        regions: the same shape, where the map exceeds the pixel threshold; None without calibration.
        overlay: (H, W, 3) uint8.
        directions: where its rows and its columns run in the patient, such as ("L", "P"); None where unknown.
        in_space: whether the source has a place in the patient.
        alphabet: SpecificCharacterSet of the source; None where it names none.
        judged: share of the frames' pixels that the model saw.
        positions: of the frames, where they are some of a multi-frame instance's; else None.
        voxel: volume of a voxel, mm3, or area of a radiograph's pixel, mm2; nan where the files do not say.
        result: of the study.
        method: what judged, in words.
    """

    sources: Sequence[Any]
    anomaly: NDArray[np.float32]
    regions: NDArray[np.bool_] | None
    overlay: NDArray[np.uint8]
    directions: tuple[str, str] | None
    in_space: bool
    alphabet: str | Sequence[str] | None
    judged: float
    positions: Sequence[Any] | None
    voxel: float
    result: Result
    method: str


def from_dicom(images: Sequence[Source]) -> bool:
    """Whether a study comes from DICOM files, whole ones."""
    return all(image.index is None and is_dicom(image.path) for image in images)


def write_derived(
    folder: Path, source: Image, anomaly: Image, shown: Image, threshold: float | None, result: Result, method: str
) -> tuple[dict[str, str], str]:
    """Write the objects into `folder`; returns their names by role, and what could not be made, "" where all could.

    Args:
        folder: of the case; it holds overlay.png.
        source: as read from DICOM; its origin names the files in the order of its slices.
        anomaly: on the grid of `source`, NaN in slices that were not judged: they have no frame.
        shown: the slices of the overlay, for their place in the patient.
        threshold: value that healthy pixels rarely exceed; None without calibration.

    Raises:
        ImageError: the source files lack what these objects must carry.
        StorageError: disk full.
    """
    headers: list[Any] = []
    try:
        headers += [blanked(pydicom().dcmread(path, stop_before_pixels=True)) for path in source.origin.files]
        derived = gathered(headers, folder, source, anomaly, shown, threshold, result, method)
    except Exception as error:  # libraries fail in any way at all on attributes that they cannot use
        raise ImageError(f"{source.origin.files[0].name}: {NONE_DERIVED}: {lacking(error, headers)}.") from error
    contents, failed = made_of(derived)
    files = {}
    for role, content in contents.items():
        files[f"dicom_{role}"] = f"{role}.dcm"
        write_whole(folder / files[f"dicom_{role}"], content)
    remark = f"{source.origin.files[0].name}: {NONE_DERIVED} for {', '.join(failed)}" * bool(failed)
    return files, remark


def made_of(derived: Derived) -> tuple[dict[str, bytes], list[str]]:
    """The objects that can be made, as files, by role, and which cannot, with the reason."""
    objects: dict[str, Any] = {}
    contents, failed = {}, []
    makers: dict[str, Callable[[], Any]] = {"overlay": lambda: overlay(derived)}
    if derived.in_space:
        makers["map"] = lambda: parametric_map(derived)
    if (regions := derived.regions) is not None and regions.any():
        makers["regions"] = lambda: segmentation(derived, regions)
    makers["report"] = lambda: report(derived, objects.get("regions"))
    for role, make in makers.items():
        try:
            made, buffer = make(), io.BytesIO()
            if derived.alphabet:
                made.SpecificCharacterSet = derived.alphabet
            made.save_as(buffer, enforce_file_format=True)
            objects[role], contents[role] = made, buffer.getvalue()
        except Exception as error:  # likewise
            failed.append(f"{role} ({lacking(error, derived.sources)})")
    return contents, failed


def gathered(
    headers: list[Any],
    folder: Path,
    source: Image,
    anomaly: Image,
    shown: Image,
    threshold: float | None,
    result: Result,
    method: str,
) -> Derived:
    """What the objects are made of, of the judged slices alone."""
    words = alphabet(headers)
    maps = anomaly.array.reshape(*anomaly.array.shape[:2], -1)
    judged = ~np.isnan(maps).all((0, 1))
    order, positions = np.flatnonzero(judged), None
    if source.origin.frames:  # in the order of the file
        order = order[np.argsort([source.origin.frames[index] for index in order])]
        positions = [frame_position(headers[0], source.origin.frames[index]) for index in order]
    elif len(headers) > 1:
        headers = [headers[index] for index in order]
    frames = np.ascontiguousarray(np.moveaxis(np.nan_to_num(maps[..., order]), -1, 0))
    in_space = source.unit == "mm"
    with Picture.open(folder / "overlay.png") as picture:
        seen = np.asarray(picture.convert("RGB"))
    return Derived(
        sources=headers,
        anomaly=frames,
        regions=None if threshold is None else frames > threshold,
        overlay=seen,
        directions=directions(shown) if shown.unit == "mm" else told(headers[0]),
        in_space=in_space,
        alphabet=words,
        judged=float(1 - np.isnan(maps[..., order]).mean()),
        positions=positions,
        voxel=float(abs(np.linalg.det(source.affine[:3, :3]))) if in_space else pixel_area(headers[0]),
        result=result,
        method=method,
    )


def directions(shown: Image) -> tuple[str, str]:
    """Where rows and columns of a picture in mm run, in DICOM's letters."""
    letters = {"S": "H", "I": "F"}
    down, right, _ = nibabel.aff2axcodes(shown.affine)  # type: ignore[no-untyped-call]
    return letters.get(right, right), letters.get(down, down)


def placed(derived: Derived) -> Sequence[Any]:
    """The sources; those with a place in the patient must tell in which frame of reference.

    Raises:
        AttributeError: they do not.
    """
    if derived.in_space and not all("FrameOfReferenceUID" in source for source in derived.sources):
        raise AttributeError(name="FrameOfReferenceUID")
    return derived.sources


def identity(derived: Derived, role: str) -> dict[str, Any]:
    """What all objects carry: UIDs that follow from model and source, numbers, the maker."""
    return {
        "series_instance_uid": uid(derived, role, "series"),
        "series_number": SERIES[role],
        "sop_instance_uid": uid(derived, role, "instance"),
        "instance_number": 1,
        "manufacturer": "Salus",
    }


def uid(derived: Derived, *words: str) -> str:
    """The same for the same model, source files, remark and words."""
    from pydicom.uid import generate_uid

    result = derived.result
    return str(generate_uid(entropy_srcs=[result.model, *sorted(result.sources.values()), result.remark, *words]))


def maker(derived: Derived) -> dict[str, Any]:
    """Model and version, for objects that ask for them."""
    return {
        "manufacturer_model_name": derived.method[:64],
        "software_versions": derived.result.versions.get("salus", "unknown"),
        "device_serial_number": derived.result.model[:64],
    }


def marked(derived: Derived, made: Any, what: str) -> Any:
    """With what people read in a list of series, and what the source says of the side and of lossy compression."""
    made.SeriesDescription = f"Salus {what}. {NOTICE}"
    made.ImageComments = NOTICE
    source = next((s for s in derived.sources if s.get("LossyImageCompression") == "01"), derived.sources[0])
    for keyword in LOSSY:
        if keyword in source:
            made[keyword] = source[keyword]
    if part := source.BodyPartExamined:
        made.BodyPartExamined = part
    if side := source.ImageLaterality or source.Laterality:
        made.ImageLaterality = side
    elif made.Modality != "SEG" and part not in UNPAIRED:
        made.Laterality = ""  # asked for in images of what may be one of a pair
    return made


def parametric_map(derived: Derived) -> Any:
    """The anomaly map, a frame a judged slice."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    highest = float(derived.anomaly.max())
    meaning = hd.pm.RealWorldValueMapping(
        lut_label="anomaly",
        lut_explanation="Difference from healthy images, higher is more abnormal",
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, max(highest, 1e-6)),
        slope=1.0,
        intercept=0.0,
        quantity_definition=coded("anomaly-map", "Difference from healthy images"),
    )
    made = hd.pm.ParametricMap(
        source_images=placed(derived),
        pixel_array=derived.anomaly,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[meaning],
        voi_lut_transformations=[
            hd.VOILUTTransformation(
                window_center=highest / 2,
                window_width=max(highest, 1e-6),
                voi_lut_function=hd.VOILUTFunctionValues.LINEAR_EXACT,
            )
        ],
        content_label="ANOMALY_MAP",
        content_description=f"{scope(derived.result)}; {100 * derived.judged:.0f} % of frames judged, else 0",
        plane_positions=derived.positions,
        **identity(derived, "map"),
        **maker(derived),
    )
    return marked(derived, made, "anomaly map")


def segmentation(derived: Derived, regions: NDArray[np.bool_]) -> Any:
    """`regions`, above the pixel threshold somewhere, as one segment."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    if derived.in_space and not all("SliceThickness" in item for item in measures(derived.sources[0])):
        raise AttributeError(name="SliceThickness")
    algorithm = hd.AlgorithmIdentificationSequence(
        name=derived.method[:64],
        family=codes.DCM.ArtificialIntelligence,
        version=derived.result.model[:64],
        source="Salus",
    )
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="unlike healthy",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=coded("unlike-healthy", "Region unlike healthy images"),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
    )
    made = hd.seg.Segmentation(
        source_images=placed(derived),
        pixel_array=regions.astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        content_label="UNLIKE_HEALTHY",
        content_description=NOTICE,
        plane_positions=derived.positions,
        **identity(derived, "regions"),
        **maker(derived),
    )
    if not derived.in_space:
        made.PatientOrientation = derived.sources[0].get("PatientOrientation", "")
    return marked(derived, made, "regions")


def report(derived: Derived, regions: Any | None) -> Any:
    """Verdict and numbers as TID 1500; `regions` is the Segmentation they refer to, if there is one."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    result, name, seen = derived.result, derived.method[:64], scope(derived.result)
    algorithm = sr.AlgorithmIdentification(
        name=name,
        version=result.model[:64],
        family=codes.DCM.ArtificialIntelligence,
        manufacturer="Salus",
        parameters=[
            NOTICE,
            f"threshold of the score: {result.threshold}",
            seen,
            *([result.remark] * (result.remark != "")),
        ],
    )
    verdict = sr.QualitativeEvaluation(
        name=coded("verdict", "Verdict"), value=coded(result.verdict.lower(), WORDS[result.verdict])
    )
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=uid(derived, seen), identifier=seen),
        algorithm_id=algorithm,
        measurements=measured(derived),
        qualitative_evaluations=[verdict],
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(source) for source in derived.sources],
    )
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=uid(derived, "device"), manufacturer_name="Salus", model_name=name
        ),
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=coded("anomaly-search", "Search for what is unlike healthy images"),
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )
    evidence = [*derived.sources, *([regions] if regions is not None else [])]
    made = sr.ComprehensiveSR(
        evidence=evidence, content=content, is_complete=True, is_final=False, **identity(derived, "report")
    )
    made.SeriesDescription = f"Salus report. {NOTICE}"
    return made


def scope(result: Result) -> str:
    """Of what the numbers are."""
    judged = len(result.slice_scores)
    if judged < result.slices:
        return f"{judged} of {result.slices} slices judged"
    return "part of a study" if result.remark else "study as a whole"


def measured(derived: Derived) -> list[Any]:
    """Score, p-value and extent of the regions, as far as they are known."""
    from highdicom.sr import CodedConcept, Measurement
    from pydicom.sr.codedict import codes

    result, extent = derived.result, (codes.SCT.Area, codes.UCUM.SquareMillimeter)
    if derived.in_space:
        extent = (codes.SCT.Volume, codes.UCUM.CubicMillimeter)
    found = [(coded("anomaly-score", "Anomaly score"), codes.UCUM.NoUnits, float(result.score or 0))]
    if result.p_value is not None:
        found.append((CodedConcept("C44185", "NCIt", "P-Value"), codes.UCUM.NoUnits, result.p_value))
    if derived.regions is not None and np.isfinite(derived.voxel):
        found.append((*extent, float(derived.regions.sum() * derived.voxel)))
    return [Measurement(name=name, unit=unit, value=value) for name, unit, value in found]


WORDS = {
    Verdict.NORMAL: "Not flagged at the calibrated threshold",
    Verdict.ABNORMAL: "Flagged: unlike healthy images",
    Verdict.CANNOT_JUDGE: "Not judged: no calibrated threshold",
}


def overlay(derived: Derived) -> Any:
    """overlay.png as a Secondary Capture."""
    import highdicom as hd

    made = hd.sc.SCImage.from_ref_dataset(
        ref_dataset=derived.sources[0],
        pixel_array=derived.overlay,
        photometric_interpretation=hd.PhotometricInterpretationValues.RGB,
        bits_allocated=8,
        coordinate_system=hd.CoordinateSystemNames.PATIENT,
        patient_orientation=("L", "F"),  # as highdicom wants one, and knows no oblique ones
        **identity(derived, "overlay"),
    )
    made.PatientOrientation = list(derived.directions or ())
    made.copy_patient_and_study_information(derived.sources[0])
    burned_in = {str(source.get("BurnedInAnnotation")) for source in derived.sources}
    if "YES" in burned_in or burned_in == {"NO"}:  # else nothing is known
        made.BurnedInAnnotation = "YES" if "YES" in burned_in else "NO"
    made.SourceImageSequence = [reference(source) for source in derived.sources]
    return marked(derived, made, "overlay")


def reference(source: Any) -> Any:
    """An instance, as others refer to it."""
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    return item


def coded(value: str, meaning: str) -> Any:
    """A code of our own scheme."""
    import highdicom as hd

    return hd.sr.CodedConcept(value[:16], SCHEME, meaning)
