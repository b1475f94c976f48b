"""Estimators that replay a rollout: each token given the canvas from which the sampler drew it.

| estimator | a visit | from |
|---|---|---|
| trajectory | a segment of denoising steps: all tokens that it committed | d2, 2509.21474; TraceRL, 2509.06949 |
| forks | a step that committed a fork: that fork | ForkGRPO, 2609.39859 |
| autoregressive | a position: its token given those to its left | JustGRPO, 2601.15165 |

With a segment for each step the sum of `trajectory` is the log-probability of the rollout's tokens, given the order in which
it committed them and without corrections; a longer segment treats its tokens as independent (one segment is mean-field). N
segments share a row's steps evenly: step s of S is in segment (s - 1) N // S. `forks` leaves out the tokens that reached the
threshold, and the passes of the steps that committed nothing else: a row's visits are as many as its steps with a fork.

Leaves out the choice of the sampler's temperature: that is the scorer's.

Axes: B rows, G canvas positions, C channels of an answer.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.rl.passes import open_positions
from lockstitch.rl.scoring import Canvases, Scorer


class Visit(NamedTuple):
    """One pass over states that rollouts were in: what they showed, and which of the tokens committed there are scored."""

    shown_BG: torch.Tensor
    now_BG: torch.Tensor


def replay(config: EstimatorConfig, scorer: Scorer, canvases: Canvases) -> torch.Tensor:
    """Channels `(B, G, C)` of each token: its log-probability, and with the scorer's `entropies` the entropy beside it.

    Raises `ValueError` where the trace that the estimator reads is missing.
    """
    visits = {"trajectory": segments, "forks": forks, "autoregressive": positions}[config.estimator](config, canvases)
    total_BG = scorer.nothing(canvases.valid_BG)
    several = config.segments != 1
    for visit in visits:
        total_BG = total_BG + scorer(canvases, visit.shown_BG, visit.now_BG, recompute=several)
    return total_BG if scorer.entropies else total_BG[..., None]


def segments(config: EstimatorConfig, canvases: Canvases) -> Iterator[Visit]:
    """Segment after segment of the denoising steps."""
    steps_BG = _steps(config, canvases)
    open_BG, given_BG = open_positions(config, canvases)
    last_B1 = steps_BG.amax(1, keepdim=True).clamp(min=1)
    count = int(last_B1.max()) if config.segments is None else config.segments
    segment_BG = steps_BG - 1 if config.segments is None else (steps_BG - 1) * count // last_B1
    committed_BG = steps_BG > 0
    for segment in range(count):
        yield Visit(given_BG | committed_BG & (segment_BG < segment), open_BG & (segment_BG == segment))


def forks(config: EstimatorConfig, canvases: Canvases) -> Iterator[Visit]:
    """The steps with a fork, each row's first one first; one visit that asks nothing where no row has any."""
    steps_BG = _steps(config, canvases)
    if canvases.fork_BG is None:
        raise ValueError("fork_BG=None: estimator='forks' reads where the rollout's forks stand")
    open_BG, given_BG = open_positions(config, canvases)
    fork_BG, committed_BG = open_BG & canvases.fork_BG, steps_BG > 0
    forked_BS = torch.zeros(len(canvases), int(steps_BG.max().clamp(min=0)) + 1, device=steps_BG.device)
    forked_BS = forked_BS.scatter_add(1, steps_BG.clamp(min=0), fork_BG.float()) > 0
    count_B = forked_BS.sum(1)
    step_BN = forked_BS.long().argsort(
        dim=1, descending=True, stable=True
    )  # a row's steps with a fork, in their order
    for visit in range(max(1, int(count_B.max()))):
        step_B1 = step_BN[:, visit : visit + 1]
        asks_B1 = (visit < count_B)[:, None]
        yield Visit(given_BG | committed_BG & (steps_BG < step_B1), fork_BG & (steps_BG == step_B1) & asks_B1)


def positions(config: EstimatorConfig, canvases: Canvases) -> Iterator[Visit]:
    """Position after position, from left to right: the chain rule."""
    open_BG, given_BG = open_positions(config, canvases)
    position_G = torch.arange(open_BG.shape[1], device=open_BG.device)
    for k in open_BG.any(0).nonzero()[:, 0].tolist():
        yield Visit(given_BG | open_BG & (position_G < k), open_BG & (position_G == k))


def _steps(config: EstimatorConfig, canvases: Canvases) -> torch.Tensor:
    if canvases.commit_step_BG is None:
        raise ValueError(f"commit_step_BG=None: estimator={config.estimator!r} reads the rollout's trace")
    return canvases.commit_step_BG
