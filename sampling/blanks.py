r"""Blanks: a prompt with places to fill in, laid out as a canvas whose other tokens are pinned.

`[[NAME:WIDTH]]` is a blank of WIDTH tokens; the name may be empty. What stands before the first blank is the prompt; from
there on, text is pinned on the canvas and blanks are open on it, so the canvas is exactly as long as they are together:

    2*3=[[:1]]\n6+[[b:1]]=8        prompt "2*3=", canvas: open, then "\n6+", open, "=8"

A backslash before a blank takes it as text (`\[[a:3]]` is "[[a:3]]"), two are a backslash before a blank, and so on;
backslashes elsewhere are themselves. Each pinned text is encoded by itself. Left out: blanks of no fixed width.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lockstitch.prompts import ClozePrompt

_BLANK = re.compile(r"(\\*)\[\[([^\[\]\n]*):([^\[\]\n:]*)\]\]")
_WIDTH = re.compile(r"[1-9][0-9]*", re.ASCII)


@dataclass(frozen=True)
class Blank:
    """A place of `width` tokens."""

    name: str
    width: int

    def __str__(self) -> str:
        return f"[[{self.name}:{self.width}]]"


@dataclass(frozen=True)
class Span:
    """Where a blank lies: canvas positions [start, stop)."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Cloze:
    """A prompt with blanks, laid out: the text to start from, the canvas (None is open), and its blanks in order."""

    prompt: str
    canvas: tuple[int | None, ...]
    spans: tuple[Span, ...]


def parse(text: str) -> tuple[str | Blank, ...]:
    """A prompt's texts and blanks in order; no two texts in a row, none empty.

    Raises `ValueError` naming a blank whose width is no whole number of at least 1, or whose name was there before.
    """
    parts: list[str | Blank] = []
    names: set[str] = set()
    literal, last = "", 0
    for match in _BLANK.finditer(text):
        slashes, name, width = match.groups()
        literal += text[last : match.start()] + slashes[: len(slashes) // 2]
        last = match.end()
        whole = match[0][len(slashes) :]
        if len(slashes) % 2:
            literal += whole
            continue
        if not _WIDTH.fullmatch(width):
            raise ValueError(
                f"blank {whole!r}: its width in tokens must be a whole number of at least 1 "
                f"(a backslash before it makes it text)"
            )
        if name in names:
            raise ValueError(f"blank {whole!r}: there is one of the name {name!r} already")
        names.update([name] if name else [])
        parts += [literal, Blank(name, int(width))] if literal else [Blank(name, int(width))]
        literal = ""
    literal += text[last:]
    return (*parts, literal) if literal else tuple(parts)


def unparse(parts: Sequence[str | Blank]) -> str:
    """The inverse of `parse`: what looks like a blank in a text, and backslashes that stand before one, are escaped."""
    texts = []
    for i, part in enumerate(parts):
        if isinstance(part, Blank):
            texts.append(str(part))
            continue
        text = _BLANK.sub(lambda match: match[1] + "\\" + match[0], part)
        if i + 1 < len(parts) and isinstance(parts[i + 1], Blank):
            text += "\\" * (len(part) - len(part.rstrip("\\")))
        texts.append(text)
    return "".join(texts)


def lay_out(parts: Sequence[str | Blank], encode: Callable[[str], Sequence[int]]) -> Cloze:
    """Parts of which at least one is a blank, as a prompt and a canvas.

    Raises `ValueError` where nothing stands before the first blank.
    """
    if isinstance(parts[0], Blank):
        raise ValueError(f"blank '{parts[0]}': some text must stand before the first blank, as the prompt")
    canvas: list[int | None] = []
    spans = []
    for part in parts[1:]:
        if isinstance(part, Blank):
            spans.append(Span(part.name, len(canvas), len(canvas) + part.width))
            canvas += [None] * part.width
        else:
            canvas += encode(part)
    return Cloze(parts[0], tuple(canvas), tuple(spans))


def given(prompt: object, encode: Callable[[str], Sequence[int]]) -> tuple[int | None, ...] | None:
    """The canvas of a prompt that knows what of its completion is given (`ClozePrompt`); None of any other prompt."""
    return lay_out((prompt, *parse(prompt.cloze)), encode).canvas if isinstance(prompt, ClozePrompt) else None


def bans(canvas: Sequence[int | None], eos_ids: Sequence[int]) -> list[tuple[int, int]]:
    """(position, token) pairs that keep a blank from ending the completion before the pinned text after it."""
    pinned = [position for position, token in enumerate(canvas) if token is not None]
    until = pinned[-1] if pinned else 0
    return [(position, eos) for position in range(until) if canvas[position] is None for eos in eos_ids]
