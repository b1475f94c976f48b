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

Rows that are the same in all that a pass reads (tokens, padding, kept keys) go through it as one: trajectories of one
prompt start from the same canvas, and many stay equal for long. Under `block`, trajectories of one prompt whose canvases
differ share one pass over the prompt.

Axes: R rows of the store (one per trajectory, a second one for guidance), B rows of the batch, A active ones, U of them
that differ, G canvas positions, L columns (padding, prompt, canvas), Q columns of a pass, K columns it sees, C columns
whose logits are asked for, M places that are asked for (a row and a position), P of them in rows that differ, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lockstitch.sampling.canvases import Canvases
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.keys import Store
from lockstitch.sampling.layouts import block_numbers, visible
from lockstitch.sampling.tokens import guided

AROUND = 2  # columns on either side of a window that `interval` computes along
REFRESH = 32  # commits after which `interval` computes everything again


class Passes:
    """Answers with the logits of canvas positions, and keeps the bill.

    Attributes:
        nfe_B: forward passes that each trajectory took part in.
        tokens_B: tokens that they processed, padding left out. What trajectories share is on the bill of the first.
        waits_B: passes that had to wait for one another.
    """

    def __init__(self, denoiser: Denoiser, canvases: Canvases, config: SamplerConfig) -> None:
        self.denoiser, self.canvases, self.family = denoiser, canvases, denoiser.family
        self.cache, self.scale, self.block = config.cache, config.cfg_scale, config.block
        B, L = canvases.ids_BL.shape
        self.nfe_B = torch.zeros(B, dtype=torch.long, device=canvases.device)
        self.tokens_B, self.waits_B = torch.zeros_like(self.nfe_B), torch.zeros_like(self.nfe_B)
        self.copies = 2 if self.scale else 1
        # Rows of different prompts are never the same, but for guidance, which blanks the prompts.
        self.may_share = self.scale > 0 or len(set(canvases.prompts)) < B
        weight_K = torch.randint(-(2**62), 2**62, (2 * L,), generator=torch.Generator().manual_seed(0))
        self.weight_K = weight_K.to(canvases.device)
        self.store: Store | None = None
        if self.cache != "none":
            spare = int(self.cache == "interval")
            self.store = Store(denoiser.model.config.num_hidden_layers, self.copies * B, L + spare)
        # Where kept keys may be stale: rows of the store with one number went through the same passes.
        self.history_R = torch.zeros(self.copies * B, dtype=torch.long, device=canvases.device)
        self.turn = 0
        # Under `interval`: each row's masks when all of it was last computed, and its last window, in canvas positions.
        self.refresh = config.refresh or REFRESH
        self.masks_B, self.window_B2 = torch.zeros_like(self.nfe_B), torch.zeros_like(self.nfe_B)[:, None].repeat(1, 2)
        # Under `block`: columns of each row that hold their final keys.
        self.written_B = torch.zeros_like(self.nfe_B)
        self.number_L = torch.zeros(L, dtype=torch.long)
        self.base, self.start, self.stop = canvases.width, 0, 0
        self.opened = False

    def begin_stage(self, lead: int) -> None:
        """Prepares for a walk over blocks, of which the first begins `lead` columns before the canvas."""
        self.base = self.canvases.width - lead
        self.open_block((0,), 0)
        self.written_B.clamp_(max=self.base)  # what the last stage wrote on the canvas is about to change
        if self.cache == "block" and self.base and not bool(self.written_B.any()):
            self._share_prompts()

    def open_block(self, starts: Sequence[int], stop: int) -> None:
        """Moves on to the last of the blocks that begin at canvas positions `starts`; it ends before `stop`."""
        self.start, self.stop, self.opened = starts[-1], stop, False
        edges = [self.canvases.width + start for start in starts[1:]]
        self.number_L = block_numbers(self.canvases.ids_BL.shape[1], self.base, edges, self.block).to(
            self.canvases.device
        )

    def logits(self, rows_A: torch.Tensor, asked_AG: torch.Tensor) -> torch.Tensor:
        """Logits `(M, V)` of the canvas positions that are asked for, by one forward pass of each of the given rows."""
        self.waits_B[rows_A] += 1
        self.nfe_B[rows_A] += self.copies
        read = self._by_interval if self.cache == "interval" else self._answer
        logits_MV = read(rows_A, asked_AG)
        self.opened = True
        return logits_MV

    def foreseen(self, rows_A: torch.Tensor, canvas_AG: torch.Tensor, asked_AG: torch.Tensor) -> torch.Tensor:
        """The same of canvases that rows have or may come to have in the block that is open, several for a row if need be.

        Each is a row of the pass, which keeps nothing: the block is computed anew by every pass.
        """
        assert self.opened
        assert self.cache != "interval"
        self.waits_B[rows_A] += 1
        self.nfe_B.index_add_(0, rows_A, torch.full_like(rows_A, self.copies))
        return self._answer(rows_A, asked_AG, canvas_AG=canvas_AG)

    def _answer(
        self,
        rows_A: torch.Tensor,
        asked_AG: torch.Tensor,
        columns_AQ: torch.Tensor | None = None,
        canvas_AG: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits `(M, V)` by one pass over the columns that the cache says, or over each row's own."""
        row_M, position_M = asked_AG.nonzero(as_tuple=True)
        column_M = self.canvases.width + position_M - int(self.family.shifted)
        columns: slice | torch.Tensor
        if columns_AQ is None:
            first, last, seen = self._span(rows_A, int(column_M.min()), int(column_M.max()))
            columns, place_M, width = slice(first, last), column_M - first, last - first
        else:
            columns, place_M, width = columns_AQ, column_M - columns_AQ[row_M, 0], columns_AQ.shape[1]
            seen = self.canvases.ids_BL.shape[1]
        kept_Q = torch.zeros(width, dtype=torch.bool, device=rows_A.device)
        kept_Q[place_M] = True
        kept_C = kept_Q.nonzero()[:, 0]
        asked_AC = torch.zeros(len(rows_A), len(kept_C), dtype=torch.bool, device=rows_A.device)
        asked_AC[row_M, (kept_Q.cumsum(0) - 1)[place_M]] = True
        logits_PV, place_AC = self._forward(rows_A, columns, seen, kept_C, asked_AC, canvas_AG)
        if self.scale:
            conditional_AC, unconditional_AC = place_AC.chunk(2)
            return guided(logits_PV[conditional_AC[asked_AC]], logits_PV[unconditional_AC[asked_AC]], self.scale)
        place_M = place_AC[asked_AC]
        each_P = torch.arange(len(logits_PV), device=place_M.device)
        return logits_PV if torch.equal(place_M, each_P) else logits_PV[place_M]

    def _by_interval(self, rows_A: torch.Tensor, asked_AG: torch.Tensor) -> torch.Tensor:
        """Logits `(M, V)` by a pass over all columns for the rows that are due for it, another over windows for the rest."""
        G, L = asked_AG.shape[1], self.canvases.ids_BL.shape[1]
        masks_A = self.canvases.masked_BG[rows_A].sum(1)
        due_A = (
            self.masks_B[rows_A] - masks_A >= self.refresh
            if self.opened
            else torch.ones_like(rows_A, dtype=torch.bool)
        )
        self.masks_B[rows_A[due_A]] = masks_A[due_A]
        first_A, last_A = asked_AG.long().argmax(1), G - asked_AG.flip(1).long().argmax(1)
        before_A, behind_A = self.window_B2[rows_A].unbind(1)
        self.window_B2[rows_A] = torch.stack([first_A, last_A], dim=1)
        low_A = self.canvases.width - int(self.family.shifted) + first_A.minimum(before_A) - AROUND
        high_A = self.canvases.width - int(self.family.shifted) + last_A.maximum(behind_A) + AROUND
        low_A, high_A = low_A.clamp(min=0), high_A.clamp(max=L)
        if bool(due_A.all()):
            return self._answer(rows_A, asked_AG)
        late_A = ~due_A
        column_AQ = low_A[late_A, None] + torch.arange(int((high_A - low_A)[late_A].max()), device=rows_A.device)
        column_AQ = column_AQ.masked_fill(column_AQ >= high_A[late_A, None], L)  # a column that nothing sees
        logits_LV = self._answer(rows_A[late_A], asked_AG[late_A], column_AQ)
        if bool(late_A.all()):
            return logits_LV
        due_M = due_A[asked_AG.nonzero()[:, 0]]
        logits_MV = logits_LV.new_empty(len(due_M), logits_LV.shape[1])
        logits_MV[due_M], logits_MV[~due_M] = self._answer(rows_A[due_A], asked_AG[due_A]), logits_LV
        return logits_MV

    def _span(self, rows_A: torch.Tensor, lowest: int, highest: int) -> tuple[int, int, int]:
        """Columns `first:last` that a pass recomputes, and how many it sees, to answer in `lowest..highest`."""
        width = self.canvases.width
        if self.family.layout == "full":
            end = width + int(self.canvases.length_B[rows_A].max())
            if self.cache in ("none", "interval") or not self.opened:
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
        self,
        rows_A: torch.Tensor,
        columns: slice | torch.Tensor,
        seen: int,
        kept_C: torch.Tensor,
        asked_AC: torch.Tensor,
        canvas_AG: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One pass, with its bill: logits `(P, V)` of what rows that differ are asked for, and where those of each row
        are among them, `(A, C)`.

        Under guidance there are twice as many rows, the second half without the prompt.

        Args:
            rows_A: rows of the batch.
            columns: what is computed: a span, or each row's own columns `(A, Q)`, where `L` fills up.
            seen: columns that it sees.
            kept_C: which of the computed columns any row is asked for, counted from their first.
            asked_AC: those that each row is asked for.
            canvas_AG: what stands on the canvases, if it is not what they hold; then nothing is kept of the pass.
        """
        ids_AK, attention_AK = self.canvases.ids_BL[rows_A, :seen], self.canvases.attention_BL[rows_A, :seen]
        if canvas_AG is not None:
            ids_AK[:, self.canvases.width :] = canvas_AG[:, : seen - self.canvases.width]
        keeps = canvas_AG is None
        if self.scale:
            prompt_AK = attention_AK.bool()
            prompt_AK[:, self.canvases.width :] = False
            ids_AK = torch.cat([ids_AK, ids_AK.masked_fill(prompt_AK, self.denoiser.mask_id)])
            attention_AK = attention_AK.repeat(2, 1)
            rows_A = torch.cat([rows_A, rows_A + len(self.nfe_B)])
            columns = columns if isinstance(columns, slice) else columns.repeat(2, 1)
        shown_AK = 2 * ids_AK + attention_AK
        if not isinstance(columns, slice):
            shown_AK = torch.cat([shown_AK, columns], dim=1)
        own_U, which_A = self._distinct(rows_A, shown_AK, columns == slice(0, seen), keeps)
        rows_U, ids_UK, attention_UK = rows_A[own_U], ids_AK[own_U], attention_AK[own_U]
        position_UK = (attention_UK.cumsum(1) - 1).clamp(min=0)
        if isinstance(columns, slice):
            ids_UQ, real_UQ, position_UQ = (values_UK[:, columns] for values_UK in (ids_UK, attention_UK, position_UK))
        else:
            columns = columns[own_U]
            filler_UQ, inside_UQ = columns >= seen, columns.clamp(max=seen - 1)
            ids_UQ = ids_UK.gather(1, inside_UQ).masked_fill_(filler_UQ, self.denoiser.pad_id)
            real_UQ = attention_UK.gather(1, inside_UQ).masked_fill_(filler_UQ, 0)
            position_UQ = position_UK.gather(1, inside_UQ)
        self.tokens_B.index_add_(0, rows_U % len(self.nfe_B), real_UQ.sum(1))

        arguments: dict[str, Any] = {"input_ids": ids_UQ}
        hidden = self.canvases.ragged and not bool(attention_UK.all())
        if self.family.layout != "full" or (hidden and self.store is not None):
            arguments["attention_mask"] = self._mask(attention_UK, columns, hidden)
        elif hidden:
            assert self.denoiser.calling.honours_mask, "rows of one length are batched together"
            arguments["attention_mask"] = attention_UK
        if hidden or not isinstance(columns, slice) or columns.start:
            arguments["position_ids"] = position_UQ
        if self.store is not None:
            self.store.begin(rows_U, columns, seen, keeps)
            arguments["past_key_values"] = self.store
        asked_UC = torch.zeros(len(rows_U), len(kept_C), dtype=torch.long, device=rows_A.device)
        asked_UC = asked_UC.index_add_(0, which_A, asked_AC.long().repeat(self.copies, 1)).bool()
        logits_PV = self.denoiser.raw_logits(self.denoiser.model, arguments, kept_C, asked_UC)
        if self.store is not None and keeps and len(rows_U) < len(rows_A):
            self.store.copy(rows_U[which_A], rows_A)
        place_UC = asked_UC.flatten().cumsum(0).view_as(asked_UC) - 1
        return logits_PV, place_UC[which_A]

    def _distinct(
        self, rows_A: torch.Tensor, shown_AK: torch.Tensor, whole: bool, keeps: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which rows go through a pass: the first of each kind, `(U,)` in rising order, and the kind of each row, `(A,)`.

        Rows of a kind show the pass the same (`shown_AK`: tokens, padding, columns) and, unless it is `whole` and computes
        all keys anew, the same keys.
        """
        each_A = torch.arange(len(rows_A), device=rows_A.device)
        if not self.may_share:
            return each_A, each_A
        stale = self.cache in ("prefix", "dual", "interval") and not whole
        history_A = self.history_R[rows_A] if stale else torch.zeros_like(rows_A)
        hash_A = (shown_AK * self.weight_K[: shown_AK.shape[1]]).sum(1) ^ history_A
        first_A = (hash_A[:, None] == hash_A).long().argmax(1)
        if not torch.equal(shown_AK, shown_AK[first_A]) or not torch.equal(history_A, history_A[first_A]):
            first_A = (
                each_A  # different rows of one hash: they will hardly ever be, but must not be taken for one another
            )
        if keeps:
            self.turn += 1
            self.history_R[rows_A] = self.turn * len(self.history_R) + rows_A[first_A]
        own_A = first_A == each_A
        return each_A[own_A], (own_A.cumsum(0) - 1)[first_A]

    def _mask(self, attention_UK: torch.Tensor, columns: slice | torch.Tensor, hidden: bool) -> torch.Tensor:
        """An additive mask, `(U or 1, 1, Q, K)`, in the model's own type: eager attention misreads a bool one."""
        column_K = torch.arange(attention_UK.shape[1], device=attention_UK.device)
        # Rows have columns of their own under the full layout alone, where every column sees all.
        query_Q = column_K[columns] if isinstance(columns, slice) else columns[0]
        seen = visible(self.family.layout, query_Q, column_K, self.number_L, self._low())[None, None]
        if hidden:
            seen = seen & attention_UK.bool()[:, None, None]
        dtype = self.denoiser.model.dtype
        mask = torch.zeros(seen.shape, dtype=dtype, device=attention_UK.device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)

    def _share_prompts(self) -> None:
        """One pass over the prompts that rows with different canvases have in common, up to the first block.

        Rows of the same canvas share the pass that opens their first block, which reads the prompts as well.
        """
        prompts = self.canvases.prompts
        first_of: dict[tuple[int, ...], int] = {}
        source_B = [first_of.setdefault(ids, b) for b, ids in enumerate(prompts)]
        if len(first_of) == len({*zip(prompts, map(tuple, self.canvases.canvas_BG.tolist()), strict=True)}):
            return
        firsts = torch.tensor(list(first_of.values()), device=self.canvases.device)
        last_1 = torch.tensor([self.base - 1], device=self.canvases.device)
        asked_A1 = torch.ones(len(firsts), 1, dtype=torch.bool, device=self.canvases.device)
        self._forward(firsts, slice(0, self.base), self.base, last_1, asked_A1)
        self.waits_B += 1
        self.nfe_B[firsts] += self.copies
        source = torch.tensor(source_B, device=self.canvases.device)
        target = torch.arange(len(source), device=self.canvases.device)
        assert self.store is not None
        for copy in range(self.copies):
            self.store.copy(source + copy * len(source), target + copy * len(source))
        self.written_B[:] = self.base
