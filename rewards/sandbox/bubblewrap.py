"""The command that runs this interpreter where there is nothing else: bubblewrap, and who it runs as.

Inside there are the interpreter's executable, its standard library, the system's shared libraries and its time zones, all
read-only, `/dev/null`, the input as `/dev/stdin`, and a `/tmp` of limited size, to which `/dev/shm` leads; no `/proc`, no
shell, no other package, no network, no other process, no environment. A root user's programs are run by an unused user id,
a new one each, because the kernel does not count root's processes; bubblewrap itself then has no more rights than that id.
Where the interpreter lies in a folder that the id may not enter (`/root`), it is mounted on `/tmp` first, in a mount
namespace that ends with the program.

Linux only. Bubblewrap before 0.8 has no `--disable-userns`, which the system call filter makes up for.
"""

import functools
import itertools
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_ZONES = "/usr/share/zoneinfo"
_UNDER_TMP = "/tmp"
_IDS_EACH = 64  # user ids that one process goes through before it takes the first again
_runs = itertools.count()


class SandboxUnavailable(RuntimeError):  # noqa: N818 - it is the state of a machine
    """No program can be run safely here, and why."""


CURES = (
    "Install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap) where user namespaces are allowed; or name a "
    "SandboxFusion server by LOCKSTITCH_SANDBOX=http://HOST:PORT or CodeReward(backend='http://HOST:PORT'); or accept that "
    "model-written code may do whatever you may, by LOCKSTITCH_SANDBOX=unsafe or backend='unsafe'."
)


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise SandboxUnavailable(f"no sandbox for code: {name} is not on the PATH. {CURES}")
    return os.path.realpath(found)


def _is_open_to_all(path: Path) -> bool:
    """Whether a user without rights can reach the path."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def _unused_uid() -> int:
    """A user id that no account has, this process's own, and another one at every call.

    They are taken from the upper end of what this user namespace maps, the last quarter of it at most.
    """
    with open("/proc/self/uid_map", encoding="ascii") as lines:
        ranges = [tuple(int(word) for word in line.split()) for line in lines]
    first, _, count = max(ranges, key=lambda entry: entry[2])
    end = min(first + count, 2**31) - 2
    number = os.getpid() * _IDS_EACH + next(_runs) % _IDS_EACH
    return end - number % max(1, min(count // 4, 2**28))


@functools.cache
def _has_option(bwrap: str, option: str) -> bool:
    return option in subprocess.run([bwrap, "--help"], capture_output=True, text=True, check=False).stdout


def interpreter() -> str:
    """The real executable, not that of a virtual environment."""
    return os.path.realpath(str(sys._base_executable))  # type: ignore[attr-defined]


@functools.cache
def _view(prefix: str) -> tuple[str, ...]:
    """The mounts; `prefix` is where the interpreter's own folder is to be found outside."""
    home, executable = Path(os.path.realpath(sys.base_prefix)), Path(interpreter())
    arguments: list[str] = []
    for folder in _LIBRARIES:
        if os.path.islink(folder):
            arguments += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            arguments += ["--ro-bind", folder, folder]
    for own in (home / "lib", home / "lib64"):
        if own.is_dir() and str(own) not in _LIBRARIES:
            arguments += ["--ro-bind", str(Path(prefix) / own.relative_to(home)), str(own)]
    arguments += ["--ro-bind", str(Path(prefix) / executable.relative_to(home)), str(executable)]
    stdlib = Path(os.path.realpath(sysconfig.get_path("stdlib", vars={"installed_base": str(home)})))
    for packages in (stdlib / "site-packages", stdlib / "dist-packages", Path("/usr/lib/python3/dist-packages")):
        if packages.is_dir():
            arguments += ["--size", "4096", "--tmpfs", str(packages), "--remount-ro", str(packages)]
    if os.path.isdir(_ZONES):
        arguments += ["--ro-bind", _ZONES, _ZONES]
    return tuple(arguments)


def _as_nobody(home: Path) -> tuple[list[str], str]:
    """What to put before the command when it is root who runs it, and where the interpreter's folder is then."""
    uid = str(_unused_uid())
    drop = [_tool("setpriv"), "--reuid", uid, "--regid", uid, "--clear-groups", "--"]
    if _is_open_to_all(home):
        return drop, str(home)
    script = f'"{_tool("mount")}" --bind "$0" {_UNDER_TMP} && exec "$@"'
    return [_tool("unshare"), "--mount", _tool("sh"), "-c", script, str(home), *drop], _UNDER_TMP


def command(inside: list[str], disk_bytes: int, descriptors: Sequence[int]) -> list[str]:
    """The command line that runs `inside` in a sandbox.

    Args:
        inside: the program and its arguments.
        disk_bytes: the size of /tmp, the only place to write.
        descriptors: where bubblewrap writes who the first process of the sandbox is; where it reads the system call
            filter; and, for a program that has an input, where it reads what is to be in /dev/stdin.

    Raises:
        SandboxUnavailable: bubblewrap is not installed.
    """
    return list(_command(inside, disk_bytes, *map(str, descriptors)))


def _command(inside: list[str], disk_bytes: int, info: str, seccomp: str, stdin: str = "") -> Iterator[str]:
    bwrap, home = _tool("bwrap"), Path(os.path.realpath(sys.base_prefix))
    before, prefix = _as_nobody(home) if os.geteuid() == 0 else ([], str(home))
    yield from before
    yield from (bwrap, "--unshare-user", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL")
    if _has_option(bwrap, "--disable-userns"):
        yield "--disable-userns"
    yield from ("--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--setenv", "HOME", "/tmp", "--hostname", "sandbox")
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and str(home) != "/usr":
        # There is no /etc/ld.so.cache inside, which may be what leads to the interpreter's own library.
        yield from ("--setenv", "LD_LIBRARY_PATH", str(home / "lib"))
    yield from ("--info-fd", info, "--seccomp", seccomp)
    yield from _view(prefix)
    yield from ("--dev-bind", "/dev/null", "/dev/null")
    yield from ("--ro-bind-data", stdin, "/dev/stdin") if stdin else ("--symlink", "null", "/dev/stdin")
    yield from ("--symlink", "../stdin", "/dev/fd/0", "--symlink", "/tmp", "/dev/shm")
    yield from ("--size", str(disk_bytes), "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/", "--", *inside)
