"""Scoring at the output head: what plain logits of whole rows say, in every family, without ever making those logits."""

import copy

import pytest
import torch
import torch.distributed as dist
from likelihoods import gradients, plain_logp
from lockstitch.rl.head import check_head, output_head
from lockstitch.rl.scoring import Canvases, Scorer
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.families import BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED, CONTEXT_CAUSAL
from lockstitch.sampling.remote import Calling
from models import WithoutMask, dream_like, random_denoiser, without_mask
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4], [11, 12, 13, 14], [9, 8, 7]]
G, BLOCK = 8, 4


def canvases(denoiser, prompts=PROMPTS, pad=0, seed=0):
    """Random completions of prompts that are padded on the left, by `pad` columns more than they need."""
    generator = torch.Generator().manual_seed(seed)
    width = pad + max(map(len, prompts))
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    prompt = torch.tensor([[denoiser.pad_id] * (width - len(p)) + p for p in prompts])
    completion = torch.randint(5, 40, (len(prompts), G), generator=generator)
    valid = torch.arange(G) < torch.tensor([[8], [5], [8], [3]])[: len(prompts)]
    return Canvases(prompt, real, completion, valid, torch.arange(len(prompts)))


def masks(seed=1):
    noise = torch.rand(2, len(PROMPTS), G, generator=torch.Generator().manual_seed(seed))
    return noise[0] < 0.5, (noise[0] >= 0.5) & (noise[1] < 0.7)


def families():
    plain = random_denoiser("qwen3", seed=3)
    yield "bidirectional", random_denoiser("llama"), None
    yield "qwen2", random_denoiser("qwen2"), None
    yield "dream", dream_like(plain), None
    for family in (BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED, CONTEXT_CAUSAL):
        yield family.name, random_denoiser("qwen3", family=family), BLOCK
    yield "one_block", random_denoiser("qwen3", family=BLOCK_CAUSAL), G


FAMILIES = list(families())
every_family = pytest.mark.parametrize(("denoiser", "block"), [f[1:] for f in FAMILIES], ids=[f[0] for f in FAMILIES])


@every_family
@pytest.mark.parametrize("recompute", [False, True])
def test_scores_and_gradients_are_those_of_plain_logits(denoiser, block, recompute):
    c, (shown, asked) = canvases(denoiser, pad=2), masks()
    # Chunks of three places, so that most of them hold tokens of several rows.
    vocabulary = denoiser.model.config.vocab_size
    scorer = Scorer(denoiser, denoiser.model, 0.7, block_length=block, logits_at_once=3 * vocabulary)
    scored = scorer(c, shown, asked, recompute=recompute)
    rows = zip(PROMPTS, c.completion_BG.tolist(), shown.tolist(), strict=True)
    plain = torch.stack([plain_logp(denoiser, *row, block=block, temperature=0.7) for row in rows]) * asked
    torch.testing.assert_close(scored, plain, atol=1e-5, rtol=1e-5)
    assert (scored[~asked] == 0).all()
    assert scored.dtype == torch.float32
    weight = torch.linspace(-1, 2, plain.numel()).view(plain.shape)  # so that no two places pull alike
    expected = gradients(denoiser, (weight * plain).sum())
    torch.testing.assert_close(
        gradients(denoiser, (weight * scored).sum()), expected, atol=1e-5 * expected.abs().max(), rtol=1e-5
    )


@every_family
@torch.no_grad()
def test_a_row_is_scored_by_itself(denoiser, block):
    """Padding, order, and the rows beside it change nothing."""
    scorer = Scorer(denoiser, denoiser.model, block_length=block)
    c, (shown, asked) = canvases(denoiser), masks()
    together = scorer(c, shown, asked)
    torch.testing.assert_close(scorer(canvases(denoiser, pad=3), shown, asked), together, atol=1e-5, rtol=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = scorer(c.rows(order), shown[order], asked[order])
    torch.testing.assert_close(shuffled, together[order], atol=1e-5, rtol=1e-5)
    for b in range(len(c)):
        row = slice(b, b + 1)
        torch.testing.assert_close(scorer(c.rows(row), shown[row], asked[row]), together[row], atol=1e-5, rtol=1e-5)


def test_rows_that_ask_nothing_cost_nothing():
    denoiser, shapes = random_denoiser(), []
    denoiser.model.register_forward_pre_hook(lambda m, a, kw: shapes.append(kw["input_ids"].shape), with_kwargs=True)
    c, (shown, asked) = canvases(denoiser, pad=2), masks()
    asked[[1, 2, 3]] = False
    Scorer(denoiser, denoiser.model)(c, shown, asked)
    assert shapes == [(1, 3 + G)]


def test_code_that_cannot_be_trained_is_refused():
    blind = without_mask(random_denoiser())
    with pytest.raises(ValueError, match="sampled from, not trained"):
        Scorer(blind, blind.model)


@pytest.mark.parametrize("make", [random_denoiser, dream_like], ids=["bidirectional", "dream"])
def test_rows_that_are_the_same_to_the_model_are_passed_once(make):
    """Completions of two prompts, nothing of them shown: two rows, and the numbers and gradients of each by itself."""
    denoiser, shapes = make() if make is random_denoiser else make(random_denoiser()), []
    prompts = [PROMPTS[1], PROMPTS[2], PROMPTS[1], PROMPTS[2]]
    c, (_, asked) = canvases(denoiser, prompts, pad=1), masks()
    shown, weight = torch.zeros_like(asked), torch.linspace(-1, 2, asked.numel()).view(asked.shape)
    scorer = Scorer(denoiser, denoiser.model, logits_at_once=3 * denoiser.model.config.vocab_size)
    rows = [slice(b, b + 1) for b in range(len(c))]
    apart = torch.cat([scorer(c.rows(row), shown[row], asked[row]) for row in rows])
    expected = gradients(denoiser, (weight * apart).sum())
    denoiser.model.register_forward_pre_hook(lambda m, a, kw: shapes.append(kw["input_ids"].shape), with_kwargs=True)
    together = scorer(c, shown, asked)
    assert sum(rows for rows, _ in shapes) == 2
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    found = gradients(denoiser, (weight * together).sum())
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max(), rtol=1e-5)


@every_family
@torch.no_grad()
def test_low_precision_and_padding_give_numbers(denoiser, block):
    """Under autocast the mask of a padded pass overflows to -inf: no row may be all of it."""
    c, (shown, asked) = canvases(denoiser, pad=2), masks()
    scorer = Scorer(denoiser, denoiser.model, block_length=block)
    with torch.autocast("cpu", torch.bfloat16):
        low = scorer(c, shown, asked)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, scorer(c, shown, asked), atol=1.0, rtol=0.1)


def test_gradient_checkpointing_inside_a_pass_that_is_run_again_changes_nothing():
    denoiser, (shown, asked) = random_denoiser(), masks()
    scorer, c = Scorer(denoiser, denoiser.model), canvases(denoiser)
    expected = gradients(denoiser, scorer(c, shown, asked).sum())
    denoiser.model.gradient_checkpointing_enable()
    denoiser.model.train()
    for recompute in (False, True):
        found = gradients(denoiser, scorer(c, shown, asked, recompute=recompute).sum())
        torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max(), rtol=1e-5)


class Widest(TorchDispatchMode):
    """Notes the most elements of a tensor whose last axis is the vocabulary (but the head's own), forward and backward."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.vocabulary, self.elements = weight, weight.shape[0], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if (
                isinstance(value, torch.Tensor)
                and value.dim()
                and value.shape[-1] == self.vocabulary
                and (value.data_ptr() != self.weight.data_ptr())
            ):
                self.elements = max(self.elements, value.numel())
        return out


def test_logits_of_a_canvas_never_exist():
    denoiser, (shown, asked) = random_denoiser(), masks()
    vocabulary, weight = denoiser.model.config.vocab_size, denoiser.model.lm_head.weight
    weight.requires_grad_(False)  # its own gradient is as wide as the vocabulary
    scorer = Scorer(denoiser, denoiser.model, logits_at_once=2 * vocabulary)
    with Widest(weight) as widest:
        scorer(canvases(denoiser), shown, asked).sum().backward()
    assert 0 < widest.elements <= 2 * vocabulary


def test_the_head_is_left_as_it_was():
    denoiser, (shown, asked) = random_denoiser(), masks()
    head, beyond = output_head(denoiser.model), canvases(denoiser)
    beyond.completion_BG[asked] = 10**6  # a token that the head does not know
    with pytest.raises(IndexError):
        Scorer(denoiser, denoiser.model)(beyond, shown, asked)
    assert "forward" not in head.__dict__
    head.forward = own = lambda x: 2 * type(head).forward(head, x)  # as accelerate's hooks do
    c = canvases(denoiser)
    doubled = Scorer(denoiser, denoiser.model)(c, shown, asked)
    assert head.forward is own
    del head.forward
    torch.testing.assert_close(doubled, Scorer(denoiser, denoiser.model, temperature=0.5)(c, shown, asked))


def test_a_lora_model_is_scored_and_trained_through_its_wrapper():
    denoiser, (shown, asked) = random_denoiser(), masks()
    c, base = canvases(denoiser), Scorer(denoiser, denoiser.model)
    before = base(c, shown, asked).detach()
    names = ["q_proj", "lm_head"]
    model = get_peft_model(denoiser.model, LoraConfig(r=2, target_modules=names, init_lora_weights=False))
    scorer = Scorer(denoiser, model)
    scored = scorer(c, shown, asked, recompute=True)
    rows = zip(PROMPTS, c.completion_BG.tolist(), shown.tolist(), strict=True)
    plain = torch.stack([plain_logp(denoiser, *row) for row in rows]) * asked
    torch.testing.assert_close(scored, plain, atol=1e-5, rtol=1e-5)
    expected = gradients(denoiser, plain.sum())
    torch.testing.assert_close(
        gradients(denoiser, scored.sum()), expected, atol=1e-5 * expected.abs().max(), rtol=1e-5
    )
    with model.disable_adapter():
        torch.testing.assert_close(scorer(c, shown, asked), before, atol=1e-5, rtol=1e-5)


def test_ddp_keeps_count_of_passes_that_are_run_again(tmp_path):
    """Two passes before each backward pass, both recomputed in it, for two optimiser steps."""
    denoiser, (shown, asked) = random_denoiser(), masks()
    alone = Denoiser(copy.deepcopy(denoiser.model), denoiser.tokenizer)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(denoiser.model)
        for d, model in ((denoiser, wrapped), (alone, alone.model)):
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            for _ in range(2):
                scorer, c = Scorer(d, model), canvases(d)
                scores = [scorer(c, s, a, recompute=True).sum() for s, a in ((shown, asked), (asked, shown))]
                optimizer.zero_grad()
                sum(scores).backward()
                optimizer.step()
    finally:
        dist.destroy_process_group()
    for a, b in zip(denoiser.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_rank_that_asks_nothing_still_passes():
    denoiser, (shown, asked) = random_denoiser(), masks()
    out = Scorer(denoiser, denoiser.model)(canvases(denoiser), shown, asked & False)
    assert not out.any()
    assert not gradients(denoiser, out.sum()).any()  # zeros, where a graph without the model would raise


class Capped(WithoutMask):
    """Logits that are changed after the head."""

    def forward(self, input_ids):
        out = super().forward(input_ids)
        out.logits = 3 * torch.tanh(out.logits / 3)
        return out


def test_a_model_that_changes_its_logits_after_the_head_is_found():
    for _, denoiser, _ in FAMILIES:
        check_head(denoiser)
    calling = Calling(keeps_columns=False, keeps_keys=False)
    capped = Denoiser(Capped(random_denoiser().model), random_denoiser().tokenizer, calling=calling)
    with pytest.raises(ValueError, match="Capped does not answer with what its output head says"):
        check_head(capped)


def test_what_cannot_be_scored_is_refused():
    denoiser, causal = random_denoiser(), random_denoiser(family=BLOCK_CAUSAL)
    with pytest.raises(ValueError, match="temperature=0"):
        Scorer(denoiser, denoiser.model, 0)
    with pytest.raises(ValueError, match="block_length=4: bidirectional models attend fully"):
        Scorer(denoiser, denoiser.model, block_length=4)
    with pytest.raises(ValueError, match="block_length=None: block_causal models need"):
        Scorer(causal, causal.model)
    c, (shown, asked) = canvases(denoiser), masks()
    c.completion_BG[0, asked[0].nonzero()[0]] = denoiser.mask_id
    with pytest.raises(ValueError, match="never drawn"):
        Scorer(denoiser, denoiser.model)(c, shown, asked)
    with pytest.raises(ValueError, match="names no output head"):
        Scorer(denoiser, torch.nn.Linear(1, 1))(canvases(denoiser), shown, asked)
