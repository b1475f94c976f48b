"""The state of a batch under uniform noise: tokens, the trace and the cost, and the trajectories that they become.

A token is committed when its position accepts it, and taken back when the position is renoised or accepts another one.

Axes: B rows in a batch, A and R some of them, C positions of a block, G of the canvas, P chosen positions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lockstitch.sampling.canvases import Look
from lockstitch.sampling.diffusion_gemma import DiffusionGemmaDenoiser
from lockstitch.sampling.trajectory import Edit, Ledger, Trajectory


@dataclass(frozen=True)
class Row:
    """One trajectory to be drawn: index and tokens of its prompt, and the seed of its noise."""

    prompt: int
    prompt_ids: list[int]
    seed: int


class State:
    """All tensors `(B, ...)` on the model's device.

    Attributes:
        tokens_BG: what was accepted last at each position, padding where nothing was.
        held_BG: where that has not been taken back.
        commit_step_BG, confidence_BG, entropy_BG, block_BG, edits: the trace, as in `Trajectory`; edits as `(P, 5)` tensors
            of row, step, position, token and commit step.
        seeds_B: of the rows' noise.
        steps_B: denoising steps so far.
        passes_B, forwarded_B, seconds_B: the ledger's `nfe`, `tokens_forwarded` and `seconds`.
        shared_B: passes that the row had to wait for and another one pays.
    """

    def __init__(self, denoiser: DiffusionGemmaDenoiser, rows: list[Row], length: int) -> None:
        shape, device = (len(rows), length), denoiser.device
        self.tokens_BG = torch.full(shape, denoiser.pad_id, device=device)
        self.held_BG = torch.zeros(shape, dtype=torch.bool, device=device)
        self.commit_step_BG = torch.full(shape, -1, device=device)
        self.confidence_BG = torch.zeros(shape, device=device)
        self.entropy_BG = torch.zeros(shape, device=device)
        self.block_BG = torch.full(shape, -1, device=device)
        self.edits: list[torch.Tensor] = []
        self.seeds_B = torch.tensor([row.seed for row in rows], device=device)
        counts = torch.zeros(4, len(rows), dtype=torch.long, device=device)
        self.steps_B, self.passes_B, self.forwarded_B, self.shared_B = counts
        self.seconds_B = torch.zeros(len(rows), dtype=torch.double, device=device)

    def commit(
        self,
        rows_R: torch.Tensor,
        block: int,
        accepted_RC: torch.Tensor,
        token_RC: torch.Tensor,
        logits_RCV: torch.Tensor,
        temperature: float,
    ) -> None:
        """Writes the accepted tokens of a step, and takes back all that they do not confirm.

        Confidence and entropy are noted for the tokens that are new, at temperature 1: `logits_RCV` are those over
        `temperature`, up to a constant per position.
        """
        length = accepted_RC.shape[1]
        start = block * length
        span = slice(start, start + length)
        held_RC, old_RC = self.held_BG[rows_R, span], self.tokens_BG[rows_R, span]
        confirmed_RC = held_RC & accepted_RC & (old_RC == token_RC)

        taken_back = (held_RC & ~confirmed_RC).nonzero(as_tuple=True)
        row_P, position_P = rows_R[taken_back[0]], taken_back[1] + start
        since_P = self.commit_step_BG[row_P, position_P]
        edit = (row_P, self.steps_B[row_P], position_P, old_RC[taken_back], since_P)
        self.edits.append(torch.stack(edit, dim=1))

        new = (accepted_RC & ~confirmed_RC).nonzero(as_tuple=True)
        at = (rows_R[new[0]], new[1] + start)
        logp_PV = (logits_RCV[new] * temperature).log_softmax(-1)
        self.commit_step_BG[at] = self.steps_B[at[0]]
        self.confidence_BG[at] = logp_PV.gather(-1, token_RC[new][:, None])[:, 0].exp()
        self.entropy_BG[at] = -torch.einsum("pv,pv->p", logp_PV.exp(), logp_PV)
        self.block_BG[at] = block
        self.tokens_BG[rows_R, span] = torch.where(accepted_RC, token_RC, old_RC)
        self.held_BG[rows_R, span] = accepted_RC

    def look(self, rows_A: torch.Tensor, numbers: Sequence[int]) -> Look:
        """Some rows as they are now, under the numbers that the rows of the batch have elsewhere; noise is masked."""
        held_AG = self.held_BG[rows_A]
        return Look(
            rows=[numbers[row] for row in rows_A.tolist()],
            step_A=self.steps_B[rows_A],
            length_A=torch.full_like(rows_A, held_AG.shape[1]),
            canvas_AG=self.tokens_BG[rows_A],
            masked_AG=~held_AG,
            commit_step_AG=torch.where(held_AG, self.commit_step_BG[rows_A], -1),
            confidence_AG=self.confidence_BG[rows_A],
            fork_AG=torch.zeros_like(held_AG),
        )

    def charge(self, rows_A: torch.Tensor, tokens: int, seconds: float) -> None:
        """One forward pass of so many tokens for each of the rows, which share its time equally."""
        self.passes_B[rows_A] += 1
        self.forwarded_B[rows_A] += tokens
        self.seconds_B[rows_A] += seconds / len(rows_A)


def records(denoiser: DiffusionGemmaDenoiser, rows: list[Row], state: State) -> list[Trajectory]:
    """The trajectories of a batch that is done."""
    eos_BG = torch.isin(state.tokens_BG, torch.tensor(denoiser.eos_ids, device=denoiser.device)) & state.held_BG
    G = eos_BG.shape[1]
    end_B = torch.where(eos_BG.any(1), eos_BG.long().argmax(1), G).tolist()
    edits: list[list[Edit]] = [[] for _ in rows]
    for b, *edit in torch.cat(state.edits).tolist():
        edits[b].append(Edit(*edit))
    canvas, steps, blocks = state.tokens_BG.tolist(), state.commit_step_BG.tolist(), state.block_BG.tolist()
    confidence, entropy = state.confidence_BG.tolist(), state.entropy_BG.tolist()
    passes, forwarded, shared = state.passes_B.tolist(), state.forwarded_B.tolist(), state.shared_B.tolist()
    seconds = state.seconds_B.tolist()
    texts = denoiser.decode([ids[:end] for ids, end in zip(canvas, end_B, strict=True)])
    return [
        Trajectory(
            prompt=row.prompt,
            seed=row.seed,
            prompt_ids=tuple(row.prompt_ids),
            canvas_ids=tuple(canvas[b]),
            length=min(end_B[b] + 1, G),
            text=texts[b],
            finished=end_B[b] < G,
            commit_step=tuple(steps[b]),
            confidence=tuple(confidence[b]),
            entropy=tuple(entropy[b]),
            block=tuple(blocks[b]),
            edits=tuple(edits[b]),
            ledger=Ledger(
                nfe=passes[b],
                tokens_forwarded=forwarded[b],
                sequential_steps=passes[b] + shared[b],
                seconds=seconds[b],
            ),
        )
        for b, row in enumerate(rows)
    ]
