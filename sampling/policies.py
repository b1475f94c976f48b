"""Which masked positions commit at a step: pure functions from certainties to a choice.

Each takes `(B, L)` tensors and returns a bool `(B, L)`; each commits at least one masked position of a row that has any,
unless a schedule says none.
`certainty` is what `tokens.draw` calls so: probability, margin or exp(-entropy).

Axes: B rows, L positions of the block.
"""

import torch

EXTEND = 4  # positions by which a block is extended at a time (DCD, 2601.02076)
UNSURE = 0.3  # certainty below which a commitment at the block's edge waits for more context


def _ranks(score_BL: torch.Tensor, masked_BL: torch.Tensor) -> torch.Tensor:
    """The rank of each masked position by falling score, from 0, ties to the left; the others come last."""
    return score_BL.masked_fill(~masked_BL, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def quota(certainty_BL: torch.Tensor, masked_BL: torch.Tensor, count_B: torch.Tensor) -> torch.Tensor:
    """The `count_B` most certain masked positions of each row, ties to the left (LLaDA, 2502.09992)."""
    return (_ranks(certainty_BL, masked_BL) < count_B[:, None]) & masked_BL


def quota_total(masks_B: torch.Tensor, step: int | torch.Tensor, steps_B: torch.Tensor) -> torch.Tensor:
    """How many of a block's initial `masks_B` are committed after `step` (from 0, or one for each row) of `steps_B`.

    As equal a number each step as can be, the remainder first: `masks // steps + (step < masks % steps)`.
    """
    return (step + 1) * (masks_B // steps_B) + (masks_B % steps_B).clamp(max=step + 1)


def share_of_masks(masks_B: torch.Tensor, step: int | torch.Tensor, steps_B: torch.Tensor, eps: float) -> torch.Tensor:
    """How many masks step `step` (from 0, or one for each row) of `steps_B` commits under Dream's schedule (2508.15487).

    The share 1 - s/t of those that are left, rounded down, t and s being two neighbours of `steps + 1` times from 1 to
    `eps`; all at the last step. Float32, as there: what is rounded down must be the same number.
    """
    count_B, step_B = masks_B.clone(), torch.as_tensor(step, device=masks_B.device).expand_as(steps_B)
    for steps, now in set(zip(steps_B.tolist(), step_B.tolist(), strict=True)):
        if now < steps - 1:
            time_S = torch.linspace(1, eps, steps + 1, device=masks_B.device)
            share_B = (masks_B.float() * (1 - time_S[now + 1] / time_S[now])).long()
            count_B = torch.where((steps_B == steps) & (step_B == now), share_B, count_B)
    return count_B


def leftmost(masked_BL: torch.Tensor, part_L: torch.Tensor) -> torch.Tensor:
    """The masked positions of each row that lie in the same part as its first one; `part_L` numbers the parts."""
    part_B1 = part_L[masked_BL.long().argmax(1)][:, None]
    return masked_BL & (part_L == part_B1)


def threshold_or_leftmost(certainty_BL: torch.Tensor, masked_BL: torch.Tensor, least: float) -> torch.Tensor:
    """Every masked position with a certainty of at least `least`; where there is none, the leftmost (2609.39859)."""
    sure_BL = masked_BL & (certainty_BL >= least)
    leftmost_BL = masked_BL & (masked_BL.cumsum(1) == 1)
    return torch.where(sure_BL.any(1, keepdim=True), sure_BL, leftmost_BL)


def threshold(
    certainty_BL: torch.Tensor, masked_BL: torch.Tensor, least: float, count_B: torch.Tensor | None = None
) -> torch.Tensor:
    """Every masked position with a certainty of at least `least`, and always the most certain one (2505.22618).

    With `count_B`, always so many: all that are sure if they are as many, else the most certain (LLaDA2.x).
    """
    if count_B is not None:
        always_BL = _ranks(certainty_BL, masked_BL) < count_B.clamp(min=1)[:, None]
        return masked_BL & ((certainty_BL >= least) | always_BL)
    open_BL = certainty_BL.masked_fill(~masked_BL, -torch.inf)
    sure_BL = open_BL >= least
    return sure_BL.scatter_(1, open_BL.argmax(1, keepdim=True), True) & masked_BL  # argmax takes the leftmost


def factor(certainty_BL: torch.Tensor, masked_BL: torch.Tensor, allowance: float) -> torch.Tensor:
    """The k most certain masked positions, k the largest whose k-th certainty reaches 1 - allowance / (k + 1).

    Fast-dLLM (2505.22618), Theorem 1 turned into a rule: the more commit together, the surer each has to be.
    """
    rank_BL = _ranks(certainty_BL, masked_BL)
    reaches_BL = masked_BL & (certainty_BL >= 1 - allowance / (rank_BL + 2))
    count_B = torch.where(reaches_BL, rank_BL + 1, 1).max(1).values
    return (rank_BL < count_B[:, None]) & masked_BL


def entropy_bound(entropy_BL: torch.Tensor, masked_BL: torch.Tensor, bound: float) -> torch.Tensor:
    """The masked positions of lowest entropy, as long as those before the last add up to at most `bound` nats.

    EB-Sampler (2505.24857): what joint commitment may lose is bounded by the sum of the entropies less the largest.
    """
    ascending_BL, order_BL = entropy_BL.masked_fill(~masked_BL, torch.inf).sort(dim=1, stable=True)
    within_BL = ascending_BL.cumsum(1) - ascending_BL <= bound  # inf - inf is nan, and not within
    return masked_BL & torch.zeros_like(masked_BL).scatter_(1, order_BL, within_BL)


def window(masked_BL: torch.Tensor, masks: int, span: int) -> torch.Tensor:
    """The first `masks` masked positions of each row, within `span` positions from its leftmost one (DCD, 2601.02076)."""
    position_L = torch.arange(masked_BL.shape[1], device=masked_BL.device)
    first_B1 = masked_BL.long().argmax(1, keepdim=True)
    return masked_BL & (masked_BL.cumsum(1) <= masks) & (position_L < first_B1 + span)


def touches_edge(masked_BL: torch.Tensor, masks: int, span: int) -> torch.Tensor:
    """`(B,)`: whether the block's right edge, and nothing else, is what ends the window."""
    first_B = masked_BL.long().argmax(1)
    return (masked_BL.sum(1) <= masks) & (masked_BL.shape[1] - first_B <= span)
