from collections import Counter
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from salus.core import Case, Label, Source, Split
from salus.core.errors import LayoutError
from salus.datasets import open_dataset
from salus.datasets.brats2021 import LEVELS, TESTED
from salus.datasets.protocol import hold_out, split
from salus.io import read_study
from tests.datasets.layouts import ABNORMAL, HEALTHY, LAYOUTS
from tests.datasets.layouts.brats2021 import ATLAS, ILL

PATIENTS = [f"BraTS2021_{7 * number:05}" for number in range(HEALTHY + ABNORMAL)]


@pytest.fixture
def root(tmp_path):
    LAYOUTS["brats2021"](tmp_path)
    return tmp_path


def relabel(root, patient, change):
    """Write a patient's segmentation anew after `change`."""
    path = root / patient / f"{patient}_seg.nii.gz"
    labels = np.asarray(nibabel.load(path).dataobj).copy()
    change(labels)
    nibabel.Nifti1Image(labels, ATLAS).to_filename(path)


def test_slices_labels_and_masks(root):
    dataset = open_dataset("brats2021", root)
    test = dataset.only(split=Split.TEST)
    patients = {case.patient_id for case in test}
    assert len(patients) == round(TESTED * len(PATIENTS))
    assert len(test) == len(patients) * len(LEVELS)
    sick = [case for case in test if case.patient_id == test[0].patient_id and case.label == Label.ABNORMAL]
    assert [case.images[0].index for case in sick] == list(ILL)
    assert sick[0].case_id == f"{sick[0].patient_id}/060"
    mask = read_study([sick[0].findings[0].mask]).array > sick[0].findings[0].above
    assert mask.sum() == 36
    assert mask.shape == read_study(sick[0].images).array.shape


def test_of_patients_outside_the_test_only_slices_without_tumour_are_cases(root):
    dataset = open_dataset("brats2021", root)
    others = [case for case in dataset if case.split != Split.TEST]
    assert {(case.label, case.split, case.findings) for case in others} == {(Label.NORMAL, Split.NONE, ())}
    assert not {case.images[0].index for case in others} & set(ILL)
    ill = [what for what, reason in dataset.left_out if reason == "tumour of a patient who is not in the test"]
    assert len(ill) == len(set(ill)) == 13 * len(ILL)
    parts = split(dataset)
    assert {case.label for case in parts.only(split=Split.TRAIN)} == {Label.NORMAL}


def test_the_test_is_what_hold_out_would_take_of_healthy_people(root):
    people = [Case(case_id=p, patient_id=p, images=(Source(path=root),), label=Label.NORMAL) for p in PATIENTS]
    expected = {case.patient_id for case in hold_out("brats2021", people, 200 / 1_251) if case.split == Split.TEST}
    assert {case.patient_id for case in open_dataset("brats2021", root).only(split=Split.TEST)} == expected
    assert round(TESTED * 1_251) == 200


@pytest.mark.parametrize(("voxels", "label"), [(0, Label.NORMAL), (1, None), (19, None), (20, Label.ABNORMAL)])
def test_twenty_voxels_are_a_tumour_and_a_few_are_neither(root, voxels, label):
    patient = open_dataset("brats2021", root).only(split=Split.TEST)[0].patient_id

    def change(labels):
        labels[..., 60] = 0
        labels[5, 5 : 5 + voxels, 60] = 4

    relabel(root, patient, change)
    dataset = open_dataset("brats2021", root)
    assert [case.label for case in dataset if case.case_id == f"{patient}/060"] == [label] * (label is not None)
    assert ((f"{patient}/060", "1 to 19 voxels of tumour") in dataset.left_out) == (label is None)


def test_who_is_tested_does_not_depend_on_the_tumours(root):
    tested = {case.patient_id for case in open_dataset("brats2021", root).only(split=Split.TEST)}
    for patient in PATIENTS:
        relabel(root, patient, lambda labels: labels.__setitem__(..., 1))
    dataset = open_dataset("brats2021", root)
    assert {case.patient_id for case in dataset} == tested
    assert {case.label for case in dataset} == {Label.ABNORMAL}


def test_half_a_download_is_told(root):
    def remove(patient, what):
        (root / patient / f"{patient}_{what}.nii.gz").unlink()

    remove(PATIENTS[0], "seg")
    remove(PATIENTS[1], "flair")
    (root / PATIENTS[2] / f"{PATIENTS[2]}_seg.nii.gz").write_bytes(b"\x1f\x8b broken")
    relabel(root, PATIENTS[3], lambda labels: None)
    flat = np.zeros((32, 32, 60), dtype=np.uint8)
    nibabel.Nifti1Image(flat, ATLAS).to_filename(root / PATIENTS[3] / f"{PATIENTS[3]}_seg.nii.gz")
    dataset = open_dataset("brats2021", root)
    assert [(what, reason) for what, reason in dataset.left_out if "/" not in what] == [
        (PATIENTS[0], "no segmentation"),
        ("BraTS2021_01700", "no segmentation"),
        (PATIENTS[1], "no FLAIR volume"),
        (PATIENTS[2], "a segmentation that cannot be read, or of another size"),
        (PATIENTS[3], "a segmentation that cannot be read, or of another size"),
    ]
    assert dataset.notes == ("14 patients with labels, published: 1,251",)


def test_no_image_is_opened(root):
    before = open_dataset("brats2021", root)
    for path in root.rglob("*_flair.nii.gz"):
        path.write_bytes(b"")
    after = open_dataset("brats2021", root)
    assert [replace(case) for case in after] == list(before)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: [p.unlink() for p in root.rglob("*_flair.nii.gz")], "holds no FLAIR volume. Expected BraTS2021_"),
        (lambda root: (root / "BraTS2021_00007_seg.nii.gz").touch(), "lies in .* and in .*: keep one"),
    ],
)
def test_another_folder_is_refused(root, damage, message):
    damage(root)
    with pytest.raises(LayoutError, match=message):
        open_dataset("brats2021", root)


def test_labels_are_those_of_the_task(root):
    seg = root / PATIENTS[0] / f"{PATIENTS[0]}_seg.nii.gz"
    assert Counter(np.unique(np.asarray(nibabel.load(seg).dataobj)).tolist()) == Counter([0, 1, 2, 4])
