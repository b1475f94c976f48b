r"""Where an answer stands in a completion: one decision, for math and puzzles alike, and the readers of each mark.

`find_answer` decides. Reasoning in `<think>` or `<reasoning>` counts only where there is nothing else. Then, in this order:

1. the last `\boxed{...}` (or `\fbox`, `\framebox`) or `<answer>...</answer>` that holds something, whichever ends last; of a
   block that holds boxes, the last box; of boxes in a row (`\boxed{2}, \boxed{3}`), all of them; with a box, the expression
   that it is part of (`boxes.py`); a box that is denied (`not \boxed{5}`) is none;
2. if there is none that closes, the last of them that was cut off;
3. the rest of the line behind the last `####`, unless it reads as a Markdown heading (`#### Step 2: add`); below one that
   says `#### Final Answer`, the next line;
4. what follows the last `Answer:`, `A:` or `the answer is` that is meant, or what takes its place (`phrases.py`).

All of them take time linear in the length of the text, whatever the text is: they run in the trainer's own process, on
whatever a policy writes. Left out: what the answer means, which is the rewards' business.
"""

import re
from typing import NamedTuple

from lockstitch.rewards.boxes import Span, boxes_of, in_a_row, is_denied
from lockstitch.rewards.phrases import last_phrase

_SPECIAL = re.compile(r"<\|\w{1,60}\|>")  # <|eot_id|> and the like, where they were not removed in decoding
_CUT_SPECIAL = re.compile(r"<\|\w{0,60}\|?\s*\Z|\[MASK\]|<mask>|</s>|<eos>|<pad>")
_ESCAPED = re.compile(r"\x08oxed(?=\s{0,9}\{)|(?<![\\a-zA-Z])boxed(?=\{)")
_HASH = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n]*)")
_HEADING = re.compile(
    r"\**(?:(?!(?:the|final|answer)\b)[^\W\d_]{2}[^\s\d=]*[ \t]+\S|\d+[.)][ \t]+[^\W\d_]{2})", re.IGNORECASE
)
# Headings below which the answer stands in the next line that says something, and those below which none need stand.
_ANSWER_BELOW = re.compile(r"[*_\s]*(?:the\s+)?(?:final\s+)?(?:answer|result)s?[*_\s:]*", re.IGNORECASE)
_NONE_BELOW = re.compile(
    r"[*_\s]*(?:conclusion|solution|explanation|reasoning|summary|verification|check|steps?|working|calculations?|analysis"
    r"|problem|question|approach|given|notes?|proof)[*_\s:]*",
    re.IGNORECASE,
)
_THOUGHT = re.compile(r"<(/?)(think|reasoning)>", re.IGNORECASE)
_TAG_NAME = re.compile(r"</?\w{1,9}>?")
_TAG = re.compile(r"<(/?)answer\s{0,9}>|</answer\s*\Z", re.IGNORECASE)


class Found(NamedTuple):
    """An answer's text, the mark that it stands in (`box`, `block`, `hash` or `phrase`), and whether the mark is cut off."""

    mark: str
    text: str
    is_cut: bool = False


def without_special_tokens(text: str) -> str:
    """The text without `<|...|>` tokens."""
    return _SPECIAL.sub("", text)


def without_marks_of_the_end(text: str) -> str:
    """The text without special tokens, also cut ones and those in other brackets (`<|eot_id`, `[MASK]`, `</s>`)."""
    return _CUT_SPECIAL.sub("", without_special_tokens(text))


def spoken(text: str) -> str:
    """The text without special tokens, and without `<think>` and `<reasoning>` if anything stands outside of them."""
    text = without_marks_of_the_end(text)
    said = _without_thoughts(text)
    return said if re.search(r"\w", _TAG_NAME.sub("", said)) else text


def _without_thoughts(text: str) -> str:
    """A space for each `<think>…</think>` and `<reasoning>…</reasoning>`, in one pass however many are never closed.

    A closing tag that none opened before ends a thought that began with the text.
    """
    closed = {
        tag[2].lower(): tag.start() for tag in _THOUGHT.finditer(text) if tag[1]
    }  # where each is for the last time
    pieces: list[str] = []
    done, thought, opened = 0, "", set()
    for tag in _THOUGHT.finditer(text):
        name = tag[2].lower()
        if not thought and not tag[1] and closed.get(name, 0) > tag.start():
            thought = name
            pieces.append(text[done : tag.start()])
        elif tag[1] and thought == name:
            thought, done = "", tag.end()
        elif tag[1] and not thought and name not in opened:  # the prompt opened it
            pieces, done = [], tag.end()
        if not tag[1]:
            opened.add(name)
    return " ".join([*pieces, text[done:]])


def find_answer(text: str) -> Found | None:
    """The answer by the order of this module's first lines; None if nothing marks one. An empty mark gives an empty text."""
    text = _ESCAPED.sub(r"\\boxed", spoken(text)).replace("\x0crac{", "\\frac{")
    boxes, cut_box = boxes_of(text)
    blocks, cut_block = _blocks(text)
    meant = [box for box in boxes if box.text and not is_denied(text, box)]
    closed = [*meant, *(block for block in blocks if block.text)]
    if closed:
        last = max(closed, key=lambda span: (span.end, span.start))
        if last.mark == "block":
            inside, cut = boxes_of(last.text)
            filled = [box for box in inside if box.text and not is_denied(last.text, box)]
            if filled:
                return Found("box", in_a_row(last.text, filled))
            if cut is not None and cut.text:
                return Found("box", cut.text, is_cut=True)
            return Found("block", last_hash(last.text) or last.text)
        return Found("box", in_a_row(text, meant))
    opened = [span for span in (cut_box, cut_block) if span is not None and span.text]
    if opened:
        last = max(opened, key=lambda span: span.start)
        return Found(last.mark, last.text, is_cut=True)
    if (line := last_hash(text)) is not None:
        return Found("hash", line)
    if (rest := last_phrase(text)) is not None:
        return Found("phrase", rest)
    return Found("box", "") if boxes or blocks else None


def _blocks(text: str) -> tuple[list[Span], Span | None]:
    """The answer blocks, and the last one if it does not end."""
    spans: list[Span] = []
    start: tuple[int, int] | None = None
    for match in _TAG.finditer(text):
        if match[1] == "" and start is not None and not text[match.end() :].strip():  # meant to close
            spans.append(Span("block", start[0], match.end(), text[start[1] : match.start()].strip()))
            start = None
        elif match[1] == "":
            start = match.span()
        elif start is not None:
            spans.append(Span("block", start[0], match.end(), text[start[1] : match.start()].strip()))
            start = None
    cut = None if start is None else Span("block", start[0], len(text), text[start[1] :].strip())
    return spans, cut


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` or `\fbox{...}` whose braces close; the innermost of nested ones."""
    boxes, _ = boxes_of(text)
    return boxes[-1].text if boxes else None


def last_hash(text: str) -> str | None:
    """The rest of the line after the last `####`, unless it is empty or a heading; below `#### Answer`, the next one."""
    found = [(str(match[1]).strip("# \t"), match.end()) for match in _HASH.finditer(text)]
    for line, end in reversed(found):
        if not line or _HEADING.match(line) or _NONE_BELOW.fullmatch(line):
            continue
        if _ANSWER_BELOW.fullmatch(line):
            return next((below.strip("# \t") for below in text[end:].split("\n") if re.search(r"\w", below)), line)
        return line
    return None


def last_answer_block(text: str) -> str | None:
    """What stands in the last `<answer>...</answer>`."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return None if start < 0 else text[start + len("<answer>") : end].strip()
