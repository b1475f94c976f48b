"""Masked-diffusion fine-tuning: the noise, the loss against exact enumeration, the recipe through its real command."""

import itertools
import json
import math
import random
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from lockstitch.recipes.evidence import evidence_rows
from lockstitch.recipes.sft import RecipeArguments, train
from lockstitch.recipes.tiny import (
    batch_by_length,
    build_tokenizer,
    new_model,
    prompt_completion_rows,
    tokenize_rows,
    tokenizer_texts,
)
from lockstitch.rewards.tasks.builtin import TASKS
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rl.canvas_data import CanvasCollator
from lockstitch.rl.lora import DiffusionModelConfig, lora_config
from lockstitch.rl.masking import mask_completion, noise_generator, stratified_mask_ratio
from lockstitch.rl.sft import DiffusionSFTTrainer, masked_diffusion_loss, masked_logits
from lockstitch.rl.sft_config import DiffusionSFTConfig
from lockstitch.sampling.denoiser import Denoiser, make_causal
from models import dream_like, random_denoiser, tokenizer
from trl import SFTConfig

from lockstitch import embedded_model


def test_noise_depends_on_its_key_alone():
    before = torch.get_rng_state()
    draws = {
        key: tuple(torch.rand(4, generator=noise_generator(*key)).tolist())
        for key in itertools.product(range(3), repeat=3)
    }
    assert len(set(draws.values())) == 27
    assert draws[1, 2, 0] == tuple(torch.rand(4, generator=noise_generator(1, 2, 0)).tolist())
    assert torch.equal(before, torch.get_rng_state())


def test_mask_ratios_fill_every_stratum():
    for seed in range(20):
        ratio = stratified_mask_ratio(8, noise_generator(seed), low=0.0)
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
    noised, masked = mask_completion(ids, completion, ratio[:, None], 2, noise_generator(0))
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
        exact = (
            sum(math.factorial(sum(m) - 1) * math.factorial(3 - sum(m)) / math.factorial(3) * nll(m) for m in masks)
            / 3
        )
        total = 0.0
        grid = (torch.arange(400) + 0.5) / 400
        for t in grid.tolist():
            for mask in masks:
                noised = ids.clone()
                masked = torch.tensor([[False, False, *mask]])
                noised[masked] = denoiser.mask_id
                key = tuple(mask)
                if key not in _LOGITS:
                    _LOGITS[key] = denoiser.model(input_ids=noised).logits[masked]
                loss = masked_diffusion_loss(_LOGITS[key], labels, masked, torch.tensor([[t]]), "inverse_t")
                total += t ** sum(mask) * (1 - t) ** (3 - sum(mask)) * loss.item() / len(grid)
    assert total == pytest.approx(exact, rel=2e-3)


_LOGITS: dict = {}


def exact_bound(denoiser, prompt, answer, low=0.0, high=1.0, full=0.0):
    """E over masks and t of `1/(t L) sum of -log p`: t is 1 with probability `full`, else uniform on [low, high]."""
    total, grid = 0.0, low + (high - low) * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for mask in itertools.product([0, 1], repeat=len(answer)):
        count, blanks = sum(mask), torch.tensor(mask).bool()
        ids = torch.tensor([prompt + answer])
        ids[0, len(prompt) :][blanks] = denoiser.mask_id
        with torch.no_grad():
            logp = denoiser.model(input_ids=ids).logits.log_softmax(-1)[0, len(prompt) :]
        nll = -sum(logp[i, token].item() for i, token in enumerate(answer) if mask[i]) / len(answer)
        weight = (grid**count * (1 - grid) ** (len(answer) - count) / grid).mean().item()
        total += nll * ((1 - full) * weight + full * (count == len(answer)))
    return total


def sft_trainer(denoiser, rows, tmp_path, eval_rows=None, peft_config=None, **settings):
    args = DiffusionSFTConfig(
        output_dir=str(tmp_path),
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        **settings,
    )
    return DiffusionSFTTrainer(
        denoiser,
        args,
        train_dataset=Dataset.from_list(rows),
        peft_config=peft_config,
        eval_dataset=None if eval_rows is None else Dataset.from_list(eval_rows),
    )


@pytest.mark.parametrize("noise", [{}, {"mask_ratio_low": 0.3, "mask_ratio_high": 0.8, "full_mask_fraction": 0.25}])
def test_the_trainer_estimates_the_exact_bound(noise, tmp_path):
    denoiser = random_denoiser(sharpness=2.0)
    prompt, answer = [10, 11], [12, 13, 14]
    row = {"input_ids": prompt + answer, "labels": [-100, -100, *answer]}
    trainer = sft_trainer(denoiser, [row], tmp_path, **noise)
    batch = trainer.data_collator([row] * 500)
    trainer.model.train(bool(noise))  # evaluation ignores the noise that training is under
    trainer.state.max_steps = 1
    with torch.no_grad():
        losses = torch.stack([trainer.compute_loss(trainer.model, batch) for _ in range(16)])
    low, high, full = trainer.args.noise_at(0.0) if noise else (1e-3, 1.0, 0.0)
    exact = exact_bound(denoiser, prompt, answer, low, high, full)
    error = losses.std().item() / 4
    assert losses.mean().item() == pytest.approx(exact, abs=4 * error)
    assert error < 0.03 * exact


def test_some_rows_are_masked_whole_and_the_others_fill_their_strata():
    for seed in range(50):
        ratio = stratified_mask_ratio(8, noise_generator(seed), 0.2, 0.6, full=0.3)
        whole = int((ratio == 1).sum())
        assert whole in (2, 3)
        rest = ratio[ratio < 1].sort().values
        assert rest.min() >= 0.2 and rest.max() <= 0.6  # noqa: PT018
        assert (rest.diff() - 0.4 / 8 / 0.7).abs().max() < 1e-6
    assert stratified_mask_ratio(5, noise_generator(0), full=1.0).tolist() == [1.0] * 5
    share = torch.cat([stratified_mask_ratio(1, noise_generator(seed), full=0.3) for seed in range(2000)])
    assert abs((share == 1).float().mean().item() - 0.3) < 0.04


def test_the_noise_moves_to_its_end(tmp_path):
    config = DiffusionSFTConfig(
        output_dir=str(tmp_path),
        bf16=False,
        mask_ratio_high=0.4,
        mask_ratio_high_end=1.0,
        full_mask_fraction=0.5,
        full_mask_fraction_end=0.0,
    )
    assert config.noise_at(0.0) == (1e-3, 0.4, 0.5)
    assert config.noise_at(0.5) == pytest.approx((1e-3, 0.7, 0.25))
    assert config.noise_at(1.0) == pytest.approx((1e-3, 1.0, 0.0))


def test_no_mask_is_forced_where_small_ratios_weigh_much():
    ids = torch.arange(5, 9).repeat(3, 1)
    ratio = torch.full((3, 1), 1e-6)
    noised, masked = mask_completion(ids, ids > 5, ratio, 2, noise_generator(0), at_least_one=False)
    assert not masked.any()
    assert torch.equal(noised, ids)
    loss = masked_diffusion_loss(torch.empty(0, 9, requires_grad=True), ids, masked, ratio, "inverse_t")
    assert loss.item() == 0
    loss.backward()


def test_rows_of_several_lengths_are_scored_without_their_padding():
    reference = random_denoiser()
    rows = [
        {"input_ids": list(range(10, 10 + n)), "labels": [-100] * p + list(range(10 + p, 10 + n))}
        for n, p in ((9, 4), (6, 3), (9, 2), (7, 5))
    ]
    batch = CanvasCollator(0, 1, 8)(rows)
    noised, masked = mask_completion(
        batch["input_ids"], batch["labels"] != -100, torch.tensor([[0.5], [0.9], [0.2], [0.7]]), 2, noise_generator(3)
    )
    expected = reference.forward_logits(reference.model, noised, batch["attention_mask"])[masked]
    for denoiser in (reference, dream_like(reference)):
        found = masked_logits(denoiser, denoiser.model, noised, batch["attention_mask"], masked)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_conversations_become_canvases(tmp_path):
    denoiser = random_denoiser()
    denoiser.tokenizer.chat_template = TEMPLATE
    talk = [{"role": "user", "content": "2+3"}, {"role": "assistant", "content": "5"}]
    whole = sft_trainer(denoiser, [{"messages": talk}], tmp_path, canvas_length=4)
    parts = sft_trainer(denoiser, [{"prompt": talk[:1], "completion": talk[1:]}], tmp_path, canvas_length=4)
    assert whole.train_dataset[0]["labels"] == parts.train_dataset[0]["labels"]
    batch = whole.data_collator([whole.train_dataset[0]])
    prompt = batch["labels"][0] == -100
    assert denoiser.tokenizer.decode(batch["input_ids"][0][prompt]) == "user: 2+3<eos>\nassistant: "
    assert denoiser.tokenizer.decode(batch["labels"][0][~prompt]) == "5<eos><eos><eos>"


def test_long_rows_are_left_out_and_long_completions_refused(tmp_path):
    rows = [{"prompt": "1+2=", "completion": "3"}, {"prompt": "1+2+3+4+5=", "completion": "15"}]
    assert len(sft_trainer(random_denoiser(), rows, tmp_path, max_length=8).train_dataset) == 1
    with pytest.raises(ValueError, match=r"all 2 rows of the train data set have more than max_length=2 tokens"):
        sft_trainer(random_denoiser(), rows, tmp_path, max_length=2)
    with pytest.raises(ValueError, match=r"1 of 2 completions .* do not fit canvas_length=2; the longest has 3"):
        sft_trainer(random_denoiser(), rows, tmp_path, canvas_length=2)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "1+2=3"}, "has the columns text"),
        ({"messages": [{"role": "user", "content": "?"}]}, "roles user: the last must be the assistant's"),
        ({"messages": None}, "row 0 .* has the messages None: messages are needed"),
        ({"prompt": "1+2=", "completion": None}, "row 0 of the train data set has the completion None: a text or"),
        ({"prompt": "1+2=", "completion": 3}, "has the completion 3: a text or messages are needed"),
        ({"prompt": "1+2=", "completion": [{"role": "assistant", "content": "3"}]}, "mixes a text and messages"),
    ],
)
def test_data_without_completions_is_refused(row, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        sft_trainer(random_denoiser(), [row], tmp_path)


def test_a_row_without_a_completion_is_named(tmp_path):
    rows = [{"prompt": "1+2=", "completion": "3"}, {"prompt": "1+3=", "completion": None}]
    with pytest.raises(ValueError, match="row 1 of the train data set has the completion None"):
        sft_trainer(random_denoiser(), rows, tmp_path)


def test_an_adapter_is_trained_and_evaluations_leave_the_training_alone(tmp_path):
    rows = list(tokenize_rows(prompt_completion_rows(get_task("sudoku"), 24, 0), tokenizer()))
    settings = {"max_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1,
                "learning_rate": 1e-2, "lr_scheduler_type": "constant", "seed": 1, "eval_steps": 1}  # fmt: skip
    weights, logs = [], []
    for strategy in ("no", "steps"):
        denoiser = random_denoiser()
        with torch.random.fork_rng():
            trainer = sft_trainer(
                denoiser, rows, tmp_path, rows[:8], lora_config(denoiser, 2, 4), eval_strategy=strategy, **settings
            )
            torch.manual_seed(0)
            trainer.train()
        weights.append({name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad})
        logs.append(trainer.state.log_history)
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name])
    trained = [name for name, weight in weights[0].items() if "lora_B" in name and weight.abs().max() > 0]
    assert len(trained) == 14
    losses = [entry["eval_loss"] for entry in logs[1] if "eval_loss" in entry]
    assert len(set(losses)) == 3
    with torch.no_grad():
        assert trainer.evaluate()["eval_loss"] == losses[-1]  # the same noise every time


def test_mean_weighting_is_the_plain_mean():
    logits = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, 1, 2, 3], [-100, -100, 4, 5]])
    masked = torch.tensor([[False, True, False, True], [False, False, True, False]])
    expected = -torch.stack(
        [logits.log_softmax(-1)[0, 1, 1], logits.log_softmax(-1)[0, 3, 3], logits.log_softmax(-1)[1, 2, 4]]
    ).mean()
    found = masked_diffusion_loss(logits[masked], labels, masked, torch.tensor([[0.5], [0.2]]), "mean")
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_canvas_is_filled_with_eos_and_padding_is_not_attended():
    rows = [
        {"input_ids": [5, 6, 7, 1], "labels": [-100, -100, 7, 1]},
        {"input_ids": [5, 8, 1], "labels": [-100, 8, 1]},
    ]
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
        ({"completion_only_loss": False}, "completion_only_loss=False has no meaning"),
        ({"loss_type": "dft"}, "loss_type='dft' would be ignored"),
        ({"mask_ratio_low": 0.0}, "0 < low <= high <= 1"),
        ({"mask_ratio_high": 0.5, "mask_ratio_low_end": 0.6}, "mask_ratio_low_end=0.6 and mask_ratio_high_end=0.5"),
        ({"full_mask_fraction": 1.5}, "full_mask_fraction=1.5"),
        ({"eval_packing": True}, "eval_packing=True has no meaning"),
        ({"packing_strategy": "wrapped"}, "packing_strategy='wrapped' would be ignored: rows are not packed"),
        ({"pad_to_multiple_of": 8}, "pad_to_multiple_of=8 would be ignored"),
        ({"router_aux_loss_coef": 0.1}, "router_aux_loss_coef=0.1 would be ignored"),
        ({"dataset_text_field": "body"}, "dataset_text_field='body' would be ignored"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 must be at least 0"),
    ],
)
def test_bad_training_settings_are_refused(settings, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        DiffusionSFTConfig(output_dir=str(tmp_path), bf16=False, **settings)


def test_bad_recipes_are_refused():
    with pytest.raises(ValueError, match="generate=TASK, task=TASK or dataset_name=NAME"):
        RecipeArguments()
    with pytest.raises(ValueError, match="objective='gan'"):
        RecipeArguments(objective="gan", generate="sudoku")
    with pytest.raises(ValueError, match="generate='evidence' has none"):
        RecipeArguments(generate="evidence", num_eval_problems=5)
    with pytest.raises(ValueError, match="dataset_test_split='test' is a split of dataset_name"):
        RecipeArguments(generate="sudoku", dataset_test_split="test")


@pytest.mark.parametrize(
    ("recipe", "training", "flags", "says"),
    [
        ({"num_eval_problems": 5}, {}, {}, "say both or neither"),
        ({}, {"eval_strategy": "steps", "eval_steps": 5}, {}, "say both or neither"),
        ({"new_model": {}}, {}, {"use_peft": True}, "new_model is trained whole"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(recipe, training, flags, says, tmp_path):
    training = DiffusionSFTConfig(output_dir=str(tmp_path), bf16=False, **training)
    with pytest.raises(ValueError, match=says):
        train(RecipeArguments(generate="sudoku", **recipe), training, DiffusionModelConfig("absent", **flags))


def test_a_shape_that_is_none_is_named(tmp_path):
    """huggingface_hub has an exception of its own for it, which is no `ValueError`."""
    with pytest.raises(
        ValueError, match=r"new_model=.*'hidden_size': 65.*not a multiple of the number of attention heads"
    ):
        new_model(tokenizer(), bidirectional=True, seed=0, hidden_size=65, num_attention_heads=4)
    for path in embedded_model("sudoku-early").glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 65}))
    with pytest.raises(ValueError, match="cannot be loaded: Class validation error"):
        Denoiser.from_pretrained(str(tmp_path), device="cpu")


def test_ordered_rows_that_would_be_shuffled_are_refused(tmp_path):
    recipe = RecipeArguments(objective="autoregressive", generate="evidence", batch_by_length=True)
    training = SFTConfig(output_dir=str(tmp_path), bf16=False)
    with pytest.raises(
        ValueError, match=r"train_sampling_strategy='sequential', not .*train_sampling_strategy='random'"
    ):
        train(recipe, training, DiffusionModelConfig(model_name_or_path="absent"))


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
    launch(f"recipes/configs/embedded/{name}.yaml", tmp_path, "--max_steps", "2", *SMALL)
    assert (tmp_path / "model.safetensors").exists()
    if name != "solver":
        from lockstitch.sampling.denoiser import Denoiser

        assert Denoiser.from_pretrained(str(tmp_path)).model.config.is_causal is False


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    from safetensors.torch import load_file

    config = "recipes/configs/embedded/sudoku.yaml"
    schedule = ["--lr_scheduler_type", "constant", "--save_steps", "2", *SMALL]
    launch(config, tmp_path / "whole", "--max_steps", "4", *schedule)
    launch(config, tmp_path / "parts", "--max_steps", "2", *schedule)
    launch(config, tmp_path / "parts", "--max_steps", "4", *schedule)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=0, atol=1e-6)
    history = json.loads((tmp_path / "parts/checkpoint-4/trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4]
