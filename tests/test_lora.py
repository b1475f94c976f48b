"""LoRA targets per family, and the adapter flags of the recipes."""

import copy
import importlib.util
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from lockstitch.recipes.sft import RecipeArguments, train
from lockstitch.rl.export import ExportConfig, export
from lockstitch.rl.lora import (
    DiffusionModelConfig,
    loading_of,
    lora_config,
    peft_config_of,
)
from lockstitch.rl.sft_config import DiffusionSFTConfig
from lockstitch.sampling.denoiser import Denoiser
from models import dream_like, random_denoiser, without_mask
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lockstitch import embedded_model


def adapted(denoiser, **settings):
    """Names of the modules that PEFT gives an adapter."""
    model = get_peft_model(denoiser.model, lora_config(denoiser, 2, 4, **settings))
    return {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_every_linear_map_of_the_blocks_is_a_target_and_the_head_is_not(kind):
    denoiser = random_denoiser(kind)
    expected = {
        name for name, module in denoiser.model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"
    }
    assert adapted(denoiser) == expected
    assert len(expected) == 14


GOLDEN = Path(__file__).parent / "families"


@cache
def golden(name):
    return Denoiser.from_pretrained(str(GOLDEN / name), device="cpu")


@pytest.mark.parametrize(
    ("name", "count"),
    [("llada", 14), ("dream", 14), ("sdar", 14), ("fastv2", 14), ("llada_moe", 8), ("llada2", 8 + 3 + 3)],
)
def test_every_map_that_sees_every_token_is_a_target(name, count):
    """Attention, dense layers and the shared expert; neither head nor router nor routed experts."""
    found = adapted(copy.deepcopy(golden(name)))
    assert len(found) == count
    assert not any("experts" in one and "shared" not in one for one in found)
    assert not any(one.endswith(("lm_head", "gate")) for one in found)


def test_stacked_experts_are_adapted_when_asked_for():
    denoiser = copy.deepcopy(golden("llada2"))
    config = lora_config(denoiser, 2, 4, targets=["q_proj", "experts.gate_up_proj", "experts.down_proj"])
    model = get_peft_model(denoiser.model, config)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert sum(".mlp.experts." in name for name in trained) == 4  # A and B of both, in the one layer that has experts
    assert sum(".q_proj." in name for name in trained) == 4
    assert len(trained) == 8
    with pytest.raises(ValueError, match=r"lora_dropout=0.1: PEFT has none for mlp.experts.down_proj"):
        lora_config(golden("llada2"), 2, 4, 0.1, targets=["experts.down_proj"])


def test_names_of_published_code_are_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"ff_out matches nothing .*there are: mlp.down_proj.*self_attn.o_proj"):
        lora_config(golden("llada"), 8, 16, targets=["q_proj", "ff_out"])
    d1 = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
    assert len(adapted(copy.deepcopy(golden("llada")), targets=d1)) == 14


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"targets": ["lm_head"]}, "lora_target_modules: lm_head matches nothing"),
        ({"targets": []}, "an empty list"),
        ({"targets": "q_pro"}, "q_pro matches no"),
        ({"dropout": 1.0}, "lora_dropout=1.0"),
        ({"r": 0}, "lora_r=0"),
        ({"alpha": 0}, "lora_alpha=0 must be above 0"),
        ({"alpha": -4}, "lora_alpha=-4 must be above 0"),
        ({"modules_to_save": ["nosuch"]}, r"no module's path ends in 'nosuch'; there are: .*lm_head, norm"),
        ({"modules_to_save": ["head"]}, "no module's path ends in 'head'"),
        ({"modules_to_save": ["layers"]}, "no module's path ends in 'layers'"),
        (
            {"modules_to_save": ["lm_head", "mlp"]},
            "'mlp' is trained whole, and so cannot have the adapter of model.layers.0",
        ),
    ],
)
def test_bad_adapters_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        lora_config(random_denoiser(), **{"r": 2, "alpha": 4, **settings})


def test_a_model_without_a_denoiser_is_checked_as_well():
    model = random_denoiser("qwen3").model
    with pytest.raises(ValueError, match="attn_out matches nothing inside the blocks of this qwen3 model"):
        lora_config(model, 2, 4, targets=["q_proj", "attn_out"])
    config = lora_config(model, 2, 4, modules_to_save=["lm_head", "self_attn.q_norm"])
    assert config.task_type == "CAUSAL_LM"
    trained = {name for name, weight in get_peft_model(model, config).named_parameters() if weight.requires_grad}
    assert len({name.split(".lora_")[0] for name in trained if ".lora_" in name}) == 14
    assert sum("lm_head.modules_to_save" in name for name in trained) == 1
    assert sum("q_norm.modules_to_save" in name for name in trained) == 2


@pytest.mark.parametrize("convention", [without_mask, dream_like])
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
    flags = DiffusionModelConfig(
        use_peft=True, lora_r=3, lora_alpha=5, lora_target_modules=["v_proj"], use_rslora=True, model_revision="abc"
    )
    config = peft_config_of(flags, denoiser)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora, config.revision) == (
        3,
        5,
        0.0,
        True,
        "abc",
    )
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
        ({"use_peft": True, "lora_r": 0}, "lora_r=0"),
        ({"use_peft": True, "lora_alpha": 0}, "lora_alpha=0"),
    ],
)
def test_flags_that_would_be_ignored_or_learn_nothing_are_refused(flags, says):
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
    flags = DiffusionModelConfig(
        str(embedded_model("sudoku")), use_peft=True, lora_r=4, dtype="bfloat16", **{bits: True}
    )
    training = DiffusionSFTConfig(
        output_dir=str(tmp_path / "run"),
        bf16=False,
        use_cpu=True,
        max_steps=2,
        report_to="none",
        gradient_checkpointing=False,
    )
    train(RecipeArguments(generate="sudoku", num_problems=16), training, flags)
    done = export(ExportConfig(tmp_path / "run", tmp_path / "out", merge=True))
    assert done["dtype"] == "float32"
    assert 0 < done["error"] < 1e-5
