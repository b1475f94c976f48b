"""The output directory of a training run: one configuration's, one process's at a time, and finished once.

A launch into a directory that holds a run goes on from its last whole checkpoint, says what differs if its settings are
others or its files hold other rows now, and does nothing if the run has reached its end, or health has stopped it. A
checkpoint of another run that is named is where a run begins: once it has one of its own, it goes on from that. `run.json`
says what a run is from its first checkpoint on.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lockstitch.rl.checkpoints import STATE, NotFiniteError, NotWrittenError, last_checkpoint, torn
from lockstitch.rl.health import HealthCallback, read_events, stopped_by
from lockstitch.rl.model_card import run_card
from lockstitch.rl.run_record import RUN, RunRecord, base_revision, write_run
from lockstitch.sampling.tokens import NotANumberError
from peft import PeftModel
from transformers import TrainerCallback

from lockstitch import files
from lockstitch.options import REFUSALS, in_a_line

# What may differ between the launches of a run: where and how it runs and tells, and how far it goes.
FREE = frozenset({
    "output_dir", "max_steps", "num_train_epochs", "resume_from_checkpoint", "logging_steps", "logging_first_step",
    "logging_strategy", "logging_dir", "log_level", "report_to", "run_name", "project", "trackio_space_id", "save_steps",
    "save_strategy", "save_total_limit", "disable_tqdm", "use_cpu", "dataloader_num_workers", "dataloader_pin_memory",
    "dataset_num_proc", "rollout_micro_batch_size", "recompute_passes", "gradient_checkpointing", "torch_compile",
    "torch_compile_backend", "torch_compile_mode", "html", "log_completions", "num_completions_to_print", "push_to_hub",
    "hub_model_id", "hub_private_repo", "hub_strategy", "hub_token",
})  # fmt: skip


class NotBegunError(ValueError):
    """Settings, or a checkpoint, that are refused where optimizer, schedule and data are made of them."""


# What ends a run that has begun in a line: everything else is a fault of ours.
MISTAKES = (NotBegunError, NotFiniteError, NotANumberError, NotWrittenError, OSError)


_STRAY = re.compile(r"\.tmp\w{6}")  # what safetensors was writing when it was killed


class _Begun(TrainerCallback):  # type: ignore[misc]
    """Knows whether everything that a run needs was made: what fails until then is what was asked for."""

    begun = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begun = True


@dataclass
class Run:
    """A trainer with the record of what it trains, and where it goes on from."""

    trainer: Any
    record: RunRecord
    checkpoint: str | None

    def __call__(self) -> None:
        """Trains, and leaves everything in the output directory; `run.json` with the first checkpoint."""
        trainer, output = self.trainer, Path(self.trainer.args.output_dir)

        def keep_record() -> None:
            if trainer.is_world_process_zero():
                write_run(output, self.record)

        trainer.before_checkpoint = keep_record
        length = getattr(trainer.args, "max_completion_length", None) or getattr(trainer.args, "canvas_length", None)
        adapter = isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel)
        trainer.card = run_card(self.record, output.resolve().name, adapter, length)
        begun, callbacks = _Begun(), trainer.callback_handler.callbacks
        of_health = [i for i, one in enumerate(callbacks) if isinstance(one, HealthCallback)]
        callbacks.insert(max(of_health, default=-1) + 1, begun)  # health may refuse to begin
        try:
            trainer.train(resume_from_checkpoint=self.checkpoint)
        except (ValueError, *REFUSALS) as error:
            if begun.begun:
                raise
            where = "" if self.checkpoint is None else f" of {self.checkpoint}"
            raise NotBegunError(f"training{where} cannot begin: {in_a_line(error)}") from error
        keep_record()
        trainer.save_model(trainer.args.output_dir)
        trainer.save_state()
        trainer.create_model_card()  # which PEFT has written its own in the place of


def run_of(trainer: Any, record: RunRecord, base: str, revision: str) -> Run:
    """The run of a trainer whose model is loaded: its record with the base's commit, and where it goes on from."""
    training = trainer.args
    checkpoint = _named(training)
    if checkpoint is None:
        checkpoint = last_checkpoint(Path(training.output_dir), trainer.accelerator.print)
        if checkpoint is not None and (why := _without_state(checkpoint)) is not None:
            raise ValueError(
                f"output_dir={training.output_dir!r}: {checkpoint.name} cannot be gone on from, {why} (save_only_model=True "
                "saves none); choose another, or remove it to begin anew"
            )
    record = replace(
        record,
        revision=base_revision(base, revision),
        device=str(trainer.accelerator.device),
        dtype=str(trainer.model.dtype).removeprefix("torch."),
    )
    return Run(trainer, record, None if checkpoint is None else str(checkpoint))


def _named(training: Any) -> Path | None:
    """The checkpoint that is named to go on from: another run's until this directory has one of its own, or one of its own.

    Raises `ValueError` for one that is not whole.
    """
    if training.resume_from_checkpoint is None:
        return None
    output, checkpoint = Path(training.output_dir), Path(training.resume_from_checkpoint)
    if checkpoint.resolve().parent != output.resolve() and last_checkpoint(output) is not None:
        return None
    why = torn(checkpoint) or _without_state(checkpoint)
    if why is not None:
        raise ValueError(f"resume_from_checkpoint={str(checkpoint)!r} cannot be gone on from: {why}")
    return checkpoint


def _without_state(checkpoint: Path) -> str | None:
    """What a checkpoint lacks of optimiser and schedule, in words; None if it has both."""
    if any(checkpoint.glob("global_step*")):  # DeepSpeed's own form
        return None
    for name in ("optimizer", "scheduler"):
        if not any(checkpoint.glob(f"{name}*")):
            return f"it has no {name}.pt"
    return None


@contextmanager
def leaving_nothing(output: Path) -> Iterator[None]:
    """Within the block, a launch is made ready: where it is refused, the directories that it made are gone again.

    Those that hold anything stay.
    """
    made = [place for place in (output, *output.parents) if not place.exists()]
    try:
        yield
    except BaseException:
        for place in made:
            with suppress(OSError):
                place.rmdir()
        raise


def is_first(training: Any) -> bool:
    """Whether this is the first process of a launch: by what launchers say (mpirun says nothing), or the arguments."""
    return int(os.environ.get("RANK", training.process_index)) == 0


def is_finished(output: Path, record: RunRecord, training: Any, say: Any = print) -> bool:
    """Whether a run has reached its end; makes the directory this process's own.

    Args:
        output: the run's directory.
        record: of the launch.
        training: its arguments (`max_steps`, `num_train_epochs`).
        say: told that the run is finished, or was stopped by health, and how to go on all the same.

    Raises:
        ValueError: another process writes into the directory, or it holds a run of other settings or over other rows, or one
            of which nothing says what it was; or the checkpoint that is named to go on from is not whole.
    """
    output.mkdir(parents=True, exist_ok=True)
    if is_first(training):
        files.lock(output)
        for stray in output.glob(".tmp*"):
            if _STRAY.fullmatch(stray.name):
                stray.unlink()
    named = _named(training)
    state = _state(output / STATE)
    if state is None and last_checkpoint(output) is None:
        return False
    path = output / RUN
    if not path.is_file():
        raise ValueError(f"output_dir={str(output)!r} holds a run, and no {RUN} that says of what; choose another")
    _check_same(output, json.loads(path.read_text(encoding="utf-8")), record)
    read_events(output)  # by which health goes on
    if state is None:
        return False
    steps, wanted = state["global_step"], training.max_steps
    if named is None and (wrong := _ill(output, state)) is not None:
        say(
            f"{output} holds this run, stopped by health after {steps} steps ({wrong}): nothing to do. To go on under other "
            "limits: another output_dir, and resume_from_checkpoint of one of this run's checkpoints"
        )
        return True
    more = (
        steps < wanted if wanted > 0 else (state.get("epoch") or 0) < training.num_train_epochs and not _stopped(state)
    )
    if more:
        return False
    say(f"{output} holds this run, finished after {steps} steps: nothing to do. A higher max_steps goes on from there")
    return True


def _state(path: Path) -> dict[str, Any] | None:
    """A trainer's state as it was saved at the end of a run, or None."""
    if not path.is_file():
        return None
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return state


def _stopped(state: Mapping[str, Any]) -> bool:
    """Whether a run ended before it was to: something stopped it for good."""
    return bool(state["global_step"] < state["max_steps"])


def _ill(output: Path, state: Mapping[str, Any]) -> str | None:
    """Why health ended the run of a directory, if that is how it ended.

    A run that was resumed since has newer checkpoints.
    """
    event, steps = stopped_by(output), state["global_step"]
    newest = last_checkpoint(output)
    resumed = newest is not None and int(Path(newest).name.rpartition("-")[2]) > steps
    # A gradient that is not finite is seen within a step, which is counted all the same.
    if event is None or resumed or not _stopped(state) or steps - event["step"] not in (0, 1):
        return None
    return str(event["wrong"])


def _check_same(output: Path, earlier: Mapping[str, Any], record: RunRecord) -> None:
    facts = ("base", "stage", "family", "task", "data", "preset")
    before = {**{name: earlier.get(name) for name in facts}, **earlier.get("config", {})}
    now = {**{name: getattr(record, name) for name in facts}, **json.loads(json.dumps(record.config))}
    names = sorted({*before, *now} - FREE)
    changed = [
        f"{name}: {before.get(name)!r} then, {now.get(name)!r} now"
        for name in names
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"output_dir={str(output)!r} holds a run of other settings ({'; '.join(changed)}); choose another"
        )
    read = earlier.get("contents", {})
    others = [
        f"{name}={now[name]!r}" if name in now else name
        for name in sorted({*read, *record.contents})
        if read.get(name) != record.contents.get(name)
    ]
    if others:
        raise ValueError(
            f"output_dir={str(output)!r} holds a run over other rows: the sha256 of {', '.join(others)} is not what it was; "
            "choose another output_dir"
        )
