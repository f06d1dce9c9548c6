"""Seconds until `salus --help` has printed, median of several; and whether `import salus` loads torch.

python benchmarks/bench_startup.py
"""

import statistics
import subprocess
import sys
import time


def main() -> int:
    times = []
    for _ in range(9):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "salus.cli", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    code = "import sys, salus; print('torch' in sys.modules)"
    torch_loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    median = statistics.median(times[1:])
    print(f"salus --help: {median:.3f} s (target < 0.4 s); import salus loads torch: {torch_loaded}")
    return int(median >= 0.4 or torch_loaded == "True")


if __name__ == "__main__":
    sys.exit(main())
