import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from salus.core.errors import ConfigError, TrainingError
from salus.detectors import Recipe, build, detector_class
from salus.model import Model
from salus.training import Stepper, fit, loop, make_fabric, rescored, train
from salus.training.loop import augmented, averaged, batches, mixed, rate
from salus.training.plan import resolved
from tests.conftest import discs
from tests.dicom import dicom, saved, series

RECIPE = Recipe(epochs=3, batch=8, learning_rate=1e-3)


def tiny(name: str = "ae", seed: int = 0):
    preset = detector_class(name).PRESETS["tiny"]
    torch.manual_seed(seed)
    return build(name, preset.settings, preset.score)


def run(detector, recipe, progress, **settings):
    progress.mkdir(parents=True, exist_ok=True)
    return fit(detector, recipe, discs(40), discs(8, seed=2), progress, 0, make_fabric("cpu", "fp32"), **settings)


def test_every_image_is_seen_once_an_epoch_in_an_order_of_its_own():
    images = np.arange(24, dtype=np.float32).reshape(24, 1, 1, 1)
    fabric = make_fabric("cpu", "fp32")
    orders = [torch.cat(list(batches(images, RECIPE, 0, epoch, fabric))).flatten().tolist() for epoch in (0, 1, 0)]
    assert sorted(orders[0]) == list(range(24))
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]


def test_fewer_images_than_a_batch_are_one_batch():
    found = list(batches(discs(5), RECIPE, 0, 0, make_fabric("cpu", "fp32")))
    assert [len(x) for x in found] == [5]


def test_steps_are_the_nearest_number_of_whole_passes_and_one_at_the_least(tmp_path):
    recipe = replace(RECIPE, steps=21)
    assert [recipe.for_images(n).epochs for n in (3, 40, 80, 1000)] == [21, 4, 2, 1]
    assert recipe.for_images(40, processes=2).epochs == 10
    assert RECIPE.for_images(40) == RECIPE
    done = run(tiny(), recipe, tmp_path)  # 40 images, 5 steps an epoch
    assert (done.epoch, done.step) == (4, 20)


def test_who_says_epochs_means_epochs_though_the_preset_counts_steps(monkeypatch):
    presets = detector_class("ae").PRESETS
    counted = replace(presets["tiny"], recipe=replace(presets["tiny"].recipe, steps=50))
    monkeypatch.setattr(detector_class("ae"), "PRESETS", {**presets, "tiny": counted})
    assert resolved("ae", "tiny", {}, seed=0).recipe.steps == 50
    assert resolved("ae", "tiny", {"recipe.epochs": 2}, seed=0).recipe.steps == 0
    with pytest.raises(ConfigError, match=r"^recipe\.epochs and recipe\.steps both say how long to train\."):
        resolved("ae", "tiny", {"recipe.epochs": 2, "recipe.steps": 9}, seed=0)


def test_a_training_in_steps_tells_its_epochs_and_goes_on(disc_folder, tmp_path):
    def trained(steps: int) -> dict:
        settings = {"recipe.steps": steps}
        folder = train("ae", disc_folder, tmp_path / "m", preset="tiny", settings=settings, resume=True).folder
        return Model.load(folder).card

    card = trained(9)
    epochs = card["plan"]["recipe"]["epochs"]
    assert (card["run"]["epoch"], card["run"]["step"]) == (epochs, pytest.approx(9, abs=4))
    assert epochs != detector_class("ae").PRESETS["tiny"].recipe.epochs
    assert trained(9) == card  # nothing is trained again
    with pytest.raises(ConfigError, match="was begun with another recipe"):
        trained(90)


def test_seeds_of_steps_do_not_repeat():
    seeds = {mixed(seed, step, rank) for seed in range(5) for step in range(50) for rank in range(3)}
    assert len(seeds) == 750


def test_the_best_epoch_is_copied_not_referenced(tmp_path, monkeypatch):
    """The training goes on for two epochs after the best one, and the kept weights are not those of the end."""
    detector, after = tiny(), []
    errors = iter([3.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(loop, "validation_loss", lambda *_: next(errors))

    def remember(now, epochs):
        after.append({k: v.clone() for k, v in detector.state_dict().items()})

    finished = run(detector, replace(RECIPE, epochs=4), tmp_path / "p", on_epoch=remember)
    assert (finished.best, finished.best_epoch, finished.epoch) == (1.0, 2, 4)
    for key, value in detector.state_dict().items():
        assert torch.equal(value, after[1][key]), key
    assert not all(torch.equal(value, after[3][key]) for key, value in detector.state_dict().items())


def test_every_step_of_a_training_has_the_rate_of_its_place(tmp_path, monkeypatch):
    recipe, rates = replace(RECIPE, schedule="cosine", warm=0.2), []
    stepped = torch.optim.Adam.step

    def watched(self, *given):
        rates.append(self.param_groups[0]["lr"])
        return stepped(self, *given)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    run(tiny(), recipe, tmp_path / "p")
    steps = 3 * 40 // 8
    assert rates == pytest.approx([RECIPE.learning_rate * rate(recipe, step, steps) for step in range(steps)])
    assert max(rates) > 10 * min(rates)


def test_last_keeps_the_last_weights(tmp_path):
    detector, last = tiny(), {}

    def remember(now, epochs):
        last.update({k: v.clone() for k, v in detector.state_dict().items()})

    run(detector, replace(RECIPE, select="last", learning_rate=0.3), tmp_path / "p", on_epoch=remember)
    assert all(torch.equal(value, last[key]) for key, value in detector.state_dict().items())


def test_patience_ends_a_training_that_gets_no_better(tmp_path):
    finished = run(tiny(), replace(RECIPE, epochs=200, learning_rate=0.1, patience=3), tmp_path / "p")
    assert finished.epoch < 200
    assert finished.epoch - finished.best_epoch == 3


def test_no_epoch_of_the_warm_up_is_eligible_as_best(tmp_path):
    finished = run(tiny(), replace(RECIPE, epochs=4, select_after=0.5), tmp_path / "p")
    assert finished.best_epoch > 2


def test_averaged_weights_by_hand():
    detector = tiny()
    average = {k: torch.zeros_like(v) for k, v in detector.state_dict().items()}
    averaged(average, detector, 0.75)
    for key, value in detector.state_dict().items():
        expected = value if not value.is_floating_point() else 0.25 * value
        torch.testing.assert_close(average[key], expected)


def test_an_averaged_training_keeps_the_average_and_goes_on_from_the_plain_weights(tmp_path):
    plain, average = tiny(), tiny()
    run(plain, replace(RECIPE, select="last"), tmp_path / "a")
    run(average, replace(RECIPE, select="last", average=0.9), tmp_path / "b")
    states = [load_file(tmp_path / p / "state.safetensors") for p in "ab"]
    for key in plain.state_dict():
        torch.testing.assert_close(states[0][f"detector/{key}"], states[1][f"detector/{key}"])
        assert torch.equal(average.state_dict()[key], states[1][f"average/{key}"])
    assert not all(torch.equal(v, plain.state_dict()[k]) for k, v in average.state_dict().items())


def test_clipping_bounds_the_gradient_of_a_part():
    detector = tiny()
    stepper = Stepper(make_fabric("cpu", "fp32"), detector, replace(RECIPE, clip=1e-3))
    seen = []
    stepper.optimisers["autoencoder"].step = lambda: seen.append(  # type: ignore[method-assign]
        torch.cat([p.grad.flatten() for p in stepper.parts["autoencoder"]]).norm().item()
    )
    detector.train().training_step(torch.from_numpy(discs(8)), stepper, 0.0)
    assert seen[0] == pytest.approx(1e-3, rel=1e-3)


def test_the_cosine_is_torchs_stepped_on_past_its_end():
    recipe = replace(RECIPE, schedule="cosine", period=10)
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10)
    for step in range(40):
        assert rate(recipe, step, 1000) == pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-6)
        optimiser.step()
        scheduler.step()
    assert rate(recipe, 10, 1000) == pytest.approx(0)
    assert rate(recipe, 20, 1000) == pytest.approx(1)


def test_the_rate_rises_linearly_and_then_falls_to_nothing_at_the_end():
    recipe = replace(RECIPE, schedule="cosine", warm=0.1)
    rates = [rate(recipe, step, 100) for step in range(100)]
    np.testing.assert_allclose(np.diff(rates[:10]), 1 / 11)
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001
    assert all(rate(RECIPE, step, 100) == 1 for step in range(100))


def test_rates_reach_the_optimisers_and_parts_have_their_own():
    detector = tiny("ra")
    recipe = replace(
        RECIPE, schedule="cosine", parts={"decoder": {"optimiser": "rmsprop", "learning_rate": 5e-5}},
        optimiser="amsgrad", betas=(0.5, 0.9), weight_decay=1e-5,
    )  # fmt: skip
    stepper = Stepper(make_fabric("cpu", "fp32"), detector, recipe)
    encoder, decoder = (stepper.optimisers[part] for part in ("encoder", "decoder"))
    assert isinstance(decoder, torch.optim.RMSprop)
    assert encoder.defaults["amsgrad"]
    assert encoder.defaults["betas"] == (0.5, 0.9)
    assert encoder.defaults["weight_decay"] == decoder.defaults["weight_decay"] == 1e-5
    stepper.at(50, 100)
    assert encoder.param_groups[0]["lr"] == pytest.approx(5e-4)
    assert decoder.param_groups[0]["lr"] == pytest.approx(2.5e-5)


def test_a_part_that_does_not_exist_or_a_setting_it_cannot_have_is_named():
    with pytest.raises(ConfigError, match=r"there is no part 'decodr'\. Did you mean 'decoder'"):
        Stepper(make_fabric("cpu", "fp32"), tiny("ra"), replace(RECIPE, parts={"decodr": {"betas": (0, 0.9)}}))
    with pytest.raises(ValueError, match="part decoder cannot have its own 'epochs'"):
        replace(RECIPE, parts={"decoder": {"epochs": 3}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe.epochs": 0}, r"^recipe\.epochs: Input should be greater than or equal to 1, got 0\.$"),
        ({"recipe.betas": (0.9, 3)}, r"^recipe\.betas\.1: Input should be less than 1, got 3\.$"),
        (
            {"recipe.parts": {"encoder": {"learning_rate": -3}}},
            r"^recipe: part encoder: learning_rate: Input should be greater than 0, got -3\.$",
        ),
    ],
)
def test_a_value_that_does_not_fit_a_recipe_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        resolved("ra", "tiny", settings, seed=0)


def test_what_counts_batches_takes_epochs_in_their_place_and_is_never_left_without_either():
    recipe = resolved("ra", "fast", {"recipe.epochs": 5}, seed=0).recipe
    assert (recipe.for_images(10_000).epochs, recipe.steps) == (5, 0)
    assert resolved("ra", "fast", {}, seed=0).recipe.for_images(800).epochs == 24, "2,400 batches of 8"
    with pytest.raises(
        ConfigError, match=r"^ra fast counts batches: in place of recipe\.steps=0 set recipe\.epochs\.$"
    ):
        resolved("ra", "fast", {"recipe.steps": 0}, seed=0)


def test_a_score_that_learns_is_fitted_on_the_validation_part_and_saved(disc_folder, tmp_path):
    settings = {"recipe.epochs": 2, "score.name": "zscore", "score.of": "squared"}
    folder = train("ae", disc_folder, tmp_path / "m", preset="tiny", settings=settings, precision="fp32").folder
    model = Model.load(folder)
    assert model.detector.score.spread.std() > 0
    assert torch.equal(load_file(folder / "weights.safetensors")["score.mean"], model.detector.score.mean)


def test_what_is_wrong_with_cases_learned_from_is_told(salus, tmp_path):
    for number, picture in enumerate(discs(12)):
        volume = np.repeat(np.round(900 * picture[0]).astype(np.int16)[..., None], 5, axis=2)
        paths = series(tmp_path / f"data/p{number:02}", volume, [0, 0, 2.0], PatientID=str(number))
    paths[2].unlink()
    saved(tmp_path / "data/p00/report.dcm", dicom(np.zeros((8, 8), np.uint8), Modality="SR", SeriesInstanceUID="9"))
    out = tmp_path / "m"
    how = ("--data", tmp_path / "data", "--out", out, "--preset", "tiny", "--epochs", 1)
    expected = [
        *(
            f"{paths[first].name}: part {part} of 2 of a series with gaps or of several spacings"
            for first, part in ((0, 1), (3, 2))
        ),
        "1 passed over: of kind SR, no image of a patient",
    ]
    code, told, err = salus("train", "ae", *how)
    assert code == 0, err
    assert set(expected) <= set(told.splitlines())
    assert Model.load(out).card["remarks"] == expected
    code, told, _ = salus("train", "ae", *how, "--resume")  # finished: says the same
    assert set(expected) <= set(told.splitlines())


def test_another_score_changes_map_and_threshold_but_no_weight(disc_folder, tmp_path):
    train("ae", disc_folder, tmp_path / "ae", preset="tiny", epochs=2)
    out = rescored(tmp_path / "ae", {"name": "zscore"}, disc_folder, tmp_path / "z")
    first, other = Model.load(tmp_path / "ae"), Model.load(out)
    mine, theirs = first.detector.learned(), other.detector.learned()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert "score.spread" in theirs.keys() - mine.keys(), "what a score learns is saved"
    assert other.summary == "ae + zscore-residual"
    assert other.calibration != first.calibration

    again = train("ae", disc_folder, tmp_path / "again", preset="tiny", epochs=2, settings={"score.name": "zscore"})
    assert Model.load(again.folder).calibration == other.calibration, "as if it had been trained with it"


def test_a_score_is_fitted_on_the_models_own_healthy_parts_or_not_at_all(disc_folder, tmp_path):
    train("ae", disc_folder, tmp_path / "ae", preset="tiny", epochs=1)
    other = tmp_path / "other"
    shutil.copytree(disc_folder, other)
    (other / "train" / "good" / "000.png").unlink()
    with pytest.raises(ConfigError, match="did not learn from"):
        rescored(tmp_path / "ae", {"name": "residual"}, other, tmp_path / "new")
    rescored(tmp_path / "ae", {"name": "residual"}, disc_folder, tmp_path / "new")
    with pytest.raises(ConfigError, match="holds another model"):
        rescored(tmp_path / "ae", {"name": "ssim"}, disc_folder, tmp_path / "new")
    train("knn", disc_folder, tmp_path / "knn", preset="tiny")
    with pytest.raises(ConfigError, match="makes its map itself"):
        rescored(tmp_path / "knn", {"name": "residual"}, disc_folder, tmp_path / "none")


def test_augmentation_moves_but_keeps_range_shape_and_brightness():
    x = torch.from_numpy(discs(64))
    torch.manual_seed(0)
    moved = augmented(x)
    assert moved.shape == x.shape
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (moved - x).abs().mean() > 0.02
    assert moved.mean().item() == pytest.approx(x.mean().item(), rel=0.1)
    levels = 255 * moved
    assert (levels - levels.round()).abs().max() > 0.4, "pictures are not rounded to 8 bits on their way"


def test_half_precision_learns_as_full_precision_does(tmp_path):
    found = []
    for precision in ("fp32", "bf16"):
        detector = tiny("ra")
        (tmp_path / precision).mkdir()
        fabric = make_fabric("cpu", precision)
        recipe = replace(RECIPE, epochs=8, learning_rate=2e-3)
        found.append(fit(detector, recipe, discs(64), discs(8, seed=2), tmp_path / precision, 0, fabric).rows[-1])
    assert found[1]["mse"] == pytest.approx(found[0]["mse"], rel=0.3)


TOGETHER = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
torch.set_num_threads(1)
from tests.test_training import RECIPE, tiny
from tests.conftest import discs
from salus.training import fit, make_fabric
from safetensors.torch import save_file
fabric = make_fabric("cpu", "fp32")
detector = tiny("ra")
place = Path(sys.argv[1])
fit(detector, RECIPE, discs(40), discs(8, seed=2), place, 0, fabric)
state = {k: v.clone() for k, v in detector.named_parameters()}
save_file({k: v.detach().contiguous() for k, v in state.items()}, place / f"rank{fabric.global_rank}.safetensors")
torch.distributed.destroy_process_group()
"""


def test_two_processes_learn_one_model(tmp_path):
    (tmp_path / "together.py").write_text(TOGETHER)
    root = str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29517"]
    subprocess.run([*command, str(tmp_path / "together.py"), str(tmp_path), root], check=True, capture_output=True)
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    start = dict(tiny("ra").named_parameters())
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert any(not torch.equal(value, start[key]) for key, value in first.items())


def test_a_damaged_state_is_refused(tmp_path):
    from salus.core.errors import ModelError

    run(tiny(), RECIPE, tmp_path / "p")
    state = tmp_path / "p" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ModelError, match="was altered"):
        run(tiny(), RECIPE, tmp_path / "p")


def test_every_epoch_trains_in_training_mode_and_judges_in_evaluation_mode(tmp_path):
    detector, modes = tiny(), []
    trained, judged = detector.training_step, detector.validation_loss
    detector.training_step = lambda *arguments: (modes.append(("step", detector.training)), trained(*arguments))[1]
    detector.validation_loss = lambda x: (modes.append(("judge", detector.training)), judged(x))[1]
    fit(detector, replace(RECIPE, epochs=3), discs(16), discs(8, seed=1), tmp_path, 0, make_fabric("cpu", "fp32"))
    assert set(modes) == {("step", True), ("judge", False)}
    assert modes.index(("judge", False)) < len(modes) - 1 - modes[::-1].index(("step", True))
    assert not detector.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe.batch": 1}, r"batch norm of this method needs two images a step or more: recipe.batch is 1"),
        (
            {"recipe.batch": 1, "size": 16, "code": "spatial"},
            r"batch norm of this method needs two images a step or more: recipe.batch is 1",
        ),
        (
            {"size": 16, "score.name": "perceptual"},
            r"score .* 16 x 16 pixels are too few for this trunk, it takes 31 x 31",
        ),
        ({"score.name": "gradient", "score.of": "kl"}, r"needs a method with a kl term"),
    ],
)
def test_what_could_only_fail_after_training_is_refused_before_and_leaves_nothing(
    tmp_path, disc_folder, settings, message
):
    with pytest.raises(ConfigError, match=message):
        train("ae", disc_folder, tmp_path / "model", preset="tiny", settings=settings)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("method", "settings", "large"),
    [
        ("ltm", {"codes": 10**9}, r"transformer\.token_embeddings\.weight, 1000000001 x 32"),
        ("pca", {"size": 4096, "components": 10000}, "basis, 10000 x 16777216"),
        ("mem-ae", {"items": 10**9, "threshold": 0.0}, "memory, 1000000000 x 8"),
        ("ae", {"size": 2048, "hidden": 16384}, r"(en|de)coder\.\d+\.weight, .*"),
    ],
)
def test_what_the_machine_cannot_hold_is_refused_before_it_is_built(method, settings, large, tmp_path, disc_folder):
    said = rf"^{method} takes [\d.]+ GiB to train, .* Set to less what makes this so large: {large}\.$"
    with pytest.raises(ConfigError, match=said):
        train(method, disc_folder, tmp_path / "model", preset="tiny", settings=settings)
    assert not (tmp_path / "model").exists()


def test_a_zscore_needs_two_validation_images():
    score = {"name": "zscore"}
    with pytest.raises(ConfigError, match=r"score zscore-residual needs 2 healthy validation images or more"):
        build("ae", detector_class("ae").PRESETS["tiny"].settings, score).check(RECIPE, images=20, validation=1)


def test_a_training_that_blows_up_on_its_last_step_is_an_error(tmp_path, disc_folder):
    settings = {"recipe.learning_rate": 1e30, "recipe.batch": 64}
    with pytest.raises(
        TrainingError, match=r"Epoch 1: the error on healthy validation images is .*lower recipe.learning_rate"
    ):
        train("ae", disc_folder, tmp_path / "model", preset="tiny", settings=settings, epochs=1)
    with pytest.raises(TrainingError):  # nothing was begun that would have to be removed first
        train("ae", disc_folder, tmp_path / "model", preset="tiny", settings=settings, epochs=1)


@pytest.mark.parametrize(
    ("first", "then", "diverged"),
    [
        (0.5, 9e5, False),
        (0.5, 2e6, True),
        (-5e3, -4e9, False),
        (-5e3, 6e9, True),
        (5e12, 1.0, False),
        (np.nan, 1.0, True),
        (np.inf, 1.0, True),
    ],
)
def test_a_loss_has_diverged_at_a_million_times_the_first_one(first, then, diverged):
    detector = tiny()
    stepper = Stepper(make_fabric("cpu", "fp32"), detector, replace(RECIPE, learning_rate=1e-9))

    def steps():
        for loss in (first, then):
            stepper("autoencoder", sum(p.sum() for p in stepper.parts["autoencoder"]) * 0 + loss)

    if diverged:
        with pytest.raises(TrainingError, match="the loss of autoencoder is"):
            steps()
    else:
        steps()


def test_a_useless_model_of_a_far_too_high_rate_is_an_error(tmp_path, disc_folder):
    with pytest.raises(TrainingError, match=r"begin anew in another --out with a lower recipe\.learning_rate"):
        train("dae", disc_folder, tmp_path / "m", preset="tiny", settings={"recipe.learning_rate": 30.0}, epochs=3)


@pytest.mark.parametrize(
    ("method", "settings", "match"),
    [
        ("pca", {"components": 8}, "8 components give any of 8 images back as it is. Set components lower"),
        ("knn", {"neighbours": 9}, "looks for 9 neighbours, but keeps 8 of 15 healthy images. Set neighbours lower"),
    ],
)
def test_images_that_an_incomplete_batch_drops_do_not_count(method, settings, match):
    preset = detector_class(method).PRESETS["tiny"]
    net, recipe = build(method, {**preset.settings, **settings}, preset.score), replace(preset.recipe, batch=8)
    with pytest.raises(ConfigError, match=match):
        net.check(recipe, images=15, validation=2)
    net.check(recipe, images=16, validation=2)


def test_an_epoch_shows_whole_batches_or_all_there_are():
    assert [replace(RECIPE, batch=8).used(count) for count in (7, 8, 9, 15, 16)] == [7, 8, 8, 8, 16]
    assert [replace(RECIPE, batch=8).used(count, processes=2) for count in (7, 16, 31)] == [7, 16, 16]


def test_a_resumed_training_measures_losses_by_its_very_first_one(tmp_path):
    first = {}

    def stop(run, epochs):
        first.update(run.first)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny(), RECIPE, tmp_path / "p", on_epoch=stop)
    assert run(tiny(), RECIPE, tmp_path / "p").first == first
    assert first.keys() == {"autoencoder"}


def test_a_bank_that_fits_once_but_not_while_it_is_saved_is_refused_before_an_image_is_read(
    tmp_path, disc_folder, monkeypatch
):
    """Four times the bank are held for a moment: a machine that has room for one would be exhausted."""
    monkeypatch.setattr("salus.detectors.features.memory", lambda: 40e6)
    read: list[int] = []
    settings = {"bank": 12000, "trunk": "alexnet"}
    with pytest.raises(ConfigError, match=r"12000 patches of .* 4 times that while they are saved.* Lower bank\.$"):
        train(
            "patchcore", disc_folder, tmp_path / "model", preset="tiny", settings=settings,
            on_image=lambda *at: read.append(1),
        )  # fmt: skip
    assert not read
    assert not (tmp_path / "model").exists()
