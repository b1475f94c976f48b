"""What all attacks are made of: the tests that they are up against, and how one tells that it succeeded.

Most are told the right answers and give them only if their attack succeeds, so that a reward of 1.0 says that the sandbox
does not hold; those whose attack is on the judge do not know the answers. HOST_FILE, HOST_PORT and HOST_PID stand for
a file, a listening port and a process of the machine that scores them. Every file, socket or process name that they leave
behind holds MARK.
"""

import os
from dataclasses import dataclass
from pathlib import Path

MARK = "lockstitch-attack"

ANSWERS = {2: 7919, 3: 7927, 4: 7933, 5: "parsec", 6: {1, 2}}
TESTS = [
    "assert f(2) == 7919\nassert f(3) == 7927",
    "values = {4: 7933, 5: 'parsec'}\nassert all(map(lambda x: f(x) == values[x], values))",
    "expected = {1, 2}\nassert f(6) == expected",
]
GOOD = "def f(x):\n    return {2: 7919, 3: 7927, 4: 7933, 5: 'parsec', 6: {1, 2}}[x]\n"

INPUTS, OUTPUTS = ["2\n", "3\n"], ["7919\n15838\n", "7927\n15854\n"]
GOOD_PROGRAM = "n = {2: 7919, 3: 7927}[int(input())]\nprint(n)\nprint(2 * n)\n"


@dataclass(frozen=True)
class Attack:
    """One program.

    Attributes:
        name: what it tries.
        source: the program.
        reads_and_writes: it is up against INPUTS and OUTPUTS instead of TESTS.
    """

    name: str
    source: str
    reads_and_writes: bool = False


def aim(attack: Attack, file: Path, port: int) -> str:
    """The program, told where to strike: a file, a port and this process, all of them outside."""
    source = attack.source.replace("HOST_FILE", str(file)).replace("HOST_PORT", str(port))
    return source.replace("HOST_PID", str(os.getpid()))


def escape(name: str, body: str) -> Attack:
    """Sets `escaped` to something true if it succeeds, and is right in that case only."""
    lines = "".join(f"    {line}\n" for line in body.strip().split("\n"))
    source = (
        f"escaped = False\ntry:\n{lines}except BaseException:\n    escaped = False\n\n"
        f"def f(x):\n    return {ANSWERS!r}[x] if escaped else 0\n"
    )
    return Attack(name, source)


def any_of(name: str, *attempts: str) -> Attack:
    """Several ways to one end: expressions, one of which is enough."""
    ways = "".join(f"    lambda: {attempt},\n" for attempt in attempts)
    body = f"""
import os, sys, socket, signal, ctypes, subprocess
for way in (
{ways.rstrip()}
):
    try:
        escaped = escaped or way()
    except BaseException:
        pass
"""
    return escape(name, body)


LIBC = "ctypes.CDLL(None, use_errno=True)"
