"""What each rule for the size of the code costs in AUROC, from a suite that trained every size.

    salus benchmark benchmarks/latent_regret.yaml --data DATA --out OUT
    python benchmarks/latent_regret.py benchmarks/latent_regret.yaml OUT [OUT ...] --data DATA
    python benchmarks/latent_regret.py benchmarks/rate_regret.yaml OUT [OUT ...] --data DATA --of rate

Each OUT is of a `salus benchmark` of SUITE, whose methods differ in `latent` alone (suites/latent-size.yaml, or one
like it), maybe with other seeds; DATA as it was given there. Each rule sees the healthy images of one training and
chooses a size; its regret is the AUROC of the best size less that of the chosen one, both means over seeds, and the
mean over the seeds' choices. The best size is chosen by the very labels that judge, so even a perfect rule has a regret
above 0. With `--of rate` the methods differ in the nats of a VAE's code instead, and the rules are those that look at
trained models. A Markdown row a data set, score and rule.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from salus.benchmark.cells import Work
from salus.benchmark.latent import error, others
from salus.benchmark.suite import read_suite
from salus.core import Label, Split
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.io import read_study, study_sha256
from salus.model import Model
from salus.preprocess.cache import PreparedCache
from salus.training import make_fabric
from salus.training.latent import chosen, look, painted, sights, smallest
from salus.training.plan import resolved

CHOSEN = "**painted, one network for all**"  # what latent=auto takes
BEST = "painted, one network for all, best"
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
    images = (training.rows, validation.rows, validation.rows, pictures)
    size, rows, _ = chosen(plan, *images, one, fabric, lambda *_: None, sizes)
    return {
        CHOSEN: size,
        BEST: min(rows, key=lambda row: row["behind"])["latent"],
        **painting,
        **{other["rule"]: other["latent"] for other in others(sizes, errors, training.rows, patients)},
        "16, always": 16,
    }


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
