"""A user's own task, in each of the ways in which it can be said, in every command."""

import json
import sys
from pathlib import Path

import own_tasks
import pytest
from lockstitch.recipes import grpo, sft, sft_data
from lockstitch.rewards.tasks import grade_cli, tasks_cli
from lockstitch.rewards.tasks.named import available_tasks, get_task
from lockstitch.rewards.tasks.rows import load_rows
from lockstitch.sampling import cli as sample_cli
from lockstitch.stitching import cli as stitch_cli
from lockstitch.stitching.segment import segment
from own_tasks import ROWS, TASK, TINY, rows_of

pytestmark = pytest.mark.filterwarnings("ignore")
place = own_tasks.place
WAYS = ["sums.yaml", "my_task.py:task", "my_task:make", "acme_sums"]


# --- finding it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [*WAYS, "acme_value", "my_task.py:make"])
def test_every_way_leads_to_the_same_rows(place, way):
    task = get_task(way)
    assert task.name == "sums"
    rows = load_rows(task, conversational=False)
    assert [row["prompt"] for row in rows] == [row["problem"] + "\n" for row in ROWS]
    assert [row["answer"] for row in rows] == [row["solution"] for row in ROWS]
    problem = task.read_row(ROWS[0])
    assert task.judge(problem, ["24", "25", ""], ["12+12=24", "", ""]) == [True, False, False]
    text = "12+12=24\nso it is 24\n 1=1 "
    assert [text[a:b] for a, b in segment(text, task.unit)] == ["12+12=24", "1=1"]


def test_the_list_has_ours_and_plug_ins_and_imports_none(place, capsys):
    assert tasks_cli.main(["--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert listed["acme_sums"] == {
        "name": "acme_sums",
        "source": "acme-sums 1.2",
        "target": "acme_sums:make",
        "summary": "Sums of two.",
    }
    assert listed["acme_value"]["summary"] == "?"
    assert listed["gsm8k"]["source"] == "lockstitch"
    assert "acme_sums" not in sys.modules
    assert tasks_cli.main([]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table if line[0] != " "] == [
        "name",
        *(one["name"] for one in available_tasks()),
    ]


def test_one_task_is_shown_with_its_first_prompt(place, capsys):
    assert tasks_cli.main(["sums.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "says (1); the first judges" in shown
    assert "\n    12, +12" in shown
    assert tasks_cli.main(["sudoku", "--form", "boxed"]) == 0
    assert "    Solve this 4x4 Sudoku" in capsys.readouterr().out
    assert tasks_cli.main(["sudoku9"]) == 0  # whose clues are pinned on the canvas
    *_, canvas = capsys.readouterr().out.split(":\n\n")
    rows = [row.strip() for row in canvas.split()]
    assert [len(row) for row in rows] == [9] * 9
    assert set("".join(rows)) == set("░123456789")
    for words in (["--row"], ["sudoku", "--json"], ["sudoku", "--form", "xml"], ["sudok"]):
        assert tasks_cli.main(words) == 2
    assert "did you mean 'sudoku'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("none.yaml", "task 'none.yaml' is not a file"),
        ("my_task:nothing", "my_task has no 'nothing'"),
        ("my_reward:says.__name__", "is 'says', neither a Task nor a function that returns one"),
        ("absent:task", "there is no module 'absent'"),
        ("absent.py:task", "'absent.py' is not a file"),
        ("my_task.py", "task 'my_task.py' is not one of .*file.py:attribute"),
        ("acme_sum", "did you mean 'acme_sums'"),
    ],
)
def test_what_is_no_task_is_refused_by_name(place, spec, says):
    with pytest.raises(ValueError, match=says):
        get_task(spec)


def test_a_plug_in_cannot_take_a_name_of_ours_or_of_another(place):
    info = place / "site" / "bad-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[lockstitch.tasks]\ngsm8k = acme_sums:make\nacme_sums = acme_sums:task\n")
    with pytest.raises(ValueError, match=r"'gsm8k' is lockstitch's own, and offered by bad 1 \(acme_sums:make\)"):
        get_task("gsm8k")
    with pytest.raises(ValueError, match=r"offered by acme-sums 1.2 .* and bad 1 .*name the one you mean"):
        get_task("acme_sums")


# --- in every command ------------------------------------------------------------------------------------------------


def train(recipe, monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["recipe", *words])
    recipe.main()
    return json.loads(Path("out/run.json").read_text())


@pytest.mark.parametrize("way", WAYS)
def test_sample_and_grade(place, way, capsys):
    model = ["--model", "embedded:arithmetic", "--steps", "4", "--n", "2"]
    assert sample_cli.main([*model, "--task", way, "--limit", "3", "--output", "sampled"]) == 0
    sampled = rows_of(place / "sampled/results.jsonl")
    assert [row["prompt"] for row in sampled] == [row["problem"] + "\n" for row in ROWS[:3]]
    assert [row["answer"] for row in sampled] == [row["solution"] for row in ROWS[:3]]
    assert {len(row["trajectories"]) for row in sampled} == {2}
    assert {one["length"] for row in sampled for one in row["trajectories"]} == {16}
    done = [{**row, "completion": f"it is {row['solution'] if i else 'unknown'}"} for i, row in enumerate(ROWS)]
    (place / "done.jsonl").write_text("".join(json.dumps(row) + "\n" for row in done))
    assert grade_cli.main(["--task", way, "--completions", "done.jsonl", "--output", "graded"]) == 0
    graded = rows_of(place / "graded/results.jsonl")
    assert [row["right"] for row in graded] == [False, True, True, True]
    assert [row["rewards"] for row in graded] == [{"says": float(right)} for right in (False, True, True, True)]


@pytest.mark.parametrize("way", WAYS)
def test_stitch(place, way, capsys):
    words = ["--task", way, "--scorer", "confidence", "--solver", "none", "--num_trajectories", "2"]
    source = ["--model", "embedded:arithmetic", "--source", "train", "--limit", "2"]
    assert stitch_cli.main([*words, *source, "--output", "a"]) == 0
    sampled = rows_of(place / "a/results.jsonl")
    assert [row["question"] for row in sampled] == [row["problem"] + "\n" for row in ROWS[:2]]
    assert json.loads((place / "a/config.json").read_text())["rule"] == "paper"
    (place / "my_scorer.py").write_text(
        "def all_right(question, steps, trajectories):\n    return [[1.0 for _ in row] for row in steps]\n"
    )
    given = {**ROWS[0], "completions": ["12+12=24\n24", "12+12=25\n25", "1+1=2\n2=24\n24"]}
    (place / "given.jsonl").write_text(json.dumps(given) + "\n")
    words = ["--task", way, "--scorer", "my_scorer.py:all_right", "--trajectories", "given.jsonl", "--output", "b"]
    assert stitch_cli.main(words) == 0
    (row,) = rows_of(place / "b/results.jsonl")
    assert [one["correct"] for one in row["trajectories"]] == [True, False, True]
    assert [[step["text"] for step in one["steps"]] for one in row["trajectories"]] == [
        ["12+12=24"],
        ["12+12=25"],
        ["1+1=2", "2=24"],
    ]
    sys.modules.pop("my_scorer", None)


# A reward of one's own may be called like one of ours, and may be an object.
OWN_REWARDS = """
from my_reward import says

def {0}(completions, answer, **columns):
    return says(completions, answer)

class Ends:
    def __call__(self, completions, answer, **columns):
        return says(completions, answer)

ends = Ends()
"""


@pytest.mark.parametrize("name", ["code", "sudoku", "arithmetic", "ends"])
def test_the_rules_of_our_rewards_are_not_those_of_a_function_of_that_name(place, name, capsys):
    (place / "named.py").write_text(OWN_REWARDS.format("says_so" if name == "ends" else name))
    (place / "sums.yaml").write_text(TASK.replace("my_reward.py:says", f"named.py:{name}"))
    row = {"problem": "Capital of Norway?", "solution": "Oslo", "completions": ["Oslo", "Rome"]}
    (place / "done.jsonl").write_text(json.dumps(row) + "\n")
    assert grade_cli.main(["--task", "sums.yaml", "--completions", "done.jsonl", "--output", "graded"]) == 0
    assert [row["right"] for row in rows_of(place / "graded/results.jsonl")] == [True, False]
    given = ["--task", "sums.yaml", "--scorer", "consensus", "--solver", "none", "--trajectories", "done.jsonl"]
    assert stitch_cli.main([*given, "--output", "stitched"]) == 0
    (row,) = rows_of(place / "stitched/results.jsonl")
    assert [one["correct"] for one in row["trajectories"]] == [True, False]
    shown = capsys.readouterr()
    assert "cannot be read" not in shown.err
    assert tasks_cli.main(["sums.yaml"]) == 0
    assert f"{'Ends' if name == 'ends' else name} (1); the first judges" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("way", ["sums.yaml", "my_task.py:task", "acme_sums"])
@pytest.mark.parametrize("recipe", [grpo, sft])
def test_training(place, way, recipe, monkeypatch):
    words = [
        "--task",
        way,
        "--model_name_or_path",
        "embedded:countdown-early",
        "--per_device_train_batch_size",
        "4",
        *TINY,
    ]
    if recipe is grpo:
        words += ["--num_generations", "2", "--max_completion_length", "8", "--held_out_problems", "1"]
    record = train(recipe, monkeypatch, words)
    assert record["task"].startswith(way)
    assert (place / "out" / "model.safetensors").is_file()


def test_supervised_rows_are_prompts_and_solutions(place):
    from models import tokenizer

    rows = sft_data.task_rows(sft.RecipeArguments(task="sums.yaml", num_problems=2), tokenizer())
    assert rows.to_list() == [{"prompt": row["problem"] + "\n", "completion": row["solution"]} for row in ROWS[:2]]
    made = sft_data.task_rows(sft.RecipeArguments(task="sudoku", num_problems=3), tokenizer())
    task = get_task("sudoku")
    assert all(task.is_correct(row["prompt"].replace("\n", ""), None, task.extract(row["completion"])) for row in made)


def test_a_system_prompt_begins_every_conversation(place):
    from models import tokenizer

    (place / "sums.yaml").write_text(TASK + "system: Be brief.\n")
    chat = tokenizer()
    with pytest.raises(ValueError, match="need a tokenizer with a chat template"):
        sft_data.task_rows(sft.RecipeArguments(task="sums.yaml"), chat)
    chat.chat_template = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    row = sft_data.task_rows(sft.RecipeArguments(task="sums.yaml"), chat)[0]
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert row["prompt"][0]["content"] == "Be brief."
    assert row["completion"] == [{"role": "assistant", "content": "24"}]
