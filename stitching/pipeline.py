"""The whole way from problems to results: sample, score, compare every method, write, resume.

The stages are plain callables on batches (`Sample`, `Compare`), which is also Ray Data's actor contract; this loop runs
them in one process. A results file grows by whole rows, each as soon as it is finished; a run that was interrupted goes on
where it stopped, and an output directory that was made with another configuration is refused.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lockstitch.rewards.statistics import paired_difference, wilson
from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from lockstitch.sampling.noise import derive_seed
from lockstitch.sampling.trajectory import Ledger
from lockstitch.stitching.inputs import Given
from lockstitch.stitching.methods import METHODS, Compare, Compared
from lockstitch.stitching.pool import Pool
from lockstitch.stitching.score import Scorer
from lockstitch.stitching.steps import Clue

from lockstitch.files import RESULTS, append_chunks, finished_by_index

REPORT = "report.html"
_COSTS = tuple(asdict(Ledger()))


class Sample:
    """A stage: questions in, pools of N scored trajectories out.

    `batch` holds `question`, `seed` and, for trajectories sampled elsewhere, `completions`; `pool` is added.
    """

    def __init__(
        self, task: Task, scorer: Scorer, n: int, denoiser: Denoiser | None = None, config: SamplerConfig | None = None
    ) -> None:
        self.task, self.scorer, self.n, self.denoiser, self.config = task, scorer, n, denoiser, config

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Draws the trajectories, or reads those that were given, and scores them."""
        pools = [Pool(question) for question in batch["question"]]
        if self.denoiser is None:
            for pool, texts in zip(pools, batch["completions"], strict=True):
                pool.read(self.task, self.scorer, texts)
            return {**batch, "pool": pools}
        assert self.config is not None
        prompts = [self.task.prompt(pool.question) for pool in pools]
        drawn = sample(self.denoiser, prompts, self.config, n=self.n, seed=batch["seed"])
        for i, pool in enumerate(pools):
            pool.draw(self.denoiser, self.task, self.scorer, drawn[i * self.n : (i + 1) * self.n])
        return {**batch, "pool": pools}


def _clue(clue: Clue) -> dict[str, Any]:
    return {"text": clue.step.text, "score": clue.score, "sources": [list(source) for source in clue.sources]}


def result_row(task: Task, index: int, given: Given, compared: Compared) -> dict[str, Any]:
    """One line of `results.jsonl`."""
    pool, evidence = compared.pool, compared.evidence
    answers = [task.extract(text) for text in pool.texts_K]
    texts = [*pool.texts_K, *(outcome.text for outcome in compared.outcomes.values())]
    all_answers = [*answers, *(outcome.answer for outcome in compared.outcomes.values())]
    verdicts = task.judge(given.problem, [answer or "" for answer in all_answers], texts)
    # No answer is a wrong answer, unless right and wrong cannot be told for this problem.
    correct = [None if known is None else bool(answer) and known
               for answer, known in zip(all_answers, verdicts, strict=True)]  # fmt: skip
    return {
        "index": index,
        "question": given.problem.question,
        "answer": given.problem.answer,
        "trajectories": [
            {
                "text": text,
                "answer": answer,
                "correct": right,
                "mean_score": weight,
                "steps": [
                    {"text": step.text, "characters": list(step.characters), "score": score}
                    for step, score in zip(steps, scores, strict=True)
                ],
            }
            for text, answer, right, weight, steps, scores in zip(
                pool.texts_K, answers, correct[: len(answers)], pool.weights(), pool.steps_KN, pool.score_KN, strict=True
            )
        ],
        "evidence": {
            "anchor": evidence.anchor,
            "clues": [_clue(clue) for clue in evidence.clues],
            "chain": [_clue(clue) for clue in evidence.chain],
        },
        "methods": {
            name: {
                "answer": outcome.answer,
                "correct": right,
                "text": outcome.text,
                "ledger": asdict(outcome.ledger),
            }
            for (name, outcome), right in zip(compared.outcomes.items(), correct[len(answers) :], strict=True)
        },
    }


def summarise(
    task: Task, rows: Sequence[Mapping[str, Any]], absent: Mapping[str, str], config: Mapping[str, Any]
) -> dict[str, Any]:
    """`summary.json`: accuracy with interval and mean costs of every method, and `stitched` against each, paired."""
    methods: dict[str, Any] = {}
    outcomes: dict[str, list[bool]] = {}
    for name in METHODS:
        if name in absent or not rows:
            continue
        found = [row["methods"][name] for row in rows]
        judged = [bool(one["correct"]) for one in found if one["correct"] is not None]
        costs = {cost: sum(one["ledger"][cost] for one in found) / len(found) for cost in _COSTS}
        accuracy = sum(judged) / len(judged) if judged else None
        methods[name] = {"accuracy": accuracy, "ci95": list(wilson(sum(judged), len(judged))) if judged else None,
                         "n": len(judged), **costs}  # fmt: skip
        outcomes[name] = judged
    mine = outcomes.get("stitched", [])
    paired = {
        f"stitched - {name}": paired_difference(mine, theirs)
        for name, theirs in outcomes.items()
        if name != "stitched" and mine and len(theirs) == len(mine)
    }
    return {
        "task": task.name,
        "n": len(rows),
        "num_trajectories": config["num_trajectories"],
        "config": dict(config),
        "methods": methods,
        "absent": dict(absent),
        "paired": paired,
    }


def _work(
    given: Sequence[Given], first: int, task: Task, sampler: Sample, compare: Compare, seed: int
) -> Iterator[dict[str, Any]]:
    """The rows of problems that are worked on together, each as soon as it is finished."""
    batch: dict[str, Any] = {
        "question": [one.problem.question for one in given],
        "seed": [derive_seed(seed, first + i) for i in range(len(given))],
        "completions": [one.completions for one in given],
    }
    compared = compare.each(sampler(batch))
    yield from (result_row(task, first + i, *pair) for i, pair in enumerate(zip(given, compared, strict=True)))


def run_in_memory(
    given: Sequence[Given], task: Task, sampler: Sample, compare: Compare, *, seed: int
) -> list[dict[str, Any]]:
    """Every problem's row, nothing written."""
    return list(_work(given, 0, task, sampler, compare, seed))


def run(
    given: Sequence[Given],
    task: Task,
    sampler: Sample,
    compare: Compare,
    directory: Path,
    *,
    seed: int,
    chunk: int,
    progress: Callable[[int], None],
) -> Iterator[dict[str, Any]]:
    """Yields every problem's row in order, those of an earlier run first, and appends the new ones to the results.

    Each is on the disk before the next problem's answers are waited for, so that a solver that fails costs none of them.
    """
    path = directory / RESULTS
    expected = [{"question": one.problem.question, "answer": one.problem.answer} for one in given]
    done = finished_by_index(path, expected)
    progress(len(done))
    yield from done
    starts = range(len(done), len(given), chunk)
    work = (row for i in starts for row in _work(given[i : i + chunk], i, task, sampler, compare, seed))
    for rows in append_chunks(path, ([row] for row in work)):
        progress(len(rows))
        yield from rows
