"""Control groups: where they may be made, what is written into them, and what the kernel makes of it where it lets us."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lockstitch.rewards.sandbox import cgroup
from lockstitch.rewards.sandbox.cgroup import Delegation
from lockstitch.rewards.sandbox.launchers import Bubblewrap, Limits, StartFailed, Stopped
from lockstitch.rewards.sandbox.sandbox_watch import processes_of

MIB = 2**20


@pytest.fixture
def delegation() -> Delegation:
    found = cgroup.delegation()
    if found is None:
        pytest.skip("no cgroup v2 is delegated to these tests: see docs/sandbox.md")
    return found


def needs(controller: str, where: Delegation) -> None:
    if controller not in where.controllers:
        pytest.skip(f"the controller {controller} is not among those delegated to these tests, {where.controllers}")


# --- where -----------------------------------------------------------------------------------------------------------

UNIFIED = "25 30 0:23 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = (
    "36 31 0:33 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
    "38 31 0:35 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
NO_V2 = "12:pids:/user\n1:name=systemd:/user\n"


@pytest.mark.parametrize(
    ("membership", "mounts", "own", "mount"),
    [
        ("0::/user.slice/run-1.scope\n", UNIFIED, "/sys/fs/cgroup/user.slice/run-1.scope", "/sys/fs/cgroup"),
        ("0::/a:b\n", UNIFIED, "/sys/fs/cgroup/a:b", "/sys/fs/cgroup"),
        (f"{NO_V2}0::/\n", HYBRID, "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified"),
        # A part of the hierarchy, as containers have it, in a folder with a space in its name.
        ("0::/box/job\n", r"9 8 0:23 /box /my\040groups rw - cgroup2 none rw", "/my groups/job", "/my groups"),
        (
            "0::/box/job\n",
            f"9 8 0:23 /other /x rw - cgroup2 none rw\n{UNIFIED}",
            "/sys/fs/cgroup/box/job",
            "/sys/fs/cgroup",
        ),
    ],
)
def test_the_own_group(membership, mounts, own, mount):
    assert cgroup.own_group(membership, mounts) == (Path(own), Path(mount))


@pytest.mark.parametrize(
    ("membership", "mounts"),
    [
        (NO_V2, UNIFIED),
        ("0::/a\n", HYBRID.splitlines()[0]),
        ("0::/../elsewhere\n", UNIFIED),  # outside of the cgroup namespace
        ("0::/boxes\n", "9 8 0:23 /box /x rw - cgroup2 none rw"),
        ("0::/a\n", "9 8 0:23 /.. /x rw - cgroup2 none rw"),
        ("", ""),
        ("\n::\n0:\n", "- \n\n - cgroup2"),
    ],
)
def test_there_is_no_own_group(membership, mounts):
    assert cgroup.own_group(membership, mounts) is None


def as_group(folder: Path, *, subtree_control: str = "", processes: str = "") -> Path:
    """A plain folder with the files of a group that is not the root."""
    folder.mkdir(exist_ok=True)
    for name, text in (("events", "populated 1\n"), ("subtree_control", subtree_control), ("procs", processes)):
        (folder / f"cgroup.{name}").write_text(text)
    return folder


def test_groups_are_made_where_they_are_delegated(tmp_path):
    unit = as_group(tmp_path / "run.scope")
    own = as_group(unit / "trainer")
    assert cgroup.delegated_parent(own, tmp_path) is None  # somebody else's, even if we could write to it
    try:
        os.setxattr(unit, "user.delegate", b"1")
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP  # noqa: PT017
        pytest.skip("this file system has no attributes")
    assert cgroup.delegated_parent(own, tmp_path) == unit
    assert cgroup.delegated_parent(own, own) is None  # a container, which does not see the parent
    assert cgroup.delegated_parent(unit, tmp_path) is None  # in the unit itself: no group can be made below
    (own / "cgroup.events").unlink()
    assert cgroup.delegated_parent(own, own) == own  # the root


def test_controllers_are_switched_on_where_no_process_forbids_it(tmp_path):
    parent = as_group(tmp_path, subtree_control="cpu pids\n", processes="17\n")
    assert cgroup.enabled_controllers(parent) == ("pids", "cpu")
    assert (parent / "cgroup.subtree_control").read_text() == "cpu pids\n"
    as_group(tmp_path, subtree_control="cpu pids\n")
    cgroup.enabled_controllers(parent)
    assert (parent / "cgroup.subtree_control").read_text() == "+memory"
    as_group(tmp_path, subtree_control="cpu memory io pids\n")
    assert cgroup.enabled_controllers(parent) == ("pids", "memory", "cpu")
    assert (parent / "cgroup.subtree_control").read_text() == "cpu memory io pids\n"


# --- what ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("controllers", "existing", "written"),
    [
        (("pids",), (), {"pids.max": "7"}),
        (("memory",), (), {"memory.max": "4096"}),
        (("cpu",), (), {}),
        (
            ("pids", "memory"),
            ("memory.swap.max", "memory.oom.group"),
            {"pids.max": "7", "memory.max": "4096", "memory.swap.max": "0", "memory.oom.group": "1"},
        ),
    ],
)
def test_the_limits_are_written(tmp_path, controllers, existing, written):
    for name in existing:
        (tmp_path / name).touch()
    cgroup.write_limits(tmp_path, controllers, 7, 4096)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == written


def test_a_command_that_cannot_enter_does_not_run(tmp_path):
    done = subprocess.run(cgroup.entering(tmp_path / "absent", ["/bin/echo", "ran"]), capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "absent/cgroup.procs" in done.stderr
    (tmp_path / "cgroup.procs").touch()
    odd = ["$HOME", "a b", "'", "-n"]
    done = subprocess.run(cgroup.entering(tmp_path, ["/bin/echo", *odd]), capture_output=True, text=True, check=True)
    assert (done.stdout, (tmp_path / "cgroup.procs").read_text()) == ("$HOME a b ' -n\n", "0\n")


@pytest.mark.usefixtures("bubblewrap")
def test_a_group_that_fails_is_a_failed_start(tmp_path, monkeypatch):
    launcher = Bubblewrap()
    monkeypatch.setattr(cgroup, "delegation", lambda: Delegation(tmp_path / "absent", ("pids",)))
    with pytest.raises(StartFailed, match=r"control group: .*absent"), launcher.start(Limits()):
        pass
    monkeypatch.setattr(cgroup, "delegation", lambda: Delegation(tmp_path, ()))
    monkeypatch.setattr(cgroup, "_ENTER", cgroup._ENTER.replace("$0", "$0/gone"))
    with pytest.raises(StartFailed, match=r"gone/cgroup\.procs"), launcher.start(Limits()):
        pass


# --- what the kernel makes of it -------------------------------------------------------------------------------------

FORKS = """
import os, time
for count in range(50):
    try:
        child = os.fork()
    except BlockingIOError:
        os.write(1, str(count).encode())
        os._exit(0)
    if child == 0:
        os.close(1)
        os.setsid()
        time.sleep(600)
"""

# Children that each hold 40 MiB, and a parent that would hear of the end of one.
HOLDERS = f"""
import os, time
for _ in range(4):
    if os.fork() == 0:
        held = bytearray(b"x" * 40 * {MIB})
        time.sleep(600)
os.wait()
"""


def test_the_kernel_counts_the_processes_of_a_group(delegation):
    needs("pids", delegation)
    with cgroup.group(delegation, 5, 512 * MIB) as folder:
        command = cgroup.entering(folder, [sys.executable, "-S", "-c", FORKS])
        assert subprocess.run(command, stdout=subprocess.PIPE, timeout=60).stdout == b"4"  # and itself
        left = [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
        assert len(left) == 4
    assert not folder.exists()
    assert not [pid for pid in left if runs(pid)]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_kernel_counts_the_memory_of_a_group(delegation):
    needs("memory", delegation)
    with cgroup.group(delegation, 10, 100 * MIB) as folder:
        command = cgroup.entering(folder, [sys.executable, "-S", "-c", HOLDERS])
        assert subprocess.run(command, timeout=60).returncode == -9  # all of them, not the largest alone
        assert (folder / "cgroup.procs").read_text() == ""
    assert not folder.exists()


@pytest.fixture
def parent() -> Path:
    """Where the kernel lets us make groups, be it without any controller."""
    own = cgroup.own_group(*(Path(f"/proc/self/{name}").read_text() for name in ("cgroup", "mountinfo")))
    found = cgroup.delegated_parent(*own) if own else None
    if found is None or not os.access(found, os.W_OK):
        pytest.skip("no cgroup v2 is delegated to these tests: see docs/sandbox.md")
    return found


@pytest.mark.usefixtures("bubblewrap")
def test_what_hidden_children_use_of_processors_counts(parent, monkeypatch):
    """Of children that nobody waits for, which add to no other process's time."""
    monkeypatch.setattr(cgroup, "delegation", lambda: Delegation(parent, ()))
    source = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)

def f(x):
    while True:
        try:
            if os.fork() == 0:
                while time.process_time() < 0.03:
                    pass
                os._exit(0)
        except OSError:  # too many at once
            pass
        time.sleep(0.03)
"""
    with Bubblewrap().start(Limits(seconds=1.0)) as process:
        assert process.group is not None
        process.send({"kind": "functions", "variants": [source], "before": "", "after": ""})
        process.receive(100)
        process.deadline += 60.0  # only the time of processors ends it
        process.send({"eval": "f(1)"})
        with pytest.raises(Stopped, match="out of time"):
            process.receive(100)
        assert 1.0 < cgroup.processor_seconds(process.group) < 3.0
    assert not process.group.exists()


def test_the_group_of_one_who_is_killed_is_removed(parent):
    """With all that runs in it, and without any controller."""
    code = f"""
import os
from pathlib import Path
from lockstitch.rewards.sandbox import cgroup, children
null = os.open(os.devnull, os.O_RDWR)
with cgroup.group(cgroup.Delegation(Path({str(parent)!r}), ()), 5, 2**28) as folder:
    child = children.spawn(cgroup.entering(folder, ["/bin/sh", "-c", "sleep 600 & sleep 600"]), [null] * 3, [], "/")
    while len((folder / "cgroup.procs").read_text().split()) < 3:
        pass
    print(folder, *(folder / "cgroup.procs").read_text().split(), flush=True)
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    folder, *pids = done.stdout.split()
    assert done.returncode == -9
    assert len(pids) == 3
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline and (Path(folder).exists() or any(map(runs, map(int, pids)))):
        time.sleep(0.01)
    assert not Path(folder).exists()
    assert not any(map(runs, map(int, pids)))


@pytest.mark.usefixtures("bubblewrap")
def test_every_process_of_a_sandbox_is_in_a_group_of_its_own(delegation):
    folders = []
    for _ in range(2):
        with Bubblewrap().start(Limits(processes=9, memory_mb=300, disk_mb=20)) as process:
            texts = {Path(f"/proc/{pid}/cgroup").read_text() for pid in processes_of(process.child.pid)}
            (membership,) = texts
            own = cgroup.own_group(membership, Path("/proc/self/mountinfo").read_text())
            assert own is not None
            assert own[0].parent == delegation.parent
            limits = {"pids.max": "11", "memory.max": str(320 * MIB), "memory.swap.max": "0", "memory.oom.group": "1"}
            for name, value in limits.items():
                if name.startswith(delegation.controllers) and (own[0] / name).exists():
                    assert (own[0] / name).read_text().strip() == value
            folders.append(own[0])
    assert len(set(folders)) == 2
    assert not [folder for folder in folders if folder.exists()]


@pytest.mark.usefixtures("bubblewrap")
def test_the_least_that_a_program_may_have_is_enough(delegation):
    with Bubblewrap().start(Limits(processes=1)) as process:
        process.send({"kind": "functions", "variants": ["f = 3"], "before": "", "after": ""})
        assert process.receive(100) == b'{"done":true}'
