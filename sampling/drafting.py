"""Draft and verify in one pass: masks draft the next tokens, causal logits check the last ones, and both cost one pass.

After a pass each row has one token that is certain (the first that was not drafted right, or the one after all that were)
and behind it a draft, drawn from the masks that stood after the tokens that were kept. The next pass reads both.

- `agreement` (TiDAR, 2511.08923): each place has one token, drawn from trust x causal + (1 - trust) x drafting logits by the
  noise of that place, and drafted tokens are kept for as long as they are these. So a draft changes how many passes a text
  takes, never the text: with trust 1 it is the one that token-by-token decoding draws, at any temperature.
- `ratio` (I-DLM, 2604.11035; 2211.17192, Alg. 1): a drafted token is kept with probability min(1, p / (lenience q)), the
  first that is not is drawn from max(0, p - lenience q), scaled. At lenience 1 a text has the causal model's distribution.

Axes: A active rows, D drafted tokens (the first certain), N blocks of masks, W masks of a block, M places, V vocabulary.
"""

import time
from typing import Any

import torch
from lockstitch.sampling.canvases import places
from lockstitch.sampling.denoising import Denoising
from lockstitch.sampling.draft_passes import Answer, DraftPasses
from lockstitch.sampling.noise import uniform
from lockstitch.sampling.tokens import Drawn, draw, keep_likely, on_host
from lockstitch.sampling.trajectory import Trajectory

_KEEP, _INSTEAD = 3, 4  # streams of noise beside those of denoising: whether a draft is kept, and what stands instead


class Drafting(Denoising):
    """A batch whose canvases are written from left to right, several tokens a pass.

    Attributes:
        drafts: what answers with logits.
    """

    def __init__(self, *arguments: Any) -> None:
        """As for `Denoising`."""
        super().__init__(*arguments)
        self.drafts = DraftPasses(self.denoiser, self.canvases, self.config)
        self.by_ratio = self.config.acceptance == "ratio" and self.config.temperature > 0  # at 0 both are one
        self.written_B = torch.zeros_like(self.canvases.step_B)  # tokens of the canvas that are certain
        self.count_B = torch.ones_like(self.written_B)  # drafted tokens, with the certain one before them
        self.draft_BG = self.canvases.canvas_BG.clone()
        # Under `ratio`: the distribution that each drafted token was drawn from, by its place in the draft.
        self.q_BWV: torch.Tensor | None = None

    def run(self) -> list[Trajectory]:
        """Writes until every row is full, or ends."""
        canvases, drafts = self.canvases, self.drafts
        if self.config.stop_at_eos:
            canvases.stop_finished()  # a pinned canvas may hold its EOS already
        self._show(torch.arange(len(self.rows), device=canvases.device))
        while True:
            active_A = (canvases.running_B & canvases.masked_BG.any(1)).nonzero()[:, 0]
            if not len(active_A):
                bill = (drafts.nfe_B.tolist(), drafts.tokens_B.tolist(), drafts.waits_B.tolist())
                return canvases.trajectories(self.denoiser, self.rows, *bill)
            self._pass(active_A)

    def _pass(self, rows_A: torch.Tensor) -> None:
        began, canvases = time.perf_counter(), self.canvases
        written_A, G = self.written_B[rows_A], canvases.masked_BG.shape[1]
        count_A = self.count_B[rows_A].minimum(G - written_A)
        ids_AL = canvases.ids_BL[rows_A]
        ids_AL[:, canvases.width :] = self.draft_BG[rows_A]
        end_A = canvases.width + written_A + count_A - 1
        answer = self.drafts.ask(rows_A, end_A, ids_AL, count_A)

        D = answer.causal_ADV.shape[1]
        place_AD = written_A[:, None] - answer.start_A[:, None] + torch.arange(D, device=rows_A.device)
        asked_AD = place_AD >= written_A[:, None]
        drawn, kept_A = self._verify(rows_A, answer, place_AD, asked_AD)
        commit_AD = asked_AD & (place_AD <= (written_A + kept_A)[:, None])
        pinned_AD = canvases.pinned_BG[rows_A].gather(1, place_AD.clamp(min=0))
        if self.config.stop_at_eos:  # what is drafted after an end is not written
            is_end_AD = torch.isin(drawn.token, canvases.eos_ids) & commit_AD
            commit_AD &= is_end_AD.long().cumsum(1) - is_end_AD.long() == 0
        canvases.begin_step(rows_A)
        row_M, d_M = places(commit_AD & ~pinned_AD)
        at = (rows_A[row_M], place_AD[row_M, d_M])
        block_M = canvases.step_B[at[0]] - 1  # that of the pass before, which drafted it
        canvases.commit(at, Drawn(*(values[row_M, d_M] for values in drawn)), block_M)
        self.written_B[rows_A] += kept_A + 1
        self.drafts.keep(rows_A, canvases.width + written_A + kept_A)
        self._draft_on(rows_A, answer, kept_A)
        canvases.spend(rows_A, began)
        self._show(rows_A)
        if self.config.stop_at_eos:
            canvases.stop_finished()

    def _verify(
        self, rows_A: torch.Tensor, answer: Answer, place_AD: torch.Tensor, asked_AD: torch.Tensor
    ) -> tuple[Drawn, torch.Tensor]:
        """The token of each place `(A, D)`, right up to the first that was drafted wrong; how many were right, `(A,)`."""
        canvases = self.canvases
        logits_MV = answer.causal_ADV[asked_AD]
        trust = 1.0 if self.config.trust is None else self.config.trust
        if trust < 1:
            # After each drafted token stands a block of masks, of which the first answers for the same place as the token.
            first_MV = self.drafts.head(answer.hidden_ANWH[:, :, 0][asked_AD])
            logits_MV = trust * logits_MV + (1 - trust) * first_MV
        self._ban(logits_MV, rows_A, place_AD, asked_AD)
        if self.by_ratio:
            drawn_M, kept_AD = self._by_ratio(rows_A, logits_MV, place_AD, asked_AD)
            drawn = on_host(drawn_M, *places(asked_AD), asked_AD.shape)
        else:
            drawn_M = self._draw_at(rows_A, logits_MV, place_AD, asked_AD)
            drawn = on_host(drawn_M, *places(asked_AD), asked_AD.shape)
            kept_AD = torch.zeros_like(asked_AD)
        self.check_finite(drawn.entropy, rows_A)
        inside_AD = place_AD.clamp(min=0)
        pinned_AD = canvases.pinned_BG[rows_A].gather(1, inside_AD)
        token_AD = torch.where(pinned_AD, canvases.canvas_BG[rows_A].gather(1, inside_AD), drawn.token)
        drawn = Drawn(token_AD, drawn.confidence, drawn.entropy, drawn.certainty)
        if not self.by_ratio:
            kept_AD = token_AD == self.draft_BG[rows_A].gather(1, inside_AD)
        kept_AD = (kept_AD | pinned_AD) & asked_AD
        kept_AD[:, -1] = False  # nothing was drafted for the place after the draft
        return drawn, (kept_AD | ~asked_AD).long().cumprod(1).where(asked_AD, 0).sum(1)

    def _by_ratio(
        self, rows_A: torch.Tensor, logits_MV: torch.Tensor, place_AD: torch.Tensor, asked_AD: torch.Tensor
    ) -> tuple[Drawn, torch.Tensor]:
        """Candidates of the asked places, and whether the drafted token is kept there, bool `(A, D)`."""
        lenience = 1.0 if self.config.lenience is None else self.config.lenience
        row_M, d_M = places(asked_AD)
        seeds_M, place_M = self.canvases.seeds_B[rows_A[row_M]], place_AD[row_M, d_M]
        p_MV, device = self._distribution(logits_MV), logits_MV.device
        q_MV = torch.zeros_like(p_MV)
        start_A = asked_AD.long().argmax(1)
        nth_M = d_M - start_A[row_M]  # of the draft
        drafted_M = d_M < asked_AD.shape[1] - 1
        if self.q_BWV is not None:
            q_MV[drafted_M] = self.q_BWV[rows_A[row_M[drafted_M]], nth_M[drafted_M]]
        draft_M, drafted_M = self.draft_BG[rows_A[row_M], place_M].to(device), drafted_M.to(device)
        keep_u_M, instead_u_M = (_noise(seeds_M, place_M, stream).to(device) for stream in (_KEEP, _INSTEAD))
        p_M, q_M = (values.gather(1, draft_M[:, None])[:, 0] for values in (p_MV, q_MV))
        kept_M = drafted_M & (keep_u_M * lenience * q_M < p_M)
        over_MV = (p_MV - lenience * q_MV).clamp_(min=0)
        over_MV = torch.where(over_MV.sum(1, keepdim=True) > 0, over_MV, p_MV)
        cumulative = over_MV.cumsum(1)
        other_M = torch.searchsorted(cumulative, (instead_u_M * cumulative[:, -1])[:, None], right=True)[:, 0]
        token_M = torch.where(kept_M, draft_M, other_M.clamp(max=p_MV.shape[1] - 1))
        plain = draw(logits_MV, None, 0.0, self.forbidden)
        p_plain_M = logits_MV.float().softmax(-1).gather(1, token_M[:, None])[:, 0]
        kept_AD = torch.zeros_like(asked_AD).masked_scatter_(asked_AD, kept_M.cpu())
        return Drawn(token_M, p_plain_M, plain.entropy, p_plain_M), kept_AD

    def _distribution(self, logits_MV: torch.Tensor) -> torch.Tensor:
        """What tokens are drawn from, `(M, V)` in double precision: temperature, top-k and top-p applied."""
        logits_MV = logits_MV.float()
        logits_MV[:, self.forbidden] = -torch.inf
        likely_MV = keep_likely(logits_MV / self.config.temperature, self.config.top_k, self.config.top_p)
        return likely_MV.double().softmax(-1)

    def _draw_at(
        self, rows_A: torch.Tensor, logits_MV: torch.Tensor, place_AD: torch.Tensor, asked_AD: torch.Tensor
    ) -> Drawn:
        """Candidates of the asked places, by the noise of each place alone."""
        config, noise_M = self.config, None
        if config.temperature > 0:
            row_M, d_M = places(asked_AD)
            noise_M = _noise(self.canvases.seeds_B[rows_A[row_M]], place_AD[row_M, d_M], 0).to(logits_MV.device)
        return draw(logits_MV, noise_M, config.temperature, self.forbidden, config.top_k, config.top_p)

    def _ban(
        self, logits_MV: torch.Tensor, rows_A: torch.Tensor, place_AD: torch.Tensor, asked_AD: torch.Tensor
    ) -> None:
        """Sets the logits of what must not be committed at the asked places."""
        row_M, d_M = places(asked_AD)
        self.canvases.ban(logits_MV, rows_A, (row_M, place_AD[row_M, d_M]))

    def _draft_on(self, rows_A: torch.Tensor, answer: Answer, kept_A: torch.Tensor) -> None:
        """Draws what comes after the token that is certain now, from the masks after the last token that was kept."""
        canvases, W = self.canvases, self.drafts.width
        skip = int(not self.denoiser.family.shifted)  # the first mask answers for the certain token itself
        G, blocks = self.draft_BG.shape[1], answer.hidden_ANWH.shape[1]
        self.count_B[rows_A] = 1
        self.draft_BG[rows_A] = canvases.canvas_BG[rows_A]
        if skip >= W:
            return
        last_A = answer.start_A + kept_A  # among D
        has_A = canvases.masked_BG[rows_A].any(1)
        if self.config.drafts == "last":
            has_A = has_A & (last_A == answer.causal_ADV.shape[1] - 1)
            last_A = torch.zeros_like(last_A)
        place_AW = self.written_B[rows_A][:, None] + torch.arange(W - skip, device=rows_A.device)
        asked_AW = has_A[:, None] & (place_AW < G)
        self.count_B[rows_A] = 1 + asked_AW.sum(1)
        if not bool(asked_AW.any()):
            return
        hidden_AWH = answer.hidden_ANWH[torch.arange(len(rows_A), device=rows_A.device), last_A.clamp(max=blocks - 1)]
        logits_MV = self.drafts.head(hidden_AWH[:, skip:][asked_AW])
        self._ban(logits_MV, rows_A, place_AW, asked_AW)
        row_M, w_M = places(asked_AW)
        at = (rows_A[row_M], place_AW[row_M, w_M])
        if self.by_ratio:
            q_MV = self._distribution(logits_MV.clone())
            if self.q_BWV is None:
                self.q_BWV = q_MV.new_zeros(len(canvases.step_B), W - skip, q_MV.shape[1])
            self.q_BWV[at[0], w_M] = q_MV
        token_M = self._draw_at(rows_A, logits_MV, place_AW, asked_AW).token.cpu()
        pinned_M = canvases.pinned_BG[at]
        self.draft_BG[at] = torch.where(pinned_M, canvases.canvas_BG[at], token_M)


def _noise(seeds_M: torch.Tensor, place_M: torch.Tensor, stream: int) -> torch.Tensor:
    """Uniform draws of places `(M,)`, each by its row's seed; a place is drawn for once in each stream."""
    places, which_M = torch.unique(place_M, return_inverse=True)
    seeds, of_M = torch.unique(seeds_M, return_inverse=True)
    return uniform(seeds, 0, 0, places, stream)[of_M, which_M]
