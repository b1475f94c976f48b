"""Rows of a task, from a file, a folder, the hub or a generator, with prompts: what trainers and samplers start from.

    rows = load_rows("gsm8k", source="train")
    Dataset.from_list(rows)  # `prompt`, and the columns that the task's rewards read

A benchmark that has another number of rows than it should is not that benchmark: from the hub it is refused, and for a local
file, which people cut on purpose, there is a warning.
"""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lockstitch.rewards.tasks.data import is_file_name, load_split
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.task import Source, Task

from lockstitch.files import read_rows

logger = logging.getLogger(__name__)

DATA_VARIABLE = "LOCKSTITCH_DATA"
_FILES = (".jsonl", ".json", ".csv")


def load_rows(
    name: str | Task,
    *,
    source: str | None = None,
    path: str | os.PathLike[str] | None = None,
    form: str | None = None,
    conversational: bool = True,
    count: int | None = None,
    seed: int = 0,
    rows: int | None = None,
    option: str = "count",
) -> list[dict[str, Any]]:
    """The rows of a task: `prompt`, and the task's columns by the names that the rewards know.

    Args:
        name: the task, or its name or place, as `get_task` takes it.
        source: which of the task's sources; the usual one by default.
        path: a file (JSON Lines, JSON array, CSV), a folder of benchmark files, or a copy of the hub's data set. By default
            the folder that LOCKSTITCH_DATA names, if it has the file, and else the hub.
        form: of the prompts; by default the task's first, `tags` or, where it has none, `plain`.
        conversational: whether prompts are lists of one message, or texts.
        count: how many: the first so many, or that many new ones where rows are generated.
        seed: of generated rows.
        rows: how many there must be before `count`; the published number by default. If this is given, nothing else will do.
        option: what `count` is called where it is said, for messages.

    Raises:
        ValueError: an unknown name; a row that cannot be read, by its line; a wrong number of rows; no place to read from.
    """
    task = get_task(name)
    form = form or task.forms[0]
    task.check_form(form)
    found = source_rows(task, source, path=path, count=count, seed=seed, rows=rows, option=option)
    return [with_prompt(task, row, form, conversational) for row in found]


def source_rows(
    task: Task,
    source: str | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    count: int | None = None,
    seed: int = 0,
    rows: int | None = None,
    option: str = "count",
) -> list[dict[str, Any]]:
    """The rows of a source as they stand there; arguments and errors are those of `load_rows`."""
    if count is not None and count < 1:
        raise ValueError(f"{option}={count} is not positive")
    chosen = task.source(source)
    if path is None and chosen.generate is not None:
        if count is None:
            raise ValueError(f"task {task.name!r} makes its rows up: say how many ({option})")
        return chosen.generate(count, seed)
    where, found = _read(task, chosen, path)
    _check_number(task, where, len(found), chosen.rows if rows is None else rows, strict=rows is not None)
    return found[:count]


def with_prompt(task: Task, row: Mapping[str, Any], form: str, conversational: bool = False) -> dict[str, Any]:
    """A row's columns with the task's prompt, a text or a conversation of one message; `ValueError` says what is missing."""
    columns = task.read(row)
    text = task.prompt(task.question(columns), form)
    return {**columns, "prompt": [{"role": "user", "content": text}] if conversational else text}


def local_rows(source: Source) -> Path | None:
    """Where this machine has a source's rows, when no path is given: None for the hub's, and for rows that are made up."""
    if source.data is not None:
        return Path(source.data)
    folder = os.environ.get(DATA_VARIABLE)
    file = Path(folder) / source.file if folder and source.file else None
    return file if file is not None and file.is_file() else None


def check_enough(option: str, wanted: int | None, there: int, where: str) -> None:
    """Raises `ValueError` where an option asks for more problems than there are; `where` says what holds how many."""
    if wanted is not None and wanted > there:
        raise ValueError(f"{option}={wanted} asks for more problems than there are: {where}")


def _read(task: Task, source: Source, path: str | os.PathLike[str] | None) -> tuple[Path | None, list[Any]]:
    """Where the rows are, None for the hub, and the rows, each of which can be read."""

    def checked(row: Mapping[str, Any]) -> Mapping[str, Any]:
        task.question(task.read(row))
        return row

    if path is None and source.data is not None:
        return Path(source.data), _own_rows(source.data, source, checked)
    if path is None:
        path = local_rows(source)
        if path is None:
            return None, _from_hub(task, source)
    path = Path(path)
    if path.is_dir() and source.file is not None and (path / source.file).is_file():
        path = path / source.file
    if path.is_dir():
        return path, load_split(str(path), source.split, source.config).to_list()
    if path.suffix not in _FILES:
        raise ValueError(f"{str(path)!r} is neither a folder nor a file that ends in {', '.join(_FILES)}")
    return path, read_rows(path, checked)


def _own_rows(data: str, source: Source, checked: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> list[Any]:
    """Rows of one's own data; what is wrong with the first of them is said in a line, as it is mostly wrong with all."""
    in_text = is_file_name(data) and not data.endswith(".parquet")
    rows = read_rows(Path(data), dict) if in_text else load_split(data, source.split, source.config).to_list()
    if not rows:
        raise ValueError(f"{data} holds no rows")
    checked(rows[0])
    if in_text:
        return read_rows(Path(data), checked)
    for number, row in enumerate(rows):
        try:
            checked(row)
        except ValueError as error:
            raise ValueError(f"row {number} of {data}: {error}") from error
    return rows


def _from_hub(task: Task, source: Source) -> list[Any]:
    if source.hub is None:
        raise ValueError(
            f"these rows of task {task.name!r} are not on the hub: name a file of them in its place, or set "
            f"{DATA_VARIABLE} to a folder that has {source.file}"
        )
    rows: list[Any] = load_split(source.hub, source.split, source.config).to_list()
    return rows


def _check_number(task: Task, where: Path | None, found: int, expected: int | None, *, strict: bool) -> None:
    if expected is None or found == expected:
        return
    text = f"{where or 'the hub'} holds {found} rows of task {task.name!r}, and {expected} are expected"
    if strict or where is None:
        raise ValueError(text)
    logger.warning("%s; what is measured on them is not comparable (rows=%d says that this is meant)", text, found)
