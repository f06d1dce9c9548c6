import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from salus.core.machine import keep_freed_memory
{}
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for mebibytes in range(1, 31):
    torch.ones(mebibytes * 2**18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(before: str) -> int:
    run = subprocess.run([sys.executable, "-c", FAULTS.format(before)], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc needs to be told")
def test_freed_memory_is_used_again() -> None:
    # Each tensor is larger than any before: glibc left alone gets each from the system, 465 MiB in pages of 4 KiB.
    assert faults("") > 100_000
    assert faults("keep_freed_memory()") < 20_000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux pins processes to processors")
def test_a_pinned_process_counts_its_own_processors() -> None:
    code = "import os, salus.core.machine as m; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    run = subprocess.run([sys.executable, "-c", code + "print(m.processors())"], capture_output=True, check=True)
    assert int(run.stdout) == 1
