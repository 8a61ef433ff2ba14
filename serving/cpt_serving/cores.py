"""The number of cores that this process may use, from its affinity and the quota of its container."""

import contextlib
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Return how many cores this process may use; a fraction of a core counts as one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = quota_cores(_CGROUPS)
    return cores if quota is None else max(1, min(cores, quota))


def quota_cores(cgroups: Path) -> int | None:
    """Return the cores that a container's limit of CPU time amounts to, or `None` without a limit.

    Affinity does not show this limit: on a machine with 64 cores a container limited to two sees 64, computes on 64
    threads, and is throttled for most of each period.

    Args:
        cgroups: Mount point of the control groups inside of the container.
    """
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroups / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else _rounded_up(int(quota), int(period))
    return None


def _rounded_up(quota: int, period: int) -> int:
    return -(-quota // period) if period > 0 else 1
