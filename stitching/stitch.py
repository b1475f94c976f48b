"""Which steps of which trajectories are kept: pure functions from scored steps to evidence.

Three rules. `paper`: every step of the best trajectory and every step of any other that scores at least delta
(2602.22871, Sec. 3.3). `public`: what the paper's released code does instead, the best trajectory's last step and every
step that scores more than delta, 80 at most. `path`: the best chain through steps of any trajectory, by dynamic
programming over what a checker knows after each step.

Axes: K trajectories, N steps of one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from lockstitch.rewards.steps import StepChecker
from lockstitch.stitching.steps import Clue, Evidence, Step, in_order, merge_clues

FLOOR = 1e-3
PUBLIC_LIMIT = 80
MAX_STATES = 512

Steps = Sequence[Sequence[Step]]
ScoresKN = Sequence[Sequence[float]]


def geometric_mean(scores: Sequence[float]) -> float:
    """Geometric mean with scores raised to at least `FLOOR`; 0.0 for no scores."""
    if not scores:
        return 0.0
    return math.exp(sum(math.log(max(score, FLOOR)) for score in scores) / len(scores))


def best_trajectory(score_KN: ScoresKN) -> int | None:
    """The trajectory with the highest geometric mean, the first of equals; None if no trajectory has a step."""
    candidates = [k for k, scores in enumerate(score_KN) if scores]
    return max(candidates, key=lambda k: geometric_mean(score_KN[k])) if candidates else None


def _scored(steps_KN: Steps, score_KN: ScoresKN) -> list[tuple[Step, float]]:
    return [pair for steps, scores in zip(steps_KN, score_KN, strict=True) for pair in zip(steps, scores, strict=True)]


def paper_rule(steps_KN: Steps, score_KN: ScoresKN, delta: float) -> Evidence:
    """All steps of the anchor and every step that scores at least `delta`."""
    anchor = best_trajectory(score_KN)
    if anchor is None:
        return Evidence(())
    pairs = _scored(steps_KN, score_KN)
    kept = [(step, score) for step, score in pairs if step.trajectory == anchor or score >= delta]
    own = [(step, score) for step, score in pairs if step.trajectory == anchor]
    return Evidence(merge_clues(kept), anchor, tuple(_clue(step, score) for step, score in own))


def public_rule(steps_KN: Steps, score_KN: ScoresKN, delta: float) -> Evidence:
    """The anchor's last step and every step that scores more than `delta`, the first 80 in reading order."""
    anchor = best_trajectory(score_KN)
    if anchor is None:
        return Evidence(())
    last = steps_KN[anchor][-1]
    kept = [(step, score) for step, score in _scored(steps_KN, score_KN) if step == last or score > delta]
    return Evidence(merge_clues(kept)[:PUBLIC_LIMIT], anchor, (_clue(last, score_KN[anchor][-1]),))


def _clue(step: Step, score: float) -> Clue:
    return Clue(step, score, ((step.trajectory, step.index),))


def best_path(question: str, checker: StepChecker, steps_KN: Steps, score_KN: ScoresKN, delta: float) -> Evidence:
    """The chain with the highest geometric mean of step score times soundness in the chain.

    Position t of the chain is step t of any trajectory, and the chain may end wherever some trajectory ends; chains
    that know the same after t steps are merged, the better one kept (exact up to `MAX_STATES` chains per position). A
    clue's score is that product, so a step that was right in its own trajectory and does not follow here counts as
    unsound. Evidence is the chain and, as in `paper`, every step of at least `delta`.
    """
    layers: list[dict[str, tuple[Step, float]]] = []
    ends: list[set[str]] = []
    for steps, scores in zip(steps_KN, score_KN, strict=True):
        for t, (step, score) in enumerate(zip(steps, scores, strict=True)):
            if t == len(layers):
                layers.append({})
                ends.append(set())
            seen = layers[t].get(step.text)
            if seen is None or score > seen[1]:
                layers[t][step.text] = (step, score)
            if t == len(steps) - 1:
                ends[t].add(step.text)
    if not layers:
        return Evidence(())

    Chain = tuple[float, tuple[Clue, ...]]
    frontier: dict[object, Chain] = {checker.start(question): (0.0, ())}
    best: Chain | None = None
    best_key = (False, -math.inf)
    for t, unordered in enumerate(layers):
        # Best first, then by text: equally good chains are told apart by what they say, never by their place.
        layer = dict(sorted(unordered.items(), key=lambda item: (-item[1][1], item[0])))
        grown: dict[object, Chain] = {}
        for state, (total, chain) in frontier.items():
            for text, (step, score) in layer.items():
                after, soundness = checker.advance(state, text)
                value = score * soundness
                extended = (total + math.log(max(value, FLOOR)), (*chain, _clue(step, value)))
                if after not in grown or extended[0] > grown[after][0]:
                    grown[after] = extended
                if text in ends[t]:
                    key = (checker.is_complete(after), extended[0] / (t + 1))
                    if key > best_key:
                        best, best_key = extended, key
        frontier = dict(sorted(grown.items(), key=lambda item: -item[1][0])[:MAX_STATES])
    assert best is not None
    chain = tuple(replace(clue, sources=_sources(clue.step, steps_KN, score_KN)) for clue in best[1])
    inside = {(clue.step.index, clue.step.text) for clue in chain}
    others = merge_clues(
        [
            (step, score)
            for step, score in _scored(steps_KN, score_KN)
            if score >= delta and (step.index, step.text) not in inside
        ]
    )
    return Evidence(in_order((*chain, *others)), None, chain)


def _sources(wanted: Step, steps_KN: Steps, score_KN: ScoresKN) -> tuple[tuple[int, int], ...]:
    """Every place where a step's text stands at its index, the best-scored first."""
    places = [
        (step, score)
        for step, score in _scored(steps_KN, score_KN)
        if (step.index, step.text) == (wanted.index, wanted.text)
    ]
    return merge_clues(places)[0].sources


Rule = Callable[[str, StepChecker, Steps, ScoresKN, float], Evidence]
RULES: dict[str, Rule] = {
    "paper": lambda question, checker, steps, scores, delta: paper_rule(steps, scores, delta),
    "public": lambda question, checker, steps, scores, delta: public_rule(steps, scores, delta),
    "path": best_path,
}
