"""What a math worker runs: a gold answer and a given one, taken apart by `comparing.py`, their expressions by math-verify.

Only `math_rewards.py` loads this, into processes that can be killed; importing it loads sympy. math-verify's own time limits
are switched off: they rest on an alarm that reaches the main thread only, and not before a long operation in C is over.

math-verify compares formulas. Numbers are compared here, to thirty digits: math-verify rounds them to six decimals, which
makes all numbers below 0.0000005 the same.
"""

import logging
import re
from functools import lru_cache
from typing import Any

from lockstitch.rewards.mathematics.branches import split
from lockstitch.rewards.mathematics.comparing import is_same
from lockstitch.rewards.mathematics.forms import RELATIONS
from lockstitch.rewards.mathematics.plain import DIGITS, NEAR, read_plain, same_based, same_plain
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Expr, I, Integral, Limit, N, Product, Rational, Sum, Symbol, nan, oo, simplify, zoo

# It warns once that its time limits are off; ours are not.
logging.getLogger("math_verify").setLevel(logging.ERROR)
# Boxes only: our own readers found the answer, and math-verify's patterns for plain text hand it to sympy's parser, which
# evaluates it as Python. LaTeX goes through a grammar, and nothing but its numbers gets there.
_BOXED = [LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)]
_DECIMAL = re.compile(r"(?<![\w.])(\d*)\.(\d+)(?![\w.])")
_DIGITS = re.compile(r"\d+\.\d*|\.\d+")
_APART = re.compile(r"\d\s+\d")
_PRECISION, _EQUAL = 40, 1e-30
_TO_DO = (Sum, Product, Integral, Limit)


class _UnreadableError(ValueError):
    """An expression of the gold answer that math-verify cannot read."""


def is_right(pair: tuple[str, str]) -> bool | None:
    """Whether the second of two texts is the first in another form; None if math-verify cannot read the first."""
    gold, answer = pair
    try:
        exact = _rounded(gold, answer)
        return (exact is not None and _rounds(exact, gold)) or is_same(gold, answer, _equal)
    except _UnreadableError:
        return None


def _rounded(gold: str, answer: str) -> str | None:
    r"""What an answer rounds to a gold decimal, `\pi` of `\pi \approx 3.14` to 3.14; None if it does not say so."""
    sides, signs = split(answer, RELATIONS)
    if "\\approx" not in signs or not sides[0].strip() or read_plain(gold) is None:
        return None
    exact, decimal = sides[-2].strip(), sides[-1].strip()
    says_so = signs[-1] == "\\approx" and re.fullmatch(r"-?\d+(?:\.\d+)?", decimal) and set(signs[:-1]) <= {"="}
    return exact if says_so and _equal(gold, decimal) else None


def _rounds(exact: str, decimal: str) -> bool:
    """Whether a decimal is a number to the digits that it shows, rounded or cut off."""
    readings, plain = _read(exact), read_plain(decimal)
    number = _number(readings[0]) if readings else None
    if number is None or plain is None or not number.is_real:
        return False
    digits = len(decimal.partition(".")[2])
    value, unit = Rational(plain.value.numerator, plain.value.denominator), Rational(1, 10**digits)
    off = N(number - value, _PRECISION) * (1 if value >= 0 else -1)
    return bool(-unit / 2 <= off < unit)


def _equal(gold: str, answer: str) -> bool:
    """Whether the second of two expressions is the first."""
    plain = read_plain(gold), read_plain(answer)
    if plain[0] is not None and plain[1] is not None:
        return same_plain(plain[0], plain[1])
    if (based := same_based(gold, answer)) is not None:
        return based
    if _APART.search(gold) or _APART.search(answer):  # math-verify would join them to one number
        return False
    expected, given = _read(gold), _read(answer)
    if not expected:
        raise _UnreadableError(gold)
    if not given:
        return False
    if (numeric := _same_number(gold, expected[0], answer, given[0])) is not None:
        return numeric
    return bool(verify(expected, given, timeout_seconds=None)) or _same_when_done(expected[0], given[0])


def _same_when_done(gold: Any, answer: Any) -> bool:
    """Whether a sum, product, integral or limit, worked out, is the other expression; math-verify leaves them undone."""
    if not (isinstance(gold, Expr) and isinstance(answer, Expr) and (gold.has(*_TO_DO) or answer.has(*_TO_DO))):
        return False
    one, other = gold.doit(), answer.doit()
    names = {symbol: Symbol(symbol.name) for symbol in one.free_symbols | other.free_symbols}
    return bool(simplify(one.subs(names) - other.subs(names)) == 0)


@lru_cache(maxsize=256)
def _read(text: str) -> list[Any]:
    """What math-verify reads in a text, decimals as fractions; nothing if only the text itself is left of it."""
    exact = _DECIMAL.sub(lambda match: rf"\frac{{{int(match[1] + match[2])}}}{{{10 ** len(match[2])}}}", text)
    readings = list(parse(f"\\boxed{{{exact}}}", _BOXED, extraction_mode="first_match", parsing_timeout=None))
    return [] if all(isinstance(reading, str) for reading in readings) else readings


def _same_number(gold_text: str, gold: Any, answer_text: str, answer: Any) -> bool | None:
    """Whether two numbers are equal; None if one of them is none, or its digits cannot be told from those of 0."""
    one, other = _number(gold), _number(answer)
    if one is None or other is None:
        return None
    if one.is_Rational and other.is_Rational:
        return bool(one == other)
    (one, other), exactly = (N(one, _PRECISION), N(other, _PRECISION)), (gold_text, answer_text)
    if not all(_is_told(number) for number in (one, other)):
        return None
    off = abs(N(one - other, 15)) / max(abs(one), abs(other))
    if off < _EQUAL:
        return True
    for decimal, exact in (exactly, exactly[::-1]):
        digits = [len(number.replace(".", "").lstrip("0")) for number in _DIGITS.findall(decimal)]
        if digits and min(digits) >= DIGITS and not _DIGITS.search(exact):
            return bool(off <= float(NEAR))
    return False


def _number(value: Any) -> Any:
    """The number that an expression is, `i` being the imaginary unit; None for anything else."""
    if not isinstance(value, Expr):
        return None
    if {symbol.name for symbol in value.free_symbols} == {"i"}:
        value = value.subs(dict.fromkeys(value.free_symbols, I))
    if value.free_symbols or not value.is_number or value.has(oo, -oo, nan, zoo):
        return None
    done = value.doit()
    return done if done.is_Rational or done.is_number else None


def _is_told(number: Any) -> bool:
    """Whether a value has digits that are sure, in its real or imaginary part."""
    parts = [part for part in number.as_real_imag() if part != 0]
    return bool(parts) and all(part.is_Float and part._prec > 60 for part in parts)
