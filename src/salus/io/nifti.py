"""NIfTI-1 and -2, `.nii` and `.nii.gz`: pictures and volumes that know where in the patient they are.

Values are scaled by the header's slope and intercept, as the format demands. The affine is the sform, else the qform,
as nibabel decides, in mm; headers that count in metres or micrometres are converted. A picture (2-D) has its pixel
(i, j) at affine (i, j, 0, 1). Axes keep the order of the file: nothing is turned here, see `preprocess.reorient`.
"""

import gzip
import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from salus.core import Image
from salus.core.errors import ImageError
from salus.io.files import write_whole

LARGEST = 2**31  # voxels a volume may claim: 8 GiB as float32
TO_MM = {"meter": 1000.0, "micron": 0.001}


def read_nifti(path: Path) -> Image:
    """The picture (i, j) or volume (i, j, k) in `path`, float32, unit mm; depth 0 where the header scales values.

    Trailing axes of length one are dropped, down to two axes.

    Raises:
        ImageError: not NIfTI, truncated, several volumes, colour or complex voxels, an affine without volume, or
            integers that float32 cannot keep apart.
    """
    try:
        file: Any = nibabel.load(path)  # typed as any of its formats, and this is one
        scaling = file.dataobj.slope, file.dataobj.inter  # nibabel clears them in the header it hands out
        shape, affine, stored = _squeezed(path, file.shape), _affine(path, file), file.get_data_dtype()
        if stored.kind not in "iuf":
            raise ImageError(f"{path} holds {stored} voxels; one grey value a voxel is needed.")
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, which the gate reports
            array = np.asarray(file.get_fdata(dtype=np.float32, caching="unchanged"), dtype=np.float32).reshape(
                shape, order="F"
            )
    except ImageError:
        raise
    except Exception as error:  # a damaged byte makes decoders fail in any way at all
        said = " ".join(str(error).split())  # nibabel writes several lines
        raise ImageError(f"{path} cannot be read as NIfTI: {said}. It may be truncated or another format.") from error
    depth = 0 if stored.kind == "f" or scaling != (1.0, 0.0) else 8 * stored.itemsize
    if depth > 16 and np.abs(array).max() >= 2**24:
        raise ImageError(f"{path} holds {depth}-bit integers above 2**24, which float32 cannot keep apart.")
    return Image(array=array, affine=affine, unit="mm", depth=depth)


def write_nifti(image: Image, path: Path) -> None:
    """Float32 NIfTI-1 with the image's affine as sform and qform, gzipped where `path` ends in .gz.

    The affine is stored as float32, as the format has it: positions agree to about 1e-5 mm.

    Raises:
        ValueError: a bare picture, which has no place in mm.
        StorageError: it could not be written.
    """
    if image.unit != "mm":
        raise ValueError(f"{path.name}: a bare picture has no place in mm; write it as .tif or .png")
    file: Any = nibabel.Nifti1Image(image.array, image.affine)  # type: ignore[no-untyped-call]
    file.header.set_xyzt_units("mm")
    content = file.to_bytes()
    # mtime 0: the same map gives the same bytes. Level 1: a third of the time of level 6, a few per cent larger.
    write_whole(path, gzip.compress(content, compresslevel=1, mtime=0) if path.suffix == ".gz" else content)


def _squeezed(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    kept = list(shape)
    while len(kept) > 2 and kept[-1] == 1:
        kept.pop()
    if len(kept) > 3:
        volumes = math.prod(kept[3:])
        raise ImageError(f"{path} holds {volumes} volumes (shape {shape}); one is needed. Save the one to judge alone.")
    if math.prod(kept) > LARGEST:
        raise ImageError(f"{path} claims {math.prod(kept):,} voxels; more than {LARGEST:,} are not read.")
    if len(kept) < 2 or 0 in kept:
        raise ImageError(f"{path} has shape {shape}; a picture or a volume is needed.")
    return tuple(kept)


def _affine(path: Path, file: Any) -> NDArray[np.float64]:
    affine = np.array(file.affine, dtype=np.float64)
    affine[:3] *= TO_MM.get(file.header.get_xyzt_units()[0], 1.0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ImageError(f"{path} has an affine that spans no volume: {affine[:3].round(4).tolist()}.")
    return affine
