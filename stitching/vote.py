"""Choosing an answer among trajectories without stitching: the baselines that need no further model call.

Axes: K trajectories.
"""

from collections.abc import Hashable, Sequence


def majority_vote(answers_K: Sequence[str | None], same: Sequence[Hashable] | None = None) -> int | None:
    """The index of the first trajectory that gave the most frequent answer; None if no trajectory has one.

    `same` names the class of each answer where different texts are the same answer (default: the text).
    """
    return weighted_vote(answers_K, [1.0] * len(answers_K), same)


def weighted_vote(
    answers_K: Sequence[str | None], weights_K: Sequence[float], same: Sequence[Hashable] | None = None
) -> int | None:
    """As `majority_vote`, each trajectory with its weight; ties go to the answer that came first."""
    keys = list(same if same is not None else answers_K)
    totals: dict[Hashable, float] = {}
    for key, answer, weight in zip(keys, answers_K, weights_K, strict=True):
        if answer is not None:
            totals[key] = totals.get(key, 0.0) + weight
    if not totals:
        return None
    winner = max(totals, key=lambda key: totals[key])
    return next(k for k, key in enumerate(keys) if key == winner and answers_K[k] is not None)


def best_of_n(
    answers_K: Sequence[str | None], weights_K: Sequence[float], same: Sequence[Hashable] | None = None
) -> int | None:
    """The trajectory with the highest weight among those with an answer; a vote decides among equals.

    Exact scorers give many trajectories the same weight, and to take the first of them would be to trust the order in
    which they came.
    """
    candidates = [k for k, answer in enumerate(answers_K) if answer is not None]
    if not candidates:
        return None
    highest = max(weights_K[k] for k in candidates)
    among = [answer if weights_K[k] == highest else None for k, answer in enumerate(answers_K)]
    keys = list(same if same is not None else answers_K)
    return majority_vote(among, keys)
