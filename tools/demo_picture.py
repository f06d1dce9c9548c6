"""The picture of the README, from a finished demo: of each of three findings the case with the middle score.

python tools/demo_picture.py salus-demo docs/images/demo.png
"""

import base64
import io
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from salus.benchmark.pairing import pair
from salus.benchmark.report import example, last_colour, view

FINDINGS = ("absent_septum", "edema", "mass")


def main(demo: Path, out: Path) -> None:
    paired = pair(demo / "results", demo / "phantom", "phantom")
    chosen = {}
    for finding in FINDINGS:
        cases = [one for one in paired.judged if finding in {f.name for f in one.case.findings}]
        chosen[finding] = sorted(cases, key=lambda case: case.score)[len(cases) // 2]
    views = {finding: view(one, paired.preparation) for finding, one in chosen.items()}
    top = last_colour(views.values(), json.loads((demo / "report" / "metrics.json").read_text())["pixel_threshold"])
    figure = Figure(figsize=(10, 6.2), layout="constrained", facecolor="white")
    rows = figure.subplots(len(FINDINGS), 5)
    for axes, finding in zip(rows, FINDINGS, strict=True):
        for place, panel in zip(axes, example(chosen[finding], views[finding], top).panels, strict=True):
            content = base64.b64decode(panel.image.partition(",")[2])
            place.imshow(Image.open(io.BytesIO(content)).convert("RGB"))
            place.set(xticks=[], yticks=[])
            if finding == FINDINGS[0]:
                place.set_title(panel.caption, fontsize=11)
        axes[0].set_ylabel(finding.replace("_", " "), fontsize=11)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=80)
    Image.open(picture).convert("RGB").quantize(200).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
