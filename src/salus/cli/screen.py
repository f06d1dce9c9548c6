"""salus screen"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from salus.cli.common import bar, say

if TYPE_CHECKING:
    from salus.core import Result


KNOWN = "are known to the model, by file or patient_id: if it learned from these people, scores are too low"
UNTOLD = "This model does not tell whom it learned from: train it anew to have such people named."


def screen(
    inputs: Annotated[list[Path], typer.Argument(help="DICOM, NIfTI, PNG, JPEG or TIFF files, or folders of them.")],
    model: Annotated[Path, typer.Option(help="Folder written by `salus train`.")],
    out: Annotated[Path, typer.Option(help="Where results go, one folder a case.")],
    dataset: Annotated[str, typer.Option(help="How folders are laid out; see `salus datasets`.")] = "folder",
    dicom: Annotated[
        bool, typer.Option("--dicom", help="Also write DICOM objects beside DICOM studies' maps.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Map what does not look healthy. What this model judged before is not done again.

    salus screen patients/ --model models/ra --out results
    """
    import json
    from collections import Counter

    from salus import screening
    from salus.core import Verdict

    failed: list[Result] = []
    undecided: Counter[str] = Counter()
    with bar("studies") as (progress, task):

        def shown(result: "Result", total: int) -> None:
            if result.score is None or result.remarks:
                failed.append(result)
            elif result.verdict is Verdict.CANNOT_JUDGE:
                undecided["; ".join(result.reasons)] += 1
            progress.update(task, total=total, advance=1, note=result.case_id)

        def warned(warning: str) -> None:
            progress.console.print(warning, markup=False, highlight=False)

        counts = screening.screen(
            inputs, model=model, out=out, dataset=dataset, dicom=dicom, device=device, on_warning=warned,
            on_result=shown,
        )  # fmt: skip
    run = json.loads((out / "run.json").read_bytes())
    left_out, known = run["left_out"], run["known"]
    answer = {
        "results": out,
        "counts": counts,
        "failed": {r.case_id: told(r) for r in failed},
        "undecided": undecided,
        "left_out": left_out,
        "known": known,
    }
    lines = [f"{r.case_id}: {'; '.join(told(r))}" for r in failed]
    lines += [f"passed over: {name}: {reason}" for name, reason in left_out]
    lines += [f"{count} with a score and no verdict: {reason}" for reason, count in undecided.items()]
    if known:
        lines.append(f"{len(known)} of {sum(counts.values())}, such as {known[0]}, {KNOWN}")
    elif known is None:
        lines.append(UNTOLD)
    totals = ", ".join(f"{counts[v]} {v}" for v in Verdict)
    say(answer, as_json, "\n".join([*lines, f"{out}: {totals}"]))
    raise typer.Exit(3 if failed else 0)


def told(result: "Result") -> list[str]:
    """Why a study was not judged, or what is wrong with one that was."""
    return result.remarks if result.score is not None else list(result.reasons)
