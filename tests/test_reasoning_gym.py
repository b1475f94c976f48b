"""Reasoning Gym's generators as tasks: its own golds, its own scorer, and what is said where it is not installed."""

import json
import sys
from importlib.util import find_spec

import pytest
from lockstitch.rewards.tasks import reasoning_gym_task
from lockstitch.rewards.tasks.grade_cli import main
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.reasoning_gym_task import gym_task, read_gym_row, reasoning_gym_reward
from lockstitch.rewards.tasks.rows import load_rows
from lockstitch.rewards.tasks.task import marked_answer
from test_grade import run

needs_library = pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="the extra 'gym' is not installed")
ROW = {"question": "1 + 2 =", "answer": "3", "metadata": {"source_dataset": "chain_sum"}}


def score(rows, completions):
    return reasoning_gym_reward(
        [""] * len(rows), completions, **{name: [row[name] for row in rows] for name in rows[0]}
    )


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)  # so Python finds none
    with pytest.raises(ValueError, match=r"pip install 'lockstitch\[gym\]'"):
        gym_task("chain_sum")
    with pytest.raises(ValueError, match=r"pip install 'lockstitch\[gym\]'"):
        score([ROW], ["3"])
    source = tmp_path / "c.jsonl"
    source.write_text("{}\n")
    arguments = ["--task", "reasoning_gym:chain_sum", "--completions", str(source), "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "Reasoning Gym is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>3</answer>", "3"),
        (r"\boxed{3}", "3"),
        ("so\n#### 3", "3"),
        (" 3<|eot_id|>", "3"),
        ("  ", None),
        (r"<answer> 1 0\n0 1 </answer> \boxed{7}", r"1 0\n0 1"),
        ("<answer></answer>", None),
    ],
)
def test_what_is_read(text, answer):
    assert marked_answer(text) == answer


def test_rows_are_read():
    assert read_gym_row(ROW)["metadata"] == "{'source_dataset': 'chain_sum'}"
    assert read_gym_row(read_gym_row(ROW)) == read_gym_row(ROW)
    for row, says in (({"question": "?"}, "no 'metadata'"), ({"metadata": {"source_dataset": "x"}}, "no 'question'")):
        with pytest.raises(ValueError, match=says):
            read_gym_row(row)


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match="missing: metadata"):
        reasoning_gym_reward([""], ["3"], question=["?"], answer=["3"])


@needs_library
def test_an_unknown_generator_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'chain_sum'"):
        get_task("reasoning_gym:chain_sums")


@needs_library
@pytest.mark.slow
def test_gold_is_right_through_the_command(tmp_path):
    rows = load_rows("reasoning_gym:chain_sum", count=10, form="plain")
    assert rows[0]["prompt"] == [{"role": "user", "content": rows[0]["question"]}]
    assert rows == load_rows("reasoning_gym:chain_sum", count=10, form="plain")
    train = load_rows("reasoning_gym:chain_sum", source="train", count=10)
    assert {row["question"] for row in rows}.isdisjoint(row["question"] for row in train)
    graded = [{**row, "completion": f"<answer>{row['answer']}</answer>"} for row in rows]
    graded += [{**row, "completion": f"<answer>{int(row['answer']) + 1}</answer>"} for row in rows]
    summary, results = run(tmp_path, "reasoning_gym:chain_sum", graded)
    assert [row["right"] for row in results] == [True] * 10 + [False] * 10
    assert (summary["right"], summary["none"], summary["note"]) == (10, 0, None)


@needs_library
@pytest.mark.slow
def test_an_answer_that_breaks_the_scorer_is_wrong_and_a_row_that_does_is_unknown():
    (row,) = [read_gym_row(row) for row in load_rows("reasoning_gym:prime_factorization", count=1)]
    row = {name: row[name] for name in ("question", "answer", "metadata")}
    broken = {**row, "metadata": "{'source_dataset': 'prime_factorization', 'number': 1}"}
    unknown = {**row, "metadata": "source_dataset("}
    answers = [row["answer"], "x", "", "two x three"]
    assert score([row] * 4, answers) == [1.0, 0.0, 0.0, 0.0]
    assert score([unknown, row], ["x", row["answer"]]) == [None, 1.0]
    assert score([broken], [row["answer"]])[0] in (None, 1.0)


@needs_library
@pytest.mark.slow
def test_every_generator_with_a_gold_answer_gives_it_full_marks():
    """Through a row's text and back: what is scored is what the library made, tuples, keys and all."""
    from reasoning_gym.factory import DATASETS, create_dataset

    names = sorted(set(DATASETS) - {"composite"})
    rows, theirs = [], []
    for name in names:
        dataset = create_dataset(name, size=2, seed=3)
        for entry, row in zip(dataset, reasoning_gym_task.make_rows(name, 2, 3), strict=True):
            if entry["answer"] is not None:
                assert json.loads(json.dumps(row)) == row
                rows.append(row)
                theirs.append(float(dataset.score_answer(str(entry["answer"]).strip(), entry)))
    ours = score(rows, [f"<answer>{row['answer']}</answer>" for row in rows])
    assert [(row["metadata"], a, b) for row, a, b in zip(rows, ours, theirs, strict=True) if a != b] == []
    assert sum(value == 1.0 for value in ours) >= len(rows) - 4
    assert len(rows) > 190
