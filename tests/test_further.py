"""Learning from several data sets: who is learned from, who sets the threshold, and who must not be in two."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from salus.benchmark.measures import DIGITS
from salus.core import Label, Split
from salus.core.errors import ConfigError, LayoutError, PatientInTwoSplitsError
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.io import read_study, study_sha256
from salus.io.files import file_sha256
from salus.model import Model
from salus.preprocess.cache import PreparedCache
from salus.threshold import HELD_OUT, calibration_of
from salus.training import rescored, train
from salus.training.further import LEARNED, Joined
from salus.training.latent import SIZES, distances, maximum_likelihood
from salus.training.plan import refuse_another, resolved
from tests.conftest import discs
from tests.datasets.layouts import LAYOUTS, png


def folder(root: Path, count: int, seed: int) -> Path:
    """Discs to learn from, called as those of `disc_folder`, and four that are for a test of their own."""
    for place, pictures in (("train", discs(count, seed=seed)), ("test", discs(4, seed=seed + 1))):
        for index, picture in enumerate(pictures):
            png(root / place / "good" / f"{index:03}.png", picture[0])
    return root


@pytest.fixture
def others(tmp_path) -> Path:
    return folder(tmp_path / "others", 30, seed=7)


def trained(data: Path, out: Path, also: Path, **how) -> Path:
    return train("ae", data, out, also=[("folder", also)], preset="tiny", epochs=1, precision="fp32", **how).folder


def test_joined_images_are_those_of_each_set_one_after_the_other():
    parts = [discs(count, side=8, seed=count) for count in (5, 1, 3)]
    joined, whole = Joined(parts), np.concatenate(parts)
    assert len(joined) == 9
    for index in (slice(0, 4), slice(4, 40), slice(9, 12), np.array([0, 4, 5, 8]), np.array([6])):
        assert_array_equal(joined[index], whole[index])


def test_training_learns_from_both_and_the_threshold_is_of_the_first_alone(disc_folder, others, tmp_path):
    model = Model.load(trained(disc_folder, tmp_path / "m", others))
    card = model.card
    assert card["dataset"] == "folder + folder"
    assert card["counts"] == {"train": 48 + 24, "validation": 6 + 3, "calibration": 6}
    (also,) = card["also"]
    assert (also["dataset"], also["counts"]) == ("folder", {"train": 24, "validation": 3})
    assert len({card["manifest_sha256"], card["plan"]["manifest_sha256"], also["manifest_sha256"]}) == 3
    theirs = split(open_dataset("folder", others)).only(split=Split.TRAIN)
    assert {study_sha256(case.images)[:16] for case in theirs} < set(card["learned_from"])
    assert len(card["learned_from"]) == 48 + 24

    mine = split(open_dataset("folder", disc_folder)).only(split=HELD_OUT, label=Label.NORMAL)
    assert model.calibration == calibration_of(model, mine)[0]
    alone = Model.load(train("ae", disc_folder, tmp_path / "a", preset="tiny", epochs=1, precision="fp32").folder)
    assert alone.card["also"] == []
    assert any(not torch.equal(value, alone.detector.learned()[key]) for key, value in model.detector.learned().items())


def test_neither_test_nor_calibration_cases_of_a_further_set_are_opened(disc_folder, others, tmp_path, monkeypatch):
    opened = set()

    def watched(paths):
        paths = list(paths)
        opened.update(paths)
        return file_sha256(paths)

    monkeypatch.setattr("salus.io.studies.file_sha256", watched)
    monkeypatch.setattr("salus.io.file_sha256", watched)
    trained(disc_folder, tmp_path / "m", others)
    wanted = [case for case in split(open_dataset("folder", others)) if case.split in LEARNED]
    assert {path for path in opened if path.is_relative_to(others)} == {case.images[0].path for case in wanted}


def test_sets_in_millimetres_and_in_pixels_are_learned_from_together(tmp_path):
    for name in ("fastmri", "ixi"):
        LAYOUTS[name](tmp_path / name)
    done = train(
        "ae", tmp_path / "fastmri", tmp_path / "m", dataset="fastmri", also=[("ixi", tmp_path / "ixi")],
        preset="tiny", epochs=1,
    )  # fmt: skip
    model = Model.load(done.folder)
    assert done.left_out == ()
    assert model.preparation.unit == "px", "of the set that it is for"
    assert model.card["dataset"] == "fastmri + ixi"
    assert model.card["counts"] == {"train": 8 + 12, "validation": 1 + 2, "calibration": 1}
    assert "1 passed over: a row in IXI.xls without a T1 volume" in done.remarks


def test_values_of_a_further_set_are_scaled_as_those_of_the_first_or_it_is_refused(disc_folder, tmp_path):
    LAYOUTS["ixi"](tmp_path / "ixi")
    how = {"also": [("ixi", tmp_path / "ixi")], "preset": "tiny", "epochs": 1}
    with pytest.raises(LayoutError, match=r"ixi: no train image can be used\. .*16 bits a value; expected.* 8 bits"):
        train("ae", disc_folder, tmp_path / "m", **how)
    train("ae", disc_folder, tmp_path / "m", settings={"prepare.intensity": "percentile"}, **how)


def test_another_score_needs_the_first_set_alone(disc_folder, others, tmp_path):
    again = rescored(trained(disc_folder, tmp_path / "m", others), {"name": "zscore"}, disc_folder, tmp_path / "z")
    whole = trained(disc_folder, tmp_path / "w", others, settings={"score.name": "zscore"})
    assert Model.load(again).calibration == Model.load(whole).calibration, "as if it had been trained with it"


def test_the_size_of_the_code_is_chosen_by_all_that_is_learned_from(disc_folder, others, tmp_path):
    model = Model.load(trained(disc_folder, tmp_path / "m", others, settings={"latent": "auto"}))
    assert model.settings["latent"] in SIZES
    rows = [
        PreparedCache().prepare(learned, model.preparation, read_study, study_sha256).rows
        for data in (disc_folder, others)
        for learned in [split(open_dataset("folder", data)).only(split=Split.TRAIN)]
    ]
    apart = distances(np.concatenate(rows).reshape(72, -1))
    assert model.card["latent"]["dimension"] == pytest.approx(maximum_likelihood(apart))


@pytest.mark.parametrize("part", ["test", "calibration", "train"])
def test_the_same_image_in_two_sets_is_refused(part, disc_folder, others, tmp_path):
    cases = [case for case in split(open_dataset("folder", disc_folder)) if case.split == part]
    shutil.copy(cases[0].images[0].path, others / "train/good/copy.png")
    learned = {case.case_id for case in split(open_dataset("folder", others)) if case.split in LEARNED}
    assert "train/good/copy" in learned, "else nothing would be wrong"
    with pytest.raises(PatientInTwoSplitsError, match=rf"'train/good/copy'.*'{cases[0].case_id}'.*part '{part}'"):
        trained(disc_folder, tmp_path / "m", others)
    assert not (tmp_path / "m").exists()


def test_a_patient_in_two_sets_is_refused_and_a_file_name_is_no_patient(disc_folder, others, tmp_path):
    mine = shutil.copytree(disc_folder, tmp_path / "mine")
    rows = "".join(f"{{place}}/{n:03}.png,p{n}\n" for n in range(8))
    (mine / "metadata.csv").write_text("file,patient_id\n" + rows.format(place="test/hole"))
    trained(mine, tmp_path / "m", others)  # both have a train/good/000
    (others / "metadata.csv").write_text("file,patient_id\n" + rows.format(place="train/good"))
    with pytest.raises(PatientInTwoSplitsError, match=r"patient 'p(\d)', is in .*: 'test/hole/00\1', patient 'p\1'"):
        trained(mine, tmp_path / "n", others)


def test_volunteers_of_a_public_set_are_known_by_their_ids(tmp_path):
    for name in ("a", "b"):
        LAYOUTS["ixi"](tmp_path / name)
    for path in (tmp_path / "b").glob("*-T1.nii.gz"):
        path.write_bytes(path.read_bytes() + b"\0")  # another file of the same person
    with pytest.raises(PatientInTwoSplitsError, match=r"read as ixi: 'IXI0\d\d-.*patient 'IXI0"):
        train("ae", tmp_path / "a", tmp_path / "m", dataset="ixi", also=[("ixi", tmp_path / "b")], preset="tiny")


def test_a_training_does_not_go_on_with_other_further_sets(disc_folder, others, tmp_path):
    out = trained(disc_folder, tmp_path / "m", others)
    before = (out / "model.json").read_bytes()
    trained(disc_folder, out, others, resume=True)
    assert (out / "model.json").read_bytes() == before
    with pytest.raises(ConfigError, match="begun with other further data sets"):
        train("ae", disc_folder, out, preset="tiny", epochs=1, precision="fp32", resume=True)
    with pytest.raises(ConfigError, match="begun with other further data sets"):
        trained(disc_folder, out, folder(tmp_path / "more", 20, seed=11), resume=True)


def test_a_training_from_before_there_were_further_sets_goes_on(tmp_path):
    plan = resolved("ae", "tiny", {}, seed=0)
    progress = tmp_path / "progress"
    progress.mkdir()
    (progress / "plan.json").write_text(json.dumps({k: v for k, v in asdict(plan).items() if k != "also"}))
    refuse_another(tmp_path, plan)
    with pytest.raises(ConfigError, match="other further data sets"):
        refuse_another(tmp_path, replace(plan, also=({"dataset": "ixi", "manifest_sha256": "0"},)))


@pytest.mark.parametrize(
    ("also", "said"),
    [
        ("ixi", "--also takes READER:FOLDER, such as ixi:downloads/ixi, got 'ixi'"),
        ("ixi:", "--also takes READER:FOLDER"),
        ("ixxi:{}/empty", "Did you mean 'ixi'?"),
        ("ixi:{}/empty", "holds no T1 volume"),
        ("ixi:{}/nowhere", "it is no folder"),
        ("folder:{}/nowhere", "nowhere is not a folder"),
        ("folder:{}/one", "1 healthy patient to divide"),
    ],
)
def test_a_further_set_that_cannot_be_learned_from_is_explained(also, said, salus, disc_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    png(tmp_path / "one/a.png", discs(1, seed=3)[0, 0])
    out = tmp_path / "m"
    code, _, err = salus("train", "ae", "--data", disc_folder, "--out", out, "--also", also.format(tmp_path))
    assert code == 2
    assert said in " ".join(err.split())
    assert not out.exists()


def test_the_command_takes_several_further_sets(salus, disc_folder, others, tmp_path):
    more = ("--also", f"folder:{others}", "--also", f"folder:{folder(tmp_path / 'more', 20, seed=11)}")
    how = ("--data", disc_folder, "--out", tmp_path / "m", "--preset", "tiny", "--epochs", 1)
    code, _, err = salus("train", "ae", *how, *more)
    assert code == 0, err
    assert Model.load(tmp_path / "m").card["counts"] == {"train": 48 + 24 + 16, "validation": 11, "calibration": 6}


def test_the_study_of_sizes_learns_from_further_sets_as_auto_does(salus, disc_folder, others, tmp_path):
    how = ("--data", disc_folder, "--preset", "tiny", "--epochs", 1, "--also", f"folder:{others}", "--out")
    code, _, err = salus("latent", "ae", *how, tmp_path / "study")
    assert code == 0, err
    about = json.loads((tmp_path / "study" / "latent.json").read_text())
    assert about["dataset"] == f"{disc_folder.name} + others"
    assert about["images"] == {"train": 48 + 24, "validation": 6 + 3}
    assert Model.load(tmp_path / "study" / "models" / "4").card["counts"]["train"] == 48 + 24
    assert salus("train", "ae", *how, tmp_path / "auto", "--set", "latent=auto")[0] == 0
    auto = Model.load(tmp_path / "auto")
    assert auto.card["latent"]["dimension"] == pytest.approx(about["dimension"], abs=10**-DIGITS)
    assert auto.settings["latent"] == about["chosen"]
