import json
from collections import Counter

import numpy as np
import pytest

from salus.core import Label, Split
from salus.core.errors import LayoutError
from salus.datasets import open_dataset
from salus.datasets.medmnist import TASKS
from salus.io import read_study
from tests.datasets.layouts import ABNORMAL, LAYOUTS


@pytest.fixture
def root(tmp_path):
    LAYOUTS["medmnist"](tmp_path)
    return tmp_path


def saved(path, labels, shape=(28, 28), **other):
    """An archive whose three parts have the same labels."""
    arrays = {f"{part}_labels": np.asarray(labels) for part in ("train", "val", "test")}
    arrays |= {f"{part}_images": np.zeros((len(labels), *shape), np.uint8) for part in ("train", "val", "test")}
    np.savez(path, **(arrays | other))
    return path


def test_labels_splits_and_what_is_left_out(root):
    dataset = open_dataset("medmnist", root)
    assert Counter((case.split, case.label) for case in dataset) == {
        (Split.TRAIN, Label.NORMAL): 7,
        (Split.VALIDATION, Label.NORMAL): 1,
        (Split.TEST, Label.NORMAL): ABNORMAL,
        (Split.TEST, Label.ABNORMAL): ABNORMAL,
    }
    assert {name[:4] for name, _ in dataset.left_out} == {"trai", "val/"}
    assert {reason for _, reason in dataset.left_out} == {"not healthy, in train or val"}
    assert {f.name for case in dataset for f in case.findings} == {"pneumonia"}
    assert "7 healthy images in train, published: 1,214" in dataset.notes
    assert dataset[0].case_id == "train/000000"


def test_a_case_is_a_row_of_an_array(root):
    path = root / "pneumoniamnist.npz"
    sick = open_dataset("medmnist", root).only(label=Label.ABNORMAL)[0]
    assert sick.images[0].name == "pneumoniamnist.npz[test_images, 4]"
    with np.load(path) as archive:
        assert np.array_equal(read_study(sick.images).array, archive["test_images"][4].astype(np.float32))


def test_the_archive_may_be_named_itself_and_have_a_size_in_its_name(root):
    path = (root / "pneumoniamnist.npz").rename(root / "pneumoniamnist_64.npz")
    assert [case.case_id for case in open_dataset("medmnist", path)] == [
        case.case_id for case in open_dataset("medmnist", root)
    ]


def test_no_picture_is_unpacked(root, monkeypatch):
    unpacked = []
    original = np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(
        np.lib.npyio.NpzFile, "__getitem__", lambda self, key: (unpacked.append(key), original(self, key))[1]
    )
    open_dataset("medmnist", root)
    assert unpacked == ["train_labels", "val_labels", "test_labels"]


def test_of_chest_a_row_of_zeros_is_normal_and_a_row_may_have_several_findings(tmp_path):
    rows = np.zeros((3, 14), int)
    rows[1, [0, 13]] = 1
    rows[2, 3] = 2
    dataset = open_dataset("medmnist", saved(tmp_path / "chestmnist.npz", rows))
    tested = dataset.only(split=Split.TEST)
    assert [case.label for case in tested] == [Label.NORMAL, Label.ABNORMAL]
    assert [f.name for f in tested[1].findings] == ["atelectasis", "hernia"]
    assert ("test/000002", "a label that no class has") in dataset.left_out


@pytest.mark.parametrize(("name", "task"), [(name, task) for name, task in TASKS.items() if name != "chestmnist"])
def test_the_healthy_class_of_each_set_and_no_other_is_normal(tmp_path, name, task):
    labels = np.arange(len(task.labels) + 1)[:, None]
    tested = open_dataset("medmnist", saved(tmp_path / f"{name}.npz", labels)).only(split=Split.TEST)
    assert [case.images[0].index for case in tested.only(label=Label.NORMAL)] == [task.healthy]
    assert len(tested) == len(task.labels)  # the number above the last class means nothing, and is left out


def test_colours_are_read_as_grey_and_volumes_as_volumes(tmp_path):
    flat = open_dataset("medmnist", saved(tmp_path / "dermamnist.npz", [[5]], (28, 28, 3)))
    deep = open_dataset("medmnist", saved(tmp_path / "vesselmnist3d.npz", [[0]], (28, 28, 28)))
    assert read_study(flat[0].images).array.shape == (28, 28)
    assert read_study(deep[0].images).array.shape == (28, 28, 28)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bloodmnist.npz", "of 'bloodmnist' no class is known that could be called healthy"),
        ("pneumonia.npz", r"Did you mean 'pneumoniamnist'\?"),
    ],
)
def test_a_set_without_a_healthy_class_is_refused(tmp_path, name, message):
    with pytest.raises(LayoutError, match=message):
        open_dataset("medmnist", saved(tmp_path / name, [[0]]))


@pytest.mark.parametrize(
    ("labels", "other", "message"),
    [
        ([[0]], {"test_labels": np.array([[None]])}, "its labels cannot be read: Object arrays"),
        ([0, 1], {}, r"train_labels is int64 of shape \(2,\), not integers"),
        ([[0.5]], {}, "train_labels is float64"),
    ],
)
def test_labels_of_another_kind_are_refused(tmp_path, labels, other, message):
    with pytest.raises(LayoutError, match=message):
        open_dataset("medmnist", saved(tmp_path / "breastmnist.npz", labels, **other))


def test_other_arrays_half_a_download_and_no_archive_are_refused(root):
    path = root / "pneumoniamnist.npz"
    np.savez(root / "breastmnist.npz", train_images=np.zeros(1), train_labels=np.zeros(1))
    with pytest.raises(LayoutError, match="holds 2 archives, name one of them"):
        open_dataset("medmnist", root)
    with pytest.raises(LayoutError, match=r"has no array 'val_images'. It has: train_images, train_labels"):
        open_dataset("medmnist", root / "breastmnist.npz")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LayoutError, match="is no NumPy archive, or half of one"):
        open_dataset("medmnist", path)
    path.unlink()
    (root / "breastmnist.npz").unlink()
    with pytest.raises(LayoutError, match=r"holds no .npz archive"):
        open_dataset("medmnist", root)


def test_names_and_counts_are_those_of_the_description(shared_data):
    described = json.loads((shared_data / "annotations/medmnist/info.json").read_text())
    for name, task in TASKS.items():
        assert list(task.labels) == list(described[name]["labels"].values()), name
        assert list(task.images) == list(described[name]["n_samples"].values()), name
    assert [t - n for t, n in zip(TASKS["pneumoniamnist"].images, TASKS["pneumoniamnist"].normal, strict=True)] == [
        3_494,
        389,
        390,
    ]
    assert [t - n for t, n in zip(TASKS["breastmnist"].images, TASKS["breastmnist"].normal, strict=True)] == [
        147,
        21,
        42,
    ]
