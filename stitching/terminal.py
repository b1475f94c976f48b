"""Stitching results in the terminal: one problem with its trajectories, and the table of methods.

The same picture as the page of `report.py`, in characters: every step in the colour of its score with the score beside
it, `●` on the steps that the thread runs through, `○` on the other evidence. Colours are those of the 256-colour
palette, which every terminal has. Text of models is stripped of control characters before it is printed, so it cannot
drive the terminal. Whether to colour (NO_COLOR, pipes) is the caller's choice.

Rows and summary are the records of `results.jsonl` and `summary.json`.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

_KEPT, _ALSO = "●", "○"
_NARROWEST, _WIDEST, _GAP, _OVERHEAD = 20, 44, 2, 7  # cells: of a column, between columns, of glyph and score
_RAMP = (166, 172, 178, 107, 36)  # vermillion to bluish green, as on the page
_GREEN, _RED, _BLUE, _GREY = 36, 166, 69, 245
_SIGNS = {True: "✓", False: "✗", None: "?"}
_VERDICTS = {True: "right", False: "wrong", None: "unknown"}
_COLOURS = {True: _GREEN, False: _RED, None: _GREY}


class Paint(Protocol):
    def __call__(self, text: str, code: int | None = None, *, bold: bool = False) -> str: ...


def _painter(color: bool) -> Paint:
    def paint(text: str, code: int | None = None, *, bold: bool = False) -> str:
        codes = (["1"] if bold else []) + ([] if code is None else [f"38;5;{code}"])
        return f"\033[{';'.join(codes)}m{text}\033[0m" if color and codes and text else text

    return paint


def _clean(text: str) -> str:
    """Line breaks kept, tabs as spaces, every other control, format or unassigned character dropped."""
    text = text.replace("\r\n", "\n").replace("\u2028", "\n").replace("\u2029", "\n").replace("\t", "  ")
    return "".join(c for c in text if c == "\n" or unicodedata.category(c)[0] != "C")


def _cells(text: str) -> int:
    """How many cells of a terminal the text takes."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _pad(text: str, width: int) -> str:
    return text + " " * max(0, width - _cells(text))


def _break(word: str, width: int) -> list[str]:
    """A word in pieces of at most `width` cells (one character at least)."""
    pieces = [""]
    for character in word:
        if pieces[-1] and _cells(pieces[-1] + character) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells; spaces inside a line that fits are kept."""
    lines: list[str] = []
    for line in _clean(text).split("\n"):
        if _cells(line) <= width:
            lines.append(line)
            continue
        current = ""
        for word in line.split(" "):
            joined = f"{current} {word}" if current else word
            if _cells(joined) <= width:
                current = joined
                continue
            if current:
                lines.append(current)
            *full, current = _break(word, width)
            lines += full
        lines.append(current)
    return lines


def _score_code(score: float) -> int:
    return _RAMP[min(len(_RAMP) - 1, max(0, int(score * len(_RAMP))))]


def _answer(answer: str | None) -> str:
    return " ".join(_clean(answer).split()) if answer else "no answer"


def _verdict(answer: str | None, correct: bool | None, paint: Paint, width: int) -> str:
    text = f"  {_SIGNS[correct]} {_answer(answer)}"
    return paint(_pad(text if _cells(text) <= width else _break(text, width - 1)[0] + "…", width), _COLOURS[correct])


def _marks(evidence: Mapping[str, Any]) -> dict[tuple[int, int], str]:
    """The glyph of every step that was kept, by (trajectory, step)."""
    marks = {(k, i): _ALSO for clue in evidence["clues"] for k, i in clue["sources"]}
    for clue in evidence["chain"] or evidence["clues"]:
        k, i = clue["sources"][0]
        marks[k, i] = _KEPT
    return marks


def _step_cell(step: Mapping[str, Any], mark: str, width: int, paint: Paint) -> list[str]:
    """The lines of one step, each `width` cells: glyph, text, and the score at the end of the first line."""
    code, room = _score_code(step["score"]), width - _OVERHEAD
    lines = []
    for i, line in enumerate(_wrap(step["text"], room)):
        glyph = mark if i == 0 else "│" if mark == _KEPT else " "
        score = f" {step['score']:.2f}" if i == 0 else " " * 5
        lines.append(
            paint(glyph, _BLUE, bold=True) + " " + paint(_pad(line, room), code, bold=mark == _KEPT)
            + paint(score, code, bold=mark == _KEPT)
        )
    return lines


def _band(row: Mapping[str, Any], first: int, stop: int, width: int, paint: Paint) -> list[str]:
    """Trajectories [first, stop) side by side, in columns of `width` cells; steps of one index stand at one height."""
    band = row["trajectories"][first:stop]
    marks, anchor = _marks(row["evidence"]), row["evidence"]["anchor"]
    blocks: list[list[list[str]]] = []  # by height, by column, lines
    heads, feet = [], []
    for k, trajectory in enumerate(band, first):
        name = f"T{k}" + (" anchor" if k == anchor else "")
        heads.append([paint(_pad(name, width - 5), bold=True) + paint(f" {trajectory['mean_score']:.2f}", _GREY)])
        feet.append([_verdict(trajectory["answer"], trajectory["correct"], paint, width)])
    blocks.append(heads)
    for i in range(max((len(trajectory["steps"]) for trajectory in band), default=0)):
        blocks.append([
            _step_cell(t["steps"][i], marks.get((k, i), " "), width, paint) if i < len(t["steps"]) else []
            for k, t in enumerate(band, first)
        ])
    blocks.append(feet)
    lines = []
    for block in blocks:
        for height in range(max(len(cell) for cell in block)):
            parts = [cell[height] if height < len(cell) else " " * width for cell in block]
            lines.append((" " * _GAP).join(parts).rstrip())
    return lines


def _evidence_lines(evidence: Mapping[str, Any], width: int, paint: Paint) -> list[str]:
    clues, marks = evidence["clues"], _marks(evidence)
    lines = [paint("evidence", bold=True) + ("" if clues else paint("  none", _GREY))]
    for clue in clues:
        mark = _KEPT if any(marks[k, i] == _KEPT for k, i in clue["sources"]) else _ALSO
        sources = " ".join(f"T{k}.{i}" for k, i in clue["sources"])
        text, *more = _wrap(clue["text"], width - 7)
        room = not more and 7 + _cells(text) + 2 + len(sources) <= width
        code = _score_code(clue["score"])
        scored = paint(f"{clue['score']:.2f} {text}", code)
        lines.append(f"{paint(mark, _BLUE, bold=True)} {scored}" + (paint(f"  {sources}", _GREY) if room else ""))
        lines += [" " * 7 + paint(line, code) for line in more]
        lines += [] if room else [" " * 7 + paint(line, _GREY) for line in _wrap(sources, width - 7)]
    return lines


def _answer_lines(row: Mapping[str, Any], width: int, paint: Paint) -> list[str]:
    """A line a method: sign, name, answer, verdict; the answer goes below the name where the width asks for it."""
    gold = "not given" if row["answer"] is None else _answer(row["answer"])
    entries: list[tuple[str, str, str, int | None]] = [("gold", " ", gold, None)]
    for name, method in row["methods"].items():
        correct = method["correct"]
        text = f"{_answer(method['answer'])}  {_VERDICTS[correct]}"
        entries.append((name.replace("_", " "), _SIGNS[correct], text, _COLOURS[correct]))
    indent = max(len(name) for name, *_ in entries) + 4
    lines = [paint("answers", bold=True)]
    for name, sign, text, code in entries:
        bold = name == "stitched"
        label = paint(sign, code, bold=bold) + " " + paint(name, bold=bold)
        if indent + _cells(text) <= width:
            lines.append(label + " " * (indent - 2 - len(name)) + paint(text, code, bold=bold))
        else:
            lines += [label, *("  " + paint(line, code, bold=bold) for line in _wrap(text, width - 2))]
    return lines


def render_problem(row: dict[str, Any], *, width: int, color: bool) -> str:
    """One problem: question, trajectories (side by side as far as they fit), evidence, answers.

    Args:
        row: a record of `results.jsonl`.
        width: cells of the terminal; no line is longer.
        color: whether to write ANSI colours.

    Raises:
        ValueError: the width is under 20 cells, the narrowest that a step and its score can be read in.
    """
    if width < _NARROWEST:
        raise ValueError(f"width {width} is too narrow: at least {_NARROWEST} cells are needed")
    paint = _painter(color)
    number = f"#{row['index']} "
    lines = []
    question = row["question"]
    if re.fullmatch(r"[0-4]{16}", question):  # a 4x4 Sudoku, as its four rows
        question = "\n".join(question[start : start + 4] for start in range(0, 16, 4))
    for i, line in enumerate(_wrap(question, width - len(number))):
        lines.append((paint(number, _GREY) if i == 0 else " " * len(number)) + paint(line, bold=True))
    lines.append("")

    trajectories = row["trajectories"]
    longest = max((_cells(_clean(step["text"])) for t in trajectories for step in t["steps"]), default=0)
    wanted = max(_NARROWEST, longest + _OVERHEAD)
    abreast = max(1, min(len(trajectories), (width + _GAP) // (min(wanted, _WIDEST) + _GAP)))
    column = min(wanted, (width + _GAP) // abreast - _GAP)
    for first in range(0, len(trajectories), abreast):
        lines += [*_band(row, first, first + abreast, column, paint), ""]

    lines += [*_evidence_lines(row["evidence"], width, paint), "", *_answer_lines(row, width, paint)]
    return "\n".join(lines)


_COSTS = {
    "nfe": "NFE", "tokens_forwarded": "forwarded", "scorer_tokens": "scorer", "solver_tokens": "solver",
    "sequential_steps": "sequential", "seconds": "seconds",
}


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def _share(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else f"{100 * value:{form}}"


def _interval(bounds: Sequence[float | None] | None, form: str = ".1f") -> str:
    return f"[{_share(bounds[0], form)}, {_share(bounds[1], form)}]" if bounds else "-"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines: the first column to the left, the others to the right."""
    widths = [max(map(_cells, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([_pad(name, widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for name, *cells in rows
    ]


def render_summary(summary: dict[str, Any], *, color: bool) -> str:
    """The table of methods, the methods that did not run, and the paired differences.

    Accuracies and differences are in percent (points), costs are means per problem: NFE, tokens forwarded by the
    diffusion model, tokens read by the scorer and by the solver, forward passes in sequence, seconds.

    Args:
        summary: the record of `summary.json`.
        color: whether to write ANSI colours.
    """
    paint = _painter(color)
    title = f"{summary['task']}: {summary['n']:,} problems, {summary['num_trajectories']} trajectories each"
    lines = [paint(title, bold=True), ""]
    table = [["method", "accuracy %", "95% interval", *_COSTS.values()]]
    for name, method in summary["methods"].items():
        costs = [_number(method[key]) for key in _COSTS]
        table.append([name.replace("_", " "), _share(method["accuracy"]), _interval(method["ci95"]), *costs])
    head, *body = _table(table)
    lines.append(paint(head, _GREY))
    lines += [paint(line, bold=name == "stitched") for name, line in zip(summary["methods"], body, strict=True)]
    for name, reason in summary["absent"].items():
        lines.append(paint(f"{name.replace('_', ' ')}: not run, {_clean(reason)}", _GREY))
    if summary["paired"]:
        pairs = [["paired difference", "points", "95% interval"]]
        for name, pair in summary["paired"].items():
            label = name.replace("_", " ")
            pairs.append([label, _share(pair["difference"], "+.1f"), _interval(pair["ci95"], "+.1f")])
        head, *body = _table(pairs)
        lines += ["", paint(head, _GREY)]
        for pair, line in zip(summary["paired"].values(), body, strict=True):
            low, high = pair["ci95"]
            lines.append(paint(line, _GREEN if low > 0 else _RED if high < 0 else None))
    return "\n".join(lines)
