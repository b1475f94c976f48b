"""What runs inside the sandbox, before and around a program: takes orders over one pipe and answers over another.

`launchers` starts an interpreter on the source of `tagged.py` and of this file, one after the other, so nothing here may
import ours. What it holds must be worth nothing to the program: code and inputs, never an expected value. A program
shares this process and can make it say anything; all that it can say is which value a call returned.

A frame is its length in eight hexadecimal digits, and then what it says. What comes out is JSON in ASCII, since nobody
trusts it; what comes in is a Python literal from the judge, or JSON of another worker: `json` takes longer to import than
an interpreter to start, so it is for large frames only. The first frame out is `{"ready": null}`. The first one in is a job:

- `functions`: runs the program, answers `{"done": true}` or `{"raised": [type, text]}`, and then each request:
  `{"eval": expression}` by `{"value": ...}` or `{"raised": ...}`, and others by the source that comes with the job, if one
  does (`lockstitch.rewards.programs.program_side`);
- `program`: runs the program as a script on the standard streams, and answers nothing;
- `tests`: runs the source that comes with it, which has the tests (`lockstitch.rewards.programs.tests_side`).
"""

from __future__ import annotations

import builtins
import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # inside, the source of tagged.py stands above
    import types
    from typing import Any

    from lockstitch.rewards.sandbox.tagged import encode

_HEADER = 8
_MOST_TIMERS = 256  # each is a signal that may be pending
_PROCESSORS = 2  # that a program is told of: pools have as many processes, and it may not have many
_SMALL = 2**16
_JSON_WORDS = {"null": None, "true": True, "false": False}
THE_FUNCTION = "the_function_"  # the name under which tests call whichever function the program defines last


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
        self.send_text(written(message))

    def send_text(self, text: str) -> None:
        """Writes one frame of what `written` has made."""
        data = text.encode()
        data = b"%08x" % len(data) + data
        while data:
            data = data[os.write(self.answers, data) :]

    def receive(self) -> Any:
        """Waits for an order of the judge, or for what another worker says."""
        frame = self.relayed()
        if frame[:2] == b'{"' and (len(frame) > _SMALL or b"\\ud" in frame):  # two escapes may be one character
            import json

            return json.loads(frame)
        return eval(frame.decode(errors="surrogatepass"), dict(_JSON_WORDS))

    def relayed(self) -> bytes:
        """Waits for one frame."""
        return self._read(int(self._read(_HEADER), 16))

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = os.read(self.requests, count - len(data))
            if not piece:
                os._exit(0)  # nobody asks any more
            data += piece
        return bytes(data)


def limit(memory: int, file_size: int, processes: int, seconds: int) -> None:
    """Sets limits that the program cannot raise; 0 leaves one as it is, -1 allows nothing."""
    for kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_size),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, -1),
        (resource.RLIMIT_SIGPENDING, _MOST_TIMERS),
    ):
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
        with open(path, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
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
    """Runs the program, then one request after another."""
    scope = module_of("solution")
    try:
        exec(compiled([job["before"]], "setup"), scope)
        exec(as_script(job["variants"], scope), scope)
        exec(compiled([job["after"]], "setup"), scope)
        solve_with_methods(scope, job.get("names", ()))
    except BaseException as error:  # noqa: BLE001 - the program's own, SystemExit among them
        pipe.send(told(error))
        return
    pipe.send({"done": True})
    things = exec_in_worker(job["source"])["Things"](pipe, scope, job["classes"]) if job.get("source") else None
    while True:
        request = pipe.receive()
        if things is not None and "eval" not in request:
            things.answer(request)
            continue
        try:
            answer = {"value": encode(eval(compile(request["eval"], "call", "eval", dont_inherit=True), scope))}
        except BaseException as error:  # noqa: BLE001
            answer = told(error)
        pipe.send(answer)


def exec_in_worker(source: str) -> dict[str, Any]:
    """The names of a source that stands on this one."""
    scope = dict(globals())
    exec(compile(source, "worker", "exec", dont_inherit=True), scope)
    return scope


def solve_with_methods(scope: dict[str, Any], names: list[str]) -> None:
    """Functions that are asked for and that only a class `Solution` has become its methods, of a new object each time."""
    solution = scope.get("Solution")
    for name in names:
        meant = name
        if name == THE_FUNCTION:
            own = [word for word, value in scope.items() if getattr(value, "__module__", None) == "solution"]
            functions = [word for word in own if type(scope[word]) is type(told)]
            methods = vars(solution) if isinstance(solution, type) else {}
            meant = (functions or [word for word in methods if word[:1] != "_" and callable(methods[word])] or [name])[
                -1
            ]
            scope.update({name: scope[meant]} if functions else {})
        if name not in scope and callable(solution) and callable(getattr(solution, meant, None)):
            scope[name] = lambda *args, _name=meant, **kwargs: getattr(solution(), _name)(*args, **kwargs)


def run_program(job: dict[str, Any]) -> None:
    """Runs the program as a script; what it raises ends the process the way it ends any script."""
    scope = module_of("__main__")
    exec(as_script(job["variants"], scope), scope)


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
        exec_in_worker(job["source"])["run_tests"](pipe, job)


if __name__ == "__main__":
    main()
