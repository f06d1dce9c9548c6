"""Brain Tumor MRI: slices of brains with and without a tumour, gathered from three collections.

    root/Training/{glioma,meningioma,notumor,pituitary}/Tr-gl_0010.jpg    JPEG, grey or of three channels
    root/Testing/{glioma,meningioma,notumor,pituitary}/Te-gl_0010.jpg     the first ten of a class: Te-glTr_0000.jpg

M. Nickparvar, kaggle.com/datasets/masoudnickparvar/brain-tumor-mri-dataset. The trap is the source: healthy slices and
tumours come from different collections, planes and scanners, and telling those apart is enough for a high score.
"""

from collections import Counter
from pathlib import Path

from salus.core import Case, Dataset, Finding, Label, Source, Split
from salus.datasets._layout import by_stem, differences, find

NAME = "brain-tumor"
SUFFIXES = (".jpg", ".jpeg", ".png")
EXPECTED = "Training and Testing, each with the folders glioma, meningioma, notumor and pituitary"
HEALTHY = "notumor"
TUMOURS = ("glioma", "meningioma", "pituitary")
PUBLISHED = {
    "images in Training/glioma": 1_321,
    "images in Training/meningioma": 1_339,
    "images in Training/notumor": 1_595,
    "images in Training/pituitary": 1_457,
    "images in Testing/glioma": 300,
    "images in Testing/meningioma": 306,
    "images in Testing/notumor": 405,
    "images in Testing/pituitary": 300,
}


def brain_tumor(root: Path) -> Dataset:
    """The images under `root`: Training/notumor to learn from, all of Testing to judge; no pixel is opened.

    Tumours of the training part, and images in folders of other names, are left out. No patient is known: each image
    counts as one.

    Raises:
        LayoutError: not laid out so.
    """
    cases, left_out, found = [], [], Counter[str]()
    for part, split in (("Training", Split.TRAIN), ("Testing", Split.TEST)):
        find(root, f"{part}/{HEALTHY}", expected=EXPECTED)
        for folder in sorted(path for path in (root / part).iterdir() if path.is_dir()):
            for stem, path in by_stem(folder, *SUFFIXES).items():
                case_id = f"{part}/{folder.name}/{stem}"
                found[f"images in {part}/{folder.name}"] += 1
                if folder.name not in (HEALTHY, *TUMOURS):
                    left_out.append((case_id, "in a folder that is none of the four classes"))
                elif folder.name != HEALTHY and split == Split.TRAIN:
                    left_out.append((case_id, "a tumour in the training part"))
                else:
                    cases.append(_case(case_id, path, folder.name, split))
    return Dataset(NAME, cases, left_out, differences(found, PUBLISHED))


def _case(case_id: str, path: Path, kind: str, split: Split) -> Case:
    return Case(
        case_id=case_id,
        patient_id=case_id,
        images=(Source(path=path),),
        label=Label.NORMAL if kind == HEALTHY else Label.ABNORMAL,
        findings=() if kind == HEALTHY else (Finding(name=kind),),
        split=split,
    )
