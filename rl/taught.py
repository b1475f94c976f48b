"""What `DiffusionGRPOTrainer` does with a teacher: it shows it the groups, and gives each lesson its role.

Lessons are made once the rollouts of a generation have their rewards, are paid by the same reward functions, and are kept
with the rollouts in use, so that a resumed run has them. Leaves out the roles' own arithmetic (`lockstitch.rl.teaching`),
and the completions table, which is of rollouts alone.

Axes: B rows (completions), G canvas positions, K completions of a prompt, W rows of a group, P prompts, N rows of all ranks,
F reward functions.
"""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.utils import gather
from lockstitch.rl.resume import ResumableGRPOTrainer
from lockstitch.rl.rollouts import counted, replace_rows, trace_columns
from lockstitch.rl.self_distillation import LOSS as SELF_DISTILLATION
from lockstitch.rl.teaching import (
    Columns,
    Group,
    Teaching,
    check_lessons,
    group_advantages,
    joined,
    lesson_metrics,
    lesson_statistics,
    target_columns,
    worst_members,
)
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.noise import derive_seed
from lockstitch.sampling.trajectory import Trajectory
from trl.data_utils import is_conversational
from trl.trainer.utils import nanstd


class TaughtTrainer(ResumableGRPOTrainer):
    """The part of the trainer that has a teacher; the attributes are the rollouts' own."""

    _teaching: Teaching | None
    _rollouts: list[Trajectory]
    _rewards_NF: torch.Tensor
    _denoiser: Denoiser
    _sampler: SamplerConfig
    _width: int
    _drops_truncated: bool

    def sampling_denoiser(self) -> AbstractContextManager[Denoiser]:
        """The denoiser as it stands in training."""
        raise NotImplementedError

    def _check_teaching(self, teaching: Teaching) -> None:
        rows, K = self.args.per_device_train_batch_size, self.num_generations
        whole = rows if teaching.role == "join" else rows * self.args.steps_per_generation
        if whole % K:
            raise ValueError(
                f"a teacher whose lessons {teaching.role} needs whole groups on each rank"
                f"{' and step' * (teaching.role == 'join')}: {whole} completions are no multiple of num_generations={K}"
            )
        if self.args.scale_rewards == "batch" or self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                "a teacher needs advantages that depend on their own group: scale_rewards='group' or 'none', "
                "multi_objective_aggregation='sum_then_normalize'"
            )
        if self.args.policy_loss == SELF_DISTILLATION:
            raise ValueError(f"policy_loss={SELF_DISTILLATION!r} has a teacher of its own, and groups no statistics")
        if self.args.rollout_engine != "transformers":
            raise ValueError(
                f"rollout_engine={self.args.rollout_engine!r} has no teacher: lessons are denoised in this process"
            )
        for name in ("beta", "entropy_coef", "use_adaptive_entropy"):
            if teaching.role == "only" and getattr(self.args, name):
                raise ValueError(
                    f"{name}={getattr(self.args, name)} would be ignored: under role='only' there is no policy loss"
                )

    def _teach(
        self, columns: Columns, inputs: list[dict[str, Any]], key: Sequence[int], rows: Sequence[int]
    ) -> tuple[Columns, torch.Tensor]:
        """Has the teacher make a lesson of each group, and gives it its role; the rewards of all ranks' rows, `(N, 1)`."""
        teaching, K, began = self._teaching, self.num_generations, time.perf_counter()
        assert teaching is not None
        first = self.accelerator.process_index * len(inputs)
        rewards_PK = self._summed(self._rewards_NF)[first : first + len(inputs)].view(-1, K)
        groups = [
            Group(
                inputs[p * K],
                self._rollouts[p * K : (p + 1) * K],
                rewards_PK[p].tolist(),
                derive_seed(self.args.seed, *key, rows[p * K] // K, K),
            )
            for p in range(len(rewards_PK))
        ]
        with self.sampling_denoiser() as denoiser:
            lessons = list(teaching.teacher(denoiser, self._sampler, groups))
        check_lessons(lessons, groups)
        # Groups without a lesson have a row all the same, that counts in nothing.
        shown = [
            group.trajectories[0] if lesson.trajectory is None else lesson.trajectory
            for lesson, group in zip(lessons, groups, strict=True)
        ]
        more = {name: values[::K] for name, values in columns.items() if values.ndim > 0}
        device, valid = self.accelerator.device, (self.args.scope, self._drops_truncated)
        more |= trace_columns(shown, device)
        more["completion_ids"] = torch.tensor([t.canvas_ids for t in shown], device=device)
        more["tool_mask"] = torch.tensor([counted(t, *valid) for t in shown], device=device)
        if self.args.estimator == "forks":
            more["tool_mask"] = more["tool_mask"] * more["fork"]
        taught_P = torch.tensor([lesson.trajectory is not None for lesson in lessons], device=device)
        if teaching.makes_members:  # where nothing was left to the policy there is nothing to learn
            taught_P = taught_P & more["tool_mask"].any(1)
        more["tool_mask"] = more["tool_mask"] * taught_P[:, None]
        more["target_mask"] = torch.tensor([counted(t, *valid, given=True) for t in shown], device=device)
        reward_P = self._rewards_of(shown, inputs[::K])[first // K : first // K + len(groups)]
        reward_P = reward_P.masked_fill(~taught_P, math.nan)
        found = lesson_statistics(groups, lessons, taught_P, reward_P, time.perf_counter() - began)
        for name, value in lesson_metrics(gather(found)).items():
            self._metrics["train"][name].append(value)

        scale = str(self.args.scale_rewards)
        if teaching.role == "join":
            rewards_PK = torch.cat([rewards_PK, reward_P[:, None]], 1)
            columns = joined(columns, more, K)
        elif teaching.role == "replace":
            of_P = taught_P.nonzero()[:, 0]
            worst_P = worst_members(rewards_PK)[of_P]
            columns = replace_rows(columns, more, of_P * K + worst_P, of_P, self._denoiser.pad_id)
            rewards_PK = rewards_PK.index_put((of_P, worst_P), reward_P[of_P])
        else:
            gain_P = (reward_P - rewards_PK.nanmean(1)).clamp(min=0)
            if scale == "group":
                gain_P = gain_P / (nanstd(rewards_PK, dim=1) + 1e-4)
            more["target_mask"] = more["target_mask"] * taught_P[:, None]
            columns |= target_columns(columns, more, teaching.weight * gain_P.nan_to_num(0.0), K)
        if teaching.makes_members:
            columns["advantages"] = group_advantages(rewards_PK, scale).flatten()
            columns["num_items_in_batch"] = gather(columns["tool_mask"].sum()).sum()
        return columns, gather(rewards_PK.flatten()[:, None])

    def _summed(self, rewards_NF: torch.Tensor) -> torch.Tensor:
        """The weighted sum of a row's rewards, NaN where it has none, `(N,)`."""
        sums_N: torch.Tensor = (rewards_NF * self.reward_weights.to(rewards_NF.device)).nansum(1)
        return sums_N.masked_fill(rewards_NF.isnan().all(1), math.nan)

    def _rewards_of(self, trajectories: Sequence[Trajectory], inputs: list[dict[str, Any]]) -> torch.Tensor:
        """The summed rewards of further completions on all ranks, `(N,)`; what reward functions log of them is not kept."""
        ids = [list(t.completion_ids) for t in trajectories]
        prompts = [row["prompt"] for row in inputs]
        texts: list[Any] = self.processing_class.batch_decode(ids, skip_special_tokens=True)
        if is_conversational({"prompt": prompts[0]}):
            texts = [[{"role": "assistant", "content": text}] for text in texts]
        rewards_NF = super()._calculate_rewards(inputs, prompts, texts, ids)
        self._pending_extra_logs.clear()
        self._pending_metrics.clear()
        return self._summed(rewards_NF)
