"""salus calibrate"""

from pathlib import Path
from typing import Annotated

import typer

from salus.cli.common import bar, say


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
    from salus.metrics import flagged_share
    from salus.threshold import calibrate as run

    with bar("calibrating"):
        done, left_out = run(model, data, dataset=dataset, false_alarms=false_alarms, device=device)
    about = {"patients": len(done.scores), "false_alarms": done.false_alarms, "threshold": done.threshold}
    verdict, share = done.shortfall, None
    if done.threshold is not None:
        share = low, high = flagged_share(done.scores, done.threshold)
        verdict = (
            f"{model}: flags above {done.threshold:.4g}, {100 * done.false_alarms:.3g} % of {len(done.scores)} "
            f"patients; 95 of 100 such calibrations flag {100 * low:.2g} to {100 * high:.2g} % of healthy people"
        )
    lines = [*(f"{name} was left out: {reason}" for name, reason in left_out), verdict]
    say({**about, "flagged_share": share, "left_out": left_out}, as_json, "\n".join(lines))
    raise typer.Exit(3 if left_out else 0)
