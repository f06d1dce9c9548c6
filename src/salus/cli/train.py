"""salus train"""

from pathlib import Path
from typing import Annotated

import typer

from salus.cli.common import bar, further, say, settings


def train(
    detector: Annotated[str, typer.Argument(help="A name from `salus methods`, such as ra or ae.")],
    data: Annotated[Path, typer.Option(help="Healthy images, or a data set; see `salus datasets`.")],
    out: Annotated[Path, typer.Option(help="Where the model goes, a folder.")],
    dataset: Annotated[str, typer.Option(help="How DATA is laid out.")] = "folder",
    also: Annotated[list[str] | None, typer.Option(help="READER:FOLDER to learn from, too; may be repeated.")] = None,
    preset: Annotated[str, typer.Option(help="paper, fast, tiny or another of the method.")] = "fast",
    plan: Annotated[Path | None, typer.Option(help="A file that `salus plan` wrote; --set wins over it.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting, as latent=32 or recipe.batch=8.")] = None,
    epochs: Annotated[int | None, typer.Option(help="In place of the preset's.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted training stopped.")] = False,
    track: Annotated[str | None, typer.Option(help="A folder for TensorBoard, or the URI of an MLflow.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Learn what healthy looks like from healthy images.

    salus train ra --data healthy/ --out models/ra

    salus train ra --data fastmri --dataset fastmri --also ixi:IXI --out models/brain
    """
    from salus import training
    from salus.planning import read_plan
    from salus.training.tracking import tracker

    more = further(also or [])
    chosen = {**(read_plan(plan) if plan else {}), **settings(set_ or [])}
    with tracker(track, out.resolve().name, out) as tracked, bar("training") as (progress, task):

        def prepared(images: int, total: int) -> None:
            progress.update(task, total=total, completed=images, note="images prepared")

        def warned(warning: str) -> None:
            progress.console.print(warning, markup=False, highlight=False)

        def shown(run: training.Run, total: int) -> None:
            logged = " ".join(f"{k} {v:.4g}" for k, v in run.rows[-1].items() if k not in ("epoch", "seconds"))
            progress.update(task, total=total, completed=run.epoch, note=logged)

        done = training.train(
            detector, data, out, dataset=dataset, also=more, preset=preset, settings=chosen, epochs=epochs,
            seed=seed, device=device, precision=precision, resume=resume, tracked=tracked, on_image=prepared,
            on_warning=warned, on_epoch=shown,
        )  # fmt: skip
    answer: dict[str, object] = {
        "model": done.folder,
        "epochs": done.run.epoch,
        "seconds": done.run.seconds,
        "left_out": done.left_out,
        "remarks": done.remarks,
        "warning": done.warning,
    }
    lines = [*(f"{name} was left out: {reason}" for name, reason in done.left_out), *done.remarks]
    lines += [f"Every study will be CANNOT_JUDGE: {done.warning}"] if done.warning else []
    if done.latent is not None:
        answer["latent"] = done.latent
        lines.append(f"latent=auto took {done.latent}.")
    say(answer, as_json, "\n".join([*lines, f"{done.folder}: {done.run.epoch} epochs, {done.run.seconds:.0f} s"]))
    raise typer.Exit(3 if done.left_out else 0)
