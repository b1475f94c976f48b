"""Trajectories in the terminal: completions coloured by confidence, and the canvas as it is denoised.

A frame shows the trajectories of one prompt after a denoising step, side by side as far as they fit. Masked positions
are `░`, those reopened at this step `▒`; a token committed at this step is inverted (a fork is underlined too), a pinned one
underlined, and every token has the colour of its snapshot confidence. Without colours the tokens committed now stand in
`⟨⟩`, forks in `⟪⟫`, and nothing but characters is written. An end-of-sequence token is drawn as `∎`.

`Live` draws while the model denoises, `watch` replays a trace that is complete.
"""

import sys
import time
from collections.abc import Iterator, Sequence

from lockstitch.sampling.canvases import Look
from lockstitch.sampling.replay import Cell, State, cells_at, cells_of, join_characters, last_step, token_text
from lockstitch.sampling.trajectory import Trajectory
from transformers import PreTrainedTokenizerBase as Tokenizer

from lockstitch.terminal import GREY, RED, Paint, break_word, cells, clean, painter, ramp_code

MASKED, REOPENED, END, BREAK = "░", "▒", "∎", "↵"
_NARROWEST, _WIDEST, _GAP = 20, 60, 3  # cells: of a column, between columns
_SECONDS, _LONGEST = 0.15, 8.0  # a frame stays so long; all frames of a prompt together at most so long

_SHORTEST = 0.04  # and a live one at least so long
_SETTLED = {State.NOW: State.COMMITTED, State.REOPENED: State.MASKED}  # what a step becomes at the next

_CLEAR = "\033[J"
_HIDE_CURSOR, _SHOW_CURSOR = "\033[?25l", "\033[?25h"


class Ink:
    """How tokens are written: their texts, and the colours if there are any."""

    def __init__(self, tokenizer: Tokenizer, color: bool) -> None:
        self.tokenizer, self.color, self.paint = tokenizer, color, painter(color)
        self._texts: dict[int, str] = {tokenizer.eos_token_id: END}

    def token(self, i: int) -> str:
        """A token as it is shown."""
        if i not in self._texts:
            self._texts[i] = clean(token_text(self.tokenizer, i))
        return self._texts[i]

    def texts(self, row: Sequence[Cell]) -> list[str]:
        """What the cells of a canvas show, unpainted; may hold line breaks."""
        tokens = [cell.token for cell in row]
        alone = ["" if token is None else self.token(token) for token in tokens]
        joined = join_characters(self.tokenizer, tokens, alone)
        return [self._text(cell, clean(text)) for cell, text in zip(row, joined, strict=True)]

    def _text(self, cell: Cell, text: str) -> str:
        if cell.token is None:
            return REOPENED if cell.state is State.REOPENED else MASKED
        if cell.state is State.NOW and (text or not self.token(cell.token)):
            text = text.replace("\n", BREAK + "\n")  # else a line break that was committed would not be seen
            left, right = "⟪⟫" if cell.fork else "⟨⟩"
            return text if self.color else left + text.removesuffix("\n") + right + "\n" * text.endswith("\n")
        return text

    def style(self, cell: Cell, text: str) -> str:
        """A piece of a cell's text, painted."""
        if cell.token is None:
            return self.paint(text, RED, bold=True) if cell.state is State.REOPENED else self.paint(text, GREY)
        if cell.state is State.PINNED:
            return self.paint(text, underline=True)
        code = None if cell.confidence is None else ramp_code(cell.confidence)
        if cell.token == self.tokenizer.eos_token_id and cell.state is State.COMMITTED:
            code = GREY  # what is behind the end is not the text
        now = cell.state is State.NOW
        return self.paint(text, code, bold=now, underline=now and cell.fork, reverse=now)


class Line:
    """A line as it grows: what it shows, how many cells that takes, and whether something was committed on it."""

    def __init__(self) -> None:
        self.shown, self.width, self.active = "", 0, False


def canvas_lines(row: Sequence[Cell], ink: Ink, width: int) -> list[Line]:
    """A canvas as lines of at most `width` cells, broken where the text breaks and where a line is full."""
    lines = [Line()]
    for cell, text in zip(row, ink.texts(row), strict=True):
        for i, piece in enumerate(text.split("\n")):
            if i:
                lines.append(Line())
            for part in break_word(piece, width):
                if lines[-1].width + cells(part) > width:
                    lines.append(Line())
                line = lines[-1]
                line.shown += ink.style(cell, part)
                line.width += cells(part)
                line.active |= bool(part) and cell.state in (State.NOW, State.REOPENED)
    if len(lines) > 1 and not lines[-1].shown:
        lines.pop()
    return lines


def _column(trajectories: Sequence[Trajectory], ink: Ink, width: int) -> int:
    """The width in which each trajectory is drawn, the same at every step."""
    if len(trajectories) == 1:
        return width
    texts = ("".join(ink.token(token) for token in t.canvas_ids) for t in trajectories)
    longest = max(cells(line) for text in texts for line in text.split("\n"))
    return min(width, max(_NARROWEST, min(longest, _WIDEST)))


def beside(rows: Sequence[Sequence[Cell]], ink: Ink, column: int, width: int) -> list[Line]:
    """Canvases side by side in columns, as many as fit into `width` cells, each under its name and count."""
    abreast = max(1, (width + _GAP) // (column + _GAP))
    lines: list[Line] = []
    for first in range(0, len(rows), abreast):
        blocks = []
        for k, row in enumerate(rows[first : first + abreast], first):
            head = Line()
            done = sum(cell.token is not None for cell in row)
            name, count = f"T{k}", f"  {done} of {len(row)}"
            head.shown, head.width = ink.paint(name, bold=True) + ink.paint(count, GREY), len(name + count)
            blocks.append([head, *canvas_lines(row, ink, column)])
        for height in range(max(map(len, blocks))):
            whole = Line()
            for i, block in enumerate(blocks):
                part = block[height] if height < len(block) else Line()
                gap = " " * (i * (column + _GAP) - whole.width)
                whole.shown += gap + part.shown
                whole.width += len(gap) + part.width
                whole.active |= part.active
            whole.shown = whole.shown.rstrip(" ")
            lines.append(whole)
        lines.append(Line())
    return lines[:-1]


def frame(trajectories: Sequence[Trajectory], step: int, ink: Ink, width: int) -> list[Line]:
    """The trajectories of one prompt after a denoising step; no line is longer than `width` cells."""
    return beside([cells_at(t, step) for t in trajectories], ink, _column(trajectories, ink, width), width)


def heading(text: str, ink: Ink) -> Line:
    """The line over a frame."""
    line = Line()
    line.shown, line.width = ink.paint(text, bold=True), cells(text)
    return line


def frames(trajectories: Sequence[Trajectory], title: str, ink: Ink, width: int) -> Iterator[list[Line]]:
    """A frame for every denoising step of a prompt's trajectories, from the empty canvas on, each with its heading."""
    last = last_step(trajectories)
    for step in range(last + 1):
        yield [heading(f"{title}  step {step} of {last}", ink), *frame(trajectories, step, ink, width)]


class Screen:
    """Where frames are drawn: over one another, and wiped away at the end; or one below the other, at once.

    Args:
        height: lines of the terminal; None where frames follow one another.
    """

    def __init__(self, height: int | None) -> None:
        self.height, self.drawn = height, 0

    def draw(self, lines: list[Line]) -> None:
        """Draws the next frame."""
        if self.height is None:
            print("\n".join(line.shown for line in lines), end="\n\n")
            return
        shown = _window(lines, self.height - 1)
        start = _back(self.drawn) if self.drawn else _HIDE_CURSOR + _CLEAR
        sys.stdout.write(start + "".join(line.shown + "\n" for line in shown))
        sys.stdout.flush()
        self.drawn = len(shown)

    def close(self) -> None:
        """Wipes the last frame away."""
        if self.drawn:
            sys.stdout.write(_back(self.drawn) + _SHOW_CURSOR)
            sys.stdout.flush()
            self.drawn = 0


def _window(lines: list[Line], height: int) -> list[Line]:
    """As many of the lines as fit, about the last one on which something was committed; the heading always."""
    if len(lines) <= height:
        return lines
    head, *body = lines
    focus = max((i for i, line in enumerate(body) if line.active), default=0)
    top = max(0, min(focus - height // 2, len(body) - height + 1))
    return [head, *body[top : top + height - 1]]


def watch(trajectories: Sequence[Trajectory], title: str, ink: Ink, width: int, height: int | None = None) -> None:
    """Replays the trajectories of one prompt, on a terminal at a readable pace.

    Args:
        trajectories: those of the prompt.
        title: stands over every frame.
        ink: texts and colours.
        width: cells of the terminal.
        height: its lines, or None (see `Screen`).
    """
    pause = 0.0 if height is None else min(_SECONDS, _LONGEST / (1 + last_step(trajectories)))
    screen = Screen(height)
    try:
        for lines in frames(trajectories, title, ink, width):
            screen.draw(lines)
            time.sleep(pause)
    finally:
        screen.close()


class Live:
    """Draws the trajectories of one prompt while they are denoised: an `on_step` for `sample`.

    Args:
        screen: where.
        title: stands over every frame.
        ink: texts and colours.
        width: cells of the terminal.
        n: trajectories of the prompt.
    """

    def __init__(self, screen: Screen, title: str, ink: Ink, width: int, n: int) -> None:
        self.screen, self.title, self.ink, self.width = screen, title, ink, width
        self.rows: list[list[Cell]] = [[] for _ in range(n)]
        self.column = width if n == 1 else min(width, max(_NARROWEST, min((width + _GAP) // n - _GAP, _WIDEST)))
        self.shown = -_SHORTEST

    def __call__(self, look: Look) -> None:
        """Draws what a step left."""
        self.rows = [[Cell(_SETTLED.get(cell.state, cell.state), *cell[1:]) for cell in row] for row in self.rows]
        for a, row in enumerate(look.rows):
            self.rows[row] = cells_of(look, a, self.rows[row])
        if self.screen.height is not None:  # a frame can be seen, however small the model is
            time.sleep(max(0.0, self.shown + _SHORTEST - time.monotonic()))
            self.shown = time.monotonic()
        text = f"{self.title}  step {int(look.step_A.max())}"
        self.screen.draw([heading(text, self.ink), *beside(self.rows, self.ink, self.column, self.width)])


def _back(lines: int) -> str:
    """What wipes so many lines above the cursor away."""
    return f"\033[{lines}F" + _CLEAR


def render(trajectories: Sequence[Trajectory], title: str, ink: Ink, width: int) -> str:
    """The completions of one prompt, each under a line of what it cost.

    They are coloured by snapshot confidence; without colours, a completion is its text, whose lines are not broken.
    """
    paint: Paint = ink.paint
    lines = [paint(title, bold=True)]
    for k, trajectory in enumerate(trajectories):
        ended = "finished" if trajectory.finished else "not finished"
        cost = f"  {trajectory.length} tokens, {ended}, {trajectory.ledger.nfe} forward passes"
        row = cells_at(trajectory, trajectory.last_step + 1)[: trajectory.length - trajectory.finished]
        lines += ["", paint(f"T{k}", bold=True) + paint(cost, GREY)]
        if ink.color:
            lines += [line.shown for line in canvas_lines(row, ink, width)]
        else:
            lines.append(clean(trajectory.text).removesuffix("\n"))
    return "\n".join(lines)


def title_of(index: int, prompt: str, width: int) -> str:
    """A prompt's number and as much of its beginning as leaves room for a step count on the line."""
    number = f"#{index} "
    words = " ".join(clean(prompt).split())
    room = max(1, width - len(number) - 24)
    first = break_word(words, room)[0]
    return number + first + ("…" if first != words else "")
