"""What this machine has, and how this process uses it."""

import ctypes
import math
import os
import shutil
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

DAY = 86_400  # seconds
TRIM, MAP = -1, -3  # mallopt's numbers for the two thresholds


def processors() -> int:
    """How many this process may use; fewer than there are where it is pinned to some."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


@cache
def memory() -> float:
    """Bytes of memory that this process may have; infinite where the system does not say."""
    there = math.inf
    with suppress(AttributeError, ValueError, OSError):
        there = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(ValueError, OSError):  # a container's limit; "max" is none
        there = min(there, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return there


def sweep(folder: Path, pattern: str) -> None:
    """Remove the folders in `folder` that processes killed in the middle left; a day is longer than one takes."""
    for left in folder.glob(pattern):
        with suppress(OSError):  # another process may sweep too
            if time.time() - left.stat().st_mtime > DAY:
                shutil.rmtree(left, ignore_errors=True)


def in_words(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


@cache
def keep_freed_memory() -> None:
    """Let blocks of up to 32 MiB that this process frees stay with it, where the C library is glibc.

    glibc hands them back to the system, as every tensor of a batch is freed, and gets them again page by page for the
    next. See mallopt(3), and `docs/benchmarks.md` for what it saves.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MAP, 2**25)  # the most it takes
        mallopt(TRIM, 2**31 - 1)
