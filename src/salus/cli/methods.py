"""salus methods"""

from typing import Annotated, Any

import typer

from salus.cli.common import say


def methods(
    name: Annotated[str | None, typer.Argument(help="One of them, to see its page, settings and presets.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List what can be trained, or show one method's page, settings and presets.

    salus methods ra
    """
    from salus.detectors import DETECTORS

    if name is not None:
        one(name, as_json)
        return
    rows = {key: described(key) for key in sorted(DETECTORS)}
    lines = [f"{'method':16} {'family':16} {'parameters':>11} {'s/image':>8}  {'needs':20} paper"]
    for key, row in rows.items():
        parameters = "-" if row["parameters"] is None else f"{row['parameters']:,}"
        seconds = "-" if row["seconds_an_image"] is None else f"{row['seconds_an_image']:.4f}"
        lines.append(f"{key:16} {row['family']:16} {parameters:>11} {seconds:>8}  {row['needs']:20} {row['paper']}")
    lines += [
        "",
        f"At the preset fast; s/image: {rows[min(rows)]['measured']}.",
        "Needs: pretrained weights, of which salus weights list shows where they are. A name, as in salus methods ra, "
        "shows more.",
    ]
    say(rows, as_json, "\n".join(lines))


def described(name: str) -> dict[str, Any]:
    """One row of the list; `parameters` is None where the pretrained weights it needs are missing."""
    import json
    from importlib.resources import files

    import torch

    from salus.core.errors import WeightsError
    from salus.detectors import build, detector_class

    kind = detector_class(name)
    preset = kind.PRESETS["fast"]
    measured = json.loads((files("salus.detectors") / "seconds.json").read_text())
    try:
        with torch.device("meta"):
            detector = build(name, preset.settings, preset.score)
        parameters = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    except WeightsError:
        parameters = None
    return {
        "family": kind.FAMILY,
        "paper": kind.PAPER,
        "needs": kind.NEEDS or "-",
        "parameters": parameters,
        "seconds_an_image": measured["seconds"].get(name),
        "measured": measured["how"],
    }


def one(name: str, as_json: bool) -> None:
    """The page of a method, then every setting of every preset."""
    from dataclasses import asdict, fields

    from salus.core.errors import ConfigError
    from salus.detectors import DETECTORS, ENSEMBLE, NO_METHOD, detector_class
    from salus.io.files import page_of

    if name == ENSEMBLE:
        raise ConfigError(NO_METHOD)
    kind = detector_class(name)
    page = page_of("methods", DETECTORS[name].split(":")[0].rpartition(".")[2])
    defaults = {field.name: getattr(kind.Config(), field.name) for field in fields(kind.Config)}
    presets = {key: asdict(preset) for key, preset in kind.PRESETS.items()}
    lines = [page.strip(), "", f"{name}: settings (--set name=value)"]
    lines += [f"  {key} = {value}" for key, value in defaults.items()]
    for key, preset in presets.items():
        lines += ["", f"preset {key}: {preset['about']}"]
        lines += [f"  {k} = {v}" for k, v in preset["settings"].items()]
        lines += [f"  recipe.{k} = {v}" for k, v in preset["recipe"].items()]
        lines += [f"  score.{k} = {v}" for k, v in preset["score"].items()]
    answer = {"name": name, "paper": kind.PAPER, "settings": defaults, "presets": presets, "page": page}
    say(answer, as_json, "\n".join(lines))
