r"""What stands where the answer is, in one spelling: the whole expression, or words; never a number cut out of prose.

What stands there is spelled as `spelling.normal` has it. Then words are told from mathematics:

- mathematics alone is the answer;
- of mathematics with words (`the answer is 12`, `12 cm^2`, `90 km/h`, `12 ways, since 3 x 4`), it is the mathematics, scaled
  by `million` and its kind;
- numbers in words are numbers;
- a piecewise answer (`2 if x > 0, 3 otherwise`) has all of its branches;
- if the words say something else than the number beside them (`no more than 5`, `half of 2`, `5 feet 10 inches`), the answer
  is the text itself, which equals nothing but the same text.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from lockstitch.rewards.mathematics import words
from lockstitch.rewards.mathematics.branches import branches_of
from lockstitch.rewards.mathematics.plain import value_of, written
from lockstitch.rewards.mathematics.spelling import normal
from lockstitch.rewards.phrases import supposes

LONGEST_ANSWER = 1000
_MOST_UNIT_WORDS = 6
_PIECE = re.compile(
    r"\\[a-zA-Z]+|\\.|(?P<word>[^\W\d_]+(?:['-][^\W\d_]+)*\.?(?=\W|\Z)|[^\W\d_]+)|[\W\d_]",
    re.DOTALL,
)
MATTER = re.compile(r"\d|\\[a-zA-Z]|[a-zA-Z]")
ONLY_JOINTS = re.compile(r"(?:\s|,|;|\band\b|\bor\b|&|\bboth\b)+", re.IGNORECASE)
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
_UNIT = r"(?:[a-zA-Z]{1,14}\.?)(?:\s?\^\s?\{?-?\d\}?)?"
_COMPOUND = re.compile(  # a number and its unit, with slashes and powers; what goes before counts as well
    r"(?P<number>(?:[-+\d.,/^(){}=\s]|\\[dt]?frac|\\sqrt|\\pi|\\times|\\cdot|[a-z] ?= )*?(?:[\d})]|\\pi))"
    rf"(?P<space>\s*)(?P<unit>(?:/\s?)?{_UNIT}(?:\s?(?:/|\\cdot\s?|\\times\s?|\s)\s?{_UNIT}){{0,3}})\s*",
    re.DOTALL,
)
_DEGREES = re.compile(r"\^\\circ(?:\s*[CFK]\b)?|\bdegrees?(?:\s+(?:celsius|fahrenheit|kelvin))?\b", re.IGNORECASE)
_CLOCK = re.compile(r"\d{1,2}(?::\d{2}){0,2}\s*(?:[ap]\.?\s?m\b\.?)", re.IGNORECASE)
OUT_OF = re.compile(r"(\d{1,9})\s+(?:out\s+of|in)\s+(\d{1,9})")
_CHOICES = re.compile(r"(?:\([A-J]\)|[A-J])(?:\s*(?:,|;|&|\band\b|\bor\b)+\s*(?:\([A-J]\)|[A-J]))+")
_PERCENT = re.compile(r"\s*(?:%|\bper\s?cent\b|\bpercentage points?\b|\bpct\b|\bpercent\b)", re.IGNORECASE)
_ORDINAL = re.compile(
    r"(?<![\w.])(\d+)\s?(?:st|nd|rd|th)\b"
    r"(?=\s*(?:$|[.,;:)!?]|(?:one|place|position|day|month|year|week|floor|row|column|person|house|grade|time|step|attempt|try"
    r"|of\s+(?:january|february|march|april|may|june|july|august|september|october|november|december))\b))",
    re.IGNORECASE,
)
_THOUSAND = re.compile(  # with a letter that scales it; in a formula the letter is a variable
    r"(?:(?<=^)|(?<=^-)|(?<=[\s,;(=~]))(?<![-+*/^(]\s)(\d+(?:\.\d+)?)\s?(K|M|B|bn|mn)"
    r"(?=\s*(?:\+?$|[,;:.!?)](?!\d)|/\s?[a-zA-Z]{3})|\s+(?P<word>[a-zA-Z]{2,}))"
)
_COUNTED = re.compile(
    r"(?:dollars|cents|euros|pounds|rupees|yen|people|users|customers|views|years|bytes|cells|stars|tons|barrels|shares)",
    re.IGNORECASE,
)
_BEFORE = re.compile(r"^(?:about|approximately|around|roughly|nearly|almost|exactly|only|just)\s+", re.IGNORECASE)
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,30}")


class Piece(NamedTuple):
    """A run of a text: words, or mathematics."""

    is_word: bool
    text: str


def settle(text: str) -> str | None:
    """What a marked text answers, in one spelling; None if nothing is left of it."""
    if _WHOLE_NUMBER.fullmatch(text.strip()):
        return text.strip()  # most answers, and nothing to do
    text = normal(peeled(text[-2 * LONGEST_ANSWER :]))
    return settled(text) or None


def peeled(text: str) -> str:
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


def trimmed(text: str) -> str:
    """The text without punctuation around it, and without the plus of `90+`."""
    text = re.sub(r"^(?:[\s,;:&=]|\\\\|\.(?!\d))+", "", text)
    text = text.removesuffix("\\}") if "\\{" not in text else text
    text = re.sub(r"(?:(?<!\\)[\s,;:&=]|(?<![\\.])\.)+$", "", text)
    return re.sub(r"(?<=\d)\+$", "", text).strip()


def pieces_of(text: str, articles: bool = False) -> list[Piece]:
    """The text in turns of mathematics and words."""
    pieces: list[Piece] = []
    for match in _PIECE.finditer(text):
        run = match["word"]
        article = articles and run in ("a", "A", "I") and re.match(r" [a-z]{3}", text[match.end() : match.end() + 4])
        word = run is not None and (words.is_word(run.rstrip(".")) or bool(article))
        if pieces and (pieces[-1].is_word == word or (pieces[-1].is_word and match[0].isspace())):
            pieces[-1] = Piece(pieces[-1].is_word, pieces[-1].text + match[0])
        else:
            pieces.append(Piece(word, match[0]))
    return pieces


def words_of(text: str) -> list[str]:
    """The words of a text, without its mathematics."""
    return [word for piece in pieces_of(text, articles=True) if piece.is_word for word in piece.text.split()]


def _matters(piece: Piece) -> bool:
    return not piece.is_word and MATTER.search(piece.text) is not None


def settled(text: str) -> str:
    """What a spelled text answers: its expression, or the text itself where its words say something else."""
    text = trimmed(text)
    if _CLOCK.fullmatch(text):
        return re.sub(r"(?i)\s*([ap])\.?\s?m\.?$", lambda match: f" {match[1].lower()}m", text)
    if (match := OUT_OF.fullmatch(text)) and 0 < int(match[1]) < int(match[2]):
        return written(Fraction(int(match[1]), int(match[2])))
    if _CHOICES.fullmatch(text) and "(" in text:
        return re.sub(r"[()]", "", text)
    if match := _OPTION.fullmatch(text):
        return match[1].upper()
    if match := _YES_OR_NO.fullmatch(text):
        return match[1]
    if (match := _CHOICE.fullmatch(text)) and not re.match(r"\s*[-+=*/^\\<>:(]", match[3]):
        rest = settled(match[3]) if match[3].strip() else ""
        return f"({(match[1] or match[2]).upper()}) {rest}" if rest else (match[1] or match[2]).upper()
    text = plain_numbers(text)
    if (found := _piecewise(text)) is not None:
        return found
    text = without_notes(text)
    found = expression_of(text)
    return text if found is None else found


def _piecewise(text: str) -> str | None:
    """A piecewise answer with all of its branches, in one spelling; None for anything else, and where they are one value."""
    values, conditions = [], []
    for value, condition in branches_of(text):
        found = expression_of(value)
        if found is None or words_of(found) or MATTER.search(found) is None or _EXPLAINS.search(value):
            return None
        values.append(found)
        conditions.append(f"if {condition}" if condition else "otherwise")
    if values and "=" in values[0] and not any("=" in value for value in values[1:]):
        values[0] = trimmed(values[0].rpartition("=")[2])  # `f(x) =` before the first
    if len(set(values)) < 2:
        return None
    return ", ".join(f"{value} {condition}" for value, condition in zip(values, conditions, strict=True))


def plain_numbers(text: str) -> str:
    """Percentages, ordinals, thousands and degrees as notation; `2B` is a number only of something that is counted."""
    text = _PERCENT.sub(r"\\%", _ORDINAL.sub(r"\1", text))
    if not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        text = _DEGREES.sub(" ", text)
    return _THOUSAND.sub(_scaled_letter, text)


def _scaled_letter(match: re.Match[str]) -> str:
    if match[2] in ("B", "mn") and not _COUNTED.fullmatch(match["word"] or ""):
        return match[0]
    if match[2] in "KMB" and " " in match[0]:
        return match[0]
    scale = {"K": 1000, "M": 10**6, "mn": 10**6, "B": 10**9, "bn": 10**9}[match[2]]
    return written(Fraction(match[1]) * scale)


def without_notes(text: str) -> str:
    """The text without a remark behind the answer: `(see step 3)`, `[1]`, `(0.5)` behind its fraction."""
    while (bare := _NOTE.sub("", text)) != text and bare.strip():
        text = bare.strip()
    if match := _RESTATED.fullmatch(text):
        one, other = value_of(match["one"]), value_of(match["other"])
        if one is not None and one == other:
            return match["one"]
    return text


def expression_of(text: str) -> str | None:
    """The expression among the words of a text; None if the words say something else."""
    if (match := _STATED.match(text)) and MATTER.search(match["rest"]) and not supposes(match["subject"]):
        text = match["rest"]
    if (number := _without_unit(text)) is not None:
        return number
    pieces = pieces_of(text, articles=bool(words_of(text)))
    if not any(piece.is_word for piece in pieces):
        return trimmed(text)
    if not any(_matters(piece) for piece in pieces):
        return _in_words(text)
    if ";" in text and (listed := _all_of_one_unit(text)) is not None:  # `3 cm; 4 cm`, which no explanation follows
        return listed
    cut = _EXPLAINS.search(text, len(pieces[0].text) if pieces[0].is_word or not _matters(pieces[0]) else 0)
    if cut is not None and any(map(_matters, pieces_of(text[: cut.start()]))):
        return expression_of(text[: cut.start()].strip())
    islands = [i for i, piece in enumerate(pieces) if _matters(piece)]
    between = [piece.text for piece in pieces[islands[0] + 1 : islands[-1]] if piece.is_word]
    lead = "".join(piece.text for piece in pieces[: islands[0]]).strip()
    behind = "".join(piece.text for piece in pieces[islands[-1] + 1 :]).strip()
    if any(piece.is_word for piece in pieces[: islands[0]]) and words.changes(lead):
        return None
    body = trimmed("".join(piece.text for piece in pieces[islands[0] :]))
    if (number := _without_unit(body)) is not None:
        return number
    if all(ONLY_JOINTS.fullmatch(joint) for joint in between) and (joints := "".join(between)) is not None:
        body = "".join(piece.text for piece in pieces[islands[0] : islands[-1] + 1])
        if not joints:
            return _measured(trimmed(body), behind)
        return None if behind and not _is_unit(behind) else re.sub(r"\s+", " ", trimmed(body))
    return _all_of_one_unit(text)


def _all_of_one_unit(text: str) -> str | None:
    """The numbers of `5 cm or 6 cm` and `5 cm; 6 cm`, where all have the same unit."""
    parts = re.split(r"(\s*[,;]\s+(?:(?:and|or)\s+)?|\s+(?:and|or)\s+)", text)
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
    return trimmed(match["number"]) if _is_unit(unit) else None


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
