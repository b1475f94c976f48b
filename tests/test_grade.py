"""`lockstitch grade` as people run it: golds, changed golds, real outputs, refusals, and runs that were killed."""

import collections
import itertools
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
from lockstitch.rewards.puzzles.countdown import parse_question
from lockstitch.rewards.statistics import wilson
from lockstitch.rewards.tasks.grade import GradeConfig, grade, number_note, parse_reward
from lockstitch.rewards.tasks.grade_cli import main
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.rows import load_rows
from test_math_rewards import TAKEN_FOR_THE_SAME, perturbed, rows_of


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(folder, task, rows, *options):
    """The summary and the results of the command, on rows with completions."""
    source = write(folder / "completions.jsonl", rows)
    assert main(["--task", task, "--completions", str(source), "--output", str(folder / "out"), *options]) == 0
    return json.loads((folder / "out/summary.json").read_text()), rows_of(folder / "out/results.jsonl")


def without_time(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


# --- gold is right, changed gold is wrong ----------------------------------------------------------------------------


def solve_countdown(row):
    """The first of all expressions that reaches the target."""
    numbers, target = parse_question(row["question"])
    for a, b, c in itertools.permutations(numbers):
        for x, y in itertools.product("+-*/", repeat=2):
            for expression in (f"({a}{x}{b}){y}{c}", f"{a}{x}({b}{y}{c})"):
                try:
                    if abs(eval(expression) - target) < 1e-9:
                        return expression
                except ZeroDivisionError:
                    continue
    raise AssertionError(f"no solution of {row}")


def another_math(row):
    taken = set().union(*TAKEN_FOR_THE_SAME.values())
    return next(f"\\boxed{{{other}}}" for other in perturbed(row["answer"]) if (row["answer"], other) not in taken)


def another_digit(digits):
    return digits[:-1] + str(int(digits[-1]) % 4 + 1)


def fenced(*parts):
    return "```python\n" + "".join(parts) + "\n```"


def with_another_number(row):
    expression = solve_countdown(row)
    return re.sub(r"\d+$|\d+(?=\)$)", lambda match: str(int(match[0]) + 1), expression)


def stub(row):
    """The program with a name of its own for each function, and functions of the right names that return nothing."""
    return fenced(*(f"def {name}(*_):\n    return None\n\n" for name in re.findall(r"^def (\w+)", row["code"], re.M)))


# task, source, rows, a right completion of a row, a wrong one
GOLD = {
    "gsm8k": ("test", 1319, lambda row: row["answer"],
              lambda row: f"#### {int(row['answer'].rpartition('####')[2].replace(',', '')) + 1}"),
    "gsm8k train": ("train", 7473, lambda row: row["answer"],
                    lambda row: f"#### {int(row['answer'].rpartition('####')[2].replace(',', '')) + 1}"),
    "math500": ("test", 500, lambda row: row["solution"], another_math),
    "amc": ("2023", 40, lambda row: f"\\boxed{{{int(row['answer'])}}}", lambda row: f"\\boxed{{{int(row['answer']) + 1}}}"),
    "countdown": ("d1", 128, lambda row: f"<answer>{solve_countdown(row)}</answer>",
                  lambda row: f"<answer>{with_another_number(row)}</answer>"),
    "sudoku": ("d1", 250, lambda row: f"<answer>\n{row['Solution']}\n</answer>",
               lambda row: f"<answer>\n{another_digit(row['Solution'])}\n</answer>"),
    "humaneval": ("test", 82, lambda row: fenced(row["code_prompt"], row["canonical_solution"]),
                  lambda row: fenced(row["code_prompt"], "    return None")),
    "mbpp": ("test", 474, lambda row: fenced(row["code"]), stub),
    "mbpp sanitized": ("sanitized", 170, lambda row: fenced(row["code"]), stub),
}  # fmt: skip
# Programs whose own tests cannot tell that they return nothing.
TOLD_BY_NO_TEST: dict[str, set[object]] = {}


def check_gold(folder, data, name, count):
    source, total, right, wrong = GOLD[name]
    task = name.partition(" ")[0]
    rows = load_rows(task, source=source, path=data, rows=total)[:count]
    graded = [{**row, "completion": [{"role": "assistant", "content": right(row)}]} for row in rows]
    graded += [{**row, "completion": wrong(row)} for row in rows]
    summary, results = run(folder, task, graded, "--chunk", "500")
    n = len(rows)
    assert summary["n"] == len(results) == 2 * n
    assert [i for i, row in enumerate(results[:n]) if row["right"] is not True] == []
    missed = {rows[i].get("task_id", i) for i, row in enumerate(results[n:]) if row["right"] is not False}
    assert missed == TOLD_BY_NO_TEST.get(name, set())
    assert all(row["answer"] for row in results[:n])


CODE_TASKS = ("humaneval", "mbpp", "mbpp sanitized")


@pytest.mark.parametrize("name", [name for name in GOLD if name != "math500"])  # which takes seconds
def test_gold_is_right_and_changed_gold_is_wrong(name, tmp_path, data_dir, request):
    if name in CODE_TASKS:
        request.getfixturevalue("bubblewrap")
    check_gold(tmp_path, data_dir, name, 4 if name in CODE_TASKS else 25)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in GOLD if name not in CODE_TASKS])  # their rows: `test_code_gold`
def test_all_gold_is_right_and_changed_gold_is_wrong(name, tmp_path, data_dir):
    check_gold(tmp_path, data_dir, name, None)


def test_generated_gold(tmp_path):
    rows = load_rows("arithmetic", source="held_out", count=50)
    graded = [{**row, "completion": f"#### {row['answer']}"} for row in rows]
    graded += [{**row, "completion": f"#### {int(row['answer']) + 1}"} for row in rows]
    summary, results = run(tmp_path, "arithmetic", graded)
    assert [row["right"] for row in results] == [True] * 50 + [False] * 50
    assert summary["note"] is None


# --- real outputs ----------------------------------------------------------------------------------------------------

# As `scripts/grade_real_outputs.py` prints: rows, right, not scored.
REAL = {"gsm8k": (600, 476, 1), "math500": (250, 92, 0), "countdown": (128, 24, 0), "sudoku": (128, 0, 0)}


@pytest.mark.parametrize(
    "task", [pytest.param(name, marks=pytest.mark.slow if name == "math500" else ()) for name in REAL]
)
def test_real_outputs(task, tmp_path, data_dir):
    n, right, none = REAL[task]
    rows = rows_of(data_dir / f"llada_d1_baselines/{task}_256_128.jsonl")
    graded = [{"question": row["question"], "completion": row["generations"]} for row in rows]
    if task in ("gsm8k", "math500"):
        graded = [{**one, "answer": row["ground_truth"]} for one, row in zip(graded, rows, strict=True)]
    summary, results = run(tmp_path, task, graded, "--form", "tags")
    assert (summary["n"], summary["right"], summary["none"]) == (n, right, none)
    assert summary["accuracy"] == right / (n - none)
    assert summary["ci95"] == pytest.approx(wilson(right, n - none))
    assert set(summary["rewards"]) == {name for name, _ in get_task(task).rewards_for("tags")}
    for name, of in summary["rewards"].items():
        values = [row["rewards"][name] for row in results if row["rewards"][name] is not None]
        assert of["mean"] == pytest.approx(sum(values) / len(values))
        assert of["none"] == n - len(values)
    assert f"{n} rows, and task {task!r} has" in summary["note"]


# --- what is written -------------------------------------------------------------------------------------------------

ROWS = [
    {"question": "Half?", "answer": "0.5", "completion": [{"role": "assistant", "content": r"\boxed{1/2}"}]},
    {"question": "Two?", "answer": "2", "completion": "3 <|eot_id|>"},
    {"question": "What?", "answer": None, "completion": "4"},
    {"question": "Who?", "answer": "5", "completion": ""},
]


def test_results_and_summary(tmp_path, capsys, monkeypatch):
    (tmp_path / "short.py").write_text(
        "def short(prompts, completions, **columns):\n    assert len(columns['answer']) == len(completions)\n"
        "    return [float('nan') if p == 'Who?' else 1.0 for p in prompts]\n"
    )
    monkeypatch.chdir(tmp_path)
    summary, results = run(tmp_path, "gsm8k", ROWS, "--reward", "short:short=0.5", "--chunk", "3")
    given = [{"question": row["question"], "input_answer": row["answer"]} for row in ROWS]
    assert without_time(results) == [
        {"index": i, **given[i], **found}
        for i, found in enumerate(
            [
                {"answer": "1/2", "right": True, "reward": 1.5, "rewards": {"math": 1.0, "short:short": 1.0}},
                {"answer": "3", "right": False, "reward": 0.5, "rewards": {"math": 0.0, "short:short": 1.0}},
                {"answer": "4", "right": None, "reward": 0.5, "rewards": {"math": None, "short:short": 1.0}},
                {"answer": None, "right": False, "reward": 0.0, "rewards": {"math": 0.0, "short:short": None}},
            ]
        )
    ]
    assert summary["rewards"] == {
        "math": {"weight": 1.0, "mean": 1 / 3, "none": 1},
        "short:short": {"weight": 0.5, "mean": 1.0, "none": 1},
    }
    assert (summary["n"], summary["right"], summary["none"], summary["reward"]) == (4, 1, 1, 2.5 / 4)
    assert summary["seconds"] == pytest.approx(sum(row["seconds"] for row in results), abs=0.001)
    said = capsys.readouterr().out
    assert "gsm8k: 1 of 3 right, 33.3% (95 % interval 6.1% to 79.2%); 1 without a verdict" in said
    assert "Note: 4 rows, and task 'gsm8k' has 1319 (test), 7473 (train)" in said
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "results.jsonl", "summary.json"]


def test_nothing_with_a_verdict(tmp_path, capsys):
    summary, _ = run(tmp_path, "gsm8k", ROWS[2:3])
    assert (summary["accuracy"], summary["ci95"], summary["none"]) == (None, None, 1)
    assert "0 of 0 right; 1 without a verdict" in capsys.readouterr().out


def test_several_samples_of_each_problem_are_whole(tmp_path):
    amc = get_task("amc")
    assert number_note(amc, 40) is number_note(amc, 160) is None
    assert number_note(amc, 41).startswith("41 rows, and task 'amc' has 40 (2023)")
    assert number_note(get_task("arithmetic"), 7) is None


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--task", "gsm9k"], "did you mean 'gsm8k'"),
        (["--form", "xml"], "form 'xml' of task 'gsm8k' is not one of tags, boxed, plain"),
        (["--reward", "xml_cuont"], "did you mean 'xml_count'"),
        (["--reward", "xml_count=much"], "'xml_count=much' is not NAME or NAME=WEIGHT"),
        (["--reward", "xml_count=nan"], "with a finite number"),
        (["--reward", "=2"], "is not NAME"),
        (["--reward", "math"], "rewards named twice: math; those of task 'gsm8k' itself are math"),
        (["--chunk", "0"], "chunk=0 is not positive"),
        (["--completions", "nowhere.jsonl"], "input 'nowhere.jsonl' is not a file"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(options, says, tmp_path, capsys):
    source, out = write(tmp_path / "c.jsonl", ROWS), tmp_path / "out"
    assert main(["--task", "gsm8k", "--completions", str(source), "--output", str(out), *options]) == 2
    assert says in capsys.readouterr().err
    assert not out.exists()


def test_bad_rows_are_named_by_their_lines(tmp_path, capsys):
    bad = [
        {"question": "Q?", "answer": "1"},
        {"completion": "1", "answer": "1"},
        {"question": "Q?", "completion": "1"},
        *(
            {"question": "Q?", "answer": "1", "completion": value}
            for value in (None, 5, [], ["text"], [{"content": 5}], [{"content": [{"type": "text"}]}])
        ),
    ]
    source = write(tmp_path / "c.jsonl", [ROWS[0], *bad])
    source.write_text(source.read_text() + "not json\n")
    assert main(["--task", "gsm8k", "--completions", str(source), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    for text in (
        "10 bad lines",
        "line 2: no 'completion'",
        "line 3: no 'question'",
        "line 4: no 'answer' or 'solution'",
        "line 5: 'completion' is neither",
        "line 7: 'completion' is neither",
        "line 8: 'completion' is neither",
        "line 9: the last message",
        "line 10: the last message",
        "line 11: not JSON",
    ):
        assert text in said
    assert not (tmp_path / "out").exists()


def test_another_configuration_is_refused(tmp_path, capsys):
    run(tmp_path, "gsm8k", ROWS)
    arguments = [
        "--task",
        "gsm8k",
        "--completions",
        str(tmp_path / "completions.jsonl"),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, "--form", "tags"]) == 2
    assert "form: 'plain' then, 'tags' now" in capsys.readouterr().err
    assert main([*arguments, "--chunk", "1"]) == 0  # changes no result
    write(tmp_path / "completions.jsonl", ROWS[:3])
    assert main(arguments) == 2
    assert "sha256" in capsys.readouterr().err


def test_a_reward_that_breaks_the_contract_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "odd.py").write_text("def odd(prompts, completions, **columns):\n    return [1.0]\n")
    monkeypatch.chdir(tmp_path)
    arguments = ["--task", "gsm8k", "--completions", str(write(tmp_path / "c.jsonl", ROWS)), "--output", "out"]
    assert main([*arguments, "--reward", "odd:odd"]) == 2
    assert (
        "reward 'odd:odd' returned [1.0] for 4 completions; a list of 4 numbers is needed" in capsys.readouterr().err
    )
    for value in ("float('inf')", "-float('inf')", "10**400"):
        source = f"def odd(prompts, completions, **columns):\n    return [1.0, {value}] * 2\n"
        (tmp_path / f"odd{len(value)}.py").write_text(source)
        assert main([*arguments, "--reward", f"odd{len(value)}:odd"]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"reward 'odd{len(value)}:odd' returned " in said
        assert said.endswith(" for a completion; a finite number is needed, or None")


def test_weights():
    assert parse_reward("a.b:c=-0.5") == ("a.b:c", -0.5)
    assert parse_reward("math") == ("math", 1.0)


def test_help_is_quick():
    """Within a second of the process's own time, whatever else the machine is busy with."""

    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    command = [sys.executable, "-m", "lockstitch.cli", "grade", "--help"]
    seconds = []
    for _ in range(3):
        began = used()
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds.append(used() - began)
    assert min(seconds) < 1.0
    assert "humaneval" in said


# --- interrupted -----------------------------------------------------------------------------------------------------


def puzzles(n):
    return [
        {"question": "3102200002100320", "completion": f"#### {'3142243142131324' if i % 3 else 'x'}"}
        for i in range(n)
    ]


def test_a_file_that_was_cut_anywhere_is_finished_as_it_was(tmp_path):
    _, whole = run(tmp_path, "sudoku", puzzles(12), "--chunk", "5")
    path = tmp_path / "out/results.jsonl"
    data = path.read_bytes()
    rng = random.Random(0)
    for cut in [0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(10))]:
        path.write_bytes(data[:cut])
        (tmp_path / "out/summary.json").unlink()
        summary, rows = run(tmp_path, "sudoku", puzzles(12), "--chunk", "5")
        assert without_time(rows) == without_time(whole)
        assert (summary["n"], summary["right"]) == (12, 8)


DEADLY = """
import os, signal
from pathlib import Path

def deadly(prompts, completions, number, **columns):
    log = Path("log.txt")
    seen = log.read_text().split() if log.exists() else []
    if 12 in number and "again" not in seen:
        log.write_text(" ".join([*seen, "again"]))
        os.kill(os.getpid(), signal.SIGKILL)
    log.write_text(" ".join([*seen, *map(str, number)]))
    return [0.0] * len(number)
"""


def test_killed_while_it_scores_it_loses_and_repeats_nothing(tmp_path):
    """A reward that kills the process in the third chunk: what was scored before is kept, and scored once."""
    (tmp_path / "deadly_reward.py").write_text(DEADLY)
    write(tmp_path / "c.jsonl", [{**row, "number": i} for i, row in enumerate(puzzles(25))])
    command = [
        sys.executable, "-m", "lockstitch.cli", "grade", "--task", "sudoku", "--completions", "c.jsonl", "--output", "out",
        "--reward", "deadly_reward:deadly", "--chunk", "5",
    ]  # fmt: skip
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert first.returncode == -signal.SIGKILL
    assert [row["index"] for row in rows_of(tmp_path / "out/results.jsonl")] == list(range(10))
    assert not (tmp_path / "out/summary.json").exists()
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert [row["index"] for row in rows_of(tmp_path / "out/results.jsonl")] == list(range(25))
    scored = collections.Counter((tmp_path / "log.txt").read_text().split())
    assert scored == collections.Counter(["again", *map(str, range(25))])


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path, data_dir):
    rows = rows_of(data_dir / "llada_d1_baselines/countdown_256_128.jsonl")
    source = write(
        tmp_path / "c.jsonl", [{"question": r["question"], "completion": r["generations"]} for r in rows * 40]
    )
    grade(GradeConfig("countdown", source, tmp_path / "whole", chunk=20))
    expected = without_time(rows_of(tmp_path / "whole/results.jsonl"))
    command = [sys.executable, "-m", "lockstitch.cli", "grade", "--task", "countdown", "--completions", str(source),
               "--output", str(tmp_path / "out"), "--chunk", "20"]  # fmt: skip
    rng = random.Random(0)
    results = tmp_path / "out/results.jsonl"
    size = (tmp_path / "whole/results.jsonl").stat().st_size
    # By progress, not by the clock: a fast machine is done before any fixed delay.
    for share in sorted(rng.random() * 0.8 for _ in range(8)):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while not results.exists() or results.stat().st_size < share * size:
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        whole = results.read_bytes().rpartition(b"\n")[0].decode().split("\n")
        assert without_time(map(json.loads, whole)) == expected[: len(whole)]
    assert len(whole) < len(expected)
    summary = grade(GradeConfig("countdown", source, tmp_path / "out", chunk=20))
    assert without_time(rows_of(results)) == expected
    assert summary["right"] == 24 * 40
