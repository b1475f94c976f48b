"""`scripts/adapt_smollm2.py`: masks behind many tokens in one pass are what each would say in a pass of its own."""

import sys
from pathlib import Path

import pytest
import torch
from lockstitch.rl.lora import lora_config
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.families import IDLM
from lockstitch.sampling.loop import sample
from lockstitch.sampling.mask_gate import gated
from models import random_denoiser

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from adapt_smollm2 import Packed, drafts_of, passes

MASKS = 3


@pytest.fixture
def drafting():
    torch.manual_seed(3)
    denoiser = random_denoiser(family=IDLM)
    bias = torch.full((denoiser.model.config.vocab_size,), -1e4)
    bias[5:8] = 0.0
    denoiser.model.lm_head.bias = torch.nn.Parameter(bias)
    denoiser.model = gated(denoiser.model, lora_config(denoiser, 2, 4, gated=True)).eval()
    for name, weight in denoiser.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(1))
    return denoiser


def test_a_packed_pass_is_separate_passes(drafting):
    rows = [
        {"prompt_ids": [9, 10, 11], "completion_ids": [12, 13, 14, 15]},
        {"prompt_ids": [20], "completion_ids": [21, 22]},
    ]
    anchors = [[2, 3, 4], [0]]
    packed = Packed(rows, anchors, MASKS, drafting.mask_id)
    parent_MV, masks_MV = passes(drafting.model, packed)
    expected = []
    for row, places in zip(rows, anchors, strict=True):
        text = row["prompt_ids"] + row["completion_ids"]
        with torch.no_grad():
            plain = drafting.model(input_ids=torch.tensor([text])).logits[0]
            for at in places:
                ids = [*text[: at + 1], *[drafting.mask_id] * MASKS]
                logits = drafting.model(input_ids=torch.tensor([ids])).logits[0]
                expected += [(plain[i], logits[i]) for i in range(at + 1, at + 1 + MASKS) if i + 1 < len(text)]
    assert len(expected) == len(masks_MV) == 3 + 2 + 1 + 1
    for found, one in zip(zip(parent_MV, masks_MV, strict=True), expected, strict=True):
        torch.testing.assert_close(torch.stack(found), torch.stack(one), atol=1e-4, rtol=1e-4)
    assert not parent_MV.requires_grad
    masks_MV.sum().backward()
    assert all(w.grad is not None for name, w in drafting.model.named_parameters() if "lora_B" in name)


def test_the_curve_counts_the_passes_that_the_sampler_takes(drafting):
    length = 24
    for prompt in ("12, +27, -15\n", "Ann has 12 apples."):
        ids = drafting.encode([prompt])[0]
        settings = {"canvas_length": length, "policy": "verify", "cache": "block", "stop_at_eos": False}
        (drawn,) = sample(drafting, [ids], SamplerConfig(block_length=MASKS + 1, **settings))
        row = {"prompt_ids": ids, "completion_ids": list(drawn.canvas_ids)}
        per_pass, right = drafts_of(drafting.model, row, MASKS, drafting.mask_id)
        assert per_pass == pytest.approx(length / drawn.ledger.nfe)
        assert per_pass > 1
        assert len(right) == MASKS
