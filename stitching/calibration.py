"""How well scores tell right from wrong, and whether they mean what they say: AUC, reliability, calibration error.

Outcomes may be soft, a probability of being right: then a pair counts by the probability that the one is right and the
other wrong. Left out: intervals of the AUC.

Axes: M scored things (steps, or whole traces).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lockstitch.rewards.steps import SOUND, check_steps
from lockstitch.rewards.tasks.task import Task

BINS = 10


def auc(score_M: Sequence[float], outcome_M: Sequence[float]) -> float | None:
    """The probability that a right one scores more than a wrong one, ties half (Mann-Whitney); None without both."""
    totals: dict[float, list[float]] = {}
    for score, outcome in zip(score_M, outcome_M, strict=True):
        at = totals.setdefault(score, [0.0, 0.0])
        at[0] += 1 - outcome
        at[1] += outcome
    below = pairs = 0.0
    for _, (wrong, right) in sorted(totals.items()):
        pairs += right * (below + wrong / 2)
        below += wrong
    # Nothing is paired with itself, which a soft outcome would be with its own other half.
    itself = sum(outcome * (1 - outcome) for outcome in outcome_M)
    all_pairs = sum(outcome_M) * below - itself
    return (pairs - itself / 2) / all_pairs if all_pairs > 1e-9 else None


def reliability(score_M: Sequence[float], outcome_M: Sequence[float], bins: int = BINS) -> list[dict[str, float]]:
    """The reliability diagram: for each bin of scores that holds any, its bounds, `n`, mean `score` and mean `outcome`.

    Bins are of one width; the last one holds 1.
    """
    members: dict[int, list[tuple[float, float]]] = {}
    for score, outcome in zip(score_M, outcome_M, strict=True):
        members.setdefault(min(bins - 1, int(score * bins)), []).append((score, outcome))
    return [
        {
            "low": i / bins,
            "high": (i + 1) / bins,
            "n": len(held),
            "score": sum(score for score, _ in held) / len(held),
            "outcome": sum(outcome for _, outcome in held) / len(held),
        }
        for i, held in sorted(members.items())
    ]


def calibration_error(diagram: Sequence[Mapping[str, float]]) -> float | None:
    """The expected calibration error (Naeini, 2015): the distance of score and outcome, a mean over what bins hold."""
    n = sum(one["n"] for one in diagram)
    return sum(one["n"] * abs(one["score"] - one["outcome"]) for one in diagram) / n if n else None


def judge_scores(score_M: Sequence[float], outcome_M: Sequence[float]) -> dict[str, Any]:
    """`n`, `right` (mean outcome), `auc`, `ece`, `brier` (mean squared distance) and the `bins` of the diagram."""
    n = len(score_M)
    diagram = reliability(score_M, outcome_M)
    brier = sum((s - y) ** 2 for s, y in zip(score_M, outcome_M, strict=True)) / n if n else None
    return {
        "n": n,
        "right": sum(outcome_M) / n if n else None,
        "auc": auc(score_M, outcome_M),
        "ece": calibration_error(diagram),
        "brier": brier,
        "bins": diagram,
    }


def scorer_against_checker(task: Task, rows: Sequence[Mapping[str, Any]], num_trajectories: int) -> dict[str, Any]:
    """The scores in rows of `results.jsonl` against the task's exact checker on the same steps, and against the answers.

    A step is right where the checker calls it sound in its own trajectory; steps of which it can say nothing (0.5) are left
    out. A trajectory is right where its answer is, and scores the geometric mean of its steps. Of each row the first
    `num_trajectories` count: canvases of later rounds repeat the steps that were pinned, with the scores they had.
    """
    steps: list[tuple[float, float]] = []
    traces: list[tuple[float, float]] = []
    for row in rows:
        for trajectory in row["trajectories"][:num_trajectories]:
            if task.checker is not None:
                sound = check_steps(task.checker, row["question"], [step["text"] for step in trajectory["steps"]])
                steps += [
                    (step["score"], float(right == SOUND))
                    for step, right in zip(trajectory["steps"], sound, strict=True)
                    if right in (0.0, SOUND)
                ]
            if trajectory["correct"] is not None and trajectory["steps"]:
                traces.append((trajectory["mean_score"], float(trajectory["correct"])))
    return {
        name: judge_scores([score for score, _ in pairs], [outcome for _, outcome in pairs])
        for name, pairs in (("steps", steps), ("traces", traces))
    }
