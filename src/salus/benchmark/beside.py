"""Ours for the columns of a published table: the same finding, on the same data set, measured as the paper does.

What is compared with what stands in `published.METHODS` and `published.COLUMNS`. Box hits are those of the protocol
`ra2024` at its published threshold, LPIPS is without the mapping that its code leaves out, pixel AP and best Dice are
those of MedIAnomaly on the network's grid. Two things differ and are said on the page: restorations are clamped here,
and they and the maps come from the grid of their source. Of several findings that the paper calls one, counts add up
and shares are means over findings of the data.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from salus.benchmark.measures import rounded
from salus.benchmark.published import COLUMNS, METHODS, Number
from salus.benchmark.rows import HEALTHY, Row, over_trainings
from salus.metrics import wilson

OF_PIXELS = ("pixel_ap", "best_dice")
OF_BOXES = ("n_detected", "recall", "f1")
AS_CODED = {"lpips": "lpips_ra2024"}  # the name in metrics.json of what the paper's code measures


def beside(table: str, numbers: Iterable[Number], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A number of ours for each published one that has such, over all trainings.

    Args:
        table: its name, such as "ra2024 3".
    """
    made = []
    done = [row for row in rows if row.folder is not None]
    called = {id(row): theirs_of(row.run) for row in done}
    for number in numbers:
        data, findings = COLUMNS[f"{table} {number.of}"]
        groups: dict[tuple[str, str, str], list[Row]] = {}
        for row in done:
            if number.method in called[id(row)] and row.metrics["dataset"].casefold() == data.casefold():
                groups.setdefault((row.data, row.method, row.score), []).append(row)
        for (where, method, score), group in groups.items():
            trainings = [one for row in group if (one := one_of(row.metrics, table, number.measure, findings))]
            if trainings:
                named = {"theirs": number.method, "of": number.of, "measure": number.measure, "data": where}
                ours = {"method": method, "score": score, "map": group[0].map, "n": trainings[0].get("n")}
                made.append({**named, **ours, **over_trainings(trainings)})
    return made


def theirs_of(run: Mapping[str, Any]) -> set[str]:
    """What the papers call the method of a `run.json`."""
    return {
        name
        for name, (detector, told) in METHODS.items()
        if detector == run["detector"] and told.items() <= run["settings"].items()
    }


def one_of(metrics: Mapping[str, Any], table: str, measure: str, findings: Sequence[str]) -> dict[str, Any] | None:
    """A number of one training, with the findings or images behind it where it counts them."""
    if measure in OF_BOXES:
        return of_boxes(metrics["protocols"], measure, findings)
    if measure in HEALTHY:
        found = metrics["healthy"]
    elif table.startswith("cai2024") and measure in OF_PIXELS:
        found = (metrics["protocols"] or {}).get("medianomaly")
    else:
        found = metrics["findings"].get(findings[0]) if findings else metrics["overall"]
    entry: dict[str, Any] | None = (found or {}).get(AS_CODED.get(measure, measure))
    return entry


def of_boxes(protocols: Mapping[str, Any] | None, measure: str, findings: Sequence[str]) -> dict[str, Any] | None:
    """A number of the protocol `ra2024`; None without findings of such names, or without its published threshold."""
    if protocols is None or (hits := protocols["ra2024"]["published"]) is None:
        return None
    parts = [hits["classes"][name] for name in findings if name in hits["classes"]] if findings else [hits["micro"]]
    if not parts:
        return None
    n, detected = sum(part["n"] for part in parts), sum(part["n_detected"] for part in parts)
    if len(parts) == 1:
        seen = parts[0]["f1" if measure == "f1" else "recall"]
    else:
        mean = sum(part["n"] * part[measure if measure == "f1" else "recall"]["value"] for part in parts) / n
        apart = hits["micro"]["patients"] == hits["micro"]["n"]  # no finding is another's neighbour
        ends = [rounded(end) for end in wilson(detected, n)] if apart and measure != "f1" else None
        seen = {"value": rounded(mean), "ci95": ends}
    return {**seen, "n": n, **({"value": detected} if measure == "n_detected" else {})}
