"""PadChest: chest radiographs with up to a dozen labels each, read off their reports.

    root/PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv    one row an image; .csv.gz does too
    root/<ImageDir>/<ImageID>                                    16-bit grey PNG, one folder an archive; any folder does

Bustos et al. 2020, doi:10.1016/j.media.2020.101797. Only the projection PA of adults is used. The trap: most labels
are a network's, "unchanged" is no "normal", and images of MONOCHROME1 are stored with bright and dark exchanged.
"""

import ast
from pathlib import Path

from salus.core import Case, Dataset, Finding, Label, Source
from salus.datasets._layout import by_stem, differences, find, table
from salus.datasets.protocol import hold_out

NAME = "padchest"
TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
COLUMNS = (
    *("ImageID", "PatientID", "Projection", "Pediatric", "MethodLabel", "Labels"),
    "PhotometricInterpretation_DICOM",
)
GROUPS = {"sex": "PatientSex_DICOM", "manufacturer": "Manufacturer_DICOM", "labelled_by": "MethodLabel"}
NOTHING_SEEN = ("normal", "unchanged", "suboptimal study", "exclude")  # labels that name no finding
ADULT = ("no", "")
PUBLISHED = {"images": 160_868}
TESTED = 0.1  # of the normal-only patients; nothing is published, the other chest sets have 9 to 11 %
EXPECTED = f"{TABLE} or {TABLE}.gz, and folders of PNG files"


def padchest(root: Path) -> Dataset:
    """The PA images of adults under `root`; none is opened.

    NORMAL: "normal" alone, by a physician. ABNORMAL: a finding, whoever labelled it. UNKNOWN: the others, such as
    "unchanged", no label, or "normal" by the network. Patients with an ABNORMAL image, and 10 % of those with NORMAL
    ones only, are in the test.

    Raises:
        LayoutError: not laid out so, or a table with other columns.
    """
    path = find(root, TABLE, f"{TABLE}.gz", expected=EXPECTED)
    images = by_stem(root, ".png")
    cases, left_out, seen = [], [], set()
    for row in table(path, COLUMNS):
        name = row["ImageID"].removesuffix(".png")
        names = listed(row["Labels"])
        if name in seen:
            left_out.append((name, "a second row in the table"))
        elif row["Projection"] != "PA":
            left_out.append((name, "not the projection PA"))
        elif row["Pediatric"].casefold() not in ADULT:
            left_out.append((name, "a child"))
        elif names is None:
            left_out.append((name, "its Labels are not the text of a list"))
        elif "exclude" in names:
            left_out.append((name, "labelled 'exclude'"))
        elif name not in images:
            left_out.append((name, "no image"))
        else:
            cases.append(_case(row, name, names, images[name]))
        seen.add(name)
    cases.sort(key=lambda case: case.case_id)
    notes = differences({"images": len(seen)}, PUBLISHED)
    return Dataset(NAME, hold_out(NAME, cases, TESTED), sorted(left_out), notes)


def listed(text: str) -> set[str] | None:
    """The labels in the text of a list, such as "['normal', ' unchanged']"; none in "", and None of any other text."""
    if not text:
        return set()
    try:
        labels = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        return None
    return {label.strip() for label in labels} - {""}


def findings_of(labels: set[str]) -> tuple[Finding, ...]:
    """A finding a label, without a place; of those that name none, such as "unchanged", nothing."""
    return tuple(Finding(name=label) for label in sorted(labels) if label not in NOTHING_SEEN)


def _case(row: dict[str, str], name: str, labels: set[str], image: Path) -> Case:
    findings = findings_of(labels)
    normal = labels == {"normal"} and row["MethodLabel"] == "Physician"
    return Case(
        case_id=name,
        patient_id=row["PatientID"],
        images=(Source(path=image, inverted=row["PhotometricInterpretation_DICOM"] == "MONOCHROME1"),),
        label=Label.ABNORMAL if findings else Label.NORMAL if normal else Label.UNKNOWN,
        findings=findings,
        groups={group: row[column] for group, column in GROUPS.items() if row.get(column)},
    )
