"""The main job from end to end on generated images: `salus demo`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from salus.benchmark.evaluate import evaluate
from salus.datasets.phantom import write_phantom
from salus.screening import screen
from salus.training import Run, train

# Enough healthy heads to learn from in minutes, and findings large enough to be seen at 64 pixels; the tiny demo only
# shows that everything works.
POPULATIONS: dict[str, dict[str, Any]] = {
    "fast": {"train": 400, "test_normal": 60, "per_finding": 12, "side": 128, "size": 1.5, "contrast": 1.25},
    "tiny": {"train": 240, "test_normal": 20, "per_finding": 3, "side": 64, "size": 1.5, "contrast": 1.25},
}


def demo(
    out: Path,
    *,
    preset: str = "fast",
    detector: str = "ra",
    seed: int = 0,
    on_step: Callable[[str], None] = lambda what: None,
    on_epoch: Callable[[Run, int], None] = lambda run, epochs: None,
) -> Path:
    """Generate a population, train on its healthy part, screen new cases, write the report.

    Args:
        out: folder for everything; what is finished there is not done again.
        preset: "fast" (minutes) or "tiny" (seconds, proves nothing but that it runs).
        on_step: told what begins.

    Returns:
        Path of the report.
    """
    on_step("generating heads, healthy and not")
    data = write_phantom(out / "phantom", **POPULATIONS[preset], seed=seed)
    on_step(f"training {detector} on healthy heads")
    model = train(detector, data, out / "model", preset=preset, seed=seed, resume=True, on_epoch=on_epoch).folder
    on_step("screening new heads")
    screen([data], model=model, out=out / "results")
    on_step("measuring and writing the report")
    return evaluate(out / "results", data, out / "report", dataset="phantom")
