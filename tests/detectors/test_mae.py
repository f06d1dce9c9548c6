import math
import re

import pytest
import torch
from torch import nn

from salus.core.errors import ConfigError
from salus.detectors import build, detector_class
from salus.detectors.mae import MAE
from salus.nets.vit import Block, MaskedAutoencoder, patched, positions, unpatched

SMALL = {
    "size": 32, "patch": 8, "width": 16, "depth": 1, "heads": 2, "decoder_width": 8, "decoder_depth": 1,
    "decoder_heads": 2,
}  # fmt: skip


def small(seed: int = 0, **settings) -> MAE:
    torch.manual_seed(seed)
    return build("mae", {**SMALL, **settings}, {"name": "residual"}).eval()


def picture(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed))


def orders(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 16, generator=torch.Generator().manual_seed(seed)).argsort(1)


class Said(nn.Module):
    """A network that says one value of a list in each call, and remembers what it was shown."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values, self.orders = list(values), []

    def forward(self, x: torch.Tensor, order: torch.Tensor, seen: int) -> torch.Tensor:
        self.orders.append(order)
        return torch.full((len(x), 16, 64), self.values[len(self.orders) - 1])


def saying(*values: float, **settings) -> MAE:
    mae = small(**settings)
    mae.net = Said(*values)
    return mae


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("channels", "size", "patch", "encoder", "parameters"),
    [
        (1, 128, 16, (512, 12, 16), 63_576_320),  # the RA authors'
        (3, 224, 16, (768, 12, 12), 111_655_680),  # ViT-B/16 and ViT-L/16 of He et al.
        (3, 224, 16, (1024, 24, 16), 329_239_296),
        (1, 128, 16, (768, 12, 12), 110_999_808),
        (1, 128, 8, (768, 12, 12), 110_753_856),
    ],
)
def test_networks_have_as_many_parameters_as_published(channels, size, patch, encoder, parameters):
    with torch.device("meta"):
        assert count(MaskedAutoencoder(channels, size, patch, encoder, (512, 8, 16))) == parameters


def test_the_paper_preset_is_the_ra_authors_network_and_recipe():
    preset = detector_class("mae").PRESETS["paper"]
    with torch.device("meta"):
        mae = build("mae", preset.settings, preset.score)
    assert count(mae) == 63_576_320
    assert sum(b.numel() for b in mae.net.buffers()) == 66_560
    assert mae.net.places.dtype == torch.float32
    assert (preset.recipe.learning_rate, preset.recipe.batch, preset.recipe.epochs) == (1e-4, 8, 1500)
    assert (mae.config.mask_ratio, mae.config.test_masks, mae.config.draws) == (0.75, "random", 30)


def test_the_encoder_of_vit_large_is_as_large_as_published():
    with torch.device("meta"):
        net = MaskedAutoencoder(3, 224, 16, (1024, 24, 16), (512, 8, 16))
    assert count(net.embed) + count(net.encoder) + net.summary.numel() == 303_099_904


def test_places_are_sines_and_cosines_of_row_and_column():
    places = positions(4, 16)
    assert places.shape == (17, 16)
    assert (places[0] == 0).all()
    row, column = 2, 3
    rates = [1.0, 0.1, 0.01, 0.001]  # 10000^(-k / 4)
    expected = [wave(where * r) for where in (row, column) for wave in (math.sin, math.cos) for r in rates]
    torch.testing.assert_close(places[1 + 4 * row + column], torch.tensor(expected))


def test_patches_are_in_reading_order_and_go_back():
    x = torch.arange(2 * 6 * 6.0).view(1, 2, 6, 6)
    patches = patched(x, 3)
    assert patches.shape == (1, 4, 18)
    torch.testing.assert_close(patches[0, 2], x[0, :, 3:, :3].flatten())
    torch.testing.assert_close(unpatched(patches, 3, 6), x)


def test_a_block_computes_what_torchs_encoder_layer_does():
    torch.manual_seed(0)
    ours = Block(16, 4)
    theirs = nn.TransformerEncoderLayer(
        16, 4, 64, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(ours.asked.weight)
        theirs.self_attn.in_proj_bias.copy_(ours.asked.bias)
        theirs.self_attn.out_proj.load_state_dict(ours.answered.state_dict())
        theirs.linear1.load_state_dict(ours.hidden[0].state_dict())
        theirs.linear2.load_state_dict(ours.hidden[2].state_dict())
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(x), theirs(x))


def test_what_is_hidden_cannot_be_seen():
    mae, order = small(), orders(1)
    first = picture(1)
    behind, before = patched(first, 8), patched(first, 8)
    behind[0, order[0, 4:]] = 0.5
    before[0, order[0, :1]] = 0.5
    with torch.no_grad():
        said = mae.predicted(first, order)
        torch.testing.assert_close(mae.predicted(unpatched(behind, 8, 32), order), said, rtol=0, atol=0)
        assert (mae.predicted(unpatched(before, 8, 32), order) - said).abs().max() > 1e-4


def test_only_who_is_seen_matters_not_in_which_order():
    mae, order, x = small(), orders(2), picture()
    shuffled = torch.cat([order[:, [2, 0, 3, 1]], order[:, 4:].flip(1)], 1)
    with torch.no_grad():
        torch.testing.assert_close(mae.predicted(x, shuffled), mae.predicted(x, order))


def test_encoder_and_decoder_tell_patches_apart_by_their_place():
    mae, order, x = small(), orders(1), picture(1)
    exchanged = patched(x, 8)
    exchanged[0, order[0, :2]] = exchanged[0, order[0, [1, 0]]]
    encoded = []
    mae.net.hand_over.register_forward_hook(lambda module, inputs, output: encoded.append(inputs[0][:, 0]))
    with torch.no_grad():
        said = mae.predicted(x, order)
        mae.predicted(unpatched(exchanged, 8, 32), order)
    assert (encoded[0] - encoded[1]).abs().max() > 1e-3, "the class token sees two patches change places"
    assert (said[0, order[0, 4]] - said[0, order[0, 5]]).abs().max() > 1e-2, "two hidden patches are not the same"


def test_the_loss_is_of_hidden_patches_alone():
    mae, x, order = saying(0.25), picture(), orders(2)
    for image, error in enumerate(mae.error(x, order)):
        tiles = [x[image, 0, 8 * (p // 4) : 8 * (p // 4) + 8, 8 * (p % 4) : 8 * (p % 4) + 8] for p in order[image, 4:]]
        assert len(tiles) == 12
        torch.testing.assert_close(error, torch.stack([(t - 0.25).square().mean() for t in tiles]).mean())


def test_each_image_and_step_learns_from_masks_of_its_own():
    mae = saying(0.0, 0.0)
    for _ in range(2):
        mae.training_step(picture(3), lambda part, loss: None, 0.0)
    drawn = torch.cat(mae.net.orders)
    assert len({tuple(row.tolist()) for row in drawn}) == 6
    assert torch.equal(drawn.sort(1).values, torch.arange(16).expand(6, -1))


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_a_partition_shows_each_patch_once(ratio):
    mae = small(mask_ratio=ratio)
    masks = mae.test_orders()
    assert len(masks) == round(1 / (1 - ratio))
    assert torch.equal(masks[:, : mae.config.seen].flatten().sort().values, torch.arange(16))
    assert torch.equal(masks.sort(1).values, torch.arange(16).expand(len(masks), -1))


def test_a_patch_is_the_mean_of_its_three_predictions_even_if_one_is_minus_1():
    said = (-1.0, 0.5, 0.9, 1.0)
    mae, x = saying(*said), picture()
    patches = patched(mae.restore(x), 8)
    for mask, order in enumerate(mae.test_orders()):
        others = [value for number, value in enumerate(said) if number != mask]
        torch.testing.assert_close(patches[:, order[:4]], torch.full((2, 4, 64), sum(others) / 3))


def test_thirty_random_masks_are_the_same_at_every_call_and_leave_the_global_generator_alone():
    mae, x = small(test_masks="random"), picture()
    assert mae.test_orders().shape == (30, 16)
    assert len(mae.test_orders().unique(dim=0)) == 30
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with torch.no_grad():
        first, validated = mae.restore(x), mae.validation_loss(x)
        assert torch.equal(torch.rand(1), expected)
        assert torch.equal(mae.restore(x), first)
        assert torch.equal(mae.validation_loss(x), validated)


def test_random_masks_average_predictions_of_hidden_patches():
    said = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8)
    mae, x = saying(*said, test_masks="random", draws=6), picture()
    patches, masks = patched(mae.restore(x), 8), mae.test_orders()
    for patch in range(16):
        hid = [value for value, order in zip(said, masks, strict=True) if patch in order[4:]]
        assert hid, "this seed hides each patch at least once"
        torch.testing.assert_close(patches[:, patch], torch.full((2, 64), sum(hid) / len(hid)))


def test_a_patch_that_was_never_hidden_is_not_judged():
    mae, x = saying(0.0, test_masks="random", draws=1), picture()
    judged = patched(mae.detect(x).map, 8)
    seen, hidden = mae.test_orders()[0].split([4, 12])
    assert (judged[:, seen] == 0).all()
    torch.testing.assert_close(judged[:, hidden], patched(x, 8)[:, hidden])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 40}, "'partition', size must be a multiple of 16, not 40; 32 and 48 are the nearest"),
        ({"size": 36, "test_masks": "random"}, "multiple of 8 from 16 on, not 36; 32 and 40 are the nearest"),
        ({"size": 8}, r"with patches of 8 and a mask_ratio of 0\.75 .* not 8; 16 is the nearest"),
        ({"heads": 3}, "3 heads cannot share a width of 16 evenly"),
        ({"decoder_heads": 5}, "5 heads cannot share a width of 8 evenly"),
        (
            {"mask_ratio": 0.6},
            r"'partition' .* 1 / \(1 - mask_ratio\) = 2\.5 images: take a ratio such as",
        ),
        ({"mask_ratio": 0.8}, r"must be a multiple of 40, not 32; 40 is the nearest"),
        ({"mask_ratio": 0.95, "test_masks": "random"}, r"from 40 on, not 32; 40 is the nearest"),
        ({"width": 18}, "width"),
    ],
)
def test_settings_that_do_not_fit_are_explained(settings, message):
    with pytest.raises(ConfigError, match=message):
        small(**settings)


def test_a_ratio_without_a_partition_can_be_drawn():
    assert small(mask_ratio=0.85, test_masks="random").config.seen == 2


@pytest.mark.parametrize("ratio", [0.5, 2 / 3, 0.75, 0.8, 8 / 9, 0.95])
@pytest.mark.parametrize("masks", ["partition", "random"])
def test_the_sizes_that_are_named_do_fit(ratio, masks):
    with pytest.raises(ConfigError, match="nearest") as refused:
        small(size=57, mask_ratio=ratio, test_masks=masks)
    named = re.search(r"; ([\d and]+?) (?:is|are) the nearest", str(refused.value))
    for size in map(int, named[1].split(" and ")):
        mae = small(size=size, mask_ratio=ratio, test_masks=masks)
        shown = torch.cat([order[: mae.config.seen] for order in mae.test_orders()])
        assert masks == "random" or shown.sort().values.tolist() == list(range(mae.patches))
