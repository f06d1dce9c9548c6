from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from tests.datasets.layouts import ABNORMAL, HEALTHY, pictures, text

ONE_CLASS = True  # nobody is ill: there is nothing to measure
SITES = ("Guys", "HH", "IOP")
SAGITTAL = np.array([[0, 0, 1.2, -19.2], [-1.0, 0, 0, 16], [0, 1.0, 0, -6], [0, 0, 0, 1]])  # axes P, S, R


def volume(path: Path, picture: NDArray[np.float32]) -> None:
    """A head of one axial picture repeated, stored in sagittal slices of 16 bits."""
    stack = np.repeat(np.round(picture * 1000).astype(np.int16)[:, None], 12, axis=1)
    nibabel.Nifti1Image(stack, SAGITTAL).to_filename(path)


def write(root: Path) -> None:
    """Files without folders, as in the tar; T2 beside T1; a table with zeros, a contradiction and a stray row."""
    root.mkdir(parents=True, exist_ok=True)
    rows = ['IXI_ID,"SEX_ID (1=m, 2=f)",HEIGHT,AGE']
    for person, picture in enumerate(pictures(HEALTHY + ABNORMAL), start=1):
        volume(root / f"IXI{person:03}-{SITES[person % 3]}-{800 + person:04}-T1.nii.gz", picture)
        rows.append(f"{person},{1 + person % 2},{160 + person},{20 + person}.5000136892539")
    volume(root / "IXI001-HH-0801-T2.nii.gz", pictures(1, seed=2)[0])
    rows[2] = "2,0,0,0.00"
    rows += ["3,1,170,44.5", "900,2,165,30.25"]
    text(root / "IXI.csv", "\n".join(rows) + "\n", bom=True)
