"""A folder of images, in the MVTec convention or without any.

    root/train/good/*                               healthy
    root/validation/good/*, root/calibration/good/* healthy, optional
    root/test/good/*, root/test/<finding>/*         healthy, and with that finding
    root/ground_truth/<finding>/<stem>_mask.png     optional; .nii.gz and the other suffixes too
    root/metadata.csv                               optional: file, patient_id, any other column is a group

DICOM files of one series in one folder are one case, a volume; one with a gap is as many as it has parts. A folder
without train, validation, calibration and test holds healthy images at any depth, not yet split.
The trap is a patient with several images: without `patient_id` in metadata.csv every picture counts as a patient of
its own, and one person may be learned from and tested on.
"""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from salus.core import Case, Dataset, Finding, Label, Source, Split
from salus.core.errors import LayoutError
from salus.core.kinds import SUFFIXES, is_dicom, is_image, stem
from salus.datasets._series import Stack, stacks

SPLITS = (Split.TRAIN, Split.VALIDATION, Split.CALIBRATION, Split.TEST)
HEALTHY = ("good", "normal", "healthy")  # names that say so; the convention knows the first
EXPECTED = (
    f"Expected train/good/*, test/good/*, test/<finding>/*, or any images ({' '.join(SUFFIXES)}) of healthy people"
)


@dataclass(frozen=True)
class _Row:
    patient_id: str
    groups: dict[str, str]


def folder(root: Path) -> Dataset:
    """The cases under `root`, sorted; no pixel is opened.

    A case is called by its path relative to `root` without suffix; with it where two files differ in nothing else.
    Hidden files and files of other kinds are passed over.

    Raises:
        LayoutError: no such folder, no image in it, an image outside the convention, or a metadata.csv that does not
            fit the files.
    """
    if not root.is_dir():
        raise LayoutError(f"{root} is not a folder. {EXPECTED}.")
    for found in root.iterdir():
        if found.name not in SPLITS and found.name.lower() in SPLITS and found.is_dir():
            raise LayoutError(f"{found} would be passed over: rename it to '{found.name.lower()}'.")
    convention = any((root / split).is_dir() for split in SPLITS)
    images = _images(root)
    files = [file for file in images if not convention or file.parts[0] in SPLITS]
    if not files:
        raise LayoutError(f"{root} holds no image. {EXPECTED}; it holds: {_listing(root)}.")
    metadata = _metadata(root)
    stems = Counter(_stem(file) for file in files)
    cases = []
    studies, left_out = _studies(root, files, stems)
    for case_id, stack in studies:
        inside = [PurePosixPath(path.relative_to(root).as_posix()) for path in stack.files]
        split, finding = _place(root, inside[0]) if convention else (Split.NONE, "good")
        row = _row(root, metadata, PurePosixPath(case_id), inside)
        cases.append(
            Case(
                case_id=case_id,
                patient_id=row.patient_id or stack.patient or case_id,
                images=tuple(Source(path=path) for path in stack.files),
                label=Label.NORMAL if finding == "good" else Label.ABNORMAL,
                findings=()
                if finding == "good"
                else (Finding(name=finding, mask=_mask(root, finding, case_id, inside[0])),),
                split=split,
                groups=row.groups,
                remark=stack.remark,
            )
        )
    if not cases:
        raise LayoutError(f"{root} holds no image of a patient: {left_out[0][0]} is {left_out[0][1]}.")
    outside = f"outside of {', '.join(f'{split}/' for split in SPLITS)}, which make a data set of this folder"
    left_out += [(str(file), outside) for file in images if convention and file.parts[0] not in SPLITS]
    left_out += [(str(path.relative_to(root)), "an archive: name it itself") for path in sorted(root.rglob("*.zip"))]
    return Dataset(root.resolve().name or "folder", cases, left_out)


def studies_in(root: Path, files: Iterable[Path]) -> Dataset:
    """The cases that some files under `root` are, without label: pictures, volumes, DICOM series; by name.

    Raises:
        LayoutError: none of them is an image.
    """
    inside = [PurePosixPath(path.relative_to(root).as_posix()) for path in sorted(files) if is_image(path)]
    found, left_out = _studies(root, inside, Counter(_stem(file) for file in inside))
    cases = [
        Case(
            case_id=name,
            patient_id=stack.patient or name,
            images=tuple(Source(path=path) for path in stack.files),
            remark=stack.remark,
        )
        for name, stack in found
    ]
    return Dataset(root.resolve().name or "files", cases, left_out)


def _studies(
    root: Path, files: list[PurePosixPath], stems: Mapping[str, int]
) -> tuple[list[tuple[str, Stack]], list[tuple[str, str]]]:
    """What is one case, under its name, sorted: a file, or the DICOM files of a series, called by their folder.

    Where a folder holds more than one case, they are called by their first files. Beside them (file, reason) of DICOM
    files that are no images.
    """
    paths = [root / file for file in files]
    dicom = [path for path in paths if is_dicom(path)]
    known = set(dicom)
    found = [Stack(files=(path,)) for path in paths if path not in known]
    series, no_images = stacks(dicom)
    found += series
    together = Counter(stack.files[0].parent for stack in found)
    named = []
    for stack in found:
        first = PurePosixPath(min(stack.files).relative_to(root).as_posix())
        name = _stem(first) if stems[_stem(first)] == 1 else str(first)
        if len(stack.files) > 1 and together[stack.files[0].parent] == 1:
            name = str(first.parent) if first.parent != PurePosixPath(".") else root.resolve().name
        named.append((name, str(first), stack))
    often = Counter(name for name, _, _ in named)
    chosen = [(name if often[name] == 1 else whole, stack) for name, whole, stack in named]  # p1.nii.gz beside p1/
    left_out = [(path.relative_to(root).as_posix(), reason) for path, reason in no_images]
    return sorted(chosen, key=lambda pair: pair[0]), left_out


def _row(root: Path, metadata: Mapping[PurePosixPath, _Row], case: PurePosixPath, files: list[PurePosixPath]) -> _Row:
    """What metadata.csv says of a case: of its files, or of a series by its folder."""
    found = {str(row): row for name in (*files, case, *case.parents) if (row := metadata.get(name)) is not None}
    if len(found) > 1:
        raise LayoutError(f"{root / 'metadata.csv'}: the rows of the files of '{case}' differ; they are one case.")
    return next(iter(found.values()), _Row("", {}))


def _images(root: Path) -> list[PurePosixPath]:
    """Paths relative to `root`, sorted. Links to folders are followed, each folder once."""
    found, seen = [], set()
    for place, folders, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "ground_truth")
        inside = PurePosixPath(Path(place).relative_to(root).as_posix())
        found += [inside / n for n in files if is_image(Path(place) / n)]
    return sorted(found)


def _stem(file: PurePosixPath) -> str:
    """The path without its suffix, `.nii.gz` being one."""
    return str(file.with_name(stem(file.name)))


def _place(root: Path, file: PurePosixPath) -> tuple[Split, str]:
    """Split and finding of a file in the convention."""
    split, finding = Split(file.parts[0]), file.parts[1]
    if len(file.parts) < 3:
        raise LayoutError(f"{root / file} lies directly in {split}/. {EXPECTED}.")
    if finding != "good" and finding.lower() in HEALTHY:
        raise LayoutError(f"{root / split / finding} would count as a finding; healthy images belong in {split}/good.")
    if split != Split.TEST and finding != "good":
        raise LayoutError(
            f"{root / file}: {split}/ may hold healthy images only, in {split}/good. Found {split}/{finding}."
        )
    return split, finding


def _mask(root: Path, finding: str, case_id: str, file: PurePosixPath) -> Source | None:
    masks = root / "ground_truth" / finding
    if not masks.is_dir():
        return None
    for name in (_stem(file), case_id):
        for suffix in SUFFIXES:
            if (mask := masks / f"{PurePosixPath(name).relative_to(f'test/{finding}')}_mask{suffix}").is_file():
                return Source(path=mask)
    return None  # the finding is known, its place is not; measuring says so


def _metadata(root: Path) -> dict[PurePosixPath, _Row]:
    table = root / "metadata.csv"
    if not table.is_file():
        return {}
    rows: dict[PurePosixPath, _Row] = {}
    for line, row in _lines(table):
        file = PurePosixPath(row.pop("file", "").replace("\\", "/"))
        if not (root / file).exists() or file == PurePosixPath("."):
            raise LayoutError(f"{table}, line {line}: there is no file '{file}' in {root}.")
        if file in rows:
            raise LayoutError(f"{table}, line {line}: '{file}' has a row already.")
        rows[file] = _Row(row.pop("patient_id", ""), row)
    return rows


def _lines(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and the filled-in cells of each row."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if "file" not in (reader.fieldnames or ()):
                raise LayoutError(
                    f"{table} has no column 'file' (paths relative to {table.parent}); it has: "
                    f"{', '.join(reader.fieldnames or ()) or 'nothing'}."
                )
            for row in reader:
                yield reader.line_num, {str(name): cell.strip() for name, cell in row.items() if name and cell}
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise LayoutError(f"{table} cannot be read as a comma-separated table in UTF-8: {error}.") from error


def _listing(root: Path) -> str:
    names = sorted(path.name for path in root.iterdir())
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "nothing") + more
