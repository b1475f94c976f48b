"""Examining programs on a SandboxFusion server (github.com/bytedance/SandboxFusion), for machines without a sandbox.

Each program is one request to `POST /run_code`. For calls, the source of `sandbox_worker` is sent with the job and all calls
as its input, and the answers come back as its output; the comparison is made here, as ever. What a test calls in
the course of a script cannot be asked for over such a connection: programs with tests of that kind are not scored.

A server that cannot be reached, answers with an error, or says `SandboxError` leaves a program unscored. How well a program
is locked in is the server's affair.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from lockstitch.rewards.programs.code_tests import Case, Dialogue, called_names
from lockstitch.rewards.programs.judge import OUT_OF_TIME, Exam, Marks, error_text, marks, read_answer, verdict_on
from lockstitch.rewards.programs.same import longest_answer, same_output
from lockstitch.rewards.sandbox.launchers import Limits, Stopped, worker_source

from lockstitch.errors import without_passwords

_PATIENCE_SECONDS = 60.0  # for a server that has a queue
_LONGEST_REPLY = 2**24
_HEADER = 8
_ATTEMPTS, _PAUSE_SECONDS = 3, 1.0
# It takes its orders from the standard input and answers on the standard output; the limits are the server's.
_ON_STREAMS = "\nimport sys\n\nsys.argv[1:] = ['0', '1', '0', '0', '0', '0']\n"
# A program that runs the first of these texts that compiles.
_CHOOSES = """def _compiled(ways):
    for way in ways:
        try:
            return compile(way, "program.py", "exec")
        except (SyntaxError, ValueError):
            pass
    return compile(ways[0], "program.py", "exec")


exec(_compiled({ways}), globals())
"""
_BEGIN = '\nif __name__ == "__main__":\n'


class ServerFailed(RuntimeError):  # noqa: N818
    """The server did not run the program."""


class FusionExaminer:
    """Examines programs on a server.

    Args:
        url: where it is, `http://HOST:PORT`.
        patience: seconds to wait for an answer, besides those that the program has.

    Raises:
        ValueError: a user's name and password in the address, which would not be sent, or a port that is no number.
    """

    def __init__(self, url: str, patience: float = _PATIENCE_SECONDS) -> None:
        if "@" in urlsplit(url).netloc:
            raise ValueError(f"{without_passwords(url)}: a name and a password are not sent to a SandboxFusion server")
        try:
            _ = urlsplit(url).port
        except ValueError as error:
            raise ValueError(f"{url} is no address of a SandboxFusion server: {error}") from None
        self.url, self.patience = f"{url.rstrip('/')}/run_code", patience

    def examine(self, exam: Exam, variants: Sequence[str], limits: Limits, *, until_failure: bool = False) -> Marks:
        """See `judge.Examiner`."""
        cases = [test for test in exam.tests if isinstance(test, Case)]
        dialogues = [test for test in exam.tests if isinstance(test, Dialogue)]
        try:
            if len(dialogues) == len(exam.tests):
                return marks(
                    len(dialogues), self._converse(dialogues, _first_that_compiles(variants), limits), until_failure
                )
            if len(cases) == len(exam.tests):
                return marks(len(cases), self._call(exam, cases, variants, limits), until_failure)
        except ServerFailed as error:
            return Marks(None, str(error))
        return Marks(None, "a test that is no 'assert call == value', which a SandboxFusion server cannot be asked")

    def _call(self, exam: Exam, cases: Sequence[Case], variants: Sequence[str], limits: Limits) -> Iterator[str]:
        job = {
            "kind": "functions",
            "variants": list(variants),
            "before": exam.before,
            "after": exam.after,
            "names": sorted(called_names(cases)),
        }
        orders: list[dict[str, Any]] = [job, *({"eval": case.call} for case in cases)]
        program = worker_source().replace(_BEGIN, _ON_STREAMS + _BEGIN)
        result = self._run(program, "".join(map(_frame, orders)), limits)
        answers = _Frames(str(result.get("stdout") or ""))
        try:
            answers.next(_LONGEST_REPLY)  # that it is ready
            loaded = read_answer(answers.next(_LONGEST_REPLY))
            if "raised" in loaded:
                raise Stopped(error_text(loaded))
        except Stopped as error:
            yield from [str(error)] * len(cases)
            return
        for case in cases:
            try:
                yield verdict_on(case, read_answer(answers.next(longest_answer(case.expected))))
            except Stopped as error:
                yield str(error)

    def _converse(self, tests: Sequence[Dialogue], source: str, limits: Limits) -> Iterator[str]:
        late = ""
        for test in tests:
            failure = late or self._converse_once(test, source, limits)
            late = failure if failure == OUT_OF_TIME else ""
            yield failure

    def _converse_once(self, test: Dialogue, source: str, limits: Limits) -> str:
        result = self._run(source, test.stdin, limits)
        if result.get("status") != "Finished":
            return OUT_OF_TIME
        if result.get("return_code") != 0:
            return f"exit status {result.get('return_code')}"
        found = str(result.get("stdout") or "")
        return "" if same_output(test.stdout, found) else f"prints {found[:100]!r}"

    def _run(self, code: str, stdin: str, limits: Limits) -> dict[str, Any]:
        """`run_result` of a program: `status` (Finished, TimeLimitExceeded), `return_code`, `stdout`."""
        body = {
            "language": "python",
            "code": code,
            "stdin": stdin,
            "run_timeout": limits.seconds,
            "memory_limit_MB": limits.memory_mb,
        }
        request = urllib.request.Request(
            self.url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        for attempt in range(_ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=limits.seconds + self.patience) as response:
                    reply = json.loads(response.read(_LONGEST_REPLY))
                break
            except (OSError, ValueError, RecursionError, HTTPException) as error:  # an error's status, no JSON
                if attempt + 1 == _ATTEMPTS or not _may_pass(error):
                    raise ServerFailed(f"{self.url}: {error}") from None
                time.sleep(_PAUSE_SECONDS * 2**attempt)
        result = reply.get("run_result") if isinstance(reply, dict) else None
        if not isinstance(result, dict) or reply.get("status") == "SandboxError":
            raise ServerFailed(f"{self.url}: {str(reply)[:200]}")
        return result


def _may_pass(error: Exception) -> bool:
    """Whether a server that is busy or restarts may have said so: what it took too long for is not asked again."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (429, 502, 503, 504)
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return isinstance(cause, ConnectionError)


def _first_that_compiles(variants: Sequence[str]) -> str:
    """A program that is the first of these that compiles. That is tried there: a text may be made to do harm by it."""
    return variants[0] if len(variants) == 1 else _CHOOSES.format(ways=ascii(list(variants)))


def _frame(message: dict[str, Any]) -> str:
    data = ascii(message)  # a Python literal that survives any encoding on the way
    return f"{len(data):08x}{data}"


class _Frames:
    """The frames in a text."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0

    def next(self, longest: int) -> bytes:
        """The next frame; `Stopped` if there is none."""
        start = self.place + _HEADER
        try:
            length = int(self.text[self.place : start], 16)
        except ValueError:
            raise Stopped("it ended") from None
        if not 0 <= length <= longest or start + length > len(self.text):
            raise Stopped(f"an answer of {length} bytes, or less of it")
        self.place = start + length
        return self.text[start : self.place].encode(errors="replace")
