"""Every way to turn N trajectories into an answer, side by side at equal cost, so that no figure stands alone.

Sampling-only: `single`, `greedy`, `majority_vote`, `best_of_n`, `weighted_vote`. With more denoising inside the same
budget of forward passes: `best_of_n_refine`, `remask_loop`, `stitched`. With an autoregressive solver: `all_traces`,
`solver_alone`, and `stitched` where its chain does not stand by itself. A method that cannot run on the given input is
absent, with its reason.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lockstitch.rewards.extract import NUMBER, clean, same_number
from lockstitch.rewards.steps import NoChecker
from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from lockstitch.sampling.noise import derive_seed
from lockstitch.sampling.trajectory import Ledger
from lockstitch.stitching.canvas import pin_chain
from lockstitch.stitching.pool import Pool
from lockstitch.stitching.refine import Answered, Solver
from lockstitch.stitching.rounds import own_chain, rescored, stands, stitch_rounds
from lockstitch.stitching.score import Scorer
from lockstitch.stitching.steps import Evidence, merge_clues
from lockstitch.stitching.stitch import RULES
from lockstitch.stitching.vote import best_of_n, majority_vote, weighted_vote

METHODS = (
    "greedy", "single", "majority_vote", "best_of_n", "weighted_vote", "best_of_n_refine", "remask_loop", "all_traces",
    "solver_alone", "stitched",
)  # fmt: skip


_RESULT = re.compile(rf"=\s*({NUMBER})")


@dataclass(frozen=True)
class Outcome:
    """One method's answer to one problem: the answer (None if there is none), the text it came from, and the cost."""

    answer: str | None
    text: str
    ledger: Ledger


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
            before it, more wait less for one another.
        rescore: whether the scorer reads the stitched chain again, as it was put together.
        round_temperature: of every canvas that is denoised again, by whatever method; None is the sampler's own.
    """

    num_trajectories: int
    rule: str
    delta: float
    rounds: bool
    round_width: int = 1
    round_temperature: float | None = None
    rescore: bool = False


def _same(answers: Sequence[str | None]) -> list[object]:
    """Names the class of each answer: equal numbers are one answer however they are written."""
    seen: list[str] = []
    names: list[object] = []
    for answer in answers:
        match = next((other for other in seen if answer is not None and same_number(answer, other)), answer)
        if match is not None and match == answer:
            seen.append(match)
        names.append(match)
    return names


def votes(task: Task, pool: Pool, n: int) -> dict[str, Outcome]:
    """The methods that choose among the first n trajectories as they are."""
    pool = pool.head(n) if pool.trajectories else pool
    answers = [task.extract(text) for text in pool.texts_K]
    weights, same = pool.weights(), _same(answers)
    chosen = {
        "single": 0,
        "majority_vote": majority_vote(answers, same),
        "best_of_n": best_of_n(answers, weights, same),
        "weighted_vote": weighted_vote(answers, weights, same),
    }
    first = pool.trajectories[0].ledger if pool.trajectories else Ledger()
    costs = {"single": first, "majority_vote": Ledger.together([t.ledger for t in pool.trajectories])}
    return {
        name: Outcome(None, "", costs.get(name, pool.ledger))
        if k is None
        else Outcome(answers[k], pool.texts_K[k], costs.get(name, pool.ledger))
        for name, k in chosen.items()
    }


def evidence_vote(task: Task, pool: Pool, evidence: Evidence) -> str | None:
    """The answer with the most evidence behind it, for text whose answer no chain of steps spells out.

    A vote of the trajectories, each with the geometric mean of its scores times 1 + its agreement: the mean Jaccard
    overlap between the results that its kept steps state and those of every other trajectory.
    """
    K = len(pool.texts_K)
    results: list[set[str]] = [set() for _ in range(K)]
    for clue in evidence.clues:
        stated = {clean(number) for number in _RESULT.findall(clue.step.text)}
        for k, _ in clue.sources:
            results[k] |= stated

    def agreement(k: int) -> float:
        others = [results[j] for j in range(K) if j != k]
        return sum(len(results[k] & other) / max(1, len(results[k] | other)) for other in others) / max(1, len(others))

    answers = [task.extract(text) for text in pool.texts_K]
    weights = [weight * (1 + agreement(k)) for k, weight in enumerate(pool.weights())]
    chosen = weighted_vote(answers, weights, _same(answers))
    return None if chosen is None else answers[chosen]


def evidence_answer(task: Task, pool: Pool, evidence: Evidence, delta: float) -> str | None:
    """The answer that the evidence amounts to without a solver: its chain's if that stands, or else `evidence_vote`'s."""
    if stands(task, pool.question, evidence.chain, delta):
        answer = task.conclude([clue.step.text for clue in evidence.chain])
        if answer is not None:
            return answer
    return evidence_vote(task, pool, evidence)


@dataclass(frozen=True)
class _Asked:
    """What a solver is asked for a method of a problem, and what that cost before."""

    problem: int
    method: str
    evidence: str
    cost: Ledger


def absent(*, samples: bool, solves: bool) -> dict[str, str]:
    """The methods that cannot run without a diffusion model or without a solver, each with the reason."""
    reasons: dict[str, str] = {}
    if not samples:
        why = "the trajectories were sampled elsewhere: there is no diffusion model to denoise with"
        reasons |= dict.fromkeys(("greedy", "best_of_n_refine", "remask_loop"), why)
    if not solves:
        reasons |= dict.fromkeys(("all_traces", "solver_alone"), "no solver was given")
    return reasons


class Compare:
    """A pipeline stage: problems with their pools in, every method's outcome out.

    `batch` holds `question`, `seed` and `pool`, one entry per problem; `compared` is added.
    """

    def __init__(
        self,
        task: Task,
        scorer: Scorer,
        settings: StitchSettings,
        solver: Solver | None,
        denoiser: Denoiser | None = None,
        config: SamplerConfig | None = None,
    ) -> None:
        self.task, self.scorer, self.settings, self.solver = task, scorer, settings, solver
        self.denoiser, self.config = denoiser, config
        self.round_config = config
        if config is not None and settings.round_temperature is not None:
            self.round_config = replace(config, temperature=settings.round_temperature)

    def absent(self) -> dict[str, str]:
        """The methods that cannot run, each with the reason."""
        return absent(samples=self.denoiser is not None, solves=self.solver is not None)

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
        questions: list[str] = list(batch["question"])
        pools: list[Pool] = list(batch["pool"])
        n = self.settings.num_trajectories
        outcomes: list[dict[str, Outcome]] = [votes(self.task, pool, n) for pool in pools]
        stitched_pools, evidences = pools, []
        if self.denoiser is not None:
            seeds: list[int] = list(batch["seed"])
            for name, found in self._denoised(questions, pools, seeds).items():
                for outcome, one in zip(outcomes, found, strict=True):
                    outcome[name] = one
        if self.denoiser is not None and self.settings.rounds:
            stitched_pools = [pool.head(min(n, self.settings.round_width)) for pool in pools]
            assert self.round_config is not None
            results = stitch_rounds(
                self.denoiser,
                self.task,
                stitched_pools,
                self.scorer,
                self.round_config,
                budgets=[pool.ledger.nfe for pool in pools],
                width=self.settings.round_width,
                delta=self.settings.delta,
                seeds=[derive_seed(seed, 1) for seed in seeds],
                rescore=self.settings.rescore,
            )
            evidences = [result.evidence for result in results]
        else:
            rule = RULES[self.settings.rule]
            evidences = [
                rule(
                    pool.question, self.task.checker or NoChecker(), pool.steps_KN, pool.score_KN, self.settings.delta
                )
                for pool in pools
            ]
            if self.settings.rescore:
                stitched_pools = [replace(pool, rescored={}) for pool in pools]  # whose bill the votes do not share
                evidences = [
                    rescored(self.scorer, pool, evidence)
                    for pool, evidence in zip(stitched_pools, evidences, strict=True)
                ]
        for pool, evidence, outcome in zip(stitched_pools, evidences, outcomes, strict=True):
            text = "\n".join(clue.step.text for clue in evidence.chain)
            answer = evidence_answer(self.task, pool, evidence, self.settings.delta)
            outcome["stitched"] = Outcome(answer, text, pool.ledger)
        compared = [
            Compared(_sorted(found), evidence, pool)
            for found, evidence, pool in zip(outcomes, evidences, stitched_pools, strict=True)
        ]
        return {**batch, "compared": compared}

    def _denoised(self, questions: list[str], pools: list[Pool], seeds: list[int]) -> dict[str, list[Outcome]]:
        assert self.denoiser is not None
        assert self.config is not None
        task, delta = self.task, self.settings.delta
        prompts = [task.prompt(question) for question in questions]
        greedy = sample(self.denoiser, prompts, replace(self.config, temperature=0.0))
        found = {"greedy": [Outcome(task.extract(t.text), t.text, t.ledger) for t in greedy]}
        assert self.round_config is not None

        # One trajectory fewer, and one refinement of the best in its place.
        heads = [pool.head(max(1, self.settings.num_trajectories - 1)) for pool in pools]
        best = [max(range(len(head.texts_K)), key=head.weights().__getitem__) for head in heads]
        chains = [own_chain(task, head, k) for head, k in zip(heads, best, strict=True)]
        canvases = [
            pin_chain(
                self.denoiser,
                task,
                chain,
                {t for t, clue in enumerate(chain) if clue.score >= delta},
                self.config.canvas_length,
            )
            for chain in chains
        ]
        refined = sample(
            self.denoiser, prompts, self.round_config, seed=[derive_seed(seed, 2) for seed in seeds], canvases=canvases
        )
        found["best_of_n_refine"] = [
            Outcome(task.extract(head.texts_K[k]), head.texts_K[k], head.ledger)
            if self.settings.num_trajectories == 1 or stands(task, question, chain, delta)
            else Outcome(task.extract(t.text), t.text, head.ledger.then(t.ledger))
            for question, head, k, chain, t in zip(questions, heads, best, chains, refined, strict=True)
        ]

        loops = [pool.head(1) for pool in pools]
        results = stitch_rounds(
            self.denoiser,
            task,
            loops,
            self.scorer,
            self.round_config,
            budgets=[pool.ledger.nfe for pool in pools],
            width=1,
            delta=delta,
            seeds=[derive_seed(seed, 3) for seed in seeds],
            memory=False,
            tabu=0,
        )
        found["remask_loop"] = [
            Outcome(
                evidence_answer(task, loop, result.evidence, delta) if result.complete else task.extract(result.text),
                result.text,
                loop.ledger,
            )
            for loop, result in zip(loops, results, strict=True)
        ]
        return found


def _sorted(outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    return {name: outcomes[name] for name in METHODS if name in outcomes}


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
            yield replace(one, outcomes=_sorted(outcomes[i]))

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
        return asked

    def _outcome(self, asked: _Asked, answered: Answered) -> Outcome:
        """The answer at the cost of what came before and its tokens and passes."""
        passes = answered.written if answered.passes is None else answered.passes
        cost = Ledger(solver_tokens=answered.tokens, sequential_steps=passes, seconds=answered.seconds)
        return Outcome(self.task.extract(answered.text), answered.text, asked.cost.then(cost))
