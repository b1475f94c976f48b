"""What is graded: completions with the columns that rewards read, from the file's own rows or joined with the task's.

A row that has the task's columns is taken as it is. One that has not, but a `task_id` or an `id`, is joined with the
task's own row of that id: HumanEval's and EvalPlus's samples are such.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstitch.rewards.contract import RESERVED, Completion
from lockstitch.rewards.tasks.completions import Completed, asked
from lockstitch.rewards.tasks.golds import unreadable
from lockstitch.rewards.tasks.rows import load_rows
from lockstitch.rewards.tasks.task import Task

from lockstitch import files

Row = Mapping[str, Any]

IDS = ("task_id", "id")
OWN_IDS = ("task_id", "id", "unique_id", "ID")  # what benchmarks call theirs
_OURS = ("index", "sample", "answer", "right", "reward", "rewards", "seconds")  # columns of a results file


@dataclass(frozen=True)
class Answered:
    """A completion, with what was asked.

    Attributes:
        columns: the row's columns as the rewards get them.
        prompt: what was asked.
        completion: what was answered.
        problem: the same for all completions of one problem.
        kept: the columns of the file that the results keep.
        line: where the row stands in the file.
        fault: why no verdict is possible, or None.
    """

    columns: Row
    prompt: Any
    completion: Completion
    problem: str
    kept: Row
    line: int
    fault: str | None = None


def read_answered(
    path: Path,
    rows: Sequence[tuple[int, Completed | str]],
    task: Task,
    input_path: Path | None = None,
    source: str | None = None,
) -> list[Answered]:
    """Every completion of a file.

    Args:
        path: the file, for messages.
        rows: what `read_completions` found in it.
        task: what was asked.
        input_path: a file or folder with the task's own rows, which all rows are joined with; by default only those are
            that lack columns, with the rows of the folder that LOCKSTITCH_DATA names, or of the hub.
        source: which of the task's sources these are.

    Raises:
        ValueError: bad rows, by their lines: they have neither the task's columns nor an id that its rows have.
    """
    always = input_path is not None or source is not None
    own = None
    found = [row.columns for _, row in rows if isinstance(row, Completed)]
    if always or any(id_of(columns) is not None and _fails(columns, task) for columns in found):
        own = _OwnRows(task, input_path, source)

    def read(row: Completed) -> list[Answered]:
        if row.wrong:
            raise ValueError(row.wrong)
        return _answered(row, _columns(row.columns, task, own, always), task)

    return [one for _, some in files.each_row(path, rows, read) for one in some]


def _answered(row: Completed, columns: dict[str, Any], task: Task) -> list[Answered]:
    question = task.question(columns)
    prompt = columns.get("prompt") or question
    problem = json.dumps([question, str(columns.get("answer"))])
    fault = unreadable(task.judge_name, columns)
    if fault is not None and "answer" in columns:
        columns = {**columns, "answer": None}  # it is named already
    dropped = {*RESERVED, "completion", "prompt"}
    read = {name: value for name, value in columns.items() if name not in dropped}
    kept = files.kept_columns(row.columns, _OURS)
    return [
        Answered(read, prompt, completion, problem, {"sample": k, **kept} if row.several else kept, row.line, fault)
        for k, completion in enumerate(row.completions)
    ]


# --- the task's own rows ---------------------------------------------------------------------------------------------


def id_of(row: Row) -> tuple[str, Any] | None:
    """The column by which a row can be joined, with its value; None if it has none."""
    return next(((name, row[name]) for name in IDS if isinstance(row.get(name), str | int) and row[name] != ""), None)


def _fails(columns: Row, task: Task) -> bool:
    try:
        asked(columns, task.read)
    except ValueError:
        return True
    return False


def _columns(columns: Row, task: Task, own: "_OwnRows | None", always: bool) -> dict[str, Any]:
    """What the rewards read of a row; `ValueError` says what is missing."""
    found = id_of(columns)
    if not always:
        try:
            return asked(columns, task.read)
        except ValueError as error:
            if found is None or own is None:
                names = " or ".join(map(repr, IDS))
                raise ValueError(f"{error} (nor {names}, to join it with the task's own row)") from None
    if found is None:
        raise ValueError(f"no {' or '.join(map(repr, IDS))} to join it with the task's own row")
    assert own is not None
    return {**columns, **own.row(*found)}


class _OwnRows:
    """The rows of a task by their ids."""

    def __init__(self, task: Task, path: Path | None, source: str | None) -> None:
        chosen = task.source(source)
        if path is None and chosen.generate is not None:
            raise ValueError(
                f"task {task.name!r} makes its rows up, and none can be joined by its id: the file "
                "needs the columns of the problem"
            )
        self.task = task
        self.rows = load_rows(task, source=source, path=path, form="plain", conversational=False)
        self.of: dict[str, dict[str, dict[str, Any]]] = {}

    def row(self, name: str, value: Any) -> dict[str, Any]:
        """The columns of the row whose `name` has that value; `ValueError` if there is none."""
        there = [own for own in (name, *OWN_IDS) if own in self.rows[0]]
        if not there:
            raise ValueError(f"the rows of task {self.task.name!r} have no {name!r} to join {value!r} with")
        rows = self._by(there[0])
        if self._key(value) not in rows:
            raise ValueError(
                f"{name} {value!r} is none of task {self.task.name!r}, whose {len(self.rows)} rows have "
                f"{self.rows[0][there[0]]!r} and so on"
            )
        return rows[self._key(value)]

    def _by(self, name: str) -> dict[str, dict[str, Any]]:
        if name not in self.of:
            dropped = {"prompt"}
            self.of[name] = {
                self._key(row[name]): {column: value for column, value in row.items() if column not in dropped}
                for row in self.rows
            }
            if len(self.of[name]) < len(self.rows):
                raise ValueError(f"several rows of task {self.task.name!r} have the same {name!r}: it joins none")
        return self.of[name]

    def _key(self, value: Any) -> str:
        """An id as a text, without the name of the task in front: EvalPlus says Mbpp/2 for 2."""
        text = str(value)
        own = f"{self.task.name}/"
        return text[len(own) :] if text.casefold().startswith(own.casefold()) else text
