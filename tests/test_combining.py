"""`salus combine`: several models as one."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from salus.core import Label, Split
from salus.core.errors import ConfigError
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.detectors import build
from salus.io import read_study, study_sha256
from salus.io.results import read_results
from salus.model import Model, detections
from salus.preprocess.cache import PreparedCache
from salus.threshold import calibration_of, people
from salus.training import rescored, train
from salus.training.combining import combine
from salus.training.plan import at_random
from tests.conftest import discs

MEMBERS = [
    {"detector": "pca", "settings": {"size": 32, "components": 4}, "score": {"name": "residual"}},
    {"detector": "mean-intensity", "settings": {"size": 32}},
]


@pytest.fixture(scope="module")
def models(disc_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("members")
    for seed in (0, 1):
        train("ae", disc_folder, root / f"ae{seed}", preset="tiny", epochs=4, seed=seed, precision="fp32")
    train("pca", disc_folder, root / "pca", preset="tiny")
    train("padim", disc_folder, root / "padim", preset="tiny")
    return root


@pytest.fixture(scope="module")
def both(models, disc_folder):
    combine([models / "ae0", models / "pca"], disc_folder, models / "both")
    return models / "both"


def test_maps_and_scores_are_means_in_units_of_healthy_images_by_hand():
    net = build("ensemble", {"size": 32, "members": MEMBERS}, {})
    maps = torch.zeros(2, 3, 1, 10, 20)
    maps[0, :, 0, 0, :2] = torch.tensor([[1.0, 3], [2, 2], [4, 0]])  # the highest 1 % of 200 pixels are two
    maps[1, :, 0, 5, 5:7] = 10.0
    net.settle([(maps[0], torch.tensor([1.0, 2, 3])), (maps[1], torch.tensor([10.0, 10, 40]))])
    assert net.highest.tolist() == [2, 10]
    assert net.middle.tolist() == [2, 20]
    assert net.spread.tolist() == pytest.approx([1, 300**0.5])
    x = torch.from_numpy(discs(2))
    seen = net.detect(x)
    first, second = (one.detect(x) for one in net.detectors)
    torch.testing.assert_close(seen.map, (first.map / 2 + second.map / 10) / 2)
    torch.testing.assert_close(seen.score, ((first.score - 2) + (second.score - 20) / 300**0.5) / 2)
    assert seen.restored is None, "one of them restores nothing"


def test_two_equal_members_judge_as_one_of_them_alone(models, disc_folder, tmp_path):
    model = Model.load(models / "ae0")
    replace(model, card={**model.card, "plan": {**model.card["plan"], "seed": 7}}).save(tmp_path / "other")
    twice = combine([models / "ae0", tmp_path / "other"], disc_folder, tmp_path / "twice")
    x = discs(20, hole=True, seed=3)
    one, two = (detections(judge.detector, x) for judge in (model, twice))
    unit, middle, spread = (float(getattr(twice.detector, name)[0]) for name in ("highest", "middle", "spread"))
    np.testing.assert_allclose(two[0] * unit, one[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(two[1] * spread + middle, one[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(two[2], one[2], rtol=1e-6, atol=1e-7)
    own = split(open_dataset("folder", disc_folder)).only(split=Split.CALIBRATION, label=Label.NORMAL)
    model = replace(model, calibration=calibration_of(model, own)[0])  # whom the units did not come from
    assert model.calibration.scores != twice.calibration.scores
    ranks = [[judge.calibration.p_value(s) for s in found[1]] for found, judge in ((one, model), (two, twice))]
    assert ranks[0] == ranks[1]


def test_a_training_counts_once_however_many_scores_judge_with_it(models, disc_folder, tmp_path):
    rescored(models / "ae0", {"name": "residual"}, disc_folder, tmp_path / "residual")
    one, other = (Model.load(folder).card for folder in (models / "ae0", models / "ae1"))
    made = combine([models / "ae0", tmp_path / "residual"], disc_folder, tmp_path / "scores")
    assert made.card["parameters"] == one["parameters"]
    assert made.card["run"]["seconds"] == one["run"]["seconds"]
    made = combine([models / "ae0", models / "ae1"], disc_folder, tmp_path / "seeds")
    assert made.card["parameters"] == one["parameters"] + other["parameters"]
    assert made.card["run"]["seconds"] == one["run"]["seconds"] + other["run"]["seconds"]


@pytest.mark.parametrize("calibrated", [0, 1])
def test_what_a_member_was_calibrated_on_is_not_the_ensembles(calibrated, salus, models, disc_folder, tmp_path):
    names, members = ("ae0", "pca"), []
    for name in names:
        members.append(shutil.copytree(models / name, tmp_path / name))
    hospital = tmp_path / "hospital"
    hospital.mkdir()
    for index, picture in enumerate(discs(24, seed=11)):
        Picture.fromarray(np.round(picture[0] * 255).astype(np.uint8)).save(hospital / f"{index}.png")
    code, _, _ = salus("calibrate", members[calibrated], "--data", hospital, "--false-alarms", 0.2)
    assert code == 0
    first = Model.load(members[0])
    card = {**first.card, "learned_from": first.card["learned_from"][1:]}  # as of one that knew fewer
    replace(first, card=card).save(members[0])
    theirs = Model.load(members[calibrated]).card["calibrated_on"]
    assert len(theirs) == 24
    made = combine(members, disc_folder, tmp_path / "both")
    held = split(open_dataset("folder", disc_folder)).only(label=Label.NORMAL)
    own, units = (people("folder", held.only(split=part)) for part in (Split.CALIBRATION, Split.VALIDATION))
    assert made.card["calibrated_on"] == sorted(own)
    assert set(theirs).isdisjoint(made.card["calibrated_on"])
    assert made.card["fitted_on"] == sorted(units)
    assert set(units).isdisjoint(own)
    assert made.card["learned_from"] == first.card["learned_from"], "all that one of them knows"
    assert made.calibration.false_alarms == 0.05
    assert len(made.calibration.scores) == Model.load(members[1 - calibrated]).card["counts"]["calibration"]


def test_the_units_come_from_validation_people_alone(both, models, disc_folder):
    made = Model.load(both)
    held = split(open_dataset("folder", disc_folder)).only(split=Split.VALIDATION, label=Label.NORMAL)
    rows = PreparedCache().prepare(held, made.preparation, read_study, study_sha256).rows
    for index, name in enumerate(("ae0", "pca")):
        maps, scores, _ = detections(Model.load(models / name).detector, rows)
        top = np.sort(maps.reshape(len(maps), -1), axis=1)[:, -10:].mean()
        assert float(made.detector.highest[index]) == pytest.approx(top, rel=1e-5)
        assert float(made.detector.middle[index]) == pytest.approx(scores.mean(), rel=1e-5)
        assert float(made.detector.spread[index]) == pytest.approx(scores.std(ddof=1), rel=1e-4)


def test_a_saved_ensemble_of_trunks_sees_the_same(models, disc_folder, tmp_path):
    made = combine([models / "padim", models / "ae0", models / "pca"], disc_folder, tmp_path / "three")
    again = Model.load(tmp_path / "three")
    assert (
        made.summary
        == again.summary
        == f"ensemble + padim {made.detector.detectors[0].judged_by}, ae squared, pca residual"
    )
    assert [member["method"] for member in again.card["members"]] == [
        Model.load(models / name).summary for name in ("padim", "ae0", "pca")
    ]
    x = discs(4, hole=True)
    for before, after in zip(detections(made.detector, x)[:2], detections(again.detector, x)[:2], strict=True):
        np.testing.assert_array_equal(before, after)
    outer = combine([tmp_path / "three", models / "ae1"], disc_folder, tmp_path / "four")
    assert outer.summary == f"ensemble + ensemble ({made.detector.judged_by}), ae squared"
    assert outer.card["parameters"] == made.card["parameters"] + Model.load(models / "ae1").card["parameters"]


def test_a_hole_stands_out(both):
    detector = Model.load(both).detector
    maps, alarmed, restored = detections(detector, discs(24, hole=True, seed=5))
    _, calm, _ = detections(detector, discs(24, seed=5))
    assert np.mean(alarmed[:, None] > calm[None]) > 0.9
    assert maps.min() >= 0
    assert 0 <= restored.min() <= restored.max() <= 1


def test_the_command_and_what_comes_after_it(salus, models, disc_folder, tmp_path):
    members = (models / "ae0", models / "ae1", models / "padim")
    code, out, _ = salus("combine", *members, "--data", disc_folder, "--out", tmp_path / "m", "--json")
    assert code == 0
    assert json.loads(out)["method"].startswith("ensemble + ae squared, ae squared, padim ")
    assert salus("screen", disc_folder, "--model", tmp_path / "m", "--out", tmp_path / "r")[0] == 0
    assert salus("evaluate", tmp_path / "r", "--data", disc_folder, "--out", tmp_path / "e")[0] == 0
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["overall"]["auroc"]["value"] > 0.9
    page = (tmp_path / "e" / "report.html").read_text()
    assert "ensemble + ae squared" in page
    assert "ae + squared, preset tiny, seed 0; ae + squared, preset tiny, seed 1; padim + " in page
    assert all(result.score is not None for _, result in read_results(tmp_path / "r"))


def test_what_cannot_be_combined_is_refused(salus, models, disc_folder, both, tmp_path):
    def refused(*members, data=disc_folder, out=tmp_path / "m"):
        code, _, err = salus("combine", *members, "--data", data, "--out", out)
        assert code == 2
        assert not (tmp_path / "m").exists()
        return " ".join(err.split())

    assert "two members or more" in refused(models / "ae0")
    again = shutil.copytree(models / "ae0", tmp_path / "again")
    assert "are one model" in refused(models / "ae0", models / "pca", again)
    (tmp_path / "file").write_text("")
    assert "is a file, and a folder is needed" in refused(models / "ae0", models / "pca", out=tmp_path / "file")
    assert "did not learn from" in refused(models / "ae0", models / "pca", data=models, out=both)
    assert "holds another model" in refused(models / "ae0", models / "ae1", out=both)
    larger, others = tmp_path / "larger", tmp_path / "others"
    train("pca", disc_folder, larger, preset="tiny", settings={"size": 40})
    assert "prepared with size 32 and 40" in refused(models / "ae0", larger)
    shutil.copytree(disc_folder, others)
    next(iter(sorted((others / "train" / "good").iterdir()))).unlink()
    train("pca", others, tmp_path / "less", preset="tiny")
    assert "learned from other images" in refused(models / "ae0", tmp_path / "less")
    assert "did not learn from" in refused(models / "ae0", models / "pca", data=others)
    blind, real = tmp_path / "blind", models / "ae0"
    train("padim", disc_folder, blind, preset="tiny", settings={"weights": "random", "trunk": "alexnet"})
    assert "one sees with a random trunk, the other does not" in refused(real, blind)
    assert not at_random(Model.load(both).settings)
    assert at_random({"members": [{"settings": Model.load(blind).settings}]})
    with pytest.raises(ConfigError, match="salus combine"):
        train("ensemble", disc_folder, tmp_path / "m")
    assert "salus combine" in salus("methods", "ensemble")[2]
    assert "salus combine" in salus("train", "ensemble", "--data", disc_folder, "--out", tmp_path / "m")[2]


def test_a_member_that_tells_nothing_apart_is_named():
    net = build("ensemble", {"size": 32, "members": MEMBERS}, {})
    fine = (torch.rand(3, 1, 32, 32), torch.tensor([1.0, 2, 3]))
    for blind in ((fine[0], torch.ones(3)), (torch.zeros(3, 1, 32, 32), fine[1]), (fine[0][:1], fine[1][:1])):
        with pytest.raises(ConfigError, match="mean-intensity judges all"):
            net.settle([fine, blind])


def test_members_of_two_sizes_are_refused():
    other = {"detector": "pca", "settings": {"size": 40}, "score": {"name": "residual"}}
    with pytest.raises(ConfigError, match="of one size, not of 32 and 40"):
        build("ensemble", {"size": 32, "members": [*MEMBERS, other]}, {})
    with pytest.raises(ConfigError, match="members"):
        build("ensemble", {"size": 32, "members": MEMBERS[:1]}, {})


def test_the_same_again_is_left_as_it_is(both, models, disc_folder):
    before = (both / "model.json").stat().st_mtime_ns
    assert combine([models / "ae0", models / "pca"], disc_folder, both).summary == "ensemble + ae squared, pca residual"
    assert (both / "model.json").stat().st_mtime_ns == before


def test_half_precision_only_where_all_have_it(models, disc_folder, tmp_path):
    halves = []
    for name in ("ae0", "ae1"):
        model = Model.load(models / name)
        replace(model, precision="bf16").save(tmp_path / name)
        halves.append(tmp_path / name)
    assert combine(halves, disc_folder, tmp_path / "half").precision == "bf16"
    assert combine([halves[0], models / "pca"], disc_folder, tmp_path / "mixed").precision == "fp32"


def test_an_ensemble_takes_no_score(both, disc_folder, tmp_path):
    with pytest.raises(ConfigError, match="makes its map itself"):
        rescored(both, {"name": "residual"}, disc_folder, tmp_path / "other")
