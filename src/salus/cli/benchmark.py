"""salus benchmark"""

from pathlib import Path
from typing import Annotated

import typer

from salus.cli.common import bar, say


def benchmark(
    suite: Annotated[Path, typer.Argument(help="A YAML file: data sets, methods, scores, seeds.")],
    out: Annotated[Path, typer.Option(help="Folder for everything the benchmark makes.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the data sets; the suite's own if not given.")] = None,
    preset: Annotated[str | None, typer.Option(help="Of every method: tiny tries a long suite out.")] = None,
    engine: Annotated[str, typer.Option(help="local (processes here) or ray (a cluster).")] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Cells at a time on a machine; as many as fit if not given.")
    ] = None,
    track: Annotated[str | None, typer.Option(help="A folder for TensorBoard, or the URI of an MLflow.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Train, screen and evaluate every method on every data set of a suite, and write the tables.

    salus benchmark suites/smoke.yaml --out runs/smoke

    The same command goes on where it was interrupted; what is finished is not done again.
    """
    from salus.benchmark.run import benchmark as run

    with bar("benchmark") as (progress, task):

        def ended(cell: str, reason: str, total: int) -> None:
            progress.update(task, total=total, advance=1, note=cell)
            if reason:
                progress.console.print(f"failed: {cell}: {reason}", markup=False, highlight=False)

        report, failed = run(
            suite, out, data=data, preset=preset, engine=engine, workers=workers, track=track, on_cell=ended
        )
    lines = [f"{name}: {reason}" for name, reason in failed.items()]
    say({"report": report, "failed": failed}, as_json, "\n".join([*lines, str(report)]))
    raise typer.Exit(3 if failed else 0)
