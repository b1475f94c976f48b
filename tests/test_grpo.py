"""The GRPO trainer: ratios of one, runs that do not depend on how they are cut up, resumed runs, and TRL's own features."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from grpo_runs import PROMPTS, even_tokens, make_trainer, train, weights
from lockstitch.rl.grpo import DiffusionGRPOTrainer
from lockstitch.rl.grpo_config import DiffusionGRPOConfig
from models import random_denoiser

pytestmark = pytest.mark.filterwarnings("ignore")

# What the published recipes pair.
PAIRS = {
    "d1": {"estimator": "mean_field", "prompt_mask_ratio": 0.15},
    "coupled": {"estimator": "coupled"},
    "espo": {"estimator": "elbo", "num_samples": 2, "mask_schedule": "complement", "policy_loss": "sequence", "scope": "canvas"},
    "gdpo": {"estimator": "elbo", "num_samples": 3, "mask_schedule": "quadrature", "policy_loss": "sequence"},
    "spg": {"estimator": "sandwiched", "num_samples": 2, "mask_distribution": "block_random", "block_length": 4,
            "policy_loss": "sandwich"},
    "wd1": {"estimator": "mean_field", "prompt_mask_ratio": 0.15, "policy_loss": "weighted"},
    "stabledrl": {"estimator": "sandwiched", "num_samples": 2, "policy_loss": "self_normalized"},
    "d2": {"estimator": "trajectory"},
    "justgrpo": {"estimator": "autoregressive", "block_length": 1, "steps": 8},
}  # fmt: skip
WITH_RATIOS = ("d1", "coupled", "espo", "gdpo", "stabledrl", "d2", "justgrpo")


def assert_same(one, other, atol=1e-5):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def moved(trained):
    """The furthest that any weight of a random model has gone."""
    start = dict(random_denoiser(sharpness=2.0).model.named_parameters())
    return max((trained[name] - p).abs().max().item() for name, p in start.items())


class Ratios(DiffusionGRPOTrainer):
    """Keeps how far the log-ratios of every micro-batch are from 0."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.furthest = {}

    def _old_likelihoods(self, inputs, logp_BG, iteration):
        old_BG = super()._old_likelihoods(inputs, logp_BG, iteration)
        apart = (logp_BG.detach() - old_BG).abs().max().item()
        self.furthest.setdefault(iteration, []).append(apart)
        return old_BG


# --- ratios ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", WITH_RATIOS)
def test_ratios_begin_at_one(name, lora, tmp_path):
    """In steps that come before the policy moves the ratio is 1 exactly; in later iterations it is not."""
    settings = {"num_iterations": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "max_steps": 4}
    trainer = make_trainer({**settings, **PAIRS[name]}, tmp_path, lora=lora, trainer=Ratios)
    trainer.train()
    assert trainer.furthest[0] == [0.0] * 4
    assert max(trainer.furthest[1]) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_RATIOS)
def test_old_likelihoods_see_the_same_noise(name, tmp_path):
    """A policy that does not move has ratios of 1 in all iterations: rows scored in other company, shuffled, later."""
    settings = {"num_iterations": 2, "gradient_accumulation_steps": 1, "steps_per_generation": 4, "learning_rate": 0.0,
                "per_device_train_batch_size": 4, "max_steps": 16}  # fmt: skip
    trainer = make_trainer({**settings, **PAIRS[name]}, tmp_path, trainer=Ratios)
    trainer.train()
    assert len(trainer.furthest[0]) == len(trainer.furthest[1]) == 8
    assert max(max(apart) for apart in trainer.furthest.values()) < 2e-5


# --- the same run, cut up in other ways ------------------------------------------------------------------------------


def test_accumulated_micro_batches_are_one_batch(tmp_path):
    """Prompts of several lengths: left-padded rows in one batch, unpadded ones by themselves."""
    whole, log = train({}, tmp_path)
    pieces, _ = train({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}, tmp_path)
    assert moved(whole) > 1e-3
    assert_same(whole, pieces)
    assert log[0]["ratio/effective_sample_size"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PAIRS if name not in ("d2", "justgrpo")])
def test_accumulation_changes_no_loss(name, tmp_path):
    settings = {"num_iterations": 2, "max_steps": 4, **PAIRS[name]}
    if name == "gdpo":
        settings |= {"beta": 0.1}
    whole, _ = train(settings, tmp_path)
    pieces, _ = train({**settings, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, tmp_path)
    assert moved(whole) > 1e-3
    assert_same(whole, pieces)
