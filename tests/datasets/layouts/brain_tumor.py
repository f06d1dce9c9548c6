from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from tests.datasets.layouts import ABNORMAL, HEALTHY, pictures


def write(root: Path) -> None:
    """JPEGs, every third with three channels; the first ten of a class have Tr in their name twice."""
    codes = {"glioma": "gl", "meningioma": "me", "notumor": "no", "pituitary": "pi"}
    learned = HEALTHY - ABNORMAL

    def image(part: str, kind: str, number: int, picture: NDArray[np.float32]) -> None:
        code = codes[kind] + ("Tr" if number < 10 else "")
        file = root / part / kind / f"{part[:2]}-{code}_{number:04}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        grey = Picture.fromarray(np.round(picture * 255).astype(np.uint8))
        (grey.convert("RGB") if number % 3 == 0 else grey).save(file, quality=95)

    for part in ("Training", "Testing"):
        for kind in codes:
            (root / part / kind).mkdir(parents=True)
    for number, picture in enumerate(pictures(HEALTHY)):
        image("Training" if number < learned else "Testing", "notumor", number, picture)
    for number, picture in enumerate(pictures(ABNORMAL, hole=True)):
        image("Testing", ("glioma", "meningioma", "pituitary")[number % 3], number, picture)
    image("Training", "glioma", 10, pictures(1, hole=True, seed=2)[0])
