"""The noise of masked-diffusion training, as pure functions of seeds.

Leaves out: uniform noise and block-wise masks. Follows LLaDA (arXiv 2502.09992, Eq. 3): every completion token is masked
independently with its row's probability t, t uniform on (0, 1], stratified over the batch as in VDM (2107.00630, App. I).

Axes: B rows, L positions.
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


def stratified_mask_ratio(rows: int, generator: torch.Generator, smallest: float = 1e-3) -> torch.Tensor:
    """One mask ratio per row, `(B,)` in [smallest, 1]: one uniform draw in each of B equal strata, in random order."""
    strata_B = (torch.rand(1, generator=generator) + torch.arange(rows) / rows) % 1
    return smallest + (1 - smallest) * strata_B[torch.randperm(rows, generator=generator)]


def mask_completion(
    input_ids_BL: torch.Tensor,
    completion_BL: torch.Tensor,
    ratio_B: torch.Tensor,
    mask_id: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks completion tokens with each row's ratio; a row that drew none gets one masked position.

    Args:
        input_ids_BL: clean tokens.
        completion_BL: bool, the positions that may be masked.
        ratio_B: mask probability of each row, in (0, 1].
        mask_id: the mask token.
        generator: CPU generator of the draw.

    Returns:
        The noised ids `(B, L)` and the bool mask `(B, L)` of the positions that were masked.
    """
    uniform_BL = torch.rand(input_ids_BL.shape, generator=generator).to(input_ids_BL.device)
    masked_BL = (uniform_BL < ratio_B.to(input_ids_BL.device)[:, None]) & completion_BL
    # A row without a masked position would contribute nothing: mask its likeliest candidate instead.
    lowest_B = uniform_BL.masked_fill(~completion_BL, 2.0).argmin(dim=1)
    empty_B = ~masked_BL.any(dim=1) & completion_BL.any(dim=1)
    masked_BL[empty_B, lowest_B[empty_B]] = True
    return torch.where(masked_BL, mask_id, input_ids_BL), masked_BL
