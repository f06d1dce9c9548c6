"""latent.html: one method over the sizes of its code, and the size that healthy images choose."""

from collections.abc import Mapping, Sequence
from typing import Any

from salus.benchmark import figures
from salus.benchmark.report import template

Curve = Sequence[tuple[int, float, float | None]]


def page(about: Mapping[str, Any]) -> str:
    """The page; every number on it is one of `latent.json`."""
    rows = about["sizes"]
    drawn = [
        ("painted", "solid", curve(rows, "painted_auroc", "standard_error")),
    ]
    if any(row["test_auroc"] is not None for row in rows):
        drawn.append(("test", "grey", curve(rows, "test_auroc")))
    errors = [
        ("validation", "solid", curve(rows, "validation_error")),
        ("training", "dashed", curve(rows, "train_error")),
    ]
    return template("latent.html.j2").render(
        a=about,
        best=max(rows, key=lambda row: row["painted_auroc"]),
        seen=figures.sweep_figure(drawn, "AUROC"),
        errors=figures.sweep_figure(errors, "mean squared error", log=True),
    )


def curve(rows: Sequence[Mapping[str, Any]], key: str, spread: str = "") -> Curve:
    """Size, value and deviation of a column."""
    return [(row["latent"], row[key], row.get(spread)) for row in rows if row[key] is not None]
