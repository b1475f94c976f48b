"""The sampler against independent references and against itself under every change that must not matter."""

import itertools
import json
import re

import pytest
import torch
from fast_dllm_reference import fast_dllm
from hypothesis import given
from hypothesis import strategies as st
from llada_reference import llada_loop
from lockstitch.sampling.batching import CPU_TOKENS, batches, cut
from lockstitch.sampling.canvases import Row
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.families import family_of
from lockstitch.sampling.loop import sample
from lockstitch.sampling.noise import derive_seed, uniform
from lockstitch.sampling.trajectory import Edit, Ledger, Trajectory
from models import dream_like, random_denoiser, tokenizer, without_mask

PROMPTS = ["12, +27, -15\n", "3102\n2000\n0210\n0320\n", "Ann has 12 apples. How many?\n", " 30 100  93 =  23\n"]
G = 12


@pytest.fixture(scope="module")
def denoiser():
    return random_denoiser()


def run(denoiser, prompts=PROMPTS, n=1, seed=0, canvases=None, bans=None, **settings):
    settings = {"canvas_length": G, "stop_at_eos": False, **settings}
    return sample(denoiser, prompts, SamplerConfig(**settings), n=n, seed=seed, canvases=canvases, bans=bans)


def tokens(trajectories):
    return [t.canvas_ids for t in trajectories]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("block", "steps"), [(12, 12), (12, 4), (4, 12), (4, 6), (6, 2), (12, 5), (1, 12)])
def test_quota_is_the_published_loop(kind, block, steps):
    denoiser = random_denoiser(kind)
    drawn = run(denoiser, block_length=block, steps=steps)
    prompts = denoiser.encode(PROMPTS)
    assert [list(ids) for ids in tokens(drawn)] == llada_loop(denoiser, prompts, G, block, steps)
    if kind == "llama":
        assert [list(drawn[0].canvas_ids)] == llada_loop(denoiser, prompts[:1], G, block, steps)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize(("block", "threshold"), [(12, 0.5), (4, 0.5), (4, 0.9)])
def test_threshold_is_the_published_loop(denoiser, cache, block, threshold):
    settings = {"policy": "threshold", "threshold": threshold, "cache": cache, "block_length": block}
    expected = [fast_dllm(denoiser, prompt, G, block, threshold, cache) for prompt in denoiser.encode(PROMPTS)]
    assert [list(ids) for ids in tokens(run(denoiser, **settings))] == expected


def reference_banned(denoiser, prompt, bans):
    """One token a step, greedy, the banned tokens taken out of a copy of the logits."""
    ids = denoiser.encode([prompt])[0] + [denoiser.mask_id] * G
    start = len(ids) - G
    for _ in range(G):
        p = denoiser.model(input_ids=torch.tensor([ids])).logits[0].clone()
        p[:, [denoiser.mask_id, denoiser.pad_id]] = -torch.inf
        for position, token in bans:
            p[start + position, token] = -torch.inf
        confidence, token = p.softmax(-1).max(-1)
        open_ = [place for place in range(start, start + G) if ids[place] == denoiser.mask_id]
        best = max(open_, key=lambda place: float(confidence[place]))
        ids[best] = int(token[best])
    return tuple(ids[start:])


def test_bans_hold_at_their_position_for_their_prompt_alone(denoiser):
    free = tokens(run(denoiser, block_length=12))
    bans = [[(position, row[position]) for position in (0, 5, 11)] if i != 1 else [] for i, row in enumerate(free)]
    bans[0] += [(0, token) for token in range(5)]
    banned = tokens(run(denoiser, block_length=12, bans=bans))
    with torch.no_grad():
        assert banned == [
            reference_banned(denoiser, prompt, pairs) for prompt, pairs in zip(PROMPTS, bans, strict=True)
        ]
    assert banned[1] == free[1]
    assert tokens(run(denoiser, block_length=4, batch_size=1, bans=bans)) == tokens(
        run(denoiser, block_length=4, bans=bans)
    )


@pytest.mark.parametrize("bad", [[[]], [[(12, 3)], [], [], []], [[(-1, 3)], [], [], []], [[], [], [], [(0, -1)]]])
def test_bans_outside_the_canvas_are_refused(denoiser, bad):
    with pytest.raises(ValueError, match="ban"):
        run(denoiser, bans=bad)


@pytest.mark.parametrize("block", [12, 4])
def test_threshold_above_one_is_one_token_a_step(denoiser, block):
    drawn = run(denoiser, policy="threshold", threshold=1.01, block_length=block)
    assert tokens(drawn) == tokens(run(denoiser, block_length=block))
    assert all(t.ledger.nfe == G for t in drawn)


@pytest.mark.parametrize("block", [12, 4])
def test_threshold_with_steps_commits_at_least_the_quota(denoiser, block):
    never = run(denoiser, policy="threshold", threshold=1.01, steps=6, block_length=block)
    assert tokens(never) == tokens(run(denoiser, steps=6, block_length=block))
    assert [t.commit_step for t in never] == [t.commit_step for t in run(denoiser, steps=6, block_length=block)]
    plain = run(denoiser, policy="threshold", threshold=0.6, block_length=block)
    assert tokens(run(denoiser, policy="threshold", threshold=0.6, steps=G, block_length=block)) == tokens(plain)
    between = run(denoiser, policy="threshold", threshold=0.6, steps=6, block_length=block)
    assert all(t.ledger.nfe <= 6 for t in between)
    assert 4 * G // block < sum(t.ledger.nfe for t in between) < sum(t.ledger.nfe for t in plain)
    for t in between:
        for step in range(1, t.ledger.nfe + 1):
            sure = [c >= 0.6 for c, at in zip(t.confidence, t.commit_step, strict=True) if at == step]
            assert all(sure) or len(sure) <= 2  # what is unsure commits only to fill the quota


@pytest.mark.parametrize("block", [12, 4, 1])
def test_threshold_zero_is_one_step_a_block(denoiser, block):
    drawn = run(denoiser, policy="threshold", threshold=0.0, block_length=block)
    assert all(t.ledger.nfe == G // block for t in drawn)
    assert tokens(drawn) == tokens(run(denoiser, block_length=block, steps=G // block))


def test_threshold_between_commits_what_reaches_it(denoiser):
    threshold = 0.6
    drawn = run(denoiser, policy="threshold", threshold=threshold, block_length=4)
    # With thresholds that random weights always or never reach this would prove nothing.
    assert len(drawn) * G // 4 < sum(t.ledger.nfe for t in drawn) < len(drawn) * G
    for t in drawn:
        for step in range(1, t.ledger.nfe + 1):
            committed = [c for c, at in zip(t.confidence, t.commit_step, strict=True) if at == step]
            assert committed
            assert len(committed) == 1 or min(committed) >= threshold


@pytest.mark.parametrize("settings", [{"steps": 6}, {"policy": "threshold", "threshold": 0.6}])
@pytest.mark.parametrize("block", [12, 4])
def test_batching_order_and_n_do_not_matter(denoiser, settings, block):
    settings = {**settings, "temperature": 1.0, "block_length": block}
    together = run(denoiser, n=3, **settings)
    alone = [run(denoiser, [prompt], n=3, **settings) for prompt in PROMPTS]
    assert tokens(together) == [ids for one in alone for ids in tokens(one)]
    assert tokens(run(denoiser, n=1, **settings)) == tokens(together)[::3]
    backwards = run(denoiser, PROMPTS[::-1], n=3, batch_size=5, **settings)
    assert [tokens(backwards[3 * i : 3 * i + 3]) for i in range(4)][::-1] == [tokens(one) for one in alone]
    assert len({t.canvas_ids for t in together[:3]}) == 3  # the seeds do make a difference


def test_a_cpu_takes_no_more_tokens_at_a_time_than_it_computes_well(denoiser):
    lengths = [20, 20, 180, 60, 20, 70] * 30
    rows = [Row(i, [5] * length, i, [None] * G, ()) for i, length in enumerate(lengths)]
    for settings, states in (({}, 1), ({"speculate": 3}, 4), ({"batch_size": 10}, 1)):
        config = SamplerConfig(canvas_length=G, **settings)
        cut = list(batches(rows, denoiser, config))
        assert sorted(i for batch in cut for i in batch) == list(range(len(rows)))
        sizes = [(len(batch) * states, len(batch) * states * (G + lengths[batch[-1]])) for batch in cut]
        assert all(count <= config.batch_size and tokens <= CPU_TOKENS for count, tokens in sizes)
        assert max(tokens for _, tokens in sizes) > CPU_TOKENS / 2 or config.batch_size < 64
        assert max(len(batch) for batch in cut) == config.batch_size // states  # of the shortest rows
    cached = SamplerConfig(canvas_length=G, block_length=4, cache="dual")
    assert {len(batch) for batch in batches(rows, denoiser, cached)} == {64, 180 - 128}


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(1, 9), st.integers(0, 12), st.integers(6, 60))
def test_passes_are_cut_where_they_cost_least(lengths, most, fixed, tokens):
    lengths = sorted(lengths)

    def costs(start):  # of every way to cut the rest, by brute force
        if start == len(lengths):
            yield 0
        for stop in range(start + 1, min(len(lengths), start + most) + 1):
            size = (stop - start) * lengths[stop - 1]
            if stop == start + 1 or size <= tokens:
                yield from (fixed + size + rest for rest in costs(stop))

    counts = cut(lengths, most, fixed, tokens)
    ends = list(itertools.accumulate(counts))
    assert ends[-1] == len(lengths)
    assert sum(fixed + count * lengths[end - 1] for count, end in zip(counts, ends, strict=True)) == min(costs(0))
    assert cut(lengths, most, 1, None) == [min(most, len(lengths) - at) for at in range(0, len(lengths), most)]


def test_seed_per_prompt(denoiser):
    several = run(denoiser, PROMPTS[:2], seed=[5, 6], temperature=1.0)
    assert tokens(several) == [
        *tokens(run(denoiser, PROMPTS[:1], seed=5, temperature=1.0)),
        *tokens(run(denoiser, PROMPTS[1:2], seed=6, temperature=1.0)),
    ]


@pytest.mark.parametrize("disguise", [without_mask, dream_like])
def test_calling_conventions_give_the_same_tokens(denoiser, disguise):
    settings = {"block_length": 4, "steps": 6, "temperature": 1.0}
    assert tokens(run(disguise(denoiser), n=2, **settings)) == tokens(run(denoiser, n=2, **settings))


def test_padding_never_reaches_a_model_that_would_attend_to_it(denoiser):
    seen = []
    disguised = without_mask(denoiser)
    handle = disguised.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((kwargs["input_ids"] == denoiser.pad_id).any().item()),
        with_kwargs=True,
    )
    run(disguised, n=2)
    handle.remove()
    assert seen
    assert not any(seen)


def test_nfe_and_tokens_are_what_a_hook_counts(denoiser):
    rows, cells = [], []

    def count(module, args, kwargs):
        rows.append(kwargs["input_ids"].shape[0])
        mask = kwargs.get("attention_mask")
        cells.append(int(mask.sum()) if mask is not None else kwargs["input_ids"].numel())

    handle = denoiser.model.register_forward_pre_hook(count, with_kwargs=True)
    settings = {"policy": "threshold", "threshold": 0.6, "block_length": 4, "temperature": 1.0}
    drawn = run(denoiser, **settings)
    assert sum(t.ledger.nfe for t in drawn) == sum(rows)
    assert sum(t.ledger.tokens_forwarded for t in drawn) == sum(cells)
    rows.clear(), cells.clear()
    drawn = run(denoiser, n=3, batch_size=5, **settings)
    handle.remove()
    assert sum(t.ledger.nfe for t in drawn) > sum(rows)  # what is the same goes through a pass as one
    assert sum(t.ledger.tokens_forwarded for t in drawn) == sum(cells)
    assert len({t.ledger.nfe for t in drawn}) > 1


def test_logits_are_formed_only_where_something_may_commit(denoiser):
    shapes = []
    handle = denoiser.model.lm_head.register_forward_hook(lambda module, args, logits: shapes.append(logits.shape))
    canvases = [[7 if i % 5 == 0 else None for i in range(G)], [7 if i < 5 else None for i in range(G)]]
    drawn = run(denoiser, PROMPTS[:2], canvases=canvases, block_length=6)
    handle.remove()
    expected = []
    for low in (0, 6):
        open_ = [{i for i in range(low, low + 6) if row[i] is None} for row in canvases]
        steps = [sorted(t.commit_step[i] for i in places) for t, places in zip(drawn, open_, strict=True)]
        for turn in range(max(map(len, steps))):
            rows = [(t, places, at[turn]) for t, places, at in zip(drawn, open_, steps, strict=True) if turn < len(at)]
            masks = sum(t.commit_step[i] >= step for t, places, step in rows for i in places)
            expected.append((masks, denoiser.model.config.vocab_size))
    assert [(shape[:-1].numel(), shape[-1]) for shape in shapes] == expected
    assert expected[0][0] == 5  # four masks in one row's block, one in the other's


def test_trace_replays_to_the_same_tokens(denoiser):
    for t in run(denoiser, steps=6, temperature=1.0):
        ids = torch.tensor([list(t.prompt_ids) + [denoiser.mask_id] * G])
        for step in range(1, t.ledger.nfe + 1):
            logits = denoiser.model(input_ids=ids).logits[0, -G:]
            logits[:, [denoiser.mask_id, denoiser.pad_id]] = -torch.inf
            p = logits.softmax(-1)
            for place in [i for i, at in enumerate(t.commit_step) if at == step]:
                assert p[place, t.canvas_ids[place]].item() == pytest.approx(t.confidence[place], rel=1e-3)
                entropy = torch.distributions.Categorical(p[place]).entropy().item()
                assert entropy == pytest.approx(t.entropy[place], rel=1e-3)
                ids[0, len(t.prompt_ids) + place] = t.canvas_ids[place]
            held = [None if token == denoiser.mask_id else token for token in ids[0, -G:].tolist()]
            assert t.canvas_at(step) == held
        assert tuple(ids[0, -G:].tolist()) == t.canvas_ids


def test_canvas_at_follows_what_was_taken_back():
    # Position 0 is written at step 1, replaced at 3; position 1 is written at 2, reopened at 3, written again at 5.
    edits = (Edit(3, 0, 10, 1), Edit(3, 1, 20, 2))
    t = Trajectory(
        0, 0, (1,), (11, 21, 30), 3, "", False, (3, 5, 0), (0.5,) * 3, (0.0,) * 3, (0, 0, -1), edits, Ledger()
    )
    assert [t.canvas_at(step) for step in range(6)] == [
        [None, None, 30],
        [10, None, 30],
        [10, 20, 30],
        [11, None, 30],
        [11, None, 30],
        [11, 21, 30],
    ]
    assert t.last_step == 5
    assert Trajectory.from_dict(json.loads(json.dumps(t.to_dict()))) == t


def test_pinned_positions_stay_and_cost_nothing(denoiser):
    pinned = [7 if i % 2 else None for i in range(G)]
    for t in run(denoiser, canvases=[pinned] * 4, temperature=1.0):
        assert all(token == 7 and at == 0 for token, at in zip(t.canvas_ids[1::2], t.commit_step[1::2], strict=True))
        assert t.ledger.nfe == G // 2
        assert sorted(t.commit_step[::2]) == list(range(1, G // 2 + 1))
    full = run(denoiser, PROMPTS[:1], canvases=[[7] * G])[0]
    assert full.ledger.nfe == 0
    assert full.canvas_ids == (7,) * G


def test_mask_and_padding_are_never_written(denoiser):
    for t in run(denoiser, n=8, temperature=3.0, steps=2):
        assert denoiser.mask_id not in t.canvas_ids
        assert denoiser.pad_id not in t.canvas_ids


def test_a_padding_token_that_the_model_has_not_is_not_used(denoiser):
    tok = tokenizer()
    tok.add_special_tokens({"pad_token": "<padding>"})  # without another row of embeddings
    assert tok.pad_token_id == denoiser.model.config.vocab_size
    other = Denoiser(denoiser.model, tok)
    assert other.pad_id == other.eos_ids[0]
    assert [t.canvas_ids for t in run(other, PROMPTS)] == [t.canvas_ids for t in run(denoiser, PROMPTS)]


def test_a_row_stops_at_its_own_eos(denoiser):
    eos = denoiser.eos_ids[0]
    canvases = [[None] * G, [None, None, eos, *[None] * (G - 3)]]
    free, ended = run(denoiser, PROMPTS[:2], canvases=canvases, stop_at_eos=True, block_length=4)
    through = run(denoiser, PROMPTS[:2], canvases=canvases, block_length=4)
    assert ended.finished
    assert ended.length == 3
    assert ended.ledger.nfe < through[1].ledger.nfe
    assert ended.completion_ids == through[1].canvas_ids[:3]
    assert ended.commit_step[4:] == (-1,) * (G - 4)
    assert ended.canvas_ids[4:] == (denoiser.mask_id,) * (G - 4)
    if eos not in through[0].canvas_ids:
        assert free.canvas_ids == through[0].canvas_ids


def test_noise_is_uniform_and_independent_of_its_neighbours():
    u = uniform(torch.tensor([derive_seed(0, k) for k in range(400)]), 1, 2, torch.arange(50))
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean().item() - 0.5) < 0.01
    histogram = torch.histc(u.float(), 20, 0, 1)
    assert ((histogram - 1000) ** 2 / 1000).sum() < 43.8  # 0.1 % point, 19 degrees of freedom
    for other in (
        u.roll(1, 0),
        u.roll(1, 1),
        uniform(torch.tensor([derive_seed(0, k) for k in range(400)]), 1, 3, torch.arange(50)),
    ):
        assert abs(torch.corrcoef(torch.stack([u.flatten(), other.flatten()]))[0, 1].item()) < 0.03


def test_global_generator_is_not_touched(denoiser):
    before = torch.get_rng_state()
    run(denoiser, temperature=1.0)
    assert torch.equal(before, torch.get_rng_state())


def test_trajectory_survives_json(denoiser):
    for t in run(denoiser, temperature=1.0, stop_at_eos=True):
        assert Trajectory.from_dict(json.loads(json.dumps(t.to_dict()))) == t


def test_ledgers_add():
    a, b = Ledger(nfe=3, sequential_steps=3, seconds=1.0), Ledger(nfe=5, scorer_tokens=2, sequential_steps=5)
    assert a.then(b) == Ledger(nfe=8, scorer_tokens=2, sequential_steps=8, seconds=1.0)
    assert Ledger.together([a, b]) == Ledger(nfe=8, scorer_tokens=2, sequential_steps=5, seconds=1.0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"block_length": 5}, "block_length=5 does not divide"),
        ({"steps": 5, "block_length": 4}, "steps=5 must be a multiple"),
        ({"steps": 13}, "at most canvas_length=12"),
        ({"threshold": 0.9}, "would be ignored by policy='quota'"),
        ({"policy": "threshold"}, "threshold=None"),
        ({"policy": "factor", "factor": 0.9, "steps": 4}, "steps=4 would be ignored"),
        (
            {"policy": "threshold", "threshold": 0.9, "steps": 4, "block_length": 2},
            "steps=4 must be a multiple of the 6",
        ),
        (
            {"length": "dynamic", "max_length": 24, "policy": "threshold", "threshold": 0.9, "steps": 4},
            "steps=4 are those",
        ),
        ({"policy": "margin"}, "not one of quota, random, threshold"),
        ({"policy": "deferred"}, "threshold=None"),
        ({"fallback": "leftmost"}, "fallback='leftmost' would be ignored by policy='quota'; it is for threshold"),
        (
            {"policy": "threshold", "threshold": 0.9, "fallback": "first"},
            "fallback='first' is not one of certain, leftmost",
        ),
        ({"policy": "threshold", "threshold": 0.9, "fallback": "leftmost", "steps": 4}, "steps=4 would have the most"),
        ({"policy": "factor"}, "factor=None: policy='factor' needs a number"),
        ({"window": 4}, "window=4 would be ignored by policy='quota'; it is for deferred"),
        ({"policy": "random", "certainty": "margin"}, "certainty='margin' would be ignored by policy='random'"),
        ({"certainty": "luck"}, "not one of probability, margin, entropy"),
        ({"top_p": 0.9}, "would be ignored at temperature=0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0 must be in (0, 1]"),
        ({"cache": "all"}, "not one of none, prefix, dual, interval, block"),
        ({"cache": "interval"}, "recomputes the window of policy='deferred', and policy='quota' has none"),
        (
            {"policy": "deferred", "threshold": 0.9, "extension": 16, "block_length": 12},
            "extension=16 would be ignored: the canvas of 12",
        ),
        ({"extension": 16}, "extension=16 would be ignored by policy='quota'; it is for deferred"),
        ({"refresh": 8}, "refresh=8 would be ignored by cache='none'; it is for interval"),
        ({"eta": 0.1}, "eta=0.1 would be ignored by correction='none'; it is for remdm"),
        ({"correction": "remdm"}, "sigma=None: correction='remdm' needs one of cap, rescale, confidence"),
        (
            {"correction": "remdm", "sigma": "cap", "policy": "threshold", "threshold": 0.9},
            "needs a schedule of steps",
        ),
        ({"correction": "revise", "revise_fraction": 1.5}, "revise_fraction=1.5 must be in [0, 1]"),
        (
            {"correction": "revise", "revise_fraction": 0.5, "revise_blocks": "5"},
            "'5' is neither 'canvas' nor a length",
        ),
        ({"length": "dynamic"}, "max_length=None"),
        ({"length": "dynamic", "max_length": 24}, "policy='quota' counts steps of a fixed canvas"),
        ({"length": "dynamic", "max_length": 8, "policy": "factor", "factor": 1.0}, "max_length=8 is below"),
        (
            {"length": "dynamic", "max_length": 24, "policy": "factor", "factor": 1.0, "cache": "dual"},
            "cache='dual' does",
        ),
        ({"length": "survival"}, "block_length=None leaves one of 12: say a shorter one"),
        ({"length": "survival", "block_length": 12}, "block_length=12 leaves one of 12"),
        (
            {"length": "survival", "block_length": 4, "max_length": 24},
            "max_length=24 would be ignored by length='survival'",
        ),
        (
            {"length": "survival", "block_length": 4, "whole_blocks": True},
            "whole_blocks=True goes with length='fixed'",
        ),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"canvas_length": 2.5}, "canvas_length=2.5"),
    ],
)
def test_bad_settings_are_refused(settings, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        SamplerConfig(**{"canvas_length": G, **settings})


def test_bad_calls_are_refused(denoiser):
    with pytest.raises(ValueError, match="n=0"):
        run(denoiser, n=0)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        run(denoiser, ["1", ""])
    with pytest.raises(ValueError, match="canvas 0 has 3 positions"):
        run(denoiser, ["1"], canvases=[[None] * 3])
    with pytest.raises(
        ValueError, match=f"canvas 0 pins the mask token {denoiser.mask_id} at position 2; None is open"
    ):
        run(denoiser, ["1"], canvases=[[None, 9, denoiser.mask_id, *[None] * (G - 3)]])
    with pytest.raises(ValueError, match="canvas 0 holds 9999 at position 1, which is no token of the model"):
        run(denoiser, ["1"], canvases=[[None, 9999, *[None] * (G - 2)]])
    with pytest.raises(ValueError, match="prompt 0 holds -1 at position 0, which is no token of the model"):
        run(denoiser, [[-1, 9]])
    with pytest.raises(ValueError, match=r"model type 'gpt2' .*llama"):
        family_of({"model_type": "gpt2"})
