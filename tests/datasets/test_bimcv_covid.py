import json
import shutil
from collections import Counter

import numpy as np
import pytest

from salus.core import Label, Split
from salus.core.errors import LayoutError
from salus.datasets import open_dataset
from salus.datasets._layout import table
from salus.io import read_study
from tests.datasets.layouts import ABNORMAL, LAYOUTS, pictures

LABELS = "derivatives/labels/labels_covid_posi.tsv"
TESTS = "derivatives/EHR/sil_reg_covid_posi.tsv"
FIRST = "sub-S00001/ses-E00001/mod-rx/sub-S00001_ses-E00001_run-1_bp-chest_vp-ap_cr"


@pytest.fixture
def root(tmp_path):
    LAYOUTS["bimcv-covid"](tmp_path)
    return tmp_path


def replace(root, name, old, new):
    path = root / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def rename(root, old, new):
    for suffix in (".png", ".json"):
        path = root / f"{FIRST}{suffix}"
        path.rename(path.with_name(path.name.replace(old, new)))


def test_labels_findings_groups_and_what_is_left_out(root):
    dataset = open_dataset("bimcv-covid", root)
    assert Counter((c.label, c.split) for c in dataset) == {
        (Label.ABNORMAL, Split.TEST): ABNORMAL + 2,
        (Label.UNKNOWN, Split.NONE): 2,
    }
    assert [(f.name, f.box) for f in dataset[0].findings] == [("COVID 19", None), ("ground glass pattern", None)]
    assert dataset[0].groups == {"view": "ap", "modality": "cr", "manufacturer": "KONICA MINOLTA", "test": "positive"}
    assert dataset.left_out == (("sub-S00001_ses-E00001_run-1_bp-chest_vp-ll_cr", "not a frontal view by its name"),)


def test_a_positive_test_makes_no_image_abnormal_and_a_clean_report_none_normal(root):
    replace(root, TESTS, "NEGATIVO", "POSITIVO")
    dataset = open_dataset("bimcv-covid", root)
    assert {c.groups["test"] for c in dataset} == {"positive"}
    assert [c.patient_id for c in dataset.only(label=Label.UNKNOWN)] == ["sub-S00201", "sub-S00202"]
    assert not len(dataset.only(label=Label.NORMAL))


def test_two_reports_of_a_session_count_together(root):
    path = root / LABELS
    path.write_text(path.read_text() + "9\tsub-S00201\tses-E00201\t\t['pneumonia']\t\n")
    path.write_text(path.read_text() + "10\tsub-S00201\tses-E00201\t\t['pneumonia']\t\n")  # the same again
    case = next(c for c in open_dataset("bimcv-covid", root) if c.patient_id == "sub-S00201")
    assert case.label == Label.ABNORMAL
    assert [f.name for f in case.findings] == ["pneumonia"]


def test_labels_that_cannot_be_read_leave_an_image_unknown(root):
    replace(root, LABELS, "['COVID 19',", "['COVID 19")
    assert {c.label for c in open_dataset("bimcv-covid", root)} == {Label.UNKNOWN}


def test_what_is_stored_dark_for_bright_is_turned_round(root):
    first, second = open_dataset("bimcv-covid", root)[:2]
    assert (first.images[0].inverted, second.images[0].inverted) == (True, False)
    drawn = pictures(ABNORMAL + 2, hole=True)[0]
    assert np.abs(read_study(first.images).array / 65_535 - drawn).max() < 1e-4


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"00280004": {"vr": "CS"}}'])
def test_an_image_that_may_be_inverted_is_left_out(root, content):
    (root / f"{FIRST}.json").unlink()
    if content:
        (root / f"{FIRST}.json").write_text(content)
    left_out = dict(open_dataset("bimcv-covid", root).left_out)
    assert left_out[FIRST.rpartition("/")[2]] == "no JSON beside it that tells bright from dark"


def test_a_header_without_a_manufacturer_has_no_such_group(root):
    (root / f"{FIRST}.json").write_text(json.dumps({"00280004": {"vr": "CS", "Value": ["MONOCHROME2"]}}))
    assert "manufacturer" not in open_dataset("bimcv-covid", root)[0].groups


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("bp-chest", "bp-abdomen", "not the chest"),
        ("vp-ap", "vp-ll", None),
        ("_vp-ap", "", "not a frontal view by its name"),
        ("run-1", "acq-2_run-1", ""),
    ],
)
def test_names_tell_body_part_and_view(root, old, new, reason):
    if reason is None:  # the lateral view is there already
        for path in root.glob("**/*vp-ll*"):
            path.unlink()
        reason = "not a frontal view by its name"
    rename(root, old, new)
    stem = FIRST.rpartition("/")[2].replace(old, new)
    dataset = open_dataset("bimcv-covid", root)
    assert dict(dataset.left_out).get(stem, "") == reason
    assert any(c.case_id == stem for c in dataset) == (not reason)


def test_the_folders_may_lie_deeper_and_the_tables_have_names_of_another_release(root):
    expected = [c.case_id for c in open_dataset("bimcv-covid", root)]
    for folder in list(root.glob("sub-*")):
        (root / "covid19_posi_subjects_1").mkdir(exist_ok=True)
        shutil.move(folder, root / "covid19_posi_subjects_1" / folder.name)
    (root / LABELS).rename(root / "derivatives/labels/labels_covid19_posi.tsv")
    (root / TESTS).rename(root / "derivatives/EHR/sil_reg_covid.tsv")
    assert [c.case_id for c in open_dataset("bimcv-covid", root)] == expected


def test_half_a_download_is_told(root):
    shutil.rmtree(root / "sub-S00002")
    dataset = open_dataset("bimcv-covid", root)
    assert "7 patients, published: 1,311" in dataset.notes
    assert "3 DX studies, published: 885" in dataset.notes


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / LABELS).unlink(), "holds no derivatives/labels/labels_covid_posi.tsv or .*Expected"),
        (lambda root: (root / TESTS).unlink(), "holds no derivatives/EHR/sil_reg_covid_posi.tsv or"),
        (lambda root: [shutil.rmtree(path) for path in root.glob("sub-*")], r"holds no sub-\*/ses-\*/mod-rx/\*.png"),
        (lambda root: replace(root, LABELS, "ReportID", "SessionID"), "no column 'ReportID'"),
        (lambda root: replace(root, TESTS, "result", "results"), "no column 'result'. Did you mean 'results'"),
        (lambda root: (root / LABELS).write_bytes(b"\xff\xfe\x00"), "cannot be read as a tab-separated table"),
    ],
)
def test_another_folder_is_refused(root, damage, message):
    damage(root)
    with pytest.raises(LayoutError, match=message):
        open_dataset("bimcv-covid", root)


def test_tabs_part_the_cells_of_a_tsv_and_commas_stay(root):
    rows = list(table(root / LABELS, ("PatientID", "Labels")))
    assert rows[0]["Labels"] == "['COVID 19', ' ground glass pattern', 'unchanged']"
