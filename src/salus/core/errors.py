"""Every error Salus raises on purpose.

    SalusError            one clear message: what was expected, what was found, where, the next move
    ├── ConfigError       a setting or option that does not exist or does not fit
    ├── LayoutError       a folder that is not laid out as the reader expects
    │   └── PatientInTwoSplitsError
    ├── ImageError        a file that cannot be read, or pixels that cannot be judged
    ├── ModelError        a model folder that is incomplete, altered, or made for something else
    ├── WeightsError      pretrained weights that are missing or not the ones they claim to be
    ├── TrainingError     training that cannot go on
    └── StorageError      a result that could not be written; nothing half-written stays behind

The command line prints the message without a traceback and exits with code 2.
"""

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class SalusError(Exception):
    """Base of all errors that are about the user's input rather than about a bug."""


class ConfigError(SalusError):
    """A setting or option that does not exist or does not fit."""


class LayoutError(SalusError):
    """A folder that is not laid out as the reader expects."""


class PatientInTwoSplitsError(LayoutError):
    """A data set that would be learned from and tested on with the same people."""


class ImageError(SalusError):
    """A file that cannot be read, or pixels that cannot be judged."""


class ModelError(SalusError):
    """A model folder that is incomplete, altered, or made for something else."""


class WeightsError(SalusError):
    """Pretrained weights that are missing or not the ones they claim to be."""


class TrainingError(SalusError):
    """Training that cannot go on."""


class StorageError(SalusError):
    """A result that could not be written; nothing half-written stays behind."""


def did_you_mean(name: str, known: Iterable[str], group: str = "") -> str:
    """' Did you mean 'latent'?' when one of `known` is near `name`, else the list of what is known; all in `group`."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean '{group}{near[0]}'?" if near else f" Known: {', '.join(group + one for one in known)}."


def complaint(error: "ValidationError") -> str:
    """The first thing pydantic found wrong, in our words: 'latent: Input should be less than 9, got 9'."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ").removesuffix(".")
    # Names that follow the setting's in `loc` are pydantic's for types; numbers are places in a list.
    place = ".".join(str(part) for at, part in enumerate(first["loc"]) if at == 0 or isinstance(part, int))
    return f"{place}: {message}, got {first['input']!r}" if place else message
