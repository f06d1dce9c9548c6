"""How many entries the code should have, from healthy images alone: `latent: auto`.

A code detects best that holds what healthy images hold and no more (Cai et al., arXiv:2403.09303, who choose its size
by test labels and name the choice without them as open). How many numbers tell healthy images apart is their intrinsic
dimension. It is estimated from the images that are learned from, one slice a patient, by maximum likelihood from the
distances to near neighbours (Levina and Bickel 2004), and the nearest power of two is taken. What this was tried on,
and against which other rules: docs/latent-size.md.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from salus.core.errors import LayoutError
from salus.training.loop import Images
from salus.training.plan import AUTO, Plan

SIZES = tuple(2**power for power in range(11))  # entries of the code that are tried
NEIGHBOURS = (10, 20)  # of Levina and Bickel's estimate, which is their mean
MOST = 4000  # people, drawn at random, beyond which distances would fill the memory

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]


def chosen(images: Images, patients: Sequence[str], sizes: Sequence[int] = SIZES) -> tuple[int, float]:
    """The size nearest to the intrinsic dimension of healthy images, and that dimension.

    Args:
        images: (n, 1, size, size) that are learned from.
        patients: (n,) whom they belong to.
        sizes: to choose from.

    Raises:
        LayoutError: fewer people whose images differ than the estimate has neighbours, or all equally far apart.
    """
    single = images[one_each(patients)]
    apart = distances(single.reshape(len(single), -1))
    if len(apart) <= NEIGHBOURS[1]:
        raise LayoutError(
            f"a size of the code is chosen by {NEIGHBOURS[1] + 1} healthy people to learn from or more whose images "
            f"differ, here {len(apart)}. Set latent to a number."
        )
    if not np.isfinite(dimension := maximum_likelihood(apart)):
        raise LayoutError("healthy images that lie equally far apart have no dimension. Set latent to a number.")
    return nearest(sizes, dimension), dimension


def nearest(sizes: Sequence[int], dimension: float) -> int:
    """The size nearest to a dimension by their ratio."""
    return sizes[int(np.abs(np.log(np.array(sizes) / dimension)).argmin())]


def one_each(patients: Sequence[str]) -> NDArray[np.int64]:
    """Any slice of each patient: nearest to a slice is often the next one, and that says nothing of people.

    Of more than `MOST` patients, of so many.
    """
    drawn = np.random.default_rng(0).permutation(len(patients))
    first = np.unique(np.array(patients)[drawn], return_index=True)[1]
    return np.sort(drawn[np.sort(first)[:MOST]])


def distances(rows: Rows) -> Floats:
    """(n, n) Euclidean, infinite to itself. Copies count once: they say nothing of a dimension."""
    single = np.unique(rows, axis=0)
    apart: Floats = cdist(single, single)
    np.fill_diagonal(apart, np.inf)
    return apart


def maximum_likelihood(apart: Floats) -> float:
    """Intrinsic dimension from distances to many neighbours, the mean over their number (Levina and Bickel 2004).

    Averaged over rows as inverses, as MacKay and Ghahramani 2005 correct it.

    Args:
        apart: (n, n) as of `distances`, more rows than `NEIGHBOURS`.

    Returns:
        Infinity where all rows lie equally far apart.
    """
    near = np.log(np.sort(np.partition(apart, NEIGHBOURS[1], axis=1)[:, : NEIGHBOURS[1]], axis=1))
    found = [
        np.mean((near[:, k - 1 : k] - near[:, : k - 1]).sum(axis=1) / (k - 1))
        for k in range(NEIGHBOURS[0], NEIGHBOURS[1] + 1)
    ]
    return float(np.mean(1 / np.array(found))) if all(found) else np.inf


def settings_of(plan: Plan, size: int) -> dict[str, Any]:
    """A plan's settings with a size in the place of `auto`; prices that follow the size stay those of the usual one."""
    return plan.settings | ({"latent": size} if plan.settings.get("latent") == AUTO else {})
