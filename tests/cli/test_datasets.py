"""Every data set, laid out as distributed, goes through the commands."""

import json
from importlib import import_module

import pytest

from tests.datasets.layouts import ABNORMAL, LAYOUTS


def one_class(name):
    """Whether a layout's module says that there is nobody ill to measure on."""
    return getattr(import_module(LAYOUTS[name].__module__), "ONE_CLASS", False)


def abnormal_only(name):
    """Whether a layout's module says that there is nobody healthy to learn from."""
    return getattr(import_module(LAYOUTS[name].__module__), "ABNORMAL_ONLY", False)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if not abnormal_only(name)])
def test_a_download_is_learned_from_screened_and_measured(name, salus, tmp_path):
    data, model, results, report = (tmp_path / part for part in ("data", "model", "results", "report"))
    LAYOUTS[name](data)
    at = ("--data", data, "--dataset", name)
    code, out, err = salus("train", "ae", *at, "--out", model, "--preset", "tiny", "--epochs", 1)
    assert code == 0, err + out
    code, out, err = salus("screen", data, "--dataset", name, "--model", model, "--out", results)
    assert "CANNOT_JUDGE: " not in err, err
    if one_class(name):
        assert code == 0, err + out
        return
    code, out, err = salus("evaluate", results, *at, "--out", report)
    assert code == 0, err + out
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["overall"]["auroc"] is not None
    assert metrics["counts"]["judged"] == metrics["counts"]["test"] > ABNORMAL
    assert metrics["overall"]["n_abnormal"] >= ABNORMAL


@pytest.mark.parametrize("name", [name for name in LAYOUTS if abnormal_only(name)])
def test_a_test_set_is_screened_with_a_model_of_another_set(name, salus, tmp_path):
    data, other, model, results, report = (tmp_path / part for part in ("data", "other", "model", "results", "report"))
    LAYOUTS[name](data)
    LAYOUTS["padchest"](other)
    how = ("--out", model, "--preset", "tiny", "--epochs", 1)
    code, _, err = salus("train", "ae", "--data", data, "--dataset", name, *how)
    assert code == 2
    assert "0 healthy patients" in err
    code, out, err = salus("train", "ae", "--data", other, "--dataset", "padchest", *how)
    assert code == 0, err + out
    code, out, err = salus("screen", data, "--dataset", name, "--model", model, "--out", results)
    assert code == 0, err + out
    code, out, err = salus("evaluate", results, "--data", data, "--dataset", name, "--out", report)
    assert code == 0, err + out
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["overall"]["auroc"] is None  # nobody healthy to tell them from
    assert metrics["overall"]["n_abnormal"] == metrics["counts"]["judged"] == metrics["counts"]["test"] >= ABNORMAL


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_a_copy_holds_is_told(name, salus, tmp_path):
    LAYOUTS[name](tmp_path)
    code, out, _ = salus("datasets", name, tmp_path)
    assert code == 0
    assert ("not yet split, normal" if one_class(name) else "test, abnormal") in out
    assert "published" in out  # a handful of images is not the whole
