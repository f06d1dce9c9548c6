"""The commands as a user types them: what they print, their exit codes, and that nothing is lost."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Picture

from salus.core import Result, Split, Verdict
from salus.core.errors import ImageError
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.detectors import DETECTORS
from salus.io.results import read_result, read_results
from salus.model import Model
from salus.nets.weights import PRETRAINED
from tests.conftest import discs


@pytest.fixture(scope="module")
def model(disc_folder, tmp_path_factory) -> Path:
    from salus.training import train

    out = tmp_path_factory.mktemp("model") / "ae"
    train("ae", disc_folder, out, preset="tiny", epochs=4)
    return out


@pytest.fixture
def studies(tmp_path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    for index, picture in enumerate(discs(6, seed=9)):
        Picture.fromarray(np.round(picture[0] * 255).astype(np.uint8)).save(folder / f"study{index}.png")
    return folder


def save(path: Path, array: np.ndarray) -> Path:
    if path.suffix == ".png":
        Picture.fromarray(array).save(path)
    elif path.suffix == ".tif":
        Picture.fromarray(array.astype(np.float32)).save(path)
    else:
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


UNREADABLE = {
    "text.png": (lambda p: p.write_text("not a picture"), "it is text"),
    "cut.png": (
        lambda p: truncated(save(p, np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))),
        "truncated",
    ),
    "cut.nii.gz": (lambda p: truncated(save(p, np.random.default_rng(0).random((16, 16, 16)))), "truncated"),
    "nan.tif": (lambda p: save(p, np.full((32, 32), np.nan)), "NaN or infinite"),
    "inf.tif": (lambda p: save(p, np.where(np.eye(32) > 0, np.inf, 0.5)), "NaN or infinite"),
    "flat.png": (lambda p: save(p, np.full((32, 32), 7, np.uint8)), "constant"),
    "dot.png": (lambda p: save(p, np.zeros((1, 1), np.uint8)), "at least 8"),
    "strip.png": (lambda p: save(p, np.arange(60_000, dtype=np.uint32).reshape(20_000, 3).astype(np.uint8)), "20,000"),
    "four.nii.gz": (lambda p: save(p, np.random.default_rng(0).random((16, 16, 4, 3)).astype(np.float32)), "3 volumes"),
    "volume.nii.gz": (lambda p: save(p, np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)), "(mm)"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_one_unreadable_study_is_a_row_that_says_why_and_the_others_are_judged(name, salus, model, studies, tmp_path):
    make, said = UNREADABLE[name]
    make(studies / name)
    code, out, err = salus("screen", studies, "--model", model, "--out", tmp_path / "results")
    assert code == 3
    assert said in out
    assert "Traceback" not in out + err
    found = {result.case_id: result for _, result in read_results(tmp_path / "results")}
    assert len(found) == 7
    bad = found.pop(name.split(".")[0])
    assert bad.verdict == Verdict.CANNOT_JUDGE
    assert bad.score is None
    assert said in bad.reasons[0]
    assert all(result.score is not None for result in found.values())
    table = (tmp_path / "results" / "cases.csv").read_text().splitlines()
    assert len(table) == 8


def test_an_unreadable_training_image_is_left_out_and_named(salus, disc_folder, tmp_path):
    data = shutil.copytree(disc_folder, tmp_path / "data")
    (data / "train" / "good" / "bad.png").write_text("no picture")
    code, out, _ = salus("train", "ae", "--data", data, "--out", tmp_path / "m", "--preset", "tiny", "--epochs", 1)
    assert code == 3
    assert "bad.png was left out" in out
    assert (tmp_path / "m" / "model.json").is_file()


def refused(salus, *arguments: object) -> str:
    """The message of a command that must exit with 2, on one clear line or few, without a traceback."""
    code, out, err = salus(*arguments)
    assert code == 2, out + err
    assert "Traceback" not in err
    return err


def test_an_empty_folder_is_explained(salus, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "Expected train/good" in refused(salus, "train", "ae", "--data", tmp_path / "empty", "--out", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_one_image_is_not_enough(salus, tmp_path):
    (tmp_path / "one").mkdir()
    save(tmp_path / "one" / "a.png", np.eye(32, dtype=np.uint8))
    said = refused(salus, "train", "ae", "--data", tmp_path / "one", "--out", tmp_path / "m")
    assert "1 healthy patient" in said
    assert "at least 3" in said


def test_a_folder_without_a_single_readable_image_is_explained(salus, tmp_path):
    (tmp_path / "bad").mkdir()
    for index in range(4):
        (tmp_path / "bad" / f"{index}.png").write_text("no picture")
    assert "can be read" in refused(salus, "train", "ae", "--data", tmp_path / "bad", "--out", tmp_path / "m")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--set", "latnet=3"], "Did you mean 'latent'?"),
        (["--set", "latent=-3"], "latent"),
        (["--set", "recipe.epoch=3"], "Did you mean 'recipe.epochs'?"),
        (["--set", "epochs=3"], "ae has no setting 'epochs'. Did you mean 'recipe.epochs'?"),
        (["--set", "lower=3"], "ae has no setting 'lower'. Did you mean 'prepare.lower'?"),
        (["--set", "recipe.batch=zero"], "recipe.batch"),
        (["--set", "prepare.intensty=minmax"], "Did you mean 'prepare.intensity'?"),
        (["--set", "score.name=residuals"], "Did you mean 'residual'?"),
        (["--set", "recipee.batch=1"], "Did you mean 'recipe'?"),
        (["--set", "latent"], "key=value"),
        (["--set", "prepare.size=48"], "--set size=48"),
        (["--seed", "-1"], "a seed is 0 or more"),
        (["--preset", "quick"], "paper"),
        (["--device", "gpu"], "cuda"),
        (["--precision", "fp8"], "bf16"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_a_wrong_setting_is_named_before_anything_starts(wrong, said, salus, disc_folder, tmp_path):
    assert said in refused(salus, "train", "ae", "--data", disc_folder, "--out", tmp_path / "m", *wrong)
    assert not (tmp_path / "m").exists()


def test_an_unknown_detector_or_data_set_is_named(salus, disc_folder, tmp_path):
    assert "Did you mean 'ra'?" in refused(salus, "train", "raa", "--data", disc_folder, "--out", tmp_path / "m")
    said = refused(salus, "train", "ae", "--data", disc_folder, "--dataset", "foldr", "--out", tmp_path / "m")
    assert "Did you mean 'folder'?" in said


def test_a_patient_in_two_splits_is_refused(salus, disc_folder, tmp_path):
    data = shutil.copytree(disc_folder, tmp_path / "data")
    (data / "metadata.csv").write_text("file,patient_id\ntrain/good/000.png,p1\ntest/good/000.png,p1\n")
    said = refused(salus, "train", "ae", "--data", data, "--out", tmp_path / "m")
    assert "patient 'p1' is in two splits" in said


def flip(path: Path, at: int = -5) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def newer(folder: Path) -> None:
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**about, "format": 99}))


DAMAGE = {
    "a flipped byte in the weights": (lambda m: flip(m / "weights.safetensors"), "was altered"),
    "a flipped digit in model.json": (lambda m: flip(m / "model.json", 200), "was altered"),
    "a newer format": (newer, "format 99; this Salus reads up to 1"),
    "no weights": (lambda m: (m / "weights.safetensors").unlink(), "is missing"),
    "no model.json": (lambda m: (m / "model.json").unlink(), "is missing"),
    "half a model.json": (lambda m: truncated(m / "model.json"), "was altered"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_model_is_refused(what, salus, model, studies, tmp_path):
    harm, said = DAMAGE[what]
    copy = shutil.copytree(model, tmp_path / "model")
    harm(copy)
    assert said in refused(salus, "screen", studies, "--model", copy, "--out", tmp_path / "results")


def test_a_training_is_not_overwritten(salus, model, disc_folder):
    before = (model / "model.json").read_bytes()
    again = ("train", "ae", "--data", disc_folder, "--out", model, "--preset", "tiny", "--epochs", 4)
    assert "--resume" in refused(salus, *again)
    assert "another recipe" in refused(salus, *again[:-1], 5, "--resume")
    assert salus(*again, "--resume")[0] == 0
    assert (model / "model.json").read_bytes() == before


def test_what_is_finished_is_not_done_again(salus, model, studies, tmp_path):
    command = ("screen", studies, "--model", model, "--out", tmp_path / "results")
    assert salus(*command)[0] == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("map.tif")}
    save(studies / "new.png", (discs(1)[0, 0] * 255).astype(np.uint8))
    code, out, _ = salus(*command, "--json")
    assert code == 0
    assert sum(json.loads(out)["counts"].values()) == 7
    assert all(path.stat().st_mtime_ns == then for path, then in files.items())


@pytest.fixture
def healthy(tmp_path) -> Path:
    folder = tmp_path / "healthy"
    folder.mkdir()
    for index, picture in enumerate(discs(24, seed=77)):
        save(folder / f"{index:02}.png", np.round(picture[0] * 255).astype(np.uint8))
    return folder


def test_no_bar_stays_of_what_never_began(salus, tmp_path):
    code, _, err = salus("train", "ae", "--data", tmp_path, "--out", tmp_path / "m")
    assert code == 2
    assert "training" not in err.split("\n")[0]
    assert "/?" not in err


def test_a_new_threshold_judges_again(salus, disc_folder, studies, healthy, tmp_path):
    model = tmp_path / "m"
    _, out, err = salus("train", "ae", "--data", disc_folder, "--out", model, "--preset", "tiny", "--epochs", 1)
    warning = "Every study will be CANNOT_JUDGE: 12 healthy calibration patients"
    assert warning in out
    assert warning in " ".join(err.split())  # before the training, too
    assert "1/1" in err
    screening = ("screen", studies, "--model", model, "--out", tmp_path / "results")
    code, out, _ = salus(*screening)
    assert (code, "6 with a score and no verdict: 12 healthy calibration patients" in out) == (0, True)
    few = [result for _, result in read_results(tmp_path / "results")]
    assert all(r.verdict == Verdict.CANNOT_JUDGE and "19 are needed" in r.reasons[0] for r in few)
    code, out, _ = salus("calibrate", model, "--data", healthy, "--false-alarms", 0.1)
    assert code == 0
    assert "10 % of 24 patients; 95 of 100 such calibrations flag 1 to 21 % of healthy people" in out
    salus(*screening)
    judged = [result for _, result in read_results(tmp_path / "results")]
    assert all(r.verdict != Verdict.CANNOT_JUDGE and r.model != few[0].model for r in judged)


def test_calibration_takes_neither_what_was_learned_from_nor_what_is_tested_on(salus, model, disc_folder, tmp_path):
    copy = shutil.copytree(model, tmp_path / "m")
    before = Model.load(copy).calibration
    assert salus("calibrate", copy, "--data", disc_folder, "--false-alarms", 0.2)[0] == 0
    assert Model.load(copy).calibration == replace(before, false_alarms=0.2, pixel_threshold=ANY)
    tested = tmp_path / "tested"
    shutil.copytree(disc_folder / "test", tested / "test")
    assert "without calibration/good" in refused(salus, "calibrate", copy, "--data", tested)
    assert "The model learned from 48 of 60 images" in refused(
        salus, "calibrate", copy, "--data", disc_folder / "train"
    )


def test_calibration_leaves_out_and_names_what_it_cannot_read(salus, model, healthy, tmp_path):
    copy = shutil.copytree(model, tmp_path / "m")
    (healthy / "bad.png").write_text("no picture")
    code, out, _ = salus("calibrate", copy, "--data", healthy)
    assert code == 3
    assert "bad.png was left out" in out


def test_slices_of_one_person_are_one_calibration_case(salus, model, healthy, tmp_path):
    copy = shutil.copytree(model, tmp_path / "m")
    rows = "".join(f"{file.name},one\n" for file in sorted(healthy.glob("*.png")))
    (healthy / "metadata.csv").write_text(f"file,patient_id\n{rows}")
    _, out, _ = salus("calibrate", copy, "--data", healthy, "--json")
    assert json.loads(out)["patients"] == 1
    assert json.loads(out)["threshold"] is None


def test_a_training_does_not_go_on_with_other_images(salus, model, disc_folder, tmp_path):
    other = shutil.copytree(disc_folder, tmp_path / "other")
    flipped = np.asarray(Picture.open(other / "train" / "good" / "000.png"))[:, ::-1]
    save(other / "train" / "good" / "000.png", np.ascontiguousarray(flipped))
    again = ("train", "ae", "--data", other, "--out", model, "--preset", "tiny", "--epochs", 4, "--resume")
    assert "other images or parts" in refused(salus, *again)


def test_images_of_another_kind_are_left_out_of_training(salus, disc_folder, tmp_path):
    data = shutil.copytree(disc_folder, tmp_path / "data")
    save(data / "train" / "good" / "zz.nii.gz", np.random.default_rng(0).random((32, 32)).astype(np.float32))
    code, out, _ = salus("train", "ae", "--data", data, "--out", tmp_path / "m", "--preset", "tiny", "--epochs", 1)
    assert code == 3
    assert "zz.nii.gz was left out" in out
    assert "expected, as in training, a bare picture" in out


def test_sixteen_bits_are_not_judged_by_a_model_of_eight(salus, model, studies, tmp_path):
    values = np.asarray(Picture.open(studies / "study0.png")).astype(np.uint16) * 16
    save(studies / "twelve.png", values)
    code, out, _ = salus("screen", studies, "--model", model, "--out", tmp_path / "results")
    assert code == 3
    assert "16 bits a value; expected, as in training, 8 bits" in out


def test_results_name_no_place_of_this_machine(salus, model, studies, tmp_path):
    (studies / "JANE.png").write_text("no picture")
    salus("screen", studies.resolve(), "--model", model, "--out", tmp_path / "results")
    for file in (tmp_path / "results").rglob("*.*"):
        if file.suffix in (".json", ".csv"):
            assert str(tmp_path) not in file.read_text(), file


def test_screening_does_not_eat_its_own_results(salus, model, studies):
    for _ in range(2):
        code, out, _ = salus("screen", studies, "--model", model, "--out", studies / "results", "--json")
        assert code == 0
        assert sum(json.loads(out)["counts"].values()) == 6


@pytest.mark.parametrize(
    ("precision", "hardware", "said"), [("bf16", False, True), ("bf16", True, False), ("fp32", False, False)]
)
def test_a_machine_that_only_imitates_the_models_precision_is_told(
    precision, hardware, said, salus, disc_folder, studies, tmp_path, monkeypatch
):
    salus("train", "ae", "--data", disc_folder, "--out", tmp_path / "m", "--preset", "tiny", "--epochs", 1,
          "--precision", precision)  # fmt: skip
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: hardware)
    code, out, err = salus("screen", studies, "--model", tmp_path / "m", "--out", tmp_path / "results")
    assert code == 0
    assert ("--precision fp32" in " ".join(err.split())) is said
    assert "bfloat16" not in out


def test_names_with_dots_stay_apart(salus, model, studies, tmp_path):
    files = [(studies / f"study{i}.png").rename(studies / f"scan.{i}.png") for i in range(2)]
    assert salus("screen", *files, "--model", model, "--out", tmp_path / "results")[0] == 0
    assert {result.case_id for _, result in read_results(tmp_path / "results")} == {"scan.0", "scan.1"}


def test_a_study_that_breaks_later_leaves_no_old_map_behind(salus, model, studies, tmp_path, monkeypatch):
    command = ("screen", studies, "--model", model, "--out", tmp_path / "results")
    salus(*command)
    assert (tmp_path / "results" / "study0" / "map.tif").is_file()
    another = calibrated(model, tmp_path / "another")  # the same files are judged anew, and cannot be read any more
    monkeypatch.setattr("salus.screening.read_study", broken)
    assert salus(*command[:3], another, *command[4:])[0] == 3
    assert sorted(file.name for file in (tmp_path / "results" / "study0").iterdir()) == ["result.json"]


def calibrated(model: Path, copy: Path) -> Path:
    """The same network under another name: with another threshold."""
    from salus.threshold import calibrate

    pictures = copy.with_name("healthy")
    pictures.mkdir()
    for index, picture in enumerate(discs(24, seed=77)):
        save(pictures / f"{index:02}.png", np.round(picture[0] * 255).astype(np.uint8))
    shutil.copytree(model, copy)
    calibrate(copy, pictures, false_alarms=0.1)
    return copy


def broken(images):
    raise ImageError("it cannot be read")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("out", [".", "deep", ".."])
def test_results_are_not_put_where_the_images_are(out, salus, model, studies):
    (studies / "deep").mkdir()
    (studies / "study0.png").rename(studies / "deep" / "map.png")
    (studies / "deep" / "map").mkdir()
    (studies / "deep" / "map" / "report.dcm").write_text("a hospital's own")
    before = contents(studies.parent)
    said = refused(salus, "screen", studies, "--model", model, "--out", studies / out)
    assert "holds images to be screened" in said
    assert contents(studies.parent) == before


@pytest.mark.parametrize("name", ["study1/report.dcm", "study1/map.tif", "study1/result.json", "cases.csv", "run.json"])
def test_a_file_that_no_screening_wrote_stays(name, salus, model, studies, tmp_path):
    own = tmp_path / "results" / name
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    said = refused(salus, "screen", studies, "--model", model, "--out", tmp_path / "results")
    assert own.name in said
    assert "no screening wrote" in said
    assert contents(tmp_path / "results") == {own: b"{}"}


def test_a_result_that_lists_files_elsewhere_moves_nothing_there(salus, model, studies, tmp_path):
    command = ("screen", studies, "--out", tmp_path / "results", "--model")
    assert salus(*command, model)[0] == 0
    mine = [tmp_path / "mine.txt", tmp_path / "results/study0/notes.txt"]
    for path in mine:
        path.write_text("mine")
    altered = tmp_path / "results/study0/result.json"
    files = {"map": "../../mine.txt", "overlay": str(mine[0]), "restored": "notes.txt"}
    altered.write_text(json.dumps({**json.loads(altered.read_text()), "files": files}))
    said = refused(salus, *command, calibrated(model, tmp_path / "another"))
    assert "holds map.tif, overlay.png, restored.tif, which no screening wrote" in said
    for name in ("map.tif", "overlay.png", "restored.tif"):
        (altered.parent / name).unlink()
    assert salus(*command, tmp_path / "another")[0] == 0
    assert [path.read_text() for path in mine] == ["mine"] * 2


def test_a_study_beside_another_programs_run_json_is_screened(salus, model, studies, tmp_path):
    (studies / "p7").mkdir()
    (studies / "study5.png").rename(studies / "p7" / "study5.png")
    for content in ("{}", "[]", "no json"):
        (studies / "p7" / "run.json").write_text(content)
        assert salus("screen", studies, "--model", model, "--out", tmp_path / "r")[0] == 0
        assert "p7/study5" in {result.case_id for _, result in read_results(tmp_path / "r")}
        shutil.rmtree(tmp_path / "r")


def test_studies_beside_a_test_folder_are_named(salus, model, studies, tmp_path):
    shutil.copytree(studies, tmp_path / "incoming" / "test" / "good")
    for name in ("train/good/t.png", "patient7/a.png"):
        (tmp_path / "incoming" / name).parent.mkdir(parents=True)
        shutil.copy(studies / "study0.png", tmp_path / "incoming" / name)
    code, out, _ = salus("screen", tmp_path / "incoming", "--model", model, "--out", tmp_path / "results")
    assert code == 0
    assert "passed over: 1 of 7 cases of incoming: not in the test part of a data set" in out
    assert "passed over: patient7/a.png: outside of train/" in out


def test_other_files_in_a_cases_folder_stay_when_it_is_judged_anew(salus, model, studies, tmp_path):
    command = ("screen", studies, "--out", tmp_path / "results", "--model")
    assert salus(*command, model)[0] == 0
    notes = [tmp_path / "results" / "study0" / name for name in ("map.txt", "overlay.dcm.bak", ".mine.part")]
    for note in notes:
        note.write_text("mine")
    assert salus(*command, calibrated(model, tmp_path / "another"))[0] == 0
    assert [note.read_text() for note in notes] == ["mine"] * 3


def test_what_a_killed_screening_left_is_replaced(salus, model, studies, tmp_path, monkeypatch):
    command = ("screen", studies, "--model", model, "--out", tmp_path / "results")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("salus.screening.write_result", killed)
        assert salus(*command)[0] != 0
    left = tmp_path / "results" / "study0" / "map.tif"
    assert left.is_file()
    assert not left.with_name("result.json").exists()
    assert salus(*command)[0] == 0
    made = sorted(path.name for path in left.parent.iterdir())
    assert made == ["map.tif", "overlay.png", "restored.tif", "result.json"]


def test_a_result_is_not_replaced_by_one_of_another_patient(salus, model, studies, tmp_path):
    command = ("--model", model, "--out", tmp_path / "results")
    assert salus("screen", studies, *command)[0] == 0
    before = contents(tmp_path / "results")
    other = tmp_path / "other"
    other.mkdir()
    save(other / "new.png", (discs(1)[0, 0] * 255).astype(np.uint8))
    for name, picture in (("study0", discs(1)), ("study4", discs(1, seed=3))):
        save(other / f"{name}.png", (picture[0, 0] * 255).astype(np.uint8))
    said = refused(salus, "screen", other, *command)
    assert "results of other images" in said
    assert "study0, study4" in said
    assert "another --out" in said
    truncated(studies / "study0.png")  # likewise a file that was damaged since
    assert "study0. Choose" in refused(salus, "screen", studies, *command)
    assert contents(tmp_path / "results") == before


def test_a_result_of_the_same_images_under_other_names_is_replaced(salus, model, studies, tmp_path):
    command = ("screen", studies, "--model", model, "--out", tmp_path / "results")
    assert salus(*command)[0] == 0
    (studies / "study0.png").rename(studies / "study0.PNG")
    assert salus(*command)[0] == 0
    assert read_result(tmp_path / "results" / "study0").sources.keys() == {"study0.PNG"}


def test_a_study_that_could_not_be_judged_may_be_repaired(salus, model, studies, tmp_path):
    command = ("screen", studies, "--model", model, "--out", tmp_path / "results")
    whole = (studies / "study0.png").read_bytes()
    truncated(studies / "study0.png")
    assert salus(*command)[0] == 3
    (studies / "study0.png").write_bytes(whole)
    assert salus(*command)[0] == 0


def test_the_table_keeps_the_cases_of_earlier_screenings(salus, model, studies, tmp_path):
    for index in range(3):
        out = salus("screen", studies / f"study{index}.png", "--model", model, "--out", tmp_path / "results")
        assert out[0] == 0
    rows = csv.DictReader((tmp_path / "results" / "cases.csv").read_text().splitlines())
    assert [(row["case_id"], row["slices"]) for row in rows] == [(f"study{index}", "") for index in range(3)]


def test_a_missing_mask_stops_neither_training_nor_screening(salus, model, disc_folder, tmp_path):
    data = shutil.copytree(disc_folder, tmp_path / "data")
    (data / "ground_truth" / "hole").mkdir(parents=True)
    for index in range(7):
        save(data / "ground_truth" / "hole" / f"{index:03}_mask.png", np.eye(32, dtype=np.uint8) * 255)
    assert salus("screen", data, "--model", model, "--out", tmp_path / "results")[0] == 0
    code, out, _ = salus("evaluate", tmp_path / "results", "--data", data, "--out", tmp_path / "report")
    assert code == 3
    assert "test/hole/007: 'hole' has no mask" in out


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_ends_screening_cleanly_and_it_goes_on_elsewhere(salus, model, studies, small_disk):
    (small_disk / "ballast").write_bytes(bytes(2_050_000))
    command = ("screen", studies, "--model", model, "--out", small_disk / "results")
    said = refused(salus, *command)
    assert "disk full" in said
    assert not list(small_disk.rglob("*.part"))
    for file in (small_disk / "results").rglob("result.json"):
        Result.from_json(file.read_text())  # whole, or not there
    (small_disk / "ballast").unlink()
    assert salus(*command)[0] == 0


def test_a_full_disk_ends_training_cleanly_and_it_goes_on(salus, disc_folder, small_disk):
    (small_disk / "ballast").write_bytes(bytes(2_050_000))
    command = ("train", "ae", "--data", disc_folder, "--out", small_disk / "m", "--preset", "tiny", "--epochs", 2)
    command += ("--set", "hidden=16", "--resume")
    assert "disk full" in refused(salus, *command)
    assert not list(small_disk.rglob("*.part"))
    (small_disk / "ballast").unlink()
    assert salus(*command)[0] == 0


def test_screening_names_whom_the_model_learned_from(salus, model, studies, disc_folder, tmp_path):
    command = ("--model", model, "--out", tmp_path / "results", "--json")
    learned = split(open_dataset("folder", disc_folder)).only(split=Split.TRAIN)
    shutil.copy(learned[0].images[0].path, studies / "again.png")
    for _ in range(2):  # also of what was judged before
        code, out, _ = salus("screen", studies, *command)
        assert code == 0
        assert json.loads(out)["known"] == ["again"]
    assert json.loads((tmp_path / "results" / "run.json").read_bytes())["known"] == ["again"]
    code, out, _ = salus("screen", studies, *command[:-1])
    assert "1 of 7, such as again, are known to the model" in out
    rows = csv.DictReader((tmp_path / "results" / "cases.csv").read_text().splitlines())
    assert [row["case_id"] for row in rows if row["known"]] == ["again"]
    (studies / "again.png").unlink()
    assert json.loads(salus("screen", studies, *command)[1])["known"] == []


def test_screening_knows_people_by_their_ids(salus, studies, disc_folder, tmp_path):
    from salus.training import train

    data = tmp_path / "data"
    shutil.copytree(disc_folder / "train", data / "train")
    names = [path.relative_to(data) for path in sorted((data / "train" / "good").iterdir())]
    rows = "".join(f"{name},p{index}\n" for index, name in enumerate(names))
    (data / "metadata.csv").write_text(f"file,patient_id\n{rows}")
    model = train("ae", data, tmp_path / "m", preset="tiny", epochs=1).folder
    everybody = "".join(f"study{index}.png,{'p' if index else 'q'}{index}\n" for index in range(6))
    (studies / "metadata.csv").write_text(f"file,patient_id\n{everybody}")
    learned = {case.patient_id for case in split(open_dataset("folder", data)).only(split=Split.TRAIN)}
    out = salus("screen", studies, "--model", model, "--out", tmp_path / "results", "--json")[1]
    known = [f"study{index}" for index in range(1, 6) if f"p{index}" in learned]
    assert json.loads(out)["known"] == known != []


def screening_of_200(model: Path, folder: Path, results: Path) -> list[str]:
    """A command in a process of its own, long enough to be stopped in the middle."""
    folder.mkdir()
    for index, picture in enumerate(discs(200, seed=4)):
        save(folder / f"{index:03}.png", np.round(picture[0] * 255).astype(np.uint8))
    command = [sys.executable, "-c", "from salus.cli import main; main()", "screen", str(folder)]
    return [*command, "--model", str(model), "--out", str(results), "--json"]


def wait_for_20(process: subprocess.Popen, results: Path) -> None:
    while len(list(results.rglob("result.json"))) < 20 and process.poll() is None:
        time.sleep(0.01)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_screening_goes_on_after_a_kill(signal_number, model, tmp_path):
    results = tmp_path / "results"
    command = screening_of_200(model, tmp_path / "many", results)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_20(process, results)
    process.send_signal(signal_number)
    _, said = process.communicate()
    assert process.returncode == -signal_number, "it was to be killed in the middle"
    assert ("What is finished is kept" in said) == (signal_number == signal.SIGTERM), said
    done = {path: path.stat().st_mtime_ns for path in results.rglob("result.json")}
    assert 20 <= len(done) < 200
    again = subprocess.run(command, capture_output=True, check=False)
    assert again.returncode == 0, again.stderr
    assert len(list(read_results(results))) == 200
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())
    assert not list(results.rglob("*.part")), os.listdir(results)


@pytest.mark.parametrize("stderr", ["nobody reads it", "it is full"])
def test_sigterm_ends_a_screening_whatever_became_of_its_stderr(stderr, model, tmp_path):
    results = tmp_path / "results"
    read, write = os.pipe()
    if stderr == "it is full":
        os.set_blocking(write, False)
        with suppress(BlockingIOError):
            while True:
                os.write(write, bytes(1 << 12))
        os.set_blocking(write, True)
    command = screening_of_200(model, tmp_path / "many", results)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=write)
    os.close(write)
    if stderr == "nobody reads it":
        os.close(read)
    wait_for_20(process, results)
    process.terminate()
    assert process.wait(timeout=10) == -signal.SIGTERM
    done = [read_result(path.parent) for path in results.rglob("result.json")]
    assert 20 <= len(done) < 200
    assert all(result.score is not None for result in done)
    if stderr == "it is full":
        os.close(read)


def test_what_another_screening_has_unpacked_stays_and_what_a_killed_one_left_goes(salus, model, studies, tmp_path):
    results = tmp_path / "results"
    for name, age in ((".unpacked-old", 90_000), (".unpacked-now", 60)):
        (results / name / "0").mkdir(parents=True)
        then = time.time() - age
        os.utime(results / name, (then, then))
    assert salus("screen", studies, "--model", model, "--out", results)[0] == 0
    assert [path.name for path in results.glob(".unpacked-*")] == [".unpacked-now"]


def test_nan_in_training_stops_it_and_saves_the_batch(salus, disc_folder, tmp_path):
    said = refused(
        salus, "train", "ra", "--data", disc_folder, "--out", tmp_path / "m", "--preset", "tiny",
        "--set", "recipe.learning_rate=1e30", "--epochs", 3,
    )  # fmt: skip
    assert "failed_batch.safetensors" in said
    from safetensors.numpy import load_file

    assert load_file(tmp_path / "m" / "progress" / "failed_batch.safetensors")["x"].shape == (8, 1, 32, 32)


@pytest.mark.parametrize(
    "command",
    [
        *("demo", "plan", "train", "screen", "evaluate", "calibrate", "combine", "probe", "latent", "benchmark"),
        *("methods", "datasets", "weights list", "weights fetch", "weights verify"),
    ],
)
def test_every_help_has_an_example(command, salus):
    code, out, _ = salus(*command.split(), "--help")
    assert code == 0
    assert f"salus {command} " in out.replace("Usage: salus", "Usage:")


def test_methods_and_datasets_are_listed(salus):
    assert all(name in salus("methods")[1] for name in ("ae", "ra", "pca", "mean-intensity"))
    rows = json.loads(salus("methods", "--json")[1])
    assert rows.keys() == DETECTORS.keys()
    for name, row in rows.items():
        assert "20" in row["paper"] or row["family"] == "floor", name
        assert (row["parameters"] > 0) == (row["family"] not in {"feature", "floor"}), name
        assert 0 <= row["seconds_an_image"] < 1, name
        assert "commit" in row["measured"], name
    needs = {name: row["needs"] for name, row in rows.items()}
    assert set(needs.values()) - {"-"} <= set(PRETRAINED)
    assert (needs["ae-perceptual"], needs["mkd"], needs["ra"]) == ("alexnet-tv", "vgg16-tv", "-")
    page = salus("methods", "ra")[1]
    assert "reversed_weight = 0.005" in page
    assert "preset paper" in page
    assert "folder" in salus("datasets")[1]
    assert "train/good" in salus("datasets", "folder")[1]
    assert "AlexNet".lower() in salus("weights", "list")[1].lower()
