"""Listing a large data set (under 2 s), and reading a DICOM series (no slower than a plain pydicom loop).

    python benchmarks/bench_reading.py [--rows 20327] [--slices 200]

The data set is laid out in a temporary folder: a table of that many rows, an empty file for each image, a label file
for each. The plain loop sorts by position, applies slope and intercept, and stacks float32, without a check.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom

from salus.datasets import open_dataset
from salus.datasets.folder import studies_in
from salus.io import read_study
from salus.io.dicom import read_dicom

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.dicom import series

HEADER = (
    "filestem,patient_id,study_number,timehash,gender,age,laterality,projection,initial_exam,ao_classification,cast,"
    "diagnosis_uncertain,osteopenia,fracture_visible,metal,pixel_spacing,device_manufacturer"
)
PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (494).to_bytes(4, "big") + (727).to_bytes(4, "big")


def lay_out(root: Path, rows: int) -> None:
    """GRAZPEDWRI-DX, half of it a.p., two thirds of that with a fracture."""
    labels = root / "folder_structure/yolov5/labels"
    labels.mkdir(parents=True)
    (root / "images_part1").mkdir()
    table = [HEADER]
    for number in range(rows):
        view, broken = 1 + number % 2, number % 3 > 0
        stem = f"{number // 4:04}_{number:010}_01_WRI-L{view}_M010"
        (root / "images_part1" / f"{stem}.png").write_bytes(PNG_START)
        (labels / f"{stem}.txt").write_text("8 0.1 0.1 0.05 0.05\n" + "3 0.5 0.5 0.2 0.2\n" * broken)
        table.append(f"{stem},{number // 4},1,{number},M,10.5,L,{view},1,,,,,{'1' * broken},,0.144,Siemens")
    (root / "dataset.csv").write_text("\n".join(table) + "\n")


def plain(paths: list[Path]) -> np.ndarray:
    """What one would write without a library."""
    files = sorted((pydicom.dcmread(path) for path in paths), key=lambda file: float(file.ImagePositionPatient[2]))
    return np.stack(
        [
            f.pixel_array.astype(np.float32) * float(f.get("RescaleSlope", 1)) + float(f.get("RescaleIntercept", 0))
            for f in files
        ],
        axis=-1,
    )


def compared(paths: list[Path], shape: tuple[int, ...]) -> float:
    """Times that reading a series is faster than the plain loop; beside it what listing and hashing add."""
    times: dict[str, list[float]] = {}
    ways = {
        "plain": lambda: plain(paths),
        "read_dicom": lambda: read_dicom(paths).array,
        "listed, hashed and read": lambda: read_study(studies_in(paths[0].parent, paths)[0].images).array,
    }
    for _ in range(7):
        for name, read in ways.items():
            started = time.perf_counter()
            array = read()
            times.setdefault(name, []).append(time.perf_counter() - started)
            assert array.shape == shape
    median = {name: statistics.median(found) for name, found in times.items()}
    told = ", ".join(f"{name} {value:.2f} s ({median['plain'] / value:.2f}x)" for name, value in median.items())
    print(f"{shape[2]} slices of {shape[0]} x {shape[1]}: {told}")
    return median["plain"] / median["read_dicom"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_327)
    parser.add_argument("--slices", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as there:
        root = Path(there) / "set"
        lay_out(root, options.rows)
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            cases = open_dataset("grazpedwri", root)
            seconds.append(time.perf_counter() - started)
        print(f"{options.rows:,} rows, {len(cases):,} cases listed in {statistics.median(seconds):.2f} s")
        missed = statistics.median(seconds) >= 2
        for side, rescale in ((512, {"RescaleSlope": 1, "RescaleIntercept": -1024}), (256, {})):
            volume = np.random.default_rng(0).integers(0, 4000, (side, side, options.slices)).astype(np.int16)
            paths = series(Path(there) / f"series{side}", volume, [0, 0, 1.0], **rescale)
            missed |= compared(paths, volume.shape) < 1
        if missed:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
