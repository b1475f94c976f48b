"""One started sandbox: the pipe over which it is asked, its limits, and the watch over what it uses.

Time is counted so that a program cannot sink its neighbours, nor be sunk by them. All its processes together have
`Limits.seconds` of processor time; and it has as many seconds by the clock, not counting those in which one of its
threads was ready to run and got no processor (the kernel's `schedstat`), up to PATIENCE times as many.
"""

import contextlib
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstitch.rewards.sandbox import cgroup
from lockstitch.rewards.sandbox.children import Child
from lockstitch.rewards.sandbox.sandbox_watch import (
    files_of,
    locks_of,
    memory_of,
    own_waiting_seconds,
    processes_of,
    processor_seconds,
    sockets_of,
    waiting_seconds,
)

MIB = 2**20
PATIENCE = 4
_STARTUP_SECONDS = 60.0
_WATCH_SECONDS = 0.05
_MOST_FILES = 4096
_MOST_SOCKETS = 256
_MOST_LOCKS = 4096
_LONGEST_WORD = 4096  # of what is said before the program runs
_HEADER = 8


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
        seconds: processor time of all its processes, for all its tests together or for one case of input and output; and
            time by the clock, in which its start does not count, nor the time for which others kept it from running,
            up to PATIENCE times as long.
        memory_mb: MiB of address space for each process, and of memory for all of them together.
        disk_mb: MiB in /tmp, where it may write, and the largest file.
        processes: how many at once, threads included.
    """

    seconds: float = 10.0
    memory_mb: int = 512
    disk_mb: int = 16
    processes: int = 16

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name}={value}: a program must be allowed some")


class Stopped(Exception):  # noqa: N818 - what a program came to
    """The program is at its end, by itself or by a limit, and cannot be asked any more; the text says how."""


class StartFailed(RuntimeError):  # noqa: N818
    """The sandbox did not start, or was ended by what is outside: nobody's fault that is scored."""


def literal(message: dict[str, Any]) -> bytes:
    """An order as a Python literal; it consists of what JSON knows."""
    return repr(message).encode(errors="surrogatepass")


class Process:
    """A started sandbox: send it frames, receive frames, read its output.

    Args:
        child: the process that was started.
        requests: where to write; this and the others are closed by whoever opened them.
        answers: where to read.
        errors: where to read its standard error.
        printed: where to read its output, if that is kept.
        limits: what it may use.
    """

    def __init__(
        self, child: Child, requests: int, answers: int, errors: int, printed: int | None, limits: Limits
    ) -> None:
        self.child, self.requests, self.answers, self.limits = child, requests, answers, limits
        self.errors, self.printed = errors, printed
        self.first: tuple[int, int] | None = None  # the sandbox's first process: its id, and a descriptor of it
        self.group: Path | None = None  # its control group, if it has one
        self.deadline = time.monotonic() + _STARTUP_SECONDS
        self._next_look = self._own_waiting = 0.0
        os.set_blocking(requests, False)

    def send(self, message: dict[str, Any] | bytes) -> None:
        """Writes a frame: an order, or what `receive` returned elsewhere."""
        data = message if isinstance(message, bytes) else literal(message)
        data = b"%08x" % len(data) + data
        while data:
            self._wait(self.requests, select.POLLOUT)
            try:
                data = data[os.write(self.requests, data) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._ended() from None

    def receive(self, longest: int) -> bytes:
        """Reads one frame of at most `longest` bytes, without its header.

        Raises:
            Stopped: there is none, or a longer one.
        """
        header = self._read(_HEADER)
        try:
            length = int(header, 16)
        except ValueError:
            raise Stopped("what it answers is no answer") from None
        if not 0 <= length <= longest:
            raise Stopped(f"an answer of {length} bytes")
        return self._read(length)

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            self._wait(self.answers, select.POLLIN)
            piece = os.read(self.answers, count - len(data))
            if not piece:
                raise self._ended()
            data += piece
        return bytes(data)

    def _ended(self) -> Stopped | StartFailed:
        return StartFailed("the keeper of sandboxes was killed") if self.child.was_orphaned() else Stopped("it ended")

    def output(self, longest: int) -> tuple[bytes, int]:
        """All that it prints until it ends, and its exit status.

        Raises:
            Stopped: it takes too long, or prints more than `longest` bytes.
        """
        assert self.printed is not None
        data = bytearray()
        while True:
            self._wait(self.printed, select.POLLIN)
            piece = os.read(self.printed, 65536)
            if not piece:
                break
            data += piece
            if len(data) > longest:
                raise Stopped(f"it prints more than {longest} bytes")
        self._wait(self.child.handle, select.POLLIN)
        status = self.child.wait()
        if status < 0 and self.child.was_orphaned():
            raise self._ended()
        return bytes(data), status

    def _wait(self, descriptor: int, event: int) -> None:
        """Until the descriptor is ready; meanwhile the sandbox is watched."""
        poll = select.poll()
        poll.register(descriptor, event)
        while True:
            now = time.monotonic()
            if self.first is not None and now >= self._next_look:
                self._look(self.first[0])
                self._next_look = now + _WATCH_SECONDS
            left = self.deadline - now
            if left <= 0:
                left += self._kept_waiting()
            if poll.poll(1000 * min(_WATCH_SECONDS, max(0.0, left))):  # also too late, if it is we who are
                return
            if left <= 0:
                raise Stopped("out of time")

    def _kept_waiting(self) -> float:
        """The seconds for which others kept it from running, or us from hearing it, as far as they count."""
        if self.first is None:
            return 0.0
        waiting = waiting_seconds(processes_of(self.first[0])) + own_waiting_seconds() - self._own_waiting
        return min(waiting, (PATIENCE - 1) * self.limits.seconds)

    def _look(self, pid: int) -> None:
        processes = processes_of(pid)
        used = processor_seconds(processes) if self.group is None else cgroup.processor_seconds(self.group)
        if used > self.limits.seconds:
            raise Stopped("out of time")
        sockets, queued = sockets_of(pid)
        if memory_of(processes) + queued > self.limits.memory_mb * MIB:
            raise Stopped("out of memory")
        for amount, most, what in (
            (files_of(pid), _MOST_FILES, "files"),
            (sockets, _MOST_SOCKETS, "sockets"),
            (locks_of(processes, _MOST_LOCKS), _MOST_LOCKS, "locks on files"),
        ):
            if amount > most:
                raise Stopped(f"more than {most} {what}")

    def complaint(self) -> str:
        """What was said on the standard error before the program ran, so far."""
        os.set_blocking(self.errors, False)
        try:
            return os.read(self.errors, 2000).decode(errors="replace").strip()
        except BlockingIOError:
            return ""

    def begin(self) -> None:
        """Waits for its first word; from then on its time counts."""
        self.receive(_LONGEST_WORD)
        self.deadline, self._own_waiting = time.monotonic() + self.limits.seconds, own_waiting_seconds()
        self._next_look = time.monotonic() + _WATCH_SECONDS

    def close(self) -> None:
        """Kills whatever is left of it, and returns when it is gone."""
        if self.first is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.first[1], signal.SIGKILL)
            # Its end is the end of its namespace: the kernel has killed and reaped every other process in it by then.
            poll = select.poll()
            poll.register(self.first[1], select.POLLIN)
            poll.poll()
            os.close(self.first[1])
            with contextlib.suppress(TimeoutError):
                self.child.wait(1.0)  # bubblewrap takes leave of it, and ends
        self.child.kill()
        self.child.wait()
