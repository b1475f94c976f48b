"""9x9 Sudoku puzzles with one solution: a grid is filled at random, then cells are emptied while one solution is left.

Training puzzles are made of a thousand that were dug so, by the symmetries that keep a puzzle a puzzle (digits renamed,
rows moved within their band and bands among one another, the same of columns, transposed): 1.2e12 of each. Held-out ones
are dug afresh from seeds of their own. 51 holes as in the hard set published with MDM-VGB (2606.28301), of which 85 % give
way to naked and hidden singles alone.

Cells are sets of digits as bits here: one bit is a digit, 0 an empty cell.
"""

import random
from collections.abc import Sequence
from functools import cache

from lockstitch.rewards.problem import Problem
from lockstitch.rewards.puzzles.sudoku import parse_question, peers, rows, units

HOLES = 51
DUG = 1000  # puzzles that all training puzzles are made of

_ALL = 0b111111111
_PEERS = peers(9)
_OF = tuple(tuple(unit for unit in units(9) if cell in unit) for cell in range(81))


def _candidates(cells: Sequence[int], cell: int) -> int:
    seen = 0
    for peer in _PEERS[cell]:
        seen |= cells[peer]
    return _ALL & ~seen


def _solve(cells: list[int], rng: random.Random | None) -> bool:
    """Fills the empty cells, those of fewest candidates first, or leaves all as it was and says that it cannot be done."""
    fewest, chosen, open_to = 10, -1, 0
    for cell in range(81):
        if not cells[cell]:
            found = _candidates(cells, cell)
            if found.bit_count() < fewest:
                fewest, chosen, open_to = found.bit_count(), cell, found
                if fewest < 2:
                    break
    if chosen < 0:
        return True
    digits = [1 << digit for digit in range(9) if open_to >> digit & 1]
    if rng is not None:
        rng.shuffle(digits)
    for digit in digits:
        cells[chosen] = digit
        if _solve(cells, rng):
            return True
    cells[chosen] = 0
    return False


def _empties(cells: list[int], cell: int) -> bool:
    """Empties a cell if the puzzle has one solution without it, and says whether it did."""
    own, cells[cell] = cells[cell], 0
    found = _candidates(cells, cell)
    if found == own:
        return True
    for unit in _OF[cell]:  # no other cell of the unit could hold it
        if not any(not cells[i] and i != cell and _candidates(cells, i) & own for i in unit):
            return True
    for digit in range(9):
        if found >> digit & 1 and 1 << digit != own:
            trial = cells[:]
            trial[cell] = 1 << digit
            if _solve(trial, None):
                cells[cell] = own
                return False
    return True


def _text(cells: Sequence[int]) -> str:
    return "".join(str(cell.bit_length()) for cell in cells)


def dig(rng: random.Random, holes: int = HOLES) -> tuple[str, str]:
    """A puzzle with that many empty cells and one solution, and the solution."""
    while True:
        cells = [0] * 81
        _solve(cells, rng)
        grid, left = _text(cells), holes
        for cell in rng.sample(range(81), 81):
            left -= left > 0 and _empties(cells, cell)
        if not left:
            return _text(cells), grid


def shuffled(rng: random.Random, *grids: str) -> list[str]:
    """The same puzzle in other clothes: all grids under one symmetry drawn at random."""
    digits = "0" + "".join(rng.sample("123456789", 9))

    def lines() -> list[int]:
        return [3 * band + line for band in rng.sample(range(3), 3) for line in rng.sample(range(3), 3)]

    down, across = lines(), lines()
    order = [9 * row + column for row in down for column in across]
    if rng.random() < 0.5:
        order = [9 * row + column for column in across for row in down]
    return ["".join(digits[int(grid[cell])] for cell in order) for grid in grids]


@cache
def _dug(number: int) -> tuple[str, str]:
    return dig(random.Random(f"sudoku9 {number}"))


def generate(rng: random.Random, *, held_out: bool = False) -> Problem:
    """A 9x9 puzzle of 51 holes with its grid; held-out ones are dug for the occasion, in about 25 ms."""
    puzzle, grid = dig(rng) if held_out else shuffled(rng, *_dug(rng.randrange(DUG)))
    return Problem(puzzle, grid, rows(grid))


def solutions(question: str, most: int = 2) -> list[str]:
    """Solved grids of a 9x9 puzzle, at most so many of them: two say that there are several. `ValueError`: no puzzle."""
    cells = [1 << int(digit) - 1 if digit != "0" else 0 for digit in parse_question(question, 9)]
    if any(cells[cell] and cells[cell] & ~_candidates(cells, cell) for cell in range(81)):
        return []
    found: list[str] = []

    def search() -> None:
        empty = [(_candidates(cells, cell), cell) for cell in range(81) if not cells[cell]]
        if not empty:
            found.append(_text(cells))
            return
        open_to, chosen = min(empty, key=lambda one: one[0].bit_count())
        for digit in range(9):
            if open_to >> digit & 1 and len(found) < most:
                cells[chosen] = 1 << digit
                search()
        cells[chosen] = 0

    search()
    return found
