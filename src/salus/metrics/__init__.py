"""Pure functions from arrays to numbers. What each one means and where it misleads: docs/metrics.md."""

from salus.metrics.fidelity import mae, mse, ssim
from salus.metrics.localisation import (
    BoxHit,
    aupro,
    best_dice,
    dice,
    hit_ra2024,
    hit_rate,
    is_hit,
    pixel_ap,
    pixel_auroc,
    pixel_threshold,
)
from salus.metrics.pixel_counts import PixelCounts, pixel_edges
from salus.metrics.ranking import auroc, average_precision, fpr_at_tpr, precision_recall_points, roc_points
from salus.metrics.statistics import (
    delong_variance,
    flagged_share,
    interval,
    resample,
    weighted_auroc,
    weighted_average_precision,
    weighted_fpr_at_tpr,
    weighted_mean,
    wilson,
)

__all__ = [
    "BoxHit",
    "PixelCounts",
    "aupro",
    "auroc",
    "average_precision",
    "best_dice",
    "delong_variance",
    "dice",
    "flagged_share",
    "fpr_at_tpr",
    "hit_ra2024",
    "hit_rate",
    "interval",
    "is_hit",
    "mae",
    "mse",
    "pixel_ap",
    "pixel_auroc",
    "pixel_edges",
    "pixel_threshold",
    "precision_recall_points",
    "resample",
    "roc_points",
    "ssim",
    "weighted_auroc",
    "weighted_average_precision",
    "weighted_fpr_at_tpr",
    "weighted_mean",
    "wilson",
]
