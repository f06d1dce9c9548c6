"""report.html of a benchmark: one table a data set, floors among the methods, failures in red with their reason."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from salus.benchmark import figures
from salus.benchmark.gallery import Gallery
from salus.benchmark.published import PAPERS
from salus.benchmark.report import OF_CASES, OF_PIXELS, present, template, told
from salus.benchmark.rows import name_of
from salus.benchmark.suite import OWN
from salus.core import Label
from salus.io.files import page_of, write_whole

COSTS = (("seconds", "Training", "s"), ("ms", "ms / image", ""), ("mib", "Memory", "MiB"))
NAMED = {
    "n_detected": "#det",
    "recall": "Recall",
    "f1": "F1",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    **{key: heading for key, heading, _ in (*OF_CASES, *OF_PIXELS)},
}
SWEPT = (("auroc", "AUROC"), ("auprc", "AUPRC"), ("pixel_ap", "Pixel AP"))
PIXELS = (
    "All of an image count in thresholds and pixel metrics. For box hits, known healthy is what lies above the "
    "picture's minimum and two pixels off every finding and artefact."
)
RESTORATION = (("ssim", "SSIM", "of healthy"), ("lpips", "LPIPS", "lower is closer"))


def write_suite_report(path: Path, summary: Mapping[str, Any], galleries: Mapping[str, Gallery]) -> Path:
    """Write the page; every number on it is one of `summary`, the rest are the pictures of `galleries`.

    Raises:
        StorageError: it could not be written; a report already there stays whole.
    """
    entries = {name: with_best([shown(entry) for entry in lines], summary["pairs"][name]) for name, lines in
               summary["data"].items()}  # fmt: skip
    page = template("suite.html.j2").render(
        s=summary,
        data=entries,
        columns={
            name: present((*OF_CASES, *OF_PIXELS, *RESTORATION), [line["measures"] for line in lines])
            for name, lines in entries.items()
        },
        costs=COSTS,
        named=NAMED,
        plots={name: figures.cost_figure(points(lines)) for name, lines in entries.items() if points(lines)},
        galleries=galleries,
        ranks=summary["ranks"] and rank_plot(summary["ranks"]),
        sweeps=[{**one, "plots": sweep_plots(one)} for one in summary["sweeps"]],
        published=[printed(name, numbers, summary["beside"][name]) for name, numbers in summary["published"].items()],
        card=card_of(summary["card"]),
        binned=None,
        failures=sum(bool(line["failed"]) for lines in entries.values() for line in lines),
    )
    write_whole(path, page.encode())
    return path


def shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A line with its measures as `metrics.json` has them, for the filters of a report."""
    measures = {
        name: measure and {**measure, "value": measure["mean"], "oracle": name == "best_dice"}
        for name, measure in entry["measures"].items()
    }
    return {**entry, "measures": measures}


def with_best(lines: Sequence[dict[str, Any]], pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines, best first, each with how it compares to the best method, where it was compared."""
    best = next((name_of(line) for line in lines if not line["floor"]), None)
    found = {pair["second"]: pair for pair in pairs if pair["first"] == best}
    return [{**line, "is_best": name_of(line) == best, "with_best": found.get(name_of(line))} for line in lines]


def printed(name: str, numbers: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A published table in the paper's layout, a row a method, and below each row those of ours that it compares to."""
    paper, _, table = name.partition(" ")
    columns = {(number["of"], number["measure"]): number["n"] for number in numbers}
    rows: dict[str, dict[str, Any]] = {}
    for number in numbers:
        row = rows.setdefault(number["method"], {"theirs": {}, "ours": {}})
        row["theirs"][number["of"], number["measure"]] = number
    for number in ours:
        row = rows[number["theirs"]]["ours"].setdefault((number["method"], number["score"]), {"maps": {}, "cells": {}})
        row["maps"][number["map"]] = None
        row["cells"].setdefault((number["of"], number["measure"]), number)
    return {
        "title": f"Table {table} of {PAPERS[paper]}",
        "columns": columns,
        "groups": [(of, list(same)) for of, same in groupby(columns, key=itemgetter(0))],
        "rows": rows,
        "ours": sorted({number["data"] for number in ours}),
    }


def rank_plot(ranks: Mapping[str, Any]) -> str:
    """The methods by their mean rank, best first."""
    ordered = sorted(ranks["mean_rank"].items(), key=lambda item: (item[1], item[0]))
    return figures.rank_figure(ordered, ranks["critical_difference"])


def sweep_plots(sweep: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is drawn over the size of the code, and its picture: the ranking measures there are, then the errors."""
    made = []
    for key, heading in SWEPT:
        curves = []
        for data, points in sweep["data"].items():
            if ours := curve(points, key):
                curves.append((data, "solid", ours))
                if theirs := curve(sweep["published"].get(data, ()), key):
                    curves.append((f"{data}, published", "grey", theirs))
        if curves:
            made.append((heading, figures.sweep_figure(curves, heading)))
    errors = []
    for data, points in sweep["data"].items():
        kinds = ((Label.ABNORMAL, f"{data}, abnormal"), (Label.NORMAL, f"{data}, healthy"))
        errors += [
            (name, "dashed" if label == Label.NORMAL else "solid", curve(points, label))
            for label, name in kinds
            if curve(points, label)
        ]
    heading = f"mean score of test images ({sweep['map'].partition(' + ')[2] or sweep['score']})"
    return [*made, (heading, figures.sweep_figure(errors, heading, log=True))] if errors else made


def curve(points: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float, float | None]]:
    """Size, mean and deviation of what a sweep has under a key."""
    return [(one["latent"], one[key]["mean"], one[key]["seed_sd"]) for one in points if one[key] is not None]


def card_of(card: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol card as terms and what is said of them."""
    draws, oracles = card["intervals"], [NAMED[name] for name in card["used_test_labels"]]
    days = card["evaluated"]
    return {
        "run": [
            ("Seeds of training", listing(card["seeds"])),
            ("Intervals", draws["type"]),
            ("Draws", f"{listing(draws['replicates'])} draws of {draws['unit']}s, seed {listing(draws['seed'])}"),
            ("Evaluated on", " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "not written down"),
            ("Pixels", PIXELS),
            ("Chosen by test labels", f"the threshold of {', '.join(oracles)}" if oracles else "nothing"),
            ("Versions", listing(card["versions"])),
        ],
        "data": {name: data_lines(one) for name, one in card["data"].items()},
        "pages": {name: page_of("datasets", one["reader"]).strip() for name, one in card["data"].items()},
        "thresholds": {name: one["thresholds"] for name, one in card["data"].items()},
        "methods": {name: method_lines(one) for name, one in card["methods"].items()},
    }


def data_lines(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the card says of a data set; a line that has nothing to say is not there."""
    cases, patients = data["test_cases"], data["test_patients"]
    tested = "; ".join(f"{cases[label]:,} {label} of {patients[label]:,} patients" for label in cases)
    lines = [
        ("Data set", f"{listing(data['dataset'])}, read by {data['reader']}"),
        ("Learned from", f"healthy cases: {listing(data['learned_cases'])}"),
        ("Of which of further sets", listing([one for one in data["of_which_also"] if one])),
        ("Healthy list", f"SHA-256 {listing(data['learned_sha256'])}"),
        ("Could not be used", listing([one for one in data["left_out"] if one])),
        ("Left out", listing(data["passed_over"])),
        ("Tested", f"{tested}; judged: {listing(data['judged'])}"),
        ("Cases by finding", told(data["test_findings"]).replace("_", " ")),
        ("Test list", f"SHA-256 {listing(data['test_sha256'])}"),
        ("Looks at its labels", f"{data['looks']:,} evaluations, listed in ledger.csv" if data["looks"] else ""),
        ("Preparation", listing(data["preparation"])),
        ("Notes", " ".join(data["notes"])),
    ]
    return [(name, said) for name, said in lines if said]


def method_lines(method: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the card says of a method."""
    if method["members"]:
        return [("made of", " / ".join("; ".join(members) for members in method["members"]))]
    return [
        ("detector", f"{method['detector']}, preset {method['preset']}"),
        *((key, listing(method[key])) for key in ("settings", "recipe", "scores", "precision")),
    ]


def listing(values: Sequence[Any]) -> str:
    """All values that occur, dictionaries as 'size 64, latent 16'."""
    return " / ".join(told(value) if isinstance(value, Mapping) else str(value) for value in values)


def points(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Name, ms an image and AUROC of each method with its own score, else the first by name; not the best one."""
    found: dict[str, tuple[str, float, float]] = {}
    for line in sorted(lines, key=lambda line: (line["score"] != OWN, line["score"])):
        if (auroc := line["measures"]["auroc"]) and "ms" in line["costs"]:
            found.setdefault(line["method"], (line["method"], line["costs"]["ms"], auroc["value"]))
    return list(found.values())
