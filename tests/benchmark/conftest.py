"""A RESULTS folder made by hand, beside the data set it is about."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from salus.benchmark.cells import Work
from salus.benchmark.run import ENGINES
from salus.core import Image, Result, Verdict
from salus.io import file_sha256, write_image
from salus.io.results import write_overlay, write_result
from salus.preprocess.preparation import Preparation

SIDE = 32
THRESHOLD, PIXEL_THRESHOLD, GRID_THRESHOLD = 0.45, 0.5, 0.45
CURVE_THRESHOLDS = (1.6, 1.45, 1.3, 1.15, 0.5)
HEALTHY = (0.10, 0.20, 0.30, 0.40, 0.50)  # one false alarm of five
ABNORMAL = (0.15, 0.35, 0.60, 0.70)  # two found of four
MODEL = "m" * 64
DRAWS = 200  # of the plain study; a tenth of the usual, to save seconds


@dataclass
class Study:
    """The two folders, and what was written into them by case id."""

    data: Path
    results: Path
    maps: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    masks: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def picture(self, name: str, seed: int) -> Path:
        """A source image, `name` under the data set."""
        path = self.data / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
        noise = np.random.default_rng(seed).random((SIDE, SIDE))
        write_image(Image(array=(0.3 * rows + 0.2 * columns + 0.3 * noise).astype(np.float32)), path)
        return path

    def mask(self, name: str, inside: NDArray[np.bool_]) -> None:
        """The truth of test/<finding>/<stem>."""
        _, finding, stem = name.split("/")
        path = self.data / "ground_truth" / finding / f"{stem}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(Image(array=inside.astype(np.float32)), path)
        self.masks[name] = inside

    def result(self, name: str, score: float, seed: int) -> None:
        """What screening would have written of it."""
        source = self.data / f"{name}.png"
        folder = self.results / name
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, 1])
        anomaly = (rng.random((SIDE, SIDE)) ** 2).astype(np.float32)
        if name in self.masks:
            anomaly[self.masks[name]] += np.float32(score)
        self.maps[name] = anomaly
        picture = Preparation(size=SIDE, intensity="depth")(read(source)).array
        write_image(Image(array=anomaly), folder / "map.tif")
        write_image(Image(array=picture + np.float32(0.1)), folder / "restored.tif")
        write_overlay(folder / "overlay.png", picture, anomaly, PIXEL_THRESHOLD)
        verdict = Verdict.ABNORMAL if score > THRESHOLD else Verdict.NORMAL
        files = {"map": "map.tif", "restored": "restored.tif", "overlay": "overlay.png"}
        judged = {"verdict": verdict, "score": score, "p_value": 0.5, "threshold": THRESHOLD, "files": files}
        sources = {source.name: file_sha256([source])}
        write_result(folder, Result(case_id=name, sources=sources, model=MODEL, **judged))

    def cannot_judge(self, name: str, reason: str) -> None:
        """A result without a score."""
        source = self.data / f"{name}.png"
        folder = self.results / name
        folder.mkdir(parents=True, exist_ok=True)
        sources = {source.name: file_sha256([source])}
        verdict = Verdict.CANNOT_JUDGE
        write_result(folder, Result(case_id=name, sources=sources, model=MODEL, verdict=verdict, reasons=(reason,)))

    def run(self, **changed: object) -> None:
        """run.json"""
        about = {
            "format": 1,
            "model": MODEL,
            "method": "hand + made",
            "detector": "ae",
            "settings": {"size": SIDE},
            "score": {"name": "squared"},
            "preparation": asdict(Preparation(size=SIDE, intensity="depth")),
            "precision": "bf16",
            "calibration": {
                "scores": [0.1, 0.2, THRESHOLD],
                "false_alarms": 0.05,
                "pixel_threshold": PIXEL_THRESHOLD,
                "grid_threshold": GRID_THRESHOLD,
                "curve_thresholds": CURVE_THRESHOLDS,
                "patients": 3,
            },
            "threshold": THRESHOLD,
            "card": {
                "dataset": "hand",
                "counts": {"train": 12},
                "left_out": [["bad.png", f"{self.data}/bad.png is empty"]],
            },
            "versions": {"salus": "0"},
        }
        self.results.mkdir(parents=True, exist_ok=True)
        (self.results / "run.json").write_text(json.dumps({**about, **changed}))


def read(path: Path) -> Image:
    from salus.io import read_image

    return read_image(path)


def make(root: Path, *, masks: bool = True, training: int = 12) -> Study:
    """Five healthy test cases, four with a hole, and healthy ones to learn from."""
    study = Study(data=root / "data", results=root / "results")
    for index in range(training):
        study.picture(f"train/good/{index:02}", 100 + index)
    for index, score in enumerate(HEALTHY):
        study.picture(f"test/good/{index:02}", index)
        study.result(f"test/good/{index:02}", score, index)
    for index, score in enumerate(ABNORMAL):
        name = f"test/hole/{index:02}"
        study.picture(name, 50 + index)
        if masks:
            inside = np.zeros((SIDE, SIDE), dtype=bool)
            inside[4 + index : 10 + index, 8:14] = True
            study.mask(name, inside)
        study.result(name, score, 50 + index)
    study.run()
    return study


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALUS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few draws, where the interval is not what is tested."""
    monkeypatch.setattr("salus.benchmark.measures.REPLICATES", 20)


@pytest.fixture
def numbers_only(few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few draws and no page."""
    monkeypatch.setattr("salus.benchmark.report.write_report", lambda path, evaluation: path)


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Study]:
    """Makes one in the test's own folder."""
    return lambda **how: make(tmp_path, **how)


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A plain study and the folder of its evaluation, made once."""
    from salus.benchmark import evaluate

    root = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SALUS_CACHE", str(root / "cache"))
        patch.setattr("salus.benchmark.measures.REPLICATES", DRAWS)
        made = make(root)
        evaluate(made.results, made.data, root / "out")
    return made, root / "out"


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of a benchmark run here one after the other: what is tested is not the processes, which take seconds."""

    def each(work: Callable[[Work], None], items: Sequence[Work], *, workers: int) -> Iterator[tuple[Work, str]]:
        for item in items:
            work(item)
            yield item, ""

    monkeypatch.setitem(ENGINES, "local", each)
