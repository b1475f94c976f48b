"""The tests' half of tests that call a program in another sandbox: the connection, and how tests are run.

The judge sends this source, behind those of `sandbox_worker` and `remote_objects`, to a sandbox that holds the tests and no
line of the program. What has a form (`tagged`) crosses as a value. For what has none a `Remote` stands here, whose methods
are carried out in the program's sandbox (`program_side` is the other half), so that tests may use objects with a state,
functions that are returned, iterators, coroutines and exceptions of the program's own.

What a test hands over and cannot cross ends it without a verdict (`broken`); that depends on the test alone.
"""

from __future__ import annotations

import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:  # inside, these sources stand above
    import threading
    from collections.abc import Callable
    from typing import Any

    from lockstitch.rewards.programs.remote_objects import (
        Calling,
        Generating,
        Iterating,
        Remote,
        awaited,
        is_remote,
        meant,
    )
    from lockstitch.rewards.sandbox.sandbox_worker import Pipe, compiled, module_of, told, written
    from lockstitch.rewards.sandbox.tagged import Wall, change, decode, encode

_LONGEST_REQUEST = 2**26
_MOST_LOANS, _SMALL_LOAN = 16, 2**14
# Raised by a function that `map` or a `for` calls, these would end it in silence instead of failing the test; SkipTest, too.
_MISLEADING = {"StopIteration", "StopAsyncIteration", "GeneratorExit", "SkipTest"}


class CannotCross(BaseException):  # no test may catch it
    """A test hands over what has no form outside its process."""


class Raised(Exception):  # noqa: N818 - it stands for an exception of another process
    """An exception of the program that none of Python's own and none of its classes stands for."""


class Program(Wall):
    """The program under test, seen from here."""

    def __init__(self, pipe: Pipe) -> None:
        super().__init__()
        self.pipe = pipe
        self.broken = ""
        self.requests = 0  # what was asked of the program
        self.taken = 0  # how much has come from the program
        self.objects: dict[int, Any] = {}
        self.meant: dict[int, Any] = {}
        self.lent: list[tuple[Any, int, str]] = []  # containers of the program's objects, and what was in them
        self.scope: dict[str, Any] = {}  # of the tests
        self.bound: dict[str, Any] = {}  # what names in it were last given for a value of the program's
        self.callables: list[Any] = []  # so that no other gets the place of one in memory
        self.errors: dict[tuple[str, str], type] = {}
        self.handed: list[Any] = []
        self.places: dict[int, int] = {}
        self.lock: threading.RLock = __import__("threading").RLock()

    def do(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Has something done there, and returns or raises what came of it."""
        with self.lock:
            self.requests += name != "names"
            self.give_back(name)
            shared: dict[int, Any] = {}
            request = {"do": name}
            request["args"] = encode(list(args), wall=self, shared=shared)
            request["kwargs"] = encode(kwargs, wall=self, shared=shared)
            containers = [container for _, container in shared.values()]
            text = written(request)
            if len(text) > _LONGEST_REQUEST and self.taken < _LONGEST_REQUEST // 64:
                self.cannot("more than can be handed over")  # and it is not from the program
            self.pipe.send_text(text)
            while True:
                frame = self.pipe.relayed()
                self.taken += len(frame)
                answer = __import__("json").loads(frame)
                if "callback" not in answer:
                    break
                self.pipe.send(self.called_back(answer))
            sys.stdout.write(answer.get("printed", ""))
            for number, data in answer.get("changed", ()):
                change(containers[number], decode(data, wall=self, shared=list(containers)))
            for word, data in answer.get("names", {}).items():
                if word in self.bound and self.scope.get(word) is self.bound[word]:
                    self.bound[word] = self.scope[word] = decode(data, wall=self)
            if "raised" in answer:
                raise self.error(answer)
            value = decode(answer["value"], wall=self, shared=list(containers))
            if "lent" in answer and len(frame) < _SMALL_LOAN:
                self.lent = [*self.lent[1 - _MOST_LOANS :], (value, answer["lent"], written(encode(value, wall=self)))]
            return value

    def give_back(self, name: str) -> None:
        """Lists and such of the program's objects that the test has changed are changed there, too, before all else."""
        if name == "give back" or not self.lent:
            return
        changed = [loan for loan in self.lent if written(encode(loan[0], wall=self)) != loan[2]]
        self.lent = [loan for loan in self.lent if not any(loan is other for other in changed)]
        for value, number, _ in changed:
            self.do("give back", Remote(self, number, "object", "list"), value)

    def called_back(self, request: dict[str, Any]) -> dict[str, Any]:
        """The program calls a function of the tests."""
        function = self.handed[request["callback"]]
        try:
            result = function(*decode(request["args"], wall=self), **decode(request["kwargs"], wall=self))
            return {"returned": encode(result, wall=self)}
        except Exception as error:  # noqa: BLE001
            return {"threw": told(error)["raised"]}

    def cannot(self, what: str) -> None:
        """The test is broken."""
        self.broken = self.broken or what
        raise CannotCross(what)

    # --- what crosses ---

    def outward(self, value: Any) -> Any:
        """What stands for a value of the tests."""
        kind = type(value)
        if issubclass(kind, Remote):
            return {"ref": object.__getattribute__(value, "_number")}
        if issubclass(kind, type) and getattr(value, "_number", None) is not None:
            return {"ref": value._number}
        module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
        is_pythons = isinstance(module, str) and module.partition(".")[0] in sys.stdlib_module_names - {"__main__"}
        if is_pythons and isinstance(name, str) and getattr(sys.modules.get(str(module)), name, None) is value:
            return {"named": [module, name]}
        if isinstance(value, BaseException) and kind.__module__ == "builtins":
            return {"exception": [kind.__name__, encode(list(value.args), wall=self)]}
        is_iterator = hasattr(kind, "__next__") and not hasattr(kind, "read")
        is_handed = is_iterator or (callable(value) and not isinstance(value, type))
        if is_handed and id(value) not in self.places:
            self.places[id(value)] = len(self.handed)
            self.handed.append(_step(value) if is_iterator else value)
            self.callables.append(value)
        if id(value) not in self.places:
            self.cannot(f"a value of type {kind.__name__}")
        label = name if isinstance(name, str) else kind.__name__
        return {"iterator" if is_iterator else "callback": [self.places[id(value)], label]}

    def inward(self, tag: str, content: Any) -> Any:
        """What stands here for a thing of the program's."""
        if tag != "ref":
            raise ValueError(f"unknown tag {tag!r}")
        number, sort, names, can_call, more = content
        if number not in self.objects:
            self.objects[number] = self.stand_in(number, sort, names, can_call, more)
        if sort == "class" and number in self.meant:
            return self.meant[number]
        found = self.objects[number]
        return found() if sort == "awaitable" else found

    def stand_in(self, number: int, sort: str, names: list[list[str]], can_call: bool, more: Any) -> Any:
        """A stand-in."""
        if sort == "error":
            error = self.made_error(self.error_class(more[0]), more[1:4])
            error.__cause__ = self.inward("ref", more[4]["ref"]) if more[4] else None
            return error
        if sort == "class" and more:
            kind = self.error_class(more[0])
            if kind.__module__ != "builtins":
                kind._number = number  # type: ignore[attr-defined]
            return kind
        if sort == "awaitable":
            return lambda: awaited(self, number)
        if names[0][1] == "generator":
            return Generating(self, number, "object", "generator")
        made = (Calling if can_call else Iterating if sort == "iterator" else Remote)(self, number, sort, names[0][1])
        object.__setattr__(made, "_is_member", ["enum", "Enum"] in names)
        return made

    def error(self, answer: dict[str, Any]) -> BaseException:
        """The exception that an answer tells of."""
        kind, text = answer["raised"][:2]
        if "error" not in answer:
            return Raised(kind, text)
        made = self.inward("ref", answer["error"]["ref"])
        return made if isinstance(made, BaseException) else Raised(kind, text)

    def error_class(self, described: list[Any]) -> type:
        """The class of an exception: Python's own, one of a module that is loaded here, or a namesake of the program's."""
        module, name, bases = described
        own = module in ("solution", "__main__")
        found = None if own or name in _MISLEADING else vars(sys.modules.get(module, types)).get(name)
        if isinstance(found, type) and issubclass(found, BaseException):
            return found
        if (module, name) not in self.errors:
            parents = tuple(self.error_class(base) for base in bases if base[1] not in _MISLEADING) if own else ()
            try:
                made = type(name, parents or (Raised,), {"__module__": module, "__str__": _said, "_number": None})
            except TypeError:  # bases of one memory layout each
                made = type(name, (Raised,), {"__str__": _said, "_number": None})
            self.errors[module, name] = made
        return self.errors[module, name]

    def made_error(self, kind: type, more: Any) -> BaseException:
        """An exception with its arguments, attributes and text."""
        args, attributes, text = more
        args = decode(args, wall=self)
        made: BaseException = kind.__new__(kind, *args)
        pythons = next(base for base in kind.__mro__ if base.__module__ == "builtins")
        getattr(pythons, "__init__")(made, *args)  # noqa: B009 - of this class, which may inherit it
        for name, value in decode(attributes, wall=self).items():
            setattr(made, name, value)
        made.said = text  # type: ignore[attr-defined]
        return made


def _said(error: Any) -> str:
    return getattr(error, "said", None) or BaseException.__str__(error)


def _step(iterator: Any) -> Callable[[], tuple[bool, Any]]:
    def step() -> tuple[bool, Any]:
        for item in iterator:
            return True, item
        return False, None

    return step


class Module(types.ModuleType):
    """What `import solution` gives."""

    def __init__(self, name: str, program: Program) -> None:
        super().__init__(name)
        self.__dict__["__path__"] = []
        self.__dict__["_program"] = program

    def __getattr__(self, name: str) -> Any:
        found = {} if name.startswith("__") else names_of(self.__dict__["_program"], [name])
        if name not in found:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return found[name]


def names_of(program: Program, names: list[str]) -> dict[str, Any]:
    """Those of the names that the program defines, and what it means by them."""
    found: dict[str, Any] = program.do("names", *names)
    asked = {name for name, value in found.items() if is_remote(value) and name.lstrip("_")[:1].isupper()}
    return {name: meant(value) if name in asked else value for name, value in found.items()}


def look_into_remotes(program: Program, module: types.ModuleType) -> None:
    """Lets functions of `dataclasses`, which look at types, be carried out where the types are."""

    def there(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(thing: Any, *args: Any, **kwargs: Any) -> Any:
            if is_remote(thing):
                return program.do(f"{module.__name__}.{function.__name__}", thing, *args, **kwargs)
            return function(thing, *args, **kwargs)

        return call

    for name in ("asdict", "astuple", "fields", "is_dataclass", "replace"):
        function = vars(module)[name]
        if function.__module__ == module.__name__:
            setattr(module, name, there(function))


def run_test(test: Any) -> None:
    """Runs a function of tests, or a class of them."""
    import inspect
    import unittest

    if not isinstance(test, type):
        # A function; with `pytest.mark.parametrize`, once for each set of arguments.
        for arguments in getattr(test, "_lockstitch_arguments", [{}]):
            outcome = test(**arguments)
            if inspect.iscoroutine(outcome):
                __import__("asyncio").run(outcome)
        return
    if issubclass(test, unittest.TestCase):
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(test).run(result)
        failed = [text for _, text in (*result.failures, *result.errors)] + ["passes"] * len(
            result.unexpectedSuccesses
        )
        if result.skipped and len(result.skipped) == result.testsRun:
            failed.append("skips all of its tests")  # if it always did, it would be none
        if failed:
            raise AssertionError(failed[0].strip().rpartition("\n")[2])
        return
    for name in [name for name in vars(test) if name.startswith("test")]:
        it = test()
        prepare = getattr(it, "setup_method", lambda: None)
        prepare(*[None] * len(inspect.signature(prepare).parameters))
        run_test(getattr(it, name))


def counted(source: str) -> tuple[str, bool]:
    """The script, which notes that an assertion is reached, and whether it also checks in another way."""
    ast = __import__("ast")
    try:
        tree = ast.parse(source)
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        otherwise = False
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert):
                reached = ast.parse("asserted_.append(1) is None", mode="eval").body
                node.test = ast.BoolOp(ast.And(), [reached, node.test])
            elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot) and len(node.ops) == 1:
                sides = [node.left, node.comparators[0]]
                node.left, node.comparators = _one_of_each(ast, sides[0]), [_one_of_each(ast, sides[1])]
            elif isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                is_check = (
                    name.lower().lstrip("_").startswith(("assert", "raises", "fail", "check", "expect", "verify"))
                )
                otherwise = otherwise or (is_check and name not in functions)
            otherwise = otherwise or isinstance(node, ast.Raise)
        return ast.unparse(ast.fix_missing_locations(tree)), otherwise
    except RecursionError:
        return source, True


def _one_of_each(ast: types.ModuleType, side: Any) -> Any:
    """A side of `is`: of one that may be an object of the program's, the stand-in that is always the same."""
    if isinstance(side, ast.Constant):
        return side
    return ast.Call(ast.Name("one_of_each_", ast.Load()), [side], [])


def one_of_each(value: Any) -> Any:
    """The one stand-in for an object of the program's, of which a test may hold two; any other value is itself."""
    return value._program.objects.get(value._number, value) if is_remote(value) else value


def run_tests(pipe: Pipe, job: dict[str, Any]) -> None:
    """Runs the set-up, then one script after another, all in one module."""
    program = Program(pipe)
    scope = program.scope = module_of("__main__")
    scope["run_test_"], scope["one_of_each_"] = run_test, one_of_each
    for name in job["modules"]:
        sys.modules[name] = Module(name, program)
    for name, source in job["stand_ins"].items():
        exec(source, module_of(name))

    verdict: dict[str, Any] = {"ready": None}
    checks_otherwise = False
    before, failed = [*job["before"]], None
    while True:
        if not before:
            pipe.send(verdict)
        order = before.pop(0) if before else pipe.receive()
        if "dataclasses" in order["script"]:
            look_into_remotes(program, __import__("dataclasses"))
        try:
            program.bound |= names_of(program, order["names"]) if order["names"] else {}
            scope.update({name: program.bound[name] for name in order["names"] if name in program.bound})
            asked = program.requests
            asserted: list[int] = []
            scope["asserted_"] = asserted
            source, otherwise = counted(order["script"])
            checks_otherwise = checks_otherwise or otherwise
            exec(compiled([source], "test"), scope)
            # Without a call and a value of the program's, what was not asserted is the test's own affair.
            values = [program.bound[name] for name in order["names"] if name in program.bound]
            is_idle = not asserted and program.requests == asked and all(map(is_remote, values))
            verdict = failed or {"done": True, "reason": "", "is_idle": is_idle and not checks_otherwise}
        except BaseException as error:  # noqa: BLE001
            verdict = failed or {"done": False, "reason": ": ".join(told(error)["raised"])}
        if program.broken:
            verdict = {"broken": ["a test hands over what cannot cross", program.broken]}
        elif "is_ours" in order and verdict.get("done") is False:
            # A set-up that fails by itself is the row's fault, one that asks for the program is the program's.
            verdict = failed = {"broken": [verdict["reason"]]} if order["is_ours"] else verdict
        program.classes = {name: scope[name] for name in job["classes"] if isinstance(scope.get(name), type)}
