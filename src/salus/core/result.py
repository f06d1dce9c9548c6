"""What is said of one study: `result.json`, format 1."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum

FORMAT = 1


class Verdict(StrEnum):
    """NORMAL and ABNORMAL compare the score with the calibrated threshold; CANNOT_JUDGE always has a reason."""

    NORMAL = "NORMAL"
    ABNORMAL = "ABNORMAL"
    CANNOT_JUDGE = "CANNOT_JUDGE"


@dataclass(frozen=True, kw_only=True)
class Result:
    """The judgement of one study.

    Attributes:
        case_id: as in the data set, or the path relative to what was screened, without suffix.
        sources: file name (relative, never an absolute path) to SHA-256.
        model: SHA-256 identity of the model that judged.
        score: higher is more abnormal; None where it could not be judged.
        p_value: share of healthy calibration cases that score at least this much, conformal, in (0, 1].
        threshold: score above which a case is called abnormal; None when the model is not calibrated.
        remark: what is wrong with a study that was judged all the same; "" where nothing is.
        known: whether the model learned from these files or, by a folder's patient ids, from this patient: the score is
            then too low, and the p-value too high.
        underived: which DICOM objects could not be made of it, and why; "" where all could or none were asked for.
        slice_scores: one score a screened slice, in the order of the volume; empty for a picture.
        slices: how many the volume has, screened or not; 0 for a picture.
        files: what was written beside this file, by role (map, restored, overlay).
        seconds: wall time spent on the case.
        versions: salus, torch, numpy.
    """

    case_id: str
    sources: Mapping[str, str]
    model: str
    verdict: Verdict
    score: float | None = None
    p_value: float | None = None
    threshold: float | None = None
    reasons: tuple[str, ...] = ()
    remark: str = ""
    known: bool = False
    underived: str = ""
    slice_scores: tuple[float, ...] = ()
    slices: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def remarks(self) -> list[str]:
        """What was wrong though it was judged."""
        return [text for text in (self.remark, self.underived) if text]

    def to_json(self) -> str:
        """Indented JSON, stable key order."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """Inverse of `to_json`.

        Raises:
            ValueError: not a result of format 1.
        """
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"not a result.json of format {FORMAT}")
        data["verdict"] = Verdict(data["verdict"])
        data["reasons"], data["slice_scores"] = tuple(data["reasons"]), tuple(data["slice_scores"])
        return cls(**data)
