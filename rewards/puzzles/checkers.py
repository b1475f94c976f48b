"""What a sound step is in each of the puzzles: see `steps.py` for what a checker is and what its scores mean."""

import math
import re
from fractions import Fraction
from typing import Any

from lockstitch.rewards.puzzles import arithmetic, countdown, sudoku
from lockstitch.rewards.steps import SOUND, UNKNOWN, WRONG

_EQUATION = re.compile(r"(\d+)\s*([-+*/])\s*(\d+)\s*=\s*(\d+)")


class ArithmeticChecker:
    """Chains and their word problems: one equation a step, operands known, each operand of the question used once.

    State: the numbers not yet used, in the order of the question, and the running value.
    """

    def start(self, question: str) -> tuple[tuple[int, ...], int | None]:
        """The question's numbers; the running value is the first of them."""
        numbers = tuple(int(number) for number in re.findall(r"\d+", question))
        return numbers[1:], numbers[0] if numbers else None

    def advance(self, state: Any, step: str) -> tuple[Any, float]:
        """Sound if the step continues from the running value with a number that is still to be used."""
        unused, value = state
        match = _EQUATION.search(step)
        if match is None:
            return state, UNKNOWN
        left, operation, right, result = int(match[1]), match[2], int(match[3]), int(match[4])
        if operation == "/" or arithmetic.apply(left, operation, right) != result:
            return (unused, None), WRONG
        if left != value or not unused or unused[0] != right:
            return (unused, None), WRONG
        return (unused[1:], result), SOUND

    def is_complete(self, state: Any) -> bool:
        """Whether every number of the question was used."""
        unused, value = state
        return value is not None and not unused


class CountdownChecker:
    """Countdown: each step combines two of the numbers at hand into a new one; the last must be the target.

    State: the numbers at hand, sorted, and the target.
    """

    def start(self, question: str) -> tuple[tuple[int, ...], int]:
        """The question's numbers and its target."""
        numbers, target = countdown.parse_question(question)
        return tuple(sorted(numbers)), target

    def advance(self, state: Any, step: str) -> tuple[Any, float]:
        """Sound if both operands are at hand and the equation holds, and the last number left is the target."""
        numbers, target = state
        match = _EQUATION.search(step)
        if match is None:
            return state, UNKNOWN
        left, operation, right, result = int(match[1]), match[2], int(match[3]), int(match[4])
        rest = list(numbers)
        for operand in (left, right):
            if operand not in rest:
                return state, WRONG
            rest.remove(operand)
        if operation == "/":
            holds = right != 0 and Fraction(left, right) == result
        else:
            holds = arithmetic.apply(left, operation, right) == result
        if not holds or (not rest and result != target):
            return state, WRONG
        return (tuple(sorted([*rest, result])), target), SOUND

    def is_complete(self, state: Any) -> bool:
        """Whether one number is left, the target."""
        numbers, target = state
        return bool(numbers == (target,))


class SudokuChecker:
    """Sudoku, 4x4 or 9x9: a step is a row; it must keep the clues and clash with no row above it and no clue below.

    State: the puzzle and the rows accepted so far (a row that was refused stays open).
    """

    def start(self, question: str) -> tuple[str, tuple[str, ...]]:
        """The puzzle and no rows."""
        return sudoku.parse_question(question), ()

    def advance(self, state: Any, step: str) -> tuple[Any, float]:
        """Sound if the row is a permutation, keeps its clues and fits the columns and boxes of what stands."""
        puzzle, above = state
        side, index = math.isqrt(len(puzzle)), len(above)
        row = re.sub(r"\s", "", step)
        refused = (puzzle, (*above, "0" * side))
        if index >= side or sorted(row) != list(sudoku.digits_of(side)):
            return refused, WRONG
        first = side * index
        clues = puzzle[first : first + side]
        if any(clue not in ("0", cell) for clue, cell in zip(clues, row, strict=True)):
            return refused, WRONG
        # What stands: the rows above as they were accepted, this one, and the clues below.
        cells = "".join(above) + row + puzzle[first + side :]
        if any(cells[first + i] == cells[other] for i in range(side) for other in sudoku.peers(side)[first + i]):
            return refused, WRONG
        return (puzzle, (*above, row)), SOUND

    def is_complete(self, state: Any) -> bool:
        """Whether all rows were accepted."""
        puzzle, above = state
        side = math.isqrt(len(puzzle))
        return len(above) == side and "0" * side not in above

    def partial(self, question: str, text: str, hole: str) -> float:
        """Of a grid some of whose characters are not known: 0.0 if a clue, the form or a unit is violated, else 1.0."""
        cells = list(sudoku.parse_question(question))
        side = math.isqrt(len(cells))
        grid = text[:-1] if len(text) == side * (side + 1) and text[-1] == hole else text
        rows = [grid[i : i + side] for i in range(0, len(grid), side + 1)]
        breaks = grid[side :: side + 1]
        if len(grid) != side * (side + 1) - 1 or any(between not in (hole, "\n") for between in breaks):
            return WRONG
        digits = sudoku.digits_of(side)
        for i, written in enumerate("".join(rows)):
            if written != hole:
                if written not in digits or cells[i] not in ("0", written):
                    return WRONG
                cells[i] = written
        known = ([cells[i] for i in unit if cells[i] != "0"] for unit in sudoku.units(side))
        return SOUND if all(len(set(unit)) == len(unit) for unit in known) else WRONG
