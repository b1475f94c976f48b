"""The methods that denoise more than N plain trajectories: each a function from the problems' pools to their outcomes.

All get the same problems, prompts and noise, and the forward passes (NFE) of the N trajectories as their budget. They differ
in what they do with it: `methods.py` and the docs say what each is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import make_rows, sample
from lockstitch.sampling.noise import derive_seed
from lockstitch.sampling.trajectory import Trajectory
from lockstitch.stitching.answers import Outcome, evidence_answer, same_answers
from lockstitch.stitching.canvas import pin_chain
from lockstitch.stitching.guided import guided_rounds
from lockstitch.stitching.plans import Planner, planned
from lockstitch.stitching.pool import Pool
from lockstitch.stitching.rounds import RoundsResult, own_chain, stands, stitch_rounds
from lockstitch.stitching.score import Scorer
from lockstitch.stitching.values import Values
from lockstitch.stitching.vote import best_of_n
from lockstitch.stitching.walks import Walk, Walker, run_momentum, run_reveals


@dataclass(frozen=True)
class Arms:
    """What every arm is given.

    Attributes:
        task: its checker, or the scorer alone, says what is sound.
        scorer: scores steps.
        denoiser, config: the diffusion model and its settings.
        round_config: those of every canvas that is denoised again.
        delta: the score from which a step counts as good.
        n: trajectories of each problem.
        pools: of each problem, the N trajectories and their bill.
        seeds: noise of each problem.
        planner: writes plans, where there is one.
    """

    task: Task
    scorer: Scorer
    denoiser: Denoiser
    config: SamplerConfig
    round_config: SamplerConfig
    delta: float
    n: int
    pools: Sequence[Pool]
    seeds: Sequence[int]
    planner: Planner | None = None

    @property
    def prompts(self) -> list[str]:
        """The prompts of the problems."""
        return [self.task.prompt(pool.question) for pool in self.pools]

    @property
    def budgets(self) -> list[int]:
        """The NFE of the N trajectories of each problem, with those of their scoring."""
        return [pool.ledger.nfe for pool in self.pools]

    def noise(self, arm: int) -> list[int]:
        """A seed for each problem that is an arm's own."""
        return [derive_seed(seed, arm) for seed in self.seeds]

    def plain(self, trajectories: Sequence[Trajectory]) -> list[Outcome]:
        """Trajectories as they are."""
        return [Outcome(self.task.extract(t.text), t.text, t.ledger) for t in trajectories]


def greedy(arms: Arms) -> list[Outcome]:
    """One trajectory without noise."""
    return arms.plain(sample(arms.denoiser, arms.prompts, replace(arms.config, temperature=0.0)))


def best_of_n_refine(arms: Arms) -> list[Outcome]:
    """One trajectory fewer, and one refinement of the best in its place, unless its chain stands."""
    task = arms.task
    heads = [pool.head(max(1, arms.n - 1)) for pool in arms.pools]
    best = [max(range(len(head.texts_K)), key=head.weights().__getitem__) for head in heads]
    chains = [own_chain(task, head, k) for head, k in zip(heads, best, strict=True)]
    canvases = [
        pin_chain(
            arms.denoiser,
            task,
            chain,
            {t for t, clue in enumerate(chain) if clue.score >= arms.delta},
            arms.config.canvas_length,
        )
        for chain in chains
    ]
    refined = sample(arms.denoiser, arms.prompts, arms.round_config, seed=arms.noise(2), canvases=canvases)
    return [
        Outcome(task.extract(head.texts_K[k]), head.texts_K[k], head.ledger)
        if arms.n == 1 or stands(task, head.question, chain, arms.delta)
        else Outcome(task.extract(t.text), t.text, head.ledger.then(t.ledger))
        for head, k, chain, t in zip(heads, best, chains, refined, strict=True)
    ]


def remask_loop(arms: Arms) -> list[Outcome]:
    """One chain that is verified and masked again, with no memory of what was before."""
    task = arms.task
    loops = [pool.head(1) for pool in arms.pools]
    results = stitch_rounds(
        arms.denoiser,
        task,
        loops,
        arms.scorer,
        arms.round_config,
        budgets=arms.budgets,
        width=1,
        delta=arms.delta,
        seeds=arms.noise(3),
        memory=False,
        tabu=0,
    )
    return [
        Outcome(
            evidence_answer(task, loop, result.evidence, arms.delta) if result.complete else task.extract(result.text),
            result.text,
            loop.ledger,
        )
        for loop, result in zip(loops, results, strict=True)
    ]


def stitched(arms: Arms, width: int, *, rescore: bool, ahead: bool = False) -> tuple[list[Pool], list[RoundsResult]]:
    """Stitching in rounds of `width` canvases: the pools that it grew, and what the rounds came to."""
    pools = [pool.head(min(arms.n, width)) for pool in arms.pools]
    results = stitch_rounds(
        arms.denoiser,
        arms.task,
        pools,
        arms.scorer,
        arms.round_config,
        budgets=arms.budgets,
        width=width,
        delta=arms.delta,
        seeds=arms.noise(1),
        rescore=rescore,
        ahead=ahead,
    )
    return pools, results


def of_evidence(arms: Arms, pools: Sequence[Pool], results: Sequence[RoundsResult]) -> list[Outcome]:
    """The answers that the evidence of rounds amounts to."""
    return [
        Outcome(
            evidence_answer(arms.task, pool, result.evidence, arms.delta),
            "\n".join(clue.step.text for clue in result.evidence.chain),
            pool.ledger,
        )
        for pool, result in zip(pools, results, strict=True)
    ]


def guided_remask(arms: Arms) -> list[Outcome]:
    """The stitched text, rescored and opened in proportion to its scores, over and over."""
    pools = [pool.head(1) for pool in arms.pools]
    results = guided_rounds(
        arms.denoiser,
        arms.task,
        pools,
        arms.scorer,
        arms.round_config,
        budgets=arms.budgets,
        delta=arms.delta,
        seeds=arms.noise(7),
    )
    return of_evidence(arms, pools, results)


def plan_then_diffuse(arms: Arms) -> list[Outcome]:
    """One trajectory around a plan that an autoregressive model wrote."""
    assert arms.planner is not None
    plans = arms.planner([pool.question for pool in arms.pools])
    canvases, costs = [], []
    for pool, plan in zip(arms.pools, plans, strict=True):
        canvas, cost = planned(
            arms.denoiser, arms.task, arms.scorer, pool.question, plan, arms.config.canvas_length, arms.delta
        )
        canvases.append(canvas)
        costs.append(cost)
    drawn = sample(arms.denoiser, arms.prompts, arms.config, seed=arms.noise(8), canvases=canvases)
    return [
        replace(outcome, ledger=cost.then(outcome.ledger))
        for outcome, cost in zip(arms.plain(drawn), costs, strict=True)
    ]


def _walks(arms: Arms, seeds: Sequence[int], each: int) -> list[Walk]:
    rows = make_rows(arms.denoiser, arms.prompts, arms.config, each, seeds)
    return [
        Walk.start(row.prompt, arms.pools[row.prompt].question, row.prompt_ids, row.seed, row.canvas) for row in rows
    ]


def value_guided_reveal(arms: Arms) -> list[Outcome]:
    """N trajectories whose every token is chosen by the value of the canvas with it; the best of them answers."""
    walker = Walker(arms.denoiser, arms.config, Values(arms.denoiser, arms.task, arms.scorer))
    walks = _walks(arms, arms.noise(9), arms.n)
    run_reveals(walker, walks)
    outcomes = []
    for i, whole in enumerate(arms.pools):
        pool = Pool(whole.question)
        of_problem = walks[i * arms.n : (i + 1) * arms.n]
        pool.draw(arms.denoiser, arms.task, arms.scorer, [walk.trajectory(arms.denoiser) for walk in of_problem])
        outcomes.append(_best(arms.task, pool))
    return outcomes


def vgb_momentum(arms: Arms) -> list[Outcome]:
    """One walk a problem, up and down the canvas, until a full canvas stands; else the best that it came to answers."""
    walker = Walker(arms.denoiser, arms.round_config, Values(arms.denoiser, arms.task, arms.scorer))
    walks = _walks(arms, arms.noise(10), 1)
    pools = [Pool(pool.question) for pool in arms.pools]

    def accept(i: int, trajectory: Trajectory) -> bool:
        pools[i].draw(arms.denoiser, arms.task, arms.scorer, [trajectory])
        return stands(arms.task, pools[i].question, own_chain(arms.task, pools[i], -1), arms.delta)

    run_momentum(walker, walks, arms.budgets, accept)
    for pool, walk in zip(pools, walks, strict=True):
        pool.ledger = pool.ledger.then(walk.ledger)  # of what came after the last full canvas
    return [_best(arms.task, pool) for pool in pools]


def _best(task: Task, pool: Pool) -> Outcome:
    answers = [task.extract(text) for text in pool.texts_K]
    k = best_of_n(answers, pool.weights(), same_answers(answers))
    return Outcome(None, "", pool.ledger) if k is None else Outcome(answers[k], pool.texts_K[k], pool.ledger)


# What denoises and is no stitching whose evidence the row shows; in the order of the table.
DENOISING: Mapping[str, Callable[[Arms], list[Outcome]]] = {
    "greedy": greedy,
    "best_of_n_refine": best_of_n_refine,
    "remask_loop": remask_loop,
    "value_guided_reveal": value_guided_reveal,
    "vgb_momentum": vgb_momentum,
    "guided_remask": guided_remask,
    "plan_then_diffuse": plan_then_diffuse,
}
