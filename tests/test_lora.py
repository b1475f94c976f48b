"""LoRA targets per family, and the adapter flags of the recipes."""

import importlib.util
import warnings
from types import SimpleNamespace

import pytest
import torch
from lockstitch.recipes.sft import RecipeArguments, train
from lockstitch.rl.export import ExportConfig, export
from lockstitch.rl.lora import (
    DiffusionModelConfig,
    block_modules,
    default_targets,
    loading_of,
    lora_config,
    peft_config_of,
)
from lockstitch.rl.sft_config import DiffusionSFTConfig
from lockstitch.sampling.denoiser import DREAM, FAMILIES, LLADA, LLADA2, Denoiser
from models import dream_like, llada_like, random_denoiser, tokenizer
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lockstitch import embedded_model


def linear_maps(*names):
    return nn.ModuleDict({name: nn.Linear(4, 4) for name in names})


def named(family, **tree):
    """A model of which only the names of the modules count."""
    model = nn.ModuleDict(tree)
    model.config, model.generation_config = SimpleNamespace(), None
    return Denoiser(model, tokenizer(), family)


def llada():
    """The module names of LLaDA's code: the head is called like the last projection of each block."""
    block = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")
    transformer = nn.ModuleDict({"blocks": nn.ModuleList([linear_maps(*block), linear_maps(*block)]),
                                 "ff_out": nn.Linear(4, 9)})  # fmt: skip
    return named(LLADA, model=nn.ModuleDict({"transformer": transformer}))


def llada2():
    """The module names of LLaDA2's code: one dense layer, then experts."""
    mlp = ("gate_proj", "up_proj", "down_proj")
    experts = nn.ModuleDict({"experts": nn.ModuleList([linear_maps(*mlp) for _ in range(3)]),
                             "shared_experts": linear_maps(*mlp)})  # fmt: skip
    layers = nn.ModuleList([
        nn.ModuleDict({"attention": linear_maps("query_key_value", "dense"), "mlp": linear_maps(*mlp)}),
        nn.ModuleDict({"attention": linear_maps("query_key_value", "dense"), "mlp": experts}),
    ])  # fmt: skip
    return named(LLADA2, model=nn.ModuleDict({"layers": layers}), lm_head=nn.Linear(4, 9))


def adapted(denoiser, **settings):
    """Names of the modules that PEFT gives an adapter."""
    model = get_peft_model(denoiser.model, lora_config(denoiser, 2, 4, **settings))
    return {name.removeprefix("base_model.model.") for name, module in model.named_modules()
            if isinstance(module, BaseTunerLayer)}  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_every_linear_map_of_the_blocks_is_a_target_and_the_head_is_not(kind):
    denoiser = random_denoiser(kind)
    expected = {name for name, module in denoiser.model.named_modules()
                if isinstance(module, nn.Linear) and name != "lm_head"}  # fmt: skip
    assert adapted(denoiser) == expected
    assert len(expected) == 14


def test_the_head_of_llada_is_spared_though_it_bears_the_name_of_a_target():
    found = adapted(llada())
    assert len(found) == 14
    assert "model.transformer.blocks.1.ff_out" in found
    assert "model.transformer.ff_out" not in found
    assert adapted(llada(), targets="ff_out") == {f"model.transformer.blocks.{i}.ff_out" for i in range(2)}


def test_routed_experts_are_adapted_only_when_asked_for():
    assert not any(".experts." in name for name in adapted(llada2()))
    assert len(adapted(llada2())) == 2 * 2 + 3 + 3
    assert adapted(llada2(), targets=["experts.up_proj"]) == {f"model.layers.1.mlp.experts.{i}.up_proj" for i in range(3)}
    assert adapted(llada2(), targets="all-linear") == set(block_modules(llada2().model))


def test_the_targets_that_d1_asked_for_on_llada_are_refused():
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
    with pytest.raises(ValueError, match=r"o_proj, down_proj, gate_proj matches no .*there are: attn_out, ff_out, ff_proj"):
        lora_config(llada(), 8, 16, targets=names)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"targets": ["lm_head"]}, "lora_target_modules: lm_head matches no"),
        ({"targets": []}, "an empty list"),
        ({"targets": "q_pro"}, "q_pro matches no"),
        ({"dropout": 1.0}, "lora_dropout=1.0"),
    ],
)
def test_bad_adapters_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        lora_config(random_denoiser(), 2, 4, **settings)
    with pytest.raises(ValueError, match="lora_r=0"):
        lora_config(random_denoiser(), 0, 4)


def test_every_family_has_targets_of_its_own_kind():
    assert all(len(set(default_targets(name))) >= 7 for name in FAMILIES)
    assert default_targets("llada") != default_targets(DREAM.name) == default_targets("bidirectional")


@pytest.mark.parametrize("convention", [llada_like, dream_like])
def test_a_wrapped_model_is_called_in_its_own_convention(convention):
    """Code of checkpoints need not take the arguments that PEFT's causal wrapper adds."""
    denoiser = convention(random_denoiser())
    ids = torch.arange(10, 18)[None]
    plain = denoiser.forward_logits(denoiser.model, ids, torch.ones_like(ids))
    model = get_peft_model(denoiser.model, lora_config(denoiser, 2, 4, targets="all-linear"))
    torch.testing.assert_close(denoiser.forward_logits(model, ids, torch.ones_like(ids)), plain)


def test_the_flags_of_trl_make_the_adapter():
    denoiser = random_denoiser()
    assert peft_config_of(DiffusionModelConfig(), denoiser) is None
    flags = DiffusionModelConfig(use_peft=True, lora_r=3, lora_alpha=5, lora_target_modules=["v_proj"], use_rslora=True,
                                 model_revision="abc")  # fmt: skip
    config = peft_config_of(flags, denoiser)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora, config.revision) == (3, 5, 0.0, True, "abc")
    assert adapted(denoiser, targets="v_proj") == {f"model.layers.{i}.self_attn.v_proj" for i in range(2)}
    assert loading_of(flags) == {"revision": "abc", "dtype": "float32"}


def test_dropout_is_warned_of_where_ratios_are_formed():
    flags = DiffusionModelConfig(use_peft=True, lora_dropout=0.05)
    with pytest.warns(UserWarning, match="ratio is not 1 at the first inner iteration"):
        peft_config_of(flags, random_denoiser(), ratios=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        peft_config_of(flags, random_denoiser())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"lora_r": 8}, "lora_r would be ignored"),
        ({"load_in_4bit": True}, "load_in_4bit would be ignored"),
        ({"use_peft": True, "lora_task_type": "SEQ_CLS"}, "lora_task_type='SEQ_CLS'"),
        ({"use_peft": True, "lora_target_parameters": ["a"]}, "lora_target_parameters"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(flags, says):
    with pytest.raises(ValueError, match=says):
        DiffusionModelConfig(**flags)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_quantisation_without_bitsandbytes_is_refused():
    with pytest.raises(ValueError, match="need bitsandbytes, which is not installed"):
        DiffusionModelConfig(use_peft=True, load_in_4bit=True, dtype="bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_an_adapter_of_a_quantised_base_is_trained_and_merged_into_the_whole_one(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    flags = DiffusionModelConfig(str(embedded_model("sudoku")), use_peft=True, lora_r=4, dtype="bfloat16", **{bits: True})
    training = DiffusionSFTConfig(output_dir=str(tmp_path / "run"), bf16=False, use_cpu=True, max_steps=2, report_to="none",
                                  gradient_checkpointing=False)  # fmt: skip
    train(RecipeArguments(generate="sudoku", num_problems=16), training, flags)
    done = export(ExportConfig(tmp_path / "run", tmp_path / "out", merge=True))
    assert done["dtype"] == "float32"
    assert 0 < done["error"] < 1e-5
