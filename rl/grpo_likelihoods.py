"""The likelihoods that `DiffusionGRPOTrainer` makes its losses of: of the policy, of the one that sampled, of the reference.

Each is an estimate (`lockstitch.rl.estimators`) under noise that is keyed by completion and inner iteration: the same for
all three, at any split into micro-batches. What is free is not computed: the policy that sampled is the one that the first
iteration scores, as long as no step lies between. Leaves out the losses.

Axes: B rows (completions), A of them scored, G canvas positions, T inner iterations, K visits, C channels of an estimate.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lockstitch.rl.estimators import estimate, estimate_channels
from lockstitch.rl.grpo_config import DiffusionGRPOConfig
from lockstitch.rl.grpo_rollouts import RolloutTrainer
from lockstitch.rl.one_pass import as_one_pass
from lockstitch.rl.replayed import clean_tokens
from lockstitch.rl.scoring import Canvases, Scorer
from lockstitch.rl.teaching import TARGET, Columns
from lockstitch.sampling.denoiser import Denoiser
from peft import PeftConfig
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter


class LikelihoodTrainer(RolloutTrainer):
    """`RolloutTrainer` that scores its rollouts; see `DiffusionGRPOTrainer` for what it takes."""

    def __init__(
        self,
        denoiser: Denoiser,
        reward_funcs: Any,
        args: DiffusionGRPOConfig,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        self._estimator = args.estimator_config()
        super().__init__(denoiser, reward_funcs, args, peft_config, **kwargs)
        self._scorer_block = None if denoiser.family.layout == "full" else self._sampler.block
        # Whether an estimate draws noise, which is new in each inner iteration.
        sampled = args.estimator in ("coupled", "elbo", "sandwiched") or args.segments_drawn is not None
        self._draws = sampled or bool(args.prompt_mask_ratio)
        self._channels = 1 + (args.position_temperature is not None)
        self._needs_old = args.policy_loss in ("token", "sequence", "self_normalized", "regression")
        # Whether the policy that samples takes no step before each of its rollouts was seen once.
        self._begins_on_policy = args.gradient_accumulation_steps % args.steps_per_generation == 0
        self._aimed_BG: torch.Tensor | None = None  # likelihoods of the targets beside the rows

    def _parts(self, rows_A: torch.Tensor) -> Iterator[torch.Tensor]:
        size = self.args.per_device_train_batch_size
        return (rows_A[start : start + size] for start in range(0, len(rows_A), size))

    def _likelihoods(
        self,
        model: torch.nn.Module,
        columns: Columns,
        rows: torch.Tensor,
        iteration: int,
        entropies: bool = False,
        targets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The estimator's word on some rows of a batch, `(rows, G, C)`: see `estimate_channels`.

        That of `TARGET` on the targets beside other rows comes after, as further rows, in the first channel.
        """

        def ask(scorer: Scorer, canvases: Canvases, upper_B: torch.Tensor | None) -> torch.Tensor:
            return estimate_channels(self._estimator, scorer, canvases, iteration, upper_B)

        return self._asked(ask, model, columns, rows, iteration, entropies, targets)

    def _asked(
        self,
        ask: Callable[[Scorer, Canvases, torch.Tensor | None], torch.Tensor],
        model: torch.nn.Module,
        columns: Columns,
        rows: torch.Tensor,
        iteration: int,
        entropies: bool = False,
        targets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What `ask` finds out about some rows of a batch, and `TARGET` about targets, as one pass of the model."""
        valid_BG = columns["tool_mask"][rows].bool()
        canvases = Canvases(
            prompt_BP=columns["prompt_ids"][rows],
            prompt_mask_BP=columns["prompt_mask"][rows],
            completion_BG=columns["completion_ids"][rows],
            valid_BG=valid_BG,
            seeds_B=columns["noise_seed"][rows],
            commit_step_BG=columns["commit_step"][rows],
            block_BG=columns["block"][rows],
            prompt_seeds_B=columns["prompt_seed"][rows] if self.args.share_prompt_mask else None,
            fork_BG=columns["fork"][rows],
            confidence_BG=columns["confidence"][rows],
            clean_BKG=at_iteration(columns["clean"][rows], iteration) if "clean" in columns else None,
        )
        upper_B = columns["weight"][rows] < 0 if self.args.estimator == "sandwiched" else None
        aims = None
        if targets is not None and len(targets):
            aims = Canvases(
                prompt_BP=columns["prompt_ids"][targets],
                prompt_mask_BP=columns["prompt_mask"][targets],
                completion_BG=columns["target_ids"][targets],
                valid_BG=columns["target_mask"][targets].bool(),
                seeds_B=columns["noise_seed"][targets],
            )
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled

        def score(module: torch.nn.Module) -> torch.Tensor:
            options: dict[str, Any] = {"recomputes": self.args.recompute_passes, "shares_prompts": not sharded}
            scorer = Scorer(
                self._denoiser,
                module,
                self.args.scoring_temperature,
                self._scorer_block,
                entropies=entropies,
                **options,
            )
            said = [ask(scorer, canvases, upper_B)] if len(rows) else []
            if aims is not None:
                plain = Scorer(self._denoiser, module, 1.0, self._scorer_block, **options)
                aimed_TG1 = estimate(TARGET, plain, aims, iteration)[..., None]
                said.append(torch.nn.functional.pad(aimed_TG1, (0, self._channels + entropies - 1)))
            return torch.cat(said)

        with self.accelerator.autocast():
            return as_one_pass(model, score)

    def _score_before(self, columns: Columns) -> None:
        """Adds `old_logp` and `ref_logp`, `(B, T, G)`, as far as the loss reads what nothing later gives for free.

        T is `num_iterations` if the estimator's noise is new in each, else 1. The policy that sampled is the one that the
        first iteration scores (if no step comes between): its likelihoods are taken from there.
        """
        iterations = range(self.num_iterations if self._draws and self.model.training else 1)
        old = [t for t in iterations if t > 0 or not self._begins_on_policy] if self._needs_old else []
        rows_A = columns["active"].nonzero()[:, 0]
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            if self._estimator.clean_threshold is not None and (old or self.beta or self.num_iterations > 1):
                columns["clean"] = self._clean_tokens(columns, rows_A, len(iterations))
            if old and self.model.training:
                scored_BTGC = self._score_rows(self.model, columns, rows_A, len(iterations), old)
                columns["old_logp"] = scored_BTGC[..., 0]
                if self._estimator.position_temperature is not None:
                    columns["old_position"] = scored_BTGC[..., 1]
            if self.beta and self.ref_model is not None:
                scored_BTGC = self._score_rows(self.ref_model, columns, rows_A, len(iterations), iterations)
                columns["ref_logp"] = scored_BTGC[..., 0]
            elif self.beta:
                model = self.accelerator.unwrap_model(self.model)
                with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
                    scored_BTGC = self._score_rows(self.model, columns, rows_A, len(iterations), iterations)
                columns["ref_logp"] = scored_BTGC[..., 0]

    def _score_rows(
        self, model: torch.nn.Module, columns: Columns, rows_A: torch.Tensor, T: int, iterations: Sequence[int]
    ) -> torch.Tensor:
        B, G = columns["completion_ids"].shape
        scored_BTGC = torch.zeros(B, T, G, self._channels, device=rows_A.device)
        for part_A in self._parts(rows_A):
            for t in iterations:
                scored_BTGC[part_A, t] = self._likelihoods(model, columns, part_A, t)
        return scored_BTGC

    def _clean_tokens(self, columns: Columns, rows_A: torch.Tensor, T: int) -> torch.Tensor:
        """The tokens that each visit counts, as the policy finds them that sampled, bool `(B, T, K, G)`."""
        B, G = columns["completion_ids"].shape
        clean_BTKG = torch.zeros(B, T, self._estimator.segments_drawn or 0, G, dtype=torch.bool, device=rows_A.device)
        for part_A in self._parts(rows_A):
            for t in range(T):

                def ask(scorer: Scorer, canvases: Canvases, _: torch.Tensor | None, t: int = t) -> torch.Tensor:
                    return clean_tokens(self._estimator, scorer, canvases, t)

                found_AKG = self._asked(ask, self.model, columns, part_A, t)
                clean_BTKG[part_A, t, : found_AKG.shape[1]] = found_AKG
        return clean_BTKG

    def _new_likelihoods(self, model: torch.nn.Module, columns: Columns, iteration: int) -> torch.Tensor:
        """The policy's likelihoods `(B, G, C)`, with gradients; 0 in rows that are not active.

        Where the loss has a bonus of entropy, the entropies are the last channel.
        """
        ids_BG, bonus = columns["completion_ids"], self._entropy_bonus_enabled
        logp_BGC = torch.zeros(*ids_BG.shape, self._channels + bonus, device=ids_BG.device)
        rows_A = columns["active"].nonzero()[:, 0]
        aims_T = columns["target_weight"].nonzero()[:, 0] if "target_weight" in columns else rows_A[:0]
        self._aimed_BG = logp_BGC[..., 0] if len(aims_T) else None
        if len(rows_A) + len(aims_T):
            said = self._likelihoods(model, columns, rows_A, iteration, bonus, aims_T)
            if self._aimed_BG is not None:
                self._aimed_BG = self._aimed_BG.index_put((aims_T,), said[len(rows_A) :, :, 0])
            return logp_BGC.index_put((rows_A,), said[: len(rows_A)])
        # Nothing to learn from. The gradient is still there, of zeros: an optimizer's momentum goes on as it would have.
        if self.accelerator.num_processes > 1:
            first = torch.zeros_like(columns["noise_seed"][:1])
            return logp_BGC + 0.0 * self._likelihoods(model, columns, first, 0, bonus).sum()
        return logp_BGC + 0.0 * sum(p.sum() for p in model.parameters() if p.requires_grad)

    def _old_likelihoods(self, inputs: Columns, logp_BG: torch.Tensor, iteration: int) -> torch.Tensor:
        """Those of the policy that sampled, at the same noise, `(B, G)`."""
        return self._old_values("old_logp", inputs, logp_BG, iteration)

    def _old_values(self, name: str, inputs: Columns, now_BG: torch.Tensor, iteration: int) -> torch.Tensor:
        if not self._needs_old or not self.model.training:
            return now_BG.detach()
        if iteration == 0 and self._begins_on_policy:
            if self.num_iterations > 1 and not self._draws:
                inputs[name] = now_BG.detach()[:, None]  # kept in the buffer, for the iterations to come
            return now_BG.detach()
        return at_iteration(inputs[name], iteration)


def at_iteration(values_BT: torch.Tensor, iteration: int) -> torch.Tensor:
    """The values of an inner iteration, `(B, ...)`; all have the same where one was enough."""
    return values_BT[:, min(iteration, values_BT.shape[1] - 1)]
