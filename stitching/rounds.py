"""Stitching in rounds, and the verify-and-remask loop that it must be measured against.

Both spend a budget of forward passes on one problem. A round denoises a number of canvases side by side; the steps that
stand are pinned and the next round denoises only what is open. The loop runs one canvas a round and looks at its own
last attempt alone; stitching runs several and looks at every step that any of them wrote. With one canvas a round and no
memory the two are the same thing, which is why the loop is the control.

A step can be sound and lead nowhere. So every canvas pins what was pinned least often so far, and of those the most:
first the best chain, then other trajectories' sound steps, then either with their last steps released. The loop
backtracks in the same way, from its last attempt.

Problems are independent: all problems that still run share each call of the sampler.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lockstitch.rewards.steps import check_steps
from lockstitch.rewards.tasks import Task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import Canvas, sample
from lockstitch.sampling.noise import derive_seed
from lockstitch.sampling.trajectory import Trajectory
from lockstitch.stitching.canvas import pin_chain
from lockstitch.stitching.pool import Pool
from lockstitch.stitching.score import Scorer
from lockstitch.stitching.steps import Clue, Evidence
from lockstitch.stitching.stitch import best_path

_Key = tuple[tuple[int, str], ...]  # the pinned steps: place in the chain, text


@dataclass(frozen=True)
class RoundsResult:
    """What the rounds came to: the last evidence, the text of the last canvas, and whether the chain stands."""

    evidence: Evidence
    text: str
    complete: bool


def stands(task: Task, question: str, chain: Sequence[Clue], delta: float) -> bool:
    """Whether a chain needs no more work: nothing is left to do after it and every step scores at least `delta`."""
    state = task.checker.start(question)
    for clue in chain:
        state, _ = task.checker.advance(state, clue.step.text)
    return bool(chain) and task.checker.is_complete(state) and all(clue.score >= delta for clue in chain)


def own_chain(task: Task, pool: Pool, k: int) -> tuple[Clue, ...]:
    """The steps of trajectory k as a chain, each with its score times its soundness in that chain."""
    steps, scores = pool.steps_KN[k], pool.score_KN[k]
    sound = check_steps(task.checker, pool.question, [step.text for step in steps])
    return tuple(
        Clue(step, score * soundness, ((step.trajectory, step.index),))
        for step, score, soundness in zip(steps, scores, sound, strict=True)
    )


def stitch_rounds(
    denoiser: Denoiser,
    task: Task,
    pools: Sequence[Pool],
    scorer: Scorer,
    config: SamplerConfig,
    *,
    budgets: Sequence[int],
    widths: Sequence[int],
    delta: float,
    seeds: Sequence[int],
    memory: bool = True,
    progress: Callable[[int], None] | None = None,
) -> list[RoundsResult]:
    """Runs rounds on every problem until its chain stands or its budget is spent. The pools grow as they go.

    Args:
        pools: one per problem, each with at least one trajectory, which counts against the budget.
        budgets: forward passes (NFE) per problem. A round is narrowed to what its budget still pays for; its first
            canvas always runs, so a problem overspends by at most one partial canvas.
        widths: canvases per round; the last width repeats.
        delta: steps that score at least this are pinned.
        seeds: noise of each problem's rounds.
        memory: stitch over everything written so far; False looks at the newest trajectory alone (the loop).
        progress: called with the number of problems just finished.

    Returns:
        One result per problem.
    """
    assert all(pool.trajectories for pool in pools)
    results: dict[int, RoundsResult] = {}
    tries: list[Counter[_Key]] = [Counter() for _ in pools]
    for round_index in itertools.count():
        width = widths[min(round_index, len(widths) - 1)]
        requests: list[_Request] = []
        for i, pool in enumerate(pools):
            if i in results:
                continue
            evidence = _look(task, pool, delta, memory)
            complete = stands(task, pool.question, evidence.chain, delta)
            if complete or pool.ledger.nfe >= budgets[i]:
                results[i] = RoundsResult(evidence, pool.texts_K[-1], complete)
                if progress is not None:
                    progress(1)
                continue
            left = budgets[i] - pool.ledger.nfe
            chains = [evidence.chain]
            if memory:
                chains += [own_chain(task, pool, k) for k in range(len(pool.texts_K))]
            candidates = _candidates(chains, delta)
            for k in range(width):
                key = min(candidates, key=lambda key, tried=tries[i]: (tried[key], -len(key)))  # type: ignore[misc]
                canvas = pin_chain(denoiser, task, candidates[key], {t for t, _ in key}, config.canvas_length)
                left -= _passes(canvas, config)
                if k > 0 and left < 0:
                    break
                tries[i][key] += 1
                requests.append(_Request(i, canvas, derive_seed(seeds[i], round_index, k)))
        if not requests:
            return [results[i] for i in range(len(pools))]
        drawn = sample(
            denoiser,
            [task.prompt(pools[request.problem].question) for request in requests],
            config,
            seed=[request.seed for request in requests],
            canvases=[request.canvas for request in requests],
        )
        new: dict[int, list[Trajectory]] = {}
        for request, trajectory in zip(requests, drawn, strict=True):
            new.setdefault(request.problem, []).append(trajectory)
        for i, trajectories in new.items():
            pools[i].draw(denoiser, task, scorer, trajectories)
    raise AssertionError("unreachable")


def _candidates(chains: Sequence[tuple[Clue, ...]], delta: float) -> dict[_Key, tuple[Clue, ...]]:
    """What a canvas may pin, each with the chain whose open steps it masks: all that stands, or all but the last few."""
    found: dict[_Key, tuple[Clue, ...]] = {}
    for chain in chains:
        standing = [(t, clue.step.text) for t, clue in enumerate(chain) if clue.score >= delta]
        for kept in range(len(standing), -1, -1):
            found.setdefault(tuple(standing[:kept]), chain)
    return found


@dataclass(frozen=True)
class _Request:
    problem: int
    canvas: Canvas
    seed: int


def _look(task: Task, pool: Pool, delta: float, memory: bool) -> Evidence:
    if memory:
        return best_path(pool.question, task.checker, pool.steps_KN, pool.score_KN, delta)
    newest = len(pool.texts_K) - 1
    chain = own_chain(task, pool, newest)
    return Evidence(chain, newest, chain)


def _passes(canvas: Canvas, config: SamplerConfig) -> int:
    """The forward passes that a canvas takes under quota (an upper bound under threshold)."""
    masks = sum(token is None for token in canvas)
    per_step = config.canvas_length / config.total_steps
    return max(1, math.ceil(masks / per_step))
