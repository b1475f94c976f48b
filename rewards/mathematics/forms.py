r"""The shape of an answer: number or expression, list, set, tuple, interval, relation, matrix, ratio, time, words.

`parse` takes an answer in the spelling of `spelling.py` apart at its outermost signs, down to expressions, which stay texts:
math-verify compares those (`math_worker.py`). What is a list of what, and which brackets stand around it, is decided here,
since there math-verify takes tuples for sets, sets for their first elements, and letters in a row for products.
"""

import re
from dataclasses import dataclass, field

from lockstitch.rewards.mathematics.branches import branches_of, split
from lockstitch.rewards.mathematics.plain import rounds, value_of, written
from lockstitch.rewards.mathematics.words import FUNCTIONS, is_word

_NAME = re.compile(
    r"m?\\angle\s*\{?[A-Z]{1,3}\}?|(?:[fghFGPTSVAEN]|Pr|\\Pr)'*\s*\([^()]*\)"
    r"|[fghFG]\s*\^\s*\{\s*-1\s*\}\s*\([^()]*\)|[fgh]'*\s*\((?:[^()]|\([^()]*\))*\)"  # `f^{-1}(x)`, `f(g(x))`
    r"|[a-wA-W]'*\s*\(\s*-?[\d.]+(?:\s*,\s*-?[\d.]+)*\s*\)"  # `p(5)`
    r"|\\(?:overline|vec|hat|bar|overrightarrow|widehat)\s*\{\s*[a-zA-Z]{1,3}\s*\}|(?:E|Var)\s*\[[^\[\]]*\]|\[[A-Z]{3,6}\]"
    r"|\\?[a-zA-Z]+'*(?:_\{?\s*\w+\s*\}?)?(?:\s*\(\s*[a-z](?:\s*,\s*[a-z])*\s*\))?'*"
)
_CHOICE = re.compile(r"\(([A-J])\)(?:\s+(.+))?", re.DOTALL)
_CLOCK = re.compile(r"(\d{1,2})(?::([0-5]\d))?(?::([0-5]\d))?\s*([ap]m)?")
_RATIO = re.compile(r"[^:<>=|]+(?::[^:<>=|]+)+")
RELATIONS = re.compile(r"\\(?:le|ge|neq|approx|equiv)(?![a-zA-Z])|<|>|=+")
_ABSOLUTE = re.compile(
    r"\|\s*[a-vxy]\s*(?:(?P<sign>[-+])\s*(?P<number>[^|+-]+))?\|"
)  # not z or w, which may be complex
_TURNED = re.compile(r"\][^\[\]]*,[^\[\]]*[\[\])]|[\[(][^\[\]]*,[^\[\]]*\[")
_ROUTE = re.compile(r"[A-Z](?:\s*-\s*[A-Z]){2,}|[A-Z](?:\s*\\to\s*[A-Z])+")  # points in their order
_POINTS = re.compile(r"[A-Z]{1,4}")
_MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", re.DOTALL)
_BUILDER = re.compile(
    r"\\\{\s*(?:[a-zA-Z]|\([a-z, ]+\))\s*(?:\\in\s*\\mathbb\s*\{?[A-Z]\}?\s*)?(?::|\||\\mid)\s*(.*)\\\}", re.DOTALL
)
_MEMBER = re.compile(r"[a-zA-Z]\s*\\in(?![a-zA-Z])\s*(.*)", re.DOTALL)
_EMPTY = re.compile(
    r"\\emptyset|no (?:real |valid |such |integer |possible )?(?:solutions?|values?|numbers?|roots?)(?: exists?)?"
    r"|there (?:is|are) no .*",
    re.IGNORECASE,
)
_REALS = re.compile(r"\\mathbb\s*\{?R\}?|R(?=\s*\\setminus)|all real (?:numbers|values)(?: x)?", re.IGNORECASE)
_WITHOUT = re.compile(r"(.*?)\s*(?:\\setminus|\\backslash)\s*(\\\{.*\\\})", re.DOTALL)


@dataclass(frozen=True)
class Form:
    """An answer taken apart.

    Attributes:
        kind: `scalar`, `words`, `choice`, `clock`, `ratio`, `list`, `either`, `set`, `tuple`, `spans`, `matrix`, `equation`,
            `named`, `relation`, `cases`.
        text: the answer itself, without what the parts say.
        parts: what it consists of: elements, sides, rows, ends of intervals.
        marks: signs that go with the parts: brackets, relations, a name.
    """

    kind: str
    text: str
    parts: tuple["Form", ...] = ()
    marks: tuple[str, ...] = field(default=())


def parse(text: str, depth: int = 0) -> Form:
    """The form of an answer in the spelling of `spelling.normal`."""
    text = text.strip().strip(",;").strip()
    if depth > 6:
        return Form("scalar", text)
    if match := _CHOICE.fullmatch(text):
        return Form("choice", text, (parse(match[2], depth + 1),) if match[2] else (), (match[1],))
    if _EMPTY.fullmatch(text):
        return Form("set", text)
    if _REALS.fullmatch(text):
        return Form("spans", text, (Form("scalar", r"-\infty"), Form("scalar", r"\infty")), ("()",))
    if (match := _CLOCK.fullmatch(text)) and (match[2] or match[4]):
        return Form("clock", text, (), (str(int(match[1])), match[2] or "00", match[3] or "00", match[4] or ""))
    if _TURNED.fullmatch(text):  # the other way to write an open end
        text = text[0].replace("]", "(") + text[1:-1] + text[-1].replace("[", ")")
    if branches := branches_of(text):
        sides = [(parse(value, depth + 1), parse(condition, depth + 1)) for value, condition in branches]
        return Form("cases", text, tuple(side for branch in sides for side in branch))
    joints, joined = split(text, re.compile(r"\s*[,;]\s*(?:(?:and|or)(?![a-zA-Z])\s*)?|\s+(?:and|or)\s+|\s+&\s+"))
    if len(joints) > 1 and not _has_prose(text):
        return _list([parse(joint, depth + 1) for joint in joints if joint.strip()], joined, text)
    if (_is_words(text) and not _is_length(text)) or _ROUTE.fullmatch(text):
        return Form("words", text)
    if ":" in text and _RATIO.fullmatch(text) and not text.startswith("\\{"):
        return Form("ratio", text, tuple(Form("scalar", part.strip()) for part in text.split(":")))
    return _bracketed(text, depth) or _related(text, depth) or _signed(text, depth)


def _has_prose(text: str) -> bool:
    """Whether a text has numbers and words that are more than joints: `5 feet, 10 inches` is no list."""
    runs = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}", text)
    words = [run for run in runs if run not in ("and", "or", *FUNCTIONS) and not _all_caps(run) and is_word(run)]
    return bool(words) and re.search(r"\d", text) is not None


def _all_caps(word: str) -> bool:
    return word.isupper() and len(word) <= 8


def _is_words(text: str) -> bool:
    """Whether there is a word in a text outside of LaTeX's own."""
    bare = re.sub(r"\\(?:begin|end)\s*\{[a-z*]+\}|\\[a-zA-Z]+(?:\s*\{[A-Z]\})?", " ", text)
    runs = re.findall(r"[a-zA-Z][a-zA-Z']*", bare)
    return any(is_word(run) or (_all_caps(run) and len(run) > 1) for run in runs)


def _is_length(text: str) -> bool:
    """Whether a text says what points in a row measure: `AB = 5`, `[ABC] = 12`, `AB + BC = 5`."""
    sides, signs = split(re.sub(r"\\[a-zA-Z]+", " ", text), "=")
    runs = re.findall(r"[a-zA-Z]+", "".join(sides[:-1]))
    return bool(signs and runs) and re.search(r"[a-zA-Z]", sides[-1]) is None and all(map(_POINTS.fullmatch, runs))


def _list(parts: list[Form], joints: list[str], text: str) -> Form:
    if len(parts) == 1:
        return parts[0]
    either = all("or" in joint for joint in joints[-1:])
    if not either and (meet := _between(parts, text) or _excluding(parts, text)) is not None:
        return meet
    spans = [as_spans(part) for part in parts]
    if all(spans) and (
        either or all(part.kind == "spans" or part.marks in (("(", "]"), ("[", ")")) for part in parts)
    ):
        return union([span for span in spans if span is not None], text)
    return Form("either" if either else "list", text, tuple(parts))


def _between(parts: list[Form], text: str) -> Form | None:
    """Two bounds of one letter as an interval, where both can hold: `0 < x` and `x < 1`; else None."""
    names = [re.findall(r"[a-zA-Z]+", re.sub(r"\\[a-zA-Z]+", " ", part.text)) for part in parts]
    if [(part.kind, len(part.marks)) for part in parts] != [("spans", 1)] * 2 or names != [names[0][:1]] * 2:
        return None
    low, high = sorted(parts, key=lambda part: part.parts[0].text == r"-\infty")
    bottom, top = value_of(low.parts[0].text), value_of(high.parts[1].text)
    if low.parts[1].text != r"\infty" or high.parts[0].text != r"-\infty" or bottom is None or top is None:
        return None
    marks = (low.marks[0][0] + high.marks[0][1],)
    return Form("spans", text, (low.parts[0], high.parts[1]), marks) if bottom < top else None


def _excluding(parts: list[Form], text: str) -> Form | None:
    r"""`x \ge 1` and `x \neq 2` as intervals, where all numbers are plain and one letter is meant; else None."""
    points = {value_of(part.parts[1].text): part.parts[1] for part in parts if _is_exclusion(part)}
    bounds = [part for part in parts if not _is_exclusion(part)]
    base = bounds[0] if len(bounds) == 1 else _between(bounds, text) if bounds else parse(r"\mathbb{R}")
    within = None if base is None else as_spans(base)
    named = [part.text for part in parts if part.text and not _REALS.fullmatch(part.text)]
    names = set(re.findall(r"[a-zA-Z]+", re.sub(r"\\[a-zA-Z]+", " ", " ".join(named))))
    if not points or None in points or within is None or len(names) != 1:
        return None
    ends: list[Form] = []
    marks: list[str] = []
    for i, mark in enumerate(within.marks):
        low, high = within.parts[2 * i : 2 * i + 2]
        bottom, top = value_of(low.text), value_of(high.text)
        if (bottom is None and low.text != r"-\infty") or (top is None and high.text != r"\infty"):
            return None
        inside = sorted(
            value
            for value in points
            if value is not None and (bottom is None or bottom < value) and (top is None or value < top)
        )
        edges = [low, *(points[value] for value in inside for _ in "ab"), high]
        opening = "(" if bottom in points else mark[0]
        closing = ")" if top in points else mark[1]
        brackets = opening + ")(" * len(inside) + closing
        ends.extend(edges)
        marks.extend(brackets[j : j + 2] for j in range(0, len(brackets), 2))
    return Form("spans", text, tuple(ends), tuple(marks))


def _is_exclusion(form: Form) -> bool:
    return form.kind == "spans" and form.marks == ("()", "()") and form.parts[1].text == form.parts[2].text


def as_spans(form: Form) -> Form | None:
    """The form as a union of intervals, if it can be one."""
    if form.kind == "spans":
        return form
    if form.kind == "tuple" and len(form.parts) == 2 and form.marks[0] in "([]" and form.marks[1] in ")][":
        opening = "[" if form.marks[0] == "[" else "("
        return Form("spans", form.text, form.parts, (opening + ("]" if form.marks[1] == "]" else ")"),))
    if form.kind == "set" and form.parts:
        return Form("spans", form.text, tuple(part for part in form.parts for _ in "ab"), ("[]",) * len(form.parts))
    return None


def union(spans: list[Form], text: str) -> Form:
    """One form of several intervals."""
    parts = tuple(part for span in spans for part in span.parts)
    return Form("spans", text, parts, tuple(mark for span in spans for mark in span.marks))


def _bracketed(text: str, depth: int) -> Form | None:
    """Sets, tuples, intervals, matrices, unions of them."""
    if match := _BUILDER.fullmatch(text):
        return parse(match[1], depth + 1)
    if match := _MEMBER.fullmatch(text):
        return parse(match[1], depth + 1)
    if match := _WITHOUT.fullmatch(text):
        return Form("without", text, (parse(match[1], depth + 1), parse(match[2], depth + 1)))
    unions, cups = split(text, r"\\cup(?![a-zA-Z])|\bU\b")
    if cups:
        spans = [as_spans(parse(one, depth + 1)) for one in unions]
        return union([span for span in spans if span is not None], text) if all(spans) else None
    if match := _MATRIX.fullmatch(text):
        rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", match[1]) if row.strip()]
        cells = [[parse(cell, depth + 1) for cell in row.split("&")] for row in rows]
        return Form("matrix", text, tuple(Form("row", "", tuple(row)) for row in cells))
    opening, closing = _brackets(text)
    if not opening:
        return None
    inside = text[len(opening) : len(text) - len(closing)]
    elements, _ = split(inside, r"\s*[,;]\s*")
    if len(elements) == 1 and opening == "(":
        return parse(inside, depth + 1) if inside.strip() else None
    forms = tuple(parse(element, depth + 1) for element in elements if element.strip())
    if opening == "\\{":
        signed = [form for part in forms for form in (part.parts if part.kind == "list" else (part,))]
        return Form("set", text, tuple(signed))
    if opening == "[" and len(forms) == 1:
        return forms[0]
    if opening == "[" and closing == "]" and forms and all(form.kind == "tuple" for form in forms):
        return Form("matrix", text, tuple(Form("row", "", form.parts) for form in forms))
    if opening == "\\langle":
        opening, closing = "(", ")"
    return Form("tuple", text, forms, (opening, closing))


def _brackets(text: str) -> tuple[str, str]:
    """The brackets that stand around the whole of a text; empty if there are none."""
    match = re.match(r"\\\{|\\langle(?![a-zA-Z])|[(\[\]]", text)
    end = re.search(r"(?:\\\}|\\rangle|[)\]\[])$", text)
    if match is None or end is None or end.start() < match.end():
        return "", ""
    opening, closing = match[0], end[0]
    if opening in ("\\{", "\\langle"):
        fits = closing == {"\\{": "\\}", "\\langle": "\\rangle"}[opening]
    else:
        fits = closing in ")]" if opening in "([" else closing in ")["
        fits = fits or (opening in "([" and closing == "[" and "," in text)
    if not fits:
        return "", ""
    inside = text[match.end() : end.start()]
    level = 0
    for sign in re.finditer(r"\\[{}]|\\[lr]angle|\\.|[(\[{)\]}]", inside):
        level += sign[0] in ("(", "[", "{", "\\{", "\\langle")
        level -= sign[0] in (")", "]", "}", "\\}", "\\rangle")
        if level < 0:
            return "", ""
    return (opening, closing) if level == 0 else ("", "")


def _related(text: str, depth: int) -> Form | None:
    """Equations, chains, inequalities; those of one letter with numbers as intervals."""
    sides, signs = split(text, RELATIONS)
    if not signs:
        return None
    sides, signs = [side.strip() for side in sides], [sign.strip() for sign in signs]
    if signs[0] == "\\approx" and not sides[0]:
        return parse(text.partition("\\approx")[2], depth + 1)
    if signs == ["\\approx"] and not sides[0].startswith("\\") and _is_name(sides[0]):  # `x` and about what it is
        return Form("named", text, (parse(sides[1], depth + 1),), (sides[0].replace(" ", ""),))
    if "\\approx" in signs:
        cut = signs.index("\\approx")
        if rounds(sides[cut], sides[cut + 1]):
            return parse(text[: _place(text, cut)], depth + 1)
        return Form("relation", text, tuple(Form("scalar", side) for side in sides), tuple(signs))
    if set(signs) <= {"=", "==", "\\equiv"}:
        if not sides[0]:
            return parse(text.partition("=")[2], depth + 1)
        left = _brackets(sides[0])[0] == "(" and re.fullmatch(r"\([a-zA-Z](?:\s*,\s*[a-zA-Z])+\)", sides[0])
        if left and len(sides) == 2:
            return parse(sides[1], depth + 1)
        if len(sides) == 2 and _is_name(sides[1]) and not re.search(r"[a-zA-Z]", sides[0]):  # `5 = x`
            sides = sides[::-1]
        if all(sides) and _is_name(sides[0]):
            last = parse(sides[-1], depth + 1)
            chain = tuple(parse(side, depth + 1) for side in sides[1:-1])
            return Form("named", text, (last, *chain), (sides[0].replace(" ", ""),))
        return Form("equation", text, tuple(Form("scalar", side) for side in sides))
    parts = tuple(Form("scalar", side) for side in sides)
    return (
        _inequality(text, sides, signs) or _distance(text, sides, signs) or Form("relation", text, parts, tuple(signs))
    )


def _is_name(side: str) -> bool:
    """Whether a side of an equation only names what the other side is."""
    return _NAME.fullmatch(side) is not None and side not in ("e", "i", "\\pi", "\\infty")


def _place(text: str, index: int) -> int:
    """Where the relation of this place begins."""
    pieces, signs = split(text, RELATIONS)
    return sum(map(len, pieces[: index + 1])) + sum(map(len, signs[:index]))


def _inequality(text: str, sides: list[str], signs: list[str]) -> Form | None:
    letters = [
        i for i, side in enumerate(sides) if re.fullmatch(r"[a-zA-Z](?:_\{?\w\}?)?|\\(?:theta|alpha|lambda)", side)
    ]
    if len(letters) != 1 or len(sides) not in (2, 3) or not all(sides):
        return None
    at = letters[0]
    infinite = (Form("scalar", r"-\infty"), Form("scalar", r"\infty"))
    if signs == ["\\neq"]:
        end = Form("scalar", sides[1 - at])
        return Form("spans", text, (infinite[0], end, end, infinite[1]), ("()", "()"))
    if not set(signs) <= {"<", ">", "\\le", "\\ge"} or (len(sides) == 3 and at != 1):
        return None
    low, high = (infinite[0], "("), (infinite[1], ")")
    for i, sign in enumerate(signs):
        other = Form("scalar", sides[i] if i < at else sides[i + 1])
        closed = sign in ("\\le", "\\ge")
        if (sign in ("<", "\\le")) == (i < at):  # the other side is below the letter
            low = (other, "[" if closed else "(")
        else:
            high = (other, "]" if closed else ")")
    return Form("spans", text, (low[0], high[0]), (low[1] + high[1],))


def _distance(text: str, sides: list[str], signs: list[str]) -> Form | None:
    """`|x - 3| < 1` of plain numbers as an interval, `|x| > 2` as two."""
    if len(signs) != 1 or signs[0] not in ("<", ">", "\\le", "\\ge"):
        return None
    is_left = sides[0].startswith("|")
    match, radius = _ABSOLUTE.fullmatch(sides[not is_left]), value_of(sides[is_left])
    center = value_of(match["number"] or "0") if match else None
    if match is None or center is None or radius is None or radius <= 0:
        return None
    center = -center if match["sign"] == "+" else center
    low, high = Form("scalar", written(center - radius)), Form("scalar", written(center + radius))
    is_closed = signs[0] in ("\\le", "\\ge")
    if (signs[0] in ("<", "\\le")) == is_left:
        return Form("spans", text, (low, high), ("[]" if is_closed else "()",))
    parts = (Form("scalar", r"-\infty"), low, high, Form("scalar", r"\infty"))
    return Form("spans", text, parts, ("(]", "[)") if is_closed else ("()", "()"))


def _signed(text: str, depth: int) -> Form:
    r"""An expression; with `\pm`, the two that it stands for."""
    if re.search(r"\\[pm][pm](?![a-zA-Z])", text) and text.count("\\pm") <= 3:
        plus = re.sub(r"\\mp(?![a-zA-Z])", "-", re.sub(r"\\pm(?![a-zA-Z])", "+", text))
        minus = re.sub(r"\\mp(?![a-zA-Z])", "+", re.sub(r"\\pm(?![a-zA-Z])", "-", text))
        return Form("list", text, (Form("scalar", plus.lstrip("+ ")), Form("scalar", minus)))
    return Form("scalar", text)
