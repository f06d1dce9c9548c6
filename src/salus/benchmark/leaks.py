"""What makes numbers look better than they are, found before anything is trained: leaks between splits, giveaways.

    found = check(Path("root"), dataset="folder")

A giveaway tells healthy from abnormal without looking at anatomy. A high AUROC of one does not prove that a detector
uses it, but nobody can prove that it does not.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from salus.core import Case, Dataset, Image, Label, Split
from salus.core.errors import ImageError, LayoutError, PatientInTwoSplitsError
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.io import read_study
from salus.metrics import auroc, interval, resample, weighted_auroc
from salus.preprocess import Preparation
from salus.preprocess.intensity import percentile

SIDE = 32  # pixels of the thumbnails that are compared
BITS_APART = 24  # of 512 in which two near-duplicates may differ: those that are then compared pixel by pixel
ALIKE = 0.995  # correlation of the thumbnails of near-duplicates
TELLING = 0.65  # AUROC, either way round, from which a giveaway is called one, if its interval excludes 0.5
READERS = 2


@dataclass(frozen=True, kw_only=True)
class Giveaway:
    """How well one property alone tells abnormal test cases from healthy ones; AUROC below 0.5 where it is lower."""

    name: str
    auroc: float
    ci95: tuple[float, float]

    @property
    def telling(self) -> bool:
        """Whether a hard reviewer would ask."""
        low, high = self.ci95
        return max(self.auroc, 1 - self.auroc) >= TELLING and not low <= 0.5 <= high


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """What was found.

    Attributes:
        patients: messages about a patient in two splits.
        duplicates: (case, case, correlation) of near-duplicates in different splits, the surest first.
        giveaways: all that were measured.
        unread: (file, reason).
        unchecked: (which of patients, duplicates and giveaways, why it could not be told).
    """

    patients: tuple[str, ...] = ()
    duplicates: tuple[tuple[str, str, float], ...] = ()
    giveaways: tuple[Giveaway, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()
    unchecked: tuple[tuple[str, str], ...] = ()

    @property
    def clean(self) -> bool:
        """Nothing to explain, every image read, and not one of the three checks without ground."""
        telling = any(giveaway.telling for giveaway in self.giveaways)
        return not (self.patients or self.duplicates or telling or self.unread) and len(self.unchecked) < 3


def check(
    data: Path, dataset: str = "folder", on_image: Callable[[int, int], None] = lambda done, total: None
) -> Leaks:
    """Patients in two splits, near-duplicates across splits, and classes that anything but anatomy tells apart.

    Every image is read once. Near-duplicates: thumbnails whose difference hashes (horizontal and vertical, 512 bits)
    are at most 24 bits apart and whose correlation is at least 0.995. Volumes are compared by their middle slice.

    Args:
        on_image: called with images read and images in all.

    Raises:
        LayoutError: not laid out as `dataset` says.
    """
    try:
        cases = open_dataset(dataset, data)
    except PatientInTwoSplitsError as error:
        why = "pictures were not looked at"
        return Leaks(patients=(str(error),), unchecked=(("duplicates", why), ("giveaways", why)))
    cases = divided(cases)
    seen: list[tuple[Case, Seen]] = []
    unread = []
    for done, (case, found) in enumerate(looked_at(cases), start=1):
        if isinstance(found, Seen):
            seen.append((case, found))
        else:
            unread.append((case.images[0].name, found))
        on_image(done, len(cases))
    return Leaks(
        duplicates=duplicates(seen),
        giveaways=giveaways(seen),
        unread=tuple(unread),
        unchecked=tuple(unchecked([case for case, _ in seen])),
    )


def unchecked(cases: Sequence[Case]) -> Iterator[tuple[str, str]]:
    """(check, reason) of those that could have found nothing among the cases that were read."""
    one_split = len({case.split for case in cases}) < 2
    why = "all images are in one split" if cases else "no image could be read"
    if one_split:
        yield "patients", why
        yield "duplicates", why
    elif len({case.patient_id for case in cases}) == len(cases):
        yield "patients", "no patient has two images by the ids that the data set gives"
    if len({case.label for case in tested(cases)}) < 2:
        yield "giveaways", "no healthy and abnormal cases to compare" if cases else why


def divided(cases: Dataset) -> Dataset:
    """With healthy cases divided as training would; as they are where there are too few."""
    try:
        return split(cases)
    except LayoutError:
        return cases


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What is kept of an image: a thumbnail (SIDE, SIDE) in [0, 1], and properties that are no anatomy."""

    thumbnail: NDArray[np.float32]
    properties: Mapping[str, float]


def looked_at(cases: Sequence[Case]) -> Iterator[tuple[Case, Seen | str]]:
    """Each case with what was seen, or the reason why nothing was, in order."""
    with ThreadPoolExecutor(READERS) as pool:
        yield from zip(cases, pool.map(look, cases), strict=True)


def look(case: Case) -> Seen | str:
    """Read a case."""
    try:
        image = read_study(case.images)
        middle = (
            image if image.array.ndim == 2 else image.slices(*[image.array.shape[2] // 2 + step for step in (0, 1)])
        )
        small = Preparation(size=SIDE, intensity="percentile")(middle).array.reshape(SIDE, SIDE)
        return Seen(thumbnail=small, properties=properties(case, image))
    except (ImageError, OSError) as error:
        return case.without_folders(str(error))


def properties(case: Case, image: Image) -> dict[str, float]:
    """Numbers that tell nothing of anatomy: of the file, its name, its size, its brightness and its border."""
    name = case.case_id.rpartition("/")[2]
    scaled = percentile(image, 0.5, 99.5).array
    border = np.concatenate([scaled[edge].ravel() for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1])])
    numbers = re.findall(r"\d+", name)
    rows, columns = image.array.shape[:2]
    found = {
        "size: pixels": float(rows * columns),
        "size: width / height": columns / rows,
        "size: bytes of the file": float(sum(image.path.stat().st_size for image in case.images)),
        "name: length": float(len(name)),
        "brightness: mean of the stored values": float(image.array.mean()),
        "brightness: mean, scaled": float(scaled.mean()),
        "border: mean, scaled": float(border.mean()),
        "border: share at the minimum": float((border <= scaled.min()).mean()),
    }
    if numbers:
        found["name: last number"] = float(numbers[-1])
    return found


def giveaways(seen: Sequence[tuple[Case, Seen]]) -> tuple[Giveaway, ...]:
    """Of labelled test cases, or of all labelled ones where there is no test; the most telling first."""
    of_case = {case.case_id: one.properties for case, one in seen}
    cases = tested([case for case, _ in seen])
    abnormal = np.array([case.label == Label.ABNORMAL for case in cases])
    if len(set(abnormal.tolist())) < 2:
        return ()
    weights = resample([case.patient_id for case in cases], abnormal)
    names = sorted(set.intersection(*(set(of_case[case.case_id]) for case in cases)))
    columns = {name: np.array([of_case[case.case_id][name] for case in cases]) for name in names}
    columns["name: its letters"] = letters([case.case_id.rpartition("/")[2] for case in cases], abnormal)
    found = []
    for name, values in columns.items():
        low, high = interval(weighted_auroc(abnormal, values, weights))
        found.append(Giveaway(name=name, auroc=auroc(abnormal, values), ci95=(low, high)))
    return tuple(sorted(found, key=lambda giveaway: -abs(giveaway.auroc - 0.5)))


def tested(cases: Sequence[Case]) -> list[Case]:
    """The labelled cases of the test, or all labelled ones where there is no test."""
    labelled = [case for case in cases if case.label != Label.UNKNOWN]
    return [case for case in labelled if case.split == Split.TEST] or labelled


def letters(names: Sequence[str], abnormal: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) share of the abnormal among names of the other half that begin with the same letters, as NORM-12 does.

    Halves are taken by the hash of the name, so that no name tells of itself; letters that the other half has not are
    worth its share of all.
    """
    begins = np.array([re.match(r"[^\d]*", name)[0].casefold() for name in names])  # type: ignore[index]
    half = np.array([hashlib.sha256(name.encode()).digest()[0] % 2 for name in names])
    told = np.empty(len(names))
    for mine in (0, 1):
        here, there = half == mine, half != mine
        usual = abnormal[there].mean() if there.any() else 0.5
        for begin in set(begins[here].tolist()):
            alike = there & (begins == begin)
            told[here & (begins == begin)] = abnormal[alike].mean() if alike.any() else usual
    # A half's own share of the abnormal is chance, not a name.
    for mine in (0, 1):
        if (there := half != mine).any():
            told[half == mine] -= abnormal[there].mean()
    return told


def duplicates(seen: Sequence[tuple[Case, Seen]]) -> tuple[tuple[str, str, float], ...]:
    """Pairs in different splits that show nearly the same picture, the surest first."""
    pairs: list[tuple[str, str, float]] = []
    if not seen:
        return ()
    thumbnails = np.stack([one.thumbnail for _, one in seen])
    hashes = difference_hashes(thumbnails)
    flat = thumbnails.reshape(len(seen), -1).astype(np.float64)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True) + 1e-12
    part = np.array([str(case.split) for case, _ in seen])
    for index in range(len(seen)):
        others = index + 1 + np.flatnonzero(part[index + 1 :] != part[index])
        apart = np.bitwise_count(hashes[others] ^ hashes[index]).sum(1)
        for other in others[apart <= BITS_APART]:
            correlation = float(flat[index] @ flat[other])
            if correlation >= ALIKE:
                pairs.append((seen[index][0].case_id, seen[other][0].case_id, correlation))
    return tuple(sorted(pairs, key=lambda pair: -pair[2]))


def difference_hashes(thumbnails: NDArray[np.float32]) -> NDArray[np.uint64]:
    """(n, 8) 512 bits: whether the next of 16 x 16 blocks is brighter, to the right and below."""
    n, side, _ = thumbnails.shape
    blocks = thumbnails.reshape(n, 16, side // 16, 16, side // 16).mean((2, 4))
    right = blocks > np.roll(blocks, 1, axis=2)
    below = blocks > np.roll(blocks, 1, axis=1)
    bits = np.concatenate([right.reshape(n, -1), below.reshape(n, -1)], axis=1)
    return np.packbits(bits, axis=1).view(np.uint64)
