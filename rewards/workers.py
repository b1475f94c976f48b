"""Worker processes that can be killed: a function over many items, each with a time limit that holds whatever it does.

An item that exceeds its limit loses its worker, which is killed and replaced; the other items go on in the other workers. So
it costs its own limit, and nobody else's. Nothing here rests on signals or alarms of the calling process: a pool may be used
from any thread, from forked processes and beside an accelerator. Workers are fresh interpreters that load the function's
module, not the caller's script; they wait in a blocking read, ignore Ctrl-C, and end with the pool, when the caller exits,
or when it is killed: at once on Linux, whatever they are at, and elsewhere by an alarm.

Answers come back as JSON and nothing that a worker says is unpickled: an item that took over its worker could lie about its
own answer and those of later items, and no more. That is no sandbox. POSIX only.
"""

import fcntl
import json
import logging
import multiprocessing
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from lockstitch import cores

logger = logging.getLogger(__name__)

_LONGEST_ANSWER = 16 * 2**20
_MOST_FAILED_STARTS = 3
_FAREWELL_SECONDS = 2.0


@dataclass(frozen=True)
class TimedOut:
    """What stands in place of a result that took longer than `seconds`."""

    seconds: float


@dataclass(frozen=True)
class Failed:
    """What stands in place of a result where the function raised, or its worker ended."""

    reason: str


@dataclass
class _Worker:
    """A process, our end of its pipe, and what it is at.

    Attributes:
        lifeline: a pipe that nothing is written to; its end is the worker's.
        since: when it was started, was told to load a function, or received its item.
        function: the message that told it what to load.
        is_ready: whether it has loaded that.
        item: the place of the item that it works on, or None. It holds one only: another would wait behind it if it hung.
    """

    process: subprocess.Popen[bytes]
    connection: Connection
    lifeline: int
    since: float
    function: bytes = b""
    is_ready: bool = False
    item: int | None = None

    def let_go(self) -> None:
        """Closes our ends."""
        self.connection.close()
        os.close(self.lifeline)

    def end(self, seconds: float = 0.0) -> str:
        """Kills the process, unless it ends by itself within so many seconds, and says how it ended."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.let_go()
        return f"signal {-status}" if status < 0 else f"exit status {status}"


def _start(memory_bytes: int | None) -> _Worker:
    ours, theirs = multiprocessing.Pipe()
    their_lifeline, lifeline = os.pipe()
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        f"from lockstitch.rewards.workers import _serve\n_serve({theirs.fileno()}, {their_lifeline}, {memory_bytes})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno(), their_lifeline],
        process_group=0,  # out of the terminal's reach: Ctrl-C is the caller's
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    theirs.close()
    os.close(their_lifeline)
    return _Worker(process, ours, lifeline, time.monotonic())


def _stop(workers: list[_Worker], owner: int) -> None:
    while workers and os.getpid() == owner:
        workers.pop().end()


class KillablePool:
    """Up to `size` worker processes, started when there is work and kept until `close`.

    Args:
        size: how many; by default one for each core that this process may use, from 2 to 8. With two or more, an item
            that hangs does not hold up the others.
        memory_bytes: the address space that a worker may use (Linux), or None for no limit. Where an item wants more,
            the function meets a `MemoryError`.
        startup_seconds: how long a worker may take to start and to load the function's module; this counts for no item.
    """

    def __init__(
        self, size: int | None = None, *, memory_bytes: int | None = 2 * 2**30, startup_seconds: float = 120.0
    ) -> None:
        if size is not None and size < 1:
            raise ValueError(f"a pool of {size} workers; at least 1 is needed")
        self.size = size or min(8, max(2, cores.available()))
        self.memory_bytes, self.startup_seconds = memory_bytes, startup_seconds
        self._begin()
        after_fork = weakref.WeakMethod(self._after_fork)
        os.register_at_fork(after_in_child=lambda: (method := after_fork()) and method())

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._stopper = weakref.finalize(self, _stop, self._workers, os.getpid())

    def _after_fork(self) -> None:
        """In a forked process: the workers are the parent's, and so may be whoever holds the lock."""
        self._stopper.detach()
        for worker in self._workers:
            worker.let_go()  # or they would not see the parent's end
        self._begin()

    def close(self) -> None:
        """Ends the workers; a later `map` starts new ones."""
        with self._lock:
            _stop(self._workers, os.getpid())

    def __enter__(self) -> "KillablePool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], timeout: float) -> list[Any]:
        """`function(item)` for every item, in order. Calls from several threads take turns.

        Args:
            function: importable by name, so that it can be pickled; what it returns must be JSON.
            items: what can be pickled.
            timeout: seconds of wall time for each item.

        Returns:
            One result per item; `TimedOut` or `Failed` in place of those that there are not.

        Raises:
            ValueError: the timeout is not positive.
        """
        if not timeout > 0:
            raise ValueError(f"a timeout of {timeout} seconds; it must be positive")
        loading = pickle.dumps(("load", pickle.dumps(function), 0.0))
        messages = [pickle.dumps(("run", pickle.dumps(item), timeout)) for item in items]
        with self._lock:
            try:
                return _Call(self, self._workers, loading, messages, timeout).run()
            except BaseException:
                _stop(self._workers, os.getpid())  # they may hold items of this call
                raise


class _Call:
    """One `map` under way: which items wait, and what came of the others."""

    def __init__(
        self, pool: KillablePool, workers: list[_Worker], loading: bytes, messages: list[bytes], timeout: float
    ) -> None:
        self.pool, self.workers, self.timeout = pool, workers, timeout
        self.loading, self.messages = loading, messages
        self.waiting = deque(range(len(messages)))
        self.results: list[Any] = [None] * len(messages)
        self.open = len(messages)
        self.failed_starts = 0

    def run(self) -> list[Any]:
        """Until every item has a result."""
        while self.open:
            while len(self.workers) < min(self.pool.size, self.open):
                self.workers.append(_start(self.pool.memory_bytes))
            for worker in self.workers:
                self.feed(worker)
            patience = min(self.deadline(worker) for worker in self.workers) - time.monotonic()
            ready = wait([worker.connection for worker in self.workers], min(60.0, max(0.0, patience)))
            for worker in list(self.workers):
                if worker.connection in ready:
                    self.listen(worker)
                elif time.monotonic() >= self.deadline(worker):
                    self.replace(worker, TimedOut(self.timeout))
        return self.results

    def deadline(self, worker: _Worker) -> float:
        """When patience with a worker's item ends, or with its start."""
        if not worker.is_ready:
            return worker.since + self.pool.startup_seconds
        return float("inf") if worker.item is None else worker.since + self.timeout

    def feed(self, worker: _Worker) -> None:
        """Gives an idle worker the next item; the function goes first if it has another one, or none."""
        try:
            if worker.function != self.loading:
                worker.function, worker.is_ready, worker.since = self.loading, False, time.monotonic()
                worker.connection.send_bytes(self.loading)
            elif worker.is_ready and worker.item is None and self.waiting:
                worker.connection.send_bytes(self.messages[self.waiting[0]])
                worker.item, worker.since = self.waiting.popleft(), time.monotonic()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died idle, which `listen` will notice

    def listen(self, worker: _Worker) -> None:
        """Takes one answer of a worker."""
        try:
            kind, value = json.loads(worker.connection.recv_bytes(_LONGEST_ANSWER))
        except (EOFError, OSError, ValueError, TypeError):  # it ended, or said what is no answer
            self.replace(worker, None)
            return
        if kind == "ready":
            worker.is_ready, self.failed_starts = True, 0
        elif worker.item is not None:
            self.settle(worker.item, value if kind == "done" else Failed(str(value)))
            worker.item = None

    def settle(self, index: int, result: Any) -> None:
        self.results[index] = result
        self.open -= 1

    def replace(self, worker: _Worker, result: TimedOut | None) -> None:
        """Ends a worker; its item gets the result, or `Failed` if there is none."""
        self.workers.remove(worker)
        how = worker.end(0.0 if result else _FAREWELL_SECONDS)
        if worker.item is not None:
            self.settle(worker.item, result or Failed(f"its worker ended: {how}"))
        elif not worker.is_ready:
            self.failed_starts += 1
        if self.failed_starts >= _MOST_FAILED_STARTS:
            while self.waiting:
                self.settle(self.waiting.popleft(), Failed(f"the workers do not start: {how}"))


def _end_with(lifeline: int) -> None:
    """Lets the kernel kill this process when nobody holds the other end of a pipe any more.

    Whatever this process is at: no thread or handler of it needs to run. The pipe says so as if it had something to read
    (O_ASYNC), by the signal of our choice.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline, 0)
    if poll.poll(0):  # it was closed before we asked
        os._exit(0)


def _serve(handle: int, lifeline: int, memory_bytes: int | None) -> None:
    """What a worker does: loads the function it is told, runs it on item after item, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        _end_with(lifeline)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes is not None and sys.platform == "linux":
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection = Connection(handle)
    function: Callable[[Any], Any] | None = None
    while True:
        try:
            kind, blob, timeout = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        if kind == "load":
            function = pickle.loads(blob)
            connection.send_bytes(b'["ready", null]')
            continue
        assert function is not None
        # Should nobody be left to kill us, and no lifeline do it, the alarm's default action does.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 2 * timeout + 10)
        try:
            answer = json.dumps(["done", function(pickle.loads(blob))])
        except Exception as error:
            logger.debug("an item failed", exc_info=True)
            answer = json.dumps(["failed", f"{type(error).__name__}: {error}"[:1000]])
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send_bytes(answer.encode())
