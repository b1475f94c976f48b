"""Completions in the forms that people have: what is read, joined, refused, and counted as pass@k."""

import gzip
import itertools
import json
import random
import subprocess
import sys

import pytest
from lockstitch.rewards.statistics import clustered_interval, pass_at_k, wilson
from lockstitch.rewards.tasks.grade_cli import main

from lockstitch import files

ROWS = [
    {"question": "Two?", "answer": "2", "level": 3},
    {"question": "Three?", "answer": "3", "level": 4},
]
SAID = ["That is 2.", "It is 4."]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def grade(source, task="gsm8k", *options, out=None):
    """The summary and the results of the command."""
    out = out or source.parent / "out"
    assert main(["--task", task, "--completions", str(source), "--output", str(out), *options]) == 0
    results = (out / "results.jsonl").read_text(encoding="utf-8").split("\n")
    return json.loads((out / "summary.json").read_text()), [json.loads(line) for line in results if line]


def refused(capsys, source, *options, task="gsm8k"):
    assert main(["--task", task, "--completions", str(source), "--output", str(source.parent / "none"), *options]) == 2
    assert not (source.parent / "none").exists()
    return capsys.readouterr().err


def message(text):
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]


# --- forms -----------------------------------------------------------------------------------------------------------

FORMS = {
    "completion": lambda row, text: {**row, "completion": text},
    "response": lambda row, text: {**row, "response": message(text)},
    "output": lambda row, text: {**row, "output": text, "input": "Solve it."},
    "completions": lambda row, text: {**row, "completions": [text]},
    "conversations": lambda row, text: {**row, "completions": [message(text)]},
    "lm-eval": lambda row, text: {"doc_id": 1, "doc": row, "target": "?", "resps": [[text]], "filtered_resps": ["x"]},
    "sample": lambda row, text: {**row, "index": 0, "prompt": "p", "trajectories": [{"text": text, "length": 4}]},
    "stitch": lambda row, text: {**row, "trajectories": [{"text": text}], "evidence": {}, "methods": {}},
    "null beside": lambda row, text: {**row, "completion": text, "response": None},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_of_completions(form, tmp_path):
    source = write(tmp_path / "c.jsonl", [FORMS[form](row, text) for row, text in zip(ROWS, SAID, strict=True)])
    summary, results = grade(source)
    assert [row["right"] for row in results] == [True, False]
    kept = [(row["question"], row["input_answer"], row["level"]) for row in results]
    assert kept == [("Two?", "2", 3), ("Three?", "3", 4)]
    assert (summary["n"], summary["problems"], summary["accuracy"]) == (2, 2, 0.5)


def test_a_column_of_another_name(tmp_path, capsys):
    source = write(tmp_path / "c.jsonl", [{**row, "said": text} for row, text in zip(ROWS, SAID, strict=True)])
    assert "no 'completion' (nor completions in another column that is known; --column" in refused(capsys, source)
    assert "no row of" in (said := refused(capsys, source, "--column", "sayd"))
    assert "there are 'question', 'answer', 'level', 'said'" in said
    assert grade(source, "gsm8k", "--column", "said")[0]["right"] == 1


def test_two_columns_are_refused_by_their_names(tmp_path, capsys):
    rows = [{**row, "completion": text, "response": "9"} for row, text in zip(ROWS, SAID, strict=True)]
    source = write(tmp_path / "c.jsonl", rows)
    assert "has 'completion' and 'response', each of which could be the completions" in refused(capsys, source)
    assert grade(source, "gsm8k", "--column", "completion")[0]["right"] == 1


def test_log_likelihoods_are_no_completions(tmp_path, capsys):
    rows = [{"doc_id": 0, "doc": ROWS[0], "target": "2", "resps": [[["-1.5", "False"]], [["-0.2", "True"]]]}]
    assert "line 1: 'resps' is neither a text" in refused(capsys, write(tmp_path / "samples.jsonl", rows))


def test_an_empty_column_is_none(tmp_path):
    (tmp_path / "c.csv").write_text("question,answer,completion,response\nTwo?,2,2,\nThree?,3,,\n")
    assert [row["right"] for row in grade(tmp_path / "c.csv")[1]] == [True, False]


def test_what_a_benchmark_calls_its_own_is_no_completion(tmp_path):
    countdown = [{"input": "30,100,93", "output": "23", "completion": "#### (93+30)-100"}]
    assert grade(write(tmp_path / "c.jsonl", countdown), "countdown")[0]["right"] == 1
    math = [{"problem": "Two?", "solution": r"\boxed{2}", "completion": "2"}]
    assert grade(write(tmp_path / "m.jsonl", math), "math500", out=tmp_path / "m")[0]["right"] == 1


@pytest.mark.parametrize("name", ["c.jsonl", "c.json", "c.csv", "c.parquet", "c.jsonl.gz", "c.csv.gz", "bom.jsonl"])
def test_the_kinds_of_files(name, tmp_path):
    rows = [{**row, "completion": text} for row, text in zip(ROWS, SAID, strict=True)]
    path = tmp_path / name
    lines = "\r\n".join(map(json.dumps, rows)).encode()
    table = b"question,answer,completion\r\n" + b"".join(
        f'"{row["question"]}",{row["answer"]},"{row["completion"]}"\r\n'.encode() for row in rows
    )
    if name.endswith(".parquet"):
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist([{**row, "score": float("nan")} for row in rows]), path)
    else:
        data = table if ".csv" in name else json.dumps(rows).encode() if name == "c.json" else lines
        data = b"\xef\xbb\xbf" + data if name.startswith("bom") else data
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    _, results = grade(path)
    assert [row["right"] for row in results] == [True, False]
    if name.endswith(".parquet"):
        assert [row["score"] for row in results] == [None, None]


def test_the_filters_of_lm_eval_are_not_counted_twice(tmp_path):
    rows = [
        {"doc_id": i, "doc": row, "target": row["answer"], "resps": [[text, text]], "filter": name}
        for i, (row, text) in enumerate(zip(ROWS, SAID, strict=True))
        for name in ("strict-match", "flexible-extract")
    ]
    summary, results = grade(write(tmp_path / "samples_gsm8k.jsonl", rows))
    assert [(row["doc_id"], row["sample"]) for row in results] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert summary["pass@k"]["pass@2"]["mean"] == 0.5


# --- joined ----------------------------------------------------------------------------------------------------------


def test_rows_without_a_problem_are_joined_by_their_id(tmp_path, capsys):
    own = write(tmp_path / "own.jsonl", [{"id": i, **row} for i, row in enumerate(ROWS)])
    rows = [{"id": 1, "completion": "3", "model": "a"}, {"id": 0, "completion": "3"}, {"id": 1, "completion": "1"}]
    source = write(tmp_path / "c.jsonl", rows)
    summary, results = grade(source, "gsm8k", "--input", str(own))
    found = [(row["id"], row.get("model"), row["right"]) for row in results]
    assert found == [(1, "a", True), (0, None, False), (1, None, False)]
    assert (summary["n"], summary["problems"]) == (3, 2)
    assert summary["pass@k"] == {"pass@1": {"mean": 0.25, "ci95": summary["pass@k"]["pass@1"]["ci95"]}}
    write(source, [*rows, {"id": 7, "completion": "1"}, {"completion": "2"}])
    said = refused(capsys, source, "--input", str(own))
    assert "line 4: id 7 is none of task 'gsm8k', whose 2 rows have 0" in said
    assert "line 5: no 'task_id' or 'id' to join it" in said
    write(source, [{"completion": "2"}])
    assert "line 1: no 'answer' or 'solution' (nor 'task_id' or 'id', to join it" in refused(capsys, source)
    write(source, [{"id": 1, "completion": "2"}])
    assert "task 'arithmetic' makes its rows up" in refused(capsys, source, task="arithmetic")


PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": "def double(x):\n",
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(5) == 10\n",
}


def test_the_samples_of_humaneval_and_evalplus(tmp_path, bubblewrap):
    own = write(tmp_path / "HumanEval.jsonl", [PROBLEM])
    bodies = ("    return 2 * x\n", "    return x\n", "    return x + x\n")
    samples = [{"task_id": "HumanEval/0", "completion": text} for text in bodies]
    summary, results = grade(write(tmp_path / "samples.jsonl", samples), "humaneval", "--input", str(own))
    assert [(row["task_id"], row["right"]) for row in results] == [
        ("HumanEval/0", right) for right in (True, False, True)
    ]
    assert [of["mean"] for of in summary["pass@k"].values()] == [pytest.approx(2 / 3), 1.0]
    whole = [{"task_id": "HumanEval/0", "solution": "def double(x):\n    return x * 2\n"}]
    summary, _ = grade(write(tmp_path / "evalplus.jsonl", whole), "humaneval", "--input", str(own), out=tmp_path / "e")
    assert summary["accuracy"] == 1.0


def test_samples_are_joined_with_the_public_files(tmp_path, data_dir, bubblewrap):
    with (data_dir / "humaneval/HumanEval.jsonl").open() as file:
        problems = [json.loads(next(file)) for _ in range(2)]
    samples = [{"task_id": one["task_id"], "completion": one["canonical_solution"]} for one in problems]
    samples.append({"task_id": problems[0]["task_id"], "completion": "    return None\n"})
    summary, results = grade(write(tmp_path / "samples.jsonl", samples), "humaneval")
    assert [row["right"] for row in results] == [True, True, False]
    assert "problems have 1 to 2 completions" in summary["note"]


# --- pass@k and intervals --------------------------------------------------------------------------------------------


def test_pass_at_k_is_the_share_of_choices_with_a_right_one():
    for n in range(1, 7):
        for right in range(n + 1):
            for k in range(1, n + 1):
                chosen = list(itertools.combinations([True] * right + [False] * (n - right), k))
                assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, chosen)) / len(chosen))
    with pytest.raises(ValueError, match="pass@3 of 1 right in 2"):
        pass_at_k(2, 1, 3)


def test_clustered_intervals():
    values = [1.0] * 7 + [0.0] * 13
    alone = clustered_interval([[value] for value in values])
    assert alone == pytest.approx(wilson(7, 20))
    # Completions that say the same as the first tell nothing more.
    assert clustered_interval([[value] * 8 for value in values]) == pytest.approx(alone)
    # Completions that are as different within problems as between them are as many problems.
    rng = random.Random(0)
    mixed = [[float(rng.random() < 0.4) for _ in range(8)] for _ in range(200)]
    low, high = clustered_interval(mixed)
    plain = wilson(sum(map(sum, mixed)), 1600)
    assert (high - low) == pytest.approx(plain[1] - plain[0], rel=0.15)
    assert clustered_interval([[1.0] * 4] * 3) == wilson(3, 3)


def test_intervals_cover_what_they_should():
    """Problems of very different difficulty, eight completions each: the true mean is inside in about 95 of 100 runs."""
    rng = random.Random(1)
    inside = naive = 0
    for _ in range(300):
        hard = [rng.random() ** 3 for _ in range(60)]  # mean 1/4
        drawn = [[float(rng.random() < p) for _ in range(8)] for p in hard]
        low, high = clustered_interval(drawn)
        inside += low <= 0.25 <= high
        low, high = wilson(sum(map(sum, drawn)), 480)
        naive += low <= 0.25 <= high
    assert inside > 275  # 95 % are 285
    assert naive < 250


def test_several_completions_of_a_problem(tmp_path, capsys):
    rows = [{**ROWS[0], "completions": ["2", "2", "5", "2"]}, {**ROWS[1], "completions": ["1", "3", "1", "1"]}]
    summary, results = grade(write(tmp_path / "c.jsonl", rows))
    assert [(row["index"], row["sample"], row["question"]) for row in results] == [
        (i, i % 4, ROWS[i // 4]["question"]) for i in range(8)
    ]
    assert (summary["n"], summary["problems"], summary["right"], summary["accuracy"]) == (8, 2, 4, 0.5)
    means = {name: of["mean"] for name, of in summary["pass@k"].items()}
    assert means == {"pass@1": 0.5, "pass@2": pytest.approx((1 + 0.5) / 2), "pass@4": 1.0}
    assert summary["ci95"] == summary["pass@k"]["pass@1"]["ci95"]
    said = capsys.readouterr().out
    assert "pass@1: 50.0% (" in said
    assert "over 2 problems" in said


# --- golds -----------------------------------------------------------------------------------------------------------


def test_gold_answers_that_cannot_be_read_are_named_once_by_line(tmp_path, caplog):
    golds = [
        "2",
        "",
        "3",
        None,
        "see the figure in the appendix of the book, on the page where the second example stands",
    ]
    rows = [{"question": f"{i}?", "answer": gold, "completions": ["2", "3"]} for i, gold in enumerate(golds)]
    summary, results = grade(write(tmp_path / "c.jsonl", rows))
    named = [text for text in caplog.messages if "cannot be read" in text and "line" in text]
    assert len(named) == 1
    assert "2 rows have a gold answer that cannot be read, and no verdict" in named[0]
    assert "line 2: gold answer ''; line 5: gold answer 'see the figure" in named[0]
    assert summary["unreadable_gold"] == 2
    assert [row["right"] for row in results] == [True, False, None, None, False, True, None, None, None, None]


# --- a results file that was changed ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: lines[1:], "is row 1, where row 0 should stand"),
        (lambda lines: [lines[0], *lines], "is row 0, where row 1 should stand"),
        (
            lambda lines: [lines[0], lines[1].replace("Three?", "Four?")],
            "is not this run's row 1, whose 'question' is 'Th",
        ),
        (
            lambda lines: [*lines, lines[1].replace('"index": 1', '"index": 2')],
            "is one more than the 2 rows of this run",
        ),
        (lambda lines: [lines[0].replace('"math"', '"maths"'), lines[1]], "has not the rewards math"),
    ],
)
def test_rows_taken_out_doubled_or_foreign_are_noticed(change, says, tmp_path, capsys):
    source = write(tmp_path / "c.jsonl", [{**row, "completion": text} for row, text in zip(ROWS, SAID, strict=True)])
    grade(source)
    results = tmp_path / "out" / files.RESULTS
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(change(lines)))
    assert main(["--task", "gsm8k", "--completions", str(source), "--output", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_two_gradings_at_once_are_one(tmp_path):
    """Of two that are started together in one directory, each ends well or is refused; the rows are there once."""
    (tmp_path / "slow_reward.py").write_text(
        "import time\n\ndef slow(prompts, completions, **columns):\n    time.sleep(0.1)\n    return [0.0] * len(prompts)\n"
    )
    write(tmp_path / "c.jsonl", [{**ROWS[0], "completion": str(i), "number": i} for i in range(120)])
    command = [sys.executable, "-m", "lockstitch.cli", "grade", "--task", "gsm8k", "--completions", "c.jsonl",
               "--output", "out", "--reward", "slow_reward:slow", "--chunk", "10"]  # fmt: skip
    both = [
        subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) in ([0, 2], [0, 0]), said
    assert all(
        process.returncode == 0 or "written into by another process" in text
        for process, text in zip(both, said, strict=True)
    )
    rows = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert [row["number"] for row in rows] == list(range(120))
    assert json.loads((tmp_path / "out/summary.json").read_text())["n"] == 120


def test_a_run_does_not_go_on_over_other_rows_of_the_task(tmp_path, capsys):
    """What rows are joined with may change in a folder while its name stays."""
    folder = tmp_path / "rows"
    (folder / "gsm8k").mkdir(parents=True)
    write(folder / "gsm8k" / "test.jsonl", [{"id": i, **row} for i, row in enumerate(ROWS)])
    source = write(tmp_path / "c.jsonl", [{"id": i, "completion": "2"} for i in range(len(ROWS))])
    words = [
        "--task",
        "gsm8k",
        "--completions",
        str(source),
        "--input",
        str(folder),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0
    assert main(words) == 0
    write(folder / "gsm8k" / "test.jsonl", [{"id": i, **row, "answer": "#### 77"} for i, row in enumerate(ROWS)])
    assert main(words) == 2
    assert "holds results of another configuration (rows_sha256" in capsys.readouterr().err


# --- odd input -------------------------------------------------------------------------------------------------------

ODD = {
    "half a surrogate pair": (
        b'{"question": "Q?", "answer": "2", "completion": "2 \\ud800"}',
        "line 2: holds half of a",
    ),
    "bad UTF-8": (b'{"question": "Q?", "answer": "2", "completion": "2 \xff"}', "line 2: not UTF-8"),
    "deep JSON": (b'{"question": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 2: JSON that is nested too deeply"),
    "U+2028": (b'{"question": "Q?", "answer": "2", "completion": "It is\xe2\x80\xa82"}', None),
    "NUL": (b'{"question": "Q\\u0000?", "answer": "2", "completion": "2"}', None),
    "CRLF": (b'{"question": "Q?", "answer": "2", "completion": "2"}\r', None),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_lines_are_read_or_named(name, tmp_path, capsys):
    line, says = ODD[name]
    source = tmp_path / "c.jsonl"
    source.write_bytes(json.dumps({**ROWS[0], "completion": "2"}).encode() + b"\n" + line + b"\n")
    if says is None:
        summary, results = grade(source)
        assert (summary["n"], summary["right"]) == (2, 2)
        assert results[1]["question"] == json.loads(line)["question"]
    else:
        assert says in refused(capsys, source)
