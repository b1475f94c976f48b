"""A task of one's own without code: a YAML file that says what the fields of a `Task` are.

    dataset: capitals.jsonl
    prompt: "{question}\\nAnswer:"
    answer: solution
    reward: math

Files and modules that it names are looked for beside it first. Left out: forms of prompts with instructions of their own,
checkers and puzzles' rules, which are a `Task` in Python.
"""

import json
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstitch.rewards.contract import RESERVED
from lockstitch.rewards.imports import file_of, is_place, load_named, nearest
from lockstitch.rewards.plugins import load_reward
from lockstitch.rewards.problem import Problem
from lockstitch.rewards.steps import UNITS, Segmenter
from lockstitch.rewards.tasks.builtin import TASKS, has_gold, math_gold
from lockstitch.rewards.tasks.data import is_file_name
from lockstitch.rewards.tasks.task import Row, Source, Task, Weighted, answer_column, marked_answer

from lockstitch import files
from lockstitch.options import read_yaml

SUFFIXES = (".yaml", ".yml")
KEYS = {
    "name": "a text: what the task is called; by default the file's name",
    "dataset": "a text: a file, a directory or a name on the hub",
    "config": "a text: the configuration of a data set on the hub",
    "split": "a text: the split of a data set; by default train",
    "columns": "a mapping of texts, WANTED: THERE",
    "prompt": "a text with columns in braces, such as '{question}\\nAnswer:'",
    "answer": "a text: the column of the gold answer",
    "reward": "math, code, another name that `lockstitch rewards` lists, module:function, file.py:function, or a list of "
    "such, each with a weight (`- math: 1.0`)",
    "system": "a text: what a conversation begins with",
    "step_unit": f"{', '.join(UNITS)}, module:function or file.py:function",
    "canvas_length": "a whole number of at least 1",
}
NEEDED = ("prompt", "reward")
# Rewards that read answers in a way of their own, and the task that reads as they do.
_READ_AS = {"math": "math500", "code": "humaneval", "countdown": "countdown", "sudoku": "sudoku",
            "sudoku_cells": "sudoku", "arithmetic": "arithmetic"}  # fmt: skip


def load_task_file(path: Path) -> Task:
    """The task that a YAML file describes.

    Raises:
        ValueError: no such file, or no mapping; an unknown or missing key, a value that is not accepted, or a function that
            is not there: in one line that names the key.
    """
    if not path.is_file():
        raise ValueError(f"task {str(path)!r} is not a file")
    said = read_yaml(path)
    for key in said:
        if key not in KEYS:
            raise ValueError(f"{path}: the key {key!r} is not one of {', '.join(KEYS)}{nearest(str(key), KEYS)}")
    for key in NEEDED:
        if key not in said:
            raise ValueError(f"{path}: the key {key!r} is missing: {KEYS[key]}")
    try:
        return _task(path, said)
    except _KeyProblemError as error:
        raise ValueError(f"{path}: {error}") from error


class _KeyProblemError(ValueError):
    """What is wrong with the value of a key."""


def _wrong(key: str, value: Any) -> _KeyProblemError:
    return _KeyProblemError(f"{key}: {value!r} is not accepted; it takes {KEYS[key]}")


def _text(said: Mapping[str, Any], key: str) -> str | None:
    value = said.get(key)
    if key in said and (not isinstance(value, str) or not value.strip()):
        raise _wrong(key, value)
    return value


def _task(path: Path, said: Mapping[str, Any]) -> Task:
    name = _text(said, "name") or path.stem
    answer, system = _text(said, "answer"), _text(said, "system")
    pairs = _pairs(said["reward"])
    rewards = _rewards(pairs, path.parent)
    length = said.get("canvas_length")
    if "canvas_length" in said and (type(length) is not int or length < 1):
        raise _wrong("canvas_length", length)
    judge = rewards[0][0]
    like = TASKS.get(_READ_AS.get(judge, "")) if isinstance(judge, str) else None
    if judge == "math" and answer is None:
        raise _KeyProblemError(f"answer is missing, and the reward math needs it: {KEYS['answer']}")
    rows = Rows(_columns(said), _template(said), answer)
    unit = _unit(said, path.parent)
    named = (file_of(spec, path.parent if is_place(spec) else None) for spec, _ in pairs)
    code = [*named, None if isinstance(unit, str) else file_of(said["step_unit"], path.parent)]
    return Task(
        name,
        rewards,
        _sources(said, path.parent),
        rows.read,
        rows.question,
        system=system,
        extract=marked_answer if like is None else like.extract,
        write_answer=str if like is None else like.write_answer,
        gold=math_gold if judge == "math" else answer_column if answer is not None else _nothing,
        is_judged=has_gold if answer is not None else _always,
        solution=answer_column if answer is not None else _nothing,
        unit=unit,
        canvas_length=length,
        fingerprint=files.sha256(path, *dict.fromkeys(file for file in code if file is not None))[:16],
    )


def _nothing(columns: Row) -> None:
    return None


def _always(problem: Problem) -> bool:
    return True


@dataclass(frozen=True)
class Rows:
    """How rows are read: columns under other names, a template of the prompt, and the column of the gold answer."""

    columns: Mapping[str, str]
    template: Sequence[tuple[str, str | None]]
    answer: str | None

    def read(self, row: Row) -> dict[str, Any]:
        """The row's columns as they are called here, `answer` among them; what is read can be read again."""
        found = {name: value for name, value in row.items() if name not in RESERVED}
        for wanted, there in self.columns.items():
            if there not in row and wanted not in row:
                raise ValueError(f"columns: there is no {there!r} to be {wanted!r}; there are {', '.join(row)}")
        for wanted, there in self.columns.items():
            if there in row:
                found[wanted] = row[there]
        for there in {*self.columns.values()} - {*self.columns}:
            found.pop(there, None)
        if self.answer is not None:
            if self.answer not in found and "answer" not in found:
                raise ValueError(f"answer: there is no column {self.answer!r}; there are {', '.join(found)}")
            found["answer"] = found[self.answer] if self.answer in found else found["answer"]
        return found

    def question(self, columns: Row) -> str:
        """The prompt of a row."""
        return "".join(text + ("" if name is None else self._shown(columns, name)) for text, name in self.template)

    def _shown(self, columns: Row, name: str) -> str:
        if columns.get(name) is None:
            why = "is null" if name in columns else f"is missing; there are {', '.join(columns)}"
            raise ValueError(f"prompt: the column {name!r} {why}")
        value = columns[name]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _columns(said: Mapping[str, Any]) -> dict[str, str]:
    columns = said.get("columns", {})
    if not isinstance(columns, dict) or not all(
        isinstance(text, str) and text for pair in columns.items() for text in pair
    ):
        raise _wrong("columns", columns)
    return columns


def _template(said: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    template = said["prompt"]
    if not isinstance(template, str) or not template.strip():
        raise _wrong("prompt", template)
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise _KeyProblemError(f"prompt: {template!r}: {error}; a brace that is meant is written twice") from error
    for _, name, form, conversion in parts:
        if name == "" or form or conversion or (name and any(mark in name for mark in ".[")):
            raise _KeyProblemError(
                f"prompt: {{{name}}} must be the name of a column alone; a brace that is meant is written twice"
            )
    if not any(name for _, name, _, _ in parts):
        raise _KeyProblemError(f"prompt: {template!r} names no column: it would be the same for every row")
    return [(text, name) for text, name, _, _ in parts]


def _pairs(value: Any) -> list[tuple[str, float]]:
    """The rewards as they are named, with their weights."""
    pairs = []
    for one in value if isinstance(value, list) and value else [value]:
        spec, weight = next(iter(one.items())) if isinstance(one, dict) and len(one) == 1 else (one, 1.0)
        number = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
        if not isinstance(spec, str) or not spec.strip() or not number:
            raise _wrong("reward", one)
        pairs.append((spec.strip(), float(weight)))
    twice = sorted({spec for spec, _ in pairs if [other for other, _ in pairs].count(spec) > 1})
    if twice:
        raise _KeyProblemError(f"reward: {twice[0]!r} stands twice")
    return pairs


def _rewards(pairs: Sequence[tuple[str, float]], beside: Path) -> tuple[Weighted, ...]:
    try:
        return tuple(
            (load_reward(spec, beside) if is_place(spec) else _listed(spec), weight) for spec, weight in pairs
        )
    except ValueError as error:
        raise _KeyProblemError(f"reward: {error}") from error


def _listed(spec: str) -> str:
    load_reward(spec)
    return spec


def _unit(said: Mapping[str, Any], beside: Path) -> str | Segmenter:
    unit = said.get("step_unit", "sentence")
    if unit in UNITS:
        return str(unit)
    if not isinstance(unit, str) or not is_place(unit):
        raise _wrong("step_unit", unit)
    try:
        found = load_named("step_unit", unit, beside)
    except ValueError as error:
        raise _KeyProblemError(str(error)) from error
    if not callable(found):
        raise _KeyProblemError(f"step_unit {unit!r} is {found!r}, which cannot be called")
    segmenter: Segmenter = found
    return segmenter


def _sources(said: Mapping[str, Any], beside: Path) -> dict[str, Source]:
    data, config, split = (_text(said, key) for key in ("dataset", "config", "split"))
    if data is None:
        for key in ("config", "split"):
            if key in said:
                raise _KeyProblemError(f"{key}: {said[key]!r} would be ignored without dataset")
        return {}
    place = beside / Path(data).expanduser()
    if place.is_file():
        for key in ("config", "split"):
            if key in said:
                raise _KeyProblemError(f"{key}: {said[key]!r} would be ignored: {data!r} is a file")
        if not is_file_name(str(place)):
            raise _KeyProblemError(
                f"dataset: {data!r} does not end in .jsonl, .json, .csv (.gz behind these) or .parquet"
            )
        return {"train": Source(data=str(place))}
    name = split or "train"
    if place.is_dir():
        return {name: Source(config=config, split=name, data=str(place))}
    if is_file_name(data) or Path(data).is_absolute() or data.startswith((".", "~")):
        raise _KeyProblemError(f"dataset: there is no {data!r} beside the file; it takes {KEYS['dataset'][8:]}")
    return {name: Source(hub=data, config=config, split=name)}
