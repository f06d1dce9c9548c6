"""What all tests share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Picture

from salus import cli
from salus.nets.weights import where

torch.set_num_threads(1)  # several workers of one machine, and sums in one order


def needs_weights(id: str) -> pytest.MarkDecorator:
    """For a test of weights that are too large for the wheel: skipped where nobody has fetched them."""
    return pytest.mark.skipif(where(id) is None, reason=f"salus weights fetch {id}")


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither read nor fill the user's cache of prepared images."""
    os.environ["SALUS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """No test pulls the plug, so nothing has to have reached the disk, which takes milliseconds a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real images beside the repository; SALUS_REQUIRE_SHARED=1 makes their absence a failure."""
    data = Path(__file__).parents[2] / "shared" / "data"
    if not data.is_dir():
        reason = "real data not present: ../shared/data"
        if os.environ.get("SALUS_REQUIRE_SHARED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return data


@pytest.fixture
def salus(monkeypatch, capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["salus", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def discs(count: int, *, hole: bool = False, side: int = 32, seed: int = 0) -> NDArray[np.float32]:
    """(count, 1, side, side) bright discs of varying place, size and brightness; with `hole`, a dark spot in each."""
    rng = np.random.default_rng([seed, hole])
    rows, columns = np.mgrid[:side, :side]
    pictures = []
    for _ in range(count):
        y, x = rng.uniform(0.44, 0.56, 2) * side
        radius = rng.uniform(0.28, 0.36) * side
        picture = rng.uniform(0.6, 0.9) * np.clip(radius - np.hypot(rows - y, columns - x) + 0.5, 0, 1)
        if hole:
            where = (y + rng.uniform(-0.1, 0.1) * side, x + rng.uniform(-0.1, 0.1) * side)
            picture = picture * (np.hypot(rows - where[0], columns - where[1]) > 0.1 * side)
        pictures.append(np.clip(picture + rng.normal(0, 0.01, (side, side)), 0, 1))
    return np.stack(pictures)[:, None].astype(np.float32)


@pytest.fixture(scope="session")
def disc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in the MVTec convention: 60 healthy discs to learn from, 8 healthy and 8 with a hole to judge."""
    root = tmp_path_factory.mktemp("discs")
    sets = {
        "train/good": discs(60),
        "test/good": discs(8, seed=1),
        "test/hole": discs(8, hole=True),
    }
    for place, pictures in sets.items():
        (root / place).mkdir(parents=True)
        for index, picture in enumerate(pictures):
            Picture.fromarray(np.round(picture[0] * 255).astype(np.uint8)).save(root / place / f"{index:03}.png")
    return root
