"""The keeper: a process that starts sandboxes for a trainer, and outlives it for as long as it takes to leave nothing.

Whoever is killed cannot clear up, and what is killed together with its parent may be at a point where it waits for that
parent for ever (bubblewrap's first process does, until its user ids are mapped). So sandboxes are not the trainer's
children but this process's. When the trainer ends, however it does, the keeper kills its own children; what those had
started becomes its child in turn (PR_SET_CHILD_SUBREAPER) and is killed too, until there is nothing left; then it removes
the folders that bear its name, and ends.

It is deaf to the signals by which a whole session is asked to end, because it ends without them. Killed together with
the trainer, it leaves what the kernel's own signal to orphans (bubblewrap's --die-with-parent) leaves.

`children` is the other end of the socket. Orders and answers are JSON behind their length in four bytes:

- `{"spawn": [command, ...], "cwd": folder}` with descriptors: standard input, output and error, and then those that the
  command finds from FIRST_DESCRIPTOR on. The answer is `{"pid": ...}` with a descriptor of the process, or
  `{"error": text}`;
- `{"reap": pid}` waits for the end of a process, and answers `{"status": ...}`, negative for a signal; what it had started
  and has left behind is killed;
- `{"mind": folder}`: in this one, folders are made whose names begin with the keeper's. The answer is `{}`.

Runs by itself, as `python keeper.py PARENT NAME` with the socket as its standard input, and imports nothing of ours.
Linux only.
"""

import contextlib
import ctypes
import errno
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

FIRST_DESCRIPTOR = 20  # above whatever is open here
_MOST_DESCRIPTORS = 16
_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36
_DEAF_TO = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_REMOVAL_SECONDS = 10.0
_PIECE = 2**16


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """One message and its descriptors; EOFError if the other end is closed."""
    data, descriptors, _, _ = socket.recv_fds(connection, _PIECE, _MOST_DESCRIPTORS)
    buffer = bytearray(data)
    while len(buffer) < 4 or len(buffer) < 4 + int.from_bytes(buffer[:4], "big"):
        if not data:
            raise EOFError
        data = connection.recv(_PIECE)
        buffer += data
    message: dict[str, Any] = json.loads(buffer[4:])
    return message, descriptors


def send(connection: socket.socket, message: dict[str, Any], descriptors: list[int]) -> None:
    """Writes one message with descriptors."""
    data = json.dumps(message).encode()
    data = len(data).to_bytes(4, "big") + data
    sent = socket.send_fds(connection, [data], descriptors)
    connection.sendall(data[sent:])


class _Keeper:
    def __init__(self, connection: socket.socket, name: str) -> None:
        self.connection, self.name = connection, name
        self.started: dict[int, subprocess.Popen[bytes]] = {}
        self.folders: set[str] = set()

    def serve(self, parent: int) -> None:
        """Follows orders until the process ends to which the descriptor belongs."""
        poll = select.poll()
        poll.register(parent, select.POLLIN)
        poll.register(self.connection, select.POLLIN)
        while True:
            if parent in [descriptor for descriptor, _ in poll.poll()]:
                return
            try:
                order, descriptors = receive(self.connection)
                self.answer(order, descriptors)
            except (EOFError, ConnectionError):
                return

    def answer(self, order: dict[str, Any], descriptors: list[int]) -> None:
        try:
            if "spawn" in order:
                self.spawn(order["spawn"], order["cwd"], descriptors)
            elif "reap" in order:
                process = self.started.pop(order["reap"])
                status = process.wait()
                self.end_orphans()
                send(self.connection, {"status": status}, [])
            else:
                self.folders.add(order["mind"])
                send(self.connection, {}, [])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def end_orphans(self) -> None:
        """Kills what a process that has ended had started, and nobody else would."""
        for child in _children():
            if child not in self.started:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)

    def spawn(self, command: list[str], cwd: str, descriptors: list[int]) -> None:
        places = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + len(descriptors) - 3)
        stdin, stdout, stderr, *others = descriptors
        for place, descriptor in zip(places, others, strict=True):
            os.dup2(descriptor, place)
        try:
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=list(places),
                start_new_session=True,
                env={"PYTHONHASHSEED": "0"},
                cwd=cwd,
            )
        except (OSError, ValueError) as error:  # no memory, no processes left, no such program
            send(self.connection, {"error": str(error)}, [])
            return
        finally:
            for place in places:
                os.close(place)
        self.started[process.pid] = process
        handle = os.pidfd_open(process.pid)
        try:
            send(self.connection, {"pid": process.pid}, [handle])
        finally:
            os.close(handle)


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as children:
        return [int(child) for child in children.read().split()]


def kill_all() -> None:
    """Kills all children, and what becomes a child by that, until there are none."""
    pause = 0.001
    while True:
        for child in _children():
            os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def remove(folder: str) -> None:
    """Removes a folder, which may be an empty control group; its processes take a moment to be gone."""
    deadline = time.monotonic() + _REMOVAL_SECONDS
    while True:
        try:
            os.rmdir(folder)
        except OSError as error:
            if error.errno == errno.EBUSY and time.monotonic() < deadline:
                time.sleep(0.001)
                continue
            if error.errno == errno.ENOTEMPTY:
                shutil.rmtree(folder, ignore_errors=True)
        return


def main() -> None:
    """What the keeper does, from its start to its end."""
    pid, name = int(sys.argv[1]), sys.argv[2]
    for number in _DEAF_TO:
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which sandboxes would inherit
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with contextlib.suppress(ProcessLookupError):
        parent = os.pidfd_open(pid)
        if os.getppid() != pid:  # it is gone, and its number somebody else's
            return
        keeper = _Keeper(socket.socket(fileno=0), name)
        try:
            keeper.serve(parent)
        finally:
            kill_all()
            for folder in keeper.folders:
                with contextlib.suppress(OSError):
                    for entry in os.listdir(folder):
                        if entry.startswith(name):
                            remove(os.path.join(folder, entry))


if __name__ == "__main__":
    main()
