"""Answers: what a method's outcome is, the votes among trajectories, and the answer that evidence amounts to."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lockstitch.rewards.extract import NUMBER, clean, same_number
from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.trajectory import Ledger
from lockstitch.stitching.evidence_model import EvidenceModel, results_stated
from lockstitch.stitching.pool import Pool
from lockstitch.stitching.rounds import stands
from lockstitch.stitching.steps import Evidence
from lockstitch.stitching.vote import best_of_n, majority_vote, weighted_vote

_RESULT = re.compile(rf"=\s*({NUMBER})")


@dataclass(frozen=True)
class Outcome:
    """One method's answer to one problem: the answer (None if there is none), the text it came from, and the cost."""

    answer: str | None
    text: str
    ledger: Ledger


def same_answers(answers: Sequence[str | None]) -> list[object]:
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
    weights, same = pool.weights(), same_answers(answers)
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


def evidence_vote(task: Task, pool: Pool, evidence: Evidence, model: EvidenceModel | None = None) -> str | None:
    """The answer with the most evidence behind it, for text whose answer no chain of steps spells out.

    A vote of the trajectories, each with the geometric mean of its scores times 1 + its agreement: the mean Jaccard
    overlap between the results that its kept steps state and those of every other trajectory. With a `model` that of the
    trajectory which it finds likeliest to be right.
    """
    K = len(pool.texts_K)
    answers = [task.extract(text) for text in pool.texts_K]
    if model is not None:
        stated_K = [results_stated([step.text for step in steps]) for steps in pool.steps_KN]
        best = model.best(same_answers(answers), pool.weights(), stated_K)
        return None if best is None else answers[best]
    results: list[set[str]] = [set() for _ in range(K)]
    for clue in evidence.clues:
        stated = {clean(number) for number in _RESULT.findall(clue.step.text)}
        for k, _ in clue.sources:
            results[k] |= stated

    def agreement(k: int) -> float:
        others = [results[j] for j in range(K) if j != k]
        return sum(len(results[k] & other) / max(1, len(results[k] | other)) for other in others) / max(1, len(others))

    weights = [weight * (1 + agreement(k)) for k, weight in enumerate(pool.weights())]
    chosen = weighted_vote(answers, weights, same_answers(answers))
    return None if chosen is None else answers[chosen]


def evidence_answer(
    task: Task, pool: Pool, evidence: Evidence, delta: float, model: EvidenceModel | None = None
) -> str | None:
    """The answer that the evidence amounts to without a solver: its chain's if that stands, or else `evidence_vote`'s."""
    if stands(task, pool.question, evidence.chain, delta):
        answer = task.conclude([clue.step.text for clue in evidence.chain])
        if answer is not None:
            return answer
    return evidence_vote(task, pool, evidence, model)
