from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from tests.datasets.layouts import ABNORMAL, HEALTHY, pictures, text

SLICES = 5


def volume(path: Path, slices: NDArray[np.float32]) -> None:
    """An HDF5 file of fastMRI: (slices, rows, columns) in small numbers, lowest row first, beside k-space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["ismrmrd_header"] = "<ismrmrdHeader/>"
        file["kspace"] = np.zeros((len(slices), 2, 4, 4), dtype=np.complex64)
        file["reconstruction_rss"] = (slices * 3e-4)[:, ::-1].astype(np.float32)
        file.attrs["acquisition"] = "AXT1"


def write(root: Path) -> None:
    """Two archives, annotations in a folder of their own; an unclear volume, one nobody read, other contrasts."""
    rows, listed = ["file,slice,study_level,x,y,width,height,label"], []

    def add(name: str, picture: NDArray[np.float32], *found: str, read: bool = True) -> None:
        archive = f"brain_multicoil_train_batch_{int(name[-1]) % 2}"
        volume(root / archive / f"{name}.h5", np.repeat(picture[None], SLICES, axis=0))
        rows.extend(f"{name},{row}" for row in found)
        listed.extend([name] * read)

    for person, picture in enumerate(pictures(HEALTHY), start=1):
        add(f"file_brain_AXT1_202_60000{person:02}", picture, "0,Yes,,,,,Normal for age")
    for person, picture in enumerate(pictures(ABNORMAL, hole=True), start=51):
        boxes = [f"{index},No,12,12,8,8,Nonspecific lesion" for index in (2, 3)]
        add(f"file_brain_AXT1_201_60000{person}", picture, *boxes, "3,No,4,4,3,3,Possible artifact")
    small = "0,Yes,,,,,Global label: Small vessel chronic white matter ischemic change"
    add("file_brain_AXT1_206_2060091", pictures(1, seed=2)[0], small)
    add("file_brain_AXT1_206_2060092", pictures(1, seed=3)[0], read=False)
    add("file_brain_AXFLAIR_200_6002425", pictures(1, seed=4)[0], "2,No,91,132,7,6,Nonspecific white matter lesion")
    text(root / "annotations/brain.csv", "\n".join(rows) + "\n")
    text(root / "annotations/brain_file_list.csv", "\n".join(listed) + "\n")
