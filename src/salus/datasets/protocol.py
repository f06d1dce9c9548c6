"""Who is learned from, who watches the learning, who sets the threshold: all healthy, split by patient."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from salus.core import Case, Dataset, Label, Split
from salus.core.case import ONE_ID
from salus.core.errors import LayoutError


def split(dataset: Dataset, *, validation: float = 0.1, calibration: float = 0.1) -> Dataset:
    """`dataset` with its healthy, not yet divided cases in TRAIN, VALIDATION and CALIBRATION.

    Divided are patients all of whose cases are NORMAL and in TRAIN or NONE; every other case stays as it is. A part
    the data set brings itself, VALIDATION or CALIBRATION, is not added to. Patients stand in the order of the SHA-256
    of their id and are cut there, so the result depends on neither file order nor seed, and one patient more moves at
    most one other over each cut.

    Args:
        validation: share of the divided patients, at least one of them.
        calibration: likewise; the threshold's resolution is 1 / (calibration cases + 1).

    Raises:
        LayoutError: fewer patients than parts, three unless the data set brings some.
    """
    brought = {case.split for case in dataset if case.label == Label.NORMAL}
    shares = {Split.VALIDATION: validation, Split.CALIBRATION: calibration}
    missing = {part: share for part, share in shares.items() if part not in brought}
    patients = _divisible(dataset)
    if len(patients) < 1 + len(missing):
        alone = len({case.patient_id for case in dataset}) == 1 < len(dataset)
        raise LayoutError(
            f"{dataset.name}: {len(patients)} healthy patient{'s' * (len(patients) != 1)} to divide into "
            f"{', '.join([Split.TRAIN, *missing])}; at least {1 + len(missing)} are needed, and a few hundred to learn "
            "from. Images of one patient count once (patient_id in metadata.csv)." + f" {ONE_ID}" * alone
        )
    part_of = dict.fromkeys(patients, Split.TRAIN)
    end = len(patients)
    for part, share in reversed(missing.items()):
        start = end - max(1, round(share * len(patients)))
        part_of.update(dict.fromkeys(patients[start:end], part))
        end = start
    return Dataset(
        dataset.name,
        [replace(case, split=part_of.get(case.patient_id, case.split)) for case in dataset.cases],
        dataset.left_out,
        dataset.notes,
    )


def hold_out(name: str, cases: Sequence[Case], share: float) -> list[Case]:
    """`cases` with those of the test in TEST and the others without a split, patient by patient.

    In the test are all patients with an ABNORMAL case, and of those whose cases are all NORMAL the first `share` in
    the order of the SHA-256 of data set and patient: the same people in every version and on every machine.
    """
    labels: dict[str, set[Label]] = {}
    for case in cases:
        labels.setdefault(case.patient_id, set()).add(case.label)
    healthy = by_hash(name, (patient for patient, seen in labels.items() if seen == {Label.NORMAL}))
    tested = {patient for patient, seen in labels.items() if Label.ABNORMAL in seen}
    tested |= set(healthy[: round(share * len(healthy))])
    return [replace(case, split=Split.TEST if case.patient_id in tested else Split.NONE) for case in cases]


def by_hash(name: str, patients: Iterable[str]) -> list[str]:
    """`patients` in the order of the SHA-256 of data set and patient."""
    return sorted(patients, key=lambda patient: hashlib.sha256(f"{name}/{patient}".encode()).digest())


def apart(cases: Sequence[Case]) -> tuple[list[Case], list[tuple[str, str]]]:
    """`cases` without the training cases of patients who are in the test, and those, with the reason."""
    tested = {case.patient_id for case in cases if case.split == Split.TEST}
    both = {case.case_id for case in cases if case.split == Split.TRAIN and case.patient_id in tested}
    return (
        [case for case in cases if case.case_id not in both],
        [(case_id, "a training image of a patient in the test") for case_id in sorted(both)],
    )


def _divisible(dataset: Dataset) -> list[str]:
    """Ids of the patients to divide, in the order of their hash."""
    other = {
        case.patient_id for case in dataset if case.label != Label.NORMAL or case.split not in (Split.TRAIN, Split.NONE)
    }
    patients = {case.patient_id for case in dataset} - other
    return sorted(patients, key=lambda patient: hashlib.sha256(patient.encode()).digest())
