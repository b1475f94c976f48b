"""What our reward pays for the programs of `tests/attacks.py`, and what naive scorers do, as the tables of the docs.

    python scripts/attack_table.py

The first table is all of them, each between two honest programs, as `tests/test_attacks.py` has them. The naive scorers
are what public harnesses do: run the program and its tests in one process and take its exit status for the verdict; or a
mark that is printed when all tests have run; or what the tests raise, next to the program. They run inside the sandbox,
too: it is the judging that is compared there, not the walls, so the attacks on the machine are left out.
"""

import os
import socket
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lockstitch.rewards.code_rewards import CodeReward
from lockstitch.rewards.programs.judge import read_answer
from lockstitch.rewards.sandbox.launchers import Bubblewrap, Limits, Stopped, input_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from attack_shapes import ANSWERS, GOOD, GOOD_PROGRAM, INPUTS, OUTPUTS, TESTS, Attack, aim
from attacks import KINDS

SECONDS = 2.0
ON_THE_MACHINE = ("what is outside", "the kernel's memory", "neighbours and the host")
PASSED = "ALL TESTS PASSED"
LAUNCHER = Bubblewrap()


def script(source: str) -> tuple[str, int]:
    """What a program prints, and its exit status, in the sandbox; -1 if it had to be stopped."""
    with LAUNCHER.start(Limits(seconds=SECONDS), input_file("")) as process:
        process.send({"kind": "program", "variants": [source]})
        try:
            output, status = process.output(2**20)
        except Stopped:
            return "", -1
        return output.decode(errors="replace"), status


def by_exit_status(attack: Attack) -> bool:
    """Program and tests in one script: right if it ends well."""
    return script("\n".join([attack.source, *TESTS]))[1] == 0


def by_mark(attack: Attack) -> bool:
    """The same with a last line that prints a mark: right if it was printed."""
    return PASSED in script("\n".join([attack.source, *TESTS, f"print({PASSED!r})"]))[0]


def by_exception(attack: Attack) -> bool:
    """A harness runs program and tests by `exec` in its own process: right if nothing is raised."""
    tests = "\n".join(TESTS)
    harness = f"""
def verdict():
    scope = {{}}
    try:
        exec({attack.source!r}, scope)
        exec({tests!r}, scope)
        return "passed"
    except BaseException:
        return "failed"
"""
    with LAUNCHER.start(Limits(seconds=SECONDS)) as process:
        try:
            process.send({"kind": "functions", "variants": [harness], "before": "", "after": ""})
            process.receive(4096)
            process.send({"eval": "verdict()"})
            return read_answer(process.receive(4096)) == {"value": "passed"}
        except Stopped:
            return False


def by_zip(attack: Attack) -> bool:
    """Output compared line by line with `zip`, which ends with the shorter one."""
    for text, expected in zip(INPUTS, OUTPUTS, strict=True):
        with LAUNCHER.start(Limits(seconds=SECONDS), input_file(text)) as process:
            process.send({"kind": "program", "variants": [attack.source]})
            try:
                lines = process.output(2**20)[0].decode(errors="replace").strip().split("\n")
            except Stopped:
                return False
        if not all(line == other for line, other in zip(lines, expected.strip().split("\n"), strict=False)):
            return False
    return True


NAIVE: dict[str, Callable[[Attack], bool]] = {
    "exit status": by_exit_status,
    "printed mark": by_mark,
    "`exec` beside the tests": by_exception,
}


def reward(attacks: list[Attack]) -> list[Any]:
    """What our reward pays, in the order of the attacks, which all are up against the same kind of tests."""
    if attacks and attacks[0].reads_and_writes:
        columns: dict[str, list[Any]] = {"inputs": [INPUTS] * len(attacks), "outputs": [OUTPUTS] * len(attacks)}
    else:
        columns = {"tests": [TESTS] * len(attacks)}
    return CodeReward(timeout=SECONDS)([""] * len(attacks), [attack.source for attack in attacks], **columns)


def by_kind() -> None:
    """Prints, for each kind of attack, what our reward pays for them and for the honest programs between them."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        os.chmod(folder, 0o755)  # readable to all: it is the sandbox that hides it
        file = Path(folder, "answers")
        file.write_text(repr(ANSWERS))
        port = server.getsockname()[1]
        print(
            "| attacks on | programs | paid | not scored | honest ones between them | right |\n|---|---|---|---|---|---|"
        )
        for kind, attacks in KINDS.items():
            values: list[Any] = []
            honest: list[Any] = []
            for script, good in ((False, GOOD), (True, GOOD_PROGRAM)):
                batch = [Attack("honest", good, script)]
                for attack in attacks:
                    if attack.reads_and_writes == script:
                        batch += [Attack(attack.name, aim(attack, file, port), script), batch[0]]
                paid = reward(batch)
                values += paid[1::2]
                honest += paid[::2]
            counts = (len(values), sum(v == 1.0 for v in values), values.count(None), len(honest), honest.count(1.0))
            print(f"| {kind} | {' | '.join(map(str, counts))} |", flush=True)


def main() -> None:
    """Prints the tables: by kind; and what each scorer pays, one by one and in all."""
    by_kind()
    attacks = [attack for kind, attacks in KINDS.items() if kind not in ON_THE_MACHINE for attack in attacks]
    calling = [attack for attack in attacks if not attack.reads_and_writes]
    scripts = [attack for attack in attacks if attack.reads_and_writes]
    ours = dict(zip((a.name for a in calling), reward(calling), strict=True))
    ours |= zip((a.name for a in scripts), reward(scripts), strict=True)
    with ThreadPoolExecutor(2) as executor:
        paid = {name: list(executor.map(scorer, calling)) for name, scorer in NAIVE.items()}
        zipped = dict(zip((a.name for a in scripts), executor.map(by_zip, scripts), strict=True))
    print(f"\n| attack | {' | '.join(NAIVE)} | judge outside |\n|{'---|' * (len(NAIVE) + 2)}")
    for i, attack in enumerate(calling):
        verdicts = [paid[name][i] for name in NAIVE]
        if any(verdicts) or ours[attack.name]:
            print(f"| {attack.name} | {' | '.join('1' if v else '0' for v in verdicts)} | {ours[attack.name]:g} |")
    totals = " | ".join(str(sum(paid[name])) for name in NAIVE)
    print(f"| paid, of {len(calling)} | {totals} | {sum(ours[attack.name] for attack in calling):g} |")
    print("\n| output | `zip` over lines | whole output |\n|---|---|---|")
    for attack in scripts:
        print(f"| {attack.name} | {int(zipped[attack.name])} | {ours[attack.name]:g} |")


if __name__ == "__main__":
    main()
