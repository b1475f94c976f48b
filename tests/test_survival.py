"""Length by survival (2608.26374): closed forms, and that a cut canvas is a canvas of that length."""

import math

import pytest
import torch
from lockstitch.sampling import lengths, room
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.families import BLOCK_CAUSAL
from lockstitch.sampling.loop import sample
from models import random_denoiser, without_mask

PROMPTS = ["12, +27, -15\n", "3102\n2000\n0210\n0320\n", "Ann has 12 apples. How many?\n", " 30 100  93 =  23\n"]
MOST, BLOCK = 24, 4


def test_closed_forms():
    ends = torch.zeros(4, 40)
    ends[0, 16] = 1.0  # certain to end at the 17th position
    ends[2] = 0.05
    ends[3, 0] = 1.0
    expected = lengths.expected(ends).tolist()
    assert expected == pytest.approx([17, 40, (1 - 0.95**40) / 0.05, 1])
    assert lengths.in_blocks(torch.tensor(expected), 8).tolist() == [24, 40, 24, 8]
    assert lengths.in_blocks(torch.tensor([8.0, 8.0 + 1e-9, 8.01, 0.5]), 8).tolist() == [8, 8, 16, 8]


def ending(seed=3):
    """A model that likes to end, at some prompts earlier than at others."""
    denoiser = random_denoiser(seed=seed, sharpness=2.0)
    with torch.no_grad():
        denoiser.model.lm_head.weight[denoiser.eos_ids[0]] += 2.5 * denoiser.model.lm_head.weight[7]
    return denoiser


@torch.no_grad()
def survival(denoiser, prompt, scale=0.0):
    """The length, written down plainly."""
    ids = denoiser.encode([prompt])[0] + [denoiser.mask_id] * MOST
    both = torch.tensor([ids, [denoiser.mask_id] * len(ids)])
    conditional, unconditional = denoiser.model(input_ids=both).logits[:, -MOST:]
    logits = unconditional + (scale + 1) * (conditional - unconditional)
    logits[:, denoiser.never_drawn] = -torch.inf
    length, survives = 0.0, 1.0
    for p in logits.double().softmax(-1)[:, denoiser.eos_ids].sum(-1).tolist():
        length, survives = length + survives, survives * (1 - p)
    return math.ceil(length / BLOCK) * BLOCK


SETTINGS = [
    {"stop_at_eos": True}, {"temperature": 1.0, "steps": MOST // 2},
    {"policy": "threshold", "threshold": 0.3, "temperature": 1.0}, {"cache": "dual"}, {"cfg_scale": 0.5},
    {"cache": "prefix", "temperature": 1.0}, {"speculate": 3, "temperature": 1.0},
    {"policy": "deferred", "threshold": 0.3, "cache": "interval"}, {"correction": "edit", "edit_threshold": 0.3},
    {"correction": "revise", "revise_fraction": 0.4, "revise_blocks": "4"},
]  # fmt: skip


# Rows padded to one length, and rows of one length each for code without masks, which takes no cache: these mostly slow.
CASES = [(lambda denoiser: denoiser, settings) for settings in SETTINGS] + [
    pytest.param(without_mask, settings, marks=[pytest.mark.slow] * ("policy" not in settings))
    for settings in SETTINGS
    if "cache" not in settings
]


@pytest.mark.parametrize(("disguise", "settings"), CASES)
def test_a_cut_canvas_is_one_of_that_length(disguise, settings, monkeypatch):
    denoiser = ending()
    prompts = [*PROMPTS, PROMPTS[0][::-1]]  # two of one length
    expected = [survival(denoiser, prompt, settings.get("cfg_scale", 0.0)) for prompt in prompts]
    assert len(set(expected)) > 1
    assert min(expected) < MOST
    monkeypatch.setattr(room, "LOGITS", 3 * MOST * denoiser.model.config.vocab_size)  # in portions of three rows
    chosen, n = {"block_length": BLOCK, "stop_at_eos": False, **settings}, 1 + ("temperature" in settings)
    config = SamplerConfig(canvas_length=MOST, length="survival", **chosen)
    drawn = sample(disguise(denoiser), prompts, config, n=n)
    for i, (prompt, length) in enumerate(zip(prompts, expected, strict=True)):
        if "steps" in chosen:
            chosen["steps"] = length // 2
        fixed = sample(denoiser, [prompt], SamplerConfig(canvas_length=length, **chosen), n=n)
        for ours, plain in zip(drawn[n * i : n * i + n], fixed, strict=True):
            assert ours.canvas_ids == plain.canvas_ids
            assert (ours.commit_step, ours.edits) == (plain.commit_step, plain.edits)
            assert (
                ours.block == plain.block or "revise_blocks" in chosen
            )  # a stage counts on from the whole canvas's blocks
            assert (ours.length, ours.finished, ours.text) == (plain.length, plain.finished, plain.text)
            one = 2 if "cfg_scale" in chosen else 1
            assert ours.ledger.nfe == plain.ledger.nfe + one
            assert ours.ledger.sequential_steps == plain.ledger.sequential_steps + 1


def test_the_pass_is_on_the_bill():
    denoiser, cells = ending(), []
    handle = denoiser.model.register_forward_pre_hook(
        lambda module, args, kwargs: cells.append(
            int(kwargs["attention_mask"].sum()) if "attention_mask" in kwargs else kwargs["input_ids"].numel()
        ),
        with_kwargs=True,
    )
    config = SamplerConfig(canvas_length=MOST, block_length=BLOCK, length="survival", temperature=1.0)
    drawn = sample(denoiser, PROMPTS, config, n=2)
    handle.remove()
    assert sum(t.ledger.tokens_forwarded for t in drawn) == sum(cells)
    assert {len(t.canvas_ids) for t in drawn} == {survival(denoiser, prompt) for prompt in PROMPTS}


def test_what_does_not_fit_is_refused():
    config = SamplerConfig(canvas_length=MOST, block_length=BLOCK, length="survival")
    with pytest.raises(ValueError, match="length='survival' asks how sure the model is of an end that block_causal"):
        sample(random_denoiser(family=BLOCK_CAUSAL), PROMPTS[:1], config)
    with pytest.raises(ValueError, match="under length='survival' those move or are cut off: length='fixed'"):
        sample(random_denoiser(), PROMPTS[:1], config, canvases=[[None] * MOST])


def test_dynamic_canvases_need_no_mask_either():
    """Rows of one prompt length, which grow apart, on a model that cannot hide what is beyond the shorter ones."""
    chosen = {"policy": "threshold", "threshold": 0.6}
    config = SamplerConfig(canvas_length=8, max_length=24, block_length=8, length="dynamic", **chosen)
    prompts = [PROMPTS[0], PROMPTS[0][::-1], PROMPTS[0].replace("1", "9")]
    drawn = sample(without_mask(ending()), prompts, config)
    assert [t.canvas_ids for t in drawn] == [t.canvas_ids for t in sample(ending(), prompts, config)]
