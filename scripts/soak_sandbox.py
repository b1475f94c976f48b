"""Whether a process that scores for a long time stays as it is: descriptors, threads, processes and memory, as a table.

    python scripts/soak_sandbox.py --minutes 20

Batches of honest programs, attacks of `tests/attacks.py` and answers are scored without a pause. After the first tenth of
the time, what is in use between batches is noted. At the end the table compares the first third of the notes with the
last one, and the exit status is 1 if a number of things differs, or memory by more than 4 MiB.
"""

import argparse
import os
import random
import statistics
import sys
import time
from pathlib import Path

from lockstitch.rewards.code_rewards import CodeReward
from lockstitch.rewards.math_rewards import math_reward
from lockstitch.rewards.sandbox import children
from lockstitch.rewards.sandbox.sandbox_watch import memory_of, processes_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from attack_shapes import GOOD, GOOD_PROGRAM, INPUTS, OUTPUTS, TESTS, aim
from attacks import ATTACKS

FILE = Path(__file__).resolve()  # what must not be reached
MOST_GROWTH = 4.0  # MiB


def in_use() -> dict[str, float]:
    """What this process and those that serve it have, in MiB where it is memory."""
    assert children._current is not None
    keeper, me = children._current.process.pid, os.getpid()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "descriptors of the keeper": len(os.listdir(f"/proc/{keeper}/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "processes": len(processes_of(me)),
        "memory": memory_of([me]) / 2**20,
        "memory of the keeper": memory_of([keeper]) / 2**20,
    }


def score(some: random.Random, reward: CodeReward) -> int:
    """One batch of each kind; none of the honest programs may be wrong, and no attack paid. How many were scored."""
    calling = some.sample([attack for attack in ATTACKS if not attack.reads_and_writes], 4)
    scripts = some.sample([attack for attack in ATTACKS if attack.reads_and_writes], 1)
    programs = [aim(attack, FILE, 1) for attack in calling] + [GOOD] * 12
    said: list[str] = []
    values = reward(
        [""] * len(programs), programs, tests=[TESTS] * len(programs), log_extra=lambda _, texts: said.extend(texts)
    )
    assert values == [0.0] * len(calling) + [1.0] * 12, (said, [attack.name for attack in calling])
    dialogues = [aim(attack, FILE, 1) for attack in scripts] + [GOOD_PROGRAM] * 3
    columns = {"inputs": [INPUTS] * len(dialogues), "outputs": [OUTPUTS] * len(dialogues)}
    values = reward([""] * len(dialogues), dialogues, **columns)
    assert values == [0.0] * len(scripts) + [1.0] * 3, (values, [attack.name for attack in scripts])
    assert math_reward([""] * 2, [r"\boxed{\frac{1}{2}}", r"\boxed{3}"], answer=["0.5", "x + 1"]) == [1.0, 0.0]
    return len(programs) + len(dialogues)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0, help="of the attacks' order")
    options = parser.parse_args()
    some, reward = random.Random(options.seed), CodeReward(timeout=1.0)
    notes: list[dict[str, float]] = []
    count = 0
    began = time.monotonic()
    while (passed := time.monotonic() - began) < 60 * options.minutes or len(notes) < 3:
        count += score(some, reward)
        if passed > 6 * options.minutes:
            notes.append(in_use())
    third = len(notes) // 3
    flat = True
    print(f"{count} programs in {passed:.0f} s, {len(notes)} notes\n")
    print("| what | first third | last third | most |\n|---|---|---|---|")
    for what in notes[0]:
        column = [note[what] for note in notes]
        first, last = statistics.median(column[:third]), statistics.median(column[-third:])
        print(f"| {what} | {first:.4g} | {last:.4g} | {max(column):.4g} |")
        flat &= last - first <= (MOST_GROWTH if "memory" in what else 0.0)
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
