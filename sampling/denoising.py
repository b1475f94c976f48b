"""The denoising loop of one batch: canvases of masks in, trajectories out.

One loop runs every combination of the axes (see `SamplerConfig`): stage by stage (a draft and its revisions), block by
block, step by step; a step reads the canvas (`Passes`), draws candidates, lets the policy choose what commits and the
correction what is taken back. A pass holds only the rows whose block still changes, and asks for the logits of what may
change. Follows LLaDA's semi-autoregressive sampler (2502.09992, Sec. 2.4); each axis names its own paper.

Axes: B rows in a batch, A of them active, G canvas positions, W positions of the block, M places that are asked for (a row
and a position), V vocabulary.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

import torch
from lockstitch.sampling import corrections, policies, room
from lockstitch.sampling.caches import Passes
from lockstitch.sampling.canvases import Block, Canvases, Look, Place, Row, places
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.layouts import alignment, blocks
from lockstitch.sampling.noise import Noise, uniform
from lockstitch.sampling.speculation import Speculation
from lockstitch.sampling.tokens import Drawn, NotANumberError, draw, on_host
from lockstitch.sampling.trajectory import Trajectory

_ORDER, _REOPEN = 1, 2  # streams of noise beside that of the tokens


class Denoising:
    """One batch on its way from masks to trajectories.

    Attributes:
        canvases: its state.
        passes: what answers with logits.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        rows: list[Row],
        config: SamplerConfig,
        on_step: Callable[[Look], None] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        """A batch of rows; `on_step` is called before the first step and after each, with rows by their `numbers`."""
        # The prompt's last tokens, which stand in the canvas's first block; as many in every row of a batch.
        self.lead = len(rows[0].prompt_ids) % alignment(config, denoiser.family)
        length = config.canvas_length
        if config.whole_blocks:
            length += -(self.lead + length) % config.block
            rows = [replace(row, canvas=[*row.canvas, *[None] * (length - len(row.canvas))]) for row in rows]
        self.denoiser, self.rows, self.config = denoiser, rows, config
        self.on_step, self.numbers = on_step, numbers if numbers is not None else range(len(rows))
        kept = config.max_length or config.canvas_length
        self.canvases = Canvases(denoiser, rows, length, config.max_length or length, kept)
        self.passes = Passes(denoiser, self.canvases, config)
        self.forbidden = torch.tensor(denoiser.never_drawn, device=denoiser.device)
        self.noise = Noise(self.canvases.seeds_B)
        self.position_G = torch.arange(self.canvases.masked_BG.shape[1], device=self.canvases.device)
        # What a block's end may still take back must not end a row before that.
        self.stops_midway = config.stop_at_eos and config.correction not in ("remdm", "edit")

    def run(self) -> list[Trajectory]:
        """Denoises the batch."""
        config, canvases, passes = self.config, self.canvases, self.passes
        if config.stop_at_eos:
            canvases.stop_finished()  # a pinned canvas may hold its EOS already
        if config.length == "dynamic":
            room.grow_to_fit(self)
        elif config.length == "survival":
            room.cut_to_length(self)
        every_B = torch.arange(len(self.rows), device=canvases.device)
        self._show(every_B)
        number = 0
        for stage, length in enumerate(config.stage_blocks):
            if stage:
                self._reopen_least_confident()
            cuts = list(blocks(len(self.position_G), length, self.lead))
            began = time.perf_counter()
            passes.begin_stage(self.lead)  # which may read the prompts
            canvases.spend(every_B, began)
            self._walk(cuts[0][1], length, number)
            number += len(cuts)
        return canvases.trajectories(self.denoiser, self.rows, passes.nfe, passes.tokens, passes.waits)

    def _show(self, rows_A: torch.Tensor) -> None:
        if self.on_step is not None and len(rows_A):
            self.on_step(self.canvases.look(rows_A, self.numbers))

    def _walk(self, stop: int, length: int, number: int) -> None:
        """Denoises block after block: the first ends at `stop`, the others are `length` positions.

        A row whose block is extended goes on without those beside it, as its blocks lie elsewhere from there on; rows with
        the same blocks find together again.
        """
        canvases = self.canvases
        # Starts of the blocks so far, where the last would end if it were not extended, where it does, its steps: rows.
        waiting: dict[tuple[tuple[int, ...], int, int, int], torch.Tensor] = {
            ((0,), stop, stop, 0): torch.ones_like(canvases.running_B)
        }
        while waiting:
            starts, plain, stop, turn = walk = min(waiting, key=lambda walk: (walk[0][-1], walk[2:]))
            rows_B = waiting.pop(walk)
            limit = min(plain + (self.config.extension or 0), len(self.position_G))
            self.passes.open_block(starts, stop)
            onward = []
            for later, late_B in self._denoise_block(rows_B, starts[-1], stop, limit, number + len(starts) - 1, turn):
                onward.append(((starts, plain, min(stop + policies.EXTEND, limit), later), late_B))
                rows_B = rows_B & ~late_B
            if canvases.width + stop < max(canvases.ends):  # which may have grown on the way
                end = min(stop + length, len(self.position_G))
                onward.append((((*starts, stop), end, end, 0), rows_B))
            for walk, rows_B in onward:
                if bool(rows_B.any()):
                    waiting[walk] = waiting[walk] | rows_B if walk in waiting else rows_B

    def _denoise_block(
        self, rows_B: torch.Tensor, start: int, stop: int, limit: int, number: int, turn: int
    ) -> list[tuple[int, torch.Tensor]]:
        """Denoises canvas positions `start:stop` of the given rows, the `number`-th block of the run, from a turn on.

        Returns which rows have to go on with a longer block, bool `(B,)`, and from which turn.
        """
        config, canvases, late = self.config, self.canvases, []
        step, origin = 0, start if start else -self.lead
        if self.denoiser.family.opens_blocks and origin >= 0:
            # A pass over what is written ends in the block's first token, which commits as it would autoregressively; the
            # rest of the block is denoised after it. A block that the prompt has begun is open already.
            active_A = (rows_B & canvases.running_B & canvases.masked_BG[:, start]).nonzero()[:, 0]
            if len(active_A):
                one_B = canvases.one_B
                self._step(active_A, Block(start, start + 1, start + 1, origin, number, one_B, one_B, 1, 1), step, 0)
            start, step = start + 1, 1
        masked_BW = canvases.masked_BG[:, start:stop]
        initial_B = masked_BW.sum(1)
        # Pinned positions shorten the block's schedule in proportion, so that tokens per step stay what was asked for.
        planned_B = torch.full_like(initial_B, config.block) if config.whole_blocks else initial_B
        steps = config.total_steps // config.blocks
        block = Block(start, stop, limit, origin, number, initial_B, planned_B, steps, config.block)
        if config.speculate is not None:
            Speculation(self, block, step).denoise(rows_B)
        edits_left_B = torch.zeros_like(initial_B)  # steps in which a row whose masks are gone may still edit
        active: list[int] = []
        rows_A = rows_B
        for now in count(turn):
            masks_B = masked_BW.any(1)
            open_B = masks_B | (edits_left_B > 0) if config.correction == "edit" else masks_B
            still = [row for row, goes in enumerate((rows_B & canvases.running_B & open_B).tolist()) if goes]
            if not still:
                break
            if still != active:
                active, rows_A = still, torch.tensor(still, device=canvases.device)
            changed_A, late_A = self._step(rows_A, block, step + now, now)
            if changed_A is not None:
                left_A = torch.where(masks_B[rows_A], corrections.EDIT_STEPS, edits_left_B[rows_A] - 1)
                edits_left_B[rows_A] = left_A * changed_A
            if late_A is not None and bool(late_A.any()):
                late_B = torch.zeros_like(rows_B)
                late_B[rows_A[late_A]] = True
                late.append((now + 1, late_B))
                rows_B = rows_B & ~late_B
        if config.stop_at_eos:
            canvases.stop_finished()
        return late

    def _step(
        self, rows_A: torch.Tensor, block: Block, step: int, turn: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """One denoising step of the given rows.

        Returns which of them it changed where they may be edited, and which it left alone because they want a longer block
        where there is one, both bool `(A,)` or None. `step` keys the noise, `turn` counts in the block's schedule.
        """
        began = time.perf_counter()
        config, canvases, span = self.config, self.canvases, slice(block.start, block.stop)
        masked_AW = canvases.masked_BG[rows_A, span]
        count_A = self.due(rows_A, block, masked_AW, turn)
        if config.policy == "deferred" and self.stops_midway:
            # What follows the end can wait, for ever.
            masked_AW = masked_AW & canvases.before_end_BG()[rows_A, span]
        asked_AW = may_AW = self.may_commit(block, masked_AW)
        if config.length == "dynamic":
            asked_AW = masked_AW
        held_AW = None
        if config.correction in ("remdm", "edit"):
            held_AW = canvases.trace.commit_step_BG[rows_A, span] > 0
            if config.correction == "edit":
                asked_AW = asked_AW | held_AW
        row_M, column_M = places(asked_AW)
        logits_MV, end_A = self._read(rows_A, (row_M, column_M + block.start))
        drawn_M = self._draw(logits_MV, block, step, rows_A, (row_M, column_M), held_AW, asked_AW)
        drawn = on_host(drawn_M, row_M, column_M, asked_AW.shape)
        self.check_finite(drawn.entropy, rows_A)

        canvases.begin_step(rows_A)
        taken_AW = None
        if config.correction == "remdm":
            assert held_AW is not None
            assert count_A is not None
            taken_AW = self._reopened(rows_A, block, step, held_AW, count_A, masked_AW)
            count_A = count_A + taken_AW.sum(1)
        commit_AW = self.choose(drawn, may_AW, count_A, rows_A, block, step)
        late_A = self._wants_room(rows_A, block, masked_AW, drawn.certainty, commit_AW)
        if config.correction == "edit":
            assert held_AW is not None
            assert config.edit_threshold is not None
            written_AW = canvases.canvas_BG[rows_A, span]
            taken_AW = corrections.edits(written_AW, drawn.token, drawn.confidence, held_AW, config.edit_threshold)
            commit_AW = commit_AW | taken_AW
        if late_A is not None:
            commit_AW = commit_AW & ~late_A[:, None]
            taken_AW = None if taken_AW is None else taken_AW & ~late_A[:, None]
        if taken_AW is not None:
            row, position = places(taken_AW)
            canvases.take_back((rows_A[row], position + block.start), canvases.step_B[rows_A[row]])
        self._commit(rows_A, block, drawn, commit_AW, taken_AW)
        if end_A is not None:
            room.make_room(self, rows_A, block.start, drawn.confidence, masked_AW & ~commit_AW, end_A)
        canvases.spend(rows_A, began)
        self._show(rows_A)
        if self.stops_midway:
            canvases.stop_finished()
        return (commit_AW.any(1) if config.correction == "edit" else None), late_A

    def may_commit(self, block: Block, masked_AW: torch.Tensor) -> torch.Tensor:
        """Which of the masked positions of a block the policy may choose from, bool `(A, W)`."""
        config = self.config
        if config.policy == "deferred":
            return policies.window(masked_AW, config.window or 16, config.window_limit or 128)
        if config.sub_block_length is not None:
            part_W = (self.position_G[block.start : block.stop] - block.origin) // config.sub_block_length
            return policies.leftmost(masked_AW, part_W)
        return masked_AW

    def due(
        self, rows_A: torch.Tensor, block: Block, masked_AW: torch.Tensor, turn: int | torch.Tensor
    ) -> torch.Tensor | None:
        """How many positions the schedule has each row commit, `(A,)`, at a turn of the block or each at its own.

        None for policies without a schedule.
        """
        config = self.config
        if config.policy not in ("quota", "random") and config.steps is None:
            return None
        if config.schedule_eps is not None:
            return policies.share_of_masks(masked_AW.sum(1), turn, block.steps_B[rows_A], config.schedule_eps)
        target_A = policies.quota_total(block.planned_B[rows_A], turn, block.steps_B[rows_A])
        if config.policy == "threshold":  # a floor of each step, whatever earlier ones were ahead
            return target_A - policies.quota_total(block.planned_B[rows_A], turn - 1, block.steps_B[rows_A])
        return target_A - (block.initial_B[rows_A] - masked_AW.sum(1))

    def settle(self, rows_A: torch.Tensor, block: Block, drawn: Drawn, commit_AW: torch.Tensor) -> None:
        """Ends a step that a draft foresaw: rows commit what they chose from candidates that were there already."""
        self.canvases.begin_step(rows_A)
        self._commit(rows_A, block, drawn, commit_AW)
        self._show(rows_A)
        if self.stops_midway:
            self.canvases.stop_finished()

    def _commit(
        self,
        rows_A: torch.Tensor,
        block: Block,
        drawn: Drawn,
        commit_AW: torch.Tensor,
        taken_AW: torch.Tensor | None = None,
    ) -> None:
        row, position = places(commit_AW)
        chosen, fork_M = Drawn(*(values_AW[row, position] for values_AW in drawn)), None
        if self.config.threshold is not None:
            fork_M = chosen.certainty < self.config.threshold
            if taken_AW is not None:
                fork_M = fork_M & ~taken_AW[row, position]
        self.canvases.commit((rows_A[row], position + block.start), chosen, block.number, fork_M)

    def check_finite(self, entropy_AW: torch.Tensor, rows_A: torch.Tensor) -> None:
        """Raises `NotANumberError`, naming the first row whose logits are not finite: what was drawn from them is noise."""
        if not math.isfinite(entropy_AW.sum()):
            row = int(rows_A[(~entropy_AW.isfinite()).nonzero()[0, 0]])
            raise NotANumberError(
                f"the model's logits are no numbers: logits of trajectory {self.numbers[row]} are not finite at denoising "
                f"step {int(self.canvases.step_B[row]) + 1}; the model runs in {self.denoiser.model.dtype}, and float32 and "
                "bfloat16 reach further than float16"
            )

    def _wants_room(
        self,
        rows_A: torch.Tensor,
        block: Block,
        masked_AW: torch.Tensor,
        certainty_AW: torch.Tensor,
        commit_AW: torch.Tensor,
    ) -> torch.Tensor | None:
        """Rows that would commit something doubtful at their block's right edge, bool `(A,)`; None if it is the last one."""
        config = self.config
        if block.stop == block.limit:
            return None
        least_A = certainty_AW.masked_fill(~commit_AW, torch.inf).min(1).values
        edge_A = policies.touches_edge(masked_AW, config.window or 16, config.window_limit or 128)
        if self.stops_midway:
            edge_A &= self.canvases.before_end_BG()[rows_A, block.stop - 1]
        return edge_A & (least_A < policies.UNSURE)

    def _read(self, rows_A: torch.Tensor, asked: Place) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits `(M, V)` without what is banned; under a dynamic length also how sure the end is, `(A,)`."""
        if self.config.length == "dynamic":
            return room.read_with_end(self, rows_A, asked)
        logits_MV = self.passes.logits(rows_A, asked)
        self.canvases.ban(logits_MV, rows_A, asked)
        return logits_MV, None

    def _draw(
        self,
        logits_MV: torch.Tensor,
        block: Block,
        step: int,
        rows_A: torch.Tensor,
        asked: Place,
        held_AW: torch.Tensor | None,
        asked_AW: torch.Tensor,
    ) -> Drawn:
        """Candidates of M places (rows of `rows_A`, positions of the block); where one is held, the most likely token
        whatever the temperature."""
        config, noise_M = self.config, None
        settings = (self.forbidden, config.top_k, config.top_p, config.certainty)
        if config.temperature > 0:
            noise_BW = self.noise.at(block.number, step, slice(block.start, block.stop))
            noise_M = noise_BW[rows_A[asked[0]], asked[1]].to(logits_MV.device)
        drawn = draw(logits_MV, noise_M, config.temperature, *settings)
        if config.correction == "edit" and config.temperature > 0:
            assert held_AW is not None
            held_M, likely = held_AW[asked_AW].to(logits_MV.device), draw(logits_MV, None, 0.0, *settings)
            drawn = Drawn(*(torch.where(held_M, a, b) for a, b in zip(likely, drawn, strict=True)))
        return drawn

    def choose(
        self,
        drawn: Drawn,
        masked_AW: torch.Tensor,
        count_A: torch.Tensor | None,
        rows_A: torch.Tensor,
        block: Block,
        step: int | Sequence[int],
    ) -> torch.Tensor:
        """What the policy commits, bool `(A, W)`; `step` keys the noise of all rows, or is one for each."""
        config, certainty_AW = self.config, drawn.certainty
        if config.policy == "quota":
            assert count_A is not None
            return policies.quota(certainty_AW, masked_AW, count_A)
        if config.policy == "random":
            assert count_A is not None
            if isinstance(step, int):
                order_AW = self.noise.at(block.number, step, slice(block.start, block.stop), _ORDER)[rows_A]
            else:
                position_W = self.position_G[block.start : block.stop]
                order_AW = uniform(self.canvases.seeds_B[rows_A], block.number, step, position_W, _ORDER)
            return policies.quota(order_AW, masked_AW, count_A)
        if config.policy == "factor":
            assert config.factor is not None
            return policies.factor(certainty_AW, masked_AW, config.factor)
        if config.policy == "entropy_bound":
            assert config.entropy_bound is not None
            return policies.entropy_bound(drawn.entropy, masked_AW, config.entropy_bound)
        assert config.threshold is not None
        if config.fallback == "leftmost":
            return policies.threshold_or_leftmost(certainty_AW, masked_AW, config.threshold)
        return policies.threshold(certainty_AW, masked_AW, config.threshold, count_A)

    def _reopened(
        self,
        rows_A: torch.Tensor,
        block: Block,
        step: int,
        held_AW: torch.Tensor,
        count_A: torch.Tensor,
        masked_AW: torch.Tensor,
    ) -> torch.Tensor:
        """What ReMDM takes back at a step that is due to bring the committed positions of a block forward by `count_A`."""
        config, canvases = self.config, self.canvases
        assert config.sigma is not None
        committed_A, total_A = block.initial_B[rows_A] - masked_AW.sum(1), block.initial_B[rows_A].float()
        confidence_AW = canvases.trace.confidence_BG[rows_A, block.start : block.stop]
        now_A, then_A = committed_A / total_A, (committed_A + count_A) / total_A
        share_AW = corrections.remdm_share(config.sigma, config.share_reopened, now_A, then_A, confidence_AW, held_AW)
        return self.noise.at(block.number, step, slice(block.start, block.stop), _REOPEN)[rows_A] < share_AW

    def _reopen_least_confident(self) -> None:
        """Begins a stage of `revise`: what was least sure when it was committed is denoised again, in every row."""
        canvases, config = self.canvases, self.config
        assert config.revise_fraction is not None
        trace = canvases.trace
        held_BG = trace.commit_step_BG > 0
        chosen_BG = corrections.least_confident(trace.confidence_BG, held_BG, config.revise_fraction)
        canvases.step_B += chosen_BG.any(1)  # a step without a pass, so that the trace shows the draft as well
        row, position = chosen_BG.nonzero(as_tuple=True)
        canvases.take_back((row, position), canvases.step_B[row])
        self._show(chosen_BG.any(1).nonzero()[:, 0])
        canvases.running_B[:] = True
        if config.stop_at_eos:
            canvases.stop_finished()
