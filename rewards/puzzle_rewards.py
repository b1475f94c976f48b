"""Puzzles: countdown, Sudoku and arithmetic chains, judged by their rules and not by comparison with one answer.

Questions are columns of the data set, in the tasks' own notation or in those of public files; a row whose question cannot
be read gets None. Answers are read by `reading.py`. Expressions go through the exact rational grammar of `countdown.py`;
nothing is evaluated as code, and nothing that a completion says makes a reward None.

Differences from d1's functions: arithmetic is exact; a grid is right if it is valid, also where the puzzle has other
solutions than the one in the file; and an altered clue counts as a wrong cell.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from lockstitch.rewards.contract import Completion, LogMetric, Value, completion_texts, report_none, rows_of
from lockstitch.rewards.extract import last_marked
from lockstitch.rewards.marks import find_answer, without_special_tokens
from lockstitch.rewards.mathematics.plain import value_of
from lockstitch.rewards.mathematics.reading import read_answer
from lockstitch.rewards.problem import Problem
from lockstitch.rewards.puzzles import countdown, digging, sudoku
from lockstitch.rewards.puzzles.forms import (
    arithmetic_is_correct,
    read_countdown_row,
    read_number_row,
    read_sudoku_row,
)
from lockstitch.rewards.puzzles.reading import read_expression, read_grid

Row = Mapping[str, Any]
Question = TypeVar("Question")

_DEEPEST = 50
_ALMOST = 0.1
_MOST_GRIDS = 200


def _score(
    name: str,
    completions: Sequence[Completion],
    columns: Row,
    names: Sequence[str],
    log_metric: LogMetric | None,
    read: Callable[[Row], Question],
    judge: Callable[[Question, str], Value],
) -> list[Value]:
    """`judge(read(row), text)` for each completion; None where the row holds no question of this kind (`ValueError`)."""
    texts = completion_texts(completions)
    rows = rows_of(columns, len(texts))
    if rows and rows[0].keys().isdisjoint(names):
        raise ValueError(f"{name} needs one of the columns {', '.join(names)}; given: {sorted(rows[0])}")
    values: list[Value] = []
    reasons = set()
    for row, text in zip(rows, texts, strict=True):
        try:
            question = read({key: value for key, value in row.items() if value is not None})
        except ValueError as error:
            values.append(None)
            reasons.add(str(error))
        else:
            values.append(judge(question, without_special_tokens(text)))
    report_none(name, values, log_metric, "; ".join(sorted(reasons)[:3]))
    return values


# --- countdown -------------------------------------------------------------------------------------------------------


def countdown_question(row: Row) -> str:
    """The question `30,100,93=23` of a row; `ValueError` if it has none."""
    if "nums" in row and "numbers" not in row:
        row = {**row, "numbers": row["nums"]}
    return read_countdown_row(row).question


def judge_countdown(question: str, text: str) -> float:
    """1.0 if the expression uses every number once and gives the target, 0.1 for another answer, 0.0 for none."""
    expression = read_expression(text)
    if expression is None:
        return 0.0
    return 1.0 if expression.count("(") <= _DEEPEST and countdown.solves(question, expression) else _ALMOST


def countdown_reward(
    prompts: Sequence[Any], completions: Sequence[Completion], log_metric: LogMetric | None = None, **columns: Any
) -> list[Value]:
    """1.0 for an expression that uses every number exactly once and equals the target, 0.1 for another, 0.0 for none.

    Columns: question (`30,100,93=23`), or numbers (or nums) and target, or input and output as in d1's file.
    """
    names = ("question", "numbers", "nums", "input")
    return _score("countdown_reward", completions, columns, names, log_metric, countdown_question, judge_countdown)


# --- sudoku ----------------------------------------------------------------------------------------------------------


def sudoku_question(row: Row, side: int | None = None) -> str:
    """The 16 or 81 digits of a row's puzzle (those of that side, where it is given); `ValueError` if it has none."""
    if "puzzle" in row and "Puzzle" not in row:
        row = {**row, "Puzzle": row["puzzle"]}
    return sudoku.parse_question(read_sudoku_row(row).question, side)


def judge_sudoku(question: str, text: str) -> Value:
    """1.0 for a valid grid that keeps the clues, else 0.0; None if the puzzle has no solution."""
    if not _solutions(question):
        return None
    cells = read_grid(text)
    return float(cells is not None and sudoku.is_solution(question, cells))


@lru_cache(maxsize=4096)
def _solutions(question: str) -> tuple[str, ...]:
    """All solutions of a 4x4 puzzle; of a 9x9 one at most `_MOST_GRIDS`, and one more where there are more."""
    if len(question) == 16:
        return tuple(grid for grid in sudoku.all_grids() if sudoku.is_solution(question, grid))
    return tuple(digging.solutions(question, _MOST_GRIDS + 1))


def judge_sudoku_cells(question: str, text: str) -> Value:
    """The share of empty cells that agree with the nearest solution; None if there is none, or too many to compare.

    An altered clue counts as one more cell, which is wrong.
    """
    solutions = _solutions(question)
    if not solutions or (len(question) == 81 and len(solutions) > _MOST_GRIDS):
        return None
    cells = (read_grid(text) or "").ljust(len(question), "0")
    if len(cells) > len(question):
        return 0.0
    altered = sum(clue not in ("0", cell) for clue, cell in zip(question, cells, strict=True))
    empty = [i for i, clue in enumerate(question) if clue == "0"]
    right = max(sum(grid[i] == cells[i] for i in empty) for grid in solutions)
    return right / (len(empty) + altered) if empty else float(not altered)


def sudoku_reward(
    prompts: Sequence[Any], completions: Sequence[Completion], log_metric: LogMetric | None = None, **columns: Any
) -> list[Value]:
    """1.0 for a valid 4x4 or 9x9 Sudoku grid that keeps every clue, whatever other solutions there are; else 0.0.

    Columns: question (16 or 81 digits, 0 for an empty cell), or puzzle (or Puzzle) as in d1's files.
    """
    names = ("question", "puzzle", "Puzzle")
    return _score("sudoku_reward", completions, columns, names, log_metric, sudoku_question, judge_sudoku)


def sudoku_cells_reward(
    prompts: Sequence[Any], completions: Sequence[Completion], log_metric: LogMetric | None = None, **columns: Any
) -> list[Value]:
    """The share of a Sudoku's empty cells that are right; 1.0 exactly where `sudoku_reward` is.

    None for a 9x9 puzzle of more than 200 solutions.

    Columns: question (16 or 81 digits, 0 for an empty cell), or puzzle (or Puzzle) as in d1's files.
    """
    names = ("question", "puzzle", "Puzzle")
    return _score("sudoku_cells_reward", completions, columns, names, log_metric, sudoku_question, judge_sudoku_cells)


# --- arithmetic ------------------------------------------------------------------------------------------------------


def judge_arithmetic(problem: Problem, text: str) -> Value:
    """1.0 for the value of the chain (or the gold answer of a story), 0.0 for another or none; None if it is unknown."""
    right = arithmetic_is_correct(problem.question, problem.answer, last_marked(text) or _number(text) or "none")
    return None if right is None else float(right)


def _number(text: str) -> str | None:
    """The number that a text answers in another way than a bare marked one; None if it answers none, or is cut off."""
    found = find_answer(text)
    read = None if found is not None and found.is_cut else read_answer(text)
    value = None if read is None else value_of(read.rpartition("=")[2])
    return None if value is None else str(value)


def arithmetic_reward(
    prompts: Sequence[Any], completions: Sequence[Completion], log_metric: LogMetric | None = None, **columns: Any
) -> list[Value]:
    """1.0 for the value of an arithmetic chain, behind an answer mark or as the last expression, else 0.0.

    Columns: question (a chain `12, +7, -5`, or a story with answer).
    """
    names = ("question", "problem")
    return _score("arithmetic_reward", completions, columns, names, log_metric, read_number_row, judge_arithmetic)
