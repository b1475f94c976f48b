"""Values as JSON that keeps Python's types, so that they can leave a sandbox without being unpickled.

JSON's own null, true, false, texts, lists and numbers stand for themselves; everything else is an object with one key, the
tag: `{"tuple": [...]}`, `{"set": [...]}`, `{"frozenset": [...]}`, `{"dict": [[key, value], ...]}`, `{"int": "0x..."}` for
what is longer than a machine word, `{"float": "nan"}` for what JSON has no number for, `{"complex": [re, im]}`,
`{"bytes": "hex"}`, `{"type": "name"}` for a built-in type, and `{"other": "the type's name"}`, which equals nothing.
Instances of subclasses are written as what they are instances of, by the built-in type's own methods: whatever they
override, only the plain value arrives.

This file runs on both sides of the wall: its source is also part of the program that `launchers` starts, which can import
nothing of ours. There it imports as little as it can, because a program starts in 10 ms, and `json` or `typing` take
as long again.
"""

from __future__ import annotations

import builtins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEEPEST = 64
_INFINITY = float("inf")
_WORD = 2**63
_NOT_FINITE = ("nan", "inf", "-inf")


class Other:
    """What stands for a value of a type that does not cross: it equals only itself."""

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name

    def __repr__(self) -> str:
        return f"<a value of type {self.type_name}>"


def encode(value: Any, depth: int = DEEPEST) -> Any:
    """The value as JSON data.

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
    if depth == 0:
        raise ValueError(f"nested deeper than {DEEPEST}")
    for sequence in (list, tuple, set, frozenset):
        if issubclass(kind, sequence):
            items = [encode(item, depth - 1) for item in sequence.__iter__(value)]
            return items if sequence is list else {sequence.__name__: items}
    if issubclass(kind, dict):
        return {"dict": [[encode(key, depth - 1), encode(item, depth - 1)] for key, item in dict.items(value)]}
    return {"other": f"{kind.__module__}.{kind.__qualname__}"}


def decode(data: Any, depth: int = DEEPEST) -> Any:
    """The value that `encode` wrote. Only for the inside: it hashes what it is given, which can be made slow.

    Raises:
        ValueError, TypeError: `encode` did not write this.
    """
    if data is None or isinstance(data, str | bool | int | float):
        return data
    if depth == 0:
        raise ValueError(f"nested deeper than {DEEPEST}")
    if isinstance(data, list):
        return [decode(item, depth - 1) for item in data]
    ((tag, content),) = data.items()
    if tag == "int":
        return int(content, 16)
    if tag == "float" and content in _NOT_FINITE:
        return float(content)
    if tag == "complex":
        return complex(*(decode(part) for part in content))
    if tag == "bytes":
        return bytes.fromhex(content)
    if tag == "dict":
        return {decode(key, depth - 1): decode(item, depth - 1) for key, item in content}
    if tag == "type" and isinstance(vars(builtins).get(content), type):
        return vars(builtins)[content]
    if tag == "other":
        return Other(content)
    kinds = {"tuple": tuple, "set": set, "frozenset": frozenset}
    if tag not in kinds:
        raise ValueError(f"unknown tag {tag!r}")
    return kinds[tag](decode(item, depth - 1) for item in content)
