"""Reading problems: JSON Lines, the benchmark files' own notations, one question from the command line, or generated.

Every row is read and checked before any work starts; what is wrong with a file is said line by line, all of it at once.
"""

import csv
import io
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstitch.rewards.problem import Problem
from lockstitch.rewards.tasks import Task

SHOWN_ERRORS = 10


@dataclass(frozen=True)
class Given:
    """A problem with, where they were sampled elsewhere, its completions."""

    problem: Problem
    completions: tuple[str, ...] | None = None


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """(line number, row or what is wrong with the line) of a `.jsonl` or `.csv` file."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        yield from enumerate(csv.DictReader(io.StringIO(text)), start=2)
        return
    for number, line in enumerate(text.split("\n"), start=1):  # rows may hold U+2028, at which splitlines would split
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, f"not JSON ({error.msg} at column {error.colno})"
            continue
        yield number, row if isinstance(row, dict) else f"a JSON object is needed, not {type(row).__name__}"


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
    if not path.is_file():
        raise ValueError(f"input {str(path)!r} is not a file")
    given: list[Given] = []
    errors: list[str] = []
    for number, row in _rows(path):
        if isinstance(row, str):
            errors.append(f"line {number}: {row}")
            continue
        try:
            given.append(Given(task.read_row(row), _completions(row) if with_completions else None))
        except ValueError as error:
            errors.append(f"line {number}: {error}")
    if errors:
        more = f"\n  and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise ValueError(f"{path} has {len(errors)} bad lines:\n  " + "\n  ".join(errors[:SHOWN_ERRORS]) + more)
    if not given:
        raise ValueError(f"{path} holds no rows")
    return given


def generate_problems(task: Task, count: int, seed: int) -> list[Given]:
    """Held-out problems, none of which any training run of this project can have seen."""
    if task.generate is None:
        raise ValueError(f"task {task.name!r} has a fixed set of problems: give them with --input FILE")
    rng = random.Random(f"{task.name} held-out {seed}")
    return [Given(task.generate(rng, True)) for _ in range(count)]
