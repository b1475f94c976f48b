"""Supervised fine-tuning of a masked diffusion language model: TRL's `SFTTrainer` with the masked-diffusion loss.

Data preparation, PEFT, logging, checkpoints, resume and accelerate stay TRL's; only the collator (completions are
padded with EOS up to a canvas, which is what the sampler will show the model) and the loss are ours.

Follows LLaDA (arXiv 2502.09992, Algorithm 2). Leaves out packing and block-wise noise.

Axes: B rows, L positions, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from lockstitch.rl.masking import mask_completion, noise_generator, stratified_mask_ratio
from lockstitch.sampling.denoiser import Denoiser
from trl import SFTConfig, SFTTrainer

IGNORED = -100


@dataclass
class DiffusionSFTConfig(SFTConfig):
    """TRL's `SFTConfig` plus the diffusion loss."""

    canvas_length: int | None = field(
        default=None,
        metadata={"help": "Completions are padded with EOS to this many tokens and trained on all of them, as the "
                          "sampler's canvas will be. None pads to the longest completion of the batch."},
    )
    loss_weighting: str = field(
        default="inverse_t",
        metadata={"help": "'inverse_t': LLaDA's likelihood bound, cross-entropies weighted by 1/t over completion "
                          "tokens. 'mean': plain mean over masked tokens, which small models learn from faster."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.canvas_length is not None and self.canvas_length < 1:
            raise ValueError(f"canvas_length={self.canvas_length}: a positive number of tokens, or none at all")
        if self.loss_weighting not in ("inverse_t", "mean"):
            raise ValueError(f"loss_weighting={self.loss_weighting!r} is not one of 'inverse_t', 'mean'")
        for name, why in (
            ("packing", "noise is drawn per row"),
            ("padding_free", "bidirectional attention would cross rows"),
            ("assistant_only_loss", "a canvas is one completion; use prompt-completion data"),
        ):
            if getattr(self, name):
                raise ValueError(f"{name}=True has no meaning for a diffusion model: {why}")


@dataclass
class CanvasCollator:
    """Pads completions with EOS up to the canvas, then rows on the right with padding that nothing attends to.

    Rows hold `input_ids` and `labels` as TRL prepares them (`-100` on the prompt). Raises `ValueError` for a completion
    longer than the canvas.
    """

    pad_id: int
    eos_id: int
    canvas_length: int | None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        prompts = [sum(label == IGNORED for label in row["labels"]) for row in rows]
        lengths = [len(row["input_ids"]) - prompt for row, prompt in zip(rows, prompts, strict=True)]
        canvas = self.canvas_length or max(lengths)
        if max(lengths) > canvas:
            raise ValueError(f"a completion of {max(lengths)} tokens does not fit canvas_length={canvas}")
        width = max(prompts) + canvas
        shape = (len(rows), width)
        input_ids_BL = torch.full(shape, self.pad_id)
        labels_BL = torch.full(shape, IGNORED)
        attention_BL = torch.zeros(shape, dtype=torch.long)
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            end = prompt + canvas
            ids = torch.tensor(row["input_ids"])
            input_ids_BL[i, : len(ids)] = ids
            input_ids_BL[i, len(ids) : end] = self.eos_id
            labels_BL[i, prompt:end] = input_ids_BL[i, prompt:end]
            attention_BL[i, :end] = 1
        return {"input_ids": input_ids_BL, "labels": labels_BL, "attention_mask": attention_BL}


def masked_diffusion_loss(
    logits_BLV: torch.Tensor,
    labels_BL: torch.Tensor,
    masked_BL: torch.Tensor,
    ratio_B: torch.Tensor,
    weighting: str,
) -> torch.Tensor:
    """Cross-entropy of the masked positions.

    `inverse_t` is the mean over rows of `1/(t L) * sum over masked of -log p` (LLaDA Eq. 3, in nats per completion
    token, an upper bound on the negative log-likelihood); `mean` is the plain mean over masked positions.
    """
    loss_M = F.cross_entropy(logits_BLV[masked_BL].float(), labels_BL[masked_BL], reduction="none")
    if weighting == "mean":
        return loss_M.mean()
    length_B = (labels_BL != IGNORED).sum(dim=1)
    weight_BL = (1 / (ratio_B * length_B)).to(loss_M)[:, None].expand(labels_BL.shape)
    return (loss_M * weight_BL[masked_BL]).sum() / labels_BL.shape[0]


class DiffusionSFTTrainer(SFTTrainer):
    """`SFTTrainer` for a `Denoiser`'s model: prompt-completion data in, masked-diffusion loss out.

    The noise of a batch depends on (`args.seed`, optimiser step, micro-step, rank), so a resumed run draws what the
    uninterrupted one would have drawn. Raises `ValueError` for a dataset without a prompt.
    """

    def __init__(self, denoiser: Denoiser, args: DiffusionSFTConfig, **kwargs: Any) -> None:
        self._denoiser = denoiser
        self._micro_step = (-1, 0)
        kwargs.setdefault(
            "data_collator", CanvasCollator(denoiser.pad_id, denoiser.eos_ids[0], args.canvas_length)
        )
        super().__init__(model=denoiser.model, args=args, processing_class=denoiser.tokenizer, **kwargs)

    def _noise_key(self) -> tuple[int, ...]:
        step, micro = self._micro_step
        micro = micro + 1 if step == self.state.global_step else 0
        self._micro_step = (self.state.global_step, micro)
        return (self.args.seed, self.model.training, self.state.global_step, micro, self.args.process_index)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Mean loss of one micro-batch; accumulated micro-batches weigh the same."""
        generator = noise_generator(*self._noise_key())
        labels_BL = inputs["labels"]
        ratio_B = stratified_mask_ratio(labels_BL.shape[0], generator)
        noised_BL, masked_BL = mask_completion(
            inputs["input_ids"], labels_BL != IGNORED, ratio_B, self._denoiser.mask_id, generator
        )
        logits_BLV = self._denoiser.forward_logits(model, noised_BL, inputs["attention_mask"])
        loss = masked_diffusion_loss(logits_BLV, labels_BL, masked_BL, ratio_B, self.args.loss_weighting)
        with torch.no_grad():
            right = (logits_BLV.argmax(-1) == labels_BL)[masked_BL].float().mean()
        self._metrics["train" if self.model.training else "eval"]["masked_token_accuracy"].append(right.item())
        if num_items_in_batch is not None:
            loss = loss / self.current_gradient_accumulation_steps
        return (loss, None) if return_outputs else loss


