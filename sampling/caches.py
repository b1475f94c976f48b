"""Reading a canvas: the forward passes of a batch, with the keys and values that are kept between them.

| cache | a pass recomputes | full attention | block- and context-causal |
|---|---|---|---|
| none | everything it may see | exact | exact |
| prefix | the block and what follows (first step of a block: everything) | approximate | - |
| dual | the block (first step of a block: everything) | approximate | - |
| block | the block, and once what was written since the last one | - | exact |

Keys are kept in place, by column: a pass over some columns replaces theirs and sees the others as they were left. So a
finished block is written by the same pass that opens the next one, and costs none of its own. Under `block`, trajectories
of one prompt share one pass over it. Follows Fast-dLLM (2505.22618) for prefix and dual.

Axes: R rows of the store (one per trajectory, a second one for guidance), B rows of the batch, A active ones, L columns
(padding, prompt, canvas), Q columns of a pass, K columns it sees, C columns whose logits are asked for, V vocabulary.
"""

from typing import Any

import torch
from lockstitch.sampling.canvases import Canvases
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.layouts import block_numbers, visible
from lockstitch.sampling.tokens import guided
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class _Columns(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, `(R, heads, L, d)`: a pass replaces columns `first:last` of its rows, sees `:seen`."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.size = (rows, columns)
        self.rows: torch.Tensor | None = None  # None is all of them
        self.first = self.last = self.seen = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        def room(like: torch.Tensor) -> torch.Tensor:
            return like.new_zeros(self.size[0], like.shape[1], self.size[1], like.shape[3])

        self.keys, self.values = room(key_states), room(value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows = slice(None) if self.rows is None else self.rows
        self.keys[rows, :, self.first : self.last] = key_states
        self.values[rows, :, self.first : self.last] = value_states
        return self.keys[rows, :, : self.seen], self.values[rows, :, : self.seen]

    def copy_rows(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Gives rows `target` what rows `source` hold."""
        self.keys[target], self.values[target] = self.keys[source], self.values[source]

    def get_seq_length(self) -> int:
        return self.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen, 0

    def get_max_length(self) -> int:
        return self.size[1]


class Passes:
    """Answers with the logits of canvas positions, and keeps the bill.

    Attributes:
        nfe_B: forward passes of each trajectory.
        tokens_B: tokens that those processed, padding left out. A pass that trajectories share is on the bill of the first.
        waits_B: passes that had to wait for one another.
    """

    def __init__(self, denoiser: Denoiser, canvases: Canvases, config: SamplerConfig) -> None:
        self.denoiser, self.canvases, self.family = denoiser, canvases, denoiser.family
        self.cache, self.scale, self.block = config.cache, config.cfg_scale, config.block
        B, L = canvases.ids_BL.shape
        self.nfe_B = torch.zeros(B, dtype=torch.long, device=canvases.device)
        self.tokens_B, self.waits_B = torch.zeros_like(self.nfe_B), torch.zeros_like(self.nfe_B)
        self.copies = 2 if self.scale else 1
        self.may_hide = not bool(canvases.attention_BL.all())
        self.store: Cache | None = None
        if self.cache != "none":
            layers = [_Columns(self.copies * B, L) for _ in range(denoiser.model.config.num_hidden_layers)]
            self.store = Cache(layers=layers)
        # Under `block`: columns of each row that hold their final keys.
        self.written_B = torch.zeros_like(self.nfe_B)
        self.number_L = torch.zeros(L, dtype=torch.long)
        self.start = self.stop = 0
        self.opened = False

    def begin_stage(self, edges: list[int], lead: int) -> None:
        """Prepares for a walk over blocks that begin at canvas positions `edges`, the first one `lead` columns earlier."""
        width = self.canvases.width
        self.base = width - lead
        columns = self.canvases.ids_BL.shape[1]
        edges = [width + edge for edge in edges[1:]]
        self.number_L = block_numbers(columns, self.base, edges, self.block).to(self.canvases.device)
        self.written_B.clamp_(max=self.base)  # what the last stage wrote on the canvas is about to change
        if self.cache == "block" and self.base and not bool(self.written_B.any()):
            self._share_prompts()

    def open_block(self, start: int, stop: int) -> None:
        """Moves on to canvas positions `start:stop`."""
        self.start, self.stop, self.opened = start, stop, False

    def logits(self, rows_A: torch.Tensor, positions_C: torch.Tensor) -> torch.Tensor:
        """Logits `(A, C, V)` of canvas positions, in rising order, by one forward pass over the given rows."""
        columns_C = self.canvases.width + positions_C - int(self.family.shifted)
        first, last, seen = self._span(rows_A, int(columns_C[0]), int(columns_C[-1]))
        logits = self._forward(rows_A, first, last, seen, columns_C - first)
        self.opened = True
        self.waits_B[rows_A] += 1
        self.nfe_B[rows_A] += self.copies
        self.tokens_B[rows_A] += self.copies * self.canvases.attention_BL[rows_A, first:last].sum(1)
        if not self.scale:
            return logits
        conditional, unconditional = logits.chunk(2)
        return guided(conditional, unconditional, self.scale)

    def _span(self, rows_A: torch.Tensor, lowest: int, highest: int) -> tuple[int, int, int]:
        """Columns `first:last` that a pass recomputes, and how many it sees, to answer in `lowest..highest`."""
        width = self.canvases.width
        if self.family.layout == "full":
            end = width + int(self.canvases.length_B[rows_A].max())
            if self.cache == "none" or not self.opened:
                return 0, end, end
            low = width + self.start - int(self.family.shifted)
            return (low, end, end) if self.cache == "prefix" else (low, width + self.stop, end)
        low = self._low()
        # Before the block nothing sees it, so it need not be there to answer.
        high = width + self.stop if highest >= low else low
        if self.cache == "none":
            return 0, high, high
        first = min(int(self.written_B[rows_A].min()), low, lowest)
        self.written_B[rows_A] = low
        return first, high, high

    def _low(self) -> int:
        """The column where the block begins; the first block holds the prompt's last tokens too."""
        return self.base if self.start == 0 else self.canvases.width + self.start

    def _forward(
        self, rows_A: torch.Tensor, first: int, last: int, seen: int, columns_C: torch.Tensor
    ) -> torch.Tensor:
        ids_AQ = self.canvases.ids_BL[rows_A, first:last]
        attention_AK = self.canvases.attention_BL[rows_A, :seen]
        if self.scale:
            prompt_AQ = attention_AK[:, first:last].bool()
            prompt_AQ[:, max(0, self.canvases.width - first) :] = False
            blank_AQ = ids_AQ.masked_fill(prompt_AQ, self.denoiser.mask_id)
            ids_AQ, attention_AK = torch.cat([ids_AQ, blank_AQ]), attention_AK.repeat(2, 1)
            rows_A = torch.cat([rows_A, rows_A + len(self.nfe_B)])
        arguments: dict[str, Any] = {"input_ids": ids_AQ}
        hidden = self.may_hide and not bool(attention_AK.all())
        if self.family.layout != "full" or (hidden and self.store is not None):
            arguments["attention_mask"] = self._mask(attention_AK, first, last, hidden)
        elif hidden:
            assert self.family.honours_mask, "rows of one length are batched together"
            arguments["attention_mask"] = attention_AK
        if hidden or first:
            arguments["position_ids"] = (attention_AK.cumsum(1) - 1).clamp(min=0)[:, first:last]
        if self.store is not None:
            for layer in self.store.layers:
                layer.rows = None if len(rows_A) == layer.size[0] else rows_A
                layer.first, layer.last, layer.seen = first, last, seen
            arguments["past_key_values"] = self.store
        return self.denoiser.raw_logits(self.denoiser.model, arguments, columns_C)

    def _mask(self, attention_AK: torch.Tensor, first: int, last: int, hidden: bool) -> torch.Tensor:
        """An additive mask, `(A or 1, 1, Q, K)`, in the model's own type: eager attention misreads a bool one."""
        column_K = torch.arange(attention_AK.shape[1], device=attention_AK.device)
        seen_QK = visible(self.family.layout, column_K[first:last], column_K, self.number_L, self._low())
        seen = seen_QK[None, None]
        if hidden:
            seen = seen & attention_AK.bool()[:, None, None]
        dtype = self.denoiser.model.dtype
        mask = torch.zeros(seen.shape, dtype=dtype, device=attention_AK.device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)

    def _share_prompts(self) -> None:
        """One pass over the prompts that several trajectories have in common, up to the first block."""
        B = len(self.nfe_B)
        first_of: dict[tuple[int, ...], int] = {}
        source_B = [first_of.setdefault(ids, b) for b, ids in enumerate(self.canvases.prompts)]
        if len(first_of) == B:
            return  # the pass that opens the first block reads the prompts as well
        firsts = torch.tensor(list(first_of.values()), device=self.canvases.device)
        self._forward(firsts, 0, self.base, self.base, torch.tensor([self.base - 1], device=self.canvases.device))
        self.waits_B += 1
        self.nfe_B[firsts] += self.copies
        self.tokens_B[firsts] += self.copies * self.canvases.attention_BL[firsts, : self.base].sum(1)
        source = torch.tensor(source_B, device=self.canvases.device)
        target = torch.arange(B, device=self.canvases.device)
        assert self.store is not None
        for copy in range(self.copies):
            for layer in self.store.layers:
                layer.copy_rows(source + copy * B, target + copy * B)
        self.written_B[:] = self.base
