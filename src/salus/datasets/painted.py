"""A test without labels: healthy people who are held out, as they are and with painted lesions.

    root/test/<finding>/<n>-<place>.png, .tif or .nii.gz       finding: bright, dark or foreign
    root/ground_truth/<finding>/<n>-<place>_mask.*             where at least half of it was painted
    root/metadata.csv   file, patient_id, of, lesion_place, lesion_diameter (pixels of the image), lesion_contrast
    root/painted.json   what it was made of; unpainted images stay where they are

Made by `salus.benchmark.painting`. Of the source, the training part is learned from; the validation and calibration
parts are the test here, bare its healthy cases. The source's own test is not opened. The trap: a blob is no disease.
What such a test chooses was chosen without a label, no more.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from salus.core import Case, Dataset, Label, Split
from salus.core.errors import LayoutError
from salus.datasets import open_dataset
from salus.datasets.folder import folder
from salus.datasets.protocol import split

KIND = "painted"
OF = "of"  # the column that names the healthy case
HELD_OUT = (Split.VALIDATION, Split.CALIBRATION)


def painted(root: Path) -> Dataset:
    """Cases to learn from, the held-out healthy ones in TEST, and the painted ones with the groups of those.

    Raises:
        LayoutError: `root` was not made by `write_painted`, or its source is gone or divided otherwise now.
    """
    about = described(root)
    healthy = split(open_dataset(about["reader"], Path(about["source"]))).only(label=Label.NORMAL)
    held = held_out(healthy)
    if who(held) != about["held_out"]:
        raise LayoutError(
            f"{root}: {about['source']} has other healthy people than when lesions were painted. Paint anew."
        )
    bare = {case.case_id: replace(case, split=Split.TEST) for case in held}
    lesions = [
        replace(case, groups={**bare[case.groups[OF]].groups, **{k: v for k, v in case.groups.items() if k != OF}})
        for case in folder(root)
    ]
    learned = [replace(case, split=Split.NONE) for case in healthy if case.split == Split.TRAIN]
    note = f"Findings are painted on {len(bare)} healthy images of {healthy.name}; its own test was not opened."
    cases = [*learned, *bare.values(), *lesions]
    return Dataset(f"{healthy.name}, painted", cases, healthy.left_out, (note, *healthy.notes))


def held_out(dataset: Dataset) -> Sequence[Case]:
    """Healthy cases that nothing learns its weights from."""
    return [case for case in dataset.only(label=Label.NORMAL) if case.split in HELD_OUT]


def who(cases: Sequence[Case]) -> str:
    """SHA-256 over case and patient."""
    return hashlib.sha256("\n".join(f"{case.case_id}\t{case.patient_id}" for case in cases).encode()).hexdigest()


def described(root: Path) -> dict[str, Any]:
    """`painted.json`."""
    try:
        about: dict[str, Any] = json.loads((root / f"{KIND}.json").read_text(encoding="utf-8"))
        return {name: about[name] for name in ("source", "reader", "held_out")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LayoutError(f"{root} holds no painted lesions: {KIND}.json cannot be read ({error}).") from error
