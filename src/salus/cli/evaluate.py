"""salus evaluate"""

from pathlib import Path
from typing import Annotated

import typer

from salus.cli.common import bar, say


def evaluate(
    results: Annotated[Path, typer.Argument(help="Folder written by `salus screen`.")],
    data: Annotated[Path, typer.Option(help="The data set that was screened, with its labels and masks.")],
    out: Annotated[Path, typer.Option(help="Where metrics.json, cases.csv and report.html go.")],
    dataset: Annotated[str, typer.Option(help="How DATA is laid out.")] = "folder",
    seed: Annotated[int, typer.Option(help="Of the draws behind the intervals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure results against the truth, with intervals and floors, and write a report.

    salus evaluate results --data phantom/ --out report
    """
    import json

    from salus.benchmark import evaluate as run
    from salus.benchmark.floors import unbeaten

    with bar("measuring"):
        report = run(results, data, out, dataset=dataset, seed=seed)
    metrics = json.loads((out / "metrics.json").read_bytes())
    problems = metrics["problems"]
    auroc = metrics["overall"] and metrics["overall"]["auroc"]
    answer = {"report": report, "counts": metrics["counts"], "auroc": auroc, "problems": problems}
    lines = [*(f"{problem['case_id']}: {problem['reason']}" for problem in problems), *metrics["notes"]]
    if auroc is not None:
        lines.append(f"AUROC {auroc['value']:.3f} ({auroc['ci95'][0]:.3f} to {auroc['ci95'][1]:.3f})")
    if sentence := unbeaten(metrics):
        lines.append(sentence)
    say(answer, as_json, "\n".join([*lines, str(report)]))
    raise typer.Exit(3 if problems else 0)
