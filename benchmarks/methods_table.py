"""The tables of docs/results.md: methods x data sets x scores x seeds, by the functions behind the commands.

    python benchmarks/methods_table.py --data DATA --out runs/table [--methods ra ae] [--seeds 0 1 2]
    python benchmarks/methods_table.py --out runs/table --keep       into docs/results.csv, in place of equal rows there
    python benchmarks/methods_table.py --table [--sets phantom]      docs/results.csv as a table
    python benchmarks/methods_table.py --by-score --methods ra ae    of these every score
    python benchmarks/methods_table.py --pages                       the line on real images, into each method's page

A cell is `salus train METHOD --data SET --seed S`, `salus screen SET`, `salus evaluate`, in a process of its own whose
peak memory is kept. Training does not depend on the score, so rows that differ by it share one training. Finished
cells are not done again, and several of these may run side by side with other methods.
"""

import argparse
import csv
import datetime
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from salus.benchmark import evaluate
from salus.benchmark.cells import milliseconds
from salus.benchmark.demo import POPULATIONS
from salus.benchmark.floors import SAME_MAP
from salus.datasets.phantom import write_phantom
from salus.detectors import DETECTORS, Restorer, detector_class
from salus.model import Model
from salus.screening import screen
from salus.training import rescored, train

SETS = {
    "phantom": "Phantom",
    "brain_flair_stroke_hemi": "Stroke, hemispheres",
    "brain_flair_stroke_axial": "Stroke, axial slices",
    "chest_xray_pneumonia": "Chest radiographs of children",
}
OTHERS = {"residual": "residual", "smoothed": "smoothed-2-top1", "equation 5": "equation5-code-squeezenet-lin"}
COMMON = (  # what every restoring method is also judged with
    {"name": "residual"},
    {"name": "smoothed", "sigma": 2.0, "image": "top1"},
    {"name": "equation5", "trunk": "squeezenet"},
)
ON_PAGES = "Real images, `fast`, own score: "
RESULTS = Path(__file__).parents[1] / "docs" / "results.csv"
COLUMNS = (
    *("data", "finding", "method", "seed", "own", "auroc", "auroc_low", "auroc_high"),
    *("pixel_ap", "pixel_ap_low", "pixel_ap_high", "false_alarms", "false_alarms_low", "false_alarms_high"),
    *("seconds", "ms", "mib", "precision", "commit", "date"),
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
    named = (key if value is True else str(value) for key, value in score.items() if value is not False)
    return "-".join(named) or "own"


def cell(data: Path, method: str, seed: int, out: Path, preset: str) -> None:
    """Train, then screen and evaluate with each score."""
    model = train(method, data, out / "model", preset=preset, seed=seed, resume=True).folder
    for score in scores_of(method):
        place = out / label_of(score)
        if (place / "report" / "report.html").is_file():
            continue
        scored = rescored(model, score, data, place / "model") if score else model
        screen([data], model=scored, out=place / "results")
        print(evaluate(place / "results", data, place / "report"), flush=True)
    if not (out / "speed.json").is_file():
        commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=RESULTS.parent, text=True).strip()
        made = {"ms": milliseconds(Model.load(model)), "commit": commit, "date": str(datetime.date.today())}
        (out / "speed.json").write_text(json.dumps(made))


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


def collected(options: argparse.Namespace) -> dict[tuple[str, ...], dict[str, str]]:
    """Rows of RESULTS with those of the finished cells in `--out` in their place, by what they are about."""
    rows = {key_of(row): row for row in stored()}
    for peak in sorted(options.out.glob("*/*/seed*/peak.json")):
        for row in rows_of_cell(peak.parent):
            rows[key_of(row)] = row
    return rows


def stored() -> list[dict[str, str]]:
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def key_of(row: dict[str, str]) -> tuple[str, ...]:
    return row["data"], row["finding"], row["method"], row["seed"]


def rows_of_cell(cell: Path) -> list[dict[str, str]]:
    """A row for each score and finding, and in the cells of seed 0 one for each floor."""
    model = json.loads((cell / "model" / "model.json").read_text())
    made = json.loads((cell / "speed.json").read_text())
    peak = json.loads((cell / "peak.json").read_text())
    own = label_of(scores_of(cell.parent.name)[0])
    common = {"data": cell.parents[1].name, "commit": made["commit"], "date": made["date"]}
    cost = {
        "seconds": f"{model['card']['run']['seconds']:.0f}",
        "ms": f"{made['ms']:.2f}",
        "mib": f"{peak['mib']:.0f}",
        "precision": model["precision"],
    }
    rows = []
    for report in sorted(cell.glob("*/report/metrics.json")):
        metrics = json.loads(report.read_text())
        found = rows_of_method(metrics, metrics["method"])
        mine = "own" if report.parents[1].name == own else ""
        rows += [{**common, "seed": cell.name.removeprefix("seed"), "own": mine, **cost, **row} for row in found]
        for floor, judged in metrics["floors"].items():
            # PCA with the method's own map is a cell of `pca` with that score.
            if judged and cell.name == "seed0" and floor != SAME_MAP:
                found = rows_of_method(judged, f"floor: {floor}")
                rows += [{**common, "seed": "-", "own": "own", **dict.fromkeys(cost, ""), **row} for row in found]
    return rows


def rows_of_method(metrics: dict, method: str) -> list[dict[str, str]]:
    """Overall and, where there are few, each finding."""
    groups = {"all": metrics["overall"], **(metrics["findings"] if len(metrics["findings"]) == 2 else {})}
    rows = []
    for finding, group in groups.items():
        row = {"finding": finding, "method": method}
        for name, measure in (
            ("auroc", group["auroc"]),
            ("pixel_ap", group["pixel_ap"]),
            ("false_alarms", metrics["healthy"]["false_alarm_rate"]),
        ):
            low, high = measure["ci95"] if measure else ("", "")
            row |= {name: str(measure["value"] if measure else ""), f"{name}_low": str(low), f"{name}_high": str(high)}
        rows.append(row)
    return rows


def keep(options: argparse.Namespace) -> None:
    rows = collected(options)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows))


def table(options: argparse.Namespace) -> None:
    """For each data set the methods with their own scores, best first, and beside it what other scores make of them.

    Means and standard deviations over seeds; intervals over patients are those of the first seed. What a floor costs
    is in its own cell.
    """
    for data in options.sets:
        rows = [row for row in stored() if row["data"] == data]
        if not rows:
            continue
        findings = sorted({row["finding"] for row in rows} - {"all"})
        columns = [*(findings or ["pixel AP", "95 %, patients"]), "flagged of healthy"]
        costs = ["s", "ms/image", "MiB", "in"]
        head = ["method", "its score", "seeds", "AUROC", "95 %, patients", *columns, *OTHERS, *costs]
        print(f"### {SETS[data]}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
        own: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            if row["own"] and row["finding"] == "all":
                own.setdefault(row["method"], []).append(row)
        for name, mine in sorted(own.items(), key=lambda item: -mean_of(item[1], "auroc")):
            method, _, score = scored(name).partition(" + ")
            same = [row for row in rows if row["method"] == name]
            extra = [shown([r for r in same if r["finding"] == finding], "auroc") for finding in findings]
            cost = mine if mine[0]["ms"] else own.get(f"{method.removeprefix('floor: ')} + residual", mine)
            cells = [
                linked(method),
                score or "-",
                "-" if mine[0]["seed"] == "-" else str(len(mine)),
                shown(mine, "auroc"),
                between(mine[0], "auroc"),
                *(extra or [shown(mine, "pixel_ap"), between(mine[0], "pixel_ap")]),
                shown(mine, "false_alarms"),
                *(
                    beside([r for r in rows if r["method"] == f"{method.removeprefix('floor: ')} + {other}"], findings)
                    for other in OTHERS.values()
                ),
                *(shown(cost, column, digits, sd=False) for column, digits in (("seconds", 0), ("ms", 1), ("mib", 0))),
                cost[0]["precision"] or "-",
            ]
            print(f"| {' | '.join(cells)} |")
        print()


def by_score(options: argparse.Namespace) -> None:
    """Of `--methods` and the floors every score and finding on the sets with patients."""
    head = ["data", "method + score", "seeds", "AUROC", "95 %, patients, seed 0", "pixel AP", "flagged of healthy", "s"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for data in options.sets:
        groups: dict[tuple[str, str], list[dict[str, str]]] = {}
        for row in stored():
            method = row["method"].partition(" + ")[0]
            if row["data"] == data and (method in options.methods or method.startswith("floor: ")):
                groups.setdefault((row["method"], row["finding"]), []).append(row)
        for (name, finding), rows in sorted(
            groups.items(), key=lambda item: (item[0][0].startswith("floor"), *item[0])
        ):
            cells = [
                SETS[data] + ("" if finding == "all" else f", {finding.partition('_')[0]}"),
                scored(name),
                "-" if rows[0]["seed"] == "-" else str(len(rows)),
                shown(rows, "auroc"),
                between(rows[0], "auroc"),
                shown(rows, "pixel_ap"),
                shown(rows, "false_alarms"),
                shown(rows, "seconds", 0, sd=False),
            ]
            print(f"| {' | '.join(cells)} |")


def on_real_images(method: str) -> str:
    """What a method measures with its own score on the sets with patients, in a line; empty where it was not run."""
    parts = []
    for data in list(SETS)[1:]:
        rows = [row for row in stored() if row["data"] == data and row["own"] and row["finding"] == "all"]
        rows = [row for row in rows if row["method"].partition(" + ")[0] == method]
        if rows:
            pixels = shown(rows, "pixel_ap")
            seeds = f"{len(rows)} seeds" if len(rows) > 1 else "one seed"
            numbers = f"AUROC {shown(rows, 'auroc')}" + ("" if pixels == "-" else f", pixel AP {pixels}")
            parts.append(f"{SETS[data][0].lower() + SETS[data][1:]} {numbers} ({seeds})")
    if not parts:
        return ""
    return f"{ON_PAGES}{'; '.join(parts)}. [All scores and methods](../results.md#all-methods)."


def pages() -> None:
    """The line of `on_real_images` in each page that has one."""
    for method in DETECTORS:
        path = RESULTS.parent / "methods" / f"{module_of(method)}.md"
        lines = path.read_text().splitlines()
        lines = [on_real_images(method) if line.startswith(ON_PAGES) else line for line in lines]
        path.write_text("\n".join(lines) + "\n")


def module_of(method: str) -> str:
    """The module of `salus.detectors` it is in, which its page is called like."""
    return DETECTORS[method].split(":")[0].rpartition(".")[2]


def scored(name: str) -> str:
    """A row's name with its score; the PCA floor's is the plain residual."""
    return f"{name} + residual" if name == "floor: pca" else name


def linked(method: str) -> str:
    """A method's name as a link to its page; a floor's is "floor: NAME"."""
    return f"[{method}](methods/{module_of(method.removeprefix('floor: '))}.md)"


def mean_of(rows: list[dict[str, str]], column: str) -> float:
    return statistics.mean(float(row[column]) for row in rows)


def shown(rows: list[dict[str, str]], column: str, digits: int = 3, *, sd: bool = True) -> str:
    values = [float(row[column]) for row in rows if row[column]]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if sd and len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def between(row: dict[str, str], column: str) -> str:
    """A row's interval over patients."""
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    return f"{float(low):.3f} to {float(high):.3f}" if low else "-"


def beside(rows: list[dict[str, str]], findings: list[str]) -> str:
    """AUROC / pixel AP of another score, or AUROC alone where there are no masks."""
    whole = [row for row in rows if row["finding"] == "all"]
    auroc, pixels = shown(whole, "auroc", sd=False), shown(whole, "pixel_ap", sd=False)
    return auroc if findings or not whole else f"{auroc} / {pixels}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path)
    options.add_argument("--out", type=Path)
    options.add_argument("--methods", nargs="+", default=sorted(DETECTORS), choices=sorted(DETECTORS))
    options.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    options.add_argument("--preset", default="fast")
    options.add_argument("--keep", action="store_true")
    options.add_argument("--table", action="store_true")
    options.add_argument("--by-score", action="store_true")
    options.add_argument("--pages", action="store_true")
    options.add_argument("--cell", nargs=5, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.cell:
        data, method, seed, out, preset = chosen.cell
        cell(Path(data), method, int(seed), Path(out), preset)
    elif chosen.keep:
        keep(chosen)
    elif chosen.pages:
        pages()
    elif chosen.by_score:
        by_score(chosen)
    elif chosen.table:
        table(chosen)
    else:
        run(chosen)


if __name__ == "__main__":
    main()
