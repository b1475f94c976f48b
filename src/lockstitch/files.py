"""Files of rows, and the output directories of commands that take long.

What is read is read whole and checked before any work starts; what is wrong with a file is said line by line, all of it at
once. What is written is there whole or not at all, or grows by whole rows: a run that was interrupted goes on where it
stopped, and a directory that was made with another configuration is refused.

Left out: two runs at a time in one directory.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

Row = Mapping[str, Any]
Read = TypeVar("Read")

CONFIG, RESULTS, SUMMARY = "config.json", "results.jsonl", "summary.json"
SHOWN_ERRORS = 10


# --- reading ---------------------------------------------------------------------------------------------------------


def numbered_rows(path: Path) -> Iterator[tuple[int, Row | str]]:
    """(line number, row or what is wrong with the line) of a `.jsonl` or `.csv` file; place in the array of a `.json`."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        yield from enumerate(csv.DictReader(io.StringIO(text)), start=2)
    elif path.suffix == ".json":
        array = json.loads(text)
        if not isinstance(array, list):
            raise ValueError(f"{path} holds no JSON array but {type(array).__name__}")
        yield from ((number, _object(row)) for number, row in enumerate(array, start=1))
    else:
        for number, line in enumerate(text.split("\n"), start=1):  # rows may hold U+2028, at which splitlines would split
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                yield number, f"not JSON ({error.msg} at column {error.colno})"
                continue
            yield number, _object(row)


def _object(row: Any) -> Row | str:
    return row if isinstance(row, dict) else f"a JSON object is needed, not {type(row).__name__}"


def read_rows(path: Path, read: Callable[[Row], Read]) -> list[Read]:
    """`read(row)` for every row of a file.

    Raises `ValueError` for what is no file or holds no rows, and naming every bad line (the first ten in full): one that
    is no row, or for which `read` raises `ValueError`.
    """
    if not path.is_file():
        raise ValueError(f"input {str(path)!r} is not a file")
    rows: list[Read] = []
    errors: list[str] = []
    for number, row in numbered_rows(path):
        if isinstance(row, str):
            errors.append(f"line {number}: {row}")
            continue
        try:
            rows.append(read(row))
        except ValueError as error:
            errors.append(f"line {number}: {error}")
    if errors:
        more = f"\n  and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise ValueError(f"{path} has {len(errors)} bad lines:\n  " + "\n  ".join(errors[:SHOWN_ERRORS]) + more)
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return rows


# --- writing ---------------------------------------------------------------------------------------------------------


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def to_json(value: Mapping[str, Any]) -> str:
    """Readable JSON with a last newline."""
    return json.dumps(dict(value), indent=2, ensure_ascii=False) + "\n"


def claim_directory(directory: Path, config: Mapping[str, Any]) -> None:
    """Makes an output directory this configuration's own; `ValueError` names what differs from its earlier one.

    A directory without results yet is anybody's.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / CONFIG
    started = (directory / RESULTS).exists()
    if started and not path.exists():
        raise ValueError(f"{directory} holds {RESULTS} without {CONFIG}; choose another output")
    if started:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        names = sorted(set(earlier) | set(config))
        changed = [name for name in names if earlier.get(name) != config.get(name)]
        if changed:
            shown = ", ".join(f"{name}: {earlier.get(name)!r} then, {config.get(name)!r} now" for name in changed)
            raise ValueError(f"{directory} holds results of another configuration ({shown}); choose another output")
    else:
        write_whole(path, to_json(config))


def finished_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a results file; a last line that was cut off is removed from the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]


def append_chunks(path: Path, chunks: Iterable[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    """Yields chunks of rows, each after it was appended to a results file and is on the disk."""
    for rows in chunks:
        with path.open("ab") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        yield rows
