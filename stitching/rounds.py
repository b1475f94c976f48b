"""Stitching in rounds, and the verify-and-remask loop that it must be measured against.

Both spend a budget of forward passes on one problem. A round denoises a number of canvases side by side; the steps that
stand are pinned and the next round denoises only what is open. The loop looks at its own last attempt alone. Stitching
remembers: every step that any trajectory wrote, and what failed. Without that memory and with one canvas a round the two
are the same thing, which is why the loop is the control.

A step can be sound and lead nowhere. So every canvas pins what was pinned least often so far, and of those the most:
first the best chain, then other trajectories' sound steps, then either with their last steps released. The loop
backtracks in the same way, from its last attempt.

A model asked again around the same pins mostly repeats its mistake. So of every attempt the first step that does not
stand is remembered by the token of which the model was least sure (the lowest snapshot confidence), and the next attempts
around the same pins must not put that token there: a tabu list (Glover, 1986) of the last few, short enough that a right
token that was blamed comes back once others are. A step that scores more than `EVEN` is more likely right than not: it is
opened again where it stays below delta, but nothing of that attempt is remembered.

A step's score is its own in its trajectory, and says nothing of whether it follows in a chain. With `rescore` the scorer
reads each chain that was put together once more, and what it says there decides what is pinned and whether the chain stands.

Several canvases a round cannot learn from one another, unless they do so **ahead**: each but the first is forbidden what
those before it are expected to fail by, so that they try different repairs of one failure in place of the same one. With one
canvas a round that is nothing, and the rounds are those above.

Problems are independent: all problems that still run share each call of the sampler.
"""

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lockstitch.rewards.steps import NoChecker, check_steps
from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.canvases import Bans, Canvas
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample, with_given
from lockstitch.sampling.noise import derive_seed
from lockstitch.sampling.trajectory import Trajectory
from lockstitch.stitching.canvas import pin_chain
from lockstitch.stitching.pool import Pool
from lockstitch.stitching.score import Scorer
from lockstitch.stitching.steps import Clue, Evidence, in_order
from lockstitch.stitching.stitch import best_path

TABU = 3  # bans remembered for one set of pins
EVEN = 0.5  # of what scores more, nothing is banned

_Key = tuple[tuple[int, str], ...]  # the pinned steps: place in the chain, text


@dataclass(frozen=True)
class RoundsResult:
    """What the rounds came to: the last evidence, the text of the last canvas, and whether the chain stands."""

    evidence: Evidence
    text: str
    complete: bool


def stands(task: Task, question: str, chain: Sequence[Clue], delta: float) -> bool:
    """Whether a chain needs no more work: nothing is left to do after it and every step scores at least `delta`."""
    checker = task.checker or NoChecker()
    state = checker.start(question)
    for clue in chain:
        state, _ = checker.advance(state, clue.step.text)
    return bool(chain) and checker.is_complete(state) and all(clue.score >= delta for clue in chain)


def own_chain(task: Task, pool: Pool, k: int) -> tuple[Clue, ...]:
    """The steps of trajectory k as a chain, each with its score times its soundness in that chain."""
    steps, scores = pool.steps_KN[k], pool.score_KN[k]
    sound = check_steps(task.checker or NoChecker(), pool.question, [step.text for step in steps])
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
    width: int,
    delta: float,
    seeds: Sequence[int],
    memory: bool = True,
    tabu: int = TABU,
    rescore: bool = False,
    ahead: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[RoundsResult]:
    """Runs rounds on every problem until its chain stands or its budget is spent. The pools grow as they go.

    Args:
        pools: one per problem, each with at least one trajectory, which counts against the budget.
        budgets: forward passes (NFE) per problem. A round is narrowed to what its budget still pays for; its first
            canvas always runs, so a problem overspends by at most one partial canvas and its scoring.
        width: canvases per round. They cannot learn from one another; fewer rounds wait for one another.
        delta: steps that score at least this are pinned.
        seeds: noise of each problem's rounds.
        memory: stitch over everything written so far; False looks at the newest trajectory alone (the loop).
        tabu: how many of the latest failures around the same pins are banned; 0 bans nothing (the loop).
        rescore: have the scorer read every new chain again, which it must be able to do without a trace.
        ahead: canvas k of a round must not write the token by which the k-th likeliest failure is expected: of its chain's
            first failing step, the tokens in the order of the model's doubt; none of a step that scores more than `EVEN`.
        progress: called with the number of problems just finished.

    Returns:
        One result per problem.
    """
    assert all(pool.trajectories for pool in pools)
    results: dict[int, RoundsResult] = {}
    tries: list[Counter[_Key]] = [Counter() for _ in pools]
    failures: list[dict[_Key, list[tuple[int, int]]]] = [{} for _ in pools]
    for round_index in itertools.count():
        requests: list[_Request] = []
        for i, pool in enumerate(pools):
            if i in results:
                continue
            evidence = _look(task, pool, delta, memory)
            if rescore and memory:
                evidence = rescored(scorer, pool, evidence)
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
                # What the prompt pins is no pass's work.
                whole = with_given(denoiser, i, task.prompt(pool.question), canvas, config)
                left -= _passes(whole, config) + pool.scoring_nfe()
                if k > 0 and left < 0:
                    break
                tries[i][key] += 1
                latest = failures[i].get(key, [])[-tabu:] if tabu else []
                if ahead and k > 0:
                    expected = _expected(denoiser, task, pool, candidates[key], delta, latest)
                    latest = [*latest, *expected[k - 1 : k]]
                bans = [(place, token) for place, token in latest if place < len(canvas) and canvas[place] is None]
                requests.append(_Request(i, key, canvas, bans, derive_seed(seeds[i], round_index, k)))
        if not requests:
            return [results[i] for i in range(len(pools))]
        drawn = sample(
            denoiser,
            [task.prompt(pools[request.problem].question) for request in requests],
            config,
            seed=[request.seed for request in requests],
            canvases=[request.canvas for request in requests],
            bans=[request.bans for request in requests],
        )
        new: dict[int, list[tuple[_Key, Trajectory]]] = {}
        for request, trajectory in zip(requests, drawn, strict=True):
            new.setdefault(request.problem, []).append((request.key, trajectory))
        for i, attempts in new.items():
            first = len(pools[i].texts_K)
            pools[i].draw(denoiser, task, scorer, [trajectory for _, trajectory in attempts])
            for k, (key, trajectory) in enumerate(attempts, start=first):
                blamed = _blame(own_chain(task, pools[i], k), trajectory, delta)
                if blamed is not None:
                    failures[i].setdefault(key, []).append(blamed)
    raise AssertionError("unreachable")


def rescored(scorer: Scorer, pool: Pool, evidence: Evidence) -> Evidence:
    """The evidence with the scores that the scorer gives the chain's steps in the chain, times their soundness there.

    A chain that is a trajectory's own has its scores, and none is read twice. What it costs is on the pool's bill.
    """
    texts = tuple(clue.step.text for clue in evidence.chain)
    if not texts:
        return evidence
    for steps, scores_N in zip(pool.steps_KN, pool.score_KN, strict=True):
        pool.rescored.setdefault(tuple(step.text for step in steps), scores_N)
    if texts not in pool.rescored:
        began = time.perf_counter()
        scores = scorer(pool.question, [[clue.step for clue in evidence.chain]], None)
        pool.ledger = pool.ledger.then(scores.cost(time.perf_counter() - began))
        pool.rescored[texts] = scores.score_KN[0]
    chain = []
    for clue, score in zip(evidence.chain, pool.rescored[texts], strict=True):
        k, n = clue.sources[0]
        own = pool.score_KN[k][n]
        # The rule has multiplied the score by the soundness in the chain: that stays, and the score is the new one.
        chain.append(replace(clue, score=score * (clue.score / own if own > 0 else 0.0)))
    read = dict(zip(evidence.chain, chain, strict=True))
    return replace(evidence, chain=tuple(chain), clues=in_order([read.get(clue, clue) for clue in evidence.clues]))


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
    key: _Key
    canvas: Canvas
    bans: Bans
    seed: int


def _blame(chain: Sequence[Clue], trajectory: Trajectory, delta: float) -> tuple[int, int] | None:
    """Position and token of the least certain token in the first step that does not stand.

    None if it was all given, or is more likely right than not.
    """
    for clue in chain:
        if clue.score < delta and clue.step.tokens is not None:
            if clue.score > EVEN:
                return None
            written = [i for i in range(*clue.step.tokens) if trajectory.commit_step[i] > 0]
            if not written:
                return None
            place = min(written, key=trajectory.confidence.__getitem__)
            return place, trajectory.canvas_ids[place]
    return None


def _expected(
    denoiser: Denoiser,
    task: Task,
    pool: Pool,
    chain: Sequence[Clue],
    delta: float,
    known: Sequence[tuple[int, int]],
) -> list[tuple[int, int]]:
    """Places on the canvas of a chain, with their tokens, by which an attempt around it should fail, likeliest first.

    Those are the tokens of the chain's first step below delta, the one of which the model was least sure when it wrote them
    first, without what is banned already; none where that step is more likely right than not.
    """
    start = 0
    separator = len(denoiser.encode(["\n"])[0])
    for clue in chain:
        ids = denoiser.encode([task.write_step(clue.step.text)])[0]
        if clue.score < delta:
            trajectory = pool.trajectories[clue.sources[0][0]]
            span = pool.steps_KN[clue.sources[0][0]][clue.sources[0][1]].tokens
            if span is None or clue.score > EVEN:
                return []
            offset = span[0] - start
            sure = {
                i: trajectory.confidence[i + offset]
                for i in range(start, start + len(ids))
                if i + offset < span[1] and trajectory.commit_step[i + offset] > 0
            }
            found = [(i, ids[i - start]) for i in sorted(sure, key=lambda i: (sure[i], i))]
            return [pair for pair in found if pair not in known]
        start += len(ids) + separator
    return []


def _look(task: Task, pool: Pool, delta: float, memory: bool) -> Evidence:
    if memory:
        return best_path(pool.question, task.checker or NoChecker(), pool.steps_KN, pool.score_KN, delta)
    newest = len(pool.texts_K) - 1
    chain = own_chain(task, pool, newest)
    return Evidence(chain, newest, chain)


def _passes(canvas: Canvas, config: SamplerConfig) -> int:
    """The forward passes that a canvas takes under quota (an upper bound under threshold)."""
    masks = sum(token is None for token in canvas)
    per_step = config.canvas_length / config.total_steps
    return max(1, math.ceil(masks / per_step))
