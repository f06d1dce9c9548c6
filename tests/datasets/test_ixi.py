from collections import Counter

import numpy as np
import pytest

from salus.core import Label, Split
from salus.core.errors import LayoutError
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.io import read_study
from salus.preprocess.geometry import reorient
from tests.datasets.layouts import ABNORMAL, HEALTHY, LAYOUTS, pictures
from tests.datasets.layouts.ixi import COLUMNS, row, rows, sheet

PEOPLE = HEALTHY + ABNORMAL


@pytest.fixture
def root(tmp_path):
    LAYOUTS["ixi"](tmp_path)
    return tmp_path


def test_everybody_is_healthy_and_nobody_is_split_yet(root):
    dataset = open_dataset("ixi", root)
    assert [case.patient_id for case in dataset] == [f"IXI{person:03}" for person in range(1, PEOPLE + 1)]
    assert {(case.label, case.split) for case in dataset} == {(Label.NORMAL, Split.NONE)}
    assert dataset[0].case_id == "IXI001-HH-0801-T1"  # and its T2 is no case
    assert {case.label for case in split(dataset).only(split=Split.CALIBRATION)} == {Label.NORMAL}


def test_sex_and_age_where_the_table_knows_one_value(root):
    groups = {case.patient_id: case.groups for case in open_dataset("ixi", root)}
    assert groups["IXI001"] == {"site": "HH", "sex": "f", "age": "21.5"}
    assert groups["IXI002"] == {"site": "IOP"}  # zeros
    assert groups["IXI003"] == {"site": "Guys"}  # two rows that contradict each other
    assert groups["IXI004"] == {"site": "HH", "sex": "m"}  # no age
    assert groups["IXI006"] == {"site": "Guys", "sex": "m"}  # an error for an age, stored as a number
    assert Counter(group.get("sex") for group in groups.values()) == {"m": 7, "f": 7, None: 2}


def test_a_row_twice_counts_once(root):
    sheet(root / "IXI.xls", [*rows(), row(1, 2, 21.5)])
    assert open_dataset("ixi", root)[0].groups == {"site": "HH", "sex": "f", "age": "21.5"}


def test_a_row_without_a_volume_and_a_volume_without_a_row_are_told(root):
    sheet(root / "IXI.xls", [cells for cells in rows() if cells[0] != 5])
    dataset = open_dataset("ixi", root)
    assert dict(dataset.left_out) == {"IXI900": "a row in IXI.xls without a T1 volume"}
    assert "1 people have no row in IXI.xls" in dataset.notes


def test_two_scans_of_a_person_stay_together(root):
    (root / "IXI001-HH-0801-T1.nii.gz").rename(root / "IXI002-Guys-0900-T1.nii.gz")
    dataset = open_dataset("ixi", root)
    assert len(dataset) == PEOPLE
    assert len({case.patient_id for case in dataset}) == PEOPLE - 1


def test_the_table_is_optional_and_folders_are_searched(root):
    (root / "IXI.xls").unlink()
    (root / "T1").mkdir()
    for path in sorted(root.glob("*-T1.nii.gz")):
        path.rename(root / "T1" / path.name)
    (root / "T1" / "IXI7-T1.nii.gz").touch()
    dataset = open_dataset("ixi", root)
    assert {tuple(case.groups) for case in dataset} == {("site",)}
    assert "without IXI.xls nobody's sex and age are known" in dataset.notes
    assert dict(dataset.left_out) == {"IXI7-T1.nii.gz": "not named as IXI names its volumes"}


def test_half_a_download_is_told(root):
    (root / "IXI004-HH-0804-T1.nii.gz").unlink()
    assert "15 T1 volumes, published: 581" in open_dataset("ixi", root).notes


def test_sagittal_slices_become_axial_ones(root):
    volume = read_study(open_dataset("ixi", root)[0].images)
    assert volume.array.shape == (32, 12, 32)
    axial = reorient(volume, "axial").array
    # Stored from the patient's left to the right; shown with the right on the left.
    np.testing.assert_array_equal(axial[..., 5], np.round(pictures(PEOPLE)[0] * 1000)[:, ::-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: [path.unlink() for path in root.glob("*-T1*")], "holds no T1 volume. Expected IXI<number>"),
        (lambda root: sheet(root / "IXI.xls", [], ["IXI-ID", *COLUMNS[1:]]), "'IXI_ID'. Did you mean 'IXI-ID'"),
        (lambda root: sheet(root / "IXI.xls", [row(900, 3, 30.25)]), "IXI_ID '900.0', sex '3.0', age '30.25' is not"),
        (lambda root: sheet(root / "IXI.xls", [row(900, 2, "old")]), "age 'old' is not of IXI"),
        (lambda root: sheet(root / "IXI.xls", rows(), name="Sheet1"), r"a sheet 'Table': .*No sheet named"),
    ],
)
def test_another_folder_is_refused(root, damage, message):
    damage(root)
    with pytest.raises(LayoutError, match=message):
        open_dataset("ixi", root)


@pytest.mark.parametrize("content", [b"", b"IXI_ID,AGE\n1,21.5\n", b"<html></html>", b"PK\x03\x04", "cut", "scrambled"])
def test_a_table_that_is_no_xls_file_or_damaged_is_refused(root, content, capfd):
    path = root / "IXI.xls"
    whole = path.read_bytes()
    damaged = {"cut": whole[:900], "scrambled": whole[:600] + bytes(reversed(whole[600:]))}
    path.write_bytes(damaged.get(content, content))
    with pytest.raises(LayoutError, match=r"IXI.xls cannot be read as an .xls file with a sheet 'Table': .* Download"):
        open_dataset("ixi", root)
    assert capfd.readouterr() == ("", "")  # xlrd's own warnings would go to stdout
