"""`salus latent`: one method with codes of many sizes, and which of them healthy images choose.

OUT/models/<size>/  a model folder each
OUT/latent.csv      a row a size
OUT/latent.json     the same, the sizes that other rules without labels would take, and settings
OUT/latent.html     one file for people

Healthy images decide, as for `latent=auto`. Where the data set has a test, its labels judge the choice afterwards.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salus.benchmark.measures import rounded
from salus.benchmark.sight import Sight, look, painted, sights, smallest
from salus.core import Dataset, Label, Split
from salus.core.errors import ConfigError
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.io import read_study, study_sha256
from salus.io.files import make_folder, write_whole
from salus.metrics import auroc
from salus.model import Model, case_score, detections, versions
from salus.preprocess.cache import PreparedCache
from salus.training import Run, gathered, sources, train
from salus.training.further import further_sets
from salus.training.latent import SIZES, chosen, distances, nearest, one_each
from salus.training.plan import AUTO, refuse_too_large, resolved

FORMAT = 1
VARIANCES = (0.9, 0.95)
FLAT = 1.05  # times the least error; what stays below counts as flat
FEWEST_APART = 4  # different rows that have a dimension: each needs three others
FAR = 0.9  # share of the ratios of distances that TwoNN's line is fitted to

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]


def latent(
    detector: str,
    data: Path,
    out: Path,
    *,
    dataset: str = "folder",
    also: Sequence[tuple[str, Path]] = (),
    preset: str = "fast",
    sizes: Sequence[int] = SIZES,
    settings: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    seed: int = 0,
    device: str = "auto",
    on_epoch: Callable[[str, Run, int], None] = lambda what, run, epochs: None,
) -> dict[str, Any]:
    """Train a method with codes of several sizes and choose one without labels; the command of the same name.

    Models that are there already are not trained again, and one that was interrupted goes on.

    Args:
        detector, also, preset, settings, epochs, seed, device: as for `train`. Further sets are learned from, and their
            errors and dimension counted; lesions are painted on the first set alone.
        sizes: entries of the code to try, each once.
        on_epoch: told of each epoch: what is trained, the run, the number of epochs.

    Returns:
        What `latent.json` holds.

    Raises:
        ConfigError: a size twice or below 1, or a method without a setting `latent`.
        LayoutError, TrainingError, StorageError: see their messages.
    """
    from salus.benchmark.latent_report import page

    tried = sorted(sizes)
    if not tried or tried[0] < 1 or len(set(tried)) < len(tried):
        raise ConfigError(f"the sizes of the code are numbers from 1 up, each once; got {', '.join(map(str, sizes))}.")
    if "latent" in (settings or {}):
        raise ConfigError("latent is what is chosen here; say which sizes to try with --sizes.")
    given = {**(settings or {}), **({} if epochs is None else {"recipe.epochs": epochs})}
    plan = resolved(detector, preset, {**given, "latent": AUTO}, seed)
    refuse_too_large(detector, {**plan.settings, "latent": tried[0]}, plan.score)
    cases = split(open_dataset(dataset, data))
    further = further_sets(also, dataset, cases)
    plan = replace(plan, **sources(dataset, cases, also, further))
    found = gathered(plan, cases, further)
    held = cases.only(split=Split.VALIDATION, label=Label.NORMAL)
    pictures = painted(PreparedCache().prepare(held, found.preparation, read_study, study_sha256), held, seed)
    size, dimension = chosen(found.training, found.patients, tried)
    make_folder(out)
    models = []
    for one in tried:
        place = out / "models" / str(one)
        train(
            detector, data, place, dataset=dataset, also=also, preset=preset, settings={**given, "latent": one},
            seed=seed, device=device, resume=True,
            on_epoch=partial(on_epoch, f"latent {one}"),
        )  # fmt: skip
        models.append(Model.load(place, device=device))
    seen = sights([look(model.detector, pictures, model.precision) for model in models], pictures)
    training, validation = (rows[:] for rows in (found.training, found.validation))
    rows = [row_of(*one, training, validation) for one in zip(tried, models, seen, strict=True)]
    for row, model in zip(rows, models, strict=True):
        row["test_auroc"] = judged(model, cases.only(split=Split.TEST))
    about = {
        "format": FORMAT,
        "method": models[0].summary,
        "dataset": " + ".join(one.name for one in (cases, *further)),
        "seed": seed,
        "chosen": size,
        "dimension": rounded(dimension),
        "sizes": rows,
        "flat_from": {key: flat_from(tried, [row[key] for row in rows]) for key in ("train_error", "validation_error")},
        "others": [
            *of_painted(tried, seen),
            *others(tried, [row["validation_error"] for row in rows], training, found.patients),
        ],
        "images": {"train": len(training), "validation": len(validation)},
        "painted": len(pictures.lesions),
        "versions": versions(),
    }
    write_table(out / "latent.csv", rows)
    write_whole(out / "latent.json", (json.dumps(about, indent=1, allow_nan=False) + "\n").encode())
    write_whole(out / "latent.html", page(about).encode())
    return about


def row_of(size: int, model: Model, seen: Sight, training: Rows, validation: Rows) -> dict[str, Any]:
    """A size's row of `latent.csv`, without what the test says.

    Args:
        model, seen: the model of this size, and what it sees.
        training, validation: healthy slices.
    """
    return {
        "latent": size,
        "painted_auroc": rounded(seen.auroc),
        "behind": rounded(seen.behind),
        "standard_error": rounded(seen.standard_error),
        "train_error": rounded(error(model, training)),
        "validation_error": rounded(error(model, validation)),
        "seconds": round(model.card["run"]["seconds"], 1),
    }


def error(model: Model, rows: Rows) -> float:
    """Mean squared difference of healthy slices from their restorations, intensities in [0, 1]."""
    restored = detections(model.detector, rows, precision=model.precision)[2]
    if restored is None:
        raise ConfigError(f"{model.name} restores nothing, so there is no error to look at.")
    return float(np.square(rows - restored).mean())


def judged(model: Model, test: Dataset) -> float | None:
    """AUROC on the test, a look at its labels; None where it has not both classes."""
    found = PreparedCache().prepare(test, model.preparation, read_study, study_sha256)
    labels = [test[int(index)].label for index in np.unique(found.case)]
    if not {Label.NORMAL, Label.ABNORMAL} <= set(labels):
        return None
    scores = detections(model.detector, found.rows, precision=model.precision)[1]
    of_case = [case_score(scores[found.case == index]) for index in np.unique(found.case)]
    known = [place for place, label in enumerate(labels) if label in (Label.NORMAL, Label.ABNORMAL)]
    abnormal = np.array([labels[place] == Label.ABNORMAL for place in known])
    return rounded(auroc(abnormal, np.array(of_case)[known]))


def of_painted(sizes: Sequence[int], seen: Sequence[Sight]) -> list[dict[str, Any]]:
    """What painted lesions would take, each size trained."""
    picks = {
        "painted lesions, smallest within a standard error of the best": smallest(seen),
        "painted lesions, best": min(range(len(seen)), key=lambda index: seen[index].behind),
    }
    return [{"rule": name, "value": sizes[index], "latent": sizes[index]} for name, index in picks.items()]


def others(
    sizes: Sequence[int], errors: Sequence[float], training: Rows, patients: Sequence[str]
) -> list[dict[str, Any]]:
    """What other rules without labels would take: each rule's own value, and the tried size that is nearest to it.

    A rule that finds no value, as a dimension of fewer than four patients whose images differ, is left out.

    Args:
        errors: of healthy validation images, one a size.
        training: (n, 1, H, W) healthy slices.
        patients: (n,) whom they belong to.
    """
    training = training.reshape(len(training), -1)
    single = training[one_each(patients)]
    estimates: dict[str, float] = {
        "least validation error": sizes[int(np.argmin(errors))],
        "elbow of the validation error": elbow(sizes, errors),
        "intrinsic dimension, TwoNN": two_nearest(single),
        **{f"components for {share:.0%} of the variance": components(training, share) for share in VARIANCES},
    }
    return [
        {"rule": name, "value": round(d, 2), "latent": nearest(sizes, d)}
        for name, d in estimates.items()
        if 0 < d < np.inf
    ]


def flat_from(sizes: Sequence[int], errors: Sequence[float]) -> int | None:
    """The size from which on more entries restore no better (Cai et al., Figure 3); None where the last still does."""
    flat = [max(errors[index:]) <= FLAT * min(errors) for index in range(len(errors) - 1)]
    return sizes[flat.index(True)] if True in flat else None


def elbow(sizes: Sequence[int], errors: Sequence[float]) -> int:
    """The size whose error lies farthest below the line from first to last, over log size (Satopaa et al. 2011)."""
    along = np.log(np.array(sizes) / sizes[0])
    below = errors[0] + (errors[-1] - errors[0]) * along / max(along[-1], 1e-12) - np.array(errors)
    return sizes[int(below.argmax())]


def two_nearest(rows: Rows) -> float:
    """Intrinsic dimension from the ratio of each row's distances to its two nearest (Facco et al. 2017)."""
    if len(apart := distances(rows)) < FEWEST_APART:
        return np.nan
    near = np.sort(apart, axis=1)[:, :2]
    ratios = np.sort(near[:, 1] / near[:, 0])
    kept = int(FAR * len(ratios))
    x, y = np.log(ratios[:kept]), -np.log1p(-np.arange(1, kept + 1) / len(ratios))
    return float((x @ y) / (x @ x))


def components(rows: Rows, share: float) -> int:
    """Principal components that hold a share of the variance."""
    spread = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    return int(np.searchsorted(np.cumsum(spread), share * spread.sum()) + 1)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """`latent.csv`: empty where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())
