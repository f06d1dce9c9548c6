"""BIMCV-COVID19+: chest radiographs of people who were tested positive; a test set, without a normal image.

    root/sub-S<n>/ses-E<n>/mod-rx/<name>_bp-chest_vp-<view>_<cr|dx>.png    16-bit grey; any folder above does
    root/sub-S<n>/ses-E<n>/mod-rx/<name>_bp-chest_vp-<view>_<cr|dx>.json   its DICOM header, as DICOM JSON
    root/derivatives/labels/labels_covid_posi.tsv                          PatientID, ReportID (the session), Labels
    root/derivatives/EHR/sil_reg_covid_posi.tsv                            participant, date, test, result

de la Iglesia Vayá et al. 2020, arXiv:2006.01174. The trap: a positive test is of a person, not of an image. An image
is ABNORMAL by its report; one whose report names nothing is UNKNOWN, never NORMAL.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salus.core import Case, Dataset, Label, Source
from salus.core.errors import LayoutError
from salus.datasets._layout import differences, find, listing, table
from salus.datasets.padchest import findings_of, listed
from salus.datasets.protocol import hold_out

NAME = "bimcv-covid"
LABELS = ("derivatives/labels/labels_covid_posi.tsv", "derivatives/labels/labels_covid19_posi.tsv")  # names by release
TESTS = ("derivatives/EHR/sil_reg_covid_posi.tsv", "derivatives/EHR/sil_reg_covid.tsv")
LABEL_COLUMNS = ("PatientID", "ReportID", "Labels")
TEST_COLUMNS = ("participant", "result")
FRONTAL = ("pa", "ap")
PHOTOMETRIC, MANUFACTURER = "00280004", "00080070"  # DICOM tags
PUBLISHED = {"patients": 1_311, "CR studies": 1_380, "DX studies": 885}  # of the first iteration
EXPECTED = "folders sub-S*/ses-E*/mod-rx, derivatives/labels and derivatives/EHR"


def bimcv_covid(root: Path) -> Dataset:
    """The frontal chest images under `root`; none is opened, but each one's JSON header is.

    ABNORMAL: the report of its session names a finding. UNKNOWN: it names none, or there is no report. No image is
    NORMAL. Patients with an ABNORMAL image are in the test, the others in no split. Groups: `view`, `modality`,
    `manufacturer`, and `test`, whether any test of the patient was positive.

    Raises:
        LayoutError: not laid out so, or a table with other columns.
    """
    reports: dict[tuple[str, str], set[str]] = {}
    for row in table(find(root, *LABELS, expected=EXPECTED), LABEL_COLUMNS):
        session = reports.setdefault((row["PatientID"], row["ReportID"]), set())
        session |= listed(row["Labels"]) or set()
    tests = table(find(root, *TESTS, expected=EXPECTED), TEST_COLUMNS)
    positive = {row["participant"] for row in tests if row["result"].casefold() == "positivo"}
    images = sorted(root.glob("**/mod-rx/*.png"))
    if not images:
        raise LayoutError(f"{root} holds no sub-*/ses-*/mod-rx/*.png. Expected {EXPECTED}; it holds: {listing(root)}.")
    cases, left_out = [], []
    for image in images:
        entities, header = _entities(image.stem), _header(image.with_suffix(".json"))
        if entities.get("bp", "chest") != "chest":
            left_out.append((image.stem, "not the chest"))
        elif entities.get("vp") not in FRONTAL:
            left_out.append((image.stem, "not a frontal view by its name"))
        elif header["photometric"] not in ("MONOCHROME1", "MONOCHROME2"):
            left_out.append((image.stem, "no JSON beside it that tells bright from dark"))
        else:
            cases.append(_case(image, entities, header, reports, positive))
    return Dataset(NAME, hold_out(NAME, cases, 0.0), left_out, differences(_counts(images), PUBLISHED))


def _case(
    image: Path,
    entities: dict[str, str],
    header: dict[str, str],
    reports: dict[tuple[str, str], set[str]],
    positive: set[str],
) -> Case:
    session, patient = image.parents[1].name, image.parents[2].name
    findings = findings_of(reports.get((patient, session), set()))
    groups = {
        "view": entities["vp"],
        "modality": entities["modality"],
        "manufacturer": header["manufacturer"],
        "test": "positive" if patient in positive else "none positive",
    }
    return Case(
        case_id=image.stem,
        patient_id=patient,
        images=(Source(path=image, inverted=header["photometric"] == "MONOCHROME1"),),
        label=Label.ABNORMAL if findings else Label.UNKNOWN,
        findings=findings,
        groups={name: value for name, value in groups.items() if value},
    )


def _entities(stem: str) -> dict[str, str]:
    """sub-S03066_ses-E07113_run-1_bp-chest_vp-pa_dx as sub: S03066, ..., vp: pa, modality: dx."""
    parts = stem.split("_")
    return {**dict(part.split("-", 1) for part in parts if "-" in part), "modality": parts[-1]}


def _header(path: Path) -> dict[str, str]:
    """What counts of an image's DICOM JSON; "" for what is not there."""
    try:
        header = json.loads(path.read_bytes())
    except (OSError, ValueError):
        header = None
    return {"photometric": _value(header, PHOTOMETRIC), "manufacturer": _value(header, MANUFACTURER)}


def _value(header: Any, tag: str) -> str:
    try:
        return str(header[tag]["Value"][0]).strip()
    except (KeyError, IndexError, TypeError):
        return ""


def _counts(images: Sequence[Path]) -> Counter[str]:
    """Of all radiographs, lateral ones too; a study is a session."""
    studies = {
        (image.parents[2].name, image.parents[1].name, _entities(image.stem)["modality"][:2]) for image in images
    }
    found = Counter(f"{modality.upper()} studies" for _, _, modality in studies)
    found["patients"] = len({patient for patient, _, _ in studies})
    return found
