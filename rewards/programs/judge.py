"""The judge: asks a program in its sandbox, and compares what it answers, outside.

The program's sandbox gets the program and what it is called with, one call after another, and never what should come
out. The judge compares answers as data (`tagged`), type by type: it runs no method of an answer, builds no set or
dictionary of it, and reads no more of it than the expected value's size allows. Tests that are no plain comparison run in
a second sandbox, which holds the tests and no line of the program; its calls go through the judge to the first one.

Whatever a program does once its sandbox runs is its own fault: a test that is not passed. Only a sandbox that does not
start, or a test that cannot be run, leaves a program unscored.
"""

import functools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lockstitch.rewards.programs.code_tests import Case, Dialogue, Script, Test, Tests, called_names
from lockstitch.rewards.programs.same import as_json, is_same, longest_answer, same_output
from lockstitch.rewards.sandbox.launchers import Launcher, Limits, Process, StartFailed, Stopped, input_file

OUT_OF_TIME = "out of time"  # as `Process` says it
NO_TEST = "its tests ask nothing of the program, or check nothing"
_LARGEST, _RELAYED = 2**25, 2**27  # what a program may answer to a script; what tests may hand over
_REQUESTS = (b'{"do"', b'{"returned"', b'{"threw"')
_PER_CALL = 2**16


@dataclass(frozen=True)
class Exam:
    """What a program is up against.

    Attributes:
        row: the tests, and what they stand on.
        before: source that runs before the program, in its module.
        after: source that runs after it, in its module.
    """

    row: Tests
    before: str = ""
    after: str = ""

    @property
    def tests(self) -> tuple[Test, ...]:
        """What must be passed."""
        return self.row.tests


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
        value = as_json(answer["value"]) if test.is_json else answer["value"]
        same = is_same(test.expected, value) or (test.is_wrapped and is_same(test.expected[0], value))
    except (
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        RecursionError,
        ArithmeticError,
    ):  # it is not what `tagged` writes
        same = False
    return "" if same else f"{test.call[:100]} returns {json.dumps(answer['value'])[:100]}"


def error_text(answer: dict[str, Any]) -> str:
    """What was raised, as far as it says so."""
    raised = answer.get("raised")
    return ": ".join(str(part)[:200] for part in raised[:2]) if isinstance(raised, list) else "what it does not say"


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
                return marks(len(dialogues), self._converse(dialogues, variants, limits), until_failure)
            with ExitStack() as stack:
                return _Examination(self.launcher, exam, variants, limits, stack).run(until_failure)
        except StartFailed as error:
            return Marks(None, f"the sandbox did not start: {error}")
        except _Broken as error:
            return Marks(None, f"its tests cannot be run: {error}")

    def _converse(self, tests: Sequence[Dialogue], variants: Sequence[str], limits: Limits) -> Iterator[str]:
        """What is wrong with each output. A program that is late once is not waited for again."""
        late = ""
        for test in tests:
            failure = late or self._converse_once(test, variants, limits)
            late = failure if failure == OUT_OF_TIME else ""
            yield failure

    def _converse_once(self, test: Dialogue, variants: Sequence[str], limits: Limits) -> str:
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
        found = output.decode(errors="surrogateescape")
        return "" if same_output(test.stdout, found) else f"prints {found[:100]!r}"


def marks(count: int, failures: Any, until_failure: bool) -> Marks:
    """Marks of a run of verdicts, each empty for a passed test; one that turns out to be no test does not count."""
    passed, reason = [], ""
    for failure in failures:
        if failure == NO_TEST:
            count -= 1
            continue
        passed.append(not failure)
        reason = reason or failure
        if failure and until_failure:
            break
    if count == 0:
        return Marks(None, NO_TEST)
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
        tests = self.exam.tests
        solution = self.stack.enter_context(self.launcher.start(self.limits))
        has_scripts = any(isinstance(test, Script) for test in tests)
        job = {
            "kind": "functions",
            "variants": list(self.variants),
            "before": self.exam.before,
            "after": self.exam.after,
            "names": sorted(called_names(tests)),
            "classes": list(self.exam.row.classes),
            "source": _source("program_side") if has_scripts else "",
        }
        try:
            solution.send(job)
            answer = read_answer(solution.receive(_PER_CALL))
        except Stopped as error:
            return Marks((False,) * len(tests), str(error))
        if "raised" in answer:
            return Marks((False,) * len(tests), error_text(answer))
        return marks(len(tests), (self.try_one(solution, test) for test in tests), until_failure)

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
            row = self.exam.row
            job = {
                "kind": "tests",
                "source": _source("remote_objects", "tests_side"),
                "modules": list(row.modules),
                "classes": list(row.classes),
                "before": [{**_order(script), "is_ours": not script.names} for script in row.setup],
                "stand_ins": {name: _source(f"stand_in_{name}") for name in row.stand_ins},
            }
            self.ask_tests(solution, job)
        message = self.ask_tests(solution, _order(script))
        if message.get("is_idle") is True:
            return NO_TEST
        return "" if message.get("done") is True else f"a test fails: {message.get('reason', '')}"

    def ask_tests(self, solution: Process, order: dict[str, Any]) -> dict[str, Any]:
        """Has the tests' sandbox do something, and brings its requests to the solution's."""
        assert self.tests is not None
        self.tests.send(order)
        while True:
            frame = self.tests.receive(_RELAYED)
            if not frame.startswith(_REQUESTS):
                break
            solution.send(frame)
            # Passed on unread: there it is a value or an exception, whatever it says.
            self.tests.send(solution.receive(_LARGEST))
        message = read_answer(frame)
        if "broken" in message:
            raise _Broken(": ".join(message["broken"]))
        return message


def _order(script: Script) -> dict[str, Any]:
    return {"script": script.source, "names": list(script.names)}


@functools.cache
def _source(*names: str) -> str:
    """The sources of modules beside this one, for the other side of the wall, as one."""
    future = "from __future__ import annotations\n"
    texts = [(Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8") for name in names]
    return future + "\n".join(text.replace(future, "") for text in texts)
