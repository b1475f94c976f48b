"""Compiled layers: the tokens of the plain model, and refusals by name where there is nothing to compile with."""

import pytest
import torch
from grpo_runs import make_trainer, train
from lockstitch.recipes.step_training import StepRewardConfig
from lockstitch.rl.adaptation_config import AdaptationConfig
from lockstitch.rl.grpo_config import DiffusionGRPOConfig
from lockstitch.rl.lora import lora_config
from lockstitch.rl.sft_config import DiffusionSFTConfig
from lockstitch.sampling.compiled import compile_layers
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.families import BIDIRECTIONAL, CONTEXT_CAUSAL, TIDAR
from lockstitch.sampling.loop import sample
from lockstitch.sampling.mask_gate import gated
from models import dream_like, random_denoiser

PROMPTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15]]


def test_a_compiler_that_is_missing_or_does_not_work_is_named(tmp_path, monkeypatch):
    denoiser = random_denoiser()
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        ValueError, match=r"torch.compile needs a C\+\+ compiler, and there is none here \((g|clang)\+\+\)"
    ):
        denoiser.compile_layers()
    broken = tmp_path / "c++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ]\n')  # which it does say
    broken.chmod(0o755)
    for name in ("no-such-compiler", "/bin/false", str(broken)):
        monkeypatch.setenv("CXX", name)
        with pytest.raises(ValueError, match=f"CXX={name}"):
            denoiser.compile_layers()
    broken.write_text("#!/bin/sh\necho 'fatal error: vector: No such file' >&2; exit 1\n")
    with pytest.raises(ValueError, match=r"that works, and CXX=.* does not: fatal error: vector"):
        denoiser.compile_layers()
    assert not denoiser.compiled


@pytest.mark.parametrize(
    ("backend", "mode", "says"),
    [
        ("nonsense", None, "torch_compile_backend='nonsense' is not one of .*inductor"),
        ("inductor", "nonsense", "torch_compile_mode='nonsense' is not one of .*reduce-overhead"),
        ("eager", "reduce-overhead", "torch_compile_mode='reduce-overhead' would be ignored by .*'eager'"),
    ],
)
def test_backends_and_modes_that_there_are_not_are_refused(backend, mode, says):
    with pytest.raises(ValueError, match=says):
        compile_layers(random_denoiser().model, backend, mode)


@pytest.mark.parametrize("settings", [DiffusionGRPOConfig, DiffusionSFTConfig, AdaptationConfig, StepRewardConfig])
def test_recipes_refuse_before_anything_is_loaded(settings, tmp_path, monkeypatch):
    told = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    with pytest.raises(ValueError, match="torch_compile_backend='nonsense' is not one of"):
        settings(**told, torch_compile_backend="nonsense")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="CXX=no-such-compiler"):
        settings(**told, torch_compile=True)


def test_a_backend_that_calls_no_compiler_needs_none(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    plain, compiled = random_denoiser().model, random_denoiser().model
    compile_layers(compiled, "eager")
    ids = torch.tensor([PROMPTS[1]])
    assert torch.equal(compiled(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_what_brings_its_own_code_is_refused():
    with pytest.raises(ValueError, match="it runs code of its own"):
        dream_like(random_denoiser()).compile_layers()


def test_caches_are_refused():
    denoiser = random_denoiser()
    denoiser.compiled = True
    with pytest.raises(ValueError, match=r"cache='dual': what a pass reads .* cache='none'"):
        sample(denoiser, PROMPTS, SamplerConfig(16, 8, cache="dual"))


@pytest.mark.slow
@pytest.mark.parametrize("family", [BIDIRECTIONAL, CONTEXT_CAUSAL], ids=lambda family: family.name)
def test_compiled_layers_draw_the_same_tokens(family):
    plain, compiled = (random_denoiser(family=family) for _ in range(2))
    compiled.compile_layers()
    config = SamplerConfig(16, 8, policy="threshold", threshold=0.5)
    for one, other in zip(sample(plain, PROMPTS, config), sample(compiled, PROMPTS, config), strict=True):
        assert one.canvas_ids == other.canvas_ids
        assert one.commit_step == other.commit_step
        assert other.confidence == pytest.approx(one.confidence, abs=1e-5)
        assert (one.ledger.nfe, one.ledger.tokens_forwarded) == (other.ledger.nfe, other.ledger.tokens_forwarded)


def test_gated_adapters_are_refused():
    denoiser = random_denoiser(family=TIDAR)
    model = gated(denoiser.model, lora_config(denoiser, 2, 4, gated=True))
    with pytest.raises(ValueError, match="an adapter that acts at mask positions alone cannot be compiled"):
        compile_layers(model)


def test_rollouts_that_keep_keys_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cache='dual': .* compiled layers would be compiled anew each time"):
        make_trainer({"torch_compile": True, "cache": "dual", "block_length": 4}, tmp_path)


@pytest.mark.slow
def test_training_compiles_the_layers_alone_and_learns_the_same(tmp_path):
    plain, told = train({"max_steps": 2}, tmp_path / "plain", lora=True)
    compiled, tells = train({"max_steps": 2, "torch_compile": True}, tmp_path / "compiled", lora=True)
    for one, other in zip(told[:2], tells[:2], strict=True):
        assert other["reward"] == pytest.approx(one["reward"])
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
    for name, weight in plain.items():
        assert torch.allclose(compiled[name], weight, atol=1e-4), name
