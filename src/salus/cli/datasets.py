"""salus datasets"""

from typing import Annotated

import typer

from salus.cli.common import say


def datasets(
    name: Annotated[str | None, typer.Argument(help="One of them, to see its layout and traps.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List the data sets that can be read, or show how one is laid out.

    salus datasets folder
    """
    from importlib import import_module

    from salus.core.errors import ConfigError, did_you_mean
    from salus.datasets import DATASETS

    pages = {key: (import_module(where.split(":")[0]).__doc__ or "").strip() for key, where in sorted(DATASETS.items())}
    if name is None:
        titles = {key: page.splitlines()[0] for key, page in pages.items()}
        say(titles, as_json, "\n".join(f"{key:16} {title}" for key, title in titles.items()))
        return
    if name not in pages:
        raise ConfigError(f"There is no data set '{name}'.{did_you_mean(name, pages)}")
    say({"name": name, "page": pages[name]}, as_json, f"{name}\n\n{pages[name]}")
