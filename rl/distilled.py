"""The loss `self_distillation` in the trainer: right rollouts as canvases, the adapter off in the teacher, and the log.

Leaves out the divergence itself (`lockstitch.rl.self_distillation`), and which rollouts are right (`grpo_rollouts`).

Axes: A rows that teach.
"""

from typing import Any

import torch
from lockstitch.rl.grpo_likelihoods import LikelihoodTrainer
from lockstitch.rl.one_pass import as_one_pass
from lockstitch.rl.scoring import Canvases
from lockstitch.rl.self_distillation import self_distillation
from lockstitch.rl.teaching import Columns
from trl.trainer.utils import use_adapter


class DistilledTrainer(LikelihoodTrainer):
    """The part of the trainer that distils."""

    def _distilled(self, model: torch.nn.Module, inputs: Columns, iteration: int) -> torch.Tensor:
        """The divergence from the teacher, summed over right rollouts and divided by the groups of the batch."""
        rows_A = inputs["active"].nonzero()[:, 0]
        if not len(rows_A) and self.accelerator.num_processes == 1:
            return torch.stack([0.0 * p.sum() for p in model.parameters() if p.requires_grad]).sum()
        canvases = Canvases(
            prompt_BP=inputs["prompt_ids"],
            prompt_mask_BP=inputs["prompt_mask"],
            completion_BG=inputs["completion_ids"],
            valid_BG=inputs["tool_mask"].bool(),
            seeds_B=inputs["noise_seed"],
            commit_step_BG=inputs["commit_step"],
        ).rows(rows_A if len(rows_A) else slice(0, 1))
        options, block = self.args.distill, self._sampler.block_length
        assert block is not None

        def teach(run: Any) -> torch.Tensor:
            whole = self.accelerator.unwrap_model(self.model)
            if self.ref_model is not None:
                said: torch.Tensor = run(self.ref_model)
                return said
            with use_adapter(whole, adapter_name="ref" if "ref" in whole.peft_config else None):
                said = run(whole)
            return said

        def score(module: torch.nn.Module) -> torch.Tensor:
            apart_A, over_A = self_distillation(
                self._denoiser,
                module,
                teach,
                canvases,
                block,
                (iteration, self.num_iterations),
                share=options["distill_share"],
                top_k=options["distill_top_k"],
                positions=options["distill_positions"],
                clip=options["distill_clip"],
                recompute=self.args.recompute_passes,
            )
            return torch.stack([apart_A, over_A])

        with self.accelerator.autocast():
            apart_A, over_A = as_one_pass(model, score)
        self._log_mean("distill/divergence", apart_A)
        self._log_mean("distill/clipped", over_A)
        K = self.num_generations if self.model.training else self.num_generations_eval
        accumulated = self.current_gradient_accumulation_steps if self.model.training else 1
        loss: torch.Tensor = (apart_A * bool(len(rows_A))).sum() * K / (len(inputs["advantages"]) * accumulated)
        return loss

    def _log_mean(self, name: str, value_B: torch.Tensor) -> None:
        raise NotImplementedError
