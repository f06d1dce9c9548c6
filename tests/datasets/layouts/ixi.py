from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from tests.datasets.layouts import ABNORMAL, HEALTHY, pictures

ONE_CLASS = True  # nobody is ill: there is nothing to measure
SITES = ("Guys", "HH", "IOP")
SAGITTAL = np.array([[0, 0, 1.2, -19.2], [-1.0, 0, 0, 16], [0, 1.0, 0, -6], [0, 0, 0, 1]])  # axes P, S, R
COLUMNS = (
    *("IXI_ID", "SEX_ID (1=m, 2=f)", "HEIGHT", "WEIGHT", "ETHNIC_ID", "MARITAL_ID", "OCCUPATION_ID"),
    *("QUALIFICATION_ID", "DOB", "DATE_AVAILABLE", "STUDY_DATE", "AGE"),
)
ERROR = "#VALUE!"

Cell = float | str | None


def write(root: Path) -> None:
    """Files without folders, as in the tar; T2 beside T1; the table as it is distributed."""
    root.mkdir(parents=True, exist_ok=True)
    for person, picture in enumerate(pictures(HEALTHY + ABNORMAL), start=1):
        volume(root / f"IXI{person:03}-{SITES[person % 3]}-{800 + person:04}-T1.nii.gz", picture)
    volume(root / "IXI001-HH-0801-T2.nii.gz", pictures(1, seed=2)[0])
    sheet(root / "IXI.xls", rows())


def volume(path: Path, picture: NDArray[np.float32]) -> None:
    """A head of one axial picture repeated, stored in sagittal slices of 16 bits."""
    stack = np.repeat(np.round(picture * 1000).astype(np.int16)[:, None], 12, axis=1)
    nibabel.Nifti1Image(stack, SAGITTAL).to_filename(path)


def rows() -> list[list[Cell]]:
    """A row a person, with zeros, a contradiction, cells that are empty or an error, a stray row and one of nothing."""
    there = [row(person, 1 + person % 2, 20.5000136892539 + person) for person in range(1, HEALTHY + ABNORMAL + 1)]
    there[1] = row(2, 0, 0)
    there[3] = row(4, 1, None)
    there[5] = row(6, 1, ERROR)
    return [*there[:3], row(3, 1, 44.5), *there[3:], row(900, 2, 30.25), [None] * len(COLUMNS)]


def row(person: Cell, sex: Cell, age: Cell) -> list[Cell]:
    return [person, sex, 170, 70, 1, 2, 1, 5, "1966-08-20", 1, 38504, age]


def sheet(path: Path, rows: Sequence[Sequence[Cell]], header: Sequence[str] = COLUMNS, name: str = "Table") -> None:
    """An .xls file with a sheet of that name and one that explains the codes."""
    from xlwt import Workbook

    book = Workbook()
    book.add_sheet("Ethnic").write(0, 0, "ID")
    table = book.add_sheet(name)
    for i, cells in enumerate((header, *rows)):
        for j, cell in enumerate(cells):
            if cell == ERROR:
                table.row(i).set_cell_error(j, ERROR)
            elif cell is not None:
                table.write(i, j, cell)
    book.save(str(path))
