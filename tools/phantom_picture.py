"""The contact sheet of docs/datasets/phantom.md: healthy heads above, the seven findings and a healthy twin below.

python tools/phantom_picture.py docs/images/phantom.png
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from salus.datasets.phantom import FINDINGS, phantom_slice


def main(out: Path) -> None:
    figure = Figure(figsize=(16, 4.4), layout="constrained", facecolor="black")
    rows = figure.subplots(2, 8)
    findings = [phantom_slice(30 + index, finding=finding) for index, finding in enumerate(FINDINGS)]
    below = [(phantom.image, phantom.mask, phantom.finding.replace("_", " ")) for phantom in findings]
    mass = findings[FINDINGS.index("mass")]
    above = [(phantom_slice(seed).image, None, "") for seed in range(8)]
    for axes, (image, mask, title) in zip(
        rows.flat, [*above, *below, (mass.healthy, None, "twin of the mass")], strict=True
    ):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        if mask is not None:
            axes.contour(mask, [0.5], colors="#e8a33d", linewidths=0.8)
        axes.set_title(title, color="white", fontsize=10)
        axes.axis("off")
    figure.savefig(out, dpi=70)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
