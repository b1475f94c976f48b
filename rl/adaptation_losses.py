"""The losses that turn an autoregressive model into a diffusion model, and how long blocks are on the way: pure functions.

Masked diffusion itself is `masked_diffusion_loss` of the supervised stage (`lockstitch.rl.sft`). Here are what is put
beside it (NBDiff, 2512.06776; TiDAR, 2511.08923; I-DLM, 2604.11035), in its place (OPDLM, 2606.06712), or on top of it
(LLaDA2's confidence-aware parallel training; dParallel, 2509.26488).

Axes: M masked positions of a batch in row-major order, B rows, V vocabulary.
"""

import torch
import torch.nn.functional as F

AR_LOSSES = ("none", "sum", "mean", "balanced")


def block_at(step: int, longest: int, every: int) -> int:
    """The block length after so many optimizer steps: from 1, doubled every `every` steps, at most `longest`.

    NBDiff (2512.06776): `b(s) = min(longest, 2 ** floor(s / every))`.
    """
    return int(min(longest, 2 ** min(step // every, longest.bit_length())))


def share_at(step: int, steps: int | None) -> float:
    """The share of what follows that attention shows after so many optimizer steps: from 0 to 1 in `steps`, linearly."""
    return 1.0 if steps is None else min(1.0, step / steps)


def with_next_token(diffusion: torch.Tensor, next_token: torch.Tensor, how: str, weight: float = 1.0) -> torch.Tensor:
    """The loss on masked positions with the next-token loss on the clean half beside it.

    `sum` adds `weight` times the latter (NBDiff: .5). `mean` is `(weight * next_token + diffusion) / (1 + weight)` (TiDAR:
    1). `balanced` scales the latter to the size that the former has at the moment (I-DLM's code; `weight` is not read).
    """
    if how == "sum":
        return diffusion + weight * next_token
    if how == "mean":
        return (weight * next_token + diffusion) / (1 + weight)
    assert how == "balanced", how
    return diffusion + diffusion.detach() / (next_token.detach() + 1e-8) * next_token


def forward_kl(teacher_MV: torch.Tensor, student_MV: torch.Tensor, top_k: int | None = None) -> torch.Tensor:
    """KL(teacher || student) of logits, in nats, `(M,)` float32.

    With `top_k` the teacher's k most likely tokens are told apart and all others count as one: a lower bound, and the whole
    divergence where at most one token is left.
    """
    teacher_MV, student_MV = teacher_MV.float().log_softmax(-1), student_MV.float().log_softmax(-1)
    if top_k is None or top_k >= teacher_MV.shape[-1]:
        return F.kl_div(student_MV, teacher_MV, reduction="none", log_target=True).sum(-1)
    at_MK = teacher_MV.topk(top_k, -1).indices

    def apart(logp_MV: torch.Tensor) -> torch.Tensor:
        rest_M1 = logp_MV.scatter(-1, at_MK, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([logp_MV.gather(-1, at_MK), rest_M1.clamp(min=-80)], -1)

    return F.kl_div(apart(student_MV), apart(teacher_MV), reduction="none", log_target=True).sum(-1)


def mean_of_rows(value_M: torch.Tensor, row_M: torch.Tensor, rows: int) -> torch.Tensor:
    """The mean over rows of each row's mean over its positions; rows without any are left out, and 0 where all are."""
    total_B = value_M.new_zeros(rows).index_add(0, row_M, value_M)
    count_B = torch.bincount(row_M, minlength=rows)
    return (total_B / count_B.clamp(min=1)).sum() / (count_B > 0).sum().clamp(min=1)


def certainty_loss(logits_MV: torch.Tensor, token_M: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Mean entropy, in nats, of `softmax(logits / temperature)` where the most likely token is right; 0 where none is.

    LLaDA2's confidence-aware parallel training and dParallel (2509.26488, Eq. 6) add it to the cross-entropy, so that what
    is right becomes sure and can be committed at once. What is wrong is left alone: its gradient is zero.
    """
    right_M = logits_MV.detach().argmax(-1) == token_M
    logp_RV = (logits_MV[right_M].float() / temperature).log_softmax(-1)
    return -(logp_RV.exp() * logp_RV).sum() / max(1, len(logp_RV))
