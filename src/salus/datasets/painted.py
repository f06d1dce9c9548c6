"""A test without labels: healthy people who are held out, as they are and with painted lesions.

    root/test/<finding>/<n>-<place>.png, .tif or .nii.gz       finding: bright or dark
    root/ground_truth/<finding>/<n>-<place>_mask.*             where at least half of the contrast was painted
    root/metadata.csv   file, patient_id, of, place, diameter (pixels of the image), contrast (share of its range)
    root/painted.json   what it was made of; unpainted images stay where they are

Of the source, the training part is learned from; the validation and calibration parts are the test here, bare its
healthy cases. The source's own test is not opened. Lesions are those of `salus.preprocess.lesions.unknown`. The trap: a
blob is no disease. What such a test chooses was chosen without a label, no more.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from salus.core import Case, Dataset, Image, Label, Split
from salus.core.errors import ImageError, LayoutError
from salus.datasets import open_dataset
from salus.datasets._made import made, write_table
from salus.datasets.folder import folder
from salus.datasets.protocol import split
from salus.io import read_study, write_image
from salus.preprocess.lesions import foreground, has_room, unknown
from salus.preprocess.preparation import Preparation

FORMAT = 1  # of the folder; raise it whenever a seed's lesions change
KIND = "painted"
COLUMNS = ("file", "patient_id", "of", "place", "diameter", "contrast")
HELD_OUT = (Split.VALIDATION, Split.CALIBRATION)
LEAST = 2.0  # pixels; the foreground has room for lesions of this diameter at every place
LEFT = 0.5  # share of a lesion that must be left once the image is clipped to what its kind of file can hold

Grey = NDArray[np.float32]


def painted(root: Path) -> Dataset:
    """Cases to learn from, the held-out healthy ones in TEST, and the painted ones; no pixel is opened.

    Raises:
        LayoutError: `root` was not made by `write_painted`, or its source is gone or divided otherwise now.
    """
    about = described(root)
    source = Path(about["source"])
    healthy = split(open_dataset(about["reader"], source)).only(label=Label.NORMAL)
    held = held_out(healthy)
    if digest(held) != about["held_out"]:
        raise LayoutError(f"{root}: {source} has other healthy people than when lesions were painted. Paint anew.")
    bare = [replace(case, split=Split.TEST) for case in held]
    lesions = [replace(case, groups=told(case)) for case in folder(root)]
    learned = [replace(case, split=Split.NONE) for case in healthy if case.split == Split.TRAIN]
    note = f"Findings are painted on {len(bare)} healthy images of {source.name}; its own test was not opened."
    return Dataset(f"{source.name}, painted", [*learned, *bare, *lesions], healthy.left_out, (note, *healthy.notes))


def write_painted(root: Path, source: Path, *, reader: str = "folder", seed: int = 0) -> Path:
    """Paint a lesion at each of three depths on every held-out healthy image of a data set, each on its own copy.

    Images that cannot be judged, or have no room for lesions, are healthy cases without painted ones, and lesions of
    which less than half is left are left out: dark ones on dark, bright ones on the white of 8 bits. A folder that
    holds exactly this set is left as it is.

    Args:
        root: the folder to make; absent, empty, or this very data set.
        source, reader: the data set with the healthy people; pictures or single slices, no volumes.
        seed: of lesions and places.

    Returns:
        `root`.

    Raises:
        ConfigError: no such reader.
        LayoutError: `source` or `root` holds something else; a volume; or no image can be painted on.
        StorageError: the folder could not be written.
    """
    held = held_out(split(open_dataset(reader, source)))
    recorded = {
        "format": FORMAT, "source": str(source.resolve()), "reader": reader, "seed": seed, "held_out": digest(held),
    }  # fmt: skip
    return made(root, KIND, recorded, partial(fill, held, seed))


def held_out(dataset: Dataset) -> Sequence[Case]:
    """Healthy cases that nothing learns its weights from."""
    return [case for case in dataset.only(label=Label.NORMAL) if case.split in HELD_OUT]


def digest(cases: Sequence[Case]) -> str:
    """SHA-256 over who they are."""
    return hashlib.sha256("\n".join(f"{case.case_id}\t{case.patient_id}" for case in cases).encode()).hexdigest()


def described(root: Path) -> dict[str, str]:
    """`painted.json`."""
    try:
        about: dict[str, str] = json.loads((root / f"{KIND}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LayoutError(f"{root} holds no painted lesions: {KIND}.json cannot be read ({error}).") from error
    return about


def told(case: Case) -> dict[str, str]:
    """Groups of a painted case without the image it was painted on, which makes no group."""
    return {name: value for name, value in case.groups.items() if name != "of"}


def fill(held: Sequence[Case], seed: int, root: Path) -> None:
    """Pictures, masks and table."""
    rows: list[tuple[object, ...]] = []
    for number, case in enumerate(held):
        try:
            image = read_study(case.images)
            Preparation().check(image)
        except ImageError:  # it stays a case of the test, and screening says why
            continue
        if image.array.ndim > 2:
            raise LayoutError(f"{case.images[0].path} is a volume; lesions are painted on pictures and single slices.")
        rows += lesions(case, image, number, np.random.default_rng([seed, number]), root)
    if not rows:
        raise LayoutError(f"none of {len(held)} held-out healthy images has room for lesions.")
    write_table(root, COLUMNS, rows)


def lesions(case: Case, image: Image, number: int, rng: np.random.Generator, root: Path) -> list[tuple[object, ...]]:
    """Write the painted copies of one image; their rows."""
    low, high = float(image.array.min()), float(image.array.max())
    picture: Grey = (image.array - low) / (high - low)
    inside = foreground(picture)
    if not has_room(inside, LEAST):
        return []
    rows: list[tuple[object, ...]] = []
    brightest = (255 - low) / (high - low) if image.depth == 8 else np.inf
    for one in unknown(picture, inside, rng, brightest):
        if one.left < LEFT:
            continue
        finding, name = "bright" if one.contrast > 0 else "dark", f"{number:05d}-{one.place}"
        # What no lesion touched keeps its value to the bit.
        values = np.where(one.picture == picture, image.array, low + one.picture * (high - low)).astype(np.float32)
        file = write(replace(image, array=values), root / "test" / finding, name)
        write(
            replace(image, array=np.float32(255) * one.mask, depth=8),
            root / "ground_truth" / finding,
            f"{name}_mask",
        )
        place = f"test/{finding}/{file}"
        rows.append((place, case.patient_id, case.case_id, one.place, f"{one.diameter:.1f}", f"{one.contrast:g}"))
    return rows


def write(image: Image, folder: Path, name: str) -> str:
    """Write an image as what it is read as: a scan as .nii.gz, a picture of 8 bits as .png, others as .tif."""
    folder.mkdir(parents=True, exist_ok=True)
    if image.unit == "mm":
        file = f"{name}.nii.gz"
    elif image.depth == 8:
        file, image = f"{name}.png", replace(image, array=np.clip(image.array / 255, 0, 1))  # but for rounding they are
    else:
        file = f"{name}.tif"
    write_image(image, folder / file)
    return file
