"""The tables of docs/results.md: methods x data sets x scores x seeds, by the functions behind the commands.

    python benchmarks/methods_table.py --data DATA --out runs/table [--methods ra ae] [--seeds 0 1 2] [--table]

A cell is `salus train METHOD --data SET --seed S`, `salus screen SET`, `salus evaluate`, in a process of its own whose
peak memory is kept. Training does not depend on the score, so rows that differ by it share one training. Finished
cells are not done again, several of these may run side by side with other methods, and `--table` prints what there is.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from salus.benchmark import evaluate
from salus.benchmark.demo import POPULATIONS
from salus.core import Label, Split
from salus.datasets import open_dataset
from salus.datasets.phantom import write_phantom
from salus.datasets.protocol import split
from salus.detectors import DETECTORS, Restorer, build, detector_class
from salus.io import read_image
from salus.model import Model, calibration_of, detections
from salus.preprocess import PreparedCache
from salus.screening import screen
from salus.training import fit_score, train

SETS = ("phantom", "brain_flair_stroke_hemi", "brain_flair_stroke_axial", "chest_xray_pneumonia")
COMMON = (  # what every restoring method is also judged with
    {"name": "residual"},
    {"name": "smoothed", "sigma": 2.0, "image": "top1"},
    {"name": "equation5", "trunk": "squeezenet"},
)


def place_of(options: argparse.Namespace, name: str) -> Path:
    """The data set's folder; the phantom is drawn when it is first asked for."""
    if name == "phantom":
        return write_phantom(options.out / "phantom-data", **POPULATIONS["fast"], seed=0)
    return Path(options.data / name)


def scores_of(method: str) -> list[dict[str, object]]:
    """The preset's own score first, then the common ones, none twice; nothing but "" for what restores nothing."""
    kind = detector_class(method)
    own = dict(kind.PRESETS["fast"].score)
    if not issubclass(kind, Restorer):
        return [{}]
    return [own, *(score for score in COMMON if score != own)]


def label_of(score: dict[str, object]) -> str:
    return "-".join(str(value) for value in score.values()) or "own"


def with_score(folder: Path, score: dict[str, object], data: Path, out: Path) -> Path:
    """The model in `folder` with another score, fitted and calibrated anew on its own healthy parts."""
    if not (out / "model.json").is_file():
        model = Model.load(folder)
        detector = build(model.name, model.settings, score)
        detector.load_state_dict(
            {k: v for k, v in model.detector.learned().items() if not k.startswith("score.")}, strict=False
        )
        model = replace(model, detector=detector.eval(), score=score)
        healthy = split(open_dataset("folder", data))
        validation = [c.images[0] for c in healthy.only(split=Split.VALIDATION, label=Label.NORMAL)]
        fit_score(detector, PreparedCache().prepare(validation, model.preparation, read_image).rows, model.precision)
        calibration = calibration_of(model, healthy.only(split=Split.CALIBRATION, label=Label.NORMAL))[0]
        replace(model, calibration=calibration).save(out)
    return out


def cell(data: Path, method: str, seed: int, out: Path, preset: str) -> None:
    """Train, then screen and evaluate with each score."""
    model = train(method, data, out / "model", preset=preset, seed=seed, resume=True).folder
    for score in scores_of(method):
        place = out / label_of(score)
        if (place / "report" / "report.html").is_file():
            continue
        scored = with_score(model, score, data, place / "model") if score else model
        screen([data], model=scored, out=place / "results")
        print(evaluate(place / "results", data, place / "report"), flush=True)
    if not (out / "speed.json").is_file():
        (out / "speed.json").write_text(json.dumps({"ms": milliseconds(Model.load(model)), "threads": threads()}))


def threads() -> int:
    import torch

    return torch.get_num_threads()


def milliseconds(model: Model) -> float:
    """Median time of `detect` an image in batches of 16, with the score of the preset."""
    size = model.preparation.size
    rows = np.random.default_rng(0).random((16, 1, size, size), dtype=np.float32)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        detections(model.detector, rows, precision=model.precision)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[1:]) / len(rows)


def run(options: argparse.Namespace) -> None:
    """Every cell in its own process; one that fails is told and the others go on."""
    for seed in options.seeds:
        for name in options.sets:
            data = place_of(options, name)
            for method in options.methods:
                out = options.out / name / method / f"seed{seed}"
                if (out / "peak.json").is_file():
                    continue
                out.mkdir(parents=True, exist_ok=True)
                command = [sys.executable, __file__, "--cell", data, method, str(seed), out, options.preset]
                with (out / "log.txt").open("a") as log:
                    process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
                    _, status, usage = os.wait4(process.pid, 0)
                if status:
                    print(f"failed: {name} {method} seed {seed}, see {out / 'log.txt'}", flush=True)
                    continue
                (out / "peak.json").write_text(json.dumps({"mib": usage.ru_maxrss / 1024}))
                print(f"done: {name} {method} seed {seed}", flush=True)


def spread(values: list[float], digits: int = 3) -> str:
    shown = f"{statistics.mean(values):.{digits}f}"
    return f"{shown} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else shown


def table(options: argparse.Namespace) -> None:
    """Mean and standard deviation over seeds; the interval over patients is that of the first seed."""
    print("| data | method + score | seeds | AUROC | 95 %, patients | pixel AP | false alarms | s | ms/image | MiB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in options.sets:
        rows: dict[str, list[Path]] = {}
        for report in sorted((options.out / name).glob("*/seed*/*/report/metrics.json")):
            if report.parents[3].name in options.methods:
                rows.setdefault(json.loads(report.read_text())["method"], []).append(report)
        for method, reports in rows.items():
            print_rows(name, method, reports)
        if rows:
            floors = json.loads(next(iter(rows.values()))[0].read_text())["floors"]
            for floor, metrics in floors.items():
                if metrics:
                    print_row(name, f"floor: {floor}", [metrics["overall"]], [metrics["healthy"]], [])


def print_rows(name: str, method: str, reports: list[Path]) -> None:
    metrics = [json.loads(report.read_text()) for report in reports]
    costs = []
    for report in reports:
        seed = report.parents[2]
        card = json.loads((seed / "model" / "model.json").read_text())["card"]
        speed, peak = (json.loads((seed / f"{part}.json").read_text()) for part in ("speed", "peak"))
        costs.append((card["run"]["seconds"], speed["ms"], peak["mib"]))
    print_row(name, method, [m["overall"] for m in metrics], [m["healthy"] for m in metrics], costs)
    if name.startswith("chest"):
        for finding in metrics[0]["findings"]:
            print_row(f"{name}, {finding}", method, [m["findings"][finding] for m in metrics], [], [])


def print_row(
    name: str, method: str, groups: list[dict], healthy: list[dict], costs: list[tuple[float, float, float]]
) -> None:
    low, high = groups[0]["auroc"]["ci95"]
    pixel = spread([g["pixel_ap"]["value"] for g in groups]) if groups[0]["pixel_ap"] else "no masks"
    flagged = spread([h["false_alarm_rate"]["value"] for h in healthy]) if healthy else "-"
    cost = [f"{statistics.mean(values):.0f}" for values in zip(*costs, strict=True)] or ["-"] * 3
    auroc = spread([g["auroc"]["value"] for g in groups])
    print(
        f"| {name} | {method} | {len(groups)} | {auroc} | {low:.3f} to {high:.3f} | {pixel} | {flagged} | "
        + " | ".join(cost)
        + " |"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path)
    options.add_argument("--out", type=Path)
    options.add_argument("--methods", nargs="+", default=sorted(DETECTORS), choices=sorted(DETECTORS))
    options.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    options.add_argument("--preset", default="fast")
    options.add_argument("--table", action="store_true")
    options.add_argument("--cell", nargs=5, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.cell:
        data, method, seed, out, preset = chosen.cell
        cell(Path(data), method, int(seed), Path(out), preset)
    elif chosen.table:
        table(chosen)
    else:
        run(chosen)


if __name__ == "__main__":
    main()
