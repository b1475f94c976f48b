r"""From a completion to its answer: the whole expression, in one spelling, or words; never a number cut out of prose.

Where the answer stands is `marks.find_answer`'s decision; where nothing is marked, it is the last expression of the text.
What stands there is spelled as `spelling.normal` has it. Then words are told from mathematics:

- mathematics alone is the answer;
- of mathematics with words (`the answer is 12`, `12 cm^2`, `90 km/h`, `12 ways, since 3 x 4`), it is the mathematics, scaled
  by `million` and its kind;
- numbers in words are numbers;
- if the words say something else than the number beside them (`no more than 5`, `half of 2`, `5 feet 10 inches`), the answer
  is the text itself, which equals nothing but the same text. In a sentence that no mark points to, it is no answer.
"""

import math
import re
from fractions import Fraction
from typing import Any, NamedTuple

from lockstitch.rewards.marks import find_answer, spoken
from lockstitch.rewards.mathematics import words
from lockstitch.rewards.mathematics.plain import value_of, written
from lockstitch.rewards.mathematics.spelling import normal
from lockstitch.rewards.phrases import supposes, with_ends, without_denied

LONGEST_ANSWER = 1000
_TAIL = 1500  # characters of a text without marks that are searched for its last expression
_MOST_WORDS, _MOST_UNIT_WORDS = 8, 6

_PIECE = re.compile(
    r"\\[a-zA-Z]+|\\.|(?P<word>[^\W\d_]+(?:['-][^\W\d_]+)*\.?(?=\W|\Z)|[^\W\d_]+)|[\W\d_]",
    re.DOTALL,
)
_MATTER = re.compile(r"\d|\\[a-zA-Z]|[a-zA-Z]")
_ONLY_JOINTS = re.compile(r"(?:\s|,|;|\band\b|\bor\b|&|\bboth\b)+", re.IGNORECASE)
# Where an explanation begins, which no longer counts.
_EXPLAINS = re.compile(
    r"\s*(?:,\s*(?:since|because|as|so|not|which|where|when|if|for|with|that|i\.e|making|assuming|but|meaning|whereas"
    r"|or about|or approximately|respectively)\b"
    r"|\s(?:since|because|where|which|such that|for (?:all|any|every|each|some)|when|whenever|if|assuming|making"
    r"|as (?:required|desired|claimed|expected)|and (?:is|are|has|have|he|she|they|we|will|then))\b"
    r"|\sfor (?=[a-zA-Z]\s*(?:\\|[=<>,]))|,\s*\d+ of (?:which|whom|them)\b|\s(?:-|\\to)\s+[a-z]{3}"
    r"|[;.]\s|(?<=\d)\.(?=[A-Z]))",
    re.IGNORECASE,
)
_INTRODUCED = re.compile(
    r"^.{0,200}?\b(?:answers?|result|value|total|sum|it|there|this|that|solution|option|choice)\s+"
    r"(?:is|are|equals?|was|were)\s*:?\s*(?:therefore\s+|equal to\s+|exactly\s+|simply\s+|just\s+)?",
    re.IGNORECASE | re.DOTALL,
)
_STATED = re.compile(
    r"(?P<subject>[^\d\\=]*\b(?:is|are|was|were|equals?))\s+(?P<rest>\S.*)", re.IGNORECASE | re.DOTALL
)
_QUOTED = re.compile(r"\[\s*(['\"])(.*)\1\s*\]|(['\"])((?:(?!\3).)*)\3|\[\s*([-+]?[\d./]+)\s*\]", re.DOTALL)
_NOTE = re.compile(
    r"(?<=[\w}%)!.])\s*\(\s*=[^()]*\)\s*$|(?<=[\w}%)!.])\s+\((?:\s*\\approx|[^()]*(?<![\\a-zA-Z])[a-zA-Z]{3}|\s*i\.e)(?:[^()]|\([^()]*\))*\)\s*$"
    r"|(?<=[\w}%)])\s*\[\d{1,3}\]\s*$"
)
_RESTATED = re.compile(r"(?P<one>\S.*?)\s+\((?P<other>[\d./%]+)\)\s*")
_CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s*:?\s*)?(?:\(\s*([A-J])\s*\)|([A-J])\s*[).:](?=\s|$))\s*(.*)",
    re.IGNORECASE | re.DOTALL,
)
_OPTION = re.compile(
    r"(?:the\s+)?(?:option|choice)\s+\(?([A-J])\)?(?:\s+is\s+(?:the\s+)?(?:correct|right|answer|best)(?:\s+(?:one|answer|option|choice))?)?",
    re.IGNORECASE,
)
_YES_OR_NO = re.compile(r"(yes|no|true|false)\s*[,.;:]?\s+(?:since|because|as)\b.*", re.IGNORECASE | re.DOTALL)
_CHOICE_ALONE = re.compile(r"[*_]{0,2}(?:\([A-J]\)|[A-J][).:])[*_]{0,2}[ \t]+[^\n=]{1,100}")
_UNIT = r"(?:[a-zA-Z]{1,14}\.?)(?:\s?\^\s?\{?-?\d\}?)?"
_COMPOUND = re.compile(  # a number and its unit, with slashes and powers; what goes before counts as well
    r"(?P<number>(?:[-+\d.,/^(){}=\s]|\\[dt]?frac|\\sqrt|\\pi|\\times|\\cdot|[a-z] ?= )*?(?:[\d})]|\\pi))"
    rf"(?P<space>\s*)(?P<unit>(?:/\s?)?{_UNIT}(?:\s?(?:/|\\cdot\s?|\\times\s?|\s)\s?{_UNIT}){{0,3}})\s*",
    re.DOTALL,
)
_DEGREES = re.compile(r"\^\\circ(?:\s*[CFK]\b)?|\bdegrees?(?:\s+(?:celsius|fahrenheit|kelvin))?\b", re.IGNORECASE)
_CLOCK = re.compile(r"\d{1,2}(?::\d{2}){0,2}\s*(?:[ap]\.?\s?m\b\.?)", re.IGNORECASE)
_CLOCK_IN_TEXT = re.compile(
    r"(?<![\d:.,])(?:\d{1,2}:\d{2}(?![\d:])(?:\s*[ap]\.?\s?m\b\.?)?|\d{1,2}\s*(?:[ap]m|[ap]\.\s?m)\b\.?)",
    re.IGNORECASE,
)
_OUT_OF = re.compile(r"(\d{1,9})\s+(?:out\s+of|in)\s+(\d{1,9})")
_CHOICES = re.compile(r"(?:\([A-J]\)|[A-J])(?:\s*(?:,|;|&|\band\b|\bor\b)+\s*(?:\([A-J]\)|[A-J]))+")
_PERCENT = re.compile(r"\s*(?:%|\bper\s?cent\b|\bpercentage points?\b|\bpct\b|\bpercent\b)", re.IGNORECASE)
_ORDINAL = re.compile(
    r"(?<![\w.])(\d+)\s?(?:st|nd|rd|th)\b"
    r"(?=\s*(?:$|[.,;:)!?]|(?:one|place|position|day|month|year|week|floor|row|column|person|house|grade|time|step|attempt|try"
    r"|of\s+(?:january|february|march|april|may|june|july|august|september|october|november|december))\b))",
    re.IGNORECASE,
)
_THOUSAND = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s?(K|M|B|bn|mn)(?![\w])")
_CLAUSE = re.compile(
    r"[,;:]\s|\b(?:so|then|thus|hence|therefore|which|(?<!say )(?<!think )(?<!doubt )that|and|because|means)\b"
)
_BEFORE = re.compile(r"^(?:about|approximately|around|roughly|nearly|almost|exactly|only|just)\s+", re.IGNORECASE)
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
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,30}")


class _Piece(NamedTuple):
    is_word: bool
    text: str


def read_answer(text: str) -> str | None:
    """The answer of a completion, in one spelling; None if it has none."""
    found = find_answer(text)
    if found is None:
        said = spoken(text).strip()
        return settle(said) if _CHOICE_ALONE.fullmatch(said) else last_expression(said)
    return settle(found.text) if found.text else None


def read_gold(gold: Any) -> str | None:
    """A gold answer: a number, the answer itself, or a text that marks it; None if it is none of these."""
    if isinstance(gold, bool) or not isinstance(gold, str | int | float):
        return None
    if isinstance(gold, float):
        if not math.isfinite(gold):
            return None
        gold = int(gold) if gold.is_integer() else gold
    text = gold.strip() if isinstance(gold, str) else repr(gold)
    found = find_answer(text)
    if found is not None and found.mark == "phrase" and words.SAMPLE.match(text):
        return None
    text = text if found is None else found.text
    read = settle(text)
    if any(words.NO_GOLD.fullmatch(one.strip(" .*_$")) for one in (text, read or "")):
        return None
    return None if read is None or _is_prose(read) or len(read) > LONGEST_ANSWER else read


def _is_prose(read: str) -> bool:
    """Whether a gold answer has more words than an answer of words has, or nothing that could be one."""
    return len(_words(read)) > _MOST_WORDS or re.search(r"[\w\\]", read) is None


def settle(text: str) -> str | None:
    """What a marked text answers, in one spelling; None if nothing is left of it."""
    if _WHOLE_NUMBER.fullmatch(text.strip()):
        return text.strip()  # most answers, and nothing to do
    text = normal(_peeled(text[-2 * LONGEST_ANSWER :]))
    return _settled(text) or None


def _peeled(text: str) -> str:
    """The text without wrappings: quotes, Python's lists of one text, back-ticks, a sentence's end."""
    text = re.sub(r"\*\*([^*]+)\*\*|__([^_]+)__", r"\1\2", text)
    while True:
        text = text.strip()
        bare = re.sub(r"^(?:\*\*|__|`+(?:latex|math|text|python)?\n?)|(?:\*\*|__|`+|\\\\)$", "", text)
        bare = re.sub(r"^\*([^*]+)\*$", r"\1", re.sub(r"(?<!\\)\\$", "", bare))
        if len(bare) > 1 and not re.search(r"[\w)}]!$|\.\.\.$", bare):
            bare = re.sub(r"(?<!\\)[.,;:!?\s]+$", "", bare)
        if match := _QUOTED.fullmatch(bare):
            bare = match[2] or match[4] or match[5] or ""
        if bare == text:
            return text
        text = bare


def _trimmed(text: str) -> str:
    """The text without punctuation around it, and without the plus of `90+`."""
    text = re.sub(r"^(?:[\s,;:&=]|\\\\|\.(?!\d))+", "", text)
    text = text.removesuffix("\\}") if "\\{" not in text else text
    text = re.sub(r"(?:(?<!\\)[\s,;:&=]|(?<![\\.])\.)+$", "", text)
    return re.sub(r"(?<=\d)\+$", "", text).strip()


def _pieces(text: str, articles: bool = False) -> list[_Piece]:
    """The text in turns of mathematics and words."""
    pieces: list[_Piece] = []
    for match in _PIECE.finditer(text):
        run = match["word"]
        article = articles and run in ("a", "A", "I") and re.match(r" [a-z]{3}", text[match.end() : match.end() + 4])
        word = run is not None and (words.is_word(run.rstrip(".")) or bool(article))
        if pieces and (pieces[-1].is_word == word or (pieces[-1].is_word and match[0].isspace())):
            pieces[-1] = _Piece(pieces[-1].is_word, pieces[-1].text + match[0])
        else:
            pieces.append(_Piece(word, match[0]))
    return pieces


def _words(text: str) -> list[str]:
    return [word for piece in _pieces(text, articles=True) if piece.is_word for word in piece.text.split()]


def _matters(piece: _Piece) -> bool:
    return not piece.is_word and _MATTER.search(piece.text) is not None


def _settled(text: str) -> str:
    text = _trimmed(text)
    if _CLOCK.fullmatch(text):
        return re.sub(r"(?i)\s*([ap])\.?\s?m\.?$", lambda match: f" {match[1].lower()}m", text)
    if (match := _OUT_OF.fullmatch(text)) and 0 < int(match[1]) < int(match[2]):
        return written(Fraction(int(match[1]), int(match[2])))
    if _CHOICES.fullmatch(text) and "(" in text:
        return re.sub(r"[()]", "", text)
    if match := _OPTION.fullmatch(text):
        return match[1].upper()
    if match := _YES_OR_NO.fullmatch(text):
        return match[1]
    if (match := _CHOICE.fullmatch(text)) and not re.match(r"\s*[-+=*/^\\<>:(]", match[3]):
        rest = _settled(match[3]) if match[3].strip() else ""
        return f"({(match[1] or match[2]).upper()}) {rest}" if rest else (match[1] or match[2]).upper()
    text = _plain_numbers(text)
    text = _without_notes(text)
    found = _expression(text)
    return text if found is None else found


def _plain_numbers(text: str) -> str:
    """Percentages, ordinals, thousands and degrees as notation."""
    text = _PERCENT.sub(r"\\%", _ORDINAL.sub(r"\1", text))
    if not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        text = _DEGREES.sub(" ", text)
    return _THOUSAND.sub(_scaled_letter, text)


def _scaled_letter(match: re.Match[str]) -> str:
    if match[2] in "KMB" and " " in match[0]:
        return match[0]
    scale = {"K": 1000, "M": 10**6, "mn": 10**6, "B": 10**9, "bn": 10**9}[match[2]]
    return written(Fraction(match[1]) * scale)


def _without_notes(text: str) -> str:
    """The text without a remark behind the answer: `(see step 3)`, `[1]`, `(0.5)` behind its fraction."""
    while (bare := _NOTE.sub("", text)) != text and bare.strip():
        text = bare.strip()
    if match := _RESTATED.fullmatch(text):
        one, other = value_of(match["one"]), value_of(match["other"])
        if one is not None and one == other:
            return match["one"]
    return text


def _expression(text: str) -> str | None:
    """The expression among the words of a text; None if the words say something else."""
    if (match := _STATED.match(text)) and _MATTER.search(match["rest"]) and not supposes(match["subject"]):
        text = match["rest"]
    if (number := _without_unit(text)) is not None:
        return number
    pieces = _pieces(text, articles=bool(_words(text)))
    if not any(piece.is_word for piece in pieces):
        return _trimmed(text)
    if not any(_matters(piece) for piece in pieces):
        return _in_words(text)
    cut = _EXPLAINS.search(text, len(pieces[0].text) if pieces[0].is_word or not _matters(pieces[0]) else 0)
    if cut is not None and any(map(_matters, _pieces(text[: cut.start()]))):
        return _expression(text[: cut.start()].strip())
    islands = [i for i, piece in enumerate(pieces) if _matters(piece)]
    between = [piece.text for piece in pieces[islands[0] + 1 : islands[-1]] if piece.is_word]
    lead = "".join(piece.text for piece in pieces[: islands[0]]).strip()
    behind = "".join(piece.text for piece in pieces[islands[-1] + 1 :]).strip()
    if any(piece.is_word for piece in pieces[: islands[0]]) and words.changes(lead):
        return None
    body = _trimmed("".join(piece.text for piece in pieces[islands[0] :]))
    if (number := _without_unit(body)) is not None:
        return number
    if all(_ONLY_JOINTS.fullmatch(joint) for joint in between) and (joints := "".join(between)) is not None:
        body = "".join(piece.text for piece in pieces[islands[0] : islands[-1] + 1])
        if not joints:
            return _measured(_trimmed(body), behind)
        return None if behind and not _is_unit(behind) else re.sub(r"\s+", " ", _trimmed(body))
    return _all_of_one_unit(text)


def _all_of_one_unit(text: str) -> str | None:
    """The numbers of `5 cm or 6 cm`, where all have the same unit."""
    parts = re.split(r"(\s*,\s+(?:(?:and|or)\s+)?|\s+(?:and|or)\s+)", text)
    numbers = [_without_unit(part) or "" for part in parts[::2]]
    units = {part.replace(number, "", 1).strip() for part, number in zip(parts[::2], numbers, strict=True)}
    if not all(numbers) or len(units) > 1:
        return None
    return "".join(number + joint for number, joint in zip(numbers, [*parts[1::2], ""], strict=True))


def _without_unit(text: str) -> str | None:
    """The number of `90 km/h`, `12 m^2`, `90 g`, `9/hour`; None for anything else, and where the unit may be a variable."""
    match = _COMPOUND.fullmatch(text)
    if match is None:
        return None
    unit = re.sub(r"\^\s?\{?-?\d\}?|\\cdot|\\times|/", " ", match["unit"])
    parts = [part.rstrip(".") for part in unit.split()]
    for i, part in enumerate(parts):
        if len(part) == 1:
            apart = i > 0 or match["space"] or match["unit"].startswith("/")
            is_unit = apart and part in words.UNITS_OF_ONE_LETTER
        else:
            is_unit = words.is_word(part) and part.lower() not in words.SCALES
        if not is_unit:
            return None
    return _trimmed(match["number"]) if _is_unit(unit) else None


def _is_unit(text: str) -> bool:
    """Whether words behind a number name what it counts, and change nothing."""
    if words.changes(text, behind=True):
        return False
    return len(text.split()) <= _MOST_UNIT_WORDS


def _measured(number: str, behind: str) -> str | None:
    """The number, scaled if the first word behind it scales; None if the words change it."""
    scale = 1
    rest = behind.split()
    while rest and (factor := words.SCALES.get(rest[0].lower().strip(".,"))):
        scale, rest = scale * factor, rest[1:]
    if scale > 1 and rest[:1] == ["of"]:
        rest = rest[1:]
    if not _is_unit(" ".join(rest)):
        return None
    if scale == 1:
        return number
    value = value_of(number.rpartition("=")[2])
    return None if value is None else written(value * scale)


def _in_words(text: str) -> str:
    """A number in words as a number; other words as they are, without what introduces them."""
    if not re.match(r"\w|['\"(]", text):
        return text
    stripped = _BEFORE.sub("", text.strip())
    if (value := words.value_in_words(stripped)) is not None:
        return written(value)
    inner = _INTRODUCED.sub("", stripped)
    lead, parts = stripped[: len(stripped) - len(inner)], inner.split()
    if not parts or words.changes(lead):
        return text
    for count in range(min(len(parts), 12), 0, -1):  # `five apples`
        value = words.value_in_words(" ".join(parts[:count]))
        if value is not None:
            return written(value) if _is_unit(" ".join(parts[count:])) else text
    return inner if lead and len(parts) <= 4 else text


def last_expression(text: str) -> str | None:
    """The last expression of a text without marks, if its sentence states it; None if there is none, or it says more."""
    said = list(with_ends(text[-_TAIL:]))
    for place, (sentence, end) in enumerate(reversed(said)):
        meant = without_denied(sentence)
        if not meant.strip():
            return None
        spelled = _plain_numbers(normal(_peeled(meant)))
        if _OUT_OF.fullmatch(rest := _IS.sub("", spelled, count=1)):
            return _settled(rest)
        if value := _said_in_words(spelled):
            return value
        pieces = _pieces(spelled, articles=True)
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
    stated = _settled(rest)
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
    sentence = _without_notes(_trimmed(_ARROW.sub("", sentence)))
    clock = list(_CLOCK_IN_TEXT.finditer(sentence))
    if clock and not re.search(r"\d", sentence[clock[-1].end() :]):
        return _settled(clock[-1][0])
    pieces = _pieces(sentence, articles=True)
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
    if first and (_ONLY_JOINTS.fullmatch(lead.strip() + " ") or lead.strip() in ("in", "per", "for every", "by")):
        return None
    clause = _CLAUSE.split(lead)[-1]
    found = None if words.changes(clause) else _expression("".join(piece.text for piece in pieces[islands[-1] :]))
    return None if found is None else _right_side(found)


def _follows_on(pieces: list[_Piece]) -> bool:
    """Whether these are two calculations, or lists of them, joined by `and`."""
    one, *joint, other = [piece.text for piece in pieces]
    steps = _steps(one) + _steps(other)
    return "".join(joint).strip() == "and" and all(_STEP.fullmatch(step) and _WORKS.search(step) for step in steps)


def _steps(expression: str) -> list[str]:
    return re.split(r"\s*[,;]\s+", _trimmed(expression))


def _right_side(expression: str) -> str | None:
    """Of equations in running text, what the last one gives; of other lists, the whole."""
    steps = _steps(expression)
    if len(steps) > 1 and all(_STEP.fullmatch(step) for step in steps):
        expression = steps[-1]
    if "," in expression:
        return expression
    side = _trimmed(re.split(r"(?<![<>!])=|\\approx|\\to(?![a-zA-Z])|->", expression)[-1])
    return side if _MATTER.search(side) else None
