"""Scoring steps: exactly (`calculator`), by the sampler itself (`confidence`), by a process reward model, or by yours.

A scorer reads all trajectories of one problem at once and gives every step a score in [0, 1]. Left out: scoring a step
again after steps of several trajectories were put together; a score is the step's within its own trajectory.

Axes: K trajectories, N steps of one trajectory (ragged).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lockstitch.rewards.imports import is_place, load_named
from lockstitch.rewards.steps import check_steps
from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.trajectory import Trajectory
from lockstitch.stitching.steps import Step

from lockstitch.errors import others_code


@dataclass(frozen=True)
class Scores:
    """A score in [0, 1] of every step, and how many tokens a model read for them."""

    score_KN: list[list[float]]
    tokens: int = 0


class Scorer(Protocol):
    """Scores the steps of all trajectories of one problem."""

    def __call__(
        self, question: str, steps_KN: Sequence[Sequence[Step]], trajectories: Sequence[Trajectory] | None
    ) -> Scores:
        """The scores.

        Args:
            question: the canonical question of the task.
            steps_KN: the steps of each trajectory, in order.
            trajectories: the trajectories with their traces, or None where completions came from elsewhere.
        """


class Calculator:
    """The task's own step checker: exact, without a model, at no cost."""

    def __init__(self, task: Task) -> None:
        if task.checker is None:
            raise ValueError(f"scorer 'calculator' asks the checker of steps, which task {task.name!r} has not: "
                             "'confidence', 'prm:MODEL' or 'module:function' need none")  # fmt: skip
        self.checker = task.checker

    def __call__(
        self, question: str, steps_KN: Sequence[Sequence[Step]], trajectories: Sequence[Trajectory] | None = None
    ) -> Scores:
        """See `Scorer`; the trajectories are not read."""
        return Scores([check_steps(self.checker, question, [step.text for step in steps]) for steps in steps_KN])


class Confidence:
    """The sampler's own doubt: the geometric mean of the snapshot confidences of a step's tokens."""

    def __call__(
        self, question: str, steps_KN: Sequence[Sequence[Step]], trajectories: Sequence[Trajectory] | None
    ) -> Scores:
        """See `Scorer`; `ValueError` where there is no trace to read."""
        if trajectories is None:
            raise ValueError(
                "the scorer 'confidence' reads the snapshot confidences of trajectories that this toolkit sampled; "
                "completions from elsewhere have none: use 'calculator', 'prm:MODEL' or 'module:function'"
            )
        return Scores([
            [_mean_confidence(step, trajectory) for step in steps]
            for steps, trajectory in zip(steps_KN, trajectories, strict=True)
        ])


def _mean_confidence(step: Step, trajectory: Trajectory) -> float:
    if step.tokens is None:
        raise ValueError(f"step {step.index} of trajectory {step.trajectory} has no token span to read confidences at")
    confidences = trajectory.confidence[slice(*step.tokens)]
    if min(confidences) <= 0:
        return 0.0
    return min(1.0, math.exp(sum(map(math.log, confidences)) / len(confidences)))


class Custom:
    """A user's function with the arguments of `Scorer`; it returns `Scores`, or a list of scores per trajectory."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function

    def __call__(
        self, question: str, steps_KN: Sequence[Sequence[Step]], trajectories: Sequence[Trajectory] | None
    ) -> Scores:
        """See `Scorer`; `ValueError` if a step has no score, or one outside [0, 1]."""
        with others_code(f"scorer {self.name!r}, at the question {question!r:.80},"):
            result = self.function(question, steps_KN, trajectories)
            scores = result if isinstance(result, Scores) else Scores([[float(r) for r in row] for row in result])
        found, wanted = [len(row) for row in scores.score_KN], [len(steps) for steps in steps_KN]
        if found != wanted:
            raise ValueError(f"scorer {self.name!r} gave {found} scores per trajectory for {wanted} steps")
        outside = [score for row in scores.score_KN for score in row if not 0 <= score <= 1]
        if outside:
            raise ValueError(f"scorer {self.name!r} gave the score {outside[0]}; scores lie between 0 and 1")
        return scores


_ACCEPTED = (
    "'calculator', 'confidence', 'prm:MODEL' (a folder or a name on the hub), 'module:function' or 'file.py:function'"
)


def load_scorer(spec: str, task: Task, *, trust_remote_code: bool = False) -> Scorer:
    """The scorer that a command line or YAML names.

    Args:
        spec: `calculator`, `confidence`, `prm:MODEL`, `module:function` or `file.py:function`.
        task: the task whose step checker `calculator` uses.
        trust_remote_code: whether a process reward model may bring code of its own.

    Raises:
        ValueError: if it is none of these, the module or function does not exist, or the task has no checker.
    """
    if spec == "calculator":
        return Calculator(task)
    if spec == "confidence":
        return Confidence()
    kind, colon, name = spec.partition(":")
    if not (kind and colon and name):
        raise ValueError(f"scorer {spec!r} is not one of {_ACCEPTED}")
    if kind == "prm":
        from lockstitch.stitching.prm import ProcessRewardModel  # imports torch and transformers

        return ProcessRewardModel(name, trust_remote_code=trust_remote_code)
    if not is_place(spec):
        raise ValueError(f"scorer {spec!r} is not one of {_ACCEPTED}")
    function = load_named("scorer", spec)
    if not callable(function):
        raise ValueError(f"scorer {spec!r} is {function!r}, which cannot be called")
    return Custom(spec, function)
