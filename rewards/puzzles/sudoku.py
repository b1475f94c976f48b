"""4x4 Sudoku: digits 1 to 4 once in every row, column and 2x2 box; `0` is an empty cell.

A question is 16 digits, row by row (`3102200002100320`), as in d1's files; a completion is the four solved rows, one a
line. A quarter of the 8-hole puzzles have several solutions, so validity is judged, never string equality.
"""

import random
import re
from collections.abc import Sequence
from functools import cache

from lockstitch.rewards.problem import Problem

BENCHMARK_HOLES = 8
TRAINING_HOLES = (4, 5, 6, 7, 9, 10, 11)

UNITS: tuple[tuple[int, ...], ...] = (
    *(tuple(range(4 * row, 4 * row + 4)) for row in range(4)),
    *(tuple(range(column, 16, 4)) for column in range(4)),
    *(tuple(top + offset for offset in (0, 1, 4, 5)) for top in (0, 2, 8, 10)),
)


def parse_question(question: str) -> str:
    """The 16 digits of a puzzle, whatever white space they were written with."""
    cells = re.sub(r"\s", "", question)
    if not re.fullmatch(r"[0-4]{16}", cells):
        raise ValueError(f"sudoku question {question!r} is not 16 digits from 0 (empty) to 4")
    return cells


def rows(cells: str) -> str:
    """16 cells as four lines."""
    return "\n".join(cells[start : start + 4] for start in range(0, 16, 4))


def prompt(question: str) -> str:
    """The puzzle as four lines, as the embedded model reads it."""
    return rows(parse_question(question)) + "\n"


def is_valid_grid(cells: str) -> bool:
    """Whether 16 digits are a complete, valid grid."""
    return len(cells) == 16 and all({cells[i] for i in unit} == set("1234") for unit in UNITS)


def is_solution(question: str, cells: str) -> bool:
    """Whether the grid is valid and keeps every clue."""
    puzzle = parse_question(question)
    return is_valid_grid(cells) and all(clue in ("0", cell) for clue, cell in zip(puzzle, cells, strict=True))


def conclude(steps: Sequence[str]) -> str | None:
    """The grid that four rows make, or None if there are not four of four digits."""
    cells = [re.sub(r"\s", "", step) for step in steps]
    return "".join(cells) if len(cells) == 4 and all(len(row) == 4 for row in cells) else None


def spell_out(question: str, answer: str) -> list[str]:
    """The four rows of a grid of 16 digits; nothing for another text."""
    return rows(answer).split("\n") if re.fullmatch(r"[1-4]{16}", answer) else []


@cache
def all_grids() -> tuple[str, ...]:
    """The 288 solved grids."""
    grids: list[str] = []

    def fill(cells: str) -> None:
        if len(cells) == 16:
            grids.append(cells)
            return
        for digit in "1234":
            extended = cells + digit
            here = len(cells)
            if all(
                len({extended[i] for i in unit if i <= here}) == sum(i <= here for i in unit)
                for unit in UNITS
                if here in unit
            ):
                fill(extended)

    fill("")
    return tuple(grids)


def generate(rng: random.Random, *, held_out: bool = False) -> Problem:
    """A puzzle with its grid. Held-out puzzles and d1's test rows have 8 holes, training puzzles never do."""
    grid = rng.choice(all_grids())
    holes = BENCHMARK_HOLES if held_out else rng.choice(TRAINING_HOLES)
    empty = set(rng.sample(range(16), holes))
    puzzle = "".join("0" if i in empty else cell for i, cell in enumerate(grid))
    return Problem(puzzle, grid, rows(grid))
