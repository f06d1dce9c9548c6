"""MedMNIST: small pictures and volumes in NumPy archives; the sets of which a class can be called healthy.

    root, or root/<set>.npz, <set>_64.npz, <set>_128.npz, <set>_224.npz
        train_images, val_images, test_images    (N, H, W), (N, H, W, 3) or (N, D, H, W), 8 bits
        train_labels, val_labels, test_labels    (N, 1), or (N, 14) of chestmnist

Yang et al., Scientific Data 10:41 (2023), doi:10.1038/s41597-022-01721-8. Names and counts of the table below are from
their description of the sets (MedMNIST 3.0.2, Apache-2.0; images CC BY 4.0, dermamnist CC BY-NC 4.0). The trap is what
healthy means: breastmnist has normal and benign in one class, and chestmnist's zeros are findings nobody reported.
"""

import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salus.core import Case, Dataset, Finding, Label, Source, Split
from salus.core.errors import LayoutError, did_you_mean
from salus.datasets._layout import differences, listing

NAME = "medmnist"
EXPECTED = "one archive such as pneumoniamnist.npz, or a folder with one"
PARTS = {"train": Split.TRAIN, "val": Split.VALIDATION, "test": Split.TEST}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one set is about.

    Attributes:
        labels: what the numbers 0, 1 ... mean; of chestmnist, what the columns mean.
        healthy: the number of the healthy class; None where it is a row of zeros.
        images: how many there are in train, val and test.
        normal: how many of them are healthy; () where that is not known.
    """

    labels: tuple[str, ...]
    healthy: int | None
    images: tuple[int, int, int]
    normal: tuple[int, ...] = ()


TASKS = {
    "adrenalmnist3d": Task(labels=("normal", "hyperplasia"), healthy=0, images=(1_188, 98, 298)),
    "breastmnist": Task(
        labels=("malignant", "normal, benign"), healthy=1, images=(546, 78, 156), normal=(399, 57, 114)
    ),
    "chestmnist": Task(
        labels=(
            *("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia"),
            *("pneumothorax", "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia"),
        ),
        healthy=None,
        images=(78_468, 11_219, 22_433),
    ),
    "dermamnist": Task(
        labels=(
            *("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma"),
            *("benign keratosis-like lesions", "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions"),
        ),
        healthy=5,
        images=(7_007, 1_003, 2_005),
    ),
    "octmnist": Task(
        labels=("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        healthy=3,
        images=(97_477, 10_832, 1_000),
    ),
    "pathmnist": Task(
        labels=(
            *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa"),
            *("cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
        ),
        healthy=6,
        images=(89_996, 10_004, 7_180),
    ),
    "pneumoniamnist": Task(
        labels=("normal", "pneumonia"), healthy=0, images=(4_708, 524, 624), normal=(1_214, 135, 234)
    ),
    "retinamnist": Task(labels=("0", "1", "2", "3", "4"), healthy=0, images=(1_080, 120, 400)),
    "vesselmnist3d": Task(labels=("vessel", "aneurysm"), healthy=0, images=(1_335, 191, 382)),
}


def medmnist(root: Path) -> Dataset:
    """The healthy pictures of train and val, and all of test, of the archive `root` or the one in the folder `root`.

    Labels are read, pictures are not. What is not healthy in train and val is left out, as is a label without meaning.
    No patient is known: each picture counts as one.

    Raises:
        LayoutError: no such archive, one that is damaged or holds other arrays, or a set without a healthy class.
    """
    path = _archive(root)
    name = path.name[: -len(path.suffix)]
    task = _task(path, name.partition("_")[0])
    cases, left_out, found = [], [], Counter[str]()
    for part, labels in _labels(path).items():
        for index, row in enumerate(labels.tolist()):
            case_id = f"{part}/{index:06}"
            findings = _findings(row, task)
            found[f"images in {part}"] += 1
            found[f"healthy images in {part}"] += findings == ()
            if findings is None:
                left_out.append((case_id, "a label that no class has"))
            elif findings and part != "test":
                left_out.append((case_id, "not healthy, in train or val"))
            else:
                cases.append(
                    Case(
                        case_id=case_id,
                        patient_id=case_id,
                        images=(Source(path=path, array=f"{part}_images", index=index),),
                        label=Label.ABNORMAL if findings else Label.NORMAL,
                        findings=tuple(Finding(name=finding) for finding in findings),
                        split=PARTS[part],
                    )
                )
    published = dict(zip((f"images in {part}" for part in PARTS), task.images, strict=True))
    published |= zip((f"healthy images in {part}" for part in PARTS), task.normal, strict=False)
    return Dataset(f"{NAME}/{name}", cases, left_out, differences(found, published))


def _archive(root: Path) -> Path:
    if root.is_file():
        return root
    found = sorted(path for path in root.glob("*.npz") if not path.name.startswith("."))
    if len(found) != 1:
        what = f"{len(found)} archives, name one of them" if found else "no .npz archive"
        raise LayoutError(f"{root} holds {what}. Expected {EXPECTED}; it holds: {listing(root)}.")
    return found[0]


def _task(path: Path, name: str) -> Task:
    if name not in TASKS:
        raise LayoutError(
            f"{path}: of '{name}' no class is known that could be called healthy.{did_you_mean(name, TASKS)} The sets "
            f"are told by the archive's name: {', '.join(TASKS)}."
        )
    return TASKS[name]


def _labels(path: Path) -> dict[str, NDArray[Any]]:
    """The labels of train, val and test, (N, L) integers; of the pictures only that they are there."""
    if not zipfile.is_zipfile(path):
        raise LayoutError(f"{path} is no NumPy archive, or half of one. Expected {EXPECTED}.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if lacking := [
                f"{p}_{what}" for p in PARTS for what in ("images", "labels") if f"{p}_{what}" not in archive
            ]:
                raise LayoutError(f"{path} has no array '{lacking[0]}'. It has: {', '.join(archive) or 'nothing'}.")
            labels = {part: archive[f"{part}_labels"] for part in PARTS}
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise LayoutError(f"{path}: its labels cannot be read: {error}. It may be damaged.") from error
    for part, array in labels.items():
        if array.ndim != 2 or array.dtype.kind not in "iu":
            raise LayoutError(f"{path}: {part}_labels is {array.dtype} of shape {array.shape}, not integers (N, L).")
    return labels


def _findings(row: list[int], task: Task) -> tuple[str, ...] | None:
    """The findings of a row of labels, none where it is healthy; None where it means nothing."""
    if task.healthy is None:
        if len(row) != len(task.labels) or not {*row} <= {0, 1}:
            return None
        return tuple(name for name, there in zip(task.labels, row, strict=True) if there)
    if len(row) != 1 or not 0 <= row[0] < len(task.labels):
        return None
    return () if row[0] == task.healthy else (task.labels[row[0]],)
