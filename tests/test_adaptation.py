"""Adaptation: the trainer, its losses and its states against oracles, on models with random weights."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from adaptation_runs import ANSWER, BLOCK, PROMPTS, ROWS, G, batch_of, settings, trainer_of
from datasets import Dataset
from lockstitch.rl.adaptation import AdaptationTrainer
from lockstitch.rl.adaptation_losses import certainty_loss, forward_kl
from lockstitch.rl.adaptation_states import Teacher, drawn_states
from lockstitch.rl.lora import lora_config
from lockstitch.rl.masking import noise_generator
from lockstitch.rl.sft import halves_logits
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.families import (
    BLOCK_CAUSAL,
    CONTEXT_CAUSAL,
    IDLM,
    TIDAR,
)
from lockstitch.sampling.loop import sample
from models import random_denoiser, tokenizer

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


@pytest.mark.parametrize("gated", [False, True])
def test_initial_rollouts_are_those_of_the_weights_that_training_began_with(gated, tmp_path):
    """Below an adapter or by a copy; rollouts of the model as it stands follow its weights."""
    prompts, texts = [{"prompt": tokenizer().decode(p)} for p in PROMPTS], {}
    for text in ("rollouts", "initial_rollouts"):
        layout = {"rollout_threshold": 2.0, "rollout_temperature": 0.0, "loss_weighting": "mean"}
        trainer = trainer_of(CONTEXT_CAUSAL, tmp_path, rows=prompts, gated=gated, text=text, **layout)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
        before = trainer._roll_out(batch, (0,))[0]["input_ids"]
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        texts[text] = before, trainer._roll_out(batch, (0,))[0]["input_ids"]
    assert torch.equal(*texts["initial_rollouts"])
    assert torch.equal(texts["initial_rollouts"][0], texts["rollouts"][0])
    assert not torch.equal(*texts["rollouts"])


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
        seen.append(args[8].tolist())
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


def test_attention_is_annealed_until_it_is_the_layout_s(tmp_path):
    """The same masks are drawn with and without, so that the losses differ by what attention shows alone."""
    plain = trainer_of(CONTEXT_CAUSAL, tmp_path, full_mask_fraction=0.5)
    annealed = trainer_of(CONTEXT_CAUSAL, tmp_path, full_mask_fraction=0.5, attention_annealing_steps=4)
    for step in range(6):
        losses = []
        for trainer in (plain, annealed):
            trainer.state.global_step = step
            losses.append(loss_of(trainer)[0].item())
        assert (losses[0] == losses[1]) == (step >= 4)


@pytest.mark.parametrize(("steps", "says"), [(4, "in 4 steps attention shows 75 % of what follows"), (5, None)])
def test_a_run_that_ends_in_annealed_attention_says_so(steps, says, tmp_path, caplog):
    trainer = trainer_of(CONTEXT_CAUSAL, tmp_path, attention_annealing_steps=4)
    trainer.state.max_steps = steps
    trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert (says is None) == ("attention_annealing_steps" not in caplog.text)
    assert says is None or says in caplog.text


def test_a_gate_may_learn_from_what_lies_below_it_with_layers_that_run_twice(tmp_path):
    """The teacher is the same model without its adapter: it must not run between the student's pass and its gradient."""
    losses = []
    for twice in (False, True):
        same = {"objective": "distillation", "gated": True, "max_steps": 2, "per_device_train_batch_size": 3}
        trainer = trainer_of(BLOCK_CAUSAL, tmp_path, gradient_checkpointing=twice, logging_steps=1, **same)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


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


def test_a_teacher_may_have_more_rows_than_the_student_and_not_fewer():
    denoiser = random_denoiser("qwen3", family=BLOCK_CAUSAL)
    own = denoiser.model.config.vocab_size
    same, larger, smaller = (copy.deepcopy(denoiser.model) for _ in range(3))
    larger.resize_token_embeddings(own + 5)
    smaller.resize_token_embeddings(own - 1)
    batch = batch_of()
    asked, real = batch["labels"] != -100, batch["attention_mask"].bool()
    said = [Teacher(denoiser, model).logits(None, batch["input_ids"], real, asked) for model in (same, larger)]
    torch.testing.assert_close(*said)
    with pytest.raises(
        ValueError, match=f"the teacher has a vocabulary of {own - 1} tokens, the student one of {own}"
    ):
        Teacher(denoiser, smaller)


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
