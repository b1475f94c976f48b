"""Characters and colours for terminals: what every room's pictures in text share.

Colours are those of the 256-colour palette, which every terminal has. Text of models is stripped of control characters
(`clean`) before it is printed, so it cannot drive the terminal. Widths count cells: a wide character takes two.
"""

import os
import sys
import unicodedata
from typing import Protocol

GREEN, RED, BLUE, GREY = 36, 166, 69, 245
RAMP = (166, 172, 178, 107, 36)  # vermillion to bluish green, as on the pages
WHEN = ("auto", "always", "never")


class Paint(Protocol):
    def __call__(
        self, text: str, code: int | None = None, *, bold: bool = False, underline: bool = False, reverse: bool = False
    ) -> str: ...


def painter(color: bool) -> Paint:
    """What puts a colour and a style around a text, or leaves every text as it is."""

    def paint(
        text: str, code: int | None = None, *, bold: bool = False, underline: bool = False, reverse: bool = False
    ) -> str:
        styles = [number for number, on in (("1", bold), ("4", underline), ("7", reverse)) if on]
        codes = styles + ([] if code is None else [f"38;5;{code}"])
        return f"\033[{';'.join(codes)}m{text}\033[0m" if color and codes and text else text

    return paint


def use_color(choice: str) -> bool:
    """Whether to colour: `always`, `never`, or with `auto` if a terminal reads the output and NO_COLOR is not set."""
    return choice == "always" or (choice == "auto" and is_terminal() and "NO_COLOR" not in os.environ)


def is_terminal() -> bool:
    """Whether a terminal reads the output that knows colours and where its cursor is: not one that says it is dumb."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def ramp_code(score: float) -> int:
    """The colour of a score in [0, 1]."""
    return RAMP[min(len(RAMP) - 1, max(0, int(score * len(RAMP))))]


def clean(text: str) -> str:
    """Line breaks kept, tabs as spaces, every other control, format or unassigned character dropped."""
    text = text.replace("\r\n", "\n").replace("\u2028", "\n").replace("\u2029", "\n").replace("\t", "  ")
    return "".join(c for c in text if c == "\n" or unicodedata.category(c)[0] != "C")


def cells(text: str) -> int:
    """How many cells of a terminal the text takes."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def pad(text: str, width: int) -> str:
    """The text with spaces after it, up to `width` cells."""
    return text + " " * max(0, width - cells(text))


def break_word(word: str, width: int) -> list[str]:
    """A word in pieces of at most `width` cells (one character at least)."""
    pieces = [""]
    for character in word:
        if pieces[-1] and cells(pieces[-1] + character) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells; spaces inside a line that fits are kept."""
    lines: list[str] = []
    for line in clean(text).split("\n"):
        if cells(line) <= width:
            lines.append(line)
            continue
        current = ""
        for word in line.split(" "):
            joined = f"{current} {word}" if current else word
            if cells(joined) <= width:
                current = joined
                continue
            if current:
                lines.append(current)
            *full, current = break_word(word, width)
            lines += full
        lines.append(current)
    return lines
