"""Reading a canvas: the forward passes of a batch, with the keys and values that are kept between them.

| cache | a pass recomputes | full attention | block- and context-causal |
|---|---|---|---|
| none | everything it may see | exact | exact |
| prefix | the block and what follows (first step of a block: everything) | approximate | - |
| dual | the block (first step of a block: everything) | approximate | - |
| interval | the window of `deferred` (first step of a block, and every so many commits: everything) | approximate | - |
| block | the block, and once what was written since the last one | - | exact |

Keys are kept in place, by column: a pass over some columns replaces theirs and sees the others as they were left. So a
finished block is written by the same pass that opens the next one, and costs none of its own. Follows Fast-dLLM
(2505.22618) for prefix and dual, and DCD (2601.02076) for interval: from two columns before the window to two behind it,
this step's and the last one's together, so that what was just committed is read once more.

What to read is worked out in host memory, where the canvases stand, and sent to the device; what does not change from one
step of a block to the next (`_Frame`) is sent once.

Rows that are the same in all that a pass reads (tokens, padding, kept keys) go through it as one: trajectories of one
prompt start from the same canvas, and many stay equal for long. Under `block`, trajectories of one prompt whose canvases
differ share one pass over the prompt.

Axes: R rows of the store (one per trajectory, a second one for guidance), B rows of the batch, A active ones, U of them
that differ, G canvas positions, L columns (padding, prompt, canvas), Q columns of a pass, K columns it sees, M places that
are asked for (a row and a position), P of them in rows that differ, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lockstitch.sampling.canvases import Canvases, Place
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.keys import Store
from lockstitch.sampling.layouts import block_numbers, visible
from lockstitch.sampling.tokens import guided

AROUND = 2  # columns on either side of a window that `interval` computes along
REFRESH = 32  # commits after which `interval` computes everything again


@dataclass(frozen=True)
class _Frame:
    """What passes over the same rows and columns have in common.

    Attributes:
        rows_U: the rows of the store, on the model's device.
        arguments: mask and positions, where the model must be told, there too.
        real: tokens that a pass computes of each row, padding left out.
    """

    rows_U: torch.Tensor
    arguments: dict[str, torch.Tensor]
    real: list[int]


class Passes:
    """Answers with the logits of canvas positions, and keeps the bill.

    Attributes:
        nfe: forward passes that each trajectory took part in.
        tokens: tokens that they processed, padding left out. What trajectories share is on the bill of the first.
        waits: passes that had to wait for one another.
    """

    def __init__(self, denoiser: Denoiser, canvases: Canvases, config: SamplerConfig) -> None:
        self.denoiser, self.canvases, self.family = denoiser, canvases, denoiser.family
        self.cache, self.scale, self.block = config.cache, config.cfg_scale, config.block
        self.device = denoiser.device
        B, L = canvases.ids_BL.shape
        self.copies = 2 if self.scale else 1
        self.nfe, self.tokens, self.waits = [0] * B, [0] * B, [0] * B
        # Rows of different prompts are never the same, but for guidance, which blanks the prompts.
        self.may_share = self.scale > 0 or len(set(canvases.prompts)) < B
        self.weight_K = torch.randint(-(2**62), 2**62, (2 * L,), generator=torch.Generator().manual_seed(0))
        self.store: Store | None = None
        if self.cache != "none":
            spare = int(self.cache == "interval")
            self.store = Store(denoiser.model.config.num_hidden_layers, self.copies * B, L + spare)
        # Where kept keys may be stale: rows of the store with one number went through the same passes.
        self.history = [0] * (self.copies * B)
        self.turn = 0
        self.framed: tuple[Any, Any] = (None, None)  # a frame, and of which rows and columns it is
        self.visible: dict[tuple[int, int, int] | None, torch.Tensor] = {}  # masks of this block, padding aside
        # Under `interval`: each row's masks when all of it was last computed, and its last window, in canvas positions.
        self.refresh = config.refresh or REFRESH
        self.masks_B, self.window_B2 = torch.zeros(B, dtype=torch.long), torch.zeros(B, 2, dtype=torch.long)
        # Under `block`: columns of each row that hold their final keys.
        self.written = [0] * B
        self.edges: list[int] = []  # columns where the blocks so far begin, the first one's aside
        self.base, self.start, self.stop = canvases.width, 0, 0
        self.opened = False

    def begin_stage(self, lead: int) -> None:
        """Prepares for a walk over blocks, of which the first begins `lead` columns before the canvas."""
        self.base = self.canvases.width - lead
        self.open_block((0,), 0)
        # What the last stage wrote on the canvas is about to change.
        self.written = [min(columns, self.base) for columns in self.written]
        if self.cache == "block" and self.base and not any(self.written):
            self._share_prompts()

    def open_block(self, starts: Sequence[int], stop: int) -> None:
        """Moves on to the last of the blocks that begin at canvas positions `starts`; it ends before `stop`."""
        self.start, self.stop, self.opened = starts[-1], stop, False
        self.framed, self.visible = (None, None), {}
        self.edges = [self.canvases.width + start for start in starts[1:]]

    def logits(self, rows_A: torch.Tensor, asked: Place) -> torch.Tensor:
        """Logits `(M, V)` of places that are asked for, by one forward pass of each of the given rows.

        A place is a row, counted in `rows_A`, and a canvas position.
        """
        self.bill(rows_A.tolist())
        read = self._by_interval if self.cache == "interval" else self._answer
        logits_MV = read(rows_A, asked)
        self.opened = True
        return logits_MV

    def foreseen(self, rows_A: torch.Tensor, canvas_AG: torch.Tensor, asked: Place) -> torch.Tensor:
        """The same of canvases that rows have or may come to have in the block that is open, several for a row if need be.

        Each is a row of the pass, which keeps nothing: the block is computed anew by every pass.
        """
        assert self.opened
        assert self.cache != "interval"
        self.bill(rows_A.tolist())
        return self._answer(rows_A, asked, canvas_AG=canvas_AG)

    def bill(self, rows: Sequence[int]) -> None:
        """Puts a pass on the bill of its rows; one that is in it several times waits for it once."""
        for row in rows:
            self.nfe[row] += self.copies
        for row in {*rows}:
            self.waits[row] += 1

    def _answer(
        self,
        rows_A: torch.Tensor,
        asked: Place,
        columns_AQ: torch.Tensor | None = None,
        canvas_AG: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits `(M, V)` by one pass over the columns that the cache says, or over each row's own."""
        row_M, position_M = asked
        ahead = self.canvases.width - int(self.family.shifted)  # columns before the one that answers for position 0
        if columns_AQ is not None:
            asked = row_M, position_M + ahead - columns_AQ[row_M, 0]
            return self._forward(rows_A, columns_AQ, self.canvases.ids_BL.shape[1], asked, canvas_AG)
        first, last, seen = self._span(rows_A.tolist(), position_M)
        return self._forward(rows_A, slice(first, last), seen, (row_M, position_M + (ahead - first)), canvas_AG)

    def _by_interval(self, rows_A: torch.Tensor, asked: Place) -> torch.Tensor:
        """Logits `(M, V)` by a pass over all columns for the rows that are due for it, another over windows for the rest."""
        (row_M, position_M), G, L = asked, self.canvases.masked_BG.shape[1], self.canvases.ids_BL.shape[1]
        masks_A = self.canvases.masked_BG[rows_A].sum(1)
        due_A = (
            self.masks_B[rows_A] - masks_A >= self.refresh
            if self.opened
            else torch.ones_like(rows_A, dtype=torch.bool)
        )
        self.masks_B[rows_A[due_A]] = masks_A[due_A]
        first_A = torch.full_like(rows_A, G).scatter_reduce_(0, row_M, position_M, "amin")
        last_A = torch.zeros_like(rows_A).scatter_reduce_(0, row_M, position_M + 1, "amax")
        before_A, behind_A = self.window_B2[rows_A].unbind(1)
        self.window_B2[rows_A] = torch.stack([first_A, last_A], dim=1)
        low_A = self.canvases.width - int(self.family.shifted) + first_A.minimum(before_A) - AROUND
        high_A = self.canvases.width - int(self.family.shifted) + last_A.maximum(behind_A) + AROUND
        low_A, high_A = low_A.clamp(min=0), high_A.clamp(max=L)
        if bool(due_A.all()):
            return self._answer(rows_A, asked)
        late_A = ~due_A
        column_AQ = low_A[late_A, None] + torch.arange(int((high_A - low_A)[late_A].max()), device=rows_A.device)
        column_AQ = column_AQ.masked_fill(column_AQ >= high_A[late_A, None], L)  # a column that nothing sees
        if bool(late_A.all()):
            return self._answer(rows_A, asked, column_AQ)
        number_A = torch.where(due_A, due_A.cumsum(0), late_A.cumsum(0)) - 1  # in its own half
        late_M = late_A[row_M]
        halves = [(number_A[row_M[one_M]], position_M[one_M]) for one_M in (late_M, ~late_M)]
        logits_LV = self._answer(rows_A[late_A], halves[0], column_AQ)
        logits_DV = self._answer(rows_A[due_A], halves[1])
        order_M = torch.where(late_M, late_M.cumsum(0), (~late_M).cumsum(0) + len(logits_LV)) - 1
        return torch.cat([logits_LV, logits_DV])[self._sent(order_M)]

    def _span(self, rows: list[int], position_M: torch.Tensor) -> tuple[int, int, int]:
        """Columns `first:last` that a pass recomputes, and how many it sees, to answer for canvas positions of the block."""
        width = self.canvases.width
        if self.family.layout == "full":
            end = self.canvases.ids_BL.shape[1]
            if min(self.canvases.ends) < end:
                end = max(self.canvases.ends[row] for row in rows)
            if self.cache in ("none", "interval") or not self.opened:
                return 0, end, end
            low = width + self.start - int(self.family.shifted)
            return (low, end, end) if self.cache == "prefix" else (low, width + self.stop, end)
        low, lowest, highest = self._low(), width + self.start, width + self.stop - 1
        if self.family.shifted:  # what answers for the block's first position lies before it
            lowest, highest = (width - 1 + end for end in torch.stack(position_M.aminmax()).tolist())
        # Before the block nothing sees it, so it need not be there to answer.
        high = width + self.stop if highest >= low else low
        if self.cache == "none":
            return 0, high, high
        first = min(*(self.written[row] for row in rows), low, lowest)
        for row in rows:
            self.written[row] = low
        return first, high, high

    def _low(self) -> int:
        """The column where the block begins; the first block holds the prompt's last tokens too."""
        return self.base if self.start == 0 else self.canvases.width + self.start

    def _forward(
        self,
        rows_A: torch.Tensor,
        columns: slice | torch.Tensor,
        seen: int,
        asked: Place,
        canvas_AG: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One pass, with its bill: logits `(M, V)` of what is asked for.

        Under guidance there are twice as many rows, the second half without the prompt.

        Args:
            rows_A: rows of the batch.
            columns: what is computed: a span, or each row's own columns `(A, Q)`, where `L` fills up.
            seen: columns that it sees.
            asked: rows, counted in `rows_A`, and columns, counted from the first that is computed.
            canvas_AG: what stands on the canvases, if it is not what they hold; then nothing is kept of the pass.
        """
        canvases, (row_M, column_M), B = self.canvases, asked, len(self.nfe)
        rows = rows_A.tolist()
        ids_AK, keeps = canvases.ids_BL[rows_A, :seen], canvas_AG is None
        if canvas_AG is not None:
            ids_AK[:, canvases.width :] = canvas_AG[:, : seen - canvases.width]
        if self.scale:
            prompt_AK = canvases.attention_BL[rows_A, :seen].bool()
            prompt_AK[:, canvases.width :] = False
            ids_AK = torch.cat([ids_AK, ids_AK.masked_fill(prompt_AK, self.denoiser.mask_id)])
            row_M, column_M = torch.cat([row_M, row_M + len(rows)]), column_M.repeat(2)
            rows = [*rows, *(row + B for row in rows)]
            columns = columns if isinstance(columns, slice) else columns.repeat(2, 1)
        own, which = self._distinct(rows, ids_AK, columns, keeps)
        shared = len(own) < len(rows)
        rows_U = [rows[a] for a in own]
        if shared:
            ids_AK, row_M = ids_AK[own], torch.tensor(which, device=row_M.device)[row_M]
            columns = columns if isinstance(columns, slice) else columns[own]
        frame = self._framed(rows_U, columns, seen)
        for row, real in zip(rows_U, frame.real, strict=True):
            self.tokens[row % B] += real
        if isinstance(columns, slice):
            ids_UQ = ids_AK if columns == slice(0, seen) else ids_AK[:, columns]
        else:
            ids_UQ = self._own(ids_AK, columns).masked_fill_(columns >= seen, self.denoiser.pad_id)
        arguments: dict[str, Any] = {"input_ids": self._sent(ids_UQ), **frame.arguments}
        if self.store is not None:
            on_device = columns if isinstance(columns, slice) else self._sent(columns)
            self.store.begin(frame.rows_U, on_device, seen, keeps)
            arguments["past_key_values"] = self.store
        place_P, back_M = torch.add(column_M, row_M, alpha=ids_UQ.shape[1]), None
        if shared:
            place_P, back_M = torch.unique(place_P, return_inverse=True)
        logits_MV = self.denoiser.raw_logits(self.denoiser.model, arguments, None, self._sent(place_P))
        if self.store is not None and keeps and shared:
            self.store.copy(frame.rows_U[which], self._sent(torch.tensor(rows)))
        if back_M is not None:
            logits_MV = logits_MV[self._sent(back_M)]
        if self.scale:
            conditional_MV, unconditional_MV = logits_MV.chunk(2)
            return guided(conditional_MV, unconditional_MV, self.scale)
        return logits_MV

    def _sent(self, values: torch.Tensor) -> torch.Tensor:
        """The same on the model's device."""
        return values if values.device == self.device else values.to(self.device, non_blocking=True)

    def _framed(self, rows: list[int], columns: slice | torch.Tensor, seen: int) -> _Frame:
        """The frame of a pass: that of the last one, if its rows and columns are the same."""
        canvases, B = self.canvases, len(self.nfe)
        key = (rows, columns, seen, canvases.shape) if isinstance(columns, slice) else None
        if key is not None and key == self.framed[0]:
            known: _Frame = self.framed[1]
            return known
        rows_U, billed = torch.tensor(rows, device=canvases.device), [row % B for row in rows]
        billed_U = rows_U % B if self.scale else rows_U
        hidden = any(canvases.begins[row] or canvases.ends[row] < seen for row in billed)
        arguments: dict[str, torch.Tensor] = {}
        attention_UK = canvases.attention_BL[billed_U, :seen] if hidden else None
        if hidden or not isinstance(columns, slice) or columns.start:
            position_UQ = self._own(canvases.position_BL[billed_U, :seen], columns)
            arguments["position_ids"] = self._sent(position_UQ)
        if self.family.layout != "full" or (hidden and self.store is not None):
            arguments["attention_mask"] = self._mask(attention_UK, columns, seen)
        elif attention_UK is not None:
            assert self.denoiser.calling.honours_mask, "rows of one length are batched together"
            arguments["attention_mask"] = self._sent(attention_UK)
        if attention_UK is not None:
            real = self._own(attention_UK, columns).sum(1).tolist()
        elif isinstance(columns, slice):
            real = [columns.stop - columns.start] * len(rows)
        else:
            real = (columns < seen).sum(1).tolist()
        frame = _Frame(self._sent(rows_U), arguments, real)
        self.framed = key, frame
        return frame

    def _own(self, values_UK: torch.Tensor, columns: slice | torch.Tensor) -> torch.Tensor:
        """What stands in a span, or in each row's own columns `(U, Q)`: 0 in those that fill up."""
        if isinstance(columns, slice):
            return values_UK[:, columns]
        seen = values_UK.shape[1]
        return values_UK.gather(1, columns.clamp(max=seen - 1)).masked_fill_(columns >= seen, 0)

    def _distinct(
        self, rows: list[int], ids_AK: torch.Tensor, columns: slice | torch.Tensor, keeps: bool
    ) -> tuple[list[int], list[int]]:
        """Which rows go through a pass: the first of each kind, in rising order, and the kind of each row.

        Rows of a kind show the pass the same tokens, padding and columns and, unless it computes all keys anew, the same
        keys.
        """
        each, canvases = list(range(len(rows))), self.canvases
        if not self.may_share:
            return each, each
        shown_AK = ids_AK
        if canvases.ragged:
            billed = [row % len(self.nfe) for row in rows]
            shown_AK = 2 * ids_AK + canvases.attention_BL[billed, : ids_AK.shape[1]]
        if not isinstance(columns, slice):
            shown_AK = torch.cat([shown_AK, columns], dim=1)
        whole = columns == slice(0, ids_AK.shape[1])
        stale = self.cache in ("prefix", "dual", "interval") and not whole
        hash_A = (shown_AK * self.weight_K[: shown_AK.shape[1]]).sum(1).tolist()
        first_of: dict[tuple[int, int], int] = {}
        seen_A = zip(hash_A, [self.history[row] if stale else 0 for row in rows], strict=True)
        first_A = [first_of.setdefault(key, a) for a, key in enumerate(seen_A)]
        if first_A != each and not torch.equal(shown_AK, shown_AK[first_A]):
            first_A = (
                each  # different rows of one hash: they will hardly ever be, but must not be taken for one another
            )
        if keeps:
            self.turn += 1
            for row, first in zip(rows, first_A, strict=True):
                self.history[row] = self.turn * len(self.history) + rows[first]
        own = [a for a in each if first_A[a] == a]
        number = {a: u for u, a in enumerate(own)}
        return own, [number[first] for first in first_A]

    def _mask(self, attention_UK: torch.Tensor | None, columns: slice | torch.Tensor, seen: int) -> torch.Tensor:
        """An additive mask, `(U or 1, 1, Q, K)`, in the model's own type: eager attention misreads a bool one."""
        # Rows have columns of their own under the full layout alone, where every column sees all.
        key = (columns.start, columns.stop, seen) if isinstance(columns, slice) else None
        if key is None or key not in self.visible:
            column_K = torch.arange(seen)
            query_Q = column_K[columns] if isinstance(columns, slice) else columns[0]
            number_L = block_numbers(self.canvases.ids_BL.shape[1], self.base, self.edges, self.block)
            visible_QK = visible(self.family.layout, query_Q, column_K, number_L, self._low())
            dtype = self.denoiser.model.dtype
            mask_QK = torch.zeros(visible_QK.shape, dtype=dtype).masked_fill_(~visible_QK, torch.finfo(dtype).min)
            self.visible[key] = self._sent(mask_QK)[None, None]
        mask = self.visible[key]
        if attention_UK is None:
            return mask
        return mask.masked_fill(self._sent(attention_UK == 0)[:, None, None], torch.finfo(mask.dtype).min)

    def _share_prompts(self) -> None:
        """One pass over the prompts that rows with different canvases have in common, up to the first block.

        Rows of the same canvas share the pass that opens their first block, which reads the prompts as well.
        """
        prompts = self.canvases.prompts
        first_of: dict[tuple[int, ...], int] = {}
        source_B = [first_of.setdefault(ids, b) for b, ids in enumerate(prompts)]
        if len(first_of) == len({*zip(prompts, map(tuple, self.canvases.canvas_BG.tolist()), strict=True)}):
            return
        firsts = list(first_of.values())
        each = torch.arange(len(firsts))
        self._forward(
            torch.tensor(firsts), slice(0, self.base), self.base, (each, torch.full_like(each, self.base - 1))
        )
        self.waits = [waits + 1 for waits in self.waits]
        for row in firsts:
            self.nfe[row] += self.copies
        source = torch.tensor(source_B, device=self.device)
        target = torch.arange(len(source), device=self.device)
        assert self.store is not None
        for copy in range(self.copies):
            self.store.copy(source + copy * len(source), target + copy * len(source))
        self.written = [self.base] * len(self.written)
