"""The suites that are there, on small downloads laid out as distributed, by the command, through the real readers."""

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from salus.benchmark.suite import read_suite
from salus.nets.weights import where
from salus.training import train
from tests.datasets.layouts import LAYOUTS, isic2018, medianomaly

SUITES = sorted((Path(__file__).parents[2] / "suites").glob("*.yaml"))
RESEARCH = sorted((Path(__file__).parents[2] / "suites" / "research").glob("*.yaml"))
OTHERS = {"brats2021": medianomaly.write_brats2021, "camelyon16": medianomaly.write_camelyon16}
HEALTHY, TESTED = 40, 4  # of MedIAnomaly's sets: `mem-ae` remembers no more items than it saw images


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    """Everything that any suite names, under the paths that it names."""
    root = tmp_path_factory.mktemp("downloads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isic2018, "HEALTHY", HEALTHY)
        patch.setattr(medianomaly, "HEALTHY", HEALTHY)
        patch.setattr(medianomaly, "LEARNED", HEALTHY - TESTED)
        for suite in SUITES:
            for name, data in read_suite(suite).datasets.items():
                for place, reader in ((data.path, data.reader), *((one.path, one.reader) for one in data.also)):
                    if place and not (root / place).exists():
                        (root / place).mkdir(parents=True)
                        OTHERS.get(name, LAYOUTS[reader])(root / place)
    return root


@pytest.fixture
def quick(numbers_only, in_this_process, monkeypatch) -> None:
    """Hundreds of cells in minutes: four epochs, which every method accepts, and nothing that is for eyes alone."""
    monkeypatch.setattr("salus.benchmark.cells.train", partial(train, epochs=4))
    monkeypatch.setattr("salus.training.loss_figure", lambda path, run: None)
    monkeypatch.setattr("salus.benchmark.tables.REPLICATES", 20)


@pytest.mark.parametrize("suite", [*SUITES, *RESEARCH], ids=lambda path: path.stem)
def test_names_and_settings_of_a_suite_exist_at_its_presets_and_at_tiny(suite):
    assert read_suite(suite).cells
    trained = [method for method in read_suite(suite, "tiny").methods.values() if not method.of]
    assert {method.preset for method in trained} == {"tiny"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("path", [path for path in SUITES if path.stem != "smoke"], ids=lambda path: path.stem)
def test_a_suite_runs_unchanged_on_its_downloads(salus, path, downloads, shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("SALUS_WEIGHTS", str(shared_data / "weights"))
    suite, out = read_suite(path, "tiny"), tmp_path / "out"
    if "mkd" in suite.methods and where("vgg16-tv") is None:
        pytest.skip("vgg16-tv is not here: salus weights fetch vgg16-tv")
    code, said, _ = salus("benchmark", path, "--preset", "tiny", "--data", downloads, "--out", out)
    assert code == 0, said
    with (out / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["seed"]]
    assert [(row["data"], row["seed"], row["method"], row["score"]) for row in rows] == [
        (cell.data, str(cell.seed), cell.method, score)
        for cell in suite.cells
        for score in suite.scores_of(cell.method)
    ]
    assert all(0 <= float(row["auroc"]) <= 1 and not row["failed"] for row in rows)
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["published"]) == set(suite.published)
    for name, lines in summary["data"].items():
        ours = [line for line in lines if not line["floor"]]
        assert len(ours) == sum(len(suite.scores_of(method)) for method in suite.methods), name
        assert {line["seeds"] for line in ours} == {len(suite.seeds)}
        assert np.isfinite([line["over_floor"]["value"] for line in ours]).all()
    page = (out / "report.html").read_text()
    assert all(f'<section id="{name}">' in page for name in suite.datasets)
