r"""The answer of a text that marks none: its last expression, if the sentence that it stands in states it.

A sentence whose words say something else than the number beside them states no answer; neither does a question, nor a number
that only names a thing (`case 2`). A remark at the end (`This is the final answer.`) is passed over.
"""

import re

from lockstitch.rewards.mathematics import words
from lockstitch.rewards.mathematics.plain import written
from lockstitch.rewards.mathematics.settling import (
    MATTER,
    ONLY_JOINTS,
    OUT_OF,
    Piece,
    expression_of,
    peeled,
    pieces_of,
    plain_numbers,
    settled,
    trimmed,
    without_notes,
)
from lockstitch.rewards.mathematics.spelling import normal
from lockstitch.rewards.phrases import is_remark, supposes, with_ends, without_denied

_TAIL = 1500  # characters of a text without marks that are searched for its last expression
_CLOCK_IN_TEXT = re.compile(
    r"(?<![\d:.,])(?:\d{1,2}:\d{2}(?![\d:])(?:\s*[ap]\.?\s?m\b\.?)?|\d{1,2}\s*(?:[ap]m|[ap]\.\s?m)\b\.?)",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"[,;:]\s|\b(?:so|then|thus|hence|therefore|which|(?<!say )(?<!think )(?<!doubt )that|and|because|means)\b"
)
_VERB = r"\b(?:is|are|equals|was|were|get|gets|gives|have|has|leaves|makes|obtain)\s+"
_ARROW = re.compile(r"^\s*(?:(?:=|-|\\)?\s?>|\\to(?![a-zA-Z])|\\Rightarrow|\\implies|\\therefore)\s*(?=[-\d\\(])")
_TIMES, _OVER = r"\\(?:cdot|times|div)(?![a-zA-Z])", r"\\[dt]?frac\{[\d.]+\}\{[\d.]+\}"
_STEP = re.compile(  # of a calculation
    rf"(?:[-+*/(). \d^]|{_TIMES}|{_OVER})*(?:\d|{_OVER})(?:[^=a-zA-Z]|{_TIMES}|{_OVER})*"
    rf"=(?:[^=a-zA-Z]|{_TIMES}|{_OVER})*(?:\d|{_OVER})(?:[-+*/(). \d]|{_TIMES}|{_OVER})*"
)
_OF_ALL = re.compile(r"\b(?:are|were|both|all|each|work|hold|respectively)\b", re.IGNORECASE)
_WORKS = re.compile(r"\d\s*[-+*/^\\)}]")
_IS = re.compile(
    r"(?:so|thus|hence|therefore|then|and|finally)?,?\s*(?:it|that|this|he|she|the\s+(?:\w+\s+){1,3})\s*(?:is|was|must\s+be|should\s+be)\s+",
    re.IGNORECASE,
)
_NO_STATEMENT = re.compile(r"(?:nothing|nobody)\b|no\s+(?!.*\b(?:solutions?|values?|roots?)\b)", re.IGNORECASE)
_LABELLED = re.compile(
    r"\b(?:cases?|pages?|problems?|questions?|steps?|parts?|figures?|tables?|chapters?|equations?|examples?|lines?|sections?"
    r"|theorems?|lemmas?|exercises?|methods?)\s+\(?\d+\)?[^\d=]*$",
    re.IGNORECASE,
)
_GIVES_UP = re.compile(
    r"\b(?:none|wrong|incorrect|fails?|contradiction|mistaken?|not|cannot|impossible)\b|n't\b", re.IGNORECASE
)
_MOST_WORDS_UNMARKED = 4


def last_expression(text: str) -> str | None:
    """The last expression of a text without marks, if its sentence states it; None if there is none, or it says more."""
    said = list(with_ends(text[-_TAIL:]))
    if len(said) > 1 and is_remark(said[-1][0]) and (found := _last_said(said[:-1])):
        return found
    return _last_said(said)


def _last_said(said: list[tuple[str, str]]) -> str | None:
    """The last expression of sentences that come with what ends them."""
    for place, (sentence, end) in enumerate(reversed(said)):
        meant = without_denied(sentence)
        if not meant.strip():
            return None
        spelled = plain_numbers(normal(peeled(meant)))
        if OUT_OF.fullmatch(rest := _IS.sub("", spelled, count=1)):
            return settled(rest)
        if value := _said_in_words(spelled):
            return value
        pieces = pieces_of(spelled, articles=True)
        if any(
            not piece.is_word and re.search(r"\d|\\(?:pi|sqrt|frac|infty|emptyset)", piece.text) for piece in pieces
        ):
            return None if "?" in end or _LABELLED.search(spelled) else _last_stated(spelled)
        if place == 0 and (stated := _stated_in_words(spelled, alone=len(said) == 1)):
            return stated
        if _GIVES_UP.search(spelled):
            return None
    return None


def _stated_in_words(sentence: str, alone: bool) -> str | None:
    """The few words that a text is (`Monday`, `A and C`), or that its last sentence states (`It is Monday`)."""
    match = _IS.match(sentence)
    rest = sentence[match.end() :] if match else sentence
    if (
        not (match or alone)
        or not 1 <= len(rest.split()) <= _MOST_WORDS_UNMARKED
        or supposes(rest) != supposes(sentence)
    ):
        return None
    stated = settled(rest)
    is_nothing = words.NO_GOLD.fullmatch(stated) or _NO_STATEMENT.match(stated)
    return None if is_nothing else stated


def _said_in_words(sentence: str) -> str | None:
    """The number in words that a sentence is, or ends in behind a verb (`we get fourteen`)."""
    sentence = sentence.rstrip(" .!*")
    for lead in (_VERB, r"^(?:so|thus|hence|therefore|that|and)?\s*"):
        match = re.search(rf"{lead}((?:[a-z]+[\s-]?){{1,6}})$", sentence, re.IGNORECASE)
        value = words.value_in_words(match[1]) if match else None
        if value is not None:
            return written(value)
    return None


def _last_stated(sentence: str) -> str | None:
    """The last expression of a sentence, if the words before it only introduce it."""
    sentence = without_notes(trimmed(_ARROW.sub("", sentence)))
    clock = list(_CLOCK_IN_TEXT.finditer(sentence))
    if clock and not re.search(r"\d", sentence[clock[-1].end() :]):
        return settled(clock[-1][0])
    pieces = pieces_of(sentence, articles=True)
    islands = [i for i, piece in enumerate(pieces) if not piece.is_word and re.search(r"\d|\\[a-zA-Z]", piece.text)]
    # A power or a slash behind a word is its unit's, and no expression of its own: `12 cm^2`.
    while len(islands) > 1 and re.match(r"\s*[/^]", pieces[islands[-1]].text):
        islands.pop()
    if not islands:
        return None
    first = len(islands) - 1  # of the steps that end the sentence: `3+4 = 7 and 7+5 = 12`
    while first and _follows_on(pieces[islands[first - 1] : islands[first] + 1]):
        first -= 1
    behind = "".join(piece.text for piece in pieces[islands[-1] + 1 :])
    if first < len(islands) - 1 and _OF_ALL.search(behind):
        return None
    begin = islands[first - 1] + 1 if first else 0
    lead = "".join(piece.text for piece in pieces[begin : islands[first]])
    if first and (ONLY_JOINTS.fullmatch(lead.strip() + " ") or lead.strip() in ("in", "per", "for every", "by")):
        return None
    clause = _CLAUSE.split(lead)[-1]
    found = None if words.changes(clause) else expression_of("".join(piece.text for piece in pieces[islands[-1] :]))
    return None if found is None else _right_side(found)


def _follows_on(pieces: list[Piece]) -> bool:
    """Whether these are two calculations, or lists of them, joined by `and`."""
    one, *joint, other = [piece.text for piece in pieces]
    steps = _steps(one) + _steps(other)
    return "".join(joint).strip() == "and" and all(_STEP.fullmatch(step) and _WORKS.search(step) for step in steps)


def _steps(expression: str) -> list[str]:
    return re.split(r"\s*[,;]\s+", trimmed(expression))


def _right_side(expression: str) -> str | None:
    """Of equations in running text, what the last one gives; of other lists, the whole."""
    steps = _steps(expression)
    if len(steps) > 1 and all(_STEP.fullmatch(step) for step in steps):
        expression = steps[-1]
    if "," in expression:
        return expression
    side = trimmed(re.split(r"(?<![<>!])=|\\approx|\\to(?![a-zA-Z])|->", expression)[-1])
    return side if MATTER.search(side) else None
