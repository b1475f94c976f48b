"""How long each row's canvas is made: grown where the model needs more room (DAEDAL, 2508.00819), or cut before the first
step to the length that the model expects (survival, 2608.26374). The numbers of both are in `lengths.py`.

Axes: B rows in a batch, A some of them, G canvas positions, W positions of the block, T places that are asked for (a row and
a position) and the canvases' tails, M places, V vocabulary.
"""

import time
from typing import TYPE_CHECKING

import torch
from lockstitch.sampling import lengths
from lockstitch.sampling.canvases import Place, places

if TYPE_CHECKING:
    from lockstitch.sampling.denoising import Denoising

LOGITS = 2**28  # most logits that the pass of `cut_to_length` makes at a time, unless one row alone has more


def read_with_end(run: "Denoising", rows_A: torch.Tensor, asked: Place | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits that are asked for, `(M, V)`, and how sure it is that each row ends within its canvas, `(A,)`."""
    canvases = run.canvases
    asked_AG = torch.zeros(len(rows_A), len(run.position_G), dtype=torch.bool, device=canvases.device)
    if asked is not None:
        asked_AG[asked] = True
    length_A = canvases.length_B[rows_A]
    distance_AG = length_A[:, None] - run.position_G
    read_AG = asked_AG | ((distance_AG > 0) & (distance_AG <= lengths.TAIL))
    logits_TV = run.passes.logits(rows_A, places(read_AG))
    eos_ids = canvases.eos_ids.to(logits_TV.device)
    p_end_T = logits_TV.float().softmax(-1)[..., eos_ids].sum(-1) * torch.isin(logits_TV.argmax(-1), eos_ids)
    p_end_AG = torch.zeros_like(read_AG, dtype=p_end_T.dtype).masked_scatter_(read_AG, p_end_T.cpu())
    return logits_TV[asked_AG[read_AG].to(logits_TV.device)], lengths.end_confidence(p_end_AG, length_A)


def grow_to_fit(run: "Denoising") -> None:
    """Lets the empty canvas grow until the model is fairly sure to end within it."""
    canvases, room = run.canvases, len(run.position_G)
    rows_A = (canvases.length_B < room).nonzero()[:, 0]
    while len(rows_A):
        began = time.perf_counter()
        _, end_A = read_with_end(run, rows_A, None)
        canvases.spend(rows_A, began)
        enough_A = end_A >= lengths.ENOUGH_TO_START
        for row, enough in zip(rows_A.tolist(), enough_A.tolist(), strict=True):
            length = int(canvases.length_B[row])
            canvases.grow(row, length, min(lengths.MARGIN if enough else lengths.GROW, room - length))
        rows_A = rows_A[~enough_A & (canvases.length_B[rows_A] < room)]


def make_room(
    run: "Denoising",
    rows_A: torch.Tensor,
    start: int,
    confidence_AW: torch.Tensor,
    masked_AW: torch.Tensor,
    end_A: torch.Tensor,
) -> None:
    """Puts eight masks in the place of a block's least sure one, in rows that do not see their end yet."""
    canvases, room = run.canvases, len(run.position_G)
    position_A = lengths.needs_room(confidence_AW, masked_AW)
    for a in ((position_A >= 0) & (end_A < lengths.ENOUGH_TO_GO_ON)).nonzero()[:, 0].tolist():
        row = int(rows_A[a])
        canvases.grow(row, start + int(position_A[a]), min(lengths.GROW - 1, room - int(canvases.length_B[row])))


def cut_to_length(run: "Denoising") -> None:
    """Cuts every row's empty canvas to the length that one pass over all of it expects, in whole blocks.

    Rows of one prompt are read as one, and each is billed for the pass that it would have taken alone.
    """
    began, canvases, passes = time.perf_counter(), run.canvases, run.passes
    first_of: dict[tuple[int, ...], int] = {}
    source_B = [first_of.setdefault(ids, b) for b, ids in enumerate(canvases.prompts)]
    V = run.denoiser.model.config.get_text_config().vocab_size
    portion = max(1, LOGITS // (len(run.position_G) * V))
    firsts_U = torch.tensor([*first_of.values()], device=canvases.device)
    for at in range(0, len(firsts_U), portion):
        rows_A = firsts_U[at : at + portion]
        passes.open_block((0,), 0)  # whatever is kept, a first pass reads all
        asked_AG = canvases.masked_BG[rows_A]
        logits_MV = passes.logits(rows_A, places(asked_AG)).float()
        logits_MV[:, run.forbidden] = -torch.inf
        p_end_M = logits_MV.softmax(-1)[:, canvases.eos_ids.to(logits_MV.device)].sum(-1)
        p_end_AG = p_end_M.cpu().view(asked_AG.shape)
        canvases.length_B[rows_A] = lengths.in_blocks(lengths.expected(p_end_AG), run.config.block)
    passes.bill([b for b, source in enumerate(source_B) if b != source])
    canvases.cut(canvases.length_B[torch.tensor(source_B, device=canvases.device)])
    canvases.spend(torch.arange(len(source_B)), began)
