"""A command's options, from a YAML file and the command line, as the dataclasses that say which there are.

What a dataclass says of a field's type holds wherever the value comes from: text is no number, a truth value is neither, a
list is no name, and what no number or text can be (nan, inf, whole numbers beyond 64 bits, half a character) is refused. An
option that nobody knows is refused with the nearest that is known. All of it in one line, before any record is made.

    recipe, training = parse_options(TrlParser((Recipe, Training)), ["--config", "mine.yaml", "--seed", "1"])

Left out: TRL's `env:`, since a page of settings should not set variables of the process.
"""

import argparse
import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from lockstitch.files import is_text

_YES, _NO = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")
_SPELLED = (
    "_kwargs",
    "new_model",
)  # mappings, which a command line spells in JSON; other texts in their place are paths
# What libraries raise, beside ValueError, for a value that they do not take.
REFUSALS = (TypeError, LookupError, AttributeError, ImportError, RuntimeError, ArithmeticError, AssertionError)


# --- values ----------------------------------------------------------------------------------------------------------


def fitted(hint: Any, value: Any) -> Any:
    """The value as the type hint has it: texts become the numbers that they spell, a value alone a list of one.

    Raises `ValueError` with what is needed, for what does not fit.
    """
    origin, choices = get_origin(hint), get_args(hint)
    if hint is Any or (hint is None and value is None):
        return value
    if origin in (Union, types.UnionType):
        return _fitted_to_one(choices, value)
    if origin is Literal or (isinstance(hint, type) and issubclass(hint, Enum)):
        known = choices if origin is Literal else tuple(one.value for one in hint)
        if isinstance(value, Enum) or (value in known if isinstance(value, str | int | None) else False):
            return value
        raise ValueError(f"one of {', '.join(map(str, known))}")
    if (origin or hint) is list:
        several = value if isinstance(value, list | tuple) else [value]
        return [fitted(choices[0], one) if choices else one for one in several]
    reader = {str: _text, bool: _truth, int: _whole, float: _number, dict: _mapping, types.NoneType: _nothing}
    if (origin or hint) in reader:
        return reader[origin or hint](value)
    if isinstance(hint, type) and hint.__module__ != "builtins" and not isinstance(value, hint):
        raise ValueError(f"an object of {hint.__name__}, which Python alone makes")
    return value


def _fitted_to_one(hints: Sequence[Any], value: Any) -> Any:
    """The value as one of several types has it: the one that it is of already, if there is such a one."""
    exact = [hint for hint in hints if type(value) is (get_origin(hint) or hint)]
    needed = []
    for hint in [*exact, *(hint for hint in hints if hint not in exact)]:
        try:
            return fitted(hint, value)
        except ValueError as error:
            needed.append(str(error))
    raise ValueError(" or ".join(dict.fromkeys(one for one in needed if one != "null")))


def _nothing(value: Any) -> None:
    if value is not None:
        raise ValueError("null")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("text (in quotes, where YAML would read something else)")
    if not is_text(value):
        raise ValueError("text without null bytes and halves of characters")
    return value


def _truth(value: Any) -> bool:
    word = str(value).lower() if isinstance(value, str | bool | int) else ""
    if word not in (*_YES, *_NO):
        raise ValueError("true or false")
    return word in _YES


def _whole(value: Any) -> int:
    try:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError
        number = int(value)
    except ValueError:
        raise ValueError("a whole number") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError("a whole number of at most 64 bits")
    return number


def _number(value: Any) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError("a finite number") from None
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


def _mapping(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError("a mapping")
    return value


def _spelled(text: str) -> Any:
    try:
        return _mapping(json.loads(text))
    except (ValueError, RecursionError):
        raise ValueError('a mapping, in JSON ({"name": value}) on a command line') from None


# --- files and command lines -----------------------------------------------------------------------------------------


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; `ValueError` in one line if it holds anything else, or no YAML."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses keys that stand twice, of which the other loaders take the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            if twice:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {twice[0]!r} stands twice", node.start_mark
                )
            made: dict[Any, Any] = super().construct_mapping(node, deep)
            return made

    try:
        settings = yaml.load(path.read_text(encoding="utf-8-sig"), Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates and bytes that are none are ValueErrors
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a mapping of options, not {type(settings).__name__}")
    return settings


def split_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """What `--config` names on a command line, and the rest of it; `ValueError` where it names nothing, or two."""
    rest, named = list(argv), None
    while places := [i for i, word in enumerate(rest) if word == "--config" or word.startswith("--config=")]:
        place = places[0]
        word, equals, value = rest.pop(place).partition("=")
        if not equals:
            value = rest.pop(place) if place < len(rest) else ""
        if not value or named is not None:
            raise ValueError(f"{word} takes the path of one YAML file")
        named = value
    return named, rest


def read_config(parser: Any, argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The settings of the file that `--config` names on a command line, checked, and the rest of it; none without a file."""
    config, rest = split_config(argv)
    return ({} if config is None else check_settings(parser, read_yaml(_file(config)), Path(config))), rest


def check_settings(parser: Any, settings: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The settings of a YAML file as the parser's dataclasses have them.

    Raises `ValueError` for keys that the parser does not know, and for values that are not of their type.
    """
    from lockstitch.rewards.imports import nearest

    hints = _hints(parser)
    unknown = [key for key in settings if key not in hints]
    if unknown:
        near = ", ".join(f"{key!r}{nearest(str(key), hints)}" for key in unknown)
        raise ValueError(f"{where} holds unknown options: {near}")
    fit = {key: _of_field(f"{where}: {key}", hints[key], value) for key, value in settings.items()}
    for action in parser._actions:  # the parser itself looks at texts of the command line alone
        value = fit.get(action.dest)
        if action.choices is not None and isinstance(value, str | int) and value not in action.choices:
            raise ValueError(f"{where}: {action.dest}={value!r} is not one of {', '.join(map(str, action.choices))}")
    return fit


def _hints(parser: Any) -> dict[str, Any]:
    """The type of every field; `None` goes with what is None by default, whatever its type says."""
    hints: dict[str, Any] = {}
    for record in parser.dataclass_types:
        said = get_type_hints(record)
        hints |= {
            one.name: said[one.name] | None if one.default is None else said[one.name]
            for one in fields(record)
            if one.init
        }
    return hints


def _of_field(name: str, hint: Any, value: Any) -> Any:
    try:
        if isinstance(value, str) and name.endswith(_SPELLED):
            value = _spelled(value)
        return fitted(hint, value)
    except ValueError as error:
        raise ValueError(f"{name}={value!r} must be {error}") from None


def parse_options(parser: Any, argv: Sequence[str], settings: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
    """What the parser's dataclasses become under the config file, and over it the command line.

    Args:
        parser: a `TrlParser`.
        argv: the command line; `--config FILE` may be among it where no settings are given.
        settings: what `check_settings` has checked, in the place of the config file.

    Raises:
        ValueError: a file that cannot be read, an unknown option, or what the dataclasses refuse.
    """
    from lockstitch.rewards.imports import nearest

    rest = list(argv)
    if settings is None:
        settings, rest = read_config(parser, argv)
    parser.error = _refuse  # in a line, without a page of options before it
    parser.set_defaults_with_config(**settings)
    said, strings = parser.parse_known_args(rest)
    if strings:
        options = [action.dest for action in parser._actions]
        # A value stands among them beside its option; what helps is the option.
        words = [word for word in strings if word.startswith("--")] or strings
        hints = ", ".join(f"{word!r}{nearest(word.lstrip('-').partition('=')[0], options)}" for word in words)
        raise ValueError(f"unknown words on the command line: {hints}")
    return _records(parser, said)


def _file(name: str) -> Path:
    if not Path(name).is_file():
        raise ValueError(f"config {name!r} is not a file")
    return Path(name)


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _records(parser: Any, said: argparse.Namespace) -> tuple[Any, ...]:
    hints, records = _hints(parser), []
    for record in parser.dataclass_types:
        values = {}
        for one in fields(record):
            if not one.init:
                continue
            value = getattr(said, one.name)
            values[one.name] = value if value is None else _of_field(one.name, hints[one.name], value)
        try:
            records.append(record(**values))
        except REFUSALS as error:
            if all(base.__module__.startswith("lockstitch.") for base in record.__mro__[:-1]):
                raise  # a fault of ours
            raise ValueError(f"{record.__name__}: {in_a_line(error)}") from error
    return tuple(records)


def in_a_line(error: BaseException) -> str:
    """What a library's error says, and its type where it says next to nothing."""
    said = " ".join(str(error).split())
    return said if len(said.split()) > 2 else f"{type(error).__name__}: {said}"
