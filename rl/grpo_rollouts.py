"""The rollouts of `DiffusionGRPOTrainer`: completions by `lockstitch.sampling` in the place of TRL's generation.

A completion's rollout has the seed of its place: (`args.seed`, generation, prompt in the global batch, completion of the
prompt), so that runs of one and of several processes see the same rollouts, and a resumed run those that the
uninterrupted one would have seen. TRL then scores them with the reward functions and makes advantages of it. A teacher may
make one more completion of each group (`lockstitch.rl.teaching`). Groups whose rewards are all the same, and which no lesson
teaches, teach nothing: they are marked, and replaced by groups of fresh prompts if asked.

Leaves out likelihoods and losses.

Axes: B rows (completions), G canvas positions, K completions of a prompt, W rows of a group (K, or K + 1 where a lesson
joined), P prompts, N rows of all ranks, F reward functions.
"""

import copy
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, gather_object
from lockstitch.rl import losses
from lockstitch.rl.grpo_config import DiffusionGRPOConfig
from lockstitch.rl.head import check_head
from lockstitch.rl.health_rules import WITHOUT_SIGNAL
from lockstitch.rl.logged_completions import add_columns, make_writable, plain_columns
from lockstitch.rl.models import prepare_frozen
from lockstitch.rl.rollout_engine import SGLangEngine, check_mergeable, engine_of
from lockstitch.rl.rollouts import (
    EVAL,
    REFILL,
    TRAIN,
    counted,
    groups_with_signal,
    replace_rows,
    rollout_metrics,
    rollout_seeds,
    row_statistics,
    trace_columns,
)
from lockstitch.rl.scoring import check_trains
from lockstitch.rl.self_distillation import LOSS as SELF_DISTILLATION
from lockstitch.rl.self_distillation import first_right
from lockstitch.rl.taught import TaughtTrainer
from lockstitch.rl.teaching import Columns, Teaching
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.layouts import check_layout, in_blocks_of
from lockstitch.sampling.loop import sample
from lockstitch.sampling.noise import derive_seed
from lockstitch.sampling.trajectory import Trajectory
from peft import LoraConfig, PeftConfig, PeftModel
from transformers import GenerationConfig
from trl.models import unwrap_model_for_generation


class RolloutTrainer(TaughtTrainer):
    """`GRPOTrainer` that denoises canvases; see `DiffusionGRPOTrainer` for what it takes."""

    def __init__(
        self,
        denoiser: Denoiser,
        reward_funcs: Any,
        args: DiffusionGRPOConfig,
        peft_config: PeftConfig | None = None,
        teaching: Teaching | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("tools", "environment_factory", "rollout_func", "quantization_config"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name}: a canvas holds a single turn, and is denoised by lockstitch.sampling")
        check_trains(denoiser)
        self._denoiser, self._sampler = denoiser, in_blocks_of(args.sampler_config(), denoiser.family)
        self._engine = engine_of(args, denoiser, self._sampler)
        check_layout(self._sampler, denoiser.family)
        if args.mask_distribution == "block_random" and denoiser.family.layout != "full":
            raise ValueError(
                "mask_distribution='block_random' shows earlier blocks clean, as "
                f"{denoiser.family.name} models see them anyway: iid or count"
            )
        if isinstance(peft_config, LoraConfig) and peft_config.lora_dropout and args.disable_dropout:
            raise ValueError(
                f"lora_dropout={peft_config.lora_dropout} would be switched off by disable_dropout=True: "
                "with dropout a policy's ratio to itself is not 1. Say 0 or disable_dropout=False"
            )
        check_head(denoiser)
        if denoiser.model.generation_config is None:
            denoiser.model.generation_config = GenerationConfig(eos_token_id=denoiser.eos_ids)

        adapted = peft_config is not None or isinstance(denoiser.model, PeftModel)
        # TRL would load the reference anew from where the config says that the model came from; ours is the model as it is.
        refers = (args.beta or args.policy_loss == SELF_DISTILLATION) and not adapted
        if refers and args.cast_lm_head_to_fp32:
            raise ValueError(
                "cast_lm_head_to_fp32=True would leave the reference's head as it is: beta=0, or an adapter"
            )
        reference = copy.deepcopy(denoiser.model).requires_grad_(False) if refers else None
        beta = args.beta
        if reference is not None:
            args.beta = 0.0
        try:
            super().__init__(
                model=denoiser.model,
                reward_funcs=reward_funcs,
                args=args,
                peft_config=peft_config,
                processing_class=denoiser.tokenizer,
                **kwargs,
            )
        finally:
            args.beta = beta
        self.beta = beta
        if reference is not None:
            self.ref_model = prepare_frozen(self, reference.eval())
        self.aux_loss_enabled = False
        self.eos_token_ids = denoiser.eos_ids
        # Ours to do: TRL looks at a canvas's last token, which says nothing.
        self._drops_truncated, self.mask_truncated_completions = args.mask_truncated_completions, False
        if args.refill_groups:
            self._check_refill()
        self._teaching = teaching
        # Rows of a group, W: a lesson that joined is one of them.
        self._width = self.num_generations + (teaching is not None and teaching.role == "join")
        self._only_targets = teaching is not None and teaching.role == "only"
        if teaching is not None:
            self._check_teaching(teaching)
        if self._engine is not None:
            self._check_engine()
        self._rollouts: list[Trajectory] = []
        self._seeds: list[int] = []
        self._rewards_NF = torch.empty(0)
        self._eval_rows = 0
        self._given: deque[dict[str, Any]] = deque(maxlen=args.generation_batch_size)  # as TRL keeps completions

    def _check_refill(self) -> None:
        rows = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if rows % self.num_generations:
            raise ValueError(
                f"refill_groups={self.args.refill_groups} needs whole groups on each rank: {rows} completions "
                f"a generation are no multiple of num_generations={self.num_generations}"
            )
        if not hasattr(self.train_dataset, "__len__"):
            raise ValueError("refill_groups draws prompts at random: a stream has no length; use a map-style dataset")

    def _check_engine(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("rollout_engine='sglang' is given whole weights: not with FSDP or DeepSpeed")
        check_mergeable(self.accelerator.unwrap_model(self.model))

    # --- rollouts ----------------------------------------------------------------------------------------------------

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """Plain texts as the sampler encodes them, each once; conversations as TRL does."""
        if not isinstance(prompts[0], str):
            return super()._tokenize_prompts(prompts)
        texts = list(dict.fromkeys(prompts))
        ids = dict(zip(texts, self._denoiser.encode_prompts(texts), strict=True))
        return [ids[prompt] for prompt in prompts], None, {}

    @contextmanager
    def sampling_denoiser(self) -> Iterator[Denoiser]:
        """The denoiser as it stands in training, to sample from: weights whole on this process, without dropout."""
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
            try:
                yield denoiser
            finally:
                model.train(training)

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: None, fields: dict[str, Any], num_generations: int, *more: Any
    ) -> tuple[list[list[int]], None]:
        """One trajectory per prompt (which TRL has repeated), by the seeds of the moment; returns tokens up to EOS."""
        began = time.perf_counter()
        if self._engine is not None:
            self._rollouts = self._by_engine(self._engine, prompt_ids)
        else:
            with self.sampling_denoiser() as denoiser:
                self._rollouts = sample(denoiser, prompt_ids, self._sampler, seed=self._seeds)
        seconds = time.perf_counter() - began
        statistics_NS = gather(row_statistics(self._rollouts, seconds, self.accelerator.device))
        mode = "train" if self.model.training else "eval"
        metrics = rollout_metrics(statistics_NS, num_generations)
        if self._sampler.threshold is None:  # nothing forks
            metrics.pop("rollout/fork_share")
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        if self._engine is not None and num_generations > 1:
            self._engine.check_draws(metrics["rollout/unique"] * num_generations, num_generations)
        return [list(t.completion_ids) for t in self._rollouts], None

    def _by_engine(self, engine: SGLangEngine, prompt_ids: list[list[int]]) -> list[Trajectory]:
        """The same from an engine, which is given the policy's weights first where they have changed."""
        version = str(self.state.global_step)
        if engine.version != version:
            if self.accelerator.is_main_process:
                place = Path(self.args.rollout_engine_weights or self.args.output_dir)
                engine.update(self.accelerator.unwrap_model(self.model), place / "rollout_weights", version)
            self.accelerator.wait_for_everyone()
            engine.version = version
        return engine.rollouts(prompt_ids, self._seeds)

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        """TRL's, then whole canvases in the place of completions, and what of them counts in the place of a tool mask."""
        output = list(super()._generate(prompts))
        output[1] = [list(t.canvas_ids) for t in self._rollouts]
        output[2] = [counted(t, self.args.scope, self._drops_truncated) for t in self._rollouts]
        if self.log_completions:
            self._log_completion_extra("nfe", [t.ledger.nfe for t in self._rollouts])
            self._log_completion_extra("steps", [t.last_step for t in self._rollouts])
            self._log_completion_extra("finished", [t.finished for t in self._rollouts])
            for name in ("confidence", "entropy") if self._engine is None else ():
                values = [sum(getattr(t, name)[: t.length]) / t.length for t in self._rollouts]
                self._log_completion_extra(name, values)
        return tuple(output)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        ids = [list(t.completion_ids) for t in self._rollouts]
        if self.log_completions:
            self._given.extend(gather_object(plain_columns(inputs)))
        self._rewards_NF = super()._calculate_rewards(inputs, prompts, completions, ids)
        return self._rewards_NF

    def _roll_out(self, inputs: list[dict[str, Any]], key: Sequence[int], rows: Sequence[int], K: int) -> Columns:
        """Rollouts of the given places of the global batch, with rewards and advantages, but without likelihoods."""
        self._seeds = rollout_seeds(self.args.seed, key, rows, K)
        columns: Columns = super()._generate_and_score_completions(inputs)
        for name in ("old_per_token_logps", "ref_per_token_logps"):
            columns.pop(name, None)
        columns |= trace_columns(self._rollouts, self.accelerator.device)
        if self.args.estimator == "forks":  # the loss is that of forks, and so are its means
            columns["tool_mask"] = columns["tool_mask"] * columns["fork"]
            columns["num_items_in_batch"] = gather(columns["tool_mask"].sum()).sum()
        prompt_seeds = [derive_seed(self.args.seed, *key, row // K) for row in rows]
        columns["prompt_seed"] = torch.tensor(prompt_seeds, device=self.accelerator.device)
        rewards_NF, W = self._rewards_NF, K
        weights_F = self.reward_weights.to(rewards_NF.device)
        if self._teaching is not None and self.model.training:
            columns, rewards_NF = self._teach(columns, inputs, key, rows)
            weights_F, W = torch.ones_like(weights_F[:1]), self._width
        count = len(columns["advantages"])
        own = slice(self.accelerator.process_index * count, (self.accelerator.process_index + 1) * count)
        summed = self.multi_objective_aggregation == "sum_then_normalize"
        varies_P = groups_with_signal(rewards_NF, weights_F, W, summed)
        columns["varies"] = columns["signal"] = varies_P.repeat_interleave(W)[own]
        if self.args.drop_zero_variance:  # what is left of their advantages is rounding
            columns["advantages"] = columns["advantages"] * columns["varies"]
        if "target_weight" in columns:  # what teaches beside the policy loss, or in its place
            aimed_B = (columns["target_weight"].view(-1, K) > 0).any(1).repeat_interleave(K)
            if self._only_targets:
                columns["advantages"] = torch.zeros_like(columns["advantages"])
                columns["signal"] = aimed_B
            else:
                columns["signal"] = columns["varies"] | aimed_B
        columns["weight"] = columns["advantages"]
        if self.args.policy_loss == "weighted":
            known_N = ~rewards_NF.isnan().all(1)
            columns["weight"] = losses.group_weights(gather(columns["advantages"]), known_N, W)[own]
        if self.args.policy_loss == SELF_DISTILLATION:  # what teaches is a right rollout, whatever the others are
            right_N = first_right(self._summed(rewards_NF), self.args.distill["distill_reward"], K)
            columns["weight"] = right_N[own].float()
            columns["signal"] = right_N.view(-1, K).any(1).repeat_interleave(K)[own]
            if self.model.training:
                self._metrics["train"]["distill/right"].append(right_N.float().sum().item() * K / len(right_N))
        return columns

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Columns:
        """A generation's batch: rollouts, rewards, and the likelihoods that have to be known before the first step."""
        ranks, first = self.accelerator.num_processes, self.accelerator.process_index * len(inputs)
        if not self.model.training:
            rows = range(self._eval_rows + first, self._eval_rows + first + len(inputs))
            self._eval_rows += ranks * len(inputs)
            columns = self._roll_out(inputs, (EVAL,), rows, self.num_generations_eval)
            # A loss of rewards alone is 0.
            columns["active"] = torch.full_like(columns["signal"], self.beta != 0 or self._entropy_bonus_enabled)
            columns["active"] &= columns["tool_mask"].any(1)
        else:
            generation = self._step // (self.args.steps_per_generation * self.num_iterations)
            rows = range(first, first + len(inputs))
            columns = self._roll_out(inputs, (TRAIN, generation), rows, self.num_generations)
            for turn in range(self.args.refill_groups):
                columns, changed = self._refill(columns, generation, turn, first)
                if not changed:
                    break
            usable = gather(columns["signal"].double()).mean().item()
            self._metrics["train"]["rollout/usable_groups"].append(usable)
            kept = self.state.stateful_callbacks  # of what checkpoints keep, what takes a number
            kept[WITHOUT_SIGNAL] = 0 if usable else kept.get(WITHOUT_SIGNAL, 0) + 1
            self._metrics["train"][WITHOUT_SIGNAL] = [kept[WITHOUT_SIGNAL]]  # a count: the log has its latest
            # Groups without variance have no advantage, but an entropy all the same.
            dropped = self.args.drop_zero_variance and not self._entropy_bonus_enabled
            active_B = columns["varies"] if dropped else torch.ones_like(columns["varies"])
            if self.args.policy_loss == SELF_DISTILLATION:
                active_B = columns["weight"] > 0
            columns["active"] = active_B & columns["tool_mask"].any(1)
            if self._only_targets:
                columns["active"] = torch.zeros_like(columns["active"])
        self._score_before(columns)
        return columns

    def _refill(self, columns: Columns, generation: int, turn: int, first: int) -> tuple[Columns, bool]:
        """Replaces groups without signal by groups of fresh prompts, where those have one."""
        K, W = self.num_generations, self._width
        signal_P = columns["signal"].view(-1, W)[:, 0]
        missing = (~signal_P).nonzero()[:, 0].tolist()
        count = int(gather(torch.tensor([len(missing)], device=signal_P.device)).max())
        if not count:
            return columns, False
        # Every rank rolls out as many groups; those beyond its own need are thrown away.
        groups = (missing + list(range(count)))[:count]
        key = (REFILL, generation, turn)
        places = [first // K + group for group in groups]
        fresh = [
            self.train_dataset[derive_seed(self.args.seed, *key, place) % len(self.train_dataset)] for place in places
        ]
        rows = [place * K + k for place in places for k in range(K)]
        metrics = {name: list(values) for name, values in self._metrics["train"].items()}
        table = {name: list(column) for name, column in self._table().items()}
        new = self._roll_out([row for row in fresh for _ in range(K)], key, rows, K)
        found = [i for i in range(len(missing)) if bool(new["signal"][i * W])]
        # The log is of the prompts as they came, whose mean reward says how a run gets on; the table of what is trained on.
        metrics["num_tokens"] = self._metrics["train"]["num_tokens"]
        self._metrics["train"].clear()
        self._metrics["train"].update(metrics)
        begin = self.accelerator.process_index * count
        pairs = [(first + missing[i] * K + k, (begin + i) * K + k) for i in found for k in range(K)]
        self._replace_in_table(table, gather_object(pairs), count * K)
        offset_W = torch.arange(W, device=signal_P.device)
        at = (
            torch.tensor([missing[i] for i in found], dtype=torch.long, device=signal_P.device)[:, None] * W + offset_W
        )
        of = torch.tensor(found, dtype=torch.long, device=signal_P.device)[:, None] * W + offset_W
        columns = replace_rows(columns, new, at.flatten(), of.flatten(), self._denoiser.pad_id)
        columns["num_items_in_batch"] = gather(columns["tool_mask"].sum()).sum()
        return columns, True

    def _table(self) -> dict[str, deque[Any]]:
        """The columns of the completions that TRL keeps, and ours beside them."""
        columns = {name: self._logs[name] for name in ("prompt", "completion", "advantages")} | {"given": self._given}
        for kind in ("rewards", "extra"):
            columns |= {f"{kind}/{name}": column for name, column in self._logs[kind].items()}
        return columns

    def _replace_in_table(self, table: dict[str, list[Any]], pairs: list[tuple[int, int]], count: int) -> None:
        """Puts the columns back as they were, but for rows that were replaced: `(row, row of the refill)` of all ranks."""
        ranks = self.accelerator.num_processes
        for name, column in self._table().items():
            kept, new = table.get(name, []), list(column)[-ranks * count :]
            start = len(kept) - self.args.generation_batch_size
            for at, of in pairs if start >= 0 else ():
                kept[start + at] = new[of]
            column.clear()
            column.extend(kept)

    def _score_before(self, columns: Columns) -> None:
        """Adds the likelihoods that have to be known before the first step."""
        raise NotImplementedError

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in TRL; the completions that it keeps can be written whatever is in them, and have the data set's columns."""
        for column in (self._logs["prompt"], self._logs["completion"], *self._logs["extra"].values()):
            make_writable(column)
        super().log(logs, start_time)
        if self.log_completions and self.accelerator.is_main_process:
            name = f"completions_{self.state.global_step:05d}.parquet"
            add_columns(Path(self.args.output_dir) / "completions" / name, list(self._given))

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As in TRL; every evaluation draws the same noise."""
        self._eval_rows = 0
        return super().evaluate(*args, **kwargs)
