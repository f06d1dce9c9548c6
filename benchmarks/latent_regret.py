"""What each rule for the size of the code costs in AUROC, from a suite that trained every size.

    salus benchmark benchmarks/latent_regret.yaml --data DATA --out OUT
    python benchmarks/latent_regret.py benchmarks/latent_regret.yaml OUT [OUT ...] --data DATA
    python benchmarks/latent_regret.py benchmarks/rate_regret.yaml OUT [OUT ...] --data DATA --of rate

Each OUT is of a `salus benchmark` of SUITE, whose methods are `ae` at `fast` and differ in `latent` alone, 16 among the
sizes, maybe with other seeds; DATA as it was given there. Each rule sees the healthy images of one training and
chooses a size; its regret is the AUROC of the best size less that of the chosen one, both means over seeds, and the
mean over the seeds' choices. The best size is chosen by the very labels that judge, so even a perfect rule has a regret
above 0. With `--of rate` the methods differ in the nats of a VAE's code instead, and the rules are those that look at
trained models. A Markdown row a data set, score and rule.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from salus.benchmark.cells import Work
from salus.benchmark.latent import error, others
from salus.benchmark.sight import Painted, Sight, look, painted, sights, smallest
from salus.benchmark.suite import read_suite
from salus.core import Label, Split
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.detectors import build
from salus.detectors.ae import AE, AEConfig
from salus.io import read_study, study_sha256
from salus.model import Model
from salus.preprocess.cache import PreparedCache
from salus.scores.base import Score
from salus.training import make_fabric
from salus.training.latent import chosen
from salus.training.loop import Images, fit, fit_score, half_precision
from salus.training.plan import Plan, resolved

CHOSEN = "**intrinsic dimension, maximum likelihood**"  # what latent=auto takes
ONE = ("painted, one network for all", "painted, one network for all, best")
PAINTED = ("painted, every size trained", "painted, every size trained, best")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("suite", type=Path)
    options.add_argument("out", type=Path, nargs="+")
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--of", choices=["latent", "rate"], default="latent", help="The setting that differs.")
    asked = options.parse_args()
    suite = read_suite(asked.suite)
    names = sorted(suite.methods, key=lambda name: suite.methods[name].set[asked.of])
    sizes = [suite.methods[name].set[asked.of] for name in names]
    for data in suite.datasets:
        for score in suite.scores_of(names[0]):
            tests, picks = [], []
            for out in asked.out:
                cells = {cell.method: cell for cell in suite.cells if cell.data == data}
                for place in sorted((out / "cells" / data / names[0]).glob("seed*")):
                    folders = [out / "cells" / data / name / place.name / score for name in names]
                    if not all((folder / "report" / "metrics.json").is_file() for folder in folders):
                        continue
                    work = Work(suite=suite, cell=cells[names[0]], data=asked.data, out=out, threads=1)
                    tests.append([json.loads((f / "report" / "metrics.json").read_text())["overall"]["auroc"]["value"]
                                  for f in folders])  # fmt: skip
                    seed = int(place.name.removeprefix("seed"))
                    one = out / "ordered" / data / place.name if asked.of == "latent" else None
                    picks.append(rules(folders, sizes, *work.source, seed, one))
            if tests:
                show(data, score, sizes, np.mean(tests, axis=0), picks)


def rules(
    folders: list[Path], sizes: list[int], data: Path, reader: str, seed: int, one: Path | None
) -> dict[str, int]:
    """The size that each rule takes; `one` is the folder of the ordered network, None where sizes are no entries."""
    models = [Model.load(f / "model" if (f / "model").is_dir() else f.parent / "model") for f in folders]
    healthy = split(open_dataset(reader, data)).only(label=Label.NORMAL)
    held = healthy.only(split=Split.VALIDATION)
    learned = healthy.only(split=Split.TRAIN)
    training, validation = (
        PreparedCache().prepare(cases, models[0].preparation, read_study, study_sha256) for cases in (learned, held)
    )
    patients = [learned[int(index)].patient_id for index in training.case]
    pictures = painted(validation, held, seed)
    seen = sights([look(model.detector, pictures, model.precision) for model in models], pictures)
    errors = [error(model, validation.rows) for model in models]
    best = min(range(len(seen)), key=lambda index: seen[index].behind)
    painting = dict(zip(PAINTED, (sizes[smallest(seen)], sizes[best]), strict=True))
    if one is None:
        return {**painting, "least validation error": sizes[int(np.argmin(errors))]}
    plan = replace(resolved("ae", "fast", {}, seed), score=dict(models[0].score))
    one.mkdir(parents=True, exist_ok=True)
    fabric = make_fabric("cpu", models[0].precision)
    images = (training.rows, validation.rows, pictures)
    read = one_network(plan, *images, one, fabric, sizes)
    best = min(range(len(read)), key=lambda index: read[index].behind)
    return {
        CHOSEN: chosen(training.rows, patients, sizes)[0],
        **dict(zip(ONE, (sizes[smallest(read)], sizes[best]), strict=True)),
        **painting,
        **{other["rule"]: other["latent"] for other in others(sizes, errors, training.rows, patients)},
        "16, always": 16,
    }


class Ordered(AE):
    """An autoencoder for codes of every size at once (nested dropout, Rippel et al. 2014, arXiv:1402.0915).

    In training each image keeps the first entries of its code, a number drawn from `sizes`, and the others are zero, so
    that what the first ones hold matters most.

    Attributes:
        kept: entries that are read otherwise.
    """

    def __init__(self, config: AEConfig, score: Score, sizes: Sequence[int]) -> None:
        super().__init__(config, score)
        self.sizes = torch.tensor(sizes)
        self.kept = config.latent

    def code(self, x: Tensor) -> Tensor:
        z = super().code(x)
        kept = torch.full((len(z), 1), self.kept)
        if self.training:
            kept = self.sizes[torch.randint(len(self.sizes), (len(z), 1))]
        return z * (torch.arange(z.shape[1]) < kept).to(z.device)


def one_network(
    plan: Plan,
    training: Images,
    validation: Images,
    pictures: Painted,
    progress: Path,
    fabric: Fabric,
    sizes: Sequence[int],
) -> list[Sight]:
    """What one autoencoder, trained for all sizes in `progress`, sees with each."""
    torch.manual_seed(plan.seed)
    preset = AE.PRESETS["fast"]
    usual = build("ae", {**preset.settings, "size": plan.settings["size"], "latent": max(sizes)}, plan.score)
    net = Ordered(usual.config, usual.score, sizes)
    fit(net, preset.recipe.for_images(len(training)), training, validation, progress, plan.seed, fabric)
    precision = "bf16" if half_precision(fabric) else "fp32"
    looks = []
    for net.kept in sizes:
        fit_score(net, validation, precision)
        looks.append(look(net, pictures, precision))
    return sights(looks, pictures)


def show(data: str, score: str, sizes: list[int], test: np.ndarray, picks: list[dict[str, int]]) -> None:
    """A row of test AUROC over the sizes, and one a rule."""
    print(
        f"\n{data}, {score}, {len(picks)} trainings: "
        + ", ".join(f"{d} {t:.3f}" for d, t in zip(sizes, test, strict=True))
    )
    for rule in picks[0]:
        taken = [one[rule] for one in picks]
        lost = np.mean([test.max() - test[sizes.index(d)] for d in taken])
        print(f"| {data} | {score} | {rule} | {', '.join(map(str, taken))} | {lost:.3f} |", flush=True)


if __name__ == "__main__":
    main()
