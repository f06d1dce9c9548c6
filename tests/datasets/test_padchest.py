import csv
import gzip
import shutil
from collections import Counter

import numpy as np
import pytest

from salus.core import Label, Split
from salus.core.errors import LayoutError
from salus.datasets import open_dataset
from salus.datasets.padchest import findings_of, listed
from salus.datasets.protocol import split
from salus.io import read_study
from tests.datasets.layouts import ABNORMAL, HEALTHY, LAYOUTS, pictures
from tests.datasets.layouts.padchest import COLUMNS, TABLE, table


@pytest.fixture
def root(tmp_path):
    LAYOUTS["padchest"](tmp_path)
    return tmp_path


def rows_of(root):
    return list(csv.DictReader(gzip.decompress((root / TABLE).read_bytes()).decode().splitlines()))


def change(root, patient, **cells):
    rows = [{**row, **cells} if row["PatientID"] == str(patient) else row for row in rows_of(root)]
    table(root / TABLE, rows)


def case(root, patient):
    return next(case for case in open_dataset("padchest", root) if case.patient_id == str(patient))


def test_labels_findings_and_what_is_left_out(root):
    dataset = open_dataset("padchest", root)
    assert Counter(c.label for c in dataset) == {Label.NORMAL: HEALTHY + 1, Label.ABNORMAL: ABNORMAL, Label.UNKNOWN: 3}
    assert [c.case_id for c in dataset] == sorted(c.case_id for c in dataset)
    sick = dataset.only(label=Label.ABNORMAL)
    assert [(f.name, f.box) for f in sick[0].findings] == [("cardiomegaly", None), ("pleural effusion", None)]
    assert sick[0].groups == {"sex": "F", "manufacturer": "ImagingDynamicsCompanyLtd", "labelled_by": "RNN_model"}
    assert [reason for _, reason in dataset.left_out] == [
        *("not the projection PA", "a child", "labelled 'exclude'"),
        *("its Labels are not the text of a list", "no image"),
    ]


def test_a_patients_normal_image_is_tested_with_the_abnormal_one(root):
    dataset = open_dataset("padchest", root)
    assert [c.split for c in dataset if c.patient_id == "101"] == [Split.TEST, Split.TEST]
    assert len({c.patient_id for c in dataset.only(split=Split.TEST, label=Label.NORMAL)} - {"101"}) == 1
    assert {c.label for c in split(dataset).only(split=Split.TRAIN)} == {Label.NORMAL}


@pytest.mark.parametrize(
    ("labels", "method", "label"),
    [
        ("['normal']", "Physician", Label.NORMAL),
        ("[' normal ', '']", "Physician", Label.NORMAL),
        ("['normal']", "RNN_model", Label.UNKNOWN),
        ("['normal']", "", Label.UNKNOWN),
        ("['normal', 'unchanged']", "Physician", Label.UNKNOWN),
        ("['unchanged']", "Physician", Label.UNKNOWN),
        ("['suboptimal study']", "Physician", Label.UNKNOWN),
        ("[]", "Physician", Label.UNKNOWN),
        ("", "Physician", Label.UNKNOWN),
        ("['normal', 'scoliosis']", "Physician", Label.ABNORMAL),
        ("['suboptimal study', 'nodule']", "RNN_model", Label.ABNORMAL),
    ],
)
def test_only_a_physicians_normal_alone_is_normal(root, labels, method, label):
    change(root, 2, Labels=labels, MethodLabel=method)
    assert case(root, 2).label == label


def test_labels_are_read_as_text_and_never_run():
    assert listed("['COPD signs', ' nodule']") == {"COPD signs", "nodule"}
    assert listed("") == listed("[]") == listed("['']") == set()
    for text in ("normal", "'normal'", "{'normal'}", "[1]", "[nan]", "['a'", "__import__('os')", "[" * 10_000, "\0"):
        assert listed(text) is None
    assert [f.name for f in findings_of({"unchanged", "nodule", "mass"})] == ["mass", "nodule"]


def test_what_is_stored_dark_for_bright_is_turned_round(root):
    dark, bright = case(root, 1).images[0], case(root, 2).images[0]
    assert (dark.inverted, bright.inverted) == (True, False)
    assert np.abs(read_study([dark]).array / 65_535 - pictures(HEALTHY)[0]).max() < 1e-4


@pytest.mark.parametrize(
    ("cells", "reason"),
    [({"Projection": view}, "not the projection PA") for view in ("L", "AP", "AP_horizontal", "COSTAL", "EXCLUDE", "")]
    + [({"Pediatric": "PED"}, "a child")],
)
def test_only_the_projection_pa_of_adults_is_used(root, cells, reason):
    change(root, 2, **cells)
    assert dict(open_dataset("padchest", root).left_out)[f"{2:030}_002"] == reason
    change(root, 2, Projection="PA", Pediatric="")
    assert case(root, 2).label == Label.NORMAL


def test_a_plain_table_and_images_in_one_folder_are_read_the_same(root):
    expected = [(c.case_id, c.label, c.split) for c in open_dataset("padchest", root)]
    (root / TABLE.removesuffix(".gz")).write_bytes(gzip.decompress((root / TABLE).read_bytes()))
    (root / TABLE).unlink()
    (root / "images").mkdir()
    for image in [*root.glob("0/*.png"), *root.glob("1/*.png")]:
        image.rename(root / "images" / image.name)
    assert [(c.case_id, c.label, c.split) for c in open_dataset("padchest", root)] == expected


def test_half_a_download_and_a_second_row_are_told(root):
    shutil.rmtree(root / "1")
    rows = rows_of(root)
    table(root / TABLE, [*rows, rows[1]])
    dataset = open_dataset("padchest", root)
    reasons = Counter(reason for _, reason in dataset.left_out)
    assert reasons["no image"] > HEALTHY / 2
    assert reasons["a second row in the table"] == 1
    assert dataset.notes == ("25 images, published: 160,868",)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "holds no PADCHEST.*csv or PADCHEST.*gz. Expected .*folders of PNG files"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "cannot be read as a comma-separated table"),
        (lambda path: path.write_bytes(path.read_bytes()[:40] + bytes(100)), "cannot be read as a comma-separated"),
        (
            lambda path: path.write_bytes(gzip.compress(",".join(COLUMNS).replace("Labels", "labels", 1).encode())),
            "no column 'Labels'. Did you mean",
        ),
    ],
)
def test_another_folder_is_refused(root, damage, message):
    damage(root / TABLE)
    with pytest.raises(LayoutError, match=message):
        open_dataset("padchest", root)
