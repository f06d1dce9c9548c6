"""Where a training can be watched while it runs: a folder for TensorBoard, or MLflow.

A training that goes on after it was killed goes on in its run, and tells of all its epochs again: what is there
already is not there twice.
"""

import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from salus.core.errors import ConfigError, StorageError
from salus.io.files import write_whole

MISSING = "Tracking needs more packages: pip install '.[tracking]'."
TRACKED = "tracked.json"  # which run a training is
AT_ONCE = 1000  # metrics that MLflow takes together
MLFLOW = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it would tell its makers
    "MLFLOW_ALLOW_FILE_STORE": "true",  # whoever says file: means it
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # by default it takes minutes to say that nobody is there
}

Rows = Sequence[Mapping[str, float]]


class Tracker:
    """A run, as a context; this one is watched by nobody.

    Whatever is not taken raises a StorageError; the training can go on from its last epoch.
    """

    where = ""
    last = 0.0  # epoch that was told of

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Tell what decides the training, before its first epoch."""
        with self.taken():
            self.start(settings)

    def log(self, rows: Rows) -> None:
        """Tell of the rows that are new: numbers by their names, as in `train.csv`; "epoch" is the step, and rises."""
        if new := [row for row in rows if row["epoch"] > self.last]:
            with self.taken():
                self.write(new)
            self.last = new[-1]["epoch"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self.taken():
            self.end("FAILED" if kind else "FINISHED")

    @contextmanager
    def taken(self) -> Iterator[None]:
        """What goes wrong inside, in words for people."""
        try:
            yield
        except Exception as error:
            raise StorageError(f"Tracking to {self.where} failed; --resume goes on. {first_line(error)}") from error

    def start(self, settings: Mapping[str, Any]) -> None: ...

    def write(self, rows: Rows) -> None: ...

    def end(self, status: str) -> None: ...


class TensorBoard(Tracker):
    """A folder of event files below `where`; `kept` says which, once there is one."""

    def __init__(self, where: Path, name: str, kept: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(MISSING) from error
        self.where, self.name, self.kept, self.opened = str(where), name, kept, SummaryWriter
        self.writer: SummaryWriter | None = None
        self.settings = ""

    def start(self, settings: Mapping[str, Any]) -> None:
        self.settings = f"```json\n{json.dumps(settings, indent=1)}\n```"

    @property
    def run(self) -> str:
        """Its folder's name, one that no other training has: ra, ra-2 ..."""
        if there := kept_run(self.kept, self.where):
            return there
        names = itertools.chain([self.name], (f"{self.name}-{n}" for n in itertools.count(2)))
        run = next(name for name in names if not (Path(self.where) / name).exists())
        keep_run(self.kept, self.where, run)
        return run

    def write(self, rows: Rows) -> None:
        first = int(rows[0]["epoch"])
        if self.writer is None:
            # What an earlier process told from `first` on is void.
            self.writer = self.opened(str(Path(self.where) / self.run), purge_step=first)
            self.writer.add_text("settings", self.settings, first)
        for row in rows:
            for name in row.keys() - {"epoch"}:
                self.writer.add_scalar(name, row[name], int(row["epoch"]))
        self.writer.flush()

    def end(self, status: str) -> None:
        if self.writer is not None:
            self.writer.close()


class MLflow(Tracker):
    """A run of the experiment "salus"; `kept` says which, once there is one."""

    def __init__(self, where: str, name: str, kept: Path) -> None:
        os.environ.update(MLFLOW | os.environ)
        try:
            from mlflow import MlflowClient, entities
            from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
        except ImportError as error:
            raise ConfigError(MISSING) from error
        self.where, self.name, self.kept, self.entities = where, name, kept, entities
        self.told: dict[str, set[int]] = {}  # steps of each metric that are there
        try:
            self.client = MlflowClient(where)
            there = self.client.get_experiment_by_name("salus")
            self.experiment = there.experiment_id if there else self.client.create_experiment("salus")
        except UnsupportedModelRegistryStoreURIException:
            raise ConfigError(
                f"MLflow knows no {urlsplit(where).scheme}://: track to a folder, file:///FOLDER or http://HOST:PORT."
            ) from None
        except Exception as error:
            raise ConfigError(f"No MLflow takes runs at {where}. {first_line(error)}") from error

    @property
    def run(self) -> str:
        """Its id, of a new run where there is none yet."""
        if there := kept_run(self.kept, self.where):
            return there
        run = str(self.client.create_run(self.experiment, run_name=self.name).info.run_id)
        keep_run(self.kept, self.where, run)
        return run

    def start(self, settings: Mapping[str, Any]) -> None:
        params = [self.entities.Param(name, str(value)) for name, value in flat(settings).items()]
        self.client.log_batch(self.run, params=params)

    def write(self, rows: Rows) -> None:
        run, now = self.run, int(1000 * time.time())
        for name in {name for row in rows for name in row} - self.told.keys():
            self.told[name] = {metric.step for metric in self.client.get_metric_history(run, name)}
        metrics = [
            self.entities.Metric(name, value, now, int(row["epoch"]))
            for row in rows
            for name, value in row.items()
            if name != "epoch" and row["epoch"] not in self.told[name]
        ]
        for start in range(0, len(metrics), AT_ONCE):
            self.client.log_batch(run, metrics=metrics[start : start + AT_ONCE])

    def end(self, status: str) -> None:
        if self.kept.is_file():
            self.client.set_terminated(self.run, status)


def tracker(where: str | None, name: str, folder: Path) -> Tracker:
    """Where a training is watched.

    Args:
        where: a folder for TensorBoard, or MLflow's tracking URI, such as http://localhost:5000; None for nowhere.
        name: of the run.
        folder: where the training leaves what it makes.

    Raises:
        ConfigError: a package is missing, nobody is there, or the URI holds a password, which would be kept.
    """
    if where is None or os.environ.get("RANK", "0") != "0":  # of several processes the first one tells
        return Tracker()
    if is_uri(where):
        if "@" in urlsplit(where).netloc:
            raise ConfigError("A URI to track to holds no password: set MLFLOW_TRACKING_USERNAME and _PASSWORD.")
        return MLflow(where, name, folder / TRACKED)
    return TensorBoard(Path(where).resolve(), name, folder / TRACKED)


def kept_run(kept: Path, where: str) -> str:
    """Which run at `where` a training is; "" where it is none yet."""
    there = json.loads(kept.read_bytes()) if kept.is_file() else {}
    return str(there["run"]) if there.get("where") == where else ""


def keep_run(kept: Path, where: str, run: str) -> None:
    """Inverse of `kept_run`."""
    write_whole(kept, json.dumps({"where": where, "run": run}).encode())


def is_uri(where: str) -> bool:
    """Whether it is no folder."""
    return len(urlsplit(where).scheme) > 1  # one letter is a drive


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings under the names of `--set`: {"recipe.batch": 8}."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found


def first_line(error: Exception) -> str:
    """What it says, without what follows."""
    return str(error).partition("\n")[0]
