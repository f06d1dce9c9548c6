"""RSNA Pneumonia Detection Challenge: chest radiographs, lung opacities in boxes.

    root/stage_2_train_images/<patientId>.dcm            1024 x 1024, 8 bits
    root/stage_2_detailed_class_info.csv                 patientId, class; one row a box, so rows repeat
    root/stage_2_train_labels.csv                        patientId, x, y, width, height, Target
    root/stage_2_test_images/*.dcm                       optional; no labels
    root/pneumonia-challenge-dataset-mappings_2018.json  optional; the NIH image, and so the patient, behind a patientId

Shih et al. 2019, doi:10.1148/ryai.2019180041. The trap: Target 0 is not normal. Of the three classes, "No Lung Opacity
/ Not Normal" is abnormal in a way nobody boxed; here it is UNKNOWN, never NORMAL, and Med-AD leaves it out likewise.
"""

import json
from collections import Counter
from pathlib import Path

from salus.core import Case, Dataset, Finding, Label, Source
from salus.core.errors import LayoutError
from salus.datasets._layout import by_stem, differences, find, numbers, table
from salus.datasets.protocol import hold_out

NAME = "rsna"
OPACITY = "Lung Opacity"
LABELS = {"Normal": Label.NORMAL, OPACITY: Label.ABNORMAL}  # the third class, and any other, is UNKNOWN
CLASS_INFO, TRAIN_LABELS = "stage_2_detailed_class_info.csv", "stage_2_train_labels.csv"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
CLASS_COLUMNS = ("patientId", "class")
BOX_COLUMNS = ("patientId", "x", "y", "width", "height", "Target")
PUBLISHED = {
    "images": 26_684,
    "images of class Normal": 8_851,
    "images of class No Lung Opacity / Not Normal": 11_821,
    "images of class Lung Opacity": 6_012,
    "rows of stage_2_train_labels.csv": 30_227,
    "boxes": 9_555,
}
TESTED = 1_000 / 8_851  # of the normal-only patients, Med-AD's share of normal test images
EXPECTED = f"stage_2_train_images/*.dcm, {CLASS_INFO} and {TRAIN_LABELS}, the unpacked challenge archive"

Box = tuple[float, float, float, float]


def rsna(root: Path) -> Dataset:
    """The labelled images under `root`; none is opened.

    NORMAL: class Normal. ABNORMAL: class Lung Opacity, in the boxes of Target 1. UNKNOWN: No Lung Opacity / Not Normal.
    Patients with an ABNORMAL image, and 11.3 % of those with NORMAL ones only, are in the test. A patient is an image,
    or where the mapping file is there, the NIH patient behind it.

    Raises:
        LayoutError: not laid out so, a table with other columns, a box that is no numbers, or another mapping file.
    """
    images = by_stem(find(root, "stage_2_train_images", expected=EXPECTED), ".dcm")
    path = find(root, TRAIN_LABELS, expected=EXPECTED)
    rows = list(table(path, BOX_COLUMNS))
    classes, boxes = _classes(find(root, CLASS_INFO, expected=EXPECTED)), _boxes(path, rows)
    patients = _patients(root / MAPPING)
    cases = []
    left_out = [(name, f"no row in {CLASS_INFO}") for name in images if name not in classes]
    unlabelled = by_stem(root / "stage_2_test_images", ".dcm")
    left_out += [(name, "of the challenge's test, without a label") for name in unlabelled]
    for name, known in sorted(classes.items()):
        label = LABELS.get(min(known), Label.UNKNOWN)
        if len(known) > 1:
            left_out.append((name, f"rows of different classes in {CLASS_INFO}"))
        elif (label == Label.ABNORMAL) != (name in boxes):
            left_out.append((name, "its class and its Target contradict each other"))
        elif name not in images:
            left_out.append((name, "no image"))
        else:
            cases.append(
                Case(
                    case_id=name,
                    patient_id=patients.get(name, name),
                    images=(Source(path=images[name]),),
                    label=label,
                    findings=_findings(boxes.get(name, set())),
                )
            )
    notes = differences(_counts(classes, rows), PUBLISHED)
    if not patients:
        notes.append(f"without {MAPPING} the images of one NIH patient may be in training and in the test")
    return Dataset(NAME, hold_out(NAME, cases, TESTED), left_out, notes)


def _classes(path: Path) -> dict[str, set[str]]:
    """The classes of each patientId; one, unless rows differ."""
    found: dict[str, set[str]] = {}
    for row in table(path, CLASS_COLUMNS):
        found.setdefault(row["patientId"], set()).add(row["class"])
    return found


def _boxes(path: Path, rows: list[dict[str, str]]) -> dict[str, set[Box | None]]:
    """(x, y, width, height) in pixels of each patientId of Target 1, None for a box without area."""
    found: dict[str, set[Box | None]] = {}
    for row in rows:
        if row["Target"] == "1":
            x, y, width, height = numbers(path, row, *BOX_COLUMNS[1:5])
            box = (x, y, width, height) if width > 0 and height > 0 else None
            found.setdefault(row["patientId"], set()).add(box)
    return found


def _findings(boxes: set[Box | None]) -> tuple[Finding, ...]:
    """One a box; one without a place where no box has an area."""
    placed = [Finding(name=OPACITY, box=box) for box in sorted(box for box in boxes if box)]
    return tuple(placed or [Finding(name=OPACITY)] * bool(boxes))


def _patients(path: Path) -> dict[str, str]:
    """The NIH patient of each patientId, from the NIH's name of the image, 00000013_005.png; none without the file."""
    if not path.exists():
        return {}
    try:
        return {row["subset_img_id"]: row["img_id"].partition("_")[0] for row in json.loads(path.read_bytes())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LayoutError(
            f"{path} is not a list of {{'subset_img_id': patientId, 'img_id': 00000013_005.png, ...}} ({error!r}). "
            "Download it again, or move it away to do without."
        ) from error


def _counts(classes: dict[str, set[str]], rows: list[dict[str, str]]) -> Counter[str]:
    found = Counter({"images": len(classes), "rows of stage_2_train_labels.csv": len(rows)})
    found.update(f"images of class {name}" for known in classes.values() for name in known)
    found["boxes"] = sum(row["Target"] == "1" for row in rows)
    return found
