from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salus.core import Case, Dataset, Label, Source, Split
from salus.core.errors import LayoutError
from salus.datasets.protocol import split


def case(name: str, patient: str = "", part: Split = Split.NONE, label: Label = Label.NORMAL) -> Case:
    return Case(case_id=name, patient_id=patient or name, images=(Source(path=Path(name)),), split=part, label=label)


def healthy(n: int, images: int = 1) -> list[Case]:
    return [case(f"p{i}/{j}", f"p{i}") for i in range(n) for j in range(images)]


def parts(dataset: Dataset) -> dict[str, Split]:
    return {case.patient_id: case.split for case in dataset}


@pytest.mark.parametrize(
    ("n", "expected"), [(3, (1, 1, 1)), (10, (8, 1, 1)), (100, (80, 10, 10)), (527, (421, 53, 53))]
)
def test_patients_are_cut_80_10_10(n, expected):
    counts = Counter(parts(split(Dataset("d", healthy(n)))).values())
    assert (counts[Split.TRAIN], counts[Split.VALIDATION], counts[Split.CALIBRATION]) == expected


@given(n=st.integers(3, 60), images=st.integers(1, 4), seed=st.randoms())
def test_a_patient_stays_whole_and_the_order_of_files_does_not_matter(n, images, seed):
    cases = healthy(n, images)
    divided = split(Dataset("d", cases))
    assert [c.case_id for c in divided] == [c.case_id for c in cases]
    seed.shuffle(cases)
    assert parts(split(Dataset("d", cases))) == parts(divided)  # Dataset itself refuses a patient in two
    assert set(parts(divided).values()) == {Split.TRAIN, Split.VALIDATION, Split.CALIBRATION}


@given(n=st.integers(3, 200))
def test_one_patient_more_moves_few_others(n):
    before, after = (parts(split(Dataset("d", healthy(m)))) for m in (n, n + 1))
    assert sum(before[patient] != after[patient] for patient in before) <= 3


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three_patients_are_refused(n):
    with pytest.raises(LayoutError, match=rf"d: {n} healthy patients? to divide .*at least 3 are needed"):
        split(Dataset("d", healthy(n, images=5)))


def test_train_is_divided_and_test_left_alone():
    cases = [case(f"train/{i}", part=Split.TRAIN) for i in range(20)]
    cases += [case(f"test/{i}", part=Split.TEST, label=label) for i, label in enumerate(Label)]
    divided = split(Dataset("d", cases))
    assert Counter(c.split for c in divided) == {
        Split.TRAIN: 16,
        Split.VALIDATION: 2,
        Split.CALIBRATION: 2,
        Split.TEST: 3,
    }
    assert all(c.split == Split.TEST for c in divided if c.case_id.startswith("test"))


def test_what_the_data_set_brings_is_kept():
    own = [case("v", part=Split.VALIDATION), case("c", part=Split.CALIBRATION)]
    both = split(Dataset("d", [*healthy(10), *own]))
    assert Counter(c.split for c in both) == {Split.TRAIN: 10, Split.VALIDATION: 1, Split.CALIBRATION: 1}
    one = split(Dataset("d", [*healthy(10), own[0]]))
    assert Counter(c.split for c in one) == {Split.TRAIN: 9, Split.VALIDATION: 1, Split.CALIBRATION: 1}
    assert len(split(Dataset("d", [*healthy(1), *own]))) == 3


@pytest.mark.parametrize("label", [Label.ABNORMAL, Label.UNKNOWN])
def test_a_patient_who_is_not_all_healthy_is_never_learned_from(label):
    sick = [case("s/1", "sick"), case("s/2", "sick", label=label)]
    divided = split(Dataset("d", [*healthy(5), *sick]))
    assert parts(divided)["sick"] == Split.NONE


def test_dividing_twice_changes_nothing():
    divided = split(Dataset("d", healthy(30)))
    assert parts(split(divided)) == parts(divided)


def test_the_assignment_is_pinned():
    """It is part of what makes a published number repeatable; a change here moves everybody's splits."""
    found = parts(split(Dataset("d", healthy(12))))
    assert [patient for patient, part in found.items() if part == Split.VALIDATION] == ["p4"]
    assert [patient for patient, part in found.items() if part == Split.CALIBRATION] == ["p1"]  # largest by sha256sum
