"""Rows whose judge will have no verdict, whatever the completion says: known before any work, so that they can be named."""

from collections.abc import Mapping, Sequence
from typing import Any

from lockstitch.rewards.code_rewards import why_no_exam
from lockstitch.rewards.mathematics.reading import read_gold
from lockstitch.rewards.puzzle_rewards import judge_arithmetic, judge_sudoku, sudoku_question
from lockstitch.rewards.puzzles.forms import read_number_row

SHOWN = 5


def unreadable(judge: str | None, columns: Mapping[str, Any]) -> str | None:
    """Why the reward of that name has no verdict on a row, whatever is answered; None if it has one, or cannot tell before.

    Of a reward of the user's own (None) nothing is known. A gold answer of null is unknown on purpose, and no fault.
    """
    gold = columns.get("answer")
    if judge == "math":
        return None if gold is None or read_gold(gold) is not None else f"gold answer {gold!r:.60}"
    if judge == "arithmetic":
        known = gold is None or judge_arithmetic(read_number_row(columns), "") is not None
        return None if known else f"gold answer {gold!r:.60}"
    if judge == "sudoku":
        return "a puzzle without solution" if judge_sudoku(sudoku_question(columns), "") is None else None
    if judge == "code":
        return why_no_exam(columns)
    return None


def warning(where: str, reasons: Sequence[tuple[int, str]]) -> str:
    """One sentence that names the rows without a verdict by their lines, the first five in full."""
    first = "; ".join(f"line {line}: {reason}" for line, reason in reasons[:SHOWN])
    more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    rows = "1 row has" if len(reasons) == 1 else f"{len(reasons)} rows have"
    return f"{where}: {rows} a gold answer that cannot be read, and no verdict ({first}{more})"
