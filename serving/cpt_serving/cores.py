"""How many cores this process has, by its affinity and by the quota of the container that it runs in."""

import contextlib
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Return how many cores this process may use; a part of one counts as one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = quota_cores(_CGROUPS)
    return cores if quota is None else max(1, min(cores, quota))


def quota_cores(cgroups: Path) -> int | None:
    """Return the cores that a container's limit of processor time amounts to, or `None` without one.

    Affinity says nothing of it: on a machine with 64 cores a container limited to two sees 64, computes on 64 threads,
    and is held still for most of each period.

    Args:
        cgroups: Where the control groups are mounted, as the container sees them.
    """
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroups / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else _rounded_up(int(quota), int(period))
    return None


def _rounded_up(quota: int, period: int) -> int:
    return -(-quota // period) if period > 0 else 1
