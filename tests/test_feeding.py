"""The commands feed one another: what `sample`, the trainer and `stitch` write is what `stitch` and `grade` read."""

import json

import pyarrow
import pytest
from lockstitch.rewards.tasks.grade_cli import main as grade
from lockstitch.rl.logged_completions import add_columns, make_writable, plain_columns, writable
from lockstitch.sampling.cli import main as sample
from lockstitch.stitching.cli import main as stitch
from pyarrow import parquet

SAMPLE = [
    "--model",
    "embedded:sudoku",
    "--canvas_length",
    "20",
    "--steps",
    "5",
    "--temperature",
    "1.2",
    "--device",
    "cpu",
]
PUZZLES = ["3102200002100320", "0140432014020000", "4310010000303420"]


def written(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def in_rows(puzzle):
    return "".join(puzzle[i : i + 4] + "\n" for i in range(0, 16, 4))


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """Three puzzles with four trajectories each, by the command, from rows with columns of their own."""
    folder = tmp_path_factory.mktemp("sampled")
    rows = [
        {"prompt": in_rows(puzzle), "question": puzzle, "task_id": f"mine/{i}", "index": 7}
        for i, puzzle in enumerate(PUZZLES)
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sample([*SAMPLE, "--input", str(folder / "in.jsonl"), "--n", "4", "--output", str(folder / "out")]) == 0
    return folder / "out/results.jsonl"


def test_a_sample_keeps_the_columns_of_its_row(sampled):
    rows = written(sampled)
    assert [(row["index"], row["task_id"], row["question"], row["input_index"]) for row in rows] == [
        (i, f"mine/{i}", puzzle, 7) for i, puzzle in enumerate(PUZZLES)
    ]
    source = str(sampled.parents[1] / "in.jsonl")
    assert sample([*SAMPLE, "--input", source, "--n", "4", "--output", str(sampled.parent)]) == 0
    assert written(sampled) == rows


def test_a_changed_sample_is_noticed(sampled, tmp_path, capsys):
    text = sampled.read_text()
    for name in ("config.json", "results.jsonl"):
        (tmp_path / name).write_text((sampled.parent / name).read_text().replace('"mine/1"', '"yours/1"'))
    source = str(sampled.parents[1] / "in.jsonl")
    assert sample([*SAMPLE, "--input", source, "--n", "4", "--output", str(tmp_path)]) == 2
    assert "is not this run's row 1, whose 'task_id' is 'mine/1'" in capsys.readouterr().err
    assert sampled.read_text() == text


def test_what_was_sampled_is_stitched_and_graded(sampled, tmp_path, capsys):
    assert grade(["--task", "sudoku", "--completions", str(sampled), "--output", str(tmp_path / "graded")]) == 0
    graded = written(tmp_path / "graded/results.jsonl")
    summary = json.loads((tmp_path / "graded/summary.json").read_text())
    assert (summary["n"], summary["problems"]) == (12, 3)
    assert list(summary["pass@k"]) == ["pass@1", "pass@2", "pass@4"]
    assert [(row["task_id"], row["sample"]) for row in graded] == [
        (f"mine/{i}", k) for i in range(3) for k in range(4)
    ]

    command = ["--task", "sudoku", "--trajectories", str(sampled), "--solver", "none"]
    assert stitch([*command, "--output", str(tmp_path / "s")]) == 0
    stitched = written(tmp_path / "s/results.jsonl")
    assert [one["text"] for row in stitched for one in row["trajectories"]] == [
        one["text"] for row in written(sampled) for one in row["trajectories"]
    ]
    judged = [one["correct"] for row in stitched for one in row["trajectories"]]
    assert judged == [row["right"] for row in graded]

    # And what was stitched is graded: its trajectories as they were, and each method as it says itself.
    results = str(tmp_path / "s/results.jsonl")
    assert grade(["--task", "sudoku", "--completions", results, "--output", str(tmp_path / "again")]) == 0
    assert [row["right"] for row in written(tmp_path / "again/results.jsonl")] == judged
    methods = json.loads((tmp_path / "s/summary.json").read_text())["methods"]
    for name in ("single", "majority_vote", "stitched"):
        assert (
            grade(["--task", "sudoku", "--completions", results, "--column", name, "--output", str(tmp_path / name)])
            == 0
        )
        assert json.loads((tmp_path / name / "summary.json").read_text())["accuracy"] == methods[name]["accuracy"]
    capsys.readouterr()
    assert (
        grade(["--task", "sudoku", "--completions", results, "--column", "greedy", "--output", str(tmp_path / "g")])
        == 2
    )
    assert "has a column 'greedy'; there are " in (said := capsys.readouterr().err)
    assert "'stitched'" in said


def test_a_prompt_alone_says_what_was_asked_where_rules_judge(tmp_path):
    assert sample([*SAMPLE, "--prompt", in_rows(PUZZLES[0]), "--n", "2", "--output", str(tmp_path / "s")]) == 0
    source = str(tmp_path / "s/results.jsonl")
    assert grade(["--task", "sudoku", "--completions", source, "--output", str(tmp_path / "g")]) == 0
    assert (
        stitch(["--task", "sudoku", "--trajectories", source, "--solver", "none", "--output", str(tmp_path / "t")])
        == 0
    )
    (row,) = written(tmp_path / "t/results.jsonl")
    assert row["question"] == PUZZLES[0]
    assert [one["correct"] for one in row["trajectories"]] == [
        one["right"] for one in written(tmp_path / "g/results.jsonl")
    ]


def logged(folder, rows, given):
    """A table as TRL writes it, with the columns that ours adds."""
    path = folder / "completions_00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    add_columns(path, plain_columns(given))
    return path


def test_what_the_trainer_logs_is_graded_and_stitched(tmp_path):
    texts = [["12+7=19. #### 19", "#### 18", "so 19\n#### 19"], ["#### 5", "3+1=4\n#### 4", "#### 4"]]
    given = [
        {"prompt": f"{i}?", "question": f"How many are {i}?", "answer": gold, "index": i}
        for i, gold in enumerate(("19", "4"))
        for _ in range(3)
    ]
    rows = [
        {
            "step": 1,
            "prompt": [{"role": "user", "content": f"Solve: {i}"}],
            "completion": [{"role": "assistant", "content": text}],
            "math": float("nan"),
            "nfe": 4,
            "advantage": 0.5,
        }
        for i in range(2)
        for text in texts[i]
    ]
    path = logged(tmp_path, rows, given)
    assert grade(["--task", "gsm8k", "--completions", str(path), "--output", str(tmp_path / "g")]) == 0
    graded = written(tmp_path / "g/results.jsonl")
    assert [row["right"] for row in graded] == [True, False, True, False, True, True]
    kept = {(row["step"], row["nfe"], row["math"], row["input_index"]) for row in graded}
    assert kept == {(1, 4, None, 0), (1, 4, None, 1)}
    summary = json.loads((tmp_path / "g/summary.json").read_text())
    assert (summary["problems"], list(summary["pass@k"])) == (2, ["pass@1", "pass@2"])
    assert stitch(["--task", "gsm8k", "--trajectories", str(path), "--output", str(tmp_path / "s")]) == 0
    stitched = written(tmp_path / "s/results.jsonl")
    assert [[one["text"] for one in row["trajectories"]] for row in stitched] == texts
    assert [row["methods"]["majority_vote"]["correct"] for row in stitched] == [True, True]


def test_whatever_rewards_log_can_be_written(tmp_path):
    from collections import deque

    logged = [["SyntaxError: \ud800", "x"], [1, "two"], [True, 1], [{"a": "\udfff"}, None], [1, 2.5], [[1], "a"]]
    for values in logged:
        column = deque(values, maxlen=2)
        make_writable(column)
        parquet.write_table(pyarrow.table({"a": list(column)}), tmp_path / "t.parquet")
        assert parquet.read_table(tmp_path / "t.parquet").num_rows == 2
    assert writable(["a\ud800b"]) == ["a\\ud800b"]
    assert writable([1, 2.5, None]) == [1, 2.5, None]


def test_golds_that_cannot_be_read_are_named_by_line(tmp_path, capsys):
    rows = [{"question": f"{i}?", "answer": gold, "completions": ["4"]} for i, gold in enumerate(("4", "", "4", None))]
    source = tmp_path / "t.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert stitch(["--task", "gsm8k", "--trajectories", str(source), "--output", str(tmp_path / "o")]) == 0
    said = capsys.readouterr().err
    assert said.count("cannot be read") == 1
    assert "1 row has a gold answer that cannot be read, and no verdict (line 2: gold answer '')" in said
    summary = json.loads((tmp_path / "o/summary.json").read_text())
    assert (summary["unreadable_gold"], summary["methods"]["single"]["n"]) == (1, 2)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"question": "\\ud800", "completions": ["4"]}', "line 2: holds half of a surrogate pair"),
        (b'{"question": "\xff", "completions": ["4"]}', "line 2: not UTF-8"),
        (b'{"a": ' + b"[" * 100_000, "line 2: JSON that is nested too deeply"),
    ],
)
def test_odd_lines_are_named_before_any_work(line, says, tmp_path, capsys):
    source = tmp_path / "t.jsonl"
    good = b'{"question": "one\xe2\x80\xa8two\\u0000", "prompt": "1+1=", "completions": ["4\\u2028"]}\r\n'
    source.write_bytes(good + line + b"\n")
    commands = [
        (stitch, ["--task", "gsm8k", "--trajectories", str(source)]),
        (stitch, ["--task", "gsm8k", "--input", str(source)]),
        (sample, ["--model", "embedded:sudoku", "--canvas_length", "20", "--input", str(source)]),
    ]
    for command, options in commands:
        assert command([*options, "--output", str(tmp_path / "o")]) == 2
        assert says in capsys.readouterr().err
        assert not (tmp_path / "o").exists()
