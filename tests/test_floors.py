"""The house stands: imports go down only, and the entrance is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "salus"
FLOOR = {
    "core": 0,
    **dict.fromkeys(("io", "datasets", "preprocess", "metrics"), 1),
    "nets": 2.0,
    "scores": 2.1,
    "detectors": 2.2,
    "planning": 3.0,
    "model": 3.0,
    "threshold": 3.1,
    "training": 3.2,
    "screening": 3.2,
    "engines": 3.2,
    "benchmark": 3.3,
    "cli": 4,
}
FILES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("salus.") and name.split(".")[1] in FLOOR}
    return found


def test_every_module_is_on_a_floor():
    assert {room(path) for path in FILES} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("path", [f for f in FILES if f.parent != SOURCE or f.stem != "__init__"], ids=str)
def test_imports_only_from_below(path):
    mine = FLOOR[room(path)]
    for other in imported_rooms(path) - {room(path)}:
        assert FLOOR[other] < mine, f"{path.name} is on floor {mine}, {other} on {FLOOR[other]}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_is_unpickled_or_imported_that_the_design_leaves_out(path):
    text = path.read_text()
    assert "torch.load(" not in text
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not imported & {"pickle", "joblib", "torchvision", "hydra", "lpips", "dill"}


def loaded_by(code: str) -> set[str]:
    script = f"import sys; {code}; print(' '.join(sorted(m.split('.')[0] for m in sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


def test_import_salus_loads_neither_torch_nor_pydicom():
    assert not loaded_by("import salus") & {"torch", "pydicom", "numpy", "matplotlib"}


def test_help_loads_neither_torch_nor_anything_else_heavy():
    code = (
        "import contextlib, io, salus.cli as c\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): c.app(['--help'])"
    )
    heavy = {"torch", "numpy", "scipy", "sklearn", "skimage", "matplotlib", "nibabel", "pydantic", "lightning_fabric"}
    assert not loaded_by(f"exec({code!r})") & heavy
