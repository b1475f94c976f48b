"""Speculation against the plain run: the same tokens, trace and edits, in fewer passes that wait for one another."""

import math
from functools import cache

import pytest
import torch
from lockstitch.sampling import policies
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.drift import measure_drift
from lockstitch.sampling.families import BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED, CONTEXT_CAUSAL
from lockstitch.sampling.loop import sample
from lockstitch.sampling.noise import derive_seed, uniform
from lockstitch.sampling.tokens import draw
from models import dream_like, random_denoiser, without_mask

PROMPTS = ["12, +27, -15\n", "3102\n2000\n0210\n0320\n"]  # 13 and 20 tokens: ragged
G = 12
MODELS = {
    "full": random_denoiser,
    "without_mask": lambda: without_mask(random_denoiser()),
    "dream": lambda: dream_like(random_denoiser()),
    "block_causal": lambda: random_denoiser("qwen3", family=BLOCK_CAUSAL),
    "block_causal_shifted": lambda: random_denoiser("qwen2", family=BLOCK_CAUSAL_SHIFTED),
    "context_causal": lambda: random_denoiser(family=CONTEXT_CAUSAL),
}
PLACES = [("full", "none"), ("full", "prefix"), ("full", "dual"), ("without_mask", "none"), ("dream", "none"),
          ("block_causal", "none"), ("block_causal", "block"), ("block_causal_shifted", "block"),
          ("context_causal", "none"), ("context_causal", "block")]  # fmt: skip
LEFTMOST = {"policy": "threshold", "threshold": 0.7, "fallback": "leftmost"}
POLICIES = {
    "one": {}, "two": {"steps": 6}, "random": {"policy": "random"}, "threshold": {"policy": "threshold", "threshold": 0.5},
    "fork": LEFTMOST, "floor": {"policy": "threshold", "threshold": 0.5, "steps": 6},
    "factor": {"policy": "factor", "factor": 0.7}, "bound": {"policy": "entropy_bound", "entropy_bound": 0.5},
    "dream": {"schedule_eps": 0.001, "certainty": "entropy"}, "sub": {"sub_block_length": 2},
    "dream_sub": {"schedule_eps": 0.001, "sub_block_length": 2},
    "revise": {"correction": "revise", "revise_fraction": 0.4}, "guided": {"cfg_scale": 0.5},
    "cut": {"top_k": 20, "top_p": 0.9, "temperature": 0.7},
}  # fmt: skip


@cache
def model(name="full"):
    return MODELS[name]()


def run(denoiser, prompts=PROMPTS, n=1, **settings):
    canvases, bans = settings.pop("canvases", None), settings.pop("bans", None)
    chosen = {"canvas_length": G, "stop_at_eos": False, **settings}
    return sample(denoiser, prompts, SamplerConfig(**chosen), n=n, canvases=canvases, bans=bans)


def traces(trajectories):
    return [(t.canvas_ids, t.commit_step, t.block, t.forks, t.edits, t.length) for t in trajectories]


def check(denoiser, ahead=3, n=2, **settings):
    plain, ours = run(denoiser, n=n, **settings), run(denoiser, n=n, speculate=ahead, **settings)
    assert traces(ours) == traces(plain)
    for a, b in zip(plain, ours, strict=True):
        assert b.confidence == pytest.approx(a.confidence, abs=1e-4)
        assert b.entropy == pytest.approx(a.entropy, abs=1e-3)
        assert b.ledger.sequential_steps <= a.ledger.sequential_steps <= a.ledger.nfe
        assert a.ledger.nfe <= b.ledger.nfe or "schedule_eps" in settings  # an idle step reads what is known already
        assert b.ledger.forks == a.ledger.forks
    return sum(t.ledger.sequential_steps for t in plain), sum(t.ledger.sequential_steps for t in ours)


@pytest.mark.parametrize(("family", "cache"), PLACES)
def test_nothing_changes_but_the_passes(family, cache):
    names = list(POLICIES)
    place = PLACES.index((family, cache))
    for policy in ("one", "fork", names[2 + place % (len(names) - 2)]):  # the other policies take turns
        chosen = {"temperature": 1.0, **POLICIES[policy]}
        before, after = check(model(family), block_length=6, cache=cache, **chosen)
        assert after < before or policy != "one"


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_changes_anywhere(policy):
    for place, (family, kept) in enumerate(PLACES):
        temperature = 1.0 if policy == "cut" or place % 2 else 0.0
        chosen = {"temperature": temperature, **POLICIES[policy]}
        check(
            model(family),
            2 + place % 4,
            n=1 + (temperature > 0),
            block_length=4 + 2 * (policy == "one"),
            cache=kept,
            stop_at_eos=policy in ("one", "threshold"),
            **chosen,
        )


@pytest.mark.parametrize("ahead", [1, 2, 20])
def test_any_number_of_steps_ahead(ahead):
    before, after = check(model(), ahead, temperature=0.8)
    assert before / (ahead + 1) <= after < before
    check(model(), ahead, n=1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_end_where_their_sub_block_is_full(temperature):
    check(model(), 4, n=1, temperature=temperature, **POLICIES["dream_sub"])


def test_pins_bans_and_early_ends():
    eos = model().eos_ids[0]
    canvases = [[None] * 3 + [7, 9] + [None] * 7, [None] * 8 + [eos] + [None] * 3]
    free = run(model(), temperature=1.0, canvases=canvases)
    bans = [[(position, free[0].canvas_ids[position]) for position in (0, 6, 11)], [(2, free[1].canvas_ids[2])]]
    check(model(), temperature=1.0, canvases=canvases, bans=bans, stop_at_eos=True)
    check(model(), temperature=1.0, canvases=canvases, bans=bans, stop_at_eos=True, batch_size=1)


def test_batching_changes_neither_tokens_nor_bill():
    together = run(model(), n=3, temperature=1.0, speculate=3)
    alone = [t for prompt in PROMPTS for t in run(model(), [prompt], n=3, temperature=1.0, speculate=3, batch_size=1)]
    assert traces(together) == traces(alone)
    for a, b in zip(together, alone, strict=True):
        assert (a.ledger.nfe, a.ledger.sequential_steps) == (b.ledger.nfe, b.ledger.sequential_steps)


@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 0.5}, {"cache": "dual", "block_length": 6}])
def test_the_bill_is_what_a_hook_counts(settings):
    rows, cells = [], []

    def count(module, args, kwargs):
        rows.append(len(kwargs["input_ids"]))
        cells.append(kwargs["input_ids"].numel())

    handle = model().model.register_forward_pre_hook(count, with_kwargs=True)
    (t,) = run(model(), PROMPTS[:1], temperature=1.0, speculate=3, **settings)
    handle.remove()
    assert t.ledger.sequential_steps == len(rows)
    assert t.ledger.nfe == sum(rows)
    assert t.ledger.tokens_forwarded == sum(cells)
    assert max(rows) == (8 if settings.get("cfg_scale") else 4)


@pytest.mark.parametrize("ahead", [1, 2, 3, 11, 30])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_does_not_read_the_canvas_confirms_every_draft(ahead, temperature):
    denoiser = random_denoiser()
    weight = denoiser.model.model.embed_tokens.weight
    with torch.no_grad():
        weight[:] = weight[7]  # all tokens look the same, so all positions do
    before, after = check(denoiser, ahead, n=1, temperature=temperature)
    assert before == 2 * G
    assert after == 2 * (1 + math.ceil((G - 1) / (ahead + 1)))
    for t in run(denoiser, speculate=ahead, temperature=temperature):
        assert t.ledger.nfe == G  # each state was read once


def test_a_model_that_always_differs_costs_no_more_passes():
    drawn = run(model(), temperature=3.0, speculate=4)
    assert all(t.ledger.sequential_steps <= G for t in drawn)
    assert all(t.ledger.nfe <= 1 + 5 * (t.ledger.sequential_steps - 1) for t in drawn)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"speculate": 0}, "speculate=0 must be a whole number of at least 1"),
        ({"policy": "deferred", "threshold": 0.9}, "speculate=2 does not go with policy='deferred'"),
        ({"correction": "edit", "edit_threshold": 0.5}, "speculate=2 does not go with correction='edit'"),
        ({"correction": "remdm", "sigma": "cap"}, "speculate=2 does not go with correction='remdm'"),
        ({"length": "dynamic", "max_length": 24, **LEFTMOST}, "speculate=2 does not go with length='dynamic'"),
        ({"block_length": 1}, "speculate=2 would be ignored: each of the 12 blocks takes one step"),
        ({"block_length": 4, "steps": 3}, "speculate=2 would be ignored: each of the 3 blocks takes one step"),
    ],
)
def test_what_cannot_be_foreseen_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        SamplerConfig(**{"canvas_length": G, "speculate": 2, **settings})


def test_drift_is_not_measured_ahead():
    with pytest.raises(ValueError, match="speculate=2: drift is measured step by step"):
        measure_drift(model(), PROMPTS, SamplerConfig(canvas_length=G, block_length=4, cache="dual", speculate=2))


def test_steps_of_ones_own():
    seeds, position = torch.tensor([derive_seed(0, k) for k in range(3)]), torch.arange(5)
    together = uniform(seeds, 2, [4, 9, 4], position, 1)
    for b, step in enumerate((4, 9, 4)):
        assert torch.equal(together[b : b + 1], uniform(seeds[b : b + 1], 2, step, position, 1))
    masks, steps, turn = torch.tensor([9, 7, 12]), torch.tensor([4, 3, 5]), torch.tensor([0, 2, 3])
    for schedule in (policies.quota_total, lambda *of: policies.share_of_masks(*of, 0.001)):
        alone = [int(schedule(masks[b : b + 1], int(turn[b]), steps[b : b + 1])) for b in range(3)]
        assert schedule(masks, turn, steps).tolist() == alone


@pytest.mark.parametrize("certainty", [None, "margin", "entropy"])
def test_several_draws_of_a_position_are_single_draws(certainty):
    logits = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(0))
    u = torch.rand(4, 3, 2, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    settings = (0.8, [2], 9, 0.9, certainty)
    several = draw(logits.clone(), u, *settings)
    for d in range(2):
        for both, single in zip(several, draw(logits.clone(), u[..., d], *settings), strict=True):
            assert torch.equal(both[..., d], single)
