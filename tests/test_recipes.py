"""The reinforcement-learning recipe: every file of settings through the real parser, layers, problems, memory, launches."""

import asyncio
import importlib.util
import json
import os
import re
import subprocess
import sys
from inspect import iscoroutine
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from lockstitch.recipes.gpu_memory import Shape, memory_of, memory_parts
from lockstitch.recipes.grpo import main, parse, rewards_of
from lockstitch.recipes.held_out import held_out_samplers
from lockstitch.recipes.layers import folder, preset_names
from lockstitch.recipes.rl_data import as_prompts, load_problems
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.task import Task
from lockstitch.rl.checkpoints import last_checkpoint
from lockstitch.rl.lora import lora_config
from models import random_denoiser, tokenizer
from peft import get_peft_model
from transformers import AutoTokenizer

import lockstitch
from lockstitch.errors import OthersCodeError

ROOT = Path(__file__).resolve().parent.parent
_ALL = sorted((ROOT / "recipes/configs").glob("*/*.yaml"))
CONFIGS = [
    path for path in _ALL if path.parent.name != "embedded" and not path.stem.startswith(("prm_", "adapt"))
]  # of grpo
PAPERS = {"coupled", "d1", "d2", "d_opsd", "espo", "forkgrpo", "gdpo", "gdsd", "justgrpo"} | {
    "mask_aware",
    "rldf",
    "spg",
    "wd1",
}
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
CPU = ["--bf16", "false", "--use_cpu", "true"]
SUDOKU = ["--task", "sudoku", "--model_name_or_path", "somewhere"]


# --- files of settings -----------------------------------------------------------------------------------------------


def test_the_presets_are_those_of_the_papers():
    assert set(preset_names()) == PAPERS
    assert folder("presets").samefile(ROOT / "recipes/presets")


@pytest.mark.parametrize("name", sorted(PAPERS))
def test_a_preset_is_accepted_and_every_value_has_a_source(name):
    # Whether bitsandbytes is installed is not what is asked here.
    recipe, _, training, model = parse([*SUDOKU, "--rl_preset", name, *CPU, "--load_in_4bit", "false"])
    assert recipe.rl_preset == name
    lines = [line for line in (ROOT / f"recipes/presets/{name}.yaml").read_text().split("\n") if line[:1].isalpha()]
    unsourced = [line for line in lines if not re.search(r"  # \[[PCNDJO]\]", line)]
    assert len(lines) > 15
    assert not unsourced
    assert training.max_completion_length == 256
    assert model.use_peft == (name not in ("coupled", "justgrpo", "rldf"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_config_is_accepted_and_its_header_is_true(path):
    recipe, _, training, model = parse(["--config", str(path), *CPU])
    header = "\n".join(line.lstrip("# ") for line in path.read_text().split("\n") if line.startswith("#"))
    named = re.search(r"--config (recipes/configs/\S+)", header)
    assert named is not None
    assert (ROOT / named[1]).samefile(path)
    assert training.output_dir == f"runs/{path.parent.name}/{path.stem}"
    assert "Reached" in header
    accelerate_file = re.search(r"--config_file (\S+)", header)
    if path.parent.name == "tiny":
        assert model.model_name_or_path == str(lockstitch.embedded_model(f"{path.stem.partition('_')[0]}-early"))
        return
    assert accelerate_file is not None
    assert (ROOT / accelerate_file[1]).is_file()
    said = re.search(r"Needs (\d+) GB", header)
    assert said is not None
    assert int(said[1]) == round(sum(memory_of(recipe, training, model).values()))


@pytest.mark.parametrize("name", ["single", "ddp", "fsdp2", "zero2", "zero3"])
def test_accelerate_reads_its_configs(name):
    config = load_config_from_file(str(ROOT / f"recipes/accelerate/{name}.yaml"))
    kinds = {"single": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert config.distributed_type == kinds[name]
    assert config.num_processes == (1 if name == "single" else 8)


# --- layers ----------------------------------------------------------------------------------------------------------


def test_later_layers_win(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("rl_preset: espo\ntask: sudoku\nmodel_name_or_path: m\nbeta: 0.5\nepsilon: 0.3\n")
    _, _, training, model = parse(["--config", str(config), "--epsilon", "0.1", *CPU])
    assert (training.beta, training.epsilon, training.num_samples, model.lora_r) == (0.5, 0.1, 2, 128)
    _, _, training, _ = parse([f"--config={config}", "--rl_preset", "gdpo", "--use_peft", "false", *CPU])
    assert (training.mask_schedule, training.beta) == ("quadrature", 0.5)


def test_a_preset_without_its_adapter_brings_no_settings_of_one(tmp_path):
    _, _, _, model = parse([*SUDOKU, "--rl_preset", "d1", "--use_peft", "false", *CPU])
    assert (model.use_peft, model.load_in_4bit, model.lora_r) == (False, False, 16)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("num_sample: 2", r"unknown options: 'num_sample'; did you mean 'num_samples'"),
        ("num_generations: 6.5", r"num_generations=6.5 must be a whole number"),
        ("- a list", "must hold a mapping of options, not list"),
        ("rl_preset: espoo", r"rl_preset='espoo' is not one of .*; did you mean 'espo'"),
        ("estimator: coupled\nsegments: 3", r"segments=3 would be ignored by estimator='coupled'"),
        ("use_vllm: true", "use_vllm=True has no meaning for a diffusion model"),
        ("held_out_every: 0", "held_out_every=0 must be at least 1"),
        ("health_action: pray", "health_action='pray' is not one of stop, restore, off"),
    ],
)
def test_wrong_settings_are_refused(text, says, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(ValueError, match=says):
        parse(["--config", str(config), *SUDOKU, *CPU])


def test_wrong_command_lines_are_refused():
    with pytest.raises(ValueError, match=r"unknown words .*: '--num_generation'; did you mean 'num_generations'"):
        parse([*SUDOKU, *CPU, "--num_generation", "4"])
    with pytest.raises(ValueError, match="neither a file nor one of the recipes' own"):
        parse([*SUDOKU, "--config", "absent.yaml"])
    with pytest.raises(ValueError, match="task=None, dataset_name=None: say what to train on"):
        parse(["--model_name_or_path", "m", *CPU])
    with pytest.raises(ValueError, match=r"report_to='wanbd' is not one of .*did you mean 'wandb'"):
        parse([*SUDOKU, *CPU, "--report_to", "wanbd"])
    if importlib.util.find_spec("neptune") is None:
        with pytest.raises(ValueError, match="neptune is not installed; pip install neptune"):
            parse([*SUDOKU, *CPU, "--report_to", "neptune"])


def test_rewards_are_the_tasks_own_unless_named():
    recipe, _, training, _ = parse([*SUDOKU, *CPU])
    names = [function.__name__ for function in rewards_of(recipe, training, get_task("sudoku"))]
    assert dict(zip(names, training.reward_weights, strict=True)) == {
        "sudoku_reward": 1.0,
        "sudoku_cells_reward": 1.0,
        "xml_count_reward": 0.5,
        "soft_format_reward": 0.5,
        "strict_format_reward": 0.5,
    }
    integer = "lockstitch.rewards.format_rewards:integer_reward"
    recipe, _, training, _ = parse([*SUDOKU, *CPU, "--reward_funcs", "sudoku", integer])
    assert [function.__name__ for function in rewards_of(recipe, training, get_task("sudoku"))] == [
        "sudoku_reward",
        "integer_reward",
    ]
    recipe, _, training, _ = parse([*SUDOKU, *CPU, "--reward_weights", "1", "2"])
    with pytest.raises(ValueError, match="task 'sudoku' has the rewards sudoku, sudoku_cells"):
        rewards_of(recipe, training, get_task("sudoku"))


def _ends(completions, **columns):
    raise SystemExit(3)


async def _ends_later(completions, **columns):
    raise SystemExit(3)


@pytest.mark.parametrize("function", [_ends, _ends_later])
def test_a_reward_that_would_end_the_process_is_named(function):
    recipe, _, training, _ = parse([*SUDOKU, *CPU, "--reward_weights", "1"])
    (reward,) = rewards_of(recipe, training, Task("mine", ((function, 1.0),)))

    def call():
        if iscoroutine(values := reward(completions=["ab"])):
            asyncio.run(values)

    with pytest.raises(OthersCodeError, match=f"reward '{function.__name__}' raised SystemExit: 3 .*test_recipes.py"):
        call()


def test_metrics_call_a_reward_that_is_an_object_by_its_class():
    class Shortest:
        def __call__(self, completions, **columns):
            return [-float(len(text)) for text in completions]

    recipe, _, training, _ = parse([*SUDOKU, *CPU, "--reward_weights", "1"])
    (reward,) = rewards_of(recipe, training, Task("mine", ((Shortest(), 1.0),)))
    assert reward.__name__ == "Shortest"
    assert reward(completions=["ab"]) == [-2.0]


# --- problems --------------------------------------------------------------------------------------------------------


def questions(rows):
    return {row["question"] for row in rows}


def test_generated_sides_never_meet():
    problems = load_problems("countdown", "plain", num_problems=800, held_out=200)
    assert len(problems.held_out) == 200
    assert not questions(problems.train) & questions(problems.held_out)
    assert problems.train[0]["prompt"] == get_task("countdown").prompt(problems.train[0]["question"], "plain")
    again = load_problems("countdown", "plain", num_problems=800, held_out=200, seed=1)
    assert questions(again.train) != questions(problems.train)


def gsm8k_file(folder, name, rows):
    path = folder / name
    path.write_text("".join(json.dumps({"question": q, "answer": f"#### {a}"}) + "\n" for q, a in rows))
    return str(path)


def test_rows_of_a_file_are_set_aside_from_its_end(tmp_path):
    path = gsm8k_file(tmp_path, "train.jsonl", [(f"How much is {i}?", i) for i in range(10)])
    problems = load_problems("gsm8k", "tags", train_path=path, held_out=3)
    assert [row["question"] for row in problems.held_out] == [f"How much is {i}?" for i in (7, 8, 9)]
    assert len(problems.train) == 7
    with pytest.raises(ValueError, match="held_out_problems=10 of 10 rows leave nothing"):
        load_problems("gsm8k", "tags", train_path=path, held_out=10)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"num_problems": 11}, r"num_problems=11 asks for more problems than there are: '.*train.jsonl' has 10$"),
        ({"num_problems": 8, "held_out": 3}, r"num_problems \+ held_out_problems=11 asks .* has 10$"),
    ],
)
def test_a_file_that_holds_fewer_rows_than_are_wanted_is_refused(wanted, says, tmp_path):
    path = gsm8k_file(tmp_path, "train.jsonl", [(f"How much is {i}?", i) for i in range(10)])
    with pytest.raises(ValueError, match=says):
        load_problems("gsm8k", "tags", train_path=path, **wanted)
    assert len(load_problems("gsm8k", "tags", train_path=path, num_problems=8, held_out=2).train) == 8
    with pytest.raises(ValueError, match=r"held_out_problems=11 asks .* has 10$"):
        load_problems("gsm8k", "tags", train_path=path, held_out=11, held_out_source="test", held_out_path=path)


def test_a_problem_on_both_sides_is_not_trained_on(tmp_path, caplog):
    train = gsm8k_file(tmp_path, "train.jsonl", [(f"How much is {i}?", i) for i in range(6)])
    test = gsm8k_file(tmp_path, "test.jsonl", [("How  much is 2?", 2), ("How much is 9?", 9)])
    problems = load_problems("gsm8k", "tags", train_path=train, held_out=2, held_out_source="test", held_out_path=test)
    assert len(problems.held_out) == 2
    assert questions(problems.train) == {f"How much is {i}?" for i in (0, 1, 3, 4, 5)}
    assert "1 training problems are held out, too" in caplog.text


def test_what_cannot_be_told_apart_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'math500' has no rows of its own to train on, only test"):
        load_problems("math500", "tags")
    with pytest.raises(ValueError, match="held_out_source='train' is what is trained on"):
        load_problems("gsm8k", "tags", held_out=5, held_out_source="train")
    with pytest.raises(ValueError, match=r"say on how many problems, too \(held_out_problems\)"):
        load_problems("gsm8k", "tags", held_out_source="test")
    with pytest.raises(ValueError, match="leaves no use for train_path"):
        load_problems("gsm8k", "tags", dataset_name="a/b", train_path="c")


def test_prompts_follow_the_tokenizer(caplog):
    rows = [{"prompt": "1 + 2", "question": "a"}, {"prompt": "1 + 2 " * 40, "question": "b"}]
    plain = tokenizer()
    assert as_prompts(rows, plain, None) == rows
    assert as_prompts(rows, plain, 50) == rows[:1]
    assert "1 of 2 prompts are longer than max_prompt_length=50" in caplog.text
    with pytest.raises(ValueError, match="every prompt is longer than max_prompt_length=2"):
        as_prompts(rows, plain, 2)
    chat = AutoTokenizer.from_pretrained(lockstitch.embedded_model("sudoku"))
    chat.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert as_prompts(rows, chat, 50)[0]["prompt"] == [{"role": "user", "content": "1 + 2"}]


def test_samplers_denoise_that_many_tokens_a_step():
    samplers = held_out_samplers(20, None, [1, 4, 3], 16)
    assert {count: config.total_steps for count, config in samplers.items()} == {1: 20, 4: 5, 3: 7}
    blocks = held_out_samplers(64, 8, [3], 16)[3]
    assert (blocks.total_steps, blocks.blocks, blocks.temperature) == (24, 8, 0.0)
    with pytest.raises(ValueError, match="held_out_tokens_per_step=9: from 1 to the 8 positions"):
        held_out_samplers(64, 8, [9], 16)
    with pytest.raises(ValueError, match="different numbers"):
        held_out_samplers(64, 8, [1, 1], 16)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_an_adapter_has_the_parameters_that_are_counted():
    denoiser = random_denoiser("qwen3")
    adapted = get_peft_model(denoiser.model, lora_config(denoiser, 4, 8))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    # 4 heads of 8 for queries, 2 each for keys and values
    shape = Shape(0, layers=2, hidden=32, feed_forward=64, attention_out=32 + 2 * 16, vocabulary=448)
    assert shape.lora_parameters(4) == trained


def test_memory_is_the_sum_that_the_readme_shows():
    shape = Shape(8e9, 32, 4096, 12288, 3 * 4096, 126464)
    parts = memory_parts(
        shape, rows=3, length=656, weight_bytes=2.0, rank=128, reference=False, rollout_rows=12, block=32
    )
    assert parts["weights"] == 16.0
    assert parts["training"] == pytest.approx(335.5e6 * 16 / 1e9, rel=1e-3)
    assert parts["activations"] == pytest.approx(3 * 656 * 32 * (8 * 4096 + 4 * 12288) * 2 / 1e9)
    whole = memory_parts(
        shape, rows=3, length=656, weight_bytes=4.0, rank=None, reference=True, rollout_rows=1, block=32
    )
    assert whole["weights"] + whole["training"] == pytest.approx(8 * (4 + 4 + 12))


# --- launches --------------------------------------------------------------------------------------------------------

SMALL = ["--num_problems", "64", "--per_device_train_batch_size", "16", "--held_out_problems", "16", "--logging_steps", "1",
         "--save_steps", "2", "--held_out_every", "2"]  # fmt: skip


def launch(how, output, *more, processes=1):
    # On a CPU, accelerate starts several processes only where it is told of several GPUs.
    spread = ["--multi_gpu"] if processes > 1 else ["--cpu"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *spread, "--num_processes", str(processes), *how,
               "--output_dir", str(output), "--use_cpu", "true", *SMALL, *more]  # fmt: skip
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def history(output):
    return json.loads((output / "trainer_state.json").read_text())["log_history"]


MODULE = ["-m", "lockstitch.recipes.grpo", "--config", "recipes/configs/tiny/sudoku.yaml"]


@pytest.mark.slow
def test_a_launch_leaves_model_record_and_page_and_goes_on_when_repeated(tmp_path):
    out = launch(MODULE, tmp_path, "--max_steps", "2")
    assert f"Saved to {tmp_path}" in out
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["stage"], record["task"]) == ("grpo", "sudoku")
    assert record["base"] == "embedded:sudoku-early"
    assert last_checkpoint(tmp_path).name == "checkpoint-2"
    (tmp_path / "checkpoint-3").mkdir()  # one that was cut off
    launch(["recipes/grpo.py", "--config", "tiny/sudoku.yaml"], tmp_path, "--max_steps", "4")
    log = history(tmp_path)
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4]
    assert [entry["step"] for entry in log if "held_out/accuracy@4" in entry] == [0, 2, 4]
    assert (tmp_path / "adapter_model.safetensors").exists()
    page = (tmp_path / "report.html").read_text()
    assert "held_out/accuracy@1" in page
    assert "sudoku_reward" in page
    shown = subprocess.run(
        ["lockstitch", "report", str(tmp_path), "--html", str(tmp_path / "again.html")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": PATH},
    )
    assert shown.stdout.strip() == str(tmp_path / "again.html")


@pytest.mark.slow
def test_two_processes_with_an_adapter_measure_what_one_does(tmp_path):
    preset = ["--rl_preset", "espo", "--use_peft", "true", "--lora_r", "4", "--lora_alpha", "8", "--dtype", "float32",
              "--max_completion_length", "20", "--block_length", "20", "--steps", "10", "--num_generations", "4",
              "--num_iterations", "2", "--gradient_accumulation_steps", "1", "--estimator", "elbo",
              "--policy_loss", "sequence", "--loss_type", "dapo", "--max_steps", "2"]  # fmt: skip
    launch(MODULE, tmp_path / "one", *preset)
    launch(MODULE, tmp_path / "two", *preset, "--per_device_train_batch_size", "8", processes=2)
    logs = [history(tmp_path / name) for name in ("one", "two")]
    for key in ("held_out/accuracy@1", "held_out/accuracy@4"):
        start = [next(entry[key] for entry in log if key in entry) for log in logs]
        assert start[0] == start[1]
    rewards = [[entry["reward"] for entry in log if "reward" in entry and "loss" in entry] for log in logs]
    assert rewards[0][0] == pytest.approx(rewards[1][0])
    assert (tmp_path / "two/adapter_model.safetensors").exists()


def test_wrong_options_end_with_a_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["grpo.py", *SUDOKU, "--sgements=3"])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert said.startswith("grpo: unknown words on the command line: '--sgements=3'; did you mean 'segments'")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["grpo", "sft"])
def test_a_model_that_does_not_load_is_said_in_one_line(recipe, tmp_path):
    """By the real command, as a launcher starts it: exit status 2 and no traceback."""
    data = ["--task", "sudoku", "--prompt_form", "plain"] if recipe == "grpo" else ["--generate", "sudoku"]
    data += ["--num_problems", "8"]
    command = [sys.executable, "-m", f"lockstitch.recipes.{recipe}", "--model_name_or_path", str(tmp_path), "--output_dir",
               str(tmp_path / "run"), "--bf16", "false", "--use_cpu", "true", *data]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"{recipe}: no model at '{tmp_path}'")
