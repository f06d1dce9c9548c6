"""BraTS2021: gliomas in FLAIR slices, with masks. The healthy slices are of the same, ill people.

    root/**/BraTS2021_<5 digits>_flair.nii.gz    240 x 240 x 155, 1 mm, skull removed
    root/**/BraTS2021_<5 digits>_seg.nii.gz      0, 1 (necrotic core), 2 (edema), 4 (enhancing)

Baid et al. 2021, arXiv:2107.02314. Whether a slice shows tumour stands in the segmentation and nowhere else, so it is
opened, the images are not. Slices as in MedIAnomaly's release as far as that is known: see the page.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from salus.core import Case, Dataset, Finding, Label, Source, Split
from salus.core.errors import LayoutError
from salus.datasets._layout import by_stem, differences, listing
from salus.datasets.protocol import by_hash

NAME = "brats2021"
LEVELS = range(45, 115, 5)  # axial slices, from 0
ENOUGH = 20  # tumour voxels of an abnormal slice; with fewer, but some, it is neither
TESTED = 200 / 1_251  # of the patients
PUBLISHED = {"patients with labels": 1_251}
EXPECTED = "BraTS2021_<5 digits>_flair.nii.gz and _seg.nii.gz at any depth"


def brats2021(root: Path) -> Dataset:
    """Axial FLAIR slices 45, 50 ... 110 under `root`; no image is opened, only the segmentations.

    NORMAL: no voxel of tumour in the slice, though there is one elsewhere in the head. ABNORMAL: 20 or more. The slices
    between are left out. 16 % of the patients are in the test, with both; of the others only normal slices are cases.

    Raises:
        LayoutError: no FLAIR volume is there, or two of one name.
    """
    flairs, masks = (
        {stem: path for stem, path in sorted(by_stem(root, suffix).items()) if re.fullmatch(r"BraTS2021_\d{5}", stem)}
        for suffix in ("_flair.nii.gz", "_seg.nii.gz")
    )
    if not flairs:
        raise LayoutError(f"{root} holds no FLAIR volume. Expected {EXPECTED}; it holds: {listing(root)}.")
    left_out = [(patient, "no segmentation") for patient in flairs if patient not in masks]
    left_out += [(patient, "no FLAIR volume") for patient in masks if patient not in flairs]
    complete = [patient for patient in flairs if patient in masks]
    tested = set(by_hash(NAME, complete)[: round(TESTED * len(complete))])
    cases: list[Case] = []
    ill_in_training: list[str] = []
    unclear: list[str] = []
    for patient in complete:
        mask = masks[patient]
        if (voxels := _tumour_voxels(mask, mask.stat().st_mtime_ns)) is None:
            left_out.append((patient, "a segmentation that cannot be read, or of another size"))
            continue
        for level, count in zip(LEVELS, voxels, strict=True):
            if 0 < count < ENOUGH:
                unclear.append(f"{patient}/{level:03}")
            elif count and patient not in tested:
                ill_in_training.append(f"{patient}/{level:03}")
            else:
                split = Split.TEST if patient in tested else Split.NONE
                cases.append(_case(patient, flairs[patient], mask if count else None, level, split))
    left_out += [(slice, f"1 to {ENOUGH - 1} voxels of tumour") for slice in unclear]
    left_out += [(slice, "tumour of a patient who is not in the test") for slice in ill_in_training]
    return Dataset(NAME, cases, left_out, differences({"patients with labels": len(complete)}, PUBLISHED))


def _case(patient: str, flair: Path, mask: Path | None, level: int, split: Split) -> Case:
    return Case(
        case_id=f"{patient}/{level:03}",
        patient_id=patient,
        images=(Source(path=flair, index=level),),
        label=Label.ABNORMAL if mask else Label.NORMAL,
        findings=(Finding(name="whole tumour", mask=Source(path=mask, index=level)),) if mask else (),
        split=split,
    )


@cache
def _tumour_voxels(mask: Path, modified: int) -> tuple[int, ...] | None:
    """Voxels above 0 on each of `LEVELS`, read once a process; None of a file that is broken or has fewer slices."""
    import nibabel

    try:
        file: Any = nibabel.load(mask)
        labels = np.asarray(file.dataobj)
        counts = np.count_nonzero(labels[:, :, list(LEVELS)] > 0, axis=(0, 1))
    except Exception:  # a damaged byte makes decoders fail in any way at all
        return None
    return tuple(int(count) for count in counts)
