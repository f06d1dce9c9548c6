"""ISIC 2018 task 3 (HAM10000): dermoscopy of pigmented skin lesions in seven classes; the nevi count as healthy.

    root/ISIC2018_Task3_Training_Input/ISIC_0024306.jpg
    root/ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv    image, MEL ... VASC: 0.0 or 1.0
    root/ISIC2018_Task3_Training_LesionGroupings.csv                                    optional: image, lesion_id
    root/ISIC2018_Task3_Test_Input/ISIC_0034524.jpg
    root/ISIC2018_Task3_Test_GroundTruth/ISIC2018_Task3_Test_GroundTruth.csv

Codella et al., arXiv:1902.03368; Tschandl et al. 2018, doi:10.1038/sdata.2018.161. The trap is the lesion that is on
several images: only the table of lesions tells, and without it a lesion may be learned from and calibrated on.
"""

from collections import Counter
from pathlib import Path

from salus.core import Case, Dataset, Finding, Label, Source, Split
from salus.datasets._layout import by_stem, differences, find, table

NAME = "isic2018"
CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
HEALTHY = "NV"  # a melanocytic nevus, as in MedIAnomaly
EXPECTED = "ISIC2018_Task3_Training_Input, _Training_GroundTruth, _Test_Input and _Test_GroundTruth"
PUBLISHED = {"training images": 10_015, "nevi to learn from": 6_705, "nevi in the test": 909, "others in the test": 603}


def isic2018(root: Path) -> Dataset:
    """The nevi of the training part and all of the test part under `root`; no pixel is opened.

    Training images of other lesions are left out, as are rows without exactly one class. `patient_id` is the lesion
    where ISIC2018_Task3_Training_LesionGroupings.csv tells it, else the image.

    Raises:
        LayoutError: not laid out so, or a table with other columns.
    """
    found: Counter[str] = Counter()
    training, left_out = _part(root, "Training", Split.TRAIN, found)
    test, left_out_of_test = _part(root, "Test", Split.TEST, found)
    found["nevi to learn from"] = len(training)
    found["nevi in the test"] = sum(case.label == Label.NORMAL for case in test)
    found["others in the test"] = sum(case.label == Label.ABNORMAL for case in test)
    return Dataset(NAME, [*training, *test], [*left_out, *left_out_of_test], differences(found, PUBLISHED))


def _part(root: Path, part: str, split: Split, found: Counter[str]) -> tuple[list[Case], list[tuple[str, str]]]:
    """The cases of a part and what is left out of it; its images are counted in `found`."""
    truth = f"ISIC2018_Task3_{part}_GroundTruth"
    rows = table(find(root, f"{truth}/{truth}.csv", f"{truth}.csv", expected=EXPECTED), ("image", *CLASSES))
    images = by_stem(find(root, f"ISIC2018_Task3_{part}_Input", expected=EXPECTED), ".jpg")
    lesions = _lesions(root / "ISIC2018_Task3_Training_LesionGroupings.csv")
    found[f"{part.lower()} images"] = len(images)
    cases, left_out, seen = [], [], set()
    for row in sorted(rows, key=lambda row: row["image"]):
        image, kind = row["image"], _class(row)
        if image in seen:
            left_out.append((image, f"a second row in {truth}.csv"))
        elif not kind:
            left_out.append((image, "not 1.0 in exactly one of the seven classes"))
        elif image not in images:
            left_out.append((image, "no image"))
        elif kind != HEALTHY and split == Split.TRAIN:
            left_out.append((image, "not a nevus, in the training part"))
        else:
            cases.append(
                Case(
                    case_id=image,
                    patient_id=lesions.get(image, image),
                    images=(Source(path=images[image]),),
                    label=Label.NORMAL if kind == HEALTHY else Label.ABNORMAL,
                    findings=() if kind == HEALTHY else (Finding(name=kind),),
                    split=split,
                )
            )
        seen.add(image)
    return cases, [*left_out, *((stem, f"no row in {truth}.csv") for stem in images if stem not in seen)]


def _lesions(path: Path) -> dict[str, str]:
    """Image to lesion; empty where there is no such table."""
    if not path.exists():
        return {}
    return {row["image"]: row["lesion_id"] for row in table(path, ("image", "lesion_id")) if row["lesion_id"]}


def _class(row: dict[str, str]) -> str:
    """The one class that is 1.0 where the others are 0.0, else ""."""
    ones = [name for name in CLASSES if row[name] in ("1.0", "1")]
    zeros = [name for name in CLASSES if row[name] in ("0.0", "0")]
    return ones[0] if len(ones) == 1 and len(zeros) == len(CLASSES) - 1 else ""
