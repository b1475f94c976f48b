"""All that was written so far for one problem: texts, steps, scores and what they cost.

Axes: K trajectories, N steps of one.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.trajectory import Ledger, Trajectory
from lockstitch.stitching.score import Scorer
from lockstitch.stitching.segment import steps_of, token_spans
from lockstitch.stitching.steps import Step
from lockstitch.stitching.stitch import geometric_mean


class Tokenizes(Protocol):
    """What has the tokenizer that trajectories were written with: a denoiser, say."""

    @property
    def tokenizer(self) -> Any: ...


def is_given(step: Step, trajectory: Trajectory) -> bool:
    """Whether a step stood on the canvas before anything was denoised."""
    return step.tokens is not None and not any(trajectory.commit_step[slice(*step.tokens)])


@dataclass
class Pool:
    """One problem's trajectories. `trajectories` stays empty where only their texts are known.

    `rescored` holds what the scorer said of chains that were put together, by the texts of their steps.
    """

    question: str
    texts_K: list[str] = field(default_factory=list)
    trajectories: list[Trajectory] = field(default_factory=list)
    steps_KN: list[list[Step]] = field(default_factory=list)
    score_KN: list[list[float]] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    rescored: dict[tuple[str, ...], list[float]] = field(default_factory=dict)

    def draw(self, denoiser: Tokenizes, task: Task, scorer: Scorer, trajectories: Sequence[Trajectory]) -> None:
        """Adds trajectories that were drawn side by side: segments and scores them, and counts what they cost.

        Steps that were given whole keep the confidences with which they were written.
        """
        spans = [token_spans(denoiser.tokenizer, t.completion_ids) for t in trajectories]
        first = len(self.texts_K)
        steps_KN = [
            steps_of(t.text, task.unit, first + k, span)
            for k, (t, span) in enumerate(zip(trajectories, spans, strict=True))
        ]
        trajectories = [self._as_written(t, steps) for t, steps in zip(trajectories, steps_KN, strict=True)]
        began = time.perf_counter()
        scores = scorer(self.question, steps_KN, trajectories)
        scoring = scores.cost(time.perf_counter() - began)
        self.texts_K += [t.text for t in trajectories]
        self.trajectories += trajectories
        self.steps_KN += steps_KN
        self.score_KN += scores.score_KN
        self.ledger = self.ledger.then(Ledger.together([t.ledger for t in trajectories])).then(scoring)

    def read(self, task: Task, scorer: Scorer, texts: Sequence[str]) -> None:
        """Adds completions that were written elsewhere, whose cost is not known."""
        first = len(self.texts_K)
        steps_KN = [steps_of(text, task.unit, first + k) for k, text in enumerate(texts)]
        began = time.perf_counter()
        scores = scorer(self.question, steps_KN, None)
        scoring = scores.cost(time.perf_counter() - began)
        self.texts_K += texts
        self.steps_KN += steps_KN
        self.score_KN += scores.score_KN
        self.ledger = self.ledger.then(scoring)

    def _as_written(self, trajectory: Trajectory, steps: Sequence[Step]) -> Trajectory:
        """The trajectory, its steps that were given whole with the confidences of the best place where each was written."""
        confidence = list(trajectory.confidence)
        for step in steps:
            if not is_given(step, trajectory):
                continue
            found = [
                (other.index == step.index, score, other)
                for others, scores in zip(self.steps_KN, self.score_KN, strict=True)
                for other, score in zip(others, scores, strict=True)
                if other.text == step.text and other.tokens is not None
            ]
            if found:
                *_, source = max(found, key=lambda one: one[:2])
                assert source.tokens is not None
                assert step.tokens is not None
                own = self.trajectories[source.trajectory].confidence[slice(*source.tokens)]
                start, stop = step.tokens
                if len(own) != stop - start:  # the same text in other tokens
                    own = (geometric_mean(own),) * (stop - start)
                confidence[start:stop] = own
        return replace(trajectory, confidence=tuple(confidence))

    def head(self, n: int) -> "Pool":
        """A pool of the first n trajectories of one draw, at the cost of those (of the scorer's, in proportion)."""
        n = min(n, len(self.texts_K))
        drawn = Ledger.together([t.ledger for t in self.trajectories])
        cost = Ledger.together([t.ledger for t in self.trajectories[:n]])
        share = n / max(1, len(self.texts_K))
        scoring = Ledger(
            nfe=round((self.ledger.nfe - drawn.nfe) * share),
            tokens_forwarded=round((self.ledger.tokens_forwarded - drawn.tokens_forwarded) * share),
            scorer_tokens=round(self.ledger.scorer_tokens * share),
            scorer_passes=round(self.ledger.scorer_passes * share),
            sequential_steps=self.ledger.sequential_steps - drawn.sequential_steps,
            seconds=(self.ledger.seconds - drawn.seconds) * share,
        )
        return Pool(
            self.question,
            self.texts_K[:n],
            self.trajectories[:n],
            self.steps_KN[:n],
            self.score_KN[:n],
            cost.then(scoring),
        )

    def scoring_nfe(self) -> int:
        """The passes of the diffusion model that scoring took a trajectory, rounded up; 0 where another model scores."""
        spent = self.ledger.nfe - Ledger.together([t.ledger for t in self.trajectories]).nfe
        return math.ceil(spent / len(self.texts_K)) if spent > 0 else 0

    def weights(self) -> list[float]:
        """The geometric mean of each trajectory's step scores, `(K,)`."""
        return [geometric_mean(scores) for scores in self.score_KN]
