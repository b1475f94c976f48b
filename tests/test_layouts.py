"""Layouts and caches: what is called exact is exact, against plain references that know nothing of either."""

import itertools
import time
from dataclasses import replace

import pytest
import torch
from lockstitch.rl.adaptation_states import Teacher
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.denoising import Denoising
from lockstitch.sampling.families import (
    BLOCK_CAUSAL,
    BLOCK_CAUSAL_SHIFTED,
    CONTEXT_CAUSAL,
    FAMILIES,
    IDLM,
    LLADA2,
    TIDAR,
    family_of,
)
from lockstitch.sampling.layouts import EXACT, blocks, is_exact
from lockstitch.sampling.loop import make_rows, sample
from models import dream_like, random_denoiser, without_mask
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import DynamicCache

# Lengths 13, 20, 29 and 17, so that a block of 4 begins inside the prompt at every remainder.
PROMPTS = ["12, +27, -15\n", "3102\n2000\n0210\n0320\n", "Ann has 12 apples. How many?\n", " 30 100  93 =  23\n"]
G = 12
CAUSAL = [BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED, LLADA2, CONTEXT_CAUSAL, IDLM, TIDAR]


def run(denoiser, prompts=PROMPTS, n=1, seed=0, canvases=None, **settings):
    settings = {"canvas_length": G, "stop_at_eos": False, **settings}
    return sample(denoiser, prompts, SamplerConfig(**settings), n=n, seed=seed, canvases=canvases)


def config(settings):
    return SamplerConfig(canvas_length=G, stop_at_eos=False, **settings)


def tokens(trajectories):
    return [t.canvas_ids for t in trajectories]


def counted(denoiser, **arguments):
    """Trajectories, and how many rows and real tokens the model was called with."""
    rows, cells = [], []

    def count(module, args, kwargs):
        rows.append(kwargs["input_ids"].shape[0])
        cells.append(int((kwargs["input_ids"] != denoiser.pad_id).sum()))

    handle = denoiser.model.register_forward_pre_hook(count, with_kwargs=True)
    drawn = run(denoiser, **arguments)
    handle.remove()
    return drawn, sum(rows), sum(cells)


def additive(seen):
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]


def greedy_rows(denoiser, ids, seen, shifted):
    """Most likely token and its probability at each position, of one unpadded row under an explicit mask."""
    logits = denoiser.model(input_ids=torch.tensor([ids]), attention_mask=additive(seen)).logits[0]
    logits[:, [denoiser.mask_id, denoiser.pad_id]] = -torch.inf
    confidence, token = logits.softmax(-1).max(-1)
    return (token.roll(1), confidence.roll(1)) if shifted else (token, confidence)


def reference_block_causal(denoiser, prompt, block):
    """One token a step in blocks that are counted from the prompt's first token; no cache, no batch."""
    ids = denoiser.encode([prompt])[0]
    start, ids = len(ids), ids + [denoiser.mask_id] * G
    number = torch.arange(len(ids)) // block
    for now in range(start // block, int(number[-1]) + 1):
        while True:
            open_ = [i for i in range(start, len(ids)) if number[i] == now and ids[i] == denoiser.mask_id]
            if not open_:
                break
            token, confidence = greedy_rows(denoiser, ids, number[None] <= number[:, None], denoiser.family.shifted)
            best = max(open_, key=lambda i: float(confidence[i]))
            ids[best] = int(token[best])
    return tuple(ids[start:])


@pytest.mark.parametrize("family", [BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_block_causal_is_the_plain_loop(family, kind):
    denoiser = random_denoiser(kind, family=family)
    assert tokens(run(denoiser, block_length=4)) == [reference_block_causal(denoiser, p, 4) for p in PROMPTS]


@pytest.mark.parametrize("family", [CONTEXT_CAUSAL, IDLM, TIDAR], ids=lambda family: family.name)
@torch.no_grad()
def test_context_causal_is_the_plain_loop(family):
    """A block is its causal first token if it opens with one, then the others one by one, after the causal prefix.

    They see the block too, or of it what stands before them (I-DLM).
    """
    denoiser, expected = random_denoiser("qwen3", family=family), []
    for prompt in PROMPTS:
        ids = denoiser.encode([prompt])[0]
        written = len(ids)
        for low in range(written, written + G, 4):
            causal = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
            token, _ = greedy_rows(denoiser, ids, causal, shifted=False)
            first = [int(token[-1])] if family.opens_blocks else []
            ids = [*ids, *first, *[denoiser.mask_id] * (4 - len(first))]
            seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
            if family.layout == "context_causal":
                seen[low:] = True
            while denoiser.mask_id in ids:
                token, confidence = greedy_rows(denoiser, ids, seen, family.shifted)
                best = max((i for i in range(low, low + 4) if ids[i] == denoiser.mask_id), key=lambda i: confidence[i])
                ids[best] = int(token[best])
        expected.append(tuple(ids[written:]))
    assert tokens(run(denoiser, block_length=4)) == expected


@pytest.mark.parametrize("cache", ["none", "block"])
def test_context_causal_at_block_one_is_greedy_generation(cache):
    denoiser = random_denoiser("qwen2", family=CONTEXT_CAUSAL)
    drawn = run(denoiser, block_length=1, cache=cache)
    for prompt, t in zip(PROMPTS, drawn, strict=True):
        ids = torch.tensor(denoiser.encode([prompt]))
        written = denoiser.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=G,
            eos_token_id=None,
            pad_token_id=denoiser.pad_id,
            suppress_tokens=[denoiser.mask_id, denoiser.pad_id],
        )
        assert t.canvas_ids == tuple(written[0, ids.shape[1] :].tolist())
        assert t.commit_step == tuple(range(1, G + 1))
        assert t.ledger.nfe == G


SETTINGS = [
    {},
    {"steps": 6, "temperature": 1.0},
    {"policy": "threshold", "threshold": 0.5, "temperature": 0.7},
    {"correction": "revise", "revise_fraction": 0.5, "revise_blocks": "6,canvas"},
    {"correction": "edit", "edit_threshold": 0.5, "steps": 6},
    {"correction": "remdm", "sigma": "rescale", "eta": 0.5, "policy": "random"},
    {"cfg_scale": 1.0, "steps": 6},
]
FAST = ((CONTEXT_CAUSAL, 0), (BLOCK_CAUSAL_SHIFTED, 1))  # the rest is slow


CASES = [
    pytest.param(
        family,
        settings,
        id=f"{family.name}-{'-'.join(settings) or 'plain'}",
        marks=() if settings is SETTINGS[2] or (family, i % 2) in FAST else pytest.mark.slow,
    )
    for family in CAUSAL
    for i, settings in enumerate(SETTINGS)
]


@pytest.mark.parametrize(("family", "settings"), CASES)
def test_the_block_cache_changes_nothing_but_the_cost(family, settings):
    denoiser = random_denoiser("qwen3", family=family)
    canvases = [None, None, [None] * 5 + [7] * 4 + [None] * 3, [7] * 4 + [None] * 4 + [7, None, 7, None]]
    canvases = [canvas or [None] * G for canvas in canvases]
    settings = {"block_length": 4, "canvases": canvases, **settings}
    for n in (1, 2):
        plain, rows, cells = counted(denoiser, n=n, **settings)
        cached, cached_rows, cached_cells = counted(denoiser, n=n, cache="block", **settings)
        assert tokens(cached) == tokens(plain)
        assert [t.commit_step for t in cached] == [t.commit_step for t in plain]
        assert [t.edits for t in cached] == [t.edits for t in plain]
        for drawn, r, c in ((plain, rows, cells), (cached, cached_rows, cached_cells)):
            assert sum(t.ledger.nfe for t in drawn) >= r
            assert n > 1 or settings.get("cfg_scale") or sum(t.ledger.nfe for t in drawn) == r
            assert sum(t.ledger.tokens_forwarded for t in drawn) == c
        assert cached_cells < cells / 2
        assert [t.ledger.nfe for t in cached] == [t.ledger.nfe for t in plain]


def test_trajectories_of_one_prompt_share_the_pass_over_it():
    denoiser, prompt = random_denoiser(family=BLOCK_CAUSAL), PROMPTS[1]
    settings = {"cache": "block", "block_length": 4, "temperature": 3.0}
    length = len(denoiser.encode([prompt])[0])
    assert length % 4 == 0
    one, _, cells = counted(denoiser, prompts=[prompt], **settings)
    several, _, several_cells = counted(denoiser, prompts=[prompt], n=8, **settings)
    assert tokens(several) == tokens(run(denoiser, [prompt], n=8, block_length=4, temperature=3.0))
    assert len({t.canvas_ids[t.commit_step.index(1)] for t in several}) > 1  # most part at the first step
    # One pass opens the first block for all; then each reads its own blocks, or less where two are still the same.
    assert several_cells < length + 4 + 8 * (cells - length - 4)
    assert several[0].ledger == replace(one[0].ledger, seconds=several[0].ledger.seconds)
    assert [t.ledger.nfe for t in several] == [one[0].ledger.nfe] * 8
    assert sum(t.ledger.tokens_forwarded for t in several) == several_cells
    # Canvases that differ from the start share a pass over the prompt alone, which is on the bill of the first.
    pinned = [[7 + k] + [None] * (G - 1) for k in range(8)]
    apart = [counted(denoiser, prompts=[prompt], canvases=[canvas], **settings) for canvas in pinned]
    beside, _, beside_cells = counted(denoiser, prompts=[prompt] * 8, canvases=pinned, **settings)
    assert tokens(beside) == [t.canvas_ids for drawn, *_ in apart for t in drawn]
    assert beside_cells == sum(cells for *_, cells in apart) - 7 * length
    assert [t.ledger.nfe for t in beside] == [drawn[0].ledger.nfe + (k == 0) for k, (drawn, *_) in enumerate(apart)]


def test_the_pass_over_a_shared_prompt_takes_time():
    denoiser, pinned = random_denoiser(family=BLOCK_CAUSAL), [[7 + k] + [None] * (G - 1) for k in range(4)]
    calls = []

    def slow(module, args, kwargs):
        if not calls:
            time.sleep(0.8)
        calls.append(kwargs["input_ids"].shape[0])

    handle = denoiser.model.register_forward_pre_hook(slow, with_kwargs=True)
    drawn = run(denoiser, [PROMPTS[1]] * 4, canvases=pinned, cache="block", block_length=4)
    handle.remove()
    assert calls[0] == 1 < calls[1]
    assert min(t.ledger.seconds for t in drawn) >= 0.2


@pytest.mark.parametrize(
    ("disguise", "cache"), [(None, "none"), (None, "prefix"), (None, "dual"), (without_mask, "none")]
)
def test_rows_that_are_the_same_go_through_a_pass_as_one(disguise, cache):
    denoiser = random_denoiser("qwen3")
    denoiser = disguise(denoiser) if disguise else denoiser
    settings = {"block_length": 4, "steps": 6, "temperature": 0.3, "cache": cache}
    calls = []
    handle = denoiser.model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    together = run(denoiser, PROMPTS[:2], n=6, **settings)
    shared = list(calls)
    calls.clear()
    for prompt, k in itertools.product(range(2), range(6)):  # one by one: nothing to share, and the same trajectories
        alone = Denoising(
            denoiser, [make_rows(denoiser, PROMPTS[:2], config(settings), 6, 0)[6 * prompt + k]], config(settings)
        ).run()[0]
        t = together[6 * prompt + k]
        assert alone.canvas_ids == t.canvas_ids
        assert alone.confidence == pytest.approx(t.confidence, abs=1e-5)
        assert alone.ledger.nfe == alone.ledger.sequential_steps == t.ledger.nfe == t.ledger.sequential_steps
    handle.remove()
    # As many rows as there are different pasts, step by step.
    kinds = 0
    for step in range(6):
        now = step if cache == "none" else step - step % 2  # a block is two steps; its first pass computes all anew
        kinds += len({(t.prompt, *(tuple(t.canvas_at(s)) for s in range(now, step + 1))) for t in together})
    assert sum(map(len, shared)) == kinds < len(calls)


@pytest.mark.parametrize("family", [BLOCK_CAUSAL, CONTEXT_CAUSAL], ids=lambda family: family.name)
def test_batching_order_and_n_do_not_matter(family):
    denoiser = random_denoiser("qwen3", family=family)
    settings = {"block_length": 4, "cache": "block", "policy": "threshold", "threshold": 0.5, "temperature": 1.0}
    together = tokens(run(denoiser, n=3, **settings))
    assert together == [ids for prompt in PROMPTS for ids in tokens(run(denoiser, [prompt], n=3, **settings))]
    assert tokens(run(denoiser, n=1, **settings)) == together[::3]
    backwards = tokens(run(denoiser, PROMPTS[::-1], n=3, batch_size=5, **settings))
    assert [ids for i in (3, 2, 1, 0) for ids in backwards[3 * i : 3 * i + 3]] == together


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_approximate_caches_are_exact_on_the_first_step_of_each_block(cache):
    denoiser = random_denoiser("qwen3")
    for settings in ({"policy": "threshold", "threshold": 0.0, "block_length": 4}, {"block_length": 1}):
        assert tokens(run(denoiser, cache=cache, **settings)) == tokens(run(denoiser, **settings))
    plain, cached = run(denoiser, block_length=4), run(denoiser, block_length=4, cache=cache)
    # From the second step on they are not, or this would show nothing.
    assert tokens(cached) != tokens(plain)
    for a, b in zip(plain, cached, strict=True):
        first = [i for i in range(4) if a.commit_step[i] == 1]
        assert [a.canvas_ids[i] for i in first] == [b.canvas_ids[i] for i in first]
        assert [a.confidence[i] for i in first] == pytest.approx([b.confidence[i] for i in first], abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_approximate_caches_are_the_plain_loop(cache):
    """Against keys that are kept as lists of hidden columns: the model run with stale tokens where the cache is stale."""
    denoiser, prompt = random_denoiser("llama"), PROMPTS[0]
    model, (ids,) = denoiser.model, denoiser.encode([prompt])
    start, ids = len(ids), ids + [denoiser.mask_id] * G
    length = len(ids)
    for low in range(start, length, 4):
        high, past = low + 4, None
        for step in range(4):
            if step == 0:
                out = model(input_ids=torch.tensor([ids]), use_cache=True)
                past = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
                logits = out.logits[0]
            else:
                last = length if cache == "prefix" else high
                stale = torch.ones(length, dtype=torch.bool)
                stale[low:last] = False
                kept = type(out.past_key_values)(config=model.config)
                for i, (keys, values) in enumerate(past):
                    kept.update(keys[:, :, stale], values[:, :, stale], i)
                part = model(
                    input_ids=torch.tensor([ids[low:last]]),
                    past_key_values=kept,
                    use_cache=True,
                    position_ids=torch.arange(low, last)[None],
                    attention_mask=torch.zeros(1, 1, last - low, length),
                ).logits[0]
                logits = torch.zeros(length, part.shape[-1])
                logits[low:last] = part
            logits[:, [denoiser.mask_id, denoiser.pad_id]] = -torch.inf
            confidence, token = logits.softmax(-1).max(-1)
            best = max((i for i in range(low, high) if ids[i] == denoiser.mask_id), key=lambda i: float(confidence[i]))
            ids[best] = int(token[best])
    # Beside rows of other lengths, so that padding is there too.
    assert run(denoiser, block_length=4, cache=cache)[0].canvas_ids == tuple(ids[start:])


DEFERRED = {"policy": "deferred", "threshold": 0.5, "window": 3, "window_limit": 5}


def test_the_interval_cache_at_its_limits():
    denoiser = random_denoiser("qwen3")
    plain = run(denoiser, **DEFERRED)
    assert tokens(run(denoiser, cache="interval", refresh=1, **DEFERRED)) == tokens(plain)
    cached, rows, cells = counted(denoiser, cache="interval", **DEFERRED)
    assert tokens(cached) != tokens(plain)
    assert sum(t.ledger.nfe for t in cached) == rows
    assert sum(t.ledger.tokens_forwarded for t in cached) == cells
    assert cells < sum(t.ledger.tokens_forwarded for t in plain) / 2
    at_once = {**DEFERRED, "threshold": 0.0, "window": 4, "block_length": 4}
    assert tokens(run(denoiser, cache="interval", **at_once)) == tokens(run(denoiser, **at_once))


def test_interval_windows_are_each_rows_own():
    denoiser = random_denoiser("qwen3")
    settings = {**DEFERRED, "cache": "interval", "refresh": 5, "temperature": 1.0}
    together = run(denoiser, n=3, **settings)
    assert tokens(together) == [ids for prompt in PROMPTS for ids in tokens(run(denoiser, [prompt], n=3, **settings))]
    assert tokens(run(denoiser, n=3, batch_size=1, **settings)) == tokens(together)


@torch.no_grad()
@pytest.mark.parametrize("refresh", [4, None])
def test_the_interval_cache_is_the_plain_loop(refresh):
    """Against one row at a time, whose keys are columns that are taken out and put back."""
    denoiser, expected, passes = random_denoiser("llama"), [], 0
    for ids in denoiser.encode(PROMPTS):
        start, ids = len(ids), ids + [denoiser.mask_id] * G
        kept, since, before = None, 0, None
        while denoiser.mask_id in ids:
            low = ids.index(denoiser.mask_id)
            open_ = [i for i in range(low, min(low + 5, len(ids))) if ids[i] == denoiser.mask_id][:3]
            if kept is None or (refresh is not None and since >= refresh):
                columns, since = torch.arange(len(ids)), 0
            else:
                columns = torch.arange(min(low, before[0]) - 2, min(len(ids), max(open_[-1] + 1, before[1]) + 2))
                passes += 1
            before = (low, open_[-1] + 1)
            stale = torch.ones(len(ids), dtype=torch.bool)
            stale[columns] = False
            given = DynamicCache(config=denoiser.model.config)
            for i, (keys, values) in enumerate(kept or []):
                given.update(keys[:, :, stale], values[:, :, stale], i)
            out = denoiser.model(
                input_ids=torch.tensor([ids])[:, columns],
                position_ids=columns[None],
                past_key_values=given,
                use_cache=True,
                attention_mask=torch.zeros(1, 1, len(columns), len(ids)),
            )
            order = torch.cat([stale.nonzero()[:, 0], columns]).argsort()
            kept = [(layer.keys[:, :, order], layer.values[:, :, order]) for layer in given.layers]
            logits = torch.zeros(len(ids), out.logits.shape[-1])
            logits[columns] = out.logits[0]
            logits[:, [denoiser.mask_id, denoiser.pad_id]] = -torch.inf
            confidence, token = logits.softmax(-1).max(-1)
            sure = [i for i in open_ if confidence[i] >= 0.5] or [max(open_, key=lambda i: float(confidence[i]))]
            for i in sure:
                ids[i] = int(token[i])
            since += len(sure)
        expected.append(tuple(ids[start:]))
    assert passes > len(PROMPTS) * 3
    assert tokens(run(denoiser, cache="interval", refresh=refresh, **DEFERRED)) == expected


def reference_extended(denoiser, prompt, block, most, threshold, masks, span):
    """DCD (2601.02076) in blocks that grow, one unpadded row on lists; also how many steps were thrown away."""
    ids, mask = denoiser.encode([prompt])[0], denoiser.mask_id
    start, passes, thrown = len(ids), 0, 0
    ids, edges = (
        ids + [mask] * G,
        list(range(block, start + 1, block)),
    )  # where blocks begin, the canvas's first inside
    stop = (edges[-1] if edges else 0) + block
    low, limit = start, min(stop + most, start + G)
    while mask in ids:
        while mask in ids[low:stop]:
            number = torch.bucketize(torch.arange(len(ids)), torch.tensor([*edges, stop]), right=True)
            token, confidence = greedy_rows(denoiser, ids, number[None] <= number[:, None], denoiser.family.shifted)
            passes += 1
            left = ids.index(mask)
            right = max(i for i in range(left, min(left + span, stop) + 1) if ids[left:i].count(mask) <= masks)
            open_ = [i for i in range(left, right) if ids[i] == mask]
            sure = [i for i in open_ if confidence[i] >= threshold] or [max(open_, key=lambda i: float(confidence[i]))]
            if right == stop < limit and min(confidence[i] for i in sure) < 0.3:
                stop, thrown = min(stop + 4, limit), thrown + 1
                continue
            for i in sure:
                ids[i] = int(token[i])
        edges.append(stop)
        low, stop = stop, min(stop + block, start + G)
        limit = min(stop + most, start + G)
    return tuple(ids[start:]), passes, thrown


@torch.no_grad()
@pytest.mark.parametrize("family", [BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED], ids=lambda family: family.name)
def test_extension_is_the_plain_loop(family):
    denoiser = random_denoiser("qwen3", sharpness=3.0, family=family)
    settings = {"policy": "deferred", "threshold": 0.4, "window": 3, "window_limit": 3, "block_length": 4}
    for most in (4, 7):
        expected = [reference_extended(denoiser, prompt, 4, most, 0.4, 3, 3) for prompt in PROMPTS]
        assert max(thrown for *_, thrown in expected) > 1
        drawn = run(denoiser, extension=most, **settings)
        assert [(t.canvas_ids, t.ledger.nfe) for t in drawn] == [(ids, passes) for ids, passes, _ in expected]
    assert tokens(drawn) != tokens(run(denoiser, **settings))


@pytest.mark.parametrize("family", [BLOCK_CAUSAL, CONTEXT_CAUSAL], ids=lambda family: family.name)
def test_extension_keeps_the_block_cache_exact_and_rows_apart(family):
    denoiser = random_denoiser("qwen3", sharpness=3.0, family=family)
    settings = {
        "policy": "deferred",
        "threshold": 0.4,
        "window": 3,
        "block_length": 4,
        "extension": 8,
        "temperature": 1.0,
    }
    plain = run(denoiser, n=2, **settings)
    cached = run(denoiser, n=2, cache="block", **settings)
    assert tokens(cached) == tokens(plain) != tokens(run(denoiser, n=2, **{**settings, "extension": None}))
    assert [t.commit_step for t in cached] == [t.commit_step for t in plain]
    assert tokens(run(denoiser, n=2, batch_size=1, **settings)) == tokens(plain)
    assert any(t.ledger.nfe > len(set(t.commit_step)) for t in plain)  # steps that were thrown away


def test_logits_are_formed_for_what_may_commit_alone():
    denoiser, positions = random_denoiser(), []
    handle = denoiser.model.lm_head.register_forward_hook(
        lambda module, args, out: positions.append(out.shape[:-1].numel())
    )
    run(denoiser, PROMPTS[:1], block_length=4)
    handle.remove()
    assert positions == [4, 3, 2, 1] * (G // 4)


def test_blocks_tile_the_canvas():
    assert list(blocks(12, 4)) == [(0, 4), (4, 8), (8, 12)]
    assert list(blocks(12, 4, lead=3)) == [(0, 1), (1, 5), (5, 9), (9, 12)]
    assert list(blocks(12, 12, lead=3)) == [(0, 12)]


def test_what_does_not_fit_a_layout_is_refused():
    full, causal = random_denoiser(), random_denoiser(family=CONTEXT_CAUSAL)
    with pytest.raises(ValueError, match=r"cache='block' is not for bidirectional models.*none, prefix, dual"):
        run(full, cache="block")
    with pytest.raises(ValueError, match=r"cache='dual' is not for context_causal models.*none, block"):
        run(causal, cache="dual")
    with pytest.raises(ValueError, match=r"extension=16: every position of bidirectional models sees"):
        run(full, policy="deferred", threshold=0.9, extension=16, block_length=4)
    settings = {"policy": "deferred", "threshold": 0.9, "extension": 16}
    with pytest.raises(ValueError, match=r"extension=16 would be ignored: the canvas of 12 is one block"):
        run(random_denoiser(family=replace(BLOCK_CAUSAL, block_length=32)), **settings)
    assert run(
        random_denoiser(family=replace(BLOCK_CAUSAL, block_length=4)), **settings
    )  # blocks that the model brings
    for disguise in (without_mask, dream_like):
        with pytest.raises(ValueError, match=r"cache='dual': this model's own code .*cache='none'"):
            run(disguise(full), cache="dual")
    with pytest.raises(ValueError, match=r"length='dynamic'.*length='fixed'"):
        run(causal, length="dynamic", max_length=24, policy="threshold", threshold=0.9, stop_at_eos=True)
    with pytest.raises(ValueError, match="do not attend fully"):
        causal.forward_logits(causal.model, torch.tensor([[1, 2]]), torch.tensor([[1, 1]]))


def test_a_sharded_model_that_was_sampled_from_is_trained():
    """FSDP keeps what its first pass gathers: gathered in inference mode, it would be of no use to training."""
    denoiser, config = random_denoiser(), SamplerConfig(canvas_length=8)
    (expected,) = sample(denoiser, [[17, 93]], config)
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    try:
        mesh = init_device_mesh("cpu", (1,))
        for layer in denoiser.model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(denoiser.model, mesh=mesh)
        (drawn,) = sample(denoiser, [[17, 93]], config)
        assert drawn.canvas_ids == expected.canvas_ids
        denoiser.model.train()(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
        assert all(parameter.grad is not None for parameter in denoiser.model.parameters())
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("attention", ["flash_attention_2", "kernels-community/flash-attn"])
def test_attention_that_takes_every_mask_for_padding_is_asked_for_no_other(attention):
    full, blocks_ = random_denoiser(), random_denoiser(family=BLOCK_CAUSAL)
    for denoiser in (full, blocks_):
        denoiser.model.config._attn_implementation_internal = attention
    with pytest.raises(ValueError, match=rf"^attn_implementation='{attention}': a block_causal model needs masks"):
        Denoiser(blocks_.model, blocks_.tokenizer, BLOCK_CAUSAL)
    flash = Denoiser(full.model, full.tokenizer)
    with pytest.raises(ValueError, match="cache='dual': this model's own code or its attention does not"):
        sample(flash, [[1, 2]], SamplerConfig(canvas_length=8, block_length=4, cache="dual"))
    with pytest.raises(
        ValueError, match=rf"^attn_implementation='{attention}': a teacher, which reads from the left,"
    ):
        Teacher(full, full.model)


def test_families_are_known_by_their_type():
    assert family_of({"model_type": "sdar"}).layout == "block_causal"
    assert family_of({"model_type": "Fast_dLLM_Qwen"}).shifted
    assert {family.layout for family in FAMILIES.values()} == {*EXACT, "encoder_decoder"}
    assert not is_exact("dual", family_of({"model_type": "llama"}))
    assert is_exact("block", family_of({"model_type": "llada2_moe"}))
