"""What a run counts as ill by: the numbers that are watched, their limits, and how many logs in a row make a collapse.

`health.py` acts on it.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ACTIONS = ("stop", "restore", "off")


@dataclass(frozen=True)
class Rule:
    """A logged number that must stay within a limit.

    Attributes:
        option: the field of `HealthConfig` that holds the limit.
        metric: the name under which the trainer logs the number.
        above: whether values above the limit are bad, or those below it.
        words: what the number is.
        relative: what the limit is a share of: `first`, the first value that was logged, or `best`, the greatest mean of
            `health_patience` values in a row so far (where that is positive); None where it is the number itself.
        at_once: whether one log beyond the limit is enough: the number counts how long it has been so.
        complement: whether the limit is on one less the number.
        unless: a number that makes the limit void in a log where it is above 0.
    """

    option: str
    metric: str
    above: bool
    words: str
    relative: str | None = None
    at_once: bool = False
    complement: bool = False
    unless: str | None = None

    def broken(self, value: float, bound: float) -> bool:
        """Whether a finite value is on the wrong side of the limit."""
        return abs(value) > bound if self.above else value < bound


WITHOUT_SIGNAL = "rollout/without_signal"  # generations in a row without a group that can teach

RULES = (
    Rule("health_ratio_spread", "ratio/spread", True, "spread of the log-ratios"),
    Rule("health_elbo_drift", "ratio/drift", True, "drift of the likelihoods"),
    Rule("health_sample_size", "ratio/effective_sample_size", False, "effective sample size"),
    Rule("health_unique", "rollout/unique", False, "different completions in a group"),
    Rule(
        "health_equal_groups",
        "rollout/equal_groups",
        True,
        "groups whose completions are all the same",
        unless="rollout/usable_groups",
    ),
    Rule("health_eos_rate", "rollout/eos_rate", False, "completions that end", "first"),
    Rule("health_repetition", "rollout/repetition", True, "tokens that repeat the one before"),
    Rule("health_zero_variance", "rollout/usable_groups", True, "groups that teach nothing", complement=True),
    Rule("health_reward", "reward", False, "mean reward", "best"),
    Rule(
        "health_without_signal",
        WITHOUT_SIGNAL,
        True,
        "generations in a row without a group that teaches",
        at_once=True,
    ),
)


@dataclass
class HealthConfig:
    """When a run counts as ill, and what is done then. `null` switches a limit off."""

    health_action: str = field(
        default="stop",
        metadata={
            "help": "'stop' ends the run with the last good weights, 'restore' puts them back and goes on, "
            "'off' watches nothing."
        },
    )
    health_patience: int = field(default=10, metadata={"help": "Logs in a row beyond a limit that make a collapse."})
    health_restores: int = field(default=3, metadata={"help": "After so many restores the run stops."})
    health_ratio_spread: float | None = field(
        default=2.0, metadata={"help": "Most that the log-ratios may spread (standard deviation)."}
    )
    health_elbo_drift: float | None = field(
        default=1.0, metadata={"help": "Most that the likelihood estimate may move within a batch, nats per token."}
    )
    health_sample_size: float | None = field(
        default=0.05, metadata={"help": "Least effective sample size, as a share of the completions."}
    )
    health_unique: float | None = field(
        default=None,
        metadata={
            "help": "Least share of different completions in a group. Off by default: a solved "
            "task with one right answer has few."
        },
    )
    health_equal_groups: float | None = field(
        default=0.99,
        metadata={
            "help": "Most groups whose completions may all be the same, as a share, where no group teaches: nothing can be "
            "told apart."
        },
    )
    health_eos_rate: float | None = field(
        default=0.1, metadata={"help": "Least share of completions that end, as a share of the first logged one."}
    )
    health_repetition: float | None = field(
        default=0.8, metadata={"help": "Most tokens that may repeat the one before, as a share."}
    )
    health_zero_variance: float | None = field(
        default=0.99,
        metadata={"help": "Most groups that may teach nothing, as a share: equal rewards throughout, and no lesson."},
    )
    health_reward: float | None = field(
        default=0.5,
        metadata={
            "help": "Least mean reward, as a share of the best so far (of the mean of health_patience logs, where that is "
            "positive)."
        },
    )
    health_without_signal: float | None = field(
        default=20,
        metadata={"help": "Most generations in a row without a group that teaches; health_patience does not add."},
    )

    def __post_init__(self) -> None:
        if self.health_action not in ACTIONS:
            raise ValueError(f"health_action={self.health_action!r} is not one of {', '.join(ACTIONS)}")
        if self.health_patience < 1 or self.health_restores < 1:
            raise ValueError(
                f"health_patience={self.health_patience} and health_restores={self.health_restores} must be at least 1"
            )
        for rule in RULES:
            limit = getattr(self, rule.option)
            if limit is not None and not limit >= 0:
                raise ValueError(f"{rule.option}={limit} must be a number of at least 0, or null")


class Watch:
    """Reads logs one by one and says what is wrong; holds nothing but the counts and the first values."""

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        self._streaks: dict[str, int] = {}
        self._first: dict[str, float] = {}
        self._latest: dict[str, deque[float]] = {}
        self._best: dict[str, float] = {}

    def read(self, logs: Mapping[str, Any]) -> tuple[bool, str | None]:
        """One training log: whether everything is within its limits, and what is wrong if it has come to a collapse."""
        well = True
        for name in ("loss", "grad_norm"):
            value = logs.get(name)
            if value is not None and not math.isfinite(value):
                return False, f"{name} is {value}"
        for rule in RULES:
            limit, value = getattr(self.config, rule.option), logs.get(rule.metric)
            if limit is None or value is None or (rule.unless is not None and logs.get(rule.unless, 0) > 0):
                continue
            name = rule.metric
            if rule.complement:
                name, value = f"1 - {name}", 1 - value
            share_of = self._reference(rule, value)
            # Not finite is worse than any number; TRL's own metrics are None then and are not seen here.
            broken = not math.isfinite(value) or rule.broken(value, limit * share_of)
            streak = self._streaks[rule.metric] = self._streaks.get(rule.metric, 0) + 1 if broken else 0
            well = well and not broken
            if streak >= (1 if rule.at_once else self.config.health_patience):
                side = "above" if rule.above else "below"
                bound = f"{limit:g} times {share_of:.3g}" if rule.relative else f"{limit:g}"
                wrong = f"{name} ({rule.words}) is {value:.3g}, {side} {bound}"
                return False, wrong if rule.at_once else f"{wrong} for {streak} logs in a row"
        return well, None

    def _reference(self, rule: Rule, value: float) -> float:
        """What the limit is a share of; 1 where it is the number itself, less than any number where there is none yet."""
        if rule.relative is None:
            return 1.0
        if rule.relative == "first":
            return self._first.setdefault(rule.metric, value)
        best = self._best.get(rule.metric, 0.0)
        latest = self._latest.setdefault(rule.metric, deque(maxlen=self.config.health_patience))
        latest.append(value)
        if len(latest) == latest.maxlen:
            self._best[rule.metric] = max(best, sum(latest) / len(latest))
        return best if best > 0 else -math.inf

    def forget(self) -> None:
        """Starts counting anew, as after a restore."""
        self._streaks.clear()
        self._latest.clear()
