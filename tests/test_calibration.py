"""AUC against every pair counted, the reliability diagram against its definition, a run against the exact checker."""

import itertools
import random

import pytest
from lockstitch.rewards.tasks.named import get_task
from lockstitch.stitching.calibration import auc, calibration_error, judge_scores, reliability, scorer_against_checker


def by_pairs(scores, outcomes):
    total = won = 0.0
    for (s, y), (t, z) in itertools.permutations(zip(scores, outcomes, strict=True), 2):
        weight = y * (1 - z)  # the first is right and the other wrong
        total += weight
        won += weight * (1.0 if s > t else 0.5 if s == t else 0.0)
    return won / total


@pytest.mark.parametrize("soft", [False, True])
def test_auc_counts_pairs(soft):
    rng = random.Random(0)
    scores = [rng.choice((0.0, 0.25, 0.5, 1.0)) for _ in range(60)]
    outcomes = [rng.random() if soft else float(rng.random() < score) for score in scores]
    assert auc(scores, outcomes) == pytest.approx(by_pairs(scores, outcomes))


def test_auc_of_the_ends():
    assert auc([0.1, 0.9], [0, 1]) == 1.0
    assert auc([0.9, 0.1], [0, 1]) == 0.0
    assert auc([0.5, 0.5, 0.5], [0, 1, 1]) == 0.5
    assert auc([0.5], [1]) is None
    assert auc([0.7], [0.5]) is None  # it is no pair with itself
    assert auc([], []) is None


def test_the_diagram_and_its_error():
    scores, outcomes = [0.05, 0.05, 0.15, 0.95, 1.0], [0, 1, 0, 1, 1]
    diagram = reliability(scores, outcomes)
    assert [(one["low"], one["n"]) for one in diagram] == [(0.0, 2), (0.1, 1), (0.9, 2)]
    assert [one["outcome"] for one in diagram] == [0.5, 0.0, 1.0]
    assert calibration_error(diagram) == pytest.approx((2 * 0.45 + 1 * 0.15 + 2 * 0.025) / 5)
    assert calibration_error([]) is None
    found = judge_scores(scores, outcomes)
    assert found["brier"] == pytest.approx(sum((s - y) ** 2 for s, y in zip(scores, outcomes, strict=True)) / 5)
    assert (found["n"], found["right"]) == (5, 0.6)


def test_scores_that_mean_what_they_say_have_no_error():
    rng = random.Random(1)
    scores = [rng.random() for _ in range(20_000)]
    outcomes = [float(rng.random() < score) for score in scores]
    assert calibration_error(reliability(scores, outcomes)) < 0.02
    assert calibration_error(reliability(scores, [1 - y for y in outcomes])) > 0.4


def test_a_run_is_held_against_the_exact_checker():
    step = lambda text, score: {"text": text, "score": score}  # noqa: E731
    rows = [
        {
            "question": "12, +7",
            "trajectories": [
                {"steps": [step("12+7=19", 0.9)], "correct": True, "mean_score": 0.9},
                {"steps": [step("12+7=18", 0.2)], "correct": False, "mean_score": 0.2},
                {"steps": [step("hm", 0.4)], "correct": None, "mean_score": 0.4},
                {"steps": [], "correct": False, "mean_score": 0.0},
                # A canvas of a later round repeats what was pinned: it is no further judgement.
                {"steps": [step("12+7=18", 0.95)], "correct": False, "mean_score": 0.95},
            ],
        }
    ]
    found = scorer_against_checker(get_task("arithmetic"), rows, num_trajectories=4)
    assert (found["steps"]["n"], found["steps"]["auc"]) == (2, 1.0)  # the checker can say nothing of the third
    assert (found["traces"]["n"], found["traces"]["auc"]) == (2, 1.0)
