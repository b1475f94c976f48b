"""Which masked positions commit at a step: pure functions from confidences to a choice.

Axes: B rows, L positions of the block.
"""

import torch


def quota(confidence_BL: torch.Tensor, masked_BL: torch.Tensor, count_B: torch.Tensor) -> torch.Tensor:
    """The `count_B` most confident masked positions of each row, ties to the left, as a bool `(B, L)`."""
    ranked_BL = confidence_BL.masked_fill(~masked_BL, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank_BL = torch.empty_like(ranked_BL).scatter_(
        1, ranked_BL, torch.arange(ranked_BL.shape[1], device=ranked_BL.device).expand_as(ranked_BL)
    )
    return (rank_BL < count_B[:, None]) & masked_BL


def quota_count(masks_B: torch.Tensor, step: int, steps_B: torch.Tensor) -> torch.Tensor:
    """How many of a block's initial `masks_B` commit at `step` (from 0) of `steps_B`: the remainder goes first."""
    return masks_B // steps_B + (step < masks_B % steps_B).long()


def threshold(confidence_BL: torch.Tensor, masked_BL: torch.Tensor, least: float) -> torch.Tensor:
    """Every masked position with confidence of at least `least`, and always the most confident one."""
    one_B = torch.ones(len(masked_BL), dtype=torch.long, device=masked_BL.device)
    return (masked_BL & (confidence_BL >= least)) | quota(confidence_BL, masked_BL, one_B)
