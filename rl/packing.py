"""One pass in which every block of a canvas is noised and sees the blocks before it clean.

Block-causal and context-causal models were trained, and are sampled, so that a block being denoised sees finished blocks.
The pass holds every canvas twice, clean and noised, at the same positions: a noised column sees its own noised block and
the clean blocks before it; a clean column sees what the layout lets it (BD3-LM, 2503.09573, Fig. 2; SDAR and NBDiff,
2512.06776). Blocks are where the sampler has them (`lockstitch.sampling.layouts`).

Axes: B rows, P prompt columns (left-padded), G canvas positions, L = P + G, K columns of the pass (clean, noised), M places.
"""

from typing import Any

import torch


def block_of_column(real_BP: torch.Tensor, canvas: int, block: int, layout: str) -> torch.Tensor:
    """The block of each column of `[prompt | canvas]`, `(B, L)`: 0 where the canvas begins, negative before.

    Under `block_causal` blocks are counted from the prompt's first token, so block 0 may begin in the prompt.
    """
    width = real_BP.shape[1]
    lead_B = real_BP.sum(1) % block
    if layout != "block_causal" or block >= canvas:
        lead_B = torch.zeros_like(lead_B)
    column_L = torch.arange(width + canvas, device=real_BP.device)
    return (column_L - (width - lead_B)[:, None]).div(block, rounding_mode="floor")


def packed_pass(
    prompt_BP: torch.Tensor,
    real_BP: torch.Tensor,
    clean_BG: torch.Tensor,
    noised_BG: torch.Tensor,
    block: int,
    layout: str,
    dtype: torch.dtype,
) -> tuple[dict[str, Any], torch.Tensor, int]:
    """Arguments of the pass; the block of each column of `[prompt | canvas]`; the first column that stands there noised too.

    The noised half holds the canvas, and the prompt's last columns as far as any row's first block reaches back.
    """
    width, canvas = prompt_BP.shape[1], clean_BG.shape[1]
    number_BL = block_of_column(real_BP, canvas, block, layout)
    low = width - int((number_BL[:, :width] >= 0).sum(1).max())
    real_BL = torch.cat([real_BP, torch.ones_like(clean_BG, dtype=torch.bool)], 1)
    position_BL = (real_BL.long().cumsum(1) - 1).clamp(min=0)

    column_L = torch.arange(width + canvas, device=prompt_BP.device)
    column_K = torch.cat([column_L, column_L[low:]])
    noised_K = torch.arange(len(column_K), device=prompt_BP.device) >= width + canvas
    number_BK, real_BK = number_BL[:, column_K], real_BL[:, column_K]
    query_BK1, key_B1K = number_BK[:, :, None], number_BK[:, None, :]
    clean_BKK = key_B1K <= query_BK1 if layout == "block_causal" else (column_K <= column_K[:, None])[None]
    own_BKK = (key_B1K == query_BK1) & noised_K
    seen_BKK = torch.where(noised_K[:, None], own_BKK | (key_B1K < query_BK1) & ~noised_K, clean_BKK & ~noised_K)
    # A column always sees itself: one that saw nothing (padding) would be NaN in low precision, and spread.
    itself_KK = torch.eye(len(column_K), dtype=torch.bool, device=prompt_BP.device)
    seen_BKK = seen_BKK & real_BK[:, None] | itself_KK
    mask_B1KK = torch.zeros(seen_BKK.shape, dtype=dtype, device=prompt_BP.device)
    mask_B1KK = mask_B1KK.masked_fill_(~seen_BKK, torch.finfo(dtype).min)[:, None]
    arguments = {
        "input_ids": torch.cat([prompt_BP, clean_BG, prompt_BP[:, low:], noised_BG], 1),
        "attention_mask": mask_B1KK,
        "position_ids": position_BL[:, column_K],
    }
    return arguments, number_BL, low


def packed_columns(
    row_M: torch.Tensor, column_M: torch.Tensor, number_BL: torch.Tensor, low: int, shifted: bool
) -> torch.Tensor:
    """Where the pass predicts the tokens of columns of `[prompt | canvas]`, `(M,)`.

    That is in the noised half, except where a shifted model predicts a block's first token from the clean one before.
    """
    asks_M = column_M - int(shifted)
    noised_M = number_BL[row_M, asks_M] == number_BL[row_M, column_M]
    return torch.where(noised_M, number_BL.shape[1] + asks_M - low, asks_M)
