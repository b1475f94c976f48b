"""From autoregressive to diffusion: schedules, masks, losses and states against oracles, on models with random weights."""

import copy
import itertools
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from likelihoods import close
from lockstitch.recipes.adapt import MASK, is_diffusion, with_mask_token
from lockstitch.rl.adaptation import AdaptationTrainer
from lockstitch.rl.adaptation_config import AdaptationConfig
from lockstitch.rl.adaptation_losses import block_at, certainty_loss, forward_kl, mean_of_rows, with_next_token
from lockstitch.rl.adaptation_states import Teacher, drawn_states
from lockstitch.rl.canvas_data import CanvasCollator, prompts_alone, text_canvases
from lockstitch.rl.lora import lora_config
from lockstitch.rl.masking import noise_generator
from lockstitch.rl.packing import block_of_column, packed_pass
from lockstitch.rl.sft import halves_logits
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.families import (
    BIDIRECTIONAL,
    BLOCK_CAUSAL,
    BLOCK_CAUSAL_SHIFTED,
    CONTEXT_CAUSAL,
    IDLM,
    LLADA,
    TIDAR,
)
from lockstitch.sampling.loop import sample
from models import random_denoiser, tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

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


# --- the trainer -----------------------------------------------------------------------------------------------------


def loss_of(trainer, batch=None):
    """The loss of a batch, and what was logged of it."""
    trainer.state.max_steps = 10
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch_of() if batch is None else batch)
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items()}


@pytest.mark.parametrize("states", ["random", "on_policy"])
def test_distillation_of_the_parent_into_its_own_causal_path_is_zero_where_a_block_begins(states, tmp_path):
    """Blocks of one: every state is the autoregressive one, and the loss is 0, its gradient too."""
    more = {"objective": "distillation", "text": "rollouts", "states": states, "rollout_threshold": 2.0}
    prompts = [{"prompt": tokenizer().decode(p)} for p in PROMPTS]
    trainer = trainer_of(CONTEXT_CAUSAL, tmp_path, rows=prompts, **{**more, "block_length": 1})
    loss, log = loss_of(trainer, trainer.data_collator([trainer.train_dataset[i] for i in range(3)]))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert log["rollout/nfe_per_token"] == 1.0
    gradients = torch.autograd.grad(
        loss, [p for p in trainer.model.parameters() if p.requires_grad], allow_unused=True
    )
    assert max(g.abs().max() for g in gradients if g is not None) < 1e-5


@torch.no_grad()
def test_distilled_from_its_own_causal_path_a_block_s_first_token_alone_loses_nothing():
    denoiser = random_denoiser("qwen3", sharpness=2.0, family=CONTEXT_CAUSAL)
    batch = batch_of()
    canvas, real = batch["labels"] != -100, batch["attention_mask"].bool()
    noised = batch["input_ids"].masked_fill(canvas, denoiser.mask_id)
    halves = batch["input_ids"], noised, batch["attention_mask"], canvas, None, G, BLOCK
    student, _ = halves_logits(denoiser, denoiser.model, *halves)
    teacher = Teacher(denoiser, copy.deepcopy(denoiser.model)).logits(None, batch["input_ids"], real, canvas)
    kl = forward_kl(teacher, student).view(len(ROWS), -1, BLOCK)
    assert kl[:, :, 0].max() < 1e-5
    assert kl[:, :, 1:].min() > 1e-3


def test_greedy_decoding_at_block_one_is_the_parent_s():
    denoiser = random_denoiser("qwen3", family=CONTEXT_CAUSAL)
    (drawn,) = sample(denoiser, [PROMPTS[0]], SamplerConfig(G, block_length=1, cache="block", stop_at_eos=False))
    ids = list(PROMPTS[0])
    for _ in range(G):
        logits = denoiser.model(input_ids=torch.tensor([ids])).logits[0, -1]
        logits[denoiser.never_drawn] = -torch.inf
        ids.append(int(logits.argmax()))
    assert list(drawn.canvas_ids) == ids[len(PROMPTS[0]) :]


def test_a_drawn_state_is_one_of_its_trace():
    denoiser = random_denoiser("qwen3", sharpness=2.0, family=BLOCK_CAUSAL)
    config = SamplerConfig(12, block_length=4, policy="threshold", threshold=0.3, temperature=1.0, stop_at_eos=False)
    drawn = sample(denoiser, [PROMPTS[0], PROMPTS[2]], config, n=3, seed=5)
    seen = set()
    for turn in range(40):
        blocks = [t.block for t in drawn]
        for t, masked in zip(drawn, drawn_states(drawn, blocks, noise_generator(turn)), strict=True):
            for block in set(t.block):
                inside = [i for i, number in enumerate(t.block) if number == block]
                steps = sorted({t.commit_step[i] for i in inside})
                states = {step: [t.canvas_at(step - 1)[i] is None for i in inside] for step in steps}
                mine = [masked[i] for i in inside]
                assert mine in states.values()
                assert any(mine)
                seen.add((t.seed, block, tuple(mine)))
    every = {
        (t.seed, block, tuple(t.canvas_at(step - 1)[i] is None for i, n in enumerate(t.block) if n == block))
        for t in drawn
        for block in set(t.block)
        for step in {t.commit_step[i] for i, n in enumerate(t.block) if n == block}
    }
    assert seen == every  # each is drawn sooner or later
    assert len(every) > 2 * sum(len(set(t.block)) for t in drawn)


def test_what_was_never_reached_is_masked_and_given_tokens_are_not():
    trajectory = SimpleNamespace(commit_step=(0, 1, 2, -1))
    states = {tuple(drawn_states([trajectory], [[0, 0, 0, 0]], noise_generator(i))[0]) for i in range(20)}
    assert states == {(False, True, True, True), (False, False, True, True)}


def test_losses_are_put_together_as_the_settings_say(tmp_path):
    """All masked: the loss and each part of it, against logits of plain passes."""
    parts = {}
    for how, weight in (("none", None), ("sum", 0.5), ("mean", 2.0), ("balanced", None)):
        trainer = trainer_of(
            TIDAR, tmp_path, full_mask_fraction=1.0, loss_weighting="mean", ar_loss=how, ar_weight=weight
        )
        loss, log = loss_of(trainer)
        parts[how] = loss.item()
    d, n = log["loss/masked_diffusion"], log["loss/next_token"]
    assert parts == pytest.approx(
        {"none": d, "sum": d + 0.5 * n, "mean": (2 * n + d) / 3, "balanced": 2 * d}, rel=1e-5
    )
    logits = [
        trainer.model(input_ids=torch.tensor([row["input_ids"]])).logits[0, len(p) - 1 : -1]
        for row, p in zip(ROWS, PROMPTS, strict=True)
    ]
    assert n == pytest.approx(F.cross_entropy(torch.cat(logits), torch.tensor(ANSWER * 3)).item(), rel=1e-4)


def test_under_a_causal_layout_the_clean_half_alone_is_taught_the_first_tokens(tmp_path):
    trainer = trainer_of(IDLM, tmp_path, full_mask_fraction=1.0, loss_weighting="mean", certainty_weight=1.0)
    loss, log = loss_of(trainer)
    batch, width = batch_of(), max(map(len, PROMPTS))
    asked = batch["labels"] != -100
    asked[:, width::BLOCK] = False
    noised = batch["input_ids"].masked_fill(batch["labels"] != -100, trainer._denoiser.mask_id)
    logits, _ = halves_logits(
        trainer._denoiser, trainer.model, batch["input_ids"], noised, batch["attention_mask"], asked, None, G, BLOCK
    )
    token = batch["input_ids"][asked]
    expected = F.cross_entropy(logits, token)
    assert log["loss/masked_diffusion"] == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() == pytest.approx((expected + certainty_loss(logits, token)).item(), rel=1e-5)


def test_growth_and_mixed_scales_choose_the_blocks(tmp_path, monkeypatch):
    seen = []
    import lockstitch.rl.adaptation as module

    def spy(*args):
        seen.append(args[-2].tolist())
        return halves_logits(*args)

    monkeypatch.setattr(module, "halves_logits", spy)
    trainer = trainer_of(CONTEXT_CAUSAL, tmp_path, block_growth="doubling", block_growth_steps=3)
    for step in (0, 3, 6, 100):
        trainer.state.global_step = step
        loss_of(trainer)
    assert seen == [[1] * 3, [2] * 3, [4] * 3, [4] * 3]
    mixed = trainer_of(BLOCK_CAUSAL, tmp_path, whole_canvas_fraction=0.3)
    seen.clear()
    for step in range(60):
        mixed.state.global_step = step
        loss_of(mixed)
    lengths = [length for blocks in seen for length in blocks]
    assert set(lengths) == {BLOCK, G}
    assert 0.2 < lengths.count(G) / len(lengths) < 0.4


def test_what_is_written_stays_the_parent_s_under_a_gate(tmp_path):
    trainer = trainer_of(
        IDLM,
        tmp_path,
        gated=True,
        full_mask_fraction=1.0,
        loss_weighting="mean",
        max_steps=2,
        learning_rate=1e-2,
        warmup_steps=0,
        per_device_train_batch_size=3,
        objective="masked_diffusion",
    )
    clean = torch.tensor([ROWS[2]["input_ids"]])
    drafted = torch.cat([clean, torch.full((1, 4), trainer._denoiser.mask_id)], 1)
    with torch.no_grad():
        before, drafts = trainer.model(input_ids=clean).logits, trainer.model(input_ids=drafted).logits
    trainer.train()
    trainer.model.eval()
    with torch.no_grad():
        assert torch.equal(trainer.model(input_ids=clean).logits, before)
        moved = (trainer.model(input_ids=drafted).logits - drafts)[0]
    assert not moved[: clean.shape[1]].any()
    assert moved[clean.shape[1] :].abs().max() > 1e-3
    trainer.save_model(str(tmp_path / "saved"))
    facts = json.loads((tmp_path / "saved" / "diffusion.json").read_text())
    assert (facts["family"], facts["block_length"], facts["mask_token_id"]) == (
        "idlm",
        BLOCK,
        trainer._denoiser.mask_id,
    )


def test_the_parent_below_an_adapter_is_the_teacher(tmp_path):
    denoiser = random_denoiser("qwen3", family=BLOCK_CAUSAL)
    parent = copy.deepcopy(denoiser.model)
    args = settings(tmp_path, layout="block_causal", block_length=BLOCK, objective="distillation")
    trainer = AdaptationTrainer(
        denoiser, args, None, lora_config(denoiser, 2, 4), train_dataset=Dataset.from_list(ROWS)
    )
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    batch = batch_of()
    asked, real = batch["labels"] != -100, batch["attention_mask"].bool()
    said = [Teacher(denoiser, parent).logits(None, batch["input_ids"], real, asked)]
    said.append(trainer._teacher.logits(trainer.model, batch["input_ids"], real, asked))
    assert torch.equal(*said)
    assert trainer._teacher.model is None


@torch.no_grad()
def test_the_end_and_what_follows_are_not_distilled(tmp_path):
    rows = [{"input_ids": [*PROMPTS[0], 12, 13, 1], "labels": [-100] * 3 + [12, 13, 1]}]  # then EOS up to the canvas
    counted = {}
    for end in (False, True):
        trainer = trainer_of(BLOCK_CAUSAL, tmp_path, objective="distillation", full_mask_fraction=1.0, distill_end=end)
        asks = trainer._teacher.logits
        trainer._teacher.logits = lambda *a, end=end, asks=asks: counted.update({end: int(a[-1].sum())}) or asks(*a)
        loss_of(trainer, batch_of(rows))
    assert counted == {False: 2, True: 3}


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"layout": "casual"}, "layout='casual' is not one of context_causal, block_causal, full, causal"),
        ({"layout": "causal", "shift": False}, "a causal layout predicts the next token"),
        ({"shift": True}, "shift=True would be ignored: layout=None"),
        ({"block_growth": "doubling"}, "block_growth_steps=None: block_growth='doubling' needs it"),
        ({"block_growth_steps": 5}, "block_growth_steps=5 would be ignored by block_growth='constant'"),
        ({"ar_loss": "sum"}, "ar_weight=None: ar_loss='sum' needs a weight"),
        ({"ar_loss": "balanced", "ar_weight": 0.5}, "ar_weight=0.5 would be ignored by ar_loss='balanced'"),
        ({"states": "on_policy"}, "states='on_policy' are those of rollouts"),
        ({"text": "rollouts", "canvas_length": None}, "canvas_length=None: text='rollouts' needs"),
        ({"text": "rollouts", "states": "on_policy"}, "loss_weighting='inverse_t' weighs by a mask ratio"),
        (
            {"text": "rollouts", "states": "on_policy", "objective": "distillation", "full_mask_fraction": 0.5},
            "full_mask_fraction=0.5 would be ignored by states='on_policy'",
        ),
        ({"objective": "distillation", "loss_weighting": "mean"}, "loss_weighting='mean' would be ignored"),
        ({"teacher_top_k": 16}, "teacher_top_k=16 would be ignored by objective='masked_diffusion'"),
        ({"certainty_temperature": 0.5}, "certainty_temperature=0.5 would be ignored: certainty_weight=None"),
        ({"ar_loss": "balanced", "lora_gate": True}, "ar_loss='balanced' would be ignored: under lora_gate"),
        ({"text": "rollouts", "rollout_ramp_steps": 5}, "both or neither"),
        ({"text": "rollouts", "rollout_ramp_steps": 5, "rollout_length_start": 99}, "is above canvas_length=8"),
        ({"whole_canvas_fraction": 1.5}, "whole_canvas_fraction=1.5 must be from 0 to 1"),
        ({"whole_canvas_fraction": 0.5, "canvas_length": None}, "whole_canvas_fraction needs a canvas of one length"),
        ({"certainty_weight": 0.0}, "certainty_weight=0.0 must be positive"),
        ({"rollout_threshold": 0.5}, "rollout_threshold=0.5 would be ignored by text='data'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(more, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        settings(tmp_path, **more)


@pytest.mark.parametrize(
    ("more", "own", "says"),
    [
        ({}, None, "layout=None: the model is autoregressive; say what it becomes"),
        ({"layout": "block_causal"}, None, "block_causal models need the sampler's block length"),
        ({"layout": "full", "block_length": 4}, None, "attend fully, whatever the block"),
        (
            {"layout": "block_causal", "block_length": 4, "ar_loss": "balanced"},
            None,
            "is not causal, and shows the next",
        ),
        ({"block_growth": "doubling", "block_growth_steps": 1}, LLADA, "a full layout has no blocks"),
        ({"layout": "causal", "block_length": 1}, None, "no mask is left to be trained"),
    ],
)
def test_families_that_cannot_be_are_refused(more, own, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        settings(tmp_path, **more).family(own)


def test_a_diffusion_model_keeps_its_layout(tmp_path):
    assert settings(tmp_path).family(LLADA) is not None
    assert settings(tmp_path).family(LLADA).name == "llada"
    assert settings(tmp_path, layout="full", shift=True).family(None).name == "bidirectional_shifted"
    assert settings(tmp_path, layout="context_causal", block_length=4).family(None).block_length == 4


def test_rollouts_grow_to_the_canvas(tmp_path):
    args = settings(tmp_path, text="rollouts", rollout_length_start=2, rollout_ramp_steps=4)
    lengths = [args.rollout_config(BLOCK_CAUSAL, step, 2).canvas_length for step in (0, 1, 2, 4, 9)]
    assert lengths == [2, 4, 6, 8, 8]
    assert args.rollout_config(BIDIRECTIONAL, 0, None).cache == "none"


# --- data and tokens -------------------------------------------------------------------------------------------------


def test_texts_are_cut_into_canvases():
    tok = tokenizer()
    text = "12, +7, -5"
    ids = [*tok(text)["input_ids"], tok.eos_token_id]
    rows = text_canvases(
        Dataset.from_list([{"text": text, "more": 1}, {"text": "3"}]), tok, tok.eos_token_id, 4
    ).to_list()
    back = [row["input_ids"] for row in rows]
    assert [token for piece in back[:-1] for token in piece[1:]] == ids[1:]
    assert all(before[-1] == after[0] for before, after in itertools.pairwise(back[:-1]))
    assert back[-1] == [*tok("3")["input_ids"], tok.eos_token_id]
    assert all(row["labels"] == [-100, *row["input_ids"][1:]] for row in rows)


def test_prompts_alone():
    tok = tokenizer()
    for rows in (
        [{"prompt": "1+1=", "completion": "2"}],
        [{"input_ids": [*tok("1+1=")["input_ids"], 9], "labels": [-100] * 4 + [9]}],
    ):
        (row,) = prompts_alone(Dataset.from_list(rows), tok).to_list()
        assert row["input_ids"] == tok("1+1=")["input_ids"]
        assert set(row["labels"]) == {-100}
    with pytest.raises(ValueError, match="has the columns question; rollouts need 'prompt'"):
        prompts_alone(Dataset.from_list([{"question": "1"}]), tok)


def small_qwen(rows):
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=rows,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )


def test_a_tokenizer_without_a_mask_is_taught_one():
    tok = tokenizer()
    assert with_mask_token(small_qwen(len(tok)), tok, None, True) == tok.mask_token_id
    assert with_mask_token(small_qwen(len(tok)), tok, 7, False) == 7
    for spare, whole in ((3, False), (0, True), (0, False)):
        bare = tokenizer()
        bare.mask_token = None
        model, length = small_qwen(len(bare) + spare), len(bare)
        if not spare and not whole:
            with pytest.raises(ValueError, match="an adapter cannot add one; say an unused token with mask_id"):
                with_mask_token(model, bare, None, whole)
            continue
        assert with_mask_token(model, bare, None, whole) == length
        assert bare.mask_token == MASK
        assert model.get_input_embeddings().weight.shape[0] == length + max(spare, 1)


def test_what_is_autoregressive_is_told_by_its_config():
    assert not is_diffusion({"model_type": "qwen3"})
    assert not is_diffusion({"model_type": "llama", "is_causal": True})
    assert is_diffusion({"model_type": "llama", "is_causal": False})
    assert is_diffusion({"model_type": "sdar"})
    assert is_diffusion({"model_type": "qwen3", "diffusion": {"family": "tidar"}})


def test_what_is_saved_says_what_it_became(tmp_path):
    denoiser = random_denoiser(
        "qwen3", family=settings(tmp_path, layout="context_causal", shift=False, block_length=4).family(None)
    )
    denoiser.model.save_pretrained(tmp_path / "model")
    denoiser.tokenizer.save_pretrained(tmp_path / "model")
    loaded = Denoiser.from_pretrained(str(tmp_path / "model"), device="cpu")
    assert (loaded.family.name, loaded.family.layout, loaded.family.shifted, loaded.block_length) == (
        "tidar",
        "context_causal",
        False,
        4,
    )
