"""Adaptation: settings that are refused, data, tokens, and what is saved."""

import itertools

import pytest
from adaptation_runs import settings, trainer_of
from datasets import Dataset
from lockstitch.recipes.adapt import MASK, is_diffusion, with_mask_token
from lockstitch.rl.canvas_data import prompts_alone, text_canvases
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.families import (
    BIDIRECTIONAL,
    BLOCK_CAUSAL,
    CONTEXT_CAUSAL,
    LLADA,
)
from models import random_denoiser, tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

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
        ({"text": "initial_rollouts", "canvas_length": None}, "canvas_length=None: text='initial_rollouts' needs"),
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
        ({"attention_annealing_steps": 0}, "attention_annealing_steps=0 must be at least 1"),
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
        ({"attention_annealing_steps": 5}, LLADA, "attention_annealing_steps=5 would be ignored: a full layout"),
        (
            {"layout": "causal", "block_length": 4, "attention_annealing_steps": 5},
            None,
            "attention_annealing_steps=5 would be ignored: a causal layout",
        ),
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


def test_blocks_that_grow_fit_the_canvas_of_rollouts_at_every_length(tmp_path):
    grown = {
        "text": "rollouts",
        "objective": "distillation",
        "canvas_length": 18,
        "layout": "block_causal",
        "block_length": 6,
    }
    args = settings(tmp_path, **grown)
    args.check_rollouts(args.family(None), 6)
    args = settings(tmp_path, **grown, block_growth="doubling", block_growth_steps=2)
    with pytest.raises(ValueError, match="block_growth='doubling': block_length=4 does not divide canvas_length=18"):
        args.check_rollouts(args.family(None), 6)


def test_rollouts_grow_to_the_canvas(tmp_path):
    args = settings(tmp_path, text="rollouts", rollout_length_start=2, rollout_ramp_steps=4)
    lengths = [args.rollout_config(BLOCK_CAUSAL, step, 2).canvas_length for step in (0, 1, 2, 4, 9)]
    assert lengths == [2, 4, 6, 8, 8]
    assert args.rollout_config(BIDIRECTIONAL, 0, None).cache == "none"


@pytest.mark.parametrize(("steps", "every", "least"), [(4, 2, 5), (1, 1, 3), (5, 2, None)])
def test_blocks_that_never_grow_to_the_sampler_s_are_told(steps, every, least, tmp_path, caplog):
    trainer_of(
        CONTEXT_CAUSAL, tmp_path, block_growth="doubling", block_growth_steps=every, max_steps=steps,
        per_device_train_batch_size=1,
    ).train()  # fmt: skip
    told = [record.message for record in caplog.records if "block_growth_steps" in record.message]
    assert len(told) == (least is not None)
    assert least is None or told[0].endswith(f"; {least} steps are the least that show it one")


def test_columns_that_are_no_rows_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"columns prompt; adaptation takes .*'text'.*; text='rollouts' takes prompts alone"
    ):
        trainer_of(CONTEXT_CAUSAL, tmp_path, rows=[{"prompt": "1+2="}])
    with pytest.raises(ValueError, match=r"columns words; adaptation takes .* or 'input_ids' and 'labels'$"):
        trainer_of(CONTEXT_CAUSAL, tmp_path, rows=[{"words": "1+2="}])


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
    with pytest.raises(ValueError, match="row 1 of the train data set has the prompt None"):
        prompts_alone(Dataset.from_list([{"prompt": "1"}, {"prompt": None}]), tok)


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
