"""From problems to pools of scored trajectories, and from compared methods to rows and their summary.

`Sample` and `lockstitch.stitching.methods.Compare` are plain callables on batches; `lockstitch.stitching.work` puts them
together, in one process or in the stages of a cluster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lockstitch.rewards.statistics import paired_difference, wilson
from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from lockstitch.sampling.trajectory import Ledger
from lockstitch.stitching.inputs import Given
from lockstitch.stitching.method_names import METHODS
from lockstitch.stitching.methods import Compared
from lockstitch.stitching.pool import Pool, Tokenizes
from lockstitch.stitching.score import Scorer
from lockstitch.stitching.steps import Clue

REPORT = "report.html"
_COSTS = tuple(asdict(Ledger()))


class Sample:
    """A stage: questions in, pools of N scored trajectories out.

    `batch` holds `question`, `seed` and, for trajectories sampled elsewhere, `completions`; `pool` is added. The halves can
    be had apart: `draw` needs no scorer, and adds `drawn`; `score` needs of the denoiser its tokenizer alone.
    """

    def __init__(
        self,
        task: Task,
        scorer: Scorer | None,
        n: int,
        denoiser: Denoiser | Tokenizes | None = None,
        config: SamplerConfig | None = None,
    ) -> None:
        self.task, self.scorer, self.n, self.denoiser, self.config = task, scorer, n, denoiser, config

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Draws the trajectories, or reads those that were given, and scores them."""
        scored = self.score(batch if self.denoiser is None else self.draw(batch))
        return {**batch, "pool": scored["pool"]}

    def draw(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Adds the trajectories of each question."""
        assert isinstance(self.denoiser, Denoiser)
        assert self.config is not None
        prompts = [self.task.prompt(question) for question in batch["question"]]
        drawn = sample(self.denoiser, prompts, self.config, n=self.n, seed=batch["seed"])
        return {**batch, "drawn": [drawn[i : i + self.n] for i in range(0, len(drawn), self.n)]}

    def score(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Cuts what was drawn or given into steps, and scores these."""
        assert self.scorer is not None
        pools = [Pool(question) for question in batch["question"]]
        if self.denoiser is None:
            for pool, texts in zip(pools, batch["completions"], strict=True):
                pool.read(self.task, self.scorer, texts)
            return {**batch, "pool": pools}
        for pool, drawn in zip(pools, batch["drawn"], strict=True):
            pool.draw(self.denoiser, self.task, self.scorer, drawn)
        return {**{name: values for name, values in batch.items() if name != "drawn"}, "pool": pools}


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
    correct = [
        None if known is None else bool(answer) and known for answer, known in zip(all_answers, verdicts, strict=True)
    ]
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
                pool.texts_K,
                answers,
                correct[: len(answers)],
                pool.weights(),
                pool.steps_KN,
                pool.score_KN,
                strict=True,
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
        if name in absent or not rows or name not in rows[0]["methods"]:
            continue
        found = [row["methods"][name] for row in rows]
        judged = [bool(one["correct"]) for one in found if one["correct"] is not None]
        costs = {cost: sum(one["ledger"][cost] for one in found) / len(found) for cost in _COSTS}
        accuracy = sum(judged) / len(judged) if judged else None
        methods[name] = {
            "accuracy": accuracy,
            "ci95": list(wilson(sum(judged), len(judged))) if judged else None,
            "n": len(judged),
            **costs,
            "passes": costs["nfe"] + costs["scorer_passes"] + costs["solver_passes"],
        }
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
