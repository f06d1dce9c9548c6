"""The table of docs/results.md: data sets x methods x scores x seeds, by the functions behind the commands.

    python benchmarks/real_data.py --data ../shared/data --out runs/real [--only ra] [--seeds 0 1 2] [--table]

A cell is `salus train METHOD --data SET --seed S`, `salus screen SET`, `salus evaluate`. Training does not depend on
the score, so cells that differ by it share one training. Finished cells are not done again; `--table` prints them.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

from salus.benchmark import evaluate
from salus.core import Label, Split
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.detectors import build
from salus.model import Model, calibration_of
from salus.screening import screen
from salus.training import train

SETS = ("brain_flair_stroke_hemi", "brain_flair_stroke_axial", "chest_xray_pneumonia")
SCORES = {
    "ra": (
        {"name": "smoothed", "sigma": 2.0, "image": "top1"},
        {"name": "residual"},
        {"name": "equation5", "trunk": "squeezenet"},
    ),
    "ae": ({"name": "squared"}, {"name": "smoothed", "sigma": 2.0, "image": "top1"}),
}


def with_score(folder: Path, score: dict[str, object], data: Path, out: Path) -> Path:
    """The model in `folder` with another score and its own calibration."""
    if not (out / "model.json").is_file():
        model = Model.load(folder)
        detector = build(model.name, model.settings, score)
        detector.load_state_dict(model.detector.state_dict(), strict=False)
        model = replace(model, detector=detector.eval(), score=score)
        healthy = split(open_dataset("folder", data)).only(split=Split.CALIBRATION, label=Label.NORMAL)
        replace(model, calibration=calibration_of(model, healthy)[0]).save(out)
    return out


def run(options: argparse.Namespace) -> None:
    for seed in options.seeds:
        for name in options.sets:
            for method in options.only:
                data, place = options.data / name, options.out / name / method / f"seed{seed}"
                model = train(method, data, place / "model", preset=options.preset, seed=seed, resume=True).folder
                for score in SCORES[method]:
                    label = "-".join(str(value) for value in score.values())
                    if (place / label / "report" / "report.html").is_file():
                        continue
                    scored = with_score(model, score, data, place / label / "model")
                    screen([data], model=scored, out=place / label / "results")
                    print(evaluate(place / label / "results", data, place / label / "report"), flush=True)


def cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def table(out: Path) -> None:
    """Mean and standard deviation over seeds; the interval over patients is that of the first seed."""
    print(
        "| data | method + score | seeds | AUROC, SD of seeds | 95 %, patients, seed 0 | pixel AP | false alarms | s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in SETS:
        rows: dict[str, list[dict]] = {}
        seconds: dict[str, list[float]] = {}
        for report in sorted((out / name).glob("*/seed*/*/report/metrics.json")):
            metrics = json.loads(report.read_text())
            rows.setdefault(metrics["method"], []).append(metrics)
            card = json.loads((report.parents[1] / "model" / "model.json").read_text())["card"]
            seconds.setdefault(metrics["method"], []).append(card["run"]["seconds"])
        floors = next(iter(rows.values()))[0]["floors"] if rows else {}
        entries = [(method, found, seconds[method]) for method, found in rows.items()]
        entries += [(f"floor: {floor}", [{**values}], [0.0]) for floor, values in floors.items() if values]
        for method, found, spent in entries:
            parts = [("", [m["overall"] for m in found])]
            parts += [
                (f" / {f}", [m["findings"][f] for m in found])
                for f in found[0]["findings"]
                if len(found[0]["findings"]) > 1
            ]
            for label, groups in parts:
                low, high = groups[0]["auroc"]["ci95"]
                pixel = cell([g["pixel_ap"]["value"] for g in groups]) if groups[0]["pixel_ap"] else "no masks"
                flagged = cell([m["healthy"]["false_alarm_rate"]["value"] for m in found])
                auroc = cell([g["auroc"]["value"] for g in groups])
                print(
                    f"| {name}{label} | {method} | {len(found)} | {auroc} | {low:.3f} to {high:.3f} | {pixel} "
                    f"| {flagged} | {statistics.mean(spent):.0f} |"
                )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--only", nargs="+", default=list(SCORES), choices=list(SCORES))
    options.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--preset", default="fast")
    options.add_argument("--table", action="store_true")
    chosen = options.parse_args()
    if chosen.table:
        table(chosen.out)
    else:
        run(chosen)


if __name__ == "__main__":
    main()
