"""Pictures of a report as data URIs: plots as SVG, images as PNG. No file is written, nothing global is changed."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image as Picture
from scipy import ndimage

from salus.metrics import precision_recall_points, roc_points

Grey = NDArray[np.float32]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

INK, QUIET, RULE = "#1b1f24", "#8a929b", "#d5d9de"
METHOD, HEALTHY, ABNORMAL, TRUTH = "#1f5a7a", "#3d7f5f", "#b0492f", (64, 224, 255)
FLOOR_STYLES = ((QUIET, (0, (1, 1.2))), (QUIET, (0, (4, 2))), (INK, (0, (4, 1, 1, 1))))
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "salus",  # without it every file differs
    "font.size": 9,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
LINES = (METHOD, ABNORMAL, HEALTHY, "#8a6d1f", "#6b4f8a", INK, "#4c8fb0", "#c08a76")  # of data sets
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
COLOURS = "magma"
BLIND_TO_SEEN = LinearSegmentedColormap.from_list("blind to seen", ["#14212b", METHOD, "#a9cbdc", "#f4f9fb"])
STRIP = 0.30  # inches a row of the score plot


def score_figure(
    rows: Sequence[tuple[str, Floats]], threshold: float | None, *, healthy: bool, width: float = 8.6
) -> str:
    """Every case's score as a dot, one row a group, medians as ticks and the threshold as a line.

    With `healthy` the first row holds the healthy cases. The width is in inches.
    """
    everything = np.concatenate([score for _, score in rows])
    rng = np.random.default_rng(0)
    with rc_context(STYLE):
        figure = Figure(figsize=(width, 0.75 + STRIP * len(rows)), layout="constrained")
        axes = figure.subplots()
        for row, (name, score) in enumerate(rows):
            colour = HEALTHY if healthy and row == 0 else ABNORMAL
            height = row + rng.uniform(-0.26, 0.26, len(score))
            axes.scatter(score, height, s=9, color=colour, alpha=0.55, linewidths=0, label=name)
            axes.plot([np.median(score)] * 2, [row - 0.38, row + 0.38], color=colour, linewidth=1.8)
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=0.9, linestyle="--")
            axes.annotate(
                "threshold", (threshold, 1), xycoords=("data", "axes fraction"), xytext=(4, -1), va="bottom",
                textcoords="offset points", fontsize=8, annotation_clip=False,
            )  # fmt: skip
        if everything.min() > 0 and everything.max() > 10 * everything.min():
            axes.set_xscale("log")
        axes.set_yticks(range(len(rows)), [f"{name} ({len(score)})" for name, score in rows])
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="score (higher is more abnormal)")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        return svg(figure)


def roc_figure(abnormal: Mask, method: tuple[str, Floats], floors: Sequence[tuple[str, Floats]]) -> str:
    """ROC curves: the method's in colour, the floors' in grey."""
    with rc_context(STYLE):
        figure, axes = square_axes("false alarms: share of healthy cases", "share of abnormal cases found")
        axes.plot([0, 1], [0, 1], color=RULE, linewidth=0.8)
        for (name, score), (colour, style) in zip(floors, FLOOR_STYLES, strict=False):
            axes.plot(*roc_points(abnormal, score), color=colour, linestyle=style, linewidth=1.1, label=name)
        axes.plot(*roc_points(abnormal, method[1]), color=METHOD, linewidth=1.8, label=method[0])
        axes.legend(loc="lower right", frameon=False, fontsize=8)
        return svg(figure)


def precision_figure(abnormal: Mask, method: tuple[str, Floats], floors: Sequence[tuple[str, Floats]]) -> str:
    """Precision and recall, as the steps that the average precision sums; chance is the prevalence."""
    with rc_context(STYLE):
        figure, axes = square_axes("recall: share of abnormal cases found", "precision: abnormal among flagged")
        axes.axhline(abnormal.mean(), color=RULE, linewidth=0.8)
        axes.annotate(
            f"prevalence {abnormal.mean():.2f}", (1, abnormal.mean()), xytext=(0, -2), textcoords="offset points",
            ha="right", va="top", fontsize=8, color=QUIET, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
        for (name, score), (colour, style) in zip(floors, FLOOR_STYLES, strict=False):
            recall, precision = precision_recall_points(abnormal, score)
            axes.step(recall, precision, where="pre", color=colour, linestyle=style, linewidth=1.1, label=name)
        recall, precision = precision_recall_points(abnormal, method[1])
        axes.step(recall, precision, where="pre", color=METHOD, linewidth=1.8, label=method[0])
        axes.legend(loc="upper right" if abnormal.mean() < 0.4 else "lower right", frameon=False, fontsize=8)
        return svg(figure)


def cost_figure(points: Sequence[tuple[str, float, float]]) -> str:
    """Name, ms an image and AUROC of each method: what a better number costs."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.subplots()
        for name, cost, value in points:
            axes.plot(cost, value, "o", color=METHOD, markersize=5)
            axes.annotate(name, (cost, value), xytext=(6, -3), textcoords="offset points", fontsize=8)
        axes.set_xscale("log")
        costs = [cost for _, cost, _ in points]
        if max(costs) < 30 * min(costs):  # powers of ten alone would be one label, or none
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.15, y=0.12)
        axes.set(xlabel="ms an image (log)", ylabel="AUROC")
        return svg(figure)


def sweep_figure(
    curves: Sequence[tuple[str, str, Sequence[tuple[int, float, float | None]]]], label: str, *, log: bool = False
) -> str:
    """Curves over the size of the code, in steps of two.

    Each is its name, "solid" or as what it accompanies the solid one before ("dashed", or "grey" without a colour of
    its own), and its points: size, mean, deviation.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(3.9, 3.3), layout="constrained")
        axes = figure.subplots()
        place = -1
        for name, style, points in curves:
            place += style == "solid"
            colour, marker = LINES[place % len(LINES)], MARKERS[place % len(MARKERS)]
            if style == "grey":
                colour = QUIET
            sizes, means, deviations = zip(*points, strict=True)
            axes.errorbar(
                sizes, means, yerr=[deviation or 0 for deviation in deviations], label=name, capsize=2, markersize=3.5,
                color=colour, marker=marker, linestyle="--" if style == "dashed" else "-", linewidth=1.4,
                markerfacecolor="white" if style == "dashed" else colour,
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        every = sorted({size for *_, points in curves for size, *_ in points})
        axes.set_xticks(every, [f"{size:,}" for size in every], fontsize=8 if len(every) < 9 else 6.5)
        axes.xaxis.set_minor_formatter(NullFormatter())
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="entries of the code (log)", ylabel=label)
        axes.legend(frameon=False, fontsize=7.5, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        return svg(figure)


def rank_figure(ranks: Sequence[tuple[str, float]], critical_difference: float) -> str:
    """Mean ranks, best first, and how far apart two must lie; the shade is what does not differ from the best."""
    best, last = ranks[0][1], len(ranks)
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 0.95 + 0.24 * len(ranks)), layout="constrained")
        axes = figure.subplots()
        axes.axvspan(best, best + critical_difference, color=RULE, alpha=0.5, linewidth=0)
        for row, (_, rank) in enumerate(ranks):
            axes.plot([1, rank], [row, row], color=RULE, linewidth=0.8)
            axes.plot(rank, row, "o", color=METHOD, markersize=5)
        axes.errorbar(
            best + critical_difference / 2, -1, xerr=critical_difference / 2, color=INK, capsize=3, linewidth=1.4
        )
        axes.annotate(
            f"critical difference {critical_difference:.2f}", (best + critical_difference, -1), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize=8, annotation_clip=False,
        )  # fmt: skip
        axes.set_yticks(range(last), [name for name, _ in ranks])
        axes.set(ylim=(last - 0.5, -1.7), xlim=(0.8, max(last, best + critical_difference) + 0.2), xlabel="mean rank")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        return svg(figure)


def surface_figure(values: Floats, sizes: Sequence[str], contrasts: Sequence[str], *, border: float | None) -> str:
    """(sizes, contrasts) shares as a table of shades, dark for 0 and light for 1; a line where `border` is crossed."""
    with rc_context(STYLE):
        figure = Figure(figsize=(3.9, 0.9 + 0.27 * len(sizes)), layout="constrained")
        axes = figure.subplots()
        axes.pcolormesh(np.ma.masked_invalid(values), cmap=BLIND_TO_SEEN, vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(values):
            text = "–" if np.isnan(value) else f"{100 * value:.0f}"
            colour = "white" if value < 0.5 else INK
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color=colour)
        if border is not None:
            seen = np.nan_to_num(values) >= border
            down, across = np.argwhere(seen[1:] != seen[:-1]), np.argwhere(seen[:, 1:] != seen[:, :-1])
            axes.hlines(down[:, 0] + 1, down[:, 1], down[:, 1] + 1, color=ABNORMAL, linewidth=1.8)
            axes.vlines(across[:, 1] + 1, across[:, 0], across[:, 0] + 1, color=ABNORMAL, linewidth=1.8)
        _over_contrasts(axes, contrasts, 0.5)
        axes.set_yticks(np.arange(len(sizes)) + 0.5, sizes)
        axes.set(ylabel="diameter, px")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return svg(figure)


def smallest_figure(rows: Sequence[tuple[str, Sequence[int]]], sizes: Sequence[str], contrasts: Sequence[str]) -> str:
    """Of each row the index of a size for each contrast, darker and brighter apart; beyond the last for none."""
    styles = zip(rows, (INK, METHOD, ABNORMAL), ("o", "s", "^"), strict=False)
    with rc_context(STYLE):
        figure = Figure(figsize=(3.9, 2.9), layout="constrained")
        axes = figure.subplots()
        axes.axhspan(len(sizes) - 0.5, len(sizes) + 0.5, color=RULE, linewidth=0)
        for number, ((name, found), colour, marker) in enumerate(styles):
            place = np.arange(len(contrasts)) + 0.12 * (number - 1)  # beside each other, not over each other
            half = len(contrasts) // 2
            for part in (slice(half), slice(half, None)):
                axes.plot(
                    place[part], np.array(found[part]) + 0.08 * (number - 1), marker=marker, markersize=4, color=colour,
                    linewidth=1.3, label=name if part.start is None else None,
                )  # fmt: skip
        _over_contrasts(axes, contrasts, 0)
        axes.set_yticks(range(len(sizes) + 1), [*sizes, "none"])
        axes.set(ylabel="diameter, px", ylim=(-0.5, len(sizes) + 0.5))
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
        return svg(figure)


def _over_contrasts(axes: Axes, contrasts: Sequence[str], start: float) -> None:
    axes.set_xticks(np.arange(len(contrasts)) + start, contrasts, fontsize=7.5)
    axes.axvline(len(contrasts) / 2 - 0.5 + start, color="white" if start else RULE, linewidth=3 if start else 0.8)
    axes.set(xlabel="darker   –   contrast, % of range   –   brighter")


def square_axes(x: str, y: str) -> tuple[Figure, Axes]:
    """Axes from 0 to 1 both ways."""
    figure = Figure(figsize=(3.9, 3.7), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xlabel=x, ylabel=y, aspect="equal")
    return figure, axes


def colour_bar(top: float, threshold: float | None) -> str:
    """The scale that all maps of a report share."""
    with rc_context(STYLE):
        figure = Figure(figsize=(3.6, 0.52), layout="constrained")
        axes = figure.subplots()
        axes.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=COLOURS, extent=(0, top, 0, 1))
        ticks = [0, top] if threshold is None or threshold <= 0 else [0, threshold, top]
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.set_yticks([])
        if len(ticks) == 3:
            axes.axvline(ticks[1], color="white", linewidth=1)
        return svg(figure)


def svg(figure: Figure) -> str:
    """A data URI, the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return uri(buffer.getvalue(), "image/svg+xml")


def grey_picture(picture: Grey) -> str:
    """(H, W) in [0, 1]."""
    return png(Picture.fromarray(to_bytes(picture)))


def map_picture(anomaly: Grey, top: float) -> str:
    """(H, W) in colours from 0 to `top`; what lies above has the last colour."""
    picture = Picture.fromarray(to_bytes(anomaly / max(top, 1e-12)))
    palette = np.round(colormaps[COLOURS](np.arange(256))[:, :3] * 255).astype(np.uint8)
    picture.putpalette(palette.tobytes())
    return png(picture)


def outlined(picture: NDArray[np.uint8], inside: Mask) -> str:
    """(H, W, 3) with a line around each region of (H, W)."""
    # Around it, not on it: a finding of a few pixels stays visible.
    rim = ndimage.binary_dilation(inside, structure=np.ones((3, 3), dtype=bool)) & ~inside
    drawn = picture.copy()
    drawn[rim] = TRUTH
    # 128 colours hold grey, red to yellow and the line; the file is a third of the size.
    return png(Picture.fromarray(drawn).quantize(128, dither=Picture.Dither.NONE))


def to_bytes(picture: Grey) -> NDArray[np.uint8]:
    """0 to 0 and 1 to 255, what lies beyond clipped."""
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def png(picture: Picture.Image) -> str:
    """A data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")  # the least that zlib can do takes four times as long and saves half a percent
    return uri(buffer.getvalue(), "image/png")


def uri(content: bytes, kind: str) -> str:
    """`content` within the page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
