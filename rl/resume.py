"""A `GRPOTrainer` whose resumed run is the uninterrupted one.

TRL counts micro-steps from 0 after a resume, draws the first epoch's order of prompts again in a later epoch, and generates
anew in the middle of a generation's steps. Here the count goes on, epochs that are over are drawn and thrown away, and
rollouts still in use are part of the checkpoint, a file for each rank. With another number of ranks than the checkpoint had,
these rollouts are generated anew.

What each rank's generators draw beside that is restored by `Trainer`.
"""

import os
from pathlib import Path
from typing import Any

import torch
from lockstitch.rl.checkpoints import WholeCheckpoints
from trl import GRPOTrainer


class ResumableGRPOTrainer(WholeCheckpoints, GRPOTrainer):
    """`GRPOTrainer` that picks up in the middle of an epoch and of a generation."""

    _train_sampler: Any = None  # a stream has none, and a single epoch

    def _rollout_file(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"rollouts-{self.args.process_index}-of-{self.args.world_size}.pt"

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._step % (self.args.steps_per_generation * self.num_iterations) == 0:
            return  # the next step generates
        path = self._rollout_file(output_dir)
        unfinished = path.with_suffix(".partial")
        torch.save(self._buffered_inputs, unfinished)
        os.replace(unfinished, path)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        epochs, micro_steps = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self._step, self._buffered_inputs = micro_steps, None
        if resume_from_checkpoint is None:
            return epochs, micro_steps
        if epochs:
            sampler = self._train_sampler
            self._step += epochs * (len(sampler) // self.args.generation_batch_size)
            if sampler.shuffle:
                for _ in range(epochs):
                    torch.randperm(sampler.num_samples, generator=sampler.generator)
        path = self._rollout_file(resume_from_checkpoint)
        own = Path(resume_from_checkpoint).resolve().parent == Path(self.args.output_dir).resolve()
        if own and path.is_file():  # another run's are of its settings: they are drawn anew
            batches = torch.load(path, map_location="cpu", weights_only=True)
            device = self.accelerator.device
            self._buffered_inputs = [{name: values.to(device) for name, values in batch.items()} for batch in batches]
        return epochs, micro_steps
