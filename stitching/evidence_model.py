"""The vote by evidence with fitted weights: how likely each trajectory is to be right, given what the others say.

A vote by scores adds up what trajectories are worth alone. Here a logistic regression reads each together with the others:
its own score, the scores of those with its answer and of those with another, whether they state the same results on the
way, and which source wrote it, where the trajectories of every problem come from the same sources in the same order. The
answer is that of the likeliest trajectory. It is fitted on problems whose answers are known, with scores that were not
fitted on them (`recipes/trace_labels.py`). Left out: the wording of what they say.

Axes: K trajectories, F features.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from lockstitch.rewards.extract import NUMBER, clean
from lockstitch.stitching.logistic import Logistic
from lockstitch.stitching.score import scorer_parts

FILE = "evidence_weights.json"

_RESULT = re.compile(rf"=\s*\$?({NUMBER})")
_CLIP = 0.02
COMMON = ("odds", "same", "others", "strongest_other", "doubt_of_same", "shared_results", "more_than_usual")


def names_of(sources: int) -> tuple[str, ...]:
    """The features of trajectories that come from so many sources."""
    return (*COMMON, *(f"source_{k}" for k in range(sources)))


def results_stated(texts: Sequence[str]) -> set[str]:
    """The numbers that steps give as results: what stands behind an equals sign."""
    return {clean(number) for text in texts for number in _RESULT.findall(text)}


def evidence_features(
    same_K: Sequence[object], weights_K: Sequence[float], results_K: Sequence[set[str]], sources: int, usual: int
) -> list[list[float]]:
    """The features of every trajectory, `(K, F)`, in the order of `names_of(sources)`.

    Args:
        same_K: the class of each answer, None where there is none.
        weights_K: their scores, in [0, 1].
        results_K: the results that their steps state.
        sources: how many sources there are; a trajectory beyond them is of none.
        usual: how many trajectories a problem has at least.
    """
    p_K = [min(1 - _CLIP, max(_CLIP, weight)) for weight in weights_K]
    rows = []
    for k, p in enumerate(p_K):
        others = [j for j in range(len(p_K)) if j != k]
        same = [j for j in others if same_K[k] is not None and same_K[j] == same_K[k]]
        agreeing = set(same)
        different = [j for j in others if j not in agreeing]
        shared = (p_K[j] * len(results_K[k] & results_K[j]) / max(1, len(results_K[k] | results_K[j])) for j in others)
        rows.append(
            [
                math.log(p / (1 - p)),
                sum(p_K[j] for j in same),
                sum(p_K[j] for j in different),
                max((p_K[j] for j in different), default=0.0),
                sum(math.log(1 - p_K[j]) for j in same),
                sum(shared),
                float(len(p_K) - usual),
                *(float(k == source) for source in range(sources)),
            ]
        )
    return rows


def check_weights(place: str, scorer: str, is_unread: bool) -> None:
    """Raises `ValueError` for fitted weights that were fitted on other scores than `scorer` gives, or that nothing reads.

    Args:
        place: the file of the weights, for the message.
        scorer: the name of the scorer, which may be a sum.
        is_unread: whether every answer is a chain's own or the solver's, and none the vote's.
    """
    if not any(part.startswith("verifier:") for part in scorer_parts(scorer)):
        raise ValueError(
            f"evidence_weights={place!r} are fitted on a verifier's scores, and scorer={scorer!r} has none: verifier:DIR"
        )
    if is_unread:
        raise ValueError(
            f"evidence_weights={place!r} would be ignored: a chain that stands is its own answer, and the solver reads the "
            "others: --solver none"
        )


class EvidenceModel:
    """A fitted vote by evidence.

    Args:
        model: the regression, on the features of `names_of(sources)`.
        sources: that many.
        usual: see `evidence_features`.
    """

    def __init__(self, model: Logistic, sources: int, usual: int) -> None:
        self.model, self.sources, self.usual = model, sources, usual

    @classmethod
    def read(cls, place: str) -> "EvidenceModel":
        """That of a file; `ValueError` where there is none that can be read."""
        model = Logistic.read(Path(place), None, "fitted evidence weights")
        sources = len(model.features) - len(COMMON)
        if model.features != names_of(sources) or "usual" not in model.more:
            raise ValueError(f"evidence_weights={place!r} is no file of fitted evidence weights: {model.features}")
        return cls(model, sources, int(model.more["usual"]))

    def best(self, same_K: Sequence[object], weights_K: Sequence[float], results_K: Sequence[set[str]]) -> int | None:
        """The trajectory with an answer that is most likely right; None where none has one."""
        found = self.model(evidence_features(same_K, weights_K, results_K, self.sources, self.usual))
        answered = [k for k, one in enumerate(same_K) if one is not None]
        return max(answered, key=found.__getitem__) if answered else None
