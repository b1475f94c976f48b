"""Reading problems: JSON Lines, the benchmark files' own notations, one question from the command line, or generated.

Every row is read and checked before any work starts; what is wrong with a file is said line by line, all of it at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstitch.rewards.problem import Problem
from lockstitch.rewards.tasks.task import Task, held_out_problems

from lockstitch.files import read_rows


@dataclass(frozen=True)
class Given:
    """A problem with, where they were sampled elsewhere, its completions."""

    problem: Problem
    completions: tuple[str, ...] | None = None


def _completions(row: Mapping[str, Any]) -> tuple[str, ...]:
    completions = row.get("completions")
    if not isinstance(completions, list) or not completions:
        raise ValueError("no 'completions': a non-empty list of texts is needed")
    if not all(isinstance(text, str) and text.strip() for text in completions):
        raise ValueError("'completions' holds something that is not a non-empty text")
    return tuple(completions)


def read_problems(path: Path, task: Task, *, with_completions: bool = False) -> list[Given]:
    """The problems of a file.

    Raises `ValueError` naming every bad line (the first ten in full), or a file without rows.
    """
    return read_rows(path, lambda row: Given(task.read_row(row), _completions(row) if with_completions else None))


def generate_problems(task: Task, count: int, seed: int) -> list[Given]:
    """Held-out problems, none of which any training run of this project can have seen."""
    return [Given(problem) for problem in held_out_problems(task, count, seed)]
