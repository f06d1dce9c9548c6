"""DICOM in, DICOM out: what a hospital does with a model."""

import csv
import re
import shutil
import subprocess
from pathlib import Path

import highdicom as hd
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image as Picture

from salus.core import Case, Source, Verdict
from salus.core.errors import LayoutError
from salus.datasets import open_dataset
from salus.io import read_image, read_study
from salus.io.results import WRITTEN, read_results
from salus.preprocess import resample
from salus.screening import apart, studies
from tests.conftest import discs
from tests.dicom import dicom, enhanced, program, radiograph, saved, series

pytestmark = pytest.mark.filterwarnings("ignore:.*urllib3.*")
SLICES = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Learned from 60 thin volumes of discs in mm, calibrated for one false alarm in five."""
    from salus.threshold import calibrate
    from salus.training import train

    root = tmp_path_factory.mktemp("healthy")
    for index, picture in enumerate(discs(60)):
        volume = np.repeat(picture[0][..., None], SLICES, axis=2)
        nibabel.Nifti1Image(volume, np.diag([-1.0, -1.0, 2.5, 1.0])).to_filename(root / f"{index:02}.nii.gz")
    settings, out = {"prepare.slices": "all"}, tmp_path_factory.mktemp("learned") / "model"
    folder = train("ae", root, out, preset="tiny", epochs=3, settings=settings).folder
    more = tmp_path_factory.mktemp("more")
    for index, picture in enumerate(discs(24, seed=5)):
        volume = np.repeat(picture[0][..., None], SLICES, axis=2)
        nibabel.Nifti1Image(volume, np.diag([-1.0, -1.0, 2.5, 1.0])).to_filename(more / f"{index:02}.nii.gz")
    calibrate(folder, more, false_alarms=0.2)
    return folder


@pytest.fixture(scope="module")
def screened(model, tmp_path_factory):
    """Two CT series, one with a hole in all its slices, one oblique; and an MR slice."""
    from salus.screening import screen

    root = tmp_path_factory.mktemp("studies")
    for name, picture, step, uid in (
        ("well", discs(1, seed=7), [0, 0, 2.5], "1.2.3.41"),
        ("ill", discs(1, hole=True), [0.3, 0, 2.5], "1.2.3.42"),
    ):
        volume = np.repeat(np.round(900 * picture[0, 0]).astype(np.int16)[..., None], SLICES, axis=2)
        changed = {"RescaleIntercept": -100, "RescaleSlope": 1, "PixelSpacing": [1.0, 1.0], "SeriesInstanceUID": uid}
        series(root / name, volume, step, **changed)
    pixels = np.round(900 * discs(1, seed=8)[0, 0]).astype(np.uint16)
    saved(root / "slice.dcm", dicom(pixels, SOPClassUID=pydicom.uid.MRImageStorage, Modality="MR"))
    out = tmp_path_factory.mktemp("results")
    screen([root], model=model, out=out, dicom=True)
    return root, out


def of(screened, name):
    root, out = screened
    case = next(case for case in open_dataset("folder", root) if case.case_id == name)
    return read_study(case.images), out / name, next(r for f, r in read_results(out) if f == out / name)


def test_a_series_has_four_objects_and_a_slice_too(screened):
    for name in ("well", "ill", "slice"):
        _, folder, result = of(screened, name)
        roles = {role.removeprefix("dicom_") for role in result.files if role.startswith("dicom_")}
        assert {"map", "report", "overlay"} <= roles
        assert all((folder / path).is_file() for path in result.files.values())
        assert WRITTEN.issuperset(result.files.values())
    assert "dicom_regions" in of(screened, "ill")[2].files


def test_the_map_lies_where_the_source_lies(screened):
    for name in ("well", "ill", "slice"):
        source, folder, _ = of(screened, name)
        written = read_image(folder / "map.dcm")
        np.testing.assert_allclose(written.affine[:3, :2], source.affine[:3, :2], atol=1e-4)
        np.testing.assert_allclose(written.affine[:3, 3], source.affine[:3, 3], atol=1e-4)
        nifti = read_image(folder / "map.nii.gz")
        np.testing.assert_allclose(written.array.reshape(nifti.array.shape), nifti.array, rtol=1e-6)


def test_the_objects_refer_to_their_source_and_carry_its_patient(screened):
    source, folder, _ = of(screened, "ill")
    for role in ("map", "regions", "overlay", "report"):
        made = pydicom.dcmread(folder / f"{role}.dcm")
        assert (made.PatientID, made.StudyInstanceUID) == ("MRN4711", "1.2.3")
        assert "Research use only" in made.SeriesDescription
    overlay = pydicom.dcmread(folder / "overlay.dcm")
    assert set(uids(overlay.SourceImageSequence)) == set(source.origin.uids)
    for role in ("map", "regions"):
        made = pydicom.dcmread(folder / f"{role}.dcm")
        referred = {uid for seq in made.ReferencedSeriesSequence for uid in uids(seq.ReferencedInstanceSequence)}
        assert referred <= set(source.origin.uids)
    assert pydicom.dcmread(folder / "map.dcm").ContentQualification == "RESEARCH"


def uids(sequence):
    return [item.ReferencedSOPInstanceUID for item in sequence]


def test_the_regions_are_what_exceeds_the_threshold(screened, model):
    import json

    source, folder, _ = of(screened, "ill")
    threshold = json.loads((model / "model.json").read_text())["calibration"]["pixel_threshold"]
    above = read_image(folder / "map.nii.gz").array > threshold
    regions = hd.seg.segread(folder / "regions.dcm")
    found = regions.get_pixels_by_source_instance(list(source.origin.uids), combine_segments=True)
    np.testing.assert_array_equal(np.moveaxis(found, 0, -1) > 0, above)


def test_the_report_says_what_result_json_says(screened, model):
    _, folder, result = of(screened, "ill")
    report = hd.sr.srread(folder / "report.dcm")
    (group,) = report.content.get_image_measurement_groups()
    values = {m.name.meaning: m.value for m in group.get_measurements()}
    assert values["Anomaly score"] == pytest.approx(result.score, rel=1e-5)
    assert values["P-Value"] == pytest.approx(result.p_value, rel=1e-5)
    regions = hd.seg.segread(folder / "regions.dcm")
    voxels = int(regions.pixel_array.sum())
    assert values["Volume"] == pytest.approx(voxels * 2.5 * 1.0, rel=0.01)
    verdict = next(e for e in group.get_qualitative_evaluations() if e.name.meaning == "Verdict")
    assert verdict.value.meaning.startswith("Flagged" if result.verdict == Verdict.ABNORMAL else "Not flagged")
    assert result.model[:64] in str(pydicom.dcmread(folder / "report.dcm").to_json())


def test_a_radiograph_has_no_parametric_map(tmp_path, salus):
    from salus.training import train

    for index, picture in enumerate(discs(60)):
        pixels = np.round(1000 * picture[0]).astype(np.uint16)
        saved(tmp_path / f"healthy/{index}.dcm", radiograph(pixels, BitsStored=10, HighBit=9, PatientID=str(index)))
    folder = train("ae", tmp_path / "healthy", tmp_path / "m", preset="tiny", epochs=1).folder
    pixels = np.round(1000 * discs(1, hole=True)[0, 0]).astype(np.uint16)
    saved(tmp_path / "new/a.dcm", radiograph(pixels, PatientOrientation=["L", "F"], ImagerPixelSpacing=[0.2, 0.2]))
    code, out, err = salus("screen", tmp_path / "new", "--model", folder, "--out", tmp_path / "r", "--dicom")
    assert code == 0, out + err
    made = {path.name for path in (tmp_path / "r/a").glob("*.dcm")}
    assert {"overlay.dcm", "report.dcm"} <= made <= {"overlay.dcm", "report.dcm", "regions.dcm"}
    assert (tmp_path / "r/a/map.tif").is_file()
    assert list(pydicom.dcmread(tmp_path / "r/a/overlay.dcm").PatientOrientation) == ["L", "F"]


def test_objects_asked_for_later_are_made_later_and_again_the_same(model, screened, tmp_path, salus):
    root, out = screened
    arguments = ("screen", root / "ill", "--model", model, "--out", tmp_path)
    assert salus(*arguments)[0] == 0
    assert not list(tmp_path.rglob("*.dcm"))
    assert salus(*arguments, "--dicom")[0] == 0
    (again,) = tmp_path.rglob("report.dcm")
    assert pydicom.dcmread(again).SOPInstanceUID == pydicom.dcmread(out / "ill/report.dcm").SOPInstanceUID


def test_a_series_beside_a_hospitals_own_report_keeps_both(model, tmp_path, salus):
    volume = np.repeat(np.round(900 * discs(1)[0, 0]).astype(np.int16)[..., None], SLICES, axis=2)
    paths = series(tmp_path / "own/axial", volume, [0, 0, 2.5])
    paths[0].rename(tmp_path / "own/axial/map.dcm")
    (tmp_path / "own/axial/report.dcm").write_text("the hospital's")
    before = {path: path.read_bytes() for path in (tmp_path / "own/axial").iterdir()}
    code, _, err = salus("screen", tmp_path / "own", "--model", model, "--out", tmp_path / "own", "--dicom")
    assert code == 2
    assert "holds images to be screened" in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    salus("screen", tmp_path / "own", "--model", model, "--out", tmp_path / "own/results", "--dicom")
    assert len(list(tmp_path.glob("own/results/**/map.dcm"))) == 1
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_whole_series_is_a_whole_study(screened):
    _, folder, result = of(screened, "ill")
    assert (len(result.slice_scores), result.slices) == (SLICES, SLICES)
    (group,) = hd.sr.srread(folder / "report.dcm").content.get_image_measurement_groups()
    assert group.tracking_identifier == "study as a whole"


def test_a_part_of_a_series_is_no_whole_study(model, tmp_path, salus):
    volume = np.repeat(np.round(900 * discs(1)[0, 0]).astype(np.int16)[..., None], 2 * SLICES + 1, axis=2)
    series(tmp_path / "s/p", volume, [0, 0, 2.5], PixelSpacing=[1.0, 1.0])
    paths = sorted((tmp_path / "s/p").iterdir(), key=lambda path: pydicom.dcmread(path).InstanceNumber)
    paths[2].unlink()
    code, out, err = salus("screen", tmp_path / "s", "--model", model, "--out", tmp_path / "r", "--dicom")
    assert code == 3, out + err
    reports = sorted((tmp_path / "r").rglob("report.dcm"))
    assert len(reports) == 2
    for path in reports:
        (group,) = hd.sr.srread(path).content.get_image_measurement_groups()
        assert group.tracking_identifier == "part of a study"
        assert "of 2 of a series with gaps or of several spacings" in str(pydicom.dcmread(path).to_json())


def test_nothing_of_the_patient_is_told_outside_the_dicom_files(screened):
    _, out = screened
    for path in out.rglob("*"):
        assert "MRN4711" not in str(path.relative_to(out))
        if path.is_file() and path.suffix in (".json", ".csv"):
            text = path.read_text()
            assert not any(word in text for word in ("Doe", "MRN4711", "19500101"))


@pytest.fixture(scope="module")
def dciodvfy():
    """dicom3tools' validator."""
    return program("dciodvfy", "dicom3tools")


def errors(dciodvfy, folder):
    """Lines that the validator calls errors, of all DICOM files under a folder."""
    found = []
    for path in sorted(folder.rglob("*.dcm")):
        told = subprocess.run([dciodvfy, "-new", path], capture_output=True, text=True, check=False)
        found += [f"{path.parent.name}/{path.name}: {line}" for line in told.stderr.splitlines() if "Error" in line]
    return found


def test_a_validator_finds_no_error(screened, dciodvfy):
    assert errors(dciodvfy, screened[1]) == []


def test_dcmtk_reads_the_report(screened):
    _, folder, result = of(screened, "ill")
    told = subprocess.run(
        [program("dsrdump", "dcmtk"), folder / "report.dcm"], capture_output=True, text=True, check=True
    )
    assert "Comprehensive SR Document" in told.stdout
    assert f'"Anomaly score")="{result.score:.5f}'[:24] in told.stdout
    assert told.stderr == ""


def test_real_ct_and_mr_files_give_valid_objects(shared_data, model, tmp_path, salus, dciodvfy):
    files = shared_data / "formats/dicom"
    mr = sorted(files.glob("MR_small*.dcm"))
    code, out, _ = salus("screen", files / "ct_series", *mr, "--model", model, "--out", tmp_path, "--dicom")
    assert code == 3  # the series has a gap of 20 cm: both its parts are judged, and both say so
    assert out.count("of 2 of a series with gaps or of several spacings") == 2
    assert len(list(tmp_path.rglob("map.dcm"))) == 2 + len(mr)
    assert errors(dciodvfy, tmp_path) == []


def dicomdir(path, names):
    """A table of contents that lists files by the parts of their paths."""
    records = []
    for name in names:
        record = pydicom.Dataset()
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", name
        records.append(record)
    contents = pydicom.Dataset()
    contents.file_meta = pydicom.dataset.FileMetaDataset()
    contents.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    contents.file_meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    contents.file_meta.MediaStorageSOPInstanceUID = "1.2.3.7"
    contents.DirectoryRecordSequence = pydicom.Sequence(records)
    saved(path, contents)


def test_an_archive_a_dicomdir_and_files_without_suffix_are_screened(model, tmp_path, salus):
    volume = np.repeat(np.round(900 * discs(1, seed=7)[0, 0]).astype(np.int16)[..., None], SLICES, axis=2)
    for index, path in enumerate(series(tmp_path / "disc/A", volume, [0, 0, 2.5])):
        path.rename(path.with_name(f"IM{index:06}"))
    saved(tmp_path / "disc/B/IM000009.dcm", dicom(volume[..., 0].copy(), SeriesInstanceUID="9.9")).rename(
        tmp_path / "disc/B/1.2.840.9"
    )
    dicomdir(tmp_path / "disc/DICOMDIR", [["A", p.name] for p in sorted((tmp_path / "disc/A").iterdir())])
    shutil.make_archive(str(tmp_path / "sent"), "zip", tmp_path / "disc")

    def cases(place, out):
        code, told, err = salus("screen", place, "--model", model, "--out", out)
        assert code == 0, told + err
        assert not list(out.glob(".unpacked-*"))
        return {str(folder.relative_to(out)): result.score for folder, result in read_results(out)}

    plain = cases(tmp_path / "disc", tmp_path / "r1")
    assert sorted(plain) == ["A", "B/1.2.840.9"]
    assert cases(tmp_path / "sent.zip", tmp_path / "r2") == {f"sent/{name}": score for name, score in plain.items()}
    listed = cases(tmp_path / "disc/DICOMDIR", tmp_path / "r3")
    shutil.rmtree(tmp_path / "disc/B")  # what is listed is screened without it, and a batch's size moves the last bit
    assert listed == cases(tmp_path / "disc", tmp_path / "r4")
    assert sorted(listed) == ["A"]


ORIENTATIONS = {
    "coronal": [1.0, 0, 0, 0, 0, -1],
    "sagittal": [0.0, 1, 0, 0, 0, -1],
    "oblique": [0.8, 0.36, 0.48, -0.6, 0.48, 0.64],
    "tilted": [1.0, 0, 0, 0, 0.9, -0.43588989],
}


@pytest.mark.parametrize("name", [*ORIENTATIONS, "enhanced"])
def test_every_orientation_comes_home_with_the_volume_of_its_regions(name, model, tmp_path, salus, dciodvfy):
    volume = np.repeat(np.round(900 * discs(1, hole=True)[0, 0]).astype(np.int16)[..., None], 12, axis=2)
    if name == "enhanced":
        frames = np.ascontiguousarray(np.moveaxis(volume, 2, 0))
        saved(tmp_path / "s/e.dcm", enhanced(frames, [40.0 - 2 * index for index in range(12)]))
    else:
        normal = np.cross(*np.reshape(ORIENTATIONS[name], (2, 3)))
        step = [0, 0, 2.0] if name == "tilted" else (2.0 * normal).tolist()
        series(tmp_path / "s/e", volume, step, PixelSpacing=[1.0, 1.0], ImageOrientationPatient=ORIENTATIONS[name])
    code, out, err = salus("screen", tmp_path / "s", "--model", model, "--out", tmp_path / "r", "--dicom")
    assert code == 0, out + err
    assert errors(dciodvfy, tmp_path / "r") == []
    (case,) = open_dataset("folder", tmp_path / "s")
    source, nifti = read_study(case.images), read_image(tmp_path / "r/e/map.nii.gz")
    written = read_image(tmp_path / "r/e/map.dcm")
    np.testing.assert_allclose(resample(written, like=nifti, order=0).array, nifti.array, rtol=1e-6)
    regions = int(hd.seg.segread(tmp_path / "r/e/regions.dcm").pixel_array.sum())
    (group,) = hd.sr.srread(tmp_path / "r/e/report.dcm").content.get_image_measurement_groups()
    (extent,) = (m for m in group.get_measurements() if m.name.meaning in ("Volume", "Area"))
    assert extent.name.meaning == "Volume"
    assert extent.value == pytest.approx(regions * abs(np.linalg.det(source.affine[:3, :3])), rel=1e-4)


def test_slices_that_were_not_judged_have_no_frame_and_are_not_claimed(tmp_path, salus, dciodvfy):
    from salus.training import train

    (tmp_path / "h").mkdir()
    for index, picture in enumerate(discs(60)):
        volume = np.repeat(picture[0][..., None], 5, axis=2)
        nibabel.Nifti1Image(volume, np.diag([-1.0, -1.0, 2.0, 1.0])).to_filename(tmp_path / f"h/{index}.nii.gz")
    mid = train("ae", tmp_path / "h", tmp_path / "m", preset="tiny", epochs=1).folder
    volume = np.repeat(np.round(900 * discs(1)[0, 0]).astype(np.int16)[..., None], 5, axis=2)
    frames = np.ascontiguousarray(np.moveaxis(volume, 2, 0))
    saved(tmp_path / "s/e.dcm", enhanced(frames, [30.0, 34, 32, 38, 36]))  # in no order
    series(tmp_path / "s/p", volume, [0, 0, 2.0], PixelSpacing=[1.0, 1.0])
    code, out, err = salus("screen", tmp_path / "s", "--model", mid, "--out", tmp_path / "r", "--dicom")
    assert code == 0, out + err
    for name in ("e", "p"):
        made = pydicom.dcmread(tmp_path / f"r/{name}/map.dcm")
        (group,) = made.PerFrameFunctionalGroupsSequence
        assert group.PlanePositionSequence[0].ImagePositionPatient[2] == 34  # the middle one
        assert "regions.dcm" not in {path.name for path in (tmp_path / f"r/{name}").glob("*.dcm")}  # no verdict
        assert made.ContentDescription == "1 of 5 slices judged; 100 % of frames judged, else 0"
        report = hd.sr.srread(tmp_path / f"r/{name}/report.dcm")
        (judged,) = report.content.get_image_measurement_groups()
        assert judged.tracking_identifier == "1 of 5 slices judged"
        assert "study as a whole" not in str(report.to_json())
    assert errors(dciodvfy, tmp_path / "r") == []
    rows = csv.DictReader((tmp_path / "r/cases.csv").read_text().splitlines())
    assert [row["slices"] for row in rows] == ["1 of 5", "1 of 5"]


def test_nothing_of_a_patient_whose_header_is_odd_is_told(model, tmp_path, salus):
    volume = np.repeat(np.round(900 * discs(1)[0, 0]).astype(np.int16)[..., None], SLICES, axis=2)
    odd = {
        "PatientName": "Geheimrat Mueller",
        "PatientBirthDate": "01.02.1950",
        "PatientSex": "woman",
        "PatientID": None,
    }
    for path in series(tmp_path / "s/p", volume, [0, 0, 2.5]):
        file = pydicom.dcmread(path)
        for keyword, value in odd.items():
            if value is None:
                delattr(file, keyword)
            else:
                file[keyword] = pydicom.DataElement(keyword, "LO", value)
        file["StudyDate"] = pydicom.DataElement("StudyDate", "DA", "yesterday", validation_mode=pydicom.config.IGNORE)
        file.add_new((0x0009, 0x0010), "LO", "private to Mueller")
        file.save_as(path)
    code, out, err = salus("screen", tmp_path / "s", "--model", model, "--out", tmp_path / "r", "--dicom")
    assert code == 0, out + err
    assert (tmp_path / "r/p/report.dcm").is_file()
    told = (
        out
        + err
        + "".join(
            path.read_text(errors="replace") for path in (tmp_path / "r").rglob("*") if path.suffix in (".json", ".csv")
        )
    )
    assert not any(word in told for word in ("Mueller", "woman", "yesterday"))
    # The year by itself, or in a date however it is written; its digits may stand in a hash or a score.
    assert not re.search(r"(?<![0-9a-f.])1950(?![0-9a-f])|01\.?02\.?1950|19500201", told)


def test_loose_files_of_a_series_are_one_study_and_ima_files_are_read(model, tmp_path, salus):
    volume = np.repeat(np.round(900 * discs(1)[0, 0]).astype(np.int16)[..., None], SLICES, axis=2)
    paths = series(tmp_path / "p7", volume, [0, 0, 2.5])
    paths = [path.rename(path.with_suffix(".IMA")) for path in paths]
    code, out, err = salus("screen", *paths, "--model", model, "--out", tmp_path / "r")
    assert code == 0, out + err
    assert [folder.name for folder, _ in read_results(tmp_path / "r")] == ["p7"]


def test_masks_of_two_kinds_of_files_meet_in_the_patient(model, tmp_path, salus):
    volume = np.repeat(np.round(900 * discs(1, hole=True)[0, 0]).astype(np.int16)[..., None], SLICES, axis=2)
    well = np.repeat(np.round(900 * discs(1, seed=9)[0, 0]).astype(np.int16)[..., None], SLICES, axis=2)
    data = tmp_path / "d"
    series(data / "test/hole/p", volume, [0, 0, 2.5], PixelSpacing=[1.0, 1.0])
    series(data / "test/good/w", well, [0, 0, 2.5], PixelSpacing=[1.0, 1.0], SeriesInstanceUID="7", PatientID="8")
    inside = np.zeros(volume.shape, dtype=np.uint8)
    inside[8:14, 4:24] = 1  # rows 8 to 13, columns 4 to 23
    source = read_study(next(c for c in open_dataset("folder", data) if "hole" in c.case_id).images)
    # The same place as (x, y, z): another order and direction of axes.
    moved = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    mask = nibabel.Nifti1Image(np.ascontiguousarray(inside.transpose(1, 0, 2)), source.affine @ moved)
    (data / "ground_truth/hole").mkdir(parents=True)
    mask.to_filename(data / "ground_truth/hole/p_mask.nii.gz")
    assert salus("screen", data, "--model", model, "--out", tmp_path / "r")[0] == 0
    from salus.benchmark.pairing import pair, truth

    paired = pair(tmp_path / "r", data, "folder")
    (ill,) = (one for one in paired.judged if one.abnormal)
    ((_, found),) = truth(ill, volume.shape)
    np.testing.assert_array_equal(found, inside.astype(bool))


def test_a_dicomdir_tells_what_is_missing(model, tmp_path, salus):
    volume = np.repeat(np.round(900 * discs(1)[0, 0]).astype(np.int16)[..., None], SLICES, axis=2)
    paths = series(tmp_path / "disc/a", volume, [0, 0, 2.5])
    dicomdir(tmp_path / "disc/dicomdir", [["A", path.name.upper()] for path in paths] + [["A", "GONE"]])
    command = ("screen", tmp_path / "disc/dicomdir", "--model", model, "--out", tmp_path / "r", "--dicom")
    code, out, _ = salus(*command)
    report = tmp_path / "r/a/report.dcm"
    before = pydicom.dcmread(report).SOPInstanceUID
    assert code == 3
    assert "a: dicomdir lists 1 files that are not there, such as A/GONE" in out
    dicomdir(tmp_path / "disc/dicomdir", [["A", path.name.upper()] for path in paths])
    assert salus(*command)[0] == 0  # nothing is missing any more, and nothing says so
    (group,) = hd.sr.srread(report).content.get_image_measurement_groups()
    assert group.tracking_identifier == "study as a whole"
    assert pydicom.dcmread(report).SOPInstanceUID != before  # a PACS would keep the older of one UID


def test_a_dicomdir_means_the_file_of_that_case_where_two_names_differ_in_nothing_else(tmp_path):
    for name in ("A/IM1", "a/im1", "A/im1"):
        path = saved(tmp_path / name, dicom(np.eye(8, dtype=np.uint8)))
    if len(list(tmp_path.rglob("*1"))) < 3:
        pytest.skip("this disk does not tell A from a")
    dicomdir(tmp_path / "DICOMDIR", [["A", "IM1"]])
    (case,) = studies([tmp_path / "DICOMDIR"], "folder", path)
    assert case.images[0].path == tmp_path / "A/IM1"


def test_studies_of_one_name_are_told_apart_by_the_folder_above(model, tmp_path, salus):
    volume = np.repeat(np.round(900 * discs(1)[0, 0]).astype(np.int16)[..., None], SLICES, axis=2)
    folders = [tmp_path / person / "study" for person in ("p1", "p2")]
    for folder in folders:
        series(folder, volume, [0, 0, 2.5])
    code, out, err = salus("screen", *folders, "--model", model, "--out", tmp_path / "r")
    assert code == 0, out + err
    assert [str(f.relative_to(tmp_path / "r")) for f, _ in read_results(tmp_path / "r")] == ["p1/study", "p2/study"]


def test_as_many_folders_above_as_it_takes_tell_studies_apart(tmp_path):
    volume = np.zeros((8, 8, SLICES), np.int16)
    for day in ("a/d1", "b/d1", "b/d2"):
        series(tmp_path / day / "export/sub", volume, [0, 0, 2.5])
        shutil.make_archive(str(tmp_path / day / "export"), "zip", tmp_path / day / "export/sub")
        Picture.new("L", (8, 8)).save(tmp_path / day / "x.png")

    def names(*inputs):
        there = tmp_path / "unpacked"
        shutil.rmtree(there, ignore_errors=True)
        return [case.case_id for case in studies([tmp_path / path for path in inputs], "folder", there)]

    assert names("b/d1/export", "b/d2/export") == ["d1/export/sub", "d2/export/sub"]
    assert names("a/d1/export", "b/d1/export") == ["a/d1/export/sub", "b/d1/export/sub"]
    assert names("b/d1/export.zip", "b/d2/export.zip") == ["d1/export", "d2/export"]
    assert names("b/d1/x.png", "b/d2/x.png") == ["d1/x", "d2/x"]
    assert names("a/d1/export", "b/d1/export", "b/d2/export") == ["a/d1/export/sub", "b/d1/export/sub", "d2/export/sub"]
    with pytest.raises(LayoutError, match="two cases are called"):
        names("b/d1/export", "b/d1/export")


def test_files_right_below_the_root_of_the_disk_have_names():
    cases = [Case(case_id="a", patient_id="a", images=(Source(path=Path(f"/{name}a.png")),)) for name in ("", "b/")]
    assert [case.case_id for case in apart([(cases[0], Path("/")), (cases[1], Path("/b"))])] == ["a", "b/a"]


def test_what_can_be_derived_is_and_the_rest_is_named(model, tmp_path, salus):
    volume = np.repeat(np.round(900 * discs(1)[0, 0]).astype(np.int16)[..., None], SLICES, axis=2)
    series(tmp_path / "s/p", volume, [0, 0, 2.5], FrameOfReferenceUID=None)
    code, out, _ = salus("screen", tmp_path / "s", "--model", model, "--out", tmp_path / "r", "--dicom")
    assert code == 3
    assert "no DICOM can be derived for map (there is no FrameOfReferenceUID), regions (" in out
    assert (tmp_path / "r/p/overlay.dcm").is_file()


def test_what_could_not_be_derived_is_not_tried_again_and_what_could_stays(model, tmp_path, salus):
    volume = np.repeat(np.round(900 * discs(1)[0, 0]).astype(np.int16)[..., None], SLICES, axis=2)
    series(tmp_path / "s/part", volume, [0, 0, 2.5], FrameOfReferenceUID=None)
    series(tmp_path / "s/none", volume, [0, 0, 2.5], StudyInstanceUID=None, SeriesInstanceUID="7")
    command = ("screen", tmp_path / "s", "--model", model, "--out", tmp_path / "r")
    code, out, _ = salus(*command, "--dicom")
    assert code == 3
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").glob("*/*")}
    assert {path.name for path in first if path.suffix == ".dcm"} == {"overlay.dcm", "report.dcm"}
    for again in (command, (*command, "--dicom")):
        assert salus(*again)[:2] == (code, out)
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "r").glob("*/*")} == first


def test_a_mask_beside_the_image_is_said_to_be_there(model, tmp_path, salus):
    volume = np.repeat(np.round(900 * discs(1, hole=True)[0, 0]).astype(np.int16)[..., None], SLICES, axis=2)
    data = tmp_path / "d"
    series(data / "test/hole/p", volume, [0, 0, 2.5], PixelSpacing=[1.0, 1.0])
    (data / "ground_truth/hole").mkdir(parents=True)
    nibabel.Nifti1Image(np.ones((8, 8, 2), np.uint8), np.diag([1.0, 1, 1, 1])).to_filename(
        data / "ground_truth/hole/p_mask.nii.gz"
    )
    assert salus("screen", data, "--model", model, "--out", tmp_path / "r")[0] == 0
    code, out, _ = salus("evaluate", tmp_path / "r", "--data", data, "--out", tmp_path / "e")
    assert code == 3
    assert "the mask of 'hole' lies beside the image" in out
