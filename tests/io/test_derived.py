"""What the objects derived from a study carry of its headers, and what is said where they cannot be made."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from PIL import Image as Picture
from pydicom.uid import ComputedRadiographyImageStorage

from salus.core import Result, Source, Verdict
from salus.core.errors import ImageError
from salus.io import read_study
from salus.io.derived import write_derived
from tests.dicom import dicom, enhanced, program, radiograph, saved, series

ROLES = ["map", "overlay", "regions", "report"]
PIXELS = np.arange(144, dtype=np.uint16).reshape(12, 12)


@pytest.fixture
def derive(tmp_path):
    """The objects of a study of DICOM files by role, and the remark."""

    def made(*paths):
        source = read_study([Source(path=path) for path in paths])
        rising = np.linspace(0, 1, source.array.size, dtype=np.float32).reshape(source.array.shape)
        result = Result(case_id="a", sources={"a": "1"}, model="c0" * 32, verdict=Verdict.NORMAL, score=0.1)
        Picture.new("RGB", (16, 16)).save(tmp_path / "overlay.png")
        anomaly = replace(source, array=rising)
        files, remark = write_derived(tmp_path, source, anomaly, source, 0.5, result, "ae")
        return {role.removeprefix("dicom_"): pydicom.dcmread(tmp_path / name) for role, name in files.items()}, remark

    return made


def told(folder, word):
    """Lines of dicom3tools' validator with a word, of all objects in a folder."""
    lines = []
    for path in sorted(folder.glob("*.dcm")):
        command = [program("dciodvfy", "dicom3tools"), "-new", path]
        answer = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
        lines += [f"{path.name}: {line}" for line in answer.stderr.splitlines() if word in line]
    return lines


def rewritten(path, **changed):
    """A file with other attributes, as any program may write them."""
    file = pydicom.dcmread(path)
    for keyword, value in changed.items():
        setattr(file, keyword, value)
    file.save_as(path)
    return path


@pytest.mark.parametrize("said", ["YES", "NO", ""])
def test_the_overlay_says_of_burned_in_names_what_the_source_says(said, derive, tmp_path):
    objects, _ = derive(saved(tmp_path / "s/a.dcm", radiograph(PIXELS, BurnedInAnnotation=said)))
    assert objects["overlay"].get("BurnedInAnnotation", "") == said


def test_names_burned_into_one_slice_are_burned_into_the_overlay(derive, tmp_path):
    paths = series(tmp_path / "s", np.dstack([PIXELS] * 3), [0, 0, 2.0], BurnedInAnnotation="NO")
    rewritten(paths[1], BurnedInAnnotation="YES")
    assert derive(*paths)[0]["overlay"].BurnedInAnnotation == "YES"


@pytest.mark.parametrize(
    ("keyword", "left"),
    [
        ("StudyInstanceUID", []),
        ("SOPInstanceUID", []),
        ("SOPClassUID", []),
        ("SeriesInstanceUID", ["overlay"]),
        ("FrameOfReferenceUID", ["overlay", "report"]),
        ("SliceThickness", ["overlay", "report"]),
        ("Modality", ["map", "overlay", "regions"]),
        ("LossyImageCompression", ROLES),
        ("ReferencedStudySequence", ROLES),
    ],
)
def test_an_empty_attribute_is_as_good_as_none(keyword, left, derive, tmp_path):
    path = rewritten(saved(tmp_path / "s/a.dcm", dicom(PIXELS)), **{keyword: None})
    objects, remark = derive(path)
    assert sorted(objects) == left
    assert remark.count(f"there is no {keyword}") == 4 - len(left)
    assert told(tmp_path, "Error") == []


def test_frames_with_an_empty_thickness_have_no_regions(derive, tmp_path):
    file = enhanced(np.stack([PIXELS] * 3), [30.0, 32.0, 34.0])
    file.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = None
    objects, remark = derive(saved(tmp_path / "s/a.dcm", file))
    assert sorted(objects) == ["map", "overlay", "report"]
    assert remark.endswith("for regions (there is no SliceThickness)")
    assert told(tmp_path, "Error") == []


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("", "Doe^Jane"),
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO 2022 IR 100", "Müller^Jürgen"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    ],
)
def test_names_keep_their_alphabet(words, name, derive, tmp_path):
    objects, remark = derive(saved(tmp_path / "s/a.dcm", dicom(PIXELS, SpecificCharacterSet=words, PatientName=name)))
    assert {role: str(made.PatientName) for role, made in objects.items()} == dict.fromkeys(ROLES, name)
    assert remark == ""
    assert told(tmp_path, "Error") == []


@pytest.mark.filterwarnings("ignore:Unknown encoding")
def test_an_alphabet_that_nobody_knows_is_named_by_its_attribute(derive, tmp_path):
    path = saved(tmp_path / "s/a.dcm", dicom(PIXELS))
    with pytest.raises(ImageError, match=r"a\.dcm: no DICOM can be derived: SpecificCharacterSet cannot be used\.$"):
        derive(rewritten(path, SpecificCharacterSet="SECRET"))


@pytest.mark.parametrize(
    ("keyword", "value", "lost"),
    [
        ("PatientName", ["Secret^A", "Secret^B"], 4),
        ("SOPClassUID", "1.3.46.670589.5.0.1", 4),
        ("SeriesInstanceUID", ["1.2.1", "1.2.2"], 3),
        ("FrameOfReferenceUID", ["1.2.1", "1.2.2"], 2),
    ],
)
def test_what_cannot_be_used_is_named_without_its_value(keyword, value, lost, derive, tmp_path):
    objects, remark = derive(rewritten(saved(tmp_path / "s/a.dcm", dicom(PIXELS)), **{keyword: value}))
    assert len(objects) == 4 - lost
    assert remark.count(f"({keyword} cannot be used)") == lost
    assert "Secret" not in remark


def test_a_damaged_sequence_is_a_reason_and_no_unexpected_error(derive, tmp_path):
    path = saved(tmp_path / "s/a.dcm", dicom(PIXELS, StudyDescription="Secret"))
    whole, content = b"\x08\x00\x30\x10LO\x06\x00Secret", path.read_bytes()
    assert whole in content
    cut = b"\x08\x00\x32\x10SQ\x00\x00\x06\x00\x00\x00Secret"  # a ProcedureCodeSequence of less than an item
    path.write_bytes(content.replace(whole, cut))
    with pytest.raises(ImageError, match=r"a\.dcm: no DICOM can be derived: an attribute makes no sense, OSError\.$"):
        derive(path)


def test_without_highdicom_that_is_what_is_missing(derive, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    objects, remark = derive(saved(tmp_path / "s/a.dcm", dicom(PIXELS)))
    assert objects == {}
    assert remark.count("(highdicom is not installed)") == 4


def test_all_objects_tell_one_patient_and_study(derive, tmp_path):
    carried = {"IssuerOfPatientID": "HOSPITAL A", "StudyDescription": "Head", "PatientAge": "070Y"}
    objects, _ = derive(saved(tmp_path / "s/a.dcm", dicom(PIXELS, **carried)))
    assert sorted(objects) == ROLES
    for made in objects.values():
        assert {keyword: made.get(keyword) for keyword in carried} == carried


def test_all_images_tell_what_was_lost(derive, tmp_path):
    lossy = {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": 10,
        "LossyImageCompressionMethod": "ISO_10918_1",
    }
    paths = series(tmp_path / "s", np.dstack([PIXELS] * 3), [0, 0, 2.0])
    rewritten(paths[1], **lossy)
    objects, _ = derive(*paths)
    for role in ("map", "regions", "overlay"):
        assert {keyword: objects[role].get(keyword) for keyword in lossy} == lossy
    assert told(tmp_path, "Error") == []


@pytest.mark.parametrize(
    "side",
    [
        {"ImageLaterality": "L"},
        {"Laterality": "L", "SOPClassUID": ComputedRadiographyImageStorage, "Modality": "CR"},
    ],
)
def test_all_images_tell_the_side(side, derive, tmp_path):
    objects, _ = derive(saved(tmp_path / "s/a.dcm", radiograph(PIXELS, BodyPartExamined="HAND", **side)))
    for role in ("regions", "overlay"):
        assert (objects[role].BodyPartExamined, objects[role].ImageLaterality) == ("HAND", "L")
    assert told(tmp_path, "Laterality") == []


def test_a_head_has_no_side_and_a_knee_an_unknown_one(derive, tmp_path):
    derive(saved(tmp_path / "s/a.dcm", dicom(PIXELS, BodyPartExamined="HEAD")))
    assert told(tmp_path, "Laterality") == []
    objects, _ = derive(saved(tmp_path / "s/a.dcm", dicom(PIXELS, BodyPartExamined="KNEE")))
    assert objects["overlay"].Laterality == objects["map"].Laterality == ""
    assert told(tmp_path, "Error") == []


def test_an_oblique_radiograph_has_an_overlay(derive, tmp_path):
    objects, _ = derive(saved(tmp_path / "s/a.dcm", radiograph(PIXELS, PatientOrientation=["AL", "F"])))
    assert list(objects["overlay"].PatientOrientation) == ["AL", "F"]
