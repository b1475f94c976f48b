"""What stands, among the tests, for the program's objects that have no form: their operations are done where they are.

The judge sends this source to the sandbox of the tests, before that of `tests_side`, which connects it with the program.

A program must not win by an object that is equal to everything. So where a test needs a value, a remote object is none: it
equals no value, is neither less nor more, takes part in no arithmetic with values, is true, and holds what its iteration
gives. Two remote objects are compared by the program. One that the test itself makes by the name of a class (`Stack()`; by
the custom of capital letters, and of the name that stands in the test) is asked for truth, `in` and arithmetic, too, and if
its class is derived from `list`, say, it is compared with values as the list that it is.
"""

from __future__ import annotations

import operator
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import Any

    Program = Any  # `tests_side.Program`, which stands on this

_MOST_AT_ONCE, _ONE_BY_ONE = 1024, 16
_CLASSES = {
    kind.__name__: kind
    for kind in (types.FunctionType, types.MethodType, types.GeneratorType, map, zip, filter, enumerate, reversed)
}


async def awaited(program: Program, number: int) -> Any:
    return program.do("await", Remote(program, number, "object", "coroutine"))


def _batches(thing: Any) -> Iterator[tuple[list[Any], bool, Any]]:
    """What an iterator gives, one by one at first and then more at once."""
    count, ended = 0, False
    while not ended:
        items, ended, last = thing._program.do("items", thing, 1 if count < _ONE_BY_ONE else min(count, _MOST_AT_ONCE))
        count += len(items)
        yield items, ended, last


def generated(thing: Any) -> Generator[Any, Any, Any]:
    result = None
    for items, _, result in _batches(thing):  # noqa: B007 - the last one counts
        for item in items:
            sent = yield item
            while sent is not None:
                sent = yield thing._program.do("getattr", thing, "send")(sent)
    return result


class Remote:
    """An object of the program's."""

    __slots__ = ("_is_meant", "_is_member", "_kind", "_number", "_program", "_rest", "_sort")

    def __init__(self, program: Program, number: int, sort: str, kind: str) -> None:
        own = {"_program": program, "_number": number, "_sort": sort, "_kind": kind}
        for name, value in {**own, "_is_meant": False, "_is_member": False, "_rest": None}.items():
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        tells = name.startswith(("is", "startswith", "endswith")) and (hasattr(str, name) or hasattr(set, name))
        if tells and not self._is_meant:
            raise AttributeError(f"an object of the program's is no text or set that could tell {name}")
        return self._program.do("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.do("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._program.do("delattr", self, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return _CLASSES.get(self._kind) or self._program.do("getattr", self, "__class__")

    @property
    def __doc__(self) -> Any:  # type: ignore[override]
        return self._program.do("getattr", self, "__doc__")

    @property
    def __module__(self) -> Any:  # type: ignore[override]
        return self._program.do("getattr", self, "__module__")

    def __iter__(self) -> Iterator[Any]:
        found = self._program.do("iter", self)
        return found if hasattr(type(found), "__next__") else iter(found)

    def __contains__(self, item: Any) -> bool:
        if self._is_meant or is_remote(item):
            return bool(self._program.do("contains", self, item))
        return any(item is found or item == found for found in self)

    def __bool__(self) -> bool:
        return bool(self._program.do("bool", self)) if self._is_meant else True

    def __eq__(self, other: object) -> Any:
        if other is self:
            return True
        if is_remote(other):
            return self._program.do("eq", self, other) is True
        value = self._program.do("plain", self) if self._is_meant else self
        return NotImplemented if is_remote(value) else value == other

    def __ne__(self, other: object) -> Any:
        return not (self == other)

    def __hash__(self) -> int:
        return hash(self._program.do("hash", self))

    def __enter__(self) -> Any:
        return self._program.do("getattr", self, "__enter__")()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        # An assertion of the test is not for the program to swallow.
        told_error = (None, None, None) if kind is None or kind.__module__ != "builtins" else (kind, None, None)
        swallowed = self._program.do("getattr", self, "__exit__")(*told_error)
        return (
            bool(swallowed)
            and kind is not None
            and issubclass(kind, Exception)
            and not issubclass(kind, AssertionError)
        )

    async def __aenter__(self) -> Any:
        return await self._program.do("getattr", self, "__aenter__")()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> bool:
        await self._program.do("getattr", self, "__aexit__")(None, None, None)
        return False

    def __aiter__(self) -> Any:
        return self._program.do("getattr", self, "__aiter__")()

    async def __anext__(self) -> Any:
        more, item = self._program.do("anext", self)
        if not more:
            raise StopAsyncIteration
        return item

    def __copy__(self) -> Any:
        return self._program.do("copy.copy", self)

    def __deepcopy__(self, memory: Any) -> Any:
        return self._program.do("copy.deepcopy", self)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        program, name = self._program, self._kind

        def refuse(cls: type, *args: Any, **kwargs: Any) -> None:
            program.cannot(f"a class of the test's that is derived from one of the program's ({name})")

        return (type(name, (), {"__new__": refuse}),)

    def __instancecheck__(self, value: Any) -> bool:
        return is_remote(value) and bool(self._program.do("isinstance", value, self))

    def __subclasscheck__(self, kind: Any) -> bool:
        return bool(self._program.do("issubclass", kind, self))


class Calling(Remote):
    """An object of the program's that can be called: a function, a class."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._program.do("call", self, *args, **kwargs)
        return meant(result) if self._is_meant and self._sort == "class" and is_remote(result) else result


class Iterating(Remote):
    """An iterator of the program's."""

    __slots__ = ()

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        if self._rest is None:
            object.__setattr__(self, "_rest", (item for items, _, _ in _batches(self) for item in items))
        return next(self._rest)


class Generating(Iterating):
    """A generator of the program's. It is closed only where a test says so, never by being forgotten."""

    __slots__ = ()

    def _own(self) -> Generator[Any, Any, Any]:
        if self._rest is None:
            object.__setattr__(self, "_rest", generated(self))
        rest: Generator[Any, Any, Any] = self._rest
        return rest

    def __next__(self) -> Any:
        return next(self._own())

    def send(self, value: Any) -> Any:
        return self._own().send(value)

    def throw(self, *error: Any) -> Any:
        return self._program.do("getattr", self, "throw")(*error)

    def close(self) -> None:
        self._program.do("getattr", self, "close")()
        self._own().close()


for _name in ("__doc__", "__module__"):  # every class has its own of these
    for _class in (Calling, Iterating, Generating):
        setattr(_class, _name, Remote.__dict__[_name])


def is_remote(value: Any) -> bool:
    return issubclass(type(value), Remote)


def meant(thing: Any) -> Any:
    """The same object, as one that the test asks for: not what functions may return as well."""
    known = thing._program.meant
    if thing._sort == "object" and thing._is_member:
        return thing  # of an enumeration: there is one of each
    if thing._number not in known:
        known[thing._number] = type(thing)(thing._program, thing._number, thing._sort, thing._kind)
        object.__setattr__(known[thing._number], "_is_meant", True)
    return known[thing._number]


def _unary(name: str) -> Callable[[Any], Any]:
    def method(self: Any) -> Any:
        return self._program.do(name, self)

    return method


def _item(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any) -> Any:
        return self._program.do(name, self, *args)

    return method


def _binary(name: str, is_reflected: bool, is_order: bool) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not is_remote(other) and not self._is_meant:
            return NotImplemented
        if not is_remote(other) and is_order:
            value = self._program.do("plain", self)
            return NotImplemented if is_remote(value) else getattr(operator, name)(value, other)
        result = self._program.do(name, *((other, self) if is_reflected else (self, other)))
        if is_order:
            return result is True
        return meant(result) if self._is_meant and is_remote(result) else result

    return method


for _name in ("len", "str", "repr", "int", "float", "complex", "index", "abs", "neg", "pos", "invert", "reversed"):
    setattr(Remote, f"__{_name}__", _unary(_name))
for _name in ("getitem", "setitem", "delitem", "format", "round"):
    setattr(Remote, f"__{_name}__", _item(_name))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _binary(_name, is_reflected=False, is_order=True))
for _name in (
    "add",
    "sub",
    "mul",
    "matmul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "lshift",
    "rshift",
    "and",
    "or",
    "xor",
):
    _does = f"{_name}_" if _name in ("and", "or") else _name
    setattr(Remote, f"__{_name}__", _binary(_does, is_reflected=False, is_order=False))
    setattr(Remote, f"__r{_name}__", _binary(_does, is_reflected=True, is_order=False))
    if hasattr(operator, f"i{_name}"):
        setattr(Remote, f"__i{_name}__", _binary(f"i{_name}", is_reflected=False, is_order=False))
