"""What a data set reader yields: cases, without a pixel opened."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from salus.core.errors import LayoutError, PatientInTwoSplitsError

ONE_ID = "All files share one patient id (in DICOM the PatientID): metadata.csv can name the patients (patient_id)."


class Label(StrEnum):
    """What is known of a case as a whole. UNKNOWN is never read as NORMAL."""

    NORMAL = "normal"
    ABNORMAL = "abnormal"
    UNKNOWN = "unknown"


class Split(StrEnum):
    """What a case may be used for. NONE is not yet assigned; `datasets.protocol.split` does that."""

    NONE = ""
    TRAIN = "train"
    VALIDATION = "validation"
    CALIBRATION = "calibration"
    TEST = "test"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where one picture or volume is stored: a file, or a part of one, and how it is to be read.

    Attributes:
        path: the file, not opened.
        array: which of a file's arrays (HDF5, npz); "" for the only one.
        index: which slice, from 0: along the first axis of an array, along the last of a NIfTI volume; None for all.
        flipped: the file stores the lowest row first (fastMRI).
        inverted: what is bright is stored dark, and the file does not say so (a PNG made from MONOCHROME1).
    """

    path: Path
    array: str = ""
    index: int | None = None
    flipped: bool = False
    inverted: bool = False

    @property
    def name(self) -> str:
        """The file's name, and after it in brackets which part: no folder, so it may travel."""
        part = ", ".join([self.array] * bool(self.array) + [str(self.index)] * (self.index is not None))
        return f"{self.path.name}[{part}]" if part else self.path.name


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One annotated abnormality.

    Attributes:
        name: the finding's name, as the data set spells it.
        box: (x, y, width, height) in source pixels, x to the right, or None.
        mask: of the source's size, above `above` inside the finding, or None.
        above: 0 but for masks that were resampled or compressed.
    """

    name: str
    box: tuple[float, float, float, float] | None = None
    mask: Source | None = None
    above: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One study to be learned from or judged.

    Attributes:
        case_id: unique in its data set; also the name of its folder among results, "/" allowed.
        patient_id: all cases of one patient share it; splits and intervals go by it.
        images: one picture or volume; several where a volume is stored slice by slice.
        label, findings, split: see their types.
        uncounted: what is marked but neither a finding nor healthy, such as an artefact.
        groups: anything to stratify by (site, scanner, view, age band), and what the data set says of the lesion.
        remark: what is wrong with it, though it can be judged; "" where nothing is.
    """

    case_id: str
    patient_id: str
    images: tuple[Source, ...]
    label: Label = Label.UNKNOWN
    findings: tuple[Finding, ...] = ()
    uncounted: tuple[Finding, ...] = ()
    split: Split = Split.NONE
    groups: dict[str, str] = field(default_factory=dict)
    remark: str = ""

    def without_folders(self, text: str) -> str:
        """`text` with only the names of its files: where they lay on this machine is nobody's business."""
        for image in self.images:
            text = text.replace(str(image.path), image.path.name)
        return text


class Dataset(Sequence[Case]):
    """Cases under a name, in a fixed order. Refuses a patient in two splits and a case id used twice.

    Args:
        left_out: (what, reason) of files and rows that are no cases.
        notes: what a user must know of this copy, such as counts that are not the published ones.
    """

    def __init__(
        self, name: str, cases: Sequence[Case], left_out: Sequence[tuple[str, str]] = (), notes: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.cases = tuple(cases)
        self.left_out = tuple(left_out)
        self.notes = tuple(notes)
        split_of: dict[str, Split] = {}
        torn: dict[str, str] = {}
        ids: set[str] = set()
        for case in self.cases:
            if case.case_id in ids:
                raise LayoutError(f"{name}: two cases are called '{case.case_id}'.")
            ids.add(case.case_id)
            if (other := split_of.setdefault(case.patient_id, case.split)) != case.split:
                torn.setdefault(
                    case.patient_id, f"{other or 'none'} and {case.split or 'none'} (case '{case.case_id}')"
                )
        if torn:
            first, where = next(iter(torn.items()))
            more = f", and so are {len(torn) - 1} more: {', '.join(list(torn)[1:9])}" * (len(torn) > 1)
            raise PatientInTwoSplitsError(
                f"{name}: patient '{first}' is in two splits, {where}{more}. Keep all images of a patient in one."
                + f" {ONE_ID}" * (len(split_of) == 1)
            )

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.cases[index]

    def only(self, *, split: Split | tuple[Split, ...] | None = None, label: Label | None = None) -> "Dataset":
        """The cases of one split (or of any of several) and/or label, in the same order."""
        splits = split if isinstance(split, tuple) else (split,)
        return Dataset(
            self.name,
            [c for c in self.cases if (split is None or c.split in splits) and (label is None or c.label == label)],
            self.left_out,
            self.notes,
        )
