"""Rewards for programs that pass their tests, in a sandbox, judged from outside.

`code_reward` pays 1.0 for a program that passes all of them, `code_fraction_reward` the share that it passes. The tests are
read from whichever columns the data set has: HumanEval's (`test`, `entry_point`), MBPP's (`test_list`, `test_setup_code`,
`test_imports`), plain ones (`tests`, `setup`), or texts in and out (`inputs`, `outputs`).

Where programs run is said by the environment variable LOCKSTITCH_SANDBOX, or by `CodeReward(backend=...)`: `bwrap` (the
default), the address of a SandboxFusion server, or `unsafe`. Without a sandbox nothing runs: `SandboxUnavailable`.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lockstitch.rewards.contract import (
    Completion,
    LogExtra,
    LogMetric,
    Value,
    completion_texts,
    printable,
    report_none,
    rows_of,
)
from lockstitch.rewards.programs.code_extract import find_code, header_in, variants
from lockstitch.rewards.programs.code_names import BadTest
from lockstitch.rewards.programs.code_pairs import pairs
from lockstitch.rewards.programs.code_tests import (
    Dialogue,
    Tests,
    called_names,
    parse_check,
    parse_setup,
    parse_tests,
)
from lockstitch.rewards.programs.judge import NO_TEST, Exam, Examiner, LocalExaminer, Marks
from lockstitch.rewards.programs.sandbox_fusion import FusionExaminer
from lockstitch.rewards.sandbox.launchers import Bubblewrap, Limits, Unsafe

from lockstitch import cores

BACKEND_VARIABLE = "LOCKSTITCH_SANDBOX"
_MOST_WORKERS = 64
# LeetCode's, LiveCodeBench's and APPS's programs write `List[int]` and `heappush` without an import. This is what
# LiveCodeBench's harness puts before them, with `open` and `pow` of the built-ins.
_MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json"),
)
_IMPORTS = "\n".join(
    (
        *(f"from {name} import *" for name in (*_MODULES, "builtins", "typing")),
        *(f"import {name}" for name in _MODULES),
    )
)
_FUNCTION_COLUMNS = ("entry_point", "fn_name", "func_name", "function_name")


@functools.cache
def examiner_of(backend: str) -> Examiner:
    """Who examines: `bwrap`, `unsafe`, or the address of a SandboxFusion server.

    Raises:
        ValueError: it is none of these.
        SandboxUnavailable: there is no sandbox on this machine.
    """
    if backend == "bwrap":
        return LocalExaminer(Bubblewrap())
    if backend == "unsafe":
        return LocalExaminer(Unsafe())
    if backend.startswith(("http://", "https://")):
        return FusionExaminer(backend)
    raise ValueError(
        f"backend {backend!r} is neither 'bwrap', 'unsafe', nor the address of a SandboxFusion server (http://...)"
    )


class CodeReward:
    """A reward for programs, with settings of its own.

    Args:
        backend: `bwrap`, `unsafe`, or the address of a SandboxFusion server; by default what LOCKSTITCH_SANDBOX says at
            the time of the call, and `bwrap` where it says nothing.
        fraction: pay for the share of the tests that are passed, instead of for all or none.
        timeout: seconds that a program may take for all its calls, or for one input.
        memory_mb: MiB that it may use.
        workers: how many run at once; by default one for each core that this process may use.
        name: what it is called in metrics.

    Raises:
        ValueError: a setting that cannot be meant.
    """

    __name__: str

    def __init__(
        self,
        *,
        backend: str | None = None,
        fraction: bool = False,
        timeout: float = 10.0,
        memory_mb: int = 512,
        workers: int | None = None,
        name: str | None = None,
    ) -> None:
        if backend is not None and backend not in ("bwrap", "unsafe"):
            examiner_of(backend)  # for its refusal; a server is not asked yet
        if workers is not None and not 1 <= workers <= _MOST_WORKERS:
            raise ValueError(f"{workers} workers; from 1 to {_MOST_WORKERS} are possible")
        self.backend, self.fraction, self.workers = backend, fraction, workers
        self.limits = Limits(seconds=timeout, memory_mb=memory_mb)
        self.__name__ = name or ("code_fraction_reward" if fraction else "code_reward")

    def __repr__(self) -> str:
        return f"CodeReward(backend={self.backend!r}, fraction={self.fraction}, limits={self.limits})"

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        log_extra: LogExtra | None = None,
        log_metric: LogMetric | None = None,
        **columns: Any,
    ) -> list[Value]:
        """One value for each completion; None where the row has no tests, or its program could not be examined.

        Raises:
            SandboxUnavailable: there is no sandbox on this machine.
        """
        texts, asked = completion_texts(completions), completion_texts(prompts)
        rows = rows_of(columns, len(texts))
        marks = self.examine(asked, texts, rows)
        values = [self._value(mark) for mark in marks]
        if log_extra is not None:
            log_extra("code_result", [_said(mark) for mark in marks])
        reasons = sorted({mark.reason for mark in marks if mark.passed is None})
        report_none(self.__name__, values, log_metric, "; ".join(reasons[:5]))
        return values

    def examine(self, prompts: Sequence[str], texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Marks]:
        """What each completion's program achieved."""
        exams = [_read(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]
        if not any(isinstance(exam, _Ready) for exam in exams):
            return [exam for exam in exams if isinstance(exam, Marks)]
        examiner = examiner_of(self.backend or os.environ.get(BACKEND_VARIABLE) or "bwrap")

        def one(text: str, exam: "_Ready | Marks") -> Marks:
            if isinstance(exam, Marks):
                return exam
            reads = isinstance(exam.exam.tests[0], Dialogue)
            code = find_code(text, called_names(exam.exam.tests), reads=reads)
            programs = variants(code.text, exam.header, exam.entry_point, is_whole=code.is_whole)
            return examiner.examine(exam.exam, programs, self.limits, until_failure=not self.fraction)

        executor = ThreadPoolExecutor(self.workers or min(_MOST_WORKERS, cores.available()))
        try:
            return list(executor.map(one, texts, exams))
        finally:
            executor.shutdown(cancel_futures=True)

    def _value(self, marks: Marks) -> Value:
        if marks.passed is None:
            return None
        return sum(marks.passed) / len(marks.passed) if self.fraction else float(all(marks.passed))


def _said(marks: Marks) -> str:
    if marks.passed is None:
        return f"[not scored: {printable(marks.reason)}]"
    return "passed" if all(marks.passed) else printable(marks.reason)


def why_no_exam(row: Mapping[str, Any]) -> str | None:
    """Why a row has no tests that could be run, which is known without running any; None if it has some."""
    read = _read(row, "")
    return read.reason if isinstance(read, Marks) else None


class _Ready:
    """A row's tests, and how its programs are to be read."""

    def __init__(self, exam: Exam, header: str | None = None, entry_point: str | None = None) -> None:
        self.exam, self.header, self.entry_point = exam, header, entry_point


def _read(row: Mapping[str, Any], prompt: str) -> _Ready | Marks:
    """The tests of a row; marks without a result if it has none, or none that can be read."""
    try:
        ready = _by_columns(row, prompt)
    except BadTest as error:
        return Marks(None, str(error))
    if ready is None:
        return Marks(None, "no tests in the row")
    return ready if ready.exam.tests else Marks(None, NO_TEST)


def _by_columns(row: Mapping[str, Any], prompt: str) -> _Ready | None:
    entry_point = next((row[name] for name in _FUNCTION_COLUMNS if isinstance(row.get(name), str) and row[name]), None)
    if row.get("inputs") is not None and row.get("outputs") is not None:
        # Else a program without an `add` would be asked for the one of `operator`.
        before = f"{_IMPORTS}\nglobals().pop({entry_point!r}, None)\n" if entry_point else ""
        return _Ready(Exam(Tests(pairs(row["inputs"], row["outputs"], entry_point)), before))
    if row.get("test") and row.get("entry_point"):
        source, entry_point = _text(row["test"], "test"), _text(row["entry_point"], "entry_point")
        header = row.get("code_prompt") or header_in(prompt, entry_point.rpartition(".")[2])
        header = None if header is None else _text(header, "code_prompt")
        return _Ready(Exam(parse_check(source, entry_point, header=header)), header, entry_point.rpartition(".")[2])
    if row.get("test_list") is not None:
        # MBPP's set-up may use what the program defines, so it comes after it.
        after = "\n".join(_text(row.get(name) or "", name) for name in ("test_imports", "test_setup_code"))
        return _asserts(row["test_list"], "test_list", "", after, entry_point)
    if row.get("tests") is not None:
        setup = _text(row.get("setup") or "", "setup")
        before, after = (setup, "") if parse_setup([setup]) else ("", setup)
        return _asserts(row["tests"], "tests", before, after, entry_point)
    return None


def _text(value: Any, column: str) -> str:
    """A text, or the lines of a list of texts."""
    if isinstance(value, list | tuple) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise BadTest(f"the column {column} is no text but {type(value).__name__}")
    return value


def _asserts(tests: Any, column: str, before: str, after: str, entry_point: str | None) -> _Ready:
    sources = [tests] if isinstance(tests, str) else tests
    if not isinstance(sources, list | tuple):
        raise BadTest(f"the column {column} is no list of texts but {type(tests).__name__}")
    parsed = parse_tests([_text(source, column) for source in sources], setup=(before, after), entry_point=entry_point)
    return _Ready(Exam(parsed, before, after))


_code, _code_fraction = CodeReward(), CodeReward(fraction=True)


def code_reward(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    log_extra: LogExtra | None = None,
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[Value]:
    """1.0 for a program that passes all its tests, in a sandbox, else 0.0; None without tests or without a run.

    Columns: test, entry_point, [code_prompt]; or test_list, [test_setup_code]; or tests, [setup]; or inputs, outputs.

    Raises:
        SandboxUnavailable: there is no sandbox on this machine, and LOCKSTITCH_SANDBOX names no other place.
    """
    return _code(prompts, completions, log_extra=log_extra, log_metric=log_metric, **columns)


def code_fraction_reward(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    log_extra: LogExtra | None = None,
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[Value]:
    """The share of its tests that a program passes, in a sandbox; None without tests or without a run.

    Columns: test, entry_point, [code_prompt]; or test_list, [test_setup_code]; or tests, [setup]; or inputs, outputs.

    Raises:
        SandboxUnavailable: there is no sandbox on this machine, and LOCKSTITCH_SANDBOX names no other place.
    """
    return _code_fraction(prompts, completions, log_extra=log_extra, log_metric=log_metric, **columns)
