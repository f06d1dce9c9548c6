"""GRAZPEDWRI-DX: wrist radiographs of children, with findings in boxes.

    root/dataset.csv                                      one row an image
    root/images_part1/*.png ... images_part4/*.png        16-bit grey; any folder does
    root/folder_structure/yolov5/labels/<filestem>.txt    class x y w h, relative to the image

Nagy et al. 2022, doi:10.1038/s41597-022-01328-z. Only the projection a.p. is used, as in the works that compare on it.
"""

import struct
from collections import Counter
from pathlib import Path

from salus.core import Case, Dataset, Finding, Label, Source
from salus.core.errors import LayoutError
from salus.datasets._layout import by_stem, differences, find, table
from salus.datasets.protocol import hold_out

NAME = "grazpedwri"
CLASSES = (
    *("boneanomaly", "bonelesion", "foreignbody", "fracture", "metal"),
    *("periostealreaction", "pronatorsign", "softtissue", "text"),
)
MARKER = "text"  # the side marker, a finding of no image
FLAGS = ("fracture_visible", "metal", "cast", "osteopenia", "ao_classification")  # all empty in a normal image
SEEN = {"fracture_visible": "fracture", "metal": "metal"}  # flags that are findings, with a box or without
COLUMNS = ("filestem", "patient_id", "projection", *FLAGS)
PUBLISHED = {
    "images": 20_327,
    "patients": 6_091,
    "fracture_visible": 13_550,
    "cast": 5_776,
    "osteopenia": 2_473,
    "metal": 708,
    "diagnosis_uncertain": 537,
    "initial_exam": 10_861,
}
TESTED = 0.37  # of the normal-only patients, the published share of normal test images (1,039 of 2,839)
EXPECTED = "dataset.csv, folders of PNG files, and folder_structure/yolov5/labels/*.txt"


def grazpedwri(root: Path) -> Dataset:
    """The a.p. images under `root`; no pixel is opened, a PNG's size at most.

    NORMAL: no flag of `FLAGS` and no box but the side marker. ABNORMAL: a finding in a box, a visible fracture or
    metal. UNKNOWN: the others, such as a cast without a finding. Patients with an abnormal image, and 37 % of the
    others, are in the test.

    Raises:
        LayoutError: not laid out so, or a table with other columns.
    """
    rows = list(table(find(root, "dataset.csv", "folder_structure/dataset.csv", expected=EXPECTED), COLUMNS))
    labels = by_stem(find(root, "folder_structure/yolov5/labels", "labels", expected=EXPECTED), ".txt")
    images = by_stem(root, ".png")
    cases, left_out, seen = [], [], set()
    for row in sorted(rows, key=lambda row: row["filestem"]):
        stem = row["filestem"]
        if stem in seen:
            left_out.append((stem, "a second row in dataset.csv"))
        elif row["projection"] != "1":
            left_out.append((stem, "not the projection a.p."))
        elif stem not in images:
            left_out.append((stem, "no image"))
        elif stem not in labels:
            left_out.append((stem, "no label file"))
        else:
            cases.append(_case(row, images[stem], labels[stem]))
        seen.add(stem)
    return Dataset(NAME, hold_out(NAME, cases, TESTED), left_out, differences(_counts(rows), PUBLISHED))


def _case(row: dict[str, str], image: Path, label: Path) -> Case:
    findings = _findings(label, image)
    boxed = {finding.name for finding in findings}
    findings += tuple(Finding(name=name) for flag, name in SEEN.items() if row[flag] and name not in boxed)
    flagged = any(row[flag] for flag in FLAGS)
    return Case(
        case_id=row["filestem"],
        patient_id=row["patient_id"],
        images=(Source(path=image),),
        label=Label.ABNORMAL if findings else Label.UNKNOWN if flagged else Label.NORMAL,
        findings=findings,
        groups={
            name: row[name] for name in ("gender", "age", "laterality", "cast", "device_manufacturer") if row.get(name)
        },
    )


def _findings(label: Path, image: Path) -> tuple[Finding, ...]:
    """The boxes of a label file but for side markers and boxes without area, in pixels of the image."""
    boxes = []
    for number, line in enumerate(label.read_text().splitlines(), start=1):
        cells = line.split()
        try:
            name, (x, y, width, height) = CLASSES[int(cells[0])], map(float, cells[1:])
        except (ValueError, IndexError) as error:
            raise LayoutError(f"{label}, line {number}: '{line}' is not 'class x y width height'.") from error
        if name != MARKER and width > 0 and height > 0:
            boxes.append((name, x, y, width, height))
    if not boxes:
        return ()
    columns, rows = _png_size(image)
    return tuple(
        Finding(
            name=name,
            box=((x - width / 2) * columns, (y - height / 2) * rows, width * columns, height * rows),
        )
        for name, x, y, width, height in boxes
    )


def _png_size(path: Path) -> tuple[int, int]:
    """Width and height from a PNG's first 24 bytes; (0, 0) of a broken one, which reading will refuse."""
    with path.open("rb") as file:
        start = file.read(24)
    return struct.unpack(">II", start[16:24]) if len(start) == 24 and start[12:16] == b"IHDR" else (0, 0)


def _counts(rows: list[dict[str, str]]) -> Counter[str]:
    found = Counter({"images": len(rows), "patients": len({row["patient_id"] for row in rows})})
    for name in list(PUBLISHED)[2:]:
        found[name] = sum(bool(row.get(name)) for row in rows)
    return found
