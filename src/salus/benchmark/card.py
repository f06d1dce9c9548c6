"""The protocol card: what a reviewer asks of a benchmark, as the cells themselves recorded it; nothing is asserted."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from salus.benchmark.pairing import bare
from salus.benchmark.report import member_named
from salus.benchmark.rows import Row
from salus.benchmark.suite import Suite
from salus.core import Label

LABELS = (Label.NORMAL, Label.ABNORMAL)


def card(suite: Suite, rows: Sequence[Row], looks: Mapping[str, int]) -> dict[str, Any]:
    """`card` of summary.json; lists hold every value that occurs, so more than one where cells differ.

    Args:
        looks: how many evaluations there are of each test, by its SHA-256.
    """
    done = [row for row in rows if row.folder is not None]
    return {
        "seeds": suite.seeds,
        "intervals": {
            "type": "95 %, percentile bootstrap by label; Wilson's of a recall where no two findings are of a patient, "
            "and over patients where a share is 0 or 1",
            "unit": "patient",
            "replicates": distinct(row.metrics["replicates"] for row in done),
            "seed": distinct(row.metrics["seed"] for row in done),
        },
        "evaluated": sorted({row.evaluated for row in done if row.evaluated}),
        "versions": distinct({"at": at, **versions} for row in done for at, versions in versions_of(row)),
        "used_test_labels": sorted({name for row in done for name in oracles(row.metrics)}),
        "data": {
            name: data_of(suite, name, here, looks)
            for name in suite.datasets
            if (here := [row for row in done if row.data == name])
        },
        "methods": {
            name: method_of(here) for name in suite.methods if (here := [row for row in done if row.method == name])
        },
    }


def versions_of(row: Row) -> Iterable[tuple[str, Mapping[str, str]]]:
    """What screened, and what measured."""
    return ("screening", row.run.get("versions", {})), ("evaluation", row.metrics["versions"])


def oracles(metrics: Any, name: str = "") -> Iterator[str]:
    """Names of the measures anywhere in `metrics` of which something was chosen by test labels."""
    if isinstance(metrics, Mapping):
        if metrics.get("oracle"):
            yield name
        for key, value in metrics.items():
            yield from oracles(value, key)


def data_of(suite: Suite, name: str, rows: Sequence[Row], looks: Mapping[str, int]) -> dict[str, Any]:
    """A data set: who was learned from, who was tested, who was left out, and the thresholds that its cells set."""
    cases, cards = rows[0].cases, [row.run["card"] for row in rows]
    tests = distinct(listed(row.cases) for row in rows)
    findings = Counter(name for case in cases for name in {part for part in case["findings"].split("; ") if part})
    return {
        "reader": suite.datasets[name].made or suite.datasets[name].reader,
        "dataset": distinct(row.metrics["dataset"] for row in rows),
        "learned_cases": distinct(one["counts"] for one in cards),
        "of_which_also": distinct(one.get("also", []) for one in cards),
        "learned_sha256": distinct(one["manifest_sha256"] for one in cards),
        "left_out": distinct(reasons(one.get("left_out", [])) for one in cards),
        "passed_over": distinct(bare(remark) for one in cards for remark in one.get("remarks", [])),
        "test_cases": {label: sum(case["label"] == label for case in cases) for label in LABELS},
        "test_patients": {
            label: len({case["patient_id"] for case in cases if case["label"] == label}) for label in LABELS
        },
        "test_findings": dict(sorted(findings.items())),
        "test_sha256": tests,
        "looks": sum(looks.get(test, 0) for test in tests),
        "judged": distinct(row.metrics["counts"]["judged"] for row in rows),
        "preparation": distinct(row.run["preparation"] for row in rows),
        "notes": distinct(note for row in rows for note in row.metrics["notes"]),
        "thresholds": [thresholds(row) for row in rows],
    }


def method_of(rows: Sequence[Row]) -> dict[str, Any]:
    """A method: what decided its training, the same on all data sets unless the suite prepares them otherwise."""
    plans = [row.run["card"]["plan"] for row in rows]
    members = [row.run["card"].get("members", ()) for row in rows]
    return {
        "detector": plans[0]["detector"],
        "preset": plans[0]["preset"],
        "settings": distinct(plan["settings"] for plan in plans),
        "recipe": distinct(plan["recipe"] for plan in plans),
        "scores": distinct(row.run.get("score", {}) for row in rows),
        "precision": distinct(row.run.get("precision", "") for row in rows),
        "members": distinct([member_named(one) for one in of] for of in members if of),
    }


def thresholds(row: Row) -> dict[str, Any]:
    """What held-out healthy people decided; None where there is no calibration, or too few for it."""
    calibration = row.run["calibration"] or {}
    return {
        "method": row.method,
        "score": row.score,
        "seed": row.seed,
        "calibration_patients": row.metrics["calibration_cases"],
        "false_alarms": row.metrics["false_alarms"],
        "image": row.metrics["threshold"],
        "pixel": row.metrics["pixel_threshold"],
        "published_grid": calibration.get("grid_threshold"),
    }


def reasons(left_out: Iterable[Sequence[str]]) -> dict[str, int]:
    """How many training images could not be used, by reason."""
    return dict(sorted(Counter(bare(reason) for _, reason in left_out).items()))


def listed(cases: Iterable[Mapping[str, str]]) -> str:
    """SHA-256 over case, patient and label of the test, so that two tests are known to be the same."""
    lines = [f"{case['case_id']}\t{case['patient_id']}\t{case['label']}" for case in cases]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order of the rows; dictionaries, too."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
