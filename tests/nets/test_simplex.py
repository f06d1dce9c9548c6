import itertools
import math

import numpy as np
import pytest
import torch

from salus.nets.simplex import SPREAD, permutations, simplex_noise

SIGNS = ("-++", "+++", "--+", "+-+", "-+-", "++-", "---", "+--")


def literal_gradients() -> list[list[int]]:
    rows = []
    for signs in SIGNS:
        for large in range(3):
            rows.append([(11 if axis == large else 4) * (1 if signs[axis] == "+" else -1) for axis in range(3)])
    return rows


GRADIENTS = literal_gradients()


def literal_permutation(seed: int) -> list[int]:
    def advanced(state: int) -> int:
        return (state * 6364136223846793005 + 1442695040888963407) % 2**64

    state = advanced(advanced(advanced(seed % 2**64)))
    source, table = list(range(256)), [0] * 256
    for i in range(255, -1, -1):
        state = advanced(state)
        signed = (state + 31 + 2**63) % 2**64 - 2**63
        r = signed % (i + 1)
        table[i] = source[r]
        source[r] = source[i]
    return table


def literal_noise3(p: tuple[float, float, float], perm: list[int]) -> float:
    base = [math.floor(c - sum(p) / 6) for c in p]
    total = 0.0
    for offset in itertools.product((-1, 0, 1, 2), repeat=3):
        g = [b + o for b, o in zip(base, offset, strict=True)]
        d = [c - (n + sum(g) / 3) for c, n in zip(p, g, strict=True)]
        left = 2 - sum(c * c for c in d)
        if left > 0:
            h = perm[(perm[(perm[g[0] & 255] + g[1]) & 255] + g[2]) & 255] % 24
            total += left**4 * sum(a * b for a, b in zip(GRADIENTS[h], d, strict=True))
    return total / 103


def literal_noise(seed: int, x: int, y: int, plane: float) -> float:
    perm = literal_permutation(seed)
    return sum(0.8**k * literal_noise3((x * 2**k / 64, y * 2**k / 64, plane * 2**k / 64), perm) for k in range(6))


def many(count: int, *, octaves: int = 6, size: int = 64) -> torch.Tensor:
    draws = torch.Generator().manual_seed(0)
    seeds = torch.randint(2**62, (count,), generator=draws)
    planes = torch.randint(1000, (count,), generator=draws)
    pictures = [
        simplex_noise(s, z, size, octaves=octaves) for s, z in zip(seeds.split(32), planes.split(32), strict=True)
    ]
    return torch.cat(pictures)


@pytest.mark.parametrize("size", [8, 32, 64, 96, 200])
def test_each_pixel_is_the_closed_form_worked_out_by_hand(size):
    seeds, planes = [3, -(2**63), 2**62 - 5], [0.0, 17.0, 999.0]
    noise = simplex_noise(torch.tensor(seeds), torch.tensor(planes), size)
    places = np.random.default_rng(size).integers(0, size, (3, 12, 2))
    for b in range(3):
        for x, y in places[b].tolist():
            assert noise[b, 0, y, x].item() == pytest.approx(literal_noise(seeds[b], x, y, planes[b]), abs=3e-6)


def test_a_plane_may_lie_anywhere():
    noise = simplex_noise(torch.tensor([7, 7]), torch.tensor([-3.7, 123.456], dtype=torch.float64), 16)
    for b, plane in enumerate((-3.7, 123.456)):
        assert noise[b, 0, 5, 11].item() == pytest.approx(literal_noise(7, 11, 5, plane), abs=3e-6)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 12345678901234567])
def test_the_shuffle_is_that_of_the_generator_run_step_by_step(seed):
    (table,) = permutations(np.array([seed], dtype=np.int64))
    assert table.tolist() == literal_permutation(seed)
    assert sorted(table.tolist()) == list(range(256))


def test_the_spread_is_the_published_one_and_not_one():
    six, one = many(400), many(200, octaves=1)
    assert SPREAD == 0.507
    assert six.std().item() == pytest.approx(0.507, rel=0.04)
    assert one.std().item() == pytest.approx(0.31, rel=0.05)
    expected = math.sqrt(sum(0.8 ** (2 * k) for k in range(6)))
    assert expected == pytest.approx(1.608, abs=5e-4)
    assert (six.std() / one.std()).item() == pytest.approx(expected, rel=0.06)
    assert abs(six.mean().item()) < 0.05
    assert 1.5 < six.abs().max() < 2.6


def test_pictures_of_one_call_have_nothing_to_do_with_each_other():
    noise = simplex_noise(torch.arange(64), torch.full((64,), 5), 32).flatten(1)
    correlation = torch.corrcoef(noise)[~torch.eye(64, dtype=torch.bool)]
    assert abs(correlation.mean().item()) < 0.05
    assert correlation.abs().max() < 0.99


def test_a_picture_does_not_depend_on_its_neighbours():
    seeds, planes = torch.arange(5), torch.tensor([0, 1, 400, 77, 998])
    together = simplex_noise(seeds, planes, 48)
    alone = torch.cat([simplex_noise(seeds[i : i + 1], planes[i : i + 1], 48) for i in range(5)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)


def test_a_small_picture_is_the_corner_of_a_large_one():
    seeds, planes = torch.tensor([1, 2]), torch.tensor([10, 20])
    large = simplex_noise(seeds, planes, 160)
    for size in (16, 64, 100):
        torch.testing.assert_close(simplex_noise(seeds, planes, size), large[..., :size, :size], rtol=0, atol=2e-6)


def test_each_octave_adds_finer_grain():
    def grain(octaves: int) -> float:
        noise = many(40, octaves=octaves)
        return ((noise[..., 1:] - noise[..., :-1]).std() / noise.std()).item()

    grains = [grain(octaves) for octaves in (1, 3, 6)]
    assert grains[0] < 0.05 < grains[1] < grains[2]


def test_half_precision_around_it_changes_nothing():
    seeds, planes = torch.arange(3), torch.arange(3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = simplex_noise(seeds, planes, 32)
    assert torch.equal(inside, simplex_noise(seeds, planes, 32))


@pytest.mark.parametrize("octaves", [0, 8])
def test_octaves_finer_than_a_pixel_are_refused(octaves):
    with pytest.raises(ValueError, match=f"1 to 7 octaves, got {octaves}"):
        simplex_noise(torch.tensor([0]), torch.tensor([0]), 32, octaves=octaves)
