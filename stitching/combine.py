"""Several scorers as one: a logistic regression on the log-odds of their scores, fitted on labelled steps.

`a+b` scores a step by sigmoid(bias + w_a logit(a) + w_b logit(b)). Without fitted weights each part weighs the same and all
of them together 1: the geometric mean of the odds. With the weights (1, 0) it is `a`; one scorer with a weight and a bias is
that scorer calibrated (Platt, 1999). Left out: what the parts say together and neither alone.

Axes: K trajectories, N steps of one trajectory, M labelled steps, S scorers.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lockstitch.sampling.trajectory import Ledger, Trajectory
from lockstitch.stitching.score import Scorer, Scores, reads_text_alone
from lockstitch.stitching.steps import Step

from lockstitch.files import to_json, write_whole

logger = logging.getLogger(__name__)

CLIP = 1e-6  # scores are taken to be at least this far from 0 and 1, whose log-odds are infinite
RIDGE = 1e-3


@dataclass(frozen=True)
class Weights:
    """What each part of a scorer weighs.

    Attributes:
        parts: the scorers, by name, in the order of the sum.
        weights: one each.
        bias: added to the weighted log-odds.
        steps: how many labelled steps they were fitted on; 0 where nothing was.
    """

    parts: tuple[str, ...]
    weights: tuple[float, ...]
    bias: float = 0.0
    steps: int = 0

    @classmethod
    def equal(cls, parts: Sequence[str]) -> "Weights":
        """The same weight for each, 1 together; says so."""
        if len(parts) > 1:
            logger.warning(
                "scorer %s: no weights were fitted, so each of the %d parts weighs the same (1/%d)",
                "+".join(parts),
                len(parts),
                len(parts),
            )
        return cls(tuple(parts), (1 / len(parts),) * len(parts))

    @classmethod
    def read(cls, path: str, parts: Sequence[str]) -> "Weights":
        """Those of a file; `ValueError` where there is none that can be read, or it is of another scorer."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            found = cls(
                tuple(values["parts"]), tuple(map(float, values["weights"])), float(values["bias"]), values["steps"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"scorer_weights={path!r} is no file of fitted weights: {why}") from error
        if not all(map(math.isfinite, (found.bias, *found.weights))):
            raise ValueError(f"scorer_weights={path!r} is no file of fitted weights: a weight is not finite")
        if found.parts != tuple(parts) or len(found.weights) != len(parts):
            raise ValueError(
                f"scorer_weights={path!r} are those of {'+'.join(found.parts)!r}, not of {'+'.join(parts)!r}"
            )
        return found

    def write(self, path: Path) -> None:
        """Writes the file that `read` reads."""
        write_whole(path, to_json(asdict(self)))

    def __call__(self, scores_S: Sequence[float]) -> float:
        """The combined score of a step, in (0, 1)."""
        odds = self.bias + sum(w * logit(score) for w, score in zip(self.weights, scores_S, strict=True))
        return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0


def logit(score: float) -> float:
    """The log-odds of a score, clipped to [1e-6, 1 - 1e-6]."""
    score = min(1 - CLIP, max(CLIP, score))
    return math.log(score) - math.log1p(-score)


def fit(parts: Sequence[str], scores_MS: Sequence[Sequence[float]], labels_M: Sequence[float]) -> Weights:
    """The weights of the largest likelihood of the labels, by Newton's steps, with a ridge of 1e-3 on the weights.

    Args:
        parts: names of the scorers.
        scores_MS: what each says of each labelled step.
        labels_M: the labels, 0 or 1 or soft between them.

    Raises `ValueError` where there are no steps, or all labels are 0 or all 1, from which nothing can be learned.
    """
    if not labels_M or len(set(labels_M)) < 2:
        raise ValueError(
            f"{len(labels_M)} labelled steps of {len(set(labels_M))} different labels: weights of "
            f"{'+'.join(parts)!r} cannot be fitted"
        )
    x_MS = torch.tensor([[1.0, *map(logit, row)] for row in scores_MS], dtype=torch.float64)
    y_M = torch.tensor(labels_M, dtype=torch.float64)
    ridge_SS = RIDGE * len(labels_M) * torch.eye(x_MS.shape[1], dtype=torch.float64)
    ridge_SS[0, 0] = 1e-9
    w_S = torch.zeros(x_MS.shape[1], dtype=torch.float64)

    def loss(w_S: torch.Tensor) -> float:
        odds_M = x_MS @ w_S
        return float((torch.nn.functional.softplus(odds_M) - y_M * odds_M).sum() + 0.5 * w_S @ ridge_SS @ w_S)

    for _ in range(100):
        p_M = torch.sigmoid(x_MS @ w_S)
        gradient_S = x_MS.T @ (p_M - y_M) + ridge_SS @ w_S
        curvature_SS = x_MS.T @ (x_MS * (p_M * (1 - p_M))[:, None]) + ridge_SS
        step_S = torch.linalg.solve(curvature_SS, gradient_S)
        size = 1.0
        while size > 1e-4 and loss(w_S - size * step_S) > loss(w_S):  # far away Newton's step may overshoot
            size /= 2
        w_S = w_S - size * step_S
        if float(step_S.abs().max()) < 1e-9:
            break
    bias, *weights = w_S.tolist()
    return Weights(tuple(parts), tuple(weights), bias, len(labels_M))


class Combined:
    """A scorer made of others."""

    def __init__(self, scorers: Sequence[Scorer], weights: Weights) -> None:
        self.scorers, self.weights = list(scorers), weights
        self.reads_text_alone = all(map(reads_text_alone, self.scorers))

    def __call__(
        self, question: str, steps_KN: Sequence[Sequence[Step]], trajectories: Sequence[Trajectory] | None
    ) -> Scores:
        """See `Scorer`; asks one part after the other, and their bills add up."""
        found = [scorer(question, steps_KN, trajectories) for scorer in self.scorers]
        score_KN = [
            [self.weights(scores_S) for scores_S in zip(*rows, strict=True)]
            for rows in zip(*(one.score_KN for one in found), strict=True)
        ]
        cost = Ledger()
        for one in found:
            cost = cost.then(one.cost())
        return Scores(score_KN, more=cost)
