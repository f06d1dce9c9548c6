"""How close a restored image is to its input; meant for healthy images, where nothing should change.

These reward copying: a restoration that changes nothing is perfect here and useless. Read them beside a
measure of what happens inside lesions.
"""

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

WINDOW = 7  # pixels a side


def ssim(image: NDArray[np.floating], restored: NDArray[np.floating]) -> float:
    """Structural similarity, mean over the image without a 3-pixel border.

    7 x 7 uniform window, sample covariance (N - 1 = 48), K1 = 0.01, K2 = 0.03, data range 1; scikit-image's
    defaults, so that nothing depends on a choice of ours.

    Args:
        image: (rows, columns) or (i, j, k), in [0, 1]; what lies outside is clamped, in both.
        restored: the same shape.

    Returns:
        A value in [-1, 1]; 1 means equal.

    Raises:
        ValueError: shapes differ, a side is under 7 pixels, or a pixel is nan.

    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861; window and constants as in the public code of
    Bercea et al., arXiv:2401.10637, which however does not clamp the restoration.
    """
    a, b = _pair(image, restored)
    if min(a.shape) < WINDOW:
        raise ValueError(f"need at least {WINDOW} pixels a side, got {a.shape}")
    similarity = structural_similarity(a.clip(0, 1), b.clip(0, 1), win_size=WINDOW, data_range=1.0)  # type: ignore[no-untyped-call]
    return float(similarity)


def mae(image: NDArray[np.floating], restored: NDArray[np.floating]) -> float:
    """Mean absolute difference. Published code of the RA family prints this one under the name MSE.

    Args:
        image: any shape; not clamped.
        restored: the same shape.

    Returns:
        A value >= 0 in the unit of the image; 0 means equal.

    Raises:
        ValueError: shapes differ, or a pixel is nan.
    """
    a, b = _pair(image, restored)
    return float(np.abs(a - b).mean())


def mse(image: NDArray[np.floating], restored: NDArray[np.floating]) -> float:
    """Mean squared difference.

    Args:
        image: any shape; not clamped.
        restored: the same shape.

    Returns:
        A value >= 0 in the squared unit of the image; 0 means equal.

    Raises:
        ValueError: shapes differ, or a pixel is nan.
    """
    a, b = _pair(image, restored)
    return float(np.square(a - b).mean())


def _pair(
    image: NDArray[np.floating], restored: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if image.shape != restored.shape or not image.size:
        raise ValueError(f"need two images of one shape, got {image.shape} and {restored.shape}")
    if not (np.isfinite(image).all() and np.isfinite(restored).all()):
        raise ValueError("need finite pixels, got nan or infinity")
    return image.astype(np.float64), restored.astype(np.float64)
