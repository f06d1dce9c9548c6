"""What would make numbers lie is refused, with a sentence that says what to do; what was there before stays."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
import yaml

from salus.benchmark import evaluate
from salus.benchmark.rows import Row
from salus.benchmark.suite import Method, Suite, check
from salus.benchmark.tables import grouped
from salus.core import Split
from salus.core.errors import ConfigError, LayoutError
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.detectors import DETECTORS, detector_class
from salus.screening import screen
from salus.threshold import calibrate
from salus.training import train
from salus.training.plan import RANDOM

pytestmark = pytest.mark.usefixtures("numbers_only", "in_this_process")
AE = {"preset": "tiny", "set": {"recipe.epochs": 1}}


def learned(data: Path, out: Path) -> Path:
    return train("ae", data, out, preset="tiny", epochs=1).folder


@pytest.fixture(scope="module")
def model(disc_folder, tmp_path_factory) -> Path:
    return learned(disc_folder, tmp_path_factory.mktemp("wrong") / "model")


@pytest.fixture
def measured(tmp_path):
    """Screens a data set with a model and evaluates, in the test's folder; returns metrics.json."""

    def run(model: Path, data: Path) -> dict:
        screen([data], model=model, out=tmp_path / "results", dataset="folder")
        evaluate(tmp_path / "results", data, tmp_path / "report")
        return json.loads((tmp_path / "report" / "metrics.json").read_text())

    return run


@pytest.mark.parametrize("part", ["good", "hole"])
def test_a_threshold_set_on_test_cases_is_refused(part, model, disc_folder, measured, tmp_path):
    copy = shutil.copytree(model, tmp_path / "model")
    before = measured(copy, disc_folder)
    calibrate(copy, disc_folder / "test" / part, device="cpu")
    with pytest.raises(LayoutError, match="The model's threshold was set on 8 of the 16 test cases"):
        measured(copy, disc_folder)
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == before


def test_a_model_that_learned_from_test_cases_is_refused(disc_folder, measured, tmp_path):
    model = learned(disc_folder / "test" / "good", tmp_path / "model")
    with pytest.raises(LayoutError, match=r"The model learned from 6 of the 16 test cases .* such as test/good/00"):
        measured(model, disc_folder)


def named(data: Path, names: dict[str, str]) -> Path:
    """`data` with patient ids of some files."""
    rows = "".join(f"{file},{patient}\n" for file, patient in names.items())
    (data / "metadata.csv").write_text("file,patient_id\n" + rows)
    return data


def in_part(part: Split, data: Path) -> str:
    """The id of a patient of `data` who is put into a part of it."""
    for patient in (f"patient-{number}" for number in range(1000)):
        named(data, {"train/good/000.png": patient})
        if any(case.patient_id == patient for case in split(open_dataset("folder", data)).only(split=part)):
            return patient
    raise AssertionError(f"nobody is put into {part}")


@pytest.mark.parametrize("part", [Split.TRAIN, Split.VALIDATION, Split.CALIBRATION])
def test_a_patient_known_to_the_model_from_another_folder_is_refused(part, model, disc_folder, measured, tmp_path):
    mine, test = shutil.copytree(disc_folder, tmp_path / "here"), tmp_path / "there"
    shutil.copytree(disc_folder / "test", test / "test")
    patient = in_part(part, mine)
    named(test, {"test/hole/000.png": patient, "test/hole/001.png": patient})
    measured(model, test)  # of people without names
    known = learned(mine, tmp_path / "m")
    assert patient not in (known / "model.json").read_text()
    what = "model learned from" if part == Split.TRAIN else "threshold was set on"
    said = rf"{what} 2 of the 16 test cases .* such as test/hole/000, patient '{patient}'\."
    with pytest.raises(LayoutError, match=said):
        measured(known, test)
    named(test, {"test/hole/000.png": "another", "test/hole/001.png": "another"})
    measured(known, test)


def test_a_patient_learned_from_does_not_set_the_threshold(disc_folder, tmp_path):
    mine, healthy = (shutil.copytree(disc_folder, tmp_path / name) for name in ("here", "healthy"))
    patient = in_part(Split.TRAIN, mine)
    known, healthy = learned(mine, tmp_path / "m"), healthy / "test" / "good"
    named(healthy, {"003.png": patient})
    with pytest.raises(LayoutError, match=r"from 1 of 8 images .* or from others of their patients, such as 003"):
        calibrate(known, healthy, device="cpu")
    named(healthy, {"003.png": "another"})
    calibrate(known, healthy, device="cpu")


def test_copies_across_the_parts_of_a_data_set_are_told(disc_folder, measured, tmp_path):
    data = shutil.copytree(disc_folder, tmp_path / "data")
    for name in ("000.png", "001.png"):
        shutil.copy(data / "train" / "good" / name, data / "test" / "good" / f"again{name}")
    assert any("copies of 2 of the 18 cases" in note for note in measured(learned(data, tmp_path / "m"), data)["notes"])


def test_a_patient_in_train_and_test_is_a_row_with_its_reason(salus, disc_folder, tmp_path):
    torn = shutil.copytree(disc_folder, tmp_path / "torn")
    (torn / "metadata.csv").write_text("file,patient_id\ntrain/good/000.png,p1\ntest/hole/000.png,p1\n")
    suite = tmp_path / "suite.yaml"
    sets = {"torn": {"path": "torn"}, "whole": {"path": str(disc_folder)}}
    suite.write_text(yaml.safe_dump({"datasets": sets, "methods": {"ae": AE}}))
    code, said, _ = salus("benchmark", suite, "--out", tmp_path / "out", "--json")
    assert code == 3
    (failed,) = json.loads(said)["failed"].items()
    assert failed[0] == "torn, ae, own, seed 0"
    assert "patient 'p1' is in two splits, test and train" in failed[1]
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        auroc = {row["data"]: row["auroc"] for row in csv.DictReader(file) if row["seed"]}
    assert auroc["torn"] == ""
    assert 0 <= float(auroc["whole"]) <= 1


def test_other_cases_under_the_name_of_a_data_set_are_refused(salus, disc_folder, tmp_path):
    first, second = (shutil.copytree(disc_folder, tmp_path / name / "discs") for name in ("first", "second"))
    (second / "test" / "hole" / "000.png").unlink()
    suite = tmp_path / "suite.yaml"
    text = {"datasets": {"discs": {"path": "discs"}}, "methods": {"pca": {}}, "seeds": [0]}
    suite.write_text(yaml.safe_dump(text))
    run = ("benchmark", suite, "--out", tmp_path / "out", "--data")
    assert salus(*run, first.parent)[0] == 0
    before = (tmp_path / "out" / "summary.json").read_bytes()
    suite.write_text(yaml.safe_dump({**text, "seeds": [0, 1]}))
    code, _, said = salus(*run, second.parent)
    assert code == 2
    assert "was begun with other cases of datasets.discs than" in " ".join(said.split())
    assert (tmp_path / "out" / "summary.json").read_bytes() == before
    first.parent.rename(tmp_path / "moved")
    assert salus(*run, tmp_path / "moved")[0] == 0, "where they lie does not matter"


@pytest.mark.parametrize(
    ("cases", "learned", "said"),
    [("ab", "xx", "were tested on"), ("aa", "xy", "learned from")],
)
def test_rows_of_other_people_are_no_rows_of_one_table(cases, learned, said, tmp_path):
    rows = []
    for seed, (case, sha) in enumerate(zip(cases, learned, strict=True)):
        folder = tmp_path / str(seed)
        (folder / "results").mkdir(parents=True)
        (folder / "report").mkdir()
        (folder / "results" / "run.json").write_text(json.dumps({"card": {"manifest_sha256": sha}}))
        (folder / "report" / "cases.csv").write_text(f"case_id,patient_id,label\n{case},p,normal\n")
        rows.append(Row(data="discs", method="ae", score="own", seed=seed, map="ae + a", folder=folder))
    grouped(rows[:1], "discs")
    with pytest.raises(LayoutError, match=f"discs: ae, seed 0 and ae, seed 1 {said} different cases"):
        grouped(rows, "discs")


def test_thresholds_of_other_numbers_of_people_are_no_row(tmp_path):
    rows = []
    for seed, people in enumerate((6, 12)):
        folder = tmp_path / str(seed)
        (folder / "results").mkdir(parents=True)
        (folder / "report").mkdir()
        (folder / "results" / "run.json").write_text(json.dumps({"card": {}}))
        (folder / "report" / "cases.csv").write_text("case_id,patient_id,label\na,p,normal\n")
        metrics = {"calibration_cases": people}
        rows.append(Row(data="discs", method="ae", score="own", seed=seed, map="a", folder=folder, metrics=metrics))
    grouped(rows[:1], "discs")
    with pytest.raises(LayoutError, match=r"discs, ae, own: thresholds of 12 and of 6 people in one row"):
        grouped(rows, "discs")


def test_maps_of_different_names_share_no_row():
    rows = [Row(data="discs", method="ae", score="own", seed=k, map=f"ae + {name}") for k, name in enumerate("ab")]
    with pytest.raises(LayoutError, match=r"one row of ae \+ a and ae \+ b\. Use another --out"):
        grouped(rows, "discs")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {"weights": "random", "trunk": "alexnet"}) for name in ("patchcore", "padim", "knn")),
        ("mkd", {"teacher": "random"}),
    ],
)
def test_random_trunks_do_not_stand_beside_others(name, settings):
    methods = {"blind": Method(detector=name, preset="tiny", set=settings)}
    suite = Suite(datasets={"heads": {"phantom": {}}}, methods=methods)
    check(suite)
    check(dataclasses.replace(suite, methods={**methods, "pca": Method()}))
    with pytest.raises(ConfigError, match=r"blind sees with a random trunk, ae does not: .* random-features"):
        check(dataclasses.replace(suite, methods={**methods, "ae": Method()}))


@pytest.mark.parametrize("floor", ["pca", "mean-intensity"])
def test_random_trunks_do_not_judge_together_with_others(floor):
    methods = {"blind": Method(detector="padim", preset="tiny", set={"weights": "random", "trunk": "alexnet"})}
    methods |= {floor: Method(), "random-features": Method(preset="tiny")}
    suite = Suite(datasets={"heads": {"phantom": {}}}, methods={**methods, "both": Method(of=("blind", floor))})
    with pytest.raises(ConfigError, match=f"both: blind sees with a random trunk, {floor} does not; they cannot judge"):
        check(suite)
    check(dataclasses.replace(suite, methods={**methods, "both": Method(of=("blind", "random-features"))}))


@pytest.mark.parametrize("name", DETECTORS)
def test_every_setting_that_makes_a_trunk_random_is_known(name):
    fields = dataclasses.fields(detector_class(name).Config)
    random = {field.name for field in fields if "random" in get_args(field.type)}
    assert random - {"test_masks"} <= set(RANDOM)  # `mae` draws its masks


def test_random_features_are_a_floor_by_their_name(salus, disc_folder, tmp_path):
    suite = tmp_path / "suite.yaml"
    methods = {"ae": AE, "random-features": {"preset": "tiny", "set": {"trunk": "alexnet", "enlarge": 32}}}
    suite.write_text(yaml.safe_dump({"datasets": {"discs": {"path": "."}}, "methods": methods}))
    code, said, _ = salus("benchmark", suite, "--data", disc_folder, "--out", tmp_path / "out")
    assert code == 0, said
    lines = json.loads((tmp_path / "out" / "summary.json").read_text())["data"]["discs"]
    assert {(line["method"], line["map"]) for line in lines if line["floor"] and line["score"]} == {
        ("random-features", "random-features + alexnet-random")
    }


def test_one_class_has_no_auroc_and_says_so(model, disc_folder, measured, tmp_path, salus):
    data = shutil.copytree(disc_folder, tmp_path / "data", ignore=shutil.ignore_patterns("hole"))
    found = measured(model, data)
    assert found["overall"]["auroc"] is None
    assert "No AUROC: all 8 judged cases are normal." in found["notes"]
    code, said, _ = salus("evaluate", tmp_path / "results", "--data", data, "--out", tmp_path / "report")
    assert code == 0
    assert "No AUROC: all 8" in said
