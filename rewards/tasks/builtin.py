"""The tasks that come with the package: where their rows are, how a model is asked, what pays, what is read, what a step is.

`notations.py` reads the rows of public files, `rows.py` fetches them; Reasoning Gym's generators are in
`reasoning_gym_task.py`. Questions of puzzles have one canonical text per task.
"""

import functools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from lockstitch.rewards.extract import last_marked
from lockstitch.rewards.marks import without_special_tokens
from lockstitch.rewards.mathematics.equations import EquationChecker
from lockstitch.rewards.mathematics.reading import read_answer, read_gold
from lockstitch.rewards.problem import Problem
from lockstitch.rewards.programs.code_extract import extract_code
from lockstitch.rewards.puzzle_rewards import countdown_question, sudoku_question
from lockstitch.rewards.puzzles import arithmetic, countdown, digging, sudoku
from lockstitch.rewards.puzzles.checkers import ArithmeticChecker, CountdownChecker, SudokuChecker
from lockstitch.rewards.puzzles.forms import last_result, read_number_row, read_sudoku_row
from lockstitch.rewards.puzzles.reading import read_expression, read_grid
from lockstitch.rewards.tasks.notations import read_humaneval_row, read_math_row, read_mbpp_row, read_svamp_row
from lockstitch.rewards.tasks.task import (
    D1_TAG_REWARDS,
    TAGS,
    Row,
    Source,
    Task,
    Weighted,
    held_out_problems,
    instructions,
    training_problems,
)

# --- how one asks ----------------------------------------------------------------------------------------------------

_CHAIN = "Solve this. In a chain such as `12, +7, -5` the operations apply one by one, from left to right."
_COUNTDOWN = (
    "Find an expression whose value is the target. It uses each of the numbers exactly once, with + - * / and "
    "parentheses."
)
_SUDOKU = (
    "Solve this 4x4 Sudoku, given as 16 digits, row by row, with 0 for an empty cell: each row, each column and each 2x2 "
    "box holds 1, 2, 3 and 4 once."
)
_SUDOKU9 = (
    "Solve this Sudoku, given as 81 digits, row by row, with 0 for an empty cell: each row, each column and each 3x3 box "
    "holds each digit from 1 to 9 once."
)


def _countdown_words(question: str) -> str:
    numbers, _, target = question.partition("=")
    return f"Numbers: [{numbers.replace(',', ', ')}]\nTarget: {target}"


# --- math ------------------------------------------------------------------------------------------------------------


def math_gold(columns: Row) -> str | None:
    """The gold answer as math rewards read it; None where there is none, or none that they can read."""
    return read_gold(columns.get("answer"))


def boxed(answer: str) -> str:
    """A completion that is nothing but a math answer."""
    return rf"\boxed{{{answer}}}"


def has_gold(problem: Problem) -> bool:
    """Whether the gold answer is known."""
    return problem.answer is not None


def _math(
    name: str,
    sources: Mapping[str, Source],
    read: Callable[[Row], dict[str, Any]] = read_math_row,
    tag_rewards: tuple[Weighted, ...] = (("boxed_answer", 0.25),),
) -> Task:
    return Task(
        name,
        (("math", 1.0),),
        sources,
        read,
        instructions=instructions("Solve this problem.", "the final answer", box=True),
        tag_rewards=tag_rewards,
        extract=read_answer,
        write_answer=boxed,
        gold=math_gold,
        is_judged=has_gold,
        unit="sentence",
        checker=EquationChecker(),
    )


# --- programs --------------------------------------------------------------------------------------------------------


def read_program(text: str) -> str | None:
    """The program of a completion; None if there is none."""
    return extract_code(text).strip("\n") or None


def fenced(program: str) -> str:
    """A completion that is nothing but a program."""
    return f"```python\n{program}\n```"


def _code(
    name: str,
    sources: Mapping[str, Source],
    read: Callable[[Row], dict[str, Any]],
    job: str,
    solution: tuple[str, ...],
) -> Task:
    words = {
        "tags": TAGS.format(job=job, answer="```python\nthe program\n```"),
        "fenced": f"{job} Answer with the whole program in one Markdown code block that begins with ```python.",
    }

    def solved(columns: Row) -> str | None:
        parts = [columns.get(part) for part in solution]
        return fenced("".join(map(str, parts)).strip("\n")) if all(parts) else None

    return Task(
        name,
        (("code", 1.0),),
        sources,
        read,
        instructions=words,
        tag_rewards=D1_TAG_REWARDS,
        extract=read_program,
        write_answer=fenced,
        gold=lambda columns: None,
        solution=solved,
        unit="line",
        question=lambda columns: str(
            columns["question"]
        ),  # to the letter: what completes a function begins on a new line
    )


# --- puzzles ---------------------------------------------------------------------------------------------------------


def _puzzle(task: Task) -> Task:
    """A task whose problems can be made up: besides the public ones there are `held_out` and `train`, which never meet."""

    def rows(make: Callable[[Task, int, int], Iterable[Problem]], count: int, seed: int) -> list[dict[str, Any]]:
        return [
            {"question": problem.question, "answer": problem.answer, "solution": problem.solution}
            for problem in make(task, count, seed)
        ]

    made = {"held_out": held_out_problems, "train": training_problems}
    generated = {split: Source(generate=functools.partial(rows, make)) for split, make in made.items()}
    return replace(task, sources={**task.sources, **generated})


def marked(answer: str) -> str:
    """A completion that is nothing but a puzzle's answer."""
    return f"#### {answer}"


def _with_question(question: Callable[[Row], str]) -> Callable[[Row], dict[str, Any]]:
    return lambda row: {**row, "question": question(row)}


def _worked(columns: Row) -> str | None:
    """The worked solution of a row; a bare answer is none."""
    solution = columns.get("solution")
    return solution if isinstance(solution, str) and solution else None


def _generate_arithmetic(rng: random.Random, held_out: bool) -> Problem:
    if rng.random() < 0.15:
        return arithmetic.generate_word_problem(rng, rng.choice((1, 2, 2)), held_out=held_out)
    return arithmetic.generate_chain(rng, rng.choice((1, 2, 2, 3, 3, 4, 4, 5)), held_out=held_out)


# --- the list --------------------------------------------------------------------------------------------------------


def _tasks() -> Iterator[Task]:
    yield _math(
        "gsm8k",
        {
            "test": Source(1319, "openai/gsm8k", "main", "test", "gsm8k/test.jsonl"),
            "train": Source(7473, "openai/gsm8k", "main", "train", "gsm8k/train.jsonl"),
        },
        tag_rewards=D1_TAG_REWARDS,
    )
    yield _math("math500", {"test": Source(500, "HuggingFaceH4/MATH-500", file="math500/test.jsonl")})
    yield _math(
        "aime",
        {
            "2024": Source(30, "HuggingFaceH4/aime_2024", split="train", file="aime/aime24.jsonl"),
            "2025": Source(30, "math-ai/aime25", file="aime/aime25.jsonl"),
        },
    )
    yield _math("amc", {"2023": Source(40, "math-ai/amc23", file="aime/amc23.jsonl")})
    yield _math(
        "svamp",
        {
            "test": Source(300, "ChilleD/SVAMP", file="svamp/test.jsonl"),
            "train": Source(700, "ChilleD/SVAMP", split="train", file="svamp/train.jsonl"),
        },
        read_svamp_row,
    )
    yield _code(
        "humaneval",
        {"test": Source(164, "openai/openai_humaneval", "openai_humaneval", "test", "humaneval/HumanEval.jsonl")},
        read_humaneval_row,
        "Complete this Python function.",
        ("code_prompt", "canonical_solution"),
    )
    yield _code(
        "mbpp",
        {
            "test": Source(500, "google-research-datasets/mbpp", "full", "test", "mbpp/mbpp.jsonl"),
            "train": Source(374, "google-research-datasets/mbpp", "full", "train"),
            "sanitized": Source(257, "google-research-datasets/mbpp", "sanitized", "test", "mbpp/sanitized-mbpp.json"),
        },
        read_mbpp_row,
        "Write this Python program.",
        ("code",),
    )
    yield _puzzle(
        Task(
            "countdown",
            (("countdown", 1.0),),
            {"d1": Source(256, file="countdown/countdown_cd3_test.jsonl")},
            read=_with_question(countdown_question),
            plain=countdown.prompt,
            statement=countdown.prompt,
            instructions=instructions(_COUNTDOWN, "the expression alone", box=True),
            ask=_countdown_words,
            tag_rewards=D1_TAG_REWARDS,
            extract=lambda text: read_expression(without_special_tokens(text)),
            write_answer=marked,
            solution=_worked,
            unit="line",
            checker=CountdownChecker(),
            conclude=countdown.conclude,
            spell_out=countdown.spell_out,
            write_step=countdown.write_step,
            canvas_length=26,
            embedded=True,
            generate=lambda rng, held_out: countdown.generate(rng, held_out=held_out),
        )
    )
    yield _puzzle(
        Task(
            "sudoku",
            (("sudoku", 1.0), ("sudoku_cells", 1.0)),
            {"d1": Source(500, file="sudoku/4x4_test_sudoku.csv")},
            read=_with_question(sudoku_question),
            plain=sudoku.prompt,
            statement=sudoku.prompt,
            instructions=instructions(_SUDOKU, "the 16 digits of the solved grid"),
            tag_rewards=D1_TAG_REWARDS,
            extract=lambda text: read_grid(without_special_tokens(text)),
            write_answer=marked,
            gold=lambda columns: read_sudoku_row(columns).answer,
            solution=_worked,
            unit="row",
            checker=SudokuChecker(),
            conclude=sudoku.conclude,
            spell_out=sudoku.spell_out,
            canvas_length=20,
            embedded=True,
            generate=lambda rng, held_out: sudoku.generate(rng, held_out=held_out),
        )
    )
    yield _puzzle(
        Task(
            "sudoku9",
            (("sudoku", 1.0), ("sudoku_cells", 1.0)),
            {"hard": Source(1000, file="sudoku9/hard_first_1000.csv")},
            read=_with_question(lambda row: sudoku_question(row, 9)),
            plain=lambda question: "\n",
            cloze=sudoku.cloze,
            statement=sudoku.prompt,
            instructions=instructions(_SUDOKU9, "the 81 digits of the solved grid"),
            tag_rewards=D1_TAG_REWARDS,
            extract=lambda text: read_grid(without_special_tokens(text)),
            write_answer=marked,
            gold=lambda columns: read_sudoku_row(columns).answer,
            solution=_worked,
            unit="row",
            checker=SudokuChecker(),
            conclude=sudoku.conclude,
            canvas_length=89,
            generate=lambda rng, held_out: digging.generate(rng, held_out=held_out),
        )
    )
    yield _puzzle(
        Task(
            "arithmetic",
            (("arithmetic", 1.0),),
            read=_with_question(lambda row: read_number_row(row).question),
            plain=arithmetic.prompt,
            instructions=instructions(_CHAIN, "the result"),
            tag_rewards=D1_TAG_REWARDS,
            extract=lambda text: last_marked(without_special_tokens(text)),
            write_answer=marked,
            gold=lambda columns: read_number_row(columns).answer,
            is_judged=lambda problem: has_gold(problem) or arithmetic.solve_chain(problem.question) is not None,
            solution=_worked,
            unit="line",
            checker=ArithmeticChecker(),
            conclude=last_result,
            canvas_length=48,
            embedded=True,
            generate=_generate_arithmetic,
        )
    )


TASKS = {task.name: task for task in _tasks()}
