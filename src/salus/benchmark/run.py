"""`salus benchmark`: every cell of a suite, then the tables of all.

OUT/suite.json      what was ever compared here, as it was understood
OUT/data, cells     see `salus.benchmark.cells`
OUT/results.csv     a row a data set, method, score and seed; the floors; why a row failed
OUT/summary.json    the same over seeds, with intervals
OUT/ledger.csv      looks at test labels, see `salus.benchmark.ledger`
OUT/report.html     one file for people
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path

from salus.benchmark import cells
from salus.benchmark.cells import ENDED, Work, draw
from salus.benchmark.evaluate import FORMAT
from salus.benchmark.suite import Cell, Data, Suite, read_suite
from salus.benchmark.tables import write_tables
from salus.core.errors import ConfigError, SalusError, did_you_mean
from salus.core.machine import memory, processors
from salus.datasets import open_dataset
from salus.engines import local, ray
from salus.io.files import make_folder, write_whole
from salus.model import versions
from salus.training.tracking import is_uri, tracker

MEMORY = 4 * 2**30  # bytes that a cell may take, so that by default as many run as there is room for
ENGINES: Mapping[str, Callable[..., Iterator[tuple[Work, str]]]] = {
    "local": partial(local.each, preload="salus.benchmark.cells"),
    "ray": ray.each,
}


def benchmark(
    suite: Path,
    out: Path,
    *,
    data: Path | None = None,
    preset: str | None = None,
    engine: str = "local",
    workers: int | None = None,
    track: str | None = None,
    on_cell: Callable[[str, str, int], None] = lambda cell, reason, total: None,
) -> tuple[Path, dict[str, str]]:
    """Train, screen and evaluate all that a suite names, and write the tables; the command of the same name.

    A cell that is finished is not done again, one that was killed goes on where it was, one that failed is tried again.
    What is made of other cells is made anew where one of them is.

    Args:
        suite: a YAML file, see `salus.benchmark.suite`.
        out: where everything goes.
        data: folder of the suite's data sets; its own folder if None.
        preset: of every method, in place of its own: "tiny" tries a long suite out.
        engine: "local" or "ray".
        workers: cells at a time on a machine, which share its processors; None takes as many as processors and memory
            allow. Several small trainings with a thread each end sooner than one after the other.
        track: where trainings are watched, see `salus.training.tracking.tracker`.
        on_cell: told of each cell that has ended, why it failed or "", and the number of cells.

    Returns:
        The report's path, and the reason of each row that failed by its name.

    Raises:
        ConfigError, LayoutError, StorageError: see their messages.
    """
    chosen = read_suite(suite, preset)
    if engine not in ENGINES:
        raise ConfigError(f"There is no engine '{engine}'.{did_you_mean(engine, ENGINES)}")
    cores = processors()
    if workers is None:
        workers = max(1, int(min(cores, len(chosen.cells), memory() / MEMORY)))
    elif workers < 1:
        raise ConfigError(f"need at least one worker, got {workers}.")
    root = (data or suite.parent).absolute()
    begin(make_folder(out) / "suite.json", suite.stem, chosen, root)
    tracker(track, "", out)  # refused before anything is trained
    draw(chosen, out, root)
    for cell in chosen.cells:
        if not all((out / member.place / "model/model.json").is_file() for member, _ in chosen.members(cell)):
            shutil.rmtree(out / cell.place, ignore_errors=True)  # what is made of it has to be made of the next one
    threads = max(1, cores // workers)
    watched = track if track is None or is_uri(track) else str(Path(track).absolute())
    left = [
        Work(suite=chosen, cell=cell, data=root, out=out.absolute(), threads=threads, track=watched)
        for cell in chosen.cells
        if failed(out, chosen, cell)
    ]
    for cell in sorted(set(chosen.cells) - {work.cell for work in left}):
        on_cell(str(cell), "", len(chosen.cells))
    # What is made of others waits for them.
    stages = [[work for work in left if bool(chosen.methods[work.cell.method].of) is later] for later in (False, True)]
    for work, died in chain.from_iterable(ENGINES[engine](cells.run, stage, workers=workers) for stage in stages):
        if died and failed(out, chosen, work.cell):  # it may end badly after all is written
            reasons = dict.fromkeys(chosen.scores_of(work.cell.method), died)
            write_whole(out / work.cell.place / ENDED, (json.dumps({"failed": reasons}, indent=1) + "\n").encode())
        on_cell(str(work.cell), "; ".join(sorted(set(failed(out, chosen, work.cell).values()))), len(chosen.cells))
    return write_tables(chosen, suite.stem, out, root)


def begin(path: Path, name: str, suite: Suite, root: Path) -> None:
    """Write what is compared. More methods, data sets, scores and seeds may come to those that are there.

    Args:
        root: folder of the data sets.

    Raises:
        ConfigError: a name that was there means something else now, or a data set holds other cases.
    """
    mine = json.loads(json.dumps({"name": name, **asdict(suite)}))
    mine["cases"] = {name: listed(one, root) for name, one in suite.datasets.items() if not one.made}
    there = json.loads(path.read_bytes()) if path.is_file() else mine
    for data in there["datasets"].values():
        data.setdefault("also", [])  # older suites know of no further sets, and of no lesions
        data.setdefault("painted", False)
    for method in there["methods"].values():
        method.setdefault("of", [])  # nor of ensembles
        method.setdefault("seeds", [])
    for group in ("datasets", "methods"):
        for entry in sorted(mine[group].keys() & there[group]):
            if mine[group][entry] != there[group][entry]:
                raise ConfigError(
                    f"{path.parent} was begun with another {group}.{entry}. Give it another name or use another --out."
                )
        mine[group] = there[group] | mine[group]  # what it no longer names keeps its meaning
    known = there.get("cases", {})
    for entry in sorted(name for name in mine["cases"].keys() & known if (path.parent / "cells" / name).is_dir()):
        if mine["cases"][entry] and known[entry] and mine["cases"][entry] != known[entry]:
            raise ConfigError(
                f"{path.parent} was begun with other cases of datasets.{entry} than {root} holds now: rows of two "
                "tests would be one. Bring them back or use another --out."
            )
    mine["cases"] = known | {entry: found for entry, found in mine["cases"].items() if found}
    write_whole(path, (json.dumps(mine, indent=1) + "\n").encode())


def listed(data: Data, root: Path) -> str:
    """SHA-256 over case, patient, label and part of all cases; empty where they cannot be read: cells say why."""
    lines = []
    for reader, path in [(data.reader, data.path), *((one.reader, one.path) for one in data.also)]:
        try:
            cases = open_dataset(reader, root / path)
        except SalusError:
            return ""
        lines += [f"{case.case_id}\t{case.patient_id}\t{case.label}\t{case.split}" for case in cases]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def failed(out: Path, suite: Suite, cell: Cell) -> dict[str, str]:
    """What of a cell is not done, and why, by score."""
    try:
        there = json.loads((out / cell.place / ENDED).read_bytes())
    except FileNotFoundError:
        return dict.fromkeys(suite.scores_of(cell.method), "not done")
    missing = [score for score in suite.scores_of(cell.method) if not evaluated(out / cell.place / score)]
    return {**dict.fromkeys(missing, "not done"), **there["failed"]}


def evaluated(place: Path) -> bool:
    """Whether a score was judged by this version of Salus: another one knows other measures, and evaluates anew."""
    try:
        metrics = json.loads((place / "report" / "metrics.json").read_bytes())
    except FileNotFoundError:
        return False
    return (metrics["format"], metrics["versions"]["salus"]) == (FORMAT, versions()["salus"])
