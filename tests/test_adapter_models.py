"""Adapters where a model is asked for: the base that they name is loaded, and they write what a merged model writes."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from lockstitch.recipes import grpo, sft
from lockstitch.rl.export import ExportConfig, export
from lockstitch.rl.lora import DiffusionModelConfig, lora_config
from lockstitch.rl.model_card import run_card
from lockstitch.rl.models import as_denoiser
from lockstitch.rl.run_record import RunRecord, write_run
from lockstitch.rl.sft_config import DiffusionSFTConfig
from lockstitch.sampling import cli as sample_cli
from lockstitch.sampling.adapter_files import find_adapter
from lockstitch.sampling.adapters import put_on
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.families import BLOCK_CAUSAL
from lockstitch.sampling.loading import load_tokenizer
from lockstitch.sampling.loop import sample
from lockstitch.stitching import cli as stitch_cli
from models import random_denoiser
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from lockstitch import embedded_adapter, embedded_model, model_name, model_path

PUZZLE = "3102\n2000\n0210\n0320\n"
CONFIG = SamplerConfig(canvas_length=20, steps=10, temperature=2.0)
IDS = torch.arange(5, 37).view(2, 16)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def make_adapter(path, base, scale=0.1, **settings):
    """An adapter of random weights for the base at a place, saved as PEFT saves it."""
    denoiser = Denoiser.from_pretrained(str(base), device="cpu")
    model = get_peft_model(denoiser.model, LoraConfig(**settings) if settings else lora_config(denoiser, 4, 8))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight += scale * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(path)
    return path


def test_an_adapter_s_logits_and_tokens_are_the_merged_model_s(tmp_path):
    adapter = make_adapter(tmp_path / "run", "embedded:sudoku")
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "embedded:sudoku"
    export(ExportConfig(adapter, tmp_path / "merged", merge=True))
    bare, found, whole = (
        Denoiser.from_pretrained(str(place), device="cpu")
        for place in ("embedded:sudoku", adapter, tmp_path / "merged")
    )
    assert isinstance(found.model, PeftModel)
    assert (logits(found.model) - logits(bare.model)).abs().max() > 0.1
    torch.testing.assert_close(logits(found.model), logits(whole.model), rtol=1e-5, atol=1e-5)
    drawn, expected = (sample(one, [PUZZLE], CONFIG, n=4, seed=3) for one in (found, whole))
    assert [one.canvas_ids for one in drawn] == [one.canvas_ids for one in expected]
    assert len({one.canvas_ids for one in drawn}) > 1


def test_a_family_that_is_said_again_keeps_its_blocks(tmp_path):
    four = replace(BLOCK_CAUSAL, block_length=4)
    for place, denoiser in (("plain", random_denoiser()), ("saved", random_denoiser(family=four))):
        denoiser.model.save_pretrained(tmp_path / place)
        denoiser.tokenizer.save_pretrained(tmp_path / place)
    adapter = make_adapter(tmp_path / "run", tmp_path / "plain")
    facts = {"family": "block_causal", "block_length": 4, "mask_token_id": denoiser.mask_id}
    (adapter / "diffusion.json").write_text(json.dumps(facts))
    for path in (tmp_path / "saved", adapter):
        for said in (None, "block_causal"):
            assert Denoiser.from_pretrained(str(path), family=said, device="cpu").family == four
        assert Denoiser.from_pretrained(str(path), family="block_causal_shifted", device="cpu").block_length is None


@pytest.mark.parametrize("name", ["llada2", "fastv2"])
def test_an_adapter_under_published_names_too(name, tmp_path):
    base = f"tests/families/{name}"
    native = make_adapter(tmp_path / "native", base)
    export(ExportConfig(native, tmp_path / "published", names="published"))
    keys = [set(load_file(tmp_path / place / "adapter_model.safetensors")) for place in ("native", "published")]
    first, second = (
        Denoiser.from_pretrained(str(tmp_path / place), device="cpu") for place in ("native", "published")
    )
    assert first.family == second.family == Denoiser.from_pretrained(base, device="cpu").family
    torch.testing.assert_close(logits(second.model), logits(first.model), rtol=1e-5, atol=1e-5)
    assert name != "llada2" or keys[0] != keys[1]


def test_every_command_takes_one(tmp_path, capsys):
    adapter = str(embedded_adapter("sudoku-early"))
    said = ["--prompt", PUZZLE, "--canvas_length", "20", "--steps", "5", "--n", "2"]
    assert sample_cli.main(["--model", adapter, *said]) == 0
    shown = capsys.readouterr().out
    merged = Denoiser.from_pretrained(adapter, device="cpu")
    assert sample(merged, [PUZZLE], SamplerConfig(canvas_length=20, steps=5), n=1)[0].text.split()[0] in shown
    words = ["--task", "sudoku", "--question", PUZZLE.replace("\n", ""), "--num_trajectories", "2", "--solver", "none"]
    assert stitch_cli.main([*words, "--model", adapter]) == 0
    assert "stitched" in capsys.readouterr().out


@pytest.mark.slow
def test_training_starts_from_the_merged_weights(tmp_path):
    adapter = make_adapter(tmp_path / "first", "embedded:sudoku-early")
    started = as_denoiser(str(adapter))
    assert not isinstance(started.model, PeftModel)
    expected = logits(Denoiser.from_pretrained(str(adapter), device="cpu").model)
    torch.testing.assert_close(logits(started.model), expected, rtol=1e-5, atol=1e-5)

    training = DiffusionSFTConfig(
        output_dir=str(tmp_path / "second"),
        bf16=False,
        use_cpu=True,
        max_steps=1,
        learning_rate=1e-9,
        report_to="none",
        gradient_checkpointing=False,
        disable_tqdm=True,
        canvas_length=20,
        per_device_train_batch_size=4,
    )
    recipe = sft.RecipeArguments(generate="sudoku", num_problems=8)
    sft.train(recipe, training, DiffusionModelConfig(str(adapter), use_peft=True, lora_r=4))
    again = find_adapter(str(tmp_path / "second"))
    assert again is not None
    assert again.base == str(adapter)  # an adapter of an adapter: it is for the weights that training began with
    stacked = Denoiser.from_pretrained(str(tmp_path / "second"), device="cpu").model
    torch.testing.assert_close(logits(stacked), logits(started.model.eval()), rtol=0, atol=1e-4)
    export(ExportConfig(tmp_path / "second", tmp_path / "whole", merge=True))
    whole = Denoiser.from_pretrained(str(tmp_path / "whole"), device="cpu").model
    torch.testing.assert_close(logits(whole), logits(stacked), rtol=0, atol=1e-4)


def test_reinforcement_learning_starts_from_one_too(tmp_path):
    words = {"model_name_or_path": embedded_adapter("sudoku-early"), "task": "sudoku", "rl_preset": "espo",
             "use_peft": "true", "block_length": 20, "steps": 20, "max_steps": 1, "per_device_train_batch_size": 4,
             "num_generations": 4, "max_completion_length": 20, "dtype": "float32",
             "num_problems": 4, "bf16": "false", "use_cpu": "true", "report_to": "none", "html": "false",
             "output_dir": tmp_path / "run", "gradient_checkpointing": "false", "lora_r": 2,
             "generation_batch_size": 4, "gradient_accumulation_steps": 1}  # fmt: skip
    prepared = grpo.prepare(*grpo.parse([part for name, value in words.items() for part in (f"--{name}", str(value))]))
    model = prepared.trainer.model
    with model.disable_adapter():
        expected = logits(Denoiser.from_pretrained(str(embedded_adapter("sudoku-early")), device="cpu").model)
        torch.testing.assert_close(logits(model.eval()), expected, rtol=0, atol=1e-4)


def test_what_does_not_fit_is_a_line(tmp_path):
    adapter = make_adapter(tmp_path / "run", "embedded:sudoku")

    def changed(name, **values):
        shutil.copytree(adapter, tmp_path / name)
        path = tmp_path / name / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        return tmp_path / name

    def refused(place, message):
        with pytest.raises(ValueError, match=message) as caught:
            Denoiser.from_pretrained(str(place), device="cpu")
        assert "\n" not in str(caught.value)

    refused(changed("no base", base_model_name_or_path=None), "names no base")
    missing = changed("missing", base_model_name_or_path="nobody/nothing")
    refused(missing, r"the base of the adapter .* cannot be loaded: no model")
    refused(changed("unknown", base_model_name_or_path="embedded:chess"), "there are arithmetic")
    denoiser = random_denoiser()
    denoiser.model.save_pretrained(tmp_path / "other")
    denoiser.tokenizer.save_pretrained(tmp_path / "other")
    refused(changed("shapes", base_model_name_or_path=str(tmp_path / "other")), "does not fit its base .*: ")
    bare = changed("bare")
    (bare / "adapter_model.safetensors").unlink()
    refused(bare, "but no adapter_model.safetensors")
    more = {"base_model.model.x.lora_A.weight": torch.ones(1)}
    edits = {"lacks": lambda weights: weights.popitem(), "has left over": lambda weights: weights.update(more)}
    for name, edit in edits.items():
        place = changed(name)
        weights = load_file(place / "adapter_model.safetensors")
        edit(weights)
        save_file(weights, place / "adapter_model.safetensors")
        refused(place, f"does not fit its base 'embedded:sudoku': it {name} base_model")


def test_a_tied_head_is_sampled_from_but_not_trained_from(tmp_path):
    adapter = make_adapter(tmp_path / "run", "embedded:sudoku", r=2, target_modules=["embed_tokens"])
    assert isinstance(Denoiser.from_pretrained(str(adapter), device="cpu").model, PeftModel)
    with pytest.raises(ValueError, match="cannot be trained from: the adapter changes the embeddings"):
        as_denoiser(str(adapter))


def test_one_is_found_in_the_hub_s_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants
    from transformers.utils import hub

    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("a1" * 20)
    make_adapter(snapshot, "embedded:sudoku")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("a1" * 20)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for module in (hub,):
        for name in ("TRANSFORMERS_CACHE", "HF_HUB_CACHE", "PYTORCH_TRANSFORMERS_CACHE"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, str(tmp_path))
    found, here = (Denoiser.from_pretrained(place, device="cpu").model for place in ("owner/name", str(snapshot)))
    assert torch.equal(logits(found), logits(here))


def test_an_embedded_model_is_named_without_the_machine(tmp_path):
    assert model_name(str(embedded_model("sudoku"))) == "embedded:sudoku"
    assert model_name("/elsewhere/site-packages/lockstitch/embedded/sudoku") == "embedded:sudoku"
    assert model_path(model_name(str(embedded_model("solver")))) == str(embedded_model("solver"))
    assert model_name("GSAI-ML/LLaDA-8B-Instruct") == "GSAI-ML/LLaDA-8B-Instruct"
    elsewhere = make_adapter(tmp_path / "run", embedded_model("sudoku"))
    path = elsewhere / "adapter_config.json"
    config = json.loads(path.read_text())
    assert config["base_model_name_or_path"] == "embedded:sudoku"
    path.write_text(json.dumps({**config, "base_model_name_or_path": "/elsewhere/lockstitch/embedded/sudoku"}))
    assert find_adapter(str(elsewhere)).base == "embedded:sudoku"


@pytest.mark.slow
@pytest.mark.parametrize("of", ["run", "export", "merge"])
def test_the_lines_of_the_card_run(of, tmp_path):
    adapter = make_adapter(tmp_path / "run", "embedded:sudoku")
    record = RunRecord("embedded:sudoku", None, "grpo", "bidirectional", "sudoku", config={"mask_id": 2})
    expected = sample(Denoiser.from_pretrained(str(adapter)), [PUZZLE], SamplerConfig(canvas_length=20))[0].canvas_ids
    if of == "run":
        card = run_card(record, "run", True, 20)
    else:
        if of == "merge":
            write_run(adapter, replace(record, config={"canvas_length": 20}))
        export(ExportConfig(adapter, tmp_path / "out", merge=of == "merge"))
        adapter = tmp_path / "out"
        card = (adapter / "README.md").read_text()
    found = {}
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(code.replace('"DIR"', repr(str(adapter))).replace("...", PUZZLE.replace("\n", "\\n")), found)
    assert isinstance(found["denoiser"].model, PeftModel) == (of != "merge")
    if of == "run":
        assert "mask_id=2" in card
    if of != "export":
        assert found["trajectory"].canvas_ids == expected
    if of == "merge":
        assert type(found["model"]) is type(found["denoiser"].model)


def test_loading_says_nothing_that_is_not_the_user_s(capfd, recwarn):
    said = ["--prompt", PUZZLE, "--canvas_length", "20"]
    assert sample_cli.main(["--model", str(embedded_adapter("sudoku-early")), *said]) == 0
    assert capfd.readouterr().err == ""
    assert not [str(one.message) for one in recwarn]


def test_an_adapter_on_another_base_than_it_names(tmp_path, capsys):
    """`ADAPTER@BASE` is a model everywhere, and `--adapter` of the command; the name in its config counts for nothing."""
    base, other = str(embedded_model("sudoku")), tmp_path / "base"
    make_adapter(tmp_path / "adapter", base)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "gone"})
    )
    shutil.copytree(base, other)
    expected = logits(put_on(Denoiser.from_pretrained(base, device="cpu").model, tmp_path / "adapter"))
    for name in (f"{tmp_path / 'adapter'}@{other}", f"{tmp_path / 'adapter'}@embedded:sudoku"):
        assert torch.equal(logits(Denoiser.from_pretrained(name, device="cpu").model), expected)
    said = ["--model", str(other), "--prompt", PUZZLE, "--canvas_length", "20", "--device", "cpu"]
    assert sample_cli.main([*said, "--adapter", str(tmp_path / "adapter")]) == 0
    adapted = capsys.readouterr().out
    assert sample_cli.main([*said, "--adapter", str(other)]) == 2
    assert "is no adapter" in capsys.readouterr().err
    # A training run leaves its tokenizer beside the adapter.
    load_tokenizer(base).save_pretrained(tmp_path / "adapter")
    assert sample_cli.main([*said, "--adapter", str(tmp_path / "adapter")]) == 0
    assert sample_cli.main([*said, "--adapter", "embedded:chess"]) == 2
    assert "no embedded adapter 'chess'; there are smollm2, sudoku-early" in capsys.readouterr().err
    assert adapted


def test_the_card_of_a_run_names_its_task_as_commands_take_it():
    record = RunRecord("some/model", None, "prm", None, "/home/somebody/sums.yaml (0123456789abcdef)")
    card = run_card(record, "run", False, None)
    assert "lockstitch stitch --task sums.yaml --input FILE" in card
    assert "sums.yaml (0123456789abcdef)" in card
    assert "somebody" not in card
