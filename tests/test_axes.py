"""The axes of the sampler, one by one against what each must reduce to, and in every combination against its invariants."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.drift import measure_drift
from lockstitch.sampling.families import BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED, CONTEXT_CAUSAL
from lockstitch.sampling.layouts import EXACT
from lockstitch.sampling.loop import sample
from lockstitch.sampling.presets import PRESETS, preset
from models import dream_like, random_denoiser, without_mask

PROMPTS = ["12, +27, -15\n", "3102\n2000\n0210\n0320\n", "Ann has 12 apples. How many?\n", " 30 100  93 =  23\n"]
G = 12
MODELS = {
    "bidirectional": lambda: random_denoiser("qwen3"),
    "llada": lambda: without_mask(random_denoiser()),
    "dream": lambda: dream_like(random_denoiser()),
    "block_causal": lambda: random_denoiser("qwen3", family=BLOCK_CAUSAL),
    "block_causal_shifted": lambda: random_denoiser("qwen2", family=BLOCK_CAUSAL_SHIFTED),
    "context_causal": lambda: random_denoiser("llama", family=CONTEXT_CAUSAL),
}


@cache
def model(name="bidirectional"):
    return MODELS[name]()


def run(prompts=PROMPTS, n=1, denoiser=None, canvases=None, **chosen):
    chosen = {"canvas_length": G, "stop_at_eos": False, **chosen}
    return sample(denoiser or model(), prompts, SamplerConfig(**chosen), n=n, canvases=canvases)


def tokens(trajectories):
    return [t.canvas_ids for t in trajectories]


def total_nfe(trajectories):
    return sum(t.ledger.nfe for t in trajectories)


# Policies


@pytest.mark.parametrize(
    "one_at_a_time",
    [
        {"policy": "factor", "factor": 0.0},
        {"policy": "entropy_bound", "entropy_bound": 0.0},
        {"policy": "deferred", "threshold": 1.01, "window": G},
        {"policy": "threshold", "threshold": 1.01},
    ],
)
def test_the_strictest_setting_is_one_token_a_step(one_at_a_time):
    drawn = run(**one_at_a_time)
    assert all(t.ledger.nfe == G for t in drawn)
    ranked_by = {"certainty": "entropy"} if "entropy_bound" in one_at_a_time else {}
    assert tokens(drawn) == tokens(run(**ranked_by))


@pytest.mark.parametrize(
    "loose", [{"policy": "factor", "factor": 100.0}, {"policy": "entropy_bound", "entropy_bound": 1e3}]
)
def test_the_loosest_setting_is_one_step_a_block(loose):
    drawn = run(block_length=4, **loose)
    assert all(t.ledger.nfe == G // 4 for t in drawn)
    assert tokens(drawn) == tokens(run(block_length=4, steps=G // 4))


@pytest.mark.parametrize(
    "between",
    [
        {"policy": "factor", "factor": 0.6},
        {"policy": "entropy_bound", "entropy_bound": 0.6},
        {"policy": "threshold", "threshold": 0.4, "certainty": "margin"},
        {"policy": "threshold", "threshold": 0.4, "certainty": "entropy"},
    ],
)
def test_settings_between_take_fewer_steps(between):
    assert len(PROMPTS) * G // 4 < total_nfe(run(block_length=4, **between)) < len(PROMPTS) * G


def test_random_order_depends_on_the_seed_alone():
    drawn = run(PROMPTS[:1], n=4, policy="random")
    assert len({t.commit_step for t in drawn}) == 4
    assert [t.commit_step for t in run(PROMPTS[:1], n=4, policy="random")] == [t.commit_step for t in drawn]
    assert all(sorted(t.commit_step) == list(range(1, G + 1)) for t in drawn)


def test_deferred_at_its_limits():
    threshold = 0.5
    whole = run(policy="deferred", threshold=threshold, window=G, window_limit=G)
    plain = run(policy="threshold", threshold=threshold)
    assert len(PROMPTS) < total_nfe(plain) < len(PROMPTS) * G
    assert tokens(whole) == tokens(plain)
    assert [t.commit_step for t in whole] == [t.commit_step for t in plain]
    assert tokens(run(policy="deferred", threshold=threshold, window=1)) == tokens(run(block_length=1))
    at_once = run(policy="deferred", threshold=0.0, window=4, window_limit=4)
    assert tokens(at_once) == tokens(run(block_length=4, steps=G // 4))
    between = run(policy="deferred", threshold=threshold, window=3)
    assert tokens(between) not in (tokens(whole), tokens(run(block_length=1)))


# Corrections


def test_remdm_that_reopens_nothing_is_plain():
    plain = run(policy="random", steps=6, temperature=1.0, block_length=6)
    for sigma in ("cap", "rescale", "confidence"):
        drawn = run(
            policy="random", steps=6, temperature=1.0, block_length=6, correction="remdm", sigma=sigma, eta=0.0
        )
        assert tokens(drawn) == tokens(plain)


@pytest.mark.parametrize("sigma", ["cap", "rescale", "confidence"])
def test_remdm_reopens_and_keeps_its_schedule(sigma):
    drawn = run(n=4, policy="random", steps=G, temperature=1.0, correction="remdm", sigma=sigma, eta=0.6)
    assert sum(len(t.edits) for t in drawn) > len(drawn)
    for t in drawn:
        assert t.ledger.nfe == G
        # Behind its schedule only where more was reopened than was left to reveal, and never at the end.
        committed = [sum(token is not None for token in t.canvas_at(step)) for step in range(G + 1)]
        assert all(done <= step for step, done in enumerate(committed))
        assert committed[: G // 2] == list(range(G // 2))
        assert committed[G] == G


def test_editing():
    plain = run(steps=3)
    never = run(steps=3, correction="edit", edit_threshold=1.0)
    assert tokens(never) == tokens(plain)
    assert all(not t.edits and t.ledger.nfe == 4 for t in never)  # one more step, to see that nothing changes
    drawn = run(steps=3, correction="edit", edit_threshold=0.3)
    assert any(t.edits for t in drawn)
    for t in drawn:
        assert t.ledger.nfe <= 3 + 16
        # At the end nothing is left that the model would overwrite, unless patience ran out.
        if t.ledger.nfe < 3 + 16:
            ids = torch.tensor([[*t.prompt_ids, *t.canvas_ids]])
            logits = model().model(input_ids=ids).logits[0, -G:].detach()
            logits[:, [model().mask_id, model().pad_id]] = -torch.inf
            confidence, token = logits.softmax(-1).max(-1)
            assert all(int(a) == b or c <= 0.3 for a, b, c in zip(token, t.canvas_ids, confidence, strict=True))


def test_revise_at_its_limits():
    draft = run(block_length=4)
    for fraction, expected in ((0.0, draft), (1.0, run())):
        drawn = run(block_length=4, correction="revise", revise_fraction=fraction)
        assert tokens(drawn) == tokens(expected)
    assert total_nfe(run(block_length=4, correction="revise", revise_fraction=0.0)) == total_nfe(draft)
    assert tokens(draft) != tokens(run())


def test_revise_reopens_the_lowest_snapshots_alone():
    draft = run(block_length=4)
    revised = run(block_length=4, correction="revise", revise_fraction=0.25)
    for before, after in zip(draft, revised, strict=True):
        lowest = sorted(range(G), key=lambda i: (before.confidence[i], i))[: G // 4]
        assert sorted(edit.position for edit in after.edits) == sorted(lowest)
        assert all(after.canvas_ids[i] == before.canvas_ids[i] for i in range(G) if i not in lowest)
        assert after.canvas_at(G) == list(before.canvas_ids)
        assert after.ledger.nfe == G + G // 4
    stages = run(block_length=2, correction="revise", revise_fraction=0.5, revise_blocks="4,canvas")
    assert all(t.ledger.nfe == 2 * G for t in stages)
    assert {max(t.block) for t in stages} == {G // 2 + G // 4}


# Guidance


def test_guidance_is_the_plain_formula_and_costs_twice():
    plain, none = run(block_length=4), run(block_length=4, cfg_scale=0.0)
    guided = run(block_length=4, cfg_scale=1.5)
    assert tokens(none) == tokens(plain)
    assert total_nfe(guided) == 2 * total_nfe(plain)
    assert [t.ledger.sequential_steps for t in guided] == [t.ledger.sequential_steps for t in plain]
    for t in guided:
        ids = torch.tensor([[*t.prompt_ids, *[model().mask_id] * G]])
        blank = torch.full_like(ids, model().mask_id)
        for step in range(1, G + 1):
            held = [model().mask_id if token is None else token for token in t.canvas_at(step - 1)]
            ids[0, -G:] = blank[0, -G:] = torch.tensor(held)
            with torch.no_grad():
                a, b = model().model(input_ids=torch.cat([ids, blank])).logits[:, -G:]
            logits = b + 2.5 * (a - b)
            logits[:, [model().mask_id, model().pad_id]] = -torch.inf
            place = t.commit_step.index(step)
            assert int(logits[place].argmax()) == t.canvas_ids[place]


# Length


def reference_daedal(denoiser, prompt, start, most, block, threshold):
    """DAEDAL (2508.00819) on lists, one prompt, greedy; the numbers are the paper's."""
    (prompt_ids,), mask = denoiser.encode([prompt]), denoiser.mask_id

    def read(canvas):
        logits = denoiser.model(input_ids=torch.tensor([[*prompt_ids, *canvas]])).logits[0, -len(canvas) :].clone()
        logits[:, mask] = -torch.inf
        p = logits.softmax(-1)
        tail = range(max(0, len(canvas) - 32), len(canvas))
        end = sum(float(p[i, denoiser.eos_ids[0]]) for i in tail if int(p[i].argmax()) == denoiser.eos_ids[0]) / len(
            tail
        )
        logits[:, denoiser.pad_id] = -torch.inf
        return *logits.softmax(-1).max(-1), end

    canvas = [mask] * start
    while len(canvas) < most:
        enough = read(canvas)[2] >= 0.5
        canvas += [mask] * min(16 if enough else 8, most - len(canvas))
        if enough:
            break
    low = 0
    while low < len(canvas):
        while mask in canvas[low : low + block]:
            confidence, token, end = read(canvas)
            open_ = [i for i in range(low, min(low + block, len(canvas))) if canvas[i] == mask]
            best = max(open_, key=lambda i: float(confidence[i]))
            for i in open_:
                if confidence[i] >= threshold or i == best:
                    canvas[i] = int(token[i])
            left = [i for i in open_ if canvas[i] == mask]
            if left and end < 0.9:
                unsure = min(left, key=lambda i: float(confidence[i]))
                if confidence[unsure] < 0.1:
                    canvas[unsure:unsure] = [mask] * min(7, most - len(canvas))
            if denoiser.eos_ids[0] in canvas and mask not in canvas[: canvas.index(denoiser.eos_ids[0])]:
                return tuple(canvas)
        low += block
    return tuple(canvas)


def test_dynamic_length():
    fixed = run(policy="threshold", threshold=0.6, block_length=4, stop_at_eos=True)
    same = run(policy="threshold", threshold=0.6, block_length=4, stop_at_eos=True, length="dynamic", max_length=G)
    assert tokens(same) == tokens(fixed)
    # A softer head, so that some confidences fall below a tenth, and one that likes to end.
    soft = random_denoiser(seed=3, sharpness=2.0)
    for most, lift in ((40, 0.0), (40, 2.5)):
        with torch.no_grad():
            soft.model.lm_head.weight[soft.eos_ids[0]] += lift * soft.model.lm_head.weight[7]
            expected = [reference_daedal(soft, prompt, 8, most, 8, 0.6) for prompt in PROMPTS]
        drawn = run(
            denoiser=soft,
            canvas_length=8,
            max_length=most,
            length="dynamic",
            block_length=8,
            policy="threshold",
            threshold=0.6,
            stop_at_eos=True,
        )
        assert tokens(drawn) == expected
        assert all(len(t.commit_step) == len(t.canvas_ids) == len(t.confidence) for t in drawn)
        assert any(len(ids) > 8 for ids in expected)
        for t in drawn:
            assert t.canvas_at(t.last_step) == [None if token == soft.mask_id else token for token in t.canvas_ids]


# Presets and drift

FITS = {
    "bidirectional": {"llada", "fast", "dream", "fork", "dcd", "draft_revise", "remdm", "daedal"},
    "llada": {"llada", "dream", "fork", "dcd", "draft_revise", "remdm", "daedal"},
    "dream": {"llada", "dream", "fork", "dcd", "draft_revise", "remdm", "daedal"},
    "block_causal": {
        "llada",
        "dream",
        "block",
        "sdar",
        "fast_dllm_v2",
        "llada2",
        "fork",
        "dcd",
        "draft_revise",
        "remdm",
    },
    "context_causal": {"llada", "dream", "block", "fork", "dcd", "draft_revise", "remdm", "tidar", "idlm"},
}


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow if name in ("llada", "dream") else ()) for name in FITS]
)
def test_presets_run_where_they_fit_and_are_refused_elsewhere(family):
    for name in PRESETS:
        smaller = {"max_length": 40} if name == "daedal" else {}
        config = preset(name, canvas_length=32, batch_size=2, **smaller)
        if name in FITS[family]:
            (t,) = sample(model(family), PROMPTS[:1], config)
            assert model(family).mask_id not in t.completion_ids
        else:
            with pytest.raises(ValueError, match=r"cache=|length=|whole_blocks=|policy='verify'"):
                sample(model(family), PROMPTS[:1], config)
    with pytest.raises(ValueError, match=r"'speedy' is not one of llada, fast"):
        preset("speedy", 32)


@pytest.mark.parametrize(
    ("name", "said", "left_out"),
    [
        ("fast", {"policy": "quota"}, {"threshold"}),
        ("dream", {"policy": "threshold", "threshold": 0.5}, {"schedule_eps"}),
        ("dream", {"temperature": 0.0}, {"top_p"}),
        ("remdm", {"correction": "none"}, {"sigma", "eta"}),
        ("tidar", {"acceptance": "ratio"}, {"trust"}),
        ("idlm", {"policy": "threshold", "threshold": 0.9}, {"acceptance", "drafts"}),
        ("dcd", {"policy": "factor", "factor": 1.0}, {"threshold", "window", "window_limit"}),
    ],
)
def test_a_preset_gives_way_to_what_is_said(name, said, left_out):
    plain = {key: value for key, value in PRESETS[name].items() if key not in left_out}
    assert preset(name, 32, **said) == SamplerConfig(canvas_length=32, **{**plain, **said})


def test_what_is_said_beside_a_preset_is_refused_where_it_would_be_ignored():
    with pytest.raises(ValueError, match=r"threshold=0.5 would be ignored by policy='quota'"):
        preset("fast", 32, policy="quota", threshold=0.5)
    with pytest.raises(ValueError, match=r"top_k=None, top_p=0.9 would be ignored at temperature=0"):
        preset("remdm", 32, temperature=0.0, top_p=0.9)


def test_drift_is_nothing_where_exact_and_something_where_not():
    config = SamplerConfig(canvas_length=G, block_length=4, cache="block", stop_at_eos=False)
    exact = measure_drift(model("block_causal"), PROMPTS, config, n=2)
    assert exact.exact
    assert exact.tokens == 1.0
    assert abs(exact.kl) < 1e-6
    drifts = {}
    for cache_name in ("prefix", "dual"):
        config = SamplerConfig(canvas_length=G, block_length=4, cache=cache_name, stop_at_eos=False)
        drifts[cache_name] = drift = measure_drift(model(), PROMPTS, config)
        assert not drift.exact
        assert 0 < drift.tokens < 1
        assert drift.kl > 1e-4
        assert drift.nfe == drift.plain_nfe == G
        assert drift.tokens_forwarded < drift.plain_tokens_forwarded
    assert drifts["dual"].tokens_forwarded < drifts["prefix"].tokens_forwarded
    whole_block = SamplerConfig(canvas_length=G, block_length=1, cache="dual", stop_at_eos=False)
    assert abs(measure_drift(model(), PROMPTS, whole_block).kl) < 1e-6
    with pytest.raises(ValueError, match="cache='none' has no drift"):
        measure_drift(model(), PROMPTS, SamplerConfig(canvas_length=G))


def test_drift_of_windows_is_less_the_oftener_all_is_computed_again():
    deferred = {"policy": "deferred", "threshold": 0.9, "window": 3, "cache": "interval", "stop_at_eos": False}
    often, seldom = (
        measure_drift(model(), PROMPTS, SamplerConfig(canvas_length=G, refresh=refresh, **deferred))
        for refresh in (1, 8)
    )
    assert often.kl < 1e-6 < seldom.kl
    assert often.plain_tokens_forwarded == seldom.plain_tokens_forwarded


# Every combination

POLICIES = [
    {"policy": "quota"}, {"policy": "quota", "steps": 6}, {"policy": "quota", "certainty": "margin"},
    {"policy": "random", "steps": 6}, {"policy": "threshold", "threshold": 0.5},
    {"policy": "threshold", "threshold": 0.5, "steps": 6},
    {"policy": "threshold", "threshold": 0.5, "certainty": "entropy"},
    {"policy": "threshold", "threshold": 0.6, "fallback": "leftmost"}, {"policy": "factor", "factor": 0.7},
    {"policy": "entropy_bound", "entropy_bound": 0.7}, {"policy": "deferred", "threshold": 0.5, "window": 3},
]  # fmt: skip
CORRECTIONS = [
    {}, {"correction": "remdm", "sigma": "rescale", "eta": 0.5}, {"correction": "remdm", "sigma": "confidence"},
    {"correction": "edit", "edit_threshold": 0.4}, {"correction": "revise", "revise_fraction": 0.4},
    {"correction": "revise", "revise_fraction": 0.3, "revise_blocks": "6,canvas"},
]  # fmt: skip
DRAWS = [{}, {"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.9, "top_k": 12}, {"cfg_scale": 0.5}]


@st.composite
def combinations(draw):
    family = draw(st.sampled_from(sorted(MODELS)))
    denoiser = model(family)
    caches = [name for name in EXACT[denoiser.family.layout] if name == "none" or denoiser.calling.keeps_keys]
    policy, correction = draw(st.sampled_from(POLICIES)), draw(st.sampled_from(CORRECTIONS))
    if correction.get("correction") == "remdm" and policy["policy"] not in ("quota", "random"):
        correction = {}
    if policy["policy"] != "deferred":
        caches = [name for name in caches if name != "interval"]
    cache = {"cache": draw(st.sampled_from(caches))}
    if cache["cache"] == "interval":
        cache["refresh"] = draw(st.sampled_from([1, 3, None]))
    chosen = {**policy, **correction, **draw(st.sampled_from(DRAWS)), **cache,
              "block_length": draw(st.sampled_from([2, 4, 6, None])), "stop_at_eos": draw(st.booleans())}  # fmt: skip
    if chosen["policy"] == "deferred" and denoiser.family.layout != "full" and chosen["block_length"]:
        chosen["extension"] = draw(st.sampled_from([None, 3, 8]))
    token = st.sampled_from([None, None, None, 7, 9, denoiser.eos_ids[0]])
    canvases = [draw(st.lists(token, min_size=G, max_size=G)) if draw(st.booleans()) else [None] * G for _ in range(2)]
    return denoiser, chosen, canvases


def check_combination(combination):
    denoiser, chosen, canvases = combination
    prompts, rows, cells, inputs = PROMPTS[:2], [], [], []

    def count(module, args, kwargs):
        rows.append(kwargs["input_ids"].shape[0])
        cells.append(int((kwargs["input_ids"] != denoiser.pad_id).sum()))
        inputs.append(kwargs["input_ids"])

    handle = denoiser.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        drawn = run(prompts, n=2, denoiser=denoiser, canvases=canvases, **chosen)
        assert sum(t.ledger.nfe for t in drawn) >= sum(rows)  # rows that are the same go through a pass as one
        assert sum(t.ledger.tokens_forwarded for t in drawn) == sum(cells)
        inputs.clear()
        rows.clear()
        (alone,) = run(prompts[1:], denoiser=denoiser, canvases=canvases[1:], **chosen)
        assert alone.ledger.nfe == drawn[2].ledger.nfe == sum(rows)
        assert alone.ledger.sequential_steps == len(inputs)
    finally:
        handle.remove()
    if chosen["cache"] == "none":
        # Each pass read the canvas that the trace says there was (blocks ahead may be left out); the steps without a pass
        # are those that began a revision.
        shown = [
            [denoiser.mask_id if token is None else token for token in alone.canvas_at(step)]
            for step in range(len(inputs) + 2)
        ]
        step = skipped = 0
        for ids in inputs:
            seen = ids[0, len(alone.prompt_ids) :].tolist()
            while step < len(shown) and seen != shown[step][: len(seen)]:
                step, skipped = step + 1, skipped + 1
            step += 1
        assert step <= len(shown)
        assert skipped <= (2 if chosen.get("correction") == "revise" else 0)
    assert alone.canvas_ids == drawn[2].canvas_ids
    assert alone.edits == drawn[2].edits
    for t in drawn:
        canvas = canvases[t.prompt]
        assert denoiser.mask_id not in [i for i, at in zip(t.canvas_ids, t.commit_step, strict=True) if at >= 0]
        assert denoiser.pad_id not in t.canvas_ids
        assert [at == 0 for at in t.commit_step] == [token is not None for token in canvas]
        assert all(token is None or token == i for token, i in zip(canvas, t.canvas_ids, strict=True))
        assert [at > 0 for at in t.commit_step] == [block >= 0 for block in t.block]
        if not chosen["stop_at_eos"]:
            assert min(t.commit_step) >= 0
        for position in range(G):
            held = [(edit.commit_step, edit.step) for edit in t.edits if edit.position == position]
            assert held == sorted(held)
            starts = [start for start, _ in held[1:]] + [t.commit_step[position]]
            assert all(end <= start or start == -1 for (_, end), start in zip(held, starts, strict=False))
        if not chosen.get("correction"):
            assert not t.edits
            assert t.ledger.forks == len(t.forks)
        assert t.ledger.forks >= len(t.forks)
        assert t.forks == tuple(commit.position for commit in sorted(t.commits) if commit.fork)
        if chosen.get("certainty") is None:
            least = chosen.get("threshold", 0)
            below = [since > 0 and c < least for since, c in zip(t.commit_step, t.confidence, strict=True)]
            assert [position in t.forks for position in range(G)] == below or chosen.get("correction") == "edit"
        assert t.canvas_at(0) == list(canvas)
        assert t.canvas_at(t.last_step) == [None if i == denoiser.mask_id else i for i in t.canvas_ids]


@settings(max_examples=16, deadline=None, derandomize=True, database=None)
@given(combinations())
def test_every_combination_keeps_the_invariants(combination):
    check_combination(combination)


@pytest.mark.slow
@settings(max_examples=250, deadline=None, derandomize=True, database=None)
@given(combinations())
def test_many_combinations_keep_the_invariants(combination):
    check_combination(combination)
