"""The verifier of arithmetic traces, labels by answers and the fitted vote by evidence: closed forms, and the commands."""

import json
import math
import random
import subprocess
import sys

import pytest
import torch
from lockstitch.recipes.trace_labels import (
    as_models_read,
    check_folds,
    fit_evidence,
    fit_verifier,
    folds,
    trace_rows,
    unseen_scores,
)
from lockstitch.rewards.tasks.named import get_task
from lockstitch.stitching.evidence_model import EvidenceModel, evidence_features, names_of, results_stated
from lockstitch.stitching.logistic import Logistic, fit_logistic
from lockstitch.stitching.score import load_scorer
from lockstitch.stitching.segment import steps_of
from lockstitch.stitching.verifier import FEATURES, Verifier, features

TASK = get_task("gsm8k")
WRITERS = (0.7, 0.6, 0.5)  # how often each source is right


def made_up(seed, count):
    """Problems with a trace of each source; what is wrong is wrong arithmetic."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        a, b, c = (rng.randint(2, 50) for _ in range(3))
        texts = []
        for right in WRITERS:
            total = a + b + (0 if rng.random() < right else rng.randint(1, 9))
            texts.append(
                f"She has {a}+{b}=<<{a}+{b}={total}>>{total} now\nThat makes {total}*{c}={total * c}\nA: {total * c}"
            )
        question = f"Ann has {a} shells and finds {b} more. Each is worth {c} dollars. What are they worth?"
        rows.append({"question": question, "answer": str((a + b) * c), "completions": texts})
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- the regression --------------------------------------------------------------------------------------------------


def test_one_binary_feature_gives_its_log_odds():
    """8 of 10 right where it is set and 3 of 10 where not: the two logits, up to the ridge."""
    rows = [[1.0]] * 10 + [[0.0]] * 10
    outcomes = [1.0] * 8 + [0.0] * 2 + [1.0] * 3 + [0.0] * 7
    model = fit_logistic(("set",), rows, outcomes, ridge=1e-6)
    assert model([[1.0], [0.0]]) == pytest.approx([0.8, 0.3], abs=1e-5)
    halved = fit_logistic(("set",), rows * 2, outcomes * 2, [0.5] * 40, ridge=1e-6)
    assert halved.weights == pytest.approx(model.weights)


def test_at_the_optimum_the_gradient_is_the_ridge():
    torch.manual_seed(0)
    x = torch.randn(60, 3, dtype=torch.float64)
    y = (torch.rand(60) < torch.sigmoid(x[:, 0] - 0.5)).double()
    model = fit_logistic(("a", "b", "c"), x.tolist(), y.tolist(), ridge=2.0)
    z = (x - x.mean(0)) / x.std(0, unbiased=False)
    left = z.T @ (y - torch.tensor(model(x.tolist()), dtype=torch.float64))
    assert left.tolist() == pytest.approx([2.0 * weight for weight in model.weights], abs=1e-7)


def test_a_question_of_several_rows_is_in_one_fold(tmp_path):
    rows = trace_rows(write(tmp_path / "a.jsonl", made_up(1, 6) + made_up(1, 6)[1:]), TASK)
    fold_of = folds(rows)
    assert len(fold_of) == 6
    assert {row["problem"] for row in rows} == set(range(11))
    check_folds(rows, "a")
    right = [row for row in rows if row["correct"]]
    for some, says in (
        (right, "0 wrong traces with steps"),
        (rows[:4], "holds [0-9] problems with steps; at least 5"),
    ):
        with pytest.raises(ValueError, match=says):
            check_folds(some, "a")


def test_two_gold_answers_of_a_question_are_refused(tmp_path):
    one = made_up(1, 1)[0]
    path = write(tmp_path / "a.jsonl", [one, {**one, "answer": "123456"}])
    with pytest.raises(ValueError, match=r"has two gold answers, '.*' and '123456'"):
        trace_rows(path, TASK)


def test_files_come_back_and_others_are_refused(tmp_path):
    model = fit_logistic(("a",), [[0.0], [1.0]], [0.0, 1.0], more={"usual": 4})
    model.write(tmp_path / "m.json")
    assert Logistic.read(tmp_path / "m.json", ("a",), "it") == model
    with pytest.raises(ValueError, match=r"has other features than this version's it"):
        Logistic.read(tmp_path / "m.json", ("b",), "it")
    with pytest.raises(ValueError, match="fitted evidence weights"):
        EvidenceModel.read(str(tmp_path / "m.json"))
    with pytest.raises(ValueError, match=r"the verifier: there is no '.*none.json'; `lockstitch prm` writes one"):
        Verifier(str(tmp_path / "none.json"), TASK)
    for changed in (
        {"bias": float("nan")},
        {"weights": [float("inf")]},
        {"scale": [0.0]},
        {"more": {"usual": float("nan")}},
    ):
        (tmp_path / "bad.json").write_text(json.dumps({**json.loads((tmp_path / "m.json").read_text()), **changed}))
        with pytest.raises(ValueError, match=r"it cannot be read from .*bad\.json': its numbers are to be finite"):
            Logistic.read(tmp_path / "bad.json", ("a",), "it")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="the verifier cannot be read"):
        Verifier(str(tmp_path / "bad.json"), TASK)
    with pytest.raises(ValueError, match="2 labels that are all the same"):
        fit_logistic(("a",), [[0.0], [1.0]], [1.0, 1.0])


# --- labels and scores -----------------------------------------------------------------------------------------------


def test_steps_are_labelled_by_their_traces_answer(tmp_path):
    rows = made_up(1, 3)
    found = trace_rows(write(tmp_path / "t.jsonl", rows), TASK)
    assert [row["problem"] for row in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for i, row in enumerate(found):
        right = rows[i // 3]["completions"][i % 3].endswith(f"A: {rows[i // 3]['answer']}")
        assert row["correct"] == right
        assert row["labels"] == [float(right)] * 2
        assert row["sound"][0] == float(right)  # the first step's sum is what goes wrong


def test_features_say_what_they_are_called():
    question = "Ann has 3 shells and finds 4."
    steps = ["She has 3+4=<<3+4=7>>7", "Half of them is 7/2=<<7/2=3.5>>3.5", "With 9 it is 9-1=<<9-1=8>>8"]
    rows = [dict(zip(FEATURES, row, strict=True)) for row in features(question, steps, [1.0, 0.5, 0.0])]
    first, second, third = rows
    assert (first["calculators"], first["steps"], first["question_numbers"]) == (3, 3, 2)
    assert (first["least_sound"], first["mean_sound"], first["wrong_steps"], first["unknown_steps"]) == (0, 0.5, 1, 1)
    assert (first["whole"], first["positive"], first["size"]) == (1, 1, math.log(9))
    assert first["used"] == 1
    assert first["foreign"] == 3 / 6  # 2, 9 and 1 of 3, 4, 7, 2, 9, 1
    assert (first["decimals"], first["negatives"], first["latex"], first["ends_in_result"]) == (1, 0, 0, 1)
    assert [row["step_wrong"] for row in rows] == [0, 0, 1]
    assert [row["step_unknown"] for row in rows] == [0, 1, 0]
    assert [row["step_place"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 1])
    assert (second["step_foreign"], third["step_foreign"]) == (1, 1)


def test_no_score_is_by_a_verifier_that_saw_the_problem(tmp_path):
    """The labels of one problem turned round change the scores of others, and not its own."""
    rows = trace_rows(write(tmp_path / "t.jsonl", made_up(2, 40)), TASK)
    before = unseen_scores(rows)
    turned = [{**row, "labels": [1 - one for one in row["labels"]]} if row["problem"] == 7 else row for row in rows]
    after = unseen_scores(turned)
    same_fold = [i for i, row in enumerate(rows) if row["problem"] % 5 == 7 % 5]
    assert all(before[i] == after[i] for i in same_fold)
    assert any(before[i] != after[i] for i in range(len(rows)) if i not in same_fold)


# --- the vote by evidence --------------------------------------------------------------------------------------------


def test_evidence_features_by_hand():
    results = [{"1", "2"}, {"1", "2"}, {"1", "3"}]
    rows = evidence_features(["a", "a", None], [0.5, 0.8, 0.2], results, 2, 2)
    common = len(names_of(0))
    assert rows[0][:common] == pytest.approx([0.0, 0.8, 0.2, 0.2, math.log(0.2), 0.8 + 0.2 / 3, 1.0])
    assert [row[common:] for row in rows] == [[1, 0], [0, 1], [0, 0]]
    assert rows[2][1:4] == pytest.approx([0.0, 1.3, 0.8])  # no answer is the same as no other
    assert results_stated(["3+4=7 and 2*7 = $14", "=<<1+1=2>>2"]) == {"7", "14", "2"}


def test_the_fitted_vote_trusts_the_better_source(tmp_path):
    rows = trace_rows(write(tmp_path / "t.jsonl", made_up(3, 500)), TASK)
    flat = [[0.5] * len(row["completions"]) for row in rows]  # scores that say nothing: only the source does
    model = fit_evidence(rows, flat)
    vote = EvidenceModel(model, 3, 3)
    assert vote.best(["a", "b", "c"], [0.5] * 3, [set()] * 3) == 0
    assert vote.best([None, "b", "b"], [0.5] * 3, [set()] * 3) in (1, 2)
    assert vote.best([None, None, None], [0.5] * 3, [set()] * 3) is None
    assert vote.best(["b", "c", "c"], [0.5] * 3, [{"1"}, {"2"}, {"2"}]) == 1  # two that agree outweigh one source


def test_a_source_keeps_its_place_where_another_wrote_no_step(tmp_path):
    """The first source writes bare answers, and is always right; the third is always wrong."""
    rows = [
        {**row, "completions": [f"A: {row['answer']}", text, text.rpartition("A:")[0] + "A: 0"]}
        for row in made_up(4, 200)
        for text in row["completions"][1:2]
    ]
    found = trace_rows(write(tmp_path / "t.jsonl", rows), TASK)
    model = fit_evidence(found, [[0.5] * len(row["completions"]) for row in found])
    assert EvidenceModel(model, 3, 3).best(["a", "b", "c"], [0.5] * 3, [set()] * 3) == 0
    weight = dict(zip(names_of(3), model.weights, strict=True))
    first, second, third = list(weight.values())[-3:]
    assert first > second > third


def test_a_model_reads_steps_as_its_task_writes_them(tmp_path):
    countdown = get_task("countdown")
    row = {"question": "30,100,93=23", "completions": ["93+30=123\n123-100=23\n#### 93+30-100"]}
    rows = trace_rows(write(tmp_path / "t.jsonl", [row]), countdown)
    (read,) = as_models_read({"train": rows}, countdown)["train"]
    assert (
        read["completions"]
        == [countdown.write_step(step) for step in rows[0]["completions"]]
        != rows[0]["completions"]
    )


@pytest.mark.slow
def test_the_commands_fit_and_use_it(tmp_path):
    train, test = write(tmp_path / "a.jsonl", made_up(4, 60)), write(tmp_path / "b.jsonl", made_up(5, 30))
    fitted = tmp_path / "fitted"

    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "lockstitch", *map(str, words)], capture_output=True, text=True, check=False
        )

    done = run(
        "prm",
        "--task",
        "gsm8k",
        "--traces",
        train,
        "--eval_traces",
        test,
        "--model_name_or_path",
        "features",
        "--output_dir",
        fitted,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((fitted / "summary.json").read_text())
    assert summary["scorers"]["verifier"]["traces"]["auc"] > 0.95
    assert summary["scorers"]["verifier"]["cost"] == {"nfe": 0, "scorer_passes": 0}  # no model reads anything
    assert (fitted / "calibration.html").is_file()
    rows = trace_rows(test, TASK)
    scorer = load_scorer(f"verifier:{fitted}", TASK)
    steps = steps_of(made_up(5, 1)[0]["completions"][0], TASK.unit, 0)
    expected = fit_verifier(trace_rows(train, TASK))(
        features(rows[0]["question"], rows[0]["completions"], rows[0]["sound"])
    )
    assert scorer(rows[0]["question"], [steps], None).score_KN == [pytest.approx(expected)]
    done = run(
        "stitch",
        "--task",
        "gsm8k",
        "--trajectories",
        test,
        "--scorer",
        f"calculator+verifier:{fitted}",
        "--scorer_weights",
        fitted / "scorer_weights.json",
        "--evidence_weights",
        fitted / "evidence_weights.json",
        "--output",
        tmp_path / "out",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/summary.json").read_text())["methods"]
    assert found["stitched"]["accuracy"] >= found["majority_vote"]["accuracy"]
    done = run(
        "prm",
        "--task",
        "gsm8k",
        "--traces",
        train,
        "--eval_traces",
        train,
        "--model_name_or_path",
        "features",
        "--output_dir",
        tmp_path / "other",
    )
    assert done.returncode == 2
    assert "60 questions are in traces and in eval_traces" in done.stderr
    done = run(
        "prm",
        "--task",
        "gsm8k",
        "--traces",
        train,
        "--label_model",
        "x",
        "--model_name_or_path",
        "features",
        "--output_dir",
        tmp_path / "other",
    )
    assert done.returncode == 2
    assert "label_model='x' is of labelling by completion" in done.stderr
