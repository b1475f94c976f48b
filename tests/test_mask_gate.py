"""Adapters that act at mask positions alone: the clean path is the parent's, bit for bit; they travel as PEFT adapters."""

import copy
import json

import pytest
import torch
from lockstitch.rl.export import ExportConfig, export
from lockstitch.rl.export_cli import summary
from lockstitch.rl.lora import lora_config
from lockstitch.sampling.adapters import to_train_from
from lockstitch.sampling.cli import main
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.families import BIDIRECTIONAL, CONTEXT_CAUSAL, IDLM, TIDAR
from lockstitch.sampling.loading import read_config
from lockstitch.sampling.mask_gate import MaskGatedLoraConfig, gated, is_gated
from models import random_denoiser
from peft import PeftModel

KINDS = ("llama", "qwen2", "qwen3")


def adapter_on(denoiser, scale=0.3):
    """A gated adapter of random weights on a denoiser's model."""
    model = gated(denoiser.model, lora_config(denoiser, 4, 8, gated=True))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight += scale * torch.randn(weight.shape, generator=generator)
    return model.eval()


def ids_with_masks(denoiser, masked):
    ids = torch.randint(5, 40, (2, 12), generator=torch.Generator().manual_seed(1))
    ids[:, masked] = denoiser.mask_id
    return ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [CONTEXT_CAUSAL, TIDAR, IDLM], ids=lambda family: family.name)
def test_what_is_written_is_read_by_the_parent_bit_for_bit(kind, family):
    """Under a causal mask nothing clean sees a mask that comes after it, so its logits are the parent's to the last bit."""
    denoiser = random_denoiser(kind, family=family)
    parent = copy.deepcopy(denoiser.model)
    model = adapter_on(denoiser)
    ids = ids_with_masks(denoiser, slice(8, 12))
    with torch.no_grad():
        expected, found = parent(input_ids=ids).logits, model(input_ids=ids).logits
        assert torch.equal(found[:, :8], expected[:, :8])
        assert bool((found[:, 8:] - expected[:, 8:]).abs().amax(-1).gt(0.01).all())
        clean = ids[:, :8]
        assert torch.equal(model(input_ids=clean).logits, parent(input_ids=clean).logits)
        generated = [m.generate(clean, max_new_tokens=6, do_sample=False, pad_token_id=0) for m in (parent, model)]
    assert torch.equal(*generated)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_among_clean_tokens_are_the_ungated_adapter_s_at_masks(kind):
    """One layer, by hand: base output everywhere, and at masks what the two matrices add."""
    denoiser = random_denoiser(kind)
    model = adapter_on(denoiser)
    ids = ids_with_masks(denoiser, [0, 3, 4, 11])
    layer, seen = model.get_base_model().model.layers[0].self_attn.q_proj, {}
    handle = layer.register_forward_hook(lambda _, inputs, output: seen.update(x=inputs[0], y=output))
    with torch.no_grad():
        model(input_ids=ids)
        handle.remove()
        added = layer.lora_B["default"](layer.lora_A["default"](seen["x"])) * layer.scaling["default"]
        plain = layer.base_layer(seen["x"])
    at = ids == denoiser.mask_id
    assert torch.equal(seen["y"][~at], plain[~at])
    torch.testing.assert_close(seen["y"][at], (plain + added)[at])


def test_gradients_come_from_masks_alone():
    denoiser = random_denoiser(family=IDLM)
    model = adapter_on(denoiser).train()
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    logits = model(input_ids=ids_with_masks(denoiser, slice(8, 12))).logits
    logits[:, 8:].logsumexp(-1).sum().backward()
    assert all(model.get_parameter(name).grad.abs().sum() > 0 for name in names)
    model.zero_grad()
    clean = model(input_ids=ids_with_masks(denoiser, slice(8, 12))).logits[:, :8]
    assert not clean.requires_grad or all(
        grad is None or not grad.any()
        for grad in torch.autograd.grad(clean.sum(), [model.get_parameter(n) for n in names], allow_unused=True)
    )


def test_it_needs_token_ids():
    denoiser = random_denoiser()
    model = adapter_on(denoiser)
    ids = ids_with_masks(denoiser, slice(8, 12))
    model(input_ids=ids)
    with pytest.raises(ValueError, match="needs token ids"):
        model(inputs_embeds=model.get_input_embeddings().weight[ids])


@pytest.fixture
def saved(tmp_path):
    """A plain causal base without a word of diffusion in its config, and a gated adapter for it."""
    denoiser = random_denoiser("llama", family=IDLM)
    base = copy.deepcopy(denoiser.model)
    del base.config.diffusion
    base.save_pretrained(tmp_path / "base")
    denoiser.tokenizer.save_pretrained(tmp_path / "base")
    denoiser.model.config._name_or_path = denoiser.model.name_or_path = str(tmp_path / "base")
    model = adapter_on(denoiser)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path, denoiser, model


def test_it_travels_as_an_adapter_that_says_what_it_is(saved):
    directory, denoiser, model = saved
    config = json.loads((directory / "adapter" / "adapter_config.json").read_text())
    assert config["alora_invocation_tokens"] == [denoiser.mask_id]
    assert config["peft_type"] == "LORA"
    assert "facts" not in config
    assert read_config(str(directory / "adapter"))["diffusion"]["family"] == "idlm"
    loaded = Denoiser.from_pretrained(str(directory / "adapter"), device="cpu")
    assert is_gated(loaded.model)
    assert (loaded.family, loaded.mask_id) == (IDLM, denoiser.mask_id)
    ids = ids_with_masks(denoiser, [2, 5, 6, 7])
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=ids).logits, model(input_ids=ids).logits)
    loaded.model.save_pretrained(directory / "again")
    for name in ("adapter_config.json", "diffusion.json"):
        assert json.loads((directory / "again" / name).read_text()) == json.loads(
            (directory / "adapter" / name).read_text()
        )


def test_plain_peft_runs_the_parent_where_there_is_no_mask(saved):
    directory, _, _ = saved
    base = Denoiser.from_pretrained(str(directory / "base"), family="idlm", device="cpu").model
    clean = torch.arange(5, 15)[None]
    with torch.no_grad():
        expected = base(input_ids=clean).logits
        found = PeftModel.from_pretrained(base, str(directory / "adapter"))(input_ids=clean).logits
    assert torch.equal(found, expected)


def test_it_is_sampled_from_by_the_command(saved, capsys):
    directory, _, _ = saved
    assert (
        main(["--model", str(directory / "adapter"), "--prompt", "1+1=", "--canvas_length", "4", "--device", "cpu"])
        == 0
    )
    assert capsys.readouterr().out


def test_it_is_never_merged(saved, tmp_path):
    directory, _, model = saved
    with pytest.raises(ValueError, match="mask positions alone"):
        to_train_from(model, "it")
    with pytest.raises(ValueError, match="mask positions"):
        model.merge_and_unload()
    with pytest.raises(ValueError, match="mask positions alone"):
        export(ExportConfig(adapter=directory / "adapter", output=tmp_path / "out", merge=True))
    done = export(ExportConfig(adapter=directory / "adapter", output=tmp_path / "out"))
    assert done["effect"] > 0
    assert "it cannot be merged: the adapter acts at mask positions alone" in summary(done)
    assert (
        "it cannot be merged (the adapter acts at mask positions alone" in (tmp_path / "out" / "README.md").read_text()
    )
    assert is_gated(Denoiser.from_pretrained(str(tmp_path / "out"), device="cpu").model)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"use_dora": True}, "use_dora=True does not go"), ({"modules_to_save": ["lm_head"]}, "modules_to_save")],
)
def test_what_a_gate_cannot_do_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        lora_config(random_denoiser(), 2, 4, gated=True, **settings)
    with pytest.raises(ValueError, match="name no mask_token_id"):
        MaskGatedLoraConfig(r=2)


def test_facts_that_cannot_be_read_are_a_line(saved):
    directory, _, _ = saved
    path = directory / "adapter" / "diffusion.json"
    for text, says in (("{", "is no JSON"), ("{}", "names no family and mask_token_id")):
        path.write_text(text)
        with pytest.raises(ValueError, match=says):
            Denoiser.from_pretrained(str(directory / "adapter"), device="cpu")


def test_a_full_model_can_have_one_too():
    denoiser = random_denoiser(family=BIDIRECTIONAL)
    ids = ids_with_masks(denoiser, slice(0, 0))
    with torch.no_grad():
        expected = denoiser.model(input_ids=ids).logits
        assert torch.equal(adapter_on(denoiser)(input_ids=ids).logits, expected)
