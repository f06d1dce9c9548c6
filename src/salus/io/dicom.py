"""DICOM pictures and volumes: single files, enhanced multi-frame files, and series of one file a slice.

What comes out are the values a scanner means, not the ones it stores, by these rules:

    padding      PixelPaddingValue (and its range) becomes the lowest value of the rest
    rescale      modality LUT, else slope and intercept, applied (CT comes out in Hounsfield units)
    VOI          a LUT is applied where there is one: it is not linear and belongs to the picture; a window is not,
                 since it would only cut values off
    MONOCHROME1  turned round, so that brighter is larger
    colour       ITU-R 601 luma

A slice with a position is a picture in mm: pixel (row, column) lies at affine @ (row, column, 0, 1), RAS+. Slices of a
series are sorted by position along their normal; a gantry tilt is kept as the affine's shear. A radiograph without a
position is a bare picture in px.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salus.core import Image, Origin
from salus.core.errors import ImageError
from salus.core.machine import memory
from salus.core.stack import SAME_PLACE, runs
from salus.io.raster import luma

TO_RAS = np.diag([-1.0, -1.0, 1.0])  # DICOM's x grows to the left and y to the back
NO_IMAGES = ("SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "REG", "AU", "DOC", "ECG", "PLAN")
COPIES = 4  # of the float32 array while a file is decoded, at the most
EXTRA = "pip install 'salus[dicom]'"


def read_dicom(paths: Sequence[Path]) -> Image:
    """The picture in one file, or the volume of a multi-frame file or of a series, float32.

    Args:
        paths: one file, or the files of one series, a slice each, in any order.

    Returns:
        (rows, columns), or (rows, columns, slices) in the order of their positions; in mm where there are positions.
        `depth` is the stored bits of unsigned values that nothing changed, else 0. The origin names files and UIDs in
        the order of the slices, without a hash.

    Raises:
        ImageError: no DICOM, no picture, frames in time, a syntax without a decoder, more than memory holds, or slices
            that do not fit together: other sizes, orientations or series, none between two, two at one place.
    """
    if len(paths) > 1:
        return _series(paths)
    path = paths[0]
    file = _opened(path)
    frames = int(file.get("NumberOfFrames") or 1)
    if frames > 1 or "PerFrameFunctionalGroupsSequence" in file:
        return _frames(path, file, frames)
    array, depth = _values(path, file, _pixels(path, file))
    place = _place(file)
    affine = _affine(place, _thickness(file) * _normal(place)) if place else np.eye(4)
    return Image(
        array=array,
        affine=affine,
        unit="mm" if place else "px",
        modality=str(file.get("Modality", "")),
        depth=depth,
        origin=Origin(files=(path,), uids=(str(file.get("SOPInstanceUID", "")),)),
    )


def listed_in(dicomdir: Path) -> set[Path]:
    """The files that a DICOMDIR lists, with their folders resolved; those that are not there are not among them.

    Raises:
        ImageError: it cannot be read.
    """
    folder, found = dicomdir.parent, set()
    for record in _opened(dicomdir, pixels=False).get("DirectoryRecordSequence") or []:
        if name := record.get("ReferencedFileID"):
            parts = [name] if isinstance(name, str) else [str(part) for part in name]
            found.add(folder.joinpath(*parts).resolve())
    return {path for path in found if path.is_file() and path.is_relative_to(folder.resolve())}


def _opened(path: Path, *, pixels: bool = True) -> Any:
    try:
        import pydicom
    except ImportError:
        raise ImageError(f"{path} is DICOM, which needs more packages: {EXTRA}.") from None
    try:
        file = pydicom.dcmread(path, stop_before_pixels=not pixels)
        file.decode()
    except Exception as error:  # a damaged byte makes parsers fail in any way at all
        raise ImageError(f"{path} cannot be read as DICOM: {error}. It may be truncated or another format.") from error
    if file.get("Modality") in NO_IMAGES:
        raise ImageError(f"{path} is of kind {file.Modality}, which holds no image of a patient.")
    if pixels and not any(name in file for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError(f"{path} is DICOM without pixels.")
    return file


def _pixels(path: Path, file: Any) -> NDArray[Any]:
    """What is stored, (rows, columns) or (frames, rows, columns), colours as luma."""
    voxels = int(file.get("Rows") or 0) * int(file.get("Columns") or 0) * int(file.get("NumberOfFrames") or 1)
    if 4 * COPIES * voxels > memory():
        raise ImageError(
            f"{path} claims {voxels:,} voxels; reading them takes {4 * COPIES * voxels / 2**30:.0f} GiB, this machine "
            f"has {memory() / 2**30:.0f}."
        )
    colours = file.get("SamplesPerPixel", 1) == 3
    if not colours and file.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError(f"{path} holds pixels of kind {file.get('PhotometricInterpretation')}, not grey values.")
    syntax = file.file_meta.get("TransferSyntaxUID")
    try:
        stored: NDArray[Any] = file.pixel_array
    except (RuntimeError, NotImplementedError) as error:
        name = getattr(syntax, "name", syntax)
        raise ImageError(f"{path} is compressed as {name}, and no decoder for it is here: {EXTRA}. {error}") from error
    except Exception as error:
        raise ImageError(f"{path}: its pixels cannot be decoded: {error}. It may be truncated or damaged.") from error
    return luma(stored) if colours else stored


def _values(path: Path, file: Any, stored: NDArray[Any]) -> tuple[NDArray[np.float32], int]:
    """Float32 by the rules above, and the depth."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    if "PixelPaddingValue" in file:
        ends = [_stored(file, tag) for tag in ("PixelPaddingValue", "PixelPaddingRangeLimit") if tag in file]
        padding = (stored >= min(ends)) & (stored <= max(ends))
        if padding.any() and not padding.all():
            stored = np.where(padding, stored[~padding].min(), stored)
    values, meant = stored, file.get("ModalityLUTSequence") or "RescaleSlope" in file
    if meant:
        values = apply_modality_lut(values, file)
    if file.get("VOILUTSequence"):
        values = apply_voi_lut(values, file, prefer_lut=True)
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = int(file.get("BitsStored", 0))
    unchanged = stored.dtype.kind == "u" and not file.get("VOILUTSequence") and np.array_equal(values, stored)
    depth = bits if unchanged else 0
    if file.get("PhotometricInterpretation") == "MONOCHROME1":
        values = (np.float32(2**bits - 1) if depth else values.min() + values.max()) - values
    return values, depth


def _stored(file: Any, tag: str) -> int:
    """A padding value as the pixels store it: some writers give it as the other of signed and unsigned."""
    value: int = int(file[tag].value)
    bits: int = int(file.get("BitsAllocated", 16))
    if file.get("PixelRepresentation") == 1:
        return value - 2**bits if value >= 2 ** (bits - 1) else value
    return value + 2**bits if value < 0 else value


Place = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]  # origin, step of a row, of a column


def _place(file: Any, group: Any = None) -> Place | None:
    """Where pixel (0, 0) lies and where the next row and column do, in RAS mm; None without a position."""
    shared = file if group is None else group
    position, directions = shared.get("ImagePositionPatient"), shared.get("ImageOrientationPatient")
    spacing = shared.get("PixelSpacing")
    if position is None or directions is None or spacing is None:
        return None
    along_row, along_column = np.reshape(np.asarray(directions, dtype=np.float64), (2, 3)) @ TO_RAS
    down, right = (float(step) for step in spacing)
    return TO_RAS @ np.asarray(position, dtype=np.float64), down * along_column, right * along_row


def _normal(place: Place) -> NDArray[np.float64]:
    """Of length one; for an axial slice that lies as usual, to the head."""
    normal = -np.cross(place[1], place[2])
    return np.asarray(normal / np.linalg.norm(normal))


def _thickness(file: Any) -> float:
    return float(file.get("SpacingBetweenSlices") or file.get("SliceThickness") or 1.0)


def _affine(place: Place, step: NDArray[np.float64]) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3] = np.column_stack([place[1], place[2], step, place[0]])
    return affine


def _series(paths: Sequence[Path]) -> Image:
    """One file a slice: read, sorted, checked, stacked."""
    size = 4 * COPIES * sum(path.stat().st_size for path in paths) / 2  # as if 16 bits a voxel
    if size > memory():
        raise ImageError(f"{paths[0].parent}: {len(paths)} slices take {size / 2**30:.0f} GiB; this machine has less.")
    files = [_opened(path) for path in paths]
    first = files[0]
    for path, file in zip(paths, files, strict=True):
        for tag in ("SeriesInstanceUID", "Rows", "Columns", "ImageOrientationPatient", "PixelSpacing"):
            if not _alike(file.get(tag), first.get(tag)):
                raise ImageError(f"{path} is no slice of one volume with {paths[0].name}: its {tag} is another.")
    places = [_place(file) for file in files]
    order, step = _stacked(paths, places)
    slices = np.empty((len(paths), int(first.Rows), int(first.Columns)), dtype=np.float32)
    depths = set()
    for index, where in enumerate(order):
        slices[index], depth = _values(paths[where], files[where], _pixels(paths[where], files[where]))
        depths.add(depth)
    bottom = places[order[0]]
    assert bottom is not None
    return Image(
        array=np.moveaxis(slices, 0, -1),
        affine=_affine(bottom, step),
        unit="mm",
        modality=str(first.get("Modality", "")),
        depth=depths.pop() if len(depths) == 1 else 0,
        origin=Origin(
            files=tuple(paths[where] for where in order),
            uids=tuple(str(files[where].get("SOPInstanceUID", "")) for where in order),
        ),
    )


def _alike(a: Any, b: Any) -> bool:
    if a is None or b is None or isinstance(a, str | int):
        return bool(a == b)
    return bool(np.allclose(np.asarray(a, dtype=float), np.asarray(b, dtype=float), atol=1e-3))


def _stacked(paths: Sequence[Path], places: Sequence[Place | None]) -> tuple[list[int], NDArray[np.float64]]:
    """The order of slices along their normal, and the step from one to the next, in RAS mm.

    Raises:
        ImageError: a slice without a position, two at one place, or one missing between two.
    """
    there = [place for place in places if place is not None]
    if len(there) < len(places):
        raise ImageError(f"{len(places) - len(there)} of {len(places)} slices have no position.")
    normal = _normal(there[0])
    heights = np.array([place[0] @ normal for place in there])
    parts = runs(heights)
    order = [index for part in parts for index in part]
    for lower, upper in itertools.pairwise(order):
        if heights[upper] - heights[lower] < SAME_PLACE:
            raise ImageError(
                f"{paths[lower].name} and {paths[upper].name} lie at one place; several volumes in one series?"
            )
    if len(parts) > 1:
        lower, upper = parts[0][-1], parts[1][0]
        raise ImageError(
            f"{heights[upper] - heights[lower]:.3g} mm between {paths[lower].name} and {paths[upper].name}, usually "
            f"{np.median(np.diff(heights[order])):.3g}: slices are missing or too many."
        )
    return order, (there[order[-1]][0] - there[order[0]][0]) / (len(order) - 1)


def _frames(path: Path, file: Any, count: int) -> Image:
    """A multi-frame file whose frames have positions of their own."""
    groups = file.get("PerFrameFunctionalGroupsSequence") or []
    if len(groups) != count:
        raise ImageError(f"{path} holds {count} frames without a position each, a film and no volume.")
    shared = (file.get("SharedFunctionalGroupsSequence") or [{}])[0]
    flat = [_flattened(shared, group) for group in groups]
    places = [_place(file, group) for group in flat]
    stored = _pixels(path, file).reshape(count, int(file.Rows), int(file.Columns))
    named = [path.with_name(f"{path.name}, frame {number}") for number in range(1, count + 1)]
    if count == 1:
        order, step = [0], (_thickness(flat[0]) * _normal(places[0]) if places[0] else np.zeros(3))
    else:
        order, step = _stacked(named, places)
    slices = np.empty(stored.shape, dtype=np.float32)
    depths = set()
    for index, where in enumerate(order):
        slices[index], depth = _values(path, _with(file, flat[where]), stored[where])
        depths.add(depth)
    bottom = places[order[0]]
    return Image(
        array=np.moveaxis(slices, 0, -1) if count > 1 else slices[0],
        affine=_affine(bottom, step) if bottom else np.eye(4),
        unit="mm" if bottom else "px",
        modality=str(file.get("Modality", "")),
        depth=depths.pop() if len(depths) == 1 else 0,
        origin=Origin(files=(path,), uids=(str(file.get("SOPInstanceUID", "")),), frames=tuple(order)),
    )


def _flattened(shared: Any, group: Any) -> Any:
    """Attributes of a frame's functional groups in one data set; its own win over the shared ones."""
    from pydicom import Dataset

    flat = Dataset()
    for source in (shared, group):
        for element in source:
            if element.VR == "SQ" and element.value:
                flat.update(element.value[0])
    return flat


def _with(file: Any, group: Any) -> Any:
    """What decides a frame's values: of the file, and of the frame where it says otherwise."""
    from pydicom import Dataset

    frame = Dataset()
    tags = ("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")
    layout = ("VOILUTSequence", "BitsStored", "BitsAllocated", "PixelRepresentation", "PhotometricInterpretation")
    for tag in (*tags, *layout):
        if tag in group:
            frame[tag] = group[tag]
        elif tag in file:
            frame[tag] = file[tag]
    return frame
