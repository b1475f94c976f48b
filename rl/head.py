"""Log-probabilities of chosen tokens at the output head, without logits of whole canvases.

While `ScoringHead` is on, the model's output head answers with the log-probabilities of the tokens asked for (and, if
wanted, the entropies of the distributions that they are drawn from) in place of logits: hidden states are narrowed to the
places asked for and go through the head chunk by chunk; where there are several chunks, their logits are computed anew in
the backward pass. A place that several tokens are asked of has its logits made once. The head runs where the model calls
it, so wrappers (PEFT, DDP, sharding) and LoRA on the head itself work as ever, and so do models whose code comes with the
checkpoint. Leaves out models that change their logits after the head (soft caps, scales): `check_head` finds them.

Axes: B rows, L columns, D hidden size, M tokens asked for, U places that they are asked of, C places of a chunk, T its
tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lockstitch.sampling.denoiser import Denoiser
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel


def token_logp(
    logits_CV: torch.Tensor, place_T: torch.Tensor, token_T: torch.Tensor, temperature: float, forbidden: Sequence[int]
) -> torch.Tensor:
    """`log softmax(logits / temperature)` of tokens at places, `(T,)` in float32; forbidden tokens have no probability.

    Overwrites the logits of forbidden tokens: a copy of all would cost as much as the softmax.
    """
    scaled_CV = _scaled(logits_CV, temperature, forbidden)
    return scaled_CV[place_T, token_T] - scaled_CV.logsumexp(1).index_select(0, place_T)


def token_logp_and_entropy(
    logits_CV: torch.Tensor, place_T: torch.Tensor, token_T: torch.Tensor, temperature: float, forbidden: Sequence[int]
) -> torch.Tensor:
    """`token_logp`, and the entropy of each place's distribution in nats, `(T, 2)`; also overwrites logits."""
    logp_CV = _scaled(logits_CV, temperature, forbidden).log_softmax(1)
    # What is forbidden adds nothing: 0 log 0, and the gradient of it, must not be formed.
    entropy_C = -(logp_CV.exp() * logp_CV.masked_fill(logp_CV == -torch.inf, 0.0)).sum(1)
    return torch.stack([logp_CV[place_T, token_T], entropy_C.index_select(0, place_T)], 1)


def _scaled(logits_CV: torch.Tensor, temperature: float, forbidden: Sequence[int]) -> torch.Tensor:
    scaled_CV = logits_CV.float()
    if temperature != 1:
        scaled_CV = scaled_CV / temperature
    scaled_CV[:, list(forbidden)] = -torch.inf
    return scaled_CV


class ScoringHead:
    """A context in which `model`'s logits are `(1, M, 1)`: the log-probabilities of M tokens at M places.

    With `entropies` they are `(1, M, 2)`: the entropies of the places' distributions come second.

    Args:
        model: the model, wrapped or not.
        place: rows and columns of the pass whose hidden states predict the tokens, `(M,)` each.
        token_M: the tokens.
        temperature: logits are divided by it.
        forbidden: tokens that are never drawn.
        chunk: places whose logits exist at once.
        entropies: whether entropies are wanted as well.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        place: tuple[torch.Tensor, torch.Tensor],
        token_M: torch.Tensor,
        temperature: float,
        forbidden: Sequence[int],
        chunk: int,
        entropies: bool = False,
    ) -> None:
        self.head, self.entropies = output_head(model), entropies
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
        row_M, column_M = self.place
        number_U, place_M = torch.unique(row_M * hidden_BLD.shape[1] + column_M, return_inverse=True)
        hidden_UD = hidden_BLD.flatten(0, 1).index_select(0, number_U)
        place_M, order_M = place_M.sort(stable=True)  # a chunk's tokens stand together
        token_M = self.token_M[order_M]
        project, temperature, forbidden = self.project, self.temperature, self.forbidden
        entropies = self.entropies

        def score(hidden_CD: torch.Tensor, place_T: torch.Tensor, token_T: torch.Tensor) -> torch.Tensor:
            answer = token_logp_and_entropy if entropies else token_logp
            return answer(project(hidden_CD), place_T, token_T, temperature, forbidden).view(-1, 1 + entropies)

        starts = list(range(0, max(1, len(number_U)), self.chunk))
        bounds = torch.searchsorted(
            place_M, torch.tensor([*starts[1:], len(number_U)], device=place_M.device)
        ).tolist()
        parts = []
        for start, first, last in zip(starts, [0, *bounds], bounds, strict=False):
            part = hidden_UD[start : start + self.chunk], place_M[first:last] - start, token_M[first:last]
            if torch.is_grad_enabled() and len(starts) > 1:
                parts.append(checkpoint(score, *part, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(score(*part))
        return torch.cat(parts).index_select(0, order_M.argsort())[None]


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
    plain = token_logp(denoiser.raw_logits(denoiser.model, {"input_ids": ids}, None)[0, 1:], zero, token, 1.0, ())
    with ScoringHead(denoiser.model, (zero, one), token, 1.0, (), 1):
        scored = denoiser.raw_logits(denoiser.model, {"input_ids": ids}, None)
    if scored.shape != (1, 1, 1) or not torch.allclose(scored[0, 0], plain, atol=1e-2):
        raise ValueError(
            f"{type(denoiser.model).__name__} does not answer with what its output head says (a soft cap, a "
            "scale, tied weights without a module): its likelihoods cannot be read at the head"
        )
