"""One rule for chat templates, wherever prompts are put to a model."""

import json

import pytest
from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.chat import Chat
from lockstitch.sampling.cli import main as sample_main
from lockstitch.stitching.cli import main as stitch_main
from lockstitch.stitching.plans import TextPlanner
from lockstitch.stitching.refine import Script
from models import random_denoiser, tokenizer

TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] }}({{ message['content'] }}){% endfor %}"
    "{% if add_generation_prompt %}a({% endif %}"
)


@pytest.fixture
def model(tmp_path):
    """A checkpoint whose tokenizer has a template."""
    denoiser = random_denoiser()
    denoiser.tokenizer.chat_template = TEMPLATE
    denoiser.model.save_pretrained(tmp_path / "model")
    denoiser.tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def prompts_of(capsys, *words):
    assert sample_main([str(word) for word in words]) == 0, capsys.readouterr().err


def asked(directory):
    """The prompts that the model read."""
    rows = [json.loads(line) for line in (directory / "results.jsonl").read_text().splitlines()]
    return [tokenizer().decode(row["trajectories"][0]["prompt_ids"]) for row in rows]


def test_the_template_is_used_where_there_is_one_unless_it_is_said_otherwise(model, tmp_path, capsys):
    words = ["--model", model, "--prompt", "1+1=", "--canvas_length", 4, "--device", "cpu", "--output"]
    prompts_of(capsys, *words, tmp_path / "default")
    prompts_of(capsys, *words, tmp_path / "bare", "--chat_template", "false")
    prompts_of(capsys, *words, tmp_path / "system", "--system_prompt", "be brief")
    assert asked(tmp_path / "default") == ["u(1+1=)a("]
    assert asked(tmp_path / "bare") == ["1+1="]
    assert asked(tmp_path / "system") == ["s(be brief)u(1+1=)a("]
    config = json.loads((tmp_path / "default" / "config.json").read_text())
    assert config["chat_template"] is True
    assert json.loads((tmp_path / "bare" / "config.json").read_text())["chat_template"] is False
    assert sample_main([*map(str, words), str(tmp_path / "default"), "--chat_template", "false"]) == 2
    assert "chat_template: True then, False now" in capsys.readouterr().err


def test_messages_are_prompts_and_blanks_stay_as_they_are(model, tmp_path, capsys):
    talk = [
        {"role": "user", "content": "1+1="},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2="},
    ]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": talk}) + "\n" + json.dumps({"prompt": "3+3="}) + "\n")
    words = ["--model", model, "--device", "cpu", "--output"]
    prompts_of(capsys, *words, tmp_path / "talk", "--input", tmp_path / "rows.jsonl", "--canvas_length", 4)
    assert asked(tmp_path / "talk") == ["u(1+1=)a(2)u(2+2=)a(", "u(3+3=)a("]
    prompts_of(capsys, *words, tmp_path / "blanks", "--prompt", "1+1=[[:2]]")
    assert asked(tmp_path / "blanks") == ["1+1="]


def test_what_cannot_be_is_refused():
    plain = tokenizer()
    for said in ({"template": True}, {"system": "x"}):
        with pytest.raises(ValueError, match="need a tokenizer with a chat template"):
            Chat.of(plain, **said)
    with pytest.raises(ValueError, match="prompts of messages need a chat template"):
        Chat.of(plain).messages([{"role": "user", "content": "x"}])
    plain.chat_template = TEMPLATE
    with pytest.raises(ValueError, match="system_prompt='x' would be ignored"):
        Chat.of(plain, False, "x")


STRICT = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ message['role'] + ':' + message['content'] }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "user", "text": "hi"}], "has no attribute 'content'"),
        ([{"role": "user", "content": 3}], "can only concatenate str"),
        ([{"role": "user", "content": "1"}, {"role": "user", "content": "2"}], "roles must alternate"),
    ],
)
def test_messages_that_a_template_refuses_are_a_line(messages, says):
    strict = tokenizer()
    strict.chat_template = STRICT
    assert Chat(template=True).encode([{"role": "user", "content": "1"}], strict)
    with pytest.raises(
        ValueError, match=r"^the chat template refuses the messages \[\{'role': 'user', .*\}\]: .*" + says
    ):
        Chat(template=True).encode(messages, strict)


def test_what_a_message_does_not_say_is_not_there():
    """Tables give each message every column that one of them has; templates ask whether it is there."""
    asking = tokenizer()
    asking.chat_template = (
        "{% for m in messages %}{% if 'tool_calls' in m %}called{% endif %}{{ m['content'] }}{% endfor %}"
    )
    talk = [{"role": "user", "content": "1+1=", "tool_calls": None}]
    assert asking.decode(Chat(template=True).encode(talk, asking)) == "1+1="


@pytest.mark.parametrize("asks", [Script, lambda strict, task: TextPlanner(random_denoiser().model, strict, task)])
def test_a_solver_or_planner_that_cannot_be_asked_is_refused_when_it_is_made(asks):
    strict = tokenizer()
    strict.chat_template = "{{ raise_exception('only tools may talk') }}{{ messages[0]['content'] }}"
    with pytest.raises(ValueError, match=r"^the chat template refuses the messages .*: only tools may talk$"):
        asks(strict, get_task("arithmetic"))


def test_stitching_asks_through_the_template_too(model, tmp_path, capsys):
    words = ["--task", "gsm8k", "--question", "1+1?", "--model", model, "--canvas_length", "4", "--num_trajectories", "2",
             "--solver", "none", "--device", "cpu"]  # fmt: skip
    assert stitch_main([*words, "--output", str(tmp_path / "chat")]) == 0, capsys.readouterr().err
    assert stitch_main([*words, "--output", str(tmp_path / "bare"), "--chat_template", "false"]) == 0
    chat, bare = ((tmp_path / name / "results.jsonl").read_text() for name in ("chat", "bare"))
    assert chat != bare


def test_pieces_of_a_canvas_are_never_put_into_the_template():
    denoiser = random_denoiser()
    denoiser.tokenizer.chat_template = TEMPLATE
    denoiser.chat = Chat.of(denoiser.tokenizer)
    assert denoiser.decode(denoiser.encode(["1+1="])) == ["1+1="]
    assert denoiser.decode(denoiser.encode_prompts(["1+1="])) == ["u(1+1=)a("]
