import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture

from salus.core import Label, Split
from salus.core.errors import ConfigError, LayoutError, ModelError
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.io import read_study
from salus.metrics import FALSE_ALARMS, threshold_grid_ra2024
from salus.model import Calibration, Model, detections, device_of, model_id, sealed
from salus.screening import slices_of
from salus.threshold import calibrate, calibration_of, people
from salus.training import rescored, train
from tests.conftest import discs


@pytest.fixture(scope="module")
def folder(disc_folder, tmp_path_factory):
    return train("ae", disc_folder, tmp_path_factory.mktemp("models") / "ae", preset="tiny", epochs=2).folder


def calibration(scores: list[float], false_alarms: float) -> Calibration:
    return Calibration(scores=tuple(sorted(scores)), false_alarms=false_alarms, pixel_threshold=0.0)


def test_p_values_by_hand():
    healthy = calibration([1.0, 2.0, 3.0, 4.0], 0.25)
    assert [healthy.p_value(s) for s in (0.5, 1.0, 2.5, 4.0, 9.0)] == [1.0, 1.0, 0.6, 0.4, 0.2]
    assert healthy.threshold == 4.0  # (1 + 0) / 5 = 0.2 <= 0.25, and one healthy score more would be 0.4


def test_five_per_cent_need_nineteen_cases():
    assert calibration(list(range(18)), 0.05).threshold is None
    assert calibration(list(range(19)), 0.05).threshold == 18
    assert calibration(list(range(39)), 0.05).threshold == 37


@given(st.integers(1, 120), st.floats(0.01, 0.5), st.integers(0, 2**32 - 1))
def test_flagging_above_the_threshold_is_flagging_small_p_values(n, false_alarms, seed):
    rng = np.random.default_rng(seed)
    healthy = calibration(list(np.round(rng.random(n), 1)), false_alarms)  # rounded, so that ties happen
    for score in np.round(rng.random(20) * 1.2, 1):
        flagged = healthy.threshold is not None and score > healthy.threshold
        assert flagged == (healthy.p_value(score) <= false_alarms + 1e-9)


def test_the_false_alarm_share_holds_for_healthy_cases():
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(400):
        healthy = calibration(list(rng.normal(size=59)), 0.1)
        alarms.append(np.mean(rng.normal(size=50) > healthy.threshold))
    assert np.mean(alarms) == pytest.approx(0.1, abs=0.01)


def test_a_model_reads_back_as_it_was_written(folder, tmp_path):
    model = Model.load(folder)
    model.save(tmp_path / "again")
    again = Model.load(tmp_path / "again")
    assert (again.settings, again.score, again.preparation, again.calibration, again.card) == (
        model.settings, model.score, model.preparation, model.calibration, model.card,
    )  # fmt: skip
    assert model_id(tmp_path / "again") == model_id(folder)


def test_a_model_holds_no_path_of_this_machine(folder, disc_folder):
    text = (folder / "model.json").read_text()
    assert str(disc_folder) not in text
    assert os.sep + "tmp" not in text


def test_the_card_names_what_it_was_trained_on(folder):
    about = json.loads((folder / "model.json").read_text())
    assert about["card"]["counts"] == {"train": 48, "validation": 6, "calibration": 6}
    assert len(about["card"]["manifest_sha256"]) == 64
    assert about["card"]["plan"]["recipe"]["epochs"] == 2
    assert not (folder / "progress").exists()


@pytest.mark.parametrize(
    ("settings", "weights", "score", "threshold"),
    [
        ({}, "t", "", "vc"),  # the last epoch, and a score that learns nothing: validation decides nothing
        ({"recipe.select": "best"}, "tv", "", "c"),
        ({"recipe.patience": 3}, "tv", "", "c"),
        ({"score.name": "zscore"}, "t", "v", "c"),
    ],
    ids=["nothing", "best", "patience", "zscore"],
)
def test_validation_people_set_the_threshold_where_they_decided_nothing(
    settings, weights, score, threshold, disc_folder, tmp_path
):
    trained = train("ae", disc_folder, tmp_path / "m", preset="tiny", settings=settings, epochs=1, precision="fp32")
    model, cases = Model.load(trained.folder), split(open_dataset("folder", disc_folder)).only(label=Label.NORMAL)
    part = {"t": Split.TRAIN, "v": Split.VALIDATION, "c": Split.CALIBRATION, "": Split.NONE}
    for key, parts in (("learned_from", weights), ("fitted_on", score), ("calibrated_on", threshold)):
        wanted = people("folder", cases.only(split=tuple(part[one] for one in parts)))
        assert model.card[key] == sorted(wanted), key
    assert len(model.calibration.scores) == 6 * len(threshold)
    assert calibrate(trained.folder, disc_folder, device="cpu")[0] == model.calibration, "the same people again"
    plain = rescored(trained.folder, {"name": "smoothed"}, disc_folder, tmp_path / "plain")
    assert len(Model.load(plain).calibration.scores) == (12 if weights == "t" else 6), "whatever the first score was"
    fitted = rescored(plain, {"name": "zscore"}, disc_folder, tmp_path / "fitted")
    assert len(Model.load(fitted).calibration.scores) == 6


def test_where_calibration_is_brought_and_validation_is_not_the_same_people_set_it_again(disc_folder, tmp_path):
    data = shutil.copytree(disc_folder, tmp_path / "data")
    (data / "calibration" / "good").mkdir(parents=True)
    for index in range(10):
        (data / "train" / "good" / f"{index:03}.png").rename(data / "calibration" / "good" / f"{index:03}.png")
    trained = train("ae", data, tmp_path / "m", preset="tiny", epochs=1, precision="fp32").folder
    before = Model.load(trained)
    assert len(before.calibration.scores) == 10 + 5, "a tenth of fifty validate"
    assert calibrate(trained, data, device="cpu")[0] == before.calibration
    assert Model.load(trained).card["calibrated_on"] == before.card["calibrated_on"]


def test_copies_of_what_is_learned_from_set_no_threshold(disc_folder, tmp_path):
    data = shutil.copytree(disc_folder, tmp_path / "data")
    cases = split(open_dataset("folder", data)).only(label=Label.NORMAL)
    first, watched = cases.only(split=Split.TRAIN)[0], cases.only(split=Split.VALIDATION)[0]
    shutil.copy(first.images[0].path, watched.images[0].path)
    model = Model.load(train("ae", data, tmp_path / "m", preset="tiny", epochs=1, precision="fp32").folder)
    assert len(model.calibration.scores) == 11


def test_who_watched_an_older_model_sets_no_threshold(folder, disc_folder, tmp_path):
    model = Model.load(folder)
    replace(model, card={k: v for k, v in model.card.items() if k != "learned_from"}).save(tmp_path / "old")
    assert len(calibrate(tmp_path / "old", disc_folder, device="cpu")[0].scores) == 6


def test_a_model_for_a_setting_of_the_future_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    about = json.loads((copy / "model.json").read_text())
    about.pop("sha256")
    about["settings"]["sparkle"] = 3
    (copy / "model.json").write_text(sealed(about))
    with pytest.raises(ModelError, match="does not fit this version"):
        Model.load(copy)


def test_an_unfinished_training_is_named_as_such(tmp_path):
    (tmp_path / "progress").mkdir()
    with pytest.raises(ModelError, match=r"has not finished.*--resume"):
        Model.load(tmp_path)


@pytest.fixture
def healthy(tmp_path):
    place = tmp_path / "healthy"
    place.mkdir()
    for index, picture in enumerate(discs(20, seed=8)):
        Picture.fromarray(np.round(picture[0] * 255).astype(np.uint8)).save(place / f"{index}.png")
    return place


def test_calibration_changes_the_identity_and_the_threshold(folder, healthy, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    calibrate(copy, healthy, false_alarms=0.1, device="cpu")
    model = Model.load(copy)
    assert model.calibration.false_alarms == 0.1
    assert len(model.calibration.scores) == 20
    assert model_id(copy) != model_id(folder)


def test_calibration_keeps_the_other_thresholds_of_the_same_maps(folder, healthy, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    calibrate(copy, healthy, false_alarms=0.1, device="cpu")
    model = Model.load(copy)
    cases = open_dataset("folder", healthy)
    rows = np.concatenate([slices_of(model.preparation(read_study(case.images))) for case in cases])
    maps, _, _ = detections(model.detector, rows, precision=model.precision)
    assert model.calibration.grid_threshold == threshold_grid_ra2024(maps)  # of 5 %, whatever share is asked for
    shares = [np.mean(maps > threshold) for threshold in model.calibration.curve_thresholds]
    assert shares == pytest.approx(FALSE_ALARMS, abs=1 / maps[0].size)
    assert (np.array(shares) <= FALSE_ALARMS).all()


def test_maps_above_the_published_grid_have_no_published_threshold(folder, healthy, monkeypatch):
    def large(*what, **how):
        maps, *rest = detections(*what, **how)
        return maps + 7, *rest

    monkeypatch.setattr("salus.threshold.detections", large)
    seen, _ = calibration_of(Model.load(folder), open_dataset("folder", healthy))
    assert seen.grid_threshold is None
    assert seen.pixel_threshold > 7


def test_a_model_of_before_these_thresholds_were_kept_still_loads(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    about = json.loads((copy / "model.json").read_text())
    about.pop("sha256")
    del about["calibration"]["grid_threshold"], about["calibration"]["curve_thresholds"]
    (copy / "model.json").write_text(sealed(about))
    seen = Model.load(copy).calibration
    assert seen.grid_threshold is seen.curve_thresholds is None


def test_the_number_of_patients_needed_is_said_exactly():
    assert "33 are needed" in calibration(list(range(32)), 0.03).shortfall
    assert calibration(list(range(33)), 0.03).shortfall == ""
    assert "0.5 % of false alarms; 199 are needed" in calibration([1.0], 0.005).shortfall


@pytest.mark.parametrize("share", [0, 1, -0.1, 5])
def test_a_false_alarm_share_is_a_share(share, folder, healthy):
    with pytest.raises(ConfigError, match="share between 0 and 1"):
        calibrate(folder, healthy, false_alarms=share, device="cpu")


def test_calibrating_on_nothing_readable_is_explained(folder, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(LayoutError, match="none of 1 healthy images"):
        calibrate(folder, tmp_path, device="cpu")


def test_half_precision_scores_are_near_full_ones(folder):
    detector = Model.load(folder).detector
    full, half = (detections(detector, discs(8), precision=p)[1] for p in ("fp32", "bf16"))
    np.testing.assert_allclose(half, full, rtol=0.05)


def test_devices_by_name():
    assert device_of("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="no device 'gpu'"):
        device_of("gpu")
    if not torch.cuda.is_available():
        assert device_of("auto") == torch.device("cpu")
        with pytest.raises(ConfigError, match="sees no CUDA device"):
            device_of("cuda:1")
