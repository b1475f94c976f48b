"""The arms of `scripts/compare_rl.py`: what each is trained with, and how many steps of it fit into the time.

`ARMS` are the first comparison: every preset, supervised training on gold answers and our recipe. `SECOND` are the second:
our recipe with one thing changed (`CHANGED`), all at its own rate or at those that `--tune` tries.
"""

import math

from lockstitch.recipes.layers import config_file
from lockstitch.rewards.tasks.named import get_task

from lockstitch.options import read_yaml

TASKS = ("sudoku", "countdown")
ARMS = ("sft", "d1", "wd1", "coupled", "espo", "spg", "d2", "ours")
# Our recipe with another estimator in the place of the trajectory's, all else as it is: asked for by --arms. Not part of the
# rules: it was added once the sudoku table was there, to say where its differences come from.
SWAPPED = {
    "ours-mean_field": {"estimator": "mean_field"},
    "ours-coupled": {"estimator": "coupled", "num_samples": 1},
    "ours-elbo": {"estimator": "elbo", "num_samples": 1, "mask_schedule": "complement"},
}
# Our recipe with one thing changed, all else as it is: the second comparison.
CHANGED = {
    "stitch-target": {"stitch_teacher": "target"},
    "stitch-join": {"stitch_teacher": "join"},
    "sft-stitched": {"stitch_teacher": "only"},
    "best-of-n": {"stitch_teacher": "only", "stitch_method": "best_of_n"},
}
SECOND = ("ours", *CHANGED)
TOKENS = (1, 4)
PROBLEMS = 4096
CHECKPOINTS = {"sudoku": 4, "countdown": 1}

ADAPTER = {"use_peft": True, "lora_r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "load_in_4bit": False}
QUIET = {"bf16": False, "dtype": "float32", "use_cpu": True, "report_to": "none", "logging_steps": 1}
# What becomes of a preset on models of half a million parameters whose canvas is one block; the rest stays the paper's.
SCALED = {
    "prompt_form": "plain", "num_problems": PROBLEMS, "num_generations": 8, "per_device_train_batch_size": 512,
    "gradient_accumulation_steps": 1, "rollout_micro_batch_size": 512, "temperature": 1.0, "recompute_passes": False,
    "num_completions_to_print": 0, "html": False, "held_out_problems": 0,
}  # fmt: skip
# Where a paper has a value of its own for these tasks.
PUBLISHED = {
    "d1": {"num_iterations": 8},
    "wd1": {"num_iterations": 8},
    "d2": {"num_iterations": 8, "segments": None},
    "spg": {"eubo_beta": 1.0},
}
ESPO_BETA = {"sudoku": 1e-2, "countdown": 3e-3}
# Optimizer's steps, a multiple of the inner iterations.
STEPS = {
    "sudoku": {
        "sft": 640,
        "d1": 80,
        "wd1": 128,
        "coupled": 38,
        "espo": 32,
        "spg": 84,
        "d2": 24,
        "ours": 24,
        "ours-mean_field": 72,
        "ours-coupled": 42,
        "ours-elbo": 54,
        "stitch-target": 22,
        "stitch-join": 20,
        "sft-stitched": 48,
        "best-of-n": 50,
    },
    "countdown": {"sft": 450, "d1": 56, "wd1": 88, "coupled": 26, "espo": 24, "spg": 60, "d2": 16, "ours": 13},
}


def settings(arm, task, seed, rate, steps, output):
    """All settings of a run; `sft` is the supervised recipe's."""
    own = {
        "seed": seed,
        "max_steps": steps,
        "output_dir": str(output),
        "save_steps": math.ceil(steps / CHECKPOINTS[task]),
        "save_total_limit": None,
    } | QUIET
    if rate is not None:
        own["learning_rate"] = rate
    model, length = {"model_name_or_path": f"embedded:{task}-early"}, get_task(task).canvas_length
    if arm == "sft":
        return (
            model
            | ADAPTER
            | own
            | {
                "objective": "diffusion",
                "generate": task,
                "num_problems": PROBLEMS,
                "canvas_length": length,
                "loss_weighting": "mean",
                "per_device_train_batch_size": 64,
                "lr_scheduler_type": "linear",
                "warmup_steps": 0,
                "weight_decay": 0.0,
                "gradient_checkpointing": False,
                "max_length": None,
            }
        )
    if arm == "ours" or arm in SWAPPED or arm in CHANGED:
        recipe = read_yaml(config_file(f"tiny/{task}.yaml"))
        changed = SWAPPED.get(arm, {}) | CHANGED.get(arm, {})
        return recipe | {"num_problems": PROBLEMS, "held_out_problems": 0, "html": False} | changed | own
    canvas = {
        "task": task,
        "reward_funcs": [task],
        "max_completion_length": length,
        "block_length": length,
        "steps": math.ceil(length / TOKENS[-1]),
    }
    tuned = {"beta": ESPO_BETA[task]} if arm == "espo" else {}
    return {"rl_preset": arm} | model | ADAPTER | SCALED | canvas | PUBLISHED.get(arm, {}) | tuned | own
