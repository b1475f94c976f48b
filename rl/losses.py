"""Policy losses over likelihood estimates: what TRL's own token-level family leaves out.

Every loss is a sum over its rows divided by what it is told to divide by, so that accumulated micro-batches and ranks add
up to the loss of the whole batch. A row's likelihood is the sum of what an estimator says of its tokens.

    sequence         one ratio per row, exp((new - old) / norm), clipped as PPO clips; k2 or k3 KL. ESPO (2512.03759,
                     Sec. 4), GDPO (2510.08554)
    sandwich         advantage times log-likelihood, per token of the batch: no ratio, no clip. SPG (2510.09541, Eq. 5)
    weighted         log-likelihoods weighted by the group's softmax of advantages, minus that of their negatives.
                     wd1 (2507.08838)
    self_normalized  advantage times log-likelihood, weighted by clipped ratios that add up to one. StableDRL (2603.06743)
    regression       the log-ratio is taken to a multiple of the advantage, by least squares. GDSD (2605.29398)

Leaves out token-level ratios, which are TRL's, but for those of positions (`position_loss`); and value functions.

Axes: B rows, G canvas positions, N rows of all ranks.
"""

import math

import torch


def row_sums(values_BG: torch.Tensor, valid_BG: torch.Tensor) -> torch.Tensor:
    """Each row's sum over its valid positions, `(B,)`."""
    return (values_BG * valid_BG).sum(1)


def row_norms(valid_BG: torch.Tensor, norm: str) -> torch.Tensor:
    """What a row's log-likelihood is divided by, `(B,)`: canvas positions, valid positions, or 1 (`none`)."""
    if norm == "none":
        return torch.ones(valid_BG.shape[0], device=valid_BG.device)
    if norm == "canvas":
        return torch.full((valid_BG.shape[0],), float(valid_BG.shape[1]), device=valid_BG.device)
    return valid_BG.sum(1).clamp(min=1).float()


def sequence_loss(
    logp_B: torch.Tensor,
    old_B: torch.Tensor,
    advantage_B: torch.Tensor,
    norm_B: torch.Tensor,
    low: float,
    high: float,
    divisor: float | torch.Tensor,
    delta: float | None = None,
) -> torch.Tensor:
    """`-sum_i min(r_i A_i, clip(r_i, 1 - low, 1 + high) A_i) / divisor` with `r_i = exp((logp_i - old_i) / norm_i)`.

    Args:
        logp_B: log-likelihood estimates (nats) of the policy.
        old_B: those of the policy that sampled.
        advantage_B: advantages.
        norm_B: see `row_norms`.
        low: the clip's epsilon below 1.
        high: the one above.
        divisor: rows of the batch, as a rule.
        delta: most that a ratio may be where its advantage is negative (two-sided clip); None is no bound.
    """
    ratio_B = ((logp_B - old_B) / norm_B).exp()
    clipped_B = ratio_B.clamp(1 - low, 1 + high)
    if delta is not None:
        ratio_B = ratio_B.clamp(max=delta)
    return -torch.minimum(ratio_B * advantage_B, clipped_B * advantage_B).sum() / divisor


def clipped_rows(
    logp_B: torch.Tensor, old_B: torch.Tensor, advantage_B: torch.Tensor, norm_B: torch.Tensor, low: float, high: float
) -> torch.Tensor:
    """Which rows `sequence_loss` clips, so that they have no gradient, bool `(B,)`."""
    ratio_B = ((logp_B - old_B) / norm_B).detach().exp()
    return (ratio_B < 1 - low) & (advantage_B < 0) | (ratio_B > 1 + high) & (advantage_B > 0)


def sequence_kl(logp_B: torch.Tensor, ref_B: torch.Tensor, norm_B: torch.Tensor, form: str) -> torch.Tensor:
    """An estimate of each row's divergence from the reference, `(B,)`, per unit of `norm_B`.

    `k2` is `(logp - ref)^2 / (2 norm)` (ESPO: its gradient is the right one, and it cannot explode); `k3` is
    `exp(d) - d - 1` with `d = (ref - logp) / norm`.
    """
    if form == "k2":
        return (logp_B - ref_B).square() / (2 * norm_B)
    d_B = (ref_B - logp_B) / norm_B
    return d_B.exp() - d_B - 1


def likelihood_loss(
    logp_B: torch.Tensor, weight_B: torch.Tensor, norm_B: torch.Tensor, divisor: float | torch.Tensor
) -> torch.Tensor:
    """`-sum_i weight_i logp_i / norm_i / divisor`: the losses without a ratio in their gradient.

    `sandwich`: advantages, no norm, divided by the tokens of the batch. `weighted`: `group_weights`, divided by the groups.
    `self_normalized`: `clipped_ratios` times advantages, divided by the sum of those ratios over the batch.
    """
    return -(weight_B * logp_B / norm_B).sum() / divisor


def regression_loss(
    logp_B: torch.Tensor,
    old_B: torch.Tensor,
    advantage_B: torch.Tensor,
    norm_B: torch.Tensor,
    psi: float,
    low: float,
    high: float,
    divisor: float | torch.Tensor,
) -> torch.Tensor:
    """`sum_i (clamp(logp_i - old_i, log(1 - low), log(1 + high)) / norm_i - psi A_i)^2 / divisor` (GDSD, 2605.29398).

    Within the clamp its gradient is 0 where the log-ratio is `psi A_i norm_i`, and nowhere else; beyond it there is none.
    """
    ratio_B = (logp_B - old_B).clamp(math.log(1 - low) if low < 1 else -math.inf, math.log(1 + high))
    return (ratio_B / norm_B - psi * advantage_B).square().sum() / divisor


def position_loss(
    logp_BG: torch.Tensor,
    old_BG: torch.Tensor,
    advantage_B: torch.Tensor,
    valid_BG: torch.Tensor,
    low: float,
    high: float,
    loss_type: str,
    divisor: float | torch.Tensor,
) -> torch.Tensor:
    """`-min(r A, clip(r, 1 - low, 1 + high) A)` of each position's choice, meant as TRL means tokens under `loss_type`.

    Args:
        logp_BG: log-probabilities of the choices, of the policy.
        old_BG: those of the policy that sampled.
        advantage_B: advantages.
        valid_BG: the positions that count.
        low: the clip's epsilon below 1.
        high: the one above.
        loss_type: `grpo`: the mean over rows of their means; `bnpo`: the mean over all; else their sum.
        divisor: what that is divided by: accumulated micro-batches, or (`dapo`, `dr_grpo`) what stands for all tokens.
    """
    ratio_BG, advantage_B1 = (logp_BG - old_BG).exp(), advantage_B[:, None]
    paid_BG = torch.minimum(ratio_BG * advantage_B1, ratio_BG.clamp(1 - low, 1 + high) * advantage_B1) * valid_BG
    if loss_type == "grpo":
        paid = (paid_BG.sum(1) / valid_BG.sum(1).clamp(min=1)).mean()
    else:
        paid = paid_BG.sum() / (valid_BG.sum().clamp(min=1) if loss_type == "bnpo" else 1)
    return -paid / divisor


def group_weights(advantage_N: torch.Tensor, known_N: torch.Tensor, group: int) -> torch.Tensor:
    """wd1's weights `softmax(A) - softmax(-A)` within each group of `group` neighbouring rows, `(N,)`.

    Rows that are not `known` (no reward function could score them) have weight 0 and count in no softmax.
    """
    score_PK = advantage_N.view(-1, group).masked_fill(~known_N.view(-1, group), -torch.inf)
    against_PK = (-advantage_N).view(-1, group).masked_fill(~known_N.view(-1, group), -torch.inf)
    weights_PK = score_PK.softmax(1) - against_PK.softmax(1)
    return weights_PK.nan_to_num(0.0).flatten()  # a group without a single reward


def clipped_ratios(logp_B: torch.Tensor, old_B: torch.Tensor, norm_B: torch.Tensor, clip: float) -> torch.Tensor:
    """`min(exp((logp - old) / norm), clip)`, detached: clipped whatever the sign of the advantage (StableDRL)."""
    return ((logp_B - old_B) / norm_B).detach().exp().clamp(max=clip)


def ratio_moments(log_ratio: torch.Tensor) -> torch.Tensor:
    """Sums over any number of log-ratios from which `ratio_metrics` are made, `(5,)`; those of parts and ranks add up."""
    x = log_ratio.detach().flatten().double()
    w = x.clamp(-20, 20).exp()
    return torch.stack([torch.ones_like(x).sum(), x.sum(), x.square().sum(), w.sum(), w.square().sum()])


def ratio_metrics(moments: torch.Tensor) -> dict[str, float]:
    """How far the policy has moved within a batch of rollouts; nothing for no ratios at all.

    `spread` is the standard deviation of the log-ratios, `drift` their mean, `effective_sample_size` the share
    `(sum w)^2 / (n sum w^2)` of the ratios w, in (0, 1].
    """
    count, total, squares, weights, weight_squares = moments.tolist()
    if count == 0:
        return {}
    mean = total / count
    return {
        "ratio/spread": max(squares / count - mean**2, 0.0) ** 0.5,
        "ratio/drift": mean,
        "ratio/effective_sample_size": weights**2 / (count * weight_squares),
    }
