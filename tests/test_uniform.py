"""Uniform noise: against transformers' own `generate`, and against itself under every change that must not matter."""

import json

import lockstitch.sampling.uniform as module
import pytest
import torch
from lockstitch.sampling.diffusion_gemma import DiffusionGemmaDenoiser
from lockstitch.sampling.replay import cells_at, cells_of
from lockstitch.sampling.trajectory import Trajectory
from lockstitch.sampling.uniform import invert_cdf, noise, sample_uniform
from lockstitch.sampling.uniform_config import UniformConfig
from models import random_denoiser, random_diffusion_gemma
from safetensors.torch import load_file, save_file
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig,
    EntropyBoundSamplerConfig,
)
from uniform_reference import generate_with_noise_of

PROMPTS = ["12, +27, -15\n", "3102\n2000\n0210\n0320\n", "Ann has 12 apples. How many?\n", " 30\n"]
G, BLOCK, STEPS = 16, 8, 10


@pytest.fixture(scope="module")
def denoiser():
    return random_diffusion_gemma()


def settings(**changes) -> UniformConfig:
    return UniformConfig(**{"canvas_length": G, "max_denoising_steps": STEPS, "stop_at_eos": False, **changes})


def run(denoiser, prompts=PROMPTS, n=1, seed=0, **changes):
    return sample_uniform(denoiser, prompts, settings(**changes), n=n, seed=seed)


def tokens(trajectories):
    return [t.canvas_ids for t in trajectories]


def denoising_steps(t):
    """Decoder passes of a trajectory that went through all blocks: what is left after one encoder pass for each."""
    return t.ledger.sequential_steps - G // BLOCK


# --- the schedule, against generate ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stability_threshold": 0, "confidence_threshold": 1.0},
        {"stability_threshold": 3},
        {"stability_threshold": None, "confidence_threshold": None},
        {"entropy_bound": 1.0, "confidence_threshold": 0.3},
        {"entropy_bound": 30.0, "t_max": 2.0, "t_min": 0.1},
    ],
)
def test_given_the_same_noise_canvases_are_those_of_generate(denoiser, changes):
    if changes.get("stability_threshold", 1) is None:  # generate fills in what is None; this never ends early
        reference = settings(**{**changes, "stability_threshold": 1, "confidence_threshold": 1e-30})
    else:
        reference = settings(**changes)
    for t in run(denoiser, PROMPTS[1:3] if changes else PROMPTS, **changes):
        expected, passes = generate_with_noise_of(denoiser, t.prompt_ids, reference, t.seed)
        assert list(t.canvas_ids) == expected
        assert denoising_steps(t) == passes


def test_the_random_model_takes_every_path(denoiser):
    """What the tests above and below rest on: blocks of rows end at different steps, tokens are held and taken back."""
    drawn = run(denoiser, n=2)
    steps = [denoising_steps(t) for t in drawn]
    assert G // BLOCK < min(steps) < max(steps) <= G // BLOCK * STEPS
    assert all(t.edits for t in drawn)
    assert all(len(set(t.commit_step)) > G // BLOCK for t in drawn)
    assert max(len(t.prompt_ids) for t in drawn) > 8  # the window of one layer
    assert len({len(t.prompt_ids) for t in drawn}) > 2


def test_a_row_stops_with_the_block_of_its_eos_as_generate_does(denoiser):
    free = run(denoiser, canvas_length=3 * BLOCK)
    stopping = DiffusionGemmaDenoiser(denoiser.model, denoiser.tokenizer)
    stopping.eos_ids = [free[0].canvas_ids[BLOCK + 3]]  # as if this token, of the second block, were EOS
    changes = {"stop_at_eos": True, "canvas_length": 3 * BLOCK}
    drawn = run(stopping, **changes)
    ended, whole = drawn[0], free[0]
    assert ended.finished
    assert ended.length <= BLOCK + 4
    assert ended.completion_ids == whole.canvas_ids[: ended.length]
    assert ended.canvas_ids[2 * BLOCK :] == (denoiser.pad_id,) * BLOCK
    assert ended.commit_step[2 * BLOCK :] == ended.block[2 * BLOCK :] == (-1,) * BLOCK
    assert ended.ledger.nfe < whole.ledger.nfe
    for t in drawn:
        expected, _ = generate_with_noise_of(stopping, t.prompt_ids, settings(**changes), t.seed)
        assert list(t.completion_ids) == expected[: t.length]
        assert set(expected[t.length :]) <= {denoiser.pad_id}
        assert t.finished == (t.canvas_ids[t.length - 1] in stopping.eos_ids)


@pytest.mark.parametrize("vocabulary", [7, 256, 403])
def test_inverting_finds_what_the_cumulative_sum_says(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    p = torch.rand(2000, vocabulary, generator=generator).pow(4)
    p[torch.rand(p.shape, generator=generator) < 0.3] = 0
    p[:, 0] += p.sum(1) == 0
    u = torch.rand(2000, generator=generator, dtype=torch.double)
    u[:2] = torch.tensor([0.0, 1 - 2**-53])
    drawn = invert_cdf(p, u)
    cumulative = p.double().cumsum(1)
    assert (p.gather(1, drawn[:, None]) > 0).all()
    assert torch.equal(drawn[2:], (cumulative <= u[:, None] * cumulative[:, -1:]).sum(1)[2:])
    assert drawn[0] == p[0].nonzero()[0]
    assert drawn[1] == p[1].nonzero()[-1]


def test_drawn_tokens_follow_the_distribution():
    p = torch.zeros(10_000, 600)
    p[:, [3, 255, 256, 599]] = torch.tensor([0.1, 0.4, 0.3, 0.2])
    u = torch.rand(10_000, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    observed = torch.bincount(invert_cdf(p, u), minlength=600)[[3, 255, 256, 599]]
    expected = 10_000 * torch.tensor([0.1, 0.4, 0.3, 0.2])
    assert observed.sum() == 10_000
    assert ((observed - expected) ** 2 / expected).sum() < 16.27  # the 0.1 % point with 3 degrees of freedom


# --- what must not matter --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_batching_order_and_n_do_not_matter(denoiser):
    together = run(denoiser, n=2)
    alone = [run(denoiser, [prompt], n=2) for prompt in PROMPTS]
    assert tokens(together) == [ids for one in alone for ids in tokens(one)]
    assert tokens(run(denoiser, n=1)) == tokens(together)[::2]
    backwards = run(denoiser, PROMPTS[::-1], n=2, batch_size=3)
    assert [tokens(backwards[2 * i : 2 * i + 2]) for i in range(4)][::-1] == [tokens(one) for one in alone]
    assert len(set(tokens(together))) == len(together)  # seeds and prompts do make a difference
    assert tokens(run(denoiser, PROMPTS[:2], seed=[5, 6])) == [
        *tokens(run(denoiser, PROMPTS[:1], seed=5)),
        *tokens(run(denoiser, PROMPTS[1:2], seed=6)),
    ]


def test_the_whole_trace_is_independent_of_the_batch(denoiser):
    for one, other in zip(run(denoiser), run(denoiser, batch_size=1), strict=True):
        assert one.canvas_ids == other.canvas_ids
        assert (one.commit_step, one.block, one.edits) == (other.commit_step, other.block, other.edits)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
        assert one.entropy == pytest.approx(other.entropy, abs=1e-4)


def test_the_number_of_logits_held_at_a_time_does_not_matter(denoiser, monkeypatch):
    at_once = run(denoiser, n=2)
    sizes = []
    handle = denoiser.model.lm_head.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    monkeypatch.setattr(module, "SLICE", 2 * BLOCK * denoiser.vocabulary)
    assert tokens(run(denoiser, n=2)) == tokens(at_once)
    handle.remove()
    assert max(sizes) == 2


def test_global_generator_is_not_touched(denoiser):
    before = torch.get_rng_state()
    run(denoiser, PROMPTS[:1])
    assert torch.equal(before, torch.get_rng_state())


# --- the model's face ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_soft_embeddings_are_what_the_decoder_makes_of_logits(denoiser):
    model, generator = denoiser.model, torch.Generator().manual_seed(0)
    prompt = denoiser.encode(PROMPTS[:1])
    canvas = torch.randint(denoiser.vocabulary, (1, BLOCK), generator=generator)
    before = 4 * torch.randn(1, BLOCK, denoiser.vocabulary, generator=generator)
    expected = model(input_ids=torch.tensor(prompt), decoder_input_ids=canvas, self_conditioning_logits=before).logits
    without = model(input_ids=torch.tensor(prompt), decoder_input_ids=canvas).logits
    arguments = denoiser.decoder_arguments(denoiser.read(prompt), BLOCK)
    soft = denoiser.soft_embeddings(before.softmax(-1))
    torch.testing.assert_close(denoiser.scaled_logits(denoiser.hidden(canvas, soft, arguments), 1.0), expected)
    torch.testing.assert_close(denoiser.scaled_logits(denoiser.hidden(canvas, None, arguments), 0.5), 2 * without)
    assert (expected - without).abs().max() > 0.1


@torch.inference_mode()
def test_padding_and_selection_leave_a_row_as_it_is_alone(denoiser):
    """Over two blocks, with prompts shorter and longer than the window, rows repeated and left out."""
    prompts = denoiser.encode(PROMPTS)
    generator = torch.Generator().manual_seed(0)
    block, canvas = torch.randint(denoiser.vocabulary, (2, len(prompts), BLOCK), generator=generator)
    prefix = denoiser.extend(denoiser.read(prompts), block)
    rows = torch.tensor([3, 0, 0, 2])
    chosen = prefix.select(rows)
    hidden = denoiser.hidden(canvas[rows], None, denoiser.decoder_arguments(chosen, BLOCK))
    for place, row in enumerate(rows.tolist()):
        alone = denoiser.extend(denoiser.read([prompts[row]]), block[row : row + 1])
        expected = denoiser.hidden(canvas[row : row + 1], None, denoiser.decoder_arguments(alone, BLOCK))
        torch.testing.assert_close(hidden[place : place + 1], expected, rtol=1e-4, atol=1e-4)
    assert len(prefix.lengths_B) == len(prompts)  # selecting took nothing away


def test_a_checkpoint_loads_with_its_schedule(denoiser, tmp_path):
    denoiser.model.save_pretrained(tmp_path)
    denoiser.tokenizer.save_pretrained(tmp_path)
    schedule = DiffusionGemmaGenerationConfig(
        max_denoising_steps=7,
        t_min=0.2,
        eos_token_id=[5, 6],
        sampler_config=EntropyBoundSamplerConfig(entropy_bound=0.3),
    )
    schedule.save_pretrained(tmp_path)
    loaded = DiffusionGemmaDenoiser.from_pretrained(str(tmp_path), device="cpu")
    assert tokens(run(loaded, PROMPTS[:1])) == tokens(run(denoiser, PROMPTS[:1]))
    assert {5, 6, denoiser.tokenizer.eos_token_id} == set(loaded.eos_ids)
    config = UniformConfig.of_checkpoint(loaded.model.generation_config, G, t_max=0.9)
    assert config == UniformConfig(G, max_denoising_steps=7, entropy_bound=0.3, t_min=0.2, t_max=0.9)


def test_what_does_not_load_is_a_line(denoiser, tmp_path):
    denoiser.model.save_pretrained(tmp_path)
    denoiser.tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    name = max(whole)  # no tied one

    def refused(says, device="cpu"):
        with pytest.raises(ValueError, match=says) as caught:
            DiffusionGemmaDenoiser.from_pretrained(str(tmp_path), device=device)
        assert "\n" not in str(caught.value)

    for device in ("cuda:77", "seven"):
        refused(f"device='{device}' cannot be used here", device)
    less = {key: value for key, value in whole.items() if key != name}
    for says, weights in (
        (f"it lacks {name}", less),
        ("it has left over more", {**whole, "more": torch.ones(1)}),
        (f"it has {name}", {**less, name: torch.ones(3, 5)}),
    ):
        save_file(weights, file, {"format": "pt"})
        refused(says)
    file.write_bytes(file.read_bytes()[:1000])
    refused("the weights of .* cannot be loaded")
    file.unlink()
    refused("the weights of .* cannot be loaded")
    (tmp_path / "config.json").unlink()
    refused("the config of .* cannot be loaded")


# --- trace and ledger ------------------------------------------------------------------------------------------------


def recorded(denoiser, t):
    """A trajectory's run again, alone: per decoder pass its block, the step before, its input, its p at temperature 1."""
    model, passes, state = denoiser.model, [], {"block": -1, "step": 0}

    def encoded(*_):
        state.update(block=state["block"] + 1, step=0)

    def decoded(_, __, arguments, output):
        p = denoiser.scaled_logits(output.last_hidden_state, 1.0)[0].softmax(-1)
        passes.append((state["block"], state["step"], arguments["decoder_input_ids"][0].tolist(), p))
        state["step"] += 1

    handles = [
        model.model.encoder.register_forward_hook(encoded),
        model.model.decoder.register_forward_hook(decoded, with_kwargs=True),
    ]
    (again,) = sample_uniform(denoiser, [t.prompt_ids], settings())
    for handle in handles:
        handle.remove()
    assert again.canvas_ids == t.canvas_ids
    return passes


def test_trace_and_noise_replay_what_the_decoder_was_given(denoiser):
    for t in run(denoiser):
        passes = recorded(denoiser, t)
        assert len(passes) == denoising_steps(t)
        for before, (block, step, given, p) in enumerate(passes):
            span = slice(block * BLOCK, (block + 1) * BLOCK)
            random = noise(torch.tensor([t.seed]), block, step, torch.arange(G)[span], denoiser.vocabulary)[0].tolist()
            # A block's start is all noise, and the canvas of the trace has nothing there yet.
            held = t.canvas_at(before)[span]
            assert step > 0 or held == [None] * BLOCK
            assert [b if a is None else a for a, b in zip(held, random, strict=True)] == given
            for place in [i for i, at in enumerate(t.commit_step) if at == before + 1]:
                q = p[place - span.start]
                assert t.block[place] == block
                assert q[t.canvas_ids[place]].item() == pytest.approx(t.confidence[place], rel=1e-3)
                entropy = torch.special.entr(q.double()).sum().item()
                assert entropy == pytest.approx(t.entropy[place], rel=1e-3, abs=1e-6)
        assert tuple(t.canvas_at(len(passes))) == t.canvas_ids
        assert t.last_step <= len(passes)


def test_what_is_seen_live_is_what_the_trace_replays(denoiser):
    looks = []
    drawn = sample_uniform(denoiser, PROMPTS[:3], settings(batch_size=2), on_step=looks.append)
    seen = {}
    for look in looks:
        for a, row in enumerate(look.rows):
            step = int(look.step_A[a])
            seen[row, step] = cells_of(look, a, seen.get((row, step - 1), []))
    assert set(seen) == {(row, step) for row, t in enumerate(drawn) for step in range(denoising_steps(t) + 1)}
    for (row, step), live in seen.items():
        replayed = cells_at(drawn[row], step)
        assert [(cell.state, cell.token) for cell in live] == [(cell.state, cell.token) for cell in replayed]


def test_tokens_accepted_and_held_are_not_edits(denoiser):
    for t in run(denoiser, n=2):
        for edit in t.edits:
            assert 1 <= edit.commit_step < edit.step
            assert t.canvas_at(edit.step - 1)[edit.position] == edit.token
            assert t.canvas_at(edit.step)[edit.position] != edit.token


def count(denoiser, **arguments):
    """Trajectories, and what hooks on encoder and decoder saw: rows, tokens without padding, and columns' widths."""
    rows, cells, encoded = [], [], []

    def encoder(_, __, given):
        size = given["input_ids"].shape
        rows.append(size[0])
        cells.append(int(given["attention_mask"][:, -size[1] :].sum()))
        encoded.append(cells[-1])

    def decoder(_, __, given):
        rows.append(given["decoder_input_ids"].shape[0])
        cells.append(given["decoder_input_ids"].numel())

    model = denoiser.model.model
    handles = [
        model.encoder.register_forward_pre_hook(encoder, with_kwargs=True),
        model.decoder.register_forward_pre_hook(decoder, with_kwargs=True),
    ]
    drawn = run(denoiser, **arguments)
    for handle in handles:
        handle.remove()
    return drawn, sum(rows), sum(cells), encoded


@pytest.mark.parametrize("batch_size", [64, 5])
def test_nfe_and_tokens_are_what_hooks_count(denoiser, batch_size):
    drawn, rows, cells, _ = count(denoiser, n=3, batch_size=batch_size)
    assert sum(t.ledger.nfe for t in drawn) == rows
    assert sum(t.ledger.tokens_forwarded for t in drawn) == cells
    assert len({t.ledger.sequential_steps for t in drawn}) > 1  # rows left the batch early


def test_a_prompt_is_read_once_for_all_its_trajectories(denoiser):
    shared, *_, encoded = count(denoiser, n=3)
    prompts = denoiser.encode(PROMPTS)
    assert encoded == [sum(map(len, prompts))] + [len(shared) * BLOCK] * (G // BLOCK - 1)
    apart, *_, encoded = count(denoiser, n=3, batch_size=1)
    assert sum(encoded) == 3 * sum(map(len, prompts)) + len(shared) * BLOCK * (G // BLOCK - 1)
    assert tokens(shared) == tokens(apart)
    assert [t.ledger.sequential_steps for t in shared] == [t.ledger.nfe for t in apart]


def test_trajectory_survives_json(denoiser):
    for t in run(denoiser):
        assert Trajectory.from_dict(json.loads(json.dumps(t.to_dict()))) == t


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"canvas_length": 2.5}, "canvas_length=2.5"),
        ({"block_length": 5}, "block_length=5 does not divide canvas_length=16"),
        ({"max_denoising_steps": 0}, "max_denoising_steps=0"),
        ({"entropy_bound": -0.1}, "entropy_bound=-0.1"),
        ({"entropy_bound": float("nan")}, "entropy_bound=nan"),
        ({"t_min": 0.9}, "t_min=0.9 and t_max=0.8"),
        ({"t_min": -0.1}, "t_min=-0.1"),
        ({"t_min": 0.0, "t_max": 0.0}, "t_max above 0"),
        ({"confidence_threshold": None}, "stability_threshold=1 would be ignored"),
        ({"stability_threshold": None}, "confidence_threshold=0.005 would be ignored"),
        ({"stability_threshold": 1.5}, "stability_threshold=1.5"),
        ({"stability_threshold": STEPS}, "stability_threshold=10 would be ignored"),
        ({"confidence_threshold": 0.0}, "confidence_threshold=0.0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_settings_are_refused(bad, says):
    with pytest.raises(ValueError, match=says):
        settings(**bad)


def test_bad_calls_are_refused(denoiser):
    with pytest.raises(ValueError, match="n=0"):
        run(denoiser, n=0)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        run(denoiser, ["1", ""])
    with pytest.raises(ValueError, match="2 seeds for 1 prompts"):
        run(denoiser, ["1"], seed=[1, 2])
    with pytest.raises(ValueError, match="block_length=8 does not divide canvas_length=20"):
        run(denoiser, canvas_length=20)
    masked = random_denoiser()
    with pytest.raises(ValueError, match="'llama' is not 'diffusion_gemma'"):
        DiffusionGemmaDenoiser(masked.model, masked.tokenizer)
