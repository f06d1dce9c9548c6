"""What this machine has."""

import math
import os
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def memory() -> float:
    """Bytes of memory that this process may have; infinite where the system does not say."""
    there = math.inf
    with suppress(AttributeError, ValueError, OSError):
        there = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(ValueError, OSError):  # a container's limit; "max" is none
        there = min(there, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return there
