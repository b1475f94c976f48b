"""Sudoku, 4x4 and 9x9: each digit once in every row, column and box; `0` is an empty cell.

A question is 16 or 81 digits, row by row (`3102200002100320`), as in d1's files; a completion is the solved rows, one a
line. A quarter of d1's 4x4 puzzles have several solutions, so validity is judged, never string equality. `digging.py`
makes 9x9 puzzles, each with one solution, as hard ones are published with it.
"""

import random
import re
from collections.abc import Sequence
from functools import cache

from lockstitch.rewards.problem import Problem

BENCHMARK_HOLES = 8
TRAINING_HOLES = (4, 5, 6, 7, 9, 10, 11)

_SIDES = {16: 4, 81: 9}


@cache
def units(side: int) -> tuple[tuple[int, ...], ...]:
    """The rows, columns and boxes of a grid of `side` by `side` cells, each as its cells."""
    box = int(side**0.5)
    lines = range(side)
    corners = [side * top + left for top in range(0, side, box) for left in range(0, side, box)]
    return (
        *(tuple(range(side * row, side * row + side)) for row in lines),
        *(tuple(range(column, side * side, side)) for column in lines),
        *(tuple(corner + side * i + j for i in range(box) for j in range(box)) for corner in corners),
    )


@cache
def peers(side: int) -> tuple[tuple[int, ...], ...]:
    """For each cell the other cells of its row, column and box."""
    return tuple(
        tuple(sorted({other for unit in units(side) if cell in unit for other in unit} - {cell}))
        for cell in range(side * side)
    )


def digits_of(side: int) -> str:
    """The digits of a grid of that side: `1234`, `123456789`."""
    return "123456789"[:side]


def parse_question(question: str, side: int | None = None) -> str:
    """The digits of a puzzle, whatever white space they were written with; of that side, where one is given.

    Raises `ValueError` for anything else.
    """
    cells = re.sub(r"\s", "", question)
    found = _SIDES.get(len(cells))
    if found is None or side not in (None, found) or not re.fullmatch(rf"[0-{found}]*", cells):
        accepted = {4: "16 digits from 0 (empty) to 4", 9: "81 digits from 0 (empty) to 9"}
        wanted = accepted[side] if side is not None else " or ".join(accepted.values())
        raise ValueError(f"sudoku question {question!r} is not {wanted}")
    return cells


def rows(cells: str) -> str:
    """16 or 81 cells as four or nine lines."""
    side = _SIDES[len(cells)]
    return "\n".join(cells[start : start + side] for start in range(0, len(cells), side))


def prompt(question: str) -> str:
    """The puzzle as lines, as the embedded 4x4 model reads it."""
    return rows(parse_question(question)) + "\n"


def cloze(question: str) -> str:
    """The puzzle as lines whose empty cells are blanks, each of them a token wide."""
    return re.sub("0+", lambda run: f"[[:{len(run[0])}]]", rows(parse_question(question)))


def is_valid_grid(cells: str) -> bool:
    """Whether the digits are a complete, valid grid of either size."""
    side = _SIDES.get(len(cells))
    return side is not None and all({cells[i] for i in unit} == set(digits_of(side)) for unit in units(side))


def is_solution(question: str, cells: str) -> bool:
    """Whether the grid is valid and keeps every clue."""
    puzzle = parse_question(question)
    return (
        len(cells) == len(puzzle)
        and is_valid_grid(cells)
        and all(clue in ("0", cell) for clue, cell in zip(puzzle, cells, strict=True))
    )


def conclude(steps: Sequence[str]) -> str | None:
    """The grid that four rows of four digits make, or nine of nine; None if there is no such."""
    cells = [re.sub(r"\s", "", step) for step in steps]
    return "".join(cells) if len(cells) in (4, 9) and all(len(row) == len(cells) for row in cells) else None


def spell_out(question: str, answer: str) -> list[str]:
    """The rows of a grid of 16 or 81 digits; nothing for another text."""
    return rows(answer).split("\n") if re.fullmatch(r"[1-4]{16}|[1-9]{81}", answer) else []


@cache
def all_grids() -> tuple[str, ...]:
    """The 288 solved 4x4 grids."""
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
                for unit in units(4)
                if here in unit
            ):
                fill(extended)

    fill("")
    return tuple(grids)


def generate(rng: random.Random, *, held_out: bool = False) -> Problem:
    """A 4x4 puzzle with its grid. Held-out puzzles and d1's test rows have 8 holes, training puzzles never do."""
    grid = rng.choice(all_grids())
    holes = BENCHMARK_HOLES if held_out else rng.choice(TRAINING_HOLES)
    empty = set(rng.sample(range(16), holes))
    puzzle = "".join("0" if i in empty else cell for i, cell in enumerate(grid))
    return Problem(puzzle, grid, rows(grid))
