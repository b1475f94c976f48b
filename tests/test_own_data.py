"""One's own prompts, reward and columns in the recipes, without a task and without code but the reward's."""

import json
import sys

import pytest
from datasets import Dataset, DatasetDict
from lockstitch.recipes import grpo
from lockstitch.recipes.rl_data import as_prompts, check_room, own_problems
from lockstitch.rewards.plugins import load_reward
from lockstitch.rewards.tasks.data import load_split, read_columns, renamed
from models import tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = [{"problem": f"{i}+{i}=", "solution": str(2 * i)} for i in range(12)]
TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"


def save(directory, name):
    data = Dataset.from_list(ROWS)
    path = directory / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif name.endswith(".json"):
        path.write_text(json.dumps(ROWS))
    elif name.endswith(".csv"):
        data.to_csv(path)
    elif name.endswith(".parquet"):
        data.to_parquet(path)
    elif name == "splits":
        DatasetDict({"train": data, "test": data.select(range(2))}).save_to_disk(path)
    else:
        data.save_to_disk(path)
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "saved", "splits"])
def test_rows_come_from_wherever_they_are(name, tmp_path):
    rows = load_split(save(tmp_path, name))
    assert [row["problem"] for row in rows] == [row["problem"] for row in ROWS]
    if name == "splits":
        assert len(load_split(str(tmp_path / name), "test")) == 2
        with pytest.raises(ValueError, match=r"splits' cannot be loaded: split 'dev' is not one of train, test"):
            load_split(str(tmp_path / name), "dev")


def test_what_is_not_there_is_said_in_a_line(tmp_path):
    for name in ("missing.jsonl", "missing.parquet", "nobody/nothing", str(tmp_path / "nowhere")):
        with pytest.raises(ValueError, match=r"missing|nobody/nothing|nowhere") as raised:
            load_split(name)
        assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(ValueError, match="dataset_config='main' would be ignored"):
        load_split(save(tmp_path, "a.jsonl"), config="main")


def test_a_file_is_one_split(tmp_path):
    for name in ("a.jsonl", "a.parquet", "saved"):
        with pytest.raises(ValueError, match="split='test' would be ignored"):
            load_split(save(tmp_path, name), "test")


def test_columns_that_the_first_row_has_not_are_there(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "answer": "c"}\n')
    assert load_split(str(tmp_path / "a.jsonl")).to_list() == [
        {"prompt": "a", "answer": None},
        {"prompt": "b", "answer": "c"},
    ]


@pytest.mark.parametrize("pair", ['"x", 3', '3, "x"', '["x"], "y"', "true, 0.5"])
def test_a_column_of_several_types_is_named(pair, tmp_path):
    one, other = json.loads(f"[{pair}]")
    (tmp_path / "a.jsonl").write_text(f"{json.dumps({'b': 'x', 'a': one})}\n{json.dumps({'b': 'x', 'a': other})}\n")
    with pytest.raises(ValueError, match="the column 'a' holds values of several types"):
        load_split(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.parquet", b"PAR1junk"), ("a.parquet", b""), ("d/train.jsonl", b"{not"), ("d/train.jsonl", b"")],
)
def test_what_is_broken_is_named(name, data, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / name).write_bytes(data)
    given = tmp_path / name.partition("/")[0]
    with pytest.raises(ValueError, match=f"dataset_name='{given}' cannot be loaded: ."):
        load_split(str(given))


def test_columns_are_renamed():
    assert read_columns("prompt:problem, answer:solution") == {"prompt": "problem", "answer": "solution"}
    assert renamed(Dataset.from_list(ROWS), {"prompt": "problem"}).column_names == ["prompt", "solution"]
    with pytest.raises(ValueError, match="there is no 'question' to be 'prompt'; there are problem, solution"):
        renamed(Dataset.from_list(ROWS), {"prompt": "question"})
    for bad in ("prompt", "prompt:", ":a"):
        with pytest.raises(ValueError, match="WANTED:THERE"):
            read_columns(bad)


def test_held_out_rows_are_set_apart(tmp_path):
    path, columns = save(tmp_path, "splits"), {"prompt": "problem"}
    problems = own_problems(path, columns=columns, held_out=3)
    assert [len(problems.train), len(problems.held_out)] == [9, 3]
    assert not {row["prompt"] for row in problems.train} & {row["prompt"] for row in problems.held_out}
    tested = own_problems(path, columns=columns, dataset_test_split="test")
    assert [len(tested.train), len(tested.held_out)] == [10, 2]  # both stand in the training split, too
    with pytest.raises(ValueError, match="has no column 'prompt'"):
        own_problems(path)
    with pytest.raises(ValueError, match="leave nothing to train on"):
        own_problems(path, columns=columns, held_out=12)
    for wanted, says in (
        ({"num_problems": 13}, r"num_problems=13 asks for more problems than there are: '.*' has 12"),
        ({"num_problems": 10, "held_out": 3}, r"num_problems \+ held_out_problems=13 asks .* has 12"),
        (
            {"dataset_test_split": "test", "held_out": 3},
            "held_out_problems=3 asks .* dataset_test_split='test' of .* has 2",
        ),
    ):
        with pytest.raises(ValueError, match=says):
            own_problems(path, columns=columns, **wanted)


@pytest.mark.parametrize("messages", [False, True])
def test_questions_that_are_held_out_are_not_trained_on(messages, tmp_path, caplog):
    def asked(question):
        return [{"role": "user", "content": question}] if messages else question

    rows = [{"prompt": asked(f"{i % 4}+1=")} for i in range(16)]
    for split, part in (("train", rows), ("test", rows[:2])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    problems = own_problems(str(tmp_path / "train.jsonl"), held_out=2)
    assert [row["prompt"] for row in problems.held_out] == [asked("2+1="), asked("3+1=")]
    assert [row["prompt"] for row in problems.train] == [asked("0+1="), asked("1+1=")] * 4
    assert "6 training problems are held out, too" in caplog.text
    tested = own_problems(str(tmp_path), dataset_test_split="test")
    assert [row["prompt"] for row in tested.train] == [asked("2+1="), asked("3+1=")] * 4
    with pytest.raises(ValueError, match="nothing is left to train on"):
        own_problems(str(tmp_path / "train.jsonl"), held_out=4)


@pytest.mark.parametrize("column", ["completions", "log_metric", "image", "images"])
def test_a_column_that_rewards_cannot_be_given_is_named(column, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "1+1=", column: "2"}) + "\n")
    with pytest.raises(ValueError, match=f"a.jsonl' has the column '{column}'"):
        own_problems(str(tmp_path / "a.jsonl"))
    assert own_problems(str(tmp_path / "a.jsonl"), columns={"other": column}).train[0]["other"] == "2"


def test_prompts_become_conversations_by_one_rule():
    plain, chat = tokenizer(), tokenizer()
    chat.chat_template = TEMPLATE
    rows, talk = [{"prompt": "1+1="}], [{"prompt": [{"role": "user", "content": "1+1="}]}]
    assert as_prompts(rows, plain, None) == rows
    assert as_prompts(rows, chat, None) == talk == as_prompts(talk, chat, None)
    assert as_prompts(rows, chat, None, chat_template=False) == rows
    (said,) = as_prompts(rows, chat, None, system_prompt="Be brief.")
    for room in (None, 100):
        check_room(rows, plain, room)
    with pytest.raises(
        ValueError, match=r"^a prompt has \d+ tokens, and .* room for 2: max_prompt_length=2 leaves such"
    ):
        check_room(rows, plain, 2)
    assert [message["role"] for message in said["prompt"]] == ["system", "user"]
    for bad in ({"chat_template": True}, {"system_prompt": "Be brief."}):
        with pytest.raises(ValueError, match="need a tokenizer with a chat template"):
            as_prompts(rows, plain, None, **bad)
    with pytest.raises(ValueError, match="prompts of messages need"):
        as_prompts(talk, plain, None)


def test_a_reward_stands_in_a_file(tmp_path):
    path = tmp_path / "my_reward.py"
    path.write_text("from helper import TWO\ndef score(completions, **k):\n    return [TWO for _ in completions]\n")
    (tmp_path / "helper.py").write_text("TWO = 2.0\n")
    assert load_reward(f"{path}:score")(completions=["a"]) == [2.0]
    assert str(tmp_path) not in sys.path
    for spec, says in (
        (f"{path}:scores", "did you mean 'score'"),
        (f"{path}", "names nothing in the file"),
        (f"{tmp_path}/other.py:score", "is not a file"),
    ):
        with pytest.raises(ValueError, match=says):
            load_reward(spec)
    path = tmp_path / "broken.py"
    path.write_text("def score(:\n")
    with pytest.raises(ValueError, match="is no Python, line 1"):
        load_reward(f"{path}:score")


OWN = ["--dataset_name", "a.jsonl", "--reward_funcs", "math"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "say what to train on, --task sudoku or --dataset_name my.jsonl"),
        (["--dataset_name", "a.jsonl"], "say what pays on dataset_name='a.jsonl'"),
        ([*OWN, "--prompt_form", "tags"], "prompt_form='tags' would be ignored"),
        ([*OWN, "--train_path", "b"], "train_path='b' is a task's"),
        (["--task", "gsm8k", "--columns", "a:b"], "columns='a:b' is of dataset_name, which is missing"),
        (
            ["--task", "gsm8k", "--dataset_name", "a", "--dataset_test_split", "x"],
            "dataset_test_split='x' would be ignored",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(words, says):
    with pytest.raises(ValueError, match=says):
        grpo.parse(["--model_name_or_path", "embedded:sudoku", "--bf16", "false", *words])


@pytest.mark.slow
def test_ones_own_data_and_reward_are_enough(tmp_path):
    (tmp_path / "my_reward.py").write_text(
        "def score(prompts, completions, answer, **k):\n"
        "    assert all(prompt[:-1].split('+')[0] * 1 for prompt in prompts)\n"
        "    return [float(len(text) % 2) + 0.1 * (text[:1] == right[:1]) for text, right in zip(completions, answer)]\n"
    )
    words = {"model_name_or_path": "embedded:sudoku-early", "dataset_name": save(tmp_path, "mine.jsonl"),
             "columns": "prompt:problem,answer:solution", "reward_funcs": f"{tmp_path}/my_reward.py:score",
             "output_dir": tmp_path / "run", "max_steps": 2, "max_completion_length": 8, "steps": 4, "num_generations": 4,
             "per_device_train_batch_size": 8, "use_cpu": "true", "report_to": "none", "held_out_problems": 4,
             "held_out_threshold": 0.5, "held_out_every": 1, "logging_steps": 1}  # fmt: skip
    grpo.train(*grpo.parse([str(word) for key, value in words.items() for word in (f"--{key}", value)]))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["task"] is None
    assert record["data"].endswith("mine.jsonl")
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    measured = [entry["held_out/accuracy@1"] for entry in log if "held_out/accuracy@1" in entry]
    assert len(measured) == 3
    assert all(0 <= share <= 1 for share in measured)
    assert "mine.jsonl" in (tmp_path / "run" / "report.html").read_text()
