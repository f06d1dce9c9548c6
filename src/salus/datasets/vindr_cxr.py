"""VinDr-CXR: chest radiographs, boxes of three radiologists each, or of five who agreed.

As the VinBigData challenge distributes it:

    root/train.csv                  one row a box, or a reader who found nothing; corners in pixels
    root/train/<image_id>.dicom     8 to 16 bits, some MONOCHROME1
    root/test/<image_id>.dicom      optional; no labels

As PhysioNet does:

    root/annotations/image_labels_train.csv    one row a reader: image_id, rad_id, and 0 or 1 for each of 28 labels
    root/annotations/image_labels_test.csv     one row an image, what five agreed on: without rad_id
    root/annotations/annotations_train.csv     one row a box as above; annotations_test.csv without rad_id
    root/train/<image_id>.dicom                likewise root/test

Nguyen et al. 2022, doi:10.1038/s41597-022-01498-w. The trap: each image has the boxes of three readers who drew apart
from each other. As they are, one finding counts up to three times; here boxes that two of them drew alike become one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean

from salus.core import Case, Dataset, Finding, Label, Source, Split
from salus.core.errors import LayoutError
from salus.datasets._layout import by_stem, differences, find, numbers, table
from salus.datasets.protocol import hold_out

NAME = "vindr-cxr"
NOTHING = "No finding"
CORNERS = ("x_min", "y_min", "x_max", "y_max")
COLUMNS = ("image_id", "class_name", *CORNERS)
READER = "rad_id"
AGREED = "five who agreed"  # the reader where no column names one
READERS = 3  # of each image
AGREEING = 2  # of them make a box true
OVERLAP = 0.4  # IoU from which two boxes are of one finding
CHALLENGE, RELEASE = "train.csv", "annotations/image_labels_train.csv"  # what tells the two distributions apart
PUBLISHED = {
    "rows": 67_914,
    "images": 15_000,
    "images without a finding": 10_606,
    "images with a finding": 4_394,
}
PUBLISHED_PARTS = {"images in train": 15_000, "images in test": 3_000}
TESTED = 1_000 / 10_606  # of the normal images, Med-AD's share of normal test images
EXPECTED = (
    "train.csv and train/*.dicom, the unpacked challenge archive, or annotations/*.csv, train/*.dicom and test/*.dicom "
    "of PhysioNet"
)

Corners = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Mark:
    """What a reader said of an image: a finding, where it is if that is known, or that there is nothing."""

    reader: str
    name: str
    corners: Corners | None

    @property
    def is_finding(self) -> bool:
        return self.name.casefold() != NOTHING.casefold()


def vindr_cxr(root: Path) -> Dataset:
    """The labelled images under `root`; none is opened.

    NORMAL: three readers, or the five who agreed, all "No finding". ABNORMAL: a finding of any reader; what two of them
    drew alike, or the five agreed on, has a place, and where nothing has one the classes are findings without. UNKNOWN:
    neither. A patient is an image.

    Of the challenge all abnormal images, and 9.4 % of the normal ones, are in the test. PhysioNet's own parts are kept;
    what is not normal in its training part is left out.

    Raises:
        LayoutError: not laid out so, a table with other columns, or a cell that is no number.
    """
    path = find(root, CHALLENGE, RELEASE, expected=EXPECTED)
    return _challenge(root) if path == root / CHALLENGE else _release(root)


def _challenge(root: Path) -> Dataset:
    path = root / CHALLENGE
    read: dict[str, list[Mark]] = {}
    for row in table(path, (*COLUMNS, READER)):
        read.setdefault(row["image_id"], []).append(_mark(path, row))
    cases, left_out = _cases(root, "train", read, CHALLENGE)
    unlabelled = by_stem(root / "test", ".dicom")
    left_out += [(name, "of the challenge's test, without a label") for name in unlabelled]
    return Dataset(NAME, hold_out(NAME, cases, TESTED), left_out, differences(_counts(read), PUBLISHED))


def _release(root: Path) -> Dataset:
    cases, left_out, found = [], [], {}
    for part, split in (("train", Split.TRAIN), ("test", Split.TEST)):
        read = _labelled(root, part)
        found[f"images in {part}"] = len(read)
        there, without = _cases(root, part, read, f"image_labels_{part}.csv")
        left_out += without
        for case in there:
            if case.label == Label.NORMAL or split == Split.TEST:
                cases.append(replace(case, split=split))
            else:
                left_out.append((case.case_id, f"{case.label}, in the training part"))
    return Dataset(NAME, cases, left_out, differences(found, PUBLISHED_PARTS))


def _labelled(root: Path, part: str) -> dict[str, list[Mark]]:
    """What was said of each image of a part of PhysioNet's release. Only the table of labels can say "No finding"."""
    reader = (READER,) if part == "train" else ()
    path = find(root, f"annotations/image_labels_{part}.csv", expected=EXPECTED)
    read: dict[str, list[Mark]] = {}
    for row in table(path, ("image_id", *reader, NOTHING)):
        names = [name for name in row if name not in ("image_id", READER)]
        said = dict(zip(names, numbers(path, row, *names), strict=True))
        if not set(said.values()) <= {0, 1}:
            raise LayoutError(f"{path}: a label of '{row['image_id']}' is neither 0 nor 1.")
        marks = [Mark(row.get(READER, AGREED), name, None) for name, value in said.items() if value]
        read.setdefault(row["image_id"], []).extend(marks)
    path = find(root, f"annotations/annotations_{part}.csv", expected=EXPECTED)
    for row in table(path, (*COLUMNS, *reader)):
        mark = _mark(path, row)
        if mark.is_finding and row["image_id"] in read:
            read[row["image_id"]].append(mark)
    return read


def _mark(path: Path, row: Mapping[str, str]) -> Mark:
    """A row of boxes; without a place where the corners are empty, as of "No finding", or the box has no area."""
    corners = None
    if any(row[name] for name in CORNERS):
        left, top, right, bottom = numbers(path, row, *CORNERS)
        corners = (left, top, right, bottom) if right > left and bottom > top else None
    return Mark(row.get(READER, AGREED), row["class_name"], corners)


def _cases(
    root: Path, part: str, read: Mapping[str, Sequence[Mark]], name_of_table: str
) -> tuple[list[Case], list[tuple[str, str]]]:
    """The cases of a part, and what is left out of it."""
    images = by_stem(find(root, part, expected=EXPECTED), ".dicom")
    left_out = [(name, f"no row in {name_of_table}") for name in images if name not in read]
    left_out += [(name, "no image") for name in sorted(read) if name not in images]
    return [_case(name, read[name], images[name]) for name in sorted(read) if name in images], left_out


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


def _case(name: str, marks: Sequence[Mark], image: Path) -> Case:
    findings = _findings(marks)
    readers = {mark.reader for mark in marks}
    enough = AGREED in readers or len(readers) >= READERS
    return Case(
        case_id=name,
        patient_id=name,
        images=(Source(path=image),),
        label=Label.ABNORMAL if findings else Label.NORMAL if enough else Label.UNKNOWN,
        findings=findings,
    )


def _findings(marks: Sequence[Mark]) -> tuple[Finding, ...]:
    """What readers agree on, in boxes; where they agree on nothing, what any of them named."""
    drawn: dict[str, list[tuple[str, Corners]]] = {}
    for mark in dict.fromkeys(marks):  # each once
        if mark.is_finding:
            boxes = drawn.setdefault(mark.name, [])
            if mark.corners:
                boxes.append((mark.reader, mark.corners))
    placed = [
        Finding(name=name, box=(left, top, right - left, bottom - top))
        for name, boxes in sorted(drawn.items())
        for left, top, right, bottom in sorted(box for reader, box in boxes if reader == AGREED) + fused(boxes)
    ]
    return tuple(placed or [Finding(name=name) for name in sorted(drawn)])


def _counts(read: Mapping[str, Sequence[Mark]]) -> Counter[str]:
    abnormal = sum(any(mark.is_finding for mark in marks) for marks in read.values())
    return Counter(
        {
            "rows": sum(map(len, read.values())),
            "images": len(read),
            "images without a finding": len(read) - abnormal,
            "images with a finding": abnormal,
        }
    )
