"""An image that knows where it is."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Unit = Literal["mm", "px"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an image came from.

    Attributes:
        files: in the order of its slices, where each has its own.
        sha256: of all files' bytes.
        uids: of DICOM instances, in the order of the files.
        frames: for each slice the frame of a multi-frame file it was, from 0; empty for other files.
    """

    files: tuple[Path, ...] = ()
    sha256: str = ""
    uids: tuple[str, ...] = ()
    frames: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """A picture or volume and its place in the patient.

    Attributes:
        array: float32. A picture is (rows, columns); a volume is (i, j, k) in the order of its file.
        affine: (4, 4) float64, voxel index (i, j, k, 1) to position; a picture's pixel is (row, column, 0, 1).
            In mm the position is RAS+: x grows to the patient's right, y to the front, z to the head.
        unit: "mm" where the file claims a place in the patient, "px" for a bare picture (PNG, JPEG, TIFF).
        modality: DICOM's short name (MR, CT, DX ...) where known, else "".
        depth: bits an integer sample was stored with; 0 for floating point.
        origin: files, hash, UIDs.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    unit: Unit = "px"
    modality: str = ""
    depth: int = 0
    origin: Origin = Origin()

    def __post_init__(self) -> None:
        if self.array.ndim not in (2, 3) or self.array.dtype != np.float32:
            raise ValueError(f"need a float32 array of 2 or 3 axes, got {self.array.dtype} {self.array.shape}")
        if self.affine.shape != (4, 4):
            raise ValueError(f"need a (4, 4) affine, got {self.affine.shape}")

    def slices(self, start: int, stop: int) -> "Image":
        """A volume's slices `start` up to `stop` along the last axis, where they lie in the patient."""
        affine = self.affine.copy()
        affine[:3, 3] += start * affine[:3, 2]
        return replace(self, array=np.ascontiguousarray(self.array[..., start:stop]), affine=affine)

    @property
    def spacing(self) -> NDArray[np.float64]:
        """(3,) step between neighbouring voxels along each array axis, in `unit`."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))
