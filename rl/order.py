"""How likely a policy chooses the positions that it commits: a Plackett-Luce model of the order (2607.15200).

Of the masked positions of a block, one is chosen with probability `softmax(log p / tau)` over their tokens'
log-probabilities, then one of the rest, and so on. The positions of one step are taken to be chosen in the order of their
certainty. The sampler's own choice, the most certain positions of what it drew, has no gradient; this model of it has one.

Axes: B rows, G canvas positions.
"""

import torch

_NEVER = -1e30  # not -inf, whose differences are no numbers


def order_logp(
    score_BG: torch.Tensor, candidates_BG: torch.Tensor, chosen_BG: torch.Tensor, certainty_BG: torch.Tensor
) -> torch.Tensor:
    """The log-probability of each choice given those before it, `(B, G)`, 0 where nothing is chosen.

    Args:
        score_BG: the candidates' scores, log-probabilities over a temperature.
        candidates_BG: bool, the positions there are to choose from.
        chosen_BG: bool, those of them that are chosen.
        certainty_BG: the order in which they are chosen: falling, ties to the left.
    """
    score_BG = score_BG.masked_fill(~candidates_BG, _NEVER)
    rank_BG = certainty_BG.masked_fill(~chosen_BG, -1.0).argsort(dim=1, descending=True, stable=True)
    ordered_BG = score_BG.gather(1, rank_BG)
    left_BG = ordered_BG.flip(1).logcumsumexp(1).flip(1)  # of what is left when each one is chosen
    logp_BG = torch.zeros_like(score_BG).scatter(1, rank_BG, ordered_BG - left_BG)
    return torch.where(chosen_BG, logp_BG, 0.0)
