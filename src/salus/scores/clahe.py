"""Contrast-limited adaptive histogram equalisation (CLAHE) of a whole batch at once.

Written from Zuiderveld, "Contrast Limited Adaptive Histogram Equalization", Graphics Gems IV (1994), with
the conventions of scikit-image's `equalize_adapthist`, on which the published RA maps rest: tiles of an
eighth of the image, 2^14 grey levels, mirrored borders, and its way of handing out the clipped pixels.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from salus.core.machine import keep_freed_memory

LEVELS = 2**14  # grey levels an image is stretched to, before and after
TILES = 8  # contextual regions along each axis, when it divides evenly
MOST_BINS = 1024  # the table of strides below holds bins x bins entries
PIXELS_AT_ONCE = 2**18  # on a CPU; more spill out of its cache and cost page faults, fewer are all overhead


def clahe(x: Tensor, *, clip_limit: float = 0.01, bins: int = 256) -> Tensor:
    """Equalise the contrast of each image within its own neighbourhoods.

    Each image is stretched by its own range first, so `clahe(a * x + b)` is `clahe(x)` for any a > 0, up to
    the 2^16 steps the image is rounded to on entry.

    Args:
        x: (B, 1, H, W) in [0, 1], any float type and device; values outside are clamped.
        clip_limit: largest share of a tile's pixels that one bin may hold before the rest is handed out to
            the other bins; 0 or less means no limit.
        bins: grey values told apart, 2 to 1024.

    Returns:
        (B, 1, H, W) in [0, 1], type and device of `x`. A constant image comes back as it is, where
        scikit-image would turn it white. It has no gradient.

    Raises:
        ValueError: `x` is not (B, 1, H, W), is empty, or `bins` is out of range.

    Source: scikit-image 0.26, `equalize_adapthist` with its defaults, to which this agrees within 1e-3.
    """
    if x.ndim != 4 or x.shape[1] != 1 or 0 in x.shape:
        raise ValueError(f"clahe needs a non-empty (B, 1, H, W) tensor, got {tuple(x.shape)}")
    if not 2 <= bins <= MOST_BINS:
        raise ValueError(f"clahe tells 2 to {MOST_BINS} bins apart, got bins={bins}")
    height, width = x.shape[2:]
    grid = grid_of(height, width, bins, x.device)
    limit = max(int(clip_limit * grid.pixels), 1) if clip_limit > 0 else grid.pixels
    # Indices are 32 bits wide, which halves their traffic, so a piece has fewer than 2^31 curve entries.
    most = (2**31 - 1) // (grid.tiles * bins)
    if x.device.type == "cpu":
        most = min(most, PIXELS_AT_ONCE // (height * width))
    # Counts and grey curves need single precision, whatever the network around runs in.
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        pieces = [equalise(piece, grid, limit) for piece in torch.split(x[:, 0].clamp(0, 1), max(most, 1))]
        return torch.cat(pieces).unsqueeze(1)


class Grid(NamedTuple):
    """How images of one size are cut into tiles, and which four tiles each pixel listens to."""

    rows: tuple[int, int]  # tiles, pixels a tile
    columns: tuple[int, int]
    bins: int
    mirrored: tuple[Tensor, Tensor] | None  # rows and columns that fill the tiles, where some overhang
    corners: tuple[Tensor, Tensor, Tensor, Tensor]  # (H, W) int32 first entry of the four neighbours' curves
    down: Tensor  # (H, 1) weight of the tiles below
    along: Tensor  # (1, W) weight of the tiles after
    strides: Tensor  # (bins + 1, bins): row n holds ones at 0, n, 2n ...; row 0 none

    @property
    def tiles(self) -> int:
        return self.rows[0] * self.columns[0]

    @property
    def pixels(self) -> int:
        return self.rows[1] * self.columns[1]


@lru_cache(maxsize=16)
def grid_of(height: int, width: int, bins: int, device: torch.device) -> Grid:
    """Kept for the sizes last seen: making it takes as long as equalising an image."""
    keep_freed_memory()
    rows, columns = tiling(height), tiling(width)
    above, below, down = neighbours(height, device)
    before, after, along = neighbours(width, device)
    number = torch.arange(bins + 1, device=device, dtype=torch.int32)
    strides = (number[:-1] % number.clamp(min=1)[:, None] == 0).float()
    strides[0] = 0
    fits = rows[0] * rows[1] == height and columns[0] * columns[1] == width

    def corner(row: Tensor, column: Tensor) -> Tensor:
        return ((row[:, None] * columns[0] + column) * bins).int()

    return Grid(
        rows=rows,
        columns=columns,
        bins=bins,
        mirrored=None if fits else (mirrored(height, device), mirrored(width, device)),
        corners=(corner(above, before), corner(above, after), corner(below, before), corner(below, after)),
        down=down[:, None],
        along=along[None],
        strides=strides,
    )


def tiling(length: int) -> tuple[int, int]:
    """How many tiles, and how many pixels each; the last may overhang."""
    pixels = max(length // TILES, 1)
    return math.ceil(length / pixels), pixels


def mirrored(length: int, device: torch.device) -> Tensor:
    """(tiles * pixels,) the pixel each place of the tiled axis shows; places past the end are reflected."""
    count, pixels = tiling(length)
    period = max(2 * (length - 1), 1)
    place = torch.arange(count * pixels, device=device) % period
    return torch.minimum(place, (period - place) % period) if length > 1 else place


def neighbours(length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(length,) the tiles before and after each pixel, and the weight of the latter in [0, 1).

    A tile's centre lies half a tile, rounded down, after its first pixel; before the first centre and after
    the last, both neighbours are the same tile.
    """
    count, pixels = tiling(length)
    place = torch.arange(length, device=device) + pixels // 2
    after = place // pixels
    return (after - 1).clamp(min=0), after.clamp(max=count - 1), (place % pixels).float() / pixels


def equalise(images: Tensor, grid: Grid, limit: int) -> Tensor:
    """(n, H, W) images equalised and stretched to [0, 1]."""
    codes, constant = quantise(images, grid.bins)
    histograms = clip_and_spread(tile_histograms(codes, grid), grid, limit)
    equalised = stretch(interpolate(codes, grey_curves(histograms, grid), grid)).to(images.dtype)
    if constant.any():
        equalised = torch.where(constant, images, equalised)
    return equalised


def quantise(images: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """(B, H, W) int32 bin of each pixel after the image's own stretch, and (B, 1, 1) where there is no range."""
    single = images if images.dtype == torch.float64 else images.float()
    grey = (single * (2**16 - 1)).round_()
    low, high = extent(grey)
    # In float32 one pixel in 100,000 would land in the neighbouring bin; Apple's GPUs have nothing wider.
    wide = torch.float32 if images.device.type == "mps" else torch.float64
    span = (high - low).clamp_(min=1).to(wide)
    levels = grey.sub_(low).to(wide).div_(span).mul_(LEVELS - 1).round_()
    width = 1 + LEVELS // bins
    # Half a level more keeps a product with the reciprocal on the right side of the bin's edge.
    return levels.add_(0.5).mul_(1 / width).int(), low == high


def tile_histograms(codes: Tensor, grid: Grid) -> Tensor:
    """(B * tiles, bins) float32 counts: whole numbers, exact, and quicker to work on than integers."""
    if grid.mirrored:
        codes = codes.index_select(1, grid.mirrored[0]).index_select(2, grid.mirrored[1])
    tiles = len(codes) * grid.tiles
    first = torch.arange(0, tiles * grid.bins, grid.bins, device=codes.device, dtype=torch.int32)
    places = codes.view(-1, *grid.rows, *grid.columns) + first.view(-1, grid.rows[0], 1, grid.columns[0], 1)
    return torch.bincount(places.flatten(), minlength=tiles * grid.bins).view(tiles, grid.bins).float()


def clip_and_spread(histograms: Tensor, grid: Grid, limit: int) -> Tensor:
    """Cut each histogram at `limit` and hand what was cut to the bins with room, as scikit-image does.

    First every bin gets an equal share, and one that then lies within a share of the limit is filled up. The
    remainder goes out in rounds, see `hand_out`.
    """
    clipped = histograms.clamp_(max=limit)
    surplus = grid.pixels - clipped.sum(1)
    generous = (surplus >= grid.bins).nonzero()[:, 0]
    if len(generous):
        share = (surplus[generous, None] / grid.bins).floor_()
        raised = clipped[generous] + share
        raised = torch.where(raised >= limit - share, limit, raised)
        clipped[generous] = raised
        surplus[generous] = grid.pixels - raised.sum(1)

    start, left = 0, hand_out(clipped, surplus, grid.strides, limit, start=0).nonzero()[:, 0]
    while len(left):
        start = (start + 1) % grid.bins
        tiles, due = clipped[left], surplus[left]
        unfinished = hand_out(tiles, due, grid.strides, limit, start)
        clipped[left], surplus[left] = tiles, due
        left = left[unfinished]
    return clipped


def hand_out(tiles: Tensor, due: Tensor, strides: Tensor, limit: int, start: int) -> Tensor:
    """One round, in place: a pixel to every n-th bin from `start` on, where there is room.

    n is such that the round would nearly use up what is due; it may hand out a few too many, which leaves
    `due` negative. Returns (tiles,) where something is due still and there was room.
    """
    room = (limit - tiles).clamp_(max=1)
    free = room.sum(1)
    stride = torch.where(due > 0, (free / due).clamp_(min=1), 0)
    chosen = strides.index_select(0, stride.long())
    given = room[:, start:].mul_(chosen[:, : chosen.shape[1] - start])
    tiles[:, start:].add_(given)
    due.sub_(given.sum(1))
    return (due > 0) & (free > 0)


def grey_curves(histograms: Tensor, grid: Grid) -> Tensor:
    """(tiles, bins) the grey level, 0 to 2^14 - 1, that each tile gives to each bin: its cumulated histogram."""
    return histograms.cumsum(1).mul_((LEVELS - 1) / grid.pixels).clamp_(max=LEVELS - 1).floor_()


def interpolate(codes: Tensor, curves: Tensor, grid: Grid) -> Tensor:
    """(B, H, W) whole grey levels, each read off the four nearest tiles' curves and weighted bilinearly."""
    step = grid.tiles * grid.bins
    codes = codes + torch.arange(0, len(codes) * step, step, device=codes.device, dtype=torch.int32)[:, None, None]
    flat, place = curves.flatten(), torch.empty_like(codes)

    def level(corner: Tensor) -> Tensor:
        torch.add(codes, corner, out=place)
        return flat.index_select(0, place.view(-1)).view(codes.shape)

    upper, upper_right, lower, lower_right = map(level, grid.corners)
    upper.lerp_(upper_right, grid.along)
    lower.lerp_(lower_right, grid.along)
    return upper.lerp_(lower, grid.down).floor_()


def stretch(levels: Tensor) -> Tensor:
    """Bring each image's range to [0, 1], in place; one without a range is clamped to it, as scikit-image does."""
    low, high = extent(levels)
    span = high - low
    return levels.sub_(low * (span > 0)).div_(span.clamp_(min=1)).clamp_(max=1)


def extent(images: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1, 1) least and greatest value of each image; one `aminmax` takes ten times as long on a CPU."""
    return images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
