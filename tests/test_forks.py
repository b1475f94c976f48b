"""The fork policy (2609.39859) against a left-to-right sampler, an enumeration of all its runs, and plain decoding."""

import itertools
from collections import Counter

import pytest
import torch
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.families import BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED, CONTEXT_CAUSAL
from lockstitch.sampling.layouts import EXACT
from lockstitch.sampling.loop import sample
from lockstitch.sampling.noise import derive_seed, uniform
from models import dream_like, random_denoiser

PROMPTS = ["12, +27, -15\n", "3102\n2000\n0210\n0320\n", " 30 100  93 =  23\n"]
G = 12


def run(denoiser, prompts=PROMPTS, n=1, canvases=None, **settings):
    chosen = {"canvas_length": G, "stop_at_eos": False, "policy": "threshold", "fallback": "leftmost", **settings}
    return sample(denoiser, prompts, SamplerConfig(**chosen), n=n, canvases=canvases)


def tokens(trajectories):
    return [t.canvas_ids for t in trajectories]


@torch.no_grad()
def left_to_right(denoiser, prompt, seed, block, temperature):
    """The autoregressive sampler of a full-attention model: each token drawn given those before it, all others masked."""
    ids = denoiser.encode([prompt])[0] + [denoiser.mask_id] * G
    start, shift = len(ids) - G, int(denoiser.family.shifted)
    for i in range(G):
        logits = denoiser.model(input_ids=torch.tensor([ids])).logits[0, start + i - shift]
        logits[[denoiser.mask_id, denoiser.pad_id]] = -torch.inf
        if temperature == 0:
            ids[start + i] = int(logits.argmax())
            continue
        u = uniform(torch.tensor([seed]), i // block, i % block, torch.tensor([i]))[0, 0]
        p = (logits / temperature).softmax(-1).double()
        ids[start + i] = int((p.cumsum(0) <= u * p.sum()).sum())
    return tuple(ids[start:])


@pytest.mark.parametrize("disguise", [lambda denoiser: denoiser, dream_like], ids=["full", "dream"])
@pytest.mark.parametrize(("block", "temperature"), [(12, 0.8), (4, 0.8), (12, 0.0), (4, 0.0)])
def test_a_threshold_that_nothing_reaches_is_the_autoregressive_sampler(disguise, block, temperature):
    denoiser = disguise(random_denoiser())
    n = 2 if temperature else 1
    drawn = run(denoiser, n=n, threshold=1.01, block_length=block, temperature=temperature)
    seeds = [derive_seed(0, k) for k in range(n)]
    expected = [left_to_right(denoiser, prompt, seed, block, temperature) for prompt in PROMPTS for seed in seeds]
    assert tokens(drawn) == expected
    for t in drawn:
        assert t.forks == tuple(range(G))
        assert t.commits == [(i, i + 1, True) for i in range(G)]
        assert t.ledger.nfe == t.ledger.forks == G


@pytest.mark.parametrize(
    "family", [BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED, CONTEXT_CAUSAL], ids=lambda family: family.name
)
def test_causal_layouts_go_from_left_to_right_too(family):
    denoiser = random_denoiser("qwen3", family=family)
    settings = {"threshold": 1.01, "block_length": 4, "temperature": 0.8}
    drawn = [run(denoiser, n=2, cache=name, **settings) for name in EXACT[family.layout]]
    assert tokens(drawn[0]) == tokens(drawn[1])
    for t in itertools.chain(*drawn):
        assert t.commit_step == tuple(range(1, G + 1))
        assert t.forks == tuple(range(G))


@pytest.mark.parametrize("block", [12, 4])
def test_a_threshold_of_zero_is_one_pass_a_block_and_no_fork(block):
    denoiser = random_denoiser()
    drawn = run(denoiser, threshold=0.0, block_length=block, temperature=0.8)
    assert tokens(drawn) == tokens(run(denoiser, threshold=0.0, fallback=None, block_length=block, temperature=0.8))
    for t in drawn:
        assert t.ledger.nfe == G // block
        assert not t.forks
        assert not t.ledger.forks


def test_a_fork_is_the_leftmost_mask_and_stands_alone():
    canvases = [[None, None, 7, *[None] * 9]] * 3
    drawn = run(random_denoiser(), n=2, canvases=canvases, threshold=0.6, block_length=6, temperature=0.8)
    assert any(t.forks for t in drawn)
    assert any(len(t.forks) < G - 1 for t in drawn)
    assert len({t.ledger.nfe for t in drawn}) > 1
    for t in drawn:
        for step in range(1, t.last_step + 1):
            made = [commit for commit in t.commits if commit.step == step]
            open_ = [i for i, token in enumerate(t.canvas_at(step - 1)) if token is None]
            if any(commit.fork for commit in made):
                assert [commit.position for commit in made] == open_[:1]
            assert [commit.fork for commit in made] == [t.confidence[commit.position] < 0.6 for commit in made]


def test_the_certain_fallback_is_the_default_and_is_marked_as_well():
    plain = run(random_denoiser(), fallback=None, threshold=0.6, temperature=0.8)
    assert tokens(plain) == tokens(run(random_denoiser(), fallback="certain", threshold=0.6, temperature=0.8))
    assert tokens(plain) != tokens(run(random_denoiser(), threshold=0.6, temperature=0.8))
    assert all(t.ledger.forks == len(t.forks) for t in plain)
    assert any(t.forks for t in plain)
    assert not any(t.forks for t in run(random_denoiser(), policy="quota", fallback=None))


def enumerate_runs(denoiser, prompt_ids, length, words, threshold, temperature):
    """The probability of every canvas of `length` positions over two words, and the mean number of forks."""
    total, forks = Counter(), 0.0

    def distributions(canvas):
        ids = [*prompt_ids, *(denoiser.mask_id if word is None else word for word in canvas)]
        logits = denoiser.model(input_ids=torch.tensor([ids])).logits[0, -length:, words].double()
        return logits.softmax(-1).tolist(), (logits / temperature).softmax(-1).tolist()

    def go(canvas, weight):
        nonlocal forks
        open_ = [i for i, word in enumerate(canvas) if word is None]
        if not open_:
            total[canvas] += weight
            return
        sure, drawn = distributions(canvas)
        for picks in itertools.product(range(len(words)), repeat=len(open_)):
            p = weight
            for i, pick in zip(open_, picks, strict=True):
                p *= drawn[i][pick]
            made = {i: pick for i, pick in zip(open_, picks, strict=True) if sure[i][pick] >= threshold}
            if not made:
                forks += p
                made = {open_[0]: picks[0]}
            go(tuple(words[made[i]] if i in made else word for i, word in enumerate(canvas)), p)

    with torch.no_grad():
        go((None,) * length, 1.0)
    return total, forks


def test_every_run_of_a_toy_is_drawn_as_often_as_it_should_be():
    denoiser, words, length, n = random_denoiser(sharpness=1.5), [7, 9], 3, 3000

    def two_words(module, arguments, logits):
        kept = torch.full_like(logits, -torch.inf)
        kept[..., words] = logits[..., words]
        return kept

    denoiser.model.lm_head.register_forward_hook(two_words)
    prompt = denoiser.encode(PROMPTS[:1])[0]
    expected, forks = enumerate_runs(denoiser, prompt, length, words, 0.7, 0.8)
    assert sum(expected.values()) == pytest.approx(1)
    assert 0.2 < forks < length - 0.2
    drawn = run(denoiser, [prompt], n=n, canvas_length=length, threshold=0.7, temperature=0.8, batch_size=500)
    seen = Counter(tokens(drawn))
    chi_square = sum((seen[canvas] - n * p) ** 2 / (n * p) for canvas, p in expected.items())
    assert chi_square < 24.3  # the 0.1 % point of 7 degrees of freedom
    assert sum(t.ledger.forks for t in drawn) / n == pytest.approx(forks, abs=0.1)
