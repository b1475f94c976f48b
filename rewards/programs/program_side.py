"""The program's half of tests that call it from another sandbox: what they may ask for, and what they get.

The judge sends this source with the job to the program's sandbox, where it stands on that of `sandbox_worker`. The other
half is `tests_side`. As everything there, it is at the mercy of the program: all that it can say is which value came of a
request.
"""

from __future__ import annotations

import builtins
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # inside, the sources of tagged.py and sandbox_worker.py stand above
    from collections.abc import Callable, Iterator
    from typing import Any

    from lockstitch.rewards.sandbox.sandbox_worker import Pipe, told
    from lockstitch.rewards.sandbox.tagged import Wall, change, content_of, copy_of, decode, encode

_MOST_PRINTED, _LONGEST_CHAIN = 2**20, 8


class Things(Wall):
    """What a program's tests, in the other sandbox, have got hold of, and what they want with it.

    A request is `{"do": operation, "args": [...], "kwargs": {...}}`. Besides `tagged` data there are `{"ref": number}` for
    what has no form and stays here, `{"callback": [number, name]}` for a function and `{"iterator": ...}` for an iterator of
    the tests, `{"named": [module, name]}` for one of Python's own functions, and `{"exception": [name, args]}`.

    The answer is `{"value": ..., "changed": [[number, data], ...], "names": {...}, "printed": text}`, where `changed` are
    the containers among the arguments that are not what they were, and `names` what the tests' names mean now; or
    `{"raised": [...]}`; or, before either, `{"callback": number, "args": ...}`, whose answer is `{"returned": ...}` or
    `{"threw": [...]}`.
    """

    def __init__(self, pipe: Pipe, scope: dict[str, Any], classes: list[str]) -> None:
        super().__init__()
        self.pipe, self.scope = pipe, scope
        self.classes = {name: scope[name] for name in classes if isinstance(scope.get(name), type)}
        self.kept: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.late: dict[int, BaseException] = {}  # what iterators raised behind the last item
        self.stubs: dict[int, Any] = {}
        self.loop: Any = None
        self.chain = 0  # of exceptions, each the cause of the one before
        self.watched: dict[str, tuple[Any, Any]] = {}  # what names had for a value, and what was in it
        self.lock = __import__("_thread").RLock()

    def outward(self, value: Any) -> dict[str, Any]:
        """What stands for a value that has no form."""
        kind: type = type(value)
        name = kind.__name__
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.kept)
            self.kept.append(value)
        names = [[base.__module__, base.__name__] for base in (value if isinstance(value, type) else kind).__mro__]
        if issubclass(kind, type):
            sort = "class"
        elif issubclass(kind, BaseException):
            sort = "error"
        elif hasattr(kind, "__await__"):
            sort = "awaitable"
        elif hasattr(kind, "__next__"):
            sort = "iterator"
        else:
            sort = "function" if name in ("function", "method", "builtin_function_or_method") else "object"
        more: list[Any] = []
        if sort == "error":
            self.chain += 1
            is_told = value.__cause__ is not None and self.chain < _LONGEST_CHAIN
            cause = self.outward(value.__cause__) if is_told else None
            self.chain -= 1
            more = [bases_of(kind), self.sent(value.args), self.sent(vars(value)), told(value)["raised"][1], cause]
        elif sort == "class" and issubclass(value, BaseException):
            more = [bases_of(value)]
        return {"ref": [self.numbers[id(value)], sort, names, callable(value), more]}

    def sent(self, value: Any) -> Any:
        """A value on its way out."""
        return encode(value, wall=self)

    def inward(self, tag: str, content: Any) -> Any:
        """What a tag of the tests stands for."""
        if tag == "ref":
            return self.kept[content]
        if tag == "named":
            return getattr(__import__(content[0], fromlist=["x"]), content[1])
        if tag == "exception":
            return vars(builtins)[content[0]](*decode(content[1], wall=self))
        if tag in ("callback", "iterator"):
            number, name = content
            if number not in self.stubs:
                stub = self.stub(number)
                stub.__name__ = stub.__qualname__ = name
                self.stubs[number] = stub if tag == "callback" else items_of(stub)
            return self.stubs[number]
        raise ValueError(f"unknown tag {tag!r}")

    def stub(self, number: int) -> Callable[..., Any]:
        """A function of the tests."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.lock:
                self.pipe.send({"callback": number, "args": self.sent(args), "kwargs": self.sent(kwargs)})
                while True:
                    message = self.pipe.receive()
                    if "returned" in message:
                        return decode(message["returned"], wall=self)
                    if "threw" in message:
                        kind = vars(builtins).get(message["threw"][0], Exception)
                        raise kind(message["threw"][1])
                    self.answer(message)

        return call

    def answer(self, request: dict[str, Any]) -> None:
        """Does what is asked and says what came of it."""
        printed = sys.stdout
        raw = __import__("_io").BytesIO()
        sys.stdout = said = __import__("_io").TextIOWrapper(raw, "utf-8", "replace", write_through=True)
        containers: list[Any] = []
        try:
            args = decode(request["args"], wall=self, shared=containers)
            kwargs = decode(request["kwargs"], wall=self, shared=containers)
            before = [content_of(container) for container in containers]
            memory = {id(container): (number, container) for number, container in enumerate(containers)}
            value = self.do(request["do"], args, kwargs)
            others = [n for n, container in enumerate(containers) if is_another(content_of(container), before[n])]
            changed = [[n, encode(copy_of(containers[n]), wall=self, shared=dict(memory))] for n in others]
            data = self.outward(value.value) if type(value) is Kept else encode(value, wall=self, shared=memory)
            answer = {"value": data, "changed": changed, "names": self.news()}
            if request["do"] == "getattr" and type(value) in (list, dict, set):
                answer["lent"] = self.outward(value)["ref"][0]
        except BaseException as error:  # noqa: BLE001
            try:
                answer = {**told(error), "error": self.outward(error)}
            except BaseException:  # noqa: BLE001 - one that cannot be looked at
                answer = told(error)
        finally:
            sys.stdout = printed
        if not said.closed and (text := raw.getvalue()):
            answer["printed"] = text[:_MOST_PRINTED].decode(errors="replace")
        self.pipe.send(answer)

    def do(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """One operation."""
        if name == "names":
            found = {word: self.scope[word] for word in args if word in self.scope}
            self.watched |= {word: (value, held(value)) for word, value in found.items()}
            return found
        if name == "call":
            result = args[0](*args[1:], **kwargs)
            # An object of its own class is meant, even if it is a list, say.
            is_own = isinstance(args[0], type) and args[0].__module__ == "solution"
            is_own = is_own and not hasattr(args[0], "_fields") and not hasattr(args[0], "__members__")
            return Kept(result) if is_own and type(result) is args[0] else result
        if name == "plain":
            return args[0]  # as what it is an instance of, if that has a form
        if name == "give back":
            return change(*args)
        if name == "items":
            return self.items(*args)
        if name in ("await", "anext"):
            import asyncio

            self.loop = self.loop or asyncio.new_event_loop()
            if name == "await":
                return self.loop.run_until_complete(args[0])
            try:
                return [True, self.loop.run_until_complete(type(args[0]).__anext__(args[0]))]
            except StopAsyncIteration:
                return [False, None]
        module, _, word = name.rpartition(".")
        function = getattr(__import__(module), word) if module else vars(builtins).get(name)
        return (function or getattr(__import__("_operator"), name))(*args, **kwargs)

    def news(self) -> dict[str, Any]:
        """Names that tests have got and that mean another value now, or one that has changed."""
        found = {}
        for name, (value, was) in self.watched.items():
            now = self.scope.get(name)
            if now is not value or is_another(held(now), was):
                found[name] = now
        self.watched |= {name: (value, held(value)) for name, value in found.items()}
        return {name: self.sent(value) for name, value in found.items()}

    def items(self, iterator: Any, count: int) -> tuple[list[Any], bool, Any]:
        """Up to so many items, whether these were the last ones, and what a generator returns."""
        if id(iterator) in self.late:
            raise self.late.pop(id(iterator))
        found: list[Any] = []
        try:
            while len(found) < count:
                found.append(next(iterator))
        except StopIteration as stop:
            return found, True, stop.value
        except BaseException as error:
            if not found:
                raise
            self.late[id(iterator)] = error
        return found, False, None


def bases_of(kind: type) -> list[Any]:
    """An exception's class by module and name, and its bases in the same way."""
    return [
        kind.__module__,
        kind.__name__,
        [bases_of(base) for base in kind.__bases__ if issubclass(base, BaseException)],
    ]


def held(value: Any) -> list[Any]:
    """What a container holds; nothing of what is none."""
    return content_of(value) if isinstance(value, list | dict | set | bytearray) else []


class Kept:
    """A value that must not cross, whatever form its type has."""

    def __init__(self, value: Any) -> None:
        self.value = value


def items_of(step: Callable[[], Any]) -> Iterator[Any]:
    """The items of an iterator of the tests."""
    while True:
        more, item = step()
        if not more:
            return
        yield item


def is_another(content: list[Any], was: list[Any]) -> bool:
    """Whether it is not made of the same objects."""
    return len(content) != len(was) or any(a is not b for a, b in zip(content, was, strict=True))
