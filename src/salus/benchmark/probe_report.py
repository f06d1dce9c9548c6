"""probe.html: what a model cannot see, on one page, nothing loaded from anywhere."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salus.benchmark import figures
from salus.benchmark.probe import ANYWHERE, CONTRASTS, HALF, Subject, Surface
from salus.benchmark.report import SIDE, TOP, Panel, percent, template
from salus.model import Model, detections
from salus.preprocess.lesions import PLACES, Floats

REFERENCE = 0.2  # the contrast that the sentences speak of
SIGNS = {"brighter": 1, "darker": -1}
SHARES = {"hit": "Lesions hit by the map", "flagged": "Cases flagged because of the lesion"}
MEANS = {"healed": "Lesion gone in the restoration", "auroc": "Lesion told from the rest of its image"}
ENOUGH = {"half": "half", "most": "80 %"}

About = Mapping[str, Any]
Cells = Sequence[Mapping[str, Any]]


def page(about: About, cells: Cells, surface: Surface, model: Model) -> str:
    """The page; every number on it is one of `about` or `cells`."""
    spacing, threshold = about["mm_per_pixel"], about["pixel_threshold"]
    sizes = [f"{size:g}" + (f" ({size * spacing['median']:.2g} mm)" if spacing else "") for size in surface.sizes]
    contrasts = [f"{100 * contrast:+.0f}".replace("-", "−") for contrast in CONTRASTS]
    judged = [measure for measure in SHARES if any(cell[measure] for cell in cells)]
    found = {(row["measure"], row["place"], row["contrast"]): row for row in about["smallest"]}
    lines = {which: [(place, [surface.sizes.index(size) if (size := found["hit", place, c][which]) else len(sizes)
                              for c in CONTRASTS]) for place in PLACES]
             for which in ENOUGH if "hit" in judged}  # fmt: skip
    drawn = {
        measure: [
            (place, figures.surface_figure(grid(cells, measure, place), sizes, contrasts, border=border))
            for place in PLACES
        ]
        for measures, border in ((SHARES, HALF), (MEANS, None))
        for measure in measures
        if any(cell[measure] for cell in cells)
    }
    return template("probe.html.j2").render(
        a=about,
        titles={**SHARES, **MEANS},
        enough=ENOUGH,
        judged=judged,
        drawn=drawn,
        lines={which: figures.smallest_figure(rows, sizes, contrasts) for which, rows in lines.items()},
        smallest=[(name, [found[measure, ANYWHERE, contrast] for measure in judged])
                  for name, contrast in zip(contrasts, CONTRASTS, strict=True)],
        examples=examples(surface, model, TOP * threshold) if threshold else [],
        scale=figures.colour_bar(TOP * threshold, threshold) if threshold else None,
        kept=min(abs(cell["painted"] / cell["contrast"]) for cell in cells),
    )  # fmt: skip


def grid(cells: Cells, measure: str, place: str) -> Floats:
    """(sizes, contrasts) values of a measure at a place, nan where there is none."""
    values = [np.nan if (m := cell[measure]) is None else m["value"] for cell in cells if cell["place"] == place]
    return np.array(values).reshape(-1, len(CONTRASTS))


def sentences(about: About, cells: Cells) -> list[str]:
    """What the model cannot see, in words."""
    if about["pixel_threshold"] is None:
        return [f"Nothing can be called seen or missed: {about['no_threshold']}."]
    told = blind(about, "hit", "missed by the map")
    if about["threshold"] is None:
        told.append(f"No case can be called flagged: {about['no_threshold']}.")
    else:
        told += blind(about, "flagged", "not enough to get the case flagged")
    shares = {place: float(np.nanmean(values)) for place in (ANYWHERE, *PLACES)
              if not np.isnan(values := grid(cells, "hit", place)).all()}  # fmt: skip
    if shares:
        places = ", ".join(f"{place} {percent(shares[place])}" for place in PLACES if place in shares)
        told.append(f"Over all sizes and contrasts the map hits {percent(shares[ANYWHERE])} of the lesions ({places}).")
    before = max(about["hit_before"].values())
    places = f"up to {percent(before)}, by size, of the same places" if before else "none of the same places"
    told.append(f"Without any lesion it hits {places}{'; they do not count' if before else ''}.")
    return told


def blind(about: About, measure: str, missed: str) -> list[str]:
    """Below which size at the reference contrast, and up to which contrast at every size, lesions are mostly missed."""
    sizes = about["sizes_px"]
    half = {row["contrast"]: row["half"] for row in about["smallest"]
            if (row["measure"], row["place"]) == (measure, ANYWHERE)}  # fmt: skip
    small, faint = {}, {}
    for name, sign in SIGNS.items():
        size = half[sign * REFERENCE]
        small[name] = "" if size in (None, sizes[0]) else f"below {length(about, size)}"
        strengths = sorted(abs(contrast) for contrast in half if contrast * sign > 0)
        seen = [strength for strength in strengths if half[sign * strength] is not None]
        unseen = [strength for strength in strengths if not seen or strength < seen[0]]
        faint[name] = f"of {100 * unseen[-1]:g} % contrast or less" if unseen else ""
    at_reference = f"At a contrast of {100 * REFERENCE:g} % of the image's range"
    told = [
        f"{when}, {lesions} are mostly {missed}."
        for when, lesions in (
            (at_reference, together(small)),
            (f"Whatever their size up to {length(about, sizes[-1])}", together(faint)),
        )
        if lesions
    ]
    return told or [f"{at_reference}, lesions of no size tried are mostly {missed}."]


def together(extent: Mapping[str, str]) -> str:
    """'brighter lesions below 4 px and darker lesions below 6 px'; those with none are not spoken of."""
    known = {name: text for name, text in extent.items() if text}
    if len(known) == 2 and len(set(known.values())) == 1:
        return f"{' and '.join(known)} lesions {next(iter(known.values()))}"
    return " and ".join(f"{name} lesions {text}" for name, text in known.items())


def length(about: About, pixels: float) -> str:
    """'6 px (about 9 mm)'."""
    spacing = about["mm_per_pixel"]
    return f"{pixels:g} px" + (f" (about {pixels * spacing['median']:.2g} mm)" if spacing else "")


def examples(surface: Surface, model: Model, top: float) -> list[dict[str, Any]]:
    """Lesions just missed and, one size larger, just seen: of each sign one a place, near the usual border."""
    made = []
    for (name, sign), place in product(SIGNS.items(), range(len(PLACES))):
        for strength in (REFERENCE, *sorted(c for c in CONTRASTS if c > 0 and c != REFERENCE)):
            column = CONTRASTS.index(sign * strength)
            hit = surface.seen["hit"][:, place, :, column]
            crossed = np.argwhere((hit[:, :-1] == 0) & (hit[:, 1:] == 1))
            if not len(crossed):
                continue
            usual = np.median(crossed[:, 1])
            who, at = min(crossed.tolist(), key=lambda found: abs(found[1] - usual))
            subject = surface.subjects[who]
            made.append(
                {
                    "case_id": subject.case_id,
                    "what": f"{name}, {100 * strength:g} %, {PLACES[place]}",
                    "sizes": [
                        (verdict, f"{size:g}", pictures(subject, place, size, sign * strength, model, top))
                        for verdict, size in zip(("missed", "seen"), surface.sizes[at : at + 2], strict=True)
                    ],
                }
            )
            break
    return made


def pictures(subject: Subject, place: int, size: float, contrast: float, model: Model, top: float) -> list[Panel]:
    """A painted image, its lesion outlined, the map, and the restoration if there is one."""
    painted = subject.painted(place, size, contrast)
    maps, _, restored = detections(model.detector, painted[None, None], precision=model.precision)
    grey = np.repeat(figures.to_bytes(enlarged(painted))[..., None], 3, axis=2)
    outline = figures.outlined(grey, enlarged(subject.lesions[place].mask(size)))
    name = f"{subject.case_id} with a painted lesion"
    panels = [
        Panel(caption="input", image=figures.grey_picture(enlarged(painted)), alt=name),
        Panel(caption="lesion", image=outline, alt=f"{name}, outlined"),
        Panel(caption="map", image=figures.map_picture(enlarged(maps[0, 0]), top), alt=f"Anomaly map of {name}"),
    ]
    if restored is not None:
        picture = figures.grey_picture(enlarged(restored[0, 0]))
        panels.append(Panel(caption="restored", image=picture, alt=f"Restoration of {name}"))
    return panels


def enlarged(picture: NDArray[Any]) -> NDArray[Any]:
    """Each pixel as a square: what the model sees, no finer."""
    times = max(1, SIDE // len(picture))
    return picture.repeat(times, axis=0).repeat(times, axis=1)
