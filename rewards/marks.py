"""Where a completion has its answer: in `\\boxed{...}`, `#### ...`, `<answer>...</answer>`, `A: ...`, or its last number.

Each reader returns the text behind the last mark of its kind, or None. A mark that is cut off (a box whose braces do not
close, a block without `</answer>`) does not count, so a truncated answer is none. All of them take time linear in the length
of the text, whatever the text is: they run in the trainer's own process, on whatever a policy writes.

Left out: what the answer means, which is the rewards' business; and numbers as `extract.py` reads them for tasks' own forms.
"""

import re

_SPECIAL = re.compile(r"<\|\w{1,60}\|>")  # <|eot_id|> and the like, where they were not removed in decoding
_BOX = re.compile(r"(?P<box>\\{1,4}(?:boxed|fbox)\s{0,9}\{)|(?P<open>\{)|(?P<close>\})|\\.", re.DOTALL)
_HASH = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n]*)")
_HEADING = re.compile(r"\**(?:[^\W\d_]{2}\S*[ \t]+\S|\d+[.)][ \t]+[^\W\d_]{2})")  # `Step 1`, `1. First`
_LINE = re.compile(r"^A:[ \t]*(\S[^\n]*)", re.MULTILINE)
_NUMBER = re.compile(
    r"(?:(?<![\w.)}])[-−])?"
    r"(?:\\[dt]?frac[ ]?\{-?\d+\}[ ]?\{\d+\}"
    r"|\\?[$£€]?(?:(?:\d{1,3}(?:,\d{3}){1,6}(?!,?\d)|\d+)(?:\.\d+)?(?:/\d+(?!\.?\d))?|\.\d+))"
    r"(?:[ ]?\\?%)?",
    re.ASCII,
)


def without_special_tokens(text: str) -> str:
    """The text without `<|...|>` tokens."""
    return _SPECIAL.sub("", text)


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` or `\fbox{...}` whose braces close; the innermost of nested ones."""
    last: tuple[int, int] | None = None
    opened: list[int | None] = []  # where the content of each open box begins; None for other braces
    for match in _BOX.finditer(text):
        if match["box"]:
            opened.append(match.end())
        elif match["open"]:
            opened.append(None)
        elif match["close"] and opened:
            start = opened.pop()
            if start is not None and (last is None or start > last[0]):
                last = start, match.start()
    return None if last is None else text[slice(*last)].strip()


def last_hash(text: str) -> str | None:
    """The rest of the line after the last `####`, unless it is empty or reads as a Markdown heading."""
    found = [match[1].strip() for match in _HASH.finditer(text)]
    answers = [line for line in found if line and not _HEADING.match(line)]
    return answers[-1] if answers else None


def last_answer_block(text: str) -> str | None:
    """What stands in the last `<answer>...</answer>`."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return None if start < 0 else text[start + len("<answer>") : end].strip()


def last_answer_line(text: str) -> str | None:
    """The rest of the last line that begins with `A:`."""
    found = _LINE.findall(text)
    return found[-1].strip() if found else None


def last_number(text: str) -> str | None:
    r"""The last number of the text: `-3`, `$1,234.50`, `3/4`, `\frac{3}{4}`, `20%`."""
    last = None
    for match in _NUMBER.finditer(text):
        last = match
    return None if last is None else last[0].strip()
