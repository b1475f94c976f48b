"""Scoring steps: exactly (`calculator`), by agreement (`consensus`), by the sampler (`confidence`, `bmc`, `bound`), by
another model, or by yours.

A scorer reads all trajectories of one problem at once and gives every step a score in [0, 1], the step's within its own
trajectory. Here are what scorers share, those that need no model, and their names; the others have files of their own:
`consistency.py`, `likelihood.py`, `prm.py`, `combine.py`.

Axes: K trajectories, N steps of one trajectory (ragged).
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from lockstitch.rewards.imports import is_place, load_named
from lockstitch.rewards.steps import check_steps
from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.trajectory import Ledger, Trajectory
from lockstitch.stitching.steps import Step

from lockstitch.errors import OthersCodeError, others_code

if TYPE_CHECKING:
    from lockstitch.sampling.denoiser import Denoiser


@dataclass(frozen=True)
class Scores:
    """A score in [0, 1] of every step, and what they cost.

    Attributes:
        score_KN: the scores.
        tokens: how many tokens a scoring model read for them.
        more: what else was spent: passes of a scoring model or of the diffusion model, and those that waited.

    Raises `ValueError` for a score outside [0, 1], and for one that is no number.
    """

    score_KN: list[list[float]]
    tokens: int = 0
    more: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        outside = [score for row in self.score_KN for score in row if not 0 <= float(score) <= 1]
        if outside:
            raise ValueError(f"gave the score {outside[0]}; scores lie between 0 and 1")

    def cost(self, seconds: float = 0.0) -> Ledger:
        """The bill. A model that only says how many tokens it read did so in one pass."""
        waited = self.more.sequential_steps or int(self.tokens > 0)
        return replace(
            self.more,
            scorer_tokens=self.more.scorer_tokens + self.tokens,
            sequential_steps=waited,
            seconds=self.more.seconds + seconds,
        )


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


def reads_text_alone(scorer: Scorer) -> bool:
    """Whether equal texts always have equal scores, so that one need not be scored again; other scorers may read traces."""
    return bool(getattr(scorer, "reads_text_alone", False))


class Calculator:
    """The task's own step checker: exact, without a model, at no cost."""

    reads_text_alone = True

    def __init__(self, task: Task) -> None:
        if task.checker is None:
            raise ValueError(
                f"scorer 'calculator' asks the checker of steps, which task {task.name!r} has not: "
                "'confidence', 'prm:MODEL' or 'module:function' need none"
            )
        self.checker = task.checker

    def __call__(
        self, question: str, steps_KN: Sequence[Sequence[Step]], trajectories: Sequence[Trajectory] | None = None
    ) -> Scores:
        """See `Scorer`; the trajectories are not read."""
        return Scores([check_steps(self.checker, question, [step.text for step in steps]) for steps in steps_KN])


class Confidence:
    """The sampler's own doubt: the geometric mean of the snapshot confidences of the tokens of a step that it wrote.

    A step that was given to it whole has the confidences that its trajectory holds for it: `Pool.draw` puts those there
    with which it was written, and where nobody wrote it before they are 1.
    """

    def __call__(
        self, question: str, steps_KN: Sequence[Sequence[Step]], trajectories: Sequence[Trajectory] | None
    ) -> Scores:
        """See `Scorer`; `ValueError` where there is no trace to read."""
        if trajectories is None:
            raise ValueError(
                "the scorer 'confidence' reads the snapshot confidences of trajectories that this toolkit sampled; "
                "completions from elsewhere have none: use 'calculator', 'prm:MODEL' or 'module:function'"
            )
        return Scores(
            [
                [_mean_confidence(step, trajectory) for step in steps]
                for steps, trajectory in zip(steps_KN, trajectories, strict=True)
            ]
        )


def _mean_confidence(step: Step, trajectory: Trajectory) -> float:
    if step.tokens is None:
        raise ValueError(f"step {step.index} of trajectory {step.trajectory} has no token span to read confidences at")
    places = range(*step.tokens)
    written = [i for i in places if trajectory.commit_step[i] != 0] or places
    confidences = [trajectory.confidence[i] for i in written]
    if min(confidences) <= 0:
        return 0.0
    return min(1.0, math.exp(sum(map(math.log, confidences)) / len(confidences)))


class Consensus:
    """What the trajectories agree on: the share of the others that wrote the same step, word for word, at the same place.

    0.5 where there is no other trajectory. It needs neither model nor checker, and is as right as the majority.
    """

    def __call__(
        self, question: str, steps_KN: Sequence[Sequence[Step]], trajectories: Sequence[Trajectory] | None = None
    ) -> Scores:
        """See `Scorer`; the trajectories are not read."""
        wrote = Counter((step.index, step.text) for steps in steps_KN for step in steps)
        others = len(steps_KN) - 1
        return Scores(
            [[(wrote[s.index, s.text] - 1) / others if others else 0.5 for s in steps] for steps in steps_KN]
        )


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
            rows = result.score_KN if isinstance(result, Scores) else result
            score_KN = [[float(score) for score in row] for row in rows]
        found, wanted = [len(row) for row in score_KN], [len(steps) for steps in steps_KN]
        if found != wanted:
            raise ValueError(f"gave {found} scores per trajectory for {wanted} steps")
        return replace(result, score_KN=score_KN) if isinstance(result, Scores) else Scores(score_KN)


class Named:
    """A scorer whose faults say which it is."""

    def __init__(self, name: str, scorer: Scorer) -> None:
        self.name, self.scorer, self.reads_text_alone = name, scorer, reads_text_alone(scorer)

    def __call__(
        self, question: str, steps_KN: Sequence[Sequence[Step]], trajectories: Sequence[Trajectory] | None = None
    ) -> Scores:
        """See `Scorer`."""
        try:
            return self.scorer(question, steps_KN, trajectories)
        except OthersCodeError:
            raise
        except ValueError as error:
            raise ValueError(f"scorer {self.name!r}, at the question {question!r:.80}: {error}") from error


_ACCEPTED = (
    "'calculator', 'consensus', 'confidence', 'bmc', 'bound', 'likelihood:MODEL', 'prm:MODEL' (a folder, a name on the "
    "hub or embedded:sudoku), 'verifier:DIR', 'module:function', 'file.py:function', or several of them with + between, "
    "such as 'confidence+bmc'"
)
OF_DENOISER = frozenset({"bmc", "bound"})  # the model that wrote the trajectories is what they ask
TRACED = OF_DENOISER | {"confidence"}  # what the sampler left behind is what they read
ROWS = 256  # most rows in one forward pass of a scorer, unless it is said
COMPARING = frozenset({"consensus"})  # trajectories that stand side by side are what they compare
# Where a sum goes on: a plus sign before something that names a scorer, and not one inside a path.
_PLUS = re.compile(r"\+(?=(?:calculator|consensus|confidence|bmc|bound)(?:\+|$)|[A-Za-z_][\w.]*:)")


def scorer_parts(spec: str) -> list[str]:
    """The names of the scorers that a sum such as `confidence+bmc` is made of.

    Raises:
        ValueError: if one is there twice.
    """
    parts = _PLUS.split(spec)
    if len(set(parts)) < len(parts):
        raise ValueError(f"scorer {spec!r} adds a scorer to itself: each once")
    return parts


def load_scorer(
    spec: str,
    task: Task,
    *,
    trust_remote_code: bool = False,
    denoiser: "Denoiser | None" = None,
    weights: str | None = None,
    batch_size: int = ROWS,
    device: str | None = None,
) -> Scorer:
    """The scorer that a command line or YAML names.

    Args:
        spec: `calculator`, `consensus`, `confidence`, `bmc`, `bound`, `likelihood:MODEL`, `prm:MODEL`, `verifier:DIR`,
            `module:function`, `file.py:function`, or a sum of several (`a+b`).
        task: the task whose step checker `calculator` uses, and whose prompts models read.
        trust_remote_code: whether a process reward model may bring code of its own.
        denoiser: the diffusion model whose trajectories are scored; `bmc` and `bound` ask it.
        weights: a file of fitted weights for exactly this scorer; without one the parts of a sum weigh the same.
        batch_size: most rows in one pass of the diffusion model, where one is asked.
        device: of the models that are loaded; by default the accelerator, if there is one.

    Raises:
        ValueError: if it is none of these, the module or function does not exist, the task has no checker, or the weights
            are another scorer's.
    """
    parts = scorer_parts(spec)
    if len(parts) > 1 or weights is not None:
        from lockstitch.stitching.combine import Combined, Weights

        fitted = Weights.equal(parts) if weights is None else Weights.read(weights, parts)
        return Combined(
            [_named(part, task, trust_remote_code, denoiser, batch_size, device) for part in parts], fitted
        )
    return _named(spec, task, trust_remote_code, denoiser, batch_size, device)


def _named(spec: str, *how: Any) -> Scorer:
    scorer = _load(spec, *how)
    return scorer if isinstance(scorer, Calculator | Consensus | Confidence) else Named(spec, scorer)


def _load(
    spec: str, task: Task, trust_remote_code: bool, denoiser: "Denoiser | None", batch_size: int, device: Any
) -> Scorer:
    if spec == "calculator":
        return Calculator(task)
    if spec == "consensus":
        return Consensus()
    if spec == "confidence":
        return Confidence()
    if spec in OF_DENOISER:
        if denoiser is None:
            raise ValueError(
                f"the scorer {spec!r} asks the diffusion model that wrote the trajectories, and there is none"
            )
        from lockstitch.stitching.consistency import Consistency
        from lockstitch.stitching.likelihood import Bound

        asking: type[Consistency] | type[Bound] = Consistency if spec == "bmc" else Bound
        return asking(denoiser, task, batch_size=batch_size)
    kind, colon, name = spec.partition(":")
    if not (kind and colon and name):
        raise ValueError(f"scorer {spec!r} is not one of {_ACCEPTED}")
    if kind == "prm":
        from lockstitch.stitching.prm import ProcessRewardModel  # imports torch and transformers

        return ProcessRewardModel(name, task=task, trust_remote_code=trust_remote_code, device=device)
    if kind == "verifier":
        from lockstitch.stitching.verifier import Verifier

        return Verifier(name, task)
    if kind == "likelihood":
        from lockstitch.stitching.likelihood import load_likelihood

        return load_likelihood(name, task, batch_size, device)
    if not is_place(spec):
        raise ValueError(f"scorer {spec!r} is not one of {_ACCEPTED}")
    function = load_named("scorer", spec)
    if not callable(function):
        raise ValueError(f"scorer {spec!r} is {function!r}, which cannot be called")
    return Custom(spec, function)
