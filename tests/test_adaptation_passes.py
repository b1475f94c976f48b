"""Adaptation: schedules and losses by hand, masks and passes by brute force, on models with random weights."""

import copy
import itertools

import pytest
import torch
from adaptation_runs import CAUSAL, PROMPTS, ROWS, G, batch_of, every_layout
from likelihoods import close
from lockstitch.rl.adaptation_losses import (
    block_at,
    certainty_loss,
    forward_kl,
    mean_of_rows,
    share_at,
    with_next_token,
)
from lockstitch.rl.adaptation_states import Teacher
from lockstitch.rl.packing import Later, block_of_column, packed_pass
from lockstitch.rl.sft import halves_logits
from lockstitch.sampling.families import (
    TIDAR,
)
from models import random_denoiser

# --- schedules and losses --------------------------------------------------------------------------------------------


def test_blocks_double_from_one():
    steps = (0, 99, 100, 200, 499, 500, 5000, 10**9)
    assert [block_at(step, 32, 100) for step in steps] == [1, 1, 2, 4, 16, 32, 32, 32]
    assert [block_at(step, 6, 1) for step in range(5)] == [1, 2, 4, 6, 6]


def test_divergence_is_by_hand_and_of_the_most_likely_a_lower_bound():
    teacher, student = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0)).mul(2)
    p, q = teacher.softmax(-1), student.softmax(-1)
    whole = (p * (p / q).log()).sum(-1)
    close(forward_kl(teacher, student), whole)
    bounds = [forward_kl(teacher, student, k) for k in (1, 4, 8, 9)]
    for lower, upper in itertools.pairwise(bounds):
        assert (lower <= upper + 1e-6).all()
    close(bounds[-2], whole)  # one token is left, and is all of the rest
    first = p.argmax(-1, keepdim=True)
    p1, q1 = p.gather(-1, first)[:, 0], q.gather(-1, first)[:, 0]
    close(bounds[0], p1 * (p1 / q1).log() + (1 - p1) * ((1 - p1) / (1 - q1)).log())
    close(forward_kl(teacher, teacher, 3), torch.zeros(5))


def test_rows_weigh_the_same_however_many_positions_they_have():
    value, row = torch.tensor([1.0, 3.0, 10.0]), torch.tensor([0, 0, 2])
    assert mean_of_rows(value, row, 4) == 6.0
    assert mean_of_rows(value[:0], row[:0], 2) == 0.0


def test_certainty_moves_what_is_right_alone():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5], [3.0, 2.9, 0.0]], requires_grad=True)
    token = torch.tensor([0, 2, 0])  # the second is predicted wrong
    loss = certainty_loss(logits, token, temperature=0.5)
    p = (logits.detach()[[0, 2]] / 0.5).softmax(-1)
    close(loss.detach(), -(p * p.log()).sum(-1).mean())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[1].any()
    assert gradient[0].any()
    assert gradient[2].any()
    assert certainty_loss(logits, torch.tensor([2, 0, 2])) == 0.0


def test_the_next_token_loss_beside_the_other():
    diffusion, following = torch.tensor(3.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    assert with_next_token(diffusion, following, "sum", 0.5) == 3.25
    assert with_next_token(diffusion, following, "mean", 3.0) == (3 * 0.5 + 3) / 4
    balanced = with_next_token(diffusion, following, "balanced")
    assert balanced.item() == pytest.approx(6.0)
    assert [g.item() for g in torch.autograd.grad(balanced, (diffusion, following))] == pytest.approx([1.0, 6.0])


# --- masks and passes ------------------------------------------------------------------------------------------------


@every_layout
@pytest.mark.parametrize("blocks", [[1, 1, 1], [2, 2, 2], [4, 8, 3]], ids=str)
def test_masks_are_those_of_the_definition(family, blocks):
    """Each row's own block length, and every pair of columns: who sees whom, from the definition of the layout."""
    batch, width = batch_of(), max(map(len, PROMPTS))
    real, ids = batch["attention_mask"].bool(), batch["input_ids"]
    block = torch.tensor(blocks)
    packed = packed_pass(
        ids[:, :width], real[:, :width], ids[:, width:], ids[:, width:] + 100, block, family, torch.float32
    )
    mask = packed.arguments["attention_mask"][:, 0] == 0
    number = block_of_column(real[:, :width], G, block, family.layout)
    total = packed.arguments["input_ids"].shape[1]
    half = width + G - packed.low
    column = [*range(packed.high), *range(packed.low, width + G), *range(packed.low, width + G)]
    noised = [k >= total - half for k in range(total)]
    for row, prompt in enumerate(PROMPTS):
        lead = len(prompt) % blocks[row] if family.layout == "block_causal" and blocks[row] != G else 0
        start = width - lead
        assert [int(n) for n in number[row]] == [(c - start) // blocks[row] for c in range(width + G)]
        for query in range(total):
            if not real[row, column[query]] or (query < packed.high) != (number[row, column[query]] < 0):
                continue  # padding, and what stands in the pass's other part for this row
            for key in range(total):
                q, k = column[query], column[key]
                there = bool(real[row, k]) and (key < packed.high) == bool(number[row, k] < 0)
                bq, bk = int(number[row, q]), int(number[row, k])
                if noised[query]:
                    inside = bk == bq and (family.layout != "causal" or k <= q)
                    sees = inside if noised[key] else bk < bq
                elif family.layout == "block_causal":
                    sees = not noised[key] and bk <= bq
                else:
                    sees = not noised[key] and k <= q
                assert bool(mask[row, query, key]) == (sees and there), (row, query, key)


@every_layout
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_attention_that_is_annealed_shows_a_share_of_what_follows(family, share):
    """Every pair of columns: those that look back as the layout says, those that look ahead as the generator drew them."""
    batch, width = batch_of(), max(map(len, PROMPTS))
    real, ids = batch["attention_mask"].bool(), batch["input_ids"]
    given = (ids[:, :width], real[:, :width], ids[:, width:], ids[:, width:] + 100, 4, family, torch.float32)
    layout = packed_pass(*given)
    annealed = packed_pass(*given, later=Later(share, torch.Generator().manual_seed(3)))
    column = [*range(layout.high), *range(layout.low, width + G), *range(layout.low, width + G)]
    before, after = ((one.arguments["attention_mask"][:, 0] == 0).tolist() for one in (layout, annealed))
    drawn = (torch.rand(len(column), len(column), generator=torch.Generator().manual_seed(3)) < share).tolist()
    ahead = 0
    for row, query, key in itertools.product(range(len(PROMPTS)), range(len(column)), range(len(column))):
        looks_ahead = column[key] > column[query]
        assert after[row][query][key] == (before[row][query][key] and (not looks_ahead or drawn[query][key]))
        ahead += before[row][query][key] and looks_ahead
    assert (ahead > 0) == (family.layout != "causal")


def test_the_share_of_what_follows_rises_to_one():
    assert [share_at(step, 4) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert share_at(0, None) == 1.0


@CAUSAL
@torch.no_grad()
def test_the_clean_half_is_the_autoregressive_model(family):
    """Its logits, of every token of the canvas, are those of a plain causal pass over the row alone; rows are padded."""
    denoiser = random_denoiser("qwen3", family=family)
    batch = batch_of()
    canvas = batch["labels"] != -100
    noised = batch["input_ids"].masked_fill(canvas, denoiser.mask_id)
    _, found = halves_logits(
        denoiser, denoiser.model, batch["input_ids"], noised, batch["attention_mask"], canvas, canvas, G, 4
    )
    expected = [
        denoiser.model(input_ids=torch.tensor([row["input_ids"]])).logits[0, len(p) - 1 : -1]
        for row, p in zip(ROWS, PROMPTS, strict=True)
    ]
    close(found, torch.cat(expected))


@torch.no_grad()
def test_the_masks_of_tidar_see_nothing_of_their_own_block():
    """Another clean token in block k leaves what masks of blocks up to k say, and changes what those behind say."""
    denoiser = random_denoiser("qwen3", family=TIDAR)
    batch = batch_of()
    canvas, width = batch["labels"] != -100, max(map(len, PROMPTS))
    noised = batch["input_ids"].masked_fill(canvas, denoiser.mask_id)

    def masks(ids):
        said, _ = halves_logits(denoiser, denoiser.model, ids, noised, batch["attention_mask"], canvas, canvas, G, 2)
        return said.view(len(ROWS), G, -1)

    plain = masks(batch["input_ids"])
    for position in range(G):
        other = batch["input_ids"].clone()
        other[:, width + position] = 30
        moved = (masks(other) - plain).abs().amax((0, 2))
        behind = 2 * (position // 2) + 2
        assert not moved[:behind].any()
        assert (moved[behind:] > 0).all()


@CAUSAL
@torch.no_grad()
def test_the_teacher_s_word_is_one_causal_pass(family):
    """What it says by a pass over the text is what the clean half of the student's own two halves would say."""
    denoiser = random_denoiser("qwen3", family=family)
    batch = batch_of()
    canvas, real = batch["labels"] != -100, batch["attention_mask"].bool()
    asked = canvas & (torch.rand(canvas.shape, generator=torch.Generator().manual_seed(0)) < 0.5)
    teacher = Teacher(denoiser, copy.deepcopy(denoiser.model))
    found = teacher.logits(None, batch["input_ids"], real, asked)
    noised = batch["input_ids"].masked_fill(canvas, denoiser.mask_id)
    _, expected = halves_logits(
        denoiser, denoiser.model, batch["input_ids"], noised, batch["attention_mask"], asked, asked, G, 4
    )
    close(found, expected)
