import copy

import pytest
import torch
import torch.nn.functional as F

from salus.core.errors import ConfigError
from salus.detectors import Recipe, build, detector_class
from salus.detectors import ganomaly as module
from salus.detectors.ganomaly import GANomaly
from salus.training import Stepper, fit, make_fabric
from tests.conftest import discs

SMALL = {"size": 32, "latent": 8, "widths": (8, 16, 16)}
DENSE = {**SMALL, "layers": "dense", "hidden": 32}
MEDIANOMALY = {"layers": "dense", "latent": 16, "widths": (16, 32, 64, 64), "contextual_loss": "l2"}


def small(seed: int = 0, score: str = "residual", **settings) -> GANomaly:
    torch.manual_seed(seed)
    return build("ganomaly", {**SMALL, **settings}, {"name": score})


def count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for m in modules for p in m.parameters())


def generator(detector: GANomaly) -> list[torch.nn.Module]:
    return [detector.encoder, detector.decoder, detector.second_encoder]


def stepper(detector: GANomaly, **recipe) -> Stepper:
    values = {"epochs": 1, "batch": 8, "learning_rate": 1e-3, **recipe}
    return Stepper(make_fabric("cpu", "fp32"), detector, Recipe(**values))


def losses(detector: GANomaly, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a step asks to be descended, without descending."""
    asked = {}

    def update(part, loss, *, keep_graph=False):
        asked[part] = loss.detach()

    detector.train().training_step(x, update, 0.5)
    return asked


def test_parameters_are_those_of_64_feature_maps_and_a_code_of_100():
    with torch.device("meta"):
        detector = build("ganomaly", {}, {"name": "residual"})
    body = 16 * (1 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 2 * (128 + 256 + 512)
    decoder = 16 * (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 1) + 2 * (512 + 256 + 128 + 64)
    assert count(detector.discriminator) == body + 16 * 512
    assert count(*generator(detector)) == 2 * (body + 16 * 512 * 100) + decoder == 10_723_712


def test_dense_layers_have_medianomalys_parameters():
    with torch.device("meta"):
        detector = build("ganomaly", MEDIANOMALY, {"name": "residual"})
        autoencoder = build("ae", {}, {"name": "residual"})
    assert count(detector) == 4_677_921
    assert count(*generator(detector)) == 3_520_192
    # Encoder and decoder are the autoencoder's but for the batch norm on each side of the code.
    assert count(detector.encoder, detector.decoder) == count(autoencoder) - 2 * 2048


@pytest.mark.parametrize("settings", [{}, DENSE, {**DENSE, "contextual_loss": "l2"}], ids=str)
def test_the_generators_loss_is_one_fifty_one(settings):
    detector, x = small(**settings), torch.rand(8, 1, 32, 32)
    asked = losses(copy.deepcopy(detector), x)["generator"]
    detector.train()
    inner = 2 * x - 1
    z = detector.encoder(inner)
    rebuilt = detector.decoder(z)
    features = [detector.discriminator.body(picture) for picture in (inner, rebuilt)]
    adversarial = (features[0] - features[1]).pow(2).mean()
    difference = inner - rebuilt
    contextual = difference.pow(2).mean() if "contextual_loss" in settings else difference.abs().mean()
    encoding = (z - detector.second_encoder(rebuilt)).pow(2).mean()
    torch.testing.assert_close(asked, adversarial + 50 * contextual + encoding)


def test_the_discriminators_loss_is_half_the_two_cross_entropies():
    detector, x = small(), torch.rand(8, 1, 32, 32)
    asked = losses(copy.deepcopy(detector), x)["discriminator"]
    detector.train()
    inner = 2 * x - 1
    real, fake = (detector.discriminator(p).sigmoid() for p in (inner, detector.decoder(detector.encoder(inner))))
    expected = F.binary_cross_entropy(real, torch.ones(8, 1)) + F.binary_cross_entropy(fake, torch.zeros(8, 1))
    torch.testing.assert_close(asked, 0.5 * expected)


def test_matched_features_are_what_the_last_layer_sees():
    x = torch.rand(2, 1, 32, 32)
    assert small().discriminator.body(x).shape == (2, 16, 4, 4)
    assert small(**DENSE).discriminator.body(x).shape == (2, 32)


@pytest.mark.parametrize("settings", [{}, DENSE], ids=["dcgan", "dense"])
def test_each_step_leaves_the_other_side_bit_identical(settings):
    detector = small(**settings).train()
    real, seen = stepper(detector), []

    def update(part, loss, *, keep_graph=False):
        before = {key: value.clone() for key, value in detector.named_parameters()}
        real(part, loss, keep_graph=keep_graph)
        for key, value in detector.named_parameters():
            moved = not torch.equal(value, before[key])
            assert moved == (key.startswith("discriminator") == (part == "discriminator")), f"{part}: {key}"
        seen.append(part)

    detector.training_step(torch.rand(8, 1, 32, 32), update, 0.5)
    assert seen == ["generator", "discriminator"]


def test_a_discriminator_that_sees_everything_starts_anew_and_its_optimiser_does_not():
    detector = small(renew_below=100.0).train()
    update = stepper(detector)
    x = torch.rand(8, 1, 32, 32)
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        logged = detector.training_step(x, update, 0.5)
        assert logged["renewed"] == 1
        drawn.append({key: value.clone() for key, value in detector.discriminator.named_parameters()})
    assert all(torch.equal(value, drawn[1][key]) for key, value in drawn[0].items())  # the seed decides, not the past
    assert drawn[0]["body.0.weight"].std().item() == pytest.approx(0.02, rel=0.2)
    assert update.state()["discriminator.0.step"] == 2
    assert update.state()["discriminator.0.exp_avg"].abs().max() > 0


def test_a_discriminator_with_something_to_learn_goes_on():
    detector = small().train()
    assert detector.training_step(torch.rand(8, 1, 32, 32), stepper(detector), 0.5)["renewed"] == 0


def test_a_training_with_renewals_resumes_bit_for_bit(tmp_path):
    def kill(run, epochs):
        if run.epoch == 2:
            raise KeyboardInterrupt

    def train(place, on_epoch=lambda run, epochs: None):
        place.mkdir(exist_ok=True)
        recipe, fabric = Recipe(epochs=4, batch=8, learning_rate=1e-3, select="last"), make_fabric("cpu", "fp32")
        detector = small(**DENSE, renew_below=0.7)
        run = fit(detector, recipe, discs(16), discs(4, seed=2), place, 0, fabric, on_epoch)
        return detector.state_dict(), sum(row["renewed"] for row in run.rows)

    whole, renewals = train(tmp_path / "whole")
    assert renewals > 0
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", kill)
    resumed, _ = train(tmp_path / "killed")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_all_processes_renew_together_and_alike(monkeypatch):
    """Here the other process's loss is far above the bound, then far below it; process 0 hands out its weights."""
    distributed, sent = module.torch.distributed, []
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "broadcast", lambda tensor, src: sent.append((tensor.shape, src)))
    detector, x = small(renew_below=10.0).train(), torch.rand(8, 1, 32, 32)
    for theirs, renewed in ((50.0, 0), (1.0, 1)):
        monkeypatch.setattr(distributed, "all_reduce", lambda value, theirs=theirs: value.add_(theirs))
        assert detector.training_step(x, stepper(detector), 0.5)["renewed"] == renewed
        assert sent == [(p.shape, 0) for p in detector.discriminator.parameters()] * renewed


@pytest.mark.parametrize("settings", [{}, DENSE], ids=["dcgan", "dense"])
def test_the_published_score_is_the_raw_distance_of_the_two_codes(settings):
    detector, x = small(**settings).eval(), torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        z = detector.encoder(2 * x - 1)
        again = detector.second_encoder(detector.decoder(z))
        seen = detector.detect(x)
    torch.testing.assert_close(seen.score, (z - again).pow(2).mean(1))
    torch.testing.assert_close(seen.map, (x - seen.restored).abs())


def test_the_score_of_the_map_can_be_had_instead():
    detector, x = small(image_score="map").eval(), torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        seen = detector.detect(x)
    torch.testing.assert_close(seen.score, seen.map.mean((1, 2, 3)))


def test_in_evaluation_an_image_is_judged_by_itself_and_in_training_mode_it_would_not_be():
    """MedIAnomaly evaluates in training mode at batch 1: statistics of one image, an image's score its company's."""
    detector, x = small(**DENSE), torch.from_numpy(discs(6))
    detector.train().training_step(x, stepper(detector), 0.5)
    detector.finish_training()
    with torch.no_grad():
        together, alone = detector.detect(x).score, detector.detect(x[:1]).score
        torch.testing.assert_close(together[:1], alone)
        detector.train()
        wrong_together, wrong_alone = detector.detect(x).score, detector.detect(x[:1]).score
    assert (wrong_together[:1] / wrong_alone - 1).abs() > 0.01


def test_half_precision_moves_every_parameter():
    detector = small().train()
    fabric = make_fabric("cpu", "bf16")
    update = Stepper(fabric, detector, Recipe(epochs=1, batch=8, learning_rate=1e-2))
    before = {key: value.clone() for key, value in detector.named_parameters()}
    with fabric.autocast():
        logged = detector.training_step(torch.rand(8, 1, 32, 32), update, 0.5)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in logged.values())
    assert not [key for key, value in detector.named_parameters() if torch.equal(value, before[key])]


def test_sizes_that_cannot_be_halved_are_explained():
    with pytest.raises(ConfigError, match=r"with 4 widths, size must be a multiple of 16, not 60; 48 and 64"):
        build("ganomaly", {"size": 60}, {})
    with pytest.raises(ConfigError, match=r"not 7; 16 is the nearest"):
        build("ganomaly", {"size": 7}, {})


def test_a_reading_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match=r"ganomaly: layers: Input should be 'dcgan' or 'dense'"):
        build("ganomaly", {"layers": "resnet"}, {})


def test_the_paper_preset_is_the_published_recipe():
    preset = detector_class("ganomaly").PRESETS["paper"]
    with torch.device("meta"):
        config = build("ganomaly", preset.settings, preset.score).config
    assert (config.layers, config.latent, config.widths[0]) == ("dcgan", 100, 64)
    assert (config.adversarial, config.contextual, config.encoding, config.renew_below) == (1, 50, 1, 1e-5)
    assert (config.contextual_loss, config.image_score) == ("l1", "latent")
    update = Stepper(make_fabric("cpu", "fp32"), small(), preset.recipe)
    for optimiser in update.optimisers.values():
        (group,) = optimiser.param_groups
        assert isinstance(optimiser, torch.optim.Adam)
        assert (group["lr"], group["betas"]) == (2e-4, (0.5, 0.999))
