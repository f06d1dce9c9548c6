"""What a threshold of few healthy people does to the people of a test, and what more of them would do.

    python benchmarks/false_alarms.py SET MODEL ...

Of each model of a data set: how many healthy patients set a threshold at 5 %, between which shares of healthy people 95
of 100 such thresholds flag, how many of 100 flag 3 to 7 %, and which share of the healthy and the abnormal test cases
this one flags. Once for the calibration part alone, once for the validation part with it, where that decided nothing
in the model (`salus.threshold.setting`).
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from salus.core import Dataset, Label, Split
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.detectors import Recipe
from salus.io import read_study, study_sha256
from salus.metrics import flagged_share
from salus.model import Calibration, Model, case_score, detections
from salus.preprocess import PreparedCache
from salus.threshold import HELD_OUT, calibration_of

NEAR = 0.03, 0.07  # of a budget of 5 %


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a data set of pictures, read as a folder")
    parser.add_argument("models", type=Path, nargs="+", help="models that learned from it")
    options = parser.parse_args()
    cases = split(open_dataset("folder", options.data))
    head = ["model", "patients", "95 of 100 flag", "of 100 flag 3 to 7 %", "healthy", "abnormal"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for folder in options.models:
        model = Model.load(folder)
        test = cases.only(split=Split.TEST)
        healthy, abnormal = (scores(model, test.only(label=label)) for label in (Label.NORMAL, Label.ABNORMAL))
        for parts in [(Split.CALIBRATION,)] if decided_by_validation(model) else [(Split.CALIBRATION,), HELD_OUT]:
            calibration, _ = calibration_of(model, cases.only(split=parts, label=Label.NORMAL))
            print(f"| {folder} | {told(calibration, healthy, abnormal)} |", flush=True)


def decided_by_validation(model: Model) -> bool:
    """As in training; an ensemble's plan has no recipe."""
    return model.detector.fitted or Recipe(**model.card["plan"]["recipe"]).validated


def scores(model: Model, cases: Dataset) -> NDArray[np.float64]:
    """One a case that can be judged."""
    prepared = PreparedCache().prepare(cases, model.preparation, read_study, study_sha256)
    _, of_slice, _ = detections(model.detector, prepared.rows, precision=model.precision)
    return np.array([case_score(of_slice[prepared.case == index]) for index in np.unique(prepared.case)])


def told(calibration: Calibration, healthy: NDArray[np.float64], abnormal: NDArray[np.float64]) -> str:
    """The rest of a row."""
    people, threshold = len(calibration.scores), calibration.threshold
    if threshold is None:
        return f"{people} | - | - | - | -"
    low, high = flagged_share(calibration.scores, threshold)
    above = sum(score >= threshold for score in calibration.scores)
    near = np.diff(beta(above, people + 1 - above).cdf(NEAR))[0]  # as `flagged_share`
    flagged = " | ".join(f"{np.mean(of > threshold):.3f} of {len(of)}" for of in (healthy, abnormal))
    return f"{people} | {low:.3f} to {high:.3f} | {100 * near:.0f} | {flagged}"


if __name__ == "__main__":
    main()
