"""The benchmarks behind the tasks' names: where their rows are, how a model is asked, what pays and what is read.

A task has two sides. `task.py` says how its questions are reasoned about, step by step, which is stitching's business; a
`Benchmark` says what grading and training need (`benchmark.py`). `notations.py` reads its rows, `benchmark_rows.py`
fetches them; Reasoning Gym's generators are in `reasoning_gym_task.py`.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from lockstitch.rewards.marks import without_special_tokens
from lockstitch.rewards.mathematics.reading import read_answer
from lockstitch.rewards.plugins import nearest
from lockstitch.rewards.problem import Problem
from lockstitch.rewards.programs.code_extract import extract_code
from lockstitch.rewards.puzzle_rewards import countdown_question, sudoku_question
from lockstitch.rewards.puzzles.reading import read_expression, read_grid
from lockstitch.rewards.tasks.benchmark import D1_TAG_REWARDS, TAGS, Benchmark, Row, Source, Weighted, instructions
from lockstitch.rewards.tasks.notations import (
    read_humaneval_row,
    read_math_row,
    read_mbpp_row,
    read_svamp_row,
)
from lockstitch.rewards.tasks.reasoning_gym_task import GYM, gym_benchmark
from lockstitch.rewards.tasks.task import Task, get_task, held_out_problems, training_problems


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of that name, or `reasoning_gym:NAME`; `ValueError` lists the known ones and says the nearest."""
    if name.startswith(GYM):
        return gym_benchmark(name.removeprefix(GYM))
    if name not in BENCHMARKS:
        known = ", ".join([*BENCHMARKS, f"{GYM}NAME"])
        raise ValueError(f"task {name!r} is not one of {known}{nearest(name, BENCHMARKS)}")
    return BENCHMARKS[name]


# --- how one asks ----------------------------------------------------------------------------------------------------

_CHAIN = "Solve this. In a chain such as `12, +7, -5` the operations apply one by one, from left to right."
_COUNTDOWN = (
    "Find an expression whose value is the target. It uses each of the numbers exactly once, with + - * / and parentheses."
)
_SUDOKU = (
    "Solve this 4x4 Sudoku, given as 16 digits, row by row, with 0 for an empty cell: each row, each column and each 2x2 "
    "box holds 1, 2, 3 and 4 once."
)


def _countdown_words(question: str) -> str:
    numbers, _, target = question.partition("=")
    return f"Numbers: [{numbers.replace(',', ', ')}]\nTarget: {target}"


# --- the list --------------------------------------------------------------------------------------------------------


def _math(
    name: str, sources: Mapping[str, Source], read: Callable[[Row], dict[str, Any]] = read_math_row,
    tag_rewards: tuple[Weighted, ...] = (("boxed_answer", 0.25),),
) -> Benchmark:  # fmt: skip
    words = instructions("Solve this problem.", "the final answer", box=True)
    return Benchmark(name, sources, read, words, (("math", 1.0),), read_answer, tag_rewards)


def _code(name: str, sources: Mapping[str, Source], read: Callable[[Row], dict[str, Any]], job: str) -> Benchmark:
    words = {
        "tags": TAGS.format(job=job, answer="```python\nthe program\n```"),
        "fenced": f"{job} Answer with the whole program in one Markdown code block that begins with ```python.",
    }
    return Benchmark(name, sources, read, words, (("code", 1.0),), _read_program, D1_TAG_REWARDS)


def _read_program(text: str) -> str | None:
    return extract_code(text).strip("\n") or None


def _puzzle(
    name: str, public: Mapping[str, Source], question: Callable[[Row], str], words: Mapping[str, str],
    rewards: tuple[Weighted, ...], read: Callable[[str], str | None], ask: Callable[[str], str] = str,
) -> Benchmark:  # fmt: skip
    """A task whose problems can be made up: besides the public ones there are `held_out` and `train`, which never meet."""
    task = get_task(name)

    def rows(make: Callable[[Task, int, int], Iterable[Problem]], count: int, seed: int) -> list[dict[str, Any]]:
        return [{"question": problem.question, "answer": problem.answer} for problem in make(task, count, seed)]

    made = {"held_out": held_out_problems, "train": training_problems}
    generated = {split: Source(generate=functools.partial(rows, make)) for split, make in made.items()}
    return Benchmark(
        name, {**public, **generated}, lambda row: {**row, "question": question(row)}, words, rewards,
        lambda text: read(without_special_tokens(text)), D1_TAG_REWARDS, ask, task.prompt,
    )  # fmt: skip


def _benchmarks() -> Iterator[Benchmark]:
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
    )
    yield _puzzle(
        "countdown", {"d1": Source(256, file="countdown/countdown_cd3_test.jsonl")}, countdown_question,
        instructions(_COUNTDOWN, "the expression alone", box=True), (("countdown", 1.0),), read_expression, _countdown_words,
    )  # fmt: skip
    yield _puzzle(
        "sudoku", {"d1": Source(500, file="sudoku/4x4_test_sudoku.csv")}, sudoku_question,
        instructions(_SUDOKU, "the 16 digits of the solved grid"), (("sudoku", 1.0), ("sudoku_cells", 1.0)), read_grid,
    )  # fmt: skip
    arithmetic = get_task("arithmetic")
    yield _puzzle(
        "arithmetic", {}, lambda row: arithmetic.read_row(row).question,
        instructions(_CHAIN, "the result"), (("arithmetic", 1.0),), arithmetic.extract,
    )  # fmt: skip


BENCHMARKS = {benchmark.name: benchmark for benchmark in _benchmarks()}
