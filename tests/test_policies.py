"""Policies, the draw and the corrections' pure functions, against brute force on a few positions."""

import math
import random

import pytest
import torch
from lockstitch.sampling import policies, tokens
from lockstitch.sampling.corrections import edits, least_confident, remdm_share
from lockstitch.sampling.lengths import end_confidence, needs_room
from lockstitch.sampling.noise import derive_seed, uniform
from lockstitch.sampling.tokens import draw, guided, keep_likely

L = 7


def rows(seed, count=60):
    """Random certainties and masks, every row with at least one mask, some certainties equal."""
    rng = random.Random(seed)
    certainty = [[rng.choice([0.1, 0.3, 0.5, 0.55, 0.8, 0.9, 0.97]) for _ in range(L)] for _ in range(count)]
    masked = [[rng.random() < 0.6 for _ in range(L)] for _ in range(count)]
    for row in masked:
        row[rng.randrange(L)] = True
    return certainty, masked


def best_first(certainty, masked):
    return sorted((i for i in range(L) if masked[i]), key=lambda i: (-certainty[i], i))


def check(chosen_BL, expected):
    assert chosen_BL.tolist() == [[i in one for i in range(L)] for one in expected]


def test_quota():
    certainty, masked = rows(0)
    counts = [k % 5 for k in range(len(masked))]
    expected = [best_first(c, m)[:k] for c, m, k in zip(certainty, masked, counts, strict=True)]
    check(policies.quota(torch.tensor(certainty), torch.tensor(masked), torch.tensor(counts)), expected)


@pytest.mark.parametrize(("masks", "steps"), [(12, 5), (7, 7), (9, 2), (1, 1)])
def test_quota_total_is_the_published_schedule(masks, steps):
    done = 0
    for step in range(steps):
        done += masks // steps + (step < masks % steps)
        assert int(policies.quota_total(torch.tensor([masks]), step, torch.tensor([steps]))[0]) == done
    assert done == masks


@pytest.mark.parametrize("least", [0.0, 0.55, 0.8, 1.1])
def test_threshold(least):
    certainty, masked = rows(1)
    expected = [
        [i for i in best_first(c, m) if c[i] >= least] or best_first(c, m)[:1]
        for c, m in zip(certainty, masked, strict=True)
    ]
    check(policies.threshold(torch.tensor(certainty).double(), torch.tensor(masked), least), expected)


@pytest.mark.parametrize("least", [0.0, 0.55, 0.8, 1.1])
def test_threshold_or_leftmost(least):
    certainty, masked = rows(1)
    expected = [
        [i for i in range(L) if m[i] and c[i] >= least] or [m.index(True)]
        for c, m in zip(certainty, masked, strict=True)
    ]
    chosen = policies.threshold_or_leftmost(torch.tensor(certainty).double(), torch.tensor(masked), least)
    check(chosen, expected)
    assert not policies.threshold_or_leftmost(torch.ones(1, L), torch.zeros(1, L, dtype=torch.bool), least).any()


@pytest.mark.parametrize("allowance", [0.0, 0.5, 1.0, 3.0])
def test_factor(allowance):
    certainty, masked = rows(2)
    expected = []
    for c, m in zip(certainty, masked, strict=True):
        order = best_first(c, m)
        fits = [k for k in range(1, len(order) + 1) if c[order[k - 1]] >= 1 - allowance / (k + 1)]
        expected.append(order[: max(fits, default=1)])
    check(policies.factor(torch.tensor(certainty).double(), torch.tensor(masked), allowance), expected)


@pytest.mark.parametrize("least", [0.0, 0.55, 0.8, 1.1])
def test_threshold_with_a_floor(least):
    certainty, masked = rows(1)
    counts, expected = [k % 4 for k in range(len(masked))], []
    for c, m, count in zip(certainty, masked, counts, strict=True):
        sure = [i for i in best_first(c, m) if c[i] >= least]
        expected.append(sure if len(sure) >= max(1, count) else best_first(c, m)[: max(1, count)])
    certainty, masked = torch.tensor(certainty).double(), torch.tensor(masked)
    check(policies.threshold(certainty, masked, least, torch.tensor(counts)), expected)
    none = torch.zeros(len(counts), dtype=torch.long)
    assert torch.equal(
        policies.threshold(certainty, masked, least, none), policies.threshold(certainty, masked, least)
    )


@pytest.mark.parametrize("bound", [0.0, 0.04, 0.06, 0.35, 1.0, 9.0])
def test_entropy_bound(bound):
    entropy, masked = rows(3)
    entropy = [
        [h if h > 0.5 else 0.05 * (h > 0.3) for h in row] for row in entropy
    ]  # some of no entropy, some of little
    expected = []
    for h, m in zip(entropy, masked, strict=True):
        order, chosen, total = sorted((i for i in range(L) if m[i]), key=lambda i: (h[i], i)), [], 0.0
        for i in order:
            total += h[i]
            if total - h[i] <= bound + 1e-12 or not chosen:
                chosen.append(i)
        expected.append(chosen)
    check(policies.entropy_bound(torch.tensor(entropy).double(), torch.tensor(masked), bound + 1e-12), expected)


@pytest.mark.parametrize(("masks", "span"), [(1, 7), (2, 3), (7, 7), (3, 1)])
def test_window(masks, span):
    _, masked = rows(4)
    expected = []
    for m in masked:
        left = m.index(True)
        right = max(i for i in range(left, min(left + span, L) + 1) if sum(m[left:i]) <= masks)
        expected.append([i for i in range(left, right) if m[i]])
    check(policies.window(torch.tensor(masked), masks, span), expected)


def frequencies(logits, temperature, draws=40_000, **settings):
    u = uniform(torch.tensor([derive_seed(3, k) for k in range(draws)]), 0, 0, torch.arange(1))
    drawn = draw(logits.expand(draws, 1, len(logits)).clone(), u, temperature, [5], **settings)
    return drawn, torch.bincount(drawn.token[:, 0], minlength=len(logits))


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 3}, [0, 1, 4]),
        ({"top_p": 0.8}, [0, 1]),
        ({"top_p": 0.95, "top_k": 4}, [0, 1, 4]),
    ],
)
def test_drawn_tokens_follow_what_is_left_of_the_softmax(settings, kept):
    logits, temperature = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, 9.0]), 0.7
    p = (logits[:5] / temperature).softmax(-1)
    expected = torch.zeros(6)
    expected[kept] = p[kept] / p[kept].sum() * 40_000
    drawn, observed = frequencies(logits, temperature, **settings)
    assert observed[expected == 0].sum() == 0
    seen = expected > 0
    chi_square = ((observed[seen] - expected[seen]) ** 2 / expected[seen]).sum().item()
    assert chi_square < {2: 10.83, 3: 13.82, 5: 18.47}[len(kept)]  # the 0.1 % points
    # The confidence is the probability at temperature 1 whatever was cut.
    assert torch.allclose(drawn.confidence[:, 0], logits[:5].softmax(-1)[drawn.token[:, 0]])


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("certainty", [None, "margin", "entropy"])
def test_slices_of_a_draw_change_nothing(monkeypatch, temperature, certainty):
    logits = torch.randn(3, 7, 403, generator=torch.Generator().manual_seed(0)) * 3
    u = torch.rand(3, 7, dtype=torch.double, generator=torch.Generator().manual_seed(1)) if temperature else None
    whole = draw(logits.clone(), u, temperature, [2], certainty=certainty)
    monkeypatch.setattr(tokens, "CPU_SLICE", 4 * 403 + 1)
    for sliced, expected in zip(draw(logits.clone(), u, temperature, [2], certainty=certainty), whole, strict=True):
        assert sliced.shape == (3, 7)
        assert torch.equal(sliced, expected)


def test_keep_likely_by_hand():
    p = torch.tensor([0.1, 0.4, 0.2, 0.05, 0.25])
    for settings, kept in (
        ((None, 0.4), [1]),
        ((None, 0.41), [1, 4]),
        ((None, 1.0), [0, 1, 2, 3, 4]),
        ((2, 1.0), [1, 4]),
        ((1, None), [1]),
    ):
        cut = keep_likely(p.log().clone(), *settings)
        assert (cut > -torch.inf).nonzero()[:, 0].tolist() == kept
        assert torch.equal(cut[kept], p.log()[kept])


def test_certainties():
    logits = torch.tensor([[1.0, 0.2, -0.5, 0.9]])
    p = logits.softmax(-1)[0]
    entropy = -(p * p.log()).sum()
    for kind, value in (
        (None, p[0]),
        ("probability", p[0]),
        ("margin", p[0] - p[3]),
        ("entropy", torch.exp(-entropy)),
    ):
        drawn = draw(logits.clone(), None, 0.0, [], certainty=kind)
        assert drawn.token.tolist() == [0]
        assert drawn.certainty.item() == pytest.approx(value.item(), rel=1e-5)
        assert drawn.confidence.item() == pytest.approx(p[0].item(), rel=1e-5)
        assert drawn.entropy.item() == pytest.approx(entropy.item(), rel=1e-5)


def test_guidance():
    conditional, unconditional = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0])
    assert guided(conditional, unconditional, 0.0).tolist() == [1.0, 2.0]
    assert guided(conditional, unconditional, 2.0).tolist() == [3.0, 0.0]


def test_remdm_share_keeps_the_schedule_possible():
    confidence, held = torch.tensor([[0.2, 0.9, 0.5, 0.0]]), torch.tensor([[True, True, True, False]])
    for now, then in ((0.25, 0.5), (0.75, 0.9), (0.75, 1.0)):
        most = min(1.0, (1 - then) / now)
        arguments = (torch.tensor([now]), torch.tensor([then]), confidence, held)
        assert remdm_share("cap", 0.3, *arguments)[0].tolist() == pytest.approx([min(0.3, most)] * 3 + [0])
        assert remdm_share("rescale", 0.3, *arguments)[0].tolist() == pytest.approx([0.3 * most] * 3 + [0])
        weight = [math.exp(-c) for c in (0.2, 0.9, 0.5)]
        expected = [0.3 * most * w / sum(weight) for w in weight]
        assert remdm_share("confidence", 0.3, *arguments)[0].tolist() == pytest.approx(
            [*expected, 0], rel=1e-5, abs=1e-6
        )
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    assert not remdm_share("confidence", 1.0, torch.zeros(1), torch.ones(1) / 4, confidence, nothing).any()


def test_edits_and_least_confident():
    held = torch.tensor([[True, True, True, False]])
    confidence = torch.tensor([[0.9, 0.9, 0.5, 0.9]])
    same, other = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 9, 9, 9]])
    assert edits(same, other, confidence, held, 0.6).tolist() == [[False, True, False, False]]
    assert not edits(same, other, torch.ones(1, 4), held, 1.0).any()
    score = torch.tensor([[0.5, 0.1, 0.5, 0.0]])
    for fraction, chosen in ((0.0, []), (0.3, []), (1 / 3, [1]), (0.7, [0, 1]), (1.0, [0, 1, 2])):
        assert least_confident(score, held, fraction)[0].nonzero()[:, 0].tolist() == chosen


def test_length_signals():
    p, eos = torch.full((2, 40), 0.5), torch.ones(2, 40, dtype=torch.bool)
    eos[:, 36:38] = False
    # Row 0 has 40 positions: 30 of its last 32 are EOS. Row 1 has 4: none of 36..39 are in it.
    assert end_confidence(p * eos, torch.tensor([40, 4])).tolist() == pytest.approx([0.5 * 30 / 32, 0.5])
    confidence = torch.tensor([[0.05, 0.02, 0.5], [0.2, 0.3, 0.02]])
    masked = torch.tensor([[True, True, True], [True, True, False]])
    assert needs_room(confidence, masked).tolist() == [1, -1]
