"""Programs that nobody trusts, each in a sandbox of its own, and the pipe over which it is asked.

`Bubblewrap` runs a program by bubblewrap (see `bubblewrap` for what it can see), under limits that the program cannot raise,
with the system calls of `seccomp` refused, watched from outside (`sandbox_watch`), in a control group of its own where the
machine lets us make one (`cgroup`), and killed with everything that it started when its time is up or nobody needs it any
more. Nothing that it says is believed to be more than text: answers are frames of limited length, which the caller reads
as JSON.

`Unsafe` is the same without bubblewrap: limits and a kill, but the program sees and does whatever you may. It is never
chosen for you.

How the frames look is said in `sandbox_worker`, the other end of the pipe. Linux only.
"""

import contextlib
import fcntl
import functools
import json
import marshal
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lockstitch.rewards.sandbox import bubblewrap, cgroup, seccomp
from lockstitch.rewards.sandbox.bubblewrap import CURES, SandboxUnavailable, interpreter
from lockstitch.rewards.sandbox.sandbox_watch import files_of, memory_of

_MIB = 2**20
_STARTUP_SECONDS = 60.0
_WATCH_SECONDS = 0.05
_MOST_FILES = 4096
_LONGEST_WORD = 4096  # of what is said before the program runs
_HEADER = 8
_BUBBLEWRAPS_OWN = 2  # processes: one waits outside, one is the first inside


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
        seconds: wall time of all its tests together, or of one case of input and output; its start does not count.
            No process of it may use more processor time than that, either.
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
    """The sandbox did not start, before it was told anything about the program: nobody's fault that is scored."""


class Launcher(Protocol):
    """Starts processes that run `sandbox_worker`."""

    def start(self, limits: Limits, stdin: int | None = None) -> contextlib.AbstractContextManager["Process"]:
        """A process that is ready for its job.

        Args:
            limits: what it may use.
            stdin: a file descriptor of its input; with one, its output is kept for `Process.output`.

        Raises:
            StartFailed: it does not start.
            SandboxUnavailable: none can be started on this machine.
        """


@functools.cache
def worker_source() -> str:
    """The program that runs inside, in one text."""
    here, future = Path(__file__).parent, "from __future__ import annotations\n"
    parts = [(here / name).read_text(encoding="utf-8").replace(future, "") for name in ("tagged.py", "sandbox_worker.py")]
    return "\n".join((future, *parts))


@functools.cache
def _compiled_worker() -> str:
    """`worker_source` as a line of Python that this interpreter need not compile again for each program."""
    code = marshal.dumps(compile(worker_source(), "sandbox_worker", "exec"))
    return f"import marshal; exec(marshal.loads(bytes.fromhex({code.hex()!r})))"


def literal(message: dict[str, Any]) -> bytes:
    """An order as a Python literal; it consists of what JSON knows."""
    return repr(message).encode(errors="surrogatepass")


class Process:
    """A started sandbox: send it frames, receive frames, read its output.

    Args:
        child: the process that was started.
        requests: where to write, closed by `close` as all the others.
        answers: where to read.
        limits: what it may use.
    """

    def __init__(self, child: "subprocess.Popen[bytes]", requests: int, answers: int, limits: Limits) -> None:
        self.child, self.requests, self.answers, self.limits = child, requests, answers, limits
        self.first: tuple[int, int] | None = None  # the sandbox's first process: its id, and a descriptor of it
        self.deadline = time.monotonic() + _STARTUP_SECONDS
        self._next_look = 0.0
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
                raise Stopped("it ended") from None

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
                raise Stopped("it ended")
            data += piece
        return bytes(data)

    def output(self, longest: int) -> tuple[bytes, int]:
        """All that it prints until it ends, and its exit status.

        Raises:
            Stopped: it takes too long, or prints more than `longest` bytes.
        """
        assert self.child.stdout is not None
        data = bytearray()
        while True:
            self._wait(self.child.stdout.fileno(), select.POLLIN)
            piece = os.read(self.child.stdout.fileno(), 65536)
            if not piece:
                break
            data += piece
            if len(data) > longest:
                raise Stopped(f"it prints more than {longest} bytes")
        try:
            return bytes(data), self.child.wait(max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise Stopped("out of time") from None

    def _wait(self, descriptor: int, event: int) -> None:
        """Until the descriptor is ready; meanwhile the sandbox is watched."""
        poll = select.poll()
        poll.register(descriptor, event)
        while True:
            now = time.monotonic()
            if now >= self.deadline:
                raise Stopped("out of time")
            if self.first is not None and now >= self._next_look:
                self._look(self.first[0])
                self._next_look = now + _WATCH_SECONDS
            if poll.poll(1000 * min(_WATCH_SECONDS, self.deadline - now)):
                return

    def _look(self, pid: int) -> None:
        if memory_of(pid) > self.limits.memory_mb * _MIB:
            raise Stopped("out of memory")
        if files_of(pid) > _MOST_FILES:
            raise Stopped(f"more than {_MOST_FILES} files")

    def complaint(self) -> str:
        """What was said on the standard error before the program ran, so far."""
        assert self.child.stderr is not None
        os.set_blocking(self.child.stderr.fileno(), False)
        return (self.child.stderr.read(2000) or b"").decode(errors="replace").strip()

    def begin(self) -> None:
        """Waits for its first word; from then on its time counts."""
        self.receive(_LONGEST_WORD)
        self.deadline = time.monotonic() + self.limits.seconds
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
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(1.0)  # bubblewrap takes leave of it, and ends
        self.child.kill()
        self.child.wait()
        for stream in (self.child.stdout, self.child.stderr):
            if stream is not None:
                stream.close()
        os.close(self.requests)
        os.close(self.answers)


def _arguments(requests: int, answers: int, limits: Limits, processes: int) -> list[str]:
    """The interpreter on the worker: no site packages, no bytecode files, nothing from the working directory."""
    numbers = (
        requests, answers, limits.memory_mb * _MIB, limits.disk_mb * _MIB, processes, int(limits.seconds) + 1,
    )  # fmt: skip
    options = ["-S", "-s", "-P", "-B", "-X", "utf8"]
    return [interpreter(), *options, "-c", _compiled_worker(), *(str(number) for number in numbers)]


class Bubblewrap:
    """The sandbox."""

    def __init__(self) -> None:
        if not seccomp.is_known():
            raise SandboxUnavailable(f"no sandbox for code on {os.uname().machine}: its system calls are not known. {CURES}")
        try:
            with self.start(Limits()):
                pass
        except StartFailed as error:
            raise SandboxUnavailable(f"no sandbox for code: bubblewrap does not start here ({error}). {CURES}") from None

    @contextlib.contextmanager
    def start(self, limits: Limits, stdin: int | None = None) -> Iterator[Process]:
        """See `Launcher`."""
        info_read, info_write = os.pipe()
        filter_read, filter_write = os.pipe()
        try:
            os.write(filter_write, seccomp.program())  # a pipe holds 64 KiB, the filter takes one
            os.close(filter_write)

            def command(requests: int, answers: int) -> list[str]:
                inside = _arguments(requests, answers, limits, limits.processes)
                outside = bubblewrap.command(inside, limits.disk_mb * _MIB, info_write, filter_read)
                return outside if folder is None else cgroup.entering(folder, outside)

            with _group(limits) as folder, _process(command, [info_write, filter_read], limits, stdin) as process:
                os.set_blocking(info_read, False)
                try:
                    process.begin()
                    pid = json.loads(os.read(info_read, 4096))["child-pid"]
                    process.first = pid, os.pidfd_open(pid)
                except (Stopped, OSError, ValueError) as error:
                    raise StartFailed(process.complaint() or str(error)) from None
                yield process
        finally:
            for descriptor in (info_read, info_write, filter_read):
                os.close(descriptor)


@contextlib.contextmanager
def _group(limits: Limits) -> Iterator[Path | None]:
    """The control group of one sandbox, where there are any; /tmp is memory too."""
    where = cgroup.delegation()
    if where is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        memory = (limits.memory_mb + limits.disk_mb) * _MIB
        try:
            folder = stack.enter_context(cgroup.group(where, limits.processes + _BUBBLEWRAPS_OWN, memory))
        except OSError as error:
            raise StartFailed(f"its control group: {error}") from None
        yield folder


class Unsafe:
    """No sandbox: the program runs as you, in a folder of its own that is removed after it."""

    @contextlib.contextmanager
    def start(self, limits: Limits, stdin: int | None = None) -> Iterator[Process]:
        """See `Launcher`."""
        folder = tempfile.mkdtemp(prefix="lockstitch-unsafe-")
        try:

            def command(requests: int, answers: int) -> list[str]:
                return _arguments(requests, answers, limits, 0)

            with _process(command, [], limits, stdin, folder) as process:
                try:
                    process.begin()
                except Stopped as error:
                    raise StartFailed(str(error)) from None
                try:
                    yield process
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.child.pid, signal.SIGKILL)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _process(command: Any, inherited: list[int], limits: Limits, stdin: int | None, folder: str = "/") -> Iterator[Process]:
    """Starts a command that is made of the two ends of the pipes that go to it."""
    their_requests, requests = os.pipe()
    answers, their_answers = os.pipe()
    try:
        child = subprocess.Popen(
            command(their_requests, their_answers),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[their_requests, their_answers, *inherited],
            start_new_session=True,
            env={"PYTHONHASHSEED": "0"},
            cwd=folder,
        )
    except BaseException as error:
        os.close(requests)
        os.close(answers)
        if isinstance(error, OSError):  # no memory, no processes left
            raise StartFailed(str(error)) from None
        raise
    finally:
        os.close(their_requests)
        os.close(their_answers)
    process = Process(child, requests, answers, limits)
    try:
        yield process
    finally:
        process.close()


def input_file(text: str) -> int:
    """A file descriptor of a file that holds the text and that nobody can change."""
    descriptor = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    data = text.encode(errors="surrogatepass")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor
