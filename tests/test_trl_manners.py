"""The trainers as people who know TRL call them: its README's example, but for the class's name."""

import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from lockstitch.rl.models import as_denoiser, name_of
from models import random_denoiser
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
from trl import GRPOConfig, SFTConfig

from lockstitch import (
    Denoiser,
    DiffusionGRPOConfig,
    DiffusionGRPOTrainer,
    DiffusionSFTConfig,
    DiffusionSFTTrainer,
    embedded_model,
)

pytestmark = pytest.mark.filterwarnings("ignore")
PROMPTS = Dataset.from_dict({"prompt": [f"{i}+{i}=" for i in range(16)], "answer": [str(2 * i) for i in range(16)]})
SMALL = {"max_completion_length": 8, "max_steps": 1, "report_to": "none", "save_strategy": "no", "use_cpu": True,
         "per_device_train_batch_size": 4, "num_generations": 4}  # fmt: skip


def short(completions, answer, **kwargs):
    """Rewards short completions; reads a column of the data."""
    assert len(answer) == len(completions)
    return [-float(len(completion)) for completion in completions]


@pytest.mark.slow
def test_trls_readme_runs_but_for_the_class_and_two_steps_take_less_than_a_minute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = PROMPTS
    began = time.perf_counter()
    trainer = DiffusionGRPOTrainer(
        model="embedded:sudoku-early",
        reward_funcs=short,
        train_dataset=dataset,
    )
    assert trainer.args.output_dir == "sudoku-early-GRPO"
    assert (trainer.args.max_completion_length, trainer.args.preset, trainer.args.bf16) == (256, "fast", False)
    trainer.args.max_steps = 2
    trainer.train()
    assert trainer.state.global_step == 2
    assert time.perf_counter() - began < 60 * 4  # alone on two cores it is well below a minute


def models():
    denoiser = random_denoiser()
    yield "denoiser", denoiser, None
    yield "model", AutoModelForCausalLM.from_pretrained(embedded_model("sudoku-early")), None
    yield "name", "embedded:sudoku-early", None
    yield "directory", str(embedded_model("sudoku-early")), None
    yield "path", embedded_model("sudoku-early"), AutoTokenizer.from_pretrained(embedded_model("sudoku"))
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(embedded_model("sudoku-early")),
        LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    yield "adapter", adapted, None


@pytest.mark.slow
@pytest.mark.parametrize(("model", "tokenizer"), [m[1:] for m in models()], ids=[m[0] for m in models()])
def test_a_model_is_whatever_trl_takes_for_one(model, tokenizer, tmp_path):
    args = DiffusionGRPOConfig(str(tmp_path), **SMALL)
    trainer = DiffusionGRPOTrainer(model, short, args, PROMPTS, processing_class=tokenizer)
    trainer.train()
    assert trainer.state.global_step == 1
    if tokenizer is not None:
        assert trainer.processing_class is tokenizer


def test_what_is_no_model_or_no_config_of_ours_is_refused(tmp_path):
    with pytest.raises(ValueError, match="args is a GRPOConfig: DiffusionGRPOConfig takes the same options"):
        DiffusionGRPOTrainer("embedded:sudoku-early", short, GRPOConfig(str(tmp_path), bf16=False), PROMPTS)
    with pytest.raises(ValueError, match="args is a SFTConfig: DiffusionSFTConfig takes the same options"):
        DiffusionSFTTrainer("embedded:sudoku-early", SFTConfig(str(tmp_path), bf16=False))
    with pytest.raises(ValueError, match="model is a Linear: a name, a directory"):
        as_denoiser(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="would be ignored: the model is loaded already"):
        as_denoiser(random_denoiser(), None, {"dtype": "float32"})
    with pytest.raises(ValueError, match="no model at 'nobody/nothing'"):
        as_denoiser("nobody/nothing")


def test_names_of_runs():
    assert [name_of(one) for one in ("a/b-7B", "embedded:sudoku", "/tmp/x/y/")] == ["b-7B", "sudoku", "y"]
    assert isinstance(as_denoiser("embedded:sudoku"), Denoiser)


def test_how_a_model_is_loaded_is_said_as_in_trl(tmp_path):
    args = DiffusionGRPOConfig(str(tmp_path), **SMALL, model_init_kwargs={"dtype": "bfloat16"})
    trainer = DiffusionGRPOTrainer("embedded:sudoku-early", short, args, PROMPTS)
    assert next(trainer.model.parameters()).dtype == torch.bfloat16


def test_a_model_that_is_named_is_trained_in_float32_as_in_trl(tmp_path):
    """In bfloat16 most steps of a small learning rate round away."""
    named = Denoiser.from_pretrained("embedded:sudoku-early", dtype=torch.bfloat16, device="cpu")
    named.model.save_pretrained(tmp_path / "half")
    named.tokenizer.save_pretrained(tmp_path / "half")
    assert as_denoiser(str(tmp_path / "half")).model.dtype == torch.float32
    assert as_denoiser(str(tmp_path / "half"), None, {"dtype": "auto"}).model.dtype == torch.bfloat16
    args = DiffusionGRPOConfig(str(tmp_path), **SMALL, trust_remote_code=True)
    with pytest.raises(
        ValueError, match="trust_remote_code=True would be ignored: 'embedded:sudoku-early' is of type"
    ):
        DiffusionGRPOTrainer("embedded:sudoku-early", short, args, PROMPTS)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"eos_token": "x"}, "eos_token='x': a canvas ends and is filled with the tokenizer's"),
        ({"pad_token": "x"}, "pad_token='x': a canvas ends and is filled with the tokenizer's"),
        (
            {"chat_template_path": "Qwen/Qwen3-0.6B"},
            "chat_template_path='Qwen/Qwen3-0.6B' would change the model's tokens",
        ),
    ],
)
def test_what_would_change_tokens_behind_the_trainer_is_refused(options, says, tmp_path):
    with pytest.raises(ValueError, match=f"^{says}"):
        DiffusionSFTConfig(str(tmp_path), bf16=False, use_cpu=True, **options)


@pytest.mark.parametrize("name", ["compute_metrics", "compute_loss_func"])
def test_functions_that_nobody_would_call_are_refused(name, tmp_path):
    args = DiffusionSFTConfig(str(tmp_path), bf16=False, use_cpu=True)
    with pytest.raises(ValueError, match=f"^{name} would be ignored"):
        DiffusionSFTTrainer("embedded:sudoku-early", args, train_dataset=PROMPTS, **{name: lambda *_: {}})


def test_checkpoints_are_pushed_from_where_they_stay(tmp_path, monkeypatch):
    pushed = []

    def push(trainer, folder):
        pushed.append((Path(folder).relative_to(tmp_path), sorted(path.name for path in Path(folder).iterdir())))

    monkeypatch.setattr(Trainer, "_push_from_checkpoint", push)
    rows = Dataset.from_dict({"prompt": ["1+1=", "2+2="], "completion": ["2", "4"]})
    args = DiffusionSFTConfig(
        str(tmp_path), bf16=False, use_cpu=True, max_steps=1, report_to="none", save_only_model=True
    )
    trainer = DiffusionSFTTrainer("embedded:sudoku-early", args, train_dataset=rows)
    args.push_to_hub = True
    trainer._save_checkpoint(trainer.model, None)
    ((place, names),) = pushed
    assert place == Path("checkpoint-0")
    assert {"model.safetensors", "trainer_state.json"} <= set(names)


def test_the_supervised_trainer_takes_the_same(tmp_path):
    rows = Dataset.from_dict({"prompt": ["1+1=", "2+2="], "completion": ["2", "4"]})
    trainer = DiffusionSFTTrainer("embedded:sudoku-early", train_dataset=rows)
    assert trainer.args.output_dir == "sudoku-early-SFT"
    assert trainer.args.bf16 is False
