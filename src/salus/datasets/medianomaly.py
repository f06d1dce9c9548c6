"""The sets of the MedIAnomaly release (Med-AD): lists of healthy and abnormal images, or folders of them.

    RSNA, VinCXR, BrainTumor, LAG    root/data.json
                                     root/images/*.png or *.jpg
    BraTS2021                        root/train/*.png
                                     root/test/normal/*.png, root/test/tumor/*.png
                                     root/test/annotation/*.png    a mask a tumour slice, seg in its name for flair
    Camelyon16                       root/train/good/*.png
                                     root/test/good/*.png, root/test/Ungood/*.png

`root` is the folder of one set; which layout it has is seen, and which counts were published goes by its name. ISIC2018
of the same study is the reader `isic2018`.

Cai et al., arXiv:2404.04518; the lists are of DDAD (Cai et al., arXiv:2210.04227). The trap is the `unlabeled` part of
data.json: much of it is abnormal, and it is no training data of a method that learns from healthy images.
"""

import json
import re
from pathlib import Path

from salus.core import Case, Dataset, Finding, Label, Source, Split
from salus.core.errors import LayoutError
from salus.datasets._layout import by_stem, find
from salus.datasets.bmad import compared, counted
from salus.datasets.protocol import apart

NAME = "medianomaly"
SUFFIXES = (".png", ".jpg", ".jpeg")
EXPECTED = (
    "the folder of one set: data.json and images/ (RSNA, VinCXR, BrainTumor, LAG), train/ and test/normal, tumor, "
    "annotation (BraTS2021), or train/good and test/good, Ungood (Camelyon16)"
)
FINDINGS = {  # what abnormal means where a list only says "1"
    "rsna": "Lung Opacity",
    "vincxr": "any finding",
    "braintumor": "glioma or meningioma",
    "lag": "glaucoma",
}
COUNTS = {  # by the folder's name in small letters: healthy training, healthy test and abnormal test images
    "rsna": (3_851, 1_000, 1_000),
    "vincxr": (4_000, 1_000, 1_000),
    "braintumor": (1_000, 600, 600),
    "lag": (1_500, 811, 811),
    "brats2021": (4_211, 828, 1_948),
    "camelyon16": (5_088, 1_120, 1_113),
}
PATIENT = re.compile(r"BraTS2021_\d+")  # slices of one patient share it
Part = tuple[Split, Label]


def medianomaly(root: Path) -> Dataset:
    """The training and test images under `root`; no pixel is opened.

    Images of the `unlabeled` part are left out, and so are training images of BraTS patients in the test. Patients are
    known of BraTS2021 only; elsewhere each image counts as one.

    Raises:
        LayoutError: none of the layouts above, or a data.json of another form.
    """
    name = root.resolve().name
    find(root, "data.json", "train", expected=EXPECTED)
    listed = (root / "data.json").exists()
    cases, left_out = _listed(root, FINDINGS.get(name.lower(), "abnormal")) if listed else (_in_folders(root), [])
    cases, both = apart(cases)
    notes = compared(name, counted(cases), COUNTS.get(name.lower()))
    return Dataset(f"{NAME}/{name}", cases, [*left_out, *both], notes)


def _listed(root: Path, finding: str) -> tuple[list[Case], list[tuple[str, str]]]:
    """The cases of data.json, and what is left out."""
    images = {path.name: path for path in by_stem(find(root, "images", expected=EXPECTED), *SUFFIXES).values()}
    parts, unlabelled = _lists(root / "data.json")
    cases, left_out, seen = [], [], set()
    for (split, label), names in parts.items():
        for name in sorted(names):
            if name in seen:
                left_out.append((name, "named a second time in data.json"))
            elif name not in images:
                left_out.append((name, "no image"))
            else:
                cases.append(_case(images[name].stem, images[name], split, label, finding))
            seen.add(name)
    for name in sorted(unlabelled - seen):
        left_out.append((name, "of the unlabelled part of data.json, which is not for learning from healthy images"))
    for name in sorted(set(images) - seen - unlabelled):
        left_out.append((name, "not in data.json"))
    return cases, left_out


def _lists(path: Path) -> tuple[dict[Part, list[str]], set[str]]:
    """File names by part, the tested ones first, and those of the unlabelled part."""
    try:
        lists = json.loads(path.read_bytes())
        parts = {
            (Split.TEST, Label.ABNORMAL): list(lists["test"]["1"]),
            (Split.TEST, Label.NORMAL): list(lists["test"]["0"]),
            (Split.TRAIN, Label.NORMAL): list(lists["train"]["0"]),
        }
        unlabelled = {name for names in lists["train"].get("unlabeled", {}).values() for name in names}
        if not all(isinstance(name, str) for names in [*parts.values(), unlabelled] for name in names):
            raise TypeError("a file name is no text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LayoutError(
            f'{path} is not of the form {{"train": {{"0": [names], "unlabeled": ...}}, "test": {{"0": [names], "1": '
            f"[names]}}}}: {type(error).__name__} {error}."
        ) from error
    return parts, unlabelled


def _in_folders(root: Path) -> list[Case]:
    """The cases of Camelyon16 or BraTS2021."""
    if (root / "train/good").is_dir():
        folders, finding = ("train/good", "test/good", "test/Ungood"), "metastasis"
        masks = {}
    else:
        folders, finding = ("train", "test/normal", "test/tumor"), "tumor"
        masks = by_stem(find(root, "test/annotation", expected=EXPECTED), *SUFFIXES)
    parts = ((Split.TRAIN, Label.NORMAL), (Split.TEST, Label.NORMAL), (Split.TEST, Label.ABNORMAL))
    return [
        _case(f"{folder}/{stem}", path, split, label, finding, masks.get(stem.replace("flair", "seg")))
        for folder, (split, label) in zip(folders, parts, strict=True)
        for stem, path in by_stem(find(root, folder, expected=EXPECTED), *SUFFIXES).items()
    ]


def _case(case_id: str, path: Path, split: Split, label: Label, finding: str, mask: Path | None = None) -> Case:
    patient = PATIENT.match(path.name)
    return Case(
        case_id=case_id,
        patient_id=patient[0] if patient else case_id,
        images=(Source(path=path),),
        label=label,
        findings=(Finding(name=finding, mask=Source(path=mask) if mask else None),) if label == Label.ABNORMAL else (),
        split=split,
    )
