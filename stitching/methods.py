"""Every way to turn N trajectories into an answer, side by side at equal cost, so that no figure stands alone.

Sampling-only: `single`, `greedy`, `majority_vote`, `best_of_n`, `weighted_vote`. With more denoising inside the same
budget of forward passes: `best_of_n_refine`, `remask_loop`, `stitched` and, where they are asked for, `value_guided_reveal`,
`vgb_momentum`, `guided_remask`, `stitched_wide`. With an autoregressive model: `all_traces`, `solver_alone`, `stitched`
where its chain does not stand by itself, and `plan_then_diffuse`. The denoising ones are in `arms.py`. A method that cannot
run on the given input is absent, with its reason.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lockstitch.rewards.steps import NoChecker
from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.trajectory import Ledger
from lockstitch.stitching import arms
from lockstitch.stitching.answers import Outcome, evidence_answer, votes
from lockstitch.stitching.evidence_model import EvidenceModel
from lockstitch.stitching.method_names import METHODS, USUAL, WALKS, WIDE
from lockstitch.stitching.plans import Planner
from lockstitch.stitching.pool import Pool
from lockstitch.stitching.refine import Answered, Solver
from lockstitch.stitching.rounds import rescored, stands
from lockstitch.stitching.score import Scorer
from lockstitch.stitching.steps import Evidence, merge_clues
from lockstitch.stitching.stitch import RULES
from lockstitch.stitching.walks import why_not


@dataclass(frozen=True)
class Compared:
    """All methods on one problem, the evidence behind `stitched` and the pool that it was stitched from."""

    outcomes: dict[str, Outcome]
    evidence: Evidence
    pool: Pool


@dataclass(frozen=True)
class StitchSettings:
    """How evidence is chosen and refined.

    Attributes:
        num_trajectories: N; its forward passes are the budget of every method that denoises more than once.
        rule: `path`, `paper` or `public` (see `lockstitch.stitching.stitch`).
        delta: steps that score at least this are kept.
        rounds: whether to denoise again around the evidence (needs the diffusion model and the rule `path`).
        round_width: trajectories drawn first, and canvases denoised side by side in every round: at 1 each learns from all
            before it, more wait less for one another; None is 1 for `stitched` and 4, or
            half of N where that is less, for `stitched_wide`.
        rescore: whether the scorer reads the stitched chain again, as it was put together.
        round_temperature: of every canvas that is denoised again, by whatever method; None is the sampler's own.
        methods: those that run, if they can.
        evidence: fitted weights of the vote by evidence, or None for the vote as it is.
    """

    num_trajectories: int
    rule: str
    delta: float
    rounds: bool
    round_width: int | None = None
    round_temperature: float | None = None
    rescore: bool = False
    methods: tuple[str, ...] = USUAL
    evidence: EvidenceModel | None = None


@dataclass(frozen=True)
class _Asked:
    """What a solver is asked for a method of a problem, and what that cost before."""

    problem: int
    method: str
    evidence: str
    cost: Ledger


class Compare:
    """A pipeline stage: problems with their pools in, every method's outcome out.

    `batch` holds `question`, `seed` and `pool`, one entry per problem; `compared` is added.

    Raises `ValueError` for a walk that is asked of a model that cannot walk, and for `plan_then_diffuse` without a planner.
    """

    def __init__(
        self,
        task: Task,
        scorer: Scorer,
        settings: StitchSettings,
        solver: Solver | None,
        denoiser: Denoiser | None = None,
        config: SamplerConfig | None = None,
        planner: Planner | None = None,
    ) -> None:
        self.task, self.scorer, self.settings, self.solver = task, scorer, settings, solver
        self.denoiser, self.config, self.planner = denoiser, config, planner
        self.round_config = config
        if config is not None and settings.round_temperature is not None:
            self.round_config = replace(config, temperature=settings.round_temperature)
        walks = [name for name in WALKS if name in settings.methods]
        if walks and denoiser is not None and config is not None and (reason := why_not(denoiser, config)):
            raise ValueError(f"method {walks[0]!r} cannot run: {reason}")
        if "plan_then_diffuse" in settings.methods and denoiser is not None and planner is None:
            raise ValueError("method 'plan_then_diffuse' needs a planner")

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Runs every method that can run."""
        return {**batch, "compared": list(self.each(batch))}

    def each(self, batch: Mapping[str, Any]) -> Iterator[Compared]:
        """Every problem in order, each as soon as the solver has answered all that it is asked about it."""
        done = self.stitched(batch)
        if self.solver is None:
            yield from done["compared"]
        else:
            yield from Solve(self.task, self.solver, self.settings).each(done)

    def stitched(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Every method but those that a solver has a part in; `stitched` answers by itself."""
        pools: list[Pool] = list(batch["pool"])
        settings = self.settings
        outcomes: list[dict[str, Outcome]] = [votes(self.task, pool, settings.num_trajectories) for pool in pools]
        stitched_pools, evidences = pools, []

        def add(name: str, found: Sequence[Outcome]) -> None:
            for outcome, one in zip(outcomes, found, strict=True):
                outcome[name] = one

        given = self._arms(pools, batch)
        if given is not None:
            for name, arm in arms.DENOISING.items():
                if name in settings.methods:
                    add(name, arm(given))
            if "stitched_wide" in settings.methods:
                width = settings.round_width or max(1, min(WIDE, settings.num_trajectories // 2))
                add(
                    "stitched_wide",
                    arms.of_evidence(given, *arms.stitched(given, width, rescore=settings.rescore, ahead=True)),
                )
        if given is not None and settings.rounds and "stitched" in settings.methods:
            stitched_pools, results = arms.stitched(given, settings.round_width or 1, rescore=settings.rescore)
            evidences = [result.evidence for result in results]
        else:
            rule, checker = RULES[settings.rule], self.task.checker or NoChecker()
            evidences = [rule(pool.question, checker, pool.steps_KN, pool.score_KN, settings.delta) for pool in pools]
            if settings.rescore:
                stitched_pools = [replace(pool, rescored={}) for pool in pools]  # whose bill the votes do not share
                evidences = [
                    rescored(self.scorer, pool, evidence)
                    for pool, evidence in zip(stitched_pools, evidences, strict=True)
                ]
        for pool, evidence, outcome in zip(stitched_pools, evidences, outcomes, strict=True):
            text = "\n".join(clue.step.text for clue in evidence.chain)
            answer = evidence_answer(self.task, pool, evidence, settings.delta, settings.evidence)
            outcome["stitched"] = Outcome(answer, text, pool.ledger)
        compared = [
            Compared(_sorted(found, settings.methods), evidence, pool)
            for found, evidence, pool in zip(outcomes, evidences, stitched_pools, strict=True)
        ]
        return {**batch, "compared": compared}

    def _arms(self, pools: Sequence[Pool], batch: Mapping[str, Any]) -> arms.Arms | None:
        """What the methods that denoise are given, or None where there is no model."""
        if self.denoiser is None or self.config is None or self.round_config is None:
            return None
        return arms.Arms(
            self.task,
            self.scorer,
            self.denoiser,
            self.config,
            self.round_config,
            self.settings.delta,
            self.settings.num_trajectories,
            pools,
            list(batch["seed"]),
            self.planner,
        )


def _sorted(outcomes: Mapping[str, Outcome], methods: Sequence[str]) -> dict[str, Outcome]:
    return {name: outcomes[name] for name in METHODS if name in outcomes and name in methods}


class Solve:
    """A pipeline stage: what the solver answers is added to `compared`, from `question` and `pool` of the batch.

    It is asked with all steps of the N trajectories, without any, and with the evidence where no chain stands: one that
    stands is its own answer.
    """

    def __init__(self, task: Task, solver: Solver, settings: StitchSettings) -> None:
        self.task, self.solver, self.settings = task, solver, settings

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Asks the solver."""
        return {**batch, "compared": list(self.each(batch))}

    def each(self, batch: Mapping[str, Any]) -> Iterator[Compared]:
        """Every problem in order, each as soon as the solver has answered all that it is asked about it."""
        questions: list[str] = list(batch["question"])
        compared: list[Compared] = list(batch["compared"])
        asked = self._asked(questions, batch["pool"], compared)
        left = Counter(one.problem for one in asked)
        outcomes = [dict(one.outcomes) for one in compared]
        answers = self.solver.each([questions[one.problem] for one in asked], [one.evidence for one in asked])
        for i, one in enumerate(compared):
            while left[i]:
                place, answered = next(answers)
                of = asked[place]
                outcomes[of.problem][of.method] = self._outcome(of, answered)
                left[of.problem] -= 1
            yield replace(one, outcomes=_sorted(outcomes[i], self.settings.methods))

    def _asked(self, questions: Sequence[str], pools: Sequence[Pool], compared: Sequence[Compared]) -> list[_Asked]:
        """What the solver is to be asked, problem by problem."""
        asked = []
        for i, (question, pool, one) in enumerate(zip(questions, pools, compared, strict=True)):
            scored = [
                (step, score)
                for steps, scores in zip(pool.steps_KN, pool.score_KN, strict=True)
                for step, score in zip(steps, scores, strict=True)
            ]
            everything = "\n".join(clue.render() for clue in merge_clues(scored))
            asked += [_Asked(i, "all_traces", everything, pool.ledger), _Asked(i, "solver_alone", "", Ledger())]
            # A chain that stands is its own answer; the solver reads the evidence of the others.
            if not stands(self.task, question, one.evidence.chain, self.settings.delta):
                asked.append(_Asked(i, "stitched", one.evidence.render(), one.pool.ledger))
        return [one for one in asked if one.method in self.settings.methods]

    def _outcome(self, asked: _Asked, answered: Answered) -> Outcome:
        """The answer at the cost of what came before and its tokens and passes."""
        passes = answered.written if answered.passes is None else answered.passes
        cost = Ledger(
            solver_tokens=answered.tokens, sequential_steps=passes, seconds=answered.seconds, solver_passes=passes
        )
        return Outcome(self.task.extract(answered.text), answered.text, asked.cost.then(cost))
