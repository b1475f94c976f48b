"""Fuzz: whatever the rows of a file hold, they are read or refused, without a crash and within a second."""

import functools
import random

import pytest
from hypothesis import strategies as st
from lockstitch.rewards.tasks.builtin import TASKS
from lockstitch.rewards.tasks.golds import unreadable
from lockstitch.rewards.tasks.reasoning_gym_task import read_gym_row
from test_fuzz_rewards import FRAGMENTS, fuzz, nothing_is_evaluated, timed

COLUMNS = (
    "question", "problem", "answer", "solution", "Body", "Question", "Answer", "numbers", "nums", "target", "input",
    "output", "puzzle", "Puzzle", "prompt", "code_prompt", "entry_point", "test", "text", "test_list", "metadata",
    "completion",
)  # fmt: skip
VALUES = [
    "How many?", "30,100,93=23", "3102200002100320", "12, +7", "#### 5", [30, 100, 93], 23, ["assert f(1) == 2"], "", None,
    -1, True, 1e999, {"source_dataset": "chain_sum"}, [{"role": "assistant", "content": "5"}], {"content": "5"}, [[]], {},
    [{"content": [{"type": "text", "text": "5"}]}], [{"content": [{"type": "text"}]}], [{"content": [5]}], [None, "x"],
    "\u2028", "\ud800", "٣٠,١=٥", 10**5000, 2.5, [2.5, "3", None], [10**5000], "0" * 5000, "9" * 5000 + ",1=1",
]  # fmt: skip


def row_of(seed):
    """A row of up to eight columns that are there for one benchmark or another, with values that may fit or not."""
    rng = random.Random(seed)
    return {
        name: rng.choice(VALUES) if rng.random() < 0.8 else "".join(rng.choices(FRAGMENTS, k=rng.randrange(30)))
        for name in rng.sample(COLUMNS, rng.randrange(9))
    }


ROWS = st.integers(0, 2**32).map(row_of)  # drawing each value by itself would take most of the time


def attempt(function, argument, says=""):
    """What the function returns in less than a second, or None if it refuses with a reason that says so much."""
    try:
        return timed(str(function), function, argument)
    except ValueError as error:
        if not str(error) or says not in str(error):
            raise AssertionError(f"{function} refuses {argument!r} without a good reason") from error
        return None


def check_row(row):
    """Every benchmark reads the row or refuses it; a row that is read has a question, which can be asked in every form."""
    with nothing_is_evaluated():
        for name, task in TASKS.items():
            columns = attempt(task.read, row)
            if columns is None:
                continue
            assert isinstance(columns["question"], str), name
            assert columns["question"].strip(), name
            for form in task.forms:
                assert isinstance(task.prompt(columns["question"], form), str)
            fault = attempt(functools.partial(unreadable, task.rewards[0][0]), columns)
            assert isinstance(fault, str | None)
            problem = attempt(task.read_row, row)
            assert problem is None or problem.question == columns["question"], name
        columns = attempt(read_gym_row, row)
        assert columns is None or isinstance(columns["metadata"], str)


def test_rows():
    fuzz(ROWS, check_row, 200)


@pytest.mark.slow
def test_rows_long():
    fuzz(ROWS, check_row, 10_000)
