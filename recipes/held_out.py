"""Accuracy on problems that are not trained on, measured while a run goes on: sampled without noise, judged by the task.

A training reward says how well a policy does on its own prompts at the temperature of its rollouts; what a run is for is how
many new problems it solves, one token a step and several. The number is logged as `held_out/accuracy@T`, T tokens a step.

Left out: several samples per problem.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from inspect import iscoroutine
from typing import Any

import torch
from lockstitch.rewards.contract import RESERVED
from lockstitch.rl.health import HealthCallback
from lockstitch.sampling.chat import encode
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.loop import sample
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def held_out_samplers(
    canvas_length: int, block_length: int | None, tokens: Sequence[int], batch_size: int
) -> dict[int, SamplerConfig]:
    """The settings that denoise that many tokens a step, the most certain first and without noise, by that number.

    Where a block is no multiple of that number, some of its steps denoise one token less. Raises `ValueError` for a number
    that no block has.
    """
    if not tokens or len(set(tokens)) < len(tokens):
        raise ValueError(
            f"held_out_tokens_per_step={list(tokens)} must name different numbers of tokens, at least one"
        )
    block = block_length or canvas_length
    for count in tokens:
        if not 1 <= count <= block:
            raise ValueError(f"held_out_tokens_per_step={count}: from 1 to the {block} positions of a block")
    steps = {count: canvas_length // block * math.ceil(block / count) for count in tokens}
    return {
        count: SamplerConfig(canvas_length, block_length, steps=steps[count], batch_size=batch_size)
        for count in tokens
    }


class HeldOut(TrainerCallback):  # type: ignore[misc]
    """Measures at the start, every so many steps and at the end.

    Args:
        tokenizer: the model's.
        rows: the problems: `prompt` as the trainer has it, and the columns that the judge reads.
        judge: the reward whose 1.0 means right; it may be asynchronous.
        samplers: see `held_out_samplers`.
        every: steps between measurements.
        template: arguments of the chat template.
        threshold: the judge's reward from which a completion counts as right.
    """

    def __init__(
        self,
        tokenizer: Any,
        rows: Sequence[Mapping[str, Any]],
        judge: Callable[..., Any],
        samplers: Mapping[int, SamplerConfig],
        every: int,
        template: Mapping[str, Any],
        threshold: float = 1.0,
    ) -> None:
        self._threshold = threshold
        self._rows, self._judge, self._samplers, self._every = rows, judge, samplers, every
        self._prompts = [encode(row["prompt"], tokenizer, **template) for row in rows]
        self._measured = -1
        self.trainer: Any = None  # a trainer exists only after its callbacks

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Where the run starts from."""
        if state.global_step == 0:
            self._measure(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Every so many steps."""
        if state.global_step % self._every == 0:
            self._measure(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What was reached; once more where health has put other weights in the place of those that were measured."""
        changed = any(
            isinstance(one, HealthCallback) and one.reason for one in self.trainer.callback_handler.callbacks
        )
        self._measure(state, again=changed)

    def _measure(self, state: TrainerState, again: bool = False) -> None:
        name = f"held_out/accuracy@{next(iter(self._samplers))}"  # in the log, where a run was killed behind it
        logged = any(entry["step"] == state.global_step and name in entry for entry in state.log_history)
        if not again and (self._measured == state.global_step or logged):
            return
        self._measured = state.global_step
        trainer = self.trainer
        assert trainer is not None
        accelerator = trainer.accelerator
        mine = range(accelerator.process_index, len(self._rows), accelerator.num_processes)
        counts = []
        with trainer.sampling_denoiser() as denoiser:
            for config in self._samplers.values():
                drawn = sample(denoiser, [self._prompts[i] for i in mine], config) if mine else []
                verdicts = self._verdicts(mine, [trajectory.text for trajectory in drawn]) if mine else []
                known = [verdict for verdict in verdicts if verdict is not None]
                counts.append([sum(verdict >= self._threshold for verdict in known), len(known)])
        totals = accelerator.reduce(
            torch.tensor(counts, dtype=torch.float32, device=accelerator.device), "sum"
        ).tolist()
        # GRPO's own `log` would take along the training metrics that wait for theirs, and any log cancels the one due.
        due = trainer.control.should_log
        Trainer.log(
            trainer,
            {
                f"held_out/accuracy@{tokens}": right / known if known else float("nan")
                for tokens, (right, known) in zip(self._samplers, totals, strict=True)
            },
        )
        trainer.control.should_log = due

    def _verdicts(self, mine: Sequence[int], texts: Sequence[str]) -> list[float | None]:
        rows = [self._rows[i] for i in mine]
        names = {name for row in rows for name in row} - {"prompt", *RESERVED}
        columns = {name: [row.get(name) for row in rows] for name in names}
        completions = [
            [{"role": "assistant", "content": text}] if isinstance(row["prompt"], list) else text
            for row, text in zip(rows, texts, strict=True)
        ]
        prompts = [row["prompt"] for row in rows]
        verdicts = self._judge(prompts=prompts, completions=completions, **columns)
        found: list[float | None] = asyncio.run(verdicts) if iscoroutine(verdicts) else verdicts
        return found
