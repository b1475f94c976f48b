"""Children that end with us: whatever ends us, and whatever they are at."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lockstitch.rewards.sandbox import children, keeper
from lockstitch.rewards.sandbox.keeper import FIRST_DESCRIPTOR
from lockstitch.rewards.sandbox.sandbox_watch import processes_of

KILL_TABLE = Path(__file__).parent.parent / "scripts" / "kill_table.py"


def spawn(script: str, *others: int, cwd: str = "/") -> children.Child:
    with open(os.devnull, "r+b") as null:
        return children.spawn(["/bin/sh", "-c", script], [null.fileno()] * 3, others, cwd)


def runs(pid: int) -> bool:
    """Whether it is there, and not only waits for somebody to ask how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids: list[int], seconds: float = 3.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(map(runs, pids)):
            return True
        time.sleep(0.01)
    return False


def test_a_child_has_what_it_is_given_and_says_how_it_ended(tmp_path):
    reading, writing = os.pipe()
    place = FIRST_DESCRIPTOR
    child = spawn(
        f"pwd >/dev/fd/{place}; echo $PYTHONHASHSEED $HOME >/dev/fd/{place}; exit 7", writing, cwd=str(tmp_path)
    )
    os.close(writing)
    assert child.wait() == child.wait(0.0) == 7
    with open(reading) as said:
        assert said.read() == f"{tmp_path}\n0\n"  # no environment of ours
    slow = spawn("sleep 600")
    with pytest.raises(TimeoutError):
        slow.wait(0.01)
    slow.kill()
    assert slow.wait() == -signal.SIGKILL
    slow.kill()  # of what has ended, nothing
    with pytest.raises(OSError, match="absent"):
        spawn("", cwd="/absent")


def test_what_a_child_leaves_behind_ends_with_it(tmp_path):
    """As bubblewrap's first process, which waits for a parent that is dead."""
    child = spawn("trap '' TERM HUP; setsid sh -c 'echo $$ >$0/pid; exec sleep 600' $0 &  wait", cwd=str(tmp_path))
    child.kill()
    child.wait()
    child = spawn("setsid sh -c 'echo $$ >pid; exec sleep 600' &  while [ ! -s pid ]; do :; done", cwd=str(tmp_path))
    assert child.wait() == 0
    assert gone([int((tmp_path / "pid").read_text())], 0.1)


def test_a_killed_keeper_is_replaced():
    child = spawn("sleep 600")
    first = children._current
    assert first is not None
    os.kill(first.process.pid, signal.SIGTERM)  # to which it is deaf, as to what ends a whole session
    assert spawn("exit 3").wait() == 3
    assert children._current is first
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    assert spawn("exit 4").wait() == 4
    assert children._current is not first
    child.kill()
    assert child.wait() == -signal.SIGKILL


def test_an_interrupted_order_leaves_no_answer_to_the_next(monkeypatch):
    assert spawn("exit 3").wait() == 3
    first, receive = children._current, keeper.receive

    def interrupted(connection):
        receive(connection)
        raise KeyboardInterrupt

    monkeypatch.setattr(keeper, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spawn("sleep 600")
    monkeypatch.undo()
    assert spawn("exit 5").wait() == 5
    assert children._current is not first


def test_a_forked_process_has_a_keeper_of_its_own():
    assert spawn("exit 3").wait() == 3
    ours = children._current
    assert ours is not None
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            child = spawn("sleep 600")
            theirs = children._current
            if theirs is not None and theirs is not ours and child.pid in processes_of(theirs.process.pid):
                status = 5
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    assert spawn("exit 3").wait() == 3


@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 15)", "os._exit(0)", "pass", "1 / 0"]
)
def test_nothing_outlives_us(tmp_path, end):
    """Neither what is deaf and has a session of its own, nor a folder with something in it."""
    code = f"""
import os
from pathlib import Path
from lockstitch.rewards.sandbox import children, keeper
folder = children.new_folder(Path({str(tmp_path)!r}))
(folder / "file").touch()
(Path({str(tmp_path)!r}) / "mine").touch()
null = os.open(os.devnull, os.O_RDWR)
script = "trap '' TERM HUP INT; setsid sleep 600 & sleep 600 & : >ready; wait"
child = children.spawn(["/bin/sh", "-c", script], [null] * 3, [], str(folder))
while not (folder / "ready").exists():
    pass
from lockstitch.rewards.sandbox.sandbox_watch import processes_of
print(*processes_of(os.getpid())[1:], flush=True)
{end}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 4, done.stderr  # the keeper, a shell, and two that sleep
    assert gone(pids)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize("kills", [2, pytest.param(48, marks=pytest.mark.slow)])
def test_whoever_is_killed_leaves_nothing(kills):
    """Half of them are killed as they start, and half at work."""
    command = [sys.executable, str(KILL_TABLE), "--kills", str(kills), "--seed", str(os.getpid())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1200)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]
    assert [(row[2], row[4]) for row in rows] == [(str(kills // 2), "0")] * 4, done.stdout + done.stderr
    assert all(int(row[3]) >= kills // 6 for row in rows), done.stdout
