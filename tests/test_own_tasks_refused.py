"""What is wrong with a user's own task is said in a line; and files that nobody named are not run."""

import json
import os
import re
import subprocess
import sys
import textwrap

import own_tasks
import pytest
from lockstitch.recipes import grpo, sft, sft_data
from lockstitch.recipes.rl_data import load_problems
from lockstitch.rewards.plugins import remembered_reward
from lockstitch.rewards.tasks import grade_cli
from lockstitch.rewards.tasks.named import get_task, remembered
from lockstitch.rewards.tasks.own import KEYS, load_task_file
from lockstitch.rewards.tasks.task import Source, Task
from lockstitch.sampling import cli as sample_cli
from lockstitch.stitching import cli as stitch_cli
from lockstitch.stitching.segment import segment
from own_tasks import MODULE, REWARD, ROWS, TASK, TINY, rows_of

pytestmark = pytest.mark.filterwarnings("ignore")
place = own_tasks.place


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("rewards: math", "the key 'rewards' is not one of name, .*; did you mean 'reward'"),
        ("name: 3", "name: 3 is not accepted; it takes a text"),
        ("name: [a]", "name: "),
        ("dataset: none.jsonl", "dataset: there is no 'none.jsonl' beside the file"),
        ("dataset: ./none", "dataset: there is no './none' beside the file"),
        ("dataset: my_reward.py", "dataset: 'my_reward.py' does not end in .jsonl"),
        ("split: test", "split: 'test' would be ignored: 'sums.jsonl' is a file"),
        ("config: main", "config: 'main' would be ignored: 'sums.jsonl' is a file"),
        ("columns: [a]", "columns: .* it takes a mapping"),
        ("columns: {question: 3}", "columns: .* it takes a mapping"),
        ("prompt: 3", "prompt: 3 is not accepted"),
        ("prompt: fixed", "prompt: 'fixed' names no column"),
        ("prompt: '{question'", "prompt: .* a brace that is meant is written twice"),
        ("prompt: '{question.__class__}'", "must be the name of a column alone"),
        ("prompt: '{question!r}'", "must be the name of a column alone"),
        ("prompt: '{}'", "must be the name of a column alone"),
        ("answer: ''", "answer: '' is not accepted"),
        ("reward: maths", "reward: reward 'maths' is neither .*did you mean 'math'"),
        ("reward: 3", "reward: 3 is not accepted; it takes math, code"),
        ("reward: []", r"reward: \[\] is not accepted"),
        ("reward: [{math: much}]", "reward: {'math': 'much'} is not accepted"),
        ("reward: [math, math]", "reward: 'math' stands twice"),
        ("reward: my_reward:nothing", "reward: reward 'my_reward:nothing': my_reward has no 'nothing'"),
        ("reward: my_reward.py:__name__", "which cannot be called"),
        ("system: 3", "system: 3 is not accepted"),
        ("step_unit: word", "step_unit: 'word' is not accepted; it takes sentence, line, row"),
        ("step_unit: my_reward:nothing", "step_unit 'my_reward:nothing': my_reward has no 'nothing'"),
        ("canvas_length: 1.5", "canvas_length: 1.5 is not accepted; it takes a whole number"),
        ("canvas_length: 0", "canvas_length: 0"),
        ("canvas_length: true", "canvas_length: True"),
        ("env: {A: b}", "the key 'env' is not one of"),
        ("name: !!python/object/apply:os.getcwd []", "is not YAML: could not determine a constructor"),
        ("name: a\nname: b", "the key 'name' stands twice"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(place, change, says, capsys):
    key = change.partition(":")[0]
    kept = [line for line in TASK.strip().split("\n") if not line.startswith(f"{key}:")]
    (place / "sums.yaml").write_text("\n".join([*kept, change]) + "\n")
    with pytest.raises(ValueError, match=says) as raised:
        load_task_file(place / "sums.yaml")
    assert str(raised.value).startswith(str(place / "sums.yaml"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["prompt", "reward"])
def test_a_key_that_is_needed_is_named(place, key):
    kept = [line for line in TASK.strip().split("\n") if not line.startswith(key)]
    (place / "sums.yaml").write_text("\n".join(kept))
    with pytest.raises(ValueError, match=f"the key '{key}' is missing: "):
        get_task("sums.yaml")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("columns: {question: text}", "columns: there is no 'text' to be 'question'; there are problem, solution"),
        ("prompt: '{text}'", "prompt: the column 'text' is missing; there are"),
        ("answer: gold", "answer: there is no column 'gold'; there are"),
    ],
)
def test_a_missing_column_is_said_in_a_line_of_each_command(place, change, says, capsys, monkeypatch):
    key = change.partition(":")[0]
    kept = [line for line in TASK.strip().split("\n") if not line.startswith(f"{key}:")]
    (place / "sums.yaml").write_text("\n".join([*kept, change]) + "\n")
    model = ["--model", "embedded:sudoku"]
    calls = [
        lambda: sample_cli.main([*model, "--task", "sums.yaml", "--steps", "4"]),
        lambda: stitch_cli.main(
            [*model, "--task", "sums.yaml", "--source", "train", "--scorer", "confidence", "--output", "out"]
        ),
    ]
    for call in calls:
        assert call() == 2
        (line,) = capsys.readouterr().err.strip().split("\n")
        assert says in line
    for recipe in (grpo, sft):
        monkeypatch.setattr(
            sys, "argv", ["recipe", "--task", "sums.yaml", "--model_name_or_path", "embedded:sudoku", *TINY]
        )
        with pytest.raises(SystemExit) as ended:
            recipe.main()
        assert ended.value.code == 2
        assert says in capsys.readouterr().err


def refusal(capsys, call):
    assert call() == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    return line


def test_what_a_task_cannot_do_is_refused_by_name(place, capsys):
    words = ["--task", "sums.yaml", "--model", "embedded:arithmetic", "--question", "1, +1"]
    says = refusal(capsys, lambda: stitch_cli.main(words))
    assert "scorer 'calculator' asks the checker of steps, which task 'sums' has not" in says
    (place / "traces.jsonl").write_text('{"question": "1, +1", "answer": "2", "completions": ["2", "3"]}\n')
    elsewhere = ["--task", "sums.yaml", "--trajectories", "traces.jsonl", "--output", "there"]
    says = refusal(capsys, lambda: stitch_cli.main(elsewhere))
    assert "'prm:MODEL' or 'module:function' need none" in says
    assert "confidence" not in says  # which reads traces, and would be refused next
    words += ["--scorer", "confidence"]
    for more in (["--rule", "path"], ["--rounds", "true"]):
        assert "which task 'sums' has not" in refusal(capsys, lambda more=more: stitch_cli.main([*words, *more]))
    assert "no embedded model does sums" in refusal(
        capsys, lambda: stitch_cli.main(["--task", "sums.yaml", "--question", "1, +1", "--scorer", "confidence"])
    )
    assert "the embedded solver does not know sums" in refusal(
        capsys, lambda: stitch_cli.main([*words, "--solver", "embedded"])
    )
    made = ["--task", "sums.yaml", "--generate", "2", "--scorer", "confidence", "--output", "o"]
    says = refusal(capsys, lambda: stitch_cli.main(made))
    assert "task 'sums' has a fixed set of problems, and makes none up" in says
    assert "--" not in says  # every command says it, and its options are not those of the others
    kept = [line for line in TASK.strip().split("\n") if not line.startswith(("dataset", "answer"))]
    (place / "bare.yaml").write_text("\n".join(kept))
    sample = ["--model", "embedded:arithmetic"]
    assert "task 'bare' has no dataset to take rows from" in refusal(
        capsys, lambda: sample_cli.main([*sample, "--task", "bare.yaml"])
    )
    for words, part in (
        (["--prompt", "a", "--limit", "3"], "limit=3 would be ignored with --prompt"),
        (["--input", "a", "--source", "x"], "source='x' would be ignored with --input"),
        (["--task", "sudoku"], "makes its rows up: say how many (--limit)"),
        (["--task", "sums.yaml", "--source", "x"], "source 'x' of task 'sums' is not one of train"),
        (["--task", "sums.yaml", "--prompt_form", "tags"], "form 'tags' of task 'sums'"),
    ):
        assert part in refusal(capsys, lambda words=words: sample_cli.main([*sample, *words]))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("[float('inf')] * len(completions)", "returned inf for a completion; a finite number is needed, or None"),
        ("['right'] * len(completions)", "returned 'right' for a completion; a finite number"),
        ("[1.0]", r"returned \[1.0\] for \d+ completions; a list of \d+ numbers is needed"),
        ("None", r"returned None for \d+ completions"),
        ("await_me(completions)", "is asynchronous, and only training waits for such a one"),
        ("[float('nan')] * len(completions)", None),
    ],
)
def test_what_a_reward_returns_is_checked_where_it_judges(body, says, place, capsys):
    (place / "odd.py").write_text(
        f"async def await_me(completions): ...\n\ndef odd(completions, **columns):\n    return {body}\n"
    )
    (place / "sums.yaml").write_text(TASK.replace("my_reward.py:says", "odd.py:odd"))
    (place / "traces.jsonl").write_text('{"problem": "1, +1", "solution": "2", "completions": ["2", "3"]}\n')
    words = ["--task", "sums.yaml", "--trajectories", "traces.jsonl", "--scorer", "consensus", "--solver", "none"]
    words += ["--output", "out"]
    if says is not None:
        assert re.search(f"^lockstitch stitch: .*reward 'odd' {says}", refusal(capsys, lambda: stitch_cli.main(words)))
        return
    assert stitch_cli.main(words) == 0
    (row,) = rows_of(place / "out/results.jsonl")
    assert [one["correct"] for one in row["trajectories"]] == [None, None]  # NaN is no verdict


def test_training_refuses_tasks_without_rows_or_gold(place):
    from models import tokenizer

    kept = [line for line in TASK.strip().split("\n") if not line.startswith("answer")]
    (place / "goldless.yaml").write_text("\n".join(kept))
    with pytest.raises(ValueError, match="row 0 of task 'goldless' has no solution and no gold answer to train on"):
        sft_data.task_rows(sft.RecipeArguments(task="goldless.yaml"), tokenizer())
    (place / "bare.yaml").write_text("\n".join(line for line in kept if not line.startswith("dataset")))
    with pytest.raises(ValueError, match="task 'bare' has no dataset to take rows from"):
        sft_data.task_rows(sft.RecipeArguments(task="bare.yaml"), tokenizer())
    with pytest.raises(ValueError, match="task 'math500' has no rows to train on, only test to measure on"):
        sft_data.task_rows(sft.RecipeArguments(task="math500"), tokenizer())
    with pytest.raises(ValueError, match=r"makes its rows up: say how many \(num_problems\)"):
        sft_data.task_rows(sft.RecipeArguments(task="sudoku"), tokenizer())
    with pytest.raises(ValueError, match=r"makes its rows up: say how many \(num_problems\)"):
        load_problems(get_task("sudoku"), "plain")
    for words, says in (
        ({}, "given: none"),
        ({"task": "a", "generate": "sudoku"}, "given: generate, task"),
        ({"dataset_name": "a", "prompt_form": "tags"}, "prompt_form='tags' says what is asked of a task"),
        ({"dataset_name": "a", "num_problems": 3}, "num_problems=3 would be ignored"),
        ({"task": "a", "columns": "b:c"}, "columns='b:c' is of dataset_name"),
    ):
        with pytest.raises(ValueError, match=says):
            sft.RecipeArguments(**words)


def test_a_segmenter_must_cut_the_text():
    for wrong, says in (
        (lambda text: "abc", "a list of texts is needed"),
        (lambda text: [1], "a list of texts"),
        (lambda text: ["b", "a"], "gave the step 'a', which the text has not behind"),
    ):
        with pytest.raises(ValueError, match=says):
            segment("a b", wrong)
    assert segment("a b a", lambda text: ["a", " b", "", "a"]) == [(0, 1), (2, 3), (4, 5)]


def test_another_file_is_another_configuration(place, capsys):
    words = ["--task", "sums.yaml", "--scorer", "confidence", "--model", "embedded:arithmetic", "--num_trajectories", "1",
             "--source", "train", "--limit", "1", "--output", "out"]  # fmt: skip
    assert stitch_cli.main(words) == 0
    (place / "sums.yaml").write_text(TASK.replace("canvas_length: 16", "canvas_length: 12"))
    capsys.readouterr()
    assert "holds results of another configuration (task_file:" in refusal(capsys, lambda: stitch_cli.main(words))


@pytest.fixture
def parts(place, monkeypatch):
    """The task in Python with its functions in a file beside it, and one more reward."""
    for name in ("parts", "other"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (place / "my_task.py").write_text(MODULE.replace("my_reward", "parts"))
    (place / "parts.py").write_text(REWARD)
    (place / "other.py").write_text(REWARD.replace("says", "most"))
    yield place
    for name in ("parts", "other"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("task", "more", "changed", "says"),
    [
        ("sums.yaml", [], "my_reward.py", "task_file:"),
        ("my_task.py:task", [], "my_task.py", "task_file:"),
        ("my_task:make", [], "parts.py", "task_file:"),
        ("acme_sums", ["--reward", "other.py:most"], "other.py", "reward_files:"),
        ("acme_sums", ["--reward", "other:most=0.5"], "other.py", "reward_files:"),
    ],
)
def test_a_reward_that_was_changed_is_another_configuration(parts, task, more, changed, says, capsys):
    (parts / "done.jsonl").write_text(json.dumps({**ROWS[0], "completion": "24"}) + "\n")
    words = ["--task", task, "--completions", "done.jsonl", "--output", "out", *more]
    assert grade_cli.main(words) == 0
    assert grade_cli.main(words) == 0
    with (parts / changed).open("a") as file:
        file.write("# another\n")
    capsys.readouterr()
    assert f"holds results of another configuration ({says}" in refusal(capsys, lambda: grade_cli.main(words))


def test_a_run_remembers_what_the_files_of_its_task_and_rewards_say(parts):
    named = ["sums.yaml", "my_task.py:task", "my_task:make", "acme_sums", "sudoku", None]
    rewards = ["my_reward.py:says", "my_reward:says", "my_reward.says", str(parts / "my_reward.py") + ":says", "math"]

    def said():
        return [*map(remembered, named), *map(remembered_reward, rewards)]

    before = said()
    assert [one for one in before if one in (*named, *rewards)] == ["acme_sums", "sudoku", None, "math"]
    assert before == said()
    (parts / "other.py").write_text("")
    assert before == said()
    for name in ("my_reward.py", "parts.py"):
        (parts / name).write_text(REWARD + "# another\n")
    assert [a for a, b in zip(before, said(), strict=True) if a == b] == ["acme_sums", "sudoku", None, "math"]
    (parts / "sums.yaml").write_text(TASK.replace("reward: my_reward.py:says", "reward: arithmetic"))
    plain = remembered("sums.yaml")
    (parts / "my_reward.py").write_text(REWARD)  # of which the steps are
    assert remembered("sums.yaml") != plain


@pytest.mark.parametrize("command", ["sample", "stitch", "sft", "grpo"])
def test_a_page_of_settings_sets_no_variables(place, command, capsys, monkeypatch):
    (place / "page.yaml").write_text("task: sudoku\nenv: {LOCKSTITCH_TEST: '1'}\n")
    words = ["--config", "page.yaml"]
    if command in ("sample", "stitch"):
        status = {"sample": sample_cli, "stitch": stitch_cli}[command].main(words)
    else:
        monkeypatch.setattr(sys, "argv", ["recipe", *words])
        with pytest.raises(SystemExit) as ended:
            {"sft": sft, "grpo": grpo}[command].main()
        status = ended.value.code
    assert status == 2
    assert "env" in capsys.readouterr().err
    assert "LOCKSTITCH_TEST" not in os.environ


# --- what lies in the working directory ------------------------------------------------------------------------------

BOMB = "raise SystemExit('a file of the working directory was run')\n"
BOMBS = ("math_verify", "concurrent", "argparse", "difflib", "yaml", "torch", "trl", "sympy")


@pytest.mark.slow
@pytest.mark.parametrize("start", [["-m", "lockstitch"], ["-P", "-m", "lockstitch"]])
def test_files_of_the_working_directory_are_not_run(place, start):
    for name in BOMBS:
        (place / f"{name}.py").write_text(BOMB)
    rows = [{"question": "Half of one?", "answer": "1/2", "completion": r"So \boxed{\frac{2}{4}}"}]
    (place / "done.jsonl").write_text(json.dumps(rows[0]) + "\n")
    for words in (
        ["tasks", "sums.yaml"],
        ["grade", "--task", "gsm8k", "--completions", "done.jsonl", "--output", "out"],
    ):
        done = subprocess.run([sys.executable, *start, *words], capture_output=True, text=True, check=False, cwd=place)
        assert done.returncode == 0, done.stderr
    assert rows_of(place / "out/results.jsonl")[0]["right"] is True


@pytest.mark.slow
def test_nor_by_stitching_and_training(place):
    for name in BOMBS:
        (place / f"{name}.py").write_text(BOMB)
    stitch = ["-m", "lockstitch", "stitch", "--task", "sums.yaml", "--scorer", "my_reward:scored", "--solver", "none",
              "--model", "embedded:arithmetic", "--question", "1, +1"]  # fmt: skip
    (place / "my_reward.py").write_text(
        REWARD + "\n\ndef scored(question, steps, trajectories):\n    return [[1.0 for _ in row] for row in steps]\n"
    )
    launched = ["-P", "-m", "accelerate.commands.launch", "--cpu", "-m", "lockstitch.recipes.sft", "--task", "sums.yaml",
                "--model_name_or_path", "embedded:countdown-early", *TINY]  # fmt: skip
    for words in (stitch, launched):
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, cwd=place)
        assert done.returncode == 0, done.stderr[-2000:]


def test_a_named_file_may_bear_a_librarys_name(place):
    (place / "difflib.py").write_text(
        textwrap.dedent("""
        from my_reward import says
        from lockstitch.rewards.tasks.task import Task
        import json
        task = Task("mine", ((says, 1.0),))
    """)
    )
    import difflib

    (place / "json.py").write_text(BOMB)
    assert get_task("difflib:task").name == "mine"
    assert sys.modules["difflib"] is difflib
    assert str(place) not in sys.path


def test_a_task_in_python_says_little():
    task = Task("capitals", (("math", 1.0),), {"train": Source(data="none.jsonl")})
    assert task.forms == ("plain",)
    assert task.extract("<answer> Oslo </answer>") == "Oslo"
    assert get_task(task) is task
    assert set(KEYS) >= {"dataset", "prompt", "reward", "answer", "system", "step_unit", "canvas_length"}
