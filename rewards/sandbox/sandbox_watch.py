"""What all processes of a sandbox use together, read from outside.

Limits of the kernel count one process each: sixteen of them may use sixteen times the memory. And a tmpfs of
limited size still takes any number of empty files. So whoever waits for a sandbox looks at both, a few times a second.
"""

import contextlib
import os

_KIB = 1024
_GONE = (FileNotFoundError, ProcessLookupError)


def processes_of(pid: int) -> list[int]:
    """The process and all its descendants, as far as they are still there."""
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        found.append(current)
        with contextlib.suppress(*_GONE):
            for task in os.listdir(f"/proc/{current}/task"):
                with open(f"/proc/{current}/task/{task}/children", encoding="ascii") as children:
                    waiting += [int(child) for child in children.read().split()]
    return found


def memory_of(pid: int) -> int:
    """Bytes of memory, other than that of files, which the process and all its descendants hold.

    What processes share after a fork counts for each of them.
    """
    total = 0
    for process in processes_of(pid):
        with contextlib.suppress(*_GONE), open(f"/proc/{process}/status", encoding="utf-8", errors="replace") as lines:
            total += sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
    return total * _KIB


def files_of(pid: int) -> int:
    """How many files there are in the /tmp of the process."""
    with contextlib.suppress(*_GONE):
        disk = os.statvfs(f"/proc/{pid}/root/tmp")
        return disk.f_files - disk.f_ffree
    return 0
