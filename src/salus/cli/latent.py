"""salus latent"""

from pathlib import Path
from typing import Annotated

import typer

from salus.cli.common import bar, further, say, settings


def latent(
    data: Annotated[Path, typer.Option(help="Healthy images, or a data set; see `salus datasets`.")],
    out: Annotated[Path, typer.Option(help="Where the models, latent.csv, latent.json and latent.html go.")],
    detector: Annotated[str, typer.Argument(help="A method with a code: ae, vae, ra ...")] = "ae",
    dataset: Annotated[str, typer.Option(help="How DATA is laid out.")] = "folder",
    also: Annotated[list[str] | None, typer.Option(help="READER:FOLDER to learn from, too; may be repeated.")] = None,
    preset: Annotated[str, typer.Option(help="paper, fast, tiny or another of the method.")] = "fast",
    sizes: Annotated[str, typer.Option(help="Entries of the code to try.")] = "1,2,4,8,16,32,64,128,256,512,1024",
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting, as hidden=512 or recipe.batch=8.")] = None,
    epochs: Annotated[int | None, typer.Option(help="In place of the preset's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Train a method with codes of many sizes and let healthy images choose one.

    salus latent ae --data healthy/ --out latent
    """
    from salus.benchmark import latent as study
    from salus.core.errors import ConfigError
    from salus.training import Run

    try:
        tried = [int(size) for size in sizes.split(",")]
    except ValueError:
        raise ConfigError(f"--sizes takes whole numbers and commas, as 4,16,64; got '{sizes}'.") from None
    more = further(also or [])
    with bar("training") as (progress, task):

        def shown(what: str, run: Run, total: int) -> None:
            progress.update(task, total=total, completed=run.epoch, note=what)

        about = study(
            detector, data, out, dataset=dataset, also=more, preset=preset, sizes=tried, settings=settings(set_ or []),
            epochs=epochs, seed=seed, device=device, on_epoch=shown,
        )  # fmt: skip
    lines = [f"{row['latent']:5d}  painted AUROC {row['painted_auroc']:.3f}, behind the best by {row['behind']:.3f} +- "
             f"{row['standard_error']:.3f}" for row in about["sizes"]]  # fmt: skip
    choice = f"Healthy images choose latent={about['chosen']}: they have some {about['dimension']:.1f} dimensions."
    said = [*lines, choice, str(out / "latent.html")]
    say({**about, "report": out / "latent.html"}, as_json, "\n".join(said))
