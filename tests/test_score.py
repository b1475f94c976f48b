"""Scorers: the calculator against the checker, confidence against its formula, and how a scorer is named."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from lockstitch.rewards.steps import check_steps
from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.trajectory import Ledger, Trajectory
from lockstitch.stitching.score import (
    Calculator,
    Confidence,
    Consensus,
    Custom,
    Named,
    Scores,
    load_scorer,
    reads_text_alone,
)
from lockstitch.stitching.segment import steps_of
from lockstitch.stitching.steps import Step

QUESTION = "Ann has 16 eggs and eats 3, then 4."
TEXTS = ("16 - 3 = 13. 13 - 4 = 9.\n#### 9", "", "16 - 3 = 14. 14 - 4 = 10. Done.\n#### 10")
STEPS_KN = [steps_of(text, "sentence", k) for k, text in enumerate(TEXTS)]


def trajectory(confidence: tuple[float, ...]) -> Trajectory:
    n = len(confidence)
    return Trajectory(0, 0, (1,), (1,) * n, n, "", True, (1,) * n, confidence, (0.0,) * n, (0,) * n, (), Ledger())


def step(tokens: tuple[int, int] | None) -> Step:
    return Step(0, 0, "a", (0, 1), tokens)


def test_calculator_is_the_checker_of_the_task() -> None:
    task = get_task("gsm8k")
    scores = Calculator(task)(QUESTION, STEPS_KN)
    assert scores == Scores([[1.0, 1.0], [], [0.0, 0.5, 0.5]], 0)
    assert scores.score_KN == [check_steps(task.checker, QUESTION, [s.text for s in steps]) for steps in STEPS_KN]


def test_confidence_is_the_geometric_mean_over_the_tokens_of_the_step() -> None:
    traced = trajectory((0.5, 0.8, 0.2, 1.0, 0.0))
    scores = Confidence()("", [[step((0, 1)), step((1, 3)), step((3, 4)), step((3, 5))], []], [traced, traced])
    assert scores.tokens == 0
    assert scores.score_KN == [[pytest.approx(0.5), pytest.approx(math.sqrt(0.8 * 0.2)), 1.0, 0.0], []]


def test_confidence_is_of_the_tokens_that_were_written() -> None:
    traced = replace(trajectory((1.0, 1.0, 0.2, 1.0)), commit_step=(0, 0, 3, 0))
    scores = Confidence()("", [[step((1, 3)), step((0, 2))]], [traced])
    assert scores.score_KN == [[pytest.approx(0.2), 1.0]]


def test_confidence_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="completions from elsewhere have none"):
        Confidence()("", [[step((0, 1))]], None)
    with pytest.raises(ValueError, match="no token span"):
        Confidence()("", [[step(None)]], [trajectory((0.5,))])


def test_scorers_by_name() -> None:
    task = get_task("gsm8k")
    assert isinstance(load_scorer("calculator", task), Calculator)
    assert isinstance(load_scorer("confidence", task), Confidence)
    assert isinstance(load_scorer("consensus", task), Consensus)


@pytest.mark.parametrize("spec", ["", "calculators", "prm:", ":f", "module"])
def test_another_name_is_refused_with_the_accepted_forms(spec: str) -> None:
    with pytest.raises(
        ValueError, match=r"'calculator', 'consensus', 'confidence', 'bmc'.*'prm:MODEL'.*'module:function'"
    ):
        load_scorer(spec, get_task("gsm8k"))


def test_a_function_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scorer_module.py").write_text(
        "from lockstitch.stitching.score import Scores\n"
        "def lists(question, steps_KN, trajectories):\n"
        "    return [[len(step.text) / 100 for step in steps] for steps in steps_KN]\n"
        "def record(question, steps_KN, trajectories):\n"
        "    return Scores(lists(question, steps_KN, trajectories), 7)\n"
        "def short(question, steps_KN, trajectories):\n"
        "    return [[0.5] for steps in steps_KN]\n"
        "def loud(question, steps_KN, trajectories):\n"
        "    return [[2 for step in steps] for steps in steps_KN]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = get_task("gsm8k")
    lengths = [[len(s.text) / 100 for s in steps] for steps in STEPS_KN]
    assert load_scorer("my_scorer_module:lists", task)(QUESTION, STEPS_KN, None) == Scores(lengths, 0)
    assert load_scorer("my_scorer_module:record", task)(QUESTION, STEPS_KN, None) == Scores(lengths, 7)
    with pytest.raises(ValueError, match=r"\[1, 1, 1\] scores per trajectory for \[2, 0, 3\] steps"):
        load_scorer("my_scorer_module:short", task)(QUESTION, STEPS_KN, None)
    with pytest.raises(ValueError, match=r"score 2\.0; scores lie between"):
        load_scorer("my_scorer_module:loud", task)(QUESTION, STEPS_KN, None)
    with pytest.raises(ValueError, match="has no 'absent'"):
        load_scorer("my_scorer_module:absent", task)
    with pytest.raises(ValueError, match="there is no module 'no_such_module_here'"):
        load_scorer("no_such_module_here:f", task)


def test_a_function_may_count_in_other_numbers_and_is_named_where_it_has_none() -> None:
    torch_like = Custom("mine", lambda question, steps, _: Scores([[Fraction(1, 2)] * len(one) for one in steps]))
    scores = torch_like("", [[step(None)]], None)
    assert json.dumps(scores.score_KN) == "[[0.5]]"
    with pytest.raises(ValueError, match=r"scorer 'words'.*could not convert string to float"):
        Custom("words", lambda *_: Scores([["much"]]))("", [[step(None)]], None)


@pytest.mark.parametrize("wrong", [math.nan, -0.1, 1.5])
def test_what_is_no_score_is_refused_with_the_scorer_and_the_question(wrong: float) -> None:
    scorer = Named("prm:mine", lambda *_: Scores([[0.5, wrong]]))
    with pytest.raises(ValueError, match=rf"^scorer 'prm:mine', at the question '1\+1': gave the score {wrong}; "):
        scorer("1+1", [[step(None)] * 2], None)
    assert Named("verifier:x", Consensus()).reads_text_alone == reads_text_alone(Consensus())


def test_scoring_without_a_model_loads_no_transformers() -> None:
    code = "import sys, lockstitch.stitching.score; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
