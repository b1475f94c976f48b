"""Stitching in rounds, and the verify-and-remask loop that it must be measured against.

Both spend a budget of forward passes on one problem. A round denoises a number of canvases side by side; the steps that
stand are pinned and the next round denoises only what is open. The loop runs one canvas a round and looks at its own
last attempt alone; stitching runs several and looks at every step that any of them wrote. With one canvas a round and no
memory the two are the same thing, which is why the loop is the control.

Problems are independent: all problems that still run share each call of the sampler.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lockstitch.rewards.steps import check_steps
from lockstitch.rewards.tasks import Task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import Canvas, sample
from lockstitch.sampling.noise import derive_seed
from lockstitch.stitching.canvas import pin_chain
from lockstitch.stitching.pool import Pool
from lockstitch.stitching.score import Scorer
from lockstitch.stitching.steps import Clue, Evidence
from lockstitch.stitching.stitch import best_path


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
    canvases: list[Canvas] = [[]] * len(pools)
    results: dict[int, RoundsResult] = {}
    for round_index in itertools.count():
        for i, pool in enumerate(pools):
            if i in results:
                continue
            evidence = _look(task, pool, delta, memory)
            canvases[i] = pin_chain(denoiser, task, evidence.chain, delta, config.canvas_length)
            complete = stands(task, pool.question, evidence.chain, delta)
            if complete or pool.ledger.nfe >= budgets[i] or None not in canvases[i]:
                results[i] = RoundsResult(evidence, pool.texts_K[-1], complete)
                if progress is not None:
                    progress(1)
        running = [i for i in range(len(pools)) if i not in results]
        if not running:
            return [results[i] for i in range(len(pools))]
        width = widths[min(round_index, len(widths) - 1)]
        copies = {i: _affordable(canvases[i], config, width, budgets[i] - pools[i].ledger.nfe) for i in running}
        for n in sorted(set(copies.values())):
            asked = [i for i in running if copies[i] == n]
            drawn = sample(
                denoiser,
                [task.prompt(pools[i].question) for i in asked],
                config,
                n=n,
                seed=[derive_seed(seeds[i], round_index) for i in asked],
                canvases=[canvases[i] for i in asked],
            )
            for place, i in enumerate(asked):
                pools[i].draw(denoiser, task, scorer, drawn[place * n : (place + 1) * n])
    raise AssertionError("unreachable")


def _look(task: Task, pool: Pool, delta: float, memory: bool) -> Evidence:
    if memory:
        return best_path(pool.question, task.checker, pool.steps_KN, pool.score_KN, delta)
    newest = len(pool.texts_K) - 1
    chain = own_chain(task, pool, newest)
    return Evidence(chain, newest, chain)


def _affordable(canvas: Canvas, config: SamplerConfig, width: int, left: int) -> int:
    """How many copies of a canvas the remaining passes pay for, at least one."""
    masks = sum(token is None for token in canvas)
    per_step = max(1, config.canvas_length // config.total_steps)
    return max(1, min(width, left // max(1, -(-masks // per_step))))
