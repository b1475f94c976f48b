"""Benchmarks: what the records say, rows in every public notation, prompts, and where rows come from."""

import json
import logging

import pytest
from lockstitch.rewards.plugins import available_rewards, load_reward
from lockstitch.rewards.tasks.builtin import TASKS
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.rows import load_rows
from test_math_rewards import rows_of

FILES = {
    "gsm8k": ("test", 1319), "math500": ("test", 500), "amc": ("2023", 40), "countdown": ("d1", 128),
    "sudoku": ("d1", 250), "humaneval": ("test", 82), "mbpp": ("test", 474),
}  # fmt: skip
HUMANEVAL = {"prompt": "\ndef one():\n", "entry_point": "one", "test": "def check(f):\n    assert f() == 1\n"}


def read(name, row):
    return get_task(name).read(row)


# --- the records -----------------------------------------------------------------------------------------------------


def test_the_hub_is_asked_by_the_documented_names():
    """As on the data sets' pages: name, configuration, split and number of rows."""
    asked = {
        (name, split): (source.hub, source.config, source.split, source.rows)
        for name, task in TASKS.items()
        for split, source in task.sources.items()
        if source.hub
    }
    mbpp = "google-research-datasets/mbpp"
    assert asked == {
        ("gsm8k", "test"): ("openai/gsm8k", "main", "test", 1319),
        ("gsm8k", "train"): ("openai/gsm8k", "main", "train", 7473),
        ("math500", "test"): ("HuggingFaceH4/MATH-500", None, "test", 500),
        ("aime", "2024"): ("HuggingFaceH4/aime_2024", None, "train", 30),
        ("aime", "2025"): ("math-ai/aime25", None, "test", 30),
        ("amc", "2023"): ("math-ai/amc23", None, "test", 40),
        ("svamp", "test"): ("ChilleD/SVAMP", None, "test", 300),
        ("svamp", "train"): ("ChilleD/SVAMP", None, "train", 700),
        ("humaneval", "test"): ("openai/openai_humaneval", "openai_humaneval", "test", 164),
        ("mbpp", "test"): (mbpp, "full", "test", 500),
        ("mbpp", "train"): (mbpp, "full", "train", 374),
        ("mbpp", "sanitized"): (mbpp, "sanitized", "test", 257),
    }


@pytest.mark.parametrize("name", TASKS)
def test_every_reward_is_a_plug_in(name):
    task = get_task(name)
    offered = {info.name for info in available_rewards()}
    for form in task.forms:
        names = [reward for reward, weight in task.rewards_for(form) if weight > 0]
        assert set(names) <= offered
        assert len(names) == len(set(names)) == len(task.rewards_for(form))
        assert all(callable(load_reward(reward)) for reward in names)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: get_task("gsm8"), r"task 'gsm8' is not one of gsm8k, .*reasoning_gym:NAME, .*; did you mean 'gsm8k'"),
        (lambda: get_task("gsm8k").source("dev"), "source 'dev' of task 'gsm8k' is not one of test, train"),
        (lambda: get_task("mbpp").prompt("q", "boxed"), "'boxed' of task 'mbpp' is not one of tags, fenced, plain"),
        (lambda: get_task("gsm8k").rewards_for("xml"), "form 'xml' of task 'gsm8k' is not one of tags, boxed, plain"),
        (lambda: load_rows("gsm8k", form="xml"), "form 'xml'"),
        (lambda: load_rows("gsm8k", count=0), "count=0 is not positive"),
        (lambda: load_rows("arithmetic"), "say how many"),
    ],
)
def test_what_is_unknown_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


# --- rows in their own notations -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "columns"),
    [
        ("gsm8k", {"question": " Q? ", "answer": "1+1=2\n#### 2"}, {"question": "Q?", "answer": "1+1=2\n#### 2"}),
        ("math500", {"problem": "P", "solution": r"so \boxed{2}"}, {"question": "P", "answer": r"so \boxed{2}"}),
        (
            "math500",
            {"problem": "P", "solution": "s", "answer": "2"},
            {"question": "P", "answer": "2", "solution": "s"},
        ),
        ("amc", {"id": 0, "problem": "P", "answer": 27.0}, {"question": "P", "answer": 27.0, "id": 0}),
        ("aime", {"problem": "P", "answer": None}, {"question": "P", "answer": None}),
        ("svamp", {"Body": "He has 3 ", "Question": "How many?", "Answer": 3.0}, {"question": "He has 3. How many?"}),
        ("svamp", {"Body": "He has 3.", "Question": "How many?", "Answer": 3.0}, {"answer": 3.0}),
        ("countdown", {"input": "30,100,93", "output": "23"}, {"question": "30,100,93=23"}),
        ("countdown", {"nums": [30, 100, 93], "target": 23}, {"question": "30,100,93=23", "target": 23}),
        ("countdown", {"question": "Numbers: [30, 100, 93]\nTarget: 23"}, {"question": "30,100,93=23"}),
        ("sudoku", {"Puzzle": "3102200002100320", "Solution": "x"}, {"question": "3102200002100320"}),
        (
            "sudoku",
            {"question": "Solve the following Sudoku puzzle: 3102200002100320\n"},
            {"question": "3102200002100320"},
        ),
        ("arithmetic", {"question": "12, +7"}, {"question": "12, +7"}),
        ("humaneval", HUMANEVAL, {"code_prompt": HUMANEVAL["prompt"], "question": HUMANEVAL["prompt"]}),
        ("mbpp", {"prompt": "Add.", "test_list": ["assert f(1) == 2"]}, {"text": "Add."}),
    ],
)
def test_a_row_is_read(name, row, columns):
    found = read(name, row)
    assert columns.items() <= found.items()
    # What is read can be read again, as when rows with completions come back from a sampler.
    assert read(name, {**found, "prompt": [{"role": "user", "content": "?"}]})["question"] == found["question"]


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("gsm8k", {"question": "Q?"}, "no 'answer' or 'solution'"),
        ("math500", {"answer": "2"}, "no 'question' or 'problem'"),
        ("svamp", {"Body": "He has 3", "Question": "How many?"}, "no 'Answer'"),
        ("countdown", {"question": "30,100"}, "not of the form"),
        ("countdown", {"numbers": 5, "target": 3}, "numbers 5: a list of them is needed"),
        ("sudoku", {"puzzle": "310"}, "not 16 digits"),
        ("humaneval", {"prompt": "def f():", "test": "x"}, "no 'entry_point'"),
        ("humaneval", {"test": "x", "entry_point": "f", "prompt": [1]}, "a function's header"),
        ("mbpp", {"text": "Add."}, "no 'test_list'"),
        ("mbpp", {"text": "Add.", "test_list": "assert f(1) == 2"}, "a list of texts"),
    ],
)
def test_a_row_that_lacks_something_is_refused(name, row, says):
    with pytest.raises(ValueError, match=says):
        read(name, row)


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_prompts_ask_in_the_form(name):
    questions = {
        "countdown": "30,100,93=23",
        "sudoku": "3102200002100320",
        "arithmetic": "12, +7",
        "sudoku9": "0" * 81,
    }
    question = questions.get(name, "How many?")
    task = get_task(name)
    for form in task.forms:
        text = task.prompt(question, form)
        assert ("<reasoning>\n" in text and "\n</reasoning>\n<answer>\n" in text) == (form == "tags")
        assert form != "boxed" or r"\boxed{}" in text
        assert form != "fenced" or "```python" in text
        assert form == "plain" or text.startswith(task.instructions[form])
    # An answer in exactly the form that the tags ask for is one, for the reward that pays for the form.
    shown = task.instructions["tags"].partition("form:\n")[2] + "\n"
    assert load_reward("strict_format")([""], [shown]) == [0.5]
    assert load_reward("xml_count")([""], [shown])[0] == pytest.approx(0.5, abs=0.002)


# --- where rows come from --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_the_public_files_are_read_whole(name, data_dir, caplog):
    """By the folder; the number of rows is the published one, or there is a warning."""
    source, count = FILES[name]
    expected = get_task(name).source(source).rows
    with caplog.at_level(logging.WARNING):
        rows = load_rows(name, path=data_dir)
    assert len(rows) == count
    said = [record.getMessage() for record in caplog.records]
    assert [f"holds {count} rows of task {name!r}, and {expected} are expected" in text for text in said] == (
        [] if count == expected else [True]
    )
    assert all(row["prompt"][0]["content"].endswith(get_task(name).ask(row["question"])) for row in rows)


def test_so_many_rows_as_are_asked_for_are_demanded(data_dir):
    name = "humaneval"
    count = FILES[name][1]
    load_rows(name, path=data_dir, rows=count)
    with pytest.raises(ValueError, match=rf"holds {count} rows of task '{name}', and {count + 1} are expected"):
        load_rows(name, path=data_dir, rows=count + 1)


def test_the_folder_may_be_named_by_the_environment(data_dir, monkeypatch):
    monkeypatch.setenv("LOCKSTITCH_DATA", str(data_dir))
    rows = load_rows("mbpp", source="sanitized", form="plain", conversational=False, count=2)
    assert [row["task_id"] for row in rows] == [2, 3]
    assert rows[0]["prompt"] == rows[0]["question"]
    assert rows[0]["test_list"][0] in rows[0]["prompt"]
    assert rows[0]["prompt"].startswith("Write a function to find the shared elements")


def test_rows_are_made_up_where_the_task_can(monkeypatch):
    monkeypatch.delenv("LOCKSTITCH_DATA", raising=False)
    train = load_rows("countdown", source="train", count=200)
    held = load_rows("countdown", source="held_out", count=200)
    assert not {row["question"] for row in train} & {row["question"] for row in held}
    assert train == load_rows("countdown", source="train", count=200)
    assert train != load_rows("countdown", source="train", count=200, seed=1)
    values = load_reward("countdown")(
        [""] * 200, [f"#### {row['answer']}" for row in train], question=[row["question"] for row in train]
    )
    assert values == [1.0] * 200


def test_what_is_nowhere_is_said(monkeypatch, tmp_path):
    monkeypatch.delenv("LOCKSTITCH_DATA", raising=False)
    with pytest.raises(ValueError, match=r"not on the hub: name a file .* has countdown/countdown_cd3_test\.jsonl"):
        load_rows("countdown")
    with pytest.raises(ValueError, match=r"neither a folder nor a file that ends in \.jsonl, \.json, \.csv"):
        load_rows("countdown", path=tmp_path / "rows.txt")
    (tmp_path / "bad.jsonl").write_text('{"input": "1,2,3", "output": "6"}\n{"input": "1"}\n')
    with pytest.raises(ValueError, match="line 2: no 'question'"):
        load_rows("countdown", path=tmp_path / "bad.jsonl")


def test_a_copy_of_the_hubs_folder_is_loaded_as_the_hub_is(tmp_path, monkeypatch, data_dir):
    """The library's own loader with the record's own arguments, on a folder laid out as the data set's repository is."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = rows_of(data_dir / "gsm8k/test.jsonl")
    folder = tmp_path / "gsm8k"
    (folder / "main").mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(folder / "main/test-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: test\n    path: main/test-*\n---\n"
    )
    loaded = load_rows("gsm8k", path=folder, form="boxed", conversational=False)
    assert [(row["question"], row["answer"]) for row in loaded] == [
        (row["question"].strip(), row["answer"]) for row in rows
    ]
    # What trainers do with them.
    assert datasets.Dataset.from_list(loaded).column_names == ["question", "answer", "prompt"]


# --- stitching's side of the math tasks ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["math500", "aime", "amc", "svamp"])
def test_math_tasks_for_stitching(name):
    task = get_task(name)
    problem = task.read_row({"question": "Half of one?", "answer": r"\frac{1}{2}"})
    assert (problem.question, problem.answer) == ("Half of one?", r"\frac{1}{2}")
    answer = task.extract(r"1/2 = 0.5, so \boxed{0.5}.")
    assert task.is_correct(problem.question, problem.answer, answer) is True
    assert task.is_correct(problem.question, problem.answer, "0.6") is False
    assert task.is_correct(problem.question, problem.answer, "") is False
    assert task.is_correct(problem.question, None, answer) is None
    assert task.read_row({"problem": "Half of one?"}).answer is None


@pytest.mark.slow
def test_stitching_math500(tmp_path):
    from lockstitch.stitching.cli import main

    source, out = tmp_path / "traces.jsonl", tmp_path / "out"
    row = {"problem": "Half of one?", "answer": "1/2", "completions": [r"1/2 = 0.5. So \boxed{0.5}", r"So \boxed{2}"]}
    source.write_text(json.dumps(row) + "\n")
    assert main(["--task", "math500", "--trajectories", str(source), "--output", str(out)]) == 0
    (found,) = rows_of(out / "results.jsonl")
    assert [one["correct"] for one in found["trajectories"]] == [True, False]
