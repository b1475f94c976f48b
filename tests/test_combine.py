"""Sums of scorers: one part alone, weights that made the labels found again, and weights of another scorer refused."""

import logging
import math
import random

import pytest
from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.trajectory import Ledger
from lockstitch.stitching.combine import Combined, Weights, fit, logit
from lockstitch.stitching.score import Calculator, Custom, Scores, load_scorer, scorer_parts
from lockstitch.stitching.segment import steps_of

QUESTION = "12, +7, -5"
STEPS_KN = [steps_of(text, "line", k) for k, text in enumerate(("12+7=19\n19-5=14", "12+7=18", ""))]


def graded(question, steps_KN, trajectories):
    return Scores([[0.3 + 0.1 * step.index + 0.2 * step.trajectory for step in steps] for steps in steps_KN], 7)


def test_a_sum_with_the_weights_one_and_zero_is_its_first_part():
    a, b = Custom("a", graded), Calculator(get_task("arithmetic"))
    alone = a(QUESTION, STEPS_KN, None)
    combined = Combined([a, b], Weights(("a", "b"), (1.0, 0.0)))(QUESTION, STEPS_KN, None)
    for row, other in zip(alone.score_KN, combined.score_KN, strict=True):
        assert row == pytest.approx(other, abs=2e-6)
    reverse = Combined([a, b], Weights(("a", "b"), (0.0, 1.0)))(QUESTION, STEPS_KN, None)
    assert [
        row == pytest.approx(other, abs=2e-6)
        for row, other in zip(b(QUESTION, STEPS_KN).score_KN, reverse.score_KN, strict=True)
    ] == [True] * 3
    assert combined.cost() == Ledger(scorer_tokens=7, sequential_steps=1)


def test_bills_add_up():
    part = lambda more: Custom("x", lambda *_: Scores([[0.5] * len(steps) for steps in STEPS_KN], 3, more))  # noqa: E731
    scorers = [part(Ledger(nfe=16, sequential_steps=16)), part(Ledger(scorer_passes=2))]
    cost = Combined(scorers, Weights(("x", "x"), (0.5, 0.5)))(QUESTION, STEPS_KN, None).cost(2.0)
    assert cost == Ledger(nfe=16, scorer_tokens=6, scorer_passes=2, sequential_steps=17, seconds=2.0)


def test_without_fitted_weights_each_weighs_the_same_and_it_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        load_scorer("calculator+consensus", get_task("arithmetic"))
    assert "no weights were fitted, so each of the 2 parts weighs the same (1/2)" in caplog.text
    with pytest.raises(ValueError, match=r"'calculator\+calculator' adds a scorer to itself: each once"):
        load_scorer("calculator+calculator", get_task("arithmetic"))
    assert Weights.equal(["a", "b"])([0.9, 0.1]) == pytest.approx(0.5)


def test_the_weights_that_made_the_labels_are_found():
    rng = random.Random(0)
    true = Weights(("a", "b"), (1.5, -0.5), 0.3)
    rows = [(rng.random(), rng.random()) for _ in range(4000)]
    exact = fit(("a", "b"), rows, [true(row) for row in rows])  # soft labels: their probability itself
    assert (*exact.weights, exact.bias) == pytest.approx((1.5, -0.5, 0.3), abs=0.03)
    drawn = fit(("a", "b"), rows, [float(rng.random() < true(row)) for row in rows])
    assert (*drawn.weights, drawn.bias) == pytest.approx((1.5, -0.5, 0.3), abs=0.2)
    assert drawn.steps == 4000


def test_labels_that_a_score_tells_apart_for_sure_leave_finite_weights():
    found = fit(("a",), [(0.0,), (0.0,), (1.0,), (1.0,)], [0.0, 0.0, 1.0, 1.0])
    assert math.isfinite(found.weights[0])
    assert found([1.0]) > 0.9 > 0.1 > found([0.0])
    with pytest.raises(ValueError, match="2 labelled steps of 1 different labels"):
        fit(("a",), [(0.1,), (0.2,)], [1.0, 1.0])


def test_weights_are_read_again_and_only_by_the_scorer_that_they_are_of(tmp_path):
    path = tmp_path / "weights.json"
    weights = Weights(("calculator", "confidence"), (0.5, 2.0), -1.0, 40)
    weights.write(path)
    assert Weights.read(str(path), ["calculator", "confidence"]) == weights
    loaded = load_scorer("calculator+confidence", get_task("arithmetic"), weights=str(path))
    assert loaded.weights == weights
    with pytest.raises(ValueError, match=r"those of 'calculator\+confidence', not of 'calculator'"):
        load_scorer("calculator", get_task("arithmetic"), weights=str(path))
    path.write_text("{}")
    with pytest.raises(ValueError, match="is no file of fitted weights: KeyError"):
        Weights.read(str(path), ["calculator"])
    with pytest.raises(ValueError, match="is no file of fitted weights: FileNotFoundError"):
        Weights.read(str(tmp_path / "none.json"), ["calculator"])


def test_one_scorer_with_weights_is_calibrated(tmp_path):
    Weights(("calculator",), (0.1,), 0.0, 10).write(tmp_path / "one.json")
    scorer = load_scorer("calculator", get_task("arithmetic"), weights=str(tmp_path / "one.json"))
    right, wrong = scorer(QUESTION, STEPS_KN, None).score_KN[0][0], scorer(QUESTION, STEPS_KN, None).score_KN[1][0]
    assert right == pytest.approx(1 / (1 + math.exp(-0.1 * logit(1.0))))
    assert wrong == pytest.approx(1 - right)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("confidence", ["confidence"]),
        ("confidence+bmc", ["confidence", "bmc"]),
        ("prm:./a+b", ["prm:./a+b"]),
        ("prm:embedded:sudoku+confidence", ["prm:embedded:sudoku", "confidence"]),
        ("bound+prm:x/y+my.module:f", ["bound", "prm:x/y", "my.module:f"]),
    ],
)
def test_a_sum_is_taken_apart(spec, parts):
    assert scorer_parts(spec) == parts
