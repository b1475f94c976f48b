"""Grading completions of a task: a file of rows in, results row by row and a summary out.

`completions.py` reads them in the forms that people have, `answered.py` finds what was asked. The task's rewards score them
chunk by chunk, as a trainer would call them; the first of them judges. Everything that can be wrong with the options or the
file is said before the first completion is scored. A run that was interrupted goes on behind its last whole row.

Left out: sampling the completions, and more than one judge.
"""

import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstitch.rewards.contract import Value, checked_values, combine, completion_texts
from lockstitch.rewards.imports import file_of
from lockstitch.rewards.statistics import clustered_interval, pass_at_k
from lockstitch.rewards.tasks.answered import Answered, read_answered
from lockstitch.rewards.tasks.completions import read_completions
from lockstitch.rewards.tasks.golds import warning
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.task import Task, Weighted, load, name_of

from lockstitch import files
from lockstitch.engine import EngineOptions, Portion, Work, run, whole
from lockstitch.errors import others_code

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
Reward = Callable[..., Any]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class GradeConfig:
    """Everything that `lockstitch grade` can be told.

    Attributes:
        task: its name or place, as `get_task` takes it.
        completions: a file of rows with completions, in a form that `completions.py` knows.
        output: directory of the results.
        form: the form of the prompts that were answered; `tags` adds the rewards for tags.
        rewards: further rewards, `NAME` or `NAME=WEIGHT` (1 by default).
        chunk: completions that are scored together; results are saved after each chunk.
        column: the column of the completions, if it has no name that is known.
        input: a file or folder with the task's own rows, which the file's rows are joined with by their ids.
        source: which of the task's sources these are.
    """

    task: str
    completions: Path
    output: Path
    form: str = "plain"
    rewards: tuple[str, ...] = ()
    chunk: int = 64
    column: str | None = None
    input: Path | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk} is not positive")


# --- before any work -------------------------------------------------------------------------------------------------


def parse_reward(text: str) -> tuple[str, float]:
    """`NAME` or `NAME=WEIGHT` as name and weight; `ValueError` for a weight that is no finite number."""
    name, equals, weight = text.partition("=")
    try:
        value = float(weight) if equals else 1.0
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value):
        raise ValueError(f"reward {text!r} is not NAME or NAME=WEIGHT with a finite number")
    return name, value


def weighted_rewards(task: Task, form: str, more: Sequence[str]) -> tuple[Weighted, ...]:
    """The task's rewards for a form, and more; `ValueError` for one that is named twice."""
    weighted = (*task.rewards_for(form), *map(parse_reward, more))
    names = [name_of(reward) for reward, _ in weighted]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        own = ", ".join(name_of(reward) for reward, _ in task.rewards_for(form))
        raise ValueError(f"rewards named twice: {', '.join(twice)}; those of task {task.name!r} itself are {own}")
    return weighted


def number_note(task: Task, problems: int) -> str | None:
    """What to know if there are not as many problems as one of the task's sources has, or a multiple."""
    known = {name: source.rows for name, source in task.sources.items() if source.rows}
    if not known or any(problems % number == 0 for number in known.values()):
        return None
    numbers = ", ".join(f"{number} ({name})" for name, number in known.items())
    return f"{problems} rows, and task {task.name!r} has {numbers}; this is not comparable with figures on all of them"


# --- the work --------------------------------------------------------------------------------------------------------


def score(
    answered: Sequence[Answered], task: Task, rewards: Mapping[str, tuple[Reward, float]], first: int = 0
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
        values[name] = checked_values(name, found, len(answered))
    sums = combine(list(values.values()), [weight for _, weight in rewards.values()])
    judge = next(iter(values.values()))
    return [
        {
            "answer": task.extract(text),
            "right": None if verdict is None else verdict >= 1.0,
            "reward": sums[i],
            "rewards": {name: row[i] for name, row in values.items()},
        }
        for i, (text, verdict) in enumerate(zip(completion_texts(completions), judge, strict=True))
    ]


def summarise(
    rows: Sequence[Row],
    problems: Sequence[str],
    rewards: Sequence[tuple[str, float]],
    config: Mapping[str, Any],
    note: str | None,
) -> dict[str, Any]:
    """`summary.json`: accuracy and pass@k with their intervals over what has a verdict, and the mean of every reward.

    Args:
        rows: the results.
        problems: for each of them, which problem it is of.
        rewards: names and weights.
        config: what is remembered of the run.
        note: what to know about the numbers.
    """
    judged = [row["right"] for row in rows if row["right"] is not None]
    right_CN = _by_problem(rows, problems)
    return {
        "task": config["task"],
        "n": len(rows),
        "problems": len(set(problems)),
        "right": sum(judged),
        "accuracy": sum(judged) / len(judged) if judged else None,
        "ci95": list(clustered_interval(right_CN)) if judged else None,
        "pass@k": _pass_at_k(right_CN) if judged else {},
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


def _by_problem(rows: Sequence[Row], problems: Sequence[str]) -> list[list[bool]]:
    """The verdicts of each problem that has any."""
    right: dict[str, list[bool]] = {}
    for row, problem in zip(rows, problems, strict=True):
        if row["right"] is not None:
            right.setdefault(problem, []).append(row["right"])
    return list(right.values())


def _pass_at_k(right_CN: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """pass@k with its interval for k = 1, 2, 4, ... up to the fewest completions that any problem has."""
    fewest, most = min(map(len, right_CN)), sum(map(len, right_CN))
    found = {}
    for k in (2**i for i in range(fewest.bit_length())):
        values = [pass_at_k(len(right), sum(right), k) for right in right_CN]
        low, high = clustered_interval([[value] for value in values], most)
        found[f"pass@{k}"] = {"mean": math.fsum(values) / len(values), "ci95": [low, high]}
    return found


def _mean(values: Sequence[Value]) -> Value:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _sha256(answered: Sequence[Answered]) -> str:
    """Of what the rewards read of all rows."""
    digest = hashlib.sha256()
    for one in answered:
        digest.update(repr(sorted(one.columns.items())).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def grade(
    config: GradeConfig, progress: Callable[[int], Progress] | None = None, engine: EngineOptions | None = None
) -> dict[str, Any]:
    """Scores a file of completions; writes `results.jsonl` and `summary.json`, and returns the summary.

    Args:
        config: what to do.
        progress: is told the number of rows, and returns what is told how many more are done.
        engine: who does it; by default this process.

    Raises:
        ValueError: an unknown task, form or reward; bad rows, by their lines; a directory with results of another
            configuration. All of it before the first completion is scored.
    """
    if engine is not None:
        engine.pools_of(["grader"])
    task = get_task(config.task)
    weighted = weighted_rewards(task, config.form, config.rewards)
    rewards = {name_of(reward): (load(reward), weight) for reward, weight in weighted}
    rows = read_completions(config.completions, task.judge_name, config.column)
    answered = read_answered(config.completions, rows, task, config.input, config.source)
    faults = list(dict.fromkeys((one.line, one.fault) for one in answered if one.fault is not None))
    if faults:
        logger.warning("%s", warning(str(config.completions), faults))
    remembered: dict[str, Any] = {
        "task": config.task,
        "form": config.form,
        "rewards": [[name_of(reward), weight] for reward, weight in weighted],
        "completions": str(config.completions),
        "sha256": files.sha256(config.completions),
        "column": config.column,
        "input": None if config.input is None else str(config.input),
        "rows_sha256": _sha256(answered),  # with what they were joined with
        "source": config.source,
    }
    if task.fingerprint is not None:
        remembered["task_file"] = task.fingerprint
    own = {name: file_of(name) for name, _ in map(parse_reward, config.rewards)}
    sums = {name: files.sha256(file) for name, file in own.items() if file is not None}
    if sums:
        remembered["reward_files"] = sums
    files.claim_directory(config.output, remembered)
    results = config.output / files.RESULTS
    done = files.finished_by_index(results, [{**one.kept, "index": i} for i, one in enumerate(answered)])
    _check_rewards(results, done, rewards)
    update = progress(len(answered)) if progress is not None else lambda count: None
    update(len(done))
    grading = Grading(config.task, config.form, config.rewards)
    job = whole("grader", grading, model=False, apart=False)  # rewards are functions of batches
    with closing(
        run(
            job,
            answered,
            engine or EngineOptions(),
            chunk=config.chunk,
            path=results,
            done=len(done),
            progress=update,
            work=grading.with_rewards(task, rewards),
        )
    ) as new:
        for scored in new:
            done += scored
    problems = [one.problem for one in answered]
    named = [(name, weight) for name, (_, weight) in rewards.items()]
    summary = summarise(done, problems, named, remembered, _notes(task, len(rows), problems))
    summary["unreadable_gold"] = len(faults)
    files.write_whole(config.output / files.SUMMARY, files.to_json(summary))
    return summary


def _notes(task: Task, rows: int, problems: Sequence[str]) -> str | None:
    """What to know about the number of rows, and of completions of each."""
    counts = [*Counter(problems).values()]
    said = None if number_note(task, len(counts)) is None else number_note(task, rows)
    if min(counts) != max(counts):
        uneven = f"problems have {min(counts)} to {max(counts)} completions; pass@k is the mean over problems"
        return uneven if said is None else f"{said}; {uneven}"
    return said


def _check_rewards(path: Path, done: Sequence[Row], rewards: Mapping[str, Any]) -> None:
    """Raises `ValueError` for a row of an earlier run that is none of ours."""
    for number, row in enumerate(done, start=1):
        values = row.get("rewards")
        same = isinstance(values, dict) and values.keys() == rewards.keys()
        if not same or not {"right", "reward", "seconds"} <= row.keys():
            raise ValueError(
                f"line {number} of {path} has not the rewards {', '.join(rewards)} of this run: "
                "the file was changed by hand; choose another output"
            )


@dataclass(frozen=True)
class Grading:
    """What a worker grades with: calling it loads the task and its rewards, by the names that `GradeConfig` has."""

    task: str
    form: str
    rewards: tuple[str, ...]

    def __call__(self) -> Work:
        task = get_task(self.task)
        weighted = weighted_rewards(task, self.form, self.rewards)
        return self.with_rewards(task, {name_of(reward): (load(reward), weight) for reward, weight in weighted})

    def with_rewards(self, task: Task, rewards: Mapping[str, tuple[Reward, float]]) -> Work:
        """The work, with what is loaded already."""

        def work(portion: Portion) -> Iterator[list[dict[str, Any]]]:
            began = time.perf_counter()
            scored = score([one for _, one in portion], task, rewards, portion[0][0])
            seconds = round((time.perf_counter() - began) / len(scored), 6)
            yield [
                {"index": place, **one.kept, **result, "seconds": seconds}
                for (place, one), result in zip(portion, scored, strict=True)
            ]

        return work
