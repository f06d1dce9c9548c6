"""Whether a benchmark that is killed at random moments ends with the tables of one that was not.

    python benchmarks/killed_suite.py suites/smoke.yaml OUT [--data DATA] [--kills 10] [--seed 0]

OUT/whole runs undisturbed, and its seconds are printed. OUT/killed lives ten times for a random part of that time, is
killed with SIGKILL (by chance the command alone or its workers, too), and runs to its end. Then every table of the one
is compared with that of the other, byte for byte after times, memory and days are taken out, and the hash of a model,
which holds its seconds: results.csv, ledger.csv, summary.json, the tables of report.html, and each cell's metrics.json
and cases.csv. What differs is named, exit code 1.
"""

import argparse
import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

COSTS = ("seconds", "ms", "mib", "evaluated", "costs", "model")
DEAR = re.compile(r"Training|ms / image|Memory")  # headings of report.html above what no two runs share
TABLE = re.compile(r"<table.*?</table>", re.DOTALL)
ROW = re.compile(r"<tr.*?</tr>", re.DOTALL)
CELL = re.compile(r"<t[hd].*?</t[hd]>", re.DOTALL)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("suite", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("--data", type=Path)
    options.add_argument("--kills", type=int, default=10)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    if asked.out.exists():
        sys.exit(f"{asked.out} is there already: what is finished cannot be killed. Name another folder.")
    command = [sys.executable, "-m", "salus.cli", "benchmark", str(asked.suite)]
    command += ["--data", str(asked.data)] if asked.data else []
    begun = time.monotonic()
    subprocess.run([*command, "--out", str(asked.out / "whole")], check=True)
    took = time.monotonic() - begun
    print(f"undisturbed: {took:.0f} s", flush=True)
    killed = asked.out / "killed"
    for number, share in enumerate(lives(asked.kills, asked.seed), start=1):
        print(f"{number}: {killed_after([*command, '--out', str(killed)], took * share, number % 2 == 0)}", flush=True)
    subprocess.run([*command, "--out", str(killed)], check=True)
    differ = list(differences(asked.out / "whole", killed))
    print("\n".join(differ) or "every table is the same")
    sys.exit(1 if differ else 0)


def lives(kills: int, seed: int) -> list[float]:
    """How long each life lasts, as a share of an undisturbed run; together they last nine tenths of one."""
    moment = random.Random(seed)
    parts = [moment.random() for _ in range(kills)]
    return [0.9 * part / sum(parts) for part in parts]


def killed_after(command: Sequence[str], seconds: float, everybody: bool) -> str:
    """Start it, kill it after so many seconds, with or without its workers, and say what happened."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        return f"it ended by itself within {seconds:.0f} s, with exit code {process.wait(seconds)}"
    except subprocess.TimeoutExpired:
        if everybody:
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
    return f"killed after {seconds:.1f} s, {'with its workers' if everybody else 'alone'}"


def differences(whole: Path, killed: Path) -> Iterator[str]:
    """What is not the same in two folders of one suite."""
    for name in ("results.csv", "ledger.csv"):
        if rows(whole / name) != rows(killed / name):
            yield name
    if tables(whole / "report.html") != tables(killed / "report.html"):
        yield "the tables of report.html"
    made = [{path.relative_to(out) for path in out.glob("**/report/*") if path.suffix != ".html"}
            for out in (whole, killed)]  # fmt: skip
    yield from (f"{path} is there once" for path in sorted(made[0] ^ made[1]))
    for path in [Path("summary.json"), *sorted(made[0] & made[1])]:
        if content(whole / path) != content(killed / path):
            yield str(path)


def content(path: Path) -> Any:
    """What a file holds, JSON without its costs."""
    return without_costs(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()


def rows(path: Path) -> list[dict[str, str]]:
    """A table without its costs."""
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key not in COSTS} for row in csv.DictReader(file)]


def without_costs(value: Any) -> Any:
    """What JSON holds, without what no two runs share."""
    if isinstance(value, dict):
        return {key: without_costs(one) for key, one in value.items() if key not in COSTS}
    return [without_costs(one) for one in value] if isinstance(value, list) else value


def tables(page: Path) -> list[list[list[str]]]:
    """Cells of the tables of a page, but for columns of times and memory."""
    found = []
    for table in TABLE.findall(page.read_text(encoding="utf-8")):
        cells = [CELL.findall(row) for row in ROW.findall(table)]
        dear = {place for place, cell in enumerate(cells[0]) if DEAR.search(cell)}
        found.append([[cell for place, cell in enumerate(row) if place not in dear] for row in cells])
    return found


if __name__ == "__main__":
    main()
