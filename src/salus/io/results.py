"""RESULTS on disk: run.json, cases.csv, and one folder a case with `result.json`, maps and overlay."""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from salus.core import Result
from salus.core.errors import LayoutError
from salus.io.files import write_whole

COLUMNS = ("case_id", "verdict", "score", "p_value", "threshold", "reasons", "model", "seconds")


def write_result(folder: Path, result: Result) -> None:
    """Write `result.json`; call it after the case's other files, since it says that they are whole.

    Raises:
        StorageError: disk full.
    """
    write_whole(folder / "result.json", result.to_json().encode())


def read_result(folder: Path) -> Result | None:
    """The finished result in a case's folder; None where there is none or it is not whole."""
    try:
        return Result.from_json((folder / "result.json").read_text())
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read_results(root: Path) -> Iterator[tuple[Path, Result]]:
    """Folder and result of every finished case under `root`, by name.

    Raises:
        LayoutError: `root` is not what `salus screen` writes.
    """
    if not (root / "run.json").is_file():
        raise LayoutError(f"{root} holds no run.json. Results are the folder that `salus screen --out` wrote.")
    for file in sorted(root.rglob("result.json")):
        if (result := read_result(file.parent)) is not None:
            yield file.parent, result


def write_table(path: Path, results: Iterable[Result]) -> None:
    """`cases.csv`: one row a case, empty cells where there is no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for r in results:
        cells = (
            r.case_id,
            r.verdict,
            r.score,
            r.p_value,
            r.threshold,
            "; ".join([*r.reasons, *r.remarks]),
            r.model,
            f"{r.seconds:.3f}",
        )
        writer.writerow(["" if cell is None else cell for cell in cells])
    write_whole(path, text.getvalue().encode())


def write_overlay(
    path: Path, picture: NDArray[np.float32], anomaly: NDArray[np.float32], threshold: float | None
) -> None:
    """A colour PNG: `picture` in grey, red to yellow where the map exceeds what healthy pixels do.

    Args:
        picture: (H, W) in [0, 1].
        anomaly: (h, w) of the same field of view, any size; brought to (H, W) bilinearly.
        threshold: where red begins; yellow is three times that. None: the map's own 95th percentile.

    Raises:
        StorageError: disk full.
    """
    start = float(np.quantile(anomaly, 0.95)) if threshold is None else threshold
    size = (picture.shape[1], picture.shape[0])
    wide = np.asarray(Picture.fromarray(anomaly).resize(size, Picture.Resampling.BILINEAR))
    heat = np.clip((wide - start) / max(2 * start, 1e-12), 0, 1)[..., None]
    alpha = np.where(wide[..., None] > start, 0.35 + 0.45 * heat, 0)
    colour = np.concatenate([np.ones_like(heat), heat, np.zeros_like(heat)], axis=-1)
    mixed = (1 - alpha) * picture[..., None] + alpha * colour
    buffer = io.BytesIO()
    Picture.fromarray(np.round(mixed * 255).astype(np.uint8)).save(buffer, "PNG", compress_level=3)
    write_whole(path, buffer.getvalue())
