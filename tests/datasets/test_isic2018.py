import shutil
from collections import Counter

import pytest

from salus.core import Label, Split
from salus.core.errors import LayoutError
from salus.datasets import open_dataset
from salus.io import read_study
from tests.datasets.layouts import ABNORMAL, HEALTHY, LAYOUTS

TRUTH = "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv"
FIRST = "ISIC_0024306"


@pytest.fixture
def root(tmp_path):
    LAYOUTS["isic2018"](tmp_path)
    return tmp_path


def edit(root, old, new):
    path = root / TRUTH
    path.write_text(path.read_text().replace(old, new))


def test_labels_splits_and_what_is_left_out(root):
    dataset = open_dataset("isic2018", root)
    assert Counter((case.split, case.label) for case in dataset) == {
        (Split.TRAIN, Label.NORMAL): HEALTHY - ABNORMAL,
        (Split.TEST, Label.NORMAL): ABNORMAL,
        (Split.TEST, Label.ABNORMAL): ABNORMAL,
    }
    assert [reason for _, reason in dataset.left_out] == ["not a nevus, in the training part"]
    assert Counter(f.name for case in dataset for f in case.findings) == {"MEL": 1, "BCC": 1, "VASC": 1, "DF": 1}
    assert read_study(dataset[0].images).array.shape == (32, 40)  # colour as grey, wider than high


def test_images_of_a_lesion_stay_together_where_the_table_of_lesions_is_there(root):
    learned = open_dataset("isic2018", root).only(split=Split.TRAIN)
    assert len({case.patient_id for case in learned}) == len(learned) // 2
    (root / "ISIC2018_Task3_Training_LesionGroupings.csv").unlink()
    alone = open_dataset("isic2018", root).only(split=Split.TRAIN)
    assert len({case.patient_id for case in alone}) == len(alone) == len(learned)


@pytest.mark.parametrize("cells", ["0.0,0.0,0.0,0.0,0.0,0.0,0.0", "1.0,1.0,0.0,0.0,0.0,0.0,0.0", "0.0,1.0,,,,,"])
def test_a_row_without_exactly_one_class_is_never_a_nevus(root, cells):
    edit(root, f"{FIRST},0.0,1.0,0.0,0.0,0.0,0.0,0.0", f"{FIRST},{cells}")
    dataset = open_dataset("isic2018", root)
    assert dict(dataset.left_out)[FIRST] == "not 1.0 in exactly one of the seven classes"
    assert FIRST not in {case.case_id for case in dataset}


def test_a_second_row_of_an_image_is_left_out(root):
    path = root / TRUTH
    path.write_text(path.read_text() + f"{FIRST},1.0,0.0,0.0,0.0,0.0,0.0,0.0\n")
    dataset = open_dataset("isic2018", root)
    assert "a second row" in dict(dataset.left_out)[FIRST]
    assert len(dataset) == HEALTHY + ABNORMAL


def test_half_a_download_is_told(root):
    (root / f"ISIC2018_Task3_Training_Input/{FIRST}.jpg").unlink()
    edit(root, "ISIC_0024307,0.0,1.0", "ISIC_9999999,0.0,1.0")
    dataset = open_dataset("isic2018", root)
    left_out = dict(dataset.left_out)
    assert left_out[FIRST] == left_out["ISIC_9999999"] == "no image"
    assert left_out["ISIC_0024307"].startswith("no row in")
    assert "6 nevi to learn from, published: 6,705" in dataset.notes
    assert "4 others in the test, published: 603" in dataset.notes


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: edit(root, ",NV,", ",NEVUS,"), "has no column 'NV'"),
        (lambda root: (root / TRUTH).unlink(), "holds no ISIC2018_Task3_Training_GroundTruth/"),
        (lambda root: shutil.rmtree(root / "ISIC2018_Task3_Test_Input"), "holds no ISIC2018_Task3_Test_Input"),
    ],
)
def test_another_folder_is_refused(root, damage, message):
    damage(root)
    with pytest.raises(LayoutError, match=message):
        open_dataset("isic2018", root)
