"""The pieces of a completion that may be code: fenced blocks, what other marks enclose, and the text around them.

Everything that people and models put around a program becomes a fence first: `[BEGIN]` and `[DONE]`, `[PYTHON]`, `<pre>`
and `<code>`, LaTeX's listings. A fence counts wherever it stands on its line, since `</think>` or `<answer>` may stand
before it, but not inside a string of the program: docstrings have examples, and some programs write Markdown.

All of this takes time linear in the length of the text, and nothing is parsed as Python.
"""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

_FENCE = re.compile(r"(`{3,60}|~{3,60})[ \t]{0,60}([^\s`~]{0,40})")
_TAG, _LISTING = "(?:pre|code|python|solution|program)", "(?:lstlisting|minted|verbatim|python)"
_OPENS = re.compile(
    r"^[ \t]*(?:\[(?:BEGIN|PYTHON|CODE)\]"
    rf"|(?:<{_TAG}(?: [^>\n]{{0,80}})?>){{1,2}}"
    rf"|\\begin\{{{_LISTING}\}}(?:[\[{{][^\]}}\n]{{0,80}}[\]}}]){{0,2}}"
    r")[ \t]*(?=\n|\Z|def |class |import |from )",
    re.MULTILINE,
)
_CLOSES = re.compile(
    rf"^[ \t]*\[(?:DONE|END)\][ \t]*$|(?:\[/(?:PYTHON|CODE)\]|(?:</{_TAG}>){{1,2}}|\\end\{{{_LISTING}\}})[ \t]*$",
    re.MULTILINE,
)
_BEGINS = re.compile(r"[ \t]{1,60}(?:def|class|import|from)[ ]")
_HTML, _ESCAPED = re.compile("<(?:pre|code)"), re.compile(r"&(?:lt|gt|amp|quot|#39);")
_OUT_OF_THOUGHT = re.compile(r"</(?:think|thinking|thought|reasoning)>")
_TEXT_ENDS = re.compile(
    r"<\|(?:endoftext|end_of_text|eot_id|im_end|end)\|>|<\uff5cend\u2581of\u2581sentence\uff5c>|^</s>|^\[EOS\]",
    re.MULTILINE,
)
_TOKEN_AT_END = re.compile(
    r"(?:<\|\w{0,60}\|?>?|</?s>|<(?:pad|eos|bos|unk|mask|end_of_turn)>|\[(?:EOS|PAD|SEP|MASK|UNK)\])\Z"
)
_SPECIAL = re.compile(r"<\|\w{1,60}\|>")
_STRING = re.compile(r"'''|\"\"\"|'(?:[^'\\\n]|\\.){0,999}'|\"(?:[^\"\\\n]|\\.){0,999}\"|#.*")
_QUOTED = re.compile(r"^> ?", re.MULTILINE)
_PROMPT = re.compile(r"^[ \t]*(?:>>>|\.\.\.)(?: |$)", re.MULTILINE)
_LANGUAGES = re.compile(
    "bash|sh|shell|zsh|console|terminal|cmd|powershell|json|ya?ml|toml|ini|xml|html|css|csv|output|diff|latex|tex|math"
    r"|c|cpp|c\+\+|cs|csharp|java|javascript|js|typescript|ts|go|rust|sql|ruby|php|kotlin|swift|r|markdown|md|mermaid|dockerfile"
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        kind: `python` if its label says so, `other` if it names another language, else `any`.
        body: its content.
        is_closed: whether its fence is closed.
    """

    kind: str
    body: str
    is_closed: bool


def cleaned(text: str) -> str:
    """A completion from behind its thoughts to its first end-of-text token, with `\\n` at the end of lines."""
    text = text.lstrip("\ufeff").replace("\r\n", "\n")
    for end_of_text in _TEXT_ENDS.finditer(text):
        before = text[: end_of_text.start()].rstrip(" ")
        if before.strip() and before[-1] not in "'\"":  # in quotes it is the program's own
            text = text[: end_of_text.start()]
            break
    if all(line.startswith(">") for line in text.split("\n") if line.strip()):
        text = _QUOTED.sub("", text)
    rest = _after_last(_OUT_OF_THOUGHT, text)
    text = rest if rest.strip() else text
    text = _SPECIAL.sub("", text)
    end = kept = len(text)
    while True:
        while end and text[end - 1].isspace():
            end -= 1
        if not (match := _TOKEN_AT_END.search(text, max(0, end - 64), end)):
            return text[:kept]
        end = kept = match.start()


def _after_last(pattern: re.Pattern[str], text: str) -> str:
    end = 0
    for match in pattern.finditer(text):
        end = match.end()
    return text[end:]


def answer_in(text: str) -> str | None:
    """What stands in the last `<answer>`, or from it on if it is not closed, or before the only `</answer>`."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end if end >= 0 else len(text))
    if start < 0 and end < 0:
        return None
    inside = text[start + len("<answer>") if start >= 0 else 0 : end if end >= 0 else len(text)]
    return inside.strip("\n")


def blocks_in(text: str) -> tuple[str, list[Block]]:
    """The text before the first fence, if there is one, and the fenced blocks that hold anything."""
    if _CLOSES.search(text) and _ESCAPED.search(text) and _HTML.search(text):
        text = html.unescape(text)
    text = _CLOSES.sub("\n```", _OPENS.sub("```python\n", text))
    before: list[str] = []
    blocks: list[Block] = []
    for kind, lines, is_closed in _scan(text, before):
        body = "\n".join(lines)
        if _PROMPT.match(body.lstrip("\n")):
            body = "\n".join(line[4:] for line in body.split("\n") if _PROMPT.match(line))
        if body.strip():
            blocks.append(Block(kind, body, is_closed))
    start = "\n".join(before)
    return "" if start == text else start, blocks


def _scan(text: str, before: list[str]) -> Iterator[tuple[str, list[str], bool]]:
    """Kind, lines and whether it is closed, for each block; `before` gets the lines before the first."""
    fence, kind, lines, quote, seen = "", "any", [""], "", False
    last = {mark: text.rfind(mark) for mark in ("'''", '"""')}
    at = 0
    for line in text.split("\n"):
        start, at = at, at + len(line) + 1
        if not fence:
            found = list(_FENCE.finditer(line))
            if len(found) % 2 == 0:  # none, or code within a line
                if not seen:
                    before.append(line)
                continue
            if not seen and line[: found[-1].start()].strip():
                before.append(line[: found[-1].start()])
            fence, kind, lines, quote, seen = found[-1][1], _kind(found[-1][2]), [], "", True
            if kind == "python" and _BEGINS.match(line, found[-1].end()):
                lines = [line[found[-1].end() :].strip()]  # the program begins on the fence's line
            continue
        bare, after = without_strings(line, quote)
        place = bare.find(fence)
        if place >= 0 or (quote and last[quote] < start and (place := line.find(fence)) >= 0):
            yield kind, [*lines, *([line[:place]] if line[:place].strip() else [])], True
            match = _FENCE.match(line, place)
            assert match is not None
            opened, quote = _kind(match[2]), ""
            fence = match[1] if opened != "any" and not line[:place].strip() else ""
            kind, lines = opened, []
            continue
        lines.append(line)
        quote = after
    if fence:
        yield kind, lines, False


def without_strings(line: str, quote: str = "") -> tuple[str, str]:
    """A line of Python with blanks for its strings, and the quotes of the text of several lines that it is in afterwards.

    Args:
        line: without its end.
        quote: three quotes if the line begins inside such a text.
    """
    parts, place = [], 0
    while place < len(line):
        if quote:
            end = _end_of_text(line, place, quote)
            parts.append(" " * (end - place))
            quote = quote if end == len(line) and not line.endswith(quote, place) else ""
            place = end
            continue
        match = _STRING.search(line, place)
        if match is None:
            parts.append(line[place:])
            break
        parts.append(line[place : match.start()])
        parts.append(match[0] if match[0].startswith("#") else " " * len(match[0]))
        quote = match[0] if match[0] in ("'''", '"""') else ""
        place = match.end()
    return "".join(parts), quote


def _end_of_text(line: str, place: int, quote: str) -> int:
    end = line.find(quote, place)
    return len(line) if end < 0 else end + len(quote)


def _kind(label: str) -> str:
    name = re.sub(r"[^\w+#]", "", label.lower())
    return "python" if name.startswith(("py", "ipython")) else "other" if _LANGUAGES.fullmatch(name) else "any"
