"""Reinforcement learning of a diffusion language model: TRL's `GRPOTrainer` with our sampler, likelihoods and losses.

Reward functions, grouping, advantages, token-level losses, PEFT, logging, evaluation, checkpoints and accelerate stay TRL's.
Overridden are: generation (by `lockstitch.sampling`, a seed for each completion), likelihoods (by `lockstitch.rl.estimators`,
noise by completion), the losses that TRL lacks (`lockstitch.rl.losses`), and what resuming a run exactly takes.

The whole canvas conditions the model in training, as it did in the rollout; tokens after the first EOS are in no loss
(with `scope="canvas"` they are). Leaves out tools, environments, images and vLLM.

Axes: B rows (completions), G canvas positions, K completions of a prompt, T inner iterations, N rows of all ranks.
"""

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import gather
from lockstitch.rl import losses
from lockstitch.rl.estimators import estimate
from lockstitch.rl.grpo_config import DiffusionGRPOConfig
from lockstitch.rl.head import check_head
from lockstitch.rl.resume import ResumableGRPOTrainer
from lockstitch.rl.rollouts import (
    EVAL,
    REFILL,
    TRAIN,
    groups_with_signal,
    replace_rows,
    rollout_metrics,
    rollout_seeds,
    row_statistics,
    trace_columns,
)
from lockstitch.rl.scoring import Canvases, Scorer
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.layouts import check_layout
from lockstitch.sampling.loop import sample
from lockstitch.sampling.noise import derive_seed
from lockstitch.sampling.trajectory import Trajectory
from peft import LoraConfig, PeftConfig, PeftModel
from torch.nn.parallel import DistributedDataParallel
from transformers import GenerationConfig
from trl.models import prepare_deepspeed, prepare_fsdp, unwrap_model_for_generation
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

Columns = dict[str, torch.Tensor]


class DiffusionGRPOTrainer(ResumableGRPOTrainer):
    """`GRPOTrainer` for a `Denoiser`'s model.

    A completion's rollout has the seed of its place: (`args.seed`, generation, prompt in the global batch, completion of the
    prompt), so that runs of one and of several processes see the same rollouts, and a resumed run those that the
    uninterrupted one would have seen.

    Args:
        denoiser: the model, which is trained in place (or wrapped by `peft_config`).
        reward_funcs, train_dataset, eval_dataset, peft_config, callbacks, ...: as in `GRPOTrainer`.
        args: the settings.

    Raises `ValueError` for settings that do not fit the model's family, and for LoRA dropout that `args` would switch off.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        reward_funcs: Any,
        args: DiffusionGRPOConfig,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("model", "processing_class", "tools", "environment_factory", "rollout_func", "quantization_config"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name}: the denoiser brings model and tokenizer, and a canvas holds a single turn")
        self._denoiser, self._sampler, self._estimator = denoiser, args.sampler_config(), args.estimator_config()
        check_layout(self._sampler, denoiser.family)
        if args.mask_distribution == "block_random" and denoiser.family.layout != "full":
            raise ValueError(f"mask_distribution='block_random': {denoiser.family.name} models see earlier blocks clean anyway")
        if isinstance(peft_config, LoraConfig) and peft_config.lora_dropout and args.disable_dropout:
            raise ValueError(f"lora_dropout={peft_config.lora_dropout} would be switched off by disable_dropout=True: with "
                             "dropout the ratio of a policy to itself is not 1. Set it to 0, or disable_dropout=False")  # fmt: skip
        check_head(denoiser)
        if denoiser.model.generation_config is None:
            denoiser.model.generation_config = GenerationConfig(eos_token_id=denoiser.eos_ids)

        adapted = peft_config is not None or isinstance(denoiser.model, PeftModel)
        # TRL would load the reference anew from where the config says that the model came from; ours is the model as it is.
        reference = copy.deepcopy(denoiser.model).requires_grad_(False) if args.beta and not adapted else None
        beta = args.beta
        if reference is not None:
            args.beta = 0.0
        super().__init__(model=denoiser.model, reward_funcs=reward_funcs, args=args, peft_config=peft_config,
                         processing_class=denoiser.tokenizer, **kwargs)  # fmt: skip
        args.beta = self.beta = beta
        if reference is not None:
            self.ref_model = self._prepare_reference(reference.eval())
        self.aux_loss_enabled = False
        self.eos_token_ids = denoiser.eos_ids
        # Ours to do: TRL looks at a canvas's last token, which says nothing.
        self._drops_truncated, self.mask_truncated_completions = args.mask_truncated_completions, False
        self._scorer_block = None if denoiser.family.layout == "full" else self._sampler.block
        # Whether an estimate draws noise, which is new in each inner iteration.
        self._draws = args.estimator in ("coupled", "elbo", "sandwiched") or bool(args.prompt_mask_ratio)
        self._needs_old = args.policy_loss in ("token", "sequence", "self_normalized")
        # Whether the policy that samples takes no step before each of its rollouts was seen once.
        self._begins_on_policy = args.gradient_accumulation_steps % args.steps_per_generation == 0
        if args.refill_groups:
            self._check_refill()
        self._rollouts: list[Trajectory] = []
        self._seeds: list[int] = []
        self._rewards_NF = torch.empty(0)
        self._scored_BG: torch.Tensor | None = None
        self._eval_rows = 0
        # Micro-steps since the optimizer's last one; those that share the ratios' sum, and that sum (self_normalized).
        self._window_done, self._chunk_left, self._chunk_weight = 0, 0, torch.ones(())

    def _prepare_reference(self, reference: torch.nn.Module) -> torch.nn.Module:
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(reference, self.accelerator)
        if self.is_fsdp_enabled:
            return prepare_fsdp(reference, self.accelerator)
        return self.accelerator.prepare_model(reference, evaluation_mode=True)

    def _check_refill(self) -> None:
        rows = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if rows % self.num_generations:
            raise ValueError(f"refill_groups={self.args.refill_groups} needs whole groups on each rank: {rows} completions "
                             f"a generation are no multiple of num_generations={self.num_generations}")  # fmt: skip
        if not hasattr(self.train_dataset, "__len__"):
            raise ValueError("refill_groups draws prompts at random: a stream has no length; use a map-style dataset")

    # --- rollouts ----------------------------------------------------------------------------------------------------

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Plain texts as the sampler encodes them, each once; conversations as TRL does."""
        if not isinstance(prompts[0], str):
            return super()._tokenize_prompts(prompts)
        texts = list(dict.fromkeys(prompts))
        ids = dict(zip(texts, self._denoiser.encode(texts), strict=True))
        return [ids[prompt] for prompt in prompts], None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: None, fields: dict[str, Any], num_generations: int, *more: Any
    ) -> tuple[list[list[int]], None]:
        """One trajectory per prompt (which TRL has repeated), by the seeds of the moment; returns tokens up to EOS."""
        began = time.perf_counter()
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            training = model.training
            denoiser = copy.copy(self._denoiser)
            denoiser.model = model.eval()
            self._rollouts = sample(denoiser, prompt_ids, self._sampler, seed=self._seeds)
            model.train(training)
        seconds = time.perf_counter() - began
        statistics_N8 = gather(row_statistics(self._rollouts, seconds, self.accelerator.device))
        mode = "train" if training else "eval"
        for name, value in rollout_metrics(statistics_N8, num_generations).items():
            self._metrics[mode][name].append(value)
        return [list(t.completion_ids) for t in self._rollouts], None

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        """TRL's, then whole canvases in the place of completions, and what of them counts in the place of a tool mask."""
        output = list(super()._generate(prompts))
        counted = [len(t.canvas_ids) if self.args.scope == "canvas" else t.length for t in self._rollouts]
        if self._drops_truncated:
            counted = [count * t.finished for count, t in zip(counted, self._rollouts, strict=True)]
        output[1] = [list(t.canvas_ids) for t in self._rollouts]
        output[2] = [
            [1] * count + [0] * (len(t.canvas_ids) - count) for count, t in zip(counted, self._rollouts, strict=True)
        ]
        if self.log_completions:
            self._log_completion_extra("nfe", [t.ledger.nfe for t in self._rollouts])
            self._log_completion_extra("steps", [t.last_step for t in self._rollouts])
            self._log_completion_extra("finished", [t.finished for t in self._rollouts])
            for name in ("confidence", "entropy"):
                values = [sum(getattr(t, name)[: t.length]) / t.length for t in self._rollouts]
                self._log_completion_extra(name, values)
        return tuple(output)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        ids = [list(t.completion_ids) for t in self._rollouts]
        self._rewards_NF = super()._calculate_rewards(inputs, prompts, completions, ids)
        return self._rewards_NF

    def _roll_out(self, inputs: list[dict[str, Any]], key: Sequence[int], rows: Sequence[int], K: int) -> Columns:
        """Rollouts of the given places of the global batch, with rewards and advantages, but without likelihoods."""
        self._seeds = rollout_seeds(self.args.seed, key, rows, K)
        self._scored_BG = None
        columns: Columns = super()._generate_and_score_completions(inputs)
        for name in ("old_per_token_logps", "ref_per_token_logps"):
            columns.pop(name, None)
        columns |= trace_columns(self._rollouts, self.accelerator.device)
        own = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        summed = self.multi_objective_aggregation == "sum_then_normalize"
        weights_F = self.reward_weights.to(self._rewards_NF.device)
        signal_P = groups_with_signal(self._rewards_NF, weights_F, K, summed)
        columns["signal"] = signal_P.repeat_interleave(K)[own]
        if self.args.drop_zero_variance:  # what is left of their advantages is rounding
            columns["advantages"] = columns["advantages"] * columns["signal"]
        columns["weight"] = columns["advantages"]
        if self.args.policy_loss == "weighted":
            known_N = ~self._rewards_NF.isnan().all(1)
            columns["weight"] = losses.group_weights(gather(columns["advantages"]), known_N, K)[own]
        return columns

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Columns:
        """A generation's batch: rollouts, rewards, and the likelihoods that have to be known before the first step."""
        ranks, first = self.accelerator.num_processes, self.accelerator.process_index * len(inputs)
        if not self.model.training:
            rows = range(self._eval_rows + first, self._eval_rows + first + len(inputs))
            self._eval_rows += ranks * len(inputs)
            columns = self._roll_out(inputs, (EVAL,), rows, self.num_generations_eval)
            columns["active"] = torch.full_like(columns["signal"], self.beta != 0)  # a loss of rewards alone is 0
        else:
            generation = self._step // (self.args.steps_per_generation * self.num_iterations)
            rows = range(first, first + len(inputs))
            columns = self._roll_out(inputs, (TRAIN, generation), rows, self.num_generations)
            for turn in range(self.args.refill_groups):
                columns, changed = self._refill(columns, generation, turn, first)
                if not changed:
                    break
            active_B = columns["signal"] if self.args.drop_zero_variance else torch.ones_like(columns["signal"])
            columns["active"] = active_B & columns["tool_mask"].any(1)
        self._score_before(columns)
        return columns

    def _refill(self, columns: Columns, generation: int, turn: int, first: int) -> tuple[Columns, bool]:
        """Replaces groups without signal by groups of fresh prompts, where those have one."""
        K = self.num_generations
        signal_P = columns["signal"].view(-1, K)[:, 0]
        missing = (~signal_P).nonzero()[:, 0].tolist()
        count = int(gather(torch.tensor([len(missing)], device=signal_P.device)).max())
        if not count:
            return columns, False
        # Every rank rolls out as many groups; those beyond its own need are thrown away.
        groups = (missing + list(range(count)))[:count]
        key = (REFILL, generation, turn)
        places = [first // K + group for group in groups]
        fresh = [self.train_dataset[derive_seed(self.args.seed, *key, place) % len(self.train_dataset)] for place in places]
        rows = [place * K + k for place in places for k in range(K)]
        new = self._roll_out([row for row in fresh for _ in range(K)], key, rows, K)
        found = [i for i in range(len(missing)) if bool(new["signal"][i * K])]
        offset_K = torch.arange(K, device=signal_P.device)
        at = torch.tensor([missing[i] for i in found], dtype=torch.long, device=signal_P.device)[:, None] * K + offset_K
        of = torch.tensor(found, dtype=torch.long, device=signal_P.device)[:, None] * K + offset_K
        columns = replace_rows(columns, new, at.flatten(), of.flatten(), self._denoiser.pad_id)
        columns["num_items_in_batch"] = gather(columns["tool_mask"].sum()).sum()
        return columns, True

    # --- likelihoods -------------------------------------------------------------------------------------------------

    def _likelihoods(self, model: torch.nn.Module, columns: Columns, rows: torch.Tensor, iteration: int) -> torch.Tensor:
        """The estimator's word on some rows of a batch, `(rows, G)`."""
        valid_BG = columns["tool_mask"][rows].bool()
        canvases = Canvases(
            prompt_BP=columns["prompt_ids"][rows], prompt_mask_BP=columns["prompt_mask"][rows],
            completion_BG=columns["completion_ids"][rows], valid_BG=valid_BG, seeds_B=columns["noise_seed"][rows],
            commit_step_BG=columns["commit_step"][rows], block_BG=columns["block"][rows],
        )  # fmt: skip
        upper_B = columns["weight"][rows] < 0 if self.args.estimator == "sandwiched" else None

        def score(module: torch.nn.Module) -> torch.Tensor:
            scorer = Scorer(self._denoiser, module, self.args.score_temperature, self._scorer_block)
            return estimate(self._estimator, scorer, canvases, iteration, upper_B)

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
            if old and self.model.training:
                columns["old_logp"] = self._score_rows(self.model, columns, rows_A, len(iterations), old)
            if self.beta and self.ref_model is not None:
                columns["ref_logp"] = self._score_rows(self.ref_model, columns, rows_A, len(iterations), iterations)
            elif self.beta:
                model = self.accelerator.unwrap_model(self.model)
                with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
                    columns["ref_logp"] = self._score_rows(self.model, columns, rows_A, len(iterations), iterations)

    def _score_rows(
        self, model: torch.nn.Module, columns: Columns, rows_A: torch.Tensor, T: int, iterations: Sequence[int]
    ) -> torch.Tensor:
        B, G = columns["completion_ids"].shape
        logp_BTG = torch.zeros(B, T, G, device=rows_A.device)
        for part in rows_A.split(self.args.per_device_train_batch_size):
            for t in iterations:
                logp_BTG[part, t] = self._likelihoods(model, columns, part, t)
        return logp_BTG

    def _new_likelihoods(self, model: torch.nn.Module, columns: Columns, iteration: int) -> torch.Tensor:
        """The policy's likelihoods `(B, G)`, with gradients; 0 in rows that are not active."""
        logp_BG = torch.zeros(columns["completion_ids"].shape, device=columns["completion_ids"].device)
        rows_A = columns["active"].nonzero()[:, 0]
        if len(rows_A):
            return logp_BG.index_put((rows_A,), self._likelihoods(model, columns, rows_A, iteration))
        # Nothing to learn from. The gradient is still there, of zeros: an optimizer's momentum goes on as it would have.
        if self.accelerator.num_processes > 1:
            return logp_BG + 0.0 * self._likelihoods(model, columns, torch.zeros_like(columns["noise_seed"][:1]), 0).sum()
        return logp_BG + 0.0 * sum(p.sum() for p in model.parameters() if p.requires_grad)

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: Any, logits_to_keep: int, *more: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """What TRL's loss reads: likelihoods that `_compute_loss` has made, and the entropies of the rollout's draws."""
        if self._scored_BG is None:  # TRL asks before rewards are known; `_score_before` answers after
            zeros_BG = torch.zeros(input_ids.shape[0], logits_to_keep, device=input_ids.device)
            return zeros_BG, zeros_BG, None
        return self._scored_BG, self._entropy_BG, None

    # --- losses ------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: torch.nn.Module, inputs: Columns) -> torch.Tensor:
        iteration = 0
        if self.model.training:
            iteration = self._step // self.args.steps_per_generation % self.num_iterations
        weights_B = self._clipped_ratios(inputs, iteration) if self.args.policy_loss == "self_normalized" else None
        logp_BG = self._new_likelihoods(model, inputs, iteration)
        old_BG = self._old_likelihoods(inputs, logp_BG, iteration)
        ref_BG = inputs["ref_logp"][:, min(iteration, inputs["ref_logp"].shape[1] - 1)] if self.beta else None
        valid_BG = inputs["tool_mask"].bool()
        if self._needs_old:
            self._log_ratios(inputs, logp_BG.detach(), old_BG, valid_BG)
        if self.args.policy_loss == "token":
            self._scored_BG, self._entropy_BG = logp_BG, inputs["entropy"]
            given = {**inputs, "old_per_token_logps": old_BG}
            if ref_BG is not None:
                given["ref_per_token_logps"] = ref_BG
            loss = super()._compute_loss(model, given)
            self._scored_BG = None
            return loss

        accumulated = self.current_gradient_accumulation_steps if self.model.training else 1
        rows = len(logp_BG) * accumulated
        norm_B = losses.row_norms(valid_BG, self.args.norm)
        logp_B, old_B = losses.row_sums(logp_BG, valid_BG), losses.row_sums(old_BG, valid_BG)
        if self.args.policy_loss == "sequence":
            clip = (self.epsilon_low, self.epsilon_high)
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
            divisor = rows / (self.num_generations if self.model.training else self.num_generations_eval)
        elif weights_B is not None:
            weight_B, divisor = weight_B * weights_B, self._chunk_weight
        return losses.likelihood_loss(logp_B, weight_B, norm_B, divisor)

    def _old_likelihoods(self, inputs: Columns, logp_BG: torch.Tensor, iteration: int) -> torch.Tensor:
        """Those of the policy that sampled, at the same noise, `(B, G)`."""
        if not self._needs_old or not self.model.training:
            return logp_BG.detach()
        if iteration == 0 and self._begins_on_policy:
            if self.num_iterations > 1 and not self._draws:
                inputs["old_logp"] = logp_BG.detach()[:, None]  # kept in the buffer, for the iterations to come
            return logp_BG.detach()
        return inputs["old_logp"][:, min(iteration, inputs["old_logp"].shape[1] - 1)]

    def _clipped_ratios(self, inputs: Columns, iteration: int) -> torch.Tensor:
        """The rows' weights under `self_normalized`, `(B,)`; `_chunk_weight` is what their sum is divided by.

        They are to add up to one over all that goes into an optimizer's step (of one generation and inner iteration), whatever
        the micro-batches and ranks: once the policy has moved, that takes a pass over all of it beforehand. Rows that are
        not scored weigh what they weigh under the policy that sampled: one.
        """
        rows, ranks = len(inputs["advantages"]), self.accelerator.num_processes
        if not self.model.training:
            self._chunk_weight = torch.tensor(float(rows))
            return torch.ones_like(inputs["advantages"])
        if self._chunk_left == 0:
            accumulated, per_generation = self.current_gradient_accumulation_steps, self.args.steps_per_generation
            self._chunk_left = min(accumulated - self._window_done, per_generation - self._step % per_generation)
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
        logp_A = losses.row_sums(self._likelihoods(self.model, batch, rows_A, iteration), valid_AG)
        old_AG = batch["old_logp"][rows_A, min(iteration, batch["old_logp"].shape[1] - 1)]
        norm_A = losses.row_norms(valid_AG, self.args.norm)
        clip = 5.0 if self.args.ratio_clip is None else self.args.ratio_clip
        ratio_B[rows_A] = losses.clipped_ratios(logp_A, losses.row_sums(old_AG, valid_AG), norm_A, clip)
        return ratio_B

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._window_done = 0 if self.accelerator.sync_gradients else self._window_done + 1
        return loss

    # --- the log -----------------------------------------------------------------------------------------------------

    def _log_ratios(self, inputs: Columns, logp_BG: torch.Tensor, old_BG: torch.Tensor, valid_BG: torch.Tensor) -> None:
        """Logs how far the ratios that the loss reads are from 1."""
        log_ratio_BG = (logp_BG - old_BG) * valid_BG
        if self.args.policy_loss == "token" and self.importance_sampling_level == "token":
            log_ratio = log_ratio_BG[valid_BG & inputs["active"][:, None]]
        else:
            norm = "valid" if self.args.policy_loss == "token" else self.args.norm
            log_ratio = (log_ratio_BG.sum(1) / losses.row_norms(valid_BG, norm))[inputs["active"]]
        moments = self.accelerator.reduce(losses.ratio_moments(log_ratio), reduction="sum")
        for name, value in losses.ratio_metrics(moments).items():
            self._metrics["train" if self.model.training else "eval"][name].append(value)

    def _log_mean(self, name: str, value_B: torch.Tensor) -> None:
        mean = gather(value_B.detach().mean()[None]).mean().item()
        self._metrics["train" if self.model.training else "eval"][name].append(mean)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As in TRL; every evaluation draws the same noise."""
        self._eval_rows = 0
        return super().evaluate(*args, **kwargs)


def as_one_pass(model: torch.nn.Module, run: Callable[[torch.nn.Module], torch.Tensor]) -> torch.Tensor:
    """`run(model)`; where DDP wraps the model, `run(model.module)` as the wrapper's one forward pass.

    However many passes an estimate takes (and takes again in the backward pass), DDP then counts one, and reduces
    gradients once.
    """
    if not isinstance(model, DistributedDataParallel):
        return run(model)
    module = model.module
    own = module.__dict__.get("forward")

    def restore() -> None:
        module.__dict__.pop("forward", None)
        if own is not None:
            module.forward = own

    def forward(_: None) -> torch.Tensor:
        restore()
        return run(module)

    module.forward = forward
    try:
        scored: torch.Tensor = model(None)
    finally:
        restore()
    return scored
