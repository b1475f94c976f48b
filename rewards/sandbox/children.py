"""Processes that end with this one, whatever ends it: they are started by the `keeper`, which outlives us.

One keeper serves a process, from its first sandbox on; a forked process has one of its own. Folders whose names come from
`new_folder` are removed with the processes.
"""

import atexit
import contextlib
import itertools
import os
import secrets
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lockstitch.rewards.sandbox import keeper
from lockstitch.rewards.sandbox.bubblewrap import interpreter

_FAREWELL_SECONDS = 10.0
_LAST_STEPS_SECONDS = 0.01  # between the kernel's signal to the children of one who ends, and its end
_OPTIONS = ("-I", "-S", "-B")


class KeeperGone(RuntimeError):  # noqa: N818
    """The process that starts sandboxes does not start, or was killed."""


class _Connection:
    """Our end of a keeper's socket."""

    def __init__(self) -> None:
        self.name = f"lockstitch-{os.getpid()}-{secrets.token_hex(4)}-"
        self.lock, self.minded = threading.Lock(), set[Path]()
        self.socket, theirs = socket.socketpair()
        with theirs:
            command = [interpreter(), *_OPTIONS, keeper.__file__, str(os.getpid()), self.name]
            self.process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, start_new_session=True, cwd="/"
            )

    def ask(self, order: dict[str, Any], descriptors: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        """Gives an order and waits for the answer.

        Raises:
            KeeperGone: there is none.
        """
        with self.lock:
            try:
                keeper.send(self.socket, order, list(descriptors))
                return keeper.receive(self.socket)
            except (OSError, EOFError) as error:
                raise KeeperGone(f"the keeper of sandboxes is gone: {error}") from None
            except BaseException:  # an interrupt: the next answer would be that to this order
                self.socket.close()
                raise

    def is_gone(self) -> bool:
        """Whether it cannot be asked any more."""
        return self.socket.fileno() < 0 or self.process.poll() is not None

    def close(self) -> None:
        """Lets it end, with all that it has started."""
        self.socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it goes on without us
            self.process.wait(_FAREWELL_SECONDS)


class Child:
    """A started process.

    Attributes:
        pid: its id.
        handle: a descriptor of it, which is readable when it has ended.
    """

    def __init__(self, connection: _Connection, pid: int, handle: int) -> None:
        self.pid, self.handle = pid, handle
        self._connection = connection
        self._status: int | None = None

    def was_orphaned(self) -> bool:
        """Whether its keeper was killed, which ends it through no fault of its own."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._connection.process.wait(_LAST_STEPS_SECONDS)
        return self._connection.process.returncode is not None

    def kill(self) -> None:
        """Kills it, unless it has ended."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.handle, signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> int:
        """Its exit status, negative for a signal.

        Raises:
            TimeoutError: it has not ended by then.
        """
        if self._status is None:
            poll = select.poll()
            poll.register(self.handle, select.POLLIN)
            if not poll.poll(None if seconds is None else 1000 * seconds):
                raise TimeoutError
            try:
                self._status = int(self._connection.ask({"reap": self.pid})[0]["status"])
            except KeeperGone:
                self._status = -int(signal.SIGKILL)  # its parent's end was its own
            os.close(self.handle)
        return self._status


_current: _Connection | None = None
_starting = threading.Lock()
_numbers = itertools.count()


def _forget() -> None:
    """In a forked process: the keeper is the parent's, and so may be whoever holds the locks."""
    global _current, _starting
    if _current is not None:
        _current.socket.close()
        _current.process.returncode = 0  # nothing of ours to wait for
    _current, _starting = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


@atexit.register
def _close() -> None:
    if _current is not None:
        _current.close()


def _connection() -> _Connection:
    global _current
    with _starting:
        if _current is not None and _current.is_gone():
            _current.close()
            _current = None
        if _current is None:
            _current = _Connection()
        return _current


def spawn(command: list[str], streams: Sequence[int], others: Sequence[int], cwd: str) -> Child:
    """Starts a process.

    Args:
        command: the program and its arguments.
        streams: descriptors of its standard input, output and error.
        others: descriptors that it finds from FIRST_DESCRIPTOR on, in this order.
        cwd: where it starts.

    Raises:
        KeeperGone: there is nobody to start it.
        OSError: it does not start.
    """
    assert len(streams) == 3
    connection = _connection()
    answer, handles = connection.ask({"spawn": command, "cwd": cwd}, [*streams, *others])
    if "error" in answer:
        raise OSError(answer["error"])

    return Child(connection, answer["pid"], handles[0])


def new_folder(parent: Path) -> Path:
    """A new, empty folder that is removed when this process has ended, at the latest.

    Raises:
        KeeperGone: there is nobody who would.
        OSError: it cannot be made.
    """
    connection = _connection()
    if parent not in connection.minded:
        connection.ask({"mind": str(parent)})
        connection.minded.add(parent)
    folder = parent / f"{connection.name}{next(_numbers)}"
    folder.mkdir(mode=0o700)
    return folder
