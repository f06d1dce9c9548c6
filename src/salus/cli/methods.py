"""salus methods"""

from typing import Annotated

import typer

from salus.cli.common import say


def methods(
    name: Annotated[str | None, typer.Argument(help="One of them, to see its settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List what can be trained, or show one method's settings and presets.

    salus methods ra
    """
    from dataclasses import asdict, fields

    from salus.detectors import DETECTORS, detector_class

    if name is None:
        rows = {key: {"family": (kind := detector_class(key)).FAMILY, "paper": kind.PAPER} for key in sorted(DETECTORS)}
        say(rows, as_json, "\n".join(f"{key:16} {row['family']:16} {row['paper']}" for key, row in rows.items()))
        return
    kind = detector_class(name)
    defaults = {field.name: getattr(kind.Config(), field.name) for field in fields(kind.Config)}
    presets = {key: asdict(preset) for key, preset in kind.PRESETS.items()}
    lines = [f"{name}: {kind.PAPER}", "", (kind.__doc__ or "").strip(), "", "settings (--set name=value)"]
    lines += [f"  {key} = {value}" for key, value in defaults.items()]
    for key, preset in presets.items():
        lines += ["", f"preset {key}: {preset['about']}"]
        lines += [f"  {k} = {v}" for k, v in preset["settings"].items()]
        lines += [f"  recipe.{k} = {v}" for k, v in preset["recipe"].items()]
        lines += [f"  score.{k} = {v}" for k, v in preset["score"].items()]
    say({"name": name, "paper": kind.PAPER, "settings": defaults, "presets": presets}, as_json, "\n".join(lines))
