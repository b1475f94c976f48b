"""Supervised fine-tuning of models that denoise block by block: the loss against enumeration, and the recipe."""

import itertools
import math

import pytest
import torch
from datasets import Dataset
from likelihoods import close, gradients, plain_logp
from lockstitch.recipes.sft import RecipeArguments, train
from lockstitch.recipes.tiny import prompt_completion_rows, tokenize_rows
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rl.canvas_data import CanvasCollator
from lockstitch.rl.lora import DiffusionModelConfig
from lockstitch.rl.masking import block_mask_ratio, noise_generator
from lockstitch.rl.packing import block_of_column
from lockstitch.rl.sft import masked_diffusion_loss, packed_logits
from lockstitch.rl.sft_config import DiffusionSFTConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.families import BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED, CONTEXT_CAUSAL, IDLM, TIDAR
from models import random_denoiser, tokenizer
from test_sft import sft_trainer

PROMPT, ANSWER, BLOCK = [10, 11, 9], [12, 13, 14, 15], 2
ROW = {"input_ids": PROMPT + ANSWER, "labels": [-100] * len(PROMPT) + ANSWER}
every_layout = pytest.mark.parametrize(
    "family", [BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED, CONTEXT_CAUSAL, IDLM, TIDAR], ids=lambda family: family.name
)


def numbers(family, prompt=PROMPT):
    """The block of each position of the answer, written out."""
    lead = len(prompt) % BLOCK if family.layout == "block_causal" else 0
    return [(lead + i) // BLOCK for i in range(len(ANSWER))]


def exact_bound(denoiser, low=0.0, high=1.0):
    """Sum over blocks of E over masks and t of `1/t sum of -log p`, per token; t is uniform on [low, high]."""
    of, total = numbers(denoiser.family), 0.0
    grid = low + (high - low) * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for block in sorted(set(of)):
        inside = [i for i, number in enumerate(of) if number == block]
        for mask in itertools.product([False, True], repeat=len(inside)):
            hidden = {i for i, masked in zip(inside, mask, strict=True) if masked}
            logp = plain_logp(
                denoiser, PROMPT, ANSWER, [i not in hidden for i in range(len(ANSWER))], BLOCK, forbids=False
            )
            nll = -sum(logp[i] for i in hidden) / len(ANSWER)
            total += nll * (grid ** len(hidden) * (1 - grid) ** (len(inside) - len(hidden)) / grid).mean().item()
    return total


@every_layout
def test_loss_and_gradient_are_those_of_the_exact_bound(family):
    """All masks of four tokens at once, and all mask ratios, by a quadrature that is exact for blocks of two tokens."""
    denoiser = random_denoiser("qwen3", sharpness=2.0, family=family)
    masks = torch.tensor(list(itertools.product([False, True], repeat=len(ANSWER))))
    batch = CanvasCollator(0, 1, None, pads_left=True)([ROW] * len(masks))
    masked = torch.cat([torch.zeros(len(masks), len(PROMPT), dtype=torch.bool), masks], 1)
    noised = batch["input_ids"].masked_fill(masked, denoiser.mask_id)
    logits = packed_logits(
        denoiser, denoiser.model, batch["input_ids"], noised, batch["attention_mask"], masked, len(ANSWER), BLOCK
    )
    logits_of = logits.split(masked.sum(1).tolist())

    of, total = torch.tensor(numbers(family)), 0.0
    nodes = [0.5 - math.sqrt(1 / 12), 0.5 + math.sqrt(1 / 12)]  # Gauss-Legendre, both of weight 1/2
    for ratios in itertools.product(nodes, repeat=int(of.max()) + 1):
        ratio = torch.tensor(ratios)[of]
        for mask, row_masked, row_logits in zip(masks, masked, logits_of, strict=True):
            chance = torch.where(mask, ratio, 1 - ratio).prod() / len(nodes) ** len(ratios)
            ratio_BL = torch.cat([torch.ones(len(PROMPT)), ratio])[None]
            labels = batch["labels"][:1]
            total += chance * masked_diffusion_loss(row_logits, labels, row_masked[None], ratio_BL, "inverse_t")
    exact = exact_bound(denoiser)
    torch.testing.assert_close(total, exact, atol=1e-5, rtol=1e-5)
    expected = gradients(denoiser, exact)
    close(gradients(denoiser, total), expected, atol=1e-4 * expected.abs().max())


@every_layout
def test_rows_are_trained_by_themselves(family):
    """Prompts of several lengths, padded on the left, whose blocks begin in different columns."""
    denoiser = random_denoiser("qwen3", family=family)
    prompts = [PROMPT, PROMPT[:2], PROMPT + PROMPT]
    rows = [
        {"input_ids": p + ANSWER[:n], "labels": [-100] * len(p) + ANSWER[:n]}
        for p, n in zip(prompts, (4, 2, 3), strict=True)
    ]
    collate, mask = CanvasCollator(0, 1, 4, pads_left=True), torch.tensor([True, False, True, True])

    def logits_of(rows):
        batch = collate(rows)
        ids, masked = batch["input_ids"], (batch["labels"] != -100)
        masked[:, -4:] &= mask
        noised = ids.masked_fill(masked, denoiser.mask_id)
        return packed_logits(denoiser, denoiser.model, ids, noised, batch["attention_mask"], masked, 4, BLOCK)

    with torch.no_grad():
        close(logits_of(rows), torch.cat([logits_of([row]) for row in rows]))


@pytest.mark.parametrize(
    ("family", "training"), [(BLOCK_CAUSAL, False), (BLOCK_CAUSAL_SHIFTED, True), (CONTEXT_CAUSAL, True)]
)
def test_the_trainer_estimates_the_exact_bound(family, training, tmp_path):
    denoiser = random_denoiser("qwen3", sharpness=2.0, family=family)
    noise = {"mask_ratio_low": 0.3, "mask_ratio_high": 0.8}
    trainer = sft_trainer(denoiser, [ROW], tmp_path, block_length=BLOCK, **noise)
    batch = trainer.data_collator([ROW] * 160)
    trainer.model.train(training)  # evaluation ignores the noise that training is under
    trainer.state.max_steps = 1
    with torch.no_grad():
        losses = torch.stack([trainer.compute_loss(trainer.model, batch) for _ in range(16)])
        exact = float(exact_bound(denoiser, *(noise.values() if training else (1e-3, 1.0))))
    error = losses.std().item() / 4
    assert losses.mean().item() == pytest.approx(exact, abs=4 * error)
    assert error < 0.04 * exact


def test_what_is_saved_says_in_which_blocks_it_was_trained(tmp_path):
    denoiser = random_denoiser("qwen3", family=BLOCK_CAUSAL)
    assert denoiser.block_length is None
    sft_trainer(denoiser, [ROW], tmp_path, block_length=BLOCK).save_model(str(tmp_path / "saved"))
    saved = Denoiser.from_pretrained(str(tmp_path / "saved"))
    assert (saved.family.name, saved.block_length) == ("block_causal", BLOCK)


def test_blocks_have_mask_ratios_of_their_own_that_fill_their_strata():
    number = block_of_column(torch.tensor([[0, 1, 1], [1, 1, 1]]), 5, 2, "block_causal")
    assert number.tolist() == [[-2, -1, -1, 0, 0, 1, 1, 2], [-1, -1, 0, 0, 1, 1, 2, 2]]
    ratio = block_mask_ratio(number, noise_generator(0), low=0.0)
    for row, of in zip(ratio, number, strict=True):
        assert all(len(set(row[of == block].tolist())) == 1 for block in range(3))
    apart = torch.cat([row[of >= 0].unique() for row, of in zip(ratio, number, strict=True)]).sort().values.diff()
    assert (apart - 1 / 6).abs().max() < 1e-6


@pytest.mark.parametrize("block", [4, 8])
def test_blocks_begin_with_the_prompt_whatever_the_longest_completion_of_the_batch(block, tmp_path):
    """A row beside longer ones, or alone and as long as a block or shorter: its first token has the same loss."""
    denoiser = random_denoiser("qwen3", family=BLOCK_CAUSAL)
    trainer = sft_trainer(denoiser, [ROW], tmp_path, block_length=block)
    seen = []
    trainer.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    begun = block - len(PROMPT) % block  # positions of the canvas in the block that the prompt began
    for more in (0, 6):
        answer = ANSWER + [12] * more
        row = {"input_ids": PROMPT + answer, "labels": [-100] * len(PROMPT) + answer}
        with torch.no_grad():
            trainer.compute_loss(trainer.model, trainer.data_collator([row]))
        mask, half = seen.pop()["attention_mask"][0, 0], len(PROMPT) + len(answer)
        noised = (mask[-half:, -half:] == 0)[-len(answer)]  # what the canvas's first token sees of the noised half
        first = 0 if len(PROMPT) < block else len(PROMPT) // block * block
        assert noised.nonzero()[:, 0].tolist() == list(range(first, min(len(PROMPT) + begun, half)))


def test_block_lengths_that_mean_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="block_length=None: block_causal models need"):
        sft_trainer(random_denoiser(family=BLOCK_CAUSAL), [ROW], tmp_path)
    with pytest.raises(ValueError, match="block_length=4: bidirectional models attend fully"):
        sft_trainer(random_denoiser(), [ROW], tmp_path, block_length=4)
    with pytest.raises(ValueError, match="block_length=0: a positive number"):
        DiffusionSFTConfig(output_dir=str(tmp_path), bf16=False, block_length=0)
    trainer = sft_trainer(random_denoiser(family=BLOCK_CAUSAL), [ROW], tmp_path, block_length=2)
    batch = CanvasCollator(0, 1, 4)([ROW, {"input_ids": ROW["input_ids"][1:], "labels": ROW["labels"][1:]}])
    with pytest.raises(ValueError, match="padded on the left"):
        trainer.compute_loss(trainer.model, batch)
    with pytest.raises(ValueError, match="family='block_causal' says how a diffusion model is called"):
        RecipeArguments(objective="autoregressive", generate="evidence", family="block_causal")


def test_the_recipe_trains_a_block_causal_model(tmp_path):
    """Two steps from a saved stand-in, which must change it and leave it what it is."""
    source, rows = random_denoiser("qwen3", family=BLOCK_CAUSAL), tmp_path / "rows.jsonl"
    source.model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    Dataset.from_list(list(tokenize_rows(prompt_completion_rows(get_task("sudoku"), 16, 0), tokenizer()))).to_json(
        rows
    )
    training = DiffusionSFTConfig(
        output_dir=str(tmp_path / "run"),
        bf16=False,
        use_cpu=True,
        report_to="none",
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        warmup_steps=0,
        block_length=8,
        logging_steps=1,
        disable_tqdm=True,
    )
    recipe = RecipeArguments(dataset_name=str(rows), family="block_causal")
    train(recipe, training, DiffusionModelConfig(str(tmp_path / "model")))
    trained = Denoiser.from_pretrained(str(tmp_path / "run"), family="block_causal").model
    assert trained.config.get_text_config().to_dict().get("is_causal") is None
    moved = [not torch.equal(a, b) for a, b in zip(trained.parameters(), source.model.parameters(), strict=True)]
    assert all(moved)
