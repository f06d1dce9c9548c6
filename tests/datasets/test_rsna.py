import json
from collections import Counter

import pytest

from salus.core import Label, Split
from salus.core.errors import LayoutError
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from tests.datasets.layouts import ABNORMAL, HEALTHY, LAYOUTS
from tests.datasets.layouts.rsna import mapping, patient

CLASSES, BOXES = "stage_2_detailed_class_info.csv", "stage_2_train_labels.csv"


@pytest.fixture
def root(tmp_path):
    LAYOUTS["rsna"](tmp_path)
    return tmp_path


def replace(root, name, old, new):
    path = root / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def case(root, number):
    return next(case for case in open_dataset("rsna", root) if case.case_id == patient(number))


def test_labels_boxes_and_what_is_left_out(root):
    dataset = open_dataset("rsna", root)
    assert Counter(c.label for c in dataset) == {Label.NORMAL: HEALTHY, Label.ABNORMAL: ABNORMAL, Label.UNKNOWN: 1}
    assert [c.case_id for c in dataset] == sorted(c.case_id for c in dataset)
    sick = dataset.only(label=Label.ABNORMAL)
    assert {c.split for c in sick} == {Split.TEST}
    assert [f.box for f in sick[0].findings] == [(4.0, 5.0, 6.0, 7.0), (12.0, 12.0, 8.0, 8.0)]
    assert {f.name for c in sick for f in c.findings} == {"Lung Opacity"}
    assert dataset.left_out == ((patient(301), "of the challenge's test, without a label"),)
    assert len(dataset.only(split=Split.TEST, label=Label.NORMAL)) == round(HEALTHY * 1_000 / 8_851)


def test_not_normal_is_neither_learned_from_nor_tested(root):
    assert case(root, 201).label == Label.UNKNOWN
    learned = {c.case_id: c for c in split(open_dataset("rsna", root))}
    assert learned[patient(201)].split == Split.NONE


def test_a_class_nobody_knows_is_unknown_and_not_normal(root):
    replace(root, CLASSES, f"{patient(1)},Normal", f"{patient(1)},normal?")
    assert case(root, 1).label == Label.UNKNOWN


def test_a_box_that_is_listed_twice_is_one_and_one_without_area_has_no_place(root):
    path = root / BOXES
    path.write_text(path.read_text() + f"{patient(101)},4,5,6,7,1\n{patient(101)},4,5,0,7,1\n")
    assert [f.box for f in case(root, 101).findings] == [(4.0, 5.0, 6.0, 7.0), (12.0, 12.0, 8.0, 8.0)]
    replace(root, BOXES, f"{patient(102)},12.0,12.0,8.0,8.0,1", f"{patient(102)},12.0,12.0,8.0,0,1")
    assert [(f.name, f.box) for f in case(root, 102).findings] == [("Lung Opacity", None)]
    assert case(root, 102).label == Label.ABNORMAL


def test_tables_that_contradict_each_other_are_left_out(root):
    replace(root, CLASSES, f"{patient(101)},Lung Opacity", f"{patient(101)},Normal")
    replace(root, BOXES, f"{patient(102)},12.0,12.0,8.0,8.0,1", f"{patient(102)},,,,,0")
    with (root / CLASSES).open("a") as file:
        file.write(f"{patient(103)},Normal\n")
    left_out = dict(open_dataset("rsna", root).left_out)
    assert left_out[patient(101)] == left_out[patient(102)] == "its class and its Target contradict each other"
    assert left_out[patient(103)] == f"rows of different classes in {CLASSES}"


def test_half_a_download_is_told(root):
    (root / "stage_2_train_images" / f"{patient(1)}.dcm").unlink()
    replace(root, CLASSES, f"{patient(2)},Normal\n", "")
    dataset = open_dataset("rsna", root)
    left_out = dict(dataset.left_out)
    assert left_out[patient(1)] == "no image"
    assert left_out[patient(2)] == f"no row in {CLASSES}"
    assert "11 images of class Normal, published: 8,851" in dataset.notes


def test_the_mapping_makes_patients_of_images_and_keeps_each_in_one_split(root):
    assert any("without pneumonia-challenge" in note for note in open_dataset("rsna", root).notes)
    mapping(root, {1: "00000013_005.png", 2: "00000013_007.png", 101: "00000013_011.png", 3: "00000014_000.png"})
    dataset = open_dataset("rsna", root)
    assert not any("without pneumonia-challenge" in note for note in dataset.notes)
    of = {c.case_id: c for c in dataset}
    assert {of[patient(n)].patient_id for n in (1, 2, 101)} == {"00000013"}
    assert {of[patient(n)].split for n in (1, 2, 101)} == {Split.TEST}  # one of them shows an opacity
    assert of[patient(3)].patient_id == "00000014"
    assert of[patient(4)].patient_id == patient(4)  # not in the file


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / CLASSES).unlink(), f"holds no {CLASSES}. Expected stage_2_train_images"),
        (lambda root: (root / "stage_2_train_images").rename(root / "images"), "holds no stage_2_train_images"),
        (lambda root: replace(root, BOXES, "Target", "target"), "no column 'Target'. Did you mean 'target'"),
        (lambda root: replace(root, CLASSES, "class", "label"), "no column 'class'"),
        (lambda root: replace(root, BOXES, "4.0,5.0,6.0", "4.0,left,6.0"), f"y 'left', .* of '{patient(101)}'"),
        (lambda root: mapping(root, {1: None}), "mappings_2018.json is not a list of .*Download it again"),
    ],
)
def test_another_folder_is_refused(root, damage, message):
    damage(root)
    with pytest.raises(LayoutError, match=message):
        open_dataset("rsna", root)


@pytest.mark.slow
def test_the_images_of_med_ad_are_counted_as_published(shared_data, tmp_path):
    lists = json.loads((shared_data / "annotations/med_ad/RSNA/data.json").read_text())
    normal, opaque = ([name.removesuffix(".png") for name in names_of(lists, label)] for label in "01")
    (tmp_path / "stage_2_train_images").mkdir()
    for name in (*normal, *opaque):
        (tmp_path / "stage_2_train_images" / f"{name}.dcm").touch()
    rows = [f"{name},Normal" for name in normal] + [f"{name},Lung Opacity" for name in opaque]
    (tmp_path / CLASSES).write_text("\n".join(["patientId,class", *rows]))
    rows = [f"{name},,,,,0" for name in normal] + [f"{name},1,1,1,1,1" for name in opaque]
    (tmp_path / BOXES).write_text("\n".join(["patientId,x,y,width,height,Target", *rows]))
    dataset = open_dataset("rsna", tmp_path)
    assert not dataset.left_out
    assert not [note for note in dataset.notes if "class Normal," in note or "class Lung Opacity" in note]
    assert Counter((c.split, c.label) for c in dataset) == {
        (Split.NONE, Label.NORMAL): 7_851,
        (Split.TEST, Label.NORMAL): 1_000,
        (Split.TEST, Label.ABNORMAL): 6_012,
    }


def names_of(lists, label):
    return lists["train"].get(label, []) + lists["train"]["unlabeled"][label] + lists["test"][label]
