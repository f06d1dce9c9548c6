"""Lesions painted on healthy images: blobs, or pieces of other people, of a stated size and place, all from one seed.

A lesion is a field of distances: how far each pixel of the foreground lies from the lesion's centre, in steps that its
uneven outline stretches. Its size says how many of the nearest pixels it takes. So the same lesion is smaller inside
larger, has its whole area inside the foreground even at the edge, and is the same one at every contrast.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Grey = NDArray[np.float32]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

PLACES = ("centre", "middle", "edge")  # thirds of the distance to the foreground's border, the farthest first
EMPTY = 0.05  # of an image's range above its minimum: what lies lower is background
EDGE = 1.5  # pixels over which a lesion fades at least
WAVES = (2, 3, 4)  # around the outline; an odd one among them, or it would be symmetric
WOBBLE = 0.2  # spread of the first wave, as a share of the radius; of the others less
BRIGHTEST = 99  # percentile of the foreground that counts as the brightest tissue
SPARE = 2  # the foreground is at least so many times as large as a lesion
LEAST = 2.0  # pixels; a foreground that is painted on has room for lesions of this diameter at every place
# Nobody knows how large, how sharp and how strong what is not healthy will be, so all are as likely.
SHARES = (0.01, 0.5)  # of the foreground's area; their logarithms are uniform
FADING = (0.0, 0.5)  # of a lesion's diameter, over which it fades
CONTRASTS = (-0.5, -0.3, -0.2, -0.1, 0.1, 0.2, 0.3, 0.5)  # of the range of the image's intensities
FOREIGN = (0.2, 1.0)  # share of another person in a foreign piece
DIFFERENT = 0.05  # of the range; a foreign piece that differs less, in the mean, is none


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesion:
    """One lesion in all its sizes.

    Attributes:
        distance: (H, W) from its centre in pixels, stretched by its outline; infinite outside the foreground.
    """

    distance: Floats

    def mask(self, diameter: float) -> Mask:
        """The `area` nearest pixels: where at least half of the contrast is painted."""
        return np.asarray(self.distance < self.border(diameter))

    def coverage(self, diameter: float, fading: float = EDGE) -> Floats:
        """(H, W) share of the contrast that is painted: 1 inside, 0 outside, fading over `fading` pixels."""
        return np.clip((self.border(diameter) - self.distance) / max(fading, EDGE) + 0.5, 0, 1)

    def border(self, diameter: float) -> float:
        """The distance that `area` pixels stay below."""
        pixels = area(diameter)
        nearest = np.partition(self.distance, [pixels - 1, pixels], axis=None)
        return float(nearest[pixels - 1 : pixels + 1].mean())

    def painted(
        self, picture: Grey, diameter: float, added: float, fading: float = EDGE, brightest: float = 1.0
    ) -> Grey:
        """`picture` with `added` on the lesion, clipped to [0, `brightest`]; a model's images end at 1."""
        return np.clip(picture + added * self.coverage(diameter, fading), 0, brightest).astype(np.float32)


def area(diameter: float) -> int:
    """Pixels of a lesion of an equivalent diameter: that of the disc of the same area, in pixels."""
    return max(1, round(np.pi * diameter**2 / 4))


def foreground(picture: Grey) -> Mask:
    """The body: above the minimum by 5 % of the range, without specks of a pixel or two, holes filled.

    Not Otsu's threshold: it takes ventricles and lungs, where lesions lie, for background.
    """
    held = picture > picture.min() + EMPTY * np.ptp(picture)
    return np.asarray(ndimage.binary_fill_holes(ndimage.binary_opening(held, structure=np.ones((3, 3), dtype=bool))))


def intensity_range(picture: Grey, inside: Mask) -> float:
    """From the image's minimum to its brightest tissue; contrasts are shares of it."""
    return float(np.percentile(picture[inside], BRIGHTEST) - picture.min())


def depth(inside: Mask) -> Floats:
    """(H, W) distance to the foreground's border over the largest there is, in [0, 1]; the image's edge is a border."""
    distance = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    return np.asarray(distance / max(distance.max(), 1))


def places(inside: Mask) -> Mapping[str, Mask]:
    """Where in the foreground the centres of each place's lesions may lie."""
    deep = depth(inside)
    return {
        "centre": deep > 2 / 3,
        "middle": (deep > 1 / 3) & (deep <= 2 / 3),
        "edge": inside & (deep <= 1 / 3),
    }


def has_room(inside: Mask, diameter: float) -> bool:
    """Whether lesions up to `diameter` can be painted at every place."""
    return bool(inside.sum() >= SPARE * area(diameter) and all(where.any() for where in places(inside).values()))


def draw(inside: Mask, rng: np.random.Generator) -> tuple[Lesion, ...]:
    """A lesion at each of `PLACES`, each centre drawn at random among the pixels there.

    Args:
        inside: (H, W) the foreground, which has room.
    """
    rows, columns = np.mgrid[: inside.shape[0], : inside.shape[1]]
    made = []
    for place in PLACES:
        y, x = rng.choice(np.argwhere(places(inside)[place]))
        around = np.arctan2(rows - y, columns - x)
        radius = np.exp(
            sum(
                rng.normal(0, WOBBLE * WAVES[0] / wave) * np.cos(wave * around + rng.uniform(0, 2 * np.pi))
                for wave in WAVES
            )
        )
        made.append(Lesion(distance=np.where(inside, np.hypot(rows - y, columns - x) / radius, np.inf)))
    return tuple(made)


@dataclass(frozen=True, kw_only=True, eq=False)
class PaintedLesion:
    """A picture with one lesion.

    Attributes:
        picture: (H, W).
        mask: where at least half of the contrast, or of the other person, was painted.
        place: one of `PLACES`.
        diameter: of the disc of the lesion's area, pixels.
        contrast: what was painted, as a share of the image's range; negative is darker. Of a foreign piece its mean
            absolute difference.
        left: share of it that is left once the picture is clipped.
    """

    picture: Grey
    mask: Mask
    place: str
    diameter: float
    contrast: float
    left: float


def unknown(picture: Grey, inside: Mask, rng: np.random.Generator, brightest: float = 1.0) -> Iterator[PaintedLesion]:
    """A lesion at each of `PLACES`, each on a picture of its own, of any size, sharpness and strength.

    Args:
        picture: (H, W) in [0, 1].
        inside: its foreground, which has room.
        brightest: value that no lesion exceeds.
    """
    full = intensity_range(picture, inside)
    for place, lesion in zip(PLACES, draw(inside, rng), strict=True):
        size = any_size(inside, rng)
        contrast, fading = float(rng.choice(CONTRASTS)), size * rng.uniform(*FADING)
        changed = lesion.painted(picture, size, contrast * full, fading, brightest)
        asked = abs(contrast) * full * lesion.coverage(size, fading).sum()
        yield PaintedLesion(
            picture=changed, mask=lesion.mask(size), place=place, diameter=size, contrast=contrast,
            left=float(np.abs(changed - picture).sum() / asked),
        )  # fmt: skip


def foreign_pieces(picture: Grey, other: Grey, inside: Mask, rng: np.random.Generator) -> Iterator[PaintedLesion]:
    """A piece of another healthy person at each of `PLACES`, of any size and sharpness, each in a picture of its own.

    Healthy tissue where it does not belong has no contrast or outline that a method could know beforehand: foreign
    patch interpolation, Tan et al. 2020, arXiv:2011.04197. Pieces that hardly differ are left out.

    Args:
        picture, other: (H, W) in [0, 1]; the other one's range is made the picture's.
        inside: the foreground of both, which has room.
    """
    full = intensity_range(picture, inside)
    other = np.clip(other * (full / intensity_range(other, inside)), 0, 1)
    for place, lesion in zip(PLACES, draw(inside, rng), strict=True):
        size = any_size(inside, rng)
        share, fading = rng.uniform(*FOREIGN), size * rng.uniform(*FADING)
        mixed = picture + share * lesion.coverage(size, fading) * (other - picture)
        mask = lesion.mask(size)
        difference = float(np.abs(mixed - picture)[mask].mean() / full)
        if difference >= DIFFERENT:
            yield PaintedLesion(
                picture=mixed.astype(np.float32), mask=mask, place=place, diameter=size, contrast=difference, left=1.0
            )


def any_size(inside: Mask, rng: np.random.Generator) -> float:
    """Diameter of a lesion over any of `SHARES` of the foreground, pixels."""
    return float(2 * np.sqrt(np.exp(rng.uniform(*np.log(SHARES))) * inside.sum() / np.pi))
