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
from pathlib import Path
from typing import Any

import torch
from lockstitch.rl.health_rules import WITHOUT_SIGNAL, HealthConfig, Watch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

EVENTS = "health.jsonl"
NO_GRADIENT = "the gradient is not finite"
KEPT_BYTES = 4 * 2**30


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
        # The norm of what was dropped may be in this log: that was acted on. In fp16 the scaler passes over such a step.
        if self._dropped or (args.fp16 and not math.isfinite(logs.get("grad_norm") or 0)):
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
            state.stateful_callbacks.pop(WITHOUT_SIGNAL, None)
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
