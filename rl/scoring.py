"""What likelihood estimators need of a model: log-probabilities of a canvas's own tokens, given some of them.

One face for every family. Nothing of size `[B, L, V]` is ever made (see `lockstitch.rl.head`). Rows are scored each by
itself: neither the padding of the prompts nor the rows beside it change a row's numbers. Rows that are the same to the model
(completions of a prompt, as long as nothing of them is shown) pass as one. Leaves out how what is shown is chosen: that is
the estimators' work.

Axes: B rows (completions), U rows of a pass, P prompt columns (left-padded), G canvas positions, L = P + G, M tokens asked
for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from lockstitch.rl.head import ScoringHead
from lockstitch.rl.packing import check_block_length, packed_pass
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.trajectory import Trajectory
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

_LOGITS_AT_ONCE = 1 << 24  # 64 MiB in float32


@dataclass(frozen=True)
class Canvases:
    """Completions to be scored, one per row.

    Attributes:
        prompt_BP: prompt tokens, left-padded.
        prompt_mask_BP: 1 (or True) where a prompt token is real.
        completion_BG: tokens of the whole canvas, as the rollout left them.
        valid_BG: True up to and with the first EOS.
        seeds_B: int64, the seed of each row's noise.
        commit_step_BG: the trace: the denoising step at which a position got its token, 0 where it was given, -1 where it
            got none. None if unknown: every position then counts as denoised.
        block_BG: the trace: the block whose denoising committed a position.
        fork_BG: the trace: bool, where a fork stands (see `Trajectory.forks`).
        confidence_BG: the trace: how probable each token was when it was committed, at temperature 1.
        clean_BKG: bool, the tokens that each visit of an estimate counts under `clean_threshold`, as the policy that sampled
            finds them. None is as the scored one finds them.
        prompt_seeds_B: int64, the seed of the noise in each row's prompt, the same for rows that are to see the same one.
            None is `seeds_B`.
    """

    prompt_BP: torch.Tensor
    prompt_mask_BP: torch.Tensor
    completion_BG: torch.Tensor
    valid_BG: torch.Tensor
    seeds_B: torch.Tensor
    commit_step_BG: torch.Tensor | None = None
    block_BG: torch.Tensor | None = None
    prompt_seeds_B: torch.Tensor | None = None
    fork_BG: torch.Tensor | None = None
    confidence_BG: torch.Tensor | None = None
    clean_BKG: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.completion_BG.shape[0]

    def rows(self, index: slice | torch.Tensor) -> "Canvases":
        """Some of the rows."""
        whole: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        parts: dict[str, Any] = {name: None if value is None else value[index] for name, value in whole.items()}
        return Canvases(**parts)

    @classmethod
    def from_trajectories(
        cls, trajectories: Sequence[Trajectory], denoiser: Denoiser, seeds: Sequence[int] | None = None
    ) -> "Canvases":
        """The canvases of trajectories, with their own seeds unless others are given.

        Raises `ValueError` for canvases of different lengths.
        """
        lengths = sorted({len(t.canvas_ids) for t in trajectories})
        if len(lengths) != 1:
            raise ValueError(f"canvases of {lengths} positions: one length for all")
        device, width = denoiser.device, max(len(t.prompt_ids) for t in trajectories)
        real = [[0] * (width - len(t.prompt_ids)) + [1] * len(t.prompt_ids) for t in trajectories]
        prompts = [[denoiser.pad_id] * (width - len(t.prompt_ids)) + list(t.prompt_ids) for t in trajectories]
        ends = torch.tensor([[t.length] for t in trajectories])
        return cls(
            prompt_BP=torch.tensor(prompts, device=device),
            prompt_mask_BP=torch.tensor(real, device=device),
            completion_BG=torch.tensor([t.canvas_ids for t in trajectories], device=device),
            valid_BG=(torch.arange(lengths[0]) < ends).to(device),
            seeds_B=torch.tensor([t.seed for t in trajectories] if seeds is None else list(seeds), device=device),
            commit_step_BG=torch.tensor([t.commit_step for t in trajectories], device=device),
            block_BG=torch.tensor([t.block for t in trajectories], device=device),
            fork_BG=forks_of(trajectories, device),
            confidence_BG=torch.tensor([t.confidence for t in trajectories], device=device),
        )


def forks_of(trajectories: Sequence[Trajectory], device: torch.device) -> torch.Tensor:
    """Where forks stand on canvases of one length, bool `(B, G)`."""
    fork_BG = torch.zeros(len(trajectories), len(trajectories[0].canvas_ids), dtype=torch.bool)
    for fork_G, trajectory in zip(fork_BG, trajectories, strict=True):
        fork_G[list(trajectory.forks)] = True
    return fork_BG.to(device)


class Scorer:
    """Answers how likely a model finds the tokens of canvases.

    Args:
        denoiser: says how the family is called, and which tokens are never drawn (the mask, and padding that is no EOS):
            as in the sampler, they have no probability.
        model: the denoiser's model or a wrapper of it (PEFT, DDP, accelerate).
        temperature: logits are divided by it; the papers score at 1 whatever temperature the rollouts had.
        block_length: the sampler's, for families that denoise block by block; None for those that attend fully.
        logits_at_once: how many logits may exist at a time.
        recomputes: whether passes that are asked to (those of estimates that take several) are run again in the backward
            pass. If not, all of their activations are kept: faster by a forward pass, as long as there is memory.
        entropies: whether it also answers with the entropy of the distribution that each asked token is drawn from.
        shares_prompts: whether rows of one prompt have it computed once, in families whose prompts do not see the canvas.
            Off for sharded models: how many passes that makes depends on the rows, and ranks must make as many.

    Raises `ValueError` for a temperature that is not positive, for a block length that is missing or has no meaning, and for
    a model whose own code cannot be trained.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        model: torch.nn.Module,
        temperature: float = 1.0,
        block_length: int | None = None,
        logits_at_once: int = _LOGITS_AT_ONCE,
        recomputes: bool = True,
        shares_prompts: bool = True,
        entropies: bool = False,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: likelihoods need a positive one")
        check_block_length(denoiser.family, block_length)
        check_trains(denoiser)
        self.denoiser, self.model, self.family = denoiser, model, denoiser.family
        self.temperature, self.block_length = temperature, block_length
        self.recomputes, self.shares_prompts, self.entropies = recomputes, shares_prompts, entropies
        self.chunk = max(1, logits_at_once // denoiser.model.config.get_text_config().vocab_size)
        self.forbidden = denoiser.never_drawn

    def __call__(
        self,
        canvases: Canvases,
        shown_BG: torch.Tensor,
        asked_BG: torch.Tensor,
        prompt_BP: torch.Tensor | None = None,
        recompute: bool = False,
    ) -> torch.Tensor:
        """Log-probability of each asked token given the prompt and the shown ones, `(B, G)` float32, 0 where none is asked.

        A scorer with `entropies` answers `(B, G, 2)`: the entropy in nats of each asked token's distribution comes second.

        In families that denoise block by block a token's own block alone is hidden where it is not shown: earlier blocks
        are seen as they ended, later ones not at all.

        Args:
            canvases: the completions.
            shown_BG: bool, positions that hold their token; the others hold the mask token.
            asked_BG: bool, positions whose token is scored.
            prompt_BP: prompt tokens in the place of `canvases.prompt_BP` (some masked, say).
            recompute: keep nothing for the backward pass but the arguments, and run the pass again there.

        Raises `ValueError` where a token that is never drawn is asked for.
        """
        forbidden = torch.tensor(self.forbidden, device=asked_BG.device)
        if bool((torch.isin(canvases.completion_BG, forbidden) & asked_BG).any()):
            raise ValueError(
                f"a token that is never drawn ({self.forbidden}) stands where a likelihood is asked for: "
                "score what the sampler committed, up to EOS"
            )
        if prompt_BP is None:
            prompt_BP = canvases.prompt_BP
        noised_BG = torch.where(shown_BG, canvases.completion_BG, self.denoiser.mask_id)
        real_BP = canvases.prompt_mask_BP.bool()
        logp_BG = self.nothing(asked_BG)
        asking_B = asked_BG.any(1)
        # A rank that asks nothing still passes: the others wait for it in the backward pass.
        rows_A = asking_B.nonzero()[:, 0] if bool(asking_B.any()) else torch.zeros_like(asking_B[:1], dtype=torch.long)
        padded = int((~real_BP[rows_A]).sum(1).min())  # columns of padding that all of them have
        part = (
            prompt_BP[rows_A, padded:],
            real_BP[rows_A, padded:],
            canvases.completion_BG[rows_A],
            noised_BG[rows_A],
            asked_BG[rows_A],
        )
        if recompute and self.recomputes and torch.is_grad_enabled():
            logp_AG = checkpoint(_Pass(self), *part, use_reentrant=False)
        else:
            logp_AG = _Pass(self)(*part)
        return logp_BG.index_put((rows_A,), logp_AG)

    def nothing(self, asked_BG: torch.Tensor) -> torch.Tensor:
        """Zeros in the shape of an answer."""
        return torch.zeros(*asked_BG.shape, *([2] if self.entropies else []), device=asked_BG.device)


def check_trains(denoiser: Denoiser) -> None:
    """Raises `ValueError` for a model whose own code does not do what training asks, naming it."""
    if not (denoiser.calling.honours_mask and denoiser.calling.trains):
        raise ValueError(f"this model can be sampled from, not trained: {'; '.join(denoiser.calling.lacking)}")


class _Pass:
    """One forward pass of unwrapped arguments; called a second time (in the backward pass) it goes around DDP's wrapper,
    which would take that for the next step's forward pass and lose its count of gradients."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.model = scorer, scorer.model

    def __call__(
        self,
        prompt_BP: torch.Tensor,
        real_BP: torch.Tensor,
        clean_BG: torch.Tensor,
        noised_BG: torch.Tensor,
        asked_BG: torch.Tensor,
    ) -> torch.Tensor:
        model, scorer, family = self.model, self.scorer, self.scorer.family
        if isinstance(model, DistributedDataParallel):
            self.model = model.module
        row_M, position_M = asked_BG.nonzero(as_tuple=True)
        column_M = prompt_BP.shape[1] + position_M
        if family.layout == "full":
            input_UL, real_UL, of_B = _distinct(
                torch.cat([prompt_BP, noised_BG], 1), torch.cat([real_BP, torch.ones_like(asked_BG)], 1)
            )
            arguments: dict[str, Any] = {"input_ids": input_UL}
            if not bool(real_BP.all()):
                arguments["attention_mask"] = real_UL.long()
                arguments["position_ids"] = (real_UL.long().cumsum(1) - 1).clamp(min=0)
            passed_M, asks_M = of_B[row_M], column_M - int(family.shifted)
        else:
            assert scorer.block_length is not None
            packed = packed_pass(
                prompt_BP, real_BP, clean_BG, noised_BG, scorer.block_length, family, scorer.denoiser.model.dtype
            )
            arguments, asks_M = packed.arguments, packed.columns(row_M, column_M, family.shifted)
            apart = packed.prompts_apart(prompt_BP, real_BP) if self._can_share() else None
            if apart is not None:
                prompts, arguments, which_A = apart
                arguments["past_key_values"] = self._keys(prompts, which_A)
                asks_M = asks_M - packed.high
            passed_M = row_M
        place, token_M = (passed_M, asks_M), clean_BG[row_M, position_M]
        with ScoringHead(model, place, token_M, scorer.temperature, scorer.forbidden, scorer.chunk, scorer.entropies):
            logp_M = scorer.denoiser.raw_logits(model, arguments, None)[0]
        if not scorer.entropies:
            logp_M = logp_M[:, 0]
        return scorer.nothing(asked_BG).index_put((row_M, position_M), logp_M)

    def _can_share(self) -> bool:
        if not (self.scorer.shares_prompts and self.scorer.denoiser.calling.keeps_keys):
            return False
        # Layers that are run again in the backward pass take no keys from elsewhere: transformers drops them.
        return not any(getattr(m, "gradient_checkpointing", False) and m.training for m in self.model.modules())

    def _keys(self, prompts: dict[str, Any], which_A: torch.Tensor) -> DynamicCache:
        """Keys and values of prompts, for the rows that have them; by a pass without logits, around DDP's wrapper."""
        keys, nothing_M = DynamicCache(), which_A[:0]
        with ScoringHead(self.model, (nothing_M, nothing_M), nothing_M, 1.0, (), 1):
            self.scorer.denoiser.raw_logits(self.model, {**prompts, "past_key_values": keys}, None)
        keys.batch_select_indices(which_A)
        return keys


def _distinct(input_BL: torch.Tensor, real_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rows that differ, `(U, L)`, which of their columns are real, and which of them each row is, `(B,)`."""
    both_UK, of_B = torch.unique(torch.cat([input_BL, real_BL.long()], 1), dim=0, return_inverse=True)
    if len(both_UK) == len(input_BL):
        return input_BL, real_BL, torch.arange(len(input_BL), device=input_BL.device)
    return both_UK[:, : input_BL.shape[1]], both_UK[:, input_BL.shape[1] :].bool(), of_B
