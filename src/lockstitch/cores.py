"""How many cores this process may use: all that the machine lets it have, or its part where workers divide them."""

import os
import sys

_share: int | None = None


def available() -> int:
    """The cores, at least 1."""
    if _share is not None:
        return _share
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def keep_to(share: int) -> None:
    """Makes this process use `share` cores, for threads of models and processes of rewards. Before torch is imported.

    Threads that `OMP_NUM_THREADS` says stay as they are.
    """
    global _share
    _share = max(1, share)
    os.environ.setdefault("OMP_NUM_THREADS", str(_share))
