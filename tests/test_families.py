"""Every family's published checkpoint on transformers' own class, against recordings of the family's own code.

`families/NAME` holds a checkpoint as its authors publish them (config.json, tensor names; random weights), and what their
own code said of it in float32: logits (`logits.safetensors`) and, in golden.json, tokens of their `generate`, greedy.
"""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.rl.estimators import estimate
from lockstitch.rl.scoring import Canvases, Scorer
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.families import FAMILIES, family_of
from lockstitch.sampling.layouts import EXACT, is_exact
from lockstitch.sampling.loading import (
    load_model,
    load_tokenizer,
    native_config,
    read_config,
    save_published,
    translation_of,
)
from lockstitch.sampling.loop import sample
from lockstitch.sampling.presets import PRESETS, preset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

GOLDEN = Path(__file__).parent / "families"
NAMES = {"llada": "llada", "llada_moe": "llada_moe", "dream": "dream", "sdar": "sdar", "fastv2": "fast_dllm_v2",
         "llada2": "llada2"}  # fmt: skip
every_family = pytest.mark.parametrize("name", NAMES)
PROMPTS = [[17, 93, 242], [154, 129, 121, 395, 64, 154, 188], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]]
G = 12


@cache
def golden(name):
    return Denoiser.from_pretrained(str(GOLDEN / name), device="cpu")


def recorded(name, kind):
    return [case for case in json.loads((GOLDEN / name / "golden.json").read_text())["cases"] if case["kind"] == kind]


def block_mask(length, block):
    of = torch.arange(length) // block
    return torch.zeros(length, length).masked_fill(of[None] > of[:, None], torch.finfo(torch.float32).min)[None, None]


def settings(name, **more):
    """A sampler whose cache, if any, is exact or not; blocks of four where blocks are the model's."""
    return SamplerConfig(**{"canvas_length": G, "block_length": 4, "stop_at_eos": False, **more})


def tokens(trajectories):
    return [t.canvas_ids for t in trajectories]


# Against the families' own code


@every_family
@torch.no_grad()
def test_logits_are_those_of_the_familys_own_code(name):
    denoiser, expected = golden(name), load_file(GOLDEN / name / "logits.safetensors")
    assert denoiser.family.name == NAMES[name]
    for case in recorded(name, "logits"):
        ids = torch.tensor([case["input_ids"]])
        masks = {"attention_mask": block_mask(ids.shape[1], case["block_length"])} if case["block_length"] else {}
        logits = denoiser.model(input_ids=ids, use_cache=False, **masks).logits[0]
        recorded_LV = expected[case["name"]]
        assert (logits[:, : recorded_LV.shape[1]] - recorded_LV).abs().max() < 2e-5  # LLaDA's head is padded beyond


# What the recordings were made with: the most probable first, and Dream's schedule almost at zero, where rounding down
# leaves one step of 32 idle.
OVERRIDES = {"dream": {"temperature": 0.0, "top_p": None, "certainty": None, "schedule_eps": -1e-6}}
# SDAR's code takes the quota of a step even where fewer masks are left, and then overwrites tokens of the prompt.
OVERWRITES_PROMPT = {("sdar", 7, 4, 16), ("sdar", 29, 4, 16)}


def cases_of_generate():
    for name in NAMES:
        for case in recorded(name, "generate"):
            key = (name, len(case["prompt_ids"]), case["block_length"], case["steps"])
            yield pytest.param(name, case, id="-".join(map(str, (*key, case["canvas_length"]))))


@pytest.mark.parametrize(("name", "case"), list(cases_of_generate()))
def test_tokens_are_those_of_the_familys_own_generate(name, case):
    """Under the family's preset, whatever cache it has, at the recorded steps."""
    denoiser, length = golden(name), case["canvas_length"]
    key = (name, len(case["prompt_ids"]), case["block_length"], case["steps"])
    chosen = {
        "block_length": case["block_length"],
        "steps": case["steps"],
        "stop_at_eos": False,
        **OVERRIDES.get(name, {}),
    }
    config = preset(FAMILIES[NAMES[name]].decoding, length, **chosen)
    (t,) = sample(denoiser, [case["prompt_ids"]], config)
    if key in OVERWRITES_PROMPT:
        assert list(t.canvas_ids[:length]) != case["tokens"]
        assert as_sdar_does(denoiser, case, overwrites=True) == case["tokens"]
        assert as_sdar_does(denoiser, case, overwrites=False) == list(t.canvas_ids[:length])
    else:
        assert list(t.canvas_ids[:length]) == case["tokens"]
    assert t.length == length or t.canvas_ids[t.length - 1] in denoiser.eos_ids


@torch.no_grad()
def as_sdar_does(denoiser, case, overwrites):
    """SDAR's loop, plainly: whole passes, blocks from the prompt's first token, the quota of a whole block at every step.

    Its code asks for the so many surest of all positions of the block: where fewer masks are left, those beyond are tokens
    of the prompt, or of earlier steps, and are overwritten.
    """
    prompt, block, length = case["prompt_ids"], case["block_length"], case["canvas_length"]
    blocks = -(-(len(prompt) + length) // block)
    ids = torch.full((1, blocks * block), denoiser.mask_id)
    ids[0, : len(prompt)] = torch.tensor(prompt)
    steps, mask = case["steps"] // -(-length // block), block_mask(blocks * block, block)
    for number in range(len(prompt) // block, blocks):
        stop = (number + 1) * block
        now = ids[0, stop - block : stop]
        for step in range(steps):
            masked = now == denoiser.mask_id
            if not masked.any():
                break
            quota = block // steps + (step < block % steps)
            logits = denoiser.model(input_ids=ids[:, :stop], attention_mask=mask[:, :, :stop, :stop]).logits[
                0, -block:
            ]
            logits[:, denoiser.never_drawn] = -torch.inf
            p, token = logits.softmax(-1).max(-1)
            count = quota if overwrites else min(quota, int(masked.sum()))
            chosen = p.masked_fill(~masked, -torch.inf).topk(count).indices
            now[chosen] = token[chosen]
    return ids[0, len(prompt) : len(prompt) + length].tolist()


@torch.no_grad()
def as_fast_dllm_does(denoiser, prompt, length, block, sub_block, threshold):
    """Fast-dLLM v2's loop (2509.26328), plainly: a block's first token by the pass before it, then sub-blocks; no cache."""
    ids = list(prompt)
    while len(ids) < len(prompt) + length:
        begin = len(ids) // block * block
        mask = block_mask(begin + block, block)
        if begin == len(ids):  # the pass that commits the last block
            logits = denoiser.model(input_ids=torch.tensor([ids]), attention_mask=mask[:, :, :begin, :begin]).logits[
                0, -1
            ]
            logits[denoiser.never_drawn] = -torch.inf
            ids.append(int(logits.argmax()))
        ids += [denoiser.mask_id] * (begin + block - len(ids))
        for sub in range(begin, begin + block, sub_block):
            while denoiser.mask_id in ids[sub : sub + sub_block]:
                logits = denoiser.model(input_ids=torch.tensor([ids]), attention_mask=mask).logits[0]
                logits[:, denoiser.never_drawn] = -torch.inf
                p, token = logits.softmax(-1).max(-1)
                masked = [i for i in range(sub, sub + sub_block) if ids[i] == denoiser.mask_id]
                best = max(masked, key=lambda i: float(p[i - 1]))
                for i in masked:
                    if p[i - 1] > threshold or i == best:
                        ids[i] = int(token[i - 1])
    return ids[len(prompt) : len(prompt) + length]


@pytest.mark.parametrize("width", [7, 16, 21])
def test_fast_dllm_v2_opens_blocks_and_goes_by_sub_blocks(width):
    """No recording of its `generate` is at hand: the plain loop of its paper and code stands in."""
    denoiser, prompt = golden("fastv2"), list(range(30, 30 + width))
    # A threshold that commits several tokens at some steps, and one at others.
    config = preset("fast_dllm_v2", 24, block_length=8, sub_block_length=4, threshold=0.035, stop_at_eos=False)
    (t,) = sample(denoiser, [prompt], config)
    assert list(t.canvas_ids[:24]) == as_fast_dllm_does(denoiser, prompt, 24, 8, 4, 0.035)
    assert 24 / 4 < t.last_step < 24


@pytest.mark.parametrize(("name", "length"), [("sdar", 2), ("sdar", 10), ("llada2", 20), ("fastv2", 20)])
@pytest.mark.parametrize("width", [3, 32, 42])
def test_whole_blocks_are_the_models_own_whatever_the_canvas(name, length, width):
    """A canvas that is shorter than a block, or no multiple of it, is cut off blocks as the model was trained with."""
    denoiser, prompt, block = golden(name), list(range(30, 30 + width)), 4 if name == "sdar" else 32
    (t,) = sample(denoiser, [prompt], preset(FAMILIES[NAMES[name]].decoding, length, threshold=2.0, stop_at_eos=False))
    case = {"prompt_ids": prompt, "block_length": block, "canvas_length": length, "steps": -(-length // block) * block}
    if name == "fastv2":
        expected = as_fast_dllm_does(denoiser, prompt, length, block, 8, 2.0)
    else:
        expected = as_sdar_does(denoiser, case, overwrites=False)
    assert list(t.canvas_ids[:length]) == expected
    assert (width + len(t.canvas_ids)) % block == 0
    said = replace(
        preset("sdar", length, steps=case["steps"] * 2), block_length=None
    )  # until the model's blocks are known
    with pytest.raises(ValueError, match=f"steps={2 * case['steps']} must be a multiple of the .* blocks and at most"):
        sample(denoiser, [prompt], said)


@pytest.mark.parametrize("width", [3, 32])
@torch.no_grad()
def test_the_likelihood_of_a_whole_block_is_its_own_path_probability(width):
    """Also where the canvas is shorter than the block that it stands in."""
    denoiser = golden("llada2")
    config = preset("llada2", 5, temperature=1.0, threshold=0.02, stop_at_eos=False)
    drawn = sample(denoiser, [list(range(30, 30 + width))], config, n=2)
    canvases = Canvases.from_trajectories(drawn, denoiser)
    logp_BG = estimate(EstimatorConfig("trajectory"), Scorer(denoiser, denoiser.model, block_length=32), canvases, 0)
    expected = torch.tensor([t.confidence for t in drawn]).log() * canvases.valid_BG
    torch.testing.assert_close(logp_BG, expected, atol=2e-4, rtol=1e-4)


def test_whole_blocks_may_reach_the_last_position_that_the_model_was_made_for():
    denoiser = golden("llada2")
    longest = denoiser.longest
    sample(denoiser, [[17] * (longest - 20)], preset("llada2", 20, threshold=0.0))
    with pytest.raises(ValueError, match="more than the 512 positions"):
        sample(denoiser, [[17] * (longest - 19)], preset("llada2", 20, threshold=0.0))


# The sampler on every family


@every_family
def test_rows_do_not_depend_on_what_they_are_batched_with(name):
    denoiser = golden(name)
    config = settings(name, temperature=1.0, steps=6)
    together = sample(denoiser, PROMPTS, config, n=2, seed=3)
    alone = [t for i in range(len(PROMPTS)) for t in sample(denoiser, [PROMPTS[i]], config, n=2, seed=3)]
    assert tokens(together) == tokens(alone)
    apart = settings(name, temperature=1.0, steps=6, batch_size=1)
    assert tokens(sample(denoiser, PROMPTS, apart, n=2, seed=3)) == tokens(alone)


@every_family
def test_exact_caches_change_nothing_and_the_others_are_called_approximate(name):
    denoiser = golden(name)
    shared = {"temperature": 1.0, "steps": 6}
    plain = sample(denoiser, PROMPTS, settings(name, **shared), n=2)
    for cache_name in set(EXACT[denoiser.family.layout]) - {"none", "interval"}:
        cached = sample(denoiser, PROMPTS, settings(name, cache=cache_name, **shared), n=2)
        assert (tokens(cached) == tokens(plain)) == is_exact(cache_name, denoiser.family)


@every_family
def test_guidance_runs_and_is_nothing_at_zero(name):
    denoiser = golden(name)
    guided = sample(denoiser, PROMPTS, settings(name, steps=6, cfg_scale=1.5))
    plain = sample(denoiser, PROMPTS, settings(name, steps=6))
    assert tokens(guided) != tokens(plain)
    assert sum(t.ledger.nfe for t in guided) == 2 * sum(t.ledger.nfe for t in plain)


@every_family
@torch.no_grad()
def test_the_trajectorys_likelihood_is_the_samplers_own_path_probability(name):
    denoiser = golden(name)
    block = None if denoiser.family.layout == "full" else 4
    drawn = sample(denoiser, PROMPTS, settings(name, temperature=1.0, steps=6), n=2)
    canvases = Canvases.from_trajectories(drawn, denoiser)
    logp_BG = estimate(
        EstimatorConfig("trajectory"), Scorer(denoiser, denoiser.model, block_length=block), canvases, 0
    )
    expected = torch.tensor([t.confidence for t in drawn]).log() * canvases.valid_BG
    torch.testing.assert_close(logp_BG, expected, atol=2e-4, rtol=1e-4)


@every_family
def test_ids_that_the_settings_leave_to_the_model_are_the_models_own(name):
    """Blocks that nobody asks for have the model's length, where blocks are part of it."""
    denoiser = golden(name)
    (t,) = sample(denoiser, PROMPTS[:1], SamplerConfig(canvas_length=8, stop_at_eos=False))
    blocks = len(set(t.block))
    assert blocks == (len({(len(PROMPTS[0]) + i) // 4 for i in range(8)}) if name == "sdar" else 1)


def test_bfloat16_stays_near(capsys):
    """On the CPU, half the digits: logits within 5 % of their spread, and the sampler, the scorer and a loss run."""
    for name in NAMES:
        exact, denoiser = (
            golden(name),
            Denoiser.from_pretrained(str(GOLDEN / name), device="cpu", dtype=torch.bfloat16),
        )
        ids = torch.tensor([PROMPTS[2]])
        with torch.no_grad():
            expected = exact.model(input_ids=ids, use_cache=False).logits
            found = denoiser.model(input_ids=ids, use_cache=False).logits.float()
        assert 0 < (found - expected).abs().max() < 0.05 * (expected.max() - expected.min()), name
        drawn = sample(denoiser, PROMPTS, settings(name, temperature=1.0, steps=6))
        block = None if denoiser.family.layout == "full" else 4
        scorer = Scorer(denoiser, denoiser.model, block_length=block)
        logp_BG = estimate(
            EstimatorConfig("elbo", num_samples=1), scorer, Canvases.from_trajectories(drawn, denoiser), 0
        )
        logp_BG.sum().backward()
        assert all(weight.grad is None or weight.grad.isfinite().all() for weight in denoiser.model.parameters())


# What is saved and read back


@every_family
def test_what_is_saved_loads_anywhere_and_knows_what_it_is(name, tmp_path):
    denoiser = golden(name)
    denoiser.model.save_pretrained(tmp_path)
    denoiser.tokenizer.save_pretrained(tmp_path)
    again = Denoiser.from_pretrained(str(tmp_path), device="cpu")
    assert again.family == denoiser.family
    assert (again.mask_id, again.eos_ids) == (denoiser.mask_id, denoiser.eos_ids)
    assert tokens(sample(again, PROMPTS, settings(name))) == tokens(sample(denoiser, PROMPTS, settings(name)))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(plain) is type(denoiser.model)
    if denoiser.family.layout == "full":
        ids = torch.tensor([PROMPTS[2]])
        with torch.no_grad():
            assert torch.equal(plain(input_ids=ids).logits, denoiser.model(input_ids=ids).logits)


@every_family
def test_published_names_come_back_bit_for_bit(name, tmp_path):
    denoiser, there = golden(name), GOLDEN / name
    save_published(denoiser.model, tmp_path)
    before, after = load_file(there / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((there / "config.json").read_text())
    denoiser.model.save_pretrained(tmp_path / "native")  # saving once more is under native names again
    assert "model.embed_tokens.weight" in load_file(tmp_path / "native" / "model.safetensors")


def test_a_mask_token_that_was_said_is_saved(tmp_path):
    denoiser = Denoiser.from_pretrained(str(GOLDEN / "llada"), mask_id=7, device="cpu")
    denoiser.model.save_pretrained(tmp_path)
    denoiser.tokenizer.save_pretrained(tmp_path)
    assert Denoiser.from_pretrained(str(tmp_path), device="cpu").mask_id == 7


def test_a_stated_family_is_saved_too(tmp_path):
    save_as(tmp_path, "sdar", model_type="qwen3", architectures=["Qwen3ForCausalLM"])
    assert Denoiser.from_pretrained(str(tmp_path), device="cpu").family.name == "bidirectional"
    denoiser = Denoiser.from_pretrained(str(tmp_path), family="context_causal", device="cpu")
    denoiser.model.save_pretrained(tmp_path / "out")
    denoiser.tokenizer.save_pretrained(tmp_path / "out")
    assert Denoiser.from_pretrained(str(tmp_path / "out"), device="cpu").family.name == "context_causal"


# What is refused


def save_as(directory, name, drop=(), **changed):
    """A copy of a golden checkpoint with another config.json, or without some of its tensors."""
    directory.mkdir(exist_ok=True)
    for path in (GOLDEN / name).iterdir():
        if path.name not in ("golden.json", "logits.safetensors"):
            shutil.copy(path, directory)
    config = json.loads((directory / "config.json").read_text()) | changed
    (directory / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value != "GONE"})
    )
    if drop:
        weights = load_file(directory / "model.safetensors")
        save_file({key: weight for key, weight in weights.items() if key not in drop}, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("llada", {"alibi": True}, "alibi=True, which transformers' LlamaForCausalLM cannot do: False is needed"),
        ("llada", {"block_type": "sequential"}, "block_type='sequential'"),
        ("llada", {"layer_norm_type": "default"}, "layer_norm_type='default'"),
        ("llada", {"scale_logits": True}, "scale_logits=True"),
        ("llada", {"include_qkv_bias": True}, "include_qkv_bias=True"),
        (
            "llada",
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
            "rope_scaling={'type': 'linear', 'factor': 4.0}",
        ),
        ("llada", {"d_model": "GONE"}, "config.json lacks 'd_model'"),
        ("llada_moe", {"qk_layernorm": False}, "qk_layernorm=False"),
        ("llada_moe", {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size=64"),
        ("llada_moe", {"moe_layer_freq": [0, 1]}, r"moe_layer_freq=\[0, 1\]"),
        *(
            (one, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, "use_sliding_window=True")
            for one in ("llada_moe", "dream", "sdar", "fastv2", "llada2")
        ),
        ("llada2", {"score_function": "softmax"}, "score_function='softmax'"),
        ("llada2", {"use_qkv_bias": True}, "use_qkv_bias=True"),
        ("dream", {"model_type": "dreamt"}, "model type 'dreamt' is of no known diffusion family"),
        ("dream", {"num_hidden_layers": 3}, r"it lacks model.layers.2.*and \d+ more"),
        ("dream", {"num_hidden_layers": 1}, r"it has left over model.layers.1"),
        ("dream", {"vocab_size": 500}, r"it has .*\(403, 64\), not \(500, 64\)"),
        (
            "sdar",
            {"mask_token_id": 9},
            "the tokenizer says that the mask token is 2, config.json says 9: pass mask_id",
        ),
        ("sdar", {"diffusion": {"family": "fog"}}, "diffusion family 'fog'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, changed, says, tmp_path):
    save_as(tmp_path, name, **changed)
    with pytest.raises(ValueError, match=says):
        Denoiser.from_pretrained(str(tmp_path), device="cpu")


def test_what_cannot_be_read_is_said_in_one_line(tmp_path):
    def refused(path, says, **more):
        with pytest.raises(ValueError, match=says) as raised:
            Denoiser.from_pretrained(str(path), device="cpu", **more)
        assert len(str(raised.value).splitlines()) == 1

    refused(tmp_path, "no model at")
    refused(tmp_path / "nowhere", "no model at")
    refused("embedded:solver", "is_causal=true: the model is autoregressive.*`lockstitch adapt` makes one of it")
    refused("embedded:nobody", "no embedded model 'nobody'")
    refused("embedded", "no embedded model 'embedded'; there are arithmetic")
    refused(GOLDEN / "llada", "trust_remote_code=True would be ignored", trust_remote_code=True)
    refused(GOLDEN / "llada", "family='fog' is not one of", family="fog")
    refused(GOLDEN / "llada", "mask_id=9999 is no token of the model", mask_id=9999)
    refused("embedded:sudoku", "mask_id=1 is '<eos>', which ends a text and cannot mask one", mask_id=1)
    save_as(tmp_path / "torn", "llada")
    with (tmp_path / "torn" / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    refused(tmp_path / "torn", "the weights of .* cannot be loaded")
    save_as(tmp_path / "bare", "llada")
    (tmp_path / "bare" / "model.safetensors").unlink()
    refused(tmp_path / "bare", "the weights of .* cannot be loaded")
    save_as(tmp_path / "mute", "llada")
    (tmp_path / "mute" / "tokenizer.json").unlink()
    refused(tmp_path / "mute", "the tokenizer of .* cannot be loaded")
    (tmp_path / "garbled").mkdir()
    (tmp_path / "garbled" / "config.json").write_text("{")
    refused(tmp_path / "garbled", "no model at")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    refused(tmp_path / "adapter", "names no base")


def test_a_canvas_beyond_the_models_positions_is_refused():
    with pytest.raises(
        ValueError, match=r"prompt 0 has 500 tokens and its canvas up to 32: more than the 512 positions"
    ):
        sample(golden("llada"), [[5] * 500], SamplerConfig(canvas_length=32))


def test_logits_that_are_not_finite_are_refused():
    denoiser = Denoiser.from_pretrained(str(GOLDEN / "dream"), device="cpu")
    with torch.no_grad():
        denoiser.model.model.layers[1].mlp.down_proj.weight[3, 3] = torch.inf
    with pytest.raises(ValueError, match=r"logits of trajectory 0 are not finite at denoising step 1; .*float32"):
        sample(denoiser, PROMPTS, SamplerConfig(canvas_length=4, batch_size=2))


def test_equal_trajectories_are_warned_of():
    with pytest.warns(UserWarning, match="n=2 at temperature=0: all 2 trajectories of a prompt will be equal"):
        sample(golden("dream"), PROMPTS[:1], SamplerConfig(canvas_length=4), n=2)


# The table


def test_every_row_names_what_there_is():
    import transformers

    for family in FAMILIES.values():
        assert family.decoding is None or family.decoding in PRESETS
        assert family.decoding is not None or family.layout == "encoder_decoder"
        if family.translation is not None:
            assert hasattr(transformers, family.translation.native)
    types = [one for family in FAMILIES.values() if family.translation for one in family.translation.model_types]
    assert {one for one in types if types.count(one) > 1} == {"llada"}  # told apart by `architectures`


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ({"model_type": "llada", "architectures": ["LLaDAModelLM"]}, "llada"),
        ({"model_type": "llada", "architectures": ["LLaDAMoEModelLM"]}, "llada_moe"),
        ({"model_type": "Dream", "architectures": ["DreamModel"]}, "dream"),
        ({"model_type": "sdar_moe", "architectures": ["SDARMoeForCausalLM"]}, "sdar_moe"),
        ({"model_type": "a2d-qwen3"}, "a2d_qwen3"),
        ({"model_type": "qwen2"}, "bidirectional"),
        ({"model_type": "diffusion_gemma"}, "diffusion_gemma"),
    ],
)
def test_families_are_told_by_type_and_architecture(raw, name):
    assert family_of(raw).name == name


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_models_of_dllm_are_read_as_what_they_were_made_of(kind, tmp_path):
    """Their configs have a type of their own, the tensors the names of transformers."""
    from models import random_denoiser

    made = random_denoiser(kind)
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": f"a2d-{kind}"}
    del config["diffusion"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    denoiser = Denoiser.from_pretrained(str(tmp_path), device="cpu")
    assert denoiser.family.name == f"a2d_{kind}"
    ids, ones = torch.tensor([[5, 6, 2, 8]]), torch.ones(1, 4, dtype=torch.long)
    with torch.no_grad():
        found, expected = (d.forward_logits(d.model, ids, ones) for d in (denoiser, made))
    torch.testing.assert_close(found, expected)


def test_sdars_mixture_is_qwen3s(tmp_path):
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True,
               "decoder_sparse_step": 1, "mlp_only_layers": []}  # fmt: skip
    raw = read_config(str(GOLDEN / "sdar")) | {
        "model_type": "sdar_moe",
        "architectures": ["SDARMoeForCausalLM"],
        **experts,
    }
    config = native_config(raw, translation_of(raw))
    assert (config.model_type, config.num_experts, config.norm_topk_prob) == ("qwen3_moe", 4, True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**raw, "dtype": "float32"}))
    shutil.copy(GOLDEN / "sdar" / "tokenizer.json", tmp_path)
    shutil.copy(GOLDEN / "sdar" / "tokenizer_config.json", tmp_path)
    denoiser = Denoiser.from_pretrained(str(tmp_path), device="cpu")
    assert (denoiser.family.name, denoiser.block_length) == ("sdar_moe", 4)
    state = denoiser.model.state_dict()
    assert all(torch.equal(weight, state[key]) for key, weight in model.state_dict().items())


def test_dreams_tokenizer_needs_none_of_its_code(tmp_path):
    """Published beside Dream stand Qwen2's files and a class of its own, which would have to be run."""
    save_as(tmp_path, "dream")
    (tmp_path / "tokenizer.json").unlink()
    letters = [chr(c) for c in range(33, 127)]
    (tmp_path / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    added = {
        str(94 + i): {
            "content": token,
            "special": True,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "single_word": False,
        }
        for i, token in enumerate(["<|endoftext|>", "<|mask|>"])
    }
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "added_tokens_decoder": added,
                "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
                "eos_token": "<|endoftext|>",
                "pad_token": "<|endoftext|>",
                "mask_token": "<|mask|>",
                "tokenizer_class": "DreamTokenizer",
            }
        )
    )
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer("ab<|mask|>")["input_ids"] == [64, 65, 95]
    assert (tokenizer.mask_token_id, tokenizer.eos_token_id) == (95, 94)


def test_no_second_copy_is_held_while_loading(tmp_path):
    """The largest tensors are read as they are; what is split or stacked is one layer's at a time."""
    raw = read_config(str(GOLDEN / "llada2"))
    model = load_model(str(GOLDEN / "llada2"), raw, device="cpu")
    shares = {weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in model.parameters()}
    assert sum(shares.values()) == sum(weight.nbytes for weight in model.parameters())


@pytest.mark.parametrize("name", ["llada", "dream", "llada2"])
def test_shards_are_read_together(name, tmp_path):
    """Also where the experts of a layer lie in several files."""
    save_as(tmp_path, name)
    weights = load_file(tmp_path / "model.safetensors")
    keys = sorted(weights, key=lambda key: hash((key, 3)))  # in no order
    index = {"metadata": {}, "weight_map": {}}
    for i in range(3):
        file = f"model-{i + 1:05}-of-00003.safetensors"
        save_file({key: weights[key] for key in keys[i::3]}, tmp_path / file, metadata={"format": "pt"})
        index["weight_map"] |= dict.fromkeys(keys[i::3], file)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    state = Denoiser.from_pretrained(str(tmp_path), device="cpu").model.state_dict()
    assert all(torch.equal(weight, state[key]) for key, weight in golden(name).model.state_dict().items())


def test_a_tied_head_of_llada_is_the_embeddings(tmp_path):
    save_as(tmp_path, "llada", drop=["model.transformer.ff_out.weight"], weight_tying=True)
    denoiser = Denoiser.from_pretrained(str(tmp_path), device="cpu")
    assert torch.equal(denoiser.model.lm_head.weight, denoiser.model.model.embed_tokens.weight)
    save_published(denoiser.model, tmp_path / "back")
    assert (
        load_file(tmp_path / "back" / "model.safetensors").keys() == load_file(tmp_path / "model.safetensors").keys()
    )


def test_a_config_of_llada_may_leave_out_what_has_a_default(tmp_path):
    save_as(
        tmp_path, "llada", n_kv_heads=None, embedding_size=448, multi_query_attention="GONE", rope="GONE", alibi="GONE"
    )
    ids = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        found = Denoiser.from_pretrained(str(tmp_path), device="cpu").model(input_ids=ids).logits
        assert torch.equal(found, golden("llada").model(input_ids=ids).logits)
