"""From RESULTS and a labelled data set to numbers, floors and a report; from healthy images to what a model misses."""

from salus.benchmark.evaluate import evaluate
from salus.benchmark.latent import latent
from salus.benchmark.probe import probe

__all__ = ["evaluate", "latent", "probe"]
