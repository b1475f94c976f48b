"""`reasoning_gym:NAME`: the generators of Reasoning Gym (open-thought) as tasks, scored by the library's own functions.

Needs the extra `gym`. Rows hold `question`, `answer` and `metadata`; the last is a Python literal in a text, because it is
different for each generator, and tuples in it must stay tuples. An answer is read from the last `<answer>` block, box or
`####` line, or else is the whole text. Scorers run in worker processes with a time limit; some of them parse the answer with
sympy, which evaluates it, so do not score completions of models that you do not trust. A score of 1 is right.

Left out: the library's curricula and composite data sets.
"""

import functools
import random
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from lockstitch.rewards.contract import Completion, LogMetric, Value, completion_texts, report_none
from lockstitch.rewards.imports import nearest
from lockstitch.rewards.problem import text_of
from lockstitch.rewards.tasks.task import D1_TAG_REWARDS, Source, Task, instructions, marked_answer
from lockstitch.rewards.workers import Failed, KillablePool, TimedOut

GYM = "reasoning_gym:"
TIMEOUT_SECONDS = 10.0
LONGEST_ANSWER = 20_000
_COLUMNS = ("question", "answer", "metadata")


def gym_task(name: str) -> Task:
    """The task of one generator.

    Raises:
        ValueError: the library is not installed (with the extra that has it), or has no such generator (with the nearest).
    """
    _need_library()
    from reasoning_gym.factory import DATASETS

    known = sorted(set(DATASETS) - {"composite"})
    if name not in known:
        raise ValueError(f"{GYM}{name}: not one of Reasoning Gym's {len(known)} data sets{nearest(name, known)}")
    sources = {split: Source(generate=functools.partial(_split_rows, name, split)) for split in ("test", "train")}
    words = instructions("Solve this problem.", "the final answer")
    return Task(
        f"{GYM}{name}",
        (("reasoning_gym", 1.0),),
        sources,
        read_gym_row,
        instructions=words,
        tag_rewards=D1_TAG_REWARDS,
    )


def _need_library() -> None:
    if find_spec("reasoning_gym") is None:
        raise ValueError("Reasoning Gym is not installed: pip install 'lockstitch[gym]', or pip install reasoning-gym")


def _split_rows(name: str, split: str, count: int, seed: int) -> list[dict[str, Any]]:
    # Other seeds for another split. Small generators repeat themselves all the same.
    return make_rows(name, count, random.Random(f"{name} {split} {seed}").randrange(2**31))


def make_rows(name: str, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` problems of a generator with the library's seed; the same ones for the same seed."""
    from reasoning_gym import create_dataset

    entries = create_dataset(name, size=count, seed=seed)
    return [
        {"question": entry["question"], "answer": entry["answer"], "metadata": repr(_literal(entry["metadata"]))}
        for entry in entries
    ]


def _literal(value: Any) -> Any:
    """The value in Python's own types, whose `repr` is a literal: what is derived from them loses its name."""
    match value:
        case dict():
            return {_literal(key): _literal(content) for key, content in value.items()}
        case list() | set():
            return type(value)(map(_literal, value))
        case tuple():
            return tuple(map(_literal, value))
        case bool():
            return value
        case str():
            return str(value)  # NumPy's texts are derived from it
        case int():
            return int(value)
        case float():
            return float(value)
    return value


def read_gym_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `make_rows`; or of the library's own entries, whose metadata is an object."""
    metadata = row.get("metadata")
    if isinstance(metadata, Mapping):
        metadata = repr(_literal(dict(metadata)))
    if not isinstance(metadata, str) or "source_dataset" not in metadata:
        raise ValueError("no 'metadata' with the 'source_dataset'")
    answer = row.get("answer")
    return {
        **row,
        "question": text_of(row, "question"),
        "answer": None if answer is None else str(answer),
        "metadata": metadata,
    }


@functools.cache
def _pool() -> KillablePool:
    return KillablePool()


def reasoning_gym_reward(
    prompts: Sequence[Any], completions: Sequence[Completion], log_metric: LogMetric | None = None, **columns: Any
) -> list[Value]:
    """Reasoning Gym's own score, 1.0 for a right answer; None without a verdict in time. Needs the extra `gym`.

    Columns: question, answer, metadata (with source_dataset).

    Raises:
        ValueError: the library is not installed, or a column is missing.
    """
    missing = [name for name in _COLUMNS if name not in columns]
    if missing:
        raise ValueError(
            f"reasoning_gym_reward needs the columns {', '.join(_COLUMNS)}; missing: {', '.join(missing)}"
        )
    rows = [
        dict(zip(_COLUMNS, values, strict=True)) for values in zip(*(columns[name] for name in _COLUMNS), strict=True)
    ]
    answers = [marked_answer(text) for text in completion_texts(completions)]
    values, reasons = grade_gym([read_gym_row(row) for row in rows], answers)
    report_none("reasoning_gym_reward", values, log_metric, "; ".join(sorted(set(reasons))[:3]))
    return values


def grade_gym(
    rows: Sequence[Mapping[str, Any]], answers: Sequence[str | None], timeout: float = TIMEOUT_SECONDS
) -> tuple[list[Value], list[str]]:
    """The score of each answer, and why some have none.

    A scorer that breaks on an answer is asked about the gold answer: if it knows that one, the answer was at fault, and is
    wrong (0.0); else the row is (None).
    """
    _need_library()
    from lockstitch.rewards.tasks.gym_worker import score

    values: list[Value] = [0.0] * len(rows)
    reasons: list[str] = []
    asked = [i for i, answer in enumerate(answers) if answer is not None and len(answer) <= LONGEST_ANSWER]
    results = dict(zip(asked, _pool().map(score, [_item(rows[i], answers[i]) for i in asked], timeout), strict=True))
    broken = [i for i, result in results.items() if isinstance(result, Failed)]
    golds = dict(
        zip(broken, _pool().map(score, [_item(rows[i], rows[i]["answer"]) for i in broken], timeout), strict=True)
    )
    for i, result in results.items():
        if isinstance(result, TimedOut):
            values[i] = None
            reasons.append(f"no verdict within {result.seconds:g} s")
        elif isinstance(result, Failed):
            values[i] = 0.0 if isinstance(golds[i], float) else None
            reasons += [result.reason] if values[i] is None else []
        else:
            values[i] = float(result)
    return values, reasons


def _item(row: Mapping[str, Any], answer: str | None) -> tuple[str, str, str | None, str | None]:
    return row["question"], row["metadata"], row["answer"], answer
