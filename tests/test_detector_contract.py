"""What every detector must keep to, whoever wrote it."""

import csv
import dataclasses
import functools
import json
import multiprocessing
import os
import re
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from salus.core.errors import ConfigError, WeightsError
from salus.detectors import DETECTORS, Detector, Restorer, build, detector_class
from salus.model import Model, detections
from salus.preprocess.preparation import Preparation
from salus.training import fit, make_fabric, train
from salus.training.loop import fit_score
from tests.conftest import discs

LEARNERS = sorted(name for name in DETECTORS if detector_class(name).FAMILY != "floor")


def tiny(name: str, seed: int = 0) -> Detector:
    preset = detector_class(name).PRESETS["tiny"]
    torch.manual_seed(seed)
    try:
        return build(name, preset.settings, preset.score)
    except WeightsError as error:
        pytest.skip(f"{name} learns from pretrained weights: {error}")


@functools.cache
def trained(name: str) -> Detector:
    """Its `tiny` preset after 160 discs; several tests look at it, none changes it."""
    detector = tiny(name)
    recipe = detector_class(name).PRESETS["tiny"].recipe
    with tempfile.TemporaryDirectory() as progress:
        fit(detector, recipe, discs(160), discs(16, seed=2), Path(progress), 0, make_fabric("cpu", "fp32"))
    return detector


@pytest.fixture(scope="module", params=sorted(DETECTORS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def learned(name):
    return trained(name)


def test_what_a_tiny_training_needs_is_checked_before_it(name):
    tiny(name).check(detector_class(name).PRESETS["tiny"].recipe, images=160, validation=16)


def test_no_preset_keeps_weights_of_its_warm_up(name):
    """A plain VAE has the least error: chosen by it among all epochs, the method itself would never be seen."""
    for preset in detector_class(name).PRESETS.values():
        begun = preset.settings.get("warmup", 0) + preset.settings.get("ramp", 0)
        assert preset.recipe.select == "last" or preset.recipe.select_after >= begun


def fitting_changes(net: Detector) -> bool:
    before = {key: value.clone() for key, value in net.learned().items()}
    fit_score(net.eval(), discs(8), "fp32")
    return any(not torch.equal(value, before[key]) for key, value in net.learned().items())


def test_validation_images_change_nothing_in_a_tiny_detector(name):
    """Else people who shaped a map would set its threshold, too."""
    net = tiny(name)
    assert not net.fitted
    assert not fitting_changes(net)
    assert net.parts() or not detector_class(name).PRESETS["fast"].recipe.validated, "without steps no epoch is chosen"


@pytest.mark.parametrize(
    ("name", "settings", "score"),
    [("ltm", {"threshold": "validation_quantile"}, {"name": "residual"}), ("ae", {}, {"name": "zscore"})],
)
def test_what_is_fitted_on_validation_images_says_so(name, settings, score):
    net = build(name, {**detector_class(name).PRESETS["tiny"].settings, **settings}, score)
    assert net.fitted
    assert fitting_changes(net)


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


def test_map_and_score_depend_on_their_image_alone(learned):
    x = discs(5, seed=3)
    together = detections(learned, x)[:2]
    alone = [detections(learned, x[i : i + 1])[:2] for i in range(5)]
    for what, whole in enumerate(together):
        least = 1e-4 * whole.mean() if what == 0 else 0  # a map has pixels next to 0
        np.testing.assert_allclose(np.concatenate([one[what] for one in alone]), whole, rtol=1e-4, atol=least)
        np.testing.assert_array_equal(detections(learned, x)[what], whole)  # nothing is drawn anew


def test_each_part_is_updated_by_name_and_covers_what_is_learned(name):
    detector = tiny(name).train()
    parts = {key: list(parameters) for key, parameters in detector.parts().items()}
    listed = [id(p) for parameters in parts.values() for p in parameters]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in detector.parameters() if p.requires_grad}
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


@pytest.mark.parametrize("wrong", [0, -8, 10**9])
def test_a_network_that_cannot_be_is_refused_by_name(name, wrong):
    settings = detector_class(name).PRESETS["tiny"].settings
    known = {field.name for field in dataclasses.fields(detector_class(name).Config)}
    for key in {"latent", "hidden"} & known:
        with pytest.raises(ConfigError, match=f"^{name}: {key}: Input should be "):
            build(name, {**settings, key: wrong}, {})
    if "widths" in known:
        with pytest.raises(ConfigError, match=rf"^{name}: widths\.1: Input should be "):
            build(name, {**settings, "widths": (8, wrong, 8, 8)}, {})


def test_a_size_that_no_image_is_prepared_to_is_refused_by_name(name):
    settings = detector_class(name).PRESETS["tiny"].settings
    with pytest.raises(ConfigError, match=f"^{name}: size: Input should be less than or equal to 4096"):
        build(name, {**settings, "size": 10**9}, {})


def test_a_size_that_it_cannot_take_is_refused_and_one_that_it_can_is_named(name):
    tiny(name)  # skips without its weights
    preset = detector_class(name).PRESETS["tiny"]
    with pytest.raises(ConfigError, match=f"^{name}: .*size.*5") as refused:
        build(name, {**preset.settings, "size": 5}, preset.score)
    offered = {int(number) for number in re.findall(r"\d+", str(refused.value))} & {8, 16, 32}
    assert any(builds(name, size) for size in offered), str(refused.value)


def builds(name: str, size: int) -> bool:
    preset = detector_class(name).PRESETS["tiny"]
    try:
        with torch.device("meta"):
            build(name, {**preset.settings, "size": size}, preset.score)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("learner", [*LEARNERS, "pca"])
def test_a_hole_stands_out_after_learning_discs(learner):
    detector = trained(learner)
    healthy, holed = discs(24, seed=5), discs(24, hole=True, seed=5)
    usual, calm, restored = detections(detector, healthy)
    maps, alarmed, _ = detections(detector, holed)
    assert np.mean(alarmed[:, None] > calm[None]) > 0.9
    hole = holed < 0.1
    inside = np.zeros_like(hole)
    inside[..., 10:22, 10:22] = hole[..., 10:22, 10:22]
    # The gradient of deep features is wide at 32 pixels: it must rise as clearly over what healthy images show there.
    gradients = detector.FAMILY == "distillation"
    assert maps[inside].mean() > (2 if gradients else 4) * maps[~inside].mean()
    assert not gradients or maps[inside].mean() > 2 * usual[inside].mean()
    if isinstance(detector, Restorer):
        assert np.abs(restored - healthy).mean() < 0.08


@pytest.fixture(scope="module")
def trainings() -> multiprocessing.context.ForkServerContext:
    """Processes of their own, quickly: forked from one that has imported everything and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["salus.training", "salus.datasets.folder", "tests.test_detector_contract"])
    return context


def train_alone(learner: str, data: Path, out: Path) -> None:
    """What the killed process runs."""
    train(learner, data, out, preset="tiny", epochs=12, precision="fp32", resume=True)


@pytest.mark.parametrize("learner", LEARNERS)
def test_resumed_training_equals_uninterrupted_training_bit_for_bit(learner, disc_folder, tmp_path, trainings):
    tiny(learner)  # skips what cannot be built here
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = trainings.Process(target=train_alone, args=(learner, disc_folder, whole))
    done.start()
    done.join()
    assert done.exitcode == 0
    for signal_number in (signal.SIGKILL, signal.SIGTERM):
        process = trainings.Process(target=train_alone, args=(learner, disc_folder, killed))
        process.start()
        before = epochs_done(killed)
        while epochs_done(killed) < before + 3 and process.is_alive():
            time.sleep(0.005)
        os.kill(process.pid, signal_number)
        process.join()
        assert process.exitcode == -signal_number, "it was to be killed in the middle"
    last = trainings.Process(target=train_alone, args=(learner, disc_folder, killed))
    last.start()
    last.join()
    assert last.exitcode == 0
    left, right = (load_file(run / "weights.safetensors") for run in (whole, killed))
    for key, value in left.items():
        assert torch.equal(value, right[key]), key
    rows = [(run / "train.csv").read_text().splitlines() for run in (whole, killed)]
    whole_rows, killed_rows = ([{**row, "seconds": ""} for row in csv.DictReader(lines)] for lines in rows)
    assert len(whole_rows) == 12
    assert whole_rows == killed_rows


def epochs_done(out: Path) -> int:
    """Read from the header of the state file, which is replaced as a whole."""
    state = out / "progress" / "state.safetensors"
    if not state.is_file():
        return 0
    with state.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return int(json.loads(json.loads(file.read(length))["__metadata__"]["run"])["epoch"])
