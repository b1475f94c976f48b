"""What counts as the same value and the same output.

Values are compared as data (`tagged`), type by type: no method of an answer runs, no set or dictionary is built of it.
What is equal in Python is the same, and three things are decided otherwise: `True` is no `1`; to an expected float a number
is equal within a billionth of it, and to zero within a trillionth, since the order of a sum changes the last digits; and
printed numbers with six decimals or more are equal within a millionth of the expected one, within half a unit of the last
decimal that both show, and to zero within half a millionth, since they have been rounded.
"""

import json
import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

RELATIVE, NEAR_ZERO = 1e-9, 1e-12
PRINTED, PRINTED_NEAR_ZERO = 1e-6, 5e-7
_SHORTEST = 4096
_PER_EXPECTED = 32  # a number may be written at up to this many times the length of another one
_ROUNDED = 6  # decimals from which a printed number is a rounded one
_MOST_DIGITS = 17  # what a float holds; with more, the digits are the answer
_PRINTED_NUMBER = re.compile(r"([-+]?\d{1,400}\.\d{1,400}(?:[eE][-+]?\d{1,4})?|[-+]?\d{1,400}[eE][-+]?\d{1,4})")
_SETS = ("set", "frozenset", "builtins.dict_keys", "builtins.dict_items")
_BYTES = ("bytes", "builtins.bytearray", "builtins.memoryview")
_DICTIONARIES = ("dict", "collections.Counter", "collections.OrderedDict", "collections.defaultdict")


def is_same(expected: Any, found: Any) -> bool:
    """Whether two pieces of `tagged` data are the same value.

    Elements of sets and keys of dictionaries have no tolerance.

    Args:
        expected: the data of a literal.
        found: what a program says; what `tagged` has not written may raise ValueError, TypeError, AttributeError,
            LookupError, RecursionError or ArithmeticError.
    """
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found
    number, other = _number(expected), _number(found)
    if number is not None or other is not None:
        return number is not None and other is not None and _is_same_number(number, other)
    if type(expected) is not type(found):
        return False
    if isinstance(expected, list):
        return len(expected) == len(found) and all(map(is_same, expected, found))
    if not isinstance(expected, dict):
        return bool(expected == found)
    ((tag, content),), ((other_tag, other_content),) = expected.items(), found.items()
    for alike in (_SETS, _BYTES, _DICTIONARIES):
        if tag in alike and other_tag in alike:
            return _is_same_content(tag, content, _plain(other_tag, other_content))
    if other_tag == "namedtuple":
        other_tag, other_content = "tuple", other_content[2]
    if tag != other_tag or tag == "other" or type(content) is not type(other_content):
        return False
    return is_same(content, other_content)


def as_json(data: Any) -> Any:
    """`tagged` data as JSON has it: tuples as lists, integers as keys of dictionaries as texts.

    Raises as `is_same` does.
    """
    if isinstance(data, list):
        return [as_json(item) for item in data]
    if not isinstance(data, dict):
        return data
    ((tag, content),) = data.items()
    if tag in ("tuple", "namedtuple"):
        return as_json(content if tag == "tuple" else content[2])
    if tag not in _DICTIONARIES:
        return data
    return {"dict": [[str(key) if type(key) is int else key, as_json(item)] for key, item in _plain(tag, content)]}


def _number(data: Any) -> Any:
    """The number that data is, or None."""
    if isinstance(data, int | float):
        return data
    if not isinstance(data, dict):
        return None
    ((tag, content),) = data.items()
    if tag == "int":
        return int(content, 16)
    if tag == "float":
        return float(content)
    if tag == "complex":
        real, imaginary = map(_number, content)
        return complex(real, imaginary)
    if tag == "decimal.Decimal":
        return Decimal(content)
    if tag == "fractions.Fraction":
        return Fraction(*map(_number, content))
    return None


def _is_same_number(expected: Any, found: Any) -> bool:
    if isinstance(expected, complex) or isinstance(found, complex):
        if isinstance(found, Decimal | Fraction):
            return bool(expected == found)
        one, other = complex(expected), complex(found)
        near = _is_close(one.real, other.real) and _is_close(one.imag, other.imag)
        return one == other or (near and isinstance(expected, complex | float))
    if isinstance(expected, float) and isinstance(found, int | float):
        return _is_close(expected, found)
    return bool(expected == found)


def _is_close(expected: float, found: float) -> bool:
    if expected == 0:
        return abs(found) <= NEAR_ZERO
    return math.isclose(expected, found, rel_tol=RELATIVE, abs_tol=0.0)


def _plain(tag: str, content: Any) -> Any:
    """What a set, dictionary or bytes of another type holds."""
    if tag == "builtins.dict_items":
        return [item if isinstance(item, dict) else {"tuple": item} for item in content]
    return content[1] if tag in _DICTIONARIES and tag != "dict" else content


def _is_same_content(tag: str, content: Any, other: Any) -> bool:
    if tag in _BYTES:
        return bool(content == other)
    if not isinstance(other, list):
        return False
    if tag in _SETS:
        return sorted({_text(item) for item in content}) == sorted({_text(item) for item in other})
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in other):
        return False
    ours = {_text(key): value for key, value in content}
    theirs = {_text(key): value for key, value in other}
    return ours.keys() == theirs.keys() and all(is_same(value, theirs[key]) for key, value in ours.items())


def _text(data: Any) -> str:
    """A text that is the same for what Python would take for the same key. Texts, not values: these hash safely."""
    if isinstance(data, float) and data.is_integer() and abs(data) < 2**53:
        return str(int(data))
    if isinstance(data, list):
        return f"[{','.join(map(_text, data))}]"
    if isinstance(data, dict):
        ((tag, content),) = data.items()
        if tag == "namedtuple":
            tag, content = "tuple", content[2]
        items = sorted(map(_text, content)) if tag in _SETS else [_text(content)]
        return f"{{{'set' if tag in _SETS else tag}:{','.join(items)}}}"
    return json.dumps(data)


def same_output(expected: str, found: str) -> bool:
    """Whether two outputs are the same, line by line, up to blanks at the end of lines and empty lines at the end.

    Numbers with a fraction may differ by rounding (see above), unless the expected one has more digits than a float.
    """
    lines, theirs = expected.rstrip().split("\n"), found.rstrip().split("\n")
    return len(lines) == len(theirs) and all(map(_same_line, lines, theirs))


def _same_line(expected: str, found: str) -> bool:
    expected, found = expected.rstrip(), found.rstrip()
    if expected == found:
        return True
    ours, theirs = _PRINTED_NUMBER.split(expected), _PRINTED_NUMBER.split(found)
    same = [one == other for one, other in zip(ours, theirs, strict=False)]
    return len(ours) == len(theirs) and all(
        same[i] or (i % 2 == 1 and _same_printed(ours[i], theirs[i])) for i in range(len(same))
    )


def _same_printed(expected: str, found: str) -> bool:
    is_rounded = max(_decimals(expected), _decimals(found)) >= _ROUNDED
    if not is_rounded or len(expected.lstrip("-+0.").replace(".", "")) > _MOST_DIGITS:
        return False
    number, other = float(expected), float(found)
    if number == 0:
        return abs(other) <= PRINTED_NEAR_ZERO
    return math.isclose(number, other, rel_tol=PRINTED, abs_tol=0.0) or _is_rounded_from(expected, found)


def _is_rounded_from(expected: str, found: str) -> bool:
    """Whether the number with fewer decimals, six at least, is the other one rounded to them, and not to zero."""
    one, other = Decimal(expected), Decimal(found)
    places = min(_decimals(expected), _decimals(found))
    if "e" in (expected + found).lower() or places < _ROUNDED or other == 0:
        return False
    return abs(one - other) <= Decimal(5).scaleb(-places - 1)


def _decimals(number: str) -> int:
    """How many digits stand behind the point; an exponent is as good as many."""
    return _ROUNDED if "e" in number.lower() else len(number.partition(".")[2])


def longest_answer(expected: Any) -> int:
    """How many bytes an answer may have and still be right."""
    return _SHORTEST + _PER_EXPECTED * len(json.dumps(expected))
