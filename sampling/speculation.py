"""Steps ahead: states that a block will likely be in are drafted and read in one pass, and what was foreseen costs no pass.

At one token a step most passes only confirm what the last one said. From the logits of a row's last known state the steps to
come are drafted, as the policy would take them, with the noise that is keyed to them; the states so drafted go through one
pass together, each as a row of its own. Then the row takes its steps, each from its state's own logits, for as long as the
state that it comes to was read already. So tokens and trace are those of the plain run, at any temperature, and only the
number of passes that wait for one another falls. Follows Spiffy (2509.18085) and FreeDave (2510.00294), without calibration:
a state stays known after the draft went another way, so that steps in another order than foreseen still come to it.

Leaves out what takes tokens back or moves positions (`SamplerConfig` refuses it).

Axes: B rows of the batch, A some of them, N states (several for a row), G canvas positions, W positions of the block, M
places that are asked for (a state and a position), D steps that a state's candidates were drawn for.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from lockstitch.sampling.canvases import places
from lockstitch.sampling.noise import uniform
from lockstitch.sampling.tokens import Drawn, draw, on_host

if TYPE_CHECKING:
    from lockstitch.sampling.canvases import Block
    from lockstitch.sampling.denoising import Denoising

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class _State:
    """A row's block at a turn."""

    row: int
    tokens: Tokens
    turn: int


@dataclass(frozen=True)
class _Known:
    """The candidates of a state's masked positions, each field `(W, D)`, drawn for as many turns from `turn` on."""

    drawn: Drawn
    turn: int


def _follows(later: Tokens, now: Tokens, mask_id: int) -> bool:
    """Whether steps that take nothing back can lead from one state to the other."""
    return all(b in (mask_id, a) for a, b in zip(later, now, strict=True))


class Speculation:
    """Denoises one block of a batch, as many steps a pass as can be foreseen.

    Args:
        run: the batch.
        block: where.
        step: keys the noise of the block's first turn.
    """

    def __init__(self, run: "Denoising", block: "Block", step: int) -> None:
        assert run.config.speculate is not None
        self.run, self.block, self.step, self.ahead = run, block, step, run.config.speculate
        self.greedy = run.config.temperature == 0
        self.known: dict[int, dict[Tokens, _Known]] = {}
        self.turns: dict[int, int] = {}
        self.base: dict[int, _Known] = {}  # of each row's last state, from which its draft starts

    def denoise(self, rows_B: torch.Tensor) -> None:
        """Denoises the block of the given rows, bool `(B,)`."""
        canvases, block = self.run.canvases, self.block
        masked_BW = canvases.masked_BG[:, block.start : block.stop]
        while True:
            active = (rows_B & canvases.running_B & masked_BW.any(1)).nonzero()[:, 0].tolist()
            if not active:
                return
            tokens = canvases.canvas_BG[active, block.start : block.stop].tolist()
            states = [_State(row, tuple(one), self.turns.get(row, 0)) for row, one in zip(active, tokens, strict=True)]
            foreseen = [(state, known) for state in states if (known := self._recall(state)) is not None]
            if foreseen:
                self._walk(*zip(*foreseen, strict=True))
            else:
                self._read(states)

    def _recall(self, state: _State) -> Drawn | None:
        """A known state's candidates for its turn, each field `(W,)`; None where they are not known."""
        known = self.known.get(state.row, {}).get(state.tokens)
        if known is None:
            return None
        at = 0 if self.greedy else state.turn - known.turn
        return Drawn(*(values[:, at] for values in known.drawn)) if 0 <= at < known.drawn.token.shape[1] else None

    def _walk(self, states: "tuple[_State, ...]", candidates: tuple[Drawn, ...]) -> None:
        """One step of rows whose state is known."""
        began = time.perf_counter()
        rows_A, drawn, commit_AW, _ = self._choose(states, candidates)
        for state in states:
            self.turns[state.row] = state.turn + 1
            self.base[state.row] = self.known[state.row][state.tokens]
        self.run.settle(rows_A, self.block, drawn, commit_AW)
        self.run.canvases.spend(rows_A, began)

    def _choose(
        self, states: Sequence[_State], candidates: Sequence[Drawn]
    ) -> tuple[torch.Tensor, Drawn, torch.Tensor, torch.Tensor]:
        """Rows `(A,)`; their candidates, what the policy commits of these and what it may choose from, all `(A, W)`."""
        run, block = self.run, self.block
        rows_A, tokens_AW = self._tensors(states)
        drawn = Drawn(*(torch.stack(values) for values in zip(*candidates, strict=True)))
        masked_AW = tokens_AW == run.denoiser.mask_id
        turn_A = torch.tensor([state.turn for state in states], device=rows_A.device)
        count_A = run.due(rows_A, block, masked_AW, turn_A)
        # A draft may come to positions that the state which it started from was not asked for; it ends there.
        may_AW = run.may_commit(block, masked_AW) & (drawn.token >= 0)
        steps = [self.step + state.turn for state in states]
        return rows_A, drawn, run.choose(drawn, may_AW, count_A, rows_A, block, steps) & may_AW, may_AW

    def _tensors(self, states: Sequence[_State]) -> tuple[torch.Tensor, torch.Tensor]:
        device = self.run.canvases.device
        return (
            torch.tensor([state.row for state in states], device=device),
            torch.tensor([state.tokens for state in states], device=device),
        )

    def _canvases(self, rows_N: torch.Tensor, tokens_NW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The canvases of rows in states of the block, and what is masked on them, both `(N, G)`."""
        canvases, span = self.run.canvases, slice(self.block.start, self.block.stop)
        canvas_NG, masked_NG = canvases.canvas_BG[rows_N], canvases.masked_BG[rows_N]
        canvas_NG[:, span], masked_NG[:, span] = tokens_NW, tokens_NW == self.run.denoiser.mask_id
        return canvas_NG, masked_NG

    def _read(self, states: list[_State]) -> None:
        """One pass over states that are not known, and over those that will likely come after them."""
        began, run, block = time.perf_counter(), self.run, self.block
        opens = not self.base
        rows_A = torch.tensor([state.row for state in states], device=run.canvases.device)
        if not opens:
            states = self._draft(states)
        rows_N, tokens_NW = self._tensors(states)
        asked_NW = run.may_commit(block, tokens_NW == run.denoiser.mask_id)
        at_M, column_M = places(asked_NW)
        asked = at_M, column_M + block.start
        if opens:
            logits_MV = run.passes.logits(rows_N, asked)
        else:
            logits_MV = run.passes.foreseen(rows_N, self._canvases(rows_N, tokens_NW)[0], asked)
        run.canvases.ban(logits_MV, rows_N, asked)
        self._learn(states, logits_MV, rows_N, asked_NW)
        run.canvases.spend(rows_A, began)

    def _learn(
        self, states: Sequence[_State], logits_MV: torch.Tensor, rows_N: torch.Tensor, asked_NW: torch.Tensor
    ) -> None:
        """Keeps what states' logits say, and forgets the states that their rows cannot come to any more."""
        run, block, config, noise_MD = self.run, self.block, self.run.config, None
        if not self.greedy:
            position_W, seeds_N = run.position_G[block.start : block.stop], run.canvases.seeds_B[rows_N]
            steps = [self.step + state.turn for state in states]
            noise_MD = torch.stack(
                [
                    uniform(seeds_N, block.number, [step + d for step in steps], position_W)[asked_NW]
                    for d in range(self.ahead + 1)
                ],
                dim=1,
            ).to(logits_MV.device)
        drawn_MD = draw(
            logits_MV, noise_MD, config.temperature, run.forbidden, config.top_k, config.top_p, config.certainty
        )
        if self.greedy:
            drawn_MD = Drawn(*(values[:, None] for values in drawn_MD))
        drawn = on_host(drawn_MD, *places(asked_NW), asked_NW.shape)
        run.check_finite(drawn.entropy, rows_N)
        drawn.token.masked_fill_(~asked_NW[..., None], -1)
        for n, state in enumerate(states):
            known = self.known.setdefault(state.row, {})
            if (
                n == 0 or states[n - 1].row != state.row
            ):  # the state that the row is in, without which no other is reached
                for tokens in [one for one in known if not _follows(one, state.tokens, run.denoiser.mask_id)]:
                    del known[tokens]
            known[state.tokens] = _Known(Drawn(*(values[n] for values in drawn)), state.turn)

    def _draft(self, states: Sequence[_State]) -> list[_State]:
        """These states, and after them up to `speculate` more for each row: what is known on the way is not read again."""
        drafted = {state.row: [state] for state in states}
        heads = [(state, self.base[state.row]) for state in states]
        while heads:
            onward, heads = self._onward(heads), []
            for state, base in onward:
                if self._recall(state) is not None:
                    heads.append((state, self.known[state.row][state.tokens]))
                    continue
                so_far = drafted[state.row]
                if state.tokens not in {one.tokens for one in so_far}:
                    so_far.append(state)
                if len(so_far) <= self.ahead:
                    heads.append((state, base))
        return [state for row in drafted.values() for state in row]

    def _onward(self, heads: Sequence[tuple[_State, _Known]]) -> list[tuple[_State, _Known]]:
        """The states after these where they end no row, if candidates are those of the known states beside them."""
        candidates = []
        for state, known in heads:
            at = 0 if self.greedy else min(max(0, state.turn - known.turn), known.drawn.token.shape[1] - 1)
            candidates.append(Drawn(*(values[:, at] for values in known.drawn)))
        states = [state for state, _ in heads]
        rows_A, drawn, commit_AW, may_AW = self._choose(states, candidates)
        tokens_AW = torch.where(commit_AW, drawn.token, self._tensors(states)[1])
        canvas_AG, masked_AG = self._canvases(rows_A, tokens_AW)
        going_A = masked_AG[:, self.block.start : self.block.stop].any(1)
        if self.run.stops_midway:
            going_A &= ~self.run.canvases.finished(canvas_AG, masked_AG)
        # Dream's schedule alone lets steps be idle, but only so many of them while there is something to choose from.
        going_A &= (commit_AW if self.run.config.schedule_eps is None else may_AW).any(1)
        return [
            (_State(state.row, tuple(tokens), state.turn + 1), known)
            for (state, known), tokens, goes in zip(heads, tokens_AW.tolist(), going_A.tolist(), strict=True)
            if goes
        ]
