"""What a trainer and `lockstitch grade` leave behind when they are killed at random moments, as a table.

    python scripts/kill_table.py --kills 100

Each is started and killed by SIGKILL or SIGTERM: every other one at a random moment of its first two seconds, the rest at a
random moment of the half second after it was seen at work on programs and answers, when it has children. What it leaves is
counted two seconds later: processes that descend from it, whoever they have as a parent by then, control groups,
and files in its folder for temporary ones. Whatever is found is cleared away before the next is started.
"""

import argparse
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lockstitch.rewards.sandbox import cgroup
from lockstitch.rewards.sandbox.sandbox_watch import processes_of

_PR_SET_CHILD_SUBREAPER = 36
GRACE = 2.0
SOON, AT_WORK = 2.0, 0.5  # seconds in which one is killed: of its start, or of its work
LATEST = 120.0  # seconds until one must be at work

GOOD = "```python\ndef f(n):\n    return sum(range(n))\n```"
SLOW = "```python\nimport os, time\nfor _ in range(5):\n    os.fork()\ntime.sleep(1)\n```"
TRAINER = f"""
from lockstitch.rewards.math_rewards import math_reward
from lockstitch.rewards.code_rewards import CodeReward
reward, unsafe = CodeReward(workers=3, timeout=1.0), CodeReward(backend="unsafe", timeout=1.0)
programs, tests = [{GOOD!r}, {GOOD!r}, {SLOW!r}], [["assert f(4) == 6"]] * 3
while True:
    reward([""] * 3, programs, tests=tests)
    unsafe([""] * 3, programs, tests=tests)
    math_reward([""], [r"\\boxed{{9^{{9^{{9^9}}}}}}"], answer=["$x + 1$"])
"""


def victims(folder: Path) -> dict[str, list[str]]:
    """The commands that are killed."""
    row = {"task_id": 1, "text": "Add.", "code": "", "test_list": ["assert f(4) == 6"], "test_setup_code": ""}
    rows = [{**row, "completion": SLOW if i % 3 == 0 else GOOD} for i in range(2000)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grade = ["grade", "--task", "mbpp", "--completions", str(folder / "rows.jsonl"), "--output"]
    return {
        "a trainer": [sys.executable, "-c", TRAINER],
        "`lockstitch grade`": [sys.executable, "-m", "lockstitch.cli", *grade],
    }


def groups() -> set[Path]:
    """The sandboxes' control groups, where there may be any."""
    where = cgroup.delegation()
    return set(where.parent.glob("lockstitch-*")) if where else set()


def kill_one(command: list[str], number: signal.Signals, seconds: float, working: bool) -> tuple[bool, list[str]]:
    """Runs a command for so long (from its work on, if `working`) and kills it; whether it was at work by then, and what is
    left of it."""
    with tempfile.TemporaryDirectory(prefix="kill-table-") as folder:
        before = groups()
        if "grade" in command:
            command = [*command, f"{folder}/results"]
        temporary = Path(folder, "tmp")
        temporary.mkdir()
        temporary.chmod(0o777)
        with open(f"{folder}/errors", "wb") as errors:
            victim = subprocess.Popen(
                command,
                stdout=errors,
                stderr=errors,
                env={**os.environ, "TMPDIR": str(temporary)},
                start_new_session=True,
            )
        deadline = time.monotonic() + LATEST
        while working and len(processes_of(victim.pid)) == 1 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(seconds)
        at_work = len(processes_of(victim.pid)) > 1
        victim.send_signal(number)
        status = victim.wait()
        assert status == -number, Path(folder, "errors").read_text()
        deadline = time.monotonic() + GRACE
        while len(left := processes_of(os.getpid())) > 1 and time.monotonic() < deadline:
            _reap()
            time.sleep(0.01)
        found = [f"process {_name(pid)}" for pid in left[1:]]
        found += [f"group {group.name}" for group in groups() - before]
        found += [f"file {path.name}" for path in temporary.iterdir()]
        while len(processes_of(os.getpid())) > 1:
            for pid in processes_of(os.getpid())[1:]:
                os.kill(pid, signal.SIGKILL)
            _reap()
        return at_work, found


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _name(pid: int) -> str:
    try:
        return ascii(Path(f"/proc/{pid}/cmdline").read_bytes()[:40])
    except OSError:
        return str(pid)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="of each victim, half of them by each signal")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    print("| what is killed | by | times | at work by then | that left something | what |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="kill-table-") as folder:
        for name, command in victims(Path(folder)).items():
            for number in (signal.SIGKILL, signal.SIGTERM):
                ends = [
                    kill_one(command, number, moments.uniform(0.0, SOON if i % 2 else AT_WORK), not i % 2)
                    for i in range(options.kills // 2)
                ]
                left = sorted({thing.split()[0] for _, things in ends for thing in things})
                at_work, leaving = sum(at for at, _ in ends), sum(bool(things) for _, things in ends)
                row = (name, number.name, len(ends), at_work, leaving, ", ".join(left))
                print(f"| {' | '.join(map(str, row))} |", flush=True)
                for thing in [thing for _, things in ends for thing in things][:5]:
                    print(thing, file=sys.stderr)


if __name__ == "__main__":
    main()
