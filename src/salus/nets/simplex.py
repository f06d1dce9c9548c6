"""Simplex noise: several octaves of 3-D OpenSimplex noise on a plane, many pictures at once.

Written from the closed form of OpenSimplex (Kurt Spencer, 2014, released into the public domain), with the octaves
of AnoDDPM (Wyatt, Leach, Schmon, Willcocks, "AnoDDPM: Anomaly Detection with Denoising Diffusion Probabilistic
Models using Simplex Noise", CVPR workshops 2022):

    n(x, y; z) = sum over k of 0.8^k noise3(x 2^k/64, y 2^k/64, z 2^k/64)            x, y: pixels
    noise3(p)  = 1/103 sum over lattice points g within sqrt 2 of (2 - |d|^2)^4 <G[hash(g)], d>,   d = p - position(g)

A lattice point g (three whole numbers) lies at g + sum(g)/3. Two things make it quick. The lattice repeats along
(1, -1, 0) and (3, 3, 0), so among the unit squares of a plane there are six kinds, told apart by (x + y) mod 6, and
the weights (2 - |d|^2)^4 are computed once for each. And with d = (pixel in its square) - (g seen from there), the
sum over lattice points becomes one matrix product of gradients and weights.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

OCTAVES = 6
PERSISTENCE = 0.8  # strength of an octave over that of the one before
WAVELENGTH = 64  # pixels a unit of noise space in the first octave; halved from one to the next
SPREAD = 0.507  # standard deviation of six octaves, measured
KINDS = 6  # of unit squares

_SIGNS = [(-1, 1, 1), (1, 1, 1), (-1, -1, 1), (1, -1, 1), (-1, 1, -1), (1, 1, -1), (-1, -1, -1), (1, -1, -1)]
GRADIENTS = [[s * (11 if i == axis else 4) for i, s in enumerate(signs)] for signs in _SIGNS for axis in range(3)]

_MULTIPLIER, _INCREMENT, _WORD = 6364136223846793005, 1442695040888963407, 2**64  # of the 64-bit generator


def simplex_noise(seeds: Tensor, planes: Tensor, size: int, *, octaves: int = OCTAVES) -> Tensor:
    """One picture of noise for each seed.

    Args:
        seeds: (B,) whole numbers; another seed is another, independent noise.
        planes: (B,) where along the third axis each picture is cut, in pixels.
        size: side of the pictures, pixels.
        octaves: 1 to 7; the seventh changes from pixel to pixel.

    Returns:
        (B, 1, size, size) float32 on the device of `planes`, mean 0. Its standard deviation is about 0.507 for six
        octaves and 0.31 for one, *not* 1.

    Raises:
        ValueError: `octaves` is out of range.
    """
    if not 1 <= octaves <= 7:
        raise ValueError(f"simplex noise has 1 to 7 octaves, got {octaves}")
    tables = torch.from_numpy(permutations(seeds.cpu().numpy())).to(planes.device)
    total = torch.zeros(len(seeds), size, size, device=planes.device)
    with torch.autocast(planes.device.type, enabled=False):  # the matrix product needs float32
        for k in range(octaves):
            unit = WAVELENGTH >> k
            total.add_(octave(tables, planes.double() / unit, size, unit), alpha=PERSISTENCE**k)
    return total[:, None]


def octave(tables: Tensor, z: Tensor, size: int, unit: int) -> Tensor:
    """(B, size, size) noise3 on planes `z` (B,), in units of noise space, of `unit` pixels each."""
    squares, side = math.ceil(size / unit), min(unit, size)
    kinds = min(KINDS, 2 * squares - 1)  # there are no more among so few squares
    points, seen = lattice_near(z, kinds)
    at = torch.arange(side, device=z.device) / unit
    weights = falloff(at, seen).flatten(3)
    gradients = gradients_of(tables, points, shifts(squares, kinds, z.device))
    # <G, d> = x G_x + y G_y - <G, g seen from the corner>: three sums over lattice points, one product.
    away = (gradients * seen[:, :, :, None]).sum(0)
    sums = torch.cat([*gradients[:2], away], 2) @ weights
    along, down, fixed = sums.view(*sums.shape[:3], side, side).chunk(3, 2)
    values = (along * at).sub_(fixed).addcmul_(down, at[:, None]).div_(103)
    return assembled(values, squares)[:, :size, :size]


def lattice_near(z: Tensor, kinds: int) -> tuple[Tensor, Tensor]:
    """Lattice points within reach of the squares [c, c + 1) x [0, 1) on each plane, c = 0 ... kinds - 1.

    Returns:
        (3, B, kinds, n) int32 the points, and float32 their places as seen from the square's corner (c, 0, z); n is
        what the richest square needs.
    """
    corner = torch.zeros(3, len(z), kinds, 1, dtype=torch.float64, device=z.device)
    corner[0] = torch.arange(kinds, device=z.device)[:, None]
    corner[2] = z[:, None, None]
    middle = corner + torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64, device=z.device).view(3, 1, 1, 1)
    # Counted in lattice points, what is within sqrt 2 of the square lies at most 1/2 + sqrt(3/2) from its middle on
    # each axis: from the cell below the middle, offsets -1 to 2 are enough.
    span = torch.arange(-1, 3, device=z.device)
    points = (middle - middle.sum(0) / 6).floor() + torch.cartesian_prod(span, span, span).T[:, None, None]
    places = points + points.sum(0) / 3
    beyond = (places - middle).abs_()
    beyond[:2] = (beyond[:2] - 0.5).clamp_(min=0)
    distance = beyond.square_().sum(0)
    needed = int((distance < 2).sum(-1).max())
    chosen = distance.topk(needed, largest=False).indices.expand(3, -1, -1, -1)
    return points.gather(3, chosen).int(), (places - corner).gather(3, chosen).float()


def falloff(at: Tensor, seen: Tensor) -> Tensor:
    """(B, kinds, n, side, side) weights (2 - |d|^2)^4, 0 out of reach, of points `seen` from the corner."""
    x, y, z = seen[..., None].unbind()
    weights = (2 - z.square() - (at - y).square())[..., None] - (at - x).square()[..., None, :]
    return weights.clamp_(min=0).square_().square_()


def shifts(squares: int, kinds: int, device: torch.device) -> Tensor:
    """(3, kinds, rows x turns) int32: the step of the lattice from the square (c, 0) to each of its kind.

    Every sixth square of a row is of one kind: in row y those at x = 6 turn + (c - y) mod 6. The step
    i (1, -1, 0) + j (3, 3, 0) is i (1, -1, 0) + j (2, 2, -1) when counted in lattice points.
    """
    kind = torch.arange(kinds, device=device, dtype=torch.int32)[:, None, None]
    y = torch.arange(squares, device=device, dtype=torch.int32)[:, None]
    turn = torch.arange(math.ceil(squares / KINDS), device=device, dtype=torch.int32)
    x = KINDS * turn + (kind - y) % KINDS
    j = (x + y - kind) // KINDS
    i = 3 * j - y
    return torch.stack([i + 2 * j, 2 * j - i, -j]).flatten(2)


def gradients_of(tables: Tensor, points: Tensor, steps: Tensor) -> Tensor:
    """(3, B, kinds, squares, n) the vector that each picture's table gives to each point plus each step."""
    start = 256 * torch.arange(len(tables), device=tables.device, dtype=torch.int32).view(-1, 1, 1, 1)
    flat = tables.flatten()
    x, y, z = (points[:, :, :, None] + steps[:, None, :, :, None]).unbind()
    number = flat[start + (x & 255)]
    number = flat[start + ((number + y) & 255)]
    vectors = torch.tensor(GRADIENTS, dtype=torch.float32, device=flat.device)[flat % len(GRADIENTS)].T
    return vectors[:, start + ((number + z) & 255)]


def assembled(values: Tensor, squares: int) -> Tensor:
    """(B, rows, columns) the picture from its squares (B, kinds, rows x turns, side, side)."""
    y, x = torch.meshgrid(*[torch.arange(squares, device=values.device)] * 2, indexing="ij")
    picked = values[:, (x + y) % KINDS, y * math.ceil(squares / KINDS) + x // KINDS]
    return picked.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def permutations(seeds: NDArray[np.integer]) -> NDArray[np.int32]:
    """(B, 256) OpenSimplex' shuffle of 0 ... 255 for each seed (64 bits, two's complement)."""
    with np.errstate(over="ignore"):
        states = FACTORS * seeds.astype(np.int64).view(np.uint64)[:, None] + SUMMANDS + np.uint64(31)
    places = states.view(np.int64) % np.arange(256, 0, -1)  # not negative, as Python's
    return np.array([shuffled(row) for row in places.tolist()], dtype=np.int32).reshape(-1, 256)


def shuffled(places: list[int]) -> list[int]:
    """0 ... 255 in the order that 256 draws, for the last place first, decide."""
    source, table = list(range(256)), [0] * 256
    for last, place in zip(range(255, -1, -1), places, strict=True):
        table[last] = source[place]
        source[place] = source[last]
    return table


def after(steps: int) -> tuple[int, int]:
    """(factor, summand) that take the generator's state that many steps on at once."""
    factor, summand = 1, 0
    for _ in range(steps):
        factor, summand = factor * _MULTIPLIER % _WORD, (summand * _MULTIPLIER + _INCREMENT) % _WORD
    return factor, summand


# Three steps before the first draw, then one a draw.
FACTORS, SUMMANDS = (np.array(row, dtype=np.uint64) for row in zip(*map(after, range(4, 260)), strict=True))
