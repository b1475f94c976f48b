"""The records of stitching: steps of trajectories, their scores, and the evidence that is kept of them.

Axes: K trajectories, N steps of one trajectory.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One piece of reasoning inside a trajectory.

    Attributes:
        trajectory: index of the trajectory among those of the problem.
        index: its place among the steps of that trajectory, from 0.
        text: what it says, white space stripped at both ends.
        characters: `[start, stop)` of the text in the completion.
        tokens: `[start, stop)` of the canvas positions that hold it, or None for text that no sampler of ours wrote.
    """

    trajectory: int
    index: int
    text: str
    characters: tuple[int, int]
    tokens: tuple[int, int] | None = None


@dataclass(frozen=True)
class Clue:
    """One line of evidence: a step with its score, and every other place where the same step stood.

    `sources` lists (trajectory, step index), the best-scored first.
    """

    step: Step
    score: float
    sources: tuple[tuple[int, int], ...]

    def render(self) -> str:
        """The line as a solver reads it: `[c=0.930] step`."""
        return f"[c={self.score:.3f}] {self.step.text}"


@dataclass(frozen=True)
class Evidence:
    """What the stitcher kept.

    Attributes:
        clues: in the order in which they are read (by step index, then by falling score).
        anchor: the trajectory that the evidence hangs on, or None where no single one does.
        chain: the clues that form one line of reasoning from first step to last, where the rule builds one.
    """

    clues: tuple[Clue, ...]
    anchor: int | None = None
    chain: tuple[Clue, ...] = ()

    def render(self) -> str:
        """All clues, one a line."""
        return "\n".join(clue.render() for clue in self.clues)


def in_order(clues: Sequence[Clue]) -> tuple[Clue, ...]:
    """Clues as they are read: by step index, then by falling score, then by text."""
    return tuple(sorted(clues, key=lambda clue: (clue.step.index, -clue.score, clue.step.text)))


def merge_clues(steps: Sequence[tuple[Step, float]]) -> tuple[Clue, ...]:
    """Clues sorted by (step index, -score); equal texts at one index become one clue that keeps every source."""
    ordered = sorted(steps, key=lambda pair: (pair[0].index, -pair[1], pair[0].trajectory, pair[0].text))
    merged: dict[tuple[int, str], Clue] = {}
    for step, score in ordered:
        key = (step.index, step.text)
        source = (step.trajectory, step.index)
        seen = merged.get(key)
        merged[key] = (
            Clue(step, score, (source,)) if seen is None else Clue(seen.step, seen.score, (*seen.sources, source))
        )
    return tuple(merged.values())
