"""Values as JSON that keeps Python's types, so that they can leave a sandbox without being unpickled.

JSON's own null, true, false, texts, lists and numbers stand for themselves; everything else is an object with one key, the
tag: `{"tuple": [...]}`, `{"set": [...]}`, `{"dict": [[key, value], ...]}`, `{"int": "0x..."}` for what is longer than a
machine word, `{"float": "nan"}` for what JSON has no number for, `{"bytes": "hex"}`, `{"type": "name"}` for a built-in
type, and so on for the standard types in `_FORMS`; and `{"other": "the type's name"}`, which equals nothing. Instances of
subclasses are written as what they are instances of, by the standard type's own methods: whatever they override, only the
plain value arrives. Named tuples keep the names of their fields.

With `shared`, lists and other containers that can be changed are numbered in the order in which they are met, on both
sides of the wall, and one that is met again is `{"same": number}`. With a `Wall`, both sides have forms of their own, and
objects of classes that are defined on both sides cross as `{"instance": [class, [[attribute, value], ...]]}`.

This file runs on both sides of the wall: its source is also part of the program that `launchers` starts, which can import
nothing of ours. There it imports as little as it can, because a program starts in 10 ms, and `json` or `typing` take
as long again.
"""

from __future__ import annotations

import builtins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Shared = dict[int, tuple[int, Any]]

DEEPEST = 90  # Python's own parser takes twice that
_INFINITY = float("inf")
_WORD = 2**63
_NOT_FINITE = ("nan", "inf", "-inf")
_CONSTANTS = {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}


class Other:
    """What stands for a value of a type that does not cross: it equals only itself."""

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name

    def __repr__(self) -> str:
        return f"<a value of type {self.type_name}>"


class Wall:
    """What one side knows besides the standard types."""

    def __init__(self) -> None:
        self.classes: dict[str, type] = {}  # those that are defined on both sides

    def outward(self, value: Any) -> Any:
        """The data of a value that has no form."""
        raise NotImplementedError

    def inward(self, tag: str, content: Any) -> Any:
        """What a tag of the other side's stands for."""
        raise NotImplementedError


def _zone(value: Any) -> Any:
    """What a time zone is made of again: nothing, seconds, or a name."""
    if value is None or type(value).__name__ == "ZoneInfo":
        return value and str(value)
    if type(value).__name__ != "timezone":
        raise ValueError(f"a time zone of type {type(value).__name__}")
    offset = value.utcoffset(None)
    return [offset.days * 86400 + offset.seconds, offset.microseconds]


def _in_zone(data: Any) -> Any:
    import datetime

    if data is None:
        return None
    if isinstance(data, str):
        import zoneinfo

        return zoneinfo.ZoneInfo(data)
    return datetime.timezone(datetime.timedelta(seconds=data[0], microseconds=data[1]))


def _made(module: str, name: str) -> Any:
    """One of the standard types, whose module is loaded for the first of its values."""
    import importlib

    return getattr(importlib.import_module(module), name)


def _named_tuple(name: str, fields: tuple[str, ...], known: dict[Any, Any] = {}) -> Any:  # noqa: B006 - it is a memory
    """One type for each name and fields: making one takes longer than everything else here."""
    if (name, fields) not in known:
        known[name, fields] = _made("collections", "namedtuple")(name, fields)
    return known[name, fields]


def _stamp(value: Any) -> list[Any]:
    return [value.hour, value.minute, value.second, value.microsecond, _zone(value.tzinfo), value.fold]


def _unstamped(kind: Any, numbers: list[Any]) -> Any:
    *parts, zone, fold = numbers
    return kind(*parts, _in_zone(zone), fold=fold)


def _day(value: Any) -> list[int]:
    return [value.year, value.month, value.day]


# For the types that are not containers: how they are taken apart into what has a form already, and made again.
_FORMS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "builtins.bytearray": (lambda v: bytearray.hex(v), lambda d: bytearray.fromhex(d)),
    "builtins.memoryview": (lambda v: memoryview.tobytes(v).hex(), lambda d: memoryview(bytes.fromhex(d))),
    "builtins.range": (lambda v: [v.start, v.stop, v.step], lambda d: range(*d)),
    "builtins.slice": (lambda v: [v.start, v.stop, v.step], lambda d: slice(*d)),
    "builtins.dict_keys": (list, lambda d: dict.fromkeys(d).keys()),
    "builtins.dict_values": (list, lambda d: dict(enumerate(d)).values()),
    "builtins.dict_items": (list, lambda d: dict(d).items()),
    "array.array": (lambda v: [v.typecode, v.tolist()], lambda d: _made("array", "array")(*d)),
    "decimal.Decimal": (lambda v: _made("decimal", "Decimal").__str__(v), lambda d: _made("decimal", "Decimal")(d)),
    "fractions.Fraction": (lambda v: [v.numerator, v.denominator], lambda d: _made("fractions", "Fraction")(*d)),
    "datetime.datetime": (lambda v: [*_day(v), *_stamp(v)], lambda d: _unstamped(_made("datetime", "datetime"), d)),
    "datetime.date": (_day, lambda d: _made("datetime", "date")(*d)),
    "datetime.time": (_stamp, lambda d: _unstamped(_made("datetime", "time"), d)),
    "datetime.timedelta": (
        lambda v: [v.days, v.seconds, v.microseconds],
        lambda d: _made("datetime", "timedelta")(*d),
    ),
    "datetime.timezone": (_zone, _in_zone),
    "zoneinfo.ZoneInfo": (_zone, _in_zone),
    "uuid.UUID": (lambda v: v.int, lambda d: _made("uuid", "UUID")(int=d)),
    "pathlib.PurePath": (str, lambda d: _made("pathlib", "Path")(d)),
}
# Dictionaries that are more than one: what they are made with besides their items.
_DICTIONARIES = ("collections.Counter", "collections.OrderedDict", "collections.defaultdict")


def _names(kind: type) -> list[str]:
    """The names of a type and its bases, by which standard types are known without importing them."""
    bases = type.__dict__["__mro__"].__get__(kind)
    names = [f"{base.__module__}.{base.__qualname__}" for base in bases]
    return [name.replace("pathlib._local.", "pathlib.") for name in names]  # Python 3.13's


def encode(value: Any, depth: int = DEEPEST, wall: Wall | None = None, shared: Shared | None = None) -> Any:
    """The value as JSON data.

    Args:
        value: anything.
        depth: how deep it may be nested.
        wall: has forms for what has none here.
        shared: the containers met so far, by identity, with their numbers; more are added.

    Raises:
        ValueError: it is nested deeper than `depth`.
    """
    kind: type = type(value)  # not `isinstance`, which believes what an object says its class is
    if value is None or kind is bool:
        return value
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, int):
        number = int.__int__(value)
        return number if -_WORD < number < _WORD else {"int": hex(number)}
    if issubclass(kind, float):
        real = float.__float__(value)
        return real if -_INFINITY < real < _INFINITY else {"float": repr(real)}
    if issubclass(kind, complex):
        plain = complex.__pos__(value)
        return {"complex": [encode(plain.real), encode(plain.imag)]}
    if issubclass(kind, bytes):
        return {"bytes": bytes.hex(value)}
    if kind is type and value in vars(builtins).values():
        return {"type": type.__dict__["__name__"].__get__(value)}
    if value is Ellipsis or value is NotImplemented:
        return {"constant": repr(value)}
    if depth == 0:
        raise ValueError(f"nested deeper than {DEEPEST}")
    is_known = wall is not None and wall.classes.get(kind.__name__) is kind
    if shared is not None and (is_known or is_shared(kind)):
        if id(value) in shared:
            return {"same": shared[id(value)][0]}
        shared[id(value)] = len(shared), value

    def inner(item: Any) -> Any:
        return encode(item, depth - 1, wall, shared)

    if is_known:
        return {"instance": [kind.__name__, [[name, inner(item)] for name, item in vars(value).items()]]}
    if issubclass(kind, list):
        return [inner(item) for item in list.__iter__(value)]
    if issubclass(kind, tuple):
        items = [inner(item) for item in tuple.__iter__(value)]
        fields = getattr(kind, "_fields", None)
        if isinstance(fields, tuple) and len(fields) == len(items) and all(isinstance(name, str) for name in fields):
            return {"namedtuple": [kind.__name__, [str(name) for name in fields], items]}
        return {"tuple": items}
    for unordered in (set, frozenset):
        if issubclass(kind, unordered):
            return {unordered.__name__: [inner(item) for item in unordered.__iter__(value)]}
    names = _names(kind)
    if issubclass(kind, dict):
        pairs = [[inner(key), inner(item)] for key, item in dict.items(value)]
        special = next((name for name in _DICTIONARIES if name in names), None)
        if special is None:
            return {"dict": pairs}
        factory = value.default_factory if special == "collections.defaultdict" else None
        known = kind_of_builtin(factory)
        return {special: [known, pairs]} if factory is None or known else {"dict": pairs}
    if "collections.deque" in names:
        return {"collections.deque": [[inner(item) for item in value], value.maxlen]}
    form = next((name for name in names if name in _FORMS), None)
    if form is not None:
        return {form: encode(_FORMS[form][0](value), depth - 1, wall)}
    return {"other": names[0]} if wall is None else wall.outward(value)


def kind_of_builtin(value: Any) -> str | None:
    """The name of a built-in type, if it is one."""
    name = str(value.__name__) if type(value) is type else ""
    return name if name and vars(builtins).get(name) is value else None


def is_shared(kind: type) -> bool:
    """Whether values of the type are containers that can be changed."""
    return issubclass(kind, list | dict | set | bytearray) or "collections.deque" in _names(kind)


def decode(data: Any, depth: int = DEEPEST, wall: Wall | None = None, shared: list[Any] | None = None) -> Any:
    """The value that `encode` wrote. Only for the inside: it hashes what it is given, which can be made slow.

    Raises:
        ValueError, TypeError: `encode` did not write this.
    """
    if data is None or isinstance(data, str | bool | int | float):
        return data
    if depth == 0:
        raise ValueError(f"nested deeper than {DEEPEST}")

    def inner(item: Any) -> Any:
        return decode(item, depth - 1, wall, shared)

    def numbered(container: Any) -> Any:
        if shared is not None:
            shared.append(container)
        return container

    if isinstance(data, list):
        items = numbered([])
        items.extend([inner(item) for item in data])
        return items
    ((tag, content),) = data.items()
    if tag == "int":
        return int(content, 16)
    if tag == "float" and content in _NOT_FINITE:
        return float(content)
    if tag == "complex":
        return complex(*(decode(part) for part in content))
    if tag == "bytes":
        return bytes.fromhex(content)
    if tag == "constant":
        return _CONSTANTS[content]
    if tag == "type" and isinstance(vars(builtins).get(content), type):
        return vars(builtins)[content]
    if tag == "other":
        return Other(content)
    if tag == "same" and shared is not None:
        return shared[content]
    if tag in ("tuple", "frozenset"):
        return vars(builtins)[tag](inner(item) for item in content)
    if tag == "namedtuple":
        name, fields, items = content
        return _named_tuple(name, tuple(fields))(*(inner(item) for item in items))
    if tag == "set":
        container: Any = numbered(set())
        container.update([inner(item) for item in content])
        return container
    if tag == "dict" or tag in _DICTIONARIES:
        factory, pairs = (None, content) if tag == "dict" else content
        container = {} if tag == "dict" else _made(*tag.split("."))()
        if factory is not None:
            container.default_factory = decode({"type": factory})
        numbered(container)
        for key, item in pairs:
            container[inner(key)] = inner(item)
        return container
    if tag == "collections.deque":
        container = numbered(_made("collections", "deque")((), content[1]))
        container.extend([inner(item) for item in content[0]])
        return container
    if tag in _FORMS:
        made = _FORMS[tag][1](decode(content, depth - 1, wall))
        return numbered(made) if tag == "builtins.bytearray" else made
    if wall is None:
        raise ValueError(f"unknown tag {tag!r}")
    if tag == "instance" and content[0] in wall.classes:
        kind = wall.classes[content[0]]
        container = numbered(object.__new__(kind))
        vars(container).update([(name, inner(item)) for name, item in content[1]])
        return container
    return wall.inward(tag, content)


def content_of(container: Any) -> list[Any]:
    """What a container or an object holds, flat."""
    if isinstance(container, dict):
        return [part for pair in dict.items(container) for part in pair]
    if isinstance(container, list | set | bytearray) or hasattr(container, "maxlen"):
        return list(container)
    return [part for pair in vars(container).items() for part in pair]


def copy_of(container: Any) -> Any:
    """A container of the same items, of the plain type."""
    kinds: tuple[Any, ...] = (list, dict, set, bytearray)
    for kind in kinds:
        if isinstance(container, kind):
            return kind(container)
    if hasattr(container, "maxlen"):
        return list(container)
    copy = object.__new__(type(container))
    vars(copy).update(vars(container))
    return copy


def change(container: Any, copy: Any) -> None:
    """Makes a container hold what such a copy holds, as a change in place does."""
    if isinstance(container, list | bytearray):
        container[:] = copy
    elif isinstance(container, dict | set):
        container.clear()
        container.update(copy)
    elif hasattr(container, "maxlen"):
        container.clear()
        container.extend(copy)
    else:
        vars(container).clear()
        vars(container).update(vars(copy))
