"""The suites that are there, on small downloads laid out as distributed, by the command, through the real readers."""

from pathlib import Path

import pytest
import yaml

from salus.benchmark.suite import read_suite
from tests.datasets.layouts import LAYOUTS, medianomaly

SUITES = sorted((Path(__file__).parents[2] / "suites").glob("*.yaml"))
OTHERS = {"brats2021": medianomaly.write_brats2021, "camelyon16": medianomaly.write_camelyon16}


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    """Everything that any suite names, under the paths that it names."""
    root = tmp_path_factory.mktemp("downloads")
    for suite in SUITES:
        for name, data in read_suite(suite).datasets.items():
            if data.path and not (root / data.path).exists():
                (root / data.path).mkdir(parents=True)
                OTHERS.get(name, LAYOUTS[data.reader])(root / data.path)
    return root


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_names_and_settings_of_a_suite_exist_at_its_presets_and_at_tiny(suite):
    assert read_suite(suite).cells
    assert {method.preset for method in read_suite(suite, "tiny").methods.values()} == {"tiny"}


@pytest.mark.parametrize("suite", [path for path in SUITES if path.stem != "smoke"], ids=lambda path: path.stem)
def test_a_suite_runs_on_its_downloads(salus, suite, downloads, tmp_path):
    # All data sets with the first method and its own score: what methods and scores do is tested with each.
    content = yaml.safe_load(suite.read_text())
    first = dict(list(content["methods"].items())[:1])
    short = tmp_path / suite.name
    short.write_text(yaml.safe_dump({**content, "methods": first, "scores": ["own"], "seeds": [0]}))
    code, said, _ = salus(
        "benchmark", short, "--preset", "tiny", "--data", downloads, "--out", tmp_path / "out", "--workers", 2
    )
    assert code == 0, said
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(f'<section id="{name}">' in page for name in content["datasets"])
