"""Small downloads of every data set, laid out as distributed: names, columns, bit depths, quirks. Pixels are drawn."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from salus.datasets import DATASETS
from tests.conftest import discs

HEALTHY, ABNORMAL = 12, 4  # people in each layout


def pictures(count: int, *, hole: bool = False, seed: int = 0) -> NDArray[np.float32]:
    """(count, 32, 32) in [0, 1]: discs, with a dark spot where `hole`."""
    return discs(count, hole=hole, seed=seed)[:, 0]


def png(path: Path, picture: NDArray[np.float32], bits: int = 8) -> None:
    """A grey PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.round(picture * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    Picture.fromarray(values).save(path)


def text(path: Path, content: str, *, bom: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8-sig" if bom else "utf-8")


def layout(name: str) -> Callable[[Path], None]:
    """`write` of the module here that is called like the reader's module."""
    module = DATASETS[name].split(":")[0].rpartition(".")[2]
    return import_module(f"tests.datasets.layouts.{module}").write


LAYOUTS = {name: layout(name) for name in DATASETS if name not in ("folder", "painted", "phantom")}
