"""Cutting a completion into reasoning steps, deterministically: sentences, lines or the rows of a grid.

Steps are spans of the text itself, so that every step can be shown, scored and pinned where it stands. Answers are not
steps: `#### 19`, `A: 19`, a line that is only `\\boxed{19}`, and what stands inside `<answer>`. Left out: sentences
that run over a line break (a line break always ends a step), and languages that end sentences otherwise.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any
from weakref import WeakKeyDictionary

from lockstitch.rewards.steps import UNITS, Segmenter
from lockstitch.stitching.steps import Step

from lockstitch.errors import others_code

_ANSWER_BLOCK = re.compile(r"<answer>.*?(?:</answer>|\Z)", re.DOTALL)
_TAG = re.compile(r"</?[a-z][a-z_-]+>|<\|[^<>|\s]+\|>")
_LINE = re.compile(r"[^\r\n]+")
_ANSWER_LINE = re.compile(
    r"\s*(?:####.*|A:\s*\\?\$?-?[\d.].*|(?:\\\[|\\\(|\$+|\*\*)*\s*\\boxed\{.*\}\s*(?:\\\]|\\\)|\$+|\*\*|\.)*)\s*"
)
_ROW = re.compile(r"\s*(?:(?:[0-4]\s*){4}|(?:[0-9]\s*){9})")

_BULLET = re.compile(r"\s*(?:[-*+•>]\s+|#{1,3}\s+)*")
_NO_STEP = re.compile(r"\W*|\W*\d+[.)]\W*")  # nothing to read, or the number of a list item alone
_ATOMIC = re.compile(r"<<[^<>]*>>|\\\(.*?\\\)|\\\[.*?\\\]")
_STOP = re.compile(r"[.!?]+[\"'”’)\]*]*(?=\s)")
_LIST_NUMBER = re.compile(r"\W*(?:\d+|[a-zA-Z])[.)]")
_ABBREVIATION = re.compile(r"(?i:(?<!\w)(?:mr|mrs|ms|dr|prof|st|vs|e\.g|i\.e|approx|fig|eq))\.")
_SHORT_WORD = re.compile(  # ends a sentence or not: what follows tells
    r"(?i:(?<!\w)(?:etc|a\.m|p\.m|u\.s|lbs?|oz|ft|in|sq|mins?|hrs?|secs?|cm|km|mi|yds?|no|jr|sr|inc|co))\."
)

_UNREADABLE = "\ufffd"  # what bytes decode to that are no character, or not yet
_PIECES: WeakKeyDictionary[Any, dict[int, str]] = WeakKeyDictionary()  # by tokenizer, what a token says by itself


def segment(text: str, unit: str | Segmenter) -> list[tuple[int, int]]:
    """The character spans of the steps of a text.

    Args:
        text: a completion.
        unit: `sentence` (tags, bullets and headings' marks left out of the span), `line` (every line that is neither
            empty nor an answer nor only a tag), `row` (lines of four digits from 0 to 4, or of nine
            digits), or a function of one's own from a text to its steps, pieces of it in their order.

    Returns:
        `[start, stop)` spans, in order and disjoint, without white space at either end.

    Raises:
        ValueError: if the unit is another one, or the function gives back what is no piece of the text.
    """
    if callable(unit):
        name = f"the segmenter {getattr(unit, '__name__', unit)!r}"
        with others_code(name):
            cut = unit(text)
        return _own_spans(text, cut, name)
    if unit not in UNITS:
        raise ValueError(f"unit {unit!r} is not one of {', '.join(UNITS)}")
    # Blanked by line breaks, character for character, so that places stay what they are.
    open_text = _ANSWER_BLOCK.sub(lambda match: "\n" * len(match[0]), text)
    if unit == "sentence":
        open_text = _TAG.sub(lambda match: "\n" * len(match[0]), open_text)
    spans = []
    for line in _LINE.finditer(open_text):
        if not line[0].strip() or _ANSWER_LINE.fullmatch(line[0]):
            continue
        if unit == "row":
            pieces = [line.span()] if _ROW.fullmatch(line[0]) else []
        elif unit == "line":
            pieces = [line.span()] if _TAG.sub("", line[0]).strip() else []
        else:
            pieces = [(line.start() + a, line.start() + b) for a, b in _sentences(line[0])]
        for start, stop in pieces:
            piece = text[start:stop]
            if _ANSWER_LINE.fullmatch(piece):
                continue
            spans.append((start + len(piece) - len(piece.lstrip()), stop - len(piece) + len(piece.rstrip())))
    return spans


def _own_spans(text: str, pieces: Any, name: str) -> list[tuple[int, int]]:
    """The places of the pieces that a function of one's own cut a text into."""
    if (
        isinstance(pieces, str)
        or not isinstance(pieces, Sequence)
        or not all(isinstance(piece, str) for piece in pieces)
    ):
        raise ValueError(f"{name} gave {pieces!r:.80} for a text; a list of texts is needed")
    spans, at = [], 0
    for piece in map(str.strip, pieces):
        start = text.find(piece, at)
        if start < 0:
            raise ValueError(f"{name} gave the step {piece[:80]!r}, which the text has not behind the step before it")
        at = start + len(piece)
        if piece:
            spans.append((start, at))
    return spans


def _sentences(line: str) -> Iterator[tuple[int, int]]:
    """The sentences of one line, as spans in the line."""
    bullet = _BULLET.match(line)
    start = bullet.end() if bullet else 0
    atomic = [match.span() for match in _ATOMIC.finditer(line)]
    for stop in (*(match.end() for match in _STOP.finditer(line, start)), len(line)):
        if stop < len(line) and (any(a < stop < b for a, b in atomic) or _goes_on(line[start:stop], line[stop:])):
            continue
        if not _NO_STEP.fullmatch(line, start, stop):
            yield start, stop
        start = stop


def _goes_on(before: str, after: str) -> bool:
    """Whether the full stop that ends `before` belongs to a list number or an abbreviation."""
    if _LIST_NUMBER.fullmatch(before):
        return True
    word = before.rstrip("\"'”’)]*").split()[-1].lstrip("(\"'“‘[*")
    following = after.lstrip()[:1]
    return bool(_ABBREVIATION.fullmatch(word)) or (
        bool(_SHORT_WORD.fullmatch(word)) and (following.islower() or following.isdigit())
    )


def steps_of(
    text: str, unit: str | Segmenter, trajectory: int, token_spans: Sequence[tuple[int, int]] | None = None
) -> list[Step]:
    """The steps of a completion as records.

    Args:
        text: the completion.
        unit: as for `segment`.
        trajectory: index of the trajectory among those of the problem.
        token_spans: the characters `[start, stop)` of each token of the canvas, as `token_spans` gives them.

    Raises:
        ValueError: if no token holds one of the steps, because the spans are of another text.
    """
    steps = []
    for index, (start, stop) in enumerate(segment(text, unit)):
        tokens = None
        if token_spans is not None:
            inside = [i for i, (a, b) in enumerate(token_spans) if a < stop and b > start]
            if not inside:
                raise ValueError(f"no token holds the step at characters [{start}, {stop}); spans of another text?")
            tokens = (inside[0], inside[-1] + 1)
        steps.append(Step(trajectory, index, text[start:stop], (start, stop), tokens))
    return steps


def token_spans(tokenizer: Any, ids: Sequence[int]) -> list[tuple[int, int]]:
    """The characters `[start, stop)` of each token in `tokenizer.decode(ids, skip_special_tokens=True)`.

    Every character is covered. A character whose bytes are spread over several tokens belongs to each of them; a token
    that decodes to nothing has an empty span.
    """
    full = tokenizer.decode(list(ids), skip_special_tokens=True)
    pieces = [_piece(tokenizer, token) for token in ids]
    if "".join(pieces) == full and _UNREADABLE not in full:
        return list(pairwise(accumulate(map(len, pieces), initial=0)))
    spans, start = [], 0
    for count in range(1, len(ids) + 1):
        # The part of the prefix that stays as it is; a replacement character may stand for bytes still to come.
        prefix = tokenizer.decode(list(ids[:count]), skip_special_tokens=True)
        settled = next((i for i, (a, b) in enumerate(zip(prefix, full, strict=False)) if a != b), len(prefix))
        settled = max(start, min(settled, len(full)))
        spans.append((start, min(settled + (len(prefix) > settled), len(full))))
        start = settled
    return spans


def _piece(tokenizer: Any, token: int) -> str:
    """What a token says by itself; each is decoded once."""
    known = _PIECES.setdefault(tokenizer, {})
    if token not in known:
        known[token] = tokenizer.decode([token], skip_special_tokens=True)
    return known[token]
