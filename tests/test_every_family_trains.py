"""Two papers' presets train a stand-in for every model family, by the recipe: ratios, their clip, a reference."""

import json
import math

import pytest
from llada_code import write_checkpoint
from lockstitch.recipes.grpo import parse, train
from lockstitch.sampling.denoiser import make_bidirectional
from lockstitch.sampling.families import FAMILIES
from models import random_denoiser, tokenizer
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

# Family and architecture. LLaDA's brings its own code; Dream, SDAR, LLaDA2 and Fast-dLLM are stood in for by their
# conventions over a transformers model.
STAND_INS = {
    "llama": ("bidirectional", "llama"), "a2d-qwen2": ("bidirectional", "qwen2"),
    "a2d-qwen3": ("bidirectional", "qwen3"), "llada": ("llada", None), "dream": ("dream", "qwen2"),
    "sdar": ("block_causal", "qwen3"), "fast-dllm": ("block_causal_shifted", "qwen2"), "llada2": ("llada2", "qwen3"),
    "context-causal": ("context_causal", "qwen3"),
}  # fmt: skip
SMALL = {
    "task": "sudoku", "prompt_form": "plain", "num_problems": 16, "reward_funcs": "grpo_runs:even_tokens",
    "max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4,
    "max_completion_length": 8, "block_length": 4, "steps": 4, "lora_r": 2, "learning_rate": 1e-2, "warmup_steps": 0,
    "load_in_4bit": "false", "dtype": "float32", "bf16": "false", "use_cpu": "true", "logging_steps": 1,
    "report_to": "none", "save_strategy": "no", "html": "false",
}  # fmt: skip


def save(family, kind, path):
    """A random checkpoint."""
    if kind is None:
        write_checkpoint(path, tokenizer())
        return
    denoiser = random_denoiser(kind, sharpness=2.0, family=FAMILIES[family])
    if denoiser.family.layout == "full":
        make_bidirectional(denoiser.model)
    denoiser.model.save_pretrained(path)
    denoiser.tokenizer.save_pretrained(path)


def test_there_is_a_stand_in_for_every_family():
    assert {family for family, _ in STAND_INS.values()} == set(FAMILIES)


@pytest.mark.parametrize("preset", ["espo", "d2"])
@pytest.mark.parametrize("name", STAND_INS)
def test_two_steps(name, preset, tmp_path, monkeypatch):
    """One on the policy that sampled, one off it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    family, kind = STAND_INS[name]
    save(family, kind, tmp_path / "model")
    settings = SMALL | {"rl_preset": preset, "model_name_or_path": tmp_path / "model", "output_dir": tmp_path / "run",
                        "family": family, "trust_remote_code": "true" if kind is None else "false"}  # fmt: skip
    if name == "llada2":
        settings["lora_target_modules"] = "all-linear"  # its own have other names
    train(*parse([str(word) for key, value in settings.items() for word in (f"--{key}", value)]))
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    first, second = [entry for entry in log if "loss" in entry]
    assert first["ratio/spread"] == 0.0 < second["ratio/spread"]
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert second["kl"] > 1e-6
    assert all(math.isfinite(entry["loss"]) and entry["grad_norm"] > 0 for entry in (first, second))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["family"] == family
    adapter = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all(weight.any() for key, weight in adapter.items() if "lora_B" in key)
