"""Every preset takes two steps on a tiny model, and two of them under every layout."""

import pytest
import torch
from datasets import Dataset
from lockstitch.recipes.grpo import parse
from lockstitch.rl.grpo import DiffusionGRPOTrainer
from lockstitch.sampling.families import BLOCK_CAUSAL, CONTEXT_CAUSAL
from models import random_denoiser

FAMILIES = {  # beside the Llama, on which all presets are run, and the golden checkpoints of test_every_family_trains.py
    "qwen2": lambda: random_denoiser("qwen2"),
    "qwen3": lambda: random_denoiser("qwen3"),
    "block_causal": lambda: random_denoiser("qwen3", family=BLOCK_CAUSAL),
    "context_causal": lambda: random_denoiser("qwen3", family=CONTEXT_CAUSAL),
}
SMALL = ["--task", "arithmetic", "--model_name_or_path", "none", "--use_peft", "false", "--bf16", "false",
         "--use_cpu", "true", "--dtype", "float32", "--report_to", "none", "--save_strategy", "no", "--logging_steps", "1",
         "--max_steps", "2", "--max_completion_length", "8", "--num_generations", "4", "--num_iterations", "2",
         "--learning_rate", "1e-3", "--warmup_steps", "0", "--per_device_train_batch_size", "8",
         "--gradient_accumulation_steps", "1"]  # fmt: skip


def even(prompts, completions, completion_ids, **columns):
    """A reward that random models differ in: the share of even tokens."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def take_two_steps(preset, denoiser, folder, *more):
    blocks = ["--block_length", "1"] if preset == "justgrpo" else ["--block_length", "4", "--steps", "4"]
    if preset == "coupled":
        blocks = ["--steps", "4"]
    if preset == "forkgrpo":  # of random models nothing is sure
        blocks = ["--block_length", "4", "--threshold", "0.3"]
    if preset == "d_opsd":  # whose every completion is right here
        blocks = ["--block_length", "2", "--steps", "4", "--distill_reward", "0", "--distill_share", "1"]
    if preset == "rldf":
        blocks = ["--block_length", "4", "--threshold", "0.6"]
    _, _, training, _ = parse([*SMALL, "--rl_preset", preset, *blocks, "--output_dir", str(folder), *more])
    rows = Dataset.from_list([{"prompt": text} for text in ("1+2=", "12, +7=", "3", "94-11=83")])
    before = {name: weight.detach().clone() for name, weight in denoiser.model.named_parameters()}
    trainer = DiffusionGRPOTrainer(denoiser, [even], training, train_dataset=rows)
    trainer.train()
    after = dict(denoiser.model.named_parameters())
    assert all(weight.isfinite().all() for weight in after.values())
    assert any(not torch.equal(before[name], weight) for name, weight in after.items())
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in history] == [1, 2]
    return history


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset",
    [
        "coupled",
        "d1",
        "d2",
        "d_opsd",
        "espo",
        "forkgrpo",
        "gdpo",
        "gdsd",
        "justgrpo",
        "mask_aware",
        "rldf",
        "spg",
        "wd1",
    ],
)
def test_every_preset_takes_two_steps(preset, tmp_path):
    first, _ = take_two_steps(preset, random_denoiser(), tmp_path)
    if "ratio/spread" in first:
        assert first["ratio/spread"] == 0  # the policy that sampled is the one that is scored


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["d2", "espo"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_presets_take_two_steps_on_every_family(preset, family, tmp_path):
    first, _ = take_two_steps(preset, FAMILIES[family](), tmp_path)
    assert first["ratio/spread"] == 0
