"""What a person does with a checkpoint of any family, by the commands: reinforcement learning, supervised training,
resuming, exporting under either kind of names, stitching. On the golden checkpoints, for two steps each."""

import json
import math
import shutil

import pytest
import torch
from lockstitch.recipes import grpo, sft
from lockstitch.rl import export_cli
from lockstitch.sampling import cli as sample_cli
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.stitching import cli as stitch_cli
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_families import GOLDEN, NAMES, golden, save_as

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
every_family = pytest.mark.parametrize("name", NAMES)

SMALL = {
    "task": "sudoku", "prompt_form": "plain", "num_problems": 16, "reward_funcs": "grpo_runs:even_tokens",
    "max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4,
    "max_completion_length": 8, "block_length": 4, "steps": 4, "lora_r": 2, "learning_rate": 1e-2, "warmup_steps": 0,
    "load_in_4bit": "false", "dtype": "float32", "bf16": "false", "use_cpu": "true", "logging_steps": 1,
    "report_to": "none", "save_strategy": "no", "html": "false",
}  # fmt: skip
SUPERVISED = {
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 1e-2, "warmup_steps": 0,
    "canvas_length": 8, "bf16": "false", "use_cpu": "true", "dtype": "float32", "report_to": "none",
    "logging_steps": 1, "save_steps": 1, "gradient_checkpointing": "true",
}  # fmt: skip


def words(settings):
    return [str(word) for key, value in settings.items() for word in (f"--{key}", value)]


def history(directory):
    log = json.loads((directory / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in log if "loss" in entry]


def changed_weights(directory, name):
    """Tensors of a saved model that training moved, and those that it did not."""
    after = Denoiser.from_pretrained(str(directory), device="cpu").model.state_dict()
    before = golden(name).model.state_dict()
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    return moved, before.keys() - moved


@every_family
@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("preset", ["espo", "d2"])
def test_two_steps_of_reinforcement_learning(name, preset, adapter, tmp_path):
    """One on the policy that sampled, one off it; every target that was asked for is matched and trained."""
    settings = SMALL | {
        "rl_preset": preset,
        "model_name_or_path": GOLDEN / name,
        "output_dir": tmp_path / "run",
        "use_peft": str(adapter).lower(),
    }
    if not adapter:
        del settings["lora_r"]
    grpo.train(*grpo.parse(words(settings)))
    first, second = history(tmp_path / "run")
    assert first["ratio/spread"] == 0.0 < second["ratio/spread"]
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert second["kl"] > 1e-6
    assert all(math.isfinite(entry["loss"]) and entry["grad_norm"] > 0 for entry in (first, second))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["family"] == NAMES[name]
    if adapter:
        weights = load_file(tmp_path / "run" / "adapter_model.safetensors")
        assert all(weight.any() for key, weight in weights.items() if "lora_B" in key)
    else:
        moved, still = changed_weights(tmp_path / "run", name)
        # Nothing reaches the bias that routes, nor experts that no token was sent to.
        assert len(moved) > 0.8 * len(moved | still)


NEW = {
    "forkgrpo": {"steps": None},
    "rldf": {"steps": None},
    "mask_aware": {},
    "gdsd": {},
}


@every_family
@pytest.mark.parametrize("preset", NEW)
def test_two_steps_of_the_presets_that_read_the_trace(name, preset, tmp_path):
    """And of the regression. All weights: on the policy that sampled, and off it in a second inner iteration."""
    settings = SMALL | {
        "rl_preset": preset,
        "model_name_or_path": GOLDEN / name,
        "output_dir": tmp_path / "run",
        "use_peft": "false",
        "gradient_accumulation_steps": 1,
        "num_iterations": 2,
        "num_train_epochs": 1,
    }
    settings = {key: value for key, value in (settings | NEW[preset]).items() if value is not None}
    del settings["lora_r"]
    grpo.train(*grpo.parse(words(settings)))
    first, second = history(tmp_path / "run")
    assert first["ratio/spread"] == 0.0
    assert second["ratio/spread"] > 0.0
    assert all(math.isfinite(entry["loss"]) and entry["grad_norm"] > 0 for entry in (first, second))
    if preset == "forkgrpo":
        assert 0 < first["rollout/fork_share"] <= 1
        assert first["rollout/fork_entropy"] > 0


# Sizes alone: whatever else the file says is what is run.
SIZES = {
    "num_problems": 16, "held_out_problems": 4, "max_steps": 2, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2, "num_generations": 4, "max_completion_length": 16,
    "lora_r": 2, "lora_alpha": 2, "dtype": "float32", "bf16": "false", "use_cpu": "true", "report_to": "none",
    "logging_steps": 1, "save_strategy": "no", "log_completions": "false",
}  # fmt: skip
SHIPPED = [("sdar", "SDAR-8B-Chat", 4), ("llada2", "LLaDA2.0-mini", 8), ("fastv2", "Fast_dLLM_v2_7B", 8)]


@pytest.mark.parametrize(("name", "folder", "block"), SHIPPED)
def test_two_steps_of_a_shipped_config(name, folder, block, tmp_path):
    overrides = {"model_name_or_path": GOLDEN / name, "output_dir": tmp_path, "block_length": block}
    overrides["reward_funcs"] = "grpo_runs:even_tokens"
    arguments = grpo.parse(["--config", f"{folder}/countdown.yaml", *words(SIZES | overrides)])
    assert arguments[2].preset == golden(name).family.decoding
    grpo.train(*arguments)
    log = history(tmp_path)
    assert len(log) == 2
    assert all(math.isfinite(entry["loss"]) and entry["grad_norm"] > 0 for entry in log)
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["family"], record["task"]) == (NAMES[name], "countdown")
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert all(weight.any() for key, weight in weights.items() if "lora_B" in key)
    measured = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert sum("held_out/accuracy@1" in entry for entry in measured) == 2


@every_family
def test_supervised_resumed_exported_and_stitched(name, tmp_path, capsys):
    rows = [{"prompt": f"{i}+{i}=", "completion": f"{2 * i}"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    settings = SUPERVISED | {
        "model_name_or_path": GOLDEN / name,
        "dataset_name": tmp_path / "rows.jsonl",
        "output_dir": run,
    }
    if golden(name).family.layout != "full":
        settings["block_length"] = 4
    supervise(settings | {"max_steps": 2})
    whole = history(run)
    shutil.rmtree(run)
    supervise(settings | {"max_steps": 1, "lr_scheduler_type": "constant"})
    shutil.rmtree(run)
    supervise(settings | {"max_steps": 2, "save_strategy": "steps"})
    shutil.rmtree(run / "checkpoint-2")
    supervise(settings | {"max_steps": 2})  # goes on from the checkpoint of the first step
    assert [entry["loss"] for entry in history(run)] == pytest.approx([entry["loss"] for entry in whole], rel=1e-4)
    assert len(whole) == 2

    adapter = tmp_path / "adapter"
    supervise(settings | {"output_dir": adapter, "max_steps": 2, "use_peft": "true", "lora_r": 2, "lora_alpha": 4})
    for names in ("native", "published"):
        for merge in (False, True):
            output = tmp_path / f"{names}-{merge}"
            arguments = words({"adapter": adapter, "output": output, "names": names})
            assert export_cli.main(arguments + ["--merge"] * merge) == 0, capsys.readouterr().err
    check_exports(name, tmp_path, adapter)

    text = tmp_path / "stitched"
    arguments = {"task": "sudoku", "question": "3102200002100320", "model": tmp_path / "native-True", "solver": "none",
                 "num_trajectories": 2, "canvas_length": 20, "block_length": 4, "output": text}  # fmt: skip
    assert stitch_cli.main(words(arguments)) == 0
    assert (text / "report.html").is_file()
    arguments = {"model": tmp_path / "published-True", "prompt": "3+4=", "canvas_length": 8,
                 "preset": golden(name).family.decoding, "block_length": 4, "device": "cpu"}  # fmt: skip
    if name == "fastv2":
        arguments["sub_block_length"] = 2
    assert sample_cli.main(words(arguments)) == 0


def supervise(settings):
    from unittest.mock import patch

    with patch("sys.argv", ["sft", *words(settings)]):
        sft.main()


def check_exports(name, directory, adapter):
    """All four are the same model; an adapter under published names is what it says, by plain arithmetic on the tensors."""
    ids = torch.tensor([[17, 93, 242, 2, 2, 2]])

    def logits(model):
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False).logits

    base = Denoiser.from_pretrained(str(GOLDEN / name), device="cpu").model
    adapted = PeftModel.from_pretrained(base, str(adapter))
    expected = logits(adapted.eval())
    assert (expected - logits(golden(name).model)).abs().max() > 1e-3
    for place in ("native-True", "published-True"):
        torch.testing.assert_close(
            logits(Denoiser.from_pretrained(str(directory / place), device="cpu").model),
            expected,
            atol=1e-4,
            rtol=1e-4,
        )
    before = load_file(GOLDEN / name / "model.safetensors")
    weights = load_file(directory / "published-False" / "adapter_model.safetensors")
    config = json.loads((directory / "published-False" / "adapter_config.json").read_text())
    for key, a in weights.items():
        if ".lora_A." in key:
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            alpha = next(
                (v for end, v in config["alpha_pattern"].items() if module.endswith(end)), config["lora_alpha"]
            )
            before[f"{module}.weight"] += alpha / len(a) * weights[key.replace("lora_A", "lora_B")] @ a
    save_as(directory / "by hand", name)
    save_file(before, directory / "by hand" / "model.safetensors")
    torch.testing.assert_close(
        logits(Denoiser.from_pretrained(str(directory / "by hand"), device="cpu").model),
        expected,
        atol=1e-4,
        rtol=1e-4,
    )
