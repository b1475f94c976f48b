"""A recipe's directory: finished once, one configuration's, never half a checkpoint, and nothing lost to a kill."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lockstitch.recipes import adapt, grpo, prm, read_files, sft
from lockstitch.recipes.run_directory import _check_same, _ill, is_finished
from lockstitch.rl.checkpoints import last_checkpoint, torn
from lockstitch.rl.run_record import RunRecord
from safetensors.torch import load_file

pytestmark = pytest.mark.filterwarnings("ignore")

SETTINGS = {
    "model_name_or_path": "embedded:sudoku-early", "generate": "sudoku", "num_problems": 64, "canvas_length": 20,
    "max_steps": 4, "save_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 0,
    "bf16": "false", "use_cpu": "true", "dtype": "float32", "report_to": "none", "logging_steps": 1,
    "gradient_checkpointing": "false", "lr_scheduler_type": "constant",
}  # fmt: skip


def words(output, **changed):
    settings = SETTINGS | {"output_dir": output} | changed
    return [str(word) for key, value in settings.items() if value is not None for word in (f"--{key}", value)]


def launch(output, monkeypatch, **changed):
    monkeypatch.setattr(sys, "argv", ["sft", *words(output, **changed)])
    sft.main()


def losses(output):
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_finished_run_is_left_alone_and_goes_on_if_more_is_asked(tmp_path, monkeypatch, capsys):
    launch(tmp_path, monkeypatch)
    before = contents(tmp_path)
    capsys.readouterr()
    launch(tmp_path, monkeypatch)
    assert "finished after 4 steps: nothing to do" in capsys.readouterr().out
    assert contents(tmp_path) == before
    launch(tmp_path, monkeypatch, max_steps=6)
    assert list(losses(tmp_path)) == [1, 2, 3, 4, 5, 6]
    assert json.loads((tmp_path / "run.json").read_text())["config"]["max_steps"] == 6


@pytest.mark.slow
def test_a_run_goes_on_compiled_as_it_may_be(tmp_path, monkeypatch):
    launch(tmp_path, monkeypatch, max_steps=1)
    launch(tmp_path, monkeypatch, max_steps=2, torch_compile="true", torch_compile_backend="eager")
    assert list(losses(tmp_path)) == [1, 2]


@pytest.mark.slow
def test_a_run_killed_after_its_last_checkpoint_takes_no_step_more(tmp_path, monkeypatch):
    launch(tmp_path, monkeypatch)
    before = contents(tmp_path)
    (tmp_path / "trainer_state.json").unlink()
    launch(tmp_path, monkeypatch)
    assert list(losses(tmp_path)) == [1, 2, 3, 4]
    assert contents(tmp_path)[Path("model.safetensors")] == before[Path("model.safetensors")]


@pytest.mark.parametrize("adapter", [True, False])
def test_the_card_is_true(adapter, tmp_path, monkeypatch):
    more = {"use_peft": "true", "lora_r": 2} if adapter else {}
    launch(tmp_path / "mine", monkeypatch, max_steps=1, **more)
    card = (tmp_path / "mine" / "README.md").read_text()
    assert ("A LoRA adapter for" if adapter else "Trained from") + " `embedded:sudoku-early`" in card
    assert "| task | sudoku |" in card
    assert "canvas_length" in card
    assert "pipeline(" not in card
    assert str(tmp_path) not in card
    assert "/embedded/" not in card
    if not adapter:
        code = (
            card.split("```python\n")[1].split("```")[0].replace("DIR", str(tmp_path / "mine")).replace("...", "3102")
        )
        exec(code, scope := {})
        assert len(scope["trajectory"].canvas_ids) == 20


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_with_both_values(finished, tmp_path, monkeypatch, capsys):
    launch(tmp_path, monkeypatch, max_steps=2)
    if not finished:
        (tmp_path / "trainer_state.json").unlink()
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as ended:
        launch(tmp_path, monkeypatch, learning_rate=2e-3, seed=3)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "learning_rate: 0.001 then, 0.002 now" in said
    assert "seed: None then, 3 now" in said
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_run_does_not_go_on_over_other_rows_of_the_same_name(tmp_path, monkeypatch, capsys):
    own = tmp_path / "own.jsonl"
    more = {"generate": None, "num_problems": None, "dataset_name": own}
    own.write_text('{"prompt": "1+1=", "completion": "2"}\n' * 4)
    launch(tmp_path / "run", monkeypatch, max_steps=1, **more)
    before = contents(tmp_path / "run")
    own.write_text('{"prompt": "1+1=", "completion": "3"}\n' * 4)
    with pytest.raises(SystemExit) as ended:
        launch(tmp_path / "run", monkeypatch, max_steps=2, **more)
    assert ended.value.code == 2
    assert f"the sha256 of dataset_name='{own}' is not what it was" in capsys.readouterr().err
    assert contents(tmp_path / "run") == before
    own.write_text('{"prompt": "1+1=", "completion": "2"}\n' * 4)
    launch(tmp_path / "run", monkeypatch, max_steps=2, **more)
    assert list(losses(tmp_path / "run")) == [1, 2]


@pytest.mark.parametrize(("recipe", "options"), [
    (sft.RecipeArguments(dataset_name="rows"), ["dataset_name"]),
    (adapt.RecipeArguments(task="gsm8k", task_path="rows"), ["task_path"]),
    (grpo.RecipeArguments(task="gsm8k", train_path="rows", held_out_path="rows"), ["train_path", "held_out_path"]),
    (prm.RecipeArguments(task="gsm8k", traces="rows", eval_traces="missing"), ["traces"]),
    (prm.RecipeArguments(task="gsm8k", label_model="m", input="rows", eval_input="rows"), ["input", "eval_input"]),
    (grpo.RecipeArguments(dataset_name="nobody/nothing", reward_funcs=["sudoku"]), []),
])  # fmt: skip
def test_what_a_folder_holds_is_told_from_what_lies_beside_it(recipe, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(read_files, "WHOLE", 8)
    monkeypatch.setattr(read_files, "END", 2)
    rows = tmp_path / "rows"
    (rows / "train").mkdir(parents=True)
    (rows / "train" / "a.jsonl").write_text("123456789")
    before = read_files.contents_of(recipe, rows / "run")
    assert list(before) == options
    for name in ("run/checkpoint-1", ".cache/b", "train/cache-1.arrow"):
        (rows / name).parent.mkdir(exist_ok=True)
        (rows / name).write_text("new")
    assert read_files.contents_of(recipe, rows / "run") == before
    (rows / "train" / "a.jsonl").write_text("12345678x")
    assert all(read_files.contents_of(recipe, rows / "run")[option] != before[option] for option in options)


@pytest.mark.slow
def test_rows_that_a_task_names_itself_are_contents_of_the_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "task.yaml").write_text("prompt: '{question}'\nanswer: answer\nreward: math\ndataset: own.jsonl\n")
    rows = tmp_path / "own.jsonl"
    more = {"generate": None, "num_problems": None, "task": str(tmp_path / "task.yaml")}
    rows.write_text('{"question": "1+1=", "answer": "2"}\n' * 4)
    launch(tmp_path / "run", monkeypatch, max_steps=1, **more)
    rows.write_text('{"question": "1+1=", "answer": "3"}\n' * 4)
    with pytest.raises(SystemExit) as ended:
        launch(tmp_path / "run", monkeypatch, max_steps=2, **more)
    assert ended.value.code == 2
    assert "holds a run over other rows: the sha256 of source 'train' of the task is not" in capsys.readouterr().err


def test_rows_that_are_no_longer_on_this_machine_are_other_rows(tmp_path):
    record = RunRecord("base", None, "sft", None)
    earlier = {"base": "base", "stage": "sft", "contents": {"source 'train' of the task": "a sum"}}
    with pytest.raises(ValueError, match="the sha256 of source 'train' of the task is not what it was"):
        _check_same(tmp_path, earlier, record)


def test_sources_count_where_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCKSTITCH_DATA", str(tmp_path))
    (tmp_path / "gsm8k").mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / "gsm8k" / name).write_text('{"question": "1+1=", "answer": "#### 2"}\n')

    def names(**options):
        return list(read_files.contents_of(grpo.RecipeArguments(**options), tmp_path / "run"))

    train, test = ("source 'train' of the task", "source 'test' of the task")
    assert names(task="gsm8k") == [train]
    assert names(task="gsm8k", held_out_problems=1, held_out_source="test") == [train, test]
    assert names(task="gsm8k", train_source="test") == [test]
    assert names(task="gsm8k", dataset_name="nobody/nothing") == []
    assert names(task="countdown", num_problems=4) == []


def test_a_run_that_nothing_is_known_of_is_refused(tmp_path, monkeypatch, capsys):
    launch(tmp_path, monkeypatch, max_steps=1)
    (tmp_path / "run.json").unlink()
    with pytest.raises(SystemExit):
        launch(tmp_path, monkeypatch, max_steps=2)
    assert "holds a run, and no run.json that says of what" in capsys.readouterr().err


def test_nothing_is_recorded_before_there_is_a_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        launch(tmp_path, monkeypatch, learning_rate=1e30, save_steps=2)
    assert not (tmp_path / "run.json").exists()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.slow
def test_weights_that_are_not_finite_end_the_run_and_are_not_saved(tmp_path, monkeypatch, capsys):
    launch(tmp_path, monkeypatch, max_steps=1)
    (tmp_path / "trainer_state.json").unlink()
    optimizer = torch.load(tmp_path / "checkpoint-1" / "optimizer.pt", weights_only=True)
    optimizer["state"][0]["exp_avg"][0] = torch.inf
    torch.save(optimizer, tmp_path / "checkpoint-1" / "optimizer.pt")
    with pytest.raises(SystemExit) as ended:
        launch(tmp_path, monkeypatch, max_steps=3)
    assert ended.value.code == 2
    assert "is not finite after step 2; nothing of it was saved" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert all(
        weight.isfinite().all() for weight in load_file(tmp_path / "checkpoint-1" / "model.safetensors").values()
    )


@pytest.mark.parametrize("weights", ["pytorch_model_fsdp_0", "global_step3"])
def test_weights_that_lie_in_a_folder_of_shards_are_there(weights, tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{}")
    assert torn(tmp_path / "checkpoint-3") == "it has no weights"
    (tmp_path / "checkpoint-3" / weights).mkdir()
    assert torn(tmp_path / "checkpoint-3") is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_torn_checkpoint_is_named_and_the_one_before_taken(name, tmp_path, monkeypatch, capsys):
    launch(tmp_path, monkeypatch, max_steps=3)
    whole = losses(tmp_path)
    (tmp_path / "trainer_state.json").unlink()
    path = tmp_path / "checkpoint-3" / name
    if name == "trainer_state.json":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 1000)
    assert last_checkpoint(tmp_path).name == "checkpoint-2"
    launch(tmp_path, monkeypatch, max_steps=3)
    assert "checkpoint-3 is not whole" in capsys.readouterr().out
    assert losses(tmp_path) == pytest.approx(whole)
    assert torn(tmp_path / "checkpoint-3") is None


@pytest.mark.slow
def test_a_run_that_began_from_another_s_checkpoint_goes_on_from_its_own(tmp_path, monkeypatch):
    launch(tmp_path / "first", monkeypatch, max_steps=2)
    named = {"resume_from_checkpoint": tmp_path / "first" / "checkpoint-1", "max_steps": 3}
    launch(tmp_path / "mine", monkeypatch, **named)
    whole = losses(tmp_path / "mine")
    assert list(whole) == [1, 2, 3]
    (tmp_path / "mine" / "trainer_state.json").unlink()  # killed at step 3
    shutil.rmtree(tmp_path / "mine" / "checkpoint-3")
    kept = (tmp_path / "mine" / "checkpoint-2").stat().st_mtime_ns
    launch(tmp_path / "mine", monkeypatch, **named)
    assert (tmp_path / "mine" / "checkpoint-2").stat().st_mtime_ns == kept
    assert losses(tmp_path / "mine") == pytest.approx(whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "trainer_state.json"])
def test_a_named_checkpoint_that_is_not_whole_is_refused(name, tmp_path, monkeypatch, capsys):
    launch(tmp_path / "first", monkeypatch, max_steps=1)
    named = tmp_path / "first" / "checkpoint-1"
    (named / name).unlink()
    with pytest.raises(SystemExit):
        launch(tmp_path / "mine", monkeypatch, resume_from_checkpoint=named)
    assert f"checkpoint-1' cannot be gone on from: it has no {name}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_of_weights_alone_is_not_gone_on_from(tmp_path, monkeypatch, capsys):
    launch(tmp_path, monkeypatch, max_steps=2, save_only_model="true")
    launch(tmp_path, monkeypatch, max_steps=2, save_only_model="true")
    assert "finished after 2 steps: nothing to do" in capsys.readouterr().out
    (tmp_path / "trainer_state.json").unlink()
    with pytest.raises(SystemExit):
        launch(tmp_path, monkeypatch, max_steps=2, save_only_model="true")
    assert "checkpoint-2 cannot be gone on from, it has no optimizer.pt (save_only_model" in capsys.readouterr().err


@pytest.mark.slow
def test_the_best_step_may_have_no_checkpoint(tmp_path, monkeypatch):
    """Measured at every step, best at the first one, and saved at every second: the best of what was saved is not known."""
    best = {"num_eval_problems": 8, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 2, "learning_rate": 0,
            "load_best_model_at_end": "true", "save_total_limit": 1, "metric_for_best_model": "loss"}  # fmt: skip
    launch(tmp_path, monkeypatch, **best)
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert (state["best_global_step"], state["best_model_checkpoint"]) == (1, None)
    assert (tmp_path / "model.safetensors").is_file()


def start(command, output, **changed):
    return subprocess.Popen(
        [sys.executable, "-m", f"lockstitch.recipes.{command}", *words(output, **changed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_second_process_is_refused(tmp_path):
    first = start("sft", tmp_path, max_steps=200)
    while newest(tmp_path) == 0:
        assert first.poll() is None
        time.sleep(0.1)
    second = start("sft", tmp_path, max_steps=200)
    said, _ = second.communicate()
    first.kill()
    first.wait()
    assert second.returncode == 2
    assert "is being written into by another process" in said.splitlines()[-1]


def newest(output: Path) -> int:
    """The step of the latest checkpoint directory, whole or not."""
    return max((int(path.name.split("-")[1]) for path in output.glob("checkpoint-*")), default=0)


def launch_grpo(output, monkeypatch, **changed):
    options = {"task": "sudoku", "prompt_form": "plain", "reward_funcs": "sudoku", "num_generations": 2, "steps": 1,
               "max_completion_length": 20, "max_steps": 1}  # fmt: skip
    settings = SETTINGS | options | {"output_dir": output} | changed
    argv = [
        word
        for key, value in settings.items()
        if key not in ("generate", "canvas_length")
        for word in (f"--{key}", str(value))
    ]
    monkeypatch.setattr(sys, "argv", ["grpo", *argv])
    grpo.main()


@pytest.mark.slow
def test_a_run_that_health_stopped_is_left_alone(tmp_path, monkeypatch, capsys):
    ill = {"health_unique": 2.0, "health_patience": 2}  # more than there can be
    launch_grpo(tmp_path, monkeypatch, max_steps=4, **ill)
    assert "Stopped early: rollout/unique" in capsys.readouterr().out
    before = contents(tmp_path)
    launch_grpo(tmp_path, monkeypatch, max_steps=6, **ill)
    said = capsys.readouterr().out
    assert "stopped by health after 2 steps (rollout/unique" in said
    assert contents(tmp_path) == before
    first, other = str(tmp_path / "checkpoint-1"), tmp_path / "other"
    # Without the limit, as the message says.
    launch_grpo(other, monkeypatch, max_steps=3, resume_from_checkpoint=first)
    assert list(losses(other)) == [1, 2, 3]
    launch_grpo(tmp_path, monkeypatch, max_steps=4, resume_from_checkpoint=first, **ill)
    events = (tmp_path / "health.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in events] == [2, 2]  # the first step's log counts
    capsys.readouterr()
    (tmp_path / "checkpoint-2").rename(tmp_path / "checkpoint-4")  # a run that was resumed, and killed behind step 4
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text(
        (tmp_path / "checkpoint-4" / "trainer_state.json").read_text().replace('"global_step": 2', '"global_step": 4')
    )
    launch_grpo(tmp_path, monkeypatch, max_steps=4, **ill)
    assert "stopped by health" not in capsys.readouterr().out


def test_what_a_kill_left_half_written_is_cleared_away(tmp_path):
    for name in (".tmpDrwX6U", ".tmp", ".tmp-of-mine", "model.safetensors"):
        (tmp_path / name).write_text("")
    assert not is_finished(tmp_path, None, SimpleNamespace(resume_from_checkpoint=None, process_index=0))
    assert {path.name for path in tmp_path.iterdir()} == {".tmp", ".tmp-of-mine", "model.safetensors"}


def test_a_run_that_a_gradient_without_a_number_stopped_is_left_alone(tmp_path):
    """Health sees it within a step, which the trainer counts."""
    state = {"global_step": 3, "max_steps": 9}
    event = {"step": 2, "wrong": "the gradient is not finite", "action": "stop", "weights": 2}
    (tmp_path / "health.jsonl").write_text(json.dumps(event) + "\n")
    assert _ill(tmp_path, state) == "the gradient is not finite"
    assert _ill(tmp_path, state | {"global_step": 4}) is None  # it went on since
    assert _ill(tmp_path, state | {"max_steps": 3}) is None
    (tmp_path / "health.jsonl").write_text(json.dumps(event | {"action": "restore"}) + "\n")
    assert _ill(tmp_path, state) is None
    (tmp_path / "health.jsonl").write_text(json.dumps(event)[:9])
    with pytest.raises(ValueError, match=r"health.jsonl: line 1 is no event"):
        _ill(tmp_path, state)


def test_events_that_were_cut_off_are_named_before_a_run_goes_on(tmp_path, monkeypatch, capsys):
    launch_grpo(tmp_path, monkeypatch)
    (tmp_path / "trainer_state.json").unlink()
    (tmp_path / "health.jsonl").write_text('{"step": 1')
    with pytest.raises(SystemExit):
        launch_grpo(tmp_path, monkeypatch)
    assert "health.jsonl: line 1 is no event" in capsys.readouterr().err


@pytest.mark.slow
def test_what_health_put_back_is_what_is_measured_last(tmp_path, monkeypatch):
    ill = {"health_unique": 2.0, "health_patience": 2, "max_steps": 4, "held_out_problems": 16, "held_out_every": 1,
           "learning_rate": 0.05}  # fmt: skip
    launch_grpo(tmp_path, monkeypatch, **ill)
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    measured = [(entry["step"], entry["held_out/accuracy@1"]) for entry in log if "held_out/accuracy@1" in entry]
    (event,) = [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    assert [step for step, _ in measured] == [0, 1, 2, 2]
    assert measured[3][1] == measured[event["weights"]][1]  # those are in place


@pytest.mark.slow
def test_what_health_refuses_is_said_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lockstitch.rl.health.KEPT_BYTES", 8)
    with pytest.raises(SystemExit):
        launch_grpo(tmp_path, monkeypatch, health_action="restore")
    assert "training cannot begin: health_action='restore' keeps the weights" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_held_out_is_measured_once_where_a_run_was_killed_behind_its_last_checkpoint(tmp_path, monkeypatch):
    held_out = {"held_out_problems": 2, "held_out_every": 1}
    launch_grpo(tmp_path, monkeypatch, **held_out)
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    (tmp_path / "trainer_state.json").unlink()
    launch_grpo(tmp_path, monkeypatch, **held_out)
    again = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    measured = [(entry["step"], entry["held_out/accuracy@1"]) for entry in log if "held_out/accuracy@1" in entry]
    assert [step for step, _ in measured] == [0, 1]
    assert [
        (entry["step"], entry["held_out/accuracy@1"]) for entry in again if "held_out/accuracy@1" in entry
    ] == measured
