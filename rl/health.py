"""Is the run still well? A callback that watches what the trainer logs, and stops it or goes back before more is lost.

Training a diffusion policy by estimated likelihoods fails in known ways: a gradient that is not finite, importance ratios
that spread until a few completions decide everything, estimates that drift, completions that become one and the same, that
repeat a token or never end, groups whose rewards all agree so that nothing can be learned, rewards that were there and are
lost. Each is a number in the log with a limit.

A gradient that is not finite never reaches the weights. A limit that is passed in `health_patience` logs in a row is a
collapse. Then `health_action` says what happens: `stop` ends the run with the last good weights in place, `restore` puts
them back and goes on, a few times. Either way the reason is a warning and a line of `health.jsonl` in the output directory.

Left out: weights that are sharded over processes (ZeRO-3, FSDP) or larger than 4 GiB, which are not kept beside the run:
there `stop` ends it and names the step of the last good log, and `restore` is refused.
"""

import json
import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

ACTIONS = ("stop", "restore", "off")
EVENTS = "health.jsonl"
NO_GRADIENT = "the gradient is not finite"
KEPT_BYTES = 4 * 2**30


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
        "rollout/without_signal",
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


def read_events(output: Path) -> list[dict[str, Any]]:
    """What was done in a run of a directory, in order; nothing if there was nothing to do.

    Raises `ValueError` for a line of its file that is no event, as one that was cut off.
    """
    path = output / EVENTS
    events = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else (), start=1):
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number} is no event, perhaps cut off: remove it") from error
    return events


def stopped_by(output: Path) -> dict[str, Any] | None:
    """The event by which health ended the run of a directory: its `step`, and what was `wrong`.

    None where the last event, if there is one, is another. Raises `ValueError` as `read_events` does.
    """
    events = read_events(output)
    return events[-1] if events and events[-1]["action"] == "stop" else None


def _restores_until(step: int, events: list[dict[str, Any]]) -> list[int]:
    """The steps of the restores that a checkpoint has behind it; what a run did that was gone back behind is left out."""
    restores: list[dict[str, Any]] = []
    for event in events:
        while restores and (restores[-1]["step"] > event["step"] or restores[-1] == event):
            restores.pop()
        if event["action"] == "restore":
            restores.append(event)
    # A gradient is seen within a step, and so behind the checkpoint of the count before it.
    return [one["step"] for one in restores if one["step"] < step + (one["wrong"] != NO_GRADIENT)]


class HealthCallback(TrainerCallback):
    """Watches a run; `reason` says why it was stopped, or is None."""

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        self.reason: str | None = None
        self._watch = Watch(config)
        self._kept: tuple[int, list[torch.Tensor]] | None = None
        self._kept_well = True  # whether all was well in the log of these
        self._last_good = 0
        self._restores = 0
        self._dropped = False  # a gradient, since the last log

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keeps the start, which is good by definition. A run that goes on counts on, by its log and events so far.

        Raises:
            ValueError: `restore` is asked for and the weights cannot be kept, or the events cannot be read.
        """
        well = self._read_so_far(state, Path(args.output_dir))
        if well:
            self._last_good = state.global_step
        self._keep(state.global_step, kwargs["model"], well)
        if self.config.health_action == "restore" and self._kept is None:
            raise ValueError(
                "health_action='restore' keeps the weights that are trained in memory; these are sharded over "
                "processes or larger than 4 GiB: 'stop', or train an adapter"
            )

    def _read_so_far(self, state: TrainerState, output: Path) -> bool:
        """Reads the log of a run that goes on, as it was read then; whether all was well at its end."""
        restored = deque(_restores_until(state.global_step, read_events(output)))
        self._restores, well = len(restored), True
        for logs in state.log_history:
            if "loss" not in logs:
                continue
            while restored and restored[0] < logs["step"]:
                restored.popleft()
                self._watch.forget()
            ended = [name for name in ("loss", "grad_norm") if not math.isfinite(logs.get(name) or 0)]
            well, _ = self._watch.read({name: value for name, value in logs.items() if name not in ended})
            if well:
                self._last_good = logs["step"]
        if restored:  # good weights were put back since
            self._watch.forget()
        return well or bool(restored)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drops gradients that are not finite: the optimiser passes over weights that have none."""
        if args.fp16 or self.config.health_action == "off":  # in fp16 they are the loss scaler's everyday business
            return
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if not gradients or not _on_any_process(not _finite_norm(gradients), gradients[0].device):
            return
        kwargs["model"].zero_grad(set_to_none=True)
        self._dropped = True
        self._act(NO_GRADIENT, args, state, control, kwargs)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Reads a training log; logs of evaluations have no loss of their own name and are passed over."""
        logs = dict(kwargs["logs"])
        if "loss" not in logs or self.config.health_action == "off" or self.reason is not None:
            return
        if self._dropped:  # its norm may be in this log: that was acted on
            logs.pop("grad_norm", None)
            self._dropped = False
        well, wrong = self._watch.read(logs)
        if _on_any_process(wrong is not None, kwargs["model"].device):
            self._act(wrong or "another process found it ill", args, state, control, kwargs)
        elif not _on_any_process(not well, kwargs["model"].device):
            self._last_good = state.global_step
            self._keep(state.global_step, kwargs["model"])

    def _keep(self, step: int, model: torch.nn.Module, well: bool = True) -> None:
        """Copies the weights that are trained to main memory, if they are whole, finite and not too large."""
        weights = _trained(model)
        if any(isinstance(weight, DTensor) or weight.numel() == 0 for weight in weights):
            return
        if sum(weight.numel() * weight.element_size() for weight in weights) > KEPT_BYTES:
            return
        if not _finite_norm(weights):
            return
        self._kept = step, [weight.detach().to("cpu", copy=True) for weight in weights]
        self._kept_well = well

    def _put_back(self, model: torch.nn.Module) -> int | None:
        """The kept weights in their places; the step that they are of, or None if none are kept."""
        if self._kept is None:
            return None
        step, kept = self._kept
        with torch.no_grad():
            for weight, good in zip(_trained(model), kept, strict=True):
                weight.copy_(good)
        return step

    def _act(
        self, wrong: str, args: TrainingArguments, state: TrainerState, control: TrainerControl, kwargs: dict[str, Any]
    ) -> None:
        step = self._put_back(kwargs["model"])
        stops = self.config.health_action == "stop" or self._restores >= self.config.health_restores
        if stops:
            self.reason = wrong
            control.should_training_stop = True
        else:
            self._restores += 1
            self._watch.forget()
            # What Adam remembers of the gradients that led astray would lead there again.
            kwargs["optimizer"].state.clear()
        ill = "" if self._kept_well else ", whose log was ill already,"
        weights = (
            f"the weights of step {step}{ill} are in place" if step is not None else "the weights are as they were"
        )
        done = f"stopped: {weights}" if stops else f"went back: {weights} (restore {self._restores})"
        if stops and (step is None or ill):
            done += f"; the last good log was at step {self._last_good}"
        logger.warning("step %d: %s; %s", state.global_step, wrong, done)
        if state.is_world_process_zero:
            event = {
                "step": state.global_step,
                "wrong": wrong,
                "action": "stop" if stops else "restore",
                "weights": step,
                "well": self._kept_well,
            }
            path = Path(args.output_dir) / EVENTS
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")


def _trained(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _finite_norm(tensors: list[torch.Tensor]) -> bool:
    norm = torch.nn.utils.get_total_norm([tensor.detach() for tensor in tensors])
    return bool((norm.full_tensor() if isinstance(norm, DTensor) else norm).isfinite())


def _on_any_process(here: bool, device: torch.device) -> bool:
    """Whether it holds on any process: all of them must decide alike, or they would wait for one another for ever."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return here
    flag = torch.tensor([float(here)], device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())
