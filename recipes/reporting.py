"""Keeps the page of a run up to date while it goes on."""

from pathlib import Path
from typing import Any

from lockstitch.rl.run_report import PAGE, report_run
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ReportCallback(TrainerCallback):  # type: ignore[misc]
    """Writes `report.html` into the output directory at every checkpoint and at the end."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """At every checkpoint."""
        self._write(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """At the end, also of a run that was stopped."""
        self._write(args, state)

    def _write(self, args: TrainingArguments, state: TrainerState) -> None:
        if state.is_world_process_zero:
            output = Path(args.output_dir)
            report_run(output, output / PAGE, state.log_history)
