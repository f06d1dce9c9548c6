import os
from pathlib import Path

import pytest

from salus.core import Dataset, Label, Source, Split
from salus.core.errors import ConfigError, LayoutError
from salus.datasets import DATASETS, open_dataset
from salus.datasets.folder import folder


@pytest.fixture
def make(tmp_path):
    """Makes empty files: a reader that opened a pixel would fail on them."""

    def made(*names: str, metadata: str | None = None) -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        if metadata is not None:
            (tmp_path / "metadata.csv").write_text(metadata)
        return tmp_path

    return made


MVTEC = (
    "train/good/b.png",
    "train/good/a.png",
    "validation/good/v.png",
    "calibration/good/c.png",
    "test/good/n.png",
    "test/stroke/s.png",
    "ground_truth/stroke/s_mask.png",
)


def test_the_convention_is_read_in_sorted_order(make):
    root = make(*MVTEC)
    dataset = folder(root)
    assert [(case.case_id, case.split, case.label) for case in dataset] == [
        ("calibration/good/c", Split.CALIBRATION, Label.NORMAL),
        ("test/good/n", Split.TEST, Label.NORMAL),
        ("test/stroke/s", Split.TEST, Label.ABNORMAL),
        ("train/good/a", Split.TRAIN, Label.NORMAL),
        ("train/good/b", Split.TRAIN, Label.NORMAL),
        ("validation/good/v", Split.VALIDATION, Label.NORMAL),
    ]
    stroke = dataset[2]
    assert stroke.images == (Source(path=root / "test/stroke/s.png"),)
    assert [(finding.name, finding.mask) for finding in stroke.findings] == [
        ("stroke", Source(path=root / "ground_truth/stroke/s_mask.png"))
    ]
    assert stroke.patient_id == "test/stroke/s"
    assert dataset[0].findings == ()


def test_any_folder_of_images_is_healthy_and_not_yet_split(make):
    dataset = folder(make("site1/p1/scan.nii.gz", "site1/p2/scan.NII.GZ", "x.jpeg", "y.tif", "notes.txt"))
    assert [case.case_id for case in dataset] == ["site1/p1/scan", "site1/p2/scan", "x", "y"]
    assert {case.split for case in dataset} == {Split.NONE}
    assert {case.label for case in dataset} == {Label.NORMAL}


def test_hidden_files_masks_and_descriptions_are_no_cases(make):
    root = make(".hidden.png", ".git/x.png", "ground_truth/stroke/s_mask.png", "phantom.json", "healthy.png")
    assert [case.case_id for case in folder(root)] == ["healthy"]


def test_two_files_that_differ_only_in_suffix_keep_it(make):
    dataset = folder(make("a.png", "a.tif", "b.png"))
    assert [case.case_id for case in dataset] == ["a.png", "a.tif", "b"]


def test_volumes_have_masks_of_their_own_kind(make):
    root = make("test/tumour/v.nii.gz", "ground_truth/tumour/v_mask.nii.gz", "test/good/n.nii.gz")
    tumour = folder(root).only(label=Label.ABNORMAL)[0]
    assert tumour.findings[0].mask == Source(path=root / "ground_truth/tumour/v_mask.nii.gz")


def test_a_finding_without_a_mask_folder_has_no_masks(make):
    root = make("test/stroke/s.png", "test/tumour/t.png", "ground_truth/tumour/t_mask.png")
    stroke, tumour = folder(root)
    assert stroke.findings[0].mask is None
    assert tumour.findings[0].mask is not None


def test_a_finding_whose_mask_is_missing_beside_others_has_none(make):
    cases = {case.case_id: case for case in folder(make(*MVTEC, "test/stroke/t.png"))}
    assert cases["test/stroke/s"].findings[0].mask is not None
    assert cases["test/stroke/t"].findings[0].mask is None


def test_metadata_gives_patients_and_groups(make):
    table = "file,patient_id,scanner,age\ntest/good/n.png,p1,A,70\ntest/stroke/s.png,p1,,\n"
    dataset = folder(make(*MVTEC, metadata="\ufeff" + table))  # as Excel writes it
    normal, stroke = dataset[1], dataset[2]
    assert normal.patient_id == stroke.patient_id == "p1"
    assert normal.groups == {"scanner": "A", "age": "70"}
    assert stroke.groups == {}
    assert dataset[0].patient_id == "calibration/good/c"


def test_a_patient_in_train_and_test_is_refused(make):
    table = "file,patient_id\ntrain/good/a.png,p1\ntest/good/n.png,p1\n"
    with pytest.raises(LayoutError, match="patient 'p1' is in two splits"):
        folder(make(*MVTEC, metadata=table))


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        ("file\ntrain/good/a.png\ntrain/good/zzz.png\n", r"line 3: there is no file 'train/good/zzz\.png'"),
        ("file\ntrain/good/a.png\ntrain/good/a.png\n", r"line 3: 'train/good/a\.png' has a row already"),
        ("name,patient_id\na,b\n", r"has no column 'file' .* it has: name, patient_id"),
        ("", r"has no column 'file' .* it has: nothing"),
        ("file,patient_id\n,p1\n", r"line 2: there is no file '\.'"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(make, metadata, found):
    with pytest.raises(LayoutError, match=found):
        folder(make(*MVTEC, metadata=metadata))


def test_metadata_in_another_encoding_is_refused(make):
    root = make(*MVTEC)
    (root / "metadata.csv").write_bytes("file,site\ntrain/good/a.png,Köln\n".encode("latin-1"))
    with pytest.raises(LayoutError, match=r"metadata\.csv cannot be read as a comma-separated table in UTF-8"):
        folder(root)


def test_an_empty_folder_says_what_was_expected_and_what_is_there(make):
    with pytest.raises(LayoutError, match=r"holds no image\. Expected train/good.*it holds: nothing\."):
        folder(make())
    with pytest.raises(LayoutError, match=r"it holds: a\.mha, readme\.txt\."):
        folder(make("readme.txt", "a.mha"))


@pytest.mark.parametrize("name", ["gone", "file.png"])
def test_what_is_no_folder_is_refused(make, name):
    root = make("file.png")
    with pytest.raises(LayoutError, match=rf"{name} is not a folder\. Expected"):
        folder(root / name)


@pytest.mark.parametrize("part", ["train", "validation", "calibration"])
def test_a_finding_among_what_is_learned_from_is_refused(make, part):
    with pytest.raises(LayoutError, match=rf"{part}/ may hold healthy images only, .*Found {part}/stroke"):
        folder(make(*MVTEC, f"{part}/stroke/x.png"))


@pytest.mark.parametrize("name", ["Good", "normal", "Healthy"])
def test_healthy_images_under_another_name_are_not_taken_for_a_finding(make, name):
    with pytest.raises(LayoutError, match=rf"{name} would count as a finding; healthy images belong in test/good"):
        folder(make("train/good/a.png", f"test/{name}/x.png"))


def test_a_split_in_capitals_is_not_taken_for_healthy_images(make):
    with pytest.raises(LayoutError, match=r"Test would be passed over: rename it to 'test'"):
        folder(make("Test/stroke/x.png"))


def test_an_image_directly_in_a_split_is_refused(make):
    with pytest.raises(LayoutError, match=r"x\.png lies directly in test/"):
        folder(make("test/x.png"))


def test_images_beside_the_convention_are_no_cases(make):
    assert len(folder(make(*MVTEC, "figures/overview.png"))) == 6


def test_what_is_passed_over_is_listed(make):
    listed = folder(make(*MVTEC, "patient7/a.png", "notes.txt", "more.zip", "deep/other.zip")).left_out
    assert [name for name, _ in listed] == ["patient7/a.png", "deep/other.zip", "more.zip"]
    assert "outside of train/" in listed[0][1]
    assert "name it itself" in listed[1][1]


def test_linked_folders_are_followed_once(make, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("disk")
    (elsewhere / "far.png").touch()
    root = make("near.png")
    os.symlink(elsewhere, root / "linked")
    os.symlink(root, root / "loop")
    assert [case.case_id for case in folder(root)] == ["linked/far", "near"]


@pytest.mark.parametrize("name", ["folder", "phantom"])
def test_data_sets_open_by_name(make, name):
    assert isinstance(open_dataset(name, make("x.png")), Dataset)
    assert name in DATASETS


def test_an_unknown_name_is_answered_with_the_nearest(make):
    with pytest.raises(ConfigError, match=r"no data set called 'foldr'\. Did you mean 'folder'\?"):
        open_dataset("foldr", make())


@pytest.mark.slow
def test_a_real_data_set_is_read_with_its_patients_and_masks(shared_data):
    dataset = folder(shared_data / "brain_flair_stroke_axial")
    assert len(dataset) == 527
    assert len({case.patient_id for case in dataset}) == 527
    assert len(dataset.only(split=Split.TRAIN)) == 197
    stroke = dataset.only(label=Label.ABNORMAL)
    assert len(stroke) == 250
    assert all(case.findings[0].mask.path.is_file() for case in stroke)
    assert stroke[0].groups["plane"] == "axial"
