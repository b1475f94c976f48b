"""Checkpoints that are whole or absent, and that a run can go on from.

`Trainer` writes a checkpoint file by file into its place, where a kill leaves half of one that looks like the latest. Here
it is written beside and moved. Weights that are not finite are never saved: training ends, and says at which step. Resumed
at its last step, a run takes no step more, as that of `Trainer` would.

Experts are stacked in memory, and one by one in what transformers saves; its `Trainer` takes up a checkpoint without putting
them together again, and would go on with the experts that it began with. Checkpoints here keep them as they are in memory.
And where a base's config.json is a published one, PEFT cannot compare vocabularies by it, and must not be left to.

Left out: checkpoints of several machines that share no file system.
"""

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lockstitch.sampling.compiled import compile_layers
from lockstitch.sampling.families import FACTS
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import rotate_checkpoints

from lockstitch.files import write_whole

STATE = "trainer_state.json"
_STAGING = ".checkpoint"


class NotFiniteError(ValueError):
    """Weights that were about to be saved hold infinities or no numbers."""


class NotWrittenError(OSError):
    """A checkpoint or model could not be written: the disk is full, say."""


@contextmanager
def _writing(what: Path) -> Iterator[None]:
    """torch and safetensors tell of a disk that is full by errors of their own."""
    try:
        yield
    except SafetensorError as error:
        raise NotWrittenError(f"{what} cannot be written: {error}") from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
            raise
        raise NotWrittenError(f"{what} cannot be written: {str(error).splitlines()[0]}") from error


class WholeCheckpoints(Trainer):
    """A `Trainer` whose checkpoints are whole or absent, and hold every tensor under the name that resuming looks for.

    Attributes:
        before_checkpoint: called by the main process before each checkpoint takes its place; None for nothing.
        card: the README of the output directory; None for none, as TRL's speaks of autoregressive generation.
    """

    before_checkpoint: Callable[[], None] | None = None
    card: str | None = None
    _staging: str | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if self.args.torch_compile:
            compile_layers(self.model, self.args.torch_compile_backend, self.args.torch_compile_mode)

    def create_accelerator_and_postprocess(self) -> None:
        """Layers alone are compiled (`torch_compile`); accelerate would compile the whole model, for each length anew."""
        backend, self.args.torch_compile_backend = self.args.torch_compile_backend, None
        super().create_accelerator_and_postprocess()
        self.args.torch_compile_backend = backend

    def _run_epoch(self, **epoch: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # killed after its last checkpoint, before it was done
            self.control.should_training_stop = True
            return
        super()._run_epoch(**epoch)

    def _get_output_dir(self, trial: Any) -> str:
        directory: str = super()._get_output_dir(trial)
        return directory if self._staging is None else self._staging

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the card, where there is one."""
        if self.card is not None and self.is_world_process_zero():
            write_whole(Path(self.args.output_dir) / "README.md", self.card)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        output = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        staging, limit = output / _STAGING, self.args.save_total_limit
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self._staging, self.args.save_total_limit = (
            str(staging),
            None,
        )  # which is kept to once the new one is in its place
        try:
            with _writing(output / name):
                super()._save_checkpoint(model, trial)
        finally:
            self._staging, self.args.save_total_limit = None, limit
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step:  # on every process: what is loaded at the end is named by each one's own state
            best = output / f"checkpoint-{self.state.best_global_step}"
            if best.name == name or best.is_dir():  # it may have none: then the best of those that have stays
                self.state.best_model_checkpoint = str(best)
        if not self.args.should_save:
            return
        if self.state.best_global_step:
            self.state.save_to_json(str(staging / name / STATE))
        if self.before_checkpoint is not None:
            self.before_checkpoint()
        shutil.rmtree(output / name, ignore_errors=True)
        os.replace(staging / name, output / name)
        shutil.rmtree(staging, ignore_errors=True)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(output / name))
        rotate_checkpoints(
            output_dir=str(output), save_total_limit=limit, best_model_checkpoint=self.state.best_model_checkpoint
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Pushes a checkpoint once it is in its place, where it stays while the hub reads it."""
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        model = self.accelerator.unwrap_model(self.model)
        self._check_finite(model)
        if not _internal_call or not isinstance(model, PreTrainedModel):
            with _writing(Path(output_dir or self.args.output_dir)):
                super().save_model(output_dir, _internal_call)
            return
        kept = getattr(model, "_weight_conversions", None)
        model._weight_conversions = []  # nothing is taken apart
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            model._weight_conversions = kept

    def _check_finite(self, model: torch.nn.Module) -> None:
        for name, weight in model.named_parameters():
            if weight.requires_grad and not bool(weight.isfinite().all()):
                raise NotFiniteError(
                    f"{name} is not finite after step {self.state.global_step}; nothing of it was saved"
                )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model)
        published = (getattr(model.config, FACTS, None) or {}).get("published_config")
        if published is None or not isinstance(model, PeftModel):
            super()._save(output_dir, state_dict)
            return
        model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
        try:
            super()._save(output_dir, state_dict)
        finally:
            del model.save_pretrained


def torn(checkpoint: Path) -> str | None:
    """What of a checkpoint is missing or was cut off, in words; None if it is whole."""
    if not (checkpoint / STATE).is_file():
        return f"it has no {STATE}"
    sharded = [*checkpoint.glob("pytorch_model_fsdp_*/"), *checkpoint.glob("global_step*/")]  # FSDP's, DeepSpeed's
    weights = [*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.bin"), *sharded]
    if not weights:
        return "it has no weights"
    for path in checkpoint.glob("*.safetensors"):
        if not _is_whole_safetensors(path):
            return f"{path.name} is cut off"
    for path in checkpoint.glob("*.pt"):
        if not zipfile.is_zipfile(path):
            return f"{path.name} is cut off"
    return None


def _is_whole_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            return False
        (length,) = struct.unpack("<Q", head)
        text = file.read(min(length, path.stat().st_size))
    try:
        entries = json.loads(text)
    except ValueError:
        return False
    ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    whole: int = 8 + length + max(ends, default=0)
    return path.stat().st_size == whole


def last_checkpoint(output: Path, say: Callable[[str], None] = lambda _: None) -> Path | None:
    """The newest checkpoint that is whole, or None; `say` is told of newer ones that are not."""
    found = [path for path in output.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        why = torn(path)
        if why is None:
            return path
        say(f"{path} is not whole ({why}) and is passed over")
    return None
