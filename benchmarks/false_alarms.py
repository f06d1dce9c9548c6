"""Do thresholds keep their promise, and if not, is it the calibration patients or the test? For cells of a table.

    python benchmarks/false_alarms.py --data DATA --out runs/table

Of each method with its own score: the share of healthy validation patients that its threshold flags (the detector did
not learn from them; where an epoch was chosen, they chose it), the share of healthy test cases, and what a threshold
from so many calibration patients can be: 95 of 100 of them, and how many come near the budget.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.stats import beta

from salus.core import Label, Split
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.io import read_study, study_sha256
from salus.metrics import flagged_share
from salus.model import Model, detections
from salus.preprocess import PreparedCache

NEAR = 0.03, 0.07  # of a budget of 5 %


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="what methods_table.py wrote")
    options = parser.parse_args()
    head = ["data", "method", "calibration", "95 of 100 thresholds flag", "of 100 flag 3 to 7 %", "validation", "test"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for peak in sorted(options.out.glob("*/*/seed0/peak.json")):
        name, cell = peak.parts[-4], peak.parent
        data = options.out / "phantom-data" if name == "phantom" else options.data / name
        model = Model.load(cell / "model")
        validation = split(open_dataset("folder", data)).only(split=Split.VALIDATION, label=Label.NORMAL)
        one_each = list({case.patient_id: case for case in validation}.values())
        rows = PreparedCache().prepare(one_each, model.preparation, read_study, study_sha256).rows
        scores = detections(model.detector, rows, precision=model.precision)[1]
        calibration = model.calibration
        low, high = flagged_share(calibration.scores, calibration.threshold)
        above, people = sum(score >= calibration.threshold for score in calibration.scores), len(calibration.scores)
        near = np.diff(beta(above, people + 1 - above).cdf(NEAR))[0]  # as `flagged_share`
        test = [
            report["healthy"]["false_alarm_rate"]["value"]
            for report in (json.loads(p.read_text()) for p in cell.glob("*/report/metrics.json"))
            if report["threshold"] == calibration.threshold
        ]
        print(
            f"| {name} | {cell.parent.name} | {people} | {low:.3f} to {high:.3f} | {100 * near:.0f} "
            f"| {np.mean(scores > calibration.threshold):.3f} of {len(scores)} | {test[0]:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
