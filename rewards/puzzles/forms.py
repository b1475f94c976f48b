"""The puzzles' rows, in the tasks' own notation and in those of public files, and the tasks' own forms of answers.

What a completion may answer with besides these is the business of `puzzle_rewards.py`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lockstitch.rewards.extract import last_marked, last_number, same_number
from lockstitch.rewards.problem import Problem, text_of
from lockstitch.rewards.puzzles import arithmetic, countdown, sudoku

Row = Mapping[str, Any]


def _optional_answer(row: Row) -> str | None:
    answer = row.get("answer")
    return None if answer is None or answer == "" else str(answer)


# --- arithmetic ------------------------------------------------------------------------------------------------------


def read_number_row(row: Row) -> Problem:
    """A row whose gold answer is the number behind its answer mark, else its last number; `ValueError`: no question."""
    answer = _optional_answer(row)
    gold = None if answer is None else last_marked(answer) or last_number(answer)
    return Problem(text_of(row, "question", "problem"), gold, answer)


def number_is_correct(question: str, gold: str | None, answer: str) -> bool | None:
    """Whether the answer is the gold number; None if that is unknown."""
    return None if gold is None else same_number(gold, answer)


def arithmetic_is_correct(question: str, gold: str | None, answer: str) -> bool | None:
    """Whether the answer is the value of the chain, or of the gold answer of a story; None if neither is known."""
    value = arithmetic.solve_chain(question)
    return number_is_correct(question, str(value) if value is not None else gold, answer)


def last_result(steps: Sequence[str]) -> str | None:
    """What the last step's equation gives; None if it has none."""
    return last_number(steps[-1].rpartition("=")[2]) if steps and "=" in steps[-1] else None


# --- countdown -------------------------------------------------------------------------------------------------------


def _whole(number: Any) -> str:
    """A number as a data set has it: 23, 23.0 or "23"."""
    text = str(number).strip()
    return re.sub(r"(?<=\d)\.0+", "", text) if re.fullmatch(r"-?\d+\.0+", text) else text


def read_countdown_row(row: Row) -> Problem:
    """A countdown row: question, or numbers and target, or input and output; `ValueError` says what is wrong."""
    if "input" in row and "output" in row:  # d1's file
        question = f"{row['input']}={row['output']}".replace(" ", "")
    elif "numbers" in row and "target" in row:
        if not isinstance(row["numbers"], list | tuple):
            raise ValueError(f"numbers {row['numbers']!r}: a list of them is needed")
        question = f"{','.join(map(_whole, row['numbers']))}={_whole(row['target'])}"
    else:
        question = text_of(row, "question")
        words = re.fullmatch(r"Numbers:\s*\[(.*)\]\s*Target:\s*(-?\d+)", question)
        question = f"{words[1]}={words[2]}" if words else question
    numbers, target = countdown.parse_question(question)
    return Problem(f"{','.join(map(str, numbers))}={target}", _optional_answer(row))


def extract_expression(completion: str) -> str | None:
    """The expression behind the last `####`, else the one that the worked steps amount to; None if there is none."""
    marked = re.findall(r"####[ \t]*([-+*/() 0-9]+)", completion)
    if marked:
        return re.sub(r"\s", "", marked[-1]) or None
    return countdown.conclude([line for line in completion.split("\n") if line.strip()])


# --- sudoku ----------------------------------------------------------------------------------------------------------


def read_sudoku_row(row: Row) -> Problem:
    """A Sudoku row: question, which may end in its digits, Puzzle, or numbers alone; `ValueError` says what is wrong."""
    if "Puzzle" in row:  # d1's file
        return Problem(sudoku.parse_question(str(row["Puzzle"])), str(row.get("Solution") or "") or None)
    if isinstance(row.get("cells"), list):  # MDM-VGB's file: nine rows of nine with a 10 between them
        return Problem(sudoku.parse_question("".join(str(cell) for cell in row["cells"] if cell != 10)))
    question = text_of(row, "question")
    digits = re.search(r"(?<![0-9])([0-9]{81}|[0-4]{16})\s*$", question)
    return Problem(sudoku.parse_question(digits[1] if digits else question), _optional_answer(row))


def extract_grid(completion: str) -> str | None:
    """The 16 or 81 digits behind the last `####`, or of the whole text; None if there are no such."""
    cells = re.sub(r"\s", "", completion.rpartition("####")[2])
    return cells if re.fullmatch(r"[1-4]{16}|[1-9]{81}", cells) else None
