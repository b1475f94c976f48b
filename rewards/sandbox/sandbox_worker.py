"""What runs inside the sandbox, before and around a program: takes orders over one pipe and answers over another.

`launchers` starts an interpreter on the source of `tagged.py` and of this file, one after the other, so nothing here may
import ours. What it holds must be worth nothing to the program: code and inputs, never an expected value. A program
shares this process and can make it say anything; all that it can say is which value a call returned.

A frame is its length in eight hexadecimal digits, and then what it says. What comes out is JSON in ASCII, since nobody
trusts it; what comes in is from the judge, and is a Python literal: `json` takes longer to import than an interpreter
to start. The first frame out is `{"ready": null}`. The first one in is a job:

- `functions`: runs the program, answers `{"done": true}` or `{"raised": [type, text]}`, and then each call, given as
  `{"eval": expression}` or as `{"call": name, "args": ..., "kwargs": ...}`, by `{"value": ...}` or `{"raised": ...}`;
- `program`: runs the program as `__main__` on the standard streams, and answers nothing;
- `tests`: runs test scripts, one for each `{"script": source, "names": [...]}`, answered by `{"done": bool, "reason":
  text}`. Names that belong to the program under test are bound to functions that send `{"call": ...}` out and wait for
  the answer: that program is in another sandbox, and what comes from there is plain values.
"""

from __future__ import annotations

import builtins
import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # inside, the source of tagged.py stands above
    import types
    from collections.abc import Callable
    from typing import Any

    from lockstitch.rewards.sandbox.tagged import decode, encode

_HEADER = 8
_MOST_TIMERS = 256  # each is a signal that may be pending
_PROCESSORS = 2  # that a program is told of: pools have as many processes, and it may not have many
# Raised by a function that `map` or a `for` calls, these would end it in silence instead of failing the test.
_MISLEADING = ("StopIteration", "StopAsyncIteration")


class Raised(Exception):  # noqa: N818 - it stands for an exception of another process
    """An exception of the program under test that is none of Python's own."""


class CannotCross(Exception):  # noqa: N818
    """A test hands over what has no form outside its process, such as a function."""


def written(data: Any) -> str:
    """JSON data as JSON in ASCII."""
    if data is None or data is True or data is False:
        return {None: "null", True: "true", False: "false"}[data]
    if isinstance(data, str):
        if data.isascii() and data.isprintable() and '"' not in data and "\\" not in data:
            return f'"{data}"'
        units = data.encode("utf-16-be", "surrogatepass")
        return '"' + "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)) + '"'
    if isinstance(data, list):
        return f"[{','.join([written(item) for item in data])}]"
    if isinstance(data, dict):
        return "{" + ",".join([f"{written(key)}:{written(item)}" for key, item in data.items()]) + "}"
    return repr(data)


class Pipe:
    """Frames in, frames out."""

    def __init__(self, requests: int, answers: int) -> None:
        self.requests, self.answers = requests, answers

    def send(self, message: dict[str, Any]) -> None:
        """Writes one frame."""
        data = written(message).encode()
        data = b"%08x" % len(data) + data
        while data:
            data = data[os.write(self.answers, data) :]

    def receive(self) -> Any:
        """Waits for an order of the judge."""
        return eval(self.relayed().decode(errors="surrogatepass"), {})

    def relayed(self) -> bytes:
        """Waits for one frame."""
        return self._read(int(self._read(_HEADER), 16))

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = os.read(self.requests, count - len(data))
            if not piece:
                os._exit(0)  # nobody asks any more
            data += piece
        return data


def limit(memory: int, file_size: int, processes: int, seconds: int) -> None:
    """Sets limits that the program cannot raise; 0 leaves one as it is, -1 allows nothing."""
    for kind, most in (
        (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, file_size), (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, -1),
        (resource.RLIMIT_SIGPENDING, _MOST_TIMERS),
    ):  # fmt: skip
        if most:
            hard = resource.getrlimit(kind)[1]
            value = max(0, most) if hard == resource.RLIM_INFINITY else min(max(0, most), hard)
            resource.setrlimit(kind, (value, value))


def told(error: BaseException) -> dict[str, Any]:
    """An exception as an answer: the name of its type, and the beginning of its text."""
    try:
        text = str(error)[:200]
    except Exception:  # noqa: BLE001 - a program may raise what has no text
        text = ""
    return {"raised": [type(error).__name__, text]}


def compiled(variants: list[str], name: str) -> types.CodeType:
    """The code of the first of the sources that compiles; the error of the first one if none does."""
    return first_compiled(variants, name)[1]


def first_compiled(variants: list[str], name: str) -> tuple[str, types.CodeType]:
    """The same, with that source."""
    first: Exception | None = None
    for source in variants:
        try:
            return source, compile(source, name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            first = first or error
    raise first or ValueError("no source")


def as_script(variants: list[str], scope: dict[str, Any]) -> types.CodeType:
    """The program's code, with its text in a file, in whose folder it runs: where it, tracebacks and `inspect` look."""
    import _sitebuiltins

    for name in ("exit", "quit"):  # which `site` would have made
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    for name in ("cpu_count", "process_cpu_count"):
        if hasattr(os, name):
            setattr(os, name, lambda: _PROCESSORS)
    sys.path.insert(0, os.getcwd())
    path = sys.argv[0] = scope["__file__"] = os.path.join(os.getcwd(), "solution.py")
    source, code = first_compiled(variants, path)
    try:
        with open(path, "w", encoding="utf-8", newline="") as file:
            file.write(source)
    except OSError:  # on a server whose folder is not for writing
        pass
    return code


def module_of(name: str) -> dict[str, Any]:
    """The names of a new module, which pickling, dataclasses and `typing` can find."""
    module = type(sys)(name)
    sys.modules[name] = module
    return vars(module)


def run_functions(pipe: Pipe, job: dict[str, Any]) -> None:
    """Runs the program, then one call after another."""
    scope = module_of("solution")
    try:
        exec(compiled([job["before"]], "setup"), scope)
        exec(as_script(job["variants"], scope), scope)
        exec(compiled([job["after"]], "setup"), scope)
    except BaseException as error:  # noqa: BLE001 - the program's own, SystemExit among them
        pipe.send(told(error))
        return
    pipe.send({"done": True})
    while True:
        request = pipe.receive()
        try:
            if "eval" in request:
                result = eval(compile(request["eval"], "call", "eval", dont_inherit=True), scope)
            else:
                result = scope[request["call"]](*decode(request["args"]), **decode(request["kwargs"]))
            answer = {"value": encode(result)}
        except BaseException as error:  # noqa: BLE001
            answer = told(error)
        pipe.send(answer)


def run_program(job: dict[str, Any]) -> None:
    """Runs the program as a script; what it raises ends the process the way it ends any script."""
    scope = module_of("__main__")
    exec(as_script(job["variants"], scope), scope)


def caller(pipe: Pipe, name: str) -> Callable[..., Any]:
    """A function that is called in the other sandbox."""
    import json

    def call(*args: Any, **kwargs: Any) -> Any:
        request = {"call": name, "args": encode(args), "kwargs": encode(kwargs)}
        if '{"other":' in written([request["args"], request["kwargs"]]):
            raise CannotCross(f"an argument of {name}")
        pipe.send(request)
        answer = json.loads(pipe.relayed())
        if "raised" in answer:
            kind, text = answer["raised"]
            known = vars(builtins).get(kind)
            if isinstance(known, type) and issubclass(known, Exception) and kind not in _MISLEADING:
                try:
                    error = known(text)
                except TypeError:  # one that wants more than a text
                    error = Raised(kind, text)
                raise error
            raise Raised(kind, text)
        return decode(answer["value"])

    call.__name__ = name
    return call


def run_tests(pipe: Pipe, job: dict[str, Any]) -> None:
    """Runs the set-up, then one script after another, all in one module."""
    scope = module_of("tests")
    try:
        for source in job["before"]:
            exec(compiled([source], "setup"), scope)
    except BaseException as error:  # noqa: BLE001 - the data set's own
        pipe.send({"broken": told(error)["raised"]})
        return
    pipe.send({"done": True})
    while True:
        order = pipe.receive()
        scope.update((name, caller(pipe, name)) for name in order["names"])
        try:
            exec(compiled([order["script"]], "test"), scope)
            verdict = {"done": True, "reason": ""}
        except CannotCross as error:
            verdict = {"broken": ["CannotCross", str(error)]}
        except BaseException as error:  # noqa: BLE001
            verdict = {"done": False, "reason": ": ".join(told(error)["raised"])}
        pipe.send(verdict)


def main() -> None:
    """Takes the numbers on the command line: two pipes, which may be the standard streams, and four limits."""
    requests, answers, *limits = (int(word) for word in sys.argv[1:])
    sys.argv[1:] = []
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    limit(*limits)
    pipe = Pipe(os.dup(requests), os.dup(answers))
    pipe.send({"ready": None})
    job = pipe.receive()
    if job["kind"] == "program":
        run_program(job)
        return
    os.dup2(null, 0)
    os.dup2(null, 1)
    if job["kind"] == "functions":
        run_functions(pipe, job)
    else:
        run_tests(pipe, job)


if __name__ == "__main__":
    main()
