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

Options of `trajectory`: some of the segments alone (`segments_drawn`), those with much surprise first
(`surprisal_temperature`); in each also what is still masked, as far as it is sure (`clean_threshold`); and the choice of the
positions (`position_temperature`, see `lockstitch.rl.order`).

Leaves out the choice of the sampler's temperature: that is the scorer's.

Axes: B rows, G canvas positions, N segments, K visits, C channels of an answer.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.rl.masks import Draw
from lockstitch.rl.order import order_logp
from lockstitch.rl.passes import open_positions
from lockstitch.rl.scoring import Canvases, Scorer


class Visit(NamedTuple):
    """One pass over states that rollouts were in.

    What they showed; which of the tokens committed there are scored; which others had yet to be committed; and what the
    visit counts, by row (None is 1).
    """

    shown_BG: torch.Tensor
    now_BG: torch.Tensor
    later_BG: torch.Tensor | None = None
    weight_B: torch.Tensor | None = None


def replay(config: EstimatorConfig, scorer: Scorer, canvases: Canvases, iteration: int = 0) -> torch.Tensor:
    """Channels `(B, G, C)` of each token: its log-probability; with `position_temperature` that of its position; with the
    scorer's `entropies` the entropy of its distribution in nats.

    Raises `ValueError` where the trace that the estimator reads is missing.
    """
    total: torch.Tensor | None = None
    several = config.segments != 1
    for number, visit in enumerate(_visits(config, scorer, canvases, iteration)):
        asked_BG = visit.now_BG
        if visit.later_BG is not None:
            asked_BG = asked_BG | visit.later_BG
        answer = scorer(canvases, visit.shown_BG, asked_BG, recompute=several)
        logp_BG = answer[..., 0] if scorer.entropies else answer
        channels = [logp_BG * _counted(config, canvases, visit, logp_BG, number)]
        if config.position_temperature is not None:
            channels.append(_order(config, canvases, visit, logp_BG))
        if scorer.entropies:
            channels.append(answer[..., 1] * visit.now_BG)
        visited = torch.stack(channels, 2)
        if visit.weight_B is not None:
            visited = visited * visit.weight_B.to(visited)[:, None, None]
        total = visited if total is None else total + visited
    assert total is not None
    return total


def clean_tokens(config: EstimatorConfig, scorer: Scorer, canvases: Canvases, iteration: int) -> torch.Tensor:
    """Which tokens each visit counts under `clean_threshold`, bool `(B, K, G)`, as the scorer's policy finds them.

    As `clean_BKG` of the canvases it makes other policies count the same ones.
    """
    counted = []
    with torch.no_grad():
        for number, visit in enumerate(segments(config, scorer, canvases, iteration)):
            assert visit.later_BG is not None
            logp_BG = scorer(canvases, visit.shown_BG, visit.now_BG | visit.later_BG)
            counted.append(_counted(config, canvases, visit, logp_BG, number))
    return torch.stack(counted, 1)


def _visits(config: EstimatorConfig, scorer: Scorer, canvases: Canvases, iteration: int) -> Iterator[Visit]:
    if config.estimator == "trajectory":
        return segments(config, scorer, canvases, iteration)
    return forks(config, canvases) if config.estimator == "forks" else positions(config, canvases)


def segments(config: EstimatorConfig, scorer: Scorer, canvases: Canvases, iteration: int) -> Iterator[Visit]:
    """Segment after segment of the denoising steps, all of them or those that are drawn."""
    steps_BG = _steps(config, canvases)
    open_BG, given_BG = open_positions(config, canvases)
    last_B1 = steps_BG.amax(1, keepdim=True).clamp(min=1)
    count = int(last_B1.max()) if config.segments is None else config.segments
    segment_BG = steps_BG - 1 if config.segments is None else (steps_BG - 1) * count // last_B1
    committed_BG = steps_BG > 0
    weight_B = None
    if config.segments_drawn is None:
        chosen_BK = torch.arange(count, device=steps_BG.device).expand(len(canvases), count)
    else:
        chosen_BK, weight_B = draw_segments(config, canvases, segment_BG, open_BG, count, iteration)
    for now_B1 in (chosen_BK[:, k : k + 1] for k in range(chosen_BK.shape[1])):
        now_BG = open_BG & (segment_BG == now_B1)
        later_BG = None
        if config.clean_threshold is not None or config.position_temperature is not None:
            later_BG = committed_BG & (segment_BG >= now_B1) & ~now_BG & (now_B1 >= 0)
            if scorer.family.layout != "full" or config.position_temperature is not None:
                later_BG = later_BG & _within(canvases, now_BG)
        yield Visit(given_BG | committed_BG & (segment_BG < now_B1), now_BG, later_BG, weight_B)


def draw_segments(
    config: EstimatorConfig,
    canvases: Canvases,
    segment_BG: torch.Tensor,
    open_BG: torch.Tensor,
    count: int,
    iteration: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Which segments each row visits, `(B, K)`, -1 where it has no more, and what each counts, `(B,)`.

    Drawn without replacement among those with tokens to score: evenly, each counting N / K, so that the mean over all draws
    is the sum over all N; or with probability `softmax(mean surprisal / T)`, each counting 1 (RLDF, 2605.25638).
    """
    assert config.segments_drawn is not None
    one_BG = open_BG.float()
    tokens_BN = torch.zeros(len(canvases), count, device=open_BG.device)
    tokens_BN = tokens_BN.scatter_add(1, segment_BG.clamp(min=0), one_BG)
    # The top K of log-weights with Gumbel noise are a draw of K without replacement.
    noise_BN = Draw(canvases.seeds_B, iteration, 0).segments(count)
    key_BN = -(-noise_BN.clamp(min=1e-300).log()).log()
    if config.surprisal_temperature is not None:
        if canvases.confidence_BG is None:
            raise ValueError("confidence_BG=None: surprisal_temperature reads how sure the rollout was of its tokens")
        surprisal_BG = -canvases.confidence_BG.clamp(min=1e-10).log() * one_BG
        total_BN = torch.zeros_like(tokens_BN).scatter_add(1, segment_BG.clamp(min=0), surprisal_BG)
        key_BN = key_BN + total_BN / tokens_BN.clamp(min=1) / config.surprisal_temperature
    key_BN = key_BN.masked_fill(tokens_BN == 0, -torch.inf)
    key_BK, chosen_BK = key_BN.topk(min(config.segments_drawn, count), 1)
    chosen_BK = chosen_BK.masked_fill(key_BK == -torch.inf, -1)
    if config.surprisal_temperature is not None:
        return chosen_BK, None
    return chosen_BK, (tokens_BN > 0).sum(1) / (chosen_BK >= 0).sum(1).clamp(min=1)


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
    """Position after position, from left to right: the chain rule; one visit that asks nothing where none is open."""
    open_BG, given_BG = open_positions(config, canvases)
    position_G = torch.arange(open_BG.shape[1], device=open_BG.device)
    for k in open_BG.any(0).nonzero()[:, 0].tolist() or [0]:
        yield Visit(given_BG | open_BG & (position_G < k), open_BG & (position_G == k))


def _counted(
    config: EstimatorConfig, canvases: Canvases, visit: Visit, logp_BG: torch.Tensor, number: int
) -> torch.Tensor:
    """The tokens whose log-probability a visit counts: what was committed there, and what was sure to be later."""
    if config.clean_threshold is None:
        return visit.now_BG
    if canvases.clean_BKG is not None:
        return canvases.clean_BKG[:, number]
    assert visit.later_BG is not None
    open_BG, _ = open_positions(config, canvases)
    least = math.log(config.clean_threshold) if config.clean_threshold else -torch.inf
    return visit.now_BG | visit.later_BG & open_BG & (logp_BG.detach() >= least)


def _order(config: EstimatorConfig, canvases: Canvases, visit: Visit, logp_BG: torch.Tensor) -> torch.Tensor:
    """The log-probability of the choice of each position that was committed."""
    assert visit.later_BG is not None
    assert config.position_temperature is not None
    steps_BG = _steps(config, canvases)
    confidence_BG = canvases.confidence_BG
    if confidence_BG is None:
        raise ValueError("confidence_BG=None: position_temperature reads in which order a step's tokens were sure")
    step_B1 = torch.where(visit.now_BG, steps_BG, 0).amax(1, keepdim=True)
    candidates_BG = visit.now_BG | visit.later_BG
    chosen_BG = candidates_BG & (steps_BG == step_B1)  # with what follows the end
    found_BG = order_logp(logp_BG / config.position_temperature, candidates_BG, chosen_BG, confidence_BG)
    return found_BG * visit.now_BG


def _within(canvases: Canvases, now_BG: torch.Tensor) -> torch.Tensor:
    """The positions of the blocks that were begun when those of `now_BG` were committed."""
    if canvases.block_BG is None:
        raise ValueError("block_BG=None: what is still masked in a block is read from the rollout's trace")
    latest_B1 = torch.where(now_BG, canvases.block_BG, -1).amax(1, keepdim=True)
    return canvases.block_BG <= latest_B1


def _steps(config: EstimatorConfig, canvases: Canvases) -> torch.Tensor:
    if canvases.commit_step_BG is None:
        raise ValueError(f"commit_step_BG=None: estimator={config.estimator!r} reads the rollout's trace")
    return canvases.commit_step_BG
