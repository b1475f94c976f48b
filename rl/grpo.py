"""Reinforcement learning of a diffusion language model: TRL's `GRPOTrainer` with our sampler, likelihoods and losses.

Reward functions, grouping, advantages, token-level losses, PEFT, logging, evaluation, checkpoints and accelerate stay TRL's.
Overridden are: generation (`lockstitch.rl.grpo_rollouts`), likelihoods (`lockstitch.rl.grpo_likelihoods`),
the losses that TRL lacks (`lockstitch.rl.losses`), and what resuming a run exactly takes (`lockstitch.rl.resume`).

The whole canvas conditions the model in training, as it did in the rollout; tokens after the first EOS are in no loss
(with `scope="canvas"` they are). Leaves out tools, environments, images and vLLM.

Axes: B rows (completions), A of them scored, G canvas positions, C channels of an estimate.
"""

import logging
from typing import Any

import torch
from accelerate.utils import gather
from lockstitch.rl import losses
from lockstitch.rl.distilled import DistilledTrainer
from lockstitch.rl.grpo_config import DiffusionGRPOConfig
from lockstitch.rl.grpo_likelihoods import at_iteration
from lockstitch.rl.models import as_denoiser, loading_of_arguments, name_of
from lockstitch.rl.self_distillation import LOSS as SELF_DISTILLATION
from lockstitch.rl.teaching import Columns, Teaching, target_loss
from peft import PeftConfig

logger = logging.getLogger(__name__)


class DiffusionGRPOTrainer(DistilledTrainer):
    """`GRPOTrainer` for a diffusion language model.

    Args:
        model: a name on the hub, a directory, `embedded:NAME`, one of transformers' models or a `Denoiser`; it is trained in
            place (or wrapped by `peft_config`).
        args: the settings. None is a canvas of 256 tokens denoised by a threshold and with a cache (preset `fast`, or
            `block` for models that denoise block by block), and every other default of `DiffusionGRPOConfig`.
        teaching: a teacher that makes one more completion of each group, and what becomes of it; None has no teacher.

    `reward_funcs`, `train_dataset`, `eval_dataset`, `processing_class`, `peft_config`, `callbacks` and the rest are as in
    `GRPOTrainer`.

    Raises `ValueError` for a plain `GRPOConfig`, for settings that do not fit the model's family, and for LoRA dropout that
    `args` would switch off.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: DiffusionGRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        peft_config: PeftConfig | None = None,
        teaching: Teaching | None = None,
        **kwargs: Any,
    ) -> None:
        if args is not None and not isinstance(args, DiffusionGRPOConfig):
            raise ValueError(f"args is a {type(args).__name__}: DiffusionGRPOConfig takes the same options, and more")
        denoiser = as_denoiser(model, processing_class, loading_of_arguments(model, args))
        if args is None:
            by = "fast" if denoiser.family.layout == "full" else "block"
            args = DiffusionGRPOConfig(f"{name_of(model)}-GRPO", preset=by, max_completion_length=256)
            logger.info("args=None: canvases of %d tokens, preset %r", args.max_completion_length, by)
        args.model_init_kwargs = None  # TRL is handed a model
        super().__init__(
            denoiser,
            reward_funcs,
            args,
            peft_config,
            teaching=teaching,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            **kwargs,
        )
        # What TRL's loss is given, while it runs.
        self._scored_BG: torch.Tensor | None = None
        self._entropy_BG = torch.empty(0)
        self._moments = torch.zeros(5, dtype=torch.float64, device=self.accelerator.device)
        # Micro-steps since the optimizer's last one; those that share the ratios' sum, and that sum (self_normalized).
        self._window_done, self._chunk_left, self._chunk_weight = 0, 0, torch.ones(())

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: Any, logits_to_keep: int, *more: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """What TRL's loss reads: likelihoods that `_compute_loss` has made, and entropies.

        Those of the rollout's draws, or for a bonus the policy's, with gradients.
        """
        if self._scored_BG is None:  # TRL asks before rewards are known; `_score_before` answers after
            zeros_BG = torch.zeros(input_ids.shape[0], logits_to_keep, device=input_ids.device)
            return zeros_BG, zeros_BG, None
        return self._scored_BG, self._entropy_BG, None

    # --- losses ------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: torch.nn.Module, inputs: Columns) -> torch.Tensor:
        loss = self._policy_loss(model, inputs)
        if "target_weight" not in inputs:
            return loss
        value = torch.zeros_like(loss)
        if self._aimed_BG is not None:
            groups = len(inputs["advantages"]) / self.num_generations * self.current_gradient_accumulation_steps
            value = target_loss(self._aimed_BG, inputs["target_mask"], inputs["target_weight"], groups)
        self._log_mean("teacher/loss", value[None] * self.current_gradient_accumulation_steps)
        return loss + value

    def _policy_loss(self, model: torch.nn.Module, inputs: Columns) -> torch.Tensor:
        iteration = 0
        if self.model.training:
            iteration = self._step // self.args.steps_per_generation % self.num_iterations
        if self.args.policy_loss == SELF_DISTILLATION:
            return self._distilled(model, inputs, iteration)
        weights_B = self._clipped_ratios(inputs, iteration) if self.args.policy_loss == "self_normalized" else None
        scored_BGC = self._new_likelihoods(model, inputs, iteration)
        logp_BG = scored_BGC[..., 0]
        old_BG = self._old_likelihoods(inputs, logp_BG, iteration)
        ref_BG = at_iteration(inputs["ref_logp"], iteration) if self.beta else None
        valid_BG = inputs["tool_mask"].bool()
        if self._needs_old and self.model.training:
            self._log_ratios(inputs, logp_BG.detach(), old_BG, valid_BG)
        if self.args.policy_loss == "token":
            self._scored_BG = logp_BG
            self._entropy_BG = scored_BGC[..., -1] if self._entropy_bonus_enabled else inputs["entropy"]
            given = {**inputs, "old_per_token_logps": old_BG}
            if ref_BG is not None:
                given["ref_per_token_logps"] = ref_BG
            loss: torch.Tensor = super()._compute_loss(model, given)
            self._scored_BG = None
            if self._engine is not None and not self._entropy_bonus_enabled:  # which tells no entropies
                self._metrics["train" if self.model.training else "eval"].pop("entropy", None)
            if self._estimator.position_temperature is not None:
                loss = loss + self._position_loss(inputs, scored_BGC[..., 1], iteration, valid_BG)
            return loss

        accumulated = self.current_gradient_accumulation_steps if self.model.training else 1
        rows = len(logp_BG) * accumulated
        norm_B = losses.row_norms(valid_BG, self.args.norm)
        logp_B, old_B = losses.row_sums(logp_BG, valid_BG), losses.row_sums(old_BG, valid_BG)
        if self.args.policy_loss in ("sequence", "regression"):
            clip = (self.epsilon_low, self.epsilon_high)
            if self.args.policy_loss == "regression":
                psi = 1.0 if self.args.psi is None else self.args.psi
                loss = losses.regression_loss(logp_B, old_B, inputs["advantages"], norm_B, psi, *clip, rows)
            else:
                loss = losses.sequence_loss(logp_B, old_B, inputs["advantages"], norm_B, *clip, rows, self.args.delta)
                clipped_B = losses.clipped_rows(logp_B, old_B, inputs["advantages"], norm_B, *clip)
                self._log_mean("clip_ratio/region_mean", clipped_B.float())
            if ref_BG is not None:
                ref_B = losses.row_sums(ref_BG, valid_BG)
                kl_B = losses.sequence_kl(logp_B, ref_B, norm_B, self.args.kl_form or "k2")
                self._log_mean("kl", kl_B)
                loss = loss + self.beta * kl_B.sum() / rows
            return loss
        divisor: float | torch.Tensor = rows
        weight_B = inputs["weight"]
        if self.args.policy_loss == "sandwich":
            divisor = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
            if self.model.training:
                divisor = divisor * accumulated / self.args.steps_per_generation
        elif self.args.policy_loss == "weighted":
            divisor = rows / (self._width if self.model.training else self.num_generations_eval)
        elif weights_B is not None:
            weight_B, divisor = weight_B * weights_B, self._chunk_weight
        return losses.likelihood_loss(logp_B, weight_B, norm_B, divisor)

    def _position_loss(
        self, inputs: Columns, logp_BG: torch.Tensor, iteration: int, valid_BG: torch.Tensor
    ) -> torch.Tensor:
        """That of the choice of positions, divided as TRL divides that of tokens."""
        old_BG = self._old_values("old_position", inputs, logp_BG, iteration)
        accumulated = self.current_gradient_accumulation_steps if self.model.training else 1
        low, high = self.epsilon_low, self.epsilon_high
        if self.args.position_epsilon is not None:
            low = high = self.args.position_epsilon
        divisor: float | torch.Tensor = accumulated
        if self.loss_type == "dr_grpo":
            divisor = accumulated * len(logp_BG) * self.max_completion_length
        elif self.loss_type == "dapo":
            divisor = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
            if self.model.training:
                divisor = divisor * accumulated / self.args.steps_per_generation
        advantage_B = inputs["advantages"]
        ratio_BG = (logp_BG - old_BG).detach().exp()
        clipped_BG = (ratio_BG < 1 - low) & (advantage_B[:, None] < 0) | (ratio_BG > 1 + high) & (
            advantage_B[:, None] > 0
        )
        self._log_mean("clip_ratio/position_mean", (clipped_BG & valid_BG).sum(1) / valid_BG.sum(1).clamp(min=1))
        return losses.position_loss(logp_BG, old_BG, advantage_B, valid_BG, low, high, self.loss_type, divisor)

    def _clipped_ratios(self, inputs: Columns, iteration: int) -> torch.Tensor:
        """The rows' weights under `self_normalized`, `(B,)`; `_chunk_weight` is what their sum is divided by.

        They are to add up to one over all that goes into an optimizer's step (of one generation and inner iteration),
        whatever the micro-batches and ranks: once the policy has moved, that takes a pass over all of it beforehand. Rows
        that are not scored weigh what they weigh under the policy that sampled: one.
        """
        rows, ranks = len(inputs["advantages"]), self.accelerator.num_processes
        if not self.model.training:
            self._chunk_weight = torch.tensor(float(rows))
            return torch.ones_like(inputs["advantages"])
        if self._chunk_left == 0:
            accumulated, per_generation = self.current_gradient_accumulation_steps, self.args.steps_per_generation
            self._chunk_left = min(accumulated - self._window_done, per_generation - self._step % per_generation)
            assert self._buffered_inputs is not None
            total = torch.zeros((), device=inputs["advantages"].device)
            for ahead in range(self._chunk_left):
                batch = self._buffered_inputs[(self._step + ahead) % per_generation]
                batch["clipped_ratio"] = self._ratios_now(batch, iteration)
                total = total + batch["clipped_ratio"].sum()
            self._chunk_weight = gather(total[None]).sum() / ranks * accumulated / self._chunk_left
        self._chunk_left -= 1
        return inputs["clipped_ratio"]

    @torch.no_grad()
    def _ratios_now(self, batch: Columns, iteration: int) -> torch.Tensor:
        """Clipped ratios of the present policy to the one that sampled, `(B,)`."""
        ratio_B = torch.ones_like(batch["advantages"])
        rows_A = batch["active"].nonzero()[:, 0]
        if (iteration == 0 and self._begins_on_policy) or not len(rows_A):
            return ratio_B
        valid_AG = batch["tool_mask"][rows_A].bool()
        logp_A = losses.row_sums(self._likelihoods(self.model, batch, rows_A, iteration)[..., 0], valid_AG)
        old_AG = at_iteration(batch["old_logp"][rows_A], iteration)
        norm_A = losses.row_norms(valid_AG, self.args.norm)
        clip = 5.0 if self.args.ratio_clip is None else self.args.ratio_clip
        ratio_B[rows_A] = losses.clipped_ratios(logp_A, losses.row_sums(old_AG, valid_AG), norm_A, clip)
        return ratio_B

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._window_done = 0 if self.accelerator.sync_gradients else self._window_done + 1
        return loss

    # --- the log -----------------------------------------------------------------------------------------------------

    def _log_ratios(
        self, inputs: Columns, logp_BG: torch.Tensor, old_BG: torch.Tensor, valid_BG: torch.Tensor
    ) -> None:
        """Logs how far the ratios that the loss reads are from 1, over all that goes into an optimizer's step."""
        log_ratio_BG = (logp_BG - old_BG) * valid_BG
        if self.args.policy_loss == "token" and self.importance_sampling_level == "token":
            log_ratio = log_ratio_BG[valid_BG & inputs["active"][:, None]]
        else:
            norm = "valid" if self.args.policy_loss == "token" else self.args.norm
            log_ratio = (log_ratio_BG.sum(1) / losses.row_norms(valid_BG, norm))[inputs["active"]]
        self._moments = self._moments + losses.ratio_moments(log_ratio)
        if self.accelerator.sync_gradients:
            total = self.accelerator.reduce(self._moments, reduction="sum")
            for name, value in losses.ratio_metrics(total).items():
                self._metrics["train"][name].append(value)
            self._moments = torch.zeros_like(self._moments)

    def _log_mean(self, name: str, value_B: torch.Tensor) -> None:
        mean = gather(value_B.detach().mean()[None]).mean().item()
        self._metrics["train" if self.model.training else "eval"][name].append(mean)
