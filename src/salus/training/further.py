"""Further data sets to learn from: healthy people of other places, beside those of the data set a model is for.

Their training and validation parts join that set's: weights and epoch are learned from all. Another scanner has other
scores, so what judges comes of that set alone: the threshold, and what a score learns.
The calibration parts of further sets are left out, and their test cases never opened.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from salus.core import Case, Dataset, Label, Split
from salus.core.errors import ConfigError, PatientInTwoSplitsError
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.threshold import people
from salus.training.loop import Images

LEARNED = (Split.TRAIN, Split.VALIDATION)


class Joined:
    """Images of several sets, one set after the other; (n, 1, size, size), read when asked for.

    Args:
        parts: at least one, of one size.
    """

    def __init__(self, parts: Sequence[Images]) -> None:
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        places = np.arange(len(self))[index]
        part_of = np.searchsorted(self.starts, places, side="right") - 1
        rows = np.empty((len(places), *self.parts[0][:1].shape[1:]), np.float32)
        for number, part in enumerate(self.parts):
            mine = part_of == number
            rows[mine] = part[places[mine] - self.starts[number]]
        return rows


def further_sets(also: Sequence[tuple[str, Path]], dataset: str, cases: Dataset) -> list[Dataset]:
    """The healthy training and validation cases of each further set, divided as every data set.

    Args:
        also: reader and folder of each.
        dataset: reader of `cases`.
        cases: the data set the model is for, with its test.

    Raises:
        ConfigError: no such reader, or a painted set among several.
        LayoutError: a folder is missing, empty or laid out otherwise, or has too few healthy people.
        PatientInTwoSplitsError: an image or a patient is in two of the sets.
    """
    if also and "painted" in (dataset, *(reader for reader, _ in also)):
        raise ConfigError("a painted test knows the people of one data set: learn from that one alone, without --also.")
    found = []
    known = people(dataset, cases) if also else {}
    for reader, path in also:
        opened = split(open_dataset(reader, path))
        healthy = [case for case in opened if case.label == Label.NORMAL and case.split in LEARNED]
        learned = Dataset(opened.name, healthy, opened.left_out, opened.notes)
        mine = people(reader, learned)
        if again := next((mark for mark in mine if mark in known), None):
            raise PatientInTwoSplitsError(twice(f"{path}, read as {reader}", mine[again], known[again]))
        known |= mine
        found.append(learned)
    return found


def twice(where: str, mine: Case, there: Case) -> str:
    """Who is in two sets, in words for people."""
    return (
        f"{where}: '{mine.case_id}', patient '{mine.patient_id}', is in another of the data sets, too: "
        f"'{there.case_id}', patient '{there.patient_id}', part '{there.split or 'none'}'. Nobody may be learned from "
        "in one and tested in another: take the patient out of one of them, or, if these are two people, give one "
        "another patient_id."
    )
