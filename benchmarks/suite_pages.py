"""What a finished suite found, as the Markdown tables of docs/research and docs/results.md.

    salus benchmark SUITE --data DATA --out OUT
    python benchmarks/suite_pages.py OUT [--groups ra]

A table a data set: mean AUROC over seeds, plus or minus their standard deviation, with its interval over patients; each
finding's AUROC; pixel AP; what AUROC is over PCA's with the same map; the share of healthy and of abnormal cases
flagged, from the least to the most of the trainings; and differences of AUROC (paired DeLong by patient, trainings held
fixed, Holm's p). With `--groups`, AUROC and flagged shares of one method by stratum, means over seeds. All from
OUT/summary.json and the cells' metrics.json.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

HEAD = "| | AUROC | findings | pixel AP | AUROC over PCA | flagged healthy, abnormal |\n|---|---|---|---|---|---|"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("out", type=Path)
    options.add_argument("--groups", metavar="METHOD")
    asked = options.parse_args()
    summary = json.loads((asked.out / "summary.json").read_text())
    for data, rows in summary["data"].items():
        print(f"\n## {data}\n\n{HEAD}")
        for row in rows:
            found = row["measures"]
            cells = cells_of(asked.out, data, row["method"], row["score"])  # none of a floor that no suite names
            shown = [named(row), told(found["auroc"]), by_finding(cells)]
            shown += [told(found["pixel_ap"], short=True), over(row["over_floor"])]
            print(f"| {' | '.join([*shown, flagged([parts(cell) for cell in cells])])} |")
        for pair in summary["pairs"][data]:
            low, high = pair["ci95"]
            difference = f"{pair['value']:.3f} ({low:.3f} to {high:.3f}), p {pair['p_holm']}"
            print(f"- {pair['first']} less {pair['second']}: {difference}")
        if asked.groups and (cells := cells_of(asked.out, data, asked.groups, "own")):
            show_groups(asked.groups, cells)


def named(row: dict[str, Any]) -> str:
    """The map, which begins with its detector, and in front of it the suite's name where that is another."""
    shown = row["map"] or row["method"]
    return shown if row["method"] in (shown, shown.split(" + ")[0]) else f"{row['method']}: {shown}"


def show_groups(method: str, cells: list[dict[str, Any]]) -> None:
    print(f"\n| {method} by group | healthy, abnormal | AUROC | flagged healthy, abnormal |\n|---|---|---|---|")
    for column, strata in cells[0]["groups"].items():
        for stratum, first in strata.items():
            same = [cell["groups"][column][stratum] for cell in cells]
            auroc = average([one["auroc"]["value"] for one in same if one["auroc"]])
            print(f"| {column} {stratum} | {first['n_normal']}, {first['n_abnormal']} | {auroc} | {flagged(same)} |")


def cells_of(out: Path, data: str, method: str, score: str) -> list[dict[str, Any]]:
    """metrics.json of each seed."""
    places = sorted((out / "cells" / data / method).glob(f"seed*/{score}/report/metrics.json"))
    return [json.loads(place.read_text()) for place in places]


def told(measure: dict[str, Any] | None, *, short: bool = False) -> str:
    if measure is None:
        return ""
    text = f"{measure['mean']:.3f}" + (f" ± {measure['seed_sd']:.3f}" if measure["seed_sd"] is not None else "")
    return text if short else "{} ({:.3f} to {:.3f})".format(text, *measure["ci95"])


def over(found: dict[str, Any] | None) -> str:
    if found is None or found["ci95"] is None:
        return ""
    same = "" if found["same_map"] else ", its residual"
    return "{:.3f} ({:.3f} to {:.3f}){}".format(found["value"], *found["ci95"], same)


def by_finding(cells: list[dict[str, Any]]) -> str:
    names = cells[0]["findings"] if cells else ()
    of = {name: [cell["findings"][name]["auroc"]["value"] for cell in cells] for name in names}
    return ", ".join(f"{name} {average(values)}" for name, values in of.items())


def parts(cell: dict[str, Any]) -> dict[str, Any]:
    """The two shares of a whole test, as a group has them."""
    return {**cell["healthy"], **cell["overall"]}


def average(values: list[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def flagged(found: list[dict[str, Any]]) -> str:
    """Shares of the healthy and of the abnormal, from the least to the most of the trainings."""
    shares = []
    for key in ("false_alarm_rate", "sensitivity"):
        values = sorted(one[key]["value"] for one in found if one[key] is not None)
        shares.append(f"{values[0]:.3f} to {values[-1]:.3f}" if values else "-")
    return ", ".join(shares)


if __name__ == "__main__":
    main()
