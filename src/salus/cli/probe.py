"""salus probe"""

from pathlib import Path
from typing import Annotated

import typer

from salus.cli.common import bar, say


def probe(
    model: Annotated[Path, typer.Argument(help="Folder written by `salus train`.")],
    data: Annotated[Path, typer.Option(help="Healthy images; those the model learned from are left aside.")],
    out: Annotated[Path, typer.Option(help="Where probe.csv, probe.json and probe.html go.")],
    dataset: Annotated[str, typer.Option(help="How DATA is laid out.")] = "folder",
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of images, lesions and places.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Paint lesions on your own healthy images and show which of them a model cannot see.

    salus probe models/ra --data our-healthy/ --out probe
    """
    import json

    from salus.benchmark import probe as run

    with bar("probing") as (progress, task):

        def done(images: int, total: int) -> None:
            progress.update(task, total=total, completed=images)

        report = run(model, data, out, dataset=dataset, seed=seed, device=device, on_image=done)
    about = json.loads((out / "probe.json").read_bytes())
    answer = {"report": report, **{key: about[key] for key in ("images", "summary", "smallest", "left_out")}}
    lines = [f"{name} was left out: {reason}" for name, reason in about["left_out"]]
    say(answer, as_json, "\n".join([*lines, *about["summary"], str(report)]))
    raise typer.Exit(3 if about["left_out"] else 0)
