"""Estimates of how likely a diffusion policy finds its own completions: `log pi(o | q)`, token by token.

A masked diffusion model has no likelihood that one pass gives; every RL method for it estimates one. Seven estimators cover
the literature, of which the last three replay the rollout (`lockstitch.rl.replayed`):

| estimator | passes per sample | what its sum over a row is |
|---|---|---|
| mean_field | 1 | every token given the prompt alone (d1, 2504.12216) |
| coupled | 3 | half mean-field, half tokens given complementary parts of the rest (DiffuCoder, 2506.20639) |
| elbo | 1, or 2 with complement masks | unbiased for the evidence lower bound (LLaDA 2502.09992; ESPO; GDPO) |
| sandwiched | 1 | elbo, but in the rows `upper_B` an upper bound, mixed with it (SPG, 2510.09541) |
| trajectory | one per segment | tokens given the canvas as the rollout had it when they were committed (d2, TraceRL) |
| forks | one per fork | trajectory's, of forks alone (ForkGRPO, 2609.39859) |
| autoregressive | one per position | tokens given those to their left: the chain rule (JustGRPO, 2601.15165) |

Each is a function of a `Scorer`, `Canvases` and an inner iteration, and returns `logp_BG`, float32: contributions whose sum
over a row's `valid_BG` (with `scope="canvas"`: over the row) is its estimate. The noise is a pure function of seeds (see
`lockstitch.rl.masks`). Samples are accumulated one by one, and their passes are run again in the backward pass, so that
memory does not grow with their number.

Leaves out ratios, clipping and KL: those are the losses'.

Axes: B rows, P prompt columns, G canvas positions.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from lockstitch.rl.estimator_config import REPLAYING, EstimatorConfig
from lockstitch.rl.masks import Draw, gauss_legendre
from lockstitch.rl.passes import Pass, open_positions, weighted_sum
from lockstitch.rl.replayed import replay
from lockstitch.rl.scoring import Canvases, Scorer


def estimate(
    config: EstimatorConfig,
    scorer: Scorer,
    canvases: Canvases,
    iteration: int = 0,
    upper_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Per-token contributions `(B, G)` to each row's log-likelihood, as `config` says.

    Args:
        config: the estimator and its settings.
        scorer: the model's face.
        canvases: the completions.
        iteration: the inner iteration (of mu), which has noise of its own.
        upper_B: bool, the rows that the sandwich bounds from above: those with a negative advantage.

    Raises `ValueError` where `upper_B` is missing or would be ignored, where a trajectory's trace is missing, and for
    settings that do not fit the model's layout.
    """
    return estimate_channels(config, scorer, canvases, iteration, upper_B)[..., 0]


def estimate_channels(
    config: EstimatorConfig,
    scorer: Scorer,
    canvases: Canvases,
    iteration: int = 0,
    upper_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """What `estimate` returns, and what else there is, `(B, G, C)`.

    The first channel is the log-likelihood; with `position_temperature` the second one is that of the positions' choice. A
    scorer with `entropies` adds, as the last one, the entropy in nats of the distribution that each token was drawn from,
    for estimators that replay the rollout.
    """
    if (config.estimator == "sandwiched") != (upper_B is not None):
        raise ValueError(
            f"upper_B is {'given' if upper_B is not None else 'missing'}: estimator={config.estimator!r}; "
            "sandwiched needs it, no other reads it"
        )
    if config.mask_distribution == "block_random" and scorer.family.layout != "full":
        raise ValueError(
            "mask_distribution='block_random' shows earlier blocks clean, as "
            f"{scorer.family.name} models see them anyway: iid or count"
        )
    if config.estimator in REPLAYING:
        return replay(config, scorer, canvases, iteration)
    if scorer.entropies:
        raise ValueError(
            f"entropies=True: estimator={config.estimator!r} does not see the distributions that the rollout drew from; "
            f"{', '.join(REPLAYING)} do"
        )
    if config.estimator == "mean_field":
        logp_BG = mean_field(config, scorer, canvases, iteration)
    elif config.estimator == "coupled":
        logp_BG = coupled(config, scorer, canvases, iteration)
    elif config.estimator == "elbo":
        logp_BG = elbo(config, scorer, canvases, iteration)
    else:
        assert upper_B is not None
        logp_BG = sandwiched(config, scorer, canvases, iteration, upper_B)
    return logp_BG[..., None]


def mean_field(config: EstimatorConfig, scorer: Scorer, canvases: Canvases, iteration: int) -> torch.Tensor:
    """Every token as if alone: `log p(o_k | q', all masked)`, with q' the prompt, some of it masked (d1, 2504.12216)."""
    open_BG, given_BG = open_positions(config, canvases)
    return scorer(canvases, given_BG, open_BG, _prompt(config, scorer, canvases, Draw(canvases.seeds_B, iteration, 0)))


def coupled(config: EstimatorConfig, scorer: Scorer, canvases: Canvases, iteration: int) -> torch.Tensor:
    """Coupled-GRPO's average of three passes (DiffuCoder, 2506.20639): all masked, a random part m, and its complement.

    `1/2 (log p(o_k | all masked) + [k in m] / t log p(o_k | m masked) + [k not in m] / (1 - t) log p(o_k | rest masked))`,
    t uniform on (0.2, 0.8). The 1/t make its expectation about 1.5 times a log-likelihood, as in the authors' code.
    """

    def passes(sample: int) -> Iterator[Pass]:
        draw = Draw(canvases.seeds_B, iteration, sample)
        prompt_BP = _prompt(config, scorer, canvases, draw)
        ratio_B = draw.ratio(0.2, 0.8)
        part_BG = draw.iid(open_BG, ratio_B)
        half_B = torch.full_like(ratio_B, 0.5)
        yield Pass(given_BG, open_BG, half_B, prompt_BP)
        yield Pass(given_BG | open_BG & ~part_BG, part_BG, half_B / ratio_B, prompt_BP)
        yield Pass(given_BG | part_BG, open_BG & ~part_BG, half_B / (1 - ratio_B), prompt_BP)

    open_BG, given_BG = open_positions(config, canvases)
    every = (p for sample in range(config.samples) for p in passes(sample))
    return weighted_sum(scorer, canvases, every, config.samples)


def elbo(config: EstimatorConfig, scorer: Scorer, canvases: Canvases, iteration: int) -> torch.Tensor:
    """Monte Carlo or quadrature of `E_t 1/t sum over masked k of log p(o_k | the rest)` (see `elbo_passes`)."""
    every = (p for sample in range(config.samples) for p in elbo_passes(config, scorer, canvases, iteration, sample))
    divisor = 1 if config.mask_schedule == "quadrature" else config.samples
    return weighted_sum(
        scorer, canvases, every, divisor, more=config.samples > 1 or config.mask_schedule == "complement"
    )


def elbo_passes(
    config: EstimatorConfig, scorer: Scorer, canvases: Canvases, iteration: int, sample: int
) -> Iterator[Pass]:
    """The passes of one Monte Carlo sample (or quadrature node) of the lower bound.

    `n` open positions, `m` masked ones of them. Weights, by schedule and distribution:

    | | iid | count | block_random |
    |---|---|---|---|
    | random | 1/t, t uniform | n/m, m uniform on 1..n (LLaDA) | n/m (SPG) |
    | complement | m: 1/2t, rest: 1/2(1-t) | n/2m, rest: n/2(n-m), m uniform on 1..n (after ESPO, 2512.03759) | - |
    | quadrature | w/t at the node t | w/t, m = round(tn) but at least 1 (GDPO, 2510.08554) | - |

    Under complement masks ESPO has n + 1 for n and m on 0..n: then a row's weights add up to n + 1, or at either end to
    half of it, which for short rows is most of the noise. Here they add up to n.

    All are unbiased for the bound but three: quadrature has the error of its rule; with `count` also that of rounding tn,
    which is large for short rows; and `block_random` weighs tokens by where they stand.
    """
    open_BG, given_BG = open_positions(config, canvases)
    draw = Draw(canvases.seeds_B, iteration, sample)
    prompt_BP = _prompt(config, scorer, canvases, draw)
    total_B = open_BG.sum(1)

    def show(masked_BG: torch.Tensor, weight_B: torch.Tensor) -> Pass:
        return Pass(given_BG | open_BG & ~masked_BG, masked_BG, weight_B, prompt_BP)

    if config.mask_distribution == "block_random":
        assert config.block_length is not None
        masked_BG, before_BG = draw.blocks(open_BG, config.block_length)
        masked_BG = masked_BG | draw.perturbed(before_BG, config.perturb_ratio or 0.0)
        yield show(masked_BG, total_B / masked_BG.sum(1).clamp(min=1))
        return
    if config.mask_schedule == "quadrature":
        node, weight = gauss_legendre(config.samples)[sample]
        ratio_B = torch.full_like(draw.ratio(), node)
        weight_B = torch.full_like(ratio_B, weight / node)
        if config.mask_distribution == "iid":
            yield show(draw.iid(open_BG, ratio_B), weight_B)
        else:
            yield show(draw.count(open_BG, (ratio_B * total_B).round().clamp(min=1)), weight_B)
        return
    ratio_B = draw.ratio()
    if config.mask_schedule == "stratified":
        # One ratio in each of the equal strata, all by the same offset (VDM, 2107.00630, App. I).
        ratio_B = (Draw(canvases.seeds_B, iteration, 0).ratio() + sample) / config.samples
    if config.mask_schedule == "complement":
        if config.mask_distribution == "iid":
            masked_BG = draw.iid(open_BG, ratio_B)
            yield show(masked_BG, 0.5 / ratio_B)
            yield show(open_BG & ~masked_BG, 0.5 / (1 - ratio_B))
        else:
            count_B = 1 + (ratio_B * total_B).long()
            masked_BG = draw.count(open_BG, count_B)
            # Where all is masked nothing is left for the second pass, and the first counts for both.
            yield show(masked_BG, total_B / count_B / torch.where(count_B < total_B, 2, 1))
            yield show(open_BG & ~masked_BG, total_B / (total_B - count_B).clamp(min=1) / 2)
        return
    if config.mask_distribution == "iid":
        yield show(draw.iid(open_BG, ratio_B), 1 / ratio_B)
    else:
        count_B = 1 + (ratio_B * total_B).long()
        yield show(draw.count(open_BG, count_B), total_B / count_B)


def sandwiched(
    config: EstimatorConfig, scorer: Scorer, canvases: Canvases, iteration: int, upper_B: torch.Tensor
) -> torch.Tensor:
    """The lower bound, in rows `upper_B` mixed with an upper one: `mix * EUBO + (1 - mix) * ELBO` (SPG, 2510.09541).

    `EUBO = n/s sum over k of 1/beta log mean over samples of [k masked] w p_k^beta`, w the weights of the lower bound; over
    the s tokens that were masked in any sample, which stand for all n, as in the authors' code. Of infinitely many samples
    tokenwise EUBO is at least ELBO, rises with beta, and is from beta = n on no less than the log-likelihood itself. Of few
    it is lower in the mean, as the logarithm of a mean is, and no bound.
    """
    beta, mix = config.beta, config.mix
    open_BG, _ = open_positions(config, canvases)
    lower_BG = torch.zeros(open_BG.shape, device=open_BG.device)
    terms = []
    for sample in range(config.samples):
        for p in elbo_passes(config, scorer, canvases, iteration, sample):
            logp_BG = scorer(canvases, p.shown_BG, p.asked_BG, p.prompt_BP, recompute=config.samples > 1)
            weight_B1 = p.weight_B.to(logp_BG)[:, None]
            lower_BG = lower_BG + weight_B1 * logp_BG / config.samples
            terms.append((weight_B1.log() + beta * logp_BG).masked_fill(~p.asked_BG, -torch.inf))
    terms_NBG = torch.stack(terms)
    seen_BG = (terms_NBG > -torch.inf).any(0)
    # Where a token was never masked the sum is empty: its logarithm, and the gradient of that, must not be formed.
    bound_BG = (terms_NBG.masked_fill(~seen_BG, 0.0).logsumexp(0) - torch.tensor(config.samples).log()) / beta
    share_B = open_BG.sum(1) / seen_BG.sum(1).clamp(min=1)
    bound_BG = share_B[:, None] * bound_BG.masked_fill(~seen_BG, 0.0)
    return torch.where(upper_B[:, None], mix * bound_BG + (1 - mix) * lower_BG, lower_BG)


def _prompt(config: EstimatorConfig, scorer: Scorer, canvases: Canvases, draw: Draw) -> torch.Tensor:
    """The prompts, with some of their tokens masked if the config asks for that."""
    if not config.prompt_mask_ratio:
        return canvases.prompt_BP
    real_BP = canvases.prompt_mask_BP.bool()
    if canvases.prompt_seeds_B is not None:
        draw = replace(draw, seeds_B=canvases.prompt_seeds_B)
    return draw.prompt(canvases.prompt_BP, real_BP, config.prompt_mask_ratio, scorer.denoiser.mask_id)
