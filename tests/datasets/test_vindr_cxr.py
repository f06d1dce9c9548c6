import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salus.core import Finding, Label, Split
from salus.core.errors import LayoutError
from salus.datasets import open_dataset
from salus.datasets.vindr_cxr import fused
from salus.io import read_study
from tests.datasets.layouts import ABNORMAL, HEALTHY, LAYOUTS
from tests.datasets.layouts.vindr_cxr import HEADER, ones, write_physionet
from tests.datasets.test_rsna import names_of

FIRST, SICK = f"{1:032x}", f"{101:032x}"
SOUND, ILL = f"{201:032x}", f"{301:032x}"  # of PhysioNet's test


@pytest.fixture
def root(tmp_path):
    LAYOUTS["vindr-cxr"](tmp_path)
    return tmp_path


@pytest.fixture
def release(tmp_path):
    write_physionet(tmp_path)
    return tmp_path


def write(root, name, *rows, table="train.csv"):
    """The rows of one image in place of those that were there."""
    path = root / table
    kept = [line for line in path.read_text().splitlines() if not line.startswith(name)]
    path.write_text("\n".join([*kept, *(f"{name},{row}" for row in rows)]) + "\n")


def case(root, name):
    return next(case for case in open_dataset("vindr-cxr", root) if case.case_id == name)


def test_labels_boxes_and_what_is_left_out(root):
    dataset = open_dataset("vindr-cxr", root)
    assert Counter(c.label for c in dataset) == {Label.NORMAL: HEALTHY, Label.ABNORMAL: ABNORMAL}
    assert [c.case_id for c in dataset] == sorted(c.case_id for c in dataset)
    sick = dataset.only(label=Label.ABNORMAL)
    assert {c.split for c in sick} == {Split.TEST}
    # Corners (12, 12, 20, 20) and (12, 14, 20, 22) overlap by 48 of 80; the heart is one reader's and dropped.
    assert [(f.name, f.box) for f in sick[0].findings] == [("Nodule/Mass", (12.0, 13.0, 8.0, 8.0))]
    assert dataset.left_out == ((f"{301:032x}", "of the challenge's test, without a label"),)
    assert len(dataset.only(split=Split.TEST, label=Label.NORMAL)) == round(HEALTHY * 1_000 / 10_606)


def test_boxes_that_two_readers_drew_alike_become_one():
    square = (0.0, 0.0, 10.0, 10.0)
    assert fused([("R1", square), ("R2", (0.0, 2.0, 10.0, 12.0)), ("R3", (50.0, 50.0, 60.0, 60.0))]) == [
        (0.0, 1.0, 10.0, 11.0)  # IoU 80 / 120; the third reader's stands alone
    ]
    assert fused([("R1", square), ("R1", square), ("R2", (50.0, 50.0, 60.0, 60.0))]) == []  # one reader twice
    assert fused([("R1", square), ("R2", (0.0, 0.0, 4.0, 10.0))]) == [(0.0, 0.0, 7.0, 10.0)]  # IoU 0.4, just enough
    assert fused([("R1", square), ("R2", (0.0, 0.0, 3.9, 10.0))]) == []
    assert fused([("R1", square), ("R2", (10.0, 0.0, 20.0, 10.0))]) == []  # an edge in common
    assert fused([]) == []


def test_a_box_that_links_two_others_joins_them():
    drawn = [("R1", (0.0, 0.0, 10.0, 10.0)), ("R3", (8.0, 0.0, 18.0, 10.0)), ("R2", (4.0, 0.0, 14.0, 10.0))]
    assert fused(drawn) == [(4.0, 0.0, 14.0, 10.0)]  # IoU 60 / 140 with each, 20 / 180 between the outer ones


side = st.integers(0, 12)
box = st.tuples(side, side, st.integers(1, 8), st.integers(1, 8)).map(
    lambda b: (float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3]))
)


@given(drawn=st.lists(st.tuples(st.sampled_from(["R1", "R2", "R3"]), box), max_size=8), seed=st.randoms())
def test_the_order_of_rows_does_not_matter_to_fused_boxes(drawn, seed):
    before = fused(drawn)
    seed.shuffle(drawn)
    assert fused(drawn) == before
    for left, top, right, bottom in before:
        assert left < right
        assert top < bottom


def test_one_reader_is_enough_for_abnormal_and_too_few_for_a_place(root):
    write(root, FIRST, "No finding,14,R1,,,,", "No finding,14,R2,,,,", "ILD,5,R3,2,2,9,9")
    assert case(root, FIRST).label == Label.ABNORMAL
    assert [(f.name, f.box) for f in case(root, FIRST).findings] == [("ILD", None)]


def test_two_classes_in_one_place_stay_two(root):
    write(root, SICK, *(f"{name},0,{reader},2,2,9,9" for name in ("ILD", "Edema") for reader in ("R1", "R2", "R3")))
    assert [(f.name, f.box) for f in case(root, SICK).findings] == [
        ("Edema", (2.0, 2.0, 7.0, 7.0)),
        ("ILD", (2.0, 2.0, 7.0, 7.0)),
    ]


def test_fewer_than_three_readers_make_no_image_normal(root):
    write(root, FIRST, "No finding,14,R1,,,,", "No finding,14,R2,,,,", "No finding,14,R2,,,,")
    assert case(root, FIRST).label == Label.UNKNOWN
    write(root, FIRST, *(f"no finding,14,{reader},,,," for reader in ("R1", "R2", "R3")))
    assert case(root, FIRST).label == Label.NORMAL


def test_a_row_twice_and_a_box_without_area_count_for_nothing(root):
    rows = ["ILD,5,R1,2,2,9,9", "ILD,5,R1,2,2,9,9", "ILD,5,R2,2,2,9,9", "ILD,5,R3,4,4,4,9", "ILD,5,R3,2,2,9,16"]
    write(root, SICK, *rows)
    assert case(root, SICK).findings[0].box == pytest.approx((2, 2, 7, 7 + 7 / 3))  # the mean of three boxes


def test_half_a_download_is_told(root):
    (root / "train" / f"{FIRST}.dicom").unlink()
    write(root, f"{2:032x}")
    dataset = open_dataset("vindr-cxr", root)
    assert dict(dataset.left_out)[FIRST] == "no image"
    assert dict(dataset.left_out)[f"{2:032x}"] == "no row in train.csv"
    assert "11 images without a finding, published: 10,606" in dataset.notes


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "train.csv").unlink(),
            r"no train.csv or annotations/image_labels_train.csv. Expected train.csv and .* or annotations/\*.csv",
        ),
        (lambda root: (root / "train").rename(root / "images"), "holds no train. Expected"),
        (lambda root: (root / "train.csv").write_text(HEADER.replace("rad_id", "rad")), "'rad_id'. Did you mean 'rad'"),
        (lambda root: write(root, SICK, "ILD,5,R1,2,,9,9"), f"y_min '', .* of '{SICK}' are not all numbers"),
    ],
)
def test_another_folder_is_refused(root, damage, message):
    damage(root)
    with pytest.raises(LayoutError, match=message):
        open_dataset("vindr-cxr", root)


def test_physionets_parts_are_kept_and_only_normal_images_are_learned_from(release):
    dataset = open_dataset("vindr-cxr", release)
    assert Counter((c.split, c.label) for c in dataset) == {
        (Split.TRAIN, Label.NORMAL): HEALTHY,
        (Split.TEST, Label.NORMAL): ABNORMAL,
        (Split.TEST, Label.ABNORMAL): ABNORMAL,
    }
    assert dataset.left_out == ((SICK, "abnormal, in the training part"),)
    assert case(release, ILL).findings == (Finding(name="Nodule/Mass", box=(12.5, 12.0, 7.5, 8.0)),)
    assert dataset.notes == ("13 images in train, published: 15,000", "8 images in test, published: 3,000")
    assert read_study(dataset[0].images).array.shape == (32, 32)


def test_boxes_five_agreed_on_stay_as_they_are(release):
    boxes = ["2,2,9,9", "2,2,9,8", "2,2,9,9", "4,4,4,9"]  # near each other, one twice, one without area
    write(release, ILL, *(f"ILD,{box}" for box in boxes), table="annotations/annotations_test.csv")
    write(release, ILL, ones("ILD", "Pneumonia"), table="annotations/image_labels_test.csv")
    assert [f.box for f in case(release, ILL).findings] == [(2.0, 2.0, 7.0, 6.0), (2.0, 2.0, 7.0, 7.0)]


def test_a_diagnosis_without_a_box_is_abnormal_whatever_else_is_said(release):
    write(release, SOUND, ones("Other diseases", "No finding"), table="annotations/image_labels_test.csv")
    assert case(release, SOUND).findings == (Finding(name="Other disease"),)  # as the test's table spells it
    assert case(release, SOUND).label == Label.ABNORMAL


def test_a_box_in_an_image_labelled_no_finding_is_a_finding(release):
    write(release, SOUND, "ILD,2,2,9,9", table="annotations/annotations_test.csv")
    assert case(release, SOUND).label == Label.ABNORMAL
    write(release, FIRST, "R2,ILD,2,2,9,9", table="annotations/annotations_train.csv")
    assert (FIRST, "abnormal, in the training part") in open_dataset("vindr-cxr", release).left_out


def test_who_said_nothing_at_all_did_not_say_no_finding(release):
    write(release, SOUND, ones(), table="annotations/image_labels_test.csv")
    assert case(release, SOUND).label == Label.UNKNOWN
    for silent in ([f"R3,{ones()}"], []):
        said = [f"{reader},{ones('No finding')}" for reader in ("R1", "R2")]
        write(release, FIRST, *said, *silent, table="annotations/image_labels_train.csv")
        assert (FIRST, "unknown, in the training part") in open_dataset("vindr-cxr", release).left_out


def test_half_a_release_is_told(release):
    (release / "train" / f"{FIRST}.dicom").unlink()
    write(release, ILL, table="annotations/image_labels_test.csv")
    dataset = open_dataset("vindr-cxr", release)
    assert dict(dataset.left_out)[FIRST] == "no image"
    assert dict(dataset.left_out)[ILL] == "no row in image_labels_test.csv"
    assert "7 images in test, published: 3,000" in dataset.notes


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "test").rename(root / "images"), "holds no test. Expected train.csv"),
        (lambda root: (root / "annotations/annotations_test.csv").unlink(), "no annotations/annotations_test.csv. Exp"),
        (
            lambda root: (root / "annotations/image_labels_test.csv").write_text("image_id,No Finding\n"),
            "'No finding'. Did you mean 'No Finding'",
        ),
        (
            lambda root: write(root, SOUND, ones().replace("0", "", 1), table="annotations/image_labels_test.csv"),
            f"Aortic enlargement '', .* of '{SOUND}' are not all numbers",
        ),
        (
            lambda root: write(root, SOUND, ones().replace("0", "2", 1), table="annotations/image_labels_test.csv"),
            f"a label of '{SOUND}' is neither 0 nor 1",
        ),
        (
            lambda root: write(root, ILL, "ILD,2,,9,9", table="annotations/annotations_test.csv"),
            f"y_min '', .* of '{ILL}' are not all numbers",
        ),
    ],
)
def test_a_damaged_release_is_refused(release, damage, message):
    damage(release)
    with pytest.raises(LayoutError, match=message):
        open_dataset("vindr-cxr", release)


@pytest.mark.slow
def test_the_images_of_med_ad_are_counted_as_published(shared_data, tmp_path):
    lists = json.loads((shared_data / "annotations/med_ad/VinCXR/data.json").read_text())
    normal, abnormal = ([name.removesuffix(".png") for name in names_of(lists, label)] for label in "01")
    (tmp_path / "train").mkdir()
    for name in (*normal, *abnormal):
        (tmp_path / "train" / f"{name}.dicom").touch()
    rows = [f"{name},No finding,14,R{reader},,,," for name in normal for reader in (1, 2, 3)]
    rows += [f"{name},ILD,5,R1,1,1,9,9" for name in abnormal]
    (tmp_path / "train.csv").write_text("\n".join([HEADER, *rows]))
    dataset = open_dataset("vindr-cxr", tmp_path)
    assert not dataset.left_out
    assert dataset.notes == (f"{3 * 10_606 + 4_394:,} rows, published: 67,914",)  # 31,818 of them are "No finding"
    assert Counter((c.split, c.label) for c in dataset) == {
        (Split.NONE, Label.NORMAL): 9_606,
        (Split.TEST, Label.NORMAL): 1_000,
        (Split.TEST, Label.ABNORMAL): 4_394,
    }
