"""What all processes of a sandbox use together, read from outside.

Limits of the kernel count one process each: sixteen of them may use sixteen times the memory. A tmpfs of limited size
still takes any number of empty files, and sockets and file locks hold memory that no process is charged for. So whoever
waits for a sandbox looks at all of it, a few times a second.

A process whose first thread has ended has no memory in its own `status`, so that of any other thread is read.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator

_KIB = 1024
_GONE = (FileNotFoundError, ProcessLookupError)
_TICKS = os.sysconf("SC_CLK_TCK")
_MEMORY = ("RssAnon:", "RssShmem:", "VmSwap:")
_TIME_WAIT = "06"


def why_unwatched(pid: int) -> str:
    """Why a sandbox that waits for its job cannot be watched, so that limits would not hold; empty if it can be."""
    try:
        os.statvfs(f"/proc/{pid}/root/tmp")
        with open(f"/proc/{pid}/net/unix", "rb"):
            processes = processes_of(pid)
        locks_of(processes, 0)
        processor_seconds(processes)
        # There are two processes already, and one file: /tmp itself.
        is_counted = len(processes) > 1 and memory_of(processes) > 0 and files_of(pid) > 0
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    return "" if is_counted else "/proc does not count its processes, memory or files"


def processes_of(pid: int) -> list[int]:
    """The process and all its descendants, as far as they are still there."""
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        found.append(current)
        for task in _tasks(current):
            with (
                contextlib.suppress(*_GONE),
                open(f"/proc/{current}/task/{task}/children", encoding="ascii") as children,
            ):
                waiting += [int(child) for child in children.read().split()]
    return found


def _tasks(pid: int) -> list[str]:
    with contextlib.suppress(*_GONE):
        return os.listdir(f"/proc/{pid}/task")
    return []


def memory_of(processes: Iterable[int]) -> int:
    """Bytes of memory, other than that of files, which the processes hold.

    What they share after a fork counts for each of them.
    """
    return sum(_memory_of_one(process) for process in processes) * _KIB


def _memory_of_one(pid: int) -> int:
    for status in (f"/proc/{pid}/status", *(f"/proc/{pid}/task/{task}/status" for task in _tasks(pid))):
        with contextlib.suppress(*_GONE), open(status, encoding="utf-8", errors="replace") as lines:
            found = [int(line.split()[1]) for line in lines if line.startswith(_MEMORY)]
            if found:
                return sum(found)
    return 0


def files_of(pid: int) -> int:
    """How many files there are in the /tmp of the process, extended attributes included, a KiB each."""
    with contextlib.suppress(*_GONE):
        disk = os.statvfs(f"/proc/{pid}/root/tmp")
        return disk.f_files - disk.f_ffree
    return 0


def sockets_of(pid: int) -> tuple[int, int]:
    """How many sockets there are in the network namespace of the process, and the bytes that wait in those of TCP and UDP.

    Also those that nobody has accepted yet, which belong to no process. The kernel walks its whole table for each of these
    lists, so that one is read only where it counts sockets of the namespace at all.
    """
    count = waiting = 0
    used = {**_sockets_in_use(f"/proc/{pid}/net/sockstat"), **_sockets_in_use(f"/proc/{pid}/net/sockstat6")}
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        if used.get(kind) == 0:
            continue
        for line in _rows(f"/proc/{pid}/net/{kind}"):
            state, queues = line.split()[3:5]
            count += state != _TIME_WAIT
            waiting += sum(int(queue, 16) for queue in queues.split(":"))
    return count + sum(1 for _ in _rows(f"/proc/{pid}/net/unix")), waiting


def _sockets_in_use(path: str) -> dict[str, int]:
    """What `sockstat` says of each protocol, as `TCP: inuse 3 orphan 0 ...`; those that wait for their end are not in it."""
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as lines:
        words = [line.split() for line in lines]
        return {row[0].rstrip(":").lower(): int(row[2]) for row in words if row[1:2] == ["inuse"] and row[2:3]}
    return {}


def _rows(path: str) -> Iterator[str]:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as lines:
        next(lines, None)
        yield from lines


def locks_of(processes: Iterable[int], most: int) -> int:
    """How many locks on files the processes hold; no more are counted than one above `most`."""
    known, count = {str(process) for process in processes}, 0
    with open("/proc/locks", encoding="ascii", errors="replace") as lines:
        for line in lines:
            count += not known.isdisjoint(line.split()[4:6])
            if count > most:
                break
    return count


def processor_seconds(processes: Iterable[int]) -> float:
    """What the processes have used of processors, they and those of their children that they have waited for."""
    total = 0
    for process in processes:
        with contextlib.suppress(*_GONE), open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as stat:
            total += sum(int(word) for word in stat.read().rpartition(")")[2].split()[11:15])
    return total / _TICKS


def waiting_seconds(processes: Iterable[int]) -> float:
    """How long the one thread of them that had to wait longest for a processor has waited for it, ready to run."""
    paths = [f"/proc/{process}/task/{task}" for process in processes for task in _tasks(process)]
    return max(map(_waiting_of, paths), default=0.0)


def own_waiting_seconds() -> float:
    """The same for the thread that asks."""
    return _waiting_of("/proc/thread-self")


def _waiting_of(path: str) -> float:
    with contextlib.suppress(OSError), open(f"{path}/schedstat", encoding="ascii") as stat:
        return int(stat.read().split()[1]) / 1e9
    return 0.0
