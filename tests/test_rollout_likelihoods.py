"""Likelihood estimators of the sampler's own rollouts: paths, batches, noise, memory, spread."""

import itertools
import math

import pytest
import torch
from likelihoods import CANVAS, close, label, plain_logp, toy
from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.rl.estimators import elbo_passes, estimate
from lockstitch.rl.scoring import Canvases, Scorer
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.families import BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED, CONTEXT_CAUSAL
from lockstitch.sampling.loop import sample
from models import dream_like, random_denoiser

DENOISER = random_denoiser("llama", sharpness=3.0)
SCORER = Scorer(DENOISER, DENOISER.model)
CONFIGS = [
    EstimatorConfig("mean_field", prompt_mask_ratio=0.5),
    EstimatorConfig("coupled", num_samples=2),
    *(EstimatorConfig("elbo", mask_schedule=schedule, mask_distribution=distribution, num_samples=2)
      for schedule in ("random", "stratified", "complement", "quadrature") for distribution in ("iid", "count")),
    EstimatorConfig("elbo", mask_distribution="block_random", block_length=2, perturb_ratio=0.5, num_samples=2),
    EstimatorConfig("sandwiched", num_samples=2),
    EstimatorConfig("sandwiched", num_samples=2, mask_distribution="block_random", block_length=2, perturb_ratio=0.2,
                    prompt_mask_ratio=0.2),
    EstimatorConfig("trajectory", segments=2),
    EstimatorConfig("trajectory"),
    EstimatorConfig("forks"),
    EstimatorConfig("autoregressive"),
]  # fmt: skip


# Trajectories of the sampler

ROLLOUTS = {
    "one_by_one": {"policy": "random"},
    "two_at_a_time": {"steps": 4},
    "threshold": {"policy": "threshold", "threshold": 0.3},
    "forks": {"policy": "threshold", "threshold": 0.6, "fallback": "leftmost"},
    "blocks": {"policy": "threshold", "threshold": 0.3, "block_length": 4},
}
DISGUISES = {"bidirectional": lambda d: d, "dream": dream_like}


def rollouts(denoiser, **settings):
    config = SamplerConfig(canvas_length=8, temperature=1.0, stop_at_eos=False, **settings)
    pinned = [None, None, 33, None, None, None, None, None]
    prompts = [[5, 6, 7], [9, 8, 7, 6, 5, 4], [11, 12, 13, 14]]
    return sample(denoiser, prompts, config, n=2, canvases=[[None] * 8, pinned, [None] * 8])


def replayed(denoiser, t):
    """The path's log-probability, from the trajectory's record and plain logits: token by token, step by step."""
    total = 0.0
    for step in range(1, t.last_step + 1):
        before = t.canvas_at(step - 1)
        logp = plain_logp(denoiser, list(t.prompt_ids), list(t.canvas_ids), [token is not None for token in before])
        total += sum(logp[k] for k, since in enumerate(t.commit_step) if since == step)
    return total


PATHS = [
    pytest.param(
        disguise, rollout, marks=() if disguise == "bidirectional" or rollout == "blocks" else pytest.mark.slow
    )
    for disguise in DISGUISES
    for rollout in ROLLOUTS
]


@pytest.mark.parametrize(("disguise", "rollout"), PATHS)
@torch.no_grad()
def test_a_trajectory_with_every_step_is_the_samplers_own_path_probability(disguise, rollout):
    denoiser = DISGUISES[disguise](random_denoiser(sharpness=3.0))
    drawn = rollouts(denoiser, **ROLLOUTS[rollout])
    c = Canvases.from_trajectories(drawn, denoiser)
    found = estimate(EstimatorConfig("trajectory", scope="canvas"), Scorer(denoiser, denoiser.model), c).sum(1)
    close(found, torch.stack([replayed(denoiser, t) for t in drawn]), atol=1e-4)
    snapshots = [
        sum(math.log(p) for p, since in zip(t.confidence, t.commit_step, strict=True) if since) for t in drawn
    ]
    close(found, torch.tensor(snapshots), atol=1e-4)
    valid = estimate(EstimatorConfig("trajectory"), Scorer(denoiser, denoiser.model), c)
    assert not valid[~c.valid_BG].any()


@pytest.mark.parametrize("family", [BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED, CONTEXT_CAUSAL], ids=lambda f: f.name)
@pytest.mark.parametrize("block", [2, 4, 8])
@torch.no_grad()
def test_block_wise_trajectories_have_the_probability_that_the_sampler_noted(family, block):
    """The packed pass of the scorer against the sampler's own passes, from its snapshot confidences."""
    denoiser = random_denoiser("qwen3", sharpness=3.0, family=family)
    drawn = rollouts(denoiser, policy="threshold", threshold=0.3, block_length=block, cache="block")
    c = Canvases.from_trajectories(drawn, denoiser)
    scorer = Scorer(denoiser, denoiser.model, block_length=block)
    found = estimate(EstimatorConfig("trajectory", scope="canvas"), scorer, c)
    noted = torch.tensor([[math.log(p) for p in t.confidence] for t in drawn])
    close(found, noted, atol=1e-4)


@torch.no_grad()
def test_segments_run_from_mean_field_to_every_step():
    denoiser = random_denoiser(sharpness=3.0)
    c, scorer = Canvases.from_trajectories(rollouts(denoiser, policy="random"), denoiser), SCORER
    first, every = (estimate(EstimatorConfig("trajectory", segments=n), scorer, c) for n in (1, 8))
    close(first, estimate(EstimatorConfig("mean_field"), scorer, c))
    open_rows = (c.commit_step_BG > 0).all(1)  # eight steps each
    close(every[open_rows], estimate(EstimatorConfig("trajectory"), scorer, c)[open_rows])
    # Two segments of four steps: what the first four committed is seen by the others, and by nothing else.
    half = estimate(EstimatorConfig("trajectory", segments=2, scope="canvas"), scorer, c)
    for b in open_rows.nonzero()[:, 0].tolist():
        early = c.commit_step_BG[b] <= 4
        for shown, asked in ((torch.zeros(8, dtype=torch.bool), early), (early, ~early)):
            row = plain_logp(
                DENOISER,
                c.prompt_BP[b][c.prompt_mask_BP[b].bool()].tolist(),
                c.completion_BG[b].tolist(),
                shown.tolist(),
            )
            close(half[b][asked], row[asked])


@torch.no_grad()
def test_rollouts_of_block_one_have_their_autoregressive_likelihood():
    denoiser = random_denoiser(sharpness=3.0)
    c = Canvases.from_trajectories(rollouts(denoiser, block_length=1), denoiser)
    scorer = Scorer(denoiser, denoiser.model)
    found = estimate(EstimatorConfig("autoregressive", scope="canvas"), scorer, c)
    close(found, estimate(EstimatorConfig("trajectory", scope="canvas"), scorer, c))


# Noise, batches, memory


def rows_of_all_kinds(pad=0):
    """Six rollouts of three prompts, one with a pinned token, some shorter than their canvas."""
    denoiser = random_denoiser(sharpness=3.0)
    drawn = rollouts(denoiser, policy="threshold", threshold=0.5)
    c = Canvases.from_trajectories(drawn, denoiser)
    valid = torch.arange(8) < torch.tensor([8, 5, 3, 8, 1, 6])[:, None]
    prompt = torch.nn.functional.pad(c.prompt_BP, (pad, 0), value=denoiser.pad_id)
    real = torch.nn.functional.pad(c.prompt_mask_BP, (pad, 0))
    return denoiser, Canvases(
        prompt, real, c.completion_BG, valid, c.seeds_B, c.commit_step_BG, c.block_BG, None, c.fork_BG
    )


def whole(config, scorer, c, iteration=0, upper_B=None):
    if config.estimator == "sandwiched" and upper_B is None:
        upper_B = torch.arange(len(c)) % 2 == 0
    return estimate(config, scorer, c, iteration, upper_B)


@pytest.mark.parametrize("config", CONFIGS, ids=label)
@torch.no_grad()
def test_estimates_do_not_depend_on_the_batch(config):
    """Micro-batches, their order, and padding: the same numbers, for rows are keyed by their own seeds."""
    denoiser, c = rows_of_all_kinds()
    scorer = Scorer(denoiser, denoiser.model)
    together = whole(config, scorer, c, 1)
    assert together.dtype == torch.float32
    assert together.isfinite().all()
    close(whole(config, scorer, rows_of_all_kinds(pad=3)[1], 1), together)
    sandwiched, upper_B = config.estimator == "sandwiched", torch.arange(len(c)) % 2 == 0
    for index in (torch.tensor([4, 0]), torch.tensor([5, 3, 1]), torch.tensor([2])):
        part = estimate(config, scorer, c.rows(index), 1, upper_B[index] if sandwiched else None)
        close(part, together[index])


@pytest.mark.parametrize("config", CONFIGS, ids=label)
@torch.no_grad()
def test_only_valid_committed_tokens_are_scored(config):
    denoiser, c = rows_of_all_kinds()
    found = whole(config, Scorer(denoiser, denoiser.model), c)
    counted = c.valid_BG & (c.commit_step_BG > 0)
    assert not found[~counted].any()
    assert (found <= 0).all() or config.estimator == "sandwiched"
    if config.estimator in ("mean_field", "coupled", "trajectory", "autoregressive"):
        assert (found[counted] != 0).all()


@torch.no_grad()
def test_the_noise_is_the_seeds_and_the_iterations_alone():
    """Another model, another time, another state of the global generator: the same masks. Another iteration: others."""
    config, c = EstimatorConfig("elbo", num_samples=2), toy(list(range(50)))

    def masks(scorer, iteration):
        return torch.stack([p.asked_BG for i in range(2) for p in elbo_passes(config, scorer, c, iteration, i)])

    state = torch.random.get_rng_state()
    first = masks(SCORER, 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(7)
    other = random_denoiser(seed=5)
    assert torch.equal(masks(Scorer(other, other.model), 0), first)
    assert not torch.equal(masks(SCORER, 1), first)
    assert not torch.equal(first[0], first[1])
    torch.random.set_rng_state(state)


def kept_for_backward(config, c):
    """Bytes of floating-point tensors that the graph of an estimate holds, parameters aside."""
    kept = {}
    parameters = {p.data_ptr() for p in DENOISER.model.parameters()}

    def note(tensor):
        if tensor.is_floating_point() and tensor.data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        found = whole(config, SCORER, c)
    assert found.requires_grad
    return sum(kept.values())


SAMPLED = {
    "coupled": {},
    "elbo": {"mask_schedule": "complement"},
    "sandwiched": {},
}


@pytest.mark.parametrize("name", SAMPLED)
def test_memory_does_not_grow_with_the_number_of_samples(name):
    c = toy(list(range(8)))
    few, many = (kept_for_backward(EstimatorConfig(name, num_samples=n, **SAMPLED[name]), c) for n in (2, 8))
    canvas = 4 * len(c) * len(CANVAS)  # bytes of one number per token
    activations = kept_for_backward(EstimatorConfig("mean_field"), c)
    assert many - few <= 6 * 8 * canvas  # the answers themselves
    assert many < activations / 4  # where one pass that keeps its activations holds these


# The toy of the field: bias and spread, with the exact lower bound by enumeration


@torch.no_grad()
def test_bias_and_spread_of_the_estimators():
    """Four rollouts of eight tokens, 64 draws each, and the same under weights that moved a little.

    Shared masks take most of the noise out of a difference, far more than any choice of masks does; complement masks have
    less spread than as many random ones, counts less than iid, more samples less than few; mean-field alone is biased (and
    counts at quadrature nodes: see above).
    """
    length, draws, prompts = 8, 64, [[5, 6, 7], [9, 8, 7], [11, 12, 13], [6, 6, 6]]
    old, new = random_denoiser(sharpness=3.0), random_denoiser(sharpness=3.0)
    for seed, weight in enumerate(new.model.parameters()):
        weight += 0.02 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    config = SamplerConfig(canvas_length=length, temperature=1.0, policy="random", stop_at_eos=False)
    completion = torch.tensor([t.canvas_ids for t in sample(old, prompts, config)])
    subsets = torch.tensor(list(itertools.product([False, True], repeat=length)))[1:]
    size = subsets.sum(1)
    coefficient = torch.tensor(
        [math.factorial(n - 1) * math.factorial(length - n) / math.factorial(length) for n in size]
    )

    def repeated(times, seed):
        def rows(values):
            return torch.tensor(values).repeat_interleave(times, 0)

        valid = torch.ones(len(prompts) * times, length, dtype=torch.bool)
        return Canvases(
            rows(prompts),
            torch.ones(len(valid), 3),
            completion.repeat_interleave(times, 0),
            valid,
            seed + torch.arange(len(valid)),
        )

    def exact(denoiser):
        c, hide = repeated(len(subsets), 0), subsets.repeat(len(prompts), 1)
        logp = Scorer(denoiser, denoiser.model)(c, ~hide, hide).sum(1).view(len(prompts), -1)
        return (logp * coefficient).sum(1) / length

    def drawn(denoiser, seed, estimator="elbo", **settings):
        found = estimate(
            EstimatorConfig(estimator, **settings), Scorer(denoiser, denoiser.model), repeated(draws, seed)
        )
        return found.sum(1).view(len(prompts), draws) / length

    truth = exact(old)

    def measured(**settings):
        """Bias, spread, and spread of the difference under shared and under independent masks, per token."""
        before, shared, apart = drawn(old, 0, **settings), drawn(new, 0, **settings), drawn(new, 10**6, **settings)
        spreads = [values.std(1).mean().item() for values in (before, shared - before, apart - before)]
        return ((before - truth[:, None]).mean().item(), *spreads)

    one, two, four = (measured(num_samples=n) for n in (1, 2, 4))
    complement = measured(num_samples=2, mask_schedule="complement")  # four passes too
    stratified = measured(num_samples=4, mask_schedule="stratified")
    iid = measured(num_samples=4, mask_distribution="iid")
    nodes = measured(num_samples=4, mask_schedule="quadrature", mask_distribution="iid")

    def error(row):
        return row[1] / math.sqrt(len(prompts) * draws)

    for row in (one, two, four, complement, stratified, nodes):  # of iid itself the spread has no finite expectation
        assert abs(row[0]) < 4.5 * error(row)
    assert float((drawn(old, 0, estimator="mean_field")[:, 0] - truth).abs().mean()) > 0.2
    assert one[1] > 1.25 * two[1] > 1.25**2 * four[1]
    assert complement[1] < 0.9 * four[1]
    assert four[1] < 0.8 * iid[1]
    for row in (one, two, four, complement, stratified, iid, nodes):
        assert row[2] < row[3] / 3
