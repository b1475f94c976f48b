r"""Where an answer stands in a completion: one decision, for math and puzzles alike, and the readers of each mark.

`find_answer` decides. Reasoning in `<think>` or `<reasoning>` counts only where there is nothing else. Then, in this order:

1. the last `\boxed{...}` (or `\fbox`, `\framebox`) or `<answer>...</answer>` that holds something, whichever ends last; of a
   block that holds boxes, the last box; of boxes in a row (`\boxed{2}, \boxed{3}`), all of them;
2. if there is none that closes, the last of them that was cut off;
3. the rest of the line behind the last `####`, unless it reads as a Markdown heading (`#### Step 2: add`);
4. what follows the last `Answer:`, `A:` or `the answer is`, up to the end of its sentence.

All of them take time linear in the length of the text, whatever the text is: they run in the trainer's own process, on
whatever a policy writes. Left out: what the answer means, which is the rewards' business.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_SPECIAL = re.compile(r"<\|\w{1,60}\|>")  # <|eot_id|> and the like, where they were not removed in decoding
_CUT_SPECIAL = re.compile(r"<\|\w{0,60}\|?\s*\Z|\[MASK\]|<mask>|</s>|<eos>|<pad>")
_BOX = re.compile(r"(?P<box>\\{1,4}(?:boxed|fbox|framebox)\s{0,9}\{)|(?P<open>\{)|(?P<close>\})|\\.", re.DOTALL)
_ESCAPED = re.compile(r"\x08oxed(?=\s{0,9}\{)|(?<![\\a-zA-Z])boxed(?=\{)")
_HASH = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n]*)")
_HEADING = re.compile(
    r"\**(?:(?!(?:the|final|answer)\b)[^\W\d_]{2}[^\s\d=]*[ \t]+\S|\d+[.)][ \t]+[^\W\d_]{2})", re.IGNORECASE
)
_THOUGHT = re.compile(r"<(/?)(think|reasoning)>", re.IGNORECASE)
_TAG = re.compile(r"<(/?)answer\s{0,9}>|</answer\s*\Z", re.IGNORECASE)
_TAIL = re.compile(r"\s{0,9}</[a-z]{0,20}\s{0,9}\Z", re.IGNORECASE)  # of a tag, which a box's own brace closes
_PHRASE = re.compile(
    r"(?:^[ \t>*_#-]{0,9}(?:a|answer|solution|result)(?:[ \t]\d{1,2})?[*_]{0,3}[ \t]?:"
    r"|\b(?:final|correct|right)[ \t]+(?:answer|result|choice|option)s?[*_]{0,3}(?:[ \t]+(?:is|are)\b|[ \t]?[:=])"
    r"|\banswers?[*_]{0,3}(?:[ \t]+(?:to[ \t]+(?:the|this)[ \t]+\w+[ \t]+)?(?:is|are)\b(?:[ \t]+therefore\b)?|[ \t]?[:=]))"
    r"[ \t*_:]{0,9}",
    re.IGNORECASE | re.MULTILINE,
)
_SUPPOSED = re.compile(
    r"\b(?:if|unless|whether|suppose|assume|assuming|not|never|cannot|neither|nor|no|nobody|doubt|\w+n't"
    r"|(?:might|may|wrong\s+to)\s+(?:think|say))\b",
    re.IGNORECASE,
)
# Before a phrase: that it is not meant (`I doubt that`, `let me check whether`, `you might think that`).
_NOT_MEANT = re.compile(
    r"\b(?:(?:not|\w+n['\u2019]t|cannot|never|nobody|hardly|might|may|wrong\s+to)\s+(?:would\s+|be\s+)?"
    r"(?:think|believe|say|mean|claim|conclude|see|know|sure|likely|true|follow)"
    r"|(?<!no )(?<!a )(?<!any )doubt|if|whether|unless|suppose|assume|assuming)"
    r"(?:\s+(?:that|how|why|if|whether))?(?:\s+(?:the|my|our|your))?\s*\Z",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"\n|(?<![ \t.][a-z])(?<!\bvs)(?:[.?]|(?<![\d})])!)[*_\"')\]$]{0,3}(?=[ \t\n]+|\Z)")
_BETWEEN_BOXES = re.compile(
    r"[\s$*\\()]{0,9}(?:[,;&]|\band\b|\bor\b|\\text\{ ?(?:and|or) ?\})[\s$*\\()]{0,9}(?:(?:and|or)\b)?[\s$]{0,9}"
    r"(?:[a-zA-Z](?:_\{?\w\}?)?\s?=\s?)?[\s$\\(]{0,9}",
    re.IGNORECASE,
)


class Found(NamedTuple):
    """An answer's text, the mark that it stands in (`box`, `block`, `hash` or `phrase`), and whether the mark is cut off."""

    mark: str
    text: str
    is_cut: bool = False


class _Span(NamedTuple):
    mark: str
    start: int  # of the mark
    end: int
    text: str


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
    return said if said.strip() else text


def _without_thoughts(text: str) -> str:
    """A space for each `<think>…</think>` and `<reasoning>…</reasoning>`, in one pass however many are never closed."""
    closed = {tag[2].lower(): tag.start() for tag in _THOUGHT.finditer(text) if tag[1]}  # where each is for the last time
    pieces, done, thought = [], 0, ""
    for tag in _THOUGHT.finditer(text):
        name = tag[2].lower()
        if not thought and not tag[1] and closed.get(name, 0) > tag.start():
            thought = name
            pieces.append(text[done : tag.start()])
        elif tag[1] and thought == name:
            thought, done = "", tag.end()
    return " ".join([*pieces, text[done:]])


def supposes(words: str) -> bool:
    """Whether words say that what follows is not so, or only if something else is (`if x is 5`, `it cannot be`)."""
    return _SUPPOSED.search(words) is not None


def find_answer(text: str) -> Found | None:
    """The answer by the order of this module's first lines; None if nothing marks one. An empty mark gives an empty text."""
    text = _ESCAPED.sub(r"\\boxed", spoken(text)).replace("\x0crac{", "\\frac{")
    boxes, cut_box = _boxes(text)
    blocks, cut_block = _blocks(text)
    closed = [span for span in (*boxes, *blocks) if span.text]
    if closed:
        last = max(closed, key=lambda span: (span.end, span.start))
        if last.mark == "block":
            inside, cut = _boxes(last.text)
            filled = [box for box in inside if box.text]
            if filled:
                return Found("box", _in_a_row(last.text, filled))
            if cut is not None and cut.text:
                return Found("box", cut.text, is_cut=True)
            return Found("block", last_hash(last.text) or last.text)
        return Found("box", _in_a_row(text, [box for box in boxes if box.text]))
    opened = [span for span in (cut_box, cut_block) if span is not None and span.text]
    if opened:
        last = max(opened, key=lambda span: span.start)
        return Found(last.mark, last.text, is_cut=True)
    if (line := last_hash(text)) is not None:
        return Found("hash", line)
    if (rest := last_phrase(text)) is not None:
        return Found("phrase", rest)
    return Found("box", "") if boxes or blocks else None


def _boxes(text: str) -> tuple[list[_Span], _Span | None]:
    r"""The boxes whose braces close, by their beginnings, and the last that is cut off, up to the end of its line."""
    spans = []
    opened: list[tuple[int, int] | None] = []  # where a box and its content begin; None for other braces
    for match in _BOX.finditer(text):
        if match["box"]:
            opened.append(match.span())
        elif match["open"]:
            opened.append(None)
        elif match["close"] and opened:
            box = opened.pop()
            if box is not None:
                spans.append(_Span("box", box[0], match.end(), _TAIL.sub("", text[box[1] : match.start()]).strip()))
    cut = next((box for box in reversed(opened) if box is not None), None)
    spans.sort(key=lambda span: span.start)
    if cut is None:
        return spans, None
    content = re.split(r"\n|\$(?!\d)|</", text[cut[1] : cut[1] + 1000].lstrip(), maxsplit=1)[0]
    return spans, _Span("box", cut[0], len(text), content.strip(" \t<>"))


def _in_a_row(text: str, boxes: list[_Span]) -> str:
    """The last box, or it and those before it where only a comma or `and` stands between; the innermost of nested ones."""
    row = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        if box.end > row[0].start or not (between := _BETWEEN_BOXES.fullmatch(text[box.end : row[0].start][:60])):
            break
        if row[0].start - box.end > 60:
            break
        joint = " or " if "or" in between[0].lower() else ", "
        row.insert(0, box._replace(text=box.text + joint))
    texts = [box.text for box in row]
    return "".join(texts) if len({re.sub(r",\s*$| or $", "", one).strip() for one in texts}) > 1 else row[-1].text


def _blocks(text: str) -> tuple[list[_Span], _Span | None]:
    """The answer blocks, and the last one if it does not end."""
    spans: list[_Span] = []
    start: tuple[int, int] | None = None
    for match in _TAG.finditer(text):
        if match[1] == "" and start is not None and not text[match.end() :].strip():  # meant to close
            spans.append(_Span("block", start[0], match.end(), text[start[1] : match.start()].strip()))
            start = None
        elif match[1] == "":
            start = match.span()
        elif start is not None:
            spans.append(_Span("block", start[0], match.end(), text[start[1] : match.start()].strip()))
            start = None
    cut = None if start is None else _Span("block", start[0], len(text), text[start[1] :].strip())
    return spans, cut


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` or `\fbox{...}` whose braces close; the innermost of nested ones."""
    boxes, _ = _boxes(text)
    return boxes[-1].text if boxes else None


def last_hash(text: str) -> str | None:
    """The rest of the line after the last `####`, unless it is empty or reads as a Markdown heading."""
    found = [match[1].strip("# \t") for match in _HASH.finditer(text)]
    answers = [line for line in found if line and not _HEADING.match(line)]
    return answers[-1] if answers else None


def last_answer_block(text: str) -> str | None:
    """What stands in the last `<answer>...</answer>`."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return None if start < 0 else text[start + len("<answer>") : end].strip()


def last_phrase(text: str) -> str | None:
    """What follows the last `Answer:` or `the answer is` that anything follows, up to the end of its sentence."""
    for match in reversed(list(_PHRASE.finditer(text))):
        rest = text[match.end() : match.end() + 2000].lstrip()
        if rest and not _NOT_MEANT.search(text[max(0, match.start() - 60) : match.start()]):
            return next((sentence.strip() for sentence in sentences(rest) if re.search(r"\w", sentence)), rest)
    return None


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, without what ends them; a line's end ends one, too."""
    start = 0
    for match in _SENTENCE.finditer(text):
        if text[start : match.start()].strip():
            yield text[start : match.start()]
        start = match.end()
    if text[start:].strip():
        yield text[start:]
