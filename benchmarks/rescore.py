"""What other scores make of a trained model: nothing is trained again, each score is fitted and calibrated anew.

    python benchmarks/rescore.py MODEL DATA --out runs/rescored --set score.name=smoothed --set score.sigma=4

The score's settings are given as to `salus train`. Prints AUROC, pixel AP and false alarms with their intervals.
"""

import argparse
import json
from pathlib import Path

from methods_table import label_of

from salus.benchmark import evaluate
from salus.cli.common import settings
from salus.screening import screen
from salus.training import rescored


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", type=Path)
    options.add_argument("data", type=Path)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--set", action="append", required=True)
    chosen = options.parse_args()
    score = {key.removeprefix("score."): value for key, value in settings(chosen.set).items()}
    place = chosen.out / label_of(score)
    model = rescored(chosen.model, score, chosen.data, place / "model")
    screen([chosen.data], model=model, out=place / "results")
    evaluate(place / "results", chosen.data, place / "report")
    metrics = json.loads((place / "report" / "metrics.json").read_text())
    print(metrics["method"], metrics["overall"]["auroc"], metrics["overall"]["pixel_ap"], metrics["healthy"])


if __name__ == "__main__":
    main()
