import shutil
from collections import Counter

import pytest

from salus.core import Label, Split
from salus.core.errors import LayoutError
from salus.datasets import open_dataset
from salus.datasets.bmad import INSIDE, SETS
from salus.io import read_study
from tests.datasets.layouts import ABNORMAL, HEALTHY, LAYOUTS


@pytest.fixture
def root(tmp_path):
    LAYOUTS["bmad"](tmp_path / "Brain")
    return tmp_path / "Brain"


def test_labels_splits_and_masks(root):
    dataset = open_dataset("bmad", root)
    assert Counter((case.split, case.label) for case in dataset) == {
        (Split.TRAIN, Label.NORMAL): HEALTHY - ABNORMAL,
        (Split.TEST, Label.NORMAL): ABNORMAL,
        (Split.TEST, Label.ABNORMAL): ABNORMAL,
    }
    sick = dataset.only(label=Label.ABNORMAL)
    assert sick[0].case_id == "test/Ungood/00100_60"
    (finding,) = sick[0].findings
    assert finding.name == "Ungood"
    assert finding.mask.path == root / "test/Ungood/label/00100_60.png"


def test_a_tenth_of_white_is_inside_a_mask_and_less_is_not(root):
    (finding,) = open_dataset("bmad", root).only(label=Label.ABNORMAL)[0].findings
    mask = read_study([finding.mask]).array
    assert (mask > finding.above).sum() == 10 * 10  # 255 and 26, but not 25
    assert 25 / 255 < 0.1 <= 26 / 255
    assert finding.above == INSIDE


def test_slices_of_brain_share_their_patient(root):
    dataset = open_dataset("bmad", root)
    assert len({case.patient_id for case in dataset}) == (HEALTHY + ABNORMAL) // 2
    assert dataset.only(label=Label.ABNORMAL)[0].patient_id == "00100"


def test_a_training_slice_of_a_patient_in_the_test_is_left_out(root):
    (root / "train/good/img/00100_99.png").touch()
    dataset = open_dataset("bmad", root)
    assert ("train/good/00100_99", "a training image of a patient in the test") in dataset.left_out
    assert len(dataset.only(split=Split.TRAIN)) == HEALTHY - ABNORMAL


@pytest.mark.parametrize("name", ["valid", "val"])
def test_the_valid_part_is_left_out_with_the_reason(root, name):
    (root / "valid").rename(root / name)
    dataset = open_dataset("bmad", root)
    assert dict(dataset.left_out).keys() == {f"{name}/Ungood/00201_60", f"{name}/good/00200_60"}
    assert all("holds abnormal images" in reason for _, reason in dataset.left_out)


def test_a_set_without_pixel_labels_has_its_images_directly_in_the_folders(root):
    for folder in [root / "train/good", root / "test/good", root / "test/Ungood"]:
        shutil.rmtree(folder / "label", ignore_errors=True)
        for file in (folder / "img").iterdir():
            file.rename(folder / file.name)
        (folder / "img").rmdir()
    dataset = open_dataset("bmad", root)
    assert len(dataset) == HEALTHY + ABNORMAL
    assert {finding.mask for case in dataset for finding in case.findings} == {None}


def test_other_spellings_of_the_folders(root):
    (root / "test/Ungood/label").rename(root / "test/Ungood/anomaly_mask")
    (root / "test/Ungood").rename(root / "test/ungood")
    sick = open_dataset("bmad", root).only(label=Label.ABNORMAL)
    assert len(sick) == ABNORMAL
    assert all(case.findings[0].mask is not None for case in sick)


def test_counts_go_by_the_name_of_the_folder(root):
    assert open_dataset("bmad", root).notes == (
        "8 healthy training images, published: 7,500",
        "4 healthy test images, published: 640",
        "4 abnormal test images, published: 3,075",
        "2 images in the valid part, published: 83",
    )
    liver = root.rename(root.with_name("Liver_AD"))
    assert "8 healthy training images, published: 1,542" in open_dataset("bmad", liver).notes
    other = liver.rename(root.with_name("mine"))
    assert open_dataset("bmad", other).notes[0].startswith("'mine' is the name of none of the sets")


def test_good_and_ungood_add_up_to_the_printed_sizes_of_the_test_parts():
    printed = {
        "brain": 3_715,
        "liver": 1_493,
        "retina_resc": 1_805,
        "retina_oct2017": 968,
        "chest": 17_194,
        "histopathology": 1_997,
    }
    assert {names[0]: good + ungood for names, (_, good, ungood, _) in SETS} == printed


@pytest.mark.parametrize("part", ["train", "test/good", "test/Ungood"])
def test_half_a_download_is_refused(root, part):
    shutil.rmtree(root / part)
    with pytest.raises(LayoutError, match=rf"holds no {part}.*Expected train/good, test/good"):
        open_dataset("bmad", root)
