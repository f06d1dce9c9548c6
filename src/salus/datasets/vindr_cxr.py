"""VinDr-CXR, as the VinBigData challenge distributes it: chest radiographs, boxes of three radiologists each.

    root/train.csv                  one row a box, or a reader who found nothing; corners in pixels
    root/train/<image_id>.dicom     8 to 16 bits, some MONOCHROME1
    root/test/<image_id>.dicom      optional; no labels

Nguyen et al. 2022, doi:10.1038/s41597-022-01498-w. The trap: each image has the boxes of three readers who drew apart
from each other. As they are, one finding counts up to three times; here boxes that two of them drew alike become one.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean

from salus.core import Case, Dataset, Finding, Label, Source
from salus.datasets._layout import by_stem, differences, find, numbers, table
from salus.datasets.protocol import hold_out

NAME = "vindr-cxr"
NOTHING = "No finding"
CORNERS = ("x_min", "y_min", "x_max", "y_max")
COLUMNS = ("image_id", "class_name", "rad_id", *CORNERS)
READERS = 3  # of each image
AGREEING = 2  # of them make a box true
OVERLAP = 0.4  # IoU from which two boxes are of one finding
PUBLISHED = {
    "rows": 67_914,
    "images": 15_000,
    "images without a finding": 10_606,
    "images with a finding": 4_394,
}
TESTED = 1_000 / 10_606  # of the normal images, Med-AD's share of normal test images
EXPECTED = "train.csv and train/*.dicom, the unpacked challenge archive"

Corners = tuple[float, float, float, float]  # left, top, right, bottom


def vindr_cxr(root: Path) -> Dataset:
    """The labelled images under `root`; none is opened.

    NORMAL: three readers, all "No finding". ABNORMAL: a finding of any reader; what two of them drew alike has a place,
    and where they agree on nothing the classes are findings without one. UNKNOWN: fewer readers, none of whom found
    anything. All abnormal images, and 9.4 % of the normal ones, are in the test. A patient is an image.

    Raises:
        LayoutError: not laid out so, a table with other columns, or a corner that is no number.
    """
    path = find(root, "train.csv", expected=EXPECTED)
    images = by_stem(find(root, "train", expected=EXPECTED), ".dicom")
    rows = list(table(path, COLUMNS))
    read: dict[str, list[dict[str, str]]] = {}
    for row in {tuple(row.items()): row for row in rows}.values():  # each once
        read.setdefault(row["image_id"], []).append(row)
    cases = []
    left_out = [(name, "no row in train.csv") for name in images if name not in read]
    left_out += [(name, "of the challenge's test, without a label") for name in by_stem(root / "test", ".dicom")]
    for name, of_it in sorted(read.items()):
        if name in images:
            cases.append(_case(path, name, of_it, images[name]))
        else:
            left_out.append((name, "no image"))
    notes = differences(_counts(rows, read), PUBLISHED)
    return Dataset(NAME, hold_out(NAME, cases, TESTED), left_out, notes)


def fused(drawn: Sequence[tuple[str, Corners]]) -> list[Corners]:
    """The boxes of one class in one image that `AGREEING` readers drew alike, sorted; in any order of `drawn` the same.

    Boxes with an IoU of at least `OVERLAP` belong together, and what a further box links does too. A group by fewer
    readers is dropped; of each other the mean of every side is kept.

    Args:
        drawn: reader, and (left, top, right, bottom) in pixels, of an area above 0; a reader may have drawn several.
    """
    groups: list[list[tuple[str, Corners]]] = []
    for reader, box in drawn:
        linked: list[list[tuple[str, Corners]]] = []
        apart: list[list[tuple[str, Corners]]] = []
        for group in groups:
            (linked if any(_iou(box, other) >= OVERLAP for _, other in group) else apart).append(group)
        groups = [*apart, [(reader, box), *chain.from_iterable(linked)]]
    agreed = [group for group in groups if len({reader for reader, _ in group}) >= AGREEING]
    return sorted(_mean([box for _, box in group]) for group in agreed)


def _mean(boxes: Sequence[Corners]) -> Corners:
    left, top, right, bottom = (fmean(side) for side in zip(*boxes, strict=True))
    return left, top, right, bottom


def _iou(a: Corners, b: Corners) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def _case(path: Path, name: str, rows: Sequence[dict[str, str]], image: Path) -> Case:
    findings = _findings(path, rows)
    readers = {row["rad_id"] for row in rows}
    return Case(
        case_id=name,
        patient_id=name,
        images=(Source(path=image),),
        label=Label.ABNORMAL if findings else Label.NORMAL if len(readers) >= READERS else Label.UNKNOWN,
        findings=findings,
    )


def _findings(path: Path, rows: Sequence[dict[str, str]]) -> tuple[Finding, ...]:
    """What readers agree on, in boxes; where they agree on nothing, what any of them named."""
    drawn: dict[str, list[tuple[str, Corners]]] = {}
    for row in rows:
        if _is_finding(row):
            left, top, right, bottom = numbers(path, row, *CORNERS)
            boxes = drawn.setdefault(row["class_name"], [])
            if right > left and bottom > top:
                boxes.append((row["rad_id"], (left, top, right, bottom)))
    placed = [
        Finding(name=name, box=(left, top, right - left, bottom - top))
        for name, boxes in sorted(drawn.items())
        for left, top, right, bottom in fused(boxes)
    ]
    return tuple(placed or [Finding(name=name) for name in sorted(drawn)])


def _is_finding(row: dict[str, str]) -> bool:
    return row["class_name"].casefold() != NOTHING.casefold()


def _counts(rows: Sequence[dict[str, str]], read: dict[str, list[dict[str, str]]]) -> Counter[str]:
    abnormal = sum(any(map(_is_finding, of_it)) for of_it in read.values())
    return Counter(
        {
            "rows": len(rows),
            "images": len(read),
            "images without a finding": len(read) - abnormal,
            "images with a finding": abnormal,
        }
    )
