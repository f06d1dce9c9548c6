from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from tests.datasets.layouts import ABNORMAL, HEALTHY, pictures

ATLAS = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
ILL = {60: 2, 65: 4, 70: 4, 75: 1}  # axial slice: label of the tumour there


def volume(path: Path, array: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array, ATLAS).to_filename(path)


def write(root: Path) -> None:
    """Everybody has a tumour on four of the slices looked at; another sequence; one patient without labels."""
    holes = pictures(HEALTHY + ABNORMAL, hole=True)
    for number, (healthy, ill) in enumerate(zip(pictures(HEALTHY + ABNORMAL), holes, strict=True)):
        patient = f"BraTS2021_{7 * number:05}"
        flair = np.repeat((healthy * 1000).astype(np.int16)[..., None], 155, axis=2)
        labels = np.zeros(flair.shape, dtype=np.uint8)
        for level, label in ILL.items():
            flair[..., level] = ill * 1000
            labels[13:19, 13:19, level] = label
        volume(root / patient / f"{patient}_flair.nii.gz", flair)
        volume(root / patient / f"{patient}_t1.nii.gz", flair[..., ::-1])
        volume(root / patient / f"{patient}_seg.nii.gz", labels)
    volume(root / "BraTS2021_01700/BraTS2021_01700_flair.nii.gz", flair)
