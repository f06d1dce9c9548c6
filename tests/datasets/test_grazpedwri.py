import shutil
from collections import Counter

import pytest

from salus.core import Label, Split
from salus.core.errors import LayoutError
from salus.datasets import open_dataset
from salus.datasets._layout import differences, table
from salus.datasets.grazpedwri import COLUMNS, FLAGS, PUBLISHED, _counts
from salus.datasets.protocol import split
from tests.datasets.layouts import ABNORMAL, HEALTHY, LAYOUTS


@pytest.fixture
def root(tmp_path):
    LAYOUTS["grazpedwri"](tmp_path)
    return tmp_path


def labels(root):
    return next((root / "folder_structure/yolov5/labels").glob("0001_*_WRI-L1_*.txt"))


def test_labels_findings_and_what_is_left_out(root):
    dataset = open_dataset("grazpedwri", root)
    assert Counter(case.label for case in dataset) == {
        Label.NORMAL: HEALTHY,
        Label.ABNORMAL: ABNORMAL,
        Label.UNKNOWN: 1,
    }
    assert [reason for _, reason in dataset.left_out] == ["not the projection a.p."]
    sick = dataset.only(label=Label.ABNORMAL)
    assert {case.split for case in sick} == {Split.TEST}
    assert [(f.name, f.box) for f in sick[0].findings] == [("fracture", (12.0, 12.0, 8.0, 8.0))]
    assert dataset.only(label=Label.UNKNOWN)[0].groups["cast"] == "1"
    learned = split(dataset).only(split=Split.TRAIN)
    assert {case.label for case in learned} == {Label.NORMAL}
    assert len(dataset.only(split=Split.TEST, label=Label.NORMAL)) == round(0.37 * HEALTHY)


def test_a_box_of_protocol_d8(root):
    from PIL import Image

    stem = "0001_0000000001_01_WRI-L1_M001"
    Image.new("I;16", (494, 727)).save(root / "images_part2" / f"{stem}.png")
    labels(root).write_text("3 0.5 0.25 0.1 0.2\n")
    case = next(c for c in open_dataset("grazpedwri", root) if c.case_id == stem)
    assert case.findings[0].box == pytest.approx((222.3, 109.05, 49.4, 145.4))
    assert case.label == Label.ABNORMAL  # by its box, whatever the flags say


def test_a_fracture_that_is_flagged_but_not_boxed_is_a_finding_without_a_place(root):
    for file in (root / "folder_structure/yolov5/labels").glob("0101_*"):
        file.write_text("8 0.1 0.1 0.05 0.05\n")
    sick = open_dataset("grazpedwri", root).only(label=Label.ABNORMAL)
    assert [(f.name, f.box) for f in sick[0].findings] == [("fracture", None)]


def test_a_box_without_area_is_none(root):
    labels(root).write_text("3 0.5 0.25 0 0.2\n")
    assert len(open_dataset("grazpedwri", root).only(label=Label.NORMAL)) == HEALTHY


def test_half_a_download_is_told(root):
    shutil.rmtree(root / "images_part2")
    labels(root).unlink()
    dataset = open_dataset("grazpedwri", root)
    reasons = Counter(reason for _, reason in dataset.left_out)
    assert reasons["no image"] >= 3
    assert "20 images, published: 20,327" not in dataset.notes
    assert any("images, published: 20,327" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "dataset.csv").unlink(), r"holds no dataset.csv .*Expected dataset.csv, folders of PNG"),
        (lambda root: rename(root, "projection", "projektion"), r"no column 'projection'. Did you mean 'projektion'"),
        (lambda root: shutil.rmtree(root / "folder_structure"), "holds no folder_structure/yolov5/labels"),
        (lambda root: labels(root).write_text("3 0.5 nothing"), r"line 1: '3 0.5 nothing' is not 'class x y"),
        (lambda root: labels(root).write_text("12 0.5 0.5 0.1 0.1"), "is not 'class x y"),
        (lambda root: (root / "dataset.csv").write_bytes(b"\xff\xfe\x00"), "cannot be read as a comma-separated table"),
    ],
)
def test_another_folder_is_refused(root, damage, message):
    damage(root)
    with pytest.raises(LayoutError, match=message):
        open_dataset("grazpedwri", root)


def rename(root, old, new):
    path = root / "dataset.csv"
    path.write_text(path.read_text().replace(old, new))


def test_a_second_row_of_an_image_is_left_out(root):
    path = root / "dataset.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1]]) + "\n")
    assert "a second row in dataset.csv" in dict(open_dataset("grazpedwri", root).left_out).values()


def test_the_published_counts_come_out_of_the_real_table(shared_data):
    rows = list(table(shared_data / "annotations/grazpedwri_dx/dataset.csv", COLUMNS))
    assert (len(rows), len({row["patient_id"] for row in rows})) == (20_327, 6_091)
    assert differences(_counts(rows), PUBLISHED) == []
    assert Counter(row["projection"] for row in rows) == {"1": 10_086, "2": 10_148, "3": 93}
    frontal = [row for row in rows if row["projection"] == "1"]
    assert sum(not any(row[flag] for flag in FLAGS) for row in frontal) == 2_856
    assert sum(bool(row["fracture_visible"]) for row in frontal) == 6_553


def test_real_images_are_read_as_they_are_distributed(shared_data, tmp_path):
    samples = shared_data / "wrist_xray_samples"
    shutil.copytree(samples / "images", tmp_path / "images_part1")
    shutil.copytree(samples / "labels", tmp_path / "folder_structure/yolov5/labels")
    shutil.copy(shared_data / "annotations/grazpedwri_dx/dataset.csv", tmp_path)
    dataset = open_dataset("grazpedwri", tmp_path)
    assert [case.case_id[:4] for case in dataset] == ["0001", "0004", "0020"]
    assert dataset.notes == ()
    assert dataset[0].label == Label.UNKNOWN  # an AO code without a visible fracture
    assert Counter(reason for _, reason in dataset.left_out) == {"not the projection a.p.": 10_241, "no image": 10_083}
