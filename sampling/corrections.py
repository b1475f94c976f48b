"""Which committed positions are taken back: pure functions on a block, or on a finished draft.

Axes: B rows, L positions.
"""

import torch

EDIT_STEPS = 16  # LLaDA2.1: after a block's last mask, so many more steps may edit it


def remdm_share(
    kind: str,
    eta: float,
    now_B: torch.Tensor,
    then_B: torch.Tensor,
    confidence_BL: torch.Tensor,
    held_BL: torch.Tensor,
) -> torch.Tensor:
    """The probability with which each held position reopens, `(B, L)`: sigma of ReMDM (2503.00307, Sec. 4).

    Args:
        kind: `cap` is min(eta, most), `rescale` is eta * most; `confidence` spreads eta * most over the held positions by
            the softmax of minus their snapshot confidence.
        eta: in [0, 1].
        now_B: share of the block that is committed before the step (alpha_t).
        then_B: the share after it (alpha_s). The most that can reopen so that the schedule can still be kept is
            (1 - alpha_s) / alpha_t.
        confidence_BL: snapshot confidences.
        held_BL: positions that may reopen.
    """
    most_B1 = ((1 - then_B) / now_B.clamp(min=1e-9)).clamp(0, 1)[:, None]
    if kind == "cap":
        share_BL = most_B1.clamp(max=eta).expand_as(confidence_BL)
    elif kind == "rescale":
        share_BL = (eta * most_B1).expand_as(confidence_BL)
    else:
        # A row that holds nothing has no softmax; it reopens nothing either.
        weight_BL = (-confidence_BL).masked_fill(~held_BL, -torch.inf).softmax(1).nan_to_num(0.0)
        share_BL = eta * most_B1 * weight_BL
    return share_BL.masked_fill(~held_BL, 0.0)


def edits(
    token_BL: torch.Tensor,
    candidate_BL: torch.Tensor,
    confidence_BL: torch.Tensor,
    held_BL: torch.Tensor,
    above: float,
) -> torch.Tensor:
    """Held positions whose most likely token is another one, by a probability of more than `above` (LLaDA2.1)."""
    return held_BL & (candidate_BL != token_BL) & (confidence_BL > above)


def least_confident(confidence_BL: torch.Tensor, held_BL: torch.Tensor, fraction: float) -> torch.Tensor:
    """The `fraction` of each row's held positions with the lowest snapshot confidence, ties to the left.

    Snapshot remasking of Diffusion in Diffusion (2601.13599); a fraction of a position is rounded down.
    """
    count_B1 = (held_BL.sum(1, keepdim=True).double() * fraction + 1e-9).long()
    order_BL = confidence_BL.masked_fill(~held_BL, torch.inf).argsort(dim=1, stable=True)
    rank_BL = torch.empty_like(order_BL).scatter_(
        1, order_BL, torch.arange(order_BL.shape[1], device=order_BL.device).expand_as(order_BL)
    )
    return held_BL & (rank_BL < count_B1)
