"""The judge: asks a program in its sandbox, and compares what it answers, outside.

The program's sandbox gets the program and what it is called with, one call after another, and never what should come
out. The judge compares answers as data (`tagged`), type by type: it runs no method of an answer, builds no set or
dictionary of it, and reads no more of it than the expected value's size allows. Tests that are no plain comparison run in
a second sandbox, which holds the tests and no line of the program; its calls go through the judge to the first one.

Whatever a program does once its sandbox runs is its own fault: a test that is not passed. Only a sandbox that does not
start, or a test that cannot be run, leaves a program unscored.
"""

import json
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from lockstitch.rewards.programs.code_tests import Case, Dialogue, Script, Test
from lockstitch.rewards.sandbox.launchers import Launcher, Limits, Process, StartFailed, Stopped, input_file

RELATIVE, ABSOLUTE = 1e-6, 1e-9
_RELAYED = 2**20
_SHORTEST = 4096
_PER_EXPECTED = 32  # a number may be written at up to this many times the length of another one
_PER_CALL = 2**16


@dataclass(frozen=True)
class Exam:
    """What a program is up against.

    Attributes:
        tests: what it must pass.
        before: source that runs before the program, in its module.
        after: source that runs after it, in its module.
        trusted: sources that scripts stand on, in the sandbox of the tests.
    """

    tests: tuple[Test, ...]
    before: str = ""
    after: str = ""
    trusted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Marks:
    """What a program achieved.

    Attributes:
        passed: for each test whether it was passed; None if it could not be examined.
        reason: why the first failed, or why there is no result.
    """

    passed: tuple[bool, ...] | None
    reason: str = ""


class Examiner(Protocol):
    """What examines programs: `LocalExaminer` here, `FusionExaminer` by a server."""

    def examine(self, exam: Exam, variants: Sequence[str], limits: Limits, *, until_failure: bool = False) -> Marks:
        """Runs a program against its tests.

        Args:
            exam: the tests.
            variants: ways to read the program out of a completion; the first that compiles is the program.
            limits: what it may use.
            until_failure: stop at the first test that is not passed; the others count as not passed.
        """


def is_same(expected: Any, found: Any) -> bool:
    """Whether two pieces of `tagged` data are the same value.

    Types are exact and `True` is not `1`; an integer and a float may be equal, and to an expected float a number is equal if
    it is within a millionth of it. Elements of sets and keys of dictionaries have no tolerance.
    """
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found
    if isinstance(expected, int | float) and isinstance(found, int | float):
        if isinstance(expected, int):
            return expected == found
        return math.isclose(expected, found, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    if type(expected) is not type(found):
        return False
    if isinstance(expected, list):
        return len(expected) == len(found) and all(map(is_same, expected, found))
    if not isinstance(expected, dict):
        return bool(expected == found)
    (tag, content), tags = next(iter(expected.items())), list(found)
    if tags != [tag] and not (tag in _SETS and len(tags) == 1 and tags[0] in _SETS):
        return False
    other = found[tags[0]]
    if tag == "other" or type(content) is not type(other):
        return False
    if tag in _SETS:
        return sorted({_text(item) for item in content}) == sorted({_text(item) for item in other})
    if tag == "dict":
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in other):
            return False
        ours = {_text(key): value for key, value in content}
        theirs = {_text(key): value for key, value in other}
        return ours.keys() == theirs.keys() and all(is_same(value, theirs[key]) for key, value in ours.items())
    return is_same(content, other)


_SETS = ("set", "frozenset")


def _text(data: Any) -> str:
    """A text that is the same for what Python would take for the same key. Texts, not values: these hash safely."""
    if isinstance(data, float) and data.is_integer() and abs(data) < 2**53:
        return str(int(data))
    if isinstance(data, list):
        return f"[{','.join(map(_text, data))}]"
    if isinstance(data, dict):
        ((tag, content),) = data.items()
        items = sorted(map(_text, content)) if tag in _SETS else [_text(content)]
        return f"{{{'set' if tag in _SETS else tag}:{','.join(items)}}}"
    return json.dumps(data)


def same_output(expected: str, found: str) -> bool:
    """Whether two outputs are the same, line by line, up to blanks at the end of lines and empty lines at the end."""
    lines, theirs = expected.rstrip().split("\n"), found.rstrip().split("\n")
    return [line.rstrip() for line in lines] == [line.rstrip() for line in theirs]


def longest_answer(expected: Any) -> int:
    """How many bytes an answer may have and still be right."""
    return _SHORTEST + _PER_EXPECTED * len(json.dumps(expected))


def read_answer(frame: bytes) -> dict[str, Any]:
    """An answer of a worker; `Stopped` if it is none."""
    try:
        answer = json.loads(frame)
    except (ValueError, RecursionError):
        raise Stopped("what it answers is no answer") from None
    if not isinstance(answer, dict):
        raise Stopped("what it answers is no answer")
    return answer


def verdict_on(test: Case, answer: dict[str, Any]) -> str:
    """Empty if the answer is right, else what is wrong with it."""
    if "value" not in answer:
        return f"{test.call[:100]} raises {error_text(answer)}"
    try:
        same = is_same(test.expected, answer["value"])
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):  # it is not what `tagged` writes
        same = False
    return "" if same else f"{test.call[:100]} returns {json.dumps(answer['value'])[:100]}"


def error_text(answer: dict[str, Any]) -> str:
    """What was raised, as far as it says so."""
    raised = answer.get("raised")
    return ": ".join(str(part)[:200] for part in raised) if isinstance(raised, list) else "what it does not say"


class _Broken(Exception):  # noqa: N818
    """A test cannot be run, whatever the program."""


class LocalExaminer:
    """Examines programs in sandboxes of this machine."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher

    def examine(self, exam: Exam, variants: Sequence[str], limits: Limits, *, until_failure: bool = False) -> Marks:
        """See `Examiner`."""
        dialogues = [test for test in exam.tests if isinstance(test, Dialogue)]
        try:
            if dialogues:
                assert len(dialogues) == len(exam.tests)
                return marks(len(dialogues), (self._converse(test, variants, limits) for test in dialogues), until_failure)
            with ExitStack() as stack:
                return _Examination(self.launcher, exam, variants, limits, stack).run(until_failure)
        except StartFailed as error:
            return Marks(None, f"the sandbox did not start: {error}")
        except _Broken as error:
            return Marks(None, f"its tests cannot be run: {error}")

    def _converse(self, test: Dialogue, variants: Sequence[str], limits: Limits) -> str:
        stdin = input_file(test.stdin)
        try:
            with self.launcher.start(limits, stdin) as process:
                process.send({"kind": "program", "variants": list(variants)})
                output, status = process.output(longest_answer(test.stdout))
        except Stopped as error:
            return str(error)
        finally:
            os.close(stdin)
        if status:
            return f"exit status {status}"
        found = output.decode(errors="replace")
        return "" if same_output(test.stdout, found) else f"prints {found[:100]!r}"


def marks(count: int, failures: Any, until_failure: bool) -> Marks:
    """Marks of a run of verdicts, each empty for a passed test."""
    passed, reason = [], ""
    for failure in failures:
        passed.append(not failure)
        reason = reason or failure
        if failure and until_failure:
            break
    return Marks((*passed, *[False] * (count - len(passed))), reason)


class _Examination:
    """One program and its calls; the sandbox of the tests starts with the first script."""

    def __init__(
        self, launcher: Launcher, exam: Exam, variants: Sequence[str], limits: Limits, stack: ExitStack
    ) -> None:
        self.launcher, self.exam, self.variants, self.limits, self.stack = launcher, exam, variants, limits, stack
        self.tests: Process | None = None
        self.stopped = ""

    def run(self, until_failure: bool) -> Marks:
        count = len(self.exam.tests)
        solution = self.stack.enter_context(self.launcher.start(self.limits))
        job = {
            "kind": "functions", "variants": list(self.variants), "before": self.exam.before, "after": self.exam.after,
        }  # fmt: skip
        try:
            solution.send(job)
            answer = read_answer(solution.receive(_PER_CALL))
        except Stopped as error:
            return Marks((False,) * count, str(error))
        if "raised" in answer:
            return Marks((False,) * count, error_text(answer))
        return marks(count, (self.try_one(solution, test) for test in self.exam.tests), until_failure)

    def try_one(self, solution: Process, test: Test) -> str:
        """Empty if the test is passed, else why not. After one that stopped the program no other is tried."""
        if self.stopped:
            return self.stopped
        try:
            if isinstance(test, Case):
                solution.send({"eval": test.call})
                return verdict_on(test, read_answer(solution.receive(longest_answer(test.expected))))
            assert isinstance(test, Script)
            return self.run_script(solution, test)
        except Stopped as error:
            self.stopped = str(error)
            return self.stopped

    def run_script(self, solution: Process, script: Script) -> str:
        """A script in the tests' sandbox, whose calls go to the solution's."""
        if self.tests is None:
            self.tests = self.stack.enter_context(self.launcher.start(self.limits))
            self.ask_tests({"kind": "tests", "before": list(self.exam.trusted)})
        message = self.ask_tests({"script": script.source, "names": list(script.names)})
        while "call" in message:
            solution.send(message)
            # Passed on unread: there it is a value or an exception, whatever it says.
            self.tests.send(solution.receive(_RELAYED))
            message = self.ask_tests(None)
        return "" if message.get("done") is True else f"a test fails: {message.get('reason', '')}"

    def ask_tests(self, order: dict[str, Any] | None) -> dict[str, Any]:
        assert self.tests is not None
        if order is not None:
            self.tests.send(order)
        message = read_answer(self.tests.receive(_RELAYED))
        if "broken" in message:
            raise _Broken(": ".join(message["broken"]))
        return message
