"""How long a canvas is: where a row ends, how a dynamic one grows (DAEDAL, 2508.00819), what is expected (2608.26374).

Axes: B rows, G canvas positions, L positions of a block.
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


def end_confidence(p_end_BG: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
    """How sure the model is that the text ends within the canvas, `(B,)`.

    The mean over the last 32 of `length_B` positions (all, if there are fewer) of `p_end_BG`, which is P(EOS) where EOS is
    the most likely token, and 0 elsewhere.
    """
    distance_BG = length_B[:, None] - torch.arange(p_end_BG.shape[1], device=p_end_BG.device)
    tail_BG = (distance_BG > 0) & (distance_BG <= TAIL)
    return (p_end_BG * tail_BG).sum(1) / length_B.clamp(max=TAIL)


def expected(p_end_BG: torch.Tensor) -> torch.Tensor:
    """The length that one look at an empty canvas expects, `(B,)` float64.

    The sum over positions of the chance that the text has not ended before them: `S(i)`, the product over j < i of
    1 - P(EOS at j) (2608.26374).
    """
    goes_on_BG = 1 - p_end_BG.double()
    return 1 + goes_on_BG[:, :-1].cumprod(1).sum(1)


def in_blocks(length_B: torch.Tensor, block: int) -> torch.Tensor:
    """Lengths, rounded up to whole blocks but for what rounding adds, `(B,)` int64."""
    return ((length_B - 1e-6) / block).ceil().long().clamp(min=1) * block


def needs_room(confidence_BL: torch.Tensor, masked_BL: torch.Tensor) -> torch.Tensor:
    """`(B,)`: the masked position of least confidence, where that is below 0.1, else -1."""
    least_B, position_B = confidence_BL.masked_fill(~masked_BL, torch.inf).min(1)
    return torch.where(least_B < UNSURE, position_B, -1)
