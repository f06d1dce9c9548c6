"""salus calibrate"""

from pathlib import Path
from typing import Annotated

import typer

from salus.cli.common import say


def calibrate(
    model: Annotated[Path, typer.Argument(help="Folder written by `salus train`.")],
    data: Annotated[Path, typer.Option(help="Healthy images the model was not trained on.")],
    dataset: Annotated[str, typer.Option(help="How DATA is laid out.")] = "folder",
    false_alarms: Annotated[float | None, typer.Option(help="Share of healthy cases that may be flagged.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Set a model's threshold from your own healthy images.

    salus calibrate models/ra --data our-healthy/ --false-alarms 0.02
    """
    from salus.model import calibrate as run

    done = run(model, data, dataset=dataset, false_alarms=false_alarms, device=device).calibration
    if done is None:
        raise ValueError("calibrate returned an uncalibrated model")
    about = {"cases": len(done.scores), "patients": done.patients, "false_alarms": done.false_alarms}
    text = f"{model}: flags above {done.threshold} ({done.false_alarms:.1%} of {len(done.scores)} healthy cases)"
    say({**about, "threshold": done.threshold}, as_json, text)
