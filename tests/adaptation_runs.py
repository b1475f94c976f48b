"""What the tests of adaptation share: rows, settings, a trainer of a random model."""

import pytest
from datasets import Dataset
from lockstitch.rl.adaptation import AdaptationTrainer
from lockstitch.rl.adaptation_config import AdaptationConfig
from lockstitch.rl.canvas_data import CanvasCollator
from lockstitch.rl.lora import lora_config
from lockstitch.sampling.families import (
    BLOCK_CAUSAL,
    BLOCK_CAUSAL_SHIFTED,
    CONTEXT_CAUSAL,
    IDLM,
    TIDAR,
)
from models import random_denoiser

PROMPTS, ANSWER = [[10, 11, 9], [7, 12], [8, 13, 14, 15, 16]], [12, 13, 14, 15, 16, 17, 18, 1]
G, BLOCK = len(ANSWER), 4
ROWS = [{"input_ids": p + ANSWER, "labels": [-100] * len(p) + ANSWER} for p in PROMPTS]
CAUSAL = pytest.mark.parametrize("family", [CONTEXT_CAUSAL, TIDAR, IDLM], ids=lambda family: family.name)
every_layout = pytest.mark.parametrize(
    "family", [BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED, CONTEXT_CAUSAL, TIDAR, IDLM], ids=lambda family: family.name
)


def batch_of(rows=ROWS):
    return CanvasCollator(0, 1, G, pads_left=True)(rows)


def settings(folder, **more):
    quiet = {"bf16": False, "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    return AdaptationConfig(output_dir=str(folder), **{"canvas_length": G, **quiet, **more})


def trainer_of(family, folder, teacher=None, rows=ROWS, gated=False, sharpness=2.0, **more):
    """A trainer of a random model, under settings that say its family's layout."""
    layout = {"layout": family.layout, "shift": family.shifted}
    if family.layout != "full":
        layout["block_length"] = BLOCK
    args = settings(folder, lora_gate=gated, **{**layout, **more})
    denoiser = random_denoiser("qwen3", sharpness=sharpness, family=args.family(None))
    config = lora_config(denoiser, 2, 4, gated=True) if gated else None
    return AdaptationTrainer(denoiser, args, teacher, config, train_dataset=Dataset.from_list(rows))
