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
