"""IXI: T1-weighted brain volumes of healthy adults from three hospitals in London. One class: nobody here is ill.

    root/**/IXI<3 digits>-<site>-<4 digits>-T1.nii.gz    sites Guys and IOP (1.5 T), HH (3 T)
    root/IXI.csv                                         optional: the sheet "Table" of IXI.xls, exported

brain-development.org/ixi-dataset. The volumes are stored in sagittal slices: an axial slice is not the last axis.
"""

import re
from collections import defaultdict
from pathlib import Path

from salus.core import Case, Dataset, Label, Source
from salus.core.errors import LayoutError
from salus.datasets._layout import by_stem, differences, listing, table

NAME = "ixi"
VOLUME = re.compile(r"(IXI\d{3})-([A-Za-z]+)-\d{4}")
ID, SEX, AGE = "IXI_ID", "SEX_ID (1=m, 2=f)", "AGE"
SEXES = {"1": "m", "2": "f"}
PUBLISHED = {"T1 volumes": 581, "people": 581}
EXPECTED = "IXI<number>-<site>-<number>-T1.nii.gz at any depth, as IXI-T1.tar holds them"


def ixi(root: Path) -> Dataset:
    """The T1 volumes under `root`, all NORMAL and not yet split; no pixel is opened.

    Groups are the site, and sex ("m", "f") and age in years where IXI.csv knows one value.

    Raises:
        LayoutError: no T1 volume, or an IXI.csv with other columns or cells.
    """
    people = _people(root / "IXI.csv") if (root / "IXI.csv").is_file() else {}
    cases, left_out = [], []
    for stem, path in sorted(by_stem(root, "-t1.nii.gz").items()):
        if (name := VOLUME.fullmatch(stem)) is None:
            left_out.append((path.name, "not named as IXI names its volumes"))
        else:
            cases.append(
                Case(
                    case_id=f"{stem}-T1",
                    patient_id=name[1],
                    images=(Source(path=path),),
                    label=Label.NORMAL,
                    groups={"site": name[2], **people.get(name[1], {})},
                )
            )
    if not cases:
        raise LayoutError(f"{root} holds no T1 volume. Expected {EXPECTED}; it holds: {listing(root)}.")
    there = {case.patient_id for case in cases}
    left_out += [(person, "a row in IXI.csv without a T1 volume") for person in sorted(people.keys() - there)]
    notes = differences({"T1 volumes": len(cases), "people": len(there)}, PUBLISHED)
    if people and (without := len(there - people.keys())):
        notes.append(f"{without:,} people have no row in IXI.csv")
    return Dataset(NAME, cases, left_out, notes)


def _people(path: Path) -> dict[str, dict[str, str]]:
    """Sex and age by id. 0 and empty are missing; a person with two rows that contradict each other has none."""
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: {"sex": set(), "age": set()})
    for row in table(path, (ID, SEX, AGE)):
        try:
            number, sex, age = (float(row[name] or 0) for name in (ID, SEX, AGE))
            person = values[f"IXI{int(number):03}"]
            person["sex"] |= {SEXES[f"{sex:.0f}"]} if sex else set()
            person["age"] |= {f"{age:.1f}"} if age else set()
        except (ValueError, OverflowError, KeyError) as error:
            raise LayoutError(
                f"{path}: the row {ID} '{row[ID]}', sex '{row[SEX]}', age '{row[AGE]}' is not of IXI: numbers, "
                "and sex 1 or 2 (0 for missing)."
            ) from error
    return {
        person: {group: one.pop() for group, one in sorted(found.items()) if len(one) == 1}
        for person, found in values.items()
    }
