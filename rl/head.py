"""Log-probabilities of chosen tokens at the output head, without logits of whole canvases.

While `ScoringHead` is on, the model's output head answers with the log-probabilities of the tokens asked for in place of
logits: hidden states are narrowed to the places asked for, go through the head chunk by chunk, and a chunk's logits are
computed anew in the backward pass. The head runs where the model calls it, so wrappers (PEFT, DDP, sharding) and LoRA on
the head itself work as ever, and so do models whose code comes with the checkpoint. Leaves out models that change their
logits after the head (soft caps, scales): `check_head` finds them.

Axes: B rows, L columns, D hidden size, M places asked for, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lockstitch.sampling.denoiser import Denoiser
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel


def token_logp(
    logits_MV: torch.Tensor, token_M: torch.Tensor, temperature: float, forbidden: Sequence[int]
) -> torch.Tensor:
    """`log softmax(logits / temperature)` of one token each, `(M,)` in float32; forbidden tokens have no probability."""
    scaled_MV = logits_MV.float() / temperature
    closed_V = torch.zeros(scaled_MV.shape[1], dtype=torch.bool, device=scaled_MV.device)
    closed_V[list(forbidden)] = True
    scaled_MV = scaled_MV.masked_fill(closed_V, -torch.inf)
    return scaled_MV.gather(1, token_M[:, None])[:, 0] - scaled_MV.logsumexp(1)


class ScoringHead:
    """A context in which `model`'s logits are `(1, M, 1)`: the log-probabilities of M tokens at M places.

    Args:
        model: the model, wrapped or not.
        place: rows and columns of the pass whose hidden states predict the tokens, `(M,)` each.
        token_M: the tokens.
        temperature: logits are divided by it.
        forbidden: tokens that are never drawn.
        chunk: places whose logits exist at once.
    """

    def __init__(
        self, model: torch.nn.Module, place: tuple[torch.Tensor, torch.Tensor], token_M: torch.Tensor,
        temperature: float, forbidden: Sequence[int], chunk: int,
    ) -> None:  # fmt: skip
        self.head = output_head(model)
        self.place, self.token_M, self.chunk = place, token_M, chunk
        self.temperature, self.forbidden = temperature, forbidden

    def __enter__(self) -> None:
        self.own = self.head.__dict__.get("forward")  # accelerate puts one on the instance
        self.project = self.head.forward
        self.head.forward = self._score

    def __exit__(self, *raised: Any) -> None:
        del self.head.forward
        if self.own is not None:
            self.head.forward = self.own

    def _score(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        hidden_MD = hidden_BLD[self.place]
        project, temperature, forbidden = self.project, self.temperature, self.forbidden

        def score(hidden_CD: torch.Tensor, token_C: torch.Tensor) -> torch.Tensor:
            return token_logp(project(hidden_CD), token_C, temperature, forbidden)

        parts, chunks = [], (torch.split(values, self.chunk) for values in (hidden_MD, self.token_M))
        for hidden_CD, token_C in zip(*chunks, strict=True):
            if torch.is_grad_enabled():
                parts.append(checkpoint(score, hidden_CD, token_C, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(score(hidden_CD, token_C))
        return torch.cat(parts)[None, :, None]


def output_head(model: torch.nn.Module) -> torch.nn.Module:
    """The module that makes logits of hidden states, in a model or a wrapper of it."""
    inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    head: torch.nn.Module | None = inner.get_output_embeddings() if inner is not None else None
    if head is None:
        raise ValueError(f"{type(model).__name__} names no output head (get_output_embeddings): likelihoods need one")
    return head


@torch.no_grad()
def check_head(denoiser: Denoiser) -> None:
    """Raises `ValueError` for a model whose logits are not what its output head says. Costs a pass over two tokens."""
    ids = torch.tensor([[denoiser.eos_ids[0], denoiser.mask_id]], device=denoiser.device)
    token = torch.tensor([denoiser.eos_ids[0]], device=denoiser.device)
    zero, one = torch.zeros_like(token), torch.ones_like(token)
    plain = token_logp(denoiser.raw_logits(denoiser.model, {"input_ids": ids}, None)[0, 1:], token, 1.0, ())
    with ScoringHead(denoiser.model, (zero, one), token, 1.0, (), 1):
        scored = denoiser.raw_logits(denoiser.model, {"input_ids": ids}, None)
    if scored.shape != (1, 1, 1) or not torch.allclose(scored[0, 0], plain, atol=1e-2):
        raise ValueError(f"{type(denoiser.model).__name__} does not answer with what its output head says (a soft cap, a "
                         "scale, tied weights without a module): its likelihoods cannot be read at the head")  # fmt: skip
