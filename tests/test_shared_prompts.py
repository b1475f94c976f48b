"""Rows of one prompt have it computed once: what every row computes for itself says the same, and costs more tokens."""

import copy

import pytest
import torch
import torch.distributed as dist
from likelihoods import close, gradients
from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.rl.estimators import estimate
from lockstitch.rl.scoring import Canvases, Scorer
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.families import BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED, CONTEXT_CAUSAL, LLADA2
from models import random_denoiser
from peft import LoraConfig, get_peft_model

G, BLOCK = 8, 4
A, B, C, D = [9, 8, 7, 6, 5, 4, 3], [5, 6, 7, 8, 9, 10], [11, 12, 13, 14], [15] * 9
RAGGED = [A, B, A, C, B, A, D]  # blocks begin 3, 2, 0 and 1 tokens before the canvas
WHOLE = [D[1:], C, C, D[1:]]  # at the canvas: where logits are shifted, the prompt predicts the first token
LAYOUTS = [
    (BLOCK_CAUSAL, BLOCK),
    (BLOCK_CAUSAL, G),
    (BLOCK_CAUSAL_SHIFTED, BLOCK),
    (LLADA2, BLOCK),
    (CONTEXT_CAUSAL, BLOCK),
]
every_layout = pytest.mark.parametrize(("family", "block"), LAYOUTS, ids=[f"{f.name}-{n}" for f, n in LAYOUTS])
ELBO = EstimatorConfig("elbo", num_samples=2)  # asks something of every row in every pass


def canvases(denoiser, prompts):
    """Random completions of prompts that are padded by two columns more than they need, with a trace of two steps."""
    generator, rows = torch.Generator().manual_seed(0), len(prompts)
    width = 2 + max(map(len, prompts))
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    prompt = torch.tensor([[denoiser.pad_id] * (width - len(p)) + p for p in prompts])
    completion = torch.randint(5, 40, (rows, G), generator=generator)
    step = torch.randint(1, 3, (rows, G), generator=generator)
    return Canvases(prompt, real, completion, torch.ones_like(step, dtype=torch.bool), torch.arange(rows), step, step)


class Counted:
    """A context that counts the tokens that a model reads."""

    def __init__(self, model):
        self.model, self.tokens, self.passes = model, 0, 0

    def __enter__(self):
        self.handle = self.model.register_forward_pre_hook(self._count, with_kwargs=True)
        return self

    def __exit__(self, *raised):
        self.handle.remove()

    def _count(self, module, args, kwargs):
        self.tokens += kwargs["input_ids"].numel()
        self.passes += 1


def scored(denoiser, model, config, c, block, **settings):
    """An estimate, its gradients, and what they cost."""
    with Counted(denoiser.model) as count:
        logp = estimate(config, Scorer(denoiser, model, block_length=block, **settings), c)
        # Weighted so that no two places pull alike.
        return logp, gradients(denoiser, (torch.linspace(-1, 2, logp.numel()).view_as(logp) * logp).sum()), count


@every_layout
@pytest.mark.parametrize("prompts", [RAGGED, WHOLE], ids=["ragged", "whole"])
@pytest.mark.parametrize(
    ("config", "lora", "recomputes"),
    [(EstimatorConfig("trajectory"), False, True), (ELBO, False, False), (ELBO, True, True)],
    ids=["trajectory", "elbo-kept", "elbo-lora"],
)
def test_sharing_prompts_changes_only_the_cost(family, block, prompts, config, lora, recomputes):
    denoiser = random_denoiser("qwen3", family=family)
    model = denoiser.model
    if lora:
        names = ["k_proj", "v_proj", "lm_head"]
        model = get_peft_model(
            model, LoraConfig(r=2, target_modules=names, init_lora_weights=False, task_type="CAUSAL_LM")
        )
    c, settings = canvases(denoiser, prompts), {"recomputes": recomputes}
    expected, pull, apart = scored(denoiser, model, config, c, block, shares_prompts=False, **settings)
    found, found_pull, shared = scored(denoiser, model, config, c, block, **settings)
    close(found, expected)
    close(found_pull, pull, atol=1e-5 * pull.abs().max())
    assert shared.passes == 2 * apart.passes
    # Every pass of the rows leaves out what stands before their first blocks, for one pass over that of each prompt.
    width = c.prompt_BP.shape[1]
    lead = [len(p) % block if family.layout == "block_causal" and block < G else 0 for p in prompts]
    high = width - min(lead) - 2  # a pass leaves out padding that all rows have
    kinds = len({tuple(p) for p in prompts})
    assert apart.tokens - shared.tokens == apart.passes * (len(prompts) - kinds) * high


@every_layout
def test_prompts_that_differ_are_not_shared(family, block):
    """Masked prompts, say: rows go through one pass, and their scores are their own."""
    denoiser = random_denoiser("qwen3", family=family)
    c = canvases(denoiser, [A, A, B, A])
    config = EstimatorConfig("mean_field", prompt_mask_ratio=0.5)
    alone = [scored(denoiser, denoiser.model, config, c.rows(slice(i, i + 1)), block)[0] for i in range(4)]
    found, _, count = scored(denoiser, denoiser.model, config, c, block)
    close(found, torch.cat(alone))
    assert count.passes == 1


def test_layers_that_are_checkpointed_compute_every_prompt():
    """They would drop the keys."""
    denoiser = random_denoiser("qwen3", family=CONTEXT_CAUSAL)
    c = canvases(denoiser, RAGGED)
    expected, pull, _ = scored(denoiser, denoiser.model, ELBO, c, BLOCK)
    denoiser.model.gradient_checkpointing_enable()
    denoiser.model.train()
    found, found_pull, count = scored(denoiser, denoiser.model, ELBO, c, BLOCK)
    close(found, expected)
    close(found_pull, pull, atol=1e-5 * pull.abs().max())
    assert count.passes == 4  # two, and again


@every_layout
@torch.no_grad()
def test_low_precision_gives_numbers(family, block):
    """Under autocast the mask overflows to -inf: no row may be all of it, in either pass."""
    denoiser = random_denoiser("qwen3", family=family)
    c = canvases(denoiser, RAGGED)
    denoiser.model.set_attn_implementation("eager")
    with torch.autocast("cpu", torch.bfloat16):
        low = estimate(ELBO, Scorer(denoiser, denoiser.model, block_length=block), c)
    close(low, estimate(ELBO, Scorer(denoiser, denoiser.model, block_length=block), c), atol=3.0)


def test_ddp_counts_passes_without_those_of_prompts(tmp_path):
    """Both passes are recomputed in the backward pass, for two optimiser steps."""
    denoiser = random_denoiser("qwen3", family=BLOCK_CAUSAL)
    alone = Denoiser(copy.deepcopy(denoiser.model), denoiser.tokenizer, BLOCK_CAUSAL)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(denoiser.model)
        for d, model, shares in ((denoiser, wrapped, True), (alone, alone.model, False)):
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            for _ in range(2):
                scorer = Scorer(d, model, block_length=BLOCK, shares_prompts=shares)
                optimizer.zero_grad()
                estimate(ELBO, scorer, canvases(d, RAGGED)).sum().backward()
                optimizer.step()
    finally:
        dist.destroy_process_group()
    for a, b in zip(denoiser.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
