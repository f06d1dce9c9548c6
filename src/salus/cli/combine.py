"""salus combine"""

from pathlib import Path
from typing import Annotated

import typer

from salus.cli.common import bar, say


def combine(
    models: Annotated[list[Path], typer.Argument(help="Two folders or more, written by `salus train`.")],
    data: Annotated[Path, typer.Option(help="The data set they learned from.")],
    out: Annotated[Path, typer.Option(help="The new model's folder.")],
    dataset: Annotated[str, typer.Option(help="How DATA is laid out; see `salus datasets`.")] = "folder",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Let several models judge together: the mean of their maps and scores. Nothing is trained.

    salus combine models/ra-0 models/ra-1 models/dae --data healthy/ --out models/three
    """
    from salus.training.combining import combine as run

    with bar("combining"):
        made = run(models, data, out, dataset=dataset)
    calibration, warning = made.calibration, made.shortfall
    answer = {"model": out, "method": made.summary, "threshold": calibration and calibration.threshold}
    lines = [f"{out}: {made.summary}", *([f"Every study will be CANNOT_JUDGE: {warning}"] if warning else [])]
    say({**answer, "warning": warning}, as_json, "\n".join(lines))
