"""Pixel metrics from histograms: memory grows with cases, not pixels, and any resampling of cases is a weighted sum.

    edges = pixel_edges(maps, thresholds=(t,))
    cases = PixelCounts.merge([PixelCounts.of(a, mask, edges) for a, mask in zip(maps, masks)])
    value = cases.pooled().ap()[0]
    interval(cases.pooled(weights).ap())

Binning takes the pixels of a bin for tied. What that can cost is known: the exact AP, AUROC, AUPRO and best Dice lie
between `PixelCounts.bounds`. With the 4096 bins of `pixel_edges` they stay within 1e-3 of
the exact value on smooth maps (tests/metrics/test_localisation.py). Dice at one of the `thresholds` is exact.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from salus.metrics import curves
from salus.metrics.localisation import FPR_LIMIT, Map, Mask, checked, region_shares

Floats = NDArray[np.float64]

SAMPLE = 1 << 22  # pixels that choose the edges of bins


def pixel_edges(
    maps: Sequence[Map], *, bins: int = 4096, thresholds: Iterable[float] = (), seed: int = 0
) -> NDArray[np.float64]:
    """Borders of bins for `PixelCounts`: half of them quantiles, half ever finer towards the top.

    The upper tail decides AP and Dice, where lesions are rare; the quantiles hold AUROC. Beyond four million
    pixels a random sample of that size chooses; what is counted afterwards is everything.

    Args:
        maps: of all cases to be compared, any shapes; gone through twice, so a sequence may load them as it goes.
        bins: how many at most, a few more with `thresholds`.
        thresholds: values at which Dice is to be exact.
        seed: of the sample.

    Returns:
        (edges,) rising. The first lies just below the smallest pixel, the last at the largest of the sample.

    Raises:
        ValueError: no pixel, or a pixel is nan or infinite.
    """
    total = sum(a.size for a in maps)
    if not total:
        raise ValueError("need at least one pixel, got none")
    rng = np.random.default_rng(seed)
    lowest, pool = np.inf, []
    for a in maps:
        pool.append(_sampled(np.ravel(checked(a)), SAMPLE / total, rng))
        lowest = min(lowest, float(np.nextafter(a.min(initial=np.inf), -np.inf)))
    falling = np.sort(np.concatenate(pool))[::-1]
    half = (bins - 1) // 2
    ranks = np.concatenate([np.geomspace(1, falling.size, half), np.linspace(1, falling.size, half)])
    inner = falling[np.unique(ranks.astype(np.intp)) - 1]
    return np.unique(np.concatenate([[lowest], inner, list(thresholds)]).astype(np.float64))


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelCounts:
    """Cumulated histograms of map values, one row a case or a pool of cases.

    Column k counts what lies strictly above edges[k], the last column everything. Every metric answers one value a
    row: of `of` and `merge` a case, of `pooled` a replicate; nan where a row has no lesion or no healthy pixel.

    Attributes:
        edges: (bins - 1,) falling, shared by all rows.
        lesion: (rows, bins) pixels inside lesions.
        healthy: (rows, bins) pixels outside.
        coverage: (rows, bins) sum over lesion regions of the region's share.
        regions: (rows,) connected regions.
    """

    edges: NDArray[np.float64]
    lesion: NDArray[np.number]
    healthy: NDArray[np.number]
    coverage: NDArray[np.floating]
    regions: NDArray[np.floating]

    @classmethod
    def of(cls, a: Map, mask: Mask, edges: NDArray[np.float64]) -> Self:
        """One case.

        Args:
            a: its map, a picture's or a volume's.
            mask: True inside a lesion, the same shape; all False for a normal image.
            edges: (bins - 1,) rising, of `pixel_edges`.

        Raises:
            ValueError: shapes differ, or a pixel is nan or infinite.
        """
        checked(a, mask)
        falling = edges[::-1]
        share, regions = region_shares(mask)
        column = len(edges) - np.searchsorted(edges, a[mask])  # the first that counts a pixel
        covered = np.cumsum(np.bincount(column, weights=share, minlength=len(edges) + 1))
        return cls(
            edges=falling,
            lesion=_above(a[mask], falling)[None],
            healthy=_above(a[~mask], falling)[None],
            coverage=covered[None].astype(np.float32),
            regions=np.array([float(regions)]),
        )

    @classmethod
    def merge(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, in order.

        Raises:
            ValueError: nothing to merge, or edges that differ.
        """
        if not parts or not all(np.array_equal(part.edges, parts[0].edges) for part in parts):
            raise ValueError("need at least one part, and the same edges in all of them")
        return cls(
            edges=parts[0].edges,
            lesion=np.concatenate([part.lesion for part in parts]),
            healthy=np.concatenate([part.healthy for part in parts]),
            coverage=np.concatenate([part.coverage for part in parts]),
            regions=np.concatenate([part.regions for part in parts]),
        )

    def pooled(self, weights: NDArray[np.integer] | None = None) -> Self:
        """All cases as one row, or one row a replicate; 24 bytes a bin and row, 200 MB for 2000 rows of 4096.

        Args:
            weights: (replicates, rows) how often each case counts, of `salus.metrics.resample`; None: once.

        Raises:
            ValueError: weights of another shape.
        """
        drawn = np.ones((1, len(self.regions))) if weights is None else weights.astype(np.float64)
        if drawn.ndim != 2 or drawn.shape[1] != len(self.regions) or not len(drawn):
            raise ValueError(f"need weights (replicates, {len(self.regions)}), got {drawn.shape}")
        return type(self)(
            edges=self.edges,
            lesion=drawn @ self.lesion.astype(np.float64),
            healthy=drawn @ self.healthy.astype(np.float64),
            coverage=drawn @ self.coverage.astype(np.float64),
            regions=drawn @ self.regions,
        )

    def every(self, step: int) -> Self:
        """With every `step`-th edge only, for a `step`-th of the work."""
        kept = np.append(np.arange(len(self.edges) - step, -1, -step)[::-1], len(self.edges))
        return replace(
            self,
            edges=self.edges[kept[:-1]],
            lesion=self.lesion[:, kept],
            healthy=self.healthy[:, kept],
            coverage=self.coverage[:, kept],
        )

    def bounds(self) -> dict[str, tuple[Floats, Floats]]:
        """(rows,) and (rows,) between which `ap`, `auroc`, `aupro` and `best_dice` of the pixels themselves lie.

        Lowest is what all lesion pixels of a bin below all its healthy ones give, highest the other way round.
        """
        early = {name: np.repeat(getattr(self, name), 2, axis=1) for name in ("lesion", "healthy", "coverage")}
        late = {name: np.concatenate([np.zeros_like(a[:, :1]), a[:, :-1]], axis=1) for name, a in early.items()}
        edges = np.append(np.repeat(self.edges, 2), self.edges[-1])  # within a bin no value is known
        worst = replace(self, edges=edges, **late | {"healthy": early["healthy"]})
        best = replace(self, edges=edges, **early | {"healthy": late["healthy"]})
        ap = np.clip(curves.in_blocks(curves.least_average_precision, self.lesion, self.healthy), 0, self.ap())
        return {
            "ap": (ap, best.ap()),
            "auroc": (worst.auroc(), best.auroc()),
            "aupro": (worst.aupro(), best.aupro()),
            "best_dice": (self.best_dice()[0], best.best_dice()[0]),
        }

    def ap(self) -> Floats:
        """(rows,) `pixel_ap`."""
        return curves.in_blocks(curves.average_precision, self.lesion, self.healthy)

    def auroc(self) -> Floats:
        """(rows,) `pixel_auroc`."""
        return curves.in_blocks(curves.auroc, self.lesion, self.healthy)

    def best_dice(self) -> tuple[Floats, Floats]:
        """(rows,) best Dice over the edges, and (rows,) the edge that gives it."""
        best = curves.in_blocks(_best_column, self.lesion, self.healthy)
        edges = np.append(self.edges, -np.inf)
        return best[:, 0], edges[best[:, 1].astype(np.intp)]

    def dice(self, threshold: float) -> Floats:
        """(rows,) Dice strictly above `threshold`, exact; of unpooled rows the Dice of each case with a lesion.

        Raises:
            ValueError: `threshold` is not one of the edges.
        """
        at = np.flatnonzero(self.edges == threshold)
        if not len(at):
            raise ValueError(f"{threshold} is not an edge of these counts; give it to pixel_edges(thresholds=...)")
        tp, fp, lesion = (a.astype(np.float64) for a in (self.lesion[:, at], self.healthy[:, at], self.lesion[:, -1:]))
        return curves.dice(tp, fp, lesion)[:, 0]

    def aupro(self) -> Floats:
        """(rows,) `aupro`."""
        value = curves.in_blocks(_aupro_rows, self.healthy, self.coverage, self.regions[:, None])
        return np.where((self.regions > 0) & (self.healthy[:, -1] > 0), value, np.nan)


def _best_column(lesion: Floats, healthy: Floats) -> Floats:
    overlap = curves.dice(lesion, healthy, lesion[:, -1:])
    best = np.argmax(overlap, axis=1)
    return np.column_stack([overlap[np.arange(len(best)), best], best])


def _aupro_rows(healthy: Floats, coverage: Floats, regions: Floats) -> Floats:
    return curves.area_up_to(healthy / healthy[:, -1:].clip(1), coverage / regions.clip(1), FPR_LIMIT)


def _above(pixels: Map, falling: Floats) -> NDArray[np.uint32]:
    """(len(falling) + 1,) how many of `pixels` lie strictly above each edge, and how many there are."""
    # Many pixels: sorting them first beats a search for each.
    at_most = np.searchsorted(np.sort(pixels).astype(np.float64), falling, side="right")
    return np.append(pixels.size - at_most, pixels.size).astype(np.uint32)


def _sampled(pixels: Map, share: float, rng: np.random.Generator) -> Map:
    if share >= 1:
        return pixels
    return pixels[rng.integers(pixels.size, size=math.ceil(share * pixels.size))] if pixels.size else pixels
