"""What a user's images are like, and how to prepare them: a proposal as a file that people edit.

    made = plan(Path("healthy"), Path("plan.yaml"))
    train("ra", Path("healthy"), Path("model"), settings=read_plan(Path("plan.yaml")))

The rules are in `proposed`, and every value in the file says what was seen that led to it. Three published ways stand
behind them: percentiles of brains, of 16-bit radiographs (arXiv:2401.10637), of what is above the background
(arXiv:2403.09303 on BraTS2021).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from salus.core import Case, Image, Label, Split
from salus.core.errors import ConfigError, ImageError, LayoutError, did_you_mean
from salus.datasets import open_dataset
from salus.io import read_study
from salus.io.files import write_whole
from salus.preprocess import Preparation
from salus.preprocess.geometry import DISPLAY, crop_border, reorient

LOOKED_AT = 48  # images, evenly over the healthy ones
RADIOGRAPHS = ("CR", "DX", "DR", "MG", "PX", "IO", "RF", "XA")
EMPTY = 0.3  # share of voxels at the minimum from which a background was cut away
BORDER = 0.02  # share of rows and columns that an empty border takes, from which it is worth cutting off
BACKGROUND = 0.1  # share of empty voxels beside the border from which they are a background
LITTLE = 1.5  # times the smallest pixel's area that an axial pixel may have
GROUPS = ("prepare", "recipe", "score")


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What the images of a data set are like.

    Attributes:
        images: how many were looked at, of `healthy`.
        units, modalities, depths: of how many images each is true; depth 0 is floating point or scaled.
        volumes: how many are volumes; `slices` their median number of slices in each plane.
        smallest, largest: (rows, columns) by area, as seen in `plane`.
        spacing: median step along rows, columns and slices of that plane, in its unit.
        plane: in which volumes are finest.
        empty: median share of voxels at the minimum.
        border: median share of rows and columns in an empty border.
        spread: ratio of the 98th percentile in a bright image (9th decile) to a dark one (1st decile).
    """

    images: int
    healthy: int
    units: Mapping[str, int]
    modalities: Mapping[str, int]
    depths: Mapping[int, int]
    volumes: int
    slices: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    spacing: tuple[float, ...]
    plane: str
    empty: float
    border: float
    spread: float


def plan(
    data: Path, out: Path, *, dataset: str = "folder", on_image: Callable[[int, int], None] = lambda done, total: None
) -> Fingerprint:
    """Look at healthy images and write a proposal to `out`; the command of the same name.

    Args:
        on_image: called with images looked at and how many will be.

    Raises:
        LayoutError: no healthy image that can be read.
        ConfigError: `out` is there already: it may have been edited.
        StorageError: it cannot be written.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already, and may have been edited. Remove it, or choose another --out.")
    healthy = [c for c in open_dataset(dataset, data).only(label=Label.NORMAL) if c.split != Split.TEST]
    found = fingerprint(healthy, on_image)
    write_whole(out, written(found, proposed(found), data.name).encode())
    return found


def fingerprint(
    healthy: Sequence[Case], on_image: Callable[[int, int], None] = lambda done, total: None
) -> Fingerprint:
    """Of at most `LOOKED_AT` cases, evenly chosen; those that cannot be read are passed over.

    Raises:
        LayoutError: none can be read.
    """
    chosen = [healthy[i] for i in np.unique(np.linspace(0, len(healthy) - 1, LOOKED_AT).round().astype(int))]
    images, reason = [], "there is none"
    for done, case in enumerate(chosen if len(healthy) else [], start=1):
        try:
            images.append(seen(read_study(case.images)))
        except ImageError as error:
            reason = str(error)
        on_image(done, len(chosen))
    if not images:
        raise LayoutError(f"no healthy image can be read: {reason}")
    planes = Counter(one["plane"] for one in images)
    plane = planes.most_common(1)[0][0]
    shapes = sorted((one["shape"] for one in images), key=lambda shape: shape[0] * shape[1])
    bright = np.array([one["bright"] for one in images])
    low, high = np.quantile(bright, [0.1, 0.9])
    return Fingerprint(
        images=len(images),
        healthy=len(healthy),
        units=dict(Counter(one["unit"] for one in images)),
        modalities=dict(Counter(one["modality"] for one in images if one["modality"])),
        depths=dict(Counter(one["depth"] for one in images)),
        volumes=sum(one["slices"] > 1 for one in images),
        slices=int(np.median([one["slices"] for one in images])),
        smallest=shapes[0][:2],
        largest=shapes[-1][:2],
        spacing=tuple(float(mm) for mm in np.median([one["spacing"] for one in images], axis=0)),
        plane=plane,
        empty=float(np.median([one["empty"] for one in images])),
        border=float(np.median([one["border"] for one in images])),
        spread=float(high / low) if low > 0 else float("inf"),
    )


def seen(image: Image) -> dict[str, Any]:
    """What is kept of one image."""
    plane = finest(image)
    stack = reorient(image, plane)  # type: ignore[arg-type]
    kept = crop_border(stack).array.shape
    rows, columns = stack.array.shape[:2]
    return {
        "unit": image.unit,
        "modality": image.modality,
        "depth": image.depth,
        "slices": stack.array.shape[2] if stack.array.ndim == 3 else 1,
        "shape": (rows, columns),
        "spacing": stack.spacing,
        "plane": plane,
        "empty": float((image.array <= image.array.min()).mean()),
        "border": 1 - kept[0] * kept[1] / (rows * columns),
        "bright": float(np.percentile(image.array, 98)),
    }


def finest(image: Image) -> str:
    """The plane in which a volume's pixels are smallest; axial where it is nearly so, and for pictures."""
    if image.array.ndim == 2 or image.unit == "px":
        return "axial"
    area = {plane: float(np.prod(reorient(image, plane).spacing[:2])) for plane in DISPLAY}
    smallest = min(area.values())
    return next(plane for plane in DISPLAY if area[plane] <= LITTLE * smallest)


def proposed(found: Fingerprint) -> dict[str, tuple[Any, str]]:
    """Values of `Preparation`, each with the reason."""
    unit = max(found.units, key=lambda key: found.units[key])
    depth = max(found.depths, key=lambda key: found.depths[key])
    radiographs = sum(count for name, count in found.modalities.items() if name in RADIOGRAPHS)
    radiograph = radiographs > found.images / 2 if found.modalities else unit == "px" and depth > 8
    spread = f"; white differs {found.spread:.2g}-fold between images" if np.isfinite(found.spread) else ""
    values: dict[str, tuple[Any, str]] = {}
    if unit == "px" and depth == 8:
        values["intensity"] = ("depth", "8-bit pictures: their grey values are a choice somebody made, and are kept")
    elif radiograph:
        values["intensity"] = ("percentile", bits(depth) + spread)
        values["lower"] = (0.0, "black stays black")
        values["upper"] = (98.0, "as for the wrists of arXiv:2401.10637: markers and metal do not set the scale")
    else:
        values["intensity"] = ("percentile", bits(depth) + spread)
        values["lower"] = (0.5, "")
        values["upper"] = (99.5, "a few bright vessels do not set the scale")
        values["foreground"] = (
            found.empty >= EMPTY,
            f"{100 * found.empty:.0f} % of the voxels are at the minimum"
            + (": a background that was cut away" if found.empty >= EMPTY else ""),
        )
    # A frame is all that is empty of a collimated picture; around a head there is more than its frame.
    frame = found.border >= BORDER and found.empty - found.border < BACKGROUND
    values["border"] = (
        "crop" if radiograph and frame else "keep",
        f"{100 * found.border:.0f} % of an image is empty border, {100 * found.empty:.0f} % of it is empty",
    )
    if found.volumes:
        values["plane"] = (found.plane, f"the finest: {' x '.join(f'{mm:.2g}' for mm in found.spacing)} mm")
        values["slices"] = ("mid", f"of about {found.slices}; 'all' learns from and screens every one")
    return values


def bits(depth: int) -> str:
    """A stored depth in words."""
    return f"{depth} bits" if depth else "floating point or rescaled"


def written(found: Fingerprint, values: Mapping[str, tuple[Any, str]], name: str) -> str:
    """The file: what was seen, and the proposal with its reasons."""
    told = [
        f"Proposed by `salus plan` for {name}: {found.images} of {found.healthy} healthy images looked at. Edit, then",
        "    salus train ra --data ... --plan THIS_FILE",
        f"images: {counts(found.units)}; modality {counts(found.modalities) or 'not told'}; "
        f"{counts({bits(depth): n for depth, n in found.depths.items()})}",
        f"size: {found.smallest[0]} x {found.smallest[1]} to {found.largest[0]} x {found.largest[1]} pixels; "
        f"{found.volumes} volumes",
    ]
    lines = [f"# {line}" for line in told] + ["prepare:"]
    for key, (value, reason) in values.items():
        text = yaml.safe_dump(value).strip().removesuffix("...").strip()
        lines.append(f"  {key}: {text}" + (f"  # {reason}" if reason else ""))
    return "\n".join(lines) + "\n"


def counts(of: Mapping[Any, int]) -> str:
    """ "40 mm, 8 px"."""
    return ", ".join(f"{number} {what}" for what, number in sorted(of.items(), key=lambda item: -item[1]))


def read_plan(path: Path) -> dict[str, Any]:
    """Settings of `train` from a plan: {"prepare.intensity": "percentile", ...}.

    Raises:
        ConfigError: it cannot be read, is no mapping of groups, or has an unknown group or setting of `prepare`.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict) or not all(isinstance(group, dict) for group in content.values()):
        raise ConfigError(f"{path} is no plan: it has groups ({', '.join(GROUPS)}) of settings, one a line.")
    known = [field.name for field in fields(Preparation)]
    settings = {}
    for group, values in content.items():
        if group not in GROUPS:
            raise ConfigError(f"{path}: there is no group '{group}'.{did_you_mean(str(group), GROUPS)}")
        for key, value in values.items():
            if group == "prepare" and key not in known:
                raise ConfigError(f"{path}: there is no setting 'prepare.{key}'.{did_you_mean(str(key), known)}")
            settings[f"{group}.{key}"] = value
    return settings
