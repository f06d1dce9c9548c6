"""IXI: T1-weighted brain volumes of healthy adults from three hospitals in London. One class: nobody here is ill.

    root/**/IXI<3 digits>-<site>-<4 digits>-T1.nii.gz    sites Guys and IOP (1.5 T), HH (3 T)
    root/IXI.xls                                         optional: sex and age, in the sheet "Table"

brain-development.org/ixi-dataset. The volumes are stored in sagittal slices: an axial slice is not the last axis.
"""

import io
import re
from collections import defaultdict
from pathlib import Path

from salus.core import Case, Dataset, Label, Source
from salus.core.errors import LayoutError, did_you_mean
from salus.datasets._layout import by_stem, differences, listing

NAME = "ixi"
VOLUME = re.compile(r"(IXI\d{3})-([A-Za-z]+)-\d{4}")
TABLE = "IXI.xls"
ID, SEX, AGE = "IXI_ID", "SEX_ID (1=m, 2=f)", "AGE"
SEXES = {"1": "m", "2": "f"}
PUBLISHED = {"T1 volumes": 581, "people": 581}
EXPECTED = "IXI<number>-<site>-<number>-T1.nii.gz at any depth, as IXI-T1.tar holds them"


def ixi(root: Path) -> Dataset:
    """The T1 volumes under `root`, all NORMAL and not yet split; no pixel is opened.

    Groups are the site, and sex ("m", "f") and age in years where IXI.xls knows one value.

    Raises:
        LayoutError: no T1 volume, or an IXI.xls that cannot be read or has other columns or cells.
    """
    sheet = root / TABLE
    people = _people(sheet) if sheet.exists() else {}
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
    left_out += [(person, f"a row in {TABLE} without a T1 volume") for person in sorted(people.keys() - there)]
    notes = differences({"T1 volumes": len(cases), "people": len(there)}, PUBLISHED)
    if not sheet.exists():
        notes.append(f"without {TABLE} nobody's sex and age are known")
    elif without := len(there - people.keys()):
        notes.append(f"{without:,} people have no row in {TABLE}")
    return Dataset(NAME, cases, left_out, notes)


def _people(path: Path) -> dict[str, dict[str, str]]:
    """Sex and age by id. 0 and empty are missing; a person with two rows that contradict each other has none."""
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: {"sex": set(), "age": set()})
    for row in _rows(path):
        try:
            number, sex, age = (float(row[name] or 0) for name in (ID, SEX, AGE))
            if number:  # a row without one is an empty one
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


def _rows(path: Path) -> list[dict[str, str]]:
    """Rows of the sheet "Table", numbers as text; a cell with an error such as #VALUE! is empty."""
    import xlrd

    try:
        sheet = xlrd.open_workbook(str(path), logfile=io.StringIO()).sheet_by_name("Table")
        rows = [
            ["" if cell.ctype == xlrd.XL_CELL_ERROR else str(cell.value).strip() for cell in row]
            for row in sheet.get_rows()
        ]
    except Exception as error:  # a damaged byte makes it fail in any way at all
        raise LayoutError(
            f"{path} cannot be read as an .xls file with a sheet 'Table': {error!r}. Download it again, or move it "
            "away to do without sex and age."
        ) from error
    header = rows[0] if rows else []
    for column in (ID, SEX, AGE):
        if column not in header:
            raise LayoutError(f"{path} has no column '{column}'.{did_you_mean(column, header)}")
    return [dict(zip(header, cells, strict=True)) for cells in rows[1:]]
