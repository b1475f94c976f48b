"""What on-policy training sees and is told: denoising states of the model's own rollouts, and the parent's word on them.

OPDLM (2606.06712): of each block of a rollout one of its denoising states is drawn, and all of them stand in one row,
since a block sees the blocks before it as they ended. The teacher is the autoregressive parent: its word on a token is
what it says after the tokens before it, as the rollout ended, whatever was masked then; one causal pass says it for all of
them.

Axes: B rows, L columns (prompt and canvas), M masked positions in row-major order, V vocabulary.
"""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loading import check_masks
from lockstitch.sampling.trajectory import Trajectory
from peft import PeftModel


def drawn_states(
    trajectories: Sequence[Trajectory], blocks: Sequence[Sequence[int]], generator: torch.Generator
) -> list[list[bool]]:
    """Which canvas positions are masked where each block is at one of its denoising states.

    The states of a block are those from which one of its steps committed something, all equally likely; positions that were
    never reached are masked in all of them, given ones in none.

    Args:
        trajectories: rollouts.
        blocks: the block of each canvas position, by rollout.
        generator: of the draw.
    """
    masked = []
    for trajectory, number in zip(trajectories, blocks, strict=True):
        steps: dict[int, list[int]] = {}
        for block, step in zip(number, trajectory.commit_step, strict=True):
            if step > 0 and step not in steps.setdefault(block, []):
                steps[block].append(step)
        drawn = {}
        for block in sorted(steps):
            at = int(torch.randint(len(steps[block]), (), generator=generator))
            drawn[block] = sorted(steps[block])[at]
        masked.append(
            [
                step < 0 or (step > 0 and step >= drawn[block])
                for block, step in zip(number, trajectory.commit_step, strict=True)
            ]
        )
    return masked


class Teacher:
    """The frozen autoregressive parent.

    Args:
        denoiser: the student, whose conventions of calling it shares.
        model: its model; None is the student's own below its adapter, which is then switched off for the pass. What it says
            of rows that its vocabulary has beyond the student's, which no token has, is left out.

    Raises `ValueError` for a model of a smaller vocabulary than its student's, and where there is no adapter to switch off.
    """

    def __init__(self, denoiser: Denoiser, model: Any = None) -> None:
        self.denoiser, self.model = copy.copy(denoiser), model
        self.denoiser.model = denoiser.model if model is None else model  # whose head is read
        if model is None and not isinstance(denoiser.model, PeftModel):
            raise ValueError("teacher=None: a model that is trained whole has no parent left; say a copy")
        check_masks(self.denoiser.model, "a teacher, which reads from the left,")
        self.vocabulary = denoiser.model.config.get_text_config().vocab_size
        if model is not None and (its := model.config.get_text_config().vocab_size) < self.vocabulary:
            raise ValueError(f"the teacher has a vocabulary of {its} tokens, the student one of {self.vocabulary}")

    @torch.no_grad()
    def logits(
        self, student: Any, clean_BL: torch.Tensor, real_BL: torch.Tensor, asked_BL: torch.Tensor
    ) -> torch.Tensor:
        """What it says of tokens after those before them, `(M, V)`, by one causal pass.

        Args:
            student: the student's model, unwrapped; passed through where the teacher is what lies below its adapter.
            clean_BL: prompts and completions.
            real_BL: bool, False on padding.
            asked_BL: bool, the columns whose tokens are asked of it; not a row's first one.
        """
        causal_LL = torch.ones(clean_BL.shape[1], clean_BL.shape[1], dtype=torch.bool, device=clean_BL.device).tril()
        seen_BLL = causal_LL & (real_BL[:, None] | torch.eye(len(causal_LL), dtype=torch.bool, device=clean_BL.device))
        model = student if self.model is None else self.model
        mask_B1LL = torch.zeros(seen_BLL.shape, dtype=model.dtype, device=clean_BL.device)
        arguments = {
            "input_ids": clean_BL,
            "attention_mask": mask_B1LL.masked_fill_(~seen_BLL, torch.finfo(model.dtype).min)[:, None],
            "position_ids": (real_BL.long().cumsum(1) - 1).clamp(min=0),
        }
        training = model.training
        model.eval()
        try:
            with nullcontext() if self.model is not None else model.disable_adapter():
                place_M = asked_BL.flatten().nonzero()[:, 0] - 1
                return self.denoiser.raw_logits(model, arguments, None, place_M)[:, : self.vocabulary]
        finally:
            model.train(training)
