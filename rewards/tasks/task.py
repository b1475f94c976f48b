"""The tasks: what is asked, how it is put to a model, what counts as right.

A `Task` is data and plain functions. Questions have one canonical text per task; `read_row` also takes the benchmark
files' own notations (`notations.py`; for puzzles, `puzzles/forms.py`). `generate` exists for tasks whose problems can be
made up without end.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lockstitch.rewards.extract import last_marked
from lockstitch.rewards.math_rewards import grade_math
from lockstitch.rewards.mathematics.equations import EquationChecker
from lockstitch.rewards.mathematics.reading import read_answer, read_gold
from lockstitch.rewards.problem import Problem
from lockstitch.rewards.puzzles import arithmetic, countdown, sudoku
from lockstitch.rewards.puzzles.checkers import ArithmeticChecker, CountdownChecker, SudokuChecker
from lockstitch.rewards.puzzles.forms import (
    arithmetic_is_correct,
    extract_expression,
    extract_grid,
    last_result,
    read_countdown_row,
    read_number_row,
    read_sudoku_row,
)
from lockstitch.rewards.steps import StepChecker
from lockstitch.rewards.tasks.notations import read_math_row, read_svamp_row

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Attributes:
        name: what `--task` calls it.
        prompt: question -> the text that a model completes.
        statement: question -> the text that a solver reads before the evidence.
        extract: completion -> its answer in canonical form, or None if it has none.
        is_correct: (question, gold answer or None, answer) -> whether it is right; None when that cannot be told.
        read_row: one row of a file -> `Problem`; `ValueError` says what is missing.
        unit: what one reasoning step is: `line`, `sentence` or `row`.
        checker: what a sound step is.
        conclude: steps -> the answer that they amount to, or None where only the completion's own words can tell.
        write_step: a step's text -> the form in which the task's completions write it.
        canvas_length: tokens that a completion of the embedded model takes, or None where there is no such model.
        generate: (rng, held_out) -> a new problem, or None for a fixed benchmark.
    """

    name: str
    prompt: Callable[[str], str]
    statement: Callable[[str], str]
    extract: Callable[[str], str | None]
    is_correct: Callable[[str, str | None, str], bool | None]
    read_row: Callable[[Row], Problem]
    unit: str
    checker: StepChecker
    conclude: Callable[[Sequence[str]], str | None]
    write_step: Callable[[str], str] = str.strip
    canvas_length: int | None = None
    generate: Callable[[random.Random, bool], Problem] | None = None


# --- arithmetic ------------------------------------------------------------------------------------------------------


def _generate_arithmetic(rng: random.Random, held_out: bool) -> Problem:
    if rng.random() < 0.15:
        return arithmetic.generate_word_problem(rng, rng.choice((1, 2, 2)), held_out=held_out)
    return arithmetic.generate_chain(rng, rng.choice((1, 2, 2, 3, 3, 4, 4, 5)), held_out=held_out)


# --- math ------------------------------------------------------------------------------------------------------------


def _read_math_problem(read: Callable[[Row], Row]) -> Callable[[Row], Problem]:
    def problem(row: Row) -> Problem:
        columns = read({"answer": None, **row})  # stitching does without a gold answer
        gold = columns["answer"]
        return Problem(columns["question"], read_gold(gold), None if gold is None else str(gold))

    return problem


def _math_is_correct(question: str, gold: str | None, answer: str) -> bool | None:
    value = grade_math([rf"\boxed{{{answer}}}"], [gold])[0].value
    return None if value is None else bool(value)


def _math_task(name: str, read: Callable[[Row], Row] = read_math_row) -> Task:
    return Task(
        name, lambda question: question + "\n", str.strip, read_answer, _math_is_correct, _read_math_problem(read),
        unit="sentence", checker=EquationChecker(), conclude=lambda steps: None,
    )  # fmt: skip


# --- the list --------------------------------------------------------------------------------------------------------

TASKS = {
    task.name: task
    for task in (
        Task(
            "arithmetic", arithmetic.prompt, str.strip, last_marked, arithmetic_is_correct, read_number_row,
            unit="line", checker=ArithmeticChecker(), conclude=last_result, canvas_length=48, generate=_generate_arithmetic,
        ),
        Task(
            "countdown", countdown.prompt, countdown.prompt, extract_expression,
            lambda question, gold, answer: countdown.is_solution(question, answer), read_countdown_row,
            unit="line", checker=CountdownChecker(), conclude=countdown.conclude, write_step=countdown.write_step,
            canvas_length=26,
            generate=lambda rng, held_out: countdown.generate(rng, held_out=held_out),
        ),
        Task(
            "sudoku", sudoku.prompt, sudoku.prompt, extract_grid,
            lambda question, gold, answer: sudoku.is_solution(question, answer), read_sudoku_row,
            unit="row", checker=SudokuChecker(), conclude=sudoku.conclude, canvas_length=20,
            generate=lambda rng, held_out: sudoku.generate(rng, held_out=held_out),
        ),
        *map(_math_task, ("gsm8k", "math500", "aime", "amc")),
        _math_task("svamp", read_svamp_row),
    )
}


def get_task(name: str) -> Task:
    """The task of that name; `ValueError` lists the known ones."""
    if name not in TASKS:
        raise ValueError(f"task {name!r} is not one of {', '.join(TASKS)}")
    return TASKS[name]


def held_out_problems(task: Task, count: int, seed: int) -> list[Problem]:
    """New problems, none of which any training run of this project can have seen; the same ones for the same seed."""
    return list(_generate(task, count, f"{task.name} held-out {seed}", held_out=True))


def training_problems(task: Task, count: int, seed: int) -> Iterator[Problem]:
    """New problems from the training side of the task's split; the same ones for the same seed."""
    return _generate(task, count, f"{task.name} {seed}", held_out=False)


def _generate(task: Task, count: int, seed: str, *, held_out: bool) -> Iterator[Problem]:
    if task.generate is None:
        raise ValueError(f"task {task.name!r} has a fixed set of problems: give them with --input FILE")
    rng = random.Random(seed)
    return (task.generate(rng, held_out) for _ in range(count))
