"""Reading problems: JSON Lines, the benchmark files' own notations, one question from the command line, or generated.

Every row is read and checked before any work starts; what is wrong with a file is said line by line, all of it at once.
Completions are read in all the forms that `lockstitch grade` knows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lockstitch.rewards.contract import completion_texts
from lockstitch.rewards.problem import Problem
from lockstitch.rewards.tasks.completions import LIST, Completed, asked, read_completions
from lockstitch.rewards.tasks.golds import unreadable
from lockstitch.rewards.tasks.task import Task, held_out_problems

from lockstitch.files import each_row, numbered_rows


@dataclass(frozen=True)
class Given:
    """A problem with, where they were sampled elsewhere, its completions.

    Attributes:
        problem: what is asked.
        completions: what was answered, one or more, or None.
        line: where it stands in its file, 0 if in none.
        fault: why right and wrong cannot be told though there is a gold answer, or None.
    """

    problem: Problem
    completions: tuple[str, ...] | None = None
    line: int = 0
    fault: str | None = None


def _given(line: int, row: Mapping[str, Any], task: Task) -> Given:
    problem = asked(row, task.read_row)
    return Given(problem, None, line, unreadable(task.judge_name, problem.columns or {}))


def read_problems(path: Path, task: Task) -> list[Given]:
    """The problems of a file.

    Raises `ValueError` naming every bad line (the first ten in full), or a file without rows.
    """
    if not path.is_file():
        raise ValueError(f"input {str(path)!r} is not a file")
    numbered = ((line, row if isinstance(row, str) else (line, row)) for line, row in numbered_rows(path))
    return [given for _, given in each_row(path, numbered, lambda one: _given(*one, task))]


def read_trajectories(path: Path, task: Task, column: str | None = None) -> list[Given]:
    """The problems of a file with their completions. Rows of one completion each are one problem if they ask the same.

    Args:
        path: the file; see `lockstitch.rewards.tasks.completions`.
        task: what was asked.
        column: the column of the completions, if it has no name that is known.

    Raises:
        ValueError: no such file or column, and every bad line.
    """

    def read(row: Completed) -> tuple[Given, bool]:
        given = _given(row.line, row.columns, task)
        if row.wrong:
            raise ValueError(row.wrong)
        texts = completion_texts(row.completions)
        if row.column == LIST and not all(text.strip() for text in texts):
            raise ValueError(f"{LIST!r} holds something that is not a non-empty text")
        return replace(given, completions=tuple(texts)), row.several

    found: list[Given] = []
    of: dict[tuple[str, str | None], int] = {}
    for _, (given, several) in each_row(path, read_completions(path, task.judge_name, column, LIST), read):
        key = (given.problem.question, given.problem.answer)
        if several or key not in of:
            of.setdefault(key, len(found))
            found.append(given)
            continue
        earlier = found[of[key]]
        found[of[key]] = replace(earlier, completions=(*(earlier.completions or ()), *(given.completions or ())))
    return found


def generate_problems(task: Task, count: int, seed: int) -> list[Given]:
    """Held-out problems, none of which any training run of this project can have seen."""
    return [Given(problem) for problem in held_out_problems(task, count, seed)]
