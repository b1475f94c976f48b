"""Dense signal without a reward on tokens: the model teaches itself, from what its own right rollouts came to (d-OPSD).

At each denoising step of a right rollout the student sees the canvas as it was; the teacher, the same model with its adapter
off, sees the final tokens of some later blocks beside it. Where the teacher is surest of the current block's masks, the
student's distribution is drawn to the teacher's by the reverse divergence, over the tokens that the teacher finds likeliest.
Nothing is learned from a prompt none of whose rollouts is right.

Follows d-OPSD (arXiv 2606.18195) and its authors' code: every token's term of the divergence is clipped from above; a step
is the sum over its places, a rollout the mean over its steps; inner iteration t of T takes the t-th part of the steps. Of
the K rollouts of a prompt the first right one counts: there they are drawn one after the other until one is right.

Leaves out families that denoise block by block, whose blocks cannot see later ones, and the forward divergence.

Axes: B rows, P prompt columns (left-padded), G canvas positions, L = P + G, C columns of a pass, M places, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lockstitch.rl.masks import Draw
from lockstitch.rl.scoring import Canvases
from lockstitch.sampling.denoiser import Denoiser
from torch.utils.checkpoint import checkpoint

LOSS = "self_distillation"
DEFAULTS = {
    "distill_share": 0.25,
    "distill_top_k": 20,
    "distill_positions": 2,
    "distill_clip": 0.05,
    "distill_reward": 1.0,
}


@dataclass
class SelfDistillationOptions:
    """The options of `policy_loss: self_distillation`; None is the paper's value."""

    distill_share: float | None = field(
        default=None,
        metadata={
            "help": "Share of later blocks' final tokens that the teacher sees (self_distillation); None is 0.25."
        },
    )
    distill_top_k: int | None = field(
        default=None,
        metadata={"help": "The teacher's likeliest tokens, over which distributions are compared; None is 20."},
    )
    distill_positions: int | None = field(
        default=None,
        metadata={
            "help": "Masked positions of the current block that a step compares, the teacher's surest; None is 2."
        },
    )
    distill_clip: float | None = field(
        default=None, metadata={"help": "Most that one token adds to a divergence, in nats; None is 0.05."}
    )
    distill_reward: float | None = field(
        default=None, metadata={"help": "Reward from which a rollout counts as right and is learned from; None is 1."}
    )

    def check_distillation(self, config: Any) -> None:
        """Raises `ValueError` for values out of range, and for options that would be ignored, of this loss or by it."""
        given = {name: getattr(self, name) for name in DEFAULTS if getattr(self, name) is not None}
        if config.policy_loss != LOSS:
            for name, value in given.items():
                raise ValueError(
                    f"{name}={value!r} would be ignored by policy_loss={config.policy_loss!r}; it is for {LOSS}"
                )
            return
        if config.estimator != "trajectory" or config.segments is not None or config.segments_drawn is not None:
            raise ValueError(
                f"policy_loss={LOSS!r} replays every step of the rollout: estimator={config.estimator!r}, "
                f"segments={config.segments}, segments_drawn={config.segments_drawn} would be ignored; "
                "estimator='trajectory' without segments"
            )
        if config.scope != "valid" or config.score_temperature not in (None, 1.0):
            raise ValueError(
                f"scope={config.scope!r}, score_temperature={config.score_temperature} would be ignored by "
                f"policy_loss={LOSS!r}: distributions are compared as they are, where the rollout was"
            )
        block, canvas = config.sampler_config().block_length, config.max_completion_length
        if block is None or block >= canvas:
            raise ValueError(
                f"block_length={block} of {canvas} positions: policy_loss={LOSS!r} shows the teacher later blocks, and "
                "there are none"
            )
        if not 0 <= self.distill["distill_share"] <= 1:
            raise ValueError(f"distill_share={self.distill_share} must lie between 0 and 1")
        for name in ("distill_top_k", "distill_positions"):
            if self.distill[name] < 1:
                raise ValueError(f"{name}={self.distill[name]} must be at least 1")
        if not self.distill["distill_clip"] > 0:
            raise ValueError(f"distill_clip={self.distill_clip} must be positive")

    @property
    def distill(self) -> dict[str, Any]:
        """The options with the paper's values where nothing was said."""
        return {
            name: default if getattr(self, name) is None else getattr(self, name) for name, default in DEFAULTS.items()
        }


def first_right(rewards_N: torch.Tensor, known: float, K: int) -> torch.Tensor:
    """The first row of each group of K whose reward is at least `known`, bool `(N,)`; NaN is none."""
    right_PK = (rewards_N >= known).view(-1, K)
    return (right_PK & (right_PK.long().cumsum(1) == 1)).flatten()


def reverse_divergence(
    student_MV: torch.Tensor, teacher_MV: torch.Tensor, top_k: int, clip: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`sum over v of min(p_v log(p_v / q_v), clip)`, `(M,)`, p the student and q the teacher, both over q's `top_k` tokens.

    Both are normalised over those tokens; from `top_k = V` on, and without a clip, it is the divergence KL(p || q). Also how
    many of the terms were clipped, `(M,)`.

    Args:
        student_MV: logits.
        teacher_MV: logits.
        top_k: how many tokens.
        clip: most that a token's term counts; None is no bound.
    """
    token_MK = teacher_MV.topk(min(top_k, teacher_MV.shape[1]), 1).indices
    logp_MK = student_MV.float().gather(1, token_MK).log_softmax(1)
    logq_MK = teacher_MV.float().gather(1, token_MK).log_softmax(1)
    term_MK = logp_MK.exp() * (logp_MK - logq_MK)
    if clip is None:
        return term_MK.sum(1), torch.zeros(len(term_MK), device=term_MK.device)
    return term_MK.clamp(max=clip).sum(1), (term_MK > clip).float().sum(1)


def self_distillation(
    denoiser: Denoiser,
    student: torch.nn.Module,
    teach: Callable[[Callable[[torch.nn.Module], torch.Tensor]], torch.Tensor],
    canvases: Canvases,
    block: int,
    part: tuple[int, int] = (0, 1),
    *,
    share: float,
    top_k: int,
    positions: int,
    clip: float | None,
    recompute: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's mean over denoising steps of the divergence at the step's places, `(B,)`, and its share of clipped terms.

    Args:
        denoiser: says how the family is called.
        student: the model that is trained, or a wrapper of it.
        teach: runs a function of a model on the teacher's.
        canvases: right rollouts, with their traces.
        block: length of the rollouts' blocks.
        part: (t, T): only the t-th of T parts of each row's steps.
        share: of later blocks' final tokens that the teacher sees.
        top_k, positions, clip: see `SelfDistillationOptions`.
        recompute: keep nothing of a step's pass, and run it again in the backward pass.

    Raises `ValueError` for a family that does not attend fully, and where the trace is missing.
    """
    if denoiser.family.layout != "full":
        raise ValueError(f"{denoiser.family.name} models cannot see later blocks, which the teacher is shown")
    steps_BG = canvases.commit_step_BG
    if steps_BG is None:
        raise ValueError("commit_step_BG=None: self-distillation replays the rollout's trace")
    (t, T), G = part, steps_BG.shape[1]
    last_B = steps_BG.amax(1).clamp(min=1)
    block_G = torch.arange(G, device=steps_BG.device) // block
    allowed = torch.ones(denoiser.model.config.get_text_config().vocab_size, dtype=torch.bool, device=steps_BG.device)
    allowed[denoiser.never_drawn] = False
    real_BL = torch.cat([canvases.prompt_mask_BP.bool(), torch.ones_like(steps_BG, dtype=torch.bool)], 1)

    def logits(
        model: torch.nn.Module, shown_AG: torch.Tensor, rows_A: torch.Tensor, first: int, stop: int
    ) -> torch.Tensor:
        noised_AG = torch.where(shown_AG, canvases.completion_BG[rows_A], denoiser.mask_id)
        columns_C = torch.arange(first, stop, device=rows_A.device) + canvases.prompt_BP.shape[1]
        input_AL, real_AL = torch.cat([canvases.prompt_BP[rows_A], noised_AG], 1), real_BL[rows_A].long()
        return denoiser.forward_logits(model, input_AL, real_AL, columns_C)[..., allowed]

    def compared(
        shown_AG: torch.Tensor,
        rows_A: torch.Tensor,
        first: int,
        stop: int,
        places: tuple[torch.Tensor, torch.Tensor],
        teacher_MV: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        student_MV = logits(student, shown_AG, rows_A, first, stop)[places]
        return reverse_divergence(student_MV, teacher_MV, top_k, clip)

    total_B = torch.zeros(len(steps_BG), device=steps_BG.device)
    clipped_B, seen_B = torch.zeros_like(total_B), torch.zeros_like(total_B)
    for step in range(1, int(last_B.max()) + 1):
        here_BG = steps_BG == step
        rows_A = (here_BG.any(1) & ((step - 1) * T // last_B == t)).nonzero()[:, 0]
        if not len(rows_A):
            continue
        shown_AG = (steps_BG[rows_A] >= 0) & (steps_BG[rows_A] < step)
        current_A = torch.where(here_BG[rows_A], block_G, -1).amax(1)
        masked_AG = ~shown_AG & (block_G == current_A[:, None])
        later_AG = ~shown_AG & (block_G > current_A[:, None]) & (steps_BG[rows_A] > 0)
        draw = Draw(canvases.seeds_B[rows_A], 0, step)
        future_AG = draw.count(later_AG, (share * later_AG.sum(1)).long())
        first, stop = int(current_A.min()) * block, min(G, (int(current_A.max()) + 1) * block)
        with torch.no_grad():
            seen_AG = shown_AG | future_AG
            teacher_ACV = teach(partial(logits, shown_AG=seen_AG, rows_A=rows_A, first=first, stop=stop))
        sure_AC = teacher_ACV.float().softmax(2).amax(2).masked_fill(~masked_AG[:, first:stop], -1.0)
        place_AN = sure_AC.topk(min(positions, stop - first), 1).indices
        row_M, n_M = (sure_AC.gather(1, place_AN) >= 0).nonzero(as_tuple=True)
        place_M = place_AN[row_M, n_M]
        given = (shown_AG, rows_A, first, stop, (row_M, place_M), teacher_ACV[row_M, place_M])
        again = recompute and torch.is_grad_enabled()
        apart_M, over_M = checkpoint(compared, *given, use_reentrant=False) if again else compared(*given)
        total_B = total_B.index_add(0, rows_A[row_M], apart_M)
        clipped_B = clipped_B.index_add(0, rows_A[row_M], over_M.detach() / min(top_k, int(allowed.sum())) / positions)
        seen_B = seen_B.index_add(0, rows_A, torch.ones_like(total_B[rows_A]))
    if torch.is_grad_enabled() and not total_B.requires_grad:  # no step in this part: a gradient that others wait for
        total_B = total_B + 0.0 * sum(weight.sum() for weight in student.parameters() if weight.requires_grad)
    return total_B / seen_B.clamp(min=1), clipped_B / seen_B.clamp(min=1)
