"""Completions of a file of rows, in the forms that other programs and our own commands write.

| who writes it | where the completions are |
|---|---|
| anybody, TRL | `completion`, `response` or `output`: a text, or a list of messages; `completions`: a list of these |
| HumanEval, EvalPlus | `completion` or, for programs, `solution`, beside `task_id` |
| lm-eval's `--log_samples` | `resps`, lists in a list, beside `doc`, whose columns are the row's own |
| `lockstitch sample` and `stitch` | `trajectories`, each with its `text`; the `methods` of `stitch` by their names |

Which column it is, is decided once for a whole file. Left out: what completions are worth, which is `grade.py`'s business.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lockstitch.rewards.contract import Completion

from lockstitch import files

Row = Mapping[str, Any]

LIST = "completions"
NAMES = ("completion", "response", "output", LIST)
PROGRAMS = "solution"  # EvalPlus's name, which elsewhere is that of a gold answer
TRAJECTORIES, HARNESS = "trajectories", "resps"
SINGLE = ("completion", "response", "output", PROGRAMS)  # no lists, but where --column says so
# What goes with the completions and is not of the row's own, by their column.
_BESIDE = {TRAJECTORIES: ("evidence", "methods"), HARNESS: ("filtered_resps", "doc")}


@dataclass(frozen=True)
class Completed:
    """A row of a file with its completions.

    Attributes:
        line: where it stands: the line of the file, or its place in an array or a table.
        columns: its other columns.
        completions: one or several.
        several: whether the file has them as a list.
        column: what their column is called.
        wrong: why there are none; empty if there are.
    """

    line: int
    columns: Row
    completions: tuple[Completion, ...]
    several: bool
    column: str
    wrong: str = ""


def read_completions(
    path: Path, judge: str | None = None, column: str | None = None, usual: str = NAMES[0]
) -> list[tuple[int, Completed | str]]:
    """The rows of a file with their completions: (line, row or what is wrong with it), as `files.each_row` takes them.

    Args:
        path: JSON Lines, a JSON array, CSV or parquet.
        judge: the plug-in name of what judges them, if it has one: what its tasks call their own columns is no completion.
        column: the column of the completions; by default the one of the known names that is there. In the results of
            `lockstitch stitch` also the name of a method.
        usual: the column that is missed where there is none.

    Raises:
        ValueError: what is no such file; a column of the caller's that is not there; two columns that could be meant.
    """
    if not path.is_file():
        raise ValueError(f"input {str(path)!r} is not a file")
    numbered = list(files.numbered_rows(path))
    found = [row for _, row in numbered if not isinstance(row, str)]
    name = column or find_column(path, found, judge, usual)
    if column is not None and found and not any(column in row or column in _methods(row) for row in found):
        raise ValueError(f"no row of {path} has a column {column!r}; there are {_listed(found)}")
    lists = column is not None or name not in SINGLE
    rows = [(line, row if isinstance(row, str) else _completed(line, row, name, lists)) for line, row in numbered]
    return _of_one_filter(rows) if name == HARNESS else rows


def find_column(path: Path, rows: Sequence[Row], judge: str | None = None, usual: str = NAMES[0]) -> str:
    """The column of a file's completions, `usual` if there is none; `ValueError` for two of them, naming both."""
    names = {name for row in rows for name, value in row.items() if value not in (None, "")}
    candidates = [name for name in NAMES if name in names]
    if judge == "countdown" and "input" in names:  # d1's file has the target there
        candidates = [name for name in candidates if name != "output"]
    if judge == "code" and PROGRAMS in names:
        candidates.append(PROGRAMS)
    if HARNESS in names and any(isinstance(row.get("doc"), Mapping) for row in rows):
        candidates.append(HARNESS)
    if any(_holds_trajectories(row) for row in rows):
        candidates.append(TRAJECTORIES)
    if len(candidates) > 1:
        raise ValueError(
            f"{path} has {_and(candidates)}, each of which could be the completions: say which by --column"
        )
    empty = [name for name in NAMES if any(name in row for row in rows)]
    return next(iter([*candidates, *empty]), usual)


def _holds_trajectories(row: Row) -> bool:
    found = row.get(TRAJECTORIES)
    return isinstance(found, list) and bool(found) and all(isinstance(one, Mapping) and "text" in one for one in found)


def _methods(row: Row) -> Mapping[str, Any]:
    """The methods in a row of `lockstitch stitch`, which have no column each but are named like one."""
    methods = row.get("methods")
    return methods if isinstance(methods, Mapping) and TRAJECTORIES in row else {}


def _listed(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in (*row, *_methods(row))))
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(map(repr, names[:20])) + more


def _and(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:-1])) + f" and {names[-1]!r}"


# --- one row ---------------------------------------------------------------------------------------------------------


def _completed(line: int, row: Row, name: str, lists: bool) -> Completed:
    """A row with its completions, or with what is wrong with them."""
    try:
        return Completed(line, *_parts(row, name, lists), name)
    except ValueError as error:
        return Completed(line, row, (), False, name, str(error))


def _parts(row: Row, name: str, lists: bool) -> tuple[Row, tuple[Completion, ...], bool]:
    """A row's other columns, its completions, and whether they are a list; `ValueError` says what is wrong."""
    several = False
    if name in row:
        value = row[name]
        several = lists and _is_list(value)
        if name == LIST and not several:
            raise ValueError(f"no {name!r}: a non-empty list of completions is needed, not {value!r:.60}")
        completions = tuple(_in_list(name, value)) if several else (_one(name, value),)
    elif name in _methods(row):
        answer = _methods(row)[name].get("answer")
        completions = ("" if answer is None else f"<answer>{answer}</answer>",)
        name = TRAJECTORIES
    else:
        raise ValueError(f"no {name!r} (nor completions in another column that is known; --column names one)")
    beside = _BESIDE.get(name, ())
    columns = {other: value for other, value in row.items() if other != name and other not in beside}
    doc = row.get("doc") if name == HARNESS else None
    return {**columns, **(doc if isinstance(doc, Mapping) else {})}, completions, several


def _is_list(value: Any) -> bool:
    """Whether it is a list of completions: a list of messages is one completion, and an empty list is none."""
    return isinstance(value, list) and bool(value) and not all(_is_message(one) for one in value)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and ("role" in value or "content" in value)


def _in_list(name: str, values: Sequence[Any]) -> list[Completion]:
    """The completions of a list; lm-eval has a list for each of its requests. `ValueError` for what is none."""
    found: list[Completion] = []
    for value in values:
        if isinstance(value, Mapping) and isinstance(value.get("text"), str):
            found.append(value["text"])
        elif name == HARNESS and _is_list(value):
            found += [_one(name, one) for one in value]  # no deeper: pairs in there are log-likelihoods
        else:
            found.append(_one(name, value))
    return found


def _one(name: str, value: Any) -> Completion:
    """A text, or a conversation whose last message can be read."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise ValueError(f"{name!r} is neither a text nor a list of messages: {value!r:.60}")
    content = value[-1].get("content")
    parts = content if isinstance(content, list) else []
    if not isinstance(content, str | list | None) or not all(
        isinstance(part, dict) and (part.get("type") != "text" or isinstance(part.get("text"), str)) for part in parts
    ):
        raise ValueError(f"the last message of {name!r} has no 'content' that is a text or a list of parts")
    return value


def _of_one_filter(rows: list[tuple[int, Completed | str]]) -> list[tuple[int, Completed | str]]:
    """lm-eval writes a problem once for each of its filters, with the same `resps`: those of the first filter."""
    first = next((row.columns.get("filter") for _, row in rows if isinstance(row, Completed)), None)
    return [(line, row) for line, row in rows if isinstance(row, str) or row.columns.get("filter") == first]


# --- its problem -----------------------------------------------------------------------------------------------------

Problem = TypeVar("Problem")


def asked(row: Row, read: Callable[[Row], Problem]) -> Problem:
    """`read(row)`, with what may stand in for columns that the row does not have.

    A row without a question may have it in its `prompt`; one of lm-eval its gold answer in `target`. Raises the
    `ValueError` of the row as it is if that does not help.
    """
    try:
        return read(row)
    except ValueError as error:
        stand_ins: dict[str, Any] = {}
        if not row.get("question") and not row.get("problem") and (prompt := _last_text(row.get("prompt"))):
            stand_ins["question"] = prompt
        if row.get("answer") is None and row.get("target") is not None and "doc_id" in row:
            stand_ins["answer"] = row["target"]
        if not stand_ins:
            raise
        try:
            return read({**row, **stand_ins})
        except ValueError:
            raise error from None


def _last_text(prompt: Any) -> str | None:
    """A prompt that is a text, or the last message of a conversation."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], Mapping):
        prompt = prompt[-1].get("content")
    return prompt if isinstance(prompt, str) and prompt.strip() else None
