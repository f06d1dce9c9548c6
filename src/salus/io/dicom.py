"""DICOM pictures and volumes: single files, enhanced multi-frame files, and series of one file a slice.

What comes out are the values a scanner means, not the ones it stores, by these rules:

    padding      PixelPaddingValue (and its range) becomes the lowest value of all the rest, after the rules below
    bits         those beyond BitsStored count for nothing; a HighBit that is not the last of BitsStored is refused
    rescale      modality LUT, else slope and intercept, applied (CT comes out in Hounsfield units); one of them without
                 the other is applied, too
    VOI          a LUT is applied where there is one: it is not linear and belongs to the picture; a window is not,
                 since it would only cut values off
    MONOCHROME1  turned round, so that brighter is larger
    colour       ITU-R 601 luma

A slice with a position is a picture in mm: pixel (row, column) lies at affine @ (row, column, 0, 1), RAS+. Slices of a
series are sorted by position along their normal; a gantry tilt is kept as the affine's shear; a slice that lies off the
line of the others is refused. A radiograph without a position is a bare picture in px. What a header holds as text is
never told.
"""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salus.core import Image, Origin
from salus.core.dicom import opened, tag_of
from salus.core.errors import ImageError
from salus.core.machine import memory
from salus.core.stack import ROUNDING, SAME_PLACE, alike, normal_of, runs
from salus.io.raster import luma

TO_RAS = np.diag([-1.0, -1.0, 1.0])  # DICOM's x grows to the left and y to the back
NO_IMAGES = ("SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "REG", "AU", "DOC", "ECG", "PLAN")
# The same in all slices of a volume.
TOGETHER = (
    *("SeriesInstanceUID", "Rows", "Columns", "PhotometricInterpretation"),
    *("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "FrameOfReferenceUID", "Modality"),
)
COPIES = 4  # of the float32 array while a file is decoded, at the most
LOSSY_JPEG_2000 = "1.2.840.10008.1.2.4.91"  # beyond the bits stored lie rounding errors there, which must not wrap
EXTRA = "pip install '.[dicom]'"


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
            that do not fit together: other sizes, orientations, series or patients, none between two, two at one place,
            one off the line.
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
    shape = (1, int(file.Rows), int(file.Columns))
    array, depth = _values(file, shape, [(file, _pixels(path, file))])
    place = _place(path, file)
    affine = _affine(place, _thickness(file) * _normal(place)) if place else np.eye(4)
    return Image(
        array=array[0],
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
    paths = {path.relative_to(dicomdir.parent).as_posix(): path for path in sorted(dicomdir.parent.rglob("*"))}
    there = {name.casefold(): path for name, path in paths.items()} | paths
    found, missing = [], []
    for record in _opened(dicomdir, pixels=False).get("DirectoryRecordSequence") or []:
        if parts := record.get("ReferencedFileID"):
            name = parts if isinstance(parts, str) else "/".join(str(part) for part in parts)
            if (path := there.get(name) or there.get(name.casefold())) is not None:
                found.append(path)
            else:
                missing.append(name)
    if not found:
        raise ImageError(f"{dicomdir} lists no file that is there.")
    return found, missing


def _opened(path: Path, *, pixels: bool = True, among: int = 1) -> Any:
    """The data set in a file, one of `among` that share the memory."""
    most = memory() / (2 * COPIES * among)  # of 16 bits
    try:
        if pixels and path.stat().st_size > most:  # look before all of it is read
            _fits(path, opened(path, most, stop_before_pixels=True))
        file = opened(path, most, stop_before_pixels=not pixels)
    except ImportError:
        raise ImageError(f"{path} is DICOM, which needs more packages: {EXTRA}.") from None
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{path}: this machine has too little memory to read it.") from None
    except Exception as error:  # a damaged byte makes parsers fail in any way at all
        told = type(error).__name__
        raise ImageError(f"{path} cannot be read as DICOM ({told}). It may be truncated or another format.") from error
    if file.get("Modality") in NO_IMAGES:
        raise ImageError(f"{path} is of kind {file.Modality}, which holds no image of a patient.")
    if pixels and "MOSAIC" in (file.get("ImageType") or ()):
        raise ImageError(
            f"{path} is a mosaic, many slices in one picture, whose place holds for none of them. Have it written as "
            "enhanced MR or as slices."
        )
    if pixels and not any(name in file for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError(f"{path} is DICOM without pixels.")
    return file


def _fits(path: Path, file: Any) -> None:
    """Refuse what claims more voxels than memory holds."""
    voxels = int(file.get("Rows") or 0) * int(file.get("Columns") or 0) * int(file.get("NumberOfFrames") or 1)
    if 4 * COPIES * voxels > memory():
        raise ImageError(
            f"{path} claims {voxels:,} voxels; reading them takes {4 * COPIES * voxels / 2**20:,.0f} MiB, this machine "
            f"has {memory() / 2**20:,.0f}."
        )


def _pixels(path: Path, file: Any) -> NDArray[Any]:
    """What is stored, (rows, columns) or (frames, rows, columns), colours as luma."""
    _fits(path, file)
    colours = file.get("SamplesPerPixel", 1) == 3
    if not colours and file.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError(f"{path} holds no grey values: its PhotometricInterpretation is not MONOCHROME1 or 2.")
    if file.get("HighBit") is not None and int(file.HighBit) != int(file.BitsStored) - 1:
        raise ImageError(
            f"{path} stores its values beside the lowest bits, as very old files do (HighBit is not BitsStored - 1). "
            "Nothing here reads that."
        )
    try:
        stored: NDArray[Any] = file.pixel_array
    except MemoryError:
        raise
    except Exception as error:  # without its words, which may quote the header
        raise ImageError(f"{path}{_undecoded(file.file_meta.get('TransferSyntaxUID'))}") from error
    syntax = file.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax != LOSSY_JPEG_2000:
        stored = _of_bits_stored(stored, int(file.BitsStored))
    return luma(stored) if colours else stored


def _of_bits_stored(stored: NDArray[Any], bits: int) -> NDArray[Any]:
    """What a decoder gave, the bits above filled with its sign: JPEG-LS keeps what an encoder found there."""
    beyond = 8 * stored.dtype.itemsize - bits
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if stored.dtype.kind == "i" else (0, 2**bits - 1)
    if beyond <= 0 or (least <= stored.min() and stored.max() <= most):
        return stored
    return stored << beyond >> beyond


def _undecoded(syntax: Any) -> str:
    """Why pixels stored in a transfer syntax could not be decoded."""
    from pydicom.pixels.decoders.base import get_decoder

    try:
        if get_decoder(syntax).is_available:
            return ": its pixels cannot be decoded. It may be truncated or damaged."
    except Exception:
        return " is stored in a transfer syntax that nothing here decodes. Have it written uncompressed."
    return f" is compressed as {syntax.name}, and no decoder for it is here: {EXTRA}."


def _values(file: Any, shape: tuple[int, ...], parts: Iterable[tuple[Any, NDArray[Any]]]) -> tuple[Any, int]:
    """Float32 (slices, rows, columns) by the rules above, and the depth.

    Args:
        file: says whether all slices are turned round, about one value.
        shape: of the result.
        parts: for each slice the attributes that decide its values, and what is stored.
    """
    array: NDArray[np.float32] = np.empty(shape, dtype=np.float32)
    depths, padded = set(), False
    for index, (header, stored) in enumerate(parts):
        array[index], depth = _meant(header, stored)
        depths.add(depth)
        if header.get("PixelPaddingValue") is not None:
            tags = ("PixelPaddingValue", "PixelPaddingRangeLimit")
            ends = [_stored(header, tag) for tag in tags if header.get(tag) is not None]
            array[index][(stored >= min(ends)) & (stored <= max(ends))] = np.nan
            padded = True
    depth = depths.pop() if len(depths) == 1 else 0
    turned = file.get("PhotometricInterpretation") == "MONOCHROME1"
    if padded:
        padding = np.isnan(array)
        rest = array[~padding]
        array[padding] = (rest.max() if turned else rest.min()) if len(rest) else 0
    if turned:
        array = (np.float32(2**depth - 1) if depth else array.min() + array.max()) - array
    return array, depth


def _meant(file: Any, stored: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """One slice by the rules above but for padding and MONOCHROME1, and its depth."""
    values, slope, intercept = stored, file.get("RescaleSlope"), file.get("RescaleIntercept")
    if file.get("ModalityLUTSequence"):
        from pydicom.pixels.processing import apply_modality_lut

        values = apply_modality_lut(stored, file)
    elif slope is not None or intercept is not None:
        values = stored.astype(np.float64) * float(1 if slope is None else slope) + float(intercept or 0)
    if file.get("VOILUTSequence"):
        from pydicom.pixels.processing import apply_voi_lut

        return apply_voi_lut(values, file, prefer_lut=True), 0
    unchanged = stored.dtype.kind == "u" and (values is stored or np.array_equal(values, stored))
    return values, int(file.get("BitsStored", 0)) if unchanged else 0


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
        raise ImageError(f"{path} lies nowhere that makes sense: see its {', '.join(found)}.") from None


def _normal(place: Place) -> NDArray[np.float64]:
    """Of length one; for an axial slice that lies as usual, to the head."""
    normal = -np.cross(place[1], place[2])
    return np.asarray(normal / np.linalg.norm(normal))


def _thickness(file: Any) -> float:
    """Of a slice that is alone, mm; nuclear medicine gives the spacing a sign."""
    thickness = abs(float(file.get("SpacingBetweenSlices") or file.get("SliceThickness") or 1.0))
    if not np.isfinite(thickness):
        raise ValueError("not finite")
    return thickness


def _affine(place: Place, step: NDArray[np.float64]) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3] = np.column_stack([place[1], place[2], step, place[0]])
    return affine


def _series(paths: Sequence[Path]) -> Image:
    """One file a slice: read, sorted, checked, stacked."""
    size = 2 * COPIES * sum(path.stat().st_size for path in paths)  # of 16 bits
    if size > memory():
        raise ImageError(
            f"{paths[0]}: its series of {len(paths)} slices takes {size / 2**20:,.0f} MiB, this machine has "
            f"{memory() / 2**20:,.0f}."
        )
    files = [_opened(path, among=len(paths)) for path in paths]
    first = files[0]
    same = {tag: _raw(first, tag) for tag in TOGETHER}
    for path, file in zip(paths, files, strict=True):
        for tag, value in same.items():
            if _raw(file, tag) != value and (file.get(tag) or "") != (first.get(tag) or ""):
                raise ImageError(f"{path} is no slice of one volume with {paths[0].name}: its {tag} is another.")
    places = [_place(path, file) for path, file in zip(paths, files, strict=True)]
    order, step = _stacked(paths, places)
    shape = (len(paths), int(first.Rows), int(first.Columns))
    slices, depth = _values(first, shape, ((files[where], _pixels(paths[where], files[where])) for where in order))
    bottom = places[order[0]]
    assert bottom is not None
    return Image(
        array=np.moveaxis(slices, 0, -1),
        affine=_affine(bottom, step),
        unit="mm",
        modality=str(first.get("Modality", "")),
        depth=depth,
        origin=Origin(
            files=tuple(paths[where] for where in order),
            uids=tuple(str(files[where].get("SOPInstanceUID", "")) for where in order),
        ),
    )


def _raw(file: Any, tag: str) -> Any:
    """An attribute as it is stored: pydicom's conversion would take longer than the comparison."""
    return getattr(file.get_item(tag_of(tag)), "value", None)


def _stacked(paths: Sequence[Path], places: Sequence[Place | None]) -> tuple[list[int], NDArray[np.float64]]:
    """The order of slices along their normal, and the step from one to the next, in RAS mm.

    Raises:
        ImageError: a slice without a position, of another orientation or spacing, two at one place, one missing
            between two, or one off the line: by half a pixel (or 0.2 mm, as digits allow) across it, half a step along.
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
                f"{paths[lower].name} and {paths[upper].name} lie at one place: one is a copy, or nothing told several "
                "volumes in one series apart (echo, time, acquisition, kind or number)."
            )
    if len(parts) > 1:
        lower, upper = parts[0][-1], parts[1][0]
        raise ImageError(
            f"{heights[upper] - heights[lower]:.3g} mm between {paths[lower].name} and {paths[upper].name}, usually "
            f"{np.median(np.diff(heights[order])):.3g}: slices are missing or too many."
        )
    lie = np.array([there[index][0] for index in order])
    step = (lie[-1] - lie[0]) / (len(order) - 1)
    off = lie - lie[0] - np.arange(len(order))[:, None] * step
    beside = np.linalg.norm(off - np.outer(off @ normal, normal), axis=1).max()
    pixel = min(np.linalg.norm(there[0][1]), np.linalg.norm(there[0][2]))
    if beside > max(ROUNDING, pixel / 2) or np.abs(off @ normal).max() > step @ normal / 2:
        raise ImageError(
            f"{paths[order[0]].name} and others lie up to {np.linalg.norm(off, axis=1).max():.3g} mm off the even line "
            f"from it to {paths[order[-1]].name}: no volume."
        )
    return order, step


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
    slices, depth = _values(file, stored.shape, ((_with(file, flat[where]), stored[where]) for where in order))
    bottom = places[order[0]]
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
