"""salus datasets"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from salus.cli.common import say

if TYPE_CHECKING:
    from salus.core import Dataset


def datasets(
    name: Annotated[
        str | None, typer.Argument(help="One of them, to see its layout, licence, counts and traps.")
    ] = None,
    path: Annotated[Path | None, typer.Argument(help="A copy of it, to see what is there and what is not.")] = None,
    dataset: Annotated[str, typer.Option(help="With `check`: how PATH is laid out.")] = "folder",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List the data sets that can be read, show one's page or what a copy of it holds, or check a copy for leaks.

    salus datasets

    salus datasets grazpedwri

    salus datasets grazpedwri downloads/grazpedwri

    salus datasets check downloads/grazpedwri --dataset grazpedwri
    """
    from salus.core.errors import ConfigError, did_you_mean
    from salus.datasets import DATASETS, open_dataset
    from salus.io.files import page_of

    if name is None:
        titles = {key: page_of("datasets", key).partition("\n")[0].removeprefix("# ") for key in sorted(DATASETS)}
        say(titles, as_json, "\n".join(f"{key:18} {title}" for key, title in titles.items()))
        return
    if name == "check":
        if path is None:
            raise ConfigError("salus datasets check takes the folder to check: salus datasets check PATH.")
        check(path, dataset, as_json)
        return
    if name not in DATASETS:
        raise ConfigError(f"There is no data set '{name}'.{did_you_mean(name, DATASETS)}")
    if path is None:
        page = page_of("datasets", name).strip()
        say({"name": name, "page": page}, as_json, page)
        return
    found = open_dataset(name, path)
    counts = counted(found)
    say({"name": name, **counts}, as_json, "\n".join(told(counts)))


def counted(found: "Dataset") -> dict[str, Any]:
    """Cases by split and label, findings, exclusions by reason, notes."""
    from collections import Counter

    return {
        "patients": len({case.patient_id for case in found}),
        "cases": dict(Counter(f"{case.split or 'not yet split'}, {case.label}" for case in found).most_common()),
        "findings": dict(Counter(finding.name for case in found for finding in case.findings).most_common()),
        "left_out": dict(Counter(reason for _, reason in found.left_out).most_common()),
        "examples": {reason: what for what, reason in reversed(found.left_out)},
        "notes": found.notes,
    }


def told(counts: dict[str, Any]) -> list[str]:
    """The same for people."""
    lines = [f"{counts['patients']:,} patients"]
    for title in ("cases", "findings"):
        lines += [f"{title}:", *(f"  {count:7,}  {what}" for what, count in counts[title].items())]
    if counts["left_out"]:
        lines.append("left out:")
        lines += [f"  {n:7,}  {why}, such as {counts['examples'][why]}" for why, n in counts["left_out"].items()]
    return lines + [f"note: {note}" for note in counts["notes"]]


def check(path: Path, dataset: str, as_json: bool) -> None:
    """Leaks and giveaways of a copy; exit code 3 where there are any, or an image or every check was passed over."""
    from dataclasses import asdict

    from salus.benchmark.leaks import check as run
    from salus.cli.common import bar

    with bar("images") as (progress, task):
        found = run(path, dataset, lambda done, total: progress.update(task, total=total, completed=done))
    lines = [*found.patients]
    for first, second, alike in found.duplicates:
        lines.append(f"nearly the same picture in two splits (correlation {alike:.4f}): {first} and {second}")
    lines += [f"{name} was not checked: {reason}" for name, reason in found.unread]
    lines += [f"{what} could not be looked for: {reason}" for what, reason in found.unchecked]
    if found.giveaways:
        lines.append("AUROC of what is no anatomy, abnormal against healthy (below 0.5: abnormal is lower):")
        for giveaway in found.giveaways:
            low, high = giveaway.ci95
            sign = "!" if giveaway.telling else " "
            lines.append(f" {sign} {giveaway.auroc:.3f} ({low:.3f} to {high:.3f})  {giveaway.name}")
    clean = f"nothing found{' by the other checks' * bool(found.unchecked)}"
    lines.append(clean if found.clean else "to be explained: what is listed above the table or marked with !")
    say({**asdict(found), "clean": found.clean}, as_json, "\n".join(lines))
    raise typer.Exit(0 if found.clean else 3)
