"""The benchmarks behind the tasks' names: where their rows are, how a model is asked, what pays and what is read.

A task has two sides. `task.py` says how its questions are reasoned about, step by step, which is stitching's business; a
`Benchmark` says what grading and training need: sources of rows, prompts in the forms that people use, rewards by their
plug-in names. `notations.py` reads its rows, `benchmark_rows.py` fetches them.

Forms: `tags` is d1's (arXiv 2504.12216), `<reasoning>` and `<answer>` blocks, in wording of our own; `boxed` asks for
`\\boxed{}`, `fenced` for a Markdown code block; `plain` is the bare question, as base models and the embedded ones read it.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lockstitch.rewards.marks import without_special_tokens
from lockstitch.rewards.mathematics.math_rewards import read_answer
from lockstitch.rewards.plugins import nearest
from lockstitch.rewards.problem import Problem
from lockstitch.rewards.programs.code_extract import extract_code
from lockstitch.rewards.puzzles.puzzle_rewards import countdown_question, read_expression, read_grid, sudoku_question
from lockstitch.rewards.tasks.notations import (
    read_humaneval_row,
    read_math_row,
    read_mbpp_row,
    read_svamp_row,
)
from lockstitch.rewards.tasks.task import Task, get_task, held_out_problems, training_problems

Row = Mapping[str, Any]
Weighted = tuple[str, float]
GYM = "reasoning_gym:"


@dataclass(frozen=True)
class Source:
    """Rows of a benchmark: on the hub, in a file, or made up.

    Attributes:
        rows: how many there are; None for as many as one asks for.
        hub: the data set's name there, or None.
        config: its configuration, or None if it has a single one.
        split: its split.
        file: where a folder of benchmark files has them, or None.
        generate: (count, seed) -> that many rows, or None.
    """

    rows: int | None = None
    hub: str | None = None
    config: str | None = None
    split: str = "test"
    file: str | None = None
    generate: Callable[[int, int], list[dict[str, Any]]] | None = None

    def arguments(self) -> dict[str, Any]:
        """What `datasets.load_dataset` is called with."""
        return {"path": self.hub, "name": self.config, "split": self.split}


@dataclass(frozen=True)
class Benchmark:
    """What grading and training need to know of a task.

    Attributes:
        name: what `--task` calls it.
        sources: name -> rows; the first is the usual one.
        read: a row -> its columns, `question` among them; `ValueError` says what is missing.
        instructions: form -> what stands above the question; `plain` has none and is always there.
        rewards: plug-in names with their weights. The first judges: 1.0 is right.
        extract: completion -> the answer that is read in it, or None.
        tag_rewards: what else pays if the form is `tags`.
        ask: question -> how it reads below an instruction.
        plain: question -> the prompt without one.
    """

    name: str
    sources: Mapping[str, Source]
    read: Callable[[Row], dict[str, Any]]
    instructions: Mapping[str, str]
    rewards: tuple[Weighted, ...]
    extract: Callable[[str], str | None]
    tag_rewards: tuple[Weighted, ...] = ()
    ask: Callable[[str], str] = field(default=str)
    plain: Callable[[str], str] = field(default=str)

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms that a prompt can have."""
        return (*self.instructions, "plain")

    def source(self, name: str | None = None) -> Source:
        """The source of that name, or the usual one; `ValueError` lists the known ones."""
        if name is not None and name not in self.sources:
            raise ValueError(f"source {name!r} of task {self.name!r} is not one of {', '.join(self.sources)}")
        return self.sources[name or next(iter(self.sources))]

    def prompt(self, question: str, form: str) -> str:
        """The text that asks a question; `ValueError` lists the known forms."""
        self.check_form(form)
        if form == "plain":
            return self.plain(question)
        return f"{self.instructions[form]}\n\n{self.ask(question)}"

    def rewards_for(self, form: str) -> tuple[Weighted, ...]:
        """The rewards for completions of prompts in that form, the judge first; `ValueError` lists the known forms."""
        self.check_form(form)
        return self.rewards + (self.tag_rewards if form == "tags" else ())

    def check_form(self, form: str) -> None:
        """Raises `ValueError` for a form that this benchmark does not have."""
        if form not in self.forms:
            raise ValueError(f"form {form!r} of task {self.name!r} is not one of {', '.join(self.forms)}")


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of that name, or `reasoning_gym:NAME`; `ValueError` lists the known ones and says the nearest."""
    if name.startswith(GYM):
        from lockstitch.rewards.tasks.reasoning_gym_task import gym_benchmark

        return gym_benchmark(name.removeprefix(GYM))
    if name not in BENCHMARKS:
        known = ", ".join([*BENCHMARKS, f"{GYM}NAME"])
        raise ValueError(f"task {name!r} is not one of {known}{nearest(name, BENCHMARKS)}")
    return BENCHMARKS[name]


# --- how one asks ----------------------------------------------------------------------------------------------------

_TAGS = "{job} Answer in exactly this form:\n<reasoning>\nyour reasoning\n</reasoning>\n<answer>\n{answer}\n</answer>"
D1_TAG_REWARDS = (("xml_count", 0.5), ("soft_format", 0.5), ("strict_format", 0.5))  # d1 weighs the answer twice as much
_CHAIN = "Solve this. In a chain such as `12, +7, -5` the operations apply one by one, from left to right."
_COUNTDOWN = (
    "Find an expression whose value is the target. It uses each of the numbers exactly once, with + - * / and parentheses."
)
_SUDOKU = (
    "Solve this 4x4 Sudoku, given as 16 digits, row by row, with 0 for an empty cell: each row, each column and each 2x2 "
    "box holds 1, 2, 3 and 4 once."
)


def instructions(job: str, what: str, *, box: bool = False) -> dict[str, str]:
    """The forms `tags` (the answer in a box within them, or bare) and `boxed` of a job whose answer is a short text."""
    return {
        "tags": _TAGS.format(job=job, answer=rf"\boxed{{{what}}}" if box else what),
        "boxed": rf"{job} Reason step by step, and put {what} in \boxed{{}}.",
    }


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
        "tags": _TAGS.format(job=job, answer="```python\nthe program\n```"),
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
