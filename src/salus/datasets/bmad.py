"""BMAD: six medical sets in one convention, healthy images to learn from, both kinds to judge.

    root/train/good/*.png                             healthy
    root/test/good/*.png                              healthy
    root/test/Ungood/*.png                            abnormal
    root/valid/good/*.png, root/valid/Ungood/*.png    left out

Where there are pixel labels, images lie one folder deeper in img/, and masks of the same names in label/ beside it, or
in anomaly_mask/. The archives spell Ungood or ungood, valid or val. `root` is the folder of one set.

Bao et al., arXiv:2306.11876. The trap is the valid part: it holds abnormal images, and who chooses a model or a
threshold on it has learned from them.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from salus.core import Case, Dataset, Finding, Label, Source, Split
from salus.datasets._layout import by_stem, differences, find
from salus.datasets.protocol import apart

NAME = "bmad"
SUFFIXES = (".png", ".jpg", ".jpeg")
EXPECTED = "train/good, test/good, test/Ungood and valid, the folder of one set"
KINDS = ("healthy training images", "healthy test images", "abnormal test images", "images in the valid part")
SETS = (  # by the names of the folder, in small letters: the counts of the paper, in the order of KINDS
    (("brain", "brain_ad", "brats2021_slice"), (7_500, 640, 3_075, 83)),
    (("liver", "liver_ad", "hist_diy"), (1_542, 833, 660, 166)),
    (("retina_resc", "retina_resc_ad", "resc"), (4_297, 1_041, 764, 115)),
    (("retina_oct2017", "retina_oct2017_ad", "oct2017"), (26_315, 242, 726, 32)),
    (("chest", "chest_ad", "chest-rsna"), (8_000, 781, 16_413, 1_490)),
    (("histopathology", "histopathology_ad", "camelyon16", "camelyon16_256"), (5_088, 1_020, 977, 236)),
)
INSIDE = 25.0  # the rule is: a tenth of white or more, and 26 is the first of 255 that is
PATIENT = re.compile(r"(\d{5})_\d+")  # a slice of Brain: BraTS's number of the patient, then the slice's
VALID = "the valid part: it holds abnormal images, so it serves neither training nor thresholds"


def bmad(root: Path) -> Dataset:
    """The training and test images under `root`, of one of the six sets; no pixel is opened.

    good is NORMAL, Ungood is ABNORMAL, with a mask where the set has them (inside: a tenth of white or more). Patients
    are known of Brain only; elsewhere each image counts as one.

    Raises:
        LayoutError: not laid out so.
    """
    good, ungood = (find(root, *names, expected=EXPECTED) for names in (("test/good",), ("test/Ungood", "test/ungood")))
    cases, left_out = apart(
        [
            *_cases(find(root, "train/good", expected=EXPECTED), Split.TRAIN, Label.NORMAL),
            *_cases(good, Split.TEST, Label.NORMAL),
            *_cases(ungood, Split.TEST, Label.ABNORMAL),
        ]
    )
    valid = [
        f"{folder.parent.name}/{folder.name}/{stem}"
        for folder in sorted([*root.glob("valid/*"), *root.glob("val/*")])
        if folder.is_dir()
        for stem in _images(folder)
    ]
    name = root.resolve().name
    counts = next((counts for names, counts in SETS if name.lower() in names), None)
    notes = compared(name, {**counted(cases), KINDS[3]: len(valid)}, counts)
    return Dataset(f"{NAME}/{name}", cases, [*left_out, *((image, VALID) for image in valid)], notes)


def counted(cases: Sequence[Case]) -> Counter[str]:
    """How many cases there are of the first three `KINDS`."""
    return Counter(
        f"{'healthy' if case.label == Label.NORMAL else 'abnormal'} "
        f"{'training' if case.split == Split.TRAIN else 'test'} images"
        for case in cases
    )


def compared(name: str, found: Mapping[str, int], counts: Sequence[int] | None) -> list[str]:
    """What differs from the published `counts`, in the order of `KINDS`, of the set that a folder's name tells."""
    if counts is None:
        return [f"'{name}' is the name of none of the sets, so there are no published counts to compare with"]
    return differences(found, dict(zip(KINDS, counts, strict=False)))


def _cases(folder: Path, split: Split, label: Label) -> Iterator[Case]:
    masks = {
        stem: path
        for name in ("anomaly_mask", "label")
        if (folder / name).is_dir()
        for stem, path in by_stem(folder / name, *SUFFIXES).items()
    }
    for stem, path in _images(folder).items():
        case_id = f"{folder.parent.name}/{folder.name}/{stem}"
        patient = PATIENT.fullmatch(stem)
        mask = Source(path=masks[stem]) if stem in masks else None
        yield Case(
            case_id=case_id,
            patient_id=patient[1] if patient else case_id,
            images=(Source(path=path),),
            label=label,
            findings=(Finding(name=folder.name, mask=mask, above=INSIDE),) if label == Label.ABNORMAL else (),
            split=split,
        )


def _images(folder: Path) -> dict[str, Path]:
    """The images in img/ of a folder, or in the folder itself."""
    return by_stem(folder / "img" if (folder / "img").is_dir() else folder, *SUFFIXES)
