"""One pass in which every block of a canvas is noised and sees the blocks before it clean.

Models that denoise block by block were trained, and are sampled, so that a block being denoised sees finished blocks. The
pass holds every canvas twice, clean and noised, at the same positions: a noised column sees its own noised block and
the clean blocks before it; a clean column sees what the layout lets it (BD3-LM, 2503.09573, Fig. 2; SDAR and NBDiff,
2512.06776). Blocks are where the sampler has them (`lockstitch.sampling.layouts`).

What stands before a row's first block sees nothing of the canvas, and comes first in the pass: rows of one prompt can
have it computed once (`Packed.prompts_apart`).

Axes: B rows, U of them with different prompts, P prompt columns (left-padded), G canvas positions, L = P + G, K columns of
the pass (prompt, clean half, noised half), M places.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lockstitch.sampling.families import Family


@dataclass(frozen=True)
class Packed:
    """A packed pass.

    Attributes:
        arguments: what the model is called with.
        number_BL: the block of each column of `[prompt | canvas]`.
        high: how many prompt columns the pass has before its halves: where the last of the rows' first blocks begins.
        low: the column of `[prompt | canvas]` that both halves begin with: where the first of them begins, at the latest.
    """

    arguments: dict[str, Any]
    number_BL: torch.Tensor
    high: int
    low: int

    def columns(self, row_M: torch.Tensor, column_M: torch.Tensor, shifted: bool) -> torch.Tensor:
        """Where the pass predicts the tokens of columns of `[prompt | canvas]`, `(M,)`.

        That is in the noised half, except where a shifted model predicts a block's first token from the clean one before.
        """
        asks_M = column_M - int(shifted)
        noised_M = self.number_BL[row_M, asks_M] == self.number_BL[row_M, column_M]
        return self.high + asks_M - self.low + noised_M * (self.number_BL.shape[1] - self.low)

    def next_columns(self, column_N: torch.Tensor) -> torch.Tensor:
        """Where the clean half, if it is causal, predicts the tokens of columns of `[prompt | canvas]`, `(N,)`."""
        asks_N = column_N - 1
        return torch.where(asks_N < self.low, asks_N, self.high + asks_N - self.low)

    def prompts_apart(
        self, prompt_BP: torch.Tensor, real_BP: torch.Tensor
    ) -> tuple[dict[str, Any], dict[str, Any], torch.Tensor] | None:
        """The pass in two, or None where no rows have a prompt in common.

        Returns the arguments of a pass over the prompt columns, once for each prompt; those of a pass over the two halves,
        which sees the keys of the first; and which of the prompts is each row's, `(B,)`.
        """
        shown_BP = 2 * prompt_BP + real_BP
        first_B = (shown_BP[:, None] == shown_BP).all(2).long().argmax(1)
        row_U, which_B = torch.unique(first_B, return_inverse=True)
        if self.high == 0 or len(row_U) == len(first_B):
            return None
        before, after, every = slice(self.high), slice(self.high, None), slice(None)
        return self._part(row_U, before, before), self._part(every, after, every), which_B

    def _part(self, rows: torch.Tensor | slice, columns: slice, keys: slice) -> dict[str, Any]:
        """The arguments for some columns of some rows; `keys` are the columns that they see."""
        ids_BK, mask_B1KK, position_BK = (
            self.arguments[name] for name in ("input_ids", "attention_mask", "position_ids")
        )
        return {
            "input_ids": ids_BK[rows, columns],
            "attention_mask": mask_B1KK[rows, :, columns, keys],
            "position_ids": position_BK[rows, columns],
        }


class Later(NamedTuple):
    """How much of what stands after it a column sees on the way from causal attention to a layout's.

    Each pair of columns is drawn anew for every pass, by a CPU generator: seen with probability `share` (the annealing of
    attention masks of DiffuLLaMA, 2410.17891, against which NBDiff, 2512.06776, sets the growth of blocks).
    """

    share: float
    generator: torch.Generator


def check_block_length(family: Family, block_length: int | None, canvas_length: int | None = None) -> None:
    """Raises `ValueError` for a block length that is missing, or that has no meaning for the family, and for a canvas longer
    than a block that ends within one, which the sampler would not take."""
    if family.layout == "full" and block_length is not None:
        raise ValueError(f"block_length={block_length}: {family.name} models attend fully, whatever the block")
    if family.layout != "full" and (block_length is None or block_length < 1):
        raise ValueError(f"block_length={block_length}: {family.name} models need the sampler's block length")
    if block_length and canvas_length and canvas_length > block_length and canvas_length % block_length:
        raise ValueError(
            f"canvas_length={canvas_length}: the sampler denoises whole blocks, so a canvas longer than "
            f"block_length={block_length} is a multiple of it"
        )


def block_of_column(
    real_BP: torch.Tensor, canvas: int, block: int | torch.Tensor, layout: str, alone: bool | None = None
) -> torch.Tensor:
    """The block of each column of `[prompt | canvas]`, `(B, L)`: 0 where the canvas begins, negative before.

    `block` is the length of all rows' blocks, or that of each row's, `(B,)` (mix-scale training, 2601.13599). Under
    `block_causal` blocks are counted from the prompt's first token, so block 0 may begin in the prompt, unless the canvas
    stands `alone`, a block of its own: by default one that is as long as a block, as in the sampler.
    """
    width = real_BP.shape[1]
    block_B = torch.as_tensor(block, device=real_BP.device).expand(len(real_BP))
    begins_B = block_B == canvas if alone is None else torch.full_like(block_B, alone, dtype=torch.bool)
    lead_B = (real_BP.sum(1) % block_B).masked_fill(begins_B, 0)
    if layout != "block_causal":
        lead_B = torch.zeros_like(lead_B)
    column_L = torch.arange(width + canvas, device=real_BP.device)
    return (column_L - (width - lead_B)[:, None]).div(block_B[:, None], rounding_mode="floor")


def packed_pass(
    prompt_BP: torch.Tensor,
    real_BP: torch.Tensor,
    clean_BG: torch.Tensor,
    noised_BG: torch.Tensor,
    block: int | torch.Tensor,
    family: Family,
    dtype: torch.dtype,
    alone: bool | None = None,
    later: Later | None = None,
) -> Packed:
    """The pass that denoises every block of `noised_BG` after the clean ones before it.

    Under `later` a column sees what the layout lets it see of the columns before it, and of those after it a random share.

    Where the first block reaches back into the prompt (`block_of_column`), the halves hold that end of it too. Rows whose
    first blocks begin in different columns have some columns in two places; each row sees them in one alone.
    """
    width, canvas = prompt_BP.shape[1], clean_BG.shape[1]
    number_BL = block_of_column(real_BP, canvas, block, family.layout, alone)
    begin_B = (number_BL[:, :width] < 0).sum(1)
    low, high = int(begin_B.min()), int(begin_B.max())
    if family.shifted:  # the token before the canvas predicts the first one
        low = min(low, width - 1)
    real_BL = torch.cat([real_BP, torch.ones_like(clean_BG, dtype=torch.bool)], 1)
    position_BL = (real_BL.long().cumsum(1) - 1).clamp(min=0)

    column_L = torch.arange(width + canvas, device=prompt_BP.device)
    column_K = torch.cat([column_L[:high], column_L[low:], column_L[low:]])
    part_K = torch.arange(3, device=prompt_BP.device).repeat_interleave(
        torch.tensor([high, width + canvas - low, width + canvas - low], device=prompt_BP.device)
    )
    number_BK = number_BL[:, column_K]
    query_BK1, key_B1K = number_BK[:, :, None], number_BK[:, None, :]
    clean_BKK = key_B1K <= query_BK1 if family.layout == "block_causal" else (column_K <= column_K[:, None])[None]
    own_BKK = key_B1K == query_BK1
    if family.layout == "causal":
        own_BKK = own_BKK & (column_K <= column_K[:, None])
    noised_BKK = torch.where(part_K < 2, key_B1K < query_BK1, own_BKK)
    read_BK = real_BL[:, column_K] & ((part_K == 0) == (number_BK < 0))
    seen_BKK = torch.where(part_K[:, None] < 2, clean_BKK, noised_BKK)
    seen_BKK = seen_BKK & read_BK[:, None] & (part_K <= part_K[:, None])
    if later is not None:
        drawn_KK = torch.rand(len(column_K), len(column_K), generator=later.generator) < later.share
        seen_BKK = seen_BKK & ((column_K <= column_K[:, None]) | drawn_KK.to(seen_BKK.device))
    # A column that saw nothing (padding) would be NaN in low precision, and spread: it sees itself.
    itself_KK = torch.eye(len(column_K), dtype=torch.bool, device=prompt_BP.device)
    seen_BKK = seen_BKK | itself_KK & ~seen_BKK.any(2, keepdim=True)
    mask_B1KK = torch.zeros(seen_BKK.shape, dtype=dtype, device=prompt_BP.device)
    mask_B1KK = mask_B1KK.masked_fill_(~seen_BKK, torch.finfo(dtype).min)[:, None]
    arguments = {
        "input_ids": torch.cat([prompt_BP[:, :high], prompt_BP[:, low:], clean_BG, prompt_BP[:, low:], noised_BG], 1),
        "attention_mask": mask_B1KK,
        "position_ids": position_BL[:, column_K],
    }
    return Packed(arguments, number_BL, high, low)
