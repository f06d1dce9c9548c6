"""How pydicom is used here: quietly. What it says of odd values would tell names and dates of patients."""

import logging
from typing import Any


def pydicom() -> Any:
    """The package, set to read what is there without comment.

    Raises:
        ImportError: it is not installed.
    """
    import pydicom as package

    package.config.settings.reading_validation_mode = package.config.IGNORE
    package.config.settings.writing_validation_mode = package.config.IGNORE
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return package
