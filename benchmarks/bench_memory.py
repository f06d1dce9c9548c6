"""Peak memory of screening 2,000 images against 200.

    python benchmarks/bench_memory.py

Each count runs in a process of its own on generated pictures; the figure is the largest resident size of the process.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SCREEN = """
import resource, sys
from pathlib import Path
from salus.screening import screen
screen([Path(sys.argv[1])], model=Path(sys.argv[2]), out=Path(sys.argv[3]))
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main() -> int:
    from salus.training import train

    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        rng = np.random.default_rng(0)
        for count in (200, 2000):
            (root / str(count)).mkdir()
            for index in range(count):
                picture = rng.integers(0, 256, (128, 128), dtype=np.uint8)
                Image.fromarray(picture).save(root / str(count) / f"{index:04}.png")
        train("ra", root / "200", root / "model", preset="tiny", epochs=1)
        peaks = []
        for count in (200, 2000):
            command = [sys.executable, "-c", SCREEN, root / str(count), root / "model", root / f"results{count}"]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks.append(int(re.search(r"peak (\d+)", run.stdout)[1]) / 1024)
    print(f"screening 2,000 against 200 images: {peaks[1] / peaks[0]:.3f}x (target <= 1.1x), {peaks[1]:.0f} MiB")
    return int(peaks[1] > 1.1 * peaks[0])


if __name__ == "__main__":
    sys.exit(main())
