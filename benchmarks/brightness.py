"""Does a detector gain because it restores too dark or too bright? AUROC with and without its bias.

    python benchmarks/brightness.py DATA MODEL ...

Of each model the mean of image less restoration over bright pixels (above .05) of healthy validation images, whom
nothing was learned from, and the AUROC of the smoothed map (sigma 2, top 1 %) on the test: as it is, with that mean
taken away from the same pixels first, and of what is brighter than the restoration alone. A look at test labels.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from salus.core import Dataset, Label, Split
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.detectors.base import SMOOTHED
from salus.io import read_study, study_sha256
from salus.metrics import auroc
from salus.model import Model, detections
from salus.preprocess import PreparedCache
from salus.scores import build_score

HEAD = 0.05  # of [0, 1]: what is brighter is no background


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", type=Path)
    options.add_argument("models", type=Path, nargs="+")
    chosen = options.parse_args()
    cases = split(open_dataset("folder", chosen.data))
    validation = cases.only(split=Split.VALIDATION, label=Label.NORMAL)
    test = cases.only(split=Split.TEST)
    print("| model | bias | AUROC | bias taken away | bright alone |\n|---|---|---|---|---|")
    for folder in chosen.models:
        model = Model.load(folder)
        healthy, left, _ = looked_at(model, validation)
        bias = left[healthy > HEAD].mean()
        x, left, case = looked_at(model, test)
        abnormal = np.array([test[int(index)].label == Label.ABNORMAL for index in case])
        found = [
            auroc(abnormal, scored(difference, sign))
            for difference, sign in ((left, "both"), (left - bias * (x > HEAD), "both"), (left, "bright"))
        ]
        print(f"| {folder} | {bias:.4f} | {' | '.join(f'{value:.3f}' for value in found)} |", flush=True)


def looked_at(model: Model, cases: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (n, 1, H, W), image less restoration, and of which case each is."""
    prepared = PreparedCache().prepare(cases, model.preparation, read_study, study_sha256)
    x = np.array(prepared.rows)
    restored = detections(model.detector, x, precision=model.precision)[2]
    if restored is None:
        raise SystemExit("this restores nothing")
    return x, x - restored, prepared.case


def scored(difference: np.ndarray, sign: str) -> np.ndarray:
    """(n,) image scores of differences, by the score of `fast`."""
    score = build_score(**SMOOTHED, sign=sign)
    x = torch.from_numpy(difference.astype(np.float32))
    return score.reduce(score(x, torch.zeros_like(x))).numpy()


if __name__ == "__main__":
    main()
