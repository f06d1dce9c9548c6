"""The docs keep up with the code."""

import argparse
import ast
import dataclasses
import importlib.util
import re
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from typer.main import get_command

from salus.cli import app
from salus.datasets import DATASETS
from salus.detectors import DETECTORS, detector_class
from salus.scores import SCORES

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def page_of(name: str, where: str, registry: dict[str, str]) -> str:
    module = registry[name].split(":")[0].rpartition(".")[2]
    return (ROOT / "docs" / where / f"{module}.md").read_text()


@pytest.mark.parametrize("name", DETECTORS)
def test_every_setting_of_every_detector_is_on_its_page(name):
    page = page_of(name, "methods", DETECTORS)
    for field in dataclasses.fields(detector_class(name).Config):
        assert f"`{field.name}`" in page, field.name
    assert f"salus train {name} " in page or name == "mean-intensity"
    assert "## When not to use it" in page or "When not to use them" in page


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_has_a_page_with_what_one_asks_of_it(name):
    page = (ROOT / "docs" / "datasets" / f"{name.replace('-', '_')}.md").read_text()
    assert page.startswith("# ")
    if name not in ("folder", "phantom"):
        for heading in ("## Get it", "## Layout", "## Labels and splits", "## Traps"):
            assert heading in page
        assert f"--dataset {name}" in page


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_in_the_how_to(name):
    assert f"`{name}`" in (ROOT / "docs" / "how-to" / "scores.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_inside_the_repository_exist(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_placeholder_is_left(page):
    assert not re.search(r"\b(TABLE|TABLE_NOTE|DEMO|MEMORY|COMMIT|TBD)\b", page.read_text())


def test_the_readme_names_every_command():
    readme = (ROOT / "README.md").read_text()
    for command in get_command(app).commands:
        assert f"salus {command}" in readme, command


def test_the_changelog_has_unreleased_entries():
    assert re.search(r"## Unreleased\n\n### Added\n- ", (ROOT / "CHANGELOG.md").read_text())


def test_what_the_benchmarks_import_is_there():
    trees = [ast.parse(path.read_text()) for path in (ROOT / "benchmarks").glob("*.py")]
    imports = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = {(node.module, one.name) for node in imports if node.module.startswith("salus") for one in node.names}
    assert len(ours) > 50
    for module, name in ours:
        assert hasattr(importlib.import_module(module), name) or importlib.util.find_spec(f"{module}.{name}"), name


def in_code(written: str) -> object:
    """A default as pages write it: 0.5, `word`, on, off, (1, 2), (no, yes), (25/128, 50/128)."""
    words = {"on": True, "yes": True, "off": False, "no": False, "none": None}
    if written.startswith("("):
        return tuple(in_code(one) for one in written[1:-1].split(", "))
    if written in words:
        return words[written]
    if written.startswith("`"):
        return written.strip("`")
    return float(Fraction(written)) if "/" in written else ast.literal_eval(written)


@pytest.mark.parametrize("method", sorted(DETECTORS.keys() - {"mean-intensity", "pca", "random-features"}))
def test_the_defaults_on_a_method_s_page_are_those_of_the_code(method):
    config = detector_class(method).Config()
    page = (ROOT / "docs" / "methods" / f"{DETECTORS[method].split(':')[0].rpartition('.')[2]}.md").read_text()
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", page.split("| setting | default |")[1], re.MULTILINE)
    compared = 0
    for names, written in rows:
        names, defaults = names.replace("`", "").split(", "), re.findall(r"\([^)]*\)|[^,\s]+", written)
        if written.startswith("as "):
            continue
        one_for_all = defaults * len(names) if len(defaults) == 1 else defaults
        for name, default in zip(names, one_for_all, strict=True):
            assert in_code(default) == getattr(config, name), name
            compared += 1
    assert compared > 0


def test_each_method_s_page_has_its_rows_on_real_images(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    from methods_table import ON_PAGES, module_of, on_real_images

    floors = {"mean-intensity", "pca", "random-features"}
    for method in DETECTORS.keys() - floors:
        lines = (ROOT / "docs" / "methods" / f"{module_of(method)}.md").read_text().splitlines()
        measured = on_real_images(method)  # "" of a method that nobody has run yet
        assert [line for line in lines if line.startswith(ON_PAGES)] == [measured] * bool(measured), method


def test_the_tables_of_all_methods_are_made_of_the_kept_rows(capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    from methods_table import SETS, by_score, table

    page = (ROOT / "docs" / "results.md").read_text()
    table(argparse.Namespace(sets=list(SETS)))
    assert capsys.readouterr().out.strip() in page
    by_score(argparse.Namespace(sets=[name for name in SETS if name != "phantom"], methods=["ra", "ae", "pca"]))
    assert capsys.readouterr().out.strip() in page
