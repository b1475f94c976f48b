"""The noise of masked-diffusion training, as pure functions of seeds.

Leaves out uniform noise. Follows LLaDA (arXiv 2502.09992, Eq. 3): every completion token is masked independently with its
row's probability t, t uniform on (0, 1], stratified over the batch as in VDM (2107.00630, App. I). Where a model denoises
block by block, t is its block's (BD3-LM, 2503.09573).

Axes: B rows, L positions, N blocks of a row.
"""

import torch

_MULTIPLIER = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def noise_generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on the whole key and on nothing else; the global generator is never touched."""
    state = 0
    for part in key:
        state = ((state ^ (part & _WORD)) * _MULTIPLIER + 0xD1B54A32D192ED03) & _WORD
        state ^= state >> 29
    return torch.Generator().manual_seed(state >> 1)


def stratified_mask_ratio(
    rows: int, generator: torch.Generator, low: float = 1e-3, high: float = 1.0, full: float = 0.0
) -> torch.Tensor:
    """One mask ratio per row, `(B,)`: 1 with probability `full`, else uniform on [low, high].

    All rows share one uniform draw in each of B equal strata, in random order: of B rows, `full * B` are masked whole,
    rounded up or down at random, and the ratios of the others are spread evenly.
    """
    uniform_B = (torch.rand(1, generator=generator) + torch.arange(rows) / rows) % 1
    uniform_B = uniform_B[torch.randperm(rows, generator=generator)]
    if full == 0:
        return low + (high - low) * uniform_B
    spread_B = low + (high - low) * (uniform_B - full) / max(1 - full, 1e-9)
    return torch.where(uniform_B < full, torch.ones(()), spread_B)


def block_mask_ratio(
    number_BL: torch.Tensor, generator: torch.Generator, low: float = 1e-3, high: float = 1.0, full: float = 0.0
) -> torch.Tensor:
    """The mask ratio of each position, `(B, L)`: one per block of each row, stratified over all of them.

    `number_BL` is each position's block, negative before the first one (whose ratio stands there, and means nothing).
    """
    rows, blocks = number_BL.shape[0], int(number_BL.max()) + 1
    ratio_BN = stratified_mask_ratio(rows * blocks, generator, low, high, full).view(rows, blocks)
    return ratio_BN.to(number_BL.device).gather(1, number_BL.clamp(min=0))


def mask_completion(
    input_ids_BL: torch.Tensor,
    completion_BL: torch.Tensor,
    ratio_BL: torch.Tensor,
    mask_id: int,
    generator: torch.Generator,
    at_least_one: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks completion tokens with each position's ratio.

    Args:
        input_ids_BL: clean tokens.
        completion_BL: bool, the positions that may be masked.
        ratio_BL: mask probability of each position, in (0, 1]; `(B, 1)` where it is the row's.
        mask_id: the mask token.
        generator: CPU generator of the draw.
        at_least_one: a row that drew no mask gets one, so that it teaches something. Not for losses weighted by 1/t: there a
            row without a mask rightly counts 0, and one that is masked all the same would count 1/t with a small t.

    Returns:
        The noised ids `(B, L)` and the bool mask `(B, L)` of the positions that were masked.
    """
    uniform_BL = torch.rand(input_ids_BL.shape, generator=generator).to(input_ids_BL.device)
    masked_BL = (uniform_BL < ratio_BL.to(input_ids_BL.device)) & completion_BL
    if at_least_one:  # its likeliest candidate
        lowest_B = uniform_BL.masked_fill(~completion_BL, 2.0).argmin(dim=1)
        empty_B = ~masked_BL.any(dim=1) & completion_BL.any(dim=1)
        masked_BL[empty_B, lowest_B[empty_B]] = True
    return torch.where(masked_BL, mask_id, input_ids_BL), masked_BL
