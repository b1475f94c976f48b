"""The arms of `scripts/compare_adaptation.py`: what the parent and each of its children are trained with."""

from pathlib import Path

from lockstitch.rewards.tasks.named import get_task

TASKS = ("sudoku", "countdown", "arithmetic")
ROOT = Path(__file__).resolve().parent.parent
SHAPE = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
BLOCK, ROWS = 4, 32
STEPS = {"sudoku": 200, "countdown": 400, "arithmetic": 400}
PARENT_STEPS = {"sudoku": 200, "countdown": 3000, "arithmetic": 1000}
# What an arm says beside its preset.
ARMS = {
    "nbdiff": {},
    "tidar": {},
    "idlm": {},
    "mixscale": {},
    "opdlm": {},
    "cap": {},
    "nbdiff-no_ar": {"ar_loss": "none", "ar_weight": None},
    "nbdiff-no_growth": {"block_growth": "constant", "block_growth_steps": None},
    "nbdiff-block_causal": {"layout": "block_causal", "ar_loss": "none", "ar_weight": None},
    # What the paper sets growth against: attention that goes from causal to the layout's, a random share at a time.
    "nbdiff-annealed_attention": {"block_growth": "constant", "block_growth_steps": None},
    "nbdiff-annealed": {  # of the mask ratio
        "block_growth": "constant",
        "block_growth_steps": None,
        "mask_ratio_high": 0.1,
        "mask_ratio_high_end": 1.0,
    },
    "opdlm-random": {"states": "random"},
    "mixscale-off": {"whole_canvas_fraction": 0.0},
    "mixscale-shift": {"shift": True},
    "mixscale-shift_off": {"shift": True, "whole_canvas_fraction": 0.0},
    "opdlm-shift": {"shift": True},
    "cap-nbdiff": {},
}
LONGER = "parent-longer"
START = {"cap": "mixscale", "cap-nbdiff": "nbdiff"}  # arms that go on from another arm's child
QUIET = {
    "bf16": False,
    "dtype": "float32",
    "use_cpu": True,
    "report_to": "none",
    "logging_steps": 10,
    "disable_tqdm": True,
    "save_total_limit": 1,
    "gradient_checkpointing": False,
}
SAME = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": None,
    "warmup_steps": 20,
    "weight_decay": 0.01,
    "adam_beta2": 0.98,
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": ROWS,
    "gradient_accumulation_steps": 1,
    "max_length": None,
    "use_peft": False,
}


def canvas_of(task):
    """A task's canvas, in whole blocks."""
    return -(-get_task(task).canvas_length // BLOCK) * BLOCK


def parent_settings(task, output):
    """The autoregressive parent, by the supervised recipe."""
    return QUIET | {
        "objective": "autoregressive",
        "generate": task,
        "num_problems": 64 * PARENT_STEPS[task],
        "new_model": SHAPE,
        "model_name_or_path": str(ROOT / "src/lockstitch/embedded/tokenizer"),
        "output_dir": str(output),
        "max_steps": PARENT_STEPS[task],
        "save_steps": 100,
        "per_device_train_batch_size": 64,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 50,
        "weight_decay": 0.01,
        "adam_beta2": 0.98,
        "seed": 0,
        "max_length": None,
    }


def longer_settings(task, seed, parent, output):
    """The parent, trained on as it was for as many steps and rows as its children."""
    own = {"objective": "autoregressive", "model_name_or_path": str(parent), "generate": task, "seed": seed}
    steps = {"num_problems": ROWS * STEPS[task], "max_steps": STEPS[task], "save_steps": 100}
    return QUIET | SAME | own | steps | {"output_dir": str(output)}


def settings(arm, task, seed, base, output):
    """All settings of an arm's run."""
    steps, preset = STEPS[task], arm.partition("-")[0]
    own = {
        "model_name_or_path": str(base),
        "generate": task,
        "num_problems": ROWS * steps,
        "seed": seed,
        "max_steps": steps,
        "save_steps": 100,
        "output_dir": str(output),
        "canvas_length": canvas_of(task),
    }
    scaled = {"block_length": BLOCK}
    if preset == "nbdiff":
        scaled["block_growth_steps"] = steps // 8  # full blocks after a quarter of the steps
    if arm == "nbdiff-annealed_attention":
        scaled["attention_annealing_steps"] = steps // 4  # as soon
    if preset in ("opdlm", "cap"):
        scaled |= {"rollout_length_start": None, "rollout_ramp_steps": None}
    if preset == "opdlm":
        scaled["distill_end"] = True  # here the end has one place, where the canvas ends
    if preset == "cap":
        scaled |= {"block_length": None}
    return {"adapt_preset": preset} | QUIET | SAME | scaled | ARMS[arm] | own
