"""Work in processes of this machine."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

T = TypeVar("T")


def each(work: Callable[[T], None], items: Sequence[T], *, workers: int, preload: str) -> Iterator[tuple[T, str]]:
    """Run `work` on each item in a process of its own, `workers` of them at a time.

    A process that dies takes its item with it and no other. When this process dies, by SIGKILL too, so do they.

    Args:
        work: a function that a process can import; what it finds it writes to disk. It catches its own errors.
        preload: module that processes share once it is loaded, where the system can.

    Yields:
        Each item when its process has ended, and why it did: empty if `work` came to its end.
    """
    shared = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver") if shared else multiprocessing.get_context("spawn")
    context.set_forkserver_preload([preload])

    left = deque(items)
    # All by one thread: whoever starts a process asks the others how they ended, and only the first to ask is told.
    running: dict[int, tuple[T, BaseProcess]] = {}
    try:
        while left or running:
            while left and len(running) < workers:
                item = left.popleft()
                process: BaseProcess = context.Process(target=alone, args=(work, item, dict(os.environ)))
                process.start()
                running[process.sentinel] = item, process
            ended = wait(list(running))
            for sentinel in [one for one in running if one in ended]:
                item, process = running.pop(sentinel)
                process.join()
                yield item, reason(process.exitcode or 0)
    finally:
        for _, process in running.values():
            process.terminate()


def reason(code: int) -> str:
    """Why a process ended; empty if it came to its end."""
    if code == 0:
        return ""
    return f"its process was killed by signal {-code}" if code < 0 else f"its process ended with code {code}"


def alone(work: Callable[[T], None], item: T, environment: dict[str, str]) -> None:
    """In the new process: `work`, until it ends or the process that asked for it does."""
    os.environ.update(environment)  # a fork server keeps what it was started with
    asked = multiprocessing.parent_process()

    def follow() -> None:
        if asked is not None:
            wait([asked.sentinel])
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    work(item)
