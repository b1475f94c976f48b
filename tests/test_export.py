"""`lockstitch export`: what is written scores like the trained model, in plain PEFT and in plain transformers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from lockstitch.recipes.sft import RecipeArguments, train
from lockstitch.rl import export_cli
from lockstitch.rl.export import ExportConfig, adapter_directory, export
from lockstitch.rl.export_cli import summary
from lockstitch.rl.lora import DiffusionModelConfig, lora_config
from lockstitch.rl.merge import fingerprint, merged, whole_state
from lockstitch.rl.run_record import RunRecord, base_revision, changed_settings, read_run, write_run
from lockstitch.rl.sft_config import DiffusionSFTConfig
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser, make_causal
from lockstitch.sampling.loop import sample
from lockstitch.sampling.remote import mend_buffers
from models import random_denoiser, tokenizer
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from remote_code import write_checkpoint
from transformers import AutoModelForCausalLM

from lockstitch import embedded_model

IDS = torch.arange(5, 37).view(2, 16)


def base_directory(kind, path, dtype=torch.float32):
    """A base on the disk: a random model of a class, or the embedded one, whose head is tied."""
    denoiser = Denoiser.from_pretrained(str(embedded_model("sudoku"))) if kind == "tied" else random_denoiser(kind)
    denoiser.model.to(dtype).save_pretrained(path)
    denoiser.tokenizer.save_pretrained(path)
    return denoiser


def train_by_hand(denoiser, path, base, scale=0.1, **settings):
    """An adapter with random weights, saved as a trainer would; returns the adapted model."""
    config = LoraConfig(**settings) if settings else lora_config(denoiser, 4, 8)
    model = get_peft_model(denoiser.model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight += scale * torch.randn(weight.shape, generator=generator)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(path)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "tied"])
def test_adapter_and_merged_model_score_like_the_trained_one(kind, tmp_path):
    base, run = tmp_path / "base", tmp_path / "run"
    model = train_by_hand(base_directory(kind, base), run, base)
    trained = logits(model)
    done = export(ExportConfig(run, tmp_path / "adapter"))
    assert done["error"] < 1e-5 < 1e-2 < done["effect"]
    export(ExportConfig(run, tmp_path / "merged", merge=True))

    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    torch.testing.assert_close(logits(plain), trained, rtol=0, atol=1e-5)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(whole), trained, rtol=0, atol=1e-4)
    assert whole.config.is_causal is False
    assert Denoiser.from_pretrained(str(tmp_path / "merged")).mask_id == 2

    # the weights against the formula
    name = "model.layers.1.mlp.up_proj"
    layer = model.get_submodule(f"base_model.model.{name}")
    delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * (8 / 4)
    expected = AutoModelForCausalLM.from_pretrained(base).get_submodule(name).weight + delta
    torch.testing.assert_close(whole.get_submodule(name).weight, expected, rtol=0, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "merged", "run"]


def test_the_merged_model_keeps_the_dtype_of_the_base(tmp_path):
    denoiser = base_directory("llama", tmp_path / "base", torch.bfloat16)
    trained = logits(train_by_hand(denoiser, tmp_path / "run", tmp_path / "base"))
    done = export(ExportConfig(tmp_path / "run", tmp_path / "out", merge=True))
    assert done["dtype"] == "bfloat16"
    assert 1e-4 < done["error"] < 0.05
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert whole.dtype == torch.bfloat16
    assert (logits(whole) - trained).norm() / trained.norm() < 0.05


def test_a_merged_model_has_the_names_of_its_base_where_experts_are_adapted_twice():
    denoiser = Denoiser.from_pretrained(str(Path(__file__).parent / "families" / "llada2"))
    weights = {name: weight.clone() for name, weight in denoiser.model.state_dict().items()}
    both = ["experts.gate_up_proj", "experts.down_proj"]
    model = get_peft_model(denoiser.model, LoraConfig(r=2, target_modules=["q_proj"], target_parameters=both))
    with merged(model):
        found = whole_state(model)
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], weight) for name, weight in weights.items())  # B is 0 yet


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_is_undone_bit_for_bit(dtype):
    denoiser = random_denoiser()
    denoiser.model.to(dtype)
    bare = fingerprint(denoiser.model)
    weights = {name: weight.clone() for name, weight in denoiser.model.state_dict().items()}
    model = get_peft_model(denoiser.model, lora_config(denoiser, 4, 8))
    torch.nn.init.normal_(model.get_submodule("base_model.model.model.layers.0.mlp.up_proj.lora_B.default").weight)
    before = logits(model)
    with merged(model):
        assert fingerprint(model) != bare
        if dtype == torch.float32:
            torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-4)
    assert fingerprint(model) == bare
    assert torch.equal(logits(model), before)
    with torch.no_grad():
        model.get_submodule("base_model.model.model.layers.1.mlp.up_proj.lora_B.default").weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"), merged(model):
        pass
    for name, weight in model.unload().state_dict().items():
        assert torch.equal(weight, weights[name])


@pytest.mark.slow
def test_the_recipe_s_run_is_exported_with_its_card(tmp_path, capsys):
    base = tmp_path / "base"
    base_directory("tied", base)
    training = DiffusionSFTConfig(
        output_dir=str(tmp_path / "run"),
        bf16=False,
        use_cpu=True,
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=4,
        gradient_checkpointing=False,
        report_to="none",
        learning_rate=1e-2,
        logging_steps=1,
        disable_tqdm=True,
        eval_strategy="steps",
        eval_steps=2,
        canvas_length=20,
    )
    recipe = RecipeArguments(generate="sudoku", num_problems=16, num_eval_problems=4)
    train(recipe, training, DiffusionModelConfig(str(base), use_peft=True, lora_r=4))
    record = read_run(tmp_path / "run")
    assert (record.stage, record.family, record.task, record.base) == ("sft", "bidirectional", "sudoku", str(base))
    assert record.config["lora_r"] == 4
    assert read_run(tmp_path / "run" / "checkpoint-1") == record

    arguments = ["--adapter", str(tmp_path / "run"), "--output", str(tmp_path / "out")]
    assert export_cli.main(arguments) == 0
    assert "merged and adapted logits differ by" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: peft" in card
    for row in (
        "| stage | sft |",
        "| task | sudoku |",
        "| rank | 4 |",
        "| steps | 2 |",
        "| eval_loss | ",
        '"lora_r": 4',
    ):
        assert row in card
    assert str(tmp_path) not in card
    assert "output_dir" not in card
    (tmp_path / "run" / "adapter_config.json").unlink()
    assert adapter_directory(tmp_path / "run") == tmp_path / "run" / "checkpoint-2"
    assert export_cli.main(arguments) == 2
    assert "not an empty directory" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["autoregressive", "bidirectional"])
def test_an_adapter_that_attends_otherwise_than_its_base_is_merged_as_it_was_trained(kind, tmp_path):
    base, run = tmp_path / "base", tmp_path / "run"
    denoiser = base_directory("llama", base)
    if kind == "autoregressive":
        del make_causal(denoiser.model).config.diffusion
        denoiser.model.save_pretrained(base)
    plain = tokenizer()
    plain.mask_token = None  # the adapter's run taught a spare row
    plain.save_pretrained(base)
    train_by_hand(denoiser, run, base)
    facts = {"family": "context_causal", "layout": "context_causal", "shifted": True, "block_length": 4}
    (run / "diffusion.json").write_text(json.dumps(facts | {"mask_token_id": 2}))
    told = Denoiser.from_pretrained(str(run))
    export(ExportConfig(run, tmp_path / "merged", merge=True))
    merged = Denoiser.from_pretrained(str(tmp_path / "merged"))
    assert (merged.family, merged.mask_id) == (told.family, told.mask_id)
    assert merged.family.block_length == 4
    assert merged.model.config.is_causal is told.model.config.is_causal is True
    config = SamplerConfig(canvas_length=8, block_length=4, steps=4, temperature=0.0)
    one, other = (sample(d, ["12"], config)[0].canvas_ids for d in (told, merged))
    assert one == other


def test_a_base_that_has_moved_is_named_anew(tmp_path):
    model = train_by_hand(base_directory("llama", tmp_path / "base"), tmp_path / "run", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="elsewhere' cannot be loaded; say where it is with --base"):
        export(ExportConfig(tmp_path / "run", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    export(ExportConfig(tmp_path / "run", tmp_path / "out", base=str(tmp_path / "base")))
    plain = AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "out"
    )  # which finds the base by its name in the adapter
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"target_modules": ["lm_head"]}, {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]}]
)
def test_a_tied_head_cannot_be_merged_but_its_adapter_exported(settings, tmp_path):
    base = tmp_path / "base"
    train_by_hand(base_directory("tied", base), tmp_path / "run", base, task_type="CAUSAL_LM", **settings)
    with pytest.raises(ValueError, match="head is tied to its embeddings"):
        export(ExportConfig(tmp_path / "run", tmp_path / "out", merge=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run"]
    done = export(ExportConfig(tmp_path / "run", tmp_path / "out"))
    assert "it cannot be merged: the adapter changes the " in summary(done)


@pytest.mark.parametrize(
    "settings", [{"target_modules": ["lm_head"]}, {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]}]
)
def test_a_head_of_its_own_is_merged(settings, tmp_path):
    base = tmp_path / "base"
    model = train_by_hand(base_directory("qwen3", base), tmp_path / "run", base, task_type="CAUSAL_LM", **settings)
    trained = logits(model)
    export(ExportConfig(tmp_path / "run", tmp_path / "out", merge=True))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(whole), trained, rtol=1e-5, atol=1e-4)


def test_a_broken_adapter_leaves_nothing_behind(tmp_path):
    train_by_hand(base_directory("llama", tmp_path / "base"), tmp_path / "run", tmp_path / "base", scale=float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        export(ExportConfig(tmp_path / "run", tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run"]


def refused(says, config, **changes):
    with pytest.raises(ValueError, match=says):
        export(ExportConfig(**{**config, **changes}))
    assert not config["output"].exists()


def test_what_cannot_be_exported_is_refused_before_weights_are_loaded(tmp_path, monkeypatch):
    base, run = tmp_path / "base", tmp_path / "run"
    train_by_hand(base_directory("llama", base), run, base)
    (base / "model.safetensors").unlink()
    config = {"adapter": run, "output": tmp_path / "out"}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused("is not a directory", config, adapter=tmp_path / "absent")
    refused("holds a whole model, not an adapter", config, adapter=base)
    refused("hub_model_id='a/b' would be ignored without push", config, hub_model_id="a/b")
    refused("revision='v1' would be ignored: the base", config, revision="v1")
    refused("revision='v1' would be ignored: the base", config, revision="v1", base="embedded:sudoku")
    refused("is the working directory, which cannot be replaced", config, output=Path("."))
    refused("push: the base .* is a path", config, push=True)
    refused("push: the hub is switched off", config, push=True, base="owner/name")

    settings = json.loads((base / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(settings))
    refused("is quantised: an adapter cannot be merged", config)

    adapter = json.loads((run / "adapter_config.json").read_text())
    (run / "adapter_config.json").write_text(json.dumps({**adapter, "base_model_name_or_path": None}))
    refused("names no base; say which it is with --base", config)
    (run / "adapter_config.json").write_text(json.dumps({**adapter, "peft_type": "IA3"}))
    refused("an adapter of type 'IA3'; LORA alone", config)
    (run / "adapter_model.safetensors").unlink()
    refused("has an adapter_config.json but no adapter_model.safetensors", config)
    shutil.rmtree(run)
    run.mkdir()
    refused("holds no adapter", config)
    (run / "run.json").write_text('{"base": "x"}')
    with pytest.raises(ValueError, match=r"run.json is no record of a run: .*missing"):
        read_run(run)


def test_the_commit_of_a_base_is_read_from_the_hub_s_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert base_revision("owner/name", "main") == "main"
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("a1" * 20)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("a1" * 20)
    assert base_revision("owner/name", "main") == "a1" * 20
    assert base_revision(str(tmp_path), "main") is None


def test_a_record_holds_the_settings_that_differ(tmp_path):
    training = DiffusionSFTConfig(
        output_dir="x",
        bf16=False,
        canvas_length=7,
        hub_token="hf_secret",
        run_name="http://ann:secret@host/?api_key=secret",
    )
    settings = changed_settings(RecipeArguments(generate="sudoku"), training)
    assert settings["generate"] == "sudoku"
    assert settings["canvas_length"] == 7
    assert not {"loss_weighting", "num_problems"} & settings.keys()
    record = RunRecord("owner/name", "main", "sft", "llada", config=settings)
    write_run(tmp_path, record)
    assert read_run(tmp_path) == record
    assert "secret" not in (tmp_path / "run.json").read_text()
    assert settings["run_name"] == "http://***@host/?api_key=***"


@pytest.mark.slow
def test_a_model_that_brings_its_code_along(tmp_path, monkeypatch):
    """A type that nobody knows, from the disk: supervised training of mixed lengths with an adapter, export, merge."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    base = write_checkpoint(tmp_path / "base", tokenizer())
    training = DiffusionSFTConfig(
        output_dir=str(tmp_path / "run"),
        bf16=False,
        use_cpu=True,
        max_steps=2,
        report_to="none",
        gradient_checkpointing=False,
        disable_tqdm=True,
        learning_rate=1e-2,
        canvas_length=26,
        per_device_train_batch_size=4,
        trust_remote_code=True,
    )
    recipe = RecipeArguments(generate="countdown", num_problems=16, family="bidirectional")
    train(
        recipe, training, DiffusionModelConfig(str(base), use_peft=True, lora_r=4, lora_target_modules=["all-linear"])
    )
    for merge, output in ((False, tmp_path / "adapter"), (True, tmp_path / "merged")):
        done = export(ExportConfig(tmp_path / "run", output, merge=merge, trust_remote_code=True))
        assert done["error"] < 1e-5 < 1e-3 < done["effect"]
    places = (tmp_path / "merged", base)
    whole, plain = (AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True) for place in places)
    for model in (whole, plain):
        mend_buffers(model)  # transformers leaves those that are not saved as they come
    adapted = PeftModel.from_pretrained(plain, tmp_path / "run")
    torch.testing.assert_close(logits(whole), logits(adapted), rtol=1e-5, atol=1e-4)
