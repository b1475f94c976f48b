"""Grading completions of a task: a file of rows in, results row by row and a summary out.

Each row holds the benchmark's own columns and `completion`, a text or a conversation. The task's rewards score them chunk by
chunk, as a trainer would call them; the first of them judges. Everything that can be wrong with the options or the file is
said before the first completion is scored. A run that was interrupted goes on behind its last whole row.

Left out: sampling the completions, and more than one judge.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstitch.rewards.contract import RESERVED, Completion, Value, combine, completion_texts
from lockstitch.rewards.plugins import load_reward
from lockstitch.rewards.statistics import wilson
from lockstitch.rewards.tasks.benchmark import Benchmark, Weighted
from lockstitch.rewards.tasks.benchmarks import get_benchmark

from lockstitch import files
from lockstitch.errors import others_code

Row = Mapping[str, Any]
Reward = Callable[..., Any]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class GradeConfig:
    """Everything that `lockstitch grade` can be told.

    Attributes:
        task: name of a benchmark, or `reasoning_gym:NAME`.
        completions: JSON Lines (or a JSON array) of rows with `completion`.
        output: directory of the results.
        form: the form of the prompts that were answered; `tags` adds the rewards for tags.
        rewards: further rewards, `NAME` or `NAME=WEIGHT` (1 by default).
        chunk: rows that are scored together; results are saved after each chunk.
    """

    task: str
    completions: Path
    output: Path
    form: str = "plain"
    rewards: tuple[str, ...] = ()
    chunk: int = 64

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk} is not positive")


@dataclass(frozen=True)
class Answered:
    """A row's columns as the rewards get them, what was asked, and what was answered."""

    columns: Mapping[str, Any]
    prompt: Any
    completion: Completion


# --- before any work -------------------------------------------------------------------------------------------------


def parse_reward(text: str) -> Weighted:
    """`NAME` or `NAME=WEIGHT` as name and weight; `ValueError` for a weight that is no finite number."""
    name, equals, weight = text.partition("=")
    try:
        value = float(weight) if equals else 1.0
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value):
        raise ValueError(f"reward {text!r} is not NAME or NAME=WEIGHT with a finite number")
    return name, value


def weighted_rewards(benchmark: Benchmark, form: str, more: Sequence[str]) -> tuple[Weighted, ...]:
    """The benchmark's rewards for a form, and more; `ValueError` for one that is named twice."""
    weighted = (*benchmark.rewards_for(form), *map(parse_reward, more))
    names = [name for name, _ in weighted]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        own = ", ".join(name for name, _ in benchmark.rewards_for(form))
        raise ValueError(f"rewards named twice: {', '.join(twice)}; those of task {benchmark.name!r} itself are {own}")
    return weighted


def read_answered(benchmark: Benchmark, row: Row) -> Answered:
    """One row of the file; `ValueError` says what is missing or wrong."""
    if "completion" not in row:
        raise ValueError("no 'completion'")
    completion = _completion(row["completion"])
    columns = benchmark.read(row)
    prompt = columns.get("prompt") or columns["question"]
    dropped = {*RESERVED, "completion", "prompt"}
    return Answered({name: value for name, value in columns.items() if name not in dropped}, prompt, completion)


def _completion(value: Any) -> Completion:
    """A text, or a conversation whose last message can be read."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise ValueError("'completion' is neither a text nor a list of messages")
    content = value[-1].get("content")
    parts = content if isinstance(content, list) else []
    if not isinstance(content, str | list | None) or not all(
        isinstance(part, dict) and (part.get("type") != "text" or isinstance(part.get("text"), str)) for part in parts
    ):
        raise ValueError("the last message of 'completion' has no 'content' that is a text or a list of parts")
    return value


def number_note(benchmark: Benchmark, rows: int) -> str | None:
    """What to know if a file has not as many rows as one of the benchmark's sources, or a multiple (several samples)."""
    known = {name: source.rows for name, source in benchmark.sources.items() if source.rows}
    if not known or any(rows % number == 0 for number in known.values()):
        return None
    numbers = ", ".join(f"{number} ({name})" for name, number in known.items())
    return f"{rows} rows, and task {benchmark.name!r} has {numbers}; this is not comparable with figures on all of them"


# --- the work --------------------------------------------------------------------------------------------------------


def score(
    answered: Sequence[Answered], benchmark: Benchmark, rewards: Mapping[str, tuple[Reward, float]], first: int = 0
) -> list[dict[str, Any]]:
    """The results of rows that are scored together, `first` being the index of the first of them.

    Returns:
        For each row: `answer`, `right` (None without a verdict), `reward` (the weighted sum), and `rewards` one by one.
    """
    names = list(dict.fromkeys(name for one in answered for name in one.columns))
    columns = {name: [one.columns.get(name) for one in answered] for name in names}
    completions = [one.completion for one in answered]
    prompts = [one.prompt for one in answered]
    values = {}
    for name, (reward, _) in rewards.items():
        with others_code(f"reward {name!r}, on rows {first} to {first + len(answered) - 1},"):
            found = reward(prompts=prompts, completions=completions, **columns)
        values[name] = _values(name, found, len(answered))
    sums = combine(list(values.values()), [weight for _, weight in rewards.values()])
    judge = next(iter(values.values()))
    return [
        {
            "answer": benchmark.extract(text),
            "right": None if verdict is None else verdict >= 1.0,
            "reward": sums[i],
            "rewards": {name: row[i] for name, row in values.items()},
        }
        for i, (text, verdict) in enumerate(zip(completion_texts(completions), judge, strict=True))
    ]


def _values(name: str, values: Any, count: int) -> list[Value]:
    if not isinstance(values, Sequence) or len(values) != count:
        raise ValueError(f"reward {name!r} returned {values!r:.80} for {count} completions; a list of {count} is needed")
    for value in values:
        if value is not None and not isinstance(value, int | float):
            raise ValueError(f"reward {name!r} returned {value!r:.80} for a completion; a number is needed, or None")
    return [None if value is None or math.isnan(value) else float(value) for value in values]


def summarise(
    rows: Sequence[Row], rewards: Sequence[Weighted], config: Mapping[str, Any], note: str | None
) -> dict[str, Any]:
    """`summary.json`: accuracy with its interval over the rows that have a verdict, and the mean of every reward."""
    judged = [row["right"] for row in rows if row["right"] is not None]
    return {
        "task": config["task"],
        "n": len(rows),
        "right": sum(judged),
        "accuracy": sum(judged) / len(judged) if judged else None,
        "ci95": list(wilson(sum(judged), len(judged))) if judged else None,
        "none": len(rows) - len(judged),
        "reward": _mean([row["reward"] for row in rows]),
        "rewards": {
            name: {
                "weight": weight,
                "mean": _mean([row["rewards"][name] for row in rows]),
                "none": sum(row["rewards"][name] is None for row in rows),
            }
            for name, weight in rewards
        },
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "note": note,
        "config": dict(config),
    }


def _mean(values: Sequence[Value]) -> Value:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def grade(config: GradeConfig, progress: Callable[[int], Progress] | None = None) -> dict[str, Any]:
    """Scores a file of completions; writes `results.jsonl` and `summary.json`, and returns the summary.

    Args:
        config: what to do.
        progress: is told the number of rows, and returns what is told how many more are done.

    Raises:
        ValueError: an unknown task, form or reward; bad rows, by their lines; a directory with results of another
            configuration. All of it before the first completion is scored.
    """
    benchmark = get_benchmark(config.task)
    weighted = weighted_rewards(benchmark, config.form, config.rewards)
    rewards = {name: (load_reward(name), weight) for name, weight in weighted}
    answered = files.read_rows(config.completions, lambda row: read_answered(benchmark, row))
    remembered = {
        "task": config.task,
        "form": config.form,
        "rewards": [list(pair) for pair in weighted],
        "completions": str(config.completions),
        "sha256": hashlib.sha256(config.completions.read_bytes()).hexdigest(),
    }
    files.claim_directory(config.output, remembered)
    done = files.finished_rows(config.output / files.RESULTS)
    update = progress(len(answered)) if progress is not None else lambda count: None
    update(len(done))
    starts = range(len(done), len(answered), config.chunk)
    chunks = (_chunk(answered, start, config.chunk, benchmark, rewards) for start in starts)
    for rows in files.append_chunks(config.output / files.RESULTS, chunks):
        done += rows
        update(len(rows))
    summary = summarise(done, weighted, remembered, number_note(benchmark, len(done)))
    files.write_whole(config.output / files.SUMMARY, files.to_json(summary))
    return summary


def _chunk(
    answered: Sequence[Answered], start: int, size: int, benchmark: Benchmark, rewards: Mapping[str, tuple[Reward, float]]
) -> list[dict[str, Any]]:
    began = time.perf_counter()
    results = score(answered[start : start + size], benchmark, rewards, start)
    seconds = round((time.perf_counter() - began) / len(results), 6)
    return [{"index": start + i, **result, "seconds": seconds} for i, result in enumerate(results)]
