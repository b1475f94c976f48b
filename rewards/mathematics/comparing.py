r"""Whether two answers say the same, by their shapes (`forms.py`); expressions are compared by whoever is given for it.

What an answer is decides: a tuple and an interval have an order and brackets, a set and a list have none, and all have as
many elements as they have; an inequality is an interval; a ratio is a fraction, a time of day is not; words and letters in
a row are themselves. A gold answer says what is asked: to a bare number, `x = 5` is an answer, but `x > 5` and `5, 6` are
none.
"""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from lockstitch.rewards.mathematics.forms import Form, as_spans, parse, union
from lockstitch.rewards.mathematics.plain import read_plain, value_of
from lockstitch.rewards.mathematics.quantities import is_constant, is_quantity
from lockstitch.rewards.mathematics.words import MONTHS

Equal = Callable[[str, str], bool]
Span = tuple[Form, Form, str]  # the ends of an interval, and its brackets
T = TypeVar("T")

_OUTCOMES = frozenset(
    "HTFYNWL"
)  # heads and tails, true and false, yes and no, win and loss: their order is the answer
_GROUPS = ("list", "either", "set")
_MONTHS = frozenset(MONTHS)
_NOTHING = {"none", "nothing", "nobody"}
_CONDITIONAL = re.compile(r"\b(?:is|are|an?|the|integer|number)\b")
_PARAMETER = re.compile(r"(?<![\\a-zA-Z])[knmcC](?![a-zA-Z(])|(?<![\\a-zA-Z])[kc](?=[a-z]\b)|(?<=\d)[knm](?=\\)")


def is_same(gold: str, answer: str, equal: Equal) -> bool:
    """Whether an answer is the gold answer, both in the spelling of `spelling.normal`.

    Args:
        gold: what is right.
        answer: what is judged.
        equal: whether the second of two expressions is the first.
    """
    if _bare(gold) == _bare(answer):
        return True
    return _same(parse(gold), parse(answer), equal)


def _bare(text: str) -> str:
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def _same(gold: Form, answer: Form, equal: Equal) -> bool:
    if _bare(gold.text) == _bare(answer.text) and gold.text:
        return True
    if (turns := _turns(gold)) and _turns(answer):
        return turns == _turns(answer)  # `TFT` and `T, F, T`
    if (one := _chosen(gold)) and (other := _chosen(answer)) and "list" in (gold.kind, answer.kind):
        return one == other  # `AC` and `A, C`
    if "choice" in (gold.kind, answer.kind):
        return _same_choice(gold, answer, equal)
    gold, answer = _one(gold, equal), _one(answer, equal)
    for kinds, judge in _JUDGES:
        if gold.kind in kinds or answer.kind in kinds:
            return judge(gold, answer, equal)
    return _same_scalar(gold.text, answer.text, equal)


def _chosen(form: Form) -> list[str]:
    """The letters of several choices, `A, C` or `AC`; none if they are in no such order or something else."""
    if form.kind == "list" and all(re.fullmatch(r"[A-J]", part.text) for part in form.parts):
        return sorted(part.text for part in form.parts)
    letters = re.sub(r"\s", "", form.text)
    return list(letters) if re.fullmatch(r"[A-J]{2,}", letters) and sorted(set(letters)) == list(letters) else []


def _turns(form: Form) -> str:
    """Three outcomes or more in their order (`TFT`, `H, T, H`), as letters; empty for anything else."""
    letters = re.sub(r"[\s,;-]", "", form.text)
    return letters if re.fullmatch(r"[TF]{3,}|[HT]{3,}|[YN]{3,}|[WL]{3,}", letters) else ""


def _one(form: Form, equal: Equal) -> Form:
    """Alternatives that are all the same are one answer: `1/2 or 0.5`."""
    if form.kind == "either" and all(_same(form.parts[0], part, equal) for part in form.parts[1:]):
        return form.parts[0]
    return form


def _same_choice(gold: Form, answer: Form, equal: Equal) -> bool:
    if gold.kind == answer.kind:
        both = gold.parts and answer.parts
        return gold.marks == answer.marks and (not both or _same(gold.parts[0], answer.parts[0], equal))
    choice, other = (gold, answer) if gold.kind == "choice" else (answer, gold)
    if re.fullmatch(r"\(?[A-J]\)?", other.text):
        return choice.marks[0] == other.text.strip("()")
    if not choice.parts:
        return False
    return _same(*((choice.parts[0], other) if gold is choice else (other, choice.parts[0])), equal)


def _same_words(gold: Form, answer: Form, equal: Equal) -> bool:
    if gold.kind == "set" and not gold.parts:  # `\emptyset` or `no solution`
        return _plain_words(answer.text) in {"none", "no solution", "no solutions", "empty set", "the empty set"}
    one, other = _plain_words(gold.text), _plain_words(answer.text)
    if one == other or _same_segment(gold.text, answer.text):
        return True
    if gold.kind == "words" and re.fullmatch(r"yes|no|true|false", one):
        return re.match(r"(\w+)[,.;:]", answer.text.strip().lower() + ",") is not None and other.split()[:1] == [one]
    return other in _NOTHING and value_of(gold.text) == 0


def _same_segment(gold: str, answer: str) -> bool:
    """Letters in a row are no product; two of them name a segment, from either end."""
    ordered = set(gold) <= _OUTCOMES or re.fullmatch(r"[IVXLCDM]?[IVX][IVXLCDM]?", gold)  # `HT`, `IV`
    return re.fullmatch(r"[A-Z]{2}", gold) is not None and gold == answer[::-1] and not ordered


def _plain_words(text: str) -> str:
    words = re.findall(
        r"[\w.%/+-]*\w|[^\w\s.,;:!?'\"()]",
        re.sub(r"'s?\b|\b(?:the|a|an)\s+|(?<=[a-z] )and (?=\d)", "", text.lower()),
    )
    months = [word for word in words if word in _MONTHS]
    if months and len(words) in (2, 3):  # `20 June`, `June 20th`
        return " ".join(sorted(re.sub(r"(?<=\d)(?:st|nd|rd|th)$", "", word) for word in words if word != "of"))
    return " ".join(words)


def _of_24_hours(clock: Form) -> tuple[int, ...]:
    hour, minute, second = map(int, clock.marks[:3])
    return (hour % 12 + 12 * clock.marks[3].startswith("p") if clock.marks[3] else hour, minute, second)


def _same_clock(gold: Form, answer: Form, equal: Equal) -> bool:
    if gold.kind == answer.kind:
        if (gold.marks[3] == "") != (answer.marks[3] == "") and max(int(gold.marks[0]), int(answer.marks[0])) > 12:
            return _of_24_hours(gold) == _of_24_hours(answer)
        return gold.marks[:3] == answer.marks[:3] and (
            "" in (gold.marks[3], answer.marks[3]) or gold.marks == answer.marks
        )
    if answer.kind == "clock":  # `2` and `2 pm`
        return (
            answer.marks[1:3] == ("00", "00") and answer.marks[3] != "" and value_of(gold.text) == int(answer.marks[0])
        )
    plain = read_plain(answer.text)  # a ratio that looks like a time
    minutes = int(gold.marks[1])
    return (
        plain is not None
        and not gold.marks[3]
        and minutes > 0
        and re.search(r"/|frac", answer.text) is not None
        and plain.value * minutes == int(gold.marks[0])
    )


def _same_ratio(gold: Form, answer: Form, equal: Equal) -> bool:
    if gold.kind != "ratio":
        return False
    if answer.kind == "ratio":
        if len(gold.parts) != len(answer.parts):
            return False
        pairs = [(one.text, other.text) for one, other in zip(gold.parts, answer.parts, strict=True)]
        (first, second), *rest = pairs
        return all(equal(f"({first})\\cdot({other})", f"({one})\\cdot({second})") for one, other in rest)
    return (
        len(gold.parts) == 2
        and answer.kind == "scalar"
        and equal(f"\\frac{{{gold.parts[0].text}}}{{{gold.parts[1].text}}}", answer.text)
    )


def _same_named(gold: Form, answer: Form, equal: Equal) -> bool:
    """`x = 5` and `f(x) = 2x`, on either side; a chain of equations must hold where it is of numbers."""
    if "equation" in (gold.kind, answer.kind):
        return equal(gold.text, answer.text)
    if answer.kind == "named":
        value, *chain = answer.parts
        if any(
            side.kind == "scalar"
            and value.kind == "scalar"
            and is_constant(side.text + value.text)
            and not _same_scalar(value.text, side.text, equal)
            for side in chain
        ):
            return False
    if gold.kind == answer.kind:
        one, other = gold.parts[0], answer.parts[0]
        if gold.marks == answer.marks:
            return _same(one, other, equal) or ("(" in gold.marks[0] and _renamed(one, other, equal))
        if is_constant(one.text) or not _is_function(gold.marks[0], one) or not _is_function(answer.marks[0], other):
            return False
        return _same(one, other, equal)
    if answer.kind == "named":
        return _same(gold, answer.parts[0], equal)
    return _same(gold.parts[0], answer, equal)


def _is_function(name: str, value: Form) -> bool:
    return "(" in name or re.fullmatch(r"[fghyz]|\w_.*", name) is not None


def _same_equation(gold: Form, answer: Form, equal: Equal) -> bool:
    """Equations as formulas; a chain of numbers is one number, if it holds: `2 + 3 = 5`; to a number, `m + n = 5` is 5."""
    one, other = _chain(gold), _chain(answer) or (_told(answer) if gold.kind == "scalar" else [])
    if one and other:
        return all(_same_scalar(value, side, equal) for value in one for side in other)
    return gold.kind == answer.kind and equal(gold.text, answer.text)


def _told(form: Form) -> list[str]:
    r"""The numbers that an equation says a quantity is (`m + n = 5`, `\sin A = 1/2`); none of one to solve (`2x = 5`)."""
    if form.kind != "equation":
        return []
    numbers = [side.text for side in form.parts if is_constant(side.text)]
    others = [side.text for side in form.parts if not is_constant(side.text)]
    return numbers if all(map(is_quantity, others)) else []


def _chain(form: Form) -> list[str]:
    """The numbers that an answer says are one; none if it has letters."""
    sides = (
        [side.text for side in form.parts] if form.kind == "equation" else [form.text] if form.kind == "scalar" else []
    )
    return sides if all(map(is_constant, sides)) else []


def _same_spans(gold: Form, answer: Form, equal: Equal) -> bool:
    one, other = as_spans(_united(gold)), as_spans(_united(answer))
    if one is None or other is None or len(one.marks) != len(other.marks):
        return False

    def same(a: Span, b: Span) -> bool:
        return a[2] == b[2] and _same(a[0], b[0], equal) and _same(a[1], b[1], equal)

    return _matched(_ends(one), _ends(other), same)


def _ends(form: Form) -> list[Span]:
    return [(form.parts[2 * i], form.parts[2 * i + 1], mark) for i, mark in enumerate(form.marks)]


def _united(form: Form) -> Form:
    r"""`\mathbb{R} \setminus \{1, 2\}` as intervals, where the numbers are plain."""
    if form.kind == "list" and form.parts and all(spans := [as_spans(part) for part in form.parts]):
        return union([span for span in spans if span is not None], form.text)
    if form.kind != "without" or form.parts[0].kind != "spans" or form.parts[1].kind != "set":
        return form
    values = sorted(
        (value_of(part.text), part.text) for part in form.parts[1].parts if value_of(part.text) is not None
    )
    if len(values) != len(form.parts[1].parts) or len(form.parts[0].marks) != 1:
        return form
    ends = [Form("scalar", text) for _, text in values]
    low, high = form.parts[0].parts
    parts = [low, *(end for end in ends for _ in "ab"), high]
    return Form("spans", form.text, tuple(parts), ("()",) * (len(ends) + 1))


def _ordered(gold: Sequence[Form], answer: Sequence[Form], equal: Equal) -> bool:
    return len(gold) == len(answer) and all(_same(one, other, equal) for one, other in zip(gold, answer, strict=True))


def _matched(gold: Sequence[T], answer: Sequence[T], same: Callable[[T, T], bool]) -> bool:
    """Whether each element has its own partner, in whatever order."""
    if len(gold) != len(answer):
        return False
    left = list(answer)
    for one in gold:
        partner = next((i for i, other in enumerate(left) if same(one, other)), None)
        if partner is None:
            return False
        del left[partner]
    return True


def _by_name(form: Form) -> tuple[Form, ...]:
    """The elements of a list; of `y = 4, x = 3`, the values in the order of the names."""
    is_named = form.kind == "list" and all(part.kind == "named" for part in form.parts)
    if is_named and len({part.marks for part in form.parts}) > 1:
        return tuple(part.parts[0] for part in sorted(form.parts, key=lambda part: part.marks))
    return form.parts


def _same_tuple(gold: Form, answer: Form, equal: Equal) -> bool:
    if gold.kind == answer.kind:
        alike = _round(gold) == _round(answer)
        return alike and _ordered(gold.parts, answer.parts, equal)
    one, other = (gold, answer) if gold.kind == "tuple" else (answer, gold)
    if other.kind == "matrix":
        column = _vector(other)
        return column is not None and _ordered(one.parts, column, equal)
    if other.kind == "list" and _round(one) == ("(", ")"):
        return _ordered(_by_name(gold), _by_name(answer), equal)
    if other.kind == "scalar" and _round(one) == ("(", ")"):
        return equal(gold.text, answer.text)
    return False


def _round(form: Form) -> tuple[str, ...]:
    marks = form.marks
    return ("(" if marks[0] == "]" else marks[0], ")" if marks[1] == "[" else marks[1])


def _vector(matrix: Form) -> tuple[Form, ...] | None:
    rows = [row.parts for row in matrix.parts]
    if all(len(row) == 1 for row in rows):
        return tuple(row[0] for row in rows)
    return rows[0] if len(rows) == 1 else None


def _same_matrix(gold: Form, answer: Form, equal: Equal) -> bool:
    if gold.kind != answer.kind:
        return False
    return len(gold.parts) == len(answer.parts) and all(
        _ordered(one.parts, other.parts, equal) for one, other in zip(gold.parts, answer.parts, strict=True)
    )


def _same_group(gold: Form, answer: Form, equal: Equal) -> bool:
    """Lists and sets, in whatever order; one element is that element."""
    if gold.kind in _GROUPS and answer.kind in _GROUPS:
        return _matched(gold.parts, answer.parts, lambda one, other: _same(one, other, equal))
    group, other = (gold, answer) if gold.kind in _GROUPS else (answer, gold)
    if group.kind == "set" and len(group.parts) == 1:
        return _same(*((group.parts[0], other) if gold is group else (other, group.parts[0])), equal)
    if group.kind == "set" and not group.parts:
        return other.kind == "words" and _same_words(group, other, equal)
    return False


def _same_cases(gold: Form, answer: Form, equal: Equal) -> bool:
    """Piecewise answers, branch by branch in whatever order; `otherwise` stands for the one condition that is left."""
    if gold.kind != answer.kind:
        return False

    def same(one: tuple[Form, Form], other: tuple[Form, Form]) -> bool:
        is_rest = "" in (one[1].text, other[1].text)
        return _same(one[0], other[0], equal) and (is_rest or _same_condition(one[1], other[1], equal))

    return _matched(_branches(gold), _branches(answer), same)


def _branches(form: Form) -> list[tuple[Form, Form]]:
    """The branches, `otherwise` last."""
    return sorted(zip(form.parts[::2], form.parts[1::2], strict=True), key=lambda branch: branch[1].text == "")


def _same_condition(gold: Form, answer: Form, equal: Equal) -> bool:
    if _same(gold, answer, equal):
        return True
    one, other = (_CONDITIONAL.sub("", form.text).split() for form in (gold, answer))
    return one == other


def _same_relation(gold: Form, answer: Form, equal: Equal) -> bool:
    if gold.kind != answer.kind:
        return False
    one, other = _rising(gold), _rising(answer)
    return one.marks == other.marks and _ordered(one.parts, other.parts, equal)


def _rising(form: Form) -> Form:
    if all(sign in (">", "\\ge") for sign in form.marks):
        turned = tuple({">": "<", "\\ge": "\\le"}[sign] for sign in reversed(form.marks))
        return Form(form.kind, form.text, form.parts[::-1], turned)
    return form


def _same_scalar(gold: str, answer: str, equal: Equal) -> bool:
    if _bare(gold) == _bare(answer):
        return True
    if "\\ln" in gold + answer:  # beside it, a logarithm without a base is the natural one
        gold, answer = (re.sub(r"\\log(?![a-zA-Z]|\s*_)", r"\\ln", text) for text in (gold, answer))
    return equal(gold, answer) or ("\\pi" in gold and _renamed(Form("scalar", gold), Form("scalar", answer), equal))


def _renamed(gold: Form, answer: Form, equal: Equal) -> bool:
    r"""Whether two expressions differ in the name of their one parameter: `k\pi` and `n\pi`, `f(x) = cx` and `f(x) = kx`."""
    if gold.kind != "scalar" or answer.kind != "scalar":
        return False
    one, other = set(_PARAMETER.findall(gold.text)), set(_PARAMETER.findall(answer.text))
    if len(one) != 1 or len(other) != 1 or one == other:
        return False
    return equal(gold.text, _PARAMETER.sub(one.pop(), answer.text))


# The first of these that either side is, decides.
_JUDGES: tuple[tuple[tuple[str, ...], Callable[[Form, Form, Equal], bool]], ...] = (
    (("cases",), _same_cases),
    (("words",), _same_words),
    (("clock",), _same_clock),
    (("ratio",), _same_ratio),
    (("named",), _same_named),
    (("spans", "without"), _same_spans),
    (("tuple",), _same_tuple),
    (("matrix",), _same_matrix),
    (_GROUPS, _same_group),
    (("equation",), _same_equation),
    (("relation",), _same_relation),
)
