"""DICOM files in a folder: which of them are one case."""

import hashlib
import time

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salus.core import Label, Split
from salus.core.errors import ImageError, LayoutError
from salus.core.stack import runs
from salus.datasets import open_dataset
from salus.datasets.folder import studies_in
from salus.datasets.protocol import split
from salus.io import read_study
from tests.dicom import dicom, radiograph, saved, series

VOLUME = np.random.default_rng(0).integers(0, 900, (12, 10, 6)).astype(np.int16)


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([3.0], [[0]]),
        ([2.0, 0.0, 1.0], [[1, 2, 0]]),
        ([0.0, 1.0, 2.0, 4.0, 5.0], [[0, 1, 2], [3, 4]]),
        ([-99.48, 103.02, 104.27, 105.52], [[0], [1, 2, 3]]),
        ([0.0, 1.0, 2.0, 3.0, 8.0, 13.0, 18.0], [[0, 1, 2, 3], [4, 5, 6]]),  # thin slices, then thick ones
        ([0.0, 5.0, 10.0, 15.0, 16.0, 17.0], [[0, 1, 2], [3, 4, 5]]),
        (np.round(np.arange(16) * 0.33, 1), [list(range(16))]),  # written with one digit
        (np.round(np.arange(16) * 0.75, 1), [list(range(16))]),
        ([0.0, 1.2, 2.5, 3.8, 5.0], [[0, 1, 2, 3, 4]]),  # 1.25 mm, written with one digit
        ([0.0, 5.0, 10.0, 15.0, 22.0, 29.0, 36.0], [[0, 1, 2, 3], [4, 5, 6]]),  # of a head: 5 mm, then 7
        ([0.0, 7.0, 14.0, 19.0, 24.0, 29.0], [[0, 1], [2, 3, 4, 5]]),  # 14 belongs to the thin ones
        ([*np.arange(20), *(19 + 1.1 * np.arange(1, 21))], [list(range(20)), list(range(20, 40))]),
        ([0.0, 10.0, 20.0, 25.0, 30.0], [[0, 1], [2, 3, 4]]),
        ([0.0, 1.0, 2.0, 5.0, 8.0, 9.0], [[0, 1, 2], [3], [4, 5]]),
        ([0.0, 1.0, 3.0, 6.0, 10.0, 15.0], [[0, 1], [2, 3], [4, 5]]),  # nowhere even: never averaged
        ([0.0, 0.2, 0.4, 0.8, 1.0], [[0, 1, 2], [3, 4]]),
        ([0.0, 1.0, 1.0, 2.0], [[0, 1, 2, 3]]),  # two at one place: several volumes, no gap
    ],
)
def test_runs_by_hand(heights, expected):
    assert runs(heights) == expected


@given(
    st.integers(3, 300), st.sampled_from([(0.2, 2), (0.33, 2), (0.5, 1), (0.625, 1), (1.25, 1), (5.0, 1)]),
    st.integers(0, 10_000),
)  # fmt: skip
def test_digits_never_cut_a_series(count, written, seed):
    step, digits = written
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=3)
    normal /= np.linalg.norm(normal)
    line = rng.uniform(-200, 200, 3) + step * np.arange(count)[:, None] * normal
    assert runs(np.round(line, digits) @ normal) == [list(range(count))]


@given(st.lists(st.floats(0.1, 20), min_size=2, max_size=40))
def test_every_run_lies_on_an_even_grid(gaps):
    heights = np.cumsum([0.0, *gaps])
    parts = runs(heights)
    assert sorted(index for part in parts for index in part) == list(range(len(heights)))
    for part in parts:
        even = np.linspace(heights[part[0]], heights[part[-1]], len(part))
        step = heights[part[1]] - heights[part[0]] if len(part) > 1 else 1.0
        assert np.abs(heights[part] - even).max() <= 2 * min(max(0.2, step / 10), step / 3) + 1e-9


def test_thousands_of_slices_are_cut_at_once():
    heights = np.concatenate([np.arange(3000), 3004 + np.arange(2000)])
    started = time.process_time()
    assert [len(part) for part in runs(heights)] == [3000, 2000]
    assert time.process_time() - started < 5


def cases(root):
    return {case.case_id: case for case in open_dataset("folder", root)}


def test_a_series_is_a_case_called_by_its_folder(tmp_path):
    series(tmp_path / "train/good/p1", VOLUME, [0, 0, 2.0])
    series(tmp_path / "test/stroke/p2", VOLUME, [0, 0, 2.0], PatientID="2")
    found = cases(tmp_path)
    assert list(found) == ["test/stroke/p2", "train/good/p1"]
    sick = found["test/stroke/p2"]
    assert (sick.label, sick.split, len(sick.images)) == (Label.ABNORMAL, Split.TEST, 6)
    np.testing.assert_array_equal(read_study(sick.images).array, VOLUME)


def test_a_patient_is_known_by_a_hash_of_the_id(tmp_path):
    for name, patient in (("a", "4711"), ("b", "4711"), ("c", "4712")):
        saved(tmp_path / f"{name}.dcm", radiograph(np.eye(9, dtype=np.uint8), PatientID=patient))
    patients = [case.patient_id for case in cases(tmp_path).values()]
    assert patients[0] == patients[1] != patients[2]
    assert not any("471" in patient for patient in patients)


def test_a_patient_cannot_be_found_by_trying_all_numbers(tmp_path):
    saved(tmp_path / "a.dcm", radiograph(np.eye(9, dtype=np.uint8), PatientID="4711"))
    (case,) = cases(tmp_path).values()
    assert case.patient_id not in {hashlib.sha256(str(n).encode()).hexdigest()[:16] for n in range(10_000)}
    saved(tmp_path / "b/c.dcm", radiograph(np.eye(9, dtype=np.uint8), PatientID="4711", StudyInstanceUID="9.9"))
    assert len({case.patient_id for case in cases(tmp_path).values()}) == 1  # of whatever study, in whatever folder


@pytest.mark.parametrize("empty", [{"PatientID": ""}, {"PatientID": None}])
def test_an_emptied_patient_id_is_replaced_by_the_study(tmp_path, empty):
    for number in range(4):
        for kind in ("T1", "T2"):
            study = {"StudyInstanceUID": f"1.{number}", "SeriesInstanceUID": f"1.{number}.{ord(kind[1])}", **empty}
            series(tmp_path / f"s{number}/{kind}", VOLUME[..., :2], [0, 0, 2.0], **study)
    saved(tmp_path / "s0/view.dcm", radiograph(np.eye(9, dtype=np.uint8), StudyInstanceUID="1.0", **empty))
    found = cases(tmp_path)
    assert len(found) == 9
    by_study = {(name[:2], case.patient_id) for name, case in found.items()}
    assert len(by_study) == len({patient for _, patient in by_study}) == 4
    assert not any("1." in patient for _, patient in by_study)
    by_folder = studies_in(tmp_path, tmp_path.rglob("*.dcm"))
    assert {case.patient_id for case in by_folder} == {patient for _, patient in by_study}


@pytest.mark.parametrize("places", [("a", "b", "c"), ("train/good/a", "train/good/b", "test/good/c")])
def test_one_patient_id_for_all_is_told(tmp_path, places):
    for number, place in enumerate(places):
        study = {"StudyInstanceUID": f"1.{number}", "SeriesInstanceUID": f"1.{number}.1"}
        series(tmp_path / place, VOLUME[..., :2], [0, 0, 2.0], PatientID="Anonymized", **study)
    with pytest.raises(LayoutError, match=r"All files share one patient id \(in DICOM the PatientID\)"):
        split(open_dataset("folder", tmp_path))


@pytest.mark.parametrize("other", [{"PatientName": "Roe^Jo"}, {"PatientBirthDate": "19510101"}])
@pytest.mark.parametrize("named", ["", "ANON"])
def test_two_patients_are_never_one_volume(tmp_path, named, other):
    for index in range(8):
        file = dicom(VOLUME[..., 0].copy(), ImagePositionPatient=[0, 0, index], PatientID=named)
        for keyword, value in other.items() if index > 3 else ():
            setattr(file, keyword, value)
        saved(tmp_path / f"p1/{index}.dcm", file)
    found = cases(tmp_path)
    if not named:
        assert [len(case.images) for case in found.values()] == [4, 4]
        return
    (case,) = found.values()
    with pytest.raises(ImageError, match=f"its {next(iter(other))} is another") as refused:
        read_study(case.images)
    assert "Roe" not in str(refused.value)
    assert "1951" not in str(refused.value)


def test_a_series_beside_its_conversion_and_at_the_root_has_a_name_of_its_own(tmp_path):
    paths = series(tmp_path / "p1", VOLUME, [0, 0, 2.0])
    assert list(cases(tmp_path / "p1")) == ["p1"]
    (tmp_path / "p1.nii.gz").write_bytes(b"")
    assert sorted(cases(tmp_path)) == ["p1.nii.gz", f"p1/{min(path.name for path in paths)}"]


def test_a_gap_divides_a_series(tmp_path):
    paths = series(tmp_path / "p1", VOLUME, [0, 0, 2.0])
    paths[3].unlink()
    parts = list(cases(tmp_path).values())
    assert sorted(len(case.images) for case in parts) == [2, 3]
    assert all("of 2 of a series with gaps" in case.remark for case in parts)


def test_series_in_one_folder_are_told_apart(tmp_path):
    series(tmp_path / "p1", VOLUME, [0, 0, 2.0])
    for index in range(4):
        file = dicom(VOLUME[..., 0].copy(), SeriesInstanceUID="9.9", ImagePositionPatient=[0, 0, index])
        saved(tmp_path / f"p1/z{index}.dcm", file)
    found = cases(tmp_path)
    assert {name: len(case.images) for name, case in found.items()} == {"p1/00": 6, "p1/z0": 4}


def test_two_spacings_are_two_volumes_each_on_its_own_grid(tmp_path):
    heights = [*range(0, 60, 5), *range(62, 100, 7)]
    for index, height in enumerate(heights):
        file = dicom(VOLUME[..., 0].copy(), ImagePositionPatient=[0, 0, height], InstanceNumber=index + 1)
        saved(tmp_path / f"p1/{index:02}.dcm", file)
    found = cases(tmp_path).values()
    assert [case.remark[:11] for case in found] == ["part 1 of 2", "part 2 of 2"]
    assert [read_study(case.images).spacing[2] for case in found] == [5, 7]


@pytest.mark.parametrize(
    "other",
    [
        {"PatientID": "9", "PatientName": "Roe^Jo", "StudyInstanceUID": "9.9"},
        {"StudyInstanceUID": "9.9"},
        {"FrameOfReferenceUID": "9.9"},
        {"Modality": "PT"},
    ],
)
def test_one_series_uid_does_not_join_what_does_not_belong_together(tmp_path, other):
    series(tmp_path / "p1", VOLUME, [0, 0, 2.0])
    series(tmp_path / "others", VOLUME[..., :4], [0, 0, 3.0], **other)
    for path in (tmp_path / "others").iterdir():
        path.rename(tmp_path / "p1" / f"z{path.name}")
    found = cases(tmp_path)
    assert {name: (len(case.images), case.remark) for name, case in found.items()} == {
        "p1/00": (6, ""),
        "p1/z00": (4, ""),
    }
    assert len({case.patient_id for case in found.values()}) == 1 + ("PatientID" in other)


def test_a_series_in_two_folders_says_that_there_is_more_of_it(tmp_path):
    for path in series(tmp_path / "p1/A", VOLUME, [0, 0, 2.0])[::2]:
        (tmp_path / "p1/B").mkdir(exist_ok=True)
        path.rename(tmp_path / "p1/B" / path.name)
    for folder in ("p2", "copy of p2"):
        series(tmp_path / folder, VOLUME, [0, 0, 2.0], PatientID="2")
    more = "more slices of its series lie in another folder"
    assert {name: case.remark for name, case in cases(tmp_path).items()} == {
        "copy of p2": "",
        "p1/A": more,
        "p1/B": more,
        "p2": "",
    }


NUMBERINGS = {
    "one echo after the other": lambda place, echo: 5 * echo + place + 1,
    "place by place": lambda place, echo: 2 * place + echo + 1,
    "the same twice": lambda place, echo: place + 1,
    "in turns": lambda place, echo: 2 * place + (echo + place) % 2 + 1,
    "none": lambda place, echo: None,
}


def two_echoes(folder, number, **told):
    for place in range(5):
        for echo in range(2):
            attributes = {keyword: values[echo] for keyword, values in told.items()}
            file = dicom(
                np.full((9, 9), 100 * (echo + 1), np.int16),
                ImagePositionPatient=[0, 0, 2 * place],
                InstanceNumber=number(place, echo),
                **attributes,
            )
            saved(folder / f"{file.SOPInstanceUID}.dcm", file)


@pytest.mark.parametrize("number", NUMBERINGS.values(), ids=NUMBERINGS)
@pytest.mark.parametrize(
    "told",
    [
        {"EchoTime": (10, 20)},
        {"EchoNumbers": (1, 2)},
        {"TemporalPositionIdentifier": (1, 2)},
        {"AcquisitionNumber": (1, 2)},
        {"ImageType": (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"])},
    ],
    ids=lambda told: next(iter(told)),
)
def test_volumes_at_the_same_places_are_told_apart_by_what_differs(tmp_path, number, told):
    two_echoes(tmp_path / "p1", number, **told)
    volumes = [read_study(case.images).array for case in cases(tmp_path).values()]
    assert [np.unique(volume).tolist() for volume in sorted(volumes, key=np.max)] == [[100], [200]]
    assert [volume.shape for volume in volumes] == [(9, 9, 5)] * 2


@pytest.mark.parametrize("numbering", NUMBERINGS)
def test_volumes_that_nothing_tells_apart_are_refused(tmp_path, numbering):
    two_echoes(tmp_path / "p1", NUMBERINGS[numbering])
    found = list(cases(tmp_path).values())
    if numbering == "one echo after the other":
        assert [np.unique(read_study(case.images).array).size for case in found] == [1, 1]
        return
    with pytest.raises(ImageError, match="lie at one place: one is a copy, or nothing told several volumes"):
        read_study(found[0].images)


@pytest.mark.parametrize("apart", [0.0004, 0.01, 0.3, 1.0])  # mm, of slices 2 mm from one another
@pytest.mark.parametrize("kind", ["AcquisitionNumber", "EchoTime"])
def test_acquisitions_at_nearly_the_same_places_are_two_volumes(tmp_path, kind, apart):
    for place in range(8):
        for one in range(2):
            position = [0, 0, 2 * place + apart * one]
            file = dicom(np.full((9, 9), one, np.int16), ImagePositionPatient=position, **{kind: 1 + one})
            saved(tmp_path / f"p1/{one}{place}.dcm", file)
    found = cases(tmp_path).values()
    assert [np.unique(read_study(case.images).array).tolist() for case in found] == [[0], [1]]
    assert [(len(case.images), case.remark) for case in found] == [(8, "")] * 2


def test_acquisitions_one_behind_the_other_are_no_volumes_of_their_own(tmp_path):
    """As a scanner writes that counts rotations; the slice that is missing is told."""
    for place in (0, 1, 2, 3, 4, 5, 7, 8):
        file = dicom(VOLUME[..., 0].copy(), ImagePositionPatient=[0, 0, place], AcquisitionNumber=1 + place // 3)
        saved(tmp_path / f"p1/{place}.dcm", file)
    assert [(len(case.images), case.remark[:11]) for case in cases(tmp_path).values()] == [
        (6, "part 1 of 2"),
        (2, "part 2 of 2"),
    ]


def test_what_numbers_every_file_or_halves_a_series_tells_no_volumes_apart(tmp_path):
    for place in range(4):
        for kind in "MP":
            file = dicom(
                np.full((9, 9), ord(kind), np.int16),
                ImagePositionPatient=[0, 0, 2 * place],
                ImageType=["ORIGINAL", "PRIMARY", kind],
                AcquisitionNumber=1 + place // 2,
                EchoTime=10 * place + ord(kind),
            )
            saved(tmp_path / f"p1/{place}{kind}.dcm", file)
    volumes = [read_study(case.images).array for case in cases(tmp_path).values()]
    assert [np.unique(volume).tolist() for volume in volumes] == [[ord("M")], [ord("P")]]


def test_two_echoes_in_one_series_are_two_volumes(tmp_path):
    for echo in range(2):
        for index in range(3):
            file = dicom(
                VOLUME[..., 3 * echo + index].copy(),
                ImagePositionPatient=[0, 0, index],
                InstanceNumber=1 + 3 * echo + index,
            )
            saved(tmp_path / f"p1/{echo}{index}.dcm", file)
    found = cases(tmp_path)
    assert [len(case.images) for case in found.values()] == [3, 3]
    np.testing.assert_array_equal(read_study(found["p1/10"].images).array, VOLUME[..., 3:])


def test_files_that_cannot_be_read_are_cases_of_their_own(tmp_path):
    series(tmp_path / "p1", VOLUME, [0, 0, 2.0])
    (tmp_path / "p1/broken.dcm").write_bytes(b"not DICOM")
    assert len(cases(tmp_path)["p1/broken"].images) == 1


@pytest.mark.parametrize(
    ("keyword", "kind", "value"),
    [
        ("InstanceNumber", "LO", "abc"),
        ("NumberOfFrames", "LO", "x"),
        ("ImagePositionPatient", "DS", [1.0, 2.0]),
        ("ImagePositionPatient", "LO", ["1", "a", "3"]),
        ("ImageOrientationPatient", "DS", [0.0] * 6),
    ],
)
def test_a_header_that_makes_no_sense_stops_nobody_else(tmp_path, keyword, kind, value):
    series(tmp_path / "p1", VOLUME, [0, 0, 2.0])
    odd = dicom(VOLUME[..., 0].copy(), ImagePositionPatient=[-10.0, -20.0, 42.0])
    odd[keyword] = pydicom.DataElement(keyword, kind, value)
    saved(tmp_path / "p1/odd.dcm", odd)
    assert sorted(len(case.images) for case in cases(tmp_path).values()) == [1, 6]


def test_minus_zero_is_zero(tmp_path):
    paths = series(tmp_path / "p1", VOLUME, [0, 0, 2.0])
    file = pydicom.dcmread(paths[2])
    file.ImageOrientationPatient = [1.0, -0.0, 0.0004, 0.0, 1.0, -0.0]
    file.save_as(paths[2])
    assert len(cases(tmp_path)["p1"].images) == 6


def test_objects_of_ours_and_others_that_are_no_images_are_left_out(tmp_path):
    series(tmp_path / "p1", VOLUME, [0, 0, 2.0])
    saved(tmp_path / "p1/map.dcm", dicom(VOLUME[..., 0].copy(), Manufacturer="Salus", SeriesInstanceUID="8"))
    saved(tmp_path / "p1/seg.dcm", dicom(VOLUME[..., 0].copy(), Modality="SEG", SeriesInstanceUID="9"))
    found = open_dataset("folder", tmp_path)
    assert [case.case_id for case in found] == ["p1"]
    assert dict(found.left_out) == {
        "p1/map.dcm": "an object that Salus made, no image of a patient",
        "p1/seg.dcm": "of kind SEG, no image of a patient",
    }
    for path in (tmp_path / "p1").glob("[0-9]*.dcm"):
        path.unlink()
    with pytest.raises(LayoutError, match=r"holds no image of a patient: p1/map\.dcm"):
        open_dataset("folder", tmp_path)


def test_metadata_and_masks_of_a_series_go_by_its_folder_or_a_file(tmp_path):
    for name in ("p0", "p1"):
        series(tmp_path / f"test/stroke/{name}", VOLUME, [0, 0, 2.0], PatientID="ANON")
    (tmp_path / "ground_truth/stroke").mkdir(parents=True)
    (tmp_path / "ground_truth/stroke/p0_mask.nii.gz").write_bytes(b"")
    (tmp_path / "metadata.csv").write_text("file,patient_id,site\ntest/stroke/p0,a,S0\ntest/stroke/p1/07.dcm,b,S1\n")
    found = cases(tmp_path)
    assert [(case.patient_id, case.groups["site"]) for case in found.values()] == [("a", "S0"), ("b", "S1")]
    assert [case.findings[0].mask is not None for case in found.values()] == [True, False]
    (tmp_path / "metadata.csv").write_text("file,patient_id\ntest/stroke/p1/00.dcm,a\ntest/stroke/p1/07.dcm,b\n")
    with pytest.raises(LayoutError, match="the rows of the files of 'test/stroke/p1' differ"):
        cases(tmp_path)


def test_the_real_series_has_a_gap(shared_data):
    found = cases(shared_data / "formats/dicom/ct_series")
    assert sorted(len(case.images) for case in found.values()) == [1, 3]
    volume = read_study(found["17136"].images)
    assert volume.array.shape == (16, 16, 3)
    np.testing.assert_allclose(volume.spacing, [0.488281, 0.488281, 1.25], rtol=1e-5)
    assert pydicom.dcmread(volume.origin.files[0]).InstanceNumber
