"""What a group of rollouts can be taught beside its own rewards: one more completion, which a teacher puts together of them.

A teacher is any callable: it sees the groups of a generation with their rewards, and the model as it stands, and returns for
each a trajectory or nothing. What is made of it is its role:

    join     it becomes one more member of its group, with its own reward in the group's statistics
    replace  it takes the place of the group's worst member
    target   a supervised term draws the policy to it, as far as it beats the group's mean
    only     that term alone: no policy loss

A member (`join`, `replace`) is learned from where the policy drew it. What the teacher gave (positions with commit step 0)
is part of the state: it is shown, its likelihood is in no ratio and has no gradient, and it is counted in no average. The
rest was drawn by the policy given that state, so that its ratio is exact where the estimator is. Group statistics over
members of both kinds are those of LUFFY (2504.14945); starting from a given part and learning the rest alone is BREAD
(2506.17211).

A target is learned whole, with the weight `max(0, R - mean of the group)` on a lower bound of its log-likelihood per token:
self-imitation (1806.05635, Eq. 2), without a ratio, since nobody drew it from one policy.

Leaves out how lessons are made: that is the teacher's business (`lockstitch.recipes.stitch_teacher` stitches).

Axes: B rows, P groups, K completions of a group, W members of one (K, or K + 1 where one joined), G canvas positions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.trajectory import Ledger, Trajectory
from trl.trainer.utils import nanstd

ROLES = ("join", "replace", "target", "only")
# A target's log-likelihood: the lower bound, by one pair of masks that between them ask every token.
TARGET = EstimatorConfig("elbo", mask_schedule="complement")

Columns = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Group:
    """A prompt's rollouts.

    Attributes:
        row: the data set's.
        trajectories: K of them.
        rewards: their weighted sums; NaN where no reward function gave one.
        seed: for the noise of the lesson: of no member.
    """

    row: Mapping[str, Any]
    trajectories: Sequence[Trajectory]
    rewards: Sequence[float]
    seed: int


@dataclass(frozen=True)
class Lesson:
    """What a group is taught.

    Attributes:
        trajectory: of the group's prompt, on a canvas of the sampler's length; what it was given has commit step 0. None
            teaches nothing.
        cost: of making it, beyond the trajectory's own ledger.
    """

    trajectory: Trajectory | None = None
    cost: Ledger = field(default_factory=Ledger)


Teacher = Callable[[Denoiser, SamplerConfig, Sequence[Group]], Sequence[Lesson]]


@dataclass(frozen=True)
class Teaching:
    """A teacher and what becomes of its lessons.

    Attributes:
        teacher: (the model as it stands, the rollouts' sampler settings, groups) -> a lesson for each. The same arguments
            must give the same lessons, or a resumed run is another one.
        role: `join`, `replace`, `target` or `only`.
        weight: of the supervised term (`target`, `only`).

    Raises `ValueError` for another role, and for a weight that is not positive or that the role would ignore.
    """

    teacher: Teacher
    role: str = "join"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role={self.role!r} is not one of {', '.join(ROLES)}")
        if not self.weight > 0:
            raise ValueError(f"weight={self.weight} must be positive")
        if self.makes_members and self.weight != 1:
            raise ValueError(f"weight={self.weight} would be ignored: role={self.role!r} has no supervised term")

    @property
    def makes_members(self) -> bool:
        """Whether lessons become members of their groups."""
        return self.role in ("join", "replace")


def check_lessons(lessons: Sequence[Lesson], groups: Sequence[Group]) -> None:
    """Raises `ValueError` where there is not one lesson a group, or one is of another prompt or canvas."""
    if len(lessons) != len(groups):
        raise ValueError(f"the teacher returned {len(lessons)} lessons for {len(groups)} groups")
    for lesson, group in zip(lessons, groups, strict=True):
        taught, own = lesson.trajectory, group.trajectories[0]
        if taught is None:
            continue
        if tuple(taught.prompt_ids) != tuple(own.prompt_ids):
            raise ValueError(
                f"a lesson is of the prompt {list(taught.prompt_ids)}, its group of {list(own.prompt_ids)}"
            )
        if len(taught.canvas_ids) != len(own.canvas_ids):
            raise ValueError(f"a lesson has {len(taught.canvas_ids)} positions, its group {len(own.canvas_ids)}")


def group_advantages(rewards_PW: torch.Tensor, scale: str) -> torch.Tensor:
    """`R - mean`, `(P, W)`, 0 where R is NaN; under `scale="group"` over the standard deviation plus 1e-4, as TRL's."""
    advantage_PW = rewards_PW - rewards_PW.nanmean(1, keepdim=True)
    if scale == "group":
        advantage_PW = advantage_PW / (nanstd(rewards_PW, dim=1)[:, None] + 1e-4)
    return advantage_PW.nan_to_num(0.0)


def worst_members(rewards_PK: torch.Tensor) -> torch.Tensor:
    """The member of each group with the lowest reward, the first of equals, one without a reward before any, `(P,)`."""
    return rewards_PK.nan_to_num(-torch.inf).argmin(1)


def joined(columns: Columns, more: Columns, K: int) -> Columns:
    """Rows of groups of K with one more row after each group, `(P K, ...)` and `(P, ...)` to `(P (K + 1), ...)`."""
    merged = {}
    for name, values in columns.items():
        merged[name] = values
        if values.ndim > 0:
            new = more[name][:, None].to(values.dtype)
            merged[name] = torch.cat([values.view(-1, K, *values.shape[1:]), new], 1).flatten(0, 1)
    return merged


def target_columns(columns: Columns, lessons: Columns, weight_P: torch.Tensor, K: int) -> Columns:
    """`target_ids`, `target_mask (B, G)` and `target_weight (B,)`: each group's lesson beside its first row."""
    first_B = torch.arange(len(columns["advantages"]), device=weight_P.device) % K == 0
    named = {"target_ids": lessons["completion_ids"], "target_mask": lessons["target_mask"], "target_weight": weight_P}
    return {
        name: torch.where(
            first_B.view(-1, *[1] * (values.ndim - 1)), values.repeat_interleave(K, 0), torch.zeros_like(values[:1])
        )
        for name, values in named.items()
    }


def target_loss(logp_BG: torch.Tensor, mask_BG: torch.Tensor, weight_B: torch.Tensor, divisor: float) -> torch.Tensor:
    """`-sum_i weight_i (mean over a target's tokens of log p) / divisor`.

    Args:
        logp_BG: likelihood estimates of targets, token by token.
        mask_BG: the targets' tokens.
        weight_B: what each weighs; 0 where there is none.
        divisor: groups of the batch, as a rule.
    """
    tokens_B = mask_BG.sum(1).clamp(min=1)
    return -(weight_B * (logp_BG * mask_BG).sum(1) / tokens_B).sum() / divisor


def lesson_statistics(
    groups: Sequence[Group], lessons: Sequence[Lesson], taught_P: torch.Tensor, reward_P: torch.Tensor, seconds: float
) -> torch.Tensor:
    """What the log says of lessons, one row per group, `(P, 9)` float64; see `lesson_metrics`."""
    rows = []
    for group, lesson, taught, reward in zip(groups, lessons, taught_P.tolist(), reward_P.tolist(), strict=True):
        t, known = lesson.trajectory, [r for r in group.rewards if r == r]
        cost = lesson.cost if t is None else lesson.cost.then(t.ledger)
        mean = sum(known) / max(1, len(known))
        varies = bool(known) and max(known) - min(known) > 1e-6 * max(1.0, *map(abs, known))
        opens = taught and bool(known) and not varies and abs(reward - mean) > 1e-6 * max(1.0, abs(mean))
        given = 0.0 if t is None else sum(step == 0 for step in t.commit_step[: t.length]) / t.length
        scored = taught and reward == reward
        rows.append(
            (
                taught,
                scored,
                reward if scored else 0.0,
                reward - mean if scored else 0.0,
                given * taught,
                opens,
                cost.nfe,
                cost.scorer_passes,
                seconds,
            )
        )
    return torch.tensor(rows, dtype=torch.float64, device=reward_P.device)


def lesson_metrics(statistics_P9: torch.Tensor) -> dict[str, float]:
    """Of all ranks' groups: the share that has a lesson, the lessons' mean reward, what they are above their groups' mean,
    the share of their tokens that was given, the share of groups that had no signal and have one now; forward passes of the
    diffusion model and of a scorer for each group, and the time of the slowest rank."""
    taught_P, scored_P, reward_P, gain_P, given_P, opens_P, nfe_P, passes_P, seconds_P = statistics_P9.unbind(1)
    found = {
        "teacher/lessons": taught_P.mean(),
        "teacher/new_signal": opens_P.mean(),
        "teacher/nfe": nfe_P.mean(),
        "teacher/scorer_passes": passes_P.mean(),
        "teacher/seconds": seconds_P.max(),
    }
    if bool(taught_P.any()):
        found["teacher/given"] = given_P.sum() / taught_P.sum()
    if bool(scored_P.any()):
        found |= {"teacher/reward": reward_P.sum() / scored_P.sum(), "teacher/gain": gain_P.sum() / scored_P.sum()}
    return {name: value.item() for name, value in found.items()}
