"""What the sandbox costs, as ratios of what is run in turns, with median and spread.

    python scripts/bench_sandbox.py --repeats 20

`program`: a program in the sandbox, from its start to the end of its last process, against bare `python -c` with the same
interpreter, once as it is and once as the virtual environment starts it. `batch`: a batch of programs on one worker against
the same on one worker for each core. `hung`: a batch with an endless loop in it against the same batch without.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from lockstitch.rewards.code_rewards import CodeReward
from lockstitch.rewards.sandbox.launchers import interpreter

PROGRAM = "def f(n):\n    return sum(i * i for i in range(n))\n"
TESTS = ["assert f(3) == 5", "assert f(100) == 328350"]
BARE = f"{PROGRAM}\n{chr(10).join(TESTS)}"
BATCH = 64


def seconds(action: Callable[[], object]) -> float:
    """What one run takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def bare(executable: str) -> Callable[[], object]:
    """The program and its tests, by `python -c`, as whoever asks."""
    return lambda: subprocess.run([executable, "-c", BARE], check=True)


def rewarded(count: int, workers: int, *more: str) -> Callable[[], object]:
    """The program so many times in one batch, and more programs; every one of them must be right."""
    reward = CodeReward(workers=workers, timeout=2.0)
    programs = [*more, *[PROGRAM] * count]

    def run() -> None:
        values = reward([""] * len(programs), programs, tests=[TESTS] * len(programs))
        assert values == [0.0] * len(more) + [1.0] * count, values

    return run


def compare(name: str, repeats: int, target: str, one: Callable[[], object], other: Callable[[], object]) -> None:
    """Prints the ratio of two actions, which take turns, as a row of a table."""
    one()
    other()
    pairs = [(seconds(one), seconds(other)) for _ in range(repeats)]
    ratios = sorted(a / b for a, b in pairs)
    low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
    mine, theirs = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(ratios)
    print(f"| {name} | {mine:.1f} ms | {theirs:.1f} ms | {ratio:.2f} | {low:.2f} - {high:.2f} | {target} |")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=20, help="how often each pair is run")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print("| what | one | other | ratio | 10 % - 90 % | target |\n|---|---|---|---|---|---|")
    for name, executable in (("python -c", interpreter()), ("python -c in the virtual environment", sys.executable)):
        compare(f"sandbox / {name}", options.repeats, "at most 2.5", rewarded(1, 1), bare(executable))
    few = max(1, options.repeats // 4)
    one, all_cores = rewarded(BATCH, 1), rewarded(BATCH, cores)
    compare(f"{BATCH} programs, 1 worker / {cores}", few, "at least 1.7 on 2 cores", one, all_cores)
    hung = rewarded(BATCH, cores, "while True: pass")
    compare(f"{BATCH} programs, with a hung one (2 s) / without", few, "", hung, all_cores)


if __name__ == "__main__":
    main()
