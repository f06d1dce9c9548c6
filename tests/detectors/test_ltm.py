import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from salus.core.errors import ConfigError
from salus.detectors import Recipe, build, detector_class
from salus.detectors import ltm as ltm_code
from salus.detectors.ltm import LTM
from salus.training import Stepper, make_fabric

SMALL = {"size": 32, "channels": 8, "codes": 6, "entries": 4, "width": 16, "depth": 2, "heads": 2}
CODEBOOK = "vqvae.quantizer.quantizer."


def small(seed: int = 0, **settings) -> LTM:
    torch.manual_seed(seed)
    return build("ltm", {**SMALL, **settings}, {"name": "residual"})


def trained(steps: int = 4, **settings) -> LTM:
    """A few steps of each stage: tokens of several kinds, and a transformer with opinions."""
    ltm = small(**settings)
    step = Stepper(make_fabric("cpu", "fp32"), ltm, Recipe(epochs=1, batch=8, learning_rate=1e-2))
    torch.manual_seed(1)
    for progress in [0.0] * steps + [0.9] * steps:
        ltm.train().training_step(torch.rand(8, 1, ltm.config.size, ltm.config.size), step, progress)
    return ltm.eval()


def step_once(ltm: LTM, progress: float, x: torch.Tensor) -> dict[str, torch.Tensor]:
    step = Stepper(make_fabric("cpu", "fp32"), ltm, Recipe(epochs=1, batch=8, learning_rate=1e-2))
    torch.manual_seed(1)
    return ltm.train().training_step(x, step, progress)


def codebook(ltm: LTM) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in ltm.state_dict().items() if k.startswith(CODEBOOK)}


def count(parameters) -> int:
    return sum(p.numel() for p in parameters)


@pytest.mark.parametrize(("size", "expected"), [(64, 3_203_345), (128, 3_301_649)])
def test_parameters_are_the_published_ones(size, expected):
    with torch.device("meta"):
        ltm = build("ltm", {**detector_class("ltm").PRESETS["paper"].settings, "size": size}, {"name": "residual"})
    parts = ltm.parts()
    assert count(parts["vqvae"]) == 11_842_625
    assert count(parts["transformer"]) == expected
    assert count(ltm.parameters()) == 11_842_625 + 1_024 + expected


def test_every_attention_projects_its_output():
    """In some of MONAI's older blocks the projection was made and counted but never applied."""
    ltm = small().eval()
    tokens = torch.randint(0, 6, (2, 64))
    before = ltm.likelihood(tokens)
    for block in ltm.transformer.blocks:
        with torch.no_grad():
            saved = block.attn.out_proj.weight.clone()
            block.attn.out_proj.weight.add_(0.5)
            assert not torch.allclose(ltm.likelihood(tokens), before)
            block.attn.out_proj.weight.copy_(saved)


def test_one_block_is_pre_norm_causal_attention_and_a_gelu_network():
    """Against torch's own layer of Vaswani et al., its weights set to the same."""
    ltm = small(depth=1).eval()
    block = ltm.transformer.blocks[0]
    own = nn.TransformerEncoderLayer(16, 2, 64, 0.0, F.gelu, batch_first=True, norm_first=True).eval()
    with torch.no_grad():
        own.self_attn.in_proj_weight.copy_(torch.cat([getattr(block.attn, f"to_{k}").weight for k in "qkv"]))
        own.self_attn.in_proj_bias.zero_()
        own.self_attn.out_proj.load_state_dict(block.attn.out_proj.state_dict())
        for mine, theirs in ((own.linear1, block.mlp.linear1), (own.linear2, block.mlp.linear2)):
            mine.load_state_dict(theirs.state_dict())
        for mine, theirs in ((own.norm1, block.norm1), (own.norm2, block.norm2)):
            mine.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(9)
    torch.testing.assert_close(block(x), own(x, src_mask=mask, is_causal=True), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("place", [0, 1, 30, 62])
def test_a_token_does_not_change_its_own_prediction_nor_an_earlier_one(place):
    """MONAI GenerativeModels issue 314: without the shift the transformer learns to repeat what it is shown."""
    ltm = small().eval()
    tokens = torch.randint(0, 6, (1, 64))
    other = tokens.clone()
    other[0, place] = (other[0, place] + 1) % 6
    before, after = ltm.logits(tokens[:, :-1]), ltm.logits(other[:, :-1])
    torch.testing.assert_close(after[:, : place + 1], before[:, : place + 1])
    assert not torch.allclose(after[:, place + 1], before[:, place + 1])


def test_likelihood_is_a_softmax_over_codes_and_the_beginning():
    ltm = small().eval()
    tokens = torch.randint(0, 6, (2, 64))
    by_hand = torch.empty(2, 64)
    for i in range(64):
        logits = ltm.transformer(F.pad(tokens[:, :i], (1, 0), value=6))[:, -1]
        by_hand[:, i] = torch.log_softmax(logits, 1)[torch.arange(2), tokens[:, i]]
    torch.testing.assert_close(ltm.likelihood(tokens), by_hand, atol=1e-5, rtol=1e-5)


def test_the_nearest_code_is_taken_and_read_row_by_row():
    ltm = small().eval()
    x = torch.rand(2, 1, 32, 32)
    seen = ltm.vqvae.encoder(x)  # (2, 4, 8, 8)
    codes = ltm.state_dict()[CODEBOOK + "embedding.weight"]
    expected = torch.stack([
        torch.cdist(seen[:, :, row, column], codes).argmin(1) for row in range(8) for column in range(8)
    ], 1)  # fmt: skip
    assert torch.equal(ltm.tokens(x), expected)


def test_the_codebook_follows_the_encoder_as_published():
    """N <- d N + (1 - d) n, m <- d m + (1 - d) sum z, e = m / N with Laplace smoothing: one step by hand."""
    ltm, x = small(restart=0.0), torch.rand(8, 1, 32, 32)
    before = codebook(ltm)
    with torch.no_grad():
        z = ltm.vqvae.encoder(x).movedim(1, -1).flatten(0, 2)
    tokens = ltm.tokens(x).flatten()
    step_once(ltm, 0.0, x)
    chosen = F.one_hot(tokens, 6).float()
    size = 0.5 * before[CODEBOOK + "ema_cluster_size"] + 0.5 * chosen.sum(0)
    moved = 0.5 * before[CODEBOOK + "ema_w"] + 0.5 * chosen.T @ z
    smooth = (size + 1e-5) / (size.sum() + 6e-5) * size.sum()
    torch.testing.assert_close(codebook(ltm)[CODEBOOK + "embedding.weight"], moved / smooth[:, None])


def test_the_first_stage_minimises_l1_and_a_quarter_of_the_commitment():
    ltm, x = small(), torch.rand(8, 1, 32, 32)
    codes = ltm.state_dict()[CODEBOOK + "embedding.weight"].clone()
    with torch.no_grad():
        z = ltm.vqvae.encoder(x)
        nearest = codes[ltm.tokens(x)].view(8, 8, 8, 4).movedim(-1, 1)
        error = (ltm.vqvae.decoder(nearest) - x).abs().mean()
    logged, losses = {}, []
    logged = ltm.train().training_step(x, lambda part, loss, keep_graph=False: losses.append((part, loss)), 0.0)
    torch.testing.assert_close(logged["l1"], error)
    torch.testing.assert_close(logged["commitment"], 0.25 * F.mse_loss(z, nearest))
    assert losses[0][0] == "vqvae"
    torch.testing.assert_close(losses[0][1].detach(), logged["l1"] + logged["commitment"])


def test_the_codebook_moves_in_stage_one_alone_and_never_in_validation():
    ltm, x = small(), torch.rand(8, 1, 32, 32)
    states = [codebook(ltm)]
    step_once(ltm, 0.49, x)
    states.append(codebook(ltm))
    assert all(not torch.equal(states[0][k], states[1][k]) for k in states[0])
    with torch.no_grad():
        ltm.train().validation_loss(x)  # even if someone forgot eval
    step_once(ltm, 0.5, x)
    with torch.no_grad():
        ltm.train().validation_loss(x)
        ltm.eval().detect(x)
    assert all(torch.equal(states[1][k], value) for k, value in codebook(ltm).items())


def test_stage_two_leaves_the_whole_vqvae_bit_identical():
    ltm, x = small(), torch.rand(8, 1, 32, 32)
    before = copy.deepcopy(ltm.state_dict())
    step_once(ltm, 0.5, x)
    for key, value in ltm.state_dict().items():
        if key.startswith("vqvae."):
            assert torch.equal(value, before[key]), key
        elif key.startswith("transformer."):
            assert not torch.equal(value, before[key]), key


def test_the_codebook_survives_in_the_state_and_no_mask_does():
    state = small().state_dict()
    assert {CODEBOOK + k for k in ("embedding.weight", "ema_cluster_size", "ema_w")} <= set(state)
    assert not [key for key in state if "causal_mask" in key or "norm_cross_attn" in key]


def test_validation_is_the_vq_error_first_and_then_the_cross_entropy():
    ltm, x = small(), torch.rand(3, 1, 32, 32)
    step_once(ltm, 0.0, torch.rand(8, 1, 32, 32))
    ltm.eval()
    torch.testing.assert_close(ltm.validation_loss(x), (ltm.pictured(ltm.tokens(x)) - x).abs().mean((1, 2, 3)))
    step_once(ltm, 0.5, torch.rand(8, 1, 32, 32))
    ltm.eval()
    torch.testing.assert_close(ltm.validation_loss(x), -ltm.likelihood(ltm.tokens(x)).mean(1))


def test_healing_says_doubtful_tokens_anew_one_after_the_other():
    """Against the plain reading: image by image, place by place, the whole prefix each time."""
    ltm = trained(size=16)
    torch.manual_seed(3)
    tokens, doubtful = torch.randint(0, 6, (5, 16)), torch.rand(5, 16) < torch.tensor([0, 0.1, 0.3, 0.6, 1])[:, None]
    expected = tokens.clone()
    for row, place in doubtful.nonzero():
        seen = F.pad(expected[row : row + 1, :place], (1, 0), value=6)
        probability = torch.softmax(ltm.transformer(seen)[0, -1], 0)
        probability[6] = 0
        expected[row, place] = probability.argmax()
    healed = ltm.heal(tokens, doubtful)
    assert torch.equal(healed, expected)
    assert torch.equal(healed[~doubtful], tokens[~doubtful])
    assert not torch.equal(healed, tokens)


def test_the_beginning_never_comes_as_a_token():
    ltm = small().eval()
    with torch.no_grad():
        ltm.transformer.to_logits.bias[6] = 1e6
        healed = ltm.heal(torch.zeros(2, 64, dtype=torch.long), torch.ones(2, 64, dtype=torch.bool))
    assert healed.max() < 6


def test_nothing_doubtful_heals_nothing():
    tokens = torch.randint(0, 6, (2, 64))
    assert torch.equal(small().heal(tokens, torch.zeros(2, 64, dtype=torch.bool)), tokens)


def test_a_quantile_is_taken_over_each_image_not_over_the_batch():
    ltm = small(quantile=0.1)
    likelihood = torch.stack([torch.linspace(-1, 0, 64), torch.linspace(-100, -50, 64)])
    doubtful = ltm.doubtful(likelihood)
    assert doubtful.sum(1).tolist() == [7, 7]
    assert doubtful[:, :7].all()


def test_a_validation_quantile_doubts_that_share_of_healthy_tokens_and_can_doubt_none_of_an_image():
    ltm = trained(threshold="validation_quantile", quantile=0.1)
    healthy = torch.rand(12, 1, 32, 32)
    assert not ltm.doubtful(torch.full((1, 64), -1e9)).any()  # before a limit is found
    with torch.no_grad():
        ltm.fit_score(iter([healthy[:8], healthy[8:]]))
        doubtful = ltm.doubtful(ltm.likelihood(ltm.tokens(healthy)))
    assert doubtful.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert not ltm.doubtful(torch.zeros(1, 64)).any()
    again = small(threshold="validation_quantile", quantile=0.1)
    again.load_state_dict(ltm.state_dict())
    assert again.limit == ltm.limit


def test_a_masked_map_is_the_plain_one_where_tokens_were_doubtful_and_zero_elsewhere():
    masked, plain = trained(masked=True), trained(masked=False)
    x = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        a, b = masked.detect(x), plain.detect(x)
        doubtful = masked.healed(x)[1]
    grid = doubtful.view(3, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(a.map, torch.where(grid, (x - b.restored).abs(), 0))
    torch.testing.assert_close(b.map, (x - b.restored).abs())
    torch.testing.assert_close(b.score, b.map.mean((1, 2, 3)))


def test_the_score_can_be_how_unlikely_all_tokens_are():
    ltm = trained(image_score="likelihood")
    x = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ltm.detect(x).score, -ltm.likelihood(ltm.tokens(x)).sum(1))


@pytest.mark.parametrize("threshold", ["per_image_quantile", "validation_quantile"])
def test_neighbours_of_different_health_change_nothing(threshold):
    """Images with none, some and all tokens doubtful share rounds; each is healed as if it were alone."""
    ltm = trained(size=16, threshold=threshold, quantile=0.3)
    x = torch.cat([torch.rand(3, 1, 16, 16), torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)])
    with torch.no_grad():
        ltm.limit.copy_(ltm.likelihood(ltm.tokens(x)).median())
        together = ltm.detect(x)
        for index in range(5):
            alone = ltm.detect(x[index : index + 1])
            torch.testing.assert_close(alone.restored[0], together.restored[index], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(alone.score[0], together.score[index], atol=1e-5, rtol=1e-5)


def test_half_precision_chooses_the_same_tokens():
    ltm = trained()
    x = torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        plain = ltm.healed(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = ltm.healed(x)
    assert torch.equal(half[1], plain[1])
    assert torch.equal(half[2], plain[2])
    assert not torch.equal(half[0], plain[0])  # the decoder does run in half precision


def test_the_codebook_stays_in_full_precision_in_half_precision():
    ltm, x = small(restart=0.0), torch.rand(8, 1, 32, 32)
    step = Stepper(make_fabric("cpu", "bf16"), ltm, Recipe(epochs=1, batch=8, learning_rate=1e-9))
    with torch.autocast("cpu", torch.bfloat16):
        ltm.train().training_step(x, step, 0.0)
    sums = ltm.state_dict()[CODEBOOK + "ema_w"]
    assert not torch.equal(sums, sums.bfloat16().float())


def test_codes_hardly_used_begin_anew_where_the_encoder_is():
    ltm, x = small(), torch.rand(8, 1, 32, 32)
    assert step_once(ltm, 0.0, x)["codes_used"] == 1  # all tokens lie at the shortest code at first
    assert (codebook(ltm)[CODEBOOK + "ema_cluster_size"] >= 1).all()
    assert step_once(ltm, 0.0, x)["codes_used"] > 1
    published = small(restart=0.0)
    step_once(published, 0.0, x)
    assert step_once(published, 0.0, x)["codes_used"] == 1


@pytest.mark.parametrize(("tokens", "used", "perplexity"), [([0, 0, 0, 0], 1, 1.0), ([0, 1, 2, 5], 4, 4.0)])
def test_usage_is_logged_as_codes_and_as_perplexity(tokens, used, perplexity):
    logged = small().usage(torch.tensor(tokens))
    assert logged["codes_used"] == used
    assert logged["perplexity"].item() == pytest.approx(perplexity)


def test_fewer_tokens_a_step_than_codes_are_refused_before_the_training():
    ltm, recipe = small(size=8, codes=16), Recipe(epochs=10, batch=8, learning_rate=1e-3, select="last")
    for images, batch in ((3, 8), (100, 3)):
        with pytest.raises(ConfigError, match=r"3 image\(s\) of 4 tokens .* 16 codes\. Raise recipe.batch"):
            ltm.check(replace(recipe, batch=batch), images, validation=4)
    ltm.check(recipe, images=4, validation=4)


def test_weights_without_a_trained_transformer_are_refused():
    """The VQ error is far smaller than a cross-entropy: "best" alone would always choose the first stage."""
    ltm = small()
    step_once(ltm, 0.49, torch.rand(8, 1, 32, 32))
    with pytest.raises(ConfigError, match=r"the transformer would not learn at all.*Train for 2 epochs or more"):
        ltm.finish_training()
    step_once(ltm, 0.5, torch.rand(8, 1, 32, 32))
    ltm.finish_training()
    assert not ltm.training


def test_a_choice_among_epochs_of_both_stages_is_refused_before_training():
    recipe = Recipe(epochs=4, batch=8, learning_rate=1e-3, select_after=0.2)
    with pytest.raises(ConfigError, match=r"recipe.select=last .* or recipe.select_after=0.5 or more"):
        small().check(recipe, images=20, validation=4)


@pytest.mark.parametrize("name", ["ltm", "f-anogan"])
def test_what_could_end_in_the_first_stage_is_refused_before_training(name):
    kind = detector_class(name)
    preset = kind.PRESETS["tiny"]
    detector = build(name, {**preset.settings, "stage": 0.75}, preset.score)
    usual = {"epochs": 4, "batch": 8, "learning_rate": 1e-3, "select": "last"}
    detector.check(Recipe(**usual), images=8, validation=4)  # four steps; the last begins at 0.75
    for changed in ({"epochs": 3}, {"patience": 1}, {"select": "best", "select_after": 0.5}):
        with pytest.raises(ConfigError, match=r"would not learn at all.*4 epochs or more|select_after=0.75 or more"):
            detector.check(Recipe(**{**usual, **changed}), images=8, validation=4)


def test_no_preset_chooses_among_epochs_of_different_stages():
    for preset in detector_class("ltm").PRESETS.values():
        stage = preset.settings.get("stage", 0.5)
        assert preset.recipe.select == "last" or preset.recipe.select_after >= stage


def test_the_paper_preset_is_the_release_nearest_to_ras_tables():
    preset = detector_class("ltm").PRESETS["paper"]
    recipe = preset.recipe
    assert (recipe.of("vqvae").learning_rate, recipe.of("transformer").learning_rate, recipe.batch) == (1e-4, 5e-4, 16)
    assert (preset.settings["restart"], preset.settings["masked"]) == (0.0, False)


def test_a_gradient_score_gets_the_error_of_the_vqvae():
    ltm = build("ltm", SMALL, {"name": "gradient"}).eval()
    assert ltm.detect(torch.rand(2, 1, 32, 32)).map.max() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 62}, "^ltm: size must be a multiple of 4 from 8 on, not 62; 60 and 64 are the nearest"),
        ({"heads": 3}, "3 heads do not divide a width of 16"),
        ({"codes": 1}, "codes"),
        ({"stage": 1.0}, "stage"),
        ({"quantile": 0.0}, "quantile"),
        ({"threshold": "batch"}, "threshold"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        small(**settings)


def test_masks_that_the_machine_cannot_hold_are_refused(monkeypatch):
    monkeypatch.setattr(ltm_code, "memory", lambda: 2**20)
    with pytest.raises(ConfigError, match=r"1024 tokens take 4 MiB, .* has 1 MiB of memory\. Lower size or depth"):
        build("ltm", SMALL | {"size": 128, "depth": 1}, {"name": "residual"})
