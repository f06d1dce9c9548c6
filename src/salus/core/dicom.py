"""How pydicom is used here: quietly. What it says of odd values would tell names and dates of patients."""

import logging
import re
import warnings
from typing import Any

QUIET = {re.compile(r"pydicom(\..*)?$"), re.compile(r"highdicom(\..*)?$")}


def pydicom() -> Any:
    """The package, set to read what is there without comment.

    Raises:
        ImportError: it is not installed.
    """
    import pydicom as package

    if QUIET.issubset(entry[3] for entry in warnings.filters):  # set before; to set it again costs every later warning
        return package
    package.config.settings.reading_validation_mode = package.config.IGNORE
    package.config.settings.writing_validation_mode = package.config.IGNORE
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    for modules in QUIET:
        # For the whole process: a filter for a while is shared by all threads, and one would end another's.
        warnings.filterwarnings("ignore", module=modules.pattern)
    return package
