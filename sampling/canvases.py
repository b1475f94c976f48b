"""The state of a batch: tokens, what is masked, and the trace that becomes the trajectories.

All of it stands in host memory, where what to do next is decided: the model's device is sent what a pass reads, and gives
back what was drawn.

Rows are left-padded, so that the canvas stands in the same columns everywhere.

Axes: B rows, A of them, G canvas positions, L columns (padding, prompt, canvas), M places (a row and a position), N bans.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.lengths import first_eos
from lockstitch.sampling.tokens import Drawn
from lockstitch.sampling.trajectory import Edit, Ledger, Trajectory

Canvas = Sequence[int | None]
Bans = Sequence[tuple[int, int]]
Place = tuple[torch.Tensor, torch.Tensor]  # rows and positions


def places(marked_AL: torch.Tensor) -> Place:
    """Where a bool tensor is True, row by row."""
    row_M, position_M = marked_AL.nonzero().unbind(1)
    return row_M, position_M


@dataclass(frozen=True)
class Row:
    """One trajectory to be drawn: index and tokens of its prompt, the seed of its noise, its canvas and bans."""

    prompt: int
    prompt_ids: list[int]
    seed: int
    canvas: Canvas
    bans: Bans


@dataclass(frozen=True)
class Block:
    """Canvas positions `start:stop`, the `number`-th block of the run, with its masks at the outset and their schedule.

    `limit` is how far it may be extended; `origin` is where its sub-blocks are counted from; the schedule commits
    `planned_B` in `steps_B` steps, of `steps` for a block of `length` masks.
    """

    start: int
    stop: int
    limit: int
    origin: int
    number: int
    initial_B: torch.Tensor
    planned_B: torch.Tensor
    steps: int
    length: int

    @cached_property
    def steps_B(self) -> torch.Tensor:
        return (self.planned_B * self.steps + self.length - 1) // self.length


class Trace(NamedTuple):
    """The trace so far, each field `(B, G)` and as in `Trajectory`; `fork_BG` is where a fork stands."""

    commit_step_BG: Any
    confidence_BG: Any
    entropy_BG: Any
    block_BG: Any
    fork_BG: Any


_BLANK = Trace(-1, 0, 0, -1, False)  # where nothing is committed


class _Commit(NamedTuple):
    """What a step committed at M places: a line of the trace that is not written down yet."""

    at: Place
    step_M: torch.Tensor
    drawn: Drawn
    block: int | torch.Tensor
    fork_M: torch.Tensor | None


@dataclass(frozen=True)
class Look:
    """What a denoising step left: the canvases that it worked on, as copies.

    Attributes:
        rows: which trajectories these are, as `sample` numbers what it returns.
        step_A: their denoising steps so far; 0 before the first one.
        length_A: positions of their canvases, which is less than `G` where those may still grow.
        canvas_AG: tokens.
        masked_AG: where there is none yet.
        commit_step_AG, confidence_AG: the trace so far, as in `Trajectory`.
        fork_AG: where a fork was committed.
    """

    rows: Sequence[int]
    step_A: torch.Tensor
    length_A: torch.Tensor
    canvas_AG: torch.Tensor
    masked_AG: torch.Tensor
    commit_step_AG: torch.Tensor
    confidence_AG: torch.Tensor
    fork_AG: torch.Tensor


class Canvases:
    """The canvases of a batch, all tensors `(B, ...)` in host memory.

    Attributes:
        device: the host.
        width: columns before the canvas.
        ids_BL, attention_BL: tokens, and 1 where a column is neither padding nor beyond its row's canvas.
        canvas_BG: a view of the canvas columns of `ids_BL`.
        masked_BG: what is still to be committed.
        length_B: positions of each row's canvas.
        position_BL: where columns are, counted from each row's first real one.
        begins, ends: each row's first real column and the one after its last.
        ragged: whether there is padding, or rows' canvases differ in length.
        shape: another number whenever the length of a canvas has changed.
        running_B: rows that are not finished.
        step_B: denoising steps so far.
        edits: as in `Trajectory`.
        forks_B: how many forks there were, as far as the `trace` has been asked for.
    """

    def __init__(self, denoiser: Denoiser, rows: list[Row], length: int, room: int, kept: int | None = None) -> None:
        """Canvases of `length` positions, with room to grow to `room`; completions are cut off after `kept` of them."""
        self.kept = kept or room
        self.device, B = torch.device("cpu"), len(rows)
        self.mask_id = denoiser.mask_id
        self.prompts = [tuple(row.prompt_ids) for row in rows]
        self.width = max(len(ids) for ids in self.prompts)
        ids_BL = torch.full((B, self.width + room), denoiser.pad_id, device=self.device)
        attention_BL = torch.ones_like(ids_BL)
        attention_BL[:, self.width + length :] = 0
        for b, row in enumerate(rows):
            pad = self.width - len(row.prompt_ids)
            attention_BL[b, :pad] = 0
            ids_BL[b, pad : self.width] = torch.tensor(row.prompt_ids, device=self.device)
        canvas = [[self.mask_id if token is None else token for token in row.canvas] for row in rows]
        ids_BL[:, self.width : self.width + length] = torch.tensor(canvas, device=self.device)
        self.ids_BL, self.attention_BL, self.canvas_BG = ids_BL, attention_BL, ids_BL[:, self.width :]
        self.length_B = torch.full((B,), length, device=self.device)
        self.shape = -1
        self._measure()
        pinned = [[token is not None for token in row.canvas] for row in rows]
        self.pinned_BG = torch.zeros(B, room, dtype=torch.bool, device=self.device)
        self.pinned_BG[:, :length] = torch.tensor(pinned, device=self.device)
        self.masked_BG = ~self.pinned_BG & self.attention_BL[:, self.width :].bool()
        self._trace = Trace(
            torch.where(self.pinned_BG, 0, -1),
            self.pinned_BG.float(),
            torch.zeros(B, room, device=self.device),
            torch.full((B, room), -1, device=self.device),
            torch.zeros(B, room, dtype=torch.bool, device=self.device),
        )
        self._unwritten: list[_Commit] = []
        self.forks_B = torch.zeros(B, dtype=torch.long, device=self.device)
        self.edits: list[list[Edit]] = [[] for _ in rows]
        pairs = [(b, position, token) for b, row in enumerate(rows) for position, token in row.bans]
        self.bans_N3 = torch.tensor(pairs, dtype=torch.long, device=self.device).view(-1, 3)
        self.seeds_B = torch.tensor([row.seed for row in rows], device=self.device)
        # Without the mask token, so that what is masked holds no end.
        self.eos_ids = torch.tensor([i for i in denoiser.eos_ids if i != self.mask_id], device=self.device).long()
        self.running_B = torch.ones(B, dtype=torch.bool, device=self.device)
        self.step_B = torch.zeros(B, dtype=torch.long, device=self.device)
        self.one_B = torch.ones_like(self.step_B)
        self.seconds = [0.0] * B

    @property
    def trace(self) -> Trace:
        """The trace so far. What steps committed is written down here, so that a step that nobody watches need not."""
        if self._unwritten:
            lines, self._unwritten = self._unwritten, []
            row_M = torch.cat([line.at[0] for line in lines])
            at, trace = (row_M, torch.cat([line.at[1] for line in lines])), self._trace
            trace.commit_step_BG[at] = torch.cat([line.step_M for line in lines])
            trace.confidence_BG[at] = torch.cat([line.drawn.confidence for line in lines])
            trace.entropy_BG[at] = torch.cat([line.drawn.entropy for line in lines])
            trace.block_BG[at] = torch.cat([torch.as_tensor(line.block).expand(len(line.step_M)) for line in lines])
            if forks := [line.fork_M for line in lines if line.fork_M is not None]:  # of all steps, or of none
                fork_M = torch.cat(forks)
                trace.fork_BG[at] = fork_M
                self.forks_B.index_add_(0, row_M, fork_M.long())
        return self._trace

    def ban(self, logits_MV: torch.Tensor, rows_A: torch.Tensor, asked: Place) -> None:
        """Sets the logits of what must not be committed at places (rows of `rows_A`, positions)."""
        if not len(self.bans_N3):
            return
        row_N, position_N, token_N = self.bans_N3.unbind(1)
        place_M, ban_M = ((rows_A[asked[0]][:, None] == row_N) & (asked[1][:, None] == position_N)).nonzero(
            as_tuple=True
        )
        logits_MV[place_M.to(logits_MV.device), token_N[ban_M].to(logits_MV.device)] = -torch.inf

    def before_end_BG(self) -> torch.Tensor:
        """Positions up to each row's first EOS (which may be given), all where there is none."""
        end_B = first_eos(self.canvas_BG, self.masked_BG, self.eos_ids)
        return torch.arange(self.masked_BG.shape[1], device=self.device) < end_B[:, None]

    def stop_finished(self) -> None:
        """Ends the rows in which everything before the first EOS is committed."""
        self.running_B &= ~self.finished(self.canvas_BG, self.masked_BG)

    def finished(self, canvas_AG: torch.Tensor, masked_AG: torch.Tensor) -> torch.Tensor:
        """Whether everything before the first EOS is committed on canvases as these, bool `(A,)`."""
        eos_AG = torch.isin(canvas_AG, self.eos_ids)
        first_A1 = (eos_AG | masked_AG).long().argmax(1, keepdim=True)  # of what is open or ends the row
        return eos_AG.gather(1, first_A1)[:, 0]

    def look(self, rows_A: torch.Tensor, numbers: Sequence[int]) -> Look:
        """Some rows as they are now, under the numbers that the rows of the batch have elsewhere."""
        trace = self.trace
        held = (self.step_B, self.length_B, self.canvas_BG, self.masked_BG, trace.commit_step_BG, trace.confidence_BG,
                trace.fork_BG)  # fmt: skip
        return Look([numbers[row] for row in rows_A.tolist()], *(values[rows_A] for values in held))

    def begin_step(self, rows_A: torch.Tensor) -> None:
        """Counts a denoising step of some rows."""
        self.step_B.index_add_(0, rows_A, self.one_B[: len(rows_A)])

    def commit(self, at: Place, drawn: Drawn, block: int | torch.Tensor, fork_M: torch.Tensor | None = None) -> None:
        """Writes M candidates at places (rows, positions), at the rows' current step.

        `block` is the number of all of them, or one for each; `fork_M` says which are forks.
        """
        self.canvas_BG[at] = drawn.token
        self.masked_BG[at] = False
        self._unwritten.append(_Commit(at, self.step_B[at[0]], drawn, block, fork_M))

    def spend(self, rows_A: torch.Tensor, began: float) -> None:
        """Shares the time since a moment of `perf_counter` out among rows."""
        share = (time.perf_counter() - began) / len(rows_A)
        for row in rows_A.tolist():
            self.seconds[row] += share

    def take_back(self, at: Place, steps_M: torch.Tensor) -> None:
        """Reopens committed places at the given steps, and notes in the trace what stood there."""
        trace = self.trace
        noted = zip(
            at[0].tolist(),
            steps_M.tolist(),
            at[1].tolist(),
            self.canvas_BG[at].tolist(),
            trace.commit_step_BG[at].tolist(),
            strict=True,
        )
        for b, step, position, token, since in noted:
            self.edits[b].append(Edit(step, position, token, since))
        self.canvas_BG[at] = self.mask_id
        self.masked_BG[at] = True
        for values_BG, blank in zip(trace, _BLANK, strict=True):
            values_BG[at] = blank

    def grow(self, row: int, position: int, count: int) -> None:
        """Makes room for `count` more masks at `position` of a row, moving on what stands from there.

        The trace moves along, so that it speaks of the positions of the final canvas.
        """
        length = int(self.length_B[row])
        held = (self.canvas_BG, self.masked_BG, *self.trace)
        for values_BG, blank in zip(held, (self.mask_id, True, *_BLANK), strict=True):
            values_BG[row, position + count : length + count] = values_BG[row, position:length].clone()
            values_BG[row, position : position + count] = blank
        self.length_B[row] += count
        self.attention_BL[row, self.width + length : self.width + length + count] = 1
        self._measure()

    def cut(self, length_B: torch.Tensor) -> None:
        """Cuts empty canvases off after `length_B` positions."""
        inside_BG = torch.arange(self.masked_BG.shape[1], device=self.device) < length_B[:, None]
        self.length_B, self.masked_BG = length_B, self.masked_BG & inside_BG
        self.attention_BL[:, self.width :] = inside_BG.long()
        self._measure()

    def _measure(self) -> None:
        """Notes what follows from which columns are real."""
        self.position_BL = (self.attention_BL.cumsum(1) - 1).clamp(min=0)
        self.begins, self.ends = self.attention_BL.argmax(1).tolist(), (self.width + self.length_B).tolist()
        self.ragged = not bool(self.attention_BL.all())
        self.shape += 1

    def trajectories(
        self, denoiser: Denoiser, rows: list[Row], nfe: list[int], tokens: list[int], waits: list[int]
    ) -> list[Trajectory]:
        """The finished records, with the bill of the passes (see `Passes`)."""
        lengths = self.length_B.tolist()
        most_B = self.length_B.clamp(max=self.kept)
        ends = torch.minimum(first_eos(self.canvas_BG, self.masked_BG, self.eos_ids), most_B).tolist()
        most = most_B.tolist()
        canvas = self.canvas_BG.tolist()
        steps, confidence, entropy, blocks, fork_BG = (values_BG.tolist() for values_BG in self.trace)
        forks = self.forks_B.tolist()
        texts = denoiser.decode([ids[:end] for ids, end in zip(canvas, ends, strict=True)])
        return [
            Trajectory(
                prompt=row.prompt,
                seed=row.seed,
                prompt_ids=tuple(row.prompt_ids),
                canvas_ids=tuple(canvas[b][: lengths[b]]),
                length=min(ends[b] + 1, most[b]),
                text=texts[b],
                finished=ends[b] < most[b],
                commit_step=tuple(steps[b][: lengths[b]]),
                confidence=tuple(confidence[b][: lengths[b]]),
                entropy=tuple(entropy[b][: lengths[b]]),
                block=tuple(blocks[b][: lengths[b]]),
                edits=tuple(self.edits[b]),
                ledger=Ledger(
                    nfe=nfe[b],
                    tokens_forwarded=tokens[b],
                    sequential_steps=waits[b],
                    seconds=self.seconds[b],
                    forks=forks[b],
                ),
                forks=tuple(position for position, fork in enumerate(fork_BG[b]) if fork),
            )
            for b, row in enumerate(rows)
        ]
