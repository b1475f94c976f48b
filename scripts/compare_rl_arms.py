"""The arms of `scripts/compare_rl.py`: what each is trained with, and how many steps of it fit into the time.

`ARMS` are the first comparison: every preset, supervised training on gold answers and our recipe. `SECOND` are the second
(`--second`): our recipe, the same with one thing changed (`CHANGED`), and the presets that came later (`LATER`). `LONG` are
ten times as long (`--long`), with limits of health as the recipe has them, and with what might keep a run learning (`KEPT`).
`SWAPPED` and `VARIANTS` answer single questions and are asked for by `--arms`.
"""

import math

from lockstitch.recipes.layers import config_file
from lockstitch.rewards.tasks.named import get_task

from lockstitch.options import read_yaml

TASKS = ("sudoku", "countdown", "arithmetic")
FIRST_TASKS = TASKS[:2]
ARMS = ("sft", "d1", "wd1", "coupled", "espo", "spg", "d2", "ours")
# Our recipe with another estimator in the place of the trajectory's, all else as it is: asked for by --arms. Not part of the
# rules: it was added once the sudoku table was there, to say where its differences come from.
SWAPPED = {
    "ours-mean_field": {"estimator": "mean_field"},
    "ours-coupled": {"estimator": "coupled", "num_samples": 1},
    "ours-elbo": {"estimator": "elbo", "num_samples": 1, "mask_schedule": "complement"},
}
# Our recipe with one thing changed, all else as it is: the second comparison. Leftmost forks have no number of steps.
CHANGED = {
    "ours-leftmost": {"policy": "threshold", "threshold": 0.9, "fallback": "leftmost", "steps": None},
    "stitch-target": {"stitch_teacher": "target"},
    "stitch-join": {"stitch_teacher": "join"},
    "sft-stitched": {"stitch_teacher": "only"},
    "best-of-n": {"stitch_teacher": "only", "stitch_method": "best_of_n"},
}
LATER = ("forkgrpo", "rldf", "d_opsd")
SECOND = ("ours", *CHANGED, *LATER)
# Presets and our recipe with one thing changed, asked for by --arms: the cheap path (one masked prompt a group in d1's
# updates; rollouts by a threshold whose fallback is the most certain token), and self-distillation without its clip.
VARIANTS = {
    "d1-shared": {"share_prompt_mask": True},
    "ours-threshold": {"policy": "threshold", "threshold": 0.9, "fallback": "certain", "steps": None},
    "d_opsd-unclipped": {"distill_clip": 100.0},  # nats: no term reaches it
}
# What might carry our recipe further, ten times as long: groups that all agree replaced by fresh ones, and larger groups; a
# bonus of entropy that keeps it near that of the start; a divergence from the start; leftmost forks at a high threshold;
# hotter rollouts.
KEPT = {
    "ours-refilled": {"num_generations": 16, "refill_groups": 3, "learning_rate": 1e-3},
    "ours-entropy": {"use_adaptive_entropy": True, "entropy_target": 0.25},
    "ours-divergence": {"beta": 0.04},
    "ours-forks": {"policy": "threshold", "threshold": 0.95, "fallback": "leftmost", "steps": None},
    "ours-hot": {"temperature": 1.3},
}
LONG = ("ours", *KEPT, "forkgrpo", "best-of-n", "sft-stitched")
TIMES, LONG_PROBLEMS, LONG_CHECKPOINTS = 10, 65536, 6
TOKENS = (1, 4)
PROBLEMS = 4096
CHECKPOINTS = {"sudoku": 4, "countdown": 1, "arithmetic": 1}

ADAPTER = {"use_peft": True, "lora_r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "load_in_4bit": False}
QUIET = {"bf16": False, "dtype": "float32", "use_cpu": True, "report_to": "none", "logging_steps": 1}
# What becomes of a preset on models of half a million parameters whose canvas is one block; the rest stays the paper's.
SCALED = {
    "prompt_form": "plain",
    "num_problems": PROBLEMS,
    "num_generations": 8,
    "per_device_train_batch_size": 512,
    "gradient_accumulation_steps": 1,
    "rollout_micro_batch_size": 512,
    "temperature": 1.0,
    "recompute_passes": False,
    "num_completions_to_print": 0,
    "html": False,
    "held_out_problems": 0,
}
# Where a paper has a value of its own for these tasks.
PUBLISHED = {
    "d1": {"num_iterations": 8},
    "wd1": {"num_iterations": 8},
    "d2": {"num_iterations": 8, "segments": None},
    "spg": {"eubo_beta": 1.0},
    "forkgrpo": {"steps": None},
    "rldf": {"steps": None},
}
# The teacher of d_opsd sees later blocks: a row of a sudoku is one, a part of the canvas elsewhere. Two tokens a step.
D_OPSD_BLOCK = {"sudoku": 5, "countdown": 13, "arithmetic": 16}
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
        "ours-leftmost": 24,
        "stitch-target": 22,
        "stitch-join": 20,
        "sft-stitched": 48,
        "best-of-n": 50,
        "forkgrpo": 48,
        "rldf": 24,
        "d_opsd": 48,
        "d_opsd-unclipped": 48,
        "d1-shared": 240,
        "ours-threshold": 24,
        "ours-refilled": 8,
        "ours-entropy": 12,
        "ours-divergence": 16,
        "ours-forks": 10,
        "ours-hot": 20,
    },
    "countdown": {
        "sft": 450,
        "d1": 56,
        "wd1": 88,
        "coupled": 26,
        "espo": 24,
        "spg": 60,
        "d2": 16,
        "ours": 13,
    },
    "arithmetic": {},
}
# Where an arm was not timed on a task, as many steps as on sudoku, by what a step of ours costs there.
_STEP_COST = {"countdown": 24 / 13, "arithmetic": 2.2}


def steps_of(arm, task, part=1.0):
    """The optimizer's steps of an arm, or of a part of its time; `d_opsd` needs a multiple of its inner iterations."""
    known = STEPS[task].get(arm)
    steps = known if known is not None else max(1, round(STEPS["sudoku"][arm] / _STEP_COST[task]))
    steps = max(1, int(steps * part))
    return -(-steps // 4) * 4 if arm.startswith("d_opsd") else steps


def ours(task):
    """Our recipe on a task; arithmetic has a recipe of another kind, and takes countdown's."""
    if task != "arithmetic":
        return read_yaml(config_file(f"tiny/{task}.yaml"))
    length = get_task(task).canvas_length
    own = {"task": task, "reward_funcs": [task], "model_name_or_path": f"embedded:{task}-early"}
    canvas = {"max_completion_length": length, "steps": math.ceil(length / TOKENS[-1])}
    return read_yaml(config_file("tiny/countdown.yaml")) | own | canvas


def settings(arm, task, seed, rate, steps, output, long=False):
    """All settings of a run; `sft` is the supervised recipe's. A long one has more problems, and more checkpoints."""
    own = {
        "seed": seed,
        "max_steps": steps,
        "output_dir": str(output),
        "save_steps": math.ceil(steps / (LONG_CHECKPOINTS if long else CHECKPOINTS[task])),
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
    problems = {"num_problems": LONG_PROBLEMS if long else PROBLEMS}
    if arm.startswith("ours") or arm in CHANGED:
        changed = (SWAPPED | CHANGED | VARIANTS | KEPT).get(arm, {})
        return ours(task) | {"held_out_problems": 0, "html": False} | problems | changed | own
    canvas = {
        "task": task,
        "reward_funcs": [task],
        "max_completion_length": length,
        "block_length": length,
        "steps": math.ceil(length / TOKENS[-1]),
    }
    tuned = {"beta": ESPO_BETA[task]} if arm == "espo" else VARIANTS.get(arm, {})
    preset = arm.split("-")[0]
    if preset == "d_opsd":
        block = D_OPSD_BLOCK[task]
        tuned |= {"block_length": block, "steps": math.ceil(length / block) * math.ceil(block / 2)}
    scaled = SCALED | problems
    return {"rl_preset": preset} | model | ADAPTER | scaled | canvas | PUBLISHED.get(preset, {}) | tuned | own
