"""salus plan"""

from pathlib import Path
from typing import Annotated

import typer

from salus.cli.common import bar, say


def plan(
    data: Annotated[Path, typer.Option(help="Healthy images, or a data set; see `salus datasets`.")],
    dataset: Annotated[str, typer.Option(help="How DATA is laid out.")] = "folder",
    out: Annotated[Path, typer.Option(help="Where the proposal goes.")] = Path("plan.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Look at your images and propose how to prepare them, as a file to edit for `salus train --plan`.

    salus plan --data healthy/ --out plan.yaml
    """
    from dataclasses import asdict

    from salus.planning import plan as run

    with bar("images") as (progress, task):
        found = run(data, out, dataset=dataset, on_image=lambda n, of: progress.update(task, total=of, completed=n))
    say({"plan": out, "fingerprint": asdict(found)}, as_json, f"{out.read_text()}\n{out}")
