"""Checking the equations of free math text, such as GSM8K's `<<16-3-4=9>>` marks and plain `$5 x 3 = $15`.

An equation is read out of the words around it, parsed by a small grammar of decimals and evaluated in exact rational
arithmetic; nothing is ever run as code. The right side may be rounded: it must agree to the digits that it shows. A
percentage or an amount of cents counts as the number or as its hundredth, whichever makes the equation hold.

Left out: algebra (a side with a letter in it is not judged), sums written in words only, and whether a true equation
is to the point. So a score of 1.0 says that the arithmetic holds and starts from given numbers, not more.
"""

import itertools
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from lockstitch.rewards.steps import SOUND, UNKNOWN, WRONG

State = frozenset[Fraction]

_MARK = re.compile(r"<<([^<>]*)>>")
_SPELLINGS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), spelling)
    for pattern, spelling in (
        (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))"),
        (r"\\(?:text|mathrm|textbf|mathbf|boxed)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\(?:times|cdot|ast)(?![a-z])|[×·∗]", "*"),
        (r"\\div(?![a-z])|÷", "/"),
        (r"\\[()\[\]]", " ; "),
        (r"\\approx(?![a-z])|≈", "="),
        (r"\\%", "%"),
        (r"\\(?:left|right)(?![a-z])|\\[$,!; ]|[$£€~]", " "),
        (r"\{,\}", ","),
        (r"(?<=\d)\*\*(?=\d)", "^"),
        (r"\*\*", " "),
        (r"[−–]", "-"),
        (r"_(?:\{[^{}]*\}|\w+)", " "),
        (r"(?<!\d)\d{1,2}:\d\d(?!\d)", " clock "),  # a time of day is no number
        (r"(?<!\d{4})(?<=\d) (?=\d{3}(?!\d))", ""),  # 350 000
        (r"(?<=\d)a\b", "A"),  # a variable, not an article
        (r"(?<![\d.,/])(\d+)\s+(?:and\s+)?(?=\d+/\d+(?![\d/]))", r"\1&"),  # a mixed number: 2 1/2
    )
)
_EQUALITY = re.compile(r"=|≈|\\approx|equal", re.IGNORECASE)
_TOKEN = re.compile(
    r"(?P<number>\d+&\d+/\d+|\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d*\.\d+|\d+)"
    r"|(?P<symbol>[-+*/^()=%¢])|(?P<word>[^\W\d_]+(?:[’'-][^\W\d_]+)*)|(?P<other>\S)"
)
_OPERATOR_WORDS = {"x": "*", "times": "*", "of": "*", "plus": "+", "minus": "-"}
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_CONJUNCTIONS = {"and", "or", "so", "then", "but", "because", "since", "for", "is", "are", "was", "if", "than"}
_FLOAT = 10**14  # one part in this many is what binary floating point loses: 11/18*162 = 99.00000000000001
_LONGEST, _MOST_UNIT_WORDS, _MOST_DIGITS, _MOST_BITS = 100, 3, 30, 2000


class Literal(NamedTuple):
    """A number as written: its value, the decimals it shows, and a factor (%, cents, million) that may apply."""

    value: Fraction
    decimals: int
    factor: Fraction = Fraction(1)


Atom = Literal | str  # a number, one of + - * / ^ ( ) = or "?", an operand that cannot be read


@lru_cache(maxsize=4096)
def _literal(text: str) -> Literal:
    if "&" in text:
        whole, _, part = text.partition("&")
        top, _, bottom = part.partition("/")
        return Literal(int(whole) + Fraction(int(top), int(bottom) or 1), 0)
    plain = text.replace(",", "")
    return Literal(Fraction("0" + plain), len(plain.partition(".")[2]))


def _runs(text: str) -> Iterator[list[Atom]]:
    """The stretches of a text that read as mathematics, unit words dropped (`3 eggs + 4 eggs = 7`)."""
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    tokens = [(match.lastgroup, match[0]) for match in _TOKEN.finditer(text)]
    run: list[Atom] = []
    unit_words, after_word, labelled = 0, False, False
    for (kind, token), (next_kind, next_token) in itertools.pairwise([*tokens, ("other", "")]):
        operand_before = bool(run) and (isinstance(run[-1], Literal) or run[-1] in (")", "?"))
        word = token.lower() if kind == "word" else ""
        opens = next_kind == "number" or next_token == "("
        if word in ("percent", "cents", "cent") and operand_before and not unit_words:
            kind, token = "symbol", "%"
        elif word in _OPERATOR_WORDS and operand_before and opens and not (unit_words and word == "of"):
            kind, token = "symbol", _OPERATOR_WORDS[word]
        elif word in ("equals", "equal") and operand_before:
            kind, token = "symbol", "="
        ends = (
            kind == "other"
            or (operand_before and (kind == "number" or (token == "(" and unit_words)))
            or (operand_before and (word in _CONJUNCTIONS or unit_words >= _MOST_UNIT_WORDS) and kind == "word")
            or len(run) >= _LONGEST
        )
        if ends:
            yield run
            # Of a run that was cut for its length, the rest has no beginning.
            run, unit_words, operand_before = ["?"] if len(run) >= _LONGEST else [], 0, False
        last = run[-1] if run else None
        labelled = labelled if run else after_word
        if kind == "number" and len(token) <= _MOST_DIGITS:
            run.append(_literal(token))
        elif kind == "number":
            run.append("?")
        elif kind == "symbol" and token in "%¢":
            if isinstance(last, Literal):
                run[-1] = last._replace(factor=Fraction(1, 100))
        elif kind == "symbol":
            if not run and token in "+-*/^" and (token != "-" or after_word):
                run.append("?")  # the operand before it is a word
            elif token == "(" and operand_before:
                run.append("*")
            elif token == "=" and len(run) == 1 and (labelled or unit_words):
                run.append("?")  # `Area of 4 rooms = 3 * 5` and `40 nickels = 40 * 5`: names of what follows
            run.append(token)
            unit_words = 0
        elif word and word in _SCALES and isinstance(last, Literal) and not unit_words:
            run[-1] = last._replace(factor=Fraction(_SCALES[word]))
        elif len(word) == 1 and token != "a" and run:
            run.append("?")  # a variable
        elif word and operand_before:
            unit_words += 1
        elif word and last == "/":
            run.pop()  # `$20/hour`
            unit_words += 1
        elif word and run:
            run.append("?")
        after_word = kind == "word"
    yield run


class _Parser:
    """`expr := term (('+'|'-') term)*`, `term := power (('*'|'/') power)*`, `power := atom ('^' atom)?`,
    `atom := number | '-' atom | '(' expr ')'`. `values` collects the value of every part."""

    def __init__(self, atoms: list[Atom], with_factors: bool) -> None:
        self.atoms, self.with_factors, self.position = atoms, with_factors, 0
        self.values: list[Fraction] = []

    def take(self, accepted: str) -> str | None:
        atom = self.atoms[self.position] if self.position < len(self.atoms) else None
        if isinstance(atom, str) and atom in accepted:
            self.position += 1
            return atom
        return None

    def keep(self, value: Fraction) -> Fraction:
        if value.numerator.bit_length() + value.denominator.bit_length() > _MOST_BITS:
            raise ValueError("a number too long to be meant")
        self.values.append(value)
        return value

    def expr(self) -> Fraction:
        value = self.term()
        while operation := self.take("+-"):
            right = self.term()
            value = self.keep(value + right if operation == "+" else value - right)
        return value

    def term(self) -> Fraction:
        value = self.power()
        while operation := self.take("*/"):
            right = self.power()
            if operation == "/" and right == 0:
                raise ValueError("division by zero")
            value = self.keep(value * right if operation == "*" else value / right)
        return value

    def power(self) -> Fraction:
        value = self.atom()
        if self.take("^"):
            exponent = self.atom()
            if exponent.denominator != 1 or not 0 <= exponent <= 20:
                raise ValueError(f"an exponent of {exponent}; whole numbers from 0 to 20 are read")
            value = self.keep(value**exponent.numerator)
        return value

    def atom(self) -> Fraction:
        if self.take("-"):
            return self.keep(-self.atom())
        if self.take("("):
            value = self.expr()
            if not self.take(")"):
                raise ValueError("unclosed parenthesis")
            return value
        atom = self.atoms[self.position] if self.position < len(self.atoms) else None
        if not isinstance(atom, Literal):
            raise ValueError("a number or '(' is missing")
        self.position += 1
        return self.keep(atom.value * atom.factor if self.with_factors else atom.value)


class _Side(NamedTuple):
    """One side of an equation: its readings (value, unit of the last digit shown), its numbers, all partial values."""

    readings: tuple[tuple[Fraction, Fraction | None], ...]
    literals: tuple[Literal, ...]
    values: tuple[Fraction, ...]
    is_sum: bool


def _read_side(atoms: list[Atom]) -> _Side | None:
    literals = tuple(atom for atom in atoms if isinstance(atom, Literal))
    is_sum = any(atom in ("+", "*", "/", "^") or (atom == "-" and i) for i, atom in enumerate(atoms))
    readings: list[tuple[Fraction, Fraction | None]] = []
    values: list[Fraction] = []
    for with_factors in (True, False) if any(number.factor != 1 for number in literals) else (False,):
        parser = _Parser(atoms, with_factors)
        try:
            value = parser.expr()
        except ValueError:
            return None
        if parser.position != len(atoms):
            return None
        unit = None if is_sum else (literals[0].factor if with_factors else 1) / Fraction(10) ** literals[0].decimals
        readings.append((value, unit))
        values += parser.values
    return _Side(tuple(readings), literals, tuple(values), is_sum)


def _unmatched(atoms: list[Atom], opening: str, closing: str) -> int:
    """How many atoms stand before the first `closing` that no `opening` matches."""
    depth = 0
    for i, atom in enumerate(atoms):
        depth += (atom == opening) - (atom == closing)
        if depth < 0:
            return i
    return len(atoms)


def _equations(text: str) -> Iterator[list[_Side | None]]:
    """The sides of every equation of a text, those that cannot be read as None."""
    if not _EQUALITY.search(text):
        return
    for run in _runs(text):
        sides = [list(group) for equal, group in itertools.groupby(run, lambda atom: atom == "=") if not equal]
        if "=" not in run or len(sides) < 2:
            continue
        closing, opening = _unmatched(sides[-1], "(", ")"), _unmatched(sides[0][::-1], ")", "(")
        if closing < len(sides[-1]):  # `(so 3 + 4 = 7)`
            sides[-1], sides[0] = sides[-1][:closing], sides[0][len(sides[0]) - opening :]
        while sides[-1] and sides[-1][-1] == "-":  # a dash after the equation
            sides[-1].pop()
        yield [_read_side(side) if side else None for side in sides]


def _agree(left: _Side, right: _Side) -> bool:
    """Whether some reading of the sides is equal, or rounds or cuts to the digits that a bare number shows."""
    for (a, unit_a), (b, unit_b) in itertools.product(left.readings, right.readings):
        for exact, shown, unit in ((a, b, unit_b), (b, a, unit_a)):
            off = abs(exact - shown)
            if off == 0 or (unit is not None and (off <= unit / 2 or (unit < 1 and off < unit and exact > shown))):
                return True
            if unit is not None and off * _FLOAT <= abs(exact):
                return True
    return False


_WORDS: dict[str, tuple[Fraction, ...]] = {
    word: tuple(map(Fraction, values.split()))
    for word, values in {
        "zero": "0",
        "one": "1",
        "two": "2",
        "three": "3",
        "four": "4",
        "five": "5",
        "six": "6",
        "seven": "7",
        "eight": "8",
        "nine": "9",
        "ten": "10",
        "eleven": "11",
        "twelve": "12",
        "thirteen": "13",
        "fourteen": "14",
        "fifteen": "15",
        "sixteen": "16",
        "seventeen": "17",
        "eighteen": "18",
        "nineteen": "19",
        "twenty": "20",
        "thirty": "30",
        "forty": "40",
        "fifty": "50",
        "sixty": "60",
        "seventy": "70",
        "eighty": "80",
        "ninety": "90",
        "half": "1/2 2",
        "halves": "1/2 2",
        "once": "1",
        "twice": "2",
        "double": "2",
        "doubles": "2",
        "doubled": "2",
        "couple": "2",
        "pair": "2",
        "pairs": "2",
        "both": "2",
        "thrice": "3",
        "triple": "3",
        "triples": "3",
        "tripled": "3",
        "third": "1/3 2/3 3",
        "thirds": "1/3 2/3 3",
        "quarter": "1/4 3/4 4 25",
        "quarters": "1/4 3/4 4 25",
        "quadruple": "4",
        "fourth": "1/4 3/4 4",
        "fourths": "1/4 3/4 4",
        "fifth": "1/5 5",
        "fifths": "1/5 5",
        "sixth": "1/6 6",
        "sixths": "1/6 6",
        "seventh": "1/7 7",
        "eighth": "1/8 8",
        "eighths": "1/8 8",
        "tenth": "1/10 10",
        "dozen": "12",
        "dozens": "12",
        "score": "20",
        "dime": "10",
        "dimes": "10",
        "nickel": "5",
        "nickels": "5",
        "feet": "3 12",
        "foot": "3 12",
        "yard": "3 36",
        "yards": "3 36",
        "pound": "16",
        "pounds": "16",
        "gallon": "4",
        "weekdays": "5",
        "weekend": "2",
        "weekends": "2",
        "square": "4",
        "triangle": "3",
        "decade": "10",
        "gallons": "4",
        "hundred": "100",
        "thousand": "1000",
        "million": "1000000",
        "century": "100",
    }.items()
}
_COMMON = frozenset(map(Fraction, (0, 1, 2, 7, 12, 24, 30, 31, 52, 60, 100, 180, 360, 365, 366, 1000, 3600)))


def _is_known(literal: Literal, known: State, near: set[Fraction]) -> bool:
    """Whether a number, or it as a percentage or amount of cents, is given, common knowledge or worked out."""
    value = literal.value
    forms = (value, value / 100, value * literal.factor, value * (1 if value.denominator == 1 else 100))
    return any(form in known or form in _COMMON or form in near for form in forms)


class EquationChecker:
    """Free math text: every equation of a step must hold, on numbers that are given or were worked out before.

    A step scores 0.0 if an equation in it is wrong; 1.0 if it has equations, all right and all on known numbers; 0.5
    if it has none that can be judged, or one on a number of unknown origin. State: the known numbers, that is those of
    the question (number words too), with the shares that its percentages and fractions leave or add up to, and the
    results of right equations.
    """

    def start(self, question: str) -> State:
        """The numbers of the question."""
        known = {value for word in re.findall(r"[a-z]+", question.lower()) for value in _WORDS.get(word, ())}
        for run in _runs(question):
            for i, atom in enumerate(run):
                if not isinstance(atom, Literal):
                    continue
                fraction = Fraction(0)
                known |= {atom.value, atom.value * atom.factor}
                if atom.factor == Fraction(1, 100):
                    fraction = atom.value / 100
                elif run[i + 1 : i + 2] == ["/"] and isinstance(bottom := (*run, "")[i + 2], Literal) and bottom.value:
                    fraction = atom.value / bottom.value
                if fraction:
                    known |= {fraction, 1 - fraction, 1 + fraction}
                    known |= {100 * (1 - fraction), 100 * (1 + fraction)}
        return frozenset(known)

    def advance(self, state: State, step: str) -> tuple[State, float]:
        """The equations of the step, in marks first, then in plain text without the marks."""
        known, scores = state, [SOUND]
        found = 0
        for text in (*_MARK.findall(step), _MARK.sub("", step)):
            for sides in _equations(text):
                near: set[Fraction] = set()  # values met on the way, for sides that simplify the one before
                for left, right in itertools.pairwise(sides):
                    if left is None or right is None or not (left.is_sum or right.is_sum):
                        continue
                    found += 1
                    if not _agree(left, right):
                        scores.append(WRONG)
                        continue
                    operands = left.literals if left.is_sum else right.literals
                    scores.append(SOUND if all(_is_known(n, known, near) for n in operands) else UNKNOWN)
                    near |= {*left.values, *right.values}
                    known |= {value for value, _ in (*left.readings, *right.readings)}
        return known, min(scores) if found else UNKNOWN

    def is_complete(self, state: State) -> bool:
        """True: free text has no end that could be told."""
        return True
