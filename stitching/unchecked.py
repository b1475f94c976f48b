"""Stitching without an exact checker: nothing but the scorer says what is sound.

The rule `path` multiplies scores by what the task's checker says of a step in its new chain, and rounds end when the checker
finds the chain complete. Where a judge that errs is to be measured, or is all that there is, neither may help it: every step
is as sound as its score, and a chain is complete when an answer can be read off it, right or wrong.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from lockstitch.rewards.steps import SOUND
from lockstitch.rewards.tasks.task import Task

Texts = tuple[str, ...]


class Unchecked:
    """A `StepChecker` that finds every step sound. State: the steps so far.

    Args:
        conclude: steps -> the answer that they amount to, or None; None takes every chain for complete.
    """

    def __init__(self, conclude: Callable[[Sequence[str]], str | None] | None) -> None:
        self.conclude = conclude

    def start(self, question: str) -> Texts:
        """No steps."""
        return ()

    def advance(self, state: Texts, step: str) -> tuple[Texts, float]:
        """Sound."""
        return (*state, step), SOUND

    def is_complete(self, state: Texts) -> bool:
        """Whether the chain says an answer."""
        return self.conclude is None or self.conclude(state) is not None


def unchecked(task: Task) -> Task:
    """The task without its checker. Sentences end in an answer of their own words, which no chain is asked for."""
    open_ended = task.checker is None or task.unit == "sentence"
    return replace(task, checker=Unchecked(None if open_ended else task.conclude))
