"""One cell of a benchmark: train, then screen and evaluate with each score.

    OUT/data/<data>/                              phantoms, and painted lesions
    OUT/cells/<data>/<method>/seed<n>/model/      a model folder
                                     /<score>/    model (with another score), results/, report/
                                     /cell.json   written last: what it cost, or why it failed, a line a score

All of it goes on where it was killed: each step leaves what it finished and finds it again.
"""

import json
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from salus.benchmark.evaluate import evaluate
from salus.benchmark.painting import write_painted
from salus.benchmark.pairing import bare
from salus.benchmark.suite import Cell, Suite
from salus.core.errors import ConfigError, SalusError
from salus.datasets.phantom import write_phantom
from salus.io.files import write_whole
from salus.model import Model, detections
from salus.screening import screen
from salus.training import Trained, rescored, train, trained_before
from salus.training.combining import combine
from salus.training.tracking import Tracker, tracker

ENDED = "cell.json"
TIMED = 16  # images that are timed together


@dataclass(frozen=True, kw_only=True)
class Work:
    """A cell with all that a process needs to know to do it."""

    suite: Suite
    cell: Cell
    data: Path
    out: Path
    threads: int
    track: str | None = None

    @property
    def source(self) -> tuple[Path, str]:
        """Folder and reader of the cell's data set."""
        entry = self.suite.datasets[self.cell.data]
        if entry.made:
            return drawn(self.out, self.cell.data), entry.made
        return self.data / entry.path, entry.reader


def drawn(out: Path, name: str) -> Path:
    """Where a phantom of the suite lies, or what was painted."""
    return out / "data" / name


def draw(suite: Suite, out: Path, data: Path) -> None:
    """Draw the suite's phantoms and lesions; those that are there stay.

    Args:
        data: folder of the suite's data sets.

    Raises:
        ConfigError, LayoutError, StorageError: see `write_phantom` and `write_painted`.
    """
    for name, entry in suite.datasets.items():
        if entry.phantom is not None:
            write_phantom(drawn(out, name), **entry.phantom)  # type: ignore[arg-type]
        elif entry.painted:
            foreign = entry.painted == "foreign"
            write_painted(drawn(out, name), data / entry.path, reader=entry.reader, foreign=foreign)


def run(work: Work) -> None:
    """Do a cell and say in its `cell.json` how it went; no error leaves this function."""
    torch.set_num_threads(work.threads)
    place = work.out / work.cell.place
    place.mkdir(parents=True, exist_ok=True)
    before = ended_before(place)
    ended: dict[str, Any] = {"failed": {}}
    try:
        with tracker(work.track, str(work.cell.place.relative_to("cells")), place) as tracked:
            done = trained(work, place, tracked)
            ended["seconds"] = done.run.seconds
            ended["ms"] = before.get("ms") or milliseconds(Model.load(done.folder))
            measured: dict[str, float] = {"epoch": done.run.epoch + 1}
            for score in work.suite.scores_of(work.cell.method):
                try:
                    measured |= judged(work, place, score)
                except Exception as error:
                    ended["failed"][score] = reason_of(error, work)
            tracked.log([measured])
        # What is only judged again has cost no training.
        if (peak := before.get("mib", peak_mib())) is not None:
            ended["mib"] = peak
        ended["evaluated"] = datetime.now(UTC).date().isoformat()
    except Exception as error:
        ended["failed"] = dict.fromkeys(work.suite.scores_of(work.cell.method), reason_of(error, work))
    write_whole(place / ENDED, (json.dumps(ended, indent=1) + "\n").encode())


def ended_before(place: Path) -> dict[str, Any]:
    """What a cell that trained its model, here or on another machine, had said of it; nothing of another."""
    if not ((place / ENDED).is_file() and (place / "model" / "model.json").is_file()):
        return {}
    there: dict[str, Any] = json.loads((place / ENDED).read_bytes())
    return there


def trained(work: Work, place: Path, tracked: Tracker) -> Trained:
    """Train the cell's model, or make it of those of other cells."""
    method = work.suite.methods[work.cell.method]
    data, reader = work.source
    if members := work.suite.members(work.cell):
        combine([model_of(work, *member) for member in members], data, place / "model", dataset=reader)
        return trained_before(place / "model")
    if ended_before(place):
        return trained_before(place / "model")
    entry = work.suite.datasets[work.cell.data]
    also = [(one.reader, work.data / one.path) for one in entry.also]
    prepare = {f"prepare.{key}": value for key, value in entry.prepare.items()}
    settings = {**prepare, **method.set}
    return train(
        work.suite.detector_of(work.cell.method), data, place / "model", dataset=reader, also=also,
        preset=method.preset, settings=settings, seed=work.cell.seed, resume=True, tracked=tracked,
    )  # fmt: skip


def model_of(work: Work, cell: Cell, score: str) -> Path:
    """The model folder of a cell that is done.

    Raises:
        ConfigError: it failed.
    """
    place = work.out / cell.place
    folder = place / score / "model" if work.suite.scores_of(cell.method).get(score) else place / "model"
    if not (folder / "model.json").is_file():
        raise ConfigError(f"{cell} failed, and this is made of it.")
    return folder


def judged(work: Work, place: Path, score: str) -> dict[str, float]:
    """Screen the test cases with one score and evaluate; the measures over all cases, as `own/auroc`."""
    data, reader = work.source
    model, own = place / "model", place / score
    if settings := work.suite.scores_of(work.cell.method)[score]:
        model = rescored(model, settings, data, own / "model", dataset=reader)
    screen([data], model=model, out=own / "results", dataset=reader)
    evaluate(own / "results", data, own / "report", dataset=reader)
    overall = json.loads((own / "report" / "metrics.json").read_bytes())["overall"] or {}
    return {f"{score}/{name}": entry["value"] for name, entry in overall.items() if isinstance(entry, dict)}


def milliseconds(model: Model) -> float:
    """Median time of `detect` an image, with the score of the preset."""
    size = model.preparation.size
    rows = np.random.default_rng(0).random((TIMED, 1, size, size), dtype=np.float32)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        detections(model.detector, rows, precision=model.precision)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[1:]) / TIMED


def peak_mib() -> float | None:
    """Most memory that this process ever held, MiB; None where the system does not say so (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, others KiB


def reason_of(error: Exception, work: Work) -> str:
    """Why a cell failed, in words for people; no path of this machine."""
    said = str(error) if isinstance(error, SalusError) else f"unexpected {type(error).__name__}: {error}"
    return bare(said, work.out, work.data)
