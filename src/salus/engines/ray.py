"""Work on the machines of a Ray cluster, which share the folders that work reads and writes."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from salus.core.errors import ConfigError

T = TypeVar("T")
LOOPBACK = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}  # of a cluster started here


def each(work: Callable[[T], None], items: Sequence[T], *, workers: int) -> Iterator[tuple[T, str]]:
    """As `salus.engines.local.each`, on the cluster that RAY_ADDRESS names, else on one started here.

    Args:
        workers: pieces of work that share a machine: each takes that part of its processors.

    Raises:
        ConfigError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError("The engine ray is not installed: pip install '.[ray]'.") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    here: dict[str, Any] = {} if "RAY_ADDRESS" in os.environ else LOOPBACK
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **here)
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    share = max(1, min(int(node["Resources"].get("CPU", 1)) for node in nodes) // workers)
    remote = ray.remote(num_cpus=share, max_calls=1, max_retries=0)(work)
    waiting = {remote.remote(item): item for item in items}
    try:
        while waiting:
            (done, *_), _ = ray.wait(list(waiting))
            reason = ""
            try:
                ray.get(done)
            except ray.exceptions.RayError as error:
                reason = f"its process ended: {type(error).__name__}"
            yield waiting.pop(done), reason
    finally:
        ray.shutdown()
