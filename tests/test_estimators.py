"""Likelihood estimators against the quantities they claim, with every mask of a short completion enumerated.

`A[S][k]` is `log p(o_k | what S does not hide)`, from plain logits: everything an estimator can say is made of these.
"""

import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch
from likelihoods import CANVAS, PROMPT, N, close, gradients, label, plain_logp, toy
from lockstitch.rl.estimator_config import DISTRIBUTIONS, EstimatorConfig
from lockstitch.rl.estimators import elbo_passes, estimate
from lockstitch.rl.masks import Draw, gauss_legendre
from lockstitch.rl.scoring import Scorer
from lockstitch.sampling.families import BLOCK_CAUSAL
from models import random_denoiser

DENOISER = random_denoiser("llama", sharpness=3.0)
SCORER = Scorer(DENOISER, DENOISER.model)
SUBSETS = [s for size in range(1, N + 1) for s in itertools.combinations(range(N), size)]
# The coefficient of A[S] in the lower bound: the integral of t^(l-1) (1-t)^(n-l).
C = {s: math.factorial(len(s) - 1) * math.factorial(N - len(s)) / math.factorial(N) for s in SUBSETS}

ELBOS = [
    EstimatorConfig("elbo", mask_schedule=schedule, mask_distribution=distribution, num_samples=samples)
    for schedule, samples in (("random", 1), ("random", 3), ("stratified", 3), ("complement", 2), ("quadrature", 3))
    for distribution in ("iid", "count")
] + [EstimatorConfig("elbo", mask_distribution="block_random", block_length=2, perturb_ratio=0.5, num_samples=2)]


def hidden(subset):
    return torch.tensor([i in subset for i in range(len(CANVAS))])


@functools.cache
def table():
    """`A`, each entry `(G,)`, 0 outside its subset; differentiable."""
    return {
        s: plain_logp(DENOISER, PROMPT, CANVAS, [i < N and i not in s for i in range(len(CANVAS))]) * hidden(s)
        for s in SUBSETS
    }


def subset_of(mask_G):
    return tuple(mask_G.nonzero()[:, 0].tolist())


def exact_elbo(A):
    return sum(C[s] * A[s] for s in SUBSETS)


def by_mask(config, seeds=range(3000)):
    """Seeds that between them draw every mask that the first sample can draw, and how often each mask was drawn."""
    passes = list(elbo_passes(config, SCORER, toy(list(seeds)), 0, 0))
    drawn = [subset_of(mask) for mask in passes[0].asked_BG]
    counts = {}
    for s in drawn:
        counts[s] = counts.get(s, 0) + 1
    return {s: seeds[drawn.index(s)] for s in counts}, {s: n / len(drawn) for s, n in counts.items()}


def same_gradients(a, b):
    a, b = gradients(DENOISER, a), gradients(DENOISER, b)
    close(a, b, atol=1e-5 * float(b.abs().max()))


# What the estimates are made of


@pytest.mark.parametrize("config", ELBOS, ids=label)
def test_every_elbo_row_is_its_masks_entries_by_their_weights(config):
    """Values and gradients, for masks that the passes themselves declare."""
    A, c = table(), toy(list(range(20)))
    expected = torch.zeros(20, len(CANVAS))
    for sample_index in range(config.samples):
        for p in elbo_passes(config, SCORER, c, 0, sample_index):
            terms = [A[subset_of(mask)] if mask.any() else torch.zeros(len(CANVAS)) for mask in p.asked_BG]
            assert not p.asked_BG[:, N:].any()
            assert torch.equal(p.shown_BG[:, :N], ~p.asked_BG[:, :N])
            expected = expected + p.weight_B.float()[:, None] * torch.stack(terms)
    expected = expected / (1 if config.mask_schedule == "quadrature" else config.samples)
    found = estimate(config, SCORER, c)
    close(found, expected)
    pull = torch.linspace(-1, 1, expected.numel()).view(expected.shape)
    same_gradients((pull * found).sum(), (pull * expected).sum())


def within(seen, expected, rows):
    assert abs(seen - expected) < 5 * math.sqrt(expected * (1 - expected) / rows) + 1e-9, (seen, expected)


def test_count_masks_are_equally_likely_and_average_to_the_elbo():
    config, A = EstimatorConfig("elbo", mask_distribution="count"), table()
    seeds, seen = by_mask(config)
    assert set(seeds) == set(SUBSETS)
    law = {s: 1 / (N * math.comb(N, len(s))) for s in SUBSETS}
    for s in SUBSETS:
        within(seen[s], law[s], 3000)
    rows = estimate(config, SCORER, toy([seeds[s] for s in SUBSETS]))
    mean = sum(law[s] * row for s, row in zip(SUBSETS, rows, strict=True))
    close(mean, exact_elbo(A))
    same_gradients(mean.sum(), exact_elbo(A).sum())


def test_complement_counts_average_to_the_elbo():
    config, A = EstimatorConfig("elbo", mask_schedule="complement", mask_distribution="count"), table()
    seeds, seen = by_mask(config)
    assert set(seeds) == set(SUBSETS)
    law = {s: 1 / (N * math.comb(N, len(s))) for s in SUBSETS}
    for s in SUBSETS:
        within(seen[s], law[s], 3000)
    c = toy([seeds[s] for s in SUBSETS])
    rows = estimate(config, SCORER, c)
    mean = sum(law[s] * row for s, row in zip(SUBSETS, rows, strict=True))
    weights = sum(p.weight_B * p.asked_BG.sum(1) for p in elbo_passes(config, SCORER, c, 0, 0))
    close(weights, torch.full((len(c),), float(N)))  # so that a sum of equal terms has no noise at all
    close(mean, exact_elbo(A))
    same_gradients(mean.sum(), exact_elbo(A).sum())


@pytest.mark.parametrize("schedule", ["random", "complement"])
def test_iid_masks_average_to_the_elbo(schedule):
    """The law of (t, mask) is t uniform, mask iid: each mask's coefficient is then C, once for each pass."""
    config = EstimatorConfig("elbo", mask_schedule=schedule, mask_distribution="iid")
    c = toy(list(range(20_000)))
    passes = list(elbo_passes(config, SCORER, c, 0, 0))
    share = 1 / len(passes)
    for p in passes:
        t = share / p.weight_B
        for s in SUBSETS:
            here = (p.asked_BG == hidden(s)).all(1)
            size = len(s)
            expected = math.factorial(size) * math.factorial(N - size) / math.factorial(N + 1)  # of t^l (1-t)^(n-l)
            within(here.double().mean(), expected, len(c))
            # With weight 1/t the mean is C: shown for weight t, whose variance is finite.
            expected = math.factorial(size + 1) * math.factorial(N - size) / math.factorial(N + 2)
            within((here * t).mean(), expected, len(c))


def test_quadrature_is_exact_from_half_as_many_nodes_as_tokens_with_iid_masks_and_off_with_counts():
    with torch.no_grad():
        A = table()
        exact = float(exact_elbo(A).sum())

        def expected(nodes):
            return sum(
                float(w / t * t ** len(s) * (1 - t) ** (N - len(s)) * A[s].sum())
                for t, w in gauss_legendre(nodes)
                for s in SUBSETS
            )

        assert abs(expected(1) - exact) > 0.05
        assert expected(2) == pytest.approx(exact, abs=1e-5)
        assert expected(3) == pytest.approx(exact, abs=1e-5)
        for distribution in ("iid", "count"):  # and that is what the estimator averages to
            config = EstimatorConfig("elbo", mask_schedule="quadrature", num_samples=2, mask_distribution=distribution)
            rows = estimate(config, SCORER, toy(list(range(2500)))).sum(1)
            error = float(rows.mean()) - exact
            spread = float(rows.std()) / math.sqrt(len(rows))
            assert (abs(error) < 5 * spread) == (distribution == "iid")


def test_gauss_legendre_integrates_polynomials():
    for nodes in range(1, 9):
        rule = gauss_legendre(nodes)
        for degree in range(2 * nodes):
            assert sum(w * t**degree for t, w in rule) == pytest.approx(1 / (degree + 1), abs=1e-12)
    assert gauss_legendre(3) == [pytest.approx(v) for v in ((0.1127016, 5 / 18), (0.5, 8 / 18), (0.8872983, 5 / 18))]


def test_block_random_draws_blocks_and_counts_evenly():
    config = EstimatorConfig("elbo", mask_distribution="block_random", block_length=2)
    law = {(0, 2, 3): 1 / 8, (1, 2, 3): 1 / 8, (0, 1, 2, 3): 1 / 4, (2,): 1 / 8, (3,): 1 / 8, (2, 3): 1 / 4}
    seeds, seen = by_mask(config)
    assert set(seeds) == set(law)
    for s, p in law.items():
        within(seen[s], p, 3000)
    A = table()
    rows = estimate(config, SCORER, toy([seeds[s] for s in law]))
    close(rows, torch.stack([N / len(s) * A[s] for s in law]))
    gap = torch.tensor(
        [[False, False, True, False, False, True, True, False]]
    )  # blocks without open positions never come
    drawn = {subset_of(Draw(torch.tensor([seed]), 0, 0).blocks(gap, 2)[0][0]) for seed in range(100)}
    assert drawn == {(2, 5, 6), (5, 6), (6,)}
    perturbed = EstimatorConfig("elbo", mask_distribution="block_random", block_length=2, perturb_ratio=0.3)
    (p,) = elbo_passes(perturbed, SCORER, toy(list(range(20_000))), 0, 0)
    second = p.shown_BG[:, 2:N].any(1) | (p.asked_BG[:, :2].sum(1) < 1)  # rows whose block is surely the second
    assert 0.45 < float(p.asked_BG[:, 2:N].float().mean()) < 1
    for s in ((0, 2), (1, 2), (0, 1, 2)):  # first block perturbed at 0, at 1, at both; third position masked alone
        hit = (p.asked_BG == hidden(s)).all(1).double().mean()
        within(hit, 1 / 8 * (0.09 if len(s) == 3 else 0.21), len(second))


def test_coupled_is_half_mean_field_and_half_a_leave_some_out_average():
    config, A = EstimatorConfig("coupled"), table()
    full = A[tuple(range(N))]
    c = toy(list(range(24)))
    expected = []
    draw = Draw(c.seeds_B, 0, 0)
    ratio_B = draw.ratio(0.2, 0.8)
    part_BG = draw.iid(c.valid_BG, ratio_B)
    assert {subset_of(m) for m in part_BG} > {(0,), (1, 3)} or len({subset_of(m) for m in part_BG}) > 8
    for t, part in zip(ratio_B.tolist(), part_BG, strict=True):
        inside, rest = subset_of(part), subset_of(c.valid_BG[0] & ~part)
        zero = torch.zeros(len(CANVAS))
        expected.append((full + A.get(inside, zero) / t + A.get(rest, zero) / (1 - t)) / 2)
    found = estimate(config, SCORER, c)
    close(found, torch.stack(expected))
    pull = torch.linspace(-1, 1, found.numel()).view(found.shape)
    same_gradients((pull * found).sum(), (pull * torch.stack(expected)).sum())

    # Its mean: the ratio is uniform on (.2, .8), so each mask's coefficient is an integral of a polynomial.
    rule = [(0.2 + 0.6 * t, w) for t, w in gauss_legendre(4)]
    coefficient = {
        s: sum(
            w * (t ** (len(s) - 1) * (1 - t) ** (N - len(s)) + (1 - t) ** (len(s) - 1) * t ** (N - len(s)))
            for t, w in rule
        )
        for s in SUBSETS
    }
    for k in range(N):  # every token counts 1.5 times
        assert 0.5 + sum(coefficient[s] for s in SUBSETS if k in s) / 2 == pytest.approx(1.5)
    mean = full / 2 + sum(coefficient[s] * A[s] for s in SUBSETS) / 2
    with torch.no_grad():
        rows = estimate(config, SCORER, toy(list(range(1500)))).sum(1)
    assert abs(float(rows.mean() - mean.detach().sum())) < 5 * float(rows.std()) / math.sqrt(len(rows))


def test_mean_field_and_autoregressive_are_what_brute_force_says():
    A = table()
    found = estimate(EstimatorConfig("mean_field"), SCORER, toy([0]))
    close(found[0], A[tuple(range(N))])
    same_gradients(found.sum(), A[tuple(range(N))].sum())
    found = estimate(EstimatorConfig("autoregressive"), SCORER, toy([0]))
    expected = torch.stack([A[tuple(range(k, N))][k] for k in range(N)])
    close(found[0, :N], expected)
    same_gradients(found.sum(), expected.sum())


def test_a_process_whose_rows_have_nothing_open_has_a_loss_of_zero():
    """As where truncated completions are left out of it: the others wait for its gradient."""
    canvases = toy([0])
    canvases = replace(canvases, valid_BG=torch.zeros_like(canvases.valid_BG))
    for name in ("autoregressive", "mean_field"):
        found = estimate(EstimatorConfig(name), SCORER, canvases)
        assert not found.any()
        found.sum().backward()


def test_masked_prompts_are_the_ones_that_are_scored():
    config, c = EstimatorConfig("mean_field", prompt_mask_ratio=0.5), toy(list(range(12)))
    found, kinds = estimate(config, SCORER, c), set()
    for b, row in enumerate(found):
        prompts = Draw(c.seeds_B, 0, 0).prompt(c.prompt_BP, c.prompt_mask_BP.bool(), 0.5, DENOISER.mask_id)
        kinds.add(tuple(prompts[b].tolist()))
        close(row[:N], plain_logp(DENOISER, prompts[b].tolist(), CANVAS, [False] * len(CANVAS))[:N])
    assert len(kinds) > 4
    shared = estimate(config, SCORER, replace(c, prompt_seeds_B=c.seeds_B[[3] * 6 + [8] * 6]))
    close(shared, found[[3] * 6 + [8] * 6])


# How the bounds stand to the likelihood


def chains(A):
    """Log-probability of the completion in each order of its tokens."""
    for order in itertools.permutations(range(N)):
        yield sum(A[tuple(sorted(order[i:]))][order[i]] for i in range(N))


def eubo_limit(A, beta):
    """The upper bound of infinitely many samples, by tokens."""
    return (
        torch.stack(
            [
                torch.logsumexp(torch.stack([math.log(C[s]) + beta * A[s][k] for s in SUBSETS if k in s]), 0)
                for k in range(N)
            ]
        )
        / beta
    )


def test_the_elbo_is_below_the_likelihood_under_a_random_order_and_the_eubo_above_it():
    """ELBO is the mean log-probability over orders, the likelihood the log of the mean probability.

    Tokenwise EUBO >= ELBO and it rises with beta (Jensen); by Hoelder it bounds the likelihood from above once beta reaches
    the number of tokens. At small beta it need not: the paper's bound has a constant that does not depend on the model.
    """
    with torch.no_grad():
        for seed in range(3):
            denoiser = random_denoiser(seed=seed, sharpness=3.0)
            A = {
                s: plain_logp(denoiser, PROMPT, CANVAS, [i < N and i not in s for i in range(len(CANVAS))])
                for s in SUBSETS
            }
            orders = torch.stack(list(chains(A)))
            lower = torch.stack([sum(C[s] * A[s][k] for s in SUBSETS if k in s) for k in range(N)])
            close(lower.sum(), orders.mean())
            exact = orders.logsumexp(0) - math.log(len(orders))
            assert lower.sum() < exact < eubo_limit(A, N).sum()
            bounds = [lower, *(eubo_limit(A, beta) for beta in (0.5, 1.0, 1.5, 4.0))]
            assert all((low <= high + 1e-6).all() for low, high in itertools.pairwise(bounds))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_sandwiched_rows_are_the_papers_formula(distribution):
    """`1/beta log mean_s [k masked] w_s p^beta`, mean over tokens that any sample masked, times their number; mixed."""
    blocks = {"block_length": 2, "perturb_ratio": 0.3} if distribution == "block_random" else {}
    A, c, beta, mix = table(), toy(list(range(16))), 2.0, 0.3
    config = EstimatorConfig(
        "sandwiched", num_samples=2, mask_distribution=distribution, eubo_beta=beta, eubo_mix=mix, **blocks
    )
    upper_B = torch.arange(16) % 2 == 0
    passes = [p for i in range(2) for p in elbo_passes(config, SCORER, c, 0, i)]
    expected = []
    for b in range(16):
        drawn = [(subset_of(p.asked_BG[b]), float(p.weight_B[b])) for p in passes]
        lower = sum((w * A[s] for s, w in drawn if s), torch.zeros(len(CANVAS))) / 2
        if upper_B[b]:
            seen = sorted({k for s, _ in drawn for k in s})
            bound = torch.zeros(len(CANVAS))
            for k in seen:
                inside = sum(w * A[s][k].exp() ** beta for s, w in drawn if k in s) / 2
                bound = bound + N / len(seen) * hidden((k,)) * inside.log() / beta
            lower = mix * bound + (1 - mix) * lower
        expected.append(lower)
    found = estimate(config, SCORER, c, upper_B=upper_B)
    close(found, torch.stack(expected))
    pull = torch.linspace(-1, 1, found.numel()).view(found.shape)
    same_gradients((pull * found).sum(), (pull * torch.stack(expected)).sum())
    plain = EstimatorConfig("elbo", num_samples=2, mask_distribution=distribution, **blocks)
    close(found[~upper_B], estimate(plain, SCORER, c)[~upper_B])


def test_the_upper_bound_survives_probabilities_that_vanish():
    """Log-probabilities near -1000: a plain p^beta would be 0, its logarithm -inf, the gradient NaN."""
    denoiser = random_denoiser(sharpness=2000.0)
    config = EstimatorConfig("sandwiched", num_samples=2, eubo_mix=1.0)
    found = estimate(
        config, Scorer(denoiser, denoiser.model), toy(list(range(8))), upper_B=torch.ones(8, dtype=torch.bool)
    )
    assert float(found.detach().min()) < -500
    assert found.isfinite().all()
    assert gradients(denoiser, found.sum()).isfinite().all()


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "d1"}, "estimator='d1' is not one of mean_field"),
        ({"estimator": "mean_field", "num_samples": 2}, "num_samples=2 would be ignored by estimator='mean_field'"),
        ({"estimator": "trajectory", "prompt_mask_ratio": 0.1}, "prompt_mask_ratio=0.1 would be ignored"),
        ({"estimator": "coupled", "mask_distribution": "iid"}, "mask_distribution='iid' would be ignored"),
        ({"segments": 4}, "segments=4 would be ignored by estimator='elbo'; it is for trajectory"),
        ({"eubo_beta": 1.0}, "eubo_beta=1.0 would be ignored"),
        ({"estimator": "sandwiched", "eubo_beta": 0.0}, "eubo_beta=0.0 must be positive"),
        ({"estimator": "sandwiched", "eubo_mix": 1.5}, r"eubo_mix=1.5 must be in \[0, 1\]"),
        ({"num_samples": 0}, "num_samples=0 must be a whole number"),
        ({"num_samples": 2.0}, "num_samples=2.0 must be a whole number"),
        ({"mask_schedule": "cosine"}, "mask_schedule='cosine' is not one of random, stratified"),
        ({"mask_distribution": "block_random"}, "block_length=None"),
        ({"block_length": 4}, "block_length=4 would be ignored by mask_distribution=None"),
        ({"mask_distribution": "count", "perturb_ratio": 0.1}, "perturb_ratio=0.1 would be ignored"),
        ({"mask_distribution": "block_random", "block_length": 4, "mask_schedule": "quadrature"}, "quadrature"),
        ({"scope": "prompt"}, "scope='prompt' is not one of valid, canvas"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EstimatorConfig(**settings)


def test_estimates_that_cannot_be_made_are_refused():
    c = toy([0, 1])
    with pytest.raises(ValueError, match="upper_B is missing"):
        estimate(EstimatorConfig("sandwiched"), SCORER, c)
    with pytest.raises(ValueError, match="upper_B is given"):
        estimate(EstimatorConfig("elbo"), SCORER, c, upper_B=torch.tensor([True, False]))
    with pytest.raises(ValueError, match="commit_step_BG=None"):
        estimate(EstimatorConfig("trajectory"), SCORER, c)
    causal = random_denoiser("qwen3", family=BLOCK_CAUSAL)
    with pytest.raises(ValueError, match="block_random"):
        estimate(
            EstimatorConfig(mask_distribution="block_random", block_length=2),
            Scorer(causal, causal.model, block_length=2),
            c,
        )
