"""Every data set, laid out as distributed, goes through the commands."""

import json

import pytest

from tests.datasets.layouts import ABNORMAL, LAYOUTS


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_download_is_learned_from_screened_and_measured(name, salus, tmp_path):
    data, model, results, report = (tmp_path / part for part in ("data", "model", "results", "report"))
    LAYOUTS[name](data)
    at = ("--data", data, "--dataset", name)
    code, out, err = salus("train", "ae", *at, "--out", model, "--preset", "tiny", "--epochs", 1)
    assert code == 0, err + out
    code, out, err = salus("screen", data, "--dataset", name, "--model", model, "--out", results)
    assert "CANNOT_JUDGE: " not in err, err
    code, out, err = salus("evaluate", results, *at, "--out", report)
    assert code == 0, err + out
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["overall"]["auroc"] is not None
    assert metrics["counts"]["judged"] == metrics["counts"]["test"] > ABNORMAL
    assert metrics["overall"]["n_abnormal"] >= ABNORMAL


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_a_copy_holds_is_told(name, salus, tmp_path):
    LAYOUTS[name](tmp_path)
    code, out, _ = salus("datasets", name, tmp_path)
    assert code == 0
    assert "test, abnormal" in out
    assert "published" in out  # a handful of images is not the whole
