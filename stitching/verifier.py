"""A verifier of arithmetic word problems by what can be counted: a logistic regression on features of steps.

A process reward model for where there are too few labelled traces to train a language model on, and no accelerator: what
the calculator finds, which numbers a trace uses and where they come from, what kind of number it ends in, how long it is
and how it is written. It reads a finished trace: a step's score is the probability that the trace it stands in ends right,
the step's own arithmetic counted once more. Its labels are of whole traces (`lockstitch prm --traces`). How a text is
written tells sources apart, and sources differ in how often they are right: the verifier knows that too. Left out: what a
text means.

Axes: K trajectories, N steps of one trajectory, F features.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from lockstitch.rewards.extract import NUMBER, clean
from lockstitch.rewards.steps import UNKNOWN, WRONG, NoChecker, check_steps
from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.trajectory import Trajectory
from lockstitch.stitching.logistic import Logistic
from lockstitch.stitching.score import Scores
from lockstitch.stitching.steps import Step

FILE = "verifier.json"

_NUMBER = re.compile(NUMBER)
_PLAIN = re.compile(r"(?<![\d.,])\d[\d,]*(?:\.\d+)?")  # without signs and fractions: the operands of `7/2-1`
_RESULT = re.compile(rf"=\s*\$?({NUMBER})")
_CALCULATOR = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
_LATEX = re.compile(r"\\[([a-z]")
_SPACED = re.compile(r"\d [-+*/x] \d")

FEATURES = (
    "latex",
    "calculators",
    "spaced",
    "floats",
    "steps",
    "characters",
    "repeated",
    "least_sound",
    "mean_sound",
    "wrong_steps",
    "unknown_steps",
    "whole",
    "positive",
    "size",
    "of_question",
    "used",
    "foreign",
    "decimals",
    "negatives",
    "question_characters",
    "question_numbers",
    "surplus",
    "ends_in_result",
    "step_wrong",
    "step_unknown",
    "step_foreign",
    "step_place",
)


def _numbers(text: str) -> list[str]:
    return [clean(number) for number in _PLAIN.findall(text)]


def _value(number: str) -> float:
    try:
        return float(number)
    except ValueError:
        return math.nan


def features(question: str, steps: Sequence[str], sound: Sequence[float]) -> list[list[float]]:
    """The features of every step of a trace, `(N, F)`, in the order of `FEATURES`.

    Args:
        question: what was asked.
        steps: the trace, without its answer line.
        sound: what the calculator says of each step.
    """
    asked = set(_numbers(question))
    text = "\n".join(steps)
    said = set(_numbers(text))
    results = [clean(number) for number in _RESULT.findall(text)]
    calculators = _CALCULATOR.findall(text)
    operands = [set(_numbers(left)) for left, _ in _CALCULATOR.findall(text)]
    made = set(results) | {clean(result) for _, result in calculators}
    foreign = set().union(*operands) - asked - made
    last = [clean(number) for number in _NUMBER.findall(steps[-1])[-1:]] if steps else []
    value = _value(last[0]) if last else math.nan
    known = math.isfinite(value) and abs(value) < 1e15
    whole = [
        float(bool(_LATEX.search(text))),
        float(len(calculators)),
        float(bool(_SPACED.search(text))),
        float(".0>>" in text),
        float(len(steps)),
        math.log(len(text) + 1),
        1 - len(set(steps)) / max(1, len(steps)),
        min(sound, default=UNKNOWN),
        sum(sound) / len(sound) if sound else UNKNOWN,
        float(sum(one == WRONG for one in sound)),
        float(sum(one == UNKNOWN for one in sound)),
        float(known and value == int(value)),
        float(known and value > 0),
        math.log1p(abs(value)) if known else 0.0,
        float(bool(last) and last[0] in asked),
        len(asked & said) / max(1, len(asked)),
        len(foreign) / max(1, len(set().union(*operands))),
        float(any("." in one and _value(one) % 1 != 0 for one in results)),
        float(any(one.startswith("-") for one in results)),
        math.log(len(question) + 1),
        float(len(asked)),
        float(abs(len(calculators) - len(asked))),
        float(bool(last) and bool(results) and last[0] == results[-1]),
    ]
    rows = []
    for place, (step, one) in enumerate(zip(steps, sound, strict=True)):
        own = set().union(*(set(_numbers(left)) for left, _ in _CALCULATOR.findall(step)))
        rows.append(
            [
                *whole,
                float(one == WRONG),
                float(one == UNKNOWN),
                float(bool(own - asked - made)),
                (place + 1) / len(steps),
            ]
        )
    return rows


class Verifier:
    """Scores steps by a fitted logistic regression on their features.

    Args:
        place: a directory that `lockstitch prm --traces` wrote, or its `verifier.json`.
        task: whose checker is the calculator.

    Raises `ValueError` for what is no such file.
    """

    def __init__(self, place: str, task: Task) -> None:
        path = Path(place)
        path = path / FILE if path.is_dir() else path
        self.model, self.task = Logistic.read(path, FEATURES, "the verifier"), task

    def __call__(
        self, question: str, steps_KN: Sequence[Sequence[Step]], trajectories: Sequence[Trajectory] | None = None
    ) -> Scores:
        """See `Scorer`. The traces are not read, and no model runs."""
        return Scores([self.of_texts(question, [step.text for step in steps]) for steps in steps_KN])

    def of_texts(self, question: str, steps: Sequence[str]) -> list[float]:
        """The scores of one trace's steps."""
        return self.model(features(question, steps, soundness(self.task, question, steps)))


def soundness(task: Task, question: str, steps: Sequence[str]) -> list[float]:
    """What the task's checker says of each step; 0.5 everywhere where it has none."""
    return check_steps(task.checker or NoChecker(), question, list(steps))
