"""What is watched is what is learned: the numbers of train.csv, each once, and nothing is learned otherwise."""

import csv
import json
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from salus.core.errors import ConfigError, StorageError
from salus.training import train
from salus.training.tracking import TRACKED, tracker

Steps = dict[str, list[tuple[int, float]]]  # of each number, its values in the order in which they are shown


def events(folder: Path) -> Steps:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(folder))
    seen.Reload()
    return {name: [(event.step, event.value) for event in seen.Scalars(name)] for name in seen.Tags()["scalars"]}


def runs(kept: Path) -> Steps:
    from mlflow import MlflowClient

    there = json.loads(kept.read_bytes())
    client = MlflowClient(there["where"])
    names = client.get_run(there["run"]).data.metrics
    return {
        name: sorted((metric.step, metric.value) for metric in client.get_metric_history(there["run"], name))
        for name in names
    }


@pytest.fixture(params=["folder", "uri"])
def where(request, tmp_path) -> str:
    """Of TensorBoard, and of MLflow."""
    return str(tmp_path / "seen") if request.param == "folder" else (tmp_path / "mlruns").as_uri()


def shown(where: str, name: str, out: Path) -> Steps:
    return runs(out / TRACKED) if where.startswith("file:") else events(Path(where) / name)


def rows(out: Path) -> Steps:
    """train.csv in the same shape."""
    with (out / "train.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    return {
        name: [(int(row["epoch"]), pytest.approx(float(row[name]))) for row in table if row[name]]
        for name in table[0]
        if name != "epoch"
    }


def test_what_is_watched_is_train_csv_and_changes_nothing(salus, where, disc_folder, tmp_path):
    plain = train("ae", disc_folder, tmp_path / "plain", preset="tiny", epochs=3).folder
    command = ("train", "ae", "--data", disc_folder, "--preset", "tiny", "--epochs", 3)
    code, _, err = salus(*command, "--out", tmp_path / "seen-ae", "--track", where)
    assert code == 0, err
    assert shown(where, "seen-ae", tmp_path / "seen-ae") == rows(tmp_path / "seen-ae")
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (tmp_path / "seen-ae", plain))
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_settings_are_told(where, disc_folder, tmp_path):
    with tracker(where, "m", tmp_path / "m") as tracked:
        train("ae", disc_folder, tmp_path / "m", preset="tiny", epochs=1, settings={"latent": 5}, tracked=tracked)
    if where.startswith("file:"):
        from mlflow import MlflowClient

        run = MlflowClient(where).get_run(json.loads((tmp_path / "m" / TRACKED).read_bytes())["run"])
        assert (run.data.params["settings.latent"], run.data.params["recipe.epochs"]) == ("5", "1")
        assert (run.info.run_name, run.info.status) == ("m", "FINISHED")
    else:
        assert any(b'"latent": 5' in file.read_bytes() for file in (tmp_path / "seen" / "m").iterdir())


def test_two_models_of_one_name_are_two_runs(where, disc_folder, tmp_path):
    for place, epochs in (("a", 3), ("b", 1)):
        out = tmp_path / place / "m"
        with tracker(where, "m", out) as tracked:
            train("ae", disc_folder, out, preset="tiny", epochs=epochs, tracked=tracked)
    assert shown(where, "m", tmp_path / "a" / "m") == rows(tmp_path / "a" / "m")
    assert shown(where, "m-2", tmp_path / "b" / "m") == rows(tmp_path / "b" / "m")


@pytest.mark.parametrize("told", [True, False])
def test_a_training_that_goes_on_tells_no_step_twice_and_leaves_none_out(
    told, where, disc_folder, tmp_path, monkeypatch
):
    out, how = tmp_path / "m", {"preset": "tiny", "epochs": 4, "resume": True}
    first = tracker(where, "m", out)
    tell = first.log

    def killed(rows):
        if told or len(rows) < 2:
            tell(rows)
        if len(rows) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(first, "log", killed)
    with pytest.raises(KeyboardInterrupt):
        train("ae", disc_folder, out, **how, tracked=first)
    with tracker(where, "m", out) as tracked:
        train("ae", disc_folder, out, **how, tracked=tracked)
    assert shown(where, "m", out) == rows(out)
    assert [step for step, _ in shown(where, "m", out)["validation"]] == [1, 2, 3, 4]


@pytest.mark.parametrize(("module", "at"), [("torch.utils.tensorboard", "seen"), ("mlflow", "http://127.0.0.1:9")])
def test_a_missing_package_is_named_before_anything_is_trained(salus, module, at, disc_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = salus("train", "ae", "--data", disc_folder, "--out", tmp_path / "m", "--track", at)
    assert code == 2
    assert "pip install '.[tracking]'" in err
    assert not (tmp_path / "m").exists()


def test_an_mlflow_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"No MLflow takes runs at http://127\.0\.0\.1:9"):
        tracker("http://127.0.0.1:9", "m", tmp_path)


def test_a_uri_that_mlflow_does_not_know_is_named_in_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"^MLflow knows no nope://: track to a folder, .*PORT\.$") as error:
        tracker("nope://x", "m", tmp_path)
    assert len(str(error.value)) < 100


def test_a_password_is_not_taken_in_a_uri(tmp_path):
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_USERNAME and _PASSWORD") as error:
        tracker("http://me:secret@localhost:5000", "m", tmp_path)
    assert "secret" not in str(error.value)


def test_what_is_not_taken_stops_a_training_that_can_go_on(where, disc_folder, tmp_path, monkeypatch):
    out, how = tmp_path / "m", {"preset": "tiny", "epochs": 2, "resume": True}
    with tracker(where, "m", out) as tracked:
        monkeypatch.setattr(tracked, "write", lambda rows: 1 / 0)
        with pytest.raises(StorageError, match="--resume goes on"):
            train("ae", disc_folder, out, **how, tracked=tracked)
    assert train("ae", disc_folder, out, **how).run.epoch == 2


@pytest.mark.slow
def test_a_benchmark_tells_of_each_cell_and_of_what_it_measured(salus, where, disc_folder, tmp_path):
    methods = {"ae": {"preset": "tiny", "set": {"recipe.epochs": 2}}}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"datasets": {"discs": {"path": "."}}, "methods": methods}))
    command = ("benchmark", tmp_path / "suite.yaml", "--data", disc_folder, "--out", tmp_path / "out", "--track", where)
    for _ in range(2):  # the second time there is nothing to do
        code, said, _ = salus(*command)
        assert code == 0, said
    cell = tmp_path / "out" / "cells" / "discs" / "ae" / "seed0"
    seen = shown(where, "discs/ae/seed0", cell)
    overall = json.loads((cell / "own" / "report" / "metrics.json").read_text())["overall"]
    assert seen["own/auroc"] == [(3, pytest.approx(overall["auroc"]["value"]))]
    assert {name: seen[name] for name in rows(cell / "model")} == rows(cell / "model")
