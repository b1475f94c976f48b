"""Guided remasking of stitched text: a step's score, read again after recombination, says how much of it opens.

Each round stitches the best chain out of everything written so far, has the scorer read that chain as it was put together,
and masks every token of a step with probability 1 - score: steps that score 1 stay, steps that score 0 open whole, a step at
.7 keeps seven tokens in ten on average. In proportion to a score as in R3 remasking; of stitched text, which no single
trajectory wrote. What follows the chain (the answer) is open. Where the scores open nothing and the chain still does not
stand, its last steps open whole, one more at every such round.

The scorer must be able to read text without a sampler's trace, which a stitched chain has not. Left out: banning what
failed, which is `rounds.py`'s.

Axes: K trajectories, G canvas positions.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from lockstitch.rewards.steps import NoChecker
from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from lockstitch.sampling.noise import derive_seed, uniform
from lockstitch.stitching.pool import Pool
from lockstitch.stitching.rounds import RoundsResult, rescored, stands
from lockstitch.stitching.score import Scorer
from lockstitch.stitching.steps import Clue
from lockstitch.stitching.stitch import best_path


def opened(
    denoiser: Denoiser, task: Task, chain: Sequence[Clue], length: int, seed: int, released: int = 0
) -> list[int | None]:
    """A canvas with the chain on it, each token of a step open with probability 1 - the step's score.

    Args:
        denoiser: its tokenizer writes the steps.
        task: how its completions write a step.
        chain: the steps with their scores in the chain.
        length: entries of the canvas; what does not fit is left out.
        seed: of the draw, which depends on nothing else.
        released: so many of the last steps open whole.

    Returns:
        Token ids, None where the canvas is open.
    """
    canvas: list[int | None] = []
    separator = denoiser.encode(["\n"])[0]
    draw_G = uniform(torch.tensor([seed]), 0, 0, torch.arange(length))[0].tolist()
    for place, clue in enumerate(chain):
        ids = denoiser.encode([task.write_step(clue.step.text)])[0][: length - len(canvas)]
        score = 0.0 if place >= len(chain) - released else clue.score
        canvas += [token if draw_G[len(canvas) + i] < score else None for i, token in enumerate(ids)]
        if place < len(chain) - 1:
            canvas += separator
        canvas = canvas[:length]
    return canvas + [None] * (length - len(canvas))


def guided_rounds(
    denoiser: Denoiser,
    task: Task,
    pools: Sequence[Pool],
    scorer: Scorer,
    config: SamplerConfig,
    *,
    budgets: Sequence[int],
    delta: float,
    seeds: Sequence[int],
) -> list[RoundsResult]:
    """Remasks and denoises until every problem's chain stands or its budget is spent. The pools grow as they go.

    Args:
        pools: one per problem, each with at least one trajectory, which counts against the budget.
        budgets: forward passes (NFE) per problem; the last canvas may overspend.
        delta: a chain stands when all its steps score at least this.
        seeds: noise of each problem's rounds.

    Returns:
        One result per problem.
    """
    checker = task.checker or NoChecker()
    results: dict[int, RoundsResult] = {}
    stuck: Counter[int] = Counter()
    number = 0
    while len(results) < len(pools):
        asked, canvases = [], []
        for i, pool in enumerate(pools):
            if i in results:
                continue
            evidence = best_path(pool.question, checker, pool.steps_KN, pool.score_KN, delta)
            evidence = rescored(scorer, pool, evidence)
            complete = stands(task, pool.question, evidence.chain, delta)
            if complete or pool.ledger.nfe >= budgets[i]:
                results[i] = RoundsResult(evidence, pool.texts_K[-1], complete)
                continue
            if all(clue.score >= 1 for clue in evidence.chain):
                stuck[i] += 1
            seed = derive_seed(seeds[i], number)
            asked.append(i)
            canvases.append(opened(denoiser, task, evidence.chain, config.canvas_length, seed, stuck[i]))
        if not asked:
            break
        drawn = sample(
            denoiser,
            [task.prompt(pools[i].question) for i in asked],
            config,
            seed=[derive_seed(seeds[i], number, 1) for i in asked],
            canvases=canvases,
        )
        for i, trajectory in zip(asked, drawn, strict=True):
            pools[i].draw(denoiser, task, scorer, [trajectory])
        number += 1
    return [results[i] for i in range(len(pools))]
