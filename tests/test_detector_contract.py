"""What every detector must keep to, whoever wrote it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from salus.core.errors import ConfigError
from salus.detectors import DETECTORS, Detector, build, detector_class
from salus.model import Model, detections
from salus.preprocess.preparation import Preparation
from salus.training import fit, make_fabric
from tests.conftest import discs

LEARNERS = sorted(name for name in DETECTORS if detector_class(name).FAMILY != "floor")


def tiny(name: str, seed: int = 0) -> Detector:
    preset = detector_class(name).PRESETS["tiny"]
    torch.manual_seed(seed)
    return build(name, preset.settings, preset.score)


def trained(name: str, progress: Path, seed: int = 0) -> Detector:
    detector = tiny(name, seed)
    progress.mkdir(parents=True, exist_ok=True)
    recipe = detector_class(name).PRESETS["tiny"].recipe
    fit(detector, recipe, discs(160), discs(16, seed=2), progress, seed, make_fabric("cpu", "fp32"))
    return detector


@pytest.fixture(scope="module", params=sorted(DETECTORS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def learned(name, tmp_path_factory):
    return trained(name, tmp_path_factory.mktemp(name) / "progress")


def test_map_covers_the_image(name):
    x = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        seen = tiny(name).eval().detect(x)
    assert seen.map.shape == x.shape
    assert seen.score.shape == (3,)
    assert (seen.map >= 0).all()
    assert seen.map.isfinite().all()
    assert seen.score.isfinite().all()
    if seen.restored is not None:
        assert seen.restored.shape == x.shape
        assert seen.restored.min() >= 0
        assert seen.restored.max() <= 1


def test_a_score_depends_on_its_image_alone(learned):
    x = discs(5, seed=3)
    together = detections(learned, x)[1]
    alone = np.concatenate([detections(learned, x[i : i + 1])[1] for i in range(5)])
    np.testing.assert_allclose(alone, together, rtol=1e-4)
    np.testing.assert_array_equal(detections(learned, x)[1], together)  # nothing is drawn anew


def test_each_part_is_updated_by_name_and_covers_what_is_learned(name):
    detector = tiny(name).train()
    parts = {key: list(parameters) for key, parameters in detector.parts().items()}
    listed = [id(p) for parameters in parts.values() for p in parameters]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for key, p in detector.named_parameters() if not key.startswith("score.")}
    updated = set()

    def update(part, loss, *, keep_graph=False):
        names = (part,) if isinstance(part, str) else part
        updated.update(names)
        gradients = torch.autograd.grad(loss, [p for n in names for p in parts[n]], retain_graph=keep_graph)
        assert all(g.isfinite().all() for g in gradients)

    for progress in (0.0, 0.5, 0.99):
        logged = detector.training_step(torch.from_numpy(discs(8)), update, progress)
        assert logged
        assert all(value.ndim == 0 and not value.requires_grad for value in logged.values())
    assert updated == set(parts)


def test_one_seed_one_detector(name, tmp_path):
    first, second = (trained_briefly(name, tmp_path / key) for key in "ab")
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def trained_briefly(name: str, progress: Path) -> dict[str, torch.Tensor]:
    detector = tiny(name)
    progress.mkdir()
    recipe = detector_class(name).PRESETS["tiny"].recipe
    short = type(recipe)(**{**recipe.__dict__, "epochs": 2})
    fit(detector, short, discs(40), discs(8, seed=2), progress, 0, make_fabric("cpu", "fp32"))
    return detector.state_dict()


def test_a_saved_detector_sees_the_same(name, learned, tmp_path):
    preset = detector_class(name).PRESETS["tiny"]
    model = Model(
        name=name, settings=preset.settings, score=preset.score, detector=learned,
        preparation=Preparation(size=32, intensity="depth"),
    )  # fmt: skip
    model.save(tmp_path / "model")
    again = Model.load(tmp_path / "model").detector
    x = discs(4, hole=True)
    for before, after in zip(detections(learned, x), detections(again, x), strict=True):
        if before is not None:
            np.testing.assert_array_equal(before, after)


def test_an_unknown_setting_is_named(name):
    with pytest.raises(ConfigError, match=r"no setting 'sise'\. Did you mean 'size'\?"):
        build(name, {"sise": 32}, {})


@pytest.mark.parametrize("learner", [*LEARNERS, "pca"])
def test_a_hole_stands_out_after_learning_discs(learner, tmp_path):
    detector = trained(learner, tmp_path / "progress")
    healthy, holed = discs(24, seed=5), discs(24, hole=True, seed=5)
    _, calm, restored = detections(detector, healthy)
    maps, alarmed, _ = detections(detector, holed)
    assert np.mean(alarmed[:, None] > calm[None]) > 0.9
    hole = (holed < 0.1) & (maps.shape[-1] / 2 > 0)
    inside = np.zeros_like(hole)
    inside[..., 10:22, 10:22] = hole[..., 10:22, 10:22]
    assert maps[inside].mean() > 4 * maps[~inside].mean()
    assert np.abs(restored - healthy).mean() < 0.08


@pytest.mark.parametrize("learner", LEARNERS)
def test_resumed_training_equals_uninterrupted_training_bit_for_bit(learner, disc_folder, tmp_path):
    command = [sys.executable, "-c", "from salus.cli import main; main()", "train", learner, "--data", str(disc_folder)]
    command += ["--preset", "tiny", "--epochs", "12", "--precision", "fp32", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.run(
        [*command, "--out", str(tmp_path / "whole")], env=environment, capture_output=True, check=True
    )
    assert json.loads(whole.stdout)["epochs"] == 12

    killed = tmp_path / "killed"
    resume = [*command, "--out", str(killed), "--resume"]
    for signal_number in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(resume, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = epochs_done(killed)
        while epochs_done(killed) < before + 3 and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal_number)
        assert process.wait() == -signal_number, "it was to be killed in the middle"
    subprocess.run(resume, env=environment, capture_output=True, check=True)
    left, right = (load_file(tmp_path / run / "weights.safetensors") for run in ("whole", "killed"))
    for key, value in left.items():
        assert torch.equal(value, right[key]), key
    rows = [(tmp_path / run / "train.csv").read_text().splitlines() for run in ("whole", "killed")]
    whole_rows, killed_rows = ([{**row, "seconds": ""} for row in csv.DictReader(lines)] for lines in rows)
    assert whole_rows == killed_rows


def epochs_done(out: Path) -> int:
    """Read from the header of the state file, which is replaced as a whole."""
    state = out / "progress" / "state.safetensors"
    if not state.is_file():
        return 0
    with state.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return int(json.loads(json.loads(file.read(length))["__metadata__"]["run"])["epoch"])
