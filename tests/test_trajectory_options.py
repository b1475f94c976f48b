"""Options of the trajectory estimator (drawn segments, clean tokens, the order's own term), and the regression loss."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from likelihoods import close, gradients, plain_logp
from lockstitch.rl import losses
from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.rl.estimators import estimate, estimate_channels
from lockstitch.rl.grpo_config import DiffusionGRPOConfig
from lockstitch.rl.masks import Draw
from lockstitch.rl.order import order_logp
from lockstitch.rl.replayed import clean_tokens, draw_segments
from lockstitch.rl.scoring import Canvases, Scorer
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.families import BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED, CONTEXT_CAUSAL
from lockstitch.sampling.loop import sample
from models import random_denoiser

G = 8
KINDS = {
    "full": lambda: random_denoiser(sharpness=3.0),
    "block_causal": lambda: random_denoiser("qwen3", sharpness=3.0, family=BLOCK_CAUSAL),
    "block_causal_shifted": lambda: random_denoiser("qwen3", sharpness=3.0, family=BLOCK_CAUSAL_SHIFTED),
    "context_causal": lambda: random_denoiser("qwen3", sharpness=3.0, family=CONTEXT_CAUSAL),
}
EVERY = EstimatorConfig("trajectory", scope="canvas")
RLDF = replace(EVERY, segments_drawn=4, surprisal_temperature=1.0, clean_threshold=0.6)


def rollouts(denoiser, **settings):
    settings = {"block_length": 4, "temperature": 1.0, "stop_at_eos": False, "steps": G, **settings}
    drawn = sample(denoiser, [[5, 6, 7], [9, 8, 7, 6, 5, 4]], SamplerConfig(canvas_length=G, **settings), n=2)
    return drawn, Canvases.from_trajectories(drawn, denoiser)


def scorer_of(denoiser, **more):
    return Scorer(denoiser, denoiser.model, block_length=None if denoiser.family.layout == "full" else 4, **more)


def states(denoiser, t):
    """For each step of a trajectory: what was committed, what was still masked, and the log-probability of all of these."""
    for step in range(1, t.last_step + 1):
        shown = [token is not None for token in t.canvas_at(step - 1)]
        logp = plain_logp(denoiser, list(t.prompt_ids), list(t.canvas_ids), shown, 4)
        now = torch.tensor([since == step for since in t.commit_step])
        yield now, torch.tensor([since > step for since in t.commit_step]), logp


# K of N


def test_the_mean_over_all_draws_of_k_segments_is_all_of_them():
    """Every set of three of the eight steps is drawn; the mean of their estimates is that of all steps, and its gradient."""
    denoiser = KINDS["full"]()
    _, c = rollouts(denoiser)
    config = replace(EVERY, segments_drawn=3)
    row, sets = c.rows(torch.zeros(400, dtype=torch.long)), {}
    row = replace(row, seeds_B=torch.arange(400))
    segment_BG = row.commit_step_BG - 1
    chosen_BK, weight_B = draw_segments(config, row, segment_BG, segment_BG >= 0, G, 0)
    assert (weight_B == G / 3).all()
    for b, chosen in enumerate(chosen_BK.tolist()):
        sets.setdefault(tuple(sorted(chosen)), b)
    assert set(sets) == set(itertools.combinations(range(G), 3))
    scorer = scorer_of(denoiser)
    found = estimate(config, scorer, row.rows(torch.tensor(list(sets.values())))).mean(0)
    every = estimate(EVERY, scorer, c)[0]
    close(found, every)
    a, b = gradients(denoiser, found.sum()), gradients(denoiser, every.sum())
    close(a, b, atol=1e-5 * float(b.abs().max()))


def test_segments_are_drawn_evenly_and_anew_in_each_iteration():
    _, c = rollouts(KINDS["full"](), steps=4)  # of two tokens
    c = replace(c.rows(torch.zeros(4000, dtype=torch.long)), seeds_B=torch.arange(4000))
    segment_BG = c.commit_step_BG - 1
    config = replace(EVERY, segments_drawn=1)
    first, second = (draw_segments(config, c, segment_BG, segment_BG >= 0, 4, t)[0] for t in (0, 1))
    share = torch.bincount(first[:, 0], minlength=4) / 4000
    assert (share - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 4000)
    assert ((first == second).float().mean() - 0.25).abs() < 5 * math.sqrt(0.25 * 0.75 / 4000)
    more, weight_B = draw_segments(replace(EVERY, segments_drawn=9), c, segment_BG, segment_BG >= 0, 4, 0)
    assert more.sort(1).values.tolist() == [[0, 1, 2, 3]] * 4000  # there are no more than four
    assert (weight_B == 1).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_surprising_steps_are_drawn_with_the_softmax_of_their_mean_surprisal(temperature):
    """Without replacement: the pairs' frequencies are those of two draws one after the other."""
    _, c = rollouts(KINDS["full"](), steps=4)
    n, config = 6000, replace(EVERY, segments_drawn=2, surprisal_temperature=temperature)
    c = replace(c.rows(torch.zeros(n, dtype=torch.long)), seeds_B=torch.arange(n))
    segment_BG = c.commit_step_BG - 1
    chosen_BK, weight_B = draw_segments(config, c, segment_BG, segment_BG >= 0, 4, 0)
    assert weight_B is None
    surprisal = [-c.confidence_BG[0][segment_BG[0] == s].log().mean().item() for s in range(4)]
    p = torch.tensor(surprisal).div(temperature).softmax(0).tolist()
    assert max(p) > 1.5 * min(p)
    drawn = [tuple(sorted(pair)) for pair in chosen_BK.tolist()]
    for i, j in itertools.combinations(range(4), 2):
        expected = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
        assert abs(drawn.count((i, j)) / n - expected) < 5 * math.sqrt(expected * (1 - expected) / n)


# Clean tokens


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_visit_scores_what_was_committed_and_what_was_sure(kind):
    """All of a row's steps, by plain logits: between the trajectory (threshold 1) and everything that is masked (0)."""
    denoiser = KINDS[kind]()
    drawn, c = rollouts(denoiser)
    drawn, c = drawn[1:3], c.rows(slice(1, 3))
    scorer, found = scorer_of(denoiser), {}
    for least in (0.0, 0.3, 0.6, 1.0):
        config = replace(EVERY, segments_drawn=G, clean_threshold=least)
        found[least] = estimate(config, scorer, c)
        expected = torch.zeros(len(drawn), G)
        for b, t in enumerate(drawn):
            for now, later, logp in states(denoiser, t):
                if kind != "full":  # later blocks do not exist yet
                    later = later & torch.tensor(
                        [block <= max(t.block[i] for i in now.nonzero()) for block in t.block]
                    )
                expected[b] += logp * (now | later & (logp.exp() >= least))
        close(found[least], expected, atol=1e-4)
    close(found[1.0], estimate(EVERY, scorer, c))
    sums = [found[least].sum() for least in sorted(found)]
    assert sums == sorted(sums)
    assert sums[0] < sums[1] < sums[3]


@torch.no_grad()
def test_at_threshold_zero_a_visit_is_a_pass_of_the_lower_bound():
    """Where one token a step is committed in a random order, a step's mask is a mask of the bound."""
    denoiser = KINDS["full"]()
    _, c = rollouts(denoiser, policy="random", block_length=G)
    scorer = scorer_of(denoiser)
    config = replace(EVERY, segments_drawn=1, clean_threshold=0.0, surprisal_temperature=1.0)
    segment_BG = c.commit_step_BG - 1
    chosen_B1, _ = draw_segments(config, c, segment_BG, segment_BG >= 0, G, 0)
    masked_BG = segment_BG >= chosen_B1
    close(estimate(config, scorer, c), scorer(c, ~masked_BG, masked_BG))


@torch.no_grad()
def test_all_policies_count_the_tokens_that_the_first_one_was_sure_of():
    old, new = KINDS["full"](), KINDS["full"]()
    for seed, weight in enumerate(new.model.parameters()):
        weight += 0.05 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    _, c = rollouts(old)
    clean_BKG = clean_tokens(RLDF, scorer_of(old), c, 0)
    assert clean_BKG.shape == (4, 4, G)
    assert not torch.equal(clean_BKG, clean_tokens(RLDF, scorer_of(new), c, 0))
    given = replace(c, clean_BKG=clean_BKG)
    close(estimate(RLDF, scorer_of(old), given), estimate(RLDF, scorer_of(old), c))
    counted = clean_BKG.any(1)
    assert torch.equal(estimate(RLDF, scorer_of(new), given) != 0, counted)
    part = estimate(RLDF, scorer_of(new), given.rows(torch.tensor([2])))
    close(part, estimate(RLDF, scorer_of(new), given)[[2]])


# The order


def plackett_luce(scores, chosen):
    """The log-probability of choosing these positions, in this order, of all those with a score; by products."""
    left, logp = dict(scores), {}
    for position in chosen:
        logp[position] = left[position] - torch.logsumexp(torch.stack(list(left.values())), 0)
        del left[position]
    return logp


def test_probabilities_of_all_orders_add_up_to_one():
    score_BG = torch.randn(1, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for order in itertools.permutations(range(4)):
        certainty = torch.zeros(1, 4)
        certainty[0, list(order)] = torch.tensor([0.9, 0.7, 0.5, 0.3])
        every = torch.ones(1, 4, dtype=torch.bool)
        total += order_logp(score_BG, every, every, certainty).sum().exp().item()
    assert total == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_s_term_is_the_model_of_the_paper(kind):
    """Of the masked positions of the block, by their tokens' log-probabilities over .5; values and gradients."""
    denoiser = KINDS[kind]()
    drawn, c = rollouts(denoiser, steps=4)  # two a step
    drawn, c = drawn[1:3], c.rows(slice(1, 3))
    config = replace(EVERY, position_temperature=0.5)
    channels = estimate_channels(config, scorer_of(denoiser), c)
    assert channels.shape == (2, G, 2)
    close(channels[..., 0], estimate(EVERY, scorer_of(denoiser), c))
    expected = torch.zeros(2, G)
    for b, t in enumerate(drawn):
        for now, later, logp in states(denoiser, t):
            inside = [
                i for i in (now | later).nonzero()[:, 0].tolist() if t.block[i] == t.block[int(now.nonzero()[0])]
            ]
            order = sorted(now.nonzero()[:, 0].tolist(), key=lambda i: -t.confidence[i])
            for i, term in plackett_luce({i: logp[i] / 0.5 for i in inside}, order).items():
                place = torch.zeros(2, G)
                place[b, i] = 1
                expected = expected + place * term
    close(channels[..., 1], expected, atol=1e-4)
    found, wanted = gradients(denoiser, channels[..., 1].sum()), gradients(denoiser, expected.sum())
    close(found, wanted, atol=1e-4 * float(wanted.abs().max()))


def test_two_orders_of_two_tokens_have_the_same_token_terms_and_other_gradients():
    """Two policies that draw the same tokens and differ in the order alone: with both tokens independent of each other, the
    token terms and their gradients are equal, and those of the order are each other's opposite."""
    logit = torch.tensor([[0.3, -0.2]], requires_grad=True)
    logp = torch.nn.functional.logsigmoid(logit)  # of the two tokens, whichever is shown
    every, tokens, orders = torch.ones(1, 2, dtype=torch.bool), [], []
    for first in (0, 1):
        chosen = torch.tensor([[first == 0, first == 1]])
        second = order_logp(logp / 0.5, ~chosen, ~chosen, torch.ones(1, 2))  # no choice is left
        order = order_logp(logp / 0.5, every, chosen, torch.ones(1, 2)) + second
        tokens.append(torch.autograd.grad(logp.sum(), logit, retain_graph=True)[0])
        orders.append(torch.autograd.grad(order.sum(), logit, retain_graph=True)[0])
        assert order.sum().item() == pytest.approx((logp / 0.5).log_softmax(1)[0, first].item())
    assert torch.equal(*tokens)
    share = (logp / 0.5).softmax(1)[0].detach()
    slope = 2 * torch.sigmoid(-logit[0]).detach()  # of log-probability over .5
    close(orders[0][0], slope * torch.stack([1 - share[0], -share[1]]))
    close(orders[1][0], slope * torch.stack([-share[0], 1 - share[1]]))
    assert (orders[0] * orders[1] < 0).all()


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo"])
def test_positions_have_a_clip_of_their_own(loss_type):
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(3, 4, generator=generator)
    logp = (old + 0.4 * torch.randn(3, 4, generator=generator)).requires_grad_()
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    A, total = torch.tensor([1.0, -2.0, 0.5]), torch.zeros(())
    for b, g in valid.nonzero().tolist():
        ratio = (logp[b, g] - old[b, g]).exp()
        norm = {"grpo": 3 * valid[b].sum(), "bnpo": valid.sum(), "dr_grpo": 12}[loss_type]
        total = total - torch.min(ratio * A[b], ratio.clamp(0.9, 1.3) * A[b]) / norm
    divisor = 12 if loss_type == "dr_grpo" else 1
    found = losses.position_loss(logp, old, A, valid, 0.1, 0.3, loss_type, divisor)
    torch.testing.assert_close(found, total)
    torch.testing.assert_close(*(torch.autograd.grad(x, logp, retain_graph=True)[0] for x in (found, total)))


# GDSD


def test_the_regression_rests_where_the_log_ratio_is_psi_a_l_and_nowhere_else():
    A, norm_B, psi = torch.tensor([1.0, -0.5, 0.25, 1.0]), torch.full((4,), 20.0), 0.01
    old = torch.tensor([-30.0, -40.0, -20.0, -10.0])

    def gradient(ratio, low=0.5, high=0.5):
        logp = (old + ratio).requires_grad_()
        return torch.autograd.grad(losses.regression_loss(logp, old, A, norm_B, psi, low, high, 4), logp)[0]

    rest = psi * A * norm_B
    assert gradient(rest).abs().max() < 1e-6
    for off in (-0.05, 0.05):
        assert (gradient(rest + off).sign() == math.copysign(1, off)).all()
    # At ratio 1 it is the policy gradient: 2 psi A / L for each completion.
    torch.testing.assert_close(gradient(torch.zeros(4)), -2 * psi * A / norm_B / 4)
    assert not gradient(torch.full((4,), 0.5)).any()  # beyond log 1.5 nothing pulls
    assert not gradient(torch.full((4,), -0.8)).any()
    assert gradient(torch.full((4,), -5.0), low=1.0).all()  # log(1 - 1): no bound


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"segments_drawn": 2, "estimator": "forks"}, "segments_drawn=2 would be ignored by estimator='forks'"),
        ({"segments_drawn": 0}, "segments_drawn=0 must be a whole number of at least 1"),
        ({"surprisal_temperature": 1.0}, "surprisal_temperature=1.0 needs segments_drawn"),
        ({"clean_threshold": 0.6}, "clean_threshold=0.6 needs segments_drawn"),
        ({"clean_threshold": 1.6, "segments_drawn": 4}, r"clean_threshold=1.6 must be in \[0, 1\]"),
        ({"surprisal_temperature": 0.0, "segments_drawn": 4}, "surprisal_temperature=0.0 must be positive"),
        (
            {"position_temperature": 0.5, "segments": 4},
            "position_temperature=0.5: segments=4 holds positions of several",
        ),
        (
            {"position_temperature": 0.5, "policy_loss": "sequence"},
            "position_temperature=0.5 would be ignored by policy",
        ),
        (
            {"position_temperature": 0.5, "loss_type": "cispo"},
            "position_temperature=0.5: positions are clipped as tokens",
        ),
        ({"position_epsilon": 0.2}, "position_epsilon=0.2 would be ignored: position_temperature=None"),
        ({"psi": 2.0}, "psi=2.0 would be ignored by policy_loss='token'"),
        ({"psi": -2.0, "policy_loss": "regression"}, "psi=-2.0 must be positive"),
        ({"entropy_coef": 0.1, "segments_drawn": 2}, "entropy_coef=0.1: estimator='trajectory'"),
        (
            {"estimator": "sandwiched", "policy_loss": "regression"},
            "estimator='sandwiched' does not go with policy_loss",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        DiffusionGRPOConfig("x", use_cpu=True, bf16=False, max_completion_length=32, **settings)


def test_traces_without_what_an_option_reads_are_refused():
    denoiser = KINDS["full"]()
    _, c = rollouts(denoiser)
    for config in (RLDF, replace(EVERY, position_temperature=0.5)):
        with pytest.raises(ValueError, match="confidence_BG=None"):
            estimate(config, scorer_of(denoiser), replace(c, confidence_BG=None))
    with pytest.raises(ValueError, match="fork_BG=None"):
        estimate(EstimatorConfig("forks"), scorer_of(denoiser), replace(c, fork_BG=None))
    assert Draw(c.seeds_B, 0, 0).segments(3).shape == (4, 3)
