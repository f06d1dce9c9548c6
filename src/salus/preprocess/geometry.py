"""Steps that move voxels. Each returns an image that knows where it is, so none is ever undone.

Voxel centres lie at whole indices; voxel i covers [i - 0.5, i + 0.5]. `resample(map, like=source)` brings home
whatever was made on a grid these steps produced.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy import ndimage

from salus.core import Image

Plane = Literal["axial", "coronal", "sagittal"]
Order = Literal[0, 1, 2, 3, 4, 5]

orientations: Any = nibabel.orientations  # untyped, in a package that says it is typed

# Where rows, columns and slices run to: P(osterior), L(eft), S(uperior), I(nferior), A(nterior) of the patient.
DISPLAY: dict[Plane, tuple[str, str, str]] = {
    "axial": ("P", "L", "S"),
    "coronal": ("I", "L", "A"),
    "sagittal": ("I", "P", "L"),
}


def crop(image: Image, lower: Sequence[int], upper: Sequence[int]) -> Image:
    """Keep voxels `lower` up to, not including, `upper`, one number an axis; the patient stays where it was.

    Raises:
        ValueError: the box is empty or reaches beyond the image.
    """
    if not all(0 <= a < b <= n for a, b, n in zip(lower, upper, image.array.shape, strict=True)):
        raise ValueError(f"cannot keep {tuple(lower)} to {tuple(upper)} of an image of {image.array.shape}")
    inside = tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))
    return replace(image, array=image.array[inside], affine=_moved(image, lower))


def crop_border(image: Image, tolerance: float = 0.02) -> Image:
    """Without the outer rows and columns that hold next to nothing, as a collimator or a frame leaves them.

    A row or column goes while its values, in all slices, differ by at most `tolerance` of the image's range. What is
    left keeps its place. An image that is nothing but border comes back as it is.
    """
    allowed = tolerance * float(np.ptp(image.array))
    lower, upper = [0] * image.array.ndim, list(image.array.shape)
    for axis in (0, 1):
        lines = np.moveaxis(image.array, axis, 0).reshape(image.array.shape[axis], -1)
        seen = np.flatnonzero(np.ptp(lines, axis=1) > allowed)
        if not len(seen):
            return image
        lower[axis], upper[axis] = int(seen[0]), int(seen[-1]) + 1
    return crop(image, lower, upper)


def pad(image: Image, lower: Sequence[int], upper: Sequence[int], value: float) -> Image:
    """Add `lower` voxels of `value` before and `upper` after, one number an axis; the patient stays where it was."""
    array = np.pad(image.array, tuple(zip(lower, upper, strict=True)), constant_values=np.float32(value))
    return replace(image, array=array, affine=_moved(image, [-n for n in lower]))


def pad_to_square(image: Image) -> Image:
    """As many rows as columns, with the image's minimum, centred; an odd row or column goes to the end."""
    rows, columns = image.array.shape[:2]
    side = max(rows, columns)
    lower = [(side - rows) // 2, (side - columns) // 2] + [0] * (image.array.ndim - 2)
    upper = [side - rows - lower[0], side - columns - lower[1]] + [0] * (image.array.ndim - 2)
    return pad(image, lower, upper, float(image.array.min()))


def resize(image: Image, shape: tuple[int, int]) -> Image:
    """(rows, columns) of the picture, or of every slice (last axis) of a stack, by anti-aliased bilinear filtering.

    Corners stay where they are: pixel i of the new grid has its centre at (i + 0.5) * old / new - 0.5 of the old one.
    """
    rows, columns = image.array.shape[:2]
    stack = image.array.reshape(rows, columns, -1)
    resized = np.empty((*shape, stack.shape[2]), np.float32)
    for index in range(stack.shape[2]):
        # Pillow's BILINEAR widens its triangle when it shrinks, which is the anti-aliasing.
        picture = Pillow.fromarray(np.ascontiguousarray(stack[..., index]))
        resized[..., index] = np.asarray(picture.resize((shape[1], shape[0]), Pillow.Resampling.BILINEAR))
    scale = np.array([rows / shape[0], columns / shape[1], 1.0])
    to_old = np.diag([*scale, 1.0])
    to_old[:3, 3] = scale / 2 - 0.5
    array = resized.reshape(*shape, *image.array.shape[2:])
    return replace(image, array=array, affine=image.affine @ to_old)


def reorient(volume: Image, plane: Plane) -> Image:
    """A volume as a stack (rows, columns, slices) in radiological display order, by transposes and flips alone.

    axial: rows to posterior, columns to the patient's left (image left = patient's right), slices foot to head.
    coronal: rows to inferior, columns to the patient's left, slices from back to front.
    sagittal: rows to inferior, columns to posterior, slices from the patient's right to left.

    For an oblique volume each voxel axis counts as the patient's axis it is nearest to. A picture, and anything in px,
    comes back as it is.
    """
    if volume.array.ndim == 2 or volume.unit == "px":
        return volume
    turn = orientations.ornt_transform(
        orientations.io_orientation(volume.affine), orientations.axcodes2ornt(DISPLAY[plane])
    )
    array = orientations.apply_orientation(volume.array, turn)
    to_old = orientations.inv_ornt_aff(turn, volume.array.shape)
    return replace(volume, array=array, affine=volume.affine @ to_old)


def resample(image: Image, like: Image, order: Order = 1, *, outside: float = 0.0) -> Image:
    """The values of `image` on the grid of `like`: for each voxel of `like`, the value at its place in the patient.

    Args:
        image: a picture or volume, usually a map on the network's grid.
        like: the grid; its values do not matter. A picture is a volume of one slice.
        order: 0 nearest (masks), 1 linear, up to 5.
        outside: value of voxels beyond the field of view of `image`. The outer half of its border voxels is inside:
            it takes the border's value, so a map resized down and brought home is whole up to the edge.

    Returns:
        An image with the shape, affine and unit of `like`, and the origin and modality of `image`.

    Raises:
        ValueError: one is in mm and the other in px.
    """
    if image.unit != like.unit:
        raise ValueError(f"cannot bring an image in {image.unit} onto a grid in {like.unit}")
    shape = (*like.array.shape, 1)[:3]
    matrix = np.linalg.inv(image.affine) @ like.affine
    matrix[np.abs(matrix) < 1e-9] = 0.0  # rounding noise, which would cost the fast paths below
    source = image.array.reshape((*image.array.shape, 1)[:3])
    inside = _inside(matrix, shape, source.shape)
    flat = source.shape[2] == shape[2] == 1 and not matrix[:2, 2].any() and not matrix[2, :2].any()
    if flat:
        source, matrix, shape = source[..., 0], matrix[np.ix_([0, 1, 3], [0, 1, 3])], shape[:2]
    values = _interpolated(source, matrix, shape, order).reshape(like.array.shape)
    array = np.where(inside.reshape(like.array.shape), values, np.float32(outside))
    return replace(like, array=array, modality=image.modality, depth=0, origin=image.origin)


def _interpolated(
    source: NDArray[np.float32], matrix: NDArray[np.float64], shape: tuple[int, ...], order: Order
) -> NDArray[np.float32]:
    linear, offset = matrix[:-1, :-1], matrix[:-1, -1]
    if ((linear != 0).sum(0) == 1).all() and ((linear != 0).sum(1) == 1).all():
        # Axes are only permuted, turned and scaled. Scipy is several times faster on a diagonal.
        axes = [int(np.flatnonzero(linear[:, axis])[0]) for axis in range(len(shape))]
        source, linear, offset = source.transpose(axes), np.diag(linear[axes]), offset[axes]
    return np.asarray(
        ndimage.affine_transform(source, linear, offset, output_shape=shape, order=order, mode="nearest"), np.float32
    )


def _inside(matrix: NDArray[np.float64], shape: tuple[int, ...], source: tuple[int, ...]) -> NDArray[np.bool_]:
    """`shape` mask: the voxel's centre lies in the source's field of view, border voxels taken whole."""
    rim = 0.5 + 1e-6  # affines pass through float32 in files
    inside = np.ones(shape, dtype=bool)
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    for row, size in zip(matrix[:3], source, strict=True):
        # Axes that do not contribute stay of length one: most grids need three short vectors, not three volumes.
        place: NDArray[np.float64] = np.full((1, 1, 1), row[3])
        for step, index in zip(row[:3], grid, strict=True):
            if step:
                place = place + step * index
        inside &= (place >= -rim) & (place <= size - 1 + rim)
    return inside


def _moved(image: Image, start: Sequence[int]) -> NDArray[np.float64]:
    affine = image.affine.copy()
    affine[:3, 3] = (image.affine @ np.array([*start, *[0] * (3 - len(start)), 1]))[:3]
    return affine
