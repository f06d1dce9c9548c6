"""Images onto the network's grid, still knowing where they are."""

from salus.preprocess.cache import Prepared, PreparedCache
from salus.preprocess.geometry import resample
from salus.preprocess.preparation import Preparation

__all__ = ["Preparation", "Prepared", "PreparedCache", "resample"]
