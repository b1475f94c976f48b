"""Stitching results in the terminal: one problem with its trajectories, and the table of methods.

The same picture as the page of `report.py`, in characters: every step in the colour of its score with the score beside
it, `●` on the steps that the thread runs through, `○` on the other evidence. Whether to colour is the caller's choice.

Rows and summary are the records of `results.jsonl` and `summary.json`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lockstitch.terminal import (
    BLUE,
    GREEN,
    GREY,
    RED,
    Paint,
    break_word,
    cells,
    clean,
    pad,
    painter,
    ramp_code,
    wrap,
)

_KEPT, _ALSO = "●", "○"
NARROWEST, _WIDEST, _GAP, _OVERHEAD = 20, 44, 2, 7  # cells: of a column, between columns, of glyph and score
_SIGNS = {True: "✓", False: "✗", None: "?"}
_VERDICTS = {True: "right", False: "wrong", None: "unknown"}
_COLOURS = {True: GREEN, False: RED, None: GREY}


def _answer(answer: str | None) -> str:
    return " ".join(clean(answer).split()) if answer else "no answer"


def _verdict(answer: str | None, correct: bool | None, paint: Paint, width: int) -> str:
    text = f"  {_SIGNS[correct]} {_answer(answer)}"
    return paint(pad(text if cells(text) <= width else break_word(text, width - 1)[0] + "…", width), _COLOURS[correct])


def _marks(evidence: Mapping[str, Any]) -> dict[tuple[int, int], str]:
    """The glyph of every step that was kept, by (trajectory, step)."""
    marks = {(k, i): _ALSO for clue in evidence["clues"] for k, i in clue["sources"]}
    for clue in evidence["chain"] or evidence["clues"]:
        k, i = clue["sources"][0]
        marks[k, i] = _KEPT
    return marks


def _step_cell(step: Mapping[str, Any], mark: str, width: int, paint: Paint) -> list[str]:
    """The lines of one step, each `width` cells: glyph, text, and the score at the end of the first line."""
    code, room = ramp_code(step["score"]), width - _OVERHEAD
    lines = []
    for i, line in enumerate(wrap(step["text"], room)):
        glyph = mark if i == 0 else "│" if mark == _KEPT else " "
        score = f" {step['score']:.2f}" if i == 0 else " " * 5
        lines.append(
            paint(glyph, BLUE, bold=True)
            + " "
            + paint(pad(line, room), code, bold=mark == _KEPT)
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
        heads.append([paint(pad(name, width - 5), bold=True) + paint(f" {trajectory['mean_score']:.2f}", GREY)])
        feet.append([_verdict(trajectory["answer"], trajectory["correct"], paint, width)])
    blocks.append(heads)
    for i in range(max((len(trajectory["steps"]) for trajectory in band), default=0)):
        blocks.append(
            [
                _step_cell(t["steps"][i], marks.get((k, i), " "), width, paint) if i < len(t["steps"]) else []
                for k, t in enumerate(band, first)
            ]
        )
    blocks.append(feet)
    lines = []
    for block in blocks:
        for height in range(max(len(cell) for cell in block)):
            parts = [cell[height] if height < len(cell) else " " * width for cell in block]
            lines.append((" " * _GAP).join(parts).rstrip())
    return lines


def _evidence_lines(evidence: Mapping[str, Any], width: int, paint: Paint) -> list[str]:
    clues, marks = evidence["clues"], _marks(evidence)
    lines = [paint("evidence", bold=True) + ("" if clues else paint("  none", GREY))]
    for clue in clues:
        mark = _KEPT if any(marks[k, i] == _KEPT for k, i in clue["sources"]) else _ALSO
        sources = " ".join(f"T{k}.{i}" for k, i in clue["sources"])
        text, *more = wrap(clue["text"], width - 7)
        room = not more and 7 + cells(text) + 2 + len(sources) <= width
        code = ramp_code(clue["score"])
        scored = paint(f"{clue['score']:.2f} {text}", code)
        lines.append(f"{paint(mark, BLUE, bold=True)} {scored}" + (paint(f"  {sources}", GREY) if room else ""))
        lines += [" " * 7 + paint(line, code) for line in more]
        lines += [] if room else [" " * 7 + paint(line, GREY) for line in wrap(sources, width - 7)]
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
        if indent + cells(text) <= width:
            lines.append(label + " " * (indent - 2 - len(name)) + paint(text, code, bold=bold))
        else:
            lines += [label, *("  " + paint(line, code, bold=bold) for line in wrap(text, width - 2))]
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
    if width < NARROWEST:
        raise ValueError(f"width {width} is too narrow: at least {NARROWEST} cells are needed")
    paint = painter(color)
    number = f"#{row['index']} "
    lines = []
    question = row["question"]
    if re.fullmatch(r"[0-4]{16}", question):  # a 4x4 Sudoku, as its four rows
        question = "\n".join(question[start : start + 4] for start in range(0, 16, 4))
    for i, line in enumerate(wrap(question, width - len(number))):
        lines.append((paint(number, GREY) if i == 0 else " " * len(number)) + paint(line, bold=True))
    lines.append("")

    trajectories = row["trajectories"]
    longest = max((cells(clean(step["text"])) for t in trajectories for step in t["steps"]), default=0)
    wanted = max(NARROWEST, longest + _OVERHEAD)
    abreast = max(1, min(len(trajectories), (width + _GAP) // (min(wanted, _WIDEST) + _GAP)))
    column = min(wanted, (width + _GAP) // abreast - _GAP)
    for first in range(0, len(trajectories), abreast):
        lines += [*_band(row, first, first + abreast, column, paint), ""]

    lines += [*_evidence_lines(row["evidence"], width, paint), "", *_answer_lines(row, width, paint)]
    return "\n".join(lines)


_COSTS = {
    "nfe": "NFE",
    "tokens_forwarded": "forwarded",
    "scorer_tokens": "scorer",
    "solver_tokens": "solver",
    "sequential_steps": "sequential",
    "passes": "passes",
    "seconds": "seconds",
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
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [pad(name, widths[0]), *(value.rjust(width) for value, width in zip(values, widths[1:], strict=True))]
        )
        for name, *values in rows
    ]


def render_summary(summary: dict[str, Any], *, color: bool) -> str:
    """The table of methods, the methods that did not run, and the paired differences.

    Accuracies and differences are in percent (points), costs are means per problem: NFE, tokens forwarded by the
    diffusion model, tokens read by the scorer and by the solver, forward passes in sequence, all forward
    passes, seconds.

    Args:
        summary: the record of `summary.json`.
        color: whether to write ANSI colours.
    """
    paint = painter(color)
    title = f"{summary['task']}: {summary['n']:,} problems, {summary['num_trajectories']} trajectories each"
    lines = [paint(title, bold=True), ""]
    table = [["method", "accuracy %", "95% interval", *_COSTS.values()]]
    for name, method in summary["methods"].items():
        costs = [_number(method[key]) for key in _COSTS]
        table.append([name.replace("_", " "), _share(method["accuracy"]), _interval(method["ci95"]), *costs])
    head, *body = _table(table)
    lines.append(paint(head, GREY))
    lines += [paint(line, bold=name == "stitched") for name, line in zip(summary["methods"], body, strict=True)]
    if summary.get("scorer"):
        steps = summary["scorer"]["steps"]
        told = {"AUC": steps["auc"], "calibration error": steps["ece"]}
        shown = ", ".join(
            f"{name} {'none' if value is None else format(value, '.3f')}" for name, value in told.items()
        )
        if steps["n"] and steps["auc"] is None:
            shown += " (an AUC needs sound and unsound steps)"
        lines.append(paint(f"the scorer against the exact checker: {shown}, {steps['n']:,} steps", GREY))
    for name, reason in summary["absent"].items():
        lines.append(paint(f"{name.replace('_', ' ')}: not run, {clean(reason)}", GREY))
    if summary["paired"]:
        pairs = [["paired difference", "points", "95% interval"]]
        for name, pair in summary["paired"].items():
            label = name.replace("_", " ")
            pairs.append([label, _share(pair["difference"], "+.1f"), _interval(pair["ci95"], "+.1f")])
        head, *body = _table(pairs)
        lines += ["", paint(head, GREY)]
        for pair, line in zip(summary["paired"].values(), body, strict=True):
            low, high = pair["ci95"]
            lines.append(paint(line, GREEN if low > 0 else RED if high < 0 else None))
    return "\n".join(lines)
