"""Lesions painted on held-out healthy images, as a data set of its own: `salus.datasets.painted`."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL.Image import fromarray

from salus.core import Case, Image
from salus.core.errors import ImageError, LayoutError
from salus.core.made import made, write_table
from salus.datasets import open_dataset
from salus.datasets.painted import KIND, OF, held_out, who
from salus.datasets.protocol import split
from salus.io import read_study, study_sha256, write_image
from salus.preprocess import Preparation
from salus.preprocess.geometry import resize
from salus.preprocess.lesions import LEAST, Grey, foreground, foreign_pieces, has_room, unknown

FORMAT = 1  # of the folder; raise it whenever a seed's lesions change
COLUMNS = ("file", "patient_id", OF, "lesion_place", "lesion_diameter", "lesion_contrast")
LEFT = 0.5  # share of a lesion that must be left once the image is clipped to what its kind of file can hold
WHOLE = (8, 16)  # stored bits of pictures that stay whole numbers

Row = tuple[object, ...]


def write_painted(root: Path, source: Path, *, reader: str = "folder", seed: int = 0, foreign: bool = False) -> Path:
    """Paint a lesion at each of three depths on every held-out healthy image of a data set, each on its own copy.

    Images that cannot be judged, or have no room for lesions, are healthy cases without painted ones, and lesions of
    which less than half is left are left out: dark ones on dark, bright ones on what the stored bits make white. A
    folder that holds exactly this set is left as it is.

    Args:
        root: the folder to make; absent, empty, or this very data set.
        source, reader: the data set with the healthy people; pictures, no volumes.
        seed: of lesions and places.
        foreign: paint pieces of other people who are held out, instead of bright and dark blobs.

    Returns:
        `root`.

    Raises:
        ConfigError: no such reader.
        LayoutError: `source` or `root` holds something else; a volume; or no image can be painted on.
        StorageError: the folder could not be written.
    """
    held = held_out(split(open_dataset(reader, source)))
    recorded = {
        "format": FORMAT, "source": str(source.absolute()), "reader": reader, "seed": seed, "held_out": who(held),
        "pixels": pixels(held), "foreign": foreign,
    }  # fmt: skip
    return made(root, KIND, recorded, partial(fill, held, seed, foreign), usual={"foreign": False})


def pixels(cases: Sequence[Case]) -> str:
    """SHA-256 over what their files hold."""
    found = hashlib.sha256()
    for case in cases:
        try:
            found.update(study_sha256(case.images).encode())
        except ImageError:  # its file is gone; it is not painted on either
            found.update(b"none")
    return found.hexdigest()


def fill(held: Sequence[Case], seed: int, foreign: bool, root: Path) -> None:
    """Pictures, masks and table."""
    rows: list[Row] = []
    for number, case in enumerate(held):
        image = judged(case)
        if image is None:  # it stays a case of the test, and screening says why
            continue
        if image.array.ndim > 2:
            raise LayoutError(f"{case.images[0].path} is a volume; lesions are painted on pictures.")
        rng = np.random.default_rng([seed, number])
        other = None
        if foreign and (other := someone_else(held, case, image.array.shape, rng)) is None:
            continue
        rows += painted_copies(case, image, number, rng, root, other)
    if not rows:
        beside = " and a patient beside it who differs" if foreign else ""
        raise LayoutError(f"none of {len(held)} held-out healthy images has room for lesions{beside}.")
    write_table(root, COLUMNS, rows)


def judged(case: Case) -> Image | None:
    """Its image, if it can be read and judged."""
    try:
        image = read_study(case.images)
        Preparation().check(image)
    except ImageError:
        return None
    return image


def someone_else(held: Sequence[Case], case: Case, shape: tuple[int, ...], rng: np.random.Generator) -> Grey | None:
    """The picture of another patient, drawn at random, on a grid of `shape`; None if none can be judged."""
    for index in rng.permutation(len(held)):
        if held[index].patient_id != case.patient_id and (image := judged(held[index])) and image.array.ndim == 2:
            return scaled(resize(image, (shape[0], shape[1])))
    return None


def scaled(image: Image) -> Grey:
    """From its minimum, 0, to its maximum, 1."""
    low, high = float(image.array.min()), float(image.array.max())
    return (image.array - low) / (high - low)


def painted_copies(
    case: Case, image: Image, number: int, rng: np.random.Generator, root: Path, other: Grey | None
) -> list[Row]:
    """Write the painted copies of one image, with blobs or with pieces of `other`; their rows."""
    low, high = float(image.array.min()), float(image.array.max())
    picture = scaled(image)
    inside = foreground(picture) if other is None else foreground(picture) & foreground(other)
    if not has_room(inside, LEAST):
        return []
    white = 2**image.depth - 1 if whole(image) else np.inf
    rows: list[Row] = []
    blobs = unknown(picture, inside, rng, brightest=(white - low) / (high - low))
    for one in blobs if other is None else foreign_pieces(picture, other, inside, rng):
        if not one.left >= LEFT:
            continue
        finding = "foreign" if other is not None else "bright" if one.contrast > 0 else "dark"
        name = f"{number:05d}-{one.place}"
        # What no lesion touched keeps its value to the bit.
        values = np.where(one.picture == picture, image.array, low + one.picture * (high - low)).astype(np.float32)
        file = write(replace(image, array=values), root / "test" / finding, name)
        mask = replace(image, array=np.float32(255) * one.mask, depth=8)
        write(mask, root / "ground_truth" / finding, f"{name}_mask")
        described = one.place, f"{one.diameter:.1f}", f"{one.contrast:.3g}"
        rows.append((f"test/{finding}/{file}", case.patient_id, case.case_id, *described))
    return rows


def whole(image: Image) -> bool:
    """Whether it is written in whole numbers, as it was stored."""
    return image.unit == "px" and image.depth in WHOLE


def write(image: Image, folder: Path, name: str) -> str:
    """Write an image as what it is read as: a scan as .nii.gz, a picture of 8 or 16 bits as .png, others as .tif."""
    folder.mkdir(parents=True, exist_ok=True)
    if whole(image):
        stored = np.rint(image.array).clip(0, 2**image.depth - 1)
        fromarray(stored.astype(np.uint8 if image.depth == 8 else np.uint16)).save(folder / f"{name}.png")
        return f"{name}.png"
    file = f"{name}.nii.gz" if image.unit == "mm" else f"{name}.tif"
    write_image(image, folder / file)
    return file
