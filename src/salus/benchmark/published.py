"""Numbers as the papers print them, with the intervals that their counts allow: to stand beside ours, never among ours.

`published.csv`, one row a number: `ra2024` is arXiv:2401.10637, tables 1, 2, 3; `cai2024` is arXiv:2403.09303, tables 1
and 2. `value` is as printed, digit for digit: shares in percent, `n_detected` a count. `n` counts findings, or
abnormal/normal images; those of `cai2024` are of the data's release (`salus datasets medianomaly`).
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from salus.core.errors import ConfigError, did_you_mean
from salus.metrics import hanley_mcneil, wilson

PAPERS = {"ra2024": "Bercea et al., arXiv:2401.10637", "cai2024": "Cai et al., arXiv:2403.09303"}
STAR = {  # what a star behind a value says
    "ra2024": "nearly the identity; copying the input gives perfect SSIM and LPIPS on healthy images, so these two say "
    "nothing alone"
}
TOTAL = "total"  # over all findings of a table, each counting the same
METHODS: Mapping[str, tuple[str, Mapping[str, int]]] = {  # theirs: our detector, and a setting that their name tells
    **{name: (name.lower(), {}) for name in ("DAE", "MKD", "LTM", "VAE", "MAE", "SI-VAE", "DDPM", "RA")},
    "MemAE": ("mem-ae", {}),
    "CeAE": ("ce-vae", {}),
    "AE, d = 4, 4, 32, 16": ("ae", {}),  # a size for each data set, picked by test labels
    **{f"AE, d = {d}": ("ae", {"latent": d}) for d in (1, 2, 4, 8, 16, 32, 64, 128)},
}
COLUMNS: Mapping[str, tuple[str, tuple[str, ...]]] = {  # theirs: our data set, and its findings; () for all
    "ra2024 1 total": ("fastmri", ()),
    "ra2024 1 edema": ("fastmri", ("Edema",)),
    "ra2024 1 mass": ("fastmri", ("Mass", "Extra-axial mass")),
    "ra2024 1 lesions": ("fastmri", ("Nonspecific lesion",)),
    "ra2024 1 resection": ("fastmri", ("Resection cavity",)),
    "ra2024 1 enl. ventricles": ("fastmri", ("Enlarged ventricles",)),
    "ra2024 1 craniotomy": ("fastmri", ("Craniotomy", "Craniectomy")),
    "ra2024 1 absent septum": ("fastmri", ("Absent septum pellucidum",)),
    "ra2024 2 total": ("grazpedwri", ()),
    "ra2024 2 bone anomaly": ("grazpedwri", ("boneanomaly",)),
    "ra2024 2 foreign body": ("grazpedwri", ("foreignbody",)),
    "ra2024 2 fracture": ("grazpedwri", ("fracture",)),
    "ra2024 2 metal": ("grazpedwri", ("metal",)),
    "ra2024 2 periosteal": ("grazpedwri", ("periostealreaction",)),
    "ra2024 2 pronator": ("grazpedwri", ("pronatorsign",)),
    "ra2024 2 soft tissue": ("grazpedwri", ("softtissue",)),
    "ra2024 3 healthy": ("rsna", ()),
    "ra2024 3 pneumonia": ("rsna", ("Lung Opacity",)),
    "ra2024 3 COVID-19": ("covid-radiography", ("COVID",)),
    **{
        f"cai2024 {table} {of}": (f"medianomaly/{folder}", ())
        for table in (1, 2)
        for of, folder in (
            *(("RSNA", "RSNA"), ("VinDr-CXR", "VinCXR"), ("Brain Tumor", "BrainTumor"), ("BraTS2021", "BraTS2021")),
        )
    },
}


@dataclass(frozen=True, kw_only=True)
class Number:
    """One printed number.

    Attributes:
        of: finding, disease or data set, as the paper calls it; "total" of a table, "healthy" of its healthy images.
        n: findings, or (abnormal, normal) images; () where they are not known.
        measure: as metrics.json calls it; `f1` and `recall` are of the protocol ra2024.
        value: a share, or the count `n_detected`.
        printed: as the paper prints it, shares in percent, with its star.
        note: what that star says; "" without one.
    """

    method: str
    of: str
    n: tuple[int, ...]
    measure: str
    value: float
    printed: str
    note: str

    @property
    def ci95(self) -> tuple[float, float] | None:
        """Of a share of findings Wilson's, of an AUROC Hanley and McNeil's; None for the rest.

        Findings and images are taken as independent, which several of one head are not, and nothing is known of
        trainings: a mean over them, as in `cai2024`, counts as one.
        """
        if self.measure in ("n_detected", "recall"):
            count = self.value if self.measure == "n_detected" else self.value * self.n[0]
            return wilson(round(count), self.n[0])
        if self.measure == "auroc" and len(self.n) == 2:
            half = hanley_mcneil(self.value, *self.n)
            return self.value - half, self.value + half
        return None


def published(name: str) -> list[Number]:
    """The numbers of one table in the order of print.

    Args:
        name: paper and table, such as "ra2024 3".

    Raises:
        ConfigError: no such paper or table.
    """
    text = files("salus.benchmark").joinpath("published.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    known = {f"{row['paper']} {row['table']}" for row in rows}
    if name not in known:
        raise ConfigError(f"no published table is called '{name}'.{did_you_mean(name, known)}")
    return [
        Number(
            method=row["method"],
            of=row["of"],
            n=tuple(int(count) for count in row["n"].split("/") if count),
            measure=row["measure"],
            value=round(float(row["value"].rstrip("*")) / (1 if row["measure"] == "n_detected" else 100), 6),
            printed=row["value"],
            note=STAR[row["paper"]] if row["value"].endswith("*") else "",
        )
        for row in rows
        if f"{row['paper']} {row['table']}" == name
    ]
