"""The completions that `log_completions` keeps: they can be written whatever is in them, and graded without the data set.

TRL writes a parquet table of prompts, completions, rewards and what rewards log. Half of a surrogate pair in one of the
texts, or values of two types in one column, would end the training there; and nothing would say which problems they are.
"""

import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lockstitch.files import kept_columns, whole_characters

_NOT_THE_ROWS = ("prompt", "completion", "completion_ids")


def writable(values: Iterable[Any]) -> list[Any]:
    """The values of a column as a table can hold them: characters that are none escaped, two types as texts."""
    whole = [_whole(value) for value in values]
    kinds = {_kind(value) for value in whole if value is not None}
    return [None if value is None else str(value) for value in whole] if len(kinds) > 1 else whole


def make_writable(column: "deque[Any]") -> None:
    """`writable`, in place."""
    values = writable(column)
    column.clear()
    column.extend(values)


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, Mapping):
        return {name: _whole(inner) for name, inner in value.items()}
    return [_whole(inner) for inner in value] if isinstance(value, list | tuple) else value


def _kind(value: Any) -> type:
    if isinstance(value, bool):
        return bool
    return float if isinstance(value, int | float) else type(value)


def plain_columns(inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The columns of the data set in a batch, without prompt and completion, and without what JSON cannot say (images)."""
    return [
        {name: value for name, value in row.items() if name not in _NOT_THE_ROWS and _is_plain(value)}
        for row in inputs
    ]


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str)


def add_columns(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds columns to a table that was written, a mapping for each of its rows; nothing where there are not as many rows."""
    from pyarrow import array, parquet

    table = parquet.read_table(path)
    if len(rows) != table.num_rows:
        return
    names = dict.fromkeys(name for row in rows for name in row)
    for name, kept in zip(names, kept_columns(names, table.column_names), strict=True):
        values = writable(row.get(name) for row in rows)
        table = table.append_column(kept, array(values))
    unfinished = path.with_suffix(".partial")
    parquet.write_table(table, unfinished)
    os.replace(unfinished, path)
