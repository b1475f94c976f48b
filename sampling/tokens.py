"""From logits to candidate tokens, their confidence and their entropy.

Axes: B rows, L positions, V vocabulary.
"""

import torch


def draw(
    logits_BLV: torch.Tensor, uniform_BL: torch.Tensor | None, temperature: float, forbidden: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Candidate tokens of each position.

    A token is drawn from softmax(logits / temperature) by inverting its cumulative distribution at `uniform_BL` (in
    [0, 1)), or is the most likely one at temperature 0, where `uniform_BL` is None. Forbidden ids have probability 0.

    Returns:
        token `(B, L)`, confidence `(B, L)` (the token's probability at temperature 1) and entropy `(B, L)` in nats (of
        the distribution at temperature 1). float32 throughout; the cumulative sum is float64.
    """
    logits_BLV = logits_BLV.float()
    logits_BLV[..., forbidden] = -torch.inf
    logp_BLV = logits_BLV.log_softmax(-1)
    p_BLV = logp_BLV.exp()
    entropy_BL = -(p_BLV * logp_BLV.masked_fill(p_BLV == 0, 0)).sum(-1)
    if temperature == 0:
        token_BL = logp_BLV.argmax(-1)
    else:
        assert uniform_BL is not None
        cumulative_BLV = (logp_BLV / temperature).softmax(-1).double().cumsum(-1)
        target_BL1 = uniform_BL.to(cumulative_BLV)[..., None] * cumulative_BLV[..., -1:]
        token_BL = torch.searchsorted(cumulative_BLV, target_BL1, right=True)[..., 0]
    confidence_BL = p_BLV.gather(-1, token_BL[..., None])[..., 0]
    return token_BL, confidence_BL, entropy_BL
