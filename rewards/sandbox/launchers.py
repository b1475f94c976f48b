"""Programs that nobody trusts, each in a sandbox of its own, and the pipe over which it is asked.

`Bubblewrap` runs a program by bubblewrap (see `bubblewrap` for what it can see), under limits that the program cannot raise,
with the system calls of `seccomp` refused, watched from outside (`sandbox_watch`), in a control group of its own where the
machine lets us make one (`cgroup`), and killed with everything that it started when its time is up, when nobody needs it
any more, or when we are killed (`children`). Nothing that it says is believed to be more than text: answers are frames of
limited length, which the caller reads as JSON.

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
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from lockstitch.rewards.sandbox import bubblewrap, cgroup, seccomp
from lockstitch.rewards.sandbox.bubblewrap import CURES, SandboxUnavailable, interpreter
from lockstitch.rewards.sandbox.children import KeeperGone, new_folder, spawn
from lockstitch.rewards.sandbox.keeper import FIRST_DESCRIPTOR
from lockstitch.rewards.sandbox.process import MIB, Limits, Process, StartFailed, Stopped, literal
from lockstitch.rewards.sandbox.sandbox_watch import processes_of, why_unwatched

__all__ = [
    "Bubblewrap", "Launcher", "Limits", "Process", "SandboxUnavailable", "StartFailed", "Stopped", "Unsafe", "input_file",
    "interpreter", "literal", "worker_source",
]  # fmt: skip

_BUBBLEWRAPS_OWN = 2  # processes: one waits outside, one is the first inside
_SERVER = "a SandboxFusion server: LOCKSTITCH_SANDBOX=http://HOST:PORT or CodeReward(backend='http://HOST:PORT')"


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
    parts = [
        (here / name).read_text(encoding="utf-8").replace(future, "") for name in ("tagged.py", "sandbox_worker.py")
    ]
    return "\n".join((future, *parts))


@functools.cache
def _compiled_worker() -> str:
    """`worker_source` as a line of Python that this interpreter need not compile again for each program."""
    code = marshal.dumps(compile(worker_source(), "sandbox_worker", "exec"))
    return f"import marshal; exec(marshal.loads(bytes.fromhex({code.hex()!r})))"


def _arguments(limits: Limits, processes: int) -> list[str]:
    """The interpreter on the worker: no site packages, no bytecode files, nothing from the working directory."""
    numbers = (
        FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + 1, limits.memory_mb * MIB, limits.disk_mb * MIB, processes,
        int(limits.seconds) + 1,
    )  # fmt: skip
    options = ["-S", "-s", "-P", "-B", "-X", "utf8"]
    return [interpreter(), *options, "-c", _compiled_worker(), *(str(number) for number in numbers)]


def _need_linux() -> None:
    if sys.platform != "linux":
        raise SandboxUnavailable(
            f"no sandbox for code on {sys.platform}: 'bwrap' and 'unsafe' need Linux. What works here is {_SERVER}."
        )


class Bubblewrap:
    """The sandbox."""

    def __init__(self) -> None:
        _need_linux()
        if not seccomp.is_known():
            raise SandboxUnavailable(
                f"no sandbox for code on {os.uname().machine}: its system calls are not known. {CURES}"
            )
        try:
            with self.start(Limits()) as process:
                assert process.first is not None
                unwatched = why_unwatched(process.first[0])
        except StartFailed as error:
            raise SandboxUnavailable(
                f"no sandbox for code: bubblewrap does not start here ({error}). {CURES}"
            ) from None
        if unwatched:
            raise SandboxUnavailable(
                f"no sandbox for code: what a program uses cannot be watched here ({unwatched}), so limits would not hold. "
                "Root needs the capability CAP_SYS_PTRACE for it (docker run --cap-add SYS_PTRACE), another user does not; "
                f"or use {_SERVER}."
            )

    @contextlib.contextmanager
    def start(self, limits: Limits, stdin: int | None = None) -> Iterator[Process]:
        """See `Launcher`."""
        with contextlib.ExitStack() as stack:
            info, their_info = _pipe(stack)
            rules = _kept(stack, sealed_file(seccomp.program()))
            others, places = [their_info, rules], list(range(FIRST_DESCRIPTOR + 2, FIRST_DESCRIPTOR + 5))
            if stdin is not None:  # opened anew: a place in the file of its own, as whoever opens /dev/stdin has
                others.append(_kept(stack, os.open(f"/proc/self/fd/{stdin}", os.O_RDONLY | os.O_CLOEXEC)))
            command = bubblewrap.command(
                _arguments(limits, limits.processes), limits.disk_mb * MIB, places[: len(others)]
            )
            folder = stack.enter_context(_group(limits))
            if folder is not None:
                command = cgroup.entering(folder, command)
            process = stack.enter_context(_process(command, others, limits, stdin))
            process.group = folder
            os.set_blocking(info, False)
            try:
                process.begin()
                pid = json.loads(os.read(info, 4096))["child-pid"]
                process.first = pid, os.pidfd_open(pid)
                prefer_to_kill(processes_of(pid))
            except (Stopped, OSError, ValueError) as error:
                raise StartFailed(process.complaint() or str(error)) from None
            try:
                yield process
            except PermissionError as error:  # what is not seen is under no limit
                raise StartFailed(f"it cannot be watched any more: {error}") from None


def prefer_to_kill(processes: list[int]) -> None:
    """Where the machine's memory is at its end, the kernel ends these, and what they start, before any other."""
    for process in processes:
        with contextlib.suppress(OSError):
            Path(f"/proc/{process}/oom_score_adj").write_text("1000", encoding="ascii")


@contextlib.contextmanager
def _group(limits: Limits) -> Iterator[Path | None]:
    """The control group of one sandbox, where there are any; /tmp is memory too."""
    where = cgroup.delegation()
    if where is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        memory = (limits.memory_mb + limits.disk_mb) * MIB
        try:
            folder = stack.enter_context(cgroup.group(where, limits.processes + _BUBBLEWRAPS_OWN, memory))
        except (OSError, KeeperGone) as error:
            raise StartFailed(f"its control group: {error}") from None
        yield folder


class Unsafe:
    """No sandbox: the program runs as you, in a folder of its own that is removed after it."""

    def __init__(self) -> None:
        _need_linux()

    @contextlib.contextmanager
    def start(self, limits: Limits, stdin: int | None = None) -> Iterator[Process]:
        """See `Launcher`."""
        try:
            folder = new_folder(Path(tempfile.gettempdir()))
        except (OSError, KeeperGone) as error:
            raise StartFailed(str(error)) from None
        try:
            with _process(_arguments(limits, 0), [], limits, stdin, str(folder)) as process:
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


def _kept(stack: contextlib.ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    reading, writing = os.pipe()
    return _kept(stack, reading), _kept(stack, writing)


@contextlib.contextmanager
def _process(
    command: list[str], others: list[int], limits: Limits, stdin: int | None, folder: str = "/"
) -> Iterator[Process]:
    """Starts a command that finds the ends of two pipes first, and then other descriptors."""
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        null = _kept(theirs, os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        ends = [os.pipe() for _ in range(3 if stdin is None else 4)]
        (their_requests, requests), (answers, their_answers), (errors, their_errors), *outputs = ends
        printed, their_output = outputs[0] if outputs else (None, null)
        for descriptor in (their_requests, their_answers, their_errors, *(end for _, end in outputs)):
            _kept(theirs, descriptor)
        for descriptor in (requests, answers, errors, *(end for end, _ in outputs)):
            _kept(ours, descriptor)
        streams = (null if stdin is None else stdin, their_output, their_errors)
        try:
            child = spawn(command, streams, [their_requests, their_answers, *others], folder)
        except (OSError, KeeperGone) as error:
            raise StartFailed(str(error)) from None
        theirs.close()
        process = Process(child, requests, answers, errors, printed, limits)
        try:
            yield process
        finally:
            process.close()


def input_file(text: str) -> int:
    """A file descriptor of a file that holds the text and that nobody can change."""
    return sealed_file(text.encode(errors="surrogatepass"))


def sealed_file(data: bytes) -> int:
    """The same for bytes."""
    descriptor = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor
