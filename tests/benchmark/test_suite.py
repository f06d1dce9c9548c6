"""`salus benchmark`: what a suite may say, that nothing finished is done again, and that a kill changes nothing."""

import csv
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from salus.benchmark import evaluate
from salus.benchmark.cells import peak_mib
from salus.benchmark.ledger import looks
from salus.benchmark.run import ENGINES, begin, benchmark
from salus.benchmark.suite import Cell, read_suite
from salus.core.errors import ConfigError
from salus.model import Model
from tests.conftest import discs
from tests.datasets.layouts import png

SUITE = {
    "datasets": {"discs": {"path": "."}},
    "methods": {
        "ae": {"preset": "tiny", "set": {"recipe.epochs": 2}},
        "ae-4": {"detector": "ae", "preset": "tiny", "set": {"recipe.epochs": 2, "latent": 4}},
        "patchcore": {"preset": "tiny"},
    },
    "scores": ["own", {"name": "smoothed", "sigma": 1.5}],
    "seeds": [0, 1],
}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "discs.yaml"
    path.write_text(yaml.safe_dump({**SUITE, **changes}))
    return path


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "ms", "mib")} for row in csv.DictReader(file)]


def without_costs(out: Path) -> dict:
    summary = json.loads((out / "summary.json").read_text())
    for lines in summary["data"].values():
        for line in lines:
            del line["costs"]
    return summary


@pytest.fixture(scope="module")
def done(disc_folder, tmp_path_factory) -> Path:
    """A benchmark that nothing disturbed."""
    place = tmp_path_factory.mktemp("suite")
    benchmark(written(place), place / "out", data=disc_folder)
    return place / "out"


def test_a_cell_is_a_method_a_data_set_and_a_seed_and_scores_share_it(tmp_path):
    suite = read_suite(written(tmp_path))
    assert len(suite.cells) == 6
    assert suite.cells[0] == Cell("discs", 0, "ae")
    assert list(suite.scores_of("ae")) == ["own", "smoothed-sigma-1.5"]
    assert list(suite.scores_of("patchcore")) == ["own"], "what restores nothing has no other score"
    same = read_suite(written(tmp_path, scores=["own", {"name": "squared"}]))
    assert list(same.scores_of("ae")) == ["own"], "what is a preset's own score is not there twice"
    methods = {"pca": {}, "pca-smoothed": {"detector": "pca", "set": {"score.name": "smoothed"}}}
    plain = read_suite(written(tmp_path, methods=methods, scores=["own", {"name": "residual"}, {"name": "smoothed"}]))
    assert list(plain.scores_of("pca")) == ["own", "smoothed"], "whose preset names no score has the residual"
    assert list(plain.scores_of("pca-smoothed")) == ["own", "residual"], "another score was set: that one is its own"


def test_with_painted_lesions_the_labelled_test_stays_shut(disc_folder, tmp_path):
    data = shutil.copytree(disc_folder, tmp_path / "data")
    for file in data.glob("test/**/*.png"):
        file.write_bytes(b"shut")
    methods = {"ae": {"preset": "tiny", "set": {"recipe.epochs": 2}}}
    painted = {"discs": {"path": ".", "painted": True}, "pieces": {"path": ".", "painted": "foreign"}}
    suite = written(tmp_path, datasets=painted, methods=methods, seeds=[0])
    _, reasons = benchmark(suite, tmp_path / "out", data=data)
    assert not reasons
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    for name, findings in (("discs", {"bright", "dark"}), ("pieces", {"foreign"})):
        assert all(line["measures"]["auroc"] and line["measures"]["pixel_ap"] for line in summary["data"][name])
        assert summary["card"]["data"][name]["reader"] == "painted"
        assert set(summary["card"]["data"][name]["test_findings"]) == findings
        assert summary["card"]["data"][name]["looks"] == 0
    assert "Judged by lesions painted on healthy people" in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "ledger.csv").read_text().count("\n") == 1


def test_every_look_at_test_labels_is_in_the_ledger_also_of_what_is_no_longer_asked_for(done, disc_folder, tmp_path):
    with (done / "ledger.csv").open(newline="") as file:
        looks = list(csv.DictReader(file))
    cells = [
        (data, method, score, str(seed))
        for data in ["discs"]
        for method, scores in (
            ("ae", ["own", "smoothed-sigma-1.5"]),
            ("ae-4", ["own", "smoothed-sigma-1.5"]),
            ("patchcore", ["own"]),
        )
        for seed in (0, 1)
        for score in scores
    ]
    assert sorted((row["data"], row["method"], row["score"], row["seed"]) for row in looks) == sorted(cells)
    assert len({row["test_sha256"] for row in looks}) == 1
    assert all(row["evaluated"] for row in looks)
    out = shutil.copytree(done, tmp_path / "out")
    only = written(tmp_path, methods={"patchcore": SUITE["methods"]["patchcore"]})
    benchmark(only, out, data=disc_folder)
    assert (out / "ledger.csv").read_bytes() == (done / "ledger.csv").read_bytes()
    assert json.loads((out / "summary.json").read_text())["card"]["data"]["discs"]["looks"] == len(cells)
    assert "10 evaluations, listed in ledger.csv" in (out / "report.html").read_text()
    assert "Judged by lesions painted" not in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"datasets": {}}, "datasets is empty"),
        ({"datasets": {"heads": {"phantom": {"train": 20}, "painted": True}}}, "a phantom has findings of its own"),
        ({"datasets": {"x": {"path": "x", "painted": True, "also": [{"path": "y"}]}}}, "the people of one data set"),
        ({"datasets": {"x": {"path": "x", "painted": "foriegn"}}}, "painted: Input should be False, True or .for"),
        ({"methods": {"rra": {}}}, "methods.rra: .*Did you mean 'ra'"),
        ({"methods": {"ra": {"preste": "tiny"}}}, "there is no setting 'methods.ra.preste'"),
        ({"methods": {"ra": {"preset": "slow"}}}, "ra has no preset 'slow'"),
        ({"methods": {"ae": {"set": {"latnet": 4}}}}, "methods.ae: .*Did you mean 'latent'"),
        ({"methods": {"../ae": {"detector": "ae"}}}, "name of a folder"),
        ({"datasets": {"a": {"reader": "rsnaa", "path": "a"}}}, "datasets.a: .*Did you mean 'rsna'"),
        ({"datasets": {"a": {}}}, "needs a path below --data"),
        ({"datasets": {"a": {"path": "a", "also": [{"reader": "ixxi", "path": "b"}]}}}, "datasets.a.also: .*'ixi'"),
        ({"datasets": {"a": {"path": "a", "also": [{"reader": "ixi"}]}}}, "datasets.a.also.0.path"),
        ({"datasets": {"a": {"path": "a", "also": [{"path": ""}]}}}, "datasets.a.also needs a path below --data"),
        (
            {"datasets": {"a": {"path": "a", "also": {"reader": "ixi", "path": "b"}}}},
            "datasets.a.also: Needs a list, got",
        ),
        ({"datasets": {"a": {"path": "a", "also": ["ixi"]}}}, "datasets.a.also.0: Needs settings, got 'ixi'"),
        ({"methods": {"ae": {}, "two": {"of": ["ae", "rae"]}}}, "methods.two.of: no method 'rae' is .*'ae'"),
        ({"methods": {"ae": {}, "two": {"of": ["ae", "ae/own"]}}}, "none of them twice"),
        ({"methods": {"ae": {}, "two": {"of": ["ae"]}}}, "two members or more"),
        ({"methods": {"ae": {}, "two": {"of": ["ae", "ae/squared"]}}}, "ae has no score 'squared' here"),
        ({"methods": {"ae": {}, "two": {"of": ["ae"], "seeds": [0, 7]}}}, "nothing is trained with seed 7"),
        ({"methods": {"ae": {}, "two": {"of": ["ae"], "seeds": [0, 1], "set": {"latent": 2}}}}, "set are theirs"),
        (
            {"methods": {"ae": {}, "two": {"of": ["ae"], "seeds": [0, 1], "preset": "tiny"}}},
            "preset and set are theirs",
        ),
        ({"methods": {"ae": {}, "two": {"of": ["ae/", "ae"]}}}, "ae has no score '' here"),
        (
            {"methods": {"two": {"of": ["ae/own", "pca"]}, "ae": {"preset": "nope"}, "pca": {}}},
            "ae has no preset 'nope'",
        ),
        (
            {"methods": {"two": {"of": ["ae/x", "ae"]}, "ae": {}}, "scores": ["own", {"sigma": 2}]},
            "a score has a name",
        ),
        ({"methods": {"ae": {"seeds": [0, 1]}}}, "methods.ae: seeds are those of an ensemble's members"),
        (
            {"methods": {"ae": {}, "a": {"of": ["ae"], "seeds": [0, 1]}, "b": {"of": ["ae", "a"]}}},
            "no method 'a' is trained",
        ),
        ({"seeds": 0}, "seeds: Needs a list, got 0"),
        ({"methods": {"ae": {"set": 4}}}, "methods.ae.set: Needs settings, got 4"),
        ({"datasets": {"a": {"phantom": {"trian": 5}}}}, "datasets.a.phantom: .*Did you mean 'train'"),
        ({"scores": ["own", {"name": "squard"}]}, "Did you mean 'squared'"),
        ({"scores": ["own", "own"]}, "scores names own twice"),
        ({"scores": [{"sigma": 2}]}, "a score has a name"),
        ({"seeds": [0, 0]}, "seeds names 0 twice"),
        ({"seeds": ["x"]}, "seeds.0"),
        ({"published": ["ra2024 9"]}, "no published table is called 'ra2024 9'"),
        ({"sedes": [0]}, "there is no setting 'sedes'"),
        ({"scores": []}, "scores is empty; name at least one"),
        ({"scores": ["residual"]}, r"yaml: scores\.0: Needs own, or .* such as {name: residual}, got 'residual'"),
        ({"seeds": [0, -1]}, "seeds: a seed is a whole number from 0 to 9223372036854775807, got -1"),
        ({"seeds": [2**63]}, "got 9223372036854775808"),
        ({"published": ["ra2024 3", "ra2024 3"]}, "published names ra2024 3 twice"),
        ({"methods": {"ae": {}, "e": {"of": []}}}, "methods.e.of is empty; an ensemble has two members or more"),
        (
            {"datasets": {"a": {"path": "a", "prepare": {"intensty": "depth"}}}},
            "no setting 'datasets.a.prepare.intensty'. Did you mean 'datasets.a.prepare.intensity'",
        ),
        ({"datasets": {"a": {"path": "a", "prepare": {"lower": -1}}}}, "datasets.a.prepare.lower: .*got -1"),
        ({"datasets": {"a": {"path": "a", "prepare": {"size": 64}}}}, "size is a setting of each method"),
        (
            {"datasets": {"a": {"phantom": {"train": -5}}}},
            "datasets.a.phantom: phantom needs counts .* from 0 up, .*'train': -5",
        ),
        ({"datasets": {"a": {"phantom": {"per_finding": 200_000}}}}, "at most 1000000 pictures"),
        ({"datasets": {"a": {"phantom": {"train": 20.5}}}}, "datasets.a.phantom: train is a whole number, got 20.5"),
        ({"datasets": {"a": {"phantom": {"seed": -1}}}}, "datasets.a.phantom: .*seed from 0 up, .*'seed': -1"),
        ({"datasets": {"a": {"phantom": {"contrast": 0}}}}, r"datasets.a.phantom: .*contrast in \(0, 3\], got 0"),
    ],
)
def test_what_a_suite_cannot_mean_is_named(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        read_suite(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("datasets: {a: {path: a}}\nmethods:\n  pca: {}\n  pca: {preset: tiny}\n", "line 4: 'pca' is there twice"),
        ("datasets:\n  a: {path: a}\n  a: {path: b}\nmethods: {pca: {}}\n", "line 3: 'a' is there twice"),
        ("datasets: {a: {path: a}}\nmethods: {pca: {set: {size: 8, size: 9}}}\n", "line 2: 'size' is there twice"),
        ("seeds: [0]\nseeds: [1]\n", "line 2: 'seeds' is there twice"),
        ("scores: [{name: zscore, name: ssim}]\n", "line 1: 'name' is there twice"),
    ],
)
def test_a_key_that_is_there_twice_is_named_with_its_line(tmp_path, text, said):
    (tmp_path / "twice.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"twice\.yaml .*{said}; keep one of them\.$"):
        read_suite(tmp_path / "twice.yaml")


def test_what_is_merged_may_be_said_otherwise(tmp_path):
    text = "datasets:\n  a: &a {path: a, reader: ixi}\n  b: {<<: *a, path: b}\nmethods: {pca: {}}\n"
    (tmp_path / "merged.yaml").write_text(text)
    datasets = read_suite(tmp_path / "merged.yaml").datasets
    assert [(one.reader, one.path) for one in datasets.values()] == [("ixi", "a"), ("ixi", "b")]


@pytest.mark.parametrize("text", ["- a list", "a: [", "", "\xff"])
def test_what_is_no_suite_is_refused(tmp_path, text):
    (tmp_path / "no.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"no\.yaml"):
        read_suite(tmp_path / "no.yaml")


def test_every_cell_has_its_row_and_every_method_its_line(done):
    found = rows(done)
    ours = [row for row in found if row["seed"]]
    assert [(row["method"], row["score"], row["seed"]) for row in ours if row["seed"] == "0"] == [
        ("ae", "own", "0"),
        ("ae", "smoothed-sigma-1.5", "0"),
        ("ae-4", "own", "0"),
        ("ae-4", "smoothed-sigma-1.5", "0"),
        ("patchcore", "own", "0"),
    ]
    assert len(ours) == 10
    assert {row["method"] for row in found if not row["seed"]} == {
        *("mean intensity", "PCA residual", "PCA + squared", "PCA + smoothed-1.5"),
    }
    for row in ours:
        report = done / "cells" / "discs" / row["method"] / f"seed{row['seed']}" / row["score"] / "report"
        metrics = json.loads((report / "metrics.json").read_text())
        assert float(row["auroc"]) == metrics["overall"]["auroc"]["value"]
        assert row["map"] == metrics["method"]
        assert row["failed"] == ""

    line = next(one for one in without_costs(done)["data"]["discs"] if one["method"] == "ae" and one["score"] == "own")
    values = [float(row["auroc"]) for row in ours if (row["method"], row["score"]) == ("ae", "own")]
    assert line["measures"]["auroc"]["mean"] == pytest.approx(sum(values) / 2, abs=1e-6)
    assert line["measures"]["auroc"]["seed_sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5, abs=1e-6)
    floor = next(row for row in found if row["method"] == "PCA + squared")
    assert line["over_floor"]["value"] == pytest.approx(sum(values) / 2 - float(floor["auroc"]), abs=1e-5)
    low, high = line["over_floor"]["ci95"]
    assert low <= line["over_floor"]["value"] <= high
    for one in without_costs(done)["data"]["discs"]:
        if one["score"]:
            assert one["over_floor"]["same_map"] == (one["method"] != "patchcore"), "it makes its map itself"
    assert (done / "report.html").read_text().count("its residual") == 1
    low, high = line["measures"]["auroc"]["ci95"]
    assert 0 <= low <= line["measures"]["auroc"]["mean"] <= high <= 1


def test_a_floor_that_is_a_method_has_one_line(disc_folder, tmp_path, in_this_process, monkeypatch):
    monkeypatch.setattr("salus.benchmark.measures.REPLICATES", 20)
    methods = {
        "mean-intensity": {"preset": "tiny"},
        "pca": {"preset": "tiny"},  # of 12 components, so another than the floor
        "forty": {"detector": "pca", "preset": "tiny", "set": {"components": 40, "recipe.batch": 48}},
    }
    scores = ["own", {"name": "squared"}]
    benchmark(written(tmp_path, methods=methods, scores=scores, seeds=[0]), tmp_path / "out", data=disc_folder)
    ours = ["forty", "forty", "mean-intensity", "pca", "pca"]  # with own score, and squared
    assert [row["method"] for row in rows(tmp_path / "out")] == ours
    summary = without_costs(tmp_path / "out")
    lines = summary["data"]["discs"]
    assert all(one["over_floor"]["same_map"] for one in lines if one["method"] != "mean-intensity"), "its own residual"
    names = {f"{row['method']} + {row['score']}" for row in rows(tmp_path / "out")}
    assert {frozenset((pair["first"], pair["second"])) for pair in summary["pairs"]["discs"]} == {
        frozenset(two) for two in combinations(names, 2)
    }, "who names a floor wants to see it compared"
    methods.pop("forty")
    benchmark(written(tmp_path, methods=methods, scores=scores, seeds=[0]), tmp_path / "out", data=disc_folder)
    assert [row["method"] for row in rows(tmp_path / "out")] == [*ours[2:], "PCA residual", "PCA + squared"]


def test_another_score_is_judged_on_the_same_training(done):
    cell = done / "cells" / "discs" / "ae" / "seed0"
    weights = [cell / place / "weights.safetensors" for place in ("model", "smoothed-sigma-1.5/model")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_what_is_finished_is_not_done_again_and_more_may_come(done, disc_folder, tmp_path):
    models = {path: path.stat().st_mtime_ns for path in done.rglob("model.json")}
    before, seen = rows(done), []
    suite = written(tmp_path, methods={**SUITE["methods"], "vae": {"preset": "tiny", "set": {"recipe.epochs": 1}}})
    _, failed = benchmark(suite, done, data=disc_folder, on_cell=lambda cell, reason, total: seen.append(cell))
    assert failed == {}
    assert len(seen) == 8
    assert {path: path.stat().st_mtime_ns for path in models} == models
    assert [row for row in rows(done) if row["method"] != "vae"] == before


@pytest.mark.parametrize("changed", [{"format": 1}, {"versions": {"salus": "0"}}])
@pytest.mark.usefixtures("in_this_process")
def test_what_another_version_evaluated_is_evaluated_anew_without_training(
    changed, done, disc_folder, tmp_path, monkeypatch
):
    out = shutil.copytree(done, tmp_path / "out")
    first = sorted(out.rglob("metrics.json"))[0]
    before = first.read_bytes()
    first.write_text(json.dumps({**json.loads(before), **changed, "overall": None}))
    then = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name in ("model.json", "result.json")}
    ended = first.parents[2] / "cell.json"
    cost = json.loads(ended.read_text())
    monkeypatch.setattr("salus.training.half_precision", lambda fabric: True)  # as on another machine
    benchmark(written(tmp_path), out, data=disc_folder)
    assert first.read_bytes() == before
    assert {key: value for key, value in json.loads(ended.read_text()).items() if key != "evaluated"} == {
        key: value for key, value in cost.items() if key != "evaluated"
    }, "what is judged again has cost no training"
    assert {path: path.stat().st_mtime_ns for path in then} == then
    assert all(row["auroc"] for row in rows(out)), "and the tables have it"


def test_a_report_that_was_not_written_to_its_end_is_not_done(done, disc_folder, tmp_path, monkeypatch):
    out = shutil.copytree(done, tmp_path / "out")
    report = sorted(out.rglob("metrics.json"))[0].parent
    whole = {path.name: path.read_bytes() for path in report.iterdir()}
    shutil.rmtree(report)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("salus.benchmark.report.write_report", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(report.parent / "results", disc_folder, report)
    assert [path.name for path in report.iterdir()] == ["cases.csv"], "metrics.json says that all is there"
    assert len(looks(out)) == len(list(out.rglob("metrics.json"))), "and the ledger does without the rest"
    benchmark(written(tmp_path), out, data=disc_folder)
    assert {path.name: path.read_bytes() for path in report.iterdir()} == whole


def test_a_name_that_means_something_else_now_is_refused(done, disc_folder, tmp_path):
    methods = {**SUITE["methods"], "ae": {"preset": "tiny", "set": {"latent": 2}}}
    with pytest.raises(ConfigError, match=r"begun with another methods\.ae"):
        benchmark(written(tmp_path, methods=methods), done, data=disc_folder)


def test_a_suite_from_before_there_were_further_sets_goes_on_and_one_with_others_is_refused(tmp_path):
    path = tmp_path / "suite.json"
    begin(path, "discs", read_suite(written(tmp_path)), tmp_path / "data")
    old = json.loads(path.read_text())
    del old["datasets"]["discs"]["also"], old["datasets"]["discs"]["painted"]
    for method in old["methods"].values():
        del method["of"], method["seeds"]
    path.write_text(json.dumps(old))
    begin(path, "discs", read_suite(written(tmp_path)), tmp_path / "data")
    other = {"discs": {"path": ".", "also": [{"path": "others"}]}}
    with pytest.raises(ConfigError, match=r"begun with another datasets\.discs"):
        begin(path, "discs", read_suite(written(tmp_path, datasets=other)), tmp_path / "data")


def test_a_name_keeps_its_meaning_while_a_suite_does_without_it(tmp_path):
    path = tmp_path / "suite.json"
    begin(path, "discs", read_suite(written(tmp_path)), tmp_path / "data")
    begin(path, "discs", read_suite(written(tmp_path, datasets={"other": {"path": "other"}})), tmp_path / "data")
    with pytest.raises(ConfigError, match=r"begun with another datasets\.discs"):
        begin(
            path,
            "discs",
            read_suite(written(tmp_path, datasets={"discs": {"path": ".", "painted": True}})),
            tmp_path / "data",
        )


@pytest.mark.usefixtures("numbers_only", "in_this_process")
def test_a_cell_learns_from_further_sets_and_is_tested_on_its_own(disc_folder, tmp_path):
    for index, picture in enumerate(discs(20, seed=7)):
        png(tmp_path / "others" / f"{index:03}.png", picture[0])
    (tmp_path / "discs").symlink_to(disc_folder)
    suite = written(
        tmp_path,
        datasets={"discs": {"path": "discs", "also": [{"path": "others"}]}},
        methods={"ae": {"preset": "tiny", "set": {"recipe.epochs": 1}}},
        scores=["own", {"name": "zscore"}],
        seeds=[0],
    )
    _, failed = benchmark(suite, tmp_path / "out", data=tmp_path)
    assert failed == {}
    cell = tmp_path / "out/cells/discs/ae/seed0"
    assert Model.load(cell / "model").card["counts"] == {"train": 48 + 16, "validation": 6 + 2, "calibration": 6}
    counts = json.loads((cell / "zscore/report/metrics.json").read_text())["counts"]
    assert counts["judged"] == counts["test"] == 16


def test_what_judges_together_is_made_of_the_cells_of_others(disc_folder, tmp_path):
    methods = {
        "all": {"of": ["ae", "ae/smoothed-sigma-1.5", "patchcore"]},
        "seeds": {"of": ["ae"], "seeds": [0, 1]},
        "lost": {"of": ["ae", "wild"]},
        "ae": SUITE["methods"]["ae"],
        "patchcore": SUITE["methods"]["patchcore"],
        "wild": {"detector": "ae", "preset": "tiny", "set": {"recipe.learning_rate": 1e30}},
    }
    suite, out = written(tmp_path, methods=methods), tmp_path / "out"
    assert [cell.seed for cell in read_suite(suite).cells if cell.method == "seeds"] == [0]
    _, reasons = benchmark(suite, out, data=disc_folder)
    assert {(name.split(", ")[1], name.split(", ")[3]) for name in reasons} == {
        (method, f"seed {seed}") for method in ("lost", "wild") for seed in (0, 1)
    }
    assert "wild on discs, seed 1 failed, and this is made of it" in reasons["discs, lost, own, seed 1"]
    cells = out / "cells" / "discs"
    members = {name: Model.load(cells / name / "seed0" / "model").card["members"] for name in ("all", "seeds")}
    assert [one["method"] for one in members["all"]][:2] == ["ae + squared", "ae + smoothed-1.5"]
    assert [one["plan"]["seed"] for one in members["seeds"]] == [0, 1]
    weights = [Model.load(cells / "ae" / f"seed{seed}" / "model").detector.state_dict() for seed in (0, 1)]
    both = Model.load(cells / "seeds" / "seed0" / "model").detector.detectors
    for mine, theirs in zip(both, weights, strict=True):
        assert all(value.equal(theirs[name]) for name, value in mine.state_dict().items())
    there = {(row["method"], row["seed"]) for row in rows(out) if row["failed"] == ""}
    assert {("all", "0"), ("all", "1"), ("seeds", "0")} <= there
    assert ("seeds", "1") not in there
    summary = json.loads((out / "summary.json").read_text())
    assert summary["card"]["methods"]["seeds"]["members"] == [
        ["ae + squared, preset tiny, seed 0", "ae + squared, preset tiny, seed 1"]
    ]
    assert "ae + squared, preset tiny, seed 0; ae + squared, preset tiny, seed 1" in (out / "report.html").read_text()
    lines = summary["data"]["discs"]
    one = next(line for line in lines if line["method"] == "seeds")
    assert one["costs"]["seconds"] == pytest.approx(
        sum(json.loads((cells / "ae" / f"seed{seed}" / "cell.json").read_text())["seconds"] for seed in (0, 1)), abs=0.1
    )
    before = {path: path.stat().st_mtime_ns for path in cells.rglob("model.json")}
    benchmark(suite, out, data=disc_folder)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    shutil.rmtree(cells / "ae" / "seed1")
    benchmark(suite, out, data=disc_folder)
    anew = {path.relative_to(cells).parts[:2] for path in before if path.stat().st_mtime_ns != before[path]}
    assert anew == {("ae", "seed1"), ("all", "seed1"), ("seeds", "seed0")}


@pytest.mark.usefixtures("numbers_only", "in_this_process")
def test_members_judge_with_their_own_score_whatever_the_suite_asks_for(disc_folder, tmp_path):
    methods = {
        "auto": {"detector": "ae", "preset": "tiny", "set": {"recipe.epochs": 1, "latent": "auto"}},
        "pca": {"preset": "tiny"},
        "both": {"of": ["auto", "pca/own"]},
    }
    suite = written(tmp_path, methods=methods, scores=[{"name": "ssim"}], seeds=[0])
    _, reasons = benchmark(suite, tmp_path / "out", data=disc_folder)
    assert not reasons
    card = Model.load(tmp_path / "out/cells/discs/both/seed0/model").card
    assert [one["method"] for one in card["members"]] == ["ae + squared", "pca + residual"]


def test_random_trunks_may_judge_together(tmp_path):
    methods = {name: {"detector": "mkd", "preset": "tiny", "set": {"teacher": "random"}} for name in ("one", "two")}
    suite = read_suite(written(tmp_path, methods={**methods, "both": {"of": ["one", "two"]}}))
    assert len(suite.cells) == 6
    with pytest.raises(ConfigError, match=r"sees with a random trunk"):
        read_suite(written(tmp_path, methods={**methods, "ae": {}, "both": {"of": ["one", "ae"]}}))


def test_a_cell_that_fails_is_a_row_with_its_reason_and_is_tried_again(salus, disc_folder, tmp_path):
    methods = {
        "ae": {"preset": "tiny", "set": {"recipe.epochs": 1}},
        "wild": {"detector": "ae", "preset": "tiny", "set": {"recipe.learning_rate": 1e30}},
    }
    suite = written(
        tmp_path, methods=methods, scores=["own"], seeds=[0], datasets={**SUITE["datasets"], "gone": {"path": "gone"}}
    )
    code, said, _ = salus("benchmark", suite, "--out", tmp_path / "out", "--data", disc_folder, "--json")
    assert code == 3
    failed = json.loads(said)["failed"]
    assert set(failed) == {"discs, wild, own, seed 0", "gone, ae, own, seed 0", "gone, wild, own, seed 0"}
    assert "diverged" in failed["discs, wild, own, seed 0"]
    assert str(tmp_path) not in said.replace(json.loads(said)["report"], "")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "3 rows failed" in page
    assert "diverged" in page
    assert [row["failed"] != "" for row in rows(tmp_path / "out") if row["data"] == "gone"] == [True, True]

    ended = tmp_path / "out" / "cells" / "discs" / "wild" / "seed0" / "cell.json"
    before = ended.stat().st_mtime_ns
    salus("benchmark", suite, "--out", tmp_path / "out", "--data", disc_folder)
    assert ended.stat().st_mtime_ns > before


def test_weights_that_are_missing_cost_their_rows_alone(disc_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SALUS_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    methods = {"ae": {"preset": "tiny", "set": {"recipe.epochs": 1}}}
    suite = written(tmp_path, methods=methods, scores=["own", {"name": "equation5", "trunk": "squeezenet"}], seeds=[0])
    _, failed = benchmark(suite, tmp_path / "out", data=disc_folder)
    assert list(failed) == ["discs, ae, equation5-trunk-squeezenet, seed 0"]
    assert "pretrained weights are missing" in failed["discs, ae, equation5-trunk-squeezenet, seed 0"]


def test_a_killed_cell_is_a_red_row(tmp_path, disc_folder):
    from salus.engines import local

    ended = dict(local.each(die, [1, 2], workers=2, preload="salus.core"))
    assert ended[1] == ""
    assert ended[2] == f"its process was killed by signal {int(signal.SIGKILL)}"


def test_many_short_processes_come_to_their_end():
    from salus.engines import local

    # Over at once, so that many end while others start.
    ended = dict(local.each(math.sqrt, range(100), workers=8, preload="math"))
    assert ended == dict.fromkeys(range(100), "")


def test_a_cell_that_had_ended_is_finished_however_its_process_left(tmp_path, disc_folder, monkeypatch):
    def leaving(run, left, workers):
        for work in left:
            run(work)
            yield work, "its process ended with code 255"

    monkeypatch.setitem(ENGINES, "local", leaving)
    methods = {"patchcore": {"preset": "tiny"}}
    assert benchmark(written(tmp_path, methods=methods, seeds=[0]), tmp_path / "out", data=disc_folder)[1] == {}


def die(item: int) -> None:
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_benchmark_killed_at_random_moments_ends_as_one_that_was_not(done, disc_folder, tmp_path):
    suite, out = written(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "salus.cli", "benchmark", suite, "--out", out, "--data", disc_folder]
    moment = random.Random(0)
    for cells in (0, 0, 1):  # finished before the kill, at least
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Ten kills, on suites/smoke.yaml, are in benchmarks/killed_suite.py.
        # By what is written, not by the clock: a busy machine would be killed before it began.
        enough = files(out) + moment.randint(1, 60)
        while process.poll() is None and (files(out) < enough or len(list(out.glob("cells/*/*/*/cell.json"))) < cells):
            time.sleep(0.02)
        process.kill()
        process.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("cell.json")}
    assert finished, "nothing was there to be done again"
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    mine = {row["method"] for row in rows(out)}
    assert mine >= SUITE["methods"].keys()
    assert rows(out) == [row for row in rows(done) if row["method"] in mine]
    undisturbed = [line for line in without_costs(done)["data"]["discs"] if line["method"] in mine]
    assert without_costs(out)["data"]["discs"] == undisturbed
    cases = [path.relative_to(out) for path in out.glob("cells/*/*/*/*/report/cases.csv")]
    assert len(cases) == 2 * (2 * 2 + 1), "two scores of two methods, and one with its own alone"
    assert [path for path in cases if (out / path).read_bytes() != (done / path).read_bytes()] == []


@pytest.mark.slow
def test_cells_on_ray_give_the_tables_of_cells_here(done, disc_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    benchmark(written(tmp_path), tmp_path / "out", data=disc_folder, engine="ray", workers=2)
    mine = {row["method"] for row in rows(tmp_path / "out")}
    assert mine >= SUITE["methods"].keys()
    assert rows(tmp_path / "out") == [row for row in rows(done) if row["method"] in mine]


def files(folder: Path) -> int:
    """How much of a benchmark is there."""
    return sum(len(names) for *_, names in os.walk(folder / "cells"))


def leave(item: int) -> None:
    if item == 2:
        os._exit(3)


def test_ray_runs_each_piece_of_work_and_tells_which_died(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    from salus.engines import ray

    ended = dict(ray.each(leave, [1, 2, 3], workers=1))
    assert ended[1] == ended[3] == ""
    assert ended[2].startswith("its process ended")


def test_the_most_memory_is_in_mib_and_unknown_on_windows(monkeypatch):
    known = peak_mib()
    assert 50 < known < 100_000
    monkeypatch.setattr(sys, "platform", "darwin")
    assert 50 < 1024 * peak_mib() < 100_000  # the same number would be bytes there
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_mib() is None
