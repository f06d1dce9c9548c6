"""RESULTS on disk: run.json, cases.csv, and one folder a case with `result.json`, maps and overlay."""

import csv
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from salus.core import Case, Dataset, Result
from salus.core.errors import LayoutError, SalusError
from salus.io.files import write_whole
from salus.io.studies import study_sha256

COLUMNS = ("case_id", "verdict", "score", "p_value", "threshold", "reasons", "model", "seconds", "slices", "known")
ABOUT = {"format", "model", "preparation", "studies"}  # in each run.json
BEGUN = ".salus-begun"  # in a case's folder from when it is cleared until its result.json is written
WRITTEN = {  # all that a case's folder may get
    *("map.nii.gz", "map.tif", "restored.nii.gz", "restored.tif", "overlay.png", "result.json"),
    *("map.dcm", "regions.dcm", "report.dcm", "overlay.dcm"),
}


def is_run(path: Path) -> bool:
    """Whether a `run.json` is there and a screening wrote it: other programs have files of that name, too."""
    try:
        run = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(run, dict) and run.keys() >= ABOUT


def own(folder: Path) -> set[str]:
    """Names that files of a screening have in a case's folder: what its result lists; any, where one was killed."""
    if (folder / BEGUN).exists():
        return WRITTEN
    done = read_result(folder)
    return WRITTEN & {"result.json", *done.files.values()} if done else set()  # whatever path a result may list


def strange(folder: Path) -> list[str]:
    """What lies in a case's folder under a name that a screening would write, and is of none."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return sorted((there & WRITTEN) - own(folder))


def nothing_lost(cases: Dataset, out: Path, there: Path) -> None:
    """That results take the place of nothing but results of the same images.

    Args:
        there: in `out`, where archives were unpacked.

    Raises:
        LayoutError: they would.
    """
    place, unpacked = out.resolve(), there.resolve()
    for folder in sorted({image.path.parent for case in cases for image in case.images}):
        above = (folder / "image").resolve().parents
        if place in above and unpacked not in above:
            raise LayoutError(f"{out} holds images to be screened, in {folder}. Results need a folder of their own.")
    if not is_run(out / "run.json"):
        for name in ("run.json", "cases.csv"):
            if (out / name).exists():
                raise LayoutError(f"{out} holds a {name}, which no screening wrote. Choose another --out.")
    others = []
    for case in cases:
        folder = out / case.case_id
        if names := strange(folder):
            raise LayoutError(f"{folder} holds {', '.join(names)}, which no screening wrote. Choose another --out.")
        done = read_result(folder)
        if done is not None and done.score is not None and not same_files(case, done):
            others.append(case.case_id)
    if others:
        more = f" and {len(others) - 8} more" * (len(others) > 8)
        raise LayoutError(
            f"{out} holds results of other images, maybe of other patients, under the same names: "
            f"{', '.join(others[:8])}{more}. Choose another --out; or delete their folders, if they may be judged anew."
        )


def same_files(case: Case, done: Result) -> bool:
    """Whether a result is of what the case's files hold now, whatever they are called."""
    try:
        return sorted(hashes(case).values()) == sorted(done.sources.values())
    except SalusError:
        return False


def hashes(case: Case) -> dict[str, str]:
    """SHA-256 by the names of its files.

    Raises:
        ImageError: one cannot be opened.
    """
    return {image.name: study_sha256([image]) for image in case.images}


def cleared(folder: Path) -> Path:
    """A case's folder without what an earlier judgement left in it, `result.json` gone first; other files stay.

    Raises:
        StorageError: disk full.
    """
    left = own(folder)
    write_whole(folder / BEGUN, b"")
    for name in sorted(left, key=lambda name: name != "result.json"):
        (folder / name).unlink(missing_ok=True)
    for part in folder.glob(".salus-*.part"):
        part.unlink()
    return folder


def write_result(folder: Path, result: Result) -> None:
    """Write `result.json`; call it after the case's other files, since it says that they are whole.

    Raises:
        StorageError: disk full.
    """
    write_whole(folder / "result.json", result.to_json().encode())
    (folder / BEGUN).unlink(missing_ok=True)


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
            f"{len(r.slice_scores)} of {r.slices}" if r.slices else None,
            "yes" if r.known else None,
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
    shown = np.repeat(np.round(picture * 255).astype(np.uint8)[..., None], 3, axis=-1)
    above = wide > start
    heat = np.clip((wide[above] - start) / max(2 * start, 1e-12), 0, 1)[:, None]
    alpha = 0.35 + 0.45 * heat
    colour = np.concatenate([np.ones_like(heat), heat, np.zeros_like(heat)], axis=-1)
    shown[above] = np.round(((1 - alpha) * picture[above][:, None] + alpha * colour) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Picture.fromarray(shown).save(buffer, "PNG", compress_type=zlib.Z_RLE)
    write_whole(path, buffer.getvalue())
