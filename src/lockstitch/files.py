"""Files of rows, and the output directories of commands that take long.

What is read is read whole and checked before any work starts; what is wrong with a file is said line by line, all of it at
once. What is written is there whole or not at all, or grows by whole rows: a run that was interrupted goes on where it
stopped, and a directory that was made with another configuration, or that another process is writing into, is refused.
"""

import csv
import gzip
import hashlib
import io
import json
import math
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Row = Mapping[str, Any]
Read = TypeVar("Read")

CONFIG, RESULTS, SUMMARY = "config.json", "results.jsonl", "summary.json"
AHEAD = "ahead.jsonl"  # rows that were finished before their turn in the results
SHOWN_ERRORS = 10


# --- reading ---------------------------------------------------------------------------------------------------------


@contextmanager
def named_file(name: str) -> Iterator[Path]:
    """The file of that name, which may not be there; for `-` one with what standard input holds, JSON Lines, for a while."""
    if name != "-":
        yield Path(name)
        return
    with tempfile.TemporaryDirectory(prefix="lockstitch-") as folder:
        path = Path(folder) / "stdin.jsonl"
        path.write_bytes(sys.stdin.buffer.read())
        yield path


def numbered_rows(path: Path) -> Iterator[tuple[int, Row | str]]:
    """(line number, row or what is wrong with the line) of a `.jsonl` or `.csv` file; of a `.json` array or a `.parquet`
    table, the place among the rows.

    The first three may be compressed (`.gz`). A `.csv` file whose first line is whole numbers alone has no header: each row
    has the one column `cells`, a list of them. Raises `ValueError` for what cannot be taken apart into rows.
    """
    if path.suffix == ".parquet":
        yield from enumerate(_table(path), start=1)
        return
    lines = (
        _bytes_of(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    )  # rows may hold U+2028, at which splitlines splits
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix in (".csv", ".json"):
        bad = [f"line {number} is not UTF-8" for number, line in enumerate(lines, start=1) if _decoded(line) is None]
        if bad:
            raise ValueError(f"{path}: {bad[0]}")
        text = b"\n".join(lines).decode("utf-8")
        if suffix == ".csv":
            csv.field_size_limit(2**31 - 1)  # of a cell, which is a text here, and not 131,072 characters at most
            try:
                lists = csv.reader(io.StringIO(text, newline=""))
                first = next(lists, [])
                if len(first) > 1 and all(re.fullmatch(r"\d+", cell.strip(), re.ASCII) for cell in first):
                    yield 1, _numbers(first)
                    yield from ((number, _numbers(row)) for number, row in enumerate(lists, start=2) if row)
                    return
                reader = csv.DictReader(io.StringIO(text, newline=""))
                header = reader.fieldnames or []
                if twice := next((name for name in header if list(header).count(name) > 1), None):
                    raise ValueError(f"{path} has two columns {twice!r}")
                for number, row in enumerate(reader, start=2):
                    yield number, _sound(row) if None not in row else "more columns than the header has"
            except csv.Error as error:
                raise ValueError(f"{path} is no table: {error}") from error
            return
        array = _parsed(text)
        if not isinstance(array, list):
            raise ValueError(
                f"{path} holds no JSON array but {array if isinstance(array, str) else type(array).__name__}"
            )
        yield from ((number, _object(row)) for number, row in enumerate(array, start=1))
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        yield number, _line(line)


def _line(line: bytes) -> Row | str:
    """The JSON object that bytes hold, or what is wrong with them."""
    decoded = _decoded(line)
    return "not UTF-8" if decoded is None else _object(_parsed(decoded))


def _numbers(row: list[str]) -> Row | str:
    """A line of a table of whole numbers that has no header, as the column `cells`."""
    try:
        return {"cells": [int(cell) for cell in row]}
    except ValueError:
        return "not a line of whole numbers, as the first one is"


def _table(path: Path) -> list[Row]:
    """The rows of a parquet file, with what JSON cannot say as texts, and None for numbers that are none."""
    import pyarrow
    from pyarrow import parquet

    try:
        rows: list[Row] = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no parquet file that can be read: {str(error).splitlines()[0]}") from error
    return [_sayable(row) for row in rows]


def _sayable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _sayable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_sayable(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def _bytes_of(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not whole, or not compressed by gzip: {error}") from error


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _parsed(text: str) -> Any:
    """What a JSON text says, or in words why it says nothing."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno})"
    except RecursionError:
        return "JSON that is nested too deeply"
    except ValueError as error:  # a number of more digits than Python converts
        return f"not JSON ({error})"


def is_text(value: str) -> bool:
    """Whether a text can be written and named: half of a pair of surrogates and the null byte cannot."""
    try:
        return "\0" not in value and bool(value.encode("utf-8") or True)
    except UnicodeEncodeError:
        return False


def _object(row: Any) -> Row | str:
    if isinstance(row, str) and row.startswith(("not JSON", "JSON that is")):
        return row
    return _sound(row) if isinstance(row, dict) else f"a JSON object is needed, not {type(row).__name__}"


def _sound(row: Row) -> Row | str:
    """The row, or what is wrong with it: what cannot be written again, as half of a pair of surrogates is no character."""
    try:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is no character"
    except ValueError:
        return "holds NaN or Infinity, which is no number of JSON: null, or leave it out"
    except RecursionError:
        return "JSON that is nested too deeply"
    return row


def read_rows(path: Path, read: Callable[[Row], Read]) -> list[Read]:
    """`read(row)` for every row of a file.

    Raises `ValueError` for what is no file or holds no rows, and naming every bad line (the first ten in full): one that
    is no row, or for which `read` raises `ValueError`.
    """
    if not path.is_file():
        raise ValueError(f"input {str(path)!r} is not a file")
    return [value for _, value in each_row(path, numbered_rows(path), read)]


Given = TypeVar("Given")


def each_row(
    path: Path, rows: Iterable[tuple[int, Given | str]], read: Callable[[Given], Read]
) -> list[tuple[int, Read]]:
    """(line number, `read(row)`) for every numbered row of a file; what `read_rows` raises, this does.

    A row that is a text is what is wrong with the line.
    """
    read_so_far: list[tuple[int, Read]] = []
    errors: list[str] = []
    for number, row in rows:
        if isinstance(row, str):
            errors.append(f"line {number}: {row}")
            continue
        try:
            read_so_far.append((number, read(row)))
        except ValueError as error:
            errors.append(f"line {number}: {error}")
    if errors:
        more = f"\n  and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise ValueError(f"{path} has {len(errors)} bad lines:\n  " + "\n  ".join(errors[:SHOWN_ERRORS]) + more)
    if not read_so_far:
        raise ValueError(f"{path} holds no rows")
    return read_so_far


def kept_columns(row: Row, taken: Iterable[str]) -> dict[str, Any]:
    """A row's columns as a result keeps them: with `input_` before names that the result needs for its own."""
    kept: dict[str, Any] = {}
    for name, value in row.items():
        new = name
        while new in taken or (new != name and new in row):
            new = f"input_{new}"
        kept[new] = value
    return kept


def sha256(*paths: Path) -> str:
    """The SHA-256 of what files hold, one behind another."""
    found = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(2**20):  # weights need not fit into memory once more
                found.update(part)
    return found.hexdigest()


# --- writing ---------------------------------------------------------------------------------------------------------


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(partial, path)


def whole_characters(text: str) -> str:
    """A text that can be written: half of a surrogate pair is no character, and becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def to_json(value: Mapping[str, Any]) -> str:
    """Readable JSON with a last newline."""
    return json.dumps(dict(value), indent=2, ensure_ascii=False) + "\n"


def claim_directory(directory: Path, config: Mapping[str, Any], results: Sequence[str] = (RESULTS, AHEAD)) -> None:
    """Makes an output directory this configuration's and this process's own; `ValueError` names what stands against it.

    A directory without any of the files `results` is any configuration's.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock(directory)
    path = directory / CONFIG
    started = any((directory / name).exists() for name in results)
    if started and not path.exists():
        raise ValueError(f"{directory} holds {results[0]} without {CONFIG}; choose another output")
    if started:
        earlier = _line(path.read_bytes())
        if isinstance(earlier, str):
            raise ValueError(f"{path}: {earlier}; choose another output")
        names = sorted(set(earlier) | set(config))
        changed = [name for name in names if earlier.get(name) != config.get(name)]
        if changed:
            shown = ", ".join(f"{name}: {earlier.get(name)!r} then, {config.get(name)!r} now" for name in changed)
            raise ValueError(f"{directory} holds results of another configuration ({shown}); choose another output")
    else:
        write_whole(path, to_json(config))


_LOCKS: dict[Path, int] = {}  # directories that are held open: their locks end with this process, however it ends


def lock(directory: Path) -> None:
    """Keeps other processes from writing into a directory until this one ends; `ValueError` if another one does.

    Where the file system has no locks there is none, in silence: nothing is worse than before.
    """
    try:
        import fcntl
    except ImportError:  # not everywhere
        return
    directory = directory.resolve()
    if directory in _LOCKS:
        return
    held = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise ValueError(
            f"{directory} is being written into by another process; wait for it, or choose another"
        ) from None
    except OSError:
        os.close(held)
        return
    _LOCKS[directory] = held


def unlock_all() -> None:
    """Lets other processes write into the directories that this one has locked: a command has ended, not its process."""
    while _LOCKS:
        os.close(_LOCKS.popitem()[1])


def finished_by_index(path: Path, expected: Sequence[Row] | None = None) -> list[dict[str, Any]]:
    """`finished_rows`, whose `index` counts from 0.

    Args:
        path: the results file.
        expected: for each row of the whole run, columns that it must have, if they are known.

    Raises `ValueError` where a row was taken out, doubled or put elsewhere, or is not one of this run.
    """
    rows = finished_rows(path)
    changed = "the file was changed by hand, or by two runs at once; choose another output"
    for number, row in enumerate(rows):
        if row.get("index") != number:
            raise ValueError(
                f"line {number + 1} of {path} is row {row.get('index')!r}, where row {number} should stand: {changed}"
            )
        if expected is None:
            continue
        if number >= len(expected):
            raise ValueError(
                f"line {number + 1} of {path} is one more than the {len(expected)} rows of this run: {changed}"
            )
        for name, value in expected[number].items():
            if name not in row or json.dumps(row[name]) != json.dumps(value):
                raise ValueError(
                    f"line {number + 1} of {path} is not this run's row {number}, whose {name!r} is "
                    f"{value!r:.80}: {changed}"
                )
    return rows


def finished_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a results file; a last line that was cut off is removed from the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    rows = []
    for number, line in enumerate(whole.decode("utf-8", errors="replace").split("\n"), start=1):
        row = _parsed(line) if line else {}
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of {path} is no row of ours: {row}; choose another output")
        if line:
            rows.append(row)
    return rows


def append_chunks(path: Path, chunks: Iterable[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    """Yields chunks of rows, each after it was appended to a results file and is on the disk."""
    for rows in chunks:
        append_rows(path, rows)
        yield rows


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Appends rows to a results file; they are on the disk when this returns.

    Raises `ValueError` for a number that is not finite, which JSON has not; nothing is written then.
    """
    if not rows:
        return
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with path.open("ab") as file:
        file.write(text.encode("utf-8", "backslashreplace"))  # which is JSON's own escape
        file.flush()
        os.fsync(file.fileno())
