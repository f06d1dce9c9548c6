import csv
import shutil
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest

from salus.core import Label, Split
from salus.core.errors import LayoutError
from salus.datasets import open_dataset
from salus.datasets.fastmri import PUBLISHED, RA_CLASSES, T1, USUAL, fastmri, ra_test, ra_training
from salus.datasets.protocol import split
from salus.io import read_study
from tests.datasets.layouts import ABNORMAL, HEALTHY, LAYOUTS

# Protocol page C1.2
LOCAL = {
    "Absent septum pellucidum": 3, "Craniectomy": 32, "Craniectomy with Cranioplasty": 43, "Craniotomy": 1_025,
    "Dural thickening": 351, "Edema": 369, "Encephalomalacia": 161, "Enlarged ventricles": 300,
    "Extra-axial mass": 104, "Intraventricular substance": 8, "Lacunar infarct": 113, "Likely cysts": 17, "Mass": 380,
    "Nonspecific lesion": 757, "Nonspecific white matter lesion": 1_826, "Normal variant": 73,
    "Paranasal sinus opacification": 40, "Pineal cyst": 2, "Possible artifact": 505, "Posttreatment change": 1_262,
    "Resection cavity": 199,
}  # fmt: skip
STUDY = {
    "Normal for age": 371, "Global label: Small vessel chronic white matter ischemic change": 221,
    "Motion artifact": 33, "Extra-axial collection": 9, "Colpocephaly": 2, "Global white matter disease": 2,
    "Innumerable bilateral focal brain lesions": 2, "Possible demyelinating disease": 2, "Global Ischemia": 1,
}  # fmt: skip
HEALTHY_ONE, ILL, UNCLEAR = f"{T1}202_6000001", f"{T1}201_6000051", f"{T1}206_2060091"


@pytest.fixture
def root(tmp_path):
    LAYOUTS["fastmri"](tmp_path)
    return tmp_path


@pytest.fixture
def real(shared_data, tmp_path):
    """The real annotations, beside empty files for every listed volume: nothing opens them."""
    for name in ("brain.csv", "brain_file_list.csv"):
        shutil.copy(shared_data / "annotations/fastmri_plus" / name, tmp_path)
    for volume in (tmp_path / "brain_file_list.csv").read_text().split():
        (tmp_path / f"{volume}.h5").touch()
    return tmp_path


@pytest.fixture
def lists(shared_data):
    return shared_data / "annotations/ra_splits/fastMRI"


def annotate(root, *rows):
    with (root / "annotations/brain.csv").open("a") as file:
        file.writelines(f"{row}\n" for row in rows)


def of(dataset, volume):
    return [case for case in dataset if case.patient_id == volume]


def test_labels_findings_and_what_is_left_out(root):
    dataset = open_dataset("fastmri", root)
    assert Counter(case.label for case in dataset) == {
        Label.NORMAL: HEALTHY,
        Label.ABNORMAL: 2 * ABNORMAL,
        Label.UNKNOWN: 1,
    }
    assert dict(dataset.left_out) == {
        "file_brain_AXFLAIR_200_6002425": "not a T1-weighted brain without contrast agent",
        "file_brain_AXT1_206_2060092": "not read for fastMRI+, so unknown",
    }
    assert [case.case_id for case in of(dataset, ILL)] == [f"{ILL}/02", f"{ILL}/03"]
    for case in of(dataset, ILL):  # and not the artefact
        assert [(f.name, f.box) for f in case.findings] == [("Nonspecific lesion", (12.0, 12.0, 8.0, 8.0))]
        assert case.split == Split.TEST
    assert of(dataset, HEALTHY_ONE)[0].images[0].index == USUAL
    unknown = dataset.only(label=Label.UNKNOWN)[0]
    assert unknown.groups["study_level"].startswith("Global label: Small vessel")
    assert unknown.groups["system"] == "206"


def test_healthy_volumes_are_divided_and_unknown_ones_never_learned_from(root):
    dataset = split(open_dataset("fastmri", root))
    assert len(dataset.only(split=Split.TEST, label=Label.NORMAL)) == round(0.17 * HEALTHY)
    assert {case.label for case in dataset.only(split=Split.TRAIN)} == {Label.NORMAL}
    assert dataset.only(label=Label.UNKNOWN)[0].split == Split.NONE


@pytest.mark.parametrize(
    ("rows", "label"),
    [
        (["0,Yes,,,,,Normal for age"], Label.NORMAL),
        (["0,Yes,,,,,Normal for age", "4,No,1,1,2,2,Normal variant"], Label.NORMAL),
        (["0,Yes,,,,,Normal for age", "4,No,1,1,2,2,Possible artifact"], Label.UNKNOWN),
        (["4,No,1,1,2,2,Normal variant"], Label.UNKNOWN),
        (["0,Yes,,,,,Motion artifact"], Label.UNKNOWN),
        (["0,Yes,,,,,Normal for age", "4,No,1,1,0,2,Mass"], Label.UNKNOWN),
        (["0,Yes,,,,,Normal for age", "4,No,1,1,2,2,Mass"], Label.ABNORMAL),
        ([], Label.UNKNOWN),  # read, nothing found, but nobody said normal
    ],
)
def test_normal_is_what_was_called_so_and_has_no_box(root, rows, label):
    path = root / "annotations/brain.csv"
    kept = [line for line in path.read_text().splitlines() if not line.startswith(HEALTHY_ONE)]
    path.write_text("\n".join([*kept, *(f"{HEALTHY_ONE},{row}" for row in rows)]) + "\n")
    assert [case.label for case in of(open_dataset("fastmri", root), HEALTHY_ONE)] == [label]


def test_an_artefact_beside_a_finding_is_neither_counted_nor_healthy(root):
    annotate(root, f"{ILL},2,No,91,132,7,6,Mass")
    before = of(open_dataset("fastmri", root), ILL)
    annotate(root, f"{ILL},2,No,5,6,7,8,Possible artifact")
    annotate(root, f"{ILL},2,No,5,6,0,8,Possible artifact")
    after = of(open_dataset("fastmri", root), ILL)
    assert [case.findings for case in after] == [case.findings for case in before]
    boxes = {case.case_id: [(one.name, one.box) for one in case.uncounted] for case in after}
    assert boxes[f"{ILL}/02"] == [("Possible artifact", (5, 6, 7, 8))]
    assert sum(map(len, boxes.values())) == 1 + sum(len(case.uncounted) for case in before)


def test_a_box_of_protocol_d8_lies_where_the_annotator_saw_it(root):
    stored = np.zeros((5, 320, 260), dtype=np.float32)  # not square
    stored[2, 182:188, 91:98] = 1
    with h5py.File(root / f"brain_multicoil_train_batch_1/{ILL}.h5", "w") as file:
        file["reconstruction_rss"] = stored
    annotate(root, f"{ILL},2,No,91,132,7,6,Mass")
    case = of(open_dataset("fastmri", root), ILL)[0]
    x, y, width, height = (int(side) for side in case.findings[-1].box)
    picture = read_study(case.images).array
    assert (picture[y : y + height, x : x + width] == 1).all()
    assert picture.sum() == width * height


def test_a_second_equal_row_and_a_box_without_area_are_left_out(root):
    annotate(root, f"{ILL},3,No,12,12,8,8,Nonspecific lesion", f"{ILL},4,No,5,5,3,0,Mass")
    dataset = open_dataset("fastmri", root)
    assert (f"{ILL}, slice 3, Nonspecific lesion", "a second equal row in brain.csv") in dataset.left_out
    assert (f"{ILL}, slice 4, Mass", "a box without area") in dataset.left_out
    assert [len(case.findings) for case in of(dataset, ILL)] == [1, 1]


def test_half_a_download_is_told(root):
    shutil.rmtree(root / "brain_multicoil_train_batch_1")
    dataset = open_dataset("fastmri", root)
    missing = [name for name, reason in dataset.left_out if reason == "no image"]
    assert HEALTHY_ONE in missing
    there = HEALTHY + ABNORMAL + 1 - len(missing)
    assert f"{there} of them with an image, published: 340" in dataset.notes


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: shutil.rmtree(root / "annotations"),
            r"holds no brain_file_list.csv or .*Expected file_brain_AXT1",
        ),
        (lambda root: rename(root, "study_level", "studylevel"), "no column 'study_level'. Did you mean 'studylevel'"),
        (lambda root: annotate(root, f"{ILL},2,No,1,2,3,,Mass"), f"'{ILL},2,No,1,2,3,,Mass' is no row of fastMRI"),
        (lambda root: annotate(root, f"{ILL},2,Perhaps,1,2,3,4,Mass"), "is no row of fastMRI"),
        (
            lambda root: (root / "annotations/brain_file_list.csv").write_bytes(b"\xff\xfe\x00"),
            "is no name of a volume",
        ),
        (lambda root: shutil.copy(*twice(root)), "lies in .* and in .*: keep one"),
    ],
)
def test_another_folder_is_refused(root, damage, message):
    damage(root)
    with pytest.raises(LayoutError, match=message):
        open_dataset("fastmri", root)


def rename(root, old, new):
    path = root / "annotations/brain.csv"
    path.write_text(path.read_text().replace(old, new))


def twice(root):
    return root / f"brain_multicoil_train_batch_1/{ILL}.h5", root / f"{ILL}.h5"


def test_the_published_counts_come_out_of_the_real_tables(real):
    dataset = fastmri(real)
    assert dataset.notes == ()
    assert dict(Counter(reason for _, reason in dataset.left_out)) == {
        "not a T1-weighted brain without contrast agent": 1_001 - PUBLISHED["T1 volumes listed"],
        "a second equal row in brain.csv": 1,
        "a box without area": 2,
    }
    volumes = Counter({case.patient_id: case.label for case in dataset}.values())
    assert volumes == {Label.NORMAL: 173, Label.ABNORMAL: 124, Label.UNKNOWN: 43}
    assert len(dataset.only(label=Label.ABNORMAL)) == 1_060
    assert len(dataset.only(label=Label.NORMAL, split=Split.TEST)) == 29
    boxes = Counter(finding.name for case in dataset for finding in case.findings)
    assert boxes.total() == 1_895
    named = ("Mass", "Craniotomy", "Edema", "Resection cavity", "Extra-axial mass")
    assert [boxes[name] for name in named] == [203, 324, 165, 66, 49]
    assert boxes["Posttreatment change"] == 558 - 1  # one has no area


def test_labels_of_the_real_table_are_those_of_the_protocol_page(shared_data):
    with (shared_data / "annotations/fastmri_plus/brain.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (len(rows), sum(LOCAL.values()), sum(STUDY.values())) == (8_213, 7_570, 643)
    for level, counts in {"No": LOCAL, "Yes": STUDY}.items():
        assert Counter(row["label"] for row in rows if row["study_level"] == level) == counts


def test_ras_test_comes_out_of_its_lists(real, lists):
    dataset = ra_test(real, lists)
    assert dataset.notes == ()
    sick = dataset.only(label=Label.ABNORMAL)
    boxes = Counter(finding.name for case in sick for finding in case.findings)
    assert (boxes.total(), set(boxes), len(sick)) == (171, set(RA_CLASSES), 92)
    assert [boxes[name] for name in ("posttreatment", "mass_all", "lesions", "wml")] == [44, 26, 22, 5]
    assert len(dataset.only(label=Label.NORMAL)) == 30
    assert {case.split for case in dataset} == {Split.TEST}
    assert len(dataset.left_out) == 5  # 97 volumes with artefacts, 92 without


def test_ras_slices_are_those_of_the_index_that_was_derived_independently(real, lists):
    with (lists.parent / "fastmri_test_index.csv").open(newline="") as file:
        index = list(csv.DictReader(file))
    rows = [row for row in index if row["class"] != "artefacts"]
    assert (len(index), len(rows), len({row["file"] for row in rows})) == (187, 171, 92)
    expected = Counter((row["file"], int(row["slice_suggested"]), row["class"]) for row in rows)
    sick = ra_test(real, lists).only(label=Label.ABNORMAL)
    found = Counter((case.patient_id, case.images[0].index, finding.name) for case in sick for finding in case.findings)
    assert found == expected


def test_ra_learned_from_581_people_of_ixi_and_130_of_fastmri(real, lists):
    people = ra_training(lists)
    assert len(people) == len(set(people)) == 711
    assert Counter(person[:3] for person in people) == {"IXI": 581, "fil": 130}
    label = {case.patient_id: case.label for case in fastmri(real)}
    ours = Counter(label[person] for person in people if person in label)
    assert ours == {Label.NORMAL: 126, Label.UNKNOWN: 4}  # four normal variants that nobody called normal for age
    assert set(people).isdisjoint(case.patient_id for case in ra_test(real, lists))


def write_lists(folder: Path, **content: str) -> Path:
    folder.mkdir()
    for name in (*(f"{name}_ann" for name in (*RA_CLASSES, "artefacts")), "normal_test", "ixi_normal_train"):
        lines = ["filename", *(f"./data/{line}.png" for line in content.get(name, "").split())]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_ras_slice_fits_the_places_of_all_labels_and_is_near_3(root):
    annotate(root, f"{ILL},1,No,1,1,4,4,Mass", f"{ILL},4,No,2,2,5,5,Mass")
    lists = write_lists(root / "lists", mass_all_ann=f"{ILL}_mass_0", normal_test=HEALTHY_ONE)
    dataset = ra_test(root, lists)
    assert [case.case_id for case in dataset] == [f"{ILL}/04", f"{HEALTHY_ONE}/03"]
    assert [(f.name, f.box) for f in dataset[0].findings] == [("mass_all", (2.0, 2.0, 5.0, 5.0))]
    assert "1 boxes, published: 171" in dataset.notes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mass_all_ann": f"{ILL}_mass_0"}, "no slice in brain.csv has the boxes"),
        ({"mass_all_ann": "mask_7"}, "'mask_7' is not '<volume>_<label>_<number>'"),
        ({"ixi_normal_train": "patient_7"}, "'patient_7' is of neither IXI nor fastMRI"),
    ],
)
def test_other_lists_are_refused(root, content, message):
    lists = write_lists(root / "lists", **content)
    with pytest.raises(LayoutError, match=message):
        ra_training(lists) if "ixi_normal_train" in content else ra_test(root, lists)
    (lists / "ixi_normal_train.csv").unlink()
    with pytest.raises(LayoutError, match=r"ixi_normal_train.csv cannot be read"):
        ra_training(lists)
