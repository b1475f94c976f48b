"""A user's mistake ends with exit status 2 and a line, in every command: no traceback, nothing lost, nothing half written.

Commands are called here as the console script calls them, in this process; `scripts/fuzz_commands.py` is the whole of it.
"""

import fcntl
import json
import os
import random
import resource
import subprocess
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
import torch
from lockstitch.recipes import grpo, sft
from lockstitch.rl.lora import lora_config
from lockstitch.sampling.denoiser import Denoiser
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from lockstitch import cli, embedded_model, files

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import fuzz_commands
from fuzz_bases import BAD, BASES, prepare
from fuzz_commands import RECIPES, End, words

pytestmark = pytest.mark.filterwarnings("ignore")
WRITING = {"sample": "run", "stitch": "run", "grade": "run", "sft": "run", "grpo": "run", "adapt": "run", "prm": "run",
           "prm of features": "run", "export": ".out.partial"}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with the files that the configurations of `BASES` name."""
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A small adapter of an embedded model."""
    place = tmp_path_factory.mktemp("adapters") / "adapter"
    denoiser = Denoiser.from_pretrained("embedded:sudoku-early", device="cpu")
    model = get_peft_model(denoiser.model, lora_config(denoiser, 2, 2))
    model.peft_config["default"].base_model_name_or_path = str(embedded_model("sudoku-early"))
    model.save_pretrained(place)
    return place


def call(base, argv, monkeypatch):
    """The exit status of a command, named as in `BASES`."""
    command = base.split()[0]
    try:
        if command in RECIPES:
            monkeypatch.setattr(sys, "argv", [command, *argv])
            import_module(f"lockstitch.recipes.{command}").main()
            return 0
        return cli.main([command, *argv])
    except SystemExit as ended:
        return ended.code
    finally:
        files.unlock_all()


def argv_of(command, **changed):
    """The command line of `BASES`, changed."""
    said = {**BASES[command], **changed}
    return [
        f"--{name}={' '.join(value) if isinstance(value, list) else value}"
        for name, value in said.items()
        if value is not None
    ]


@contextmanager
def files_of_at_most(size):
    """Within the block no file can grow beyond so many bytes, as on a disk that is full.

    No bytecode is written: Python 3.11 takes a file that was cut off for a whole one, and so would every other test.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = written


@pytest.mark.slow
@pytest.mark.parametrize("command", list(BASES))
def test_some_values_that_nobody_means(command, folder, adapter, monkeypatch, capfd):
    """Those that the parser or the records refuse: what is accepted takes the script's time."""
    (folder / "adapter").symlink_to(adapter)
    drawn = random.Random(command)
    program = command.split()[0]
    tries = [(field, name) for field in fuzz_commands.fields_of(program) for name in sorted(BAD)]
    for field, name in drawn.sample(tries, 5):
        monkeypatch.chdir(folder)
        code = call(command, words(command, field, BAD[name]), monkeypatch)
        said = "".join(capfd.readouterr())
        assert End(code, said).kinds(program, field, BAD[name]) == [], (field, name, said)


@pytest.mark.parametrize("command", list(WRITING))
def test_a_directory_that_another_process_writes_into_is_refused(command, folder, adapter, monkeypatch, capfd):
    (folder / "adapter").symlink_to(adapter)
    place = folder / WRITING[command]
    place.mkdir()
    held = os.open(place, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        assert call(command, argv_of(command), monkeypatch) == 2
    finally:
        os.close(held)
    assert "is being written into by another process" in capfd.readouterr().err
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("command", list(WRITING))
def test_a_place_where_nothing_can_be_written_is_named(command, folder, adapter, monkeypatch, capfd):
    (folder / "adapter").symlink_to(adapter)
    option = "output_dir" if command.split()[0] in RECIPES else "output"
    assert call(command, argv_of(command, **{option: "file.txt/run"}), monkeypatch) == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert "file.txt" in said.splitlines()[-1]


@pytest.mark.parametrize("command", ["sample", "stitch", "grade"])
def test_a_full_disk_loses_nothing(command, folder, monkeypatch, capfd):
    more = {"sample": {"n": 3}, "stitch": {"generate": 3, "chunk": 1}, "grade": {"chunk": 1}}[command]
    row = (folder / "completions.jsonl").read_text()
    (folder / "completions.jsonl").write_text(row * 30)
    if command == "sample":
        del (base := dict(BASES["sample"]))["prompt"]
        monkeypatch.setitem(BASES, "sample", {**base, "input": "prompts.jsonl", "chunk": 1})
        (folder / "prompts.jsonl").write_text((json.dumps({"prompt": "3102\n2000\n0210\n0320\n"}) + "\n") * 5)
    with files_of_at_most(2500):
        assert call(command, argv_of(command, **more), monkeypatch) == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert "File too large" in said.splitlines()[-1]
    assert call(command, argv_of(command, **more), monkeypatch) == 0
    assert call(command, argv_of(command, **more, output="whole"), monkeypatch) == 0
    without_times = [
        [
            {
                name: value
                for name, value in row.items()
                if name not in ("seconds", "ledger", "trajectories", "methods")
            }
            for row in files.finished_rows(Path(run, files.RESULTS))
        ]
        for run in ("run", "whole")
    ]
    assert without_times[0] == without_times[1]
    assert not list(folder.rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("command", RECIPES)
def test_training_on_a_full_disk(command, folder, monkeypatch, capfd):
    more = {"max_steps": 2}
    with files_of_at_most(100_000):
        assert call(command, argv_of(command, **more), monkeypatch) == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith(f"{command}: ")
    assert not list((folder / "run").glob("checkpoint-*"))
    assert call(command, argv_of(command, **more), monkeypatch) == 0
    assert (folder / "run" / "model.safetensors").is_file()


def test_a_checkpoint_of_other_shapes_cannot_be_gone_on_from(folder, monkeypatch, capfd):
    assert call("sft", argv_of("sft"), monkeypatch) == 0
    (folder / "run" / "trainer_state.json").unlink()
    weights = folder / "run" / "checkpoint-1" / "model.safetensors"
    save_file({name: value[:1].clone() for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    assert call("sft", argv_of("sft", max_steps=2), monkeypatch) == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert "checkpoint-1 cannot begin" in said.splitlines()[-1]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("command", ["sample", "sft"])
def test_a_broken_model_is_named(command, name, folder, monkeypatch, capfd):
    model = folder / "model"
    model.mkdir()
    for path in embedded_model("sudoku-early").iterdir():
        data = path.read_bytes()
        (model / path.name).write_bytes(data[: len(data) // 2] if path.name == name else data)
    option = "model" if command == "sample" else "model_name_or_path"
    assert call(command, argv_of(command, **{option: "model"}), monkeypatch) == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert "'model'" in said.splitlines()[-1]


@pytest.mark.parametrize("how", ["torn", "shapes", "not JSON", "other base"])
def test_a_broken_adapter_is_named(how, folder, adapter, monkeypatch, capfd):
    (folder / "adapter").mkdir()
    for path in adapter.iterdir():
        (folder / "adapter" / path.name).write_bytes(path.read_bytes())
    weights, config = folder / "adapter" / "adapter_model.safetensors", folder / "adapter" / "adapter_config.json"
    if how == "torn":
        os.truncate(weights, weights.stat().st_size - 100)
    elif how == "shapes":
        save_file({name: value[:1].clone() for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    elif how == "not JSON":
        config.write_text("{")
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(folder)}))
    assert call("export", argv_of("export"), monkeypatch) == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert "adapter" in said.splitlines()[-1]
    assert not list(folder.glob("*out*"))


SOLVER = {"objective": "autoregressive", "model_name_or_path": "embedded:solver", "canvas_length": None, "bf16": None,
          "use_cpu": None}  # fmt: skip


@pytest.mark.parametrize(
    ("length", "says"),
    [
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
        ({"max_steps": -2}, "max_steps=-2 must be at least 1"),
        ({"max_steps": -1, "num_train_epochs": 0}, "num_train_epochs=0.0 must be above 0"),
        ({"max_steps": None, "num_train_epochs": -1}, "num_train_epochs=-1.0 must be above 0"),
    ],
)
@pytest.mark.parametrize("command", [*RECIPES, "solver"])
def test_a_training_that_ends_before_its_first_step_is_refused(command, length, says, folder, monkeypatch, capfd):
    command, more = ("sft", SOLVER) if command == "solver" else (command, {})
    assert call(command, argv_of(command, **more, **length), monkeypatch) == 2
    assert says in capfd.readouterr().err.splitlines()[-1]
    assert not (folder / "run").exists()


def test_the_solver_is_trained_on_a_cpu_unasked_and_its_adapter_is_checked(folder, monkeypatch, capfd):
    """TRL's `bf16` is on by itself, and PEFT passes over a target that the model has not if another one matches."""
    solver = SOLVER if not torch.accelerator.is_available() else {**SOLVER, "use_cpu": True}
    own = {**solver, "use_peft": True, "lora_r": 2}
    assert call("sft", [*argv_of("sft", **own), "--lora_target_modules", "q_proj", "attn_out"], monkeypatch) == 2
    assert "attn_out matches nothing inside the blocks of this llama model" in capfd.readouterr().err.splitlines()[-1]
    assert call("sft", argv_of("sft", **own), monkeypatch) == 0
    names = load_file(folder / "run" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in names} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


MESSAGES = [{"messages": [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]}]
OWN = {"generate": None, "task": None, "num_problems": None, "dataset_name": "own.jsonl"}
MISSING = {**OWN, "dataset_name": "missing.jsonl"}
ON_ROLLOUTS = {"text": "rollouts", "states": "on_policy", "objective": "distillation"}
SEQUENTIAL = {"batch_by_length": True, "train_sampling_strategy": "sequential"}


@pytest.mark.parametrize(
    ("command", "option", "rows", "says"),
    [
        ("sft", MISSING, [], "input 'missing.jsonl' is not a file"),
        ("adapt", MISSING, [], "input 'missing.jsonl' is not a file"),
        ("solver", MISSING, [], "input 'missing.jsonl' is not a file"),
        ("sft", {**OWN, "columns": "prompt:question"}, [{"words": "a"}], "there is no 'question' to be 'prompt'"),
        ("sft", OWN, [{"words": "a"}], "the train data set has the columns words"),
        ("adapt", OWN, [{"words": "a"}], "the train data set has the columns words"),
        ("sft", OWN, MESSAGES, "has messages under messages, which need a chat template, and the tokenizer has none"),
        (
            "adapt",
            OWN,
            MESSAGES,
            "has messages under messages, which need a chat template, and the tokenizer has none",
        ),
        (
            "solver",
            OWN,
            MESSAGES,
            "has messages under messages, which need a chat template, and the tokenizer has none",
        ),
        ("adapt", OWN, [{"text": "1+1="}, {"text": None}], "row 1 of the train data set has the text None: a text"),
        ("adapt", OWN, [{"text": 3}], "row 0 of the train data set has the text 3: a text is needed"),
        ("grpo", {"chat_template": True}, [], "need a tokenizer with a chat template"),
        ("grpo", {"max_prompt_length": 1}, [], "every prompt is longer than max_prompt_length=1 tokens"),
        ("grpo", {"trust_remote_code": True}, [], "trust_remote_code=True would be ignored"),
        ("sft", {"family": "block_causal", "block_length": 3}, [], "longer than block_length=3 is a multiple of it"),
        ("sft", {"block_length": 5}, [], "block_length=5: bidirectional models attend fully"),
        ("adapt", {"block_length": 3}, [], "canvas_length=20: the sampler denoises whole blocks"),
        (
            "adapt",
            {"layout": "full", "block_length": None, "rollout_block_length": 3, "text": "rollouts"},
            [],
            "block_length",
        ),
        ("adapt", {**ON_ROLLOUTS, **SEQUENTIAL, "generate": "sudoku"}, [], "batch_by_length=True would be ignored"),
        (
            "adapt",
            {**ON_ROLLOUTS, "chat_template": True},
            [],
            "chat_template=True would be ignored: generate='evidence'",
        ),
    ],
)
def test_what_is_wrong_with_rows_and_canvases_is_said_before_weights_are_read(
    command, option, rows, says, folder, monkeypatch, capfd
):
    """Of a model that has none; and nothing is left behind."""
    command, more = ("sft", SOLVER) if command == "solver" else (command, {})
    said = {**BASES[command], **more}
    (folder / "model").mkdir()
    for path in embedded_model(said["model_name_or_path"].removeprefix("embedded:")).glob("*.json"):
        (folder / "model" / path.name).write_bytes(path.read_bytes())
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    option = {**more, "use_cpu": True, **option, "model_name_or_path": "model"}
    assert call(command, argv_of(command, **option), monkeypatch) == 2
    assert says in capfd.readouterr().err.splitlines()[-1]
    assert not (folder / "run").exists()


@pytest.mark.parametrize("name", ["embedded:sudoku-early", "folder", "adapter@embedded:sudoku-early"])
@pytest.mark.parametrize("command", RECIPES)
def test_a_revision_of_what_is_on_this_machine_is_refused(command, name, folder, adapter, monkeypatch, capfd):
    (folder / "adapter").symlink_to(adapter)
    option = {"model_name_or_path": name, "model_revision": "abc"}
    assert call(command, argv_of(command, **option), monkeypatch) == 2
    assert "model_revision='abc' would be ignored" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", ["sample", "stitch"])
def test_a_device_that_is_not_there(command, folder, monkeypatch, capfd):
    assert call(command, argv_of(command, device="cuda:77"), monkeypatch) == 2
    assert "device='cuda:77' cannot be used here" in capfd.readouterr().err


RAISING = "def f(*args, **columns):\n    raise KeyError('of mine')\n"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("stitch", {"scorer": "mine_raises:f"}),
        ("grade", {"reward": "mine_raises:f"}),
        ("grpo", {"reward_funcs": "mine.py:f"}),
    ],
)
def test_a_scorer_or_reward_that_raises_is_named_with_its_line(command, option, folder, monkeypatch, capfd):
    for name in ("mine.py", "mine_raises.py"):
        (folder / name).write_text(RAISING)
    assert call(command, argv_of(command, **option), monkeypatch) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert "raised KeyError: 'of mine'" in said
    assert "mine" in said
    assert said.endswith("line 2)")
    assert {"stitch": "at the question", "grade": "on rows 0 to 0", "grpo": "reward"}[command] in said
    sys.modules.pop("mine_raises", None)


def test_a_scorer_that_would_end_the_process_is_named(folder, monkeypatch, capfd):
    (folder / "mine_exits.py").write_text("def f(*args, **columns):\n    raise SystemExit(0)\n")
    assert call("stitch", argv_of("stitch", scorer="mine_exits:f"), monkeypatch) == 2
    assert "scorer 'mine_exits:f', at the question" in (said := capfd.readouterr().err.splitlines()[-1])
    assert "raised SystemExit: 0" in said
    sys.modules.pop("mine_exits", None)


@pytest.mark.parametrize(("command", "option"), [("stitch", "scorer"), ("grade", "reward"), ("grpo", "reward_funcs")])
def test_an_interruption_is_130_and_says_that_the_same_command_goes_on(command, option, folder, monkeypatch, capfd):
    (folder / "mine_stops.py").write_text("def f(*args, **columns):\n    raise KeyboardInterrupt\n")
    assert call(command, argv_of(command, **{option: "mine_stops:f"}), monkeypatch) == 130
    assert "the same command goes on where this one stopped" in capfd.readouterr().err
    sys.modules.pop("mine_stops", None)


@pytest.mark.parametrize("words", ["rewards", "rewards --json", "grade --help"])
def test_a_closed_pipe_is_silent(words):
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m lockstitch {words} | head -1; echo ${{PIPESTATUS[0]}}'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sft", "grpo"])
def test_weights_that_are_not_finite_are_never_saved(command, folder, monkeypatch, capfd):
    recipe = {"sft": sft, "grpo": grpo}[command]
    prepare = recipe.prepare

    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model, **more):
            with torch.no_grad():
                next(model.parameters()).fill_(torch.inf)

    def poisoned(*args):
        run = prepare(*args)
        run.trainer.add_callback(Poison())
        return run

    monkeypatch.setattr(recipe, "prepare", poisoned)
    assert call(command, argv_of(command), monkeypatch) == 2
    assert "is not finite after step 1; nothing of it was saved" in capfd.readouterr().err
    assert not list((folder / "run").rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("[1.0]", "reward 'mine.py:f' returned [1.0] for"),
        ("1.0", "reward 'mine.py:f' returned 1.0 for"),
        ("['1'] * len(completions)", "reward 'mine.py:f' returned '1' for a completion; a finite number"),
        ("[[1.0]] * len(completions)", "reward 'mine.py:f' returned [1.0] for a completion"),
        ("[float('inf')] * len(completions)", "reward 'mine.py:f' returned inf for a completion"),
    ],
)
def test_a_reward_that_returns_something_else_than_a_list_of_that_length_is_named(
    body, says, folder, monkeypatch, capfd
):
    (folder / "mine.py").write_text(f"def f(completions, **columns):\n    return {body}\n")
    assert call("grpo", argv_of("grpo", reward_funcs="mine.py:f"), monkeypatch) == 2
    assert says in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_reward_may_wait_and_its_errors_are_named(folder, monkeypatch, capfd):
    wait = "async def f(completions, **columns):\n    return "
    (folder / "mine.py").write_text(f"{wait}[float('nan'), *map(float, range(len(completions) - 1))]\n")
    settings = {"dataset_name": "mine.jsonl", "task": None, "prompt_form": None, "reward_funcs": "mine.py:f"}
    (folder / "mine.jsonl").write_text("".join(json.dumps({"prompt": f"{i}+1="}) + "\n" for i in range(16)))
    assert call("grpo", argv_of("grpo", **settings, num_problems=4, held_out_problems=2), monkeypatch) == 0
    (folder / "other.py").write_text(f"{wait}['1'] * len(completions)\n")
    settings |= {"reward_funcs": "other.py:f", "output_dir": "other"}
    assert call("grpo", argv_of("grpo", **settings), monkeypatch) == 2
    assert "reward 'other.py:f' returned '1' for a completion" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_fewer_prompts_than_a_generation_takes_are_refused(folder, monkeypatch, capfd):
    sizes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_generations": 2}
    assert call("grpo", argv_of("grpo", **sizes, num_problems=3), monkeypatch) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert "3 prompts to train on: a generation of generation_batch_size=8 completions" in said
    assert "num_generations=2 of each prompt, takes 4" in said
    assert call("grpo", argv_of("grpo", **sizes, num_problems=4), monkeypatch) == 0


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_model_whose_logits_are_no_numbers_is_named(temperature, folder, monkeypatch, capfd):
    (folder / "model").mkdir()
    for path in embedded_model("sudoku-early").iterdir():
        (folder / "model" / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model" / "model.safetensors")
    save_file(
        {name: weight * torch.nan for name, weight in weights.items()},
        folder / "model" / "model.safetensors",
        {"format": "pt"},
    )
    assert call("sample", argv_of("sample", model="model", temperature=temperature), monkeypatch) == 2
    assert "the model's logits are no numbers" in capfd.readouterr().err.splitlines()[-1]


def test_a_reward_of_ours_says_which_column_is_missing(folder, monkeypatch, capfd):
    (folder / "mine.jsonl").write_text('{"prompt": "3102", "other": "x"}\n' * 4)
    said = {**BASES["grpo"], "dataset_name": "mine.jsonl", "num_problems": 4}
    argv = [
        f"--{name}={' '.join(value) if isinstance(value, list) else value}"
        for name, value in said.items()
        if name not in ("task", "prompt_form")
    ]
    assert call("grpo", argv, monkeypatch) == 2
    assert "reward 'sudoku' raised ValueError: sudoku_reward needs one of the columns" in capfd.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        {"steps_per_generation": -1},
        {"num_iterations": 0},
        {"remove_unused_columns": True},
        {"loss_type": "other"},
        {"eval_on_start": True},
        {"per_device_train_batch_size": 0},
    ],
)
def test_what_trl_would_look_at_too_late_is_refused_by_its_name(option, folder, monkeypatch, capfd):
    assert call("grpo", argv_of("grpo", **option), monkeypatch) == 2
    assert next(iter(option)) in capfd.readouterr().err.splitlines()[-1]


class _Interrupt:
    """Finds no module; at one of them Ctrl-C comes."""

    def __init__(self, name):
        self.name = name

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            raise KeyboardInterrupt


@pytest.mark.parametrize("recipe", RECIPES)
def test_ctrl_c_while_a_recipe_is_still_importing_is_one_line(recipe, monkeypatch, capsys):
    heavy = "lockstitch.recipes.run_directory"
    monkeypatch.delitem(sys.modules, heavy, raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Interrupt(heavy), *sys.meta_path])
    with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
        import_module(f"lockstitch.recipes.{recipe}").main()
    assert getattr(ended.value, "code", None) == 130
    assert capsys.readouterr().err.startswith(f"\n{recipe}: interrupted")
