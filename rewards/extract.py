"""Reading a numeric answer out of text: `#### N`, `A: N`, `\\boxed{N}`, `<answer>N</answer>`, or the last number."""

import re
from fractions import Fraction

NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?"
_MARKS = (
    r"####\s*({number})",
    r"\\boxed\{{\s*\\?\$?({number})\s*(?:\\?%\s*)?(?=\}}|\\text|\\mathrm|\\,)",
    r"<answer>\s*\$?({number})\s*</answer>",
    r"(?:^|\n)A:\s*\$?({number})",
)


def last_marked(text: str) -> str | None:
    """The number after the last answer mark of the first kind that occurs, in the order of this module's first line."""
    for mark in _MARKS:
        found: list[str] = re.findall(mark.format(number=NUMBER), text)
        if found:
            return clean(found[-1])
    return None


def last_number(text: str) -> str | None:
    """The last number of the text."""
    found: list[str] = re.findall(NUMBER, text)
    return clean(found[-1]) if found else None


def clean(number: str) -> str:
    """A number without currency signs, thousands separators and white space."""
    return re.sub(r"[$,\s]", "", number)


def same_number(a: str, b: str) -> bool:
    """Whether two texts are the same number exactly (`12`, `12.0` and `24/2` are); False if one is not a number."""
    try:
        return Fraction(clean(a)) == Fraction(clean(b))
    except (ValueError, ZeroDivisionError):
        return False
