"""How many cores this process may use: all that the machine lets it have, or its part where workers divide them."""

import contextlib
import os
import sys
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")  # in a container, its own group
_share: int | None = None


def available() -> int:
    """The cores, at least 1."""
    if _share is not None:
        return _share
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(cores, _quota() or cores)


def _quota() -> int | None:
    """The cores whose time a container may use, as `docker run --cpus` says it, rounded up; None where it may use all."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # version 2 of cgroups, version 1
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # "max" is no number
            quota, period = (int(word) for name in names for word in (CGROUPS / name).read_text("ascii").split())
            return -(-quota // period) if quota > 0 else None
    return None


def keep_to(share: int) -> None:
    """Makes this process use `share` cores, for threads of models and processes of rewards.

    Threads that `OMP_NUM_THREADS` says stay as they are. Where torch is there already, as in a spawned process whose main
    script imports it, its threads are too, and it is told.
    """
    global _share
    _share = max(1, share)
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(_share)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(_share)
