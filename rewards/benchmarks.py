"""The benchmarks behind the tasks' names: where their rows are, how a model is asked, what pays and what is read.

A task has two sides. `tasks.py` says how its questions are reasoned about, step by step, which is stitching's business; a
`Benchmark` says what grading and training need: sources of rows, prompts in the forms that people use, rewards by their
plug-in names. `notations.py` reads its rows, `benchmark_rows.py` fetches them.

Forms: `tags` is d1's (arXiv 2504.12216), `<reasoning>` and `<answer>` blocks, in wording of our own; `boxed` asks for
`\\boxed{}`, `fenced` for a Markdown code block; `plain` is the bare question, as base models and the embedded ones read it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from lockstitch.rewards.marks import without_special_tokens
from lockstitch.rewards.math_rewards import read_answer
from lockstitch.rewards.notations import (
    read_arithmetic_row,
    read_countdown_row,
    read_humaneval_row,
    read_math_row,
    read_mbpp_row,
    read_sudoku_row,
    read_svamp_row,
)
from lockstitch.rewards.plugins import nearest
from lockstitch.rewards.puzzle_rewards import read_expression, read_grid
from lockstitch.rewards.tasks import get_task, held_out_problems, training_problems

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
        from lockstitch.rewards.reasoning_gym_task import gym_benchmark

        return gym_benchmark(name.removeprefix(GYM))
    if name not in BENCHMARKS:
        known = ", ".join([*BENCHMARKS, f"{GYM}NAME"])
        raise ValueError(f"task {name!r} is not one of {known}{nearest(name, BENCHMARKS)}")
    return BENCHMARKS[name]


# --- how one asks ----------------------------------------------------------------------------------------------------

_TAGS = "{job} Answer in exactly this form:\n<reasoning>\nyour reasoning\n</reasoning>\n<answer>\n{answer}\n</answer>"
D1_TAG_REWARDS = (("xml_count", 0.5), ("soft_format", 0.5), ("strict_format", 0.5))  # d1 weighs the answer twice as much
_CHAIN = "Begin with the first number and apply the operations one by one, from left to right."
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


def _program(job: str) -> dict[str, str]:
    return {
        "tags": _TAGS.format(job=job, answer="```python\nthe program\n```"),
        "fenced": f"{job} Answer with the whole program in one Markdown code block that begins with ```python.",
    }


def _countdown_words(question: str) -> str:
    numbers, _, target = question.partition("=")
    return f"Numbers: [{numbers.replace(',', ', ')}]\nTarget: {target}"


# --- answers ---------------------------------------------------------------------------------------------------------


def _cleanly(read: Callable[[str], str | None]) -> Callable[[str], str | None]:
    return lambda text: read(without_special_tokens(text))


def _read_program(text: str) -> str | None:
    program: str = import_module("lockstitch.rewards.code_extract").extract_code(text)
    return program.strip("\n") or None


# --- the list --------------------------------------------------------------------------------------------------------


def _generated(name: str) -> dict[str, Source]:
    """Problems without end, of which the held-out ones never occur in training."""
    task = get_task(name)

    def rows(make: Callable[..., Any]) -> Callable[[int, int], list[dict[str, Any]]]:
        return lambda count, seed: [
            {"question": problem.question, "answer": problem.answer} for problem in make(task, count, seed)
        ]

    return {"held_out": Source(generate=rows(held_out_problems)), "train": Source(generate=rows(training_problems))}


def _math(name: str, sources: Mapping[str, Source], read: Callable[[Row], dict[str, Any]] = read_math_row,
          tag_rewards: tuple[Weighted, ...] = (("boxed_answer", 0.25),)) -> Benchmark:  # fmt: skip
    words = instructions("Solve this problem.", "the final answer", box=True)
    return Benchmark(name, sources, read, words, (("math", 1.0),), read_answer, tag_rewards)


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
    yield Benchmark(
        "humaneval",
        {"test": Source(164, "openai/openai_humaneval", "openai_humaneval", "test", "humaneval/HumanEval.jsonl")},
        read_humaneval_row, _program("Complete this Python function."), (("code", 1.0),), _read_program, D1_TAG_REWARDS,
    )  # fmt: skip
    yield Benchmark(
        "mbpp",
        {
            "test": Source(500, "google-research-datasets/mbpp", "full", "test", "mbpp/mbpp.jsonl"),
            "train": Source(374, "google-research-datasets/mbpp", "full", "train"),
            "sanitized": Source(257, "google-research-datasets/mbpp", "sanitized", "test", "mbpp/sanitized-mbpp.json"),
        },
        read_mbpp_row, _program("Write this Python program."), (("code", 1.0),), _read_program, D1_TAG_REWARDS,
    )  # fmt: skip
    yield Benchmark(
        "countdown",
        {"d1": Source(256, file="countdown/countdown_cd3_test.jsonl"), **_generated("countdown")},
        read_countdown_row, instructions(_COUNTDOWN, "the expression alone", box=True), (("countdown", 1.0),),
        _cleanly(read_expression), D1_TAG_REWARDS, _countdown_words, get_task("countdown").prompt,
    )  # fmt: skip
    yield Benchmark(
        "sudoku",
        {"d1": Source(500, file="sudoku/4x4_test_sudoku.csv"), **_generated("sudoku")},
        read_sudoku_row, instructions(_SUDOKU, "the 16 digits of the solved grid"),
        (("sudoku", 1.0), ("sudoku_cells", 1.0)), _cleanly(read_grid), D1_TAG_REWARDS, plain=get_task("sudoku").prompt,
    )  # fmt: skip
    yield Benchmark(
        "arithmetic", _generated("arithmetic"), read_arithmetic_row, instructions(_CHAIN, "the result"),
        (("arithmetic", 1.0),), _cleanly(get_task("arithmetic").extract), D1_TAG_REWARDS,
        plain=get_task("arithmetic").prompt,
    )  # fmt: skip


BENCHMARKS = {benchmark.name: benchmark for benchmark in _benchmarks()}
