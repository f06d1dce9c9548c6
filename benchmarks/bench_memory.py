"""Peak memory of screening 2,000 images against 200, and how many images a second the whole command screens.

    python benchmarks/bench_memory.py

Each count runs in a process of its own on generated pictures of 128 px, with `ra` at `fast`: read, hashed, restored,
judged; map, restoration, overlay and result written. Memory is the largest resident size of the process; the speed is
that of the 1,800 images that one has more than the other, so that starting costs nothing. Exits with 1 where a target
is missed.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SCREEN = """
import resource, sys, time
from pathlib import Path
from salus.screening import screen
started = time.perf_counter()
screen([Path(sys.argv[1])], model=Path(sys.argv[2]), out=Path(sys.argv[3]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.perf_counter() - started)
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
        train("ra", root / "200", root / "model", preset="fast", epochs=10)
        peaks, seconds = [], []
        for count in (200, 2000):
            command = [sys.executable, "-c", SCREEN, root / str(count), root / "model", root / f"results{count}"]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            peak, lasted = map(float, run.stdout.split()[-2:])
            peaks.append(peak)
            seconds.append(lasted)
    speed = 1800 / (seconds[1] - seconds[0])
    print(f"screening 2,000 against 200 images: {peaks[1] / peaks[0]:.3f}x (target <= 1.1x), {peaks[1]:.0f} MiB")
    print(f"the whole command: {speed:.0f} images a second (target >= 50)")
    return int(peaks[1] > 1.1 * peaks[0] or speed < 50)


if __name__ == "__main__":
    sys.exit(main())
