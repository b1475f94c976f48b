"""Checking reasoning one step at a time, exactly and without a model.

A checker folds over the steps of a chain: it starts from what the question states and, with each step, says how sound
the step is given what is known, and what is known afterwards. A wrong step adds nothing to what is known, so whatever
is built on it is found wanting too. States are hashable, so that dynamic programming can merge chains that know the
same. The checkers themselves are their wings' business: `puzzles/checkers.py`, `mathematics/equations.py`.

Scores: 1.0 sound, 0.5 nothing to check or an operand of unknown origin, 0.0 wrong.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

UNITS = ("sentence", "line", "row")  # what a step can be, besides what a function of one's own cuts
Segmenter = Callable[[str], Sequence[str]]  # a text -> its steps, pieces of it in their order

SOUND, UNKNOWN, WRONG = 1.0, 0.5, 0.0


class StepChecker(Protocol):
    """One task's notion of a sound step."""

    def start(self, question: str) -> Any:
        """What is known before the first step (hashable)."""

    def advance(self, state: Any, step: str) -> tuple[Any, float]:
        """What is known after the step, and the step's score in [0, 1]."""

    def is_complete(self, state: Any) -> bool:
        """Whether a chain in this state has nothing left to do, where the task can tell; True where it cannot."""


class NoChecker:
    """Where nothing is known of steps: each is as sound as its score says, and a chain may end anywhere."""

    def start(self, question: str) -> None:
        """Nothing."""

    def advance(self, state: Any, step: str) -> tuple[Any, float]:
        """Sound."""
        return state, SOUND

    def is_complete(self, state: Any) -> bool:
        """True."""
        return True


def partial_soundness(checker: StepChecker, question: str, text: str, hole: str) -> float:
    """What a checker says of a text of lines some of whose characters are not known yet: 0.0 as soon as something is wrong.

    A checker that has `partial(question, text, hole)` is asked. Of any other the steps before the first line with a hole
    are, and their scores multiplied.

    Args:
        checker: the task's.
        question: what was asked.
        text: as far as it is known.
        hole: the character that stands for what is not.
    """
    own = getattr(checker, "partial", None)
    if own is not None:
        return float(own(question, text, hole))
    state, soundness = checker.start(question), 1.0
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if hole in line:
            return soundness
        step = line.strip()
        if step and not step.startswith("####"):
            state, score = checker.advance(state, step)
            soundness *= score
        if number == len(lines) - 1:
            soundness *= checker.is_complete(state)
    return soundness


def check_steps(checker: StepChecker, question: str, steps: Sequence[str]) -> list[float]:
    """The score of each step given the steps before it."""
    state = checker.start(question)
    scores = []
    for step in steps:
        state, score = checker.advance(state, step)
        scores.append(score)
    return scores
