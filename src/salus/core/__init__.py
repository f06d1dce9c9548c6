"""The central types. numpy only."""

from salus.core.case import Case, Dataset, Finding, Label, Source, Split
from salus.core.image import Image, Origin
from salus.core.result import Result, Verdict

__all__ = ["Case", "Dataset", "Finding", "Image", "Label", "Origin", "Result", "Source", "Split", "Verdict"]
