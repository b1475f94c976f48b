"""How long a canvas is: where a row ends, and how a dynamic one grows (DAEDAL, 2508.00819).

Axes: B rows, G canvas positions, T of them that were asked for, L positions of a block.
"""

import torch

GROW = 8  # masks that one growth adds, or that take the place of one
TAIL = 32  # trailing positions that tell whether the canvas is long enough
ENOUGH_TO_START = 0.5  # mean P(EOS) of the tail from which the first canvas is long enough
ENOUGH_TO_GO_ON = 0.9  # and that below which a canvas that is being denoised still grows
MARGIN = 16  # masks added once the first canvas is long enough
UNSURE = 0.1  # confidence below which a position is taken to need more room


def first_eos(canvas_BG: torch.Tensor, masked_BG: torch.Tensor, eos_ids: torch.Tensor) -> torch.Tensor:
    """`(B,)`: the position of each row's first committed EOS, G where there is none."""
    eos_BG = torch.isin(canvas_BG, eos_ids) & ~masked_BG
    return torch.where(eos_BG.any(1), eos_BG.long().argmax(1), canvas_BG.shape[1])


def end_confidence(
    p_eos_BT: torch.Tensor, is_eos_BT: torch.Tensor, positions_T: torch.Tensor, length_B: torch.Tensor
) -> torch.Tensor:
    """How sure the model is that the text ends within the canvas, `(B,)`.

    The mean over the last 32 of `length_B` positions (all, if there are fewer) of P(EOS) where EOS is the most likely
    token, and 0 elsewhere. `positions_T` are the canvas positions that the columns stand for.
    """
    distance_BT = length_B[:, None] - positions_T
    tail_BT = (distance_BT > 0) & (distance_BT <= TAIL)
    return (p_eos_BT * (is_eos_BT & tail_BT)).sum(1) / length_B.clamp(max=TAIL)


def needs_room(confidence_BL: torch.Tensor, masked_BL: torch.Tensor) -> torch.Tensor:
    """`(B,)`: the masked position of least confidence, where that is below 0.1, else -1."""
    least_B, position_B = confidence_BL.masked_fill(~masked_BL, torch.inf).min(1)
    return torch.where(least_B < UNSURE, position_B, -1)
