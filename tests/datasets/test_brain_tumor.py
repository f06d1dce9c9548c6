import shutil
from collections import Counter

import pytest

from salus.core import Label, Split
from salus.core.errors import LayoutError
from salus.datasets import open_dataset
from salus.datasets.brain_tumor import PUBLISHED
from salus.io import read_study
from tests.datasets.layouts import ABNORMAL, HEALTHY, LAYOUTS


@pytest.fixture
def root(tmp_path):
    LAYOUTS["brain-tumor"](tmp_path)
    return tmp_path


def test_labels_splits_and_what_is_left_out(root):
    dataset = open_dataset("brain-tumor", root)
    assert Counter((case.split, case.label) for case in dataset) == {
        (Split.TRAIN, Label.NORMAL): HEALTHY - ABNORMAL,
        (Split.TEST, Label.NORMAL): ABNORMAL,
        (Split.TEST, Label.ABNORMAL): ABNORMAL,
    }
    assert dataset.left_out == (("Training/glioma/Tr-gl_0010", "a tumour in the training part"),)
    found = Counter(finding.name for case in dataset for finding in case.findings)
    assert found == {"glioma": 2, "meningioma": 1, "pituitary": 1}


def test_the_first_ten_names_of_a_class_are_spelled_otherwise_and_read_alike(root):
    ids = [case.case_id for case in open_dataset("brain-tumor", root)]
    assert "Training/notumor/Tr-noTr_0000" in ids
    assert "Testing/notumor/Te-no_0010" in ids
    assert ids[:8] == sorted(ids[:8])


def test_jpegs_of_three_channels_are_read_as_grey(root):
    grey, colour = open_dataset("brain-tumor", root)[1:3], open_dataset("brain-tumor", root)[0]
    assert read_study(colour.images).array.shape == read_study(grey[0].images).array.shape == (32, 32)


def test_a_folder_of_another_name_is_never_healthy(root):
    (root / "Testing/no_tumor").mkdir()
    shutil.copy(root / "Testing/notumor/Te-no_0010.jpg", root / "Testing/no_tumor")
    dataset = open_dataset("brain-tumor", root)
    assert ("Testing/no_tumor/Te-no_0010", "in a folder that is none of the four classes") in dataset.left_out
    assert len(dataset) == HEALTHY + ABNORMAL


def test_half_a_download_is_told(root):
    shutil.rmtree(root / "Testing/pituitary")
    notes = open_dataset("brain-tumor", root).notes
    assert "0 images in Testing/pituitary, published: 300" in notes
    assert "8 images in Training/notumor, published: 1,595" in notes
    assert sum(PUBLISHED.values()) == 7_023


def test_another_folder_is_refused(root):
    (root / "Testing").rename(root / "testing_set")
    with pytest.raises(LayoutError, match=r"holds no Testing/notumor. Expected .*it holds: Training, testing_set"):
        open_dataset("brain-tumor", root)
