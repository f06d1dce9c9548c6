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
from salus.core.dicom import pydicom
from salus.core.errors import ImageError
from salus.core.machine import memory
from salus.core.stack import SAME_PLACE, alike, normal_of, runs
from salus.io.raster import luma

TO_RAS = np.diag([-1.0, -1.0, 1.0])  # DICOM's x grows to the left and y to the back
NO_IMAGES = ("SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "REG", "AU", "DOC", "ECG", "PLAN")
TOGETHER = ("SeriesInstanceUID", "Rows", "Columns", "PhotometricInterpretation")  # the same in all slices of a volume
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
    try:
        return _series(paths) if len(paths) > 1 else _file(paths[0])
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{paths[0]}: this machine has too little memory to read it.") from None
    except Exception as error:  # what an attribute holds is nobody's business but the file's
        raise ImageError(
            f"{paths[0]} cannot be read as DICOM: an attribute that is needed makes no sense ({type(error).__name__})."
        ) from error


def _file(path: Path) -> Image:
    """The picture or volume in one file."""
    file = _opened(path)
    frames = int(file.get("NumberOfFrames") or 1)
    if frames > 1 or "PerFrameFunctionalGroupsSequence" in file:
        return _frames(path, file, frames)
    values, depth = _values(file, _pixels(path, file))
    array = _upright(file, values, depth)
    place = _place(path, file)
    affine = _affine(place, _thickness(file) * _normal(place)) if place else np.eye(4)
    return Image(
        array=array,
        affine=affine,
        unit="mm" if place else "px",
        modality=str(file.get("Modality", "")),
        depth=depth,
        origin=Origin(files=(path,), uids=(str(file.get("SOPInstanceUID", "")),)),
    )


def listed_in(dicomdir: Path) -> tuple[list[Path], list[str]]:
    """The files that a DICOMDIR lists, and the names of those that are not there; whatever case a disk gave them.

    Raises:
        ImageError: it cannot be read, or lists nothing.
    """
    there = {
        path.relative_to(dicomdir.parent).as_posix().casefold(): path for path in sorted(dicomdir.parent.rglob("*"))
    }
    found, missing = [], []
    for record in _opened(dicomdir, pixels=False).get("DirectoryRecordSequence") or []:
        if parts := record.get("ReferencedFileID"):
            name = parts if isinstance(parts, str) else "/".join(str(part) for part in parts)
            if (path := there.get(name.casefold())) is not None:
                found.append(path)
            else:
                missing.append(name)
    if not found:
        raise ImageError(f"{dicomdir} lists no file that is there.")
    return found, missing


def _opened(path: Path, *, pixels: bool = True) -> Any:
    try:
        reading = pydicom()
    except ImportError:
        raise ImageError(f"{path} is DICOM, which needs more packages: {EXTRA}.") from None
    try:
        if pixels and 2 * COPIES * path.stat().st_size > memory():  # of 16 bits; look before all of it is read
            _fits(path, reading.dcmread(path, stop_before_pixels=True))
        file = reading.dcmread(path, stop_before_pixels=not pixels)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{path}: this machine has too little memory to read it.") from None
    except Exception as error:  # a damaged byte makes parsers fail in any way at all
        told = type(error).__name__
        raise ImageError(f"{path} cannot be read as DICOM ({told}). It may be truncated or another format.") from error
    if file.get("Modality") in NO_IMAGES:
        raise ImageError(f"{path} is of kind {file.Modality}, which holds no image of a patient.")
    if pixels and not any(name in file for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError(f"{path} is DICOM without pixels.")
    return file


def _fits(path: Path, file: Any) -> None:
    """Refuse what claims more voxels than memory holds."""
    voxels = int(file.get("Rows") or 0) * int(file.get("Columns") or 0) * int(file.get("NumberOfFrames") or 1)
    if 4 * COPIES * voxels > memory():
        raise ImageError(
            f"{path} claims {voxels:,} voxels; reading them takes {4 * COPIES * voxels / 2**30:.0f} GiB, this machine "
            f"has {memory() / 2**30:.0f}."
        )


def _pixels(path: Path, file: Any) -> NDArray[Any]:
    """What is stored, (rows, columns) or (frames, rows, columns), colours as luma."""
    _fits(path, file)
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


def _values(file: Any, stored: NDArray[Any]) -> tuple[NDArray[np.float32], int]:
    """Float32 by the rules above but for MONOCHROME1, and the depth."""
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
    return values, bits if unchanged else 0


def _upright(file: Any, array: NDArray[np.float32], depth: int) -> NDArray[np.float32]:
    """A whole picture or volume of MONOCHROME1 turned round, all its slices about one value; others as they are."""
    if file.get("PhotometricInterpretation") != "MONOCHROME1":
        return array
    return (np.float32(2**depth - 1) if depth else array.min() + array.max()) - array


def _stored(file: Any, tag: str) -> int:
    """A padding value as the pixels store it: some writers give it as the other of signed and unsigned."""
    value: int = int(file[tag].value)
    bits: int = int(file.get("BitsAllocated", 16))
    if file.get("PixelRepresentation") == 1:
        return value - 2**bits if value >= 2 ** (bits - 1) else value
    return value + 2**bits if value < 0 else value


Place = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]  # origin, step of a row, of a column


def _place(path: Path, file: Any) -> Place | None:
    """Where pixel (0, 0) lies and where the next row and column do, in RAS mm; None without a position.

    Raises:
        ImageError: there is one that makes no sense.
    """
    found = {tag: file.get(tag) for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")}
    if any(value is None for value in found.values()):
        return None
    try:
        position, directions, spacing = (np.array([float(v) for v in value]) for value in found.values())
        if not np.isfinite([*position, *directions, *spacing]).all() or not (spacing > 0).all():
            raise ValueError("not finite, or no step")
        normal_of(directions)
        along_row, along_column = directions.reshape(2, 3) @ TO_RAS
        down, right = spacing
        return TO_RAS @ position.reshape(3), down * along_column, right * along_row
    except (ValueError, TypeError):
        told = "; ".join(f"{tag} {value}" for tag, value in found.items())
        raise ImageError(f"{path} lies nowhere that makes sense: {told}.") from None


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
    size = 2 * COPIES * sum(path.stat().st_size for path in paths)  # of 16 bits
    if size > memory():
        raise ImageError(f"{paths[0].parent}: {len(paths)} slices take {size / 2**30:.0f} GiB; this machine has less.")
    files = [_opened(path) for path in paths]
    first = files[0]
    for path, file in zip(paths, files, strict=True):
        for tag in TOGETHER:
            if file.get(tag) != first.get(tag):
                raise ImageError(f"{path} is no slice of one volume with {paths[0].name}: its {tag} is another.")
    places = [_place(path, file) for path, file in zip(paths, files, strict=True)]
    order, step = _stacked(paths, places)
    slices = np.empty((len(paths), int(first.Rows), int(first.Columns)), dtype=np.float32)
    depths = set()
    for index, where in enumerate(order):
        slices[index], depth = _values(files[where], _pixels(paths[where], files[where]))
        depths.add(depth)
    bottom, depth = places[order[0]], depths.pop() if len(depths) == 1 else 0
    assert bottom is not None
    return Image(
        array=np.moveaxis(_upright(first, slices, depth), 0, -1),
        affine=_affine(bottom, step),
        unit="mm",
        modality=str(first.get("Modality", "")),
        depth=depth,
        origin=Origin(
            files=tuple(paths[where] for where in order),
            uids=tuple(str(files[where].get("SOPInstanceUID", "")) for where in order),
        ),
    )


def _stacked(paths: Sequence[Path], places: Sequence[Place | None]) -> tuple[list[int], NDArray[np.float64]]:
    """The order of slices along their normal, and the step from one to the next, in RAS mm.

    Raises:
        ImageError: a slice without a position, of another orientation or spacing, two at one place, or one missing
            between two.
    """
    there = [place for place in places if place is not None]
    if len(there) < len(places):
        raise ImageError(f"{len(places) - len(there)} of {len(places)} slices have no position.")
    for path, place in zip(paths, there, strict=True):
        if not (alike(place[1], there[0][1]) and alike(place[2], there[0][2])):
            raise ImageError(
                f"{path} is no slice of one volume with {paths[0].name}: its orientation or spacing is another."
            )
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
    places = [_place(path, group) for group in flat]
    stored = _pixels(path, file).reshape(count, int(file.Rows), int(file.Columns))
    named = [path.with_name(f"{path.name}, frame {number}") for number in range(1, count + 1)]
    if count == 1:
        order, step = [0], (_thickness(flat[0]) * _normal(places[0]) if places[0] else np.zeros(3))
    else:
        order, step = _stacked(named, places)
    slices = np.empty(stored.shape, dtype=np.float32)
    depths = set()
    for index, where in enumerate(order):
        slices[index], depth = _values(_with(file, flat[where]), stored[where])
        depths.add(depth)
    bottom, depth = places[order[0]], depths.pop() if len(depths) == 1 else 0
    slices = _upright(file, slices, depth)
    return Image(
        array=np.moveaxis(slices, 0, -1) if count > 1 else slices[0],
        affine=_affine(bottom, step) if bottom else np.eye(4),
        unit="mm" if bottom else "px",
        modality=str(file.get("Modality", "")),
        depth=depth,
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
    layout = ("VOILUTSequence", "BitsStored", "BitsAllocated", "PixelRepresentation")
    for tag in (*tags, *layout):
        if tag in group:
            frame[tag] = group[tag]
        elif tag in file:
            frame[tag] = file[tag]
    return frame
