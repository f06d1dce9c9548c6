"""What commands share: settings from text, progress on stderr, answers for people or machines on stdout."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`["latent=32", "recipe.batch=8"]` as a dictionary; values are JSON, or else plain words.

    Raises:
        ConfigError: a pair without "=".
    """
    from salus.core.errors import ConfigError

    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set takes key=value, got '{pair}'.")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def further(sets: Sequence[str]) -> list[tuple[str, Path]]:
    """`["ixi:downloads/ixi"]` as readers and folders.

    Raises:
        ConfigError: one without ":", or with nothing on one side of it.
    """
    from salus.core.errors import ConfigError

    found = []
    for text in sets:
        reader, _, folder = text.partition(":")
        if not reader or not folder:
            raise ConfigError(f"--also takes READER:FOLDER, such as ixi:downloads/ixi, got '{text}'.")
        found.append((reader, Path(folder)))
    return found


@contextmanager
def bar(what: str) -> Iterator["tuple[Progress, Any]"]:
    """A progress bar with time left, on stderr; plain text without a terminal. None stays of what never began."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=None, note="")
        try:
            yield progress, task
        finally:
            progress.update(task, visible=any(one.total is not None for one in progress.tasks))


def say(answer: Mapping[str, Any], as_json: bool, text: str) -> None:
    """Print `answer` for machines or `text` for people."""
    print(json.dumps(answer, default=str) if as_json else text)
