"""salus demo"""

from pathlib import Path
from typing import Annotated

import typer

from salus.cli.common import bar, say


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("salus-demo"),
    preset: Annotated[str, typer.Option(help="fast (minutes) or tiny (seconds, learns next to nothing).")] = "fast",
    detector: Annotated[str, typer.Option(help="A name from `salus methods`.")] = "ra",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Generate heads, train on the healthy ones, screen new ones, write a report. No download, no account.

    salus demo --out salus-demo
    """
    from salus.benchmark.demo import POPULATIONS
    from salus.benchmark.demo import demo as run
    from salus.core.errors import ConfigError, did_you_mean
    from salus.training import Run

    if preset not in POPULATIONS:
        raise ConfigError(f"There is no demo '{preset}'.{did_you_mean(preset, POPULATIONS)}")
    with bar("demo") as (progress, task):

        def epoch(training: Run, total: int) -> None:
            progress.update(task, total=total, completed=training.epoch, note=f"{training.seconds:.0f} s")

        def step(what: str) -> None:
            progress.update(task, description=what, total=None, note="")

        report = run(out, preset=preset, detector=detector, on_step=step, on_epoch=epoch)
    say({"report": report}, as_json, str(report))
