import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.datasets.layouts import ABNORMAL, pictures, png, text

ABNORMAL_ONLY = True  # there is no normal image to learn from or to measure against


def write(root: Path) -> None:
    """Findings in reports, a report without any, a session without a report, a lateral view, one MONOCHROME1."""
    reports = ["\tPatientID\tReportID\tReport\tLabels\tLocalizations"]
    tests = ["participant\tdate\ttest\tresult"]

    def image(number: int, picture: NDArray[np.float32], labels: str | None, *, view: str = "ap") -> None:
        patient, session, dark = f"sub-S{number:05}", f"ses-E{number:05}", number == 1
        stem = f"{patient}_{session}_run-1_bp-chest_vp-{view}_{'cr' if number % 2 else 'dx'}"
        folder = root / patient / session / "mod-rx"
        png(folder / f"{stem}.png", 1 - picture if dark else picture, bits=16)
        header = {
            "00080070": {"vr": "LO", "Value": ["KONICA MINOLTA"]},
            "00280004": {"vr": "CS", "Value": ["MONOCHROME1" if dark else "MONOCHROME2"]},
        }
        text(folder / f"{stem}.json", json.dumps(header))
        if labels is not None:
            reports.append(f"{len(reports)}\t{patient}\t{session}\tpatron intersticial .\t{labels}\t[]")
        tests.append(f"{patient}\t20.03.2020\tPCR\t{'POSITIVO' if number <= ABNORMAL else 'NEGATIVO'}")

    sick, other = pictures(ABNORMAL + 2, hole=True), pictures(3, seed=2)
    for number, picture in enumerate(sick, start=1):
        image(number, picture, "['COVID 19', ' ground glass pattern', 'unchanged']")
    image(201, other[0], "['normal']")
    image(202, other[1], None)
    image(1, other[2], None, view="ll")
    text(root / "derivatives/labels/labels_covid_posi.tsv", "\n".join(reports) + "\n")
    text(root / "derivatives/EHR/sil_reg_covid_posi.tsv", "\n".join(tests) + "\n")
