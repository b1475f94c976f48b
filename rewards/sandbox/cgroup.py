"""A control group for each sandbox, where the kernel's cgroup v2 is ours to divide: limits on the sum of its processes.

A group of its own holds the memory and the number of all processes of a sandbox to a limit that the kernel never lets them
pass, has the same share of the processors as every other group, and is killed as one. What `sandbox_worker` limits and
`sandbox_watch` watches stays as it is, with a group or without.

A group may be made next to the one that this process is in, below a parent that is delegated: one that bears the mark
that systemd (from 251 on) gives units with `Delegate=yes`, the attribute `user.delegate` or `trusted.delegate`. It cannot be
made below our own group, as the kernel lets a group have processes or children with a `memory.max`, not both; only the
root group is exempt, so that a root user whose machine has not put him into any group needs no mark. Nobody's processes
are moved.

A process that is killed leaves the empty group of each sandbox that was running, which the `keeper` removes.
See the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

import contextlib
import errno
import functools
import logging
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lockstitch.rewards.sandbox.children import KeeperGone, new_folder

logger = logging.getLogger(__name__)

_CONTROLLERS = ("pids", "memory", "cpu")
# The shell enters first and is then replaced by the command, so that nothing of it ever runs outside; 0 is who writes.
_ENTER = 'echo 0 >"$0/cgroup.procs" && exec "$@"'
_REMOVAL_SECONDS = 10.0


@dataclass(frozen=True)
class Delegation:
    """Where groups may be made, and which of the controllers `pids`, `memory` and `cpu` hold there."""

    parent: Path
    controllers: tuple[str, ...]


def own_group(membership: str, mounts: str) -> tuple[Path, Path] | None:
    """The folder of a process's group in cgroup v2, and the folder where this hierarchy is mounted.

    Args:
        membership: the text of /proc/PID/cgroup.
        mounts: the text of /proc/PID/mountinfo.

    Returns:
        None where it has no such group, or none that can be seen.
    """
    path = next((line.removeprefix("0::") for line in membership.splitlines() if line.startswith("0::")), None)
    if path is None:
        return None
    for line in mounts.splitlines():
        mount, _, kind = line.partition(" - ")
        if not kind.startswith("cgroup2 "):
            continue
        root, point = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), word) for word in mount.split(" ")[3:5])
        if ".." not in Path(path).parts and Path(path).is_relative_to(root):  # else it is outside of what we can see
            return Path(point) / Path(path).relative_to(root), Path(point)
    return None


def delegated_parent(own: Path, mount: Path) -> Path | None:
    """The group below which others may be made: the parent of our own if it is marked, or the root that we are in."""
    if not (own / "cgroup.events").exists():  # every group has it but the root
        return own
    if own == mount or not any(_attribute(own.parent, f"{space}.delegate") == b"1" for space in ("user", "trusted")):
        return None
    return own.parent


def _attribute(folder: Path, name: str) -> bytes:
    with contextlib.suppress(OSError):
        return os.getxattr(folder, name)
    return b""


def enabled_controllers(parent: Path) -> tuple[str, ...]:
    """The controllers that hold in groups below a parent, after those that its processes do not forbid are switched on."""
    switches = parent / "cgroup.subtree_control"
    is_root = not (parent / "cgroup.events").exists()
    if is_root or not (parent / "cgroup.procs").read_text(encoding="ascii"):
        off = set(_CONTROLLERS).difference(switches.read_text(encoding="ascii").split())
        for name in sorted(off):
            with contextlib.suppress(OSError):  # it is not there, or not for us
                switches.write_text(f"+{name}", encoding="ascii")
    enabled = switches.read_text(encoding="ascii").split()
    return tuple(name for name in _CONTROLLERS if name in enabled)


def write_limits(folder: Path, controllers: tuple[str, ...], processes: int, memory: int) -> None:
    """Sets the limits of a group.

    Args:
        folder: the group's.
        controllers: those that hold in it.
        processes: how many at once, threads included.
        memory: bytes of all of them together, in which files count that are kept in memory; there is no swap besides.

    Raises:
        OSError: a limit is not accepted.
    """
    if "pids" in controllers:
        (folder / "pids.max").write_text(str(processes), encoding="ascii")
    if "memory" in controllers:
        (folder / "memory.max").write_text(str(memory), encoding="ascii")
        for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
            if (folder / name).exists():  # not in every kernel
                (folder / name).write_text(value, encoding="ascii")


@contextlib.contextmanager
def group(where: Delegation, processes: int, memory: int) -> Iterator[Path]:
    """A new group's folder; at the end whatever is in it is killed, and it is removed. See `write_limits`."""
    folder = new_folder(where.parent)
    try:
        write_limits(folder, where.controllers, processes, memory)
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + _REMOVAL_SECONDS
    try:
        with contextlib.suppress(FileNotFoundError, PermissionError):  # before Linux 5.14
            (folder / "cgroup.kill").write_text("1", encoding="ascii")
        while True:
            try:
                folder.rmdir()
                return
            except OSError as error:  # what was killed takes its time
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.001)
    except OSError as error:  # what ran in it is over and has its result
        logger.warning("a sandbox's control group is left behind: %s", error)


def processor_seconds(folder: Path) -> float:
    """What all processes that are or were in a group have used of processors."""
    words = (folder / "cpu.stat").read_text(encoding="ascii").split()
    return int(words[words.index("usage_usec") + 1]) / 1e6


def entering(folder: Path, command: list[str]) -> list[str]:
    """The command line that runs a command in a group; it fails, saying why, where that cannot be entered."""
    return ["/bin/sh", "-c", _ENTER, str(folder), *command]


@functools.cache
def delegation() -> Delegation | None:
    """Where this process may make groups, tried with one; None where it may not. Asked once, and never raises."""
    try:
        texts = [Path(f"/proc/self/{name}").read_text(errors="surrogateescape") for name in ("cgroup", "mountinfo")]
        own = own_group(*texts)
        parent = delegated_parent(*own) if own else None
        found = Delegation(parent, enabled_controllers(parent)) if parent else None
        if found is None or not found.controllers:
            return None
        with group(found, processes=4, memory=2**26) as folder:
            subprocess.run(entering(folder, []), check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError, KeeperGone) as error:
        logger.info("no control groups for sandboxes: %s", error)
        return None
    logger.info("sandboxes get control groups below %s (%s)", found.parent, ", ".join(found.controllers))
    return found
