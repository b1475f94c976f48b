"""Training a process reward model on labelled steps: a head of two labels at each step's last token.

The loss is the cross-entropy of the labels, which may be soft, a step on average over the batch. TRL 1.16 has no trainer for
stepwise supervision any more; the rows are in its form, and the trainer is transformers' own, with the checkpoints and run
directories of the other recipes.

Axes: B rows, L positions, M labelled steps of a batch.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lockstitch.rl.checkpoints import WholeCheckpoints
from lockstitch.rl.sft_config import check_counts, check_length, check_rates
from lockstitch.sampling.compiled import check_asked
from lockstitch.stitching.step_reader import Encoded, Reader, batch, room_of
from transformers import PreTrainedModel, TrainingArguments

logger = logging.getLogger(__name__)

IGNORED = -1.0


@dataclass
class StepRewardConfig(TrainingArguments):  # type: ignore[misc]
    """transformers' `TrainingArguments` with the defaults of TRL's stepwise trainer, and the longest row."""

    learning_rate: float = field(default=1e-5, metadata={"help": "Of AdamW, at its highest."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two lines of the log."})
    max_length: int | None = field(
        default=1024,
        metadata={"help": "Rows with more tokens, prompt and steps together, are left out; None: none are."},
    )

    def __post_init__(self) -> None:
        self.remove_unused_columns = False
        self.prediction_loss_only = True
        self.label_names = ["labels"]
        check_counts(self)
        check_rates(self)
        check_length(self)
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} would be ignored: labels may be soft themselves"
            )
        super().__post_init__()
        if self.torch_compile:
            check_asked(self.torch_compile_backend, self.torch_compile_mode, self.device)
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length={self.max_length} must be at least 1")


def check_row(row: Mapping[str, Any], place: int) -> None:
    """Raises `ValueError` for a row that is not of the form of stepwise supervision."""
    missing = [name for name in ("prompt", "completions", "labels") if name not in row]
    if missing:
        raise ValueError(
            f"row {place} has no {', '.join(map(repr, missing))}: steps are labelled in TRL's form, 'prompt', "
            "'completions' (a list of steps) and 'labels' (a number in [0, 1] or a bool each)"
        )
    for name in ("completions", "labels"):
        if not isinstance(row[name], list | tuple):
            raise ValueError(f"row {place} has {name}={row[name]!r:.80}: a list is needed, an entry for each step")
    if not isinstance(row["prompt"], str | list | tuple):
        raise ValueError(f"row {place} has prompt={row['prompt']!r:.80}: a text or messages are needed")
    other = [step for step in row["completions"] if not isinstance(step, str)]
    if other:
        raise ValueError(f"row {place} has the step {other[0]!r:.80}: a text is needed")
    if len(row["completions"]) != len(row["labels"]):
        raise ValueError(f"row {place} has {len(row['labels'])} labels for {len(row['completions'])} steps")
    bad = [label for label in row["labels"] if not isinstance(label, bool | int | float) or not 0 <= label <= 1]
    if bad:
        raise ValueError(f"row {place} has the label {bad[0]!r}: a number in [0, 1], or a bool")


def encode_rows(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, reader: Reader, max_length: int | None
) -> tuple[list[dict[str, Any]], list[Any], list[Any]]:
    """Rows with steps, no longer than `max_length`, as tokens: `ids`, `segments`, `positions` and `labels` at these.

    Beside them the rows that are kept, also those without steps, and those that are longer. Raises `ValueError` for rows of
    another form, or where none is left.
    """
    encoded, kept, long = [], [], []
    for place, row in enumerate(rows):
        check_row(row, place)
        if row["completions"]:
            one = reader.encode(tokenizer, row["prompt"], row["completions"])
            if max_length is not None and len(one.ids) > max_length:
                long.append(row)
                continue
            encoded.append(
                {
                    "ids": one.ids,
                    "segments": one.segments,
                    "positions": one.positions,
                    "labels": [float(label) for label in row["labels"]],
                }
            )
        kept.append(row)
    if not encoded:
        raise ValueError(f"of {len(rows)} rows none has steps and at most max_length={max_length} tokens")
    if long:
        logger.warning(
            "%d of %d rows have more than max_length=%d tokens, and are left out", len(long), len(rows), max_length
        )
    return encoded, kept, long


def check_lengths(
    encoded: Mapping[str, Sequence[Mapping[str, Any]]], model: PreTrainedModel, max_length: int | None
) -> None:
    """Raises `ValueError` where a row of one of the splits has more tokens than the model was made to read."""
    room = room_of(model)
    for split, rows in encoded.items():
        longest = max((len(row["ids"]) for row in rows), default=0)
        if room is not None and longest > room:
            raise ValueError(
                f"max_length={max_length} lets a row of {longest} tokens into the {split} split, and the model reads {room} "
                f"at most: max_length={room} leaves longer ones out"
            )


@dataclass
class StepCollator:
    """Rows as a batch of the model's arguments and `labels`, `(B, L)`: -1 where no step ends."""

    reader: Reader
    dtype: torch.dtype

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Pads to the longest row."""
        encoded = [Encoded(row["ids"], row["segments"], row["positions"]) for row in rows]
        arguments = batch(encoded, self.reader.attention, self.dtype, "cpu")
        labels_BL = torch.full(arguments["input_ids"].shape, IGNORED)
        for b, row in enumerate(rows):
            labels_BL[b, row["positions"]] = torch.tensor(row["labels"])
        return {**arguments, "labels": labels_BL}


def step_loss(logits_BL2: torch.Tensor, labels_BL: torch.Tensor) -> torch.Tensor:
    """The mean over labelled steps of -(y log p(right) + (1 - y) log p(wrong))."""
    labelled_BL = labels_BL != IGNORED
    y_M = labels_BL[labelled_BL]
    return F.cross_entropy(logits_BL2[labelled_BL].float(), torch.stack([1 - y_M, y_M], dim=-1))


class StepRewardTrainer(WholeCheckpoints):
    """Trains the head, and whatever else of the model is trainable. What is saved has its reader beside it.

    Attributes:
        reader: how the model reads.
        save_dtype: what the finished model is saved in; None is what it was trained in.
    """

    reader: Reader
    save_dtype: torch.dtype | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.model_accepts_loss_kwargs = False  # the loss is a mean of its micro-batch

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        """See `step_loss`."""
        labels_BL = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = step_loss(outputs.logits, labels_BL)
        return (loss, outputs) if return_outputs else loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `WholeCheckpoints`; the finished model in `save_dtype`."""
        if not _internal_call and self.save_dtype is not None:
            self.model.to(self.save_dtype)
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # of several processes, one
            self.reader.write(Path(output_dir or self.args.output_dir))
