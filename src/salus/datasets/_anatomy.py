"""The healthy head behind `phantom`: one T1-weighted axial slice through the frontal horns, as layers.

Everything is drawn on a grid of 256 x 256 pixels of about 0.86 mm and brought to the asked size later, so that
one seed is the same head at every size. Coordinates are the head's own, in pixels of that grid from its centre: x to
the right of the picture, y to the back of the head; `phi` is 0 at the forehead, positive on the right, pi at the back.

Folds are curves that grow from the surface inwards. What lies within a cortex's thickness of a curve or of the surface
is grey, as in a brain, which is why the ribbon follows the folds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt, gaussian_filter

from salus.datasets._drawing import GRID, Field, Generator, Kin, Points, blend, grow, smooth_contour, smooth_field, soft

OWN_FOLDS = 0.3  # how much of the spread of the folds' course, depth and width is each head's own
OVERSAMPLING = 2  # curves and polygons are drawn this much finer and averaged, for smooth edges

# Contours of the right half, (x, y); the left is its mirror image, each point then jittered on its own.
FRONTAL_HORN = ((1, -33), (5, -39), (11, -46), (16, -47), (17, -42), (13, -36), (9, -27), (6, -19), (3, -12), (1, -14))
ATRIUM = ((14, 25), (20, 26), (26, 34), (30, 45), (29, 56), (25, 57), (23, 48), (19, 40), (14, 33))
CAUDATE = ((15, -40), (20, -38), (21, -30), (18, -21), (13, -14), (10, -16), (11, -24), (13, -32))
PUTAMEN = ((26, -32), (31, -31), (37, -20), (38, -8), (34, 6), (31, 9), (31, -2), (30, -12), (27, -22))
PALLIDUM = ((26, -21), (29, -13), (30, -2), (29, 3), (24, -2), (20, -9), (22, -14))
THALAMUS = ((5, -11), (10, -13), (17, -7), (22, 4), (24, 14), (19, 21), (11, 19), (5, 12), (3, 2))
CHOROID = ((18, 31), (22, 33), (25, 41), (24, 46), (21, 41), (18, 36))
THIRD_VENTRICLE = ((0, -10), (1.3, -8), (2.0, 0), (1.6, 9), (0, 13))
CISTERN = ((0, 20), (4, 21), (7, 25), (3, 27), (0, 28))

# Depth in pixels of the folds of one half, from the forehead to the back, evenly spaced along the surface.
FOLDS = (13, 25, 12, 28, 15, 24, 12, 17, 10, 14, 11, 22, 13, 29, 14, 27, 12, 20)

# Folds of the inner faces of both halves: y, depth, lean to the back in radians.
MEDIAL_FOLDS = ((-83, 9, -0.3), (-71, 14, 0.5), (-60, 13, -0.5), (47, 13, -0.4), (60, 21, -0.5), (76, 19, -0.2))


@dataclass(frozen=True)
class Shape:
    """What makes one head differ from another; drawn once, from the seed."""

    half_width: float
    half_length: float
    egg: float  # how much the back is broader than the front
    squareness: float
    ripples: NDArray[np.float64]  # (4, 2) amplitude and phase of the outline's harmonics 2 to 5
    scalp: float  # skin and fat, pixels
    muscle: float  # temporal muscle, pixels
    skull: float
    age: float  # 0 young, 1 old: wider folds and ventricles, thinner cortex
    ventricle: float  # 1 is the template
    septum: float  # thickness, pixels
    angle: float  # rotation, radians
    shift: tuple[float, float]
    left: float  # scale of the left ventricle over the right


@dataclass(frozen=True)
class Tones:
    """Signal of each tissue before bias field and noise."""

    csf: float
    grey: float
    white: float
    striatum: float
    thalamus: float
    pallidum: float
    fat: float
    skin: float
    bone: float
    marrow: float
    muscle: float


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One head in layers, each (256, 256) float32; coverages in [0, 1], distances in pixels.

    Attributes:
        shape, tones: what was drawn.
        x, y, phi: the head's own coordinates of every pixel.
        surface: depth below the skin, negative outside.
        inner: depth below the inner table of the skull.
        brain: depth below the pial surface.
        tissue: signal of everything but the lateral ventricles.
        ventricles: coverage by the lateral ventricles.
        lumen: signal of what fills the ventricles: fluid, with choroid plexus in it.
        septum: coverage by the septum between the frontal horns.
        white: coverage by white matter.
        depth: distance to the nearest fold or surface.
    """

    shape: Shape
    tones: Tones
    x: Field
    y: Field
    phi: Field
    surface: Field
    inner: Field
    brain: Field
    tissue: Field
    ventricles: Field
    lumen: Field
    septum: Field
    white: Field
    depth: Field

    def render(self) -> Field:
        """(256, 256) signal of the healthy head."""
        return blend(self.tissue, self.lumen, self.ventricles)


def draw_shape(rng: Generator) -> Shape:
    """A head like others, from the seed."""
    age = float(rng.beta(1.6, 2.2))
    half_length = float(np.clip(rng.normal(110, 4.0), 101, 117))
    return Shape(
        half_width=half_length * float(np.clip(rng.normal(0.805, 0.03), 0.74, 0.88)),
        half_length=half_length,
        egg=float(rng.normal(0.055, 0.015)),
        squareness=float(rng.uniform(2.02, 2.3)),
        ripples=np.stack([rng.normal(0, [0.006, 0.006, 0.004, 0.003]), rng.uniform(0, 2 * np.pi, 4)], axis=1),
        scalp=float(rng.uniform(4.5, 7.5)),
        muscle=float(rng.uniform(2.0, 6.0)),
        skull=float(rng.uniform(5.5, 8.0)),
        age=age,
        ventricle=float(np.clip(np.exp(rng.normal(-0.12 + 0.35 * age, 0.17)), 0.62, 1.6)),
        septum=float(rng.uniform(2.4, 3.4)),
        angle=float(np.clip(rng.normal(0, 0.05), -0.12, 0.12)),
        shift=(float(rng.normal(0, 2.0)), float(rng.normal(0, 2.0))),
        left=float(np.exp(rng.normal(0, 0.07))),
    )


def draw_tones(rng: Generator, age: float) -> Tones:
    """T1-like signal; grey and white matter come closer with age."""
    white = float(rng.normal(0.70, 0.02))
    grey = white * float(rng.normal(0.655 + 0.04 * age, 0.012))
    return Tones(
        csf=float(rng.uniform(0.12, 0.17)),
        grey=grey,
        white=white,
        striatum=grey + 0.22 * (white - grey),
        thalamus=grey + float(rng.uniform(0.35, 0.5)) * (white - grey),
        pallidum=grey + 0.68 * (white - grey),
        fat=float(rng.uniform(0.86, 1.0)),
        skin=float(rng.uniform(0.42, 0.55)),
        bone=float(rng.uniform(0.04, 0.08)),
        marrow=float(rng.uniform(0.28, 0.5)),
        muscle=float(rng.uniform(0.36, 0.42)),
    )


def outline(shape: Shape, phi: Field | Points) -> NDArray[np.float64]:
    """Distance from the centre to the skin in each direction, pixels."""
    cosine, sine = np.cos(phi), np.sin(phi)
    width, power = shape.half_width * (1 - shape.egg * cosine), shape.squareness
    radius = (np.abs(sine / width) ** power + np.abs(cosine / shape.half_length) ** power) ** (-1 / power)
    waves = sum(a * np.cos((k + 2) * phi + p) for k, (a, p) in enumerate(shape.ripples))
    return np.asarray(radius * (1 + waves), dtype=np.float64)


def thicknesses(rng: Generator, shape: Shape, phi: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Thickness of scalp, muscle, skull and the fluid below in each direction `phi`, pixels."""
    wobble = [
        1 + 0.14 * sum(rng.normal() * np.cos(k * phi + rng.uniform(0, 6.3)) / k for k in (1, 2, 3, 5)) for _ in "abc"
    ]
    side = np.exp(-(((np.abs(phi) - 1.15) / 0.42) ** 2))  # the temples
    ends = np.abs(np.cos(phi)) ** 3  # forehead and occiput, where bone is thicker
    return {
        "scalp": shape.scalp * wobble[0] * (1 - 0.25 * side + 0.2 * (np.cos(phi) < 0) * ends),
        "muscle": shape.muscle * side,
        "skull": shape.skull * wobble[1] * (0.85 + 0.35 * ends - 0.15 * side),
        "fluid": (1.6 + 2.6 * shape.age) * wobble[2] * (1 + 0.5 * ends * (np.cos(phi) > 0)),
    }


def shell(depth: Field, tones: Tones, scalp: Field, muscle: Field, skull: Field, marrow: float = 1.0) -> Field:
    """Signal of skin, fat, muscle and bone at `depth` below the skin; fluid further in, zero outside.

    `marrow` in [0, 1] is how much of the bright layer between the two tables is there.
    """
    signal = blend(np.zeros_like(depth), tones.skin, soft(depth, 1.2))
    signal = blend(signal, tones.fat, soft(depth - 1.6, 1.4))
    signal = blend(signal, tones.muscle, soft(depth - scalp, 1.4) * soft(muscle - 0.8, 1.0))
    bone = depth - scalp - muscle
    signal = blend(signal, tones.bone, soft(bone, 1.4))
    spongy = soft(bone - 0.27 * skull, 1.6) * soft(0.74 * skull - bone, 1.6) * np.clip((skull - 3.5) / 2, 0, 1) * marrow
    signal = blend(signal, tones.marrow, np.asarray(spongy, dtype=np.float32))
    return blend(signal, tones.csf, soft(bone - skull, 1.4))


class Pen:
    """Draws in the head's own coordinates onto the turned and shifted grid, warped as this brain is."""

    def __init__(self, rng: Generator, shape: Shape) -> None:
        self.shape = shape
        self.warp = rng.normal(0, 1.0, (4, 2)), rng.normal(0, 0.028, (4, 2)), rng.uniform(0, 6.3, 4)

    def place(self, points: Points) -> Points:
        """(n, 2) grid positions, column then row, of points in the head's own coordinates."""
        amplitude, frequency, phase = self.warp
        return forward(self.shape, points + np.sin(points @ frequency.T + phase) @ amplitude)

    def polygons(self, contours: Sequence[Points]) -> Field:
        def draw(pen: ImageDraw.ImageDraw) -> None:
            for contour in contours:
                pen.polygon(self._fine(smooth_contour(contour)), fill=255)

        return self._draw(draw)

    def lines(self, curves: Sequence[tuple[Points, float]]) -> Field:
        def draw(pen: ImageDraw.ImageDraw) -> None:
            for points, width in curves:
                pen.line(self._fine(points), fill=255, width=max(1, round(width * OVERSAMPLING)), joint="curve")

        return self._draw(draw)

    def _fine(self, points: Points) -> list[tuple[float, float]]:
        return [(float(a), float(b)) for a, b in (self.place(points) + 0.5) * OVERSAMPLING - 0.5]

    def _draw(self, draw: Callable[[ImageDraw.ImageDraw], None]) -> Field:
        canvas = Image.new("L", (GRID * OVERSAMPLING, GRID * OVERSAMPLING))
        draw(ImageDraw.Draw(canvas))
        return np.asarray(canvas.reduce(OVERSAMPLING), dtype=np.float32) / np.float32(255)


def forward(shape: Shape, points: Points) -> Points:
    """Grid positions as `Pen.place` gives them, without the warp."""
    cosine, sine = np.cos(shape.angle), np.sin(shape.angle)
    turned = points @ np.array([[cosine, sine], [-sine, cosine]])
    return np.asarray(turned + (GRID - 1) / 2 + np.array(shape.shift))


def coordinates(shape: Shape) -> tuple[Field, Field]:
    """The head's own x and y of every pixel of the grid: the inverse of `forward`."""
    rows, columns = np.mgrid[:GRID, :GRID].astype(np.float32)
    across, down = columns - (GRID - 1) / 2 - shape.shift[0], rows - (GRID - 1) / 2 - shape.shift[1]
    cosine, sine = np.cos(shape.angle), np.sin(shape.angle)
    return (
        np.asarray(across * cosine + down * sine, dtype=np.float32),
        np.asarray(down * cosine - across * sine, dtype=np.float32),
    )


def surface_folds(rng: Kin, shape: Shape, radius: Callable[[Points], Points]) -> list[tuple[Points, float]]:
    """Folds that grow inwards from the surface of both halves, some with a side branch."""
    turns = np.linspace(0, np.pi, 400)
    edge = radius(turns)
    arc = np.cumsum(np.hypot(edge, np.gradient(edge, turns)))
    scale = shape.half_length / 110
    curves: list[tuple[Points, float]] = []
    for half in (-1, 1):
        for i, usual in enumerate(FOLDS):
            rng.about(1, half + 1, i)
            share = (i + 0.75 + rng.normal(0, 0.17)) / (len(FOLDS) + 0.5)
            depth = usual * scale * float(np.clip(rng.normal(1, 0.2), 0.5, 1.45))
            width = (1.1 + 1.5 * shape.age) * rng.uniform(0.75, 1.35)
            phi = half * np.interp(share * arc[-1], arc, turns)
            outside = float(radius(np.array([phi]))[0]) + 3
            start = outside * np.array([np.sin(phi), -np.cos(phi)])
            heading = float(np.arctan2(-start[1], -start[0])) + rng.normal(0, 0.22)
            curve = grow(rng, start, heading, depth + 3)
            curves.append((curve, width))
            curves.append((curve[: len(curve) // 3 + 1], width * 1.5))  # folds gape at the surface
            if depth > 15 and rng.uniform() < 0.75:
                fork = curve[int(len(curve) * rng.uniform(0.55, 0.95))]
                side = (1 if rng.uniform() < 0.5 else -1) * rng.uniform(0.7, 1.4)
                curves.append((grow(rng, fork, heading + side, depth * rng.uniform(0.3, 0.5)), width * 0.85))
    return curves


def deep_fissures(rng: Kin, shape: Shape, front: float, back: float, edge: float) -> list[tuple[Points, float]]:
    """The fissure between the halves, its folds, and the lateral fissures with the insula at their bottom.

    `front`, `back` and `edge` are the distances from the centre to the surface ahead, behind and to the sides.
    """
    gape = 1.0 + 1.5 * shape.age
    scale = shape.half_length / 110
    curves: list[tuple[Points, float]] = []
    rng.about(2)
    for tip, start, sign in ((-58 * scale, -front - 2, 1), (38 * scale, back + 2, -1)):
        length = abs(start - tip)
        curves.append((grow(rng, np.array([0.0, start]), sign * np.pi / 2, length, bend=0.035), gape + 1.0))
    for half in (-1, 1):
        outward = 0.0 if half > 0 else np.pi
        for i, (y, length, lean) in enumerate(MEDIAL_FOLDS):
            rng.about(3, half + 1, i)
            at = np.array([half * 0.5, (y + rng.normal(0, 2)) * scale])
            heading = outward + half * (lean + rng.normal(0, 0.2))
            length *= scale * rng.uniform(0.7, 1.25)
            curves.append((grow(rng, at, heading, length), gape * rng.uniform(0.8, 1.2)))
        rng.about(4, half + 1)
        insula = 45 * scale * rng.uniform(0.96, 1.04) * (edge / (74 * scale))
        top, bottom = (-27 + rng.normal(0, 2)) * scale, (13 + rng.normal(0, 2)) * scale
        down = np.linspace(top, bottom, 24)
        bow = 5 * np.sin((down - top) / (bottom - top) * np.pi) + 1.2 * np.sin(down / 4 + rng.uniform(0, 6.3))
        wall = np.stack([half * (insula - 5 + bow), down], axis=1)
        curves.append((wall, gape * 1.15))
        for mouth in (rng.uniform(0.55, 0.72), rng.uniform(0.93, 1.0))[: 1 + int(rng.uniform() < 0.7)]:
            at = wall[int(mouth * 23)]
            heading = outward + half * rng.normal(0.05, 0.16)
            curves.append((grow(rng, at, heading, edge - insula + 8, bend=0.3), gape * 1.25))
    return curves


def dura(rng: Generator, front: float, back: float) -> list[tuple[Points, float]]:
    """The falx, seen as a thin line at both ends of the midline, and the sinus where it meets the skull behind."""
    ends = ((-front - 2, -front + rng.uniform(8, 16)), (back + 3, back - rng.uniform(14, 26)))
    lines = [(np.array([[0.0, a], [0.0, b]]), 1.0) for a, b in ends]
    sinus = np.array([[-3.5, back + 2.5], [3.5, back + 2.5], [0.0, back - 3], [-3.5, back + 2.5]])
    return [*lines, (sinus, 2.2)]


def both_sides(
    rng: Generator, contour: Sequence[tuple[float, float]], scale: float, jitter: float = 0.6
) -> list[Points]:
    """A contour of the right half and its mirror image, each point jittered."""
    base = np.array(contour, dtype=np.float64)
    return [(base + rng.normal(0, jitter, base.shape)) * scale * np.array([half, 1]) for half in (1, -1)]


def ventricle_contours(rng: Generator, shape: Shape, scale: float) -> list[Points]:
    """Frontal horns and atria, grown or shrunk about their inner edges by this head's ventricle size."""
    contours = []
    for contour, anchor, tall in ((FRONTAL_HORN, (0, -26), 0.5), (ATRIUM, (14, 36), 0.7)):
        for points, half in zip(both_sides(rng, contour, 1.0, 0.5), (1, -1), strict=True):
            grown = shape.ventricle * (shape.left if half < 0 else 1.0)
            offset = points * np.array([half, 1]) - np.array(anchor)
            moved = np.array(anchor) + offset * np.array([grown, 1 + tall * (grown - 1)])
            moved[:, 0] = np.maximum(moved[:, 0], 0) + shape.septum / 2 / scale
            contours.append(moved * scale * np.array([half, 1]))
    return contours


def deep_grey(rng: Generator, pen: Pen, tones: Tones, tissue: Field, scale: float) -> tuple[Field, Field]:
    """`tissue` with basal ganglia, thalami and midline fluid painted in, and how far they cover each pixel."""
    push = 7 * (pen.shape.ventricle - 1)  # this head's ventricles push them aside
    covered = np.zeros_like(tissue)
    for contour, tone, follow, blur in (
        (PUTAMEN, tones.striatum, 0.45, 1.0),
        (PALLIDUM, tones.pallidum, 0.5, 1.2),
        (THALAMUS, tones.thalamus, 0.25, 1.6),
        (CAUDATE, tones.striatum, 1.0, 0.9),
    ):
        shapes = [c + np.array([np.sign(c[:, 0].mean()) * push * follow, 0]) for c in both_sides(rng, contour, scale)]
        nucleus = gaussian_filter(pen.polygons(shapes), blur, truncate=2.5)
        tissue, covered = blend(tissue, tone, nucleus), np.maximum(covered, nucleus)
    midline = [c for part in (THIRD_VENTRICLE, CISTERN) for c in both_sides(rng, part, scale, 0.25)]
    wide = 0.9 + 0.9 * pen.shape.age
    fluid = pen.polygons([c * np.array([wide, 1.0]) for c in midline])
    return blend(tissue, tones.csf, fluid), np.maximum(covered, fluid)


def build(seed: int, own_folds: float = OWN_FOLDS) -> Anatomy:
    """The head of `seed`, in layers; `own_folds` in [0, 1] is the share of its folds that no other head has."""
    rng = np.random.default_rng([seed, 0])
    shape = draw_shape(rng)
    tones = draw_tones(rng, shape.age)
    pen = Pen(rng, shape)
    x, y = coordinates(shape)
    phi = np.arctan2(x, -y).astype(np.float32)

    turns = np.linspace(-np.pi, np.pi, 721)
    layers = thicknesses(rng, shape, turns)
    skin = outline(shape, turns)
    scalp, muscle, skull, fluid = (np.interp(phi, turns, layers[k]).astype(np.float32) for k in layers)
    surface = (np.interp(phi, turns, skin) - np.hypot(x, y)).astype(np.float32)
    inner = surface - scalp - muscle - skull
    brain = inner - fluid

    def radius(at: Points) -> Points:
        return np.interp(at, turns, skin - sum(layers.values()))

    front, back, edge = radius(np.array([0.0, np.pi, np.pi / 2]))
    scale = float(front + back) / 194
    kin = Kin(rng, own_folds)
    folds = pen.lines(surface_folds(kin, shape, radius) + deep_fissures(kin, shape, front, back, edge))
    kin.about(5)
    to_fold = distance_transform_edt(folds < 0.45).astype(np.float32)
    depth = np.minimum(to_fold, brain)
    cortex: Field = 4.4 - 0.5 * shape.age + 0.7 * smooth_field(kin, 24)
    ribbon = soft(cortex - depth, 1.8)
    # Neighbouring folds touch here and there, where no fluid is seen between them.
    gaping = np.clip(0.42 + 0.4 * shape.age + 0.32 * smooth_field(kin, 20), 0.08, 1)

    white = np.full_like(brain, tones.white) * (1 + 0.012 * smooth_field(rng, 7) + 0.012 * smooth_field(rng, 40))
    tissue = blend(white, tones.grey * (1 + 0.03 * smooth_field(rng, 30)), ribbon)
    tissue, deep = deep_grey(rng, pen, tones, tissue, scale)
    plexus = pen.polygons([c + np.array([0, 2.0]) for c in both_sides(rng, CHOROID, scale, 0.8)])
    lumen: Field = tones.csf + 0.75 * plexus * (tones.grey - tones.csf)
    horns = pen.polygons(ventricle_contours(rng, shape, scale))
    tissue = blend(tissue, tones.csf, folds * gaping)
    tissue = blend(shell(surface, tones, scalp, muscle, skull), tissue, soft(brain, 1.4))
    tissue = blend(tissue, tones.skin, 0.8 * pen.lines(dura(rng, front, back)) * soft(inner + 1.5))
    grain = 0.05 * smooth_field(rng, 45) + 0.06 * smooth_field(rng, 9)  # strands in fat, unevenness in marrow
    tissue *= 1 + grain * soft(-inner)
    septum = septum_coverage(pen, scale)
    matter = (1 - ribbon) * (1 - deep) * soft(brain) * (1 - horns)
    return Anatomy(shape, tones, x, y, phi, surface, inner, brain, tissue, horns, lumen, septum, matter, depth)


def septum_coverage(pen: Pen, scale: float) -> Field:
    """Where the wall between the frontal horns is."""
    half = pen.shape.septum / 2 + 0.6
    box = [(-half, -35 * scale), (half, -35 * scale), (half, -14 * scale), (-half, -14 * scale)]
    return pen.polygons([np.repeat(np.array(box), 2, axis=0)])
