"""report.html: one file, nothing loaded from anywhere, for a radiologist and a reviewer alike."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image as Picture

from salus.benchmark import figures
from salus.benchmark.floors import FLOORS, unbeaten
from salus.benchmark.pairing import Judged, bare, truth
from salus.core import Image, Verdict
from salus.core.errors import SalusError
from salus.detectors import ENSEMBLE
from salus.io import read_image, read_study
from salus.io.files import write_whole
from salus.preprocess import Preparation, resample
from salus.preprocess.geometry import crop

if TYPE_CHECKING:
    from salus.benchmark.evaluate import Evaluation

SIDE = 192  # pixels of a picture
SHOWN = 4  # cases in each row of examples
FINDINGS = 8  # or of so many findings one each
TOP = 3.0  # pixel thresholds that the colours of maps hold at least; where the overlay turns yellow, too

Row = Mapping[str, Any]
Column = tuple[str, str, str]
EACH = ", of each finding one before a second"
OF_CASES = (  # key, heading, note
    ("auroc", "AUROC", ""),
    ("auprc", "AUPRC", ""),
    ("auprc_at_half", "AUPRC", "at prevalence 0.5"),
    ("fpr_at_tpr95", "FPR@95", "lower is better"),
    ("fpr_at_tpr99", "FPR@99", "lower is better"),
    ("sensitivity", "Found", "at the threshold"),
    ("false_alarm_rate", "False alarms", "at the threshold"),
)
OF_PIXELS = (
    ("pixel_ap", "Pixel AP", ""),
    ("pixel_auroc", "Pixel AUROC", ""),
    ("aupro", "AUPRO", ""),
    ("best_dice", "Best Dice", "oracle"),
    ("dice", "Dice", "at the threshold"),
    ("hit_rate", "Findings hit", "at the threshold"),
    ("f1_ra2024", "F1 by mass", "depends on scale"),
)
BY_GROUP = (
    ("auroc", "AUROC", ""),
    ("sensitivity", "Found", "at the threshold"),
    ("false_alarm_rate", "False alarms", "at the threshold"),
)
TABLES = (("Cases", OF_CASES), ("Pixels and findings", OF_PIXELS))
BY_FINDING = ("auprc", "sensitivity", "pixel_ap", "best_dice", "dice", "hit_rate")
FIDELITY = (
    ("ssim", "SSIM", "higher is closer"),
    ("lpips", "LPIPS", "lower is closer"),
    ("mae", "MAE", "lower is closer"),
)
SOUND = (
    ("hit_rate", "Findings hit", "a tenth of each"),
    ("chance_corrected_hit_rate", "Beyond chance", "0 is chance"),
    ("false_regions_healthy", "False regions", "a healthy picture"),
    ("false_regions_abnormal", "False regions", "a picture with findings"),
    ("pointing_game", "Pointing game", "no threshold"),
    ("mass_ratio", "Mass ratio", "no threshold"),
)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture of a case: caption and data URI."""

    caption: str
    image: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """A case on the page."""

    case_id: str
    what: str
    score: str
    p_value: str
    verdict: str
    panels: tuple[Panel, ...]


def write_report(path: Path, evaluation: "Evaluation") -> Path:
    """Write the page; every number on it is one of `evaluation.metrics`.

    Raises:
        StorageError: it could not be written; a report already there stays whole.
    """
    metrics, judged = evaluation.metrics, evaluation.paired.judged
    threshold = metrics["pixel_threshold"]
    sections, top = examples(evaluation)
    page = template("report.html.j2").render(
        m=metrics,
        summary=summary(judged, metrics),
        plots=plots(evaluation),
        tables=[(title, present(columns, [row["entries"] for row in main_rows(metrics)])) for title, columns in TABLES],
        rows=main_rows(metrics),
        finding_columns=present(
            [column for column in (*OF_CASES, *OF_PIXELS) if column[0] in BY_FINDING], metrics["findings"].values()
        ),
        by_group=BY_GROUP,
        binned=off_by_bins(metrics["overall"] or {}),
        floor_names=FLOORS,
        fidelity=FIDELITY,
        box_hits=box_hits(metrics["protocols"]) if metrics["protocols"] else [],
        sound=present(SOUND, [metrics["protocols"]["sound"]]) if metrics["protocols"] else [],
        sections=sections,
        outlined=any(p.caption.startswith("truth") for s in sections for one in s["cases"] for p in one.panels),
        scale=top and {"bar": figures.colour_bar(top, threshold), "top": top, "by": top / (threshold or top)},
        settings=settings(evaluation.paired.run),
        left_out=left_out(evaluation.paired.run),
        problems=by_reason(metrics["problems"]),
    )
    write_whole(path, page.encode())
    return path


def off_by_bins(measures: Mapping[str, Any]) -> float | None:
    """How far a pixel metric can be from its exact value, rounded up to 0.0001; None without pixel metrics."""
    binned = [one for one in measures.values() if isinstance(one, Mapping) and "exact_within" in one]
    off = [abs(end - one["value"]) for one in binned for end in one["exact_within"]]
    return math.ceil(1e4 * max(off)) / 1e4 if off else None


def template(name: str) -> jinja2.Template:
    """A page of this folder, with the filters that pages share."""
    loader = jinja2.PackageLoader("salus", "benchmark")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(number=number, cell=cell, interval=between, coded=coded)
    return environment.get_template(name)


def summary(judged: Sequence[Judged], metrics: Row) -> list[str]:
    """The result in two sentences, and a third where a floor is as good."""
    if not judged:
        return ["None of the test cases could be judged; the reasons are listed below."]
    normal = sum(not one.abnormal for one in judged)
    abnormal = len(judged) - normal
    alarms, found = metrics["healthy"]["false_alarm_rate"], metrics["overall"]["sensitivity"]
    told = []
    if alarms is None and found is None:
        told.append(
            f"{normal} healthy and {abnormal} abnormal test cases have scores, but there is no threshold and no "
            "verdict; the reason is among the problems below."
        )
    else:
        at = f"the {100 * metrics['false_alarms']:.3g}\N{NO-BREAK SPACE}% threshold"
        parts = [of(count, kind) for count, kind in ((alarms, "healthy test cases"), (found, "abnormal")) if count]
        told.append(
            "; ".join([f"Of {parts[0]} flagged at {at}", *(f"of {part.rpartition(' ')[0]}" for part in parts[1:])])
            + "."
        )
    if (auroc := metrics["overall"]["auroc"]) is not None:
        lower, upper = auroc["ci95"]
        told.append(
            f"A random abnormal case scored above a random healthy one {percent(auroc['value'])} of the time "
            f"(AUROC {number(auroc['value'])}, 95 % interval {number(lower)} to {number(upper)}; chance is 0.5)."
        )
    sentence = unbeaten(metrics)
    return [*told, sentence] if sentence else told


def of(share: Row, kind: str) -> str:
    """'60 healthy test cases 4 (6.7 %) were'."""
    flagged, total = share["n"]
    return f"{total} {kind} {flagged} ({percent(share['value'])}) {'was' if flagged == 1 else 'were'}"


def main_rows(metrics: Row) -> list[dict[str, Any]]:
    """The method, then the floors: name and entries by key."""
    sources = [(metrics["method"], metrics, False)]
    sources += [(FLOORS[name], floor, True) for name, floor in metrics["floors"].items() if floor is not None]
    return [
        {
            "name": name,
            "floor": floor,
            "entries": {**source["overall"], "false_alarm_rate": source["healthy"]["false_alarm_rate"]},
        }
        for name, source, floor in sources
        if source["overall"] is not None
    ]


def present(columns: Iterable[Column], rows: Iterable[Row]) -> list[Column]:
    """The columns in which any row has a value."""
    rows = list(rows)
    return [column for column in columns if any(row.get(column[0]) is not None for row in rows)]


def box_hits(protocols: Row) -> list[dict[str, Any]]:
    """Rows of the published table: the classes, then both averages, with one entry a threshold."""
    tables = [table for table in protocols["ra2024"].values() if table is not None]
    if not tables:
        return []
    rows = [(name.replace("_", " "), "", [table["classes"][name] for table in tables]) for name in tables[0]["classes"]]
    rows.append(("Micro average", "each finding counts the same", [table["micro"] for table in tables]))
    rows.append(("Macro average", "each class counts the same", [table["macro"] for table in tables]))
    return [{"name": name, "note": note, "entries": entries} for name, note, entries in rows]


def plots(evaluation: "Evaluation") -> dict[str, str]:
    """Score distributions, and the two curves where both classes are there."""
    judged, score = evaluation.paired.judged, evaluation.ours.score
    if not judged:
        return {}
    ill = np.array([one.abnormal for one in judged])
    rows = [("healthy", score[~ill])] if not ill.all() else []
    for name in evaluation.metrics["findings"]:
        members = [name in {f.name for f in one.case.findings} for one in judged]
        rows.append((name.replace("_", " "), score[ill & np.array(members)]))
    unnamed = np.array([one.abnormal and not one.case.findings for one in judged])
    if unnamed.any():
        rows.append(("abnormal", score[unnamed]))
    made = {
        name: figures.score_figure(rows, evaluation.ours.threshold, healthy=not ill.all(), width=width)
        for name, width in (("scores", 8.6), ("scores_narrow", 3.9))
    }
    if 0 < ill.sum() < len(ill):
        ours = (evaluation.metrics["method"], score)
        floors = [(FLOORS[name], floor.score) for name, floor in evaluation.floors.items() if floor is not None]
        made["roc"] = figures.roc_figure(ill, ours, floors)
        made["precision"] = figures.precision_figure(ill, ours, floors)
    return made


def examples(evaluation: "Evaluation") -> tuple[list[dict[str, Any]], float | None]:
    """The cases to look at, in sections, and the map value of the last colour; None if no case has a map."""
    judged = evaluation.paired.judged
    ranked = sorted(judged, key=lambda one: (-one.score, one.case.case_id))
    abnormal = [one for one in ranked if one.abnormal]
    healthy = [one for one in ranked if not one.abnormal]
    many = max(SHOWN, min(FINDINGS, len({kind(one) for one in abnormal})))
    found = varied(abnormal, min(many, (len(abnormal) + 1) // 2))
    missed = [one for one in abnormal[::-1] if one.result.verdict != Verdict.ABNORMAL and one not in found]
    alarms = any(one.result.verdict == Verdict.ABNORMAL for one in healthy)
    middle = max(0, (len(healthy) - SHOWN) // 2)
    chosen = (
        ("found", "Most clearly abnormal", f"The abnormal cases with the highest scores{EACH}.", found),
        ("missed", "Worst misses", f"Cases with the lowest scores that were not flagged{EACH}.", varied(missed, many)),
        ("alarms", "False alarms" if alarms else "Highest healthy scores",
         f"The healthy cases with the highest scores{'' if alarms else '; none was flagged'}.", healthy[:SHOWN]),
        ("typical", "Typical healthy cases", "Healthy cases around the median score, and how they were restored.",
         [one for one in healthy[middle : middle + SHOWN] if one not in healthy[:SHOWN]]),
    )  # fmt: skip
    views = {one.case.case_id: view(one, evaluation.paired.preparation) for *_, cases in chosen for one in cases}
    top = last_colour(views.values(), evaluation.metrics["pixel_threshold"])
    return [
        {
            "id": name,
            "title": title,
            "about": told,
            "cases": [example(one, views[one.case.case_id], top) for one in cases],
        }
        for name, title, told, cases in chosen
    ], top


def kind(one: Judged) -> frozenset[str]:
    """What a case has."""
    return frozenset(finding.name for finding in one.case.findings)


def varied(cases: Sequence[Judged], count: int) -> list[Judged]:
    """The first `count` in their order, of each kind of finding one before any has a second."""
    firsts = {kind(one): one for one in reversed(cases)}.values()
    chosen = [one for one in cases if one in firsts] + [one for one in cases if one not in firsts]
    return [one for one in cases if one in chosen[:count]]


def last_colour(views: Iterable[Mapping[str, NDArray[Any]]], threshold: float | None) -> float | None:
    """The map value of the last colour: what few pixels of any exceed, at least `TOP` thresholds; None of no map."""
    maps = [seen["map"] for seen in views if "map" in seen]
    if not maps:
        return None
    return max(TOP * (threshold or 0.0), *(float(np.quantile(a, 0.995)) for a in maps))


def view(one: Judged, preparation: Preparation, side: int = SIDE) -> dict[str, NDArray[Any]]:
    """What can be shown of a case on one (side, side) grid, by role; the slice with the highest score of a volume."""
    try:
        source = read_study(one.case.images)
        shown = replace(preparation, size=side)(source)
    except SalusError:
        return {}  # the row still names the case; the reason is among the problems
    if shown.array.ndim == 3:
        worst = int(np.argmax(one.result.slice_scores)) if one.result.slice_scores else 0
        worst = min(worst, shown.array.shape[2] - 1)
        shown = crop(shown, (0, 0, worst), (*shown.array.shape[:2], worst + 1))
    seen: dict[str, NDArray[Any]] = {"input": flat(shown)}
    for role in ("restored", "map"):
        if role in one.result.files:
            try:
                seen[role] = flat(resample(read_image(one.folder / one.result.files[role]), like=shown))
            except SalusError:
                seen.pop(role, None)  # shown without it; the reason is among the problems
    if (overlay := one.folder / one.result.files.get("overlay", "overlay.png")).is_file():
        with Picture.open(overlay) as picture:
            small = picture.convert("RGB").resize((side, side), Picture.Resampling.LANCZOS)
        seen["overlay"] = np.asarray(small)
    try:
        inside = [mask for _, mask in truth(one, source.array.shape)]
    except SalusError:
        return seen
    if inside:
        lesion = replace(source, array=np.logical_or.reduce(inside).astype(np.float32))
        seen["truth"] = flat(resample(lesion, like=shown)) > 0.25  # thin findings stay visible
    return seen


def flat(image: Image) -> NDArray[np.float32]:
    """(rows, columns) of a picture or of a stack of one slice."""
    return image.array.reshape(image.array.shape[:2])


def example(one: Judged, seen: Mapping[str, NDArray[Any]], top: float | None) -> Example:
    """A case with its pictures drawn."""
    name = one.case.case_id
    panels = []
    if "input" in seen:
        panels.append(Panel(caption="input", image=figures.grey_picture(seen["input"]), alt=f"Input image of {name}"))
    if "restored" in seen:
        picture = figures.grey_picture(seen["restored"])
        panels.append(Panel(caption="restored", image=picture, alt=f"Pseudo-healthy restoration of {name}"))
    if "map" in seen and top is not None:
        picture = figures.map_picture(seen["map"], top)
        panels.append(Panel(caption="map", image=picture, alt=f"Anomaly map of {name}"))
    nothing = np.zeros((SIDE, SIDE), dtype=bool)
    inside = seen.get("truth", nothing)
    if "overlay" in seen:
        picture = figures.outlined(seen["overlay"], inside)
        panels.append(Panel(caption="overlay", image=picture, alt=f"Input of {name} with flagged pixels in red"))
    if "truth" in seen:
        picture = input_with_truth(seen)
        caption = "truth" if inside.any() else "truth: not in this slice"
        panels.append(Panel(caption=caption, image=picture, alt=f"Input of {name} with the annotated finding outlined"))
    findings = ", ".join(sorted({f.name.replace("_", " ") for f in one.case.findings}))
    return Example(
        case_id=name,
        what=(findings or "abnormal") if one.abnormal else "healthy",
        score=f"{one.score:.4g}",
        p_value="–" if one.result.p_value is None else f"{one.result.p_value:.3f}",
        verdict={Verdict.ABNORMAL: "flagged", Verdict.NORMAL: "not flagged"}.get(one.result.verdict, "no verdict"),
        panels=tuple(panels),
    )


def input_with_truth(seen: Mapping[str, NDArray[Any]]) -> str:
    """The input with a line around its findings, where they are known."""
    grey = np.repeat(figures.to_bytes(seen["input"])[..., None], 3, axis=2)
    return figures.outlined(grey, seen.get("truth", np.zeros(grey.shape[:2], dtype=bool)))


def settings(run: Row) -> list[tuple[str, str]]:
    """How the model came about, as names and values."""
    card, calibration = run["card"], run["calibration"] or {}
    plan = card.get("plan", {})
    counts = ", ".join(f"{count} {part}" for part, count in card.get("counts", {}).items())
    calibrated = f"{len(calibration['scores'])} healthy patients" if calibration else ""
    rows = [
        ("detector", run.get("detector", "")),
        ("preset", plan.get("preset", "")),
        ("members", "; ".join(member_named(one) for one in card.get("members", ()))),
        ("settings", told({key: value for key, value in run.get("settings", {}).items() if key != "members"})),
        ("score", told(run.get("score", {}))),
        ("preparation", told(run["preparation"])),
        ("recipe", told(plan.get("recipe", {}))),
        ("training data", card.get("dataset", "")),
        ("healthy cases", counts),
        ("manifest SHA-256", card.get("manifest_sha256", "")),
        ("training seed", str(plan.get("seed", ""))),
        ("epochs", str(card.get("run", {}).get("epoch") or "")),
        ("training time", f"{card['run']['seconds']:.0f} s" if card.get("run") else ""),
        ("precision", run.get("precision", "")),
        ("parameters", f"{card['parameters']:,}" if "parameters" in card else ""),
        ("calibration", calibrated),
        ("versions at screening", told(run.get("versions", {}))),
    ]
    return [(name, bare(str(value))) for name, value in rows if value not in ("", "None")]


def member_named(member: Mapping[str, Any]) -> str:
    """One of an ensemble's, as its card lists them: 'ra + residual, preset fast, seed 0'."""
    plan = member["plan"]
    if plan["detector"] == ENSEMBLE:  # of which each member has a preset and a seed of its own
        return str(member["method"])
    return f"{member['method']}, preset {plan['preset']}, seed {plan['seed']}"


def told(values: Mapping[str, Any]) -> str:
    """'size 64, latent 16'."""
    return ", ".join(f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items())


def left_out(run: Row) -> list[tuple[str, str]]:
    """Training images that could not be used, and why."""
    return [(bare(str(name)), bare(str(reason))) for name, reason in run["card"].get("left_out", [])]


def by_reason(problems: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Reasons with the cases they hit."""
    ordered = sorted(problems, key=lambda problem: (problem["reason"], problem["case_id"]))
    return [(reason, [p["case_id"] for p in same]) for reason, same in groupby(ordered, key=lambda p: p["reason"])]


def coded(text: str) -> Markup:
    """Words of a message or note; what stands between backticks in a terminal is code on a page."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704, it is escaped


def number(value: float, decimals: int = 3) -> str:
    """A share for people."""
    return f"{value:.{decimals}f}"


def percent(share: float) -> str:
    """'6.7 %', '61 %': two digits that mean something, and no line break before the sign."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%" if 0 < share < 0.1 else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def cell(entry: Row | None) -> str:
    """A value for a table, or a dash."""
    return "–" if entry is None else number(entry["value"], decimals(entry))


def between(entry: Row) -> str:
    """Its interval, to the same digits."""
    return "–".join(number(end, decimals(entry)) for end in entry["ci95"])


def decimals(entry: Row) -> int:
    """Three, one more where the value is small."""
    return 4 if 0 < abs(entry["value"]) < 0.01 else 3
