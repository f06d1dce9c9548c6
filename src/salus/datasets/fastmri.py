"""fastMRI brain volumes with the boxes of fastMRI+: T1-weighted without contrast agent, slice by slice.

    root/**/file_brain_AXT1_<group>_<id>.h5    array reconstruction_rss (slices, rows, columns), lowest row first
    root/brain.csv                             file, slice, study_level, x, y, width, height, label
    root/brain_file_list.csv                   the volumes that were read, one a line, no header

Zhao et al. 2022, doi:10.1038/s41597-022-01255-z. The boxes are those of the picture turned upside down, which is how
the slices are read. A volume on the list without a row was read and had nothing; one that is not on it is unknown.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from salus.core import Case, Dataset, Finding, Label, Source, Split
from salus.core.errors import LayoutError
from salus.datasets._layout import by_stem, differences, find, table
from salus.datasets.protocol import hold_out

NAME = "fastmri"
T1 = "file_brain_AXT1_"
COLUMNS = ("file", "slice", "study_level", "x", "y", "width", "height", "label")
HEALTHY = "Normal for age"  # at study level
VARIANT = "Normal variant"
ARTIFACT = "Possible artifact"
NO_FINDING = (VARIANT, ARTIFACT)
USUAL = 3  # the slice of a volume without an abnormal one; ours: about the level of the lateral ventricles
TESTED = 0.17  # of the normal volumes, RA's share (30 of 176)
PUBLISHED = {
    "rows in brain.csv": 8_213,
    "local rows": 7_570,
    "study-level rows": 643,
    "volumes listed": 1_001,
    "T1 volumes listed": 340,
    "of them with an image": 340,
}
PLACES = ("", "annotations/", "Annotations/", "fastmri-plus/Annotations/")
EXPECTED = "file_brain_AXT1_*.h5 at any depth, and brain.csv and brain_file_list.csv of fastMRI+"

RA_CLASSES = (
    *("absent_septum", "craniatomy", "dural", "edema", "encephalomalacia", "enlarged_ventricles", "intraventricular"),
    *("lesions", "mass_all", "posttreatment", "resection", "sinus", "wml"),
)
RA_UNCOUNTED = "artefacts"  # no class of the paper, but its boxes tell the slice, too
RA_MASK = re.compile(rf"({T1}\d+_\d+)_(.+)_(\d+)")  # volume, label, place among the sorted labels of the slice
RA_PUBLISHED = {"boxes": 171, "volumes with boxes": 92, "healthy volumes": 30}


def fastmri(root: Path) -> Dataset:
    """The T1 slices under `root` that fastMRI+ allows to label; no pixel is opened.

    ABNORMAL: every slice with a box whose label is neither "Normal variant" nor "Possible artifact". Of volumes without
    one slice 3 is taken. NORMAL: said to be normal for age, and no box but of a normal variant. UNKNOWN: the others. A
    volume is a patient. Those with an abnormal slice, and 17 % of the normal ones, are in the test.

    Raises:
        LayoutError: not laid out so, or a table with other columns or cells.
    """
    listed, rows = _listed(root), _rows(root)
    of_volume, left_out = _by_volume(rows)
    images = by_stem(root, ".h5")
    cases: list[Case] = []
    for volume in sorted(listed | images.keys()):
        if not volume.startswith(T1):
            left_out.append((volume, "not a T1-weighted brain without contrast agent"))
        elif volume not in listed:
            left_out.append((volume, "not read for fastMRI+, so unknown"))
        elif volume not in images:
            left_out.append((volume, "no image"))
        else:
            cases += _slices(images[volume], of_volume.get(volume, ()))
    local, t1 = sum(row.local for row in rows), {volume for volume in listed if volume.startswith(T1)}
    counts = (len(rows), local, len(rows) - local, len(listed), len(t1), len(t1 & images.keys()))
    notes = differences(dict(zip(PUBLISHED, counts, strict=True)), PUBLISHED)
    return Dataset(NAME, hold_out(NAME, cases, TESTED), left_out, notes)


def ra_test(root: Path, lists: Path) -> Dataset:
    """RA's brain test (arXiv:2401.10637) from its lists: 171 boxes of 13 classes on 92 volumes, and 30 healthy ones.

    The lists name a box by volume, label and place among the sorted labels of a slice, but do not tell the slice. Taken
    is one that fits all boxes listed of the volume and has no other, else one that fits; the nearest to 3, the lower of
    two. Healthy volumes take slice 3. Findings are called by RA's classes.

    Args:
        root: as of `fastmri`.
        lists: RA's `data/fastMRI/splits`, with <class>_ann.csv and normal_test.csv. They are GPL-3.0 and not in Salus.

    Raises:
        LayoutError: as `fastmri`; a list that is missing, or a box that brain.csv does not have.
    """
    of_volume, _ = _by_volume(_rows(root))
    images = by_stem(root, ".h5")
    boxes: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    for name in (*RA_CLASSES, RA_UNCOUNTED):
        for stem in _stems(lists / f"{name}_ann.csv"):
            if (mask := RA_MASK.fullmatch(stem)) is None:
                raise LayoutError(f"{lists / name}_ann.csv: '{stem}' is not '<volume>_<label>_<number>'.")
            boxes[mask[1]].append((name, mask[2], int(mask[3])))
    counted = {volume for volume, found in boxes.items() if any(name != RA_UNCOUNTED for name, *_ in found)}
    left_out = [(volume, "artefacts only, not counted in the paper") for volume in sorted(boxes.keys() - counted)]
    healthy = set(_stems(lists / "normal_test.csv"))
    cases = []
    for volume in sorted(counted | healthy):
        if volume not in images:
            left_out.append((volume, "no image"))
        elif volume in counted:
            cases.append(_ra_case(images[volume], of_volume.get(volume, ()), boxes[volume]))
        else:
            cases.append(_case(images[volume], USUAL, Label.NORMAL))
    counts = {
        "boxes": sum(len(case.findings) for case in cases),
        "volumes with boxes": sum(case.label == Label.ABNORMAL for case in cases),
        "healthy volumes": sum(case.label == Label.NORMAL for case in cases),
    }
    cases = [replace(case, split=Split.TEST) for case in cases]
    return Dataset("fastmri-ra", cases, left_out, differences(counts, RA_PUBLISHED))


def ra_training(lists: Path) -> list[str]:
    """Whom RA's brain model learned from, in the order of its list: patient ids of `ixi` (581) and `fastmri` (130).

    Args:
        lists: as of `ra_test`; `ixi_normal_train.csv` is read.

    Raises:
        LayoutError: it is missing, or names something else.
    """
    path = lists / "ixi_normal_train.csv"
    people = []
    for stem in _stems(path):
        if (person := re.match(rf"(?:sub-)?(IXI\d{{3}}|{T1}\d+_\d+)", stem)) is None:
            raise LayoutError(f"{path}: '{stem}' is of neither IXI nor fastMRI.")
        people.append(person[1])
    return people


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row of brain.csv; at study level without a box. `index` is the slice, from 0."""

    volume: str
    index: int
    local: bool
    label: str
    box: tuple[float, float, float, float] | None

    @property
    def has_area(self) -> bool:
        return self.box is not None and self.box[2] > 0 and self.box[3] > 0


def _rows(root: Path) -> list[_Row]:
    path = find(root, *(f"{place}brain.csv" for place in PLACES), expected=EXPECTED)
    return [_row(path, cells) for cells in table(path, COLUMNS)]


def _row(path: Path, cells: Mapping[str, str]) -> _Row:
    try:
        local = {"No": True, "Yes": False}[cells["study_level"]]
        x, y, width, height = (float(cells[name]) if local else 0.0 for name in ("x", "y", "width", "height"))
        index = int(cells["slice"])
    except (ValueError, KeyError) as error:
        raise LayoutError(f"{path}: '{','.join(cells[name] for name in COLUMNS)}' is no row of fastMRI+.") from error
    box = (x, y, width, height) if local else None
    return _Row(volume=cells["file"], index=index, local=local, label=cells["label"], box=box)


def _listed(root: Path) -> set[str]:
    path = find(root, *(f"{place}brain_file_list.csv" for place in PLACES), expected=EXPECTED)
    names = path.read_text(encoding="utf-8-sig", errors="replace").split()
    if strange := [name for name in names if not re.fullmatch(r"file_brain_\w+", name)]:
        raise LayoutError(f"{path} has the line '{strange[0]}', which is no name of a volume (file_brain_...).")
    return set(names)


def _by_volume(rows: Iterable[_Row]) -> tuple[dict[str, list[_Row]], list[tuple[str, str]]]:
    """Rows by their volume, each once, and the rows that are no finding."""
    found: dict[str, list[_Row]] = defaultdict(list)
    left_out, seen = [], set()
    for row in rows:
        what = f"{row.volume}, slice {row.index}, {row.label}"
        if row in seen:
            left_out.append((what, "a second equal row in brain.csv"))
            continue
        seen.add(row)
        found[row.volume].append(row)
        if row.local and not row.has_area:
            left_out.append((what, "a box without area"))
    return found, left_out


def _slices(image: Path, rows: Sequence[_Row]) -> list[Case]:
    local = [row for row in rows if row.local]
    study = {row.label for row in rows if not row.local}
    groups = {"study_level": "; ".join(sorted(study))} if study else {}
    found: dict[int, list[_Row]] = defaultdict(list)
    for row in local:
        if row.label not in NO_FINDING and row.has_area:
            found[row.index].append(row)
    if found:
        return [
            _case(image, index, Label.ABNORMAL, _boxes(found[index]), groups, _artifacts(local, index))
            for index in sorted(found)
        ]
    normal = HEALTHY in study and all(row.label == VARIANT for row in local)
    return [_case(image, USUAL, Label.NORMAL if normal else Label.UNKNOWN, groups=groups)]


def _boxes(rows: Iterable[_Row]) -> tuple[Finding, ...]:
    return tuple(Finding(name=row.label, box=row.box) for row in rows)


def _artifacts(rows: Iterable[_Row], index: int) -> tuple[Finding, ...]:
    return _boxes(row for row in rows if (row.index, row.label) == (index, ARTIFACT) and row.has_area)


def _case(
    image: Path,
    index: int,
    label: Label,
    findings: Sequence[Finding] = (),
    groups: Mapping[str, str] | None = None,
    uncounted: tuple[Finding, ...] = (),
) -> Case:
    return Case(
        case_id=f"{image.stem}/{index:02}",
        patient_id=image.stem,
        images=(Source(path=image, array="reconstruction_rss", index=index, flipped=True),),
        label=label,
        findings=tuple(findings),
        uncounted=uncounted,
        groups={"system": image.stem.split("_")[3], **(groups or {})},
    )


def _stems(path: Path) -> list[str]:
    return [PurePosixPath(row["filename"]).stem for row in table(path, ("filename",))]


def _ra_case(image: Path, rows: Iterable[_Row], listed: Sequence[tuple[str, str, int]]) -> Case:
    """The slice of a volume that its (class, label, place) in RA's lists mean, with the boxes that count."""
    slices: dict[int, list[_Row]] = defaultdict(list)
    for row in sorted((row for row in rows if row.local), key=lambda row: row.label):
        slices[row.index].append(row)
    fitting = [
        index
        for index, found in slices.items()
        if all(at < len(found) and found[at].label.lower().replace(" ", "_") == label for _, label, at in listed)
    ]
    if not fitting:
        raise LayoutError(f"{image.stem}: no slice in brain.csv has the boxes of RA's lists: {listed}.")
    best = min(fitting, key=lambda index: (len(slices[index]) != len(listed), abs(index - USUAL), index))
    findings = [Finding(name=name, box=slices[best][at].box) for name, _, at in listed if name != RA_UNCOUNTED]
    return _case(image, best, Label.ABNORMAL, findings, uncounted=_artifacts(slices[best], best))
