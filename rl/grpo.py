"""Reinforcement learning of a diffusion language model: TRL's `GRPOTrainer` with our sampler, likelihoods and losses.

Reward functions, grouping, advantages, token-level losses, PEFT, logging, evaluation, checkpoints and accelerate stay TRL's.
Overridden are: generation (by `lockstitch.sampling`, a seed for each completion), likelihoods (by `lockstitch.rl.estimators`,
noise by completion), the losses that TRL lacks (`lockstitch.rl.losses`), and what resuming a run exactly takes.

The whole canvas conditions the model in training, as it did in the rollout; tokens after the first EOS are in no loss.
Leaves out tools, environments, images and vLLM.

Axes: B rows (completions), G canvas positions, K completions of a prompt, T inner iterations, N rows of all ranks.
"""

import copy
import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from lockstitch.rl import losses
from lockstitch.rl.estimators import estimate
from lockstitch.rl.grpo_config import DiffusionGRPOConfig
from lockstitch.rl.rollouts import (
    EVAL,
    REFILL,
    TRAIN,
    groups_with_signal,
    rollout_metrics,
    rollout_seeds,
    row_statistics,
    trace_columns,
)
from lockstitch.rl.scoring import Canvases, Scorer
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.layouts import check_layout
from lockstitch.sampling.loop import sample
from lockstitch.sampling.trajectory import Trajectory
from torch.nn.parallel import DistributedDataParallel
from transformers import GenerationConfig
from trl import GRPOTrainer
