"""From logits to candidate tokens, with how sure the model is of each.

Axes: `...` positions in any arrangement, M all of them in a row, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

CPU_SLICE = 2**20  # logits worked on at a time, so that what is made of them stays in the processor's cache
SLICE = 2**26  # and elsewhere, where only memory counts


class Drawn(NamedTuple):
    """Candidates of some positions, each field of shape `(...)`.

    Attributes:
        token: the candidate.
        confidence: its probability at temperature 1, whatever it was drawn from.
        entropy: of the distribution at temperature 1, in nats.
        certainty: what a policy ranks by: the confidence, the margin, or exp(-entropy).
    """

    token: torch.Tensor
    confidence: torch.Tensor
    entropy: torch.Tensor
    certainty: torch.Tensor


def on_host(drawn_M: Drawn, row_M: torch.Tensor, column_M: torch.Tensor, shape: Sequence[int]) -> Drawn:
    """Candidates `(M, ...)` laid out in host memory, each field `(*shape, ...)`: 0 where there is none.

    One transfer brings all of them, as bits; so a step that decides on the host waits for the device once.
    """
    bits_4M = torch.stack([drawn_M.token.int(), *(values.view(torch.int32) for values in drawn_M[1:])]).cpu()
    size_4AW = (4, *shape, *bits_4M.shape[2:])
    if len(row_M) == shape[0] * shape[1]:  # every place, row by row
        bits_4AW = bits_4M.view(size_4AW)
    else:
        bits_4AW = bits_4M.new_zeros(size_4AW)
        bits_4AW[:, row_M, column_M] = bits_4M
    return Drawn(bits_4AW[0].long(), *bits_4AW[1:].view(torch.float32))


class NotANumberError(ValueError):
    """A model's logits from which nothing can be drawn."""


def draw(
    logits: torch.Tensor,
    uniform: torch.Tensor | None,
    temperature: float,
    forbidden: Sequence[int] | torch.Tensor,
    top_k: int | None = None,
    top_p: float | None = None,
    certainty: str | None = None,
) -> Drawn:
    """A candidate for each position of `logits` `(..., V)`, which it overwrites; several, `(..., D)`, if so many numbers of
    `uniform` are given for each.

    A token is drawn from softmax(logits / temperature) by inverting its cumulative distribution at `uniform` (`(...)`, in
    [0, 1)), or is the most likely one at temperature 0, where `uniform` is None. Forbidden ids have probability 0; `top_k`
    and then `top_p` cut the tail of what is drawn from (see `keep_likely`). float32 throughout; the cumulative sum is
    float64. Works on a slice of the positions at a time, which changes speed and memory and nothing else. Logits that are no
    numbers give an entropy that is none.
    """
    V = logits.shape[-1]
    shape = logits.shape[:-1] if uniform is None else uniform.shape
    logits_MV, D = logits.reshape(-1, V), 1 if len(shape) < logits.dim() else shape[-1]
    uniform_MD = None if uniform is None else uniform.reshape(len(logits_MV), D)
    forbidden = torch.as_tensor(forbidden, dtype=torch.long, device=logits.device)
    size = max(1, (CPU_SLICE if logits.device.type == "cpu" else SLICE) // V)
    settings = temperature, forbidden, top_k, top_p, certainty

    def part(rows: slice) -> Drawn:
        return _draw(logits_MV[rows], None if uniform_MD is None else uniform_MD[rows], *settings)

    if len(logits_MV) <= size:
        whole = _draw(logits_MV, uniform_MD, *settings)
    else:
        parts = [part(slice(at, at + size)) for at in range(0, len(logits_MV), size)]
        whole = Drawn(*map(torch.cat, zip(*parts, strict=True)))
    return Drawn(*(values.reshape(shape) for values in whole))


def _draw(
    logits: torch.Tensor,
    uniform_MD: torch.Tensor | None,
    temperature: float,
    forbidden: torch.Tensor,
    top_k: int | None,
    top_p: float | None,
    certainty: str | None,
) -> Drawn:
    """Candidates `(M, D)` of logits `(M, V)`."""
    logits = logits.float()
    logits.index_fill_(-1, forbidden, -torch.inf)
    logp = logits.log_softmax(-1).clamp_(min=torch.finfo(logits.dtype).min)  # so that 0 log 0 is 0
    p = logp.exp()
    entropy = -(p * logp).sum(-1, keepdim=True)
    if temperature == 0:
        token = logp.argmax(-1, keepdim=True)
    else:
        assert uniform_MD is not None
        cumulative = keep_likely(logp / temperature, top_k, top_p).softmax(-1).double().cumsum(-1)
        token = torch.searchsorted(cumulative, uniform_MD.to(cumulative) * cumulative[:, -1:], right=True)
        token.clamp_(max=logits.shape[-1] - 1)  # past the last one where there are no numbers
    confidence = p.gather(-1, token)
    entropy = entropy.expand_as(confidence)
    if certainty == "margin":
        best = p.topk(2, dim=-1).values
        return Drawn(token, confidence, entropy, (best[:, :1] - best[:, 1:]).expand_as(confidence))
    return Drawn(token, confidence, entropy, torch.exp(-entropy) if certainty == "entropy" else confidence)


def keep_likely(logits: torch.Tensor, top_k: int | None, top_p: float | None) -> torch.Tensor:
    """Logits `(..., V)` with all but the likely tokens at -inf.

    Those are the `top_k` most likely ones, and of them the fewest whose share of the probability reaches `top_p`; ties go
    to the lower id.
    """
    if top_k is None and top_p is None:
        return logits
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ranked[..., top_k:] = -torch.inf
    if top_p is not None:
        p = ranked.softmax(-1)
        ranked = ranked.masked_fill(p.double().cumsum(-1) - p >= top_p, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, ranked)


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance: log-odds pushed away from those without the prompt (LLaDA, 2502.09992)."""
    return unconditional + (scale + 1) * (conditional - unconditional)
