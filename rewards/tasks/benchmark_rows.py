"""Rows of a benchmark, from a file, a folder, the hub or a generator, with prompts: what trainers and samplers start from.

    rows = load_rows("gsm8k", source="train")
    Dataset.from_list(rows)  # `prompt`, and the columns that the task's rewards read

A benchmark that has another number of rows than it should is not that benchmark: from the hub it is refused, and for a local
file, which people cut on purpose, there is a warning.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lockstitch.rewards.tasks.benchmark import Benchmark, Source
from lockstitch.rewards.tasks.benchmarks import get_benchmark

from lockstitch.files import read_rows

logger = logging.getLogger(__name__)

DATA_VARIABLE = "LOCKSTITCH_DATA"
_FILES = (".jsonl", ".json", ".csv")


def load_rows(
    name: str, *, source: str | None = None, path: str | os.PathLike[str] | None = None, form: str = "tags",
    conversational: bool = True, count: int | None = None, seed: int = 0, rows: int | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of a task: `prompt`, `question`, and the benchmark's columns by the names that the rewards know.

    Args:
        name: the task, or `reasoning_gym:NAME`.
        source: which of the task's sources; the usual one by default.
        path: a file (JSON Lines, JSON array, CSV), a folder of benchmark files, or a copy of the hub's data set. By default
            the folder that LOCKSTITCH_DATA names, if it has the file, and else the hub.
        form: of the prompts.
        conversational: whether prompts are lists of one message, or texts.
        count: how many: the first so many, or that many new ones where rows are generated.
        seed: of generated rows.
        rows: how many there must be before `count`; the published number by default. If this is given, nothing else will do.

    Raises:
        ValueError: an unknown name; a row that cannot be read, by its line; a wrong number of rows; no place to read from.
    """
    benchmark = get_benchmark(name)
    benchmark.check_form(form)
    if count is not None and count < 1:
        raise ValueError(f"count={count} is not positive")
    chosen = benchmark.source(source)
    if path is None and chosen.generate is not None:
        if count is None:
            raise ValueError(f"task {name!r} makes its rows up: say how many (count)")
        return [_with_prompt(benchmark, row, form, conversational) for row in chosen.generate(count, seed)]
    where, found = _read(benchmark, chosen, path)
    _check_number(benchmark, where, len(found), chosen.rows if rows is None else rows, strict=rows is not None)
    return [_with_prompt(benchmark, row, form, conversational) for row in found[:count]]


def _with_prompt(benchmark: Benchmark, row: Mapping[str, Any], form: str, conversational: bool) -> dict[str, Any]:
    columns = benchmark.read(row)
    text = benchmark.prompt(columns["question"], form)
    return {**columns, "prompt": [{"role": "user", "content": text}] if conversational else text}


def _read(benchmark: Benchmark, source: Source, path: str | os.PathLike[str] | None) -> tuple[Path | None, list[Any]]:
    """Where the rows are, None for the hub, and the rows, each of which can be read."""
    if path is None:
        folder = os.environ.get(DATA_VARIABLE)
        file = Path(folder) / source.file if folder and source.file else None
        if file is None or not file.is_file():
            return None, _from_hub(benchmark, source)
        path = file
    path = Path(path)
    if path.is_dir() and source.file is not None and (path / source.file).is_file():
        path = path / source.file
    if path.is_dir():
        return path, _from_library({**source.arguments(), "path": str(path)})
    if path.suffix not in _FILES:
        raise ValueError(f"{str(path)!r} is neither a folder nor a file that ends in {', '.join(_FILES)}")

    def checked(row: Mapping[str, Any]) -> Mapping[str, Any]:
        benchmark.read(row)
        return row

    return path, read_rows(path, checked)


def _from_hub(benchmark: Benchmark, source: Source) -> list[Any]:
    if source.hub is None:
        raise ValueError(
            f"these rows of task {benchmark.name!r} are not on the hub: give the file or its folder (path), or set "
            f"{DATA_VARIABLE} to a folder that has {source.file}"
        )
    return _from_library(source.arguments())


def _from_library(arguments: Mapping[str, Any]) -> list[Any]:
    from datasets import load_dataset

    rows: list[Any] = load_dataset(**arguments).to_list()
    return rows


def _check_number(benchmark: Benchmark, where: Path | None, found: int, expected: int | None, *, strict: bool) -> None:
    if expected is None or found == expected:
        return
    text = f"{where or 'the hub'} holds {found} rows of task {benchmark.name!r}, and {expected} are expected"
    if strict or where is None:
        raise ValueError(text)
    logger.warning("%s; what is measured on them is not comparable (rows=%d says that this is meant)", text, found)
