"""Masked-diffusion fine-tuning: the noise, the loss against exact enumeration, the recipe through its real command."""

import itertools
import json
import math
import random
import subprocess
import sys

import pytest
import torch
from lockstitch.recipes.evidence import evidence_rows
from lockstitch.recipes.sft import RecipeArguments, train
from lockstitch.recipes.tiny import (
    batch_by_length,
    build_tokenizer,
    prompt_completion_rows,
    tokenize_rows,
    tokenizer_texts,
)
from lockstitch.rewards.tasks import TASKS, get_task
from lockstitch.rl.masking import mask_completion, noise_generator, stratified_mask_ratio
from lockstitch.rl.sft import CanvasCollator, DiffusionSFTConfig, masked_diffusion_loss
from lockstitch.sampling.denoiser import make_causal
from models import random_denoiser, tokenizer
from trl import ModelConfig, SFTConfig


def test_noise_depends_on_its_key_alone():
    before = torch.get_rng_state()
    draws = {key: tuple(torch.rand(4, generator=noise_generator(*key)).tolist())
             for key in itertools.product(range(3), repeat=3)}  # fmt: skip
    assert len(set(draws.values())) == 27
    assert draws[1, 2, 0] == tuple(torch.rand(4, generator=noise_generator(1, 2, 0)).tolist())
    assert torch.equal(before, torch.get_rng_state())


def test_mask_ratios_fill_every_stratum():
    for seed in range(20):
        ratio = stratified_mask_ratio(8, noise_generator(seed), smallest=0.0)
        # One uniform shift of an even grid: neighbours are one stratum apart.
        assert (ratio.sort().values.diff() - 1 / 8).abs().max() < 1e-6
    ratio = torch.cat([stratified_mask_ratio(8, noise_generator(1, seed)) for seed in range(500)])
    assert ratio.min() > 0
    assert ratio.max() <= 1
    assert abs(ratio.mean().item() - 0.5) < 0.01


def test_masks_stay_in_the_completion_and_follow_the_ratio():
    ids = torch.arange(5, 25).repeat(400, 1)
    completion = torch.zeros(400, 20, dtype=torch.bool)
    completion[:, 8:] = True
    ratio = torch.linspace(0.05, 1.0, 400)
    noised, masked = mask_completion(ids, completion, ratio, 2, noise_generator(0))
    assert not masked[:, :8].any()
    assert torch.equal(noised == 2, masked)
    assert torch.equal(noised[~masked], ids[~masked])
    assert masked.any(dim=1).all()
    assert masked[-1, 8:].all()
    assert abs((masked[:, 8:].float().mean(1) - ratio)[100:].mean().item()) < 0.02


def test_loss_is_unbiased_for_the_exact_bound():
    """Enumerates all masks of three tokens: E_t E_mask[loss] must be sum over l of the mean cross-entropy at l masks."""
    denoiser = random_denoiser(sharpness=2.0)
    prompt, answer = [10, 11], [12, 13, 14]
    ids = torch.tensor([prompt + answer])
    labels = torch.tensor([[-100, -100, *answer]])

    def nll(mask):
        noised = ids.clone()
        noised[0, 2:][torch.tensor(mask)] = denoiser.mask_id
        logp = denoiser.model(input_ids=noised).logits.log_softmax(-1)[0, 2:]
        return -sum(logp[i, answer[i]].item() for i in range(3) if mask[i])

    masks = [mask for mask in itertools.product([False, True], repeat=3) if any(mask)]
    with torch.no_grad():
        # E over t uniform of t^(l-1) (1-t)^(3-l) is the Beta function, so the bound per token is:
        exact = sum(math.factorial(sum(m) - 1) * math.factorial(3 - sum(m)) / math.factorial(3) * nll(m)
                    for m in masks) / 3  # fmt: skip
        total = 0.0
        grid = (torch.arange(400) + 0.5) / 400
        for t in grid.tolist():
            for mask in masks:
                noised = ids.clone()
                masked = torch.tensor([[False, False, *mask]])
                noised[masked] = denoiser.mask_id
                key = tuple(mask)
                if key not in _LOGITS:
                    _LOGITS[key] = denoiser.model(input_ids=noised).logits
                loss = masked_diffusion_loss(_LOGITS[key], labels, masked, torch.tensor([t]), "inverse_t")
                total += t ** sum(mask) * (1 - t) ** (3 - sum(mask)) * loss.item() / len(grid)
    assert total == pytest.approx(exact, rel=2e-3)


_LOGITS: dict = {}


def test_mean_weighting_is_the_plain_mean():
    logits = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, 1, 2, 3], [-100, -100, 4, 5]])
    masked = torch.tensor([[False, True, False, True], [False, False, True, False]])
    expected = -torch.stack([logits.log_softmax(-1)[0, 1, 1], logits.log_softmax(-1)[0, 3, 3],
                             logits.log_softmax(-1)[1, 2, 4]]).mean()  # fmt: skip
    found = masked_diffusion_loss(logits, labels, masked, torch.tensor([0.5, 0.2]), "mean")
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_canvas_is_filled_with_eos_and_padding_is_not_attended():
    rows = [{"input_ids": [5, 6, 7, 1], "labels": [-100, -100, 7, 1]}, {"input_ids": [5, 8, 1], "labels": [-100, 8, 1]}]
    batch = CanvasCollator(pad_id=0, eos_id=1, canvas_length=4)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 1, 1, 1], [5, 8, 1, 1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 7, 1, 1, 1], [-100, 8, 1, 1, 1, -100]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 1, 1, 0]]
    with pytest.raises(ValueError, match="2 tokens does not fit canvas_length=1"):
        CanvasCollator(0, 1, 1)(rows)


def test_tokenizer_is_lossless_and_spells_digits():
    tok = build_tokenizer(tokenizer_texts(200))
    for text in ("12+27=39\n#### 39", " 93+ 30=123", "naïve “quotes” – 数学 🧵\n\t x", "Ann has 1,234.5 apples."):
        assert tok.decode(tok(text)["input_ids"]) == text
    assert tok.convert_ids_to_tokens(tok("1234")["input_ids"]) == ["1", "2", "3", "4"]
    assert len(tok("  7")["input_ids"]) == 3


@pytest.mark.parametrize("name", ["arithmetic", "countdown", "sudoku"])
def test_every_completion_fits_its_canvas(name):
    task, tok = get_task(name), tokenizer()
    for row in tokenize_rows(prompt_completion_rows(task, 1500, 0), tok):
        completion = [label for label in row["labels"] if label != -100]
        assert len(completion) <= task.canvas_length
        assert completion[-1] == tok.eos_token_id
        assert row["input_ids"][-len(completion) :] == completion


def test_evidence_rows_end_in_the_answer():
    for i, row in enumerate(evidence_rows(300, 0)):
        task = TASKS[("arithmetic", "countdown", "sudoku")[i % 3]]
        assert row["prompt"].endswith("####")
        assert task.extract("####" + row["completion"]) == row["completion"].strip()


def test_batches_by_length_are_alike_inside_and_in_random_order():
    rng = random.Random(0)
    rows = [{"input_ids": [i] * rng.randint(1, 300)} for i in range(1027)]
    ordered = batch_by_length(rows, 8, seed=0, window=16)
    assert ordered == batch_by_length(rows, 8, seed=0, window=16) != batch_by_length(rows, 8, seed=1, window=16)
    assert len({row["input_ids"][0] for row in ordered}) == len(ordered) == 1024
    lengths = [[len(row["input_ids"]) for row in ordered[i : i + 8]] for i in range(0, 1024, 8)]
    padding = sum(8 * max(batch) - sum(batch) for batch in lengths) / sum(map(sum, lengths))
    assert padding < 0.1  # in the rows' own order it is .8
    falls = sum(sum(a) > sum(b) for a, b in itertools.pairwise(lengths))
    assert 40 < falls < 87  # sorted windows would fall, or rise, nearly always


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"canvas_length": 0}, "canvas_length=0"),
        ({"loss_weighting": "none"}, "'inverse_t', 'mean'"),
        ({"packing": True}, "packing=True has no meaning"),
    ],
)
def test_bad_training_settings_are_refused(settings, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        DiffusionSFTConfig(output_dir=str(tmp_path), bf16=False, **settings)


def test_bad_recipes_are_refused():
    with pytest.raises(ValueError, match="either generate=TASK or dataset_name=NAME"):
        RecipeArguments()
    with pytest.raises(ValueError, match="objective='gan'"):
        RecipeArguments(objective="gan", generate="sudoku")


def test_ordered_rows_that_would_be_shuffled_are_refused(tmp_path):
    recipe = RecipeArguments(objective="autoregressive", generate="evidence", batch_by_length=True)
    training = SFTConfig(output_dir=str(tmp_path), bf16=False)
    with pytest.raises(ValueError, match=r"train_sampling_strategy='sequential', not .*train_sampling_strategy='random'"):
        train(recipe, training, ModelConfig(model_name_or_path="absent"))


def test_attention_is_made_causal_again():
    model = random_denoiser().model
    ids = torch.arange(10, 20)[None]
    changed = torch.cat([ids[:, :-1], ids[:, -1:] + 1], dim=1)

    def moved():
        return (model(input_ids=ids).logits - model(input_ids=changed).logits)[:, 0].abs().max() > 1e-6

    assert moved()
    make_causal(model)
    assert not moved()


def launch(config, output, *more):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m",
               "lockstitch.recipes.sft", "--config", config, "--output_dir", str(output), *more]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


SMALL = ["--num_problems", "64", "--per_device_train_batch_size", "8", "--logging_steps", "1", "--warmup_steps", "0"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sudoku", "countdown", "arithmetic", "solver"])
def test_every_recipe_runs_two_steps(name, tmp_path):
    launch(f"recipes/configs/tiny/{name}.yaml", tmp_path, "--max_steps", "2", *SMALL)
    assert (tmp_path / "model.safetensors").exists()
    if name != "solver":
        from lockstitch.sampling.denoiser import Denoiser

        assert Denoiser.from_pretrained(str(tmp_path)).model.config.is_causal is False


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    from safetensors.torch import load_file

    config = "recipes/configs/tiny/sudoku.yaml"
    schedule = ["--lr_scheduler_type", "constant", "--save_steps", "2", *SMALL]
    launch(config, tmp_path / "whole", "--max_steps", "4", *schedule)
    launch(config, tmp_path / "parts", "--max_steps", "2", *schedule)
    launch(config, tmp_path / "parts", "--max_steps", "4", *schedule)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=0, atol=1e-6)
    history = json.loads((tmp_path / "parts/checkpoint-4/trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4]
