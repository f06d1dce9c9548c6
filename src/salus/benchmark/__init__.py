"""From RESULTS and a labelled data set to numbers, floors and a report."""

from salus.benchmark.evaluate import evaluate

__all__ = ["evaluate"]
