r"""Plain numbers, exactly: whole numbers, decimals, fractions, powers of ten, percentages, numbers to a base.

They are most answers there are, and need no computer algebra. A decimal equals what it says, not what it is near: `0.33` is
not 1/3. One that shows eight digits or more also stands for a number that no decimal can be (1/3, a root), if it agrees to
them.
"""

import re
from fractions import Fraction
from typing import NamedTuple

DIGITS = 8  # that a decimal must show to stand for what it approximates
NEAR = Fraction(1, 10**DIGITS)

_PLAIN = re.compile(
    r"(?P<sign>[-+]?)\s*(?:\\frac\s*\{\s*(?P<minus>-?)\s*(?P<top>\d+)\s*\}\s*\{\s*(?P<bottom>\d+)\s*\}"
    r"|(?P<over>\d+)\s*/\s*(?P<under>\d+)|(?P<number>\d+\.?\d*|\.\d+))"
    r"(?:\s*\\times\s*10\s*\^\s*\{\s*(?P<power>-?\d{1,3})\s*\})?\s*(?P<percent>\\?%)?",
    re.ASCII,
)
_BASED = re.compile(r"(-?[0-9A-Fa-f]+(?:\.[0-9A-Fa-f]+)?)(?:\s*_\s*\{\s*(\d+)\s*\})?")
_LONGEST = 400


class Plain(NamedTuple):
    """A number as written: its value, without the percent sign that it may have, and the digits of a decimal."""

    value: Fraction
    percent: bool
    digits: int | None


def read_plain(text: str) -> Plain | None:
    """The number that a text is, and nothing else; None if it is none."""
    match = _PLAIN.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if match is None:
        return None
    bottom = int(match["bottom"] or match["under"] or 1)
    if bottom == 0:
        return None
    value = Fraction(match["number"]) if match["number"] else Fraction(int(match["top"] or match["over"]), bottom)
    value *= Fraction(10) ** int(match["power"] or 0)
    digits = len(match["number"].replace(".", "").lstrip("0")) if match["number"] and "." in match["number"] else None
    negative = (match["sign"] == "-") != (match["minus"] == "-")
    return Plain(-value if negative else value, match["percent"] is not None, digits)


def value_of(text: str) -> Fraction | None:
    """The value of a plain number; a percentage is its hundredth."""
    plain = read_plain(text)
    return None if plain is None else plain.value / 100 if plain.percent else plain.value


def written(value: Fraction) -> str:
    """A value in the spelling that answers have."""
    if value.denominator == 1:
        return str(value.numerator)
    return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def rounds(exact: str, rounded: str) -> bool:
    """Whether the second of two plain numbers is the first to the digits that it shows; True if one is no plain number."""
    one, other = value_of(exact), value_of(rounded)
    if one is None or other is None:
        return True
    decimals = len(re.sub(r"\D*$", "", rounded).partition(".")[2])
    return abs(one - other) < Fraction(1, 10**decimals)


def is_decimal(value: Fraction) -> bool:
    """Whether a decimal with an end can be the value."""
    bottom = value.denominator
    for factor in (2, 5):
        while bottom % factor == 0:
            bottom //= factor
    return bottom == 1


def same_plain(gold: Plain, answer: Plain) -> bool:
    """Whether two plain numbers say the same.

    A percentage is its hundredth; and where only one of the two has the sign, the number itself, above 1: `50%` is 50 and
    1/2, but `0.5%` is not 1/2.
    """
    if gold.percent == answer.percent:
        return _same_value(gold, answer)
    percentage, number = (gold, answer) if gold.percent else (answer, gold)
    if _same_value(percentage, number) and abs(number.value) > 1:
        return True
    return _same_value(percentage._replace(value=percentage.value / 100), number)


def _same_value(one: Plain, other: Plain) -> bool:
    if one.value == other.value:
        return True
    for decimal, exact in ((one, other), (other, one)):
        if (
            decimal.digits is not None
            and decimal.digits >= DIGITS
            and exact.digits is None
            and not is_decimal(exact.value)
        ):
            return abs(decimal.value - exact.value) <= NEAR * abs(exact.value)
    return False


def same_based(gold: str, answer: str) -> bool | None:
    """Whether two numbers to a base have the same digits and base, where both say one; None if neither does."""
    one, other = _BASED.fullmatch(gold.strip()), _BASED.fullmatch(answer.strip())
    if one is None or other is None or not (one[2] or other[2]):
        return None
    bases = {match[2] for match in (one, other) if match[2]}
    return one[1].upper() == other[1].upper() and len(bases) == 1
