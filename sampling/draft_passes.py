"""The pass of `policy=verify`: drafted tokens are read causally, and masks after them draft what comes next.

    columns   [ masks | prompt and canvas ]        one store of keys, in place by column
    a pass    [ what is not read yet, drafted tokens | a block of masks for each count of them that may be kept ]

What is written sees what is written before it, and nothing else, so its logits are the causal model's. A block of masks sees
what is written up to the drafted token that it stands after, and itself: both ways in context-causal models (TiDAR, NBDiff),
backwards in causal ones (I-DLM). Positions go on from that token. Keys of drafted tokens that are not kept are written over
by the next pass, and nothing sees them before that.

Axes: B rows of the batch, A active ones, D drafted tokens of a pass (the first is certain), N blocks of masks, W masks of a
block, Q columns of a pass, L columns of prompt and canvas, K columns of the store, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from lockstitch.sampling.canvases import Canvases
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.keys import Store


@dataclass(frozen=True)
class Answer:
    """What a pass says of the active rows.

    Attributes:
        causal_ADV: logits after each drafted token; rows with fewer drafted tokens than others have noise in front.
        hidden_ANWH: what the masks came to, of which the head makes logits; N is 0 where no masks were sent.
        start_A: at which D a row's own drafted tokens begin.
    """

    causal_ADV: torch.Tensor
    hidden_ANWH: torch.Tensor
    start_A: torch.Tensor


class DraftPasses:
    """Answers for drafted tokens and the masks after them, and keeps the bill (see `Passes`).

    Attributes:
        nfe_B: forward passes that each trajectory took part in.
        tokens_B: tokens that they processed, padding left out.
        waits_B: passes that had to wait for one another.
        read_B: columns of each row, padding included, whose keys are there to stay.
    """

    def __init__(self, denoiser: Denoiser, canvases: Canvases, config: SamplerConfig) -> None:
        self.denoiser, self.canvases = denoiser, canvases
        self.keeps, self.each = config.cache == "block", config.drafts != "last"
        self.both_ways = denoiser.family.layout == "context_causal"
        # Shifted masks answer for the token after them, and the first of a draft comes from what is written.
        block = min(config.block, config.canvas_length)  # no pass checks more than there is to write
        self.width = block - int(denoiser.family.shifted)
        if block == 1 and config.trust in (None, 1):
            self.width = 0  # nothing is drafted beyond the token that is certain
        B, L = canvases.ids_BL.shape
        self.room = self.width * (block if self.each else 1)
        self.store = Store(denoiser.model.config.num_hidden_layers, B, self.room + L + 1)
        self.spare = self.room + L  # a column that nothing sees
        self.nfe_B = torch.zeros(B, dtype=torch.long, device=canvases.device)
        self.tokens_B, self.waits_B, self.read_B = (torch.zeros_like(self.nfe_B) for _ in range(3))

    def ask(
        self, rows_A: torch.Tensor, end_A: torch.Tensor, drafted_AL: torch.Tensor, count_A: torch.Tensor
    ) -> Answer:
        """One pass of the given rows.

        Args:
            rows_A: rows of the batch, rising.
            end_A: columns of prompt and canvas up to and with the last drafted token.
            drafted_AL: tokens of prompt and canvas, drafted ones included.
            count_A: drafted tokens of each row, the certain one included; at least 1.
        """
        first_A = self.read_B[rows_A] if self.keeps else torch.zeros_like(rows_A)
        D = int(count_A.max())
        blocks = (D if self.each else 1) if self.width else 0
        # What is written stands at the right of its part, so that drafted tokens are the last D of every row.
        Q = int((end_A - first_A).max())
        column_AQ = end_A[:, None] - Q + torch.arange(Q, device=rows_A.device)
        real_AQ = column_AQ >= first_A[:, None]
        inside_AQ = column_AQ.clamp(min=0)
        real_AQ = real_AQ & self.canvases.attention_BL[rows_A].gather(1, inside_AQ).bool()
        anchor_AN, there_AN = self._anchors(end_A, count_A, blocks)
        k_W = torch.arange(self.width, device=rows_A.device)
        mask_AM = torch.full((len(rows_A), blocks * self.width), self.denoiser.mask_id, device=rows_A.device)
        place_M = torch.arange(blocks * self.width, device=rows_A.device)
        ids_AQ = torch.cat([drafted_AL.gather(1, inside_AQ).where(real_AQ, self.denoiser.pad_id), mask_AM], 1)
        position_AL = self.canvases.position_BL[rows_A]
        mask_position_ANW = position_AL.gather(1, anchor_AN)[:, :, None] + 1 + k_W
        position_AQ = torch.cat([position_AL.gather(1, inside_AQ), mask_position_ANW.flatten(1)], 1)
        stored_AQ = torch.where(real_AQ, self.room + column_AQ, self.spare)
        stored_AQ = torch.cat([stored_AQ, place_M.expand(len(rows_A), -1)], 1)
        seen = self.room + int(end_A.max())
        seen_AQK = self._seen(rows_A, column_AQ.where(real_AQ, -1), anchor_AN, there_AN, seen)

        self.nfe_B[rows_A] += 1
        self.waits_B[rows_A] += 1
        self.tokens_B[rows_A] += real_AQ.sum(1) + there_AN.sum(1) * self.width
        dtype, device = self.denoiser.model.dtype, self.denoiser.device
        hidden_AQK = (~seen_AQK).to(device)
        attention = torch.zeros(seen_AQK.shape, dtype=dtype, device=device)
        self.store.begin(rows_A.to(device), stored_AQ.to(device), seen)
        arguments: dict[str, Any] = {
            "input_ids": ids_AQ.to(device),
            "position_ids": position_AQ.to(device),
            "attention_mask": attention.masked_fill_(hidden_AQK, torch.finfo(dtype).min)[:, None],
            "past_key_values": self.store,
        }
        kept = torch.arange(Q - D, Q + len(place_M), device=device)
        causal_ADV, hidden_AMH = self._forward(arguments, kept, D)
        hidden_ANWH = hidden_AMH.view(len(rows_A), blocks, self.width, -1) if blocks else hidden_AMH[:, None]
        return Answer(causal_ADV, hidden_ANWH, D - count_A)

    def keep(self, rows_A: torch.Tensor, end_A: torch.Tensor) -> None:
        """After a pass: rows keep the keys of their first `end_A` columns."""
        self.read_B[rows_A] = end_A

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits `(..., V)` of what masks came to."""
        logits: torch.Tensor = self.denoiser.model.get_output_embeddings()(hidden)
        return logits

    def _anchors(self, end_A: torch.Tensor, count_A: torch.Tensor, blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The column that each block of masks stands after, `(A, N)`, and whether it is sent for that row."""
        if not self.each:
            return (end_A - 1)[:, None].expand(-1, blocks), torch.ones_like(end_A, dtype=torch.bool)[:, None].expand(
                -1, blocks
            )
        back_N = torch.arange(blocks, 0, -1, device=end_A.device)
        return (end_A[:, None] - back_N).clamp(min=0), back_N <= count_A[:, None]

    def _seen(
        self, rows_A: torch.Tensor, column_AQ: torch.Tensor, anchor_AN: torch.Tensor, there_AN: torch.Tensor, seen: int
    ) -> torch.Tensor:
        """Which columns of the store each column of the pass sees, bool `(A, Q, K)`; `column_AQ` is -1 for filler."""
        device, L = rows_A.device, seen - self.room
        real_AL = self.canvases.attention_BL[rows_A, :L].bool()
        last_AQ = torch.cat([column_AQ, anchor_AN.repeat_interleave(self.width, 1)], 1) if self.width else column_AQ
        text_AQL = (torch.arange(L, device=device) <= last_AQ[:, :, None]) & real_AL[:, None]
        masks = self.room
        seen_AQM = torch.zeros(*last_AQ.shape, masks, dtype=torch.bool, device=device)
        if self.width and anchor_AN.shape[1]:
            M = anchor_AN.shape[1] * self.width
            place_M = torch.arange(M, device=device)
            own_MM = (place_M // self.width)[:, None] == place_M // self.width
            if not self.both_ways:
                own_MM = own_MM & (place_M <= place_M[:, None])
            seen_AQM[:, -M:, :M] = own_MM
        return torch.cat([seen_AQM, text_AQL], 2)

    def _forward(self, arguments: dict[str, Any], kept: torch.Tensor, D: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits after the drafted tokens `(A, D, V)`, and what the masks behind them came to, before the head."""
        held: list[torch.Tensor] = []

        def part(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            held.append(inputs[0][:, D:])
            return (inputs[0][:, :D],)

        handle = self.denoiser.model.get_output_embeddings().register_forward_pre_hook(part)
        try:
            logits: torch.Tensor = self.denoiser.model(**arguments, logits_to_keep=kept).logits
        finally:
            handle.remove()
        return logits, held[0]
