"""Reading a number out of text, for tasks whose answers are plain numbers: the marked one, or the last.

Where a marked answer stands is the decision of `marks.py`.
"""

import re
from fractions import Fraction

from lockstitch.rewards.marks import find_answer

NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?"
_WRAPPED = re.compile(rf"(?:\\\(|[\s*$\\])*({NUMBER})(?![\d.^_!])[^\d\\^_!+*/=-]*(?:\\[^\d]*)?", re.DOTALL)


def last_marked(text: str) -> str | None:
    """The number that a marked answer is, units and currencies apart; None if it is none or cut off, or there is no mark."""
    found = find_answer(text)
    number = None if found is None or found.is_cut else _WRAPPED.fullmatch(found.text)
    return None if number is None else clean(number[1])


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
