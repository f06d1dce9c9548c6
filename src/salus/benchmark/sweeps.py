"""How many entries a code should have: methods of a suite that differ in `latent` alone (Cai et al., Figure 3).

The error is the mean image score of the healthy and of the abnormal test images. Where the map is a plain difference
(`residual`, `squared`), that is the reconstruction error. Beside ours stands what the suite's published tables have of
the same detector at other sizes, on the same data sets.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from salus.benchmark.published import COLUMNS, METHODS, Number
from salus.benchmark.rows import Row, over_trainings
from salus.core import Label
from salus.training.plan import AUTO

SIZES = 3  # fewer make no curve
RANKED = ("auroc", "auprc", "pixel_ap")

Place = tuple[str, int]  # data set, entries of the code


def sweeps(rows: Sequence[Row], tables: Mapping[str, Sequence[Number]]) -> list[dict[str, Any]]:
    """Of each detector and score that a suite has with `SIZES` codes or more: the curves over them, by data set.

    Args:
        tables: the suite's published tables by name.
    """
    found: dict[tuple[str, str], dict[Place, list[Row]]] = {}
    for row in rows:
        if row.folder is not None and isinstance(latent := row.run["settings"].get("latent"), int):
            found.setdefault(all_but_latent(row), {}).setdefault((row.data, latent), []).append(row)
    return [
        {
            "detector": next(iter(places.values()))[0].run["detector"],
            "score": score,
            "map": next(iter(places.values()))[0].map,
            "data": {
                data: [{"latent": d, **point(places[data, d])} for name, d in sorted(places) if name == data]
                for data in dict.fromkeys(data for data, _ in places)
            },
            "published": {
                data: theirs
                for (data, _), trainings in places.items()
                if (theirs := published_points(tables, trainings[0]))
            },
        }
        for (_, score), places in found.items()
        if len({latent for _, latent in places}) >= SIZES
    ]


def all_but_latent(row: Row) -> tuple[str, str]:
    """What trainings of one curve share; where the size was chosen, that is another method."""
    plan = row.run["card"]["plan"]
    settings = {key: value for key, value in plan["settings"].items() if key != "latent" or value == AUTO}
    return json.dumps([plan["detector"], plan["preset"], settings, plan["recipe"]], sort_keys=True), row.score


def point(trainings: Sequence[Row]) -> dict[str, Any]:
    """One size on one data set, over its trainings."""
    made: dict[str, Any] = {"method": trainings[0].method}
    for name in RANKED:
        entries = [entry for row in trainings if (entry := row.entries[name]) is not None]
        made[name] = over_trainings(entries) if entries else None
    errors = [mean_scores(row) for row in trainings]
    for label in (Label.NORMAL, Label.ABNORMAL):
        means = [{"value": error[label]} for error in errors if label in error]
        made[label] = over_trainings(means) if means else None
    return made


def published_points(tables: Mapping[str, Sequence[Number]], ours: Row) -> list[dict[str, Any]]:
    """The sizes that papers print of a detector on a data set, in the shape of `point`; what they do not print is None.

    Their table says nothing of the spread over trainings.
    """
    found: dict[int, dict[str, Any]] = {}
    for table, numbers in tables.items():
        for number in numbers:
            (detector, told), (data, _) = METHODS[number.method], COLUMNS[f"{table} {number.of}"]
            here = (ours.run["detector"], ours.metrics["dataset"].casefold()) == (detector, data.casefold())
            if here and "latent" in told and number.measure in RANKED:
                made = found.setdefault(told["latent"], {"method": number.method, **dict.fromkeys(RANKED)})
                made[number.measure] = {"mean": number.value, "seed_sd": None}
    return [{"latent": latent, **found[latent]} for latent in sorted(found)]


def mean_scores(row: Row) -> dict[str, float]:
    """Mean score of the judged test cases by their label."""
    scores: dict[str, list[float]] = {}
    for case in row.cases:
        if case["score"]:
            scores.setdefault(case["label"], []).append(float(case["score"]))
    return {label: statistics.fmean(values) for label, values in scores.items()}
