import json
import shutil
from collections import Counter

import pytest

from salus.core import Label, Split
from salus.core.errors import LayoutError
from salus.datasets import DATASETS, open_dataset
from salus.io import read_study
from tests.datasets.layouts import ABNORMAL, HEALTHY, LAYOUTS
from tests.datasets.layouts.medianomaly import write_brats2021, write_camelyon16

EXPECTED = {
    (Split.TRAIN, Label.NORMAL): HEALTHY - ABNORMAL,
    (Split.TEST, Label.NORMAL): ABNORMAL,
    (Split.TEST, Label.ABNORMAL): ABNORMAL,
}


@pytest.fixture
def root(tmp_path):
    LAYOUTS["medianomaly"](tmp_path / "LAG")
    return tmp_path / "LAG"


def parts(dataset):
    return Counter((case.split, case.label) for case in dataset)


def rewritten(root, change):
    lists = json.loads((root / "data.json").read_text())
    change(lists)
    (root / "data.json").write_text(json.dumps(lists))


def test_a_list_is_read_without_its_unlabelled_part(root):
    dataset = open_dataset("medianomaly", root)
    assert parts(dataset) == EXPECTED
    assert {name for name, _ in dataset.left_out} == {"3001.png", "3002.png"}
    assert "unlabelled part" in dataset.left_out[0][1]
    assert {f.name for case in dataset for f in case.findings} == {"glaucoma"}
    assert dataset.notes[0] == "8 healthy training images, published: 1,500"


def test_a_list_without_an_unlabelled_part_is_read_too(root):
    rewritten(root, lambda lists: lists["train"].pop("unlabeled"))
    dataset = open_dataset("medianomaly", root)
    assert parts(dataset) == EXPECTED
    assert {reason for _, reason in dataset.left_out} == {"not in data.json"}


def test_lag_and_camelyon16_are_names_of_the_same_reader(root):
    assert DATASETS["lag"] == DATASETS["camelyon16"] == DATASETS["medianomaly"]
    assert [case.case_id for case in open_dataset("lag", root)] == [
        case.case_id for case in open_dataset("medianomaly", root)
    ]


def test_camelyon16_is_told_by_its_folders(tmp_path):
    root = tmp_path / "Camelyon16"
    write_camelyon16(root)
    dataset = open_dataset("camelyon16", root)
    assert parts(dataset) == EXPECTED  # although patches of three folders share their names
    assert {f.name for case in dataset for f in case.findings} == {"metastasis"}
    assert "4 healthy test images, published: 1,120" in dataset.notes


def test_brats2021_has_masks_and_patients(tmp_path):
    root = tmp_path / "BraTS2021"
    write_brats2021(root)
    dataset = open_dataset("medianomaly", root)
    assert parts(dataset) == EXPECTED
    sick = dataset.only(label=Label.ABNORMAL)[0]
    assert (sick.case_id, sick.patient_id) == ("test/tumor/BraTS2021_00100_flair_60", "BraTS2021_00100")
    (finding,) = sick.findings
    assert finding.mask.path.name == "BraTS2021_00100_seg_60.png"
    assert (read_study([finding.mask]).array > finding.above).sum() == 8 * 8
    assert len({case.patient_id for case in dataset}) == (HEALTHY + ABNORMAL) // 2


def test_a_training_slice_of_a_patient_in_the_test_is_left_out(tmp_path):
    write_brats2021(tmp_path)
    (tmp_path / "train/BraTS2021_00100_flair_99.png").touch()
    dataset = open_dataset("medianomaly", tmp_path)
    assert dataset.left_out == (("train/BraTS2021_00100_flair_99", "a training image of a patient in the test"),)


def test_half_a_download_is_told(root):
    (root / "images/0001.png").unlink()
    dataset = open_dataset("medianomaly", root)
    assert ("0001.png", "no image") in dataset.left_out
    assert "7 healthy training images, published: 1,500" in dataset.notes


def test_an_image_named_twice_is_in_the_test_and_abnormal_rather_than_not(root):
    def named_twice(lists):
        lists["train"]["0"].append("0012.png")
        lists["test"]["0"].append("2001.png")

    rewritten(root, named_twice)
    dataset = open_dataset("medianomaly", root)
    assert parts(dataset) == EXPECTED
    assert [name for name, reason in dataset.left_out if "second time" in reason] == ["2001.png", "0012.png"]


def test_a_folder_of_another_name_has_no_published_counts(root):
    dataset = open_dataset("medianomaly", root.rename(root.with_name("mine")))
    assert dataset.notes == (
        "'mine' is the name of none of the sets, so there are no published counts to compare with",
    )
    assert {f.name for case in dataset for f in case.findings} == {"abnormal"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "data.json").unlink(), r"holds no data.json or train. Expected the folder of one set"),
        (lambda root: shutil.rmtree(root / "images"), "holds no images"),
        (lambda root: rewritten(root, lambda lists: lists.pop("test")), r"is not of the form .*KeyError 'test'"),
        (lambda root: rewritten(root, lambda lists: lists["test"].pop("1")), r"is not of the form .*KeyError '1'"),
        (lambda root: rewritten(root, lambda lists: lists["test"]["1"].append(7)), "a file name is no text"),
        (lambda root: (root / "data.json").write_text("[]"), "is not of the form"),
        (lambda root: (root / "data.json").write_bytes(b"\xff{"), "is not of the form"),
    ],
)
def test_another_folder_is_refused(root, damage, message):
    damage(root)
    with pytest.raises(LayoutError, match=message):
        open_dataset("medianomaly", root)


def test_a_folder_of_all_sets_is_refused_and_told_what_it_holds(root):
    with pytest.raises(LayoutError, match="it holds: LAG"):
        open_dataset("medianomaly", root.parent)


@pytest.mark.parametrize(
    ("name", "unlabelled"),
    [("RSNA", (4_000, 5_012)), ("VinCXR", (5_606, 3_394)), ("BrainTumor", (400, 600)), ("LAG", (832, 900))],
)
def test_the_published_counts_come_out_of_the_real_lists(shared_data, tmp_path, name, unlabelled):
    root = tmp_path / name
    (root / "images").mkdir(parents=True)
    shutil.copy(shared_data / "annotations/med_ad" / name / "data.json", root)
    lists = json.loads((root / "data.json").read_text())
    left = lists["train"]["unlabeled"]
    for image in [*lists["train"]["0"], *left["0"], *left["1"], *lists["test"]["0"], *lists["test"]["1"]]:
        (root / "images" / image).touch()  # a reader opens no pixel
    dataset = open_dataset("medianomaly", root)
    assert dataset.notes == ()
    assert (len(left["0"]), len(left["1"])) == unlabelled
    assert len(dataset.left_out) == sum(unlabelled)
    learned, tested = ({c.case_id for c in dataset.only(split=split)} for split in (Split.TRAIN, Split.TEST))
    assert not learned & tested
    assert not (learned | tested) & {image.rpartition(".")[0] for names in left.values() for image in names}
