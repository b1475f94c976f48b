"""Supervised fine-tuning of a masked diffusion language model: TRL's `SFTTrainer` with the masked-diffusion loss.

Data preparation, PEFT, logging, checkpoints, resume and accelerate stay TRL's; only the collator (completions are
padded with EOS up to a canvas, which is what the sampler will show the model) and the loss are ours.

Follows LLaDA (arXiv 2502.09992, Algorithm 2). Leaves out packing, and block-wise noise: families that attend block by block
are refused.

Axes: B rows, L positions, M masked positions of the batch in row-major order, V vocabulary.
"""

import copy
import logging
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from lockstitch.rl.canvas_data import IGNORED, CanvasCollator, completion_lengths, prompts_and_completions
from lockstitch.rl.masking import mask_completion, noise_generator, stratified_mask_ratio
from lockstitch.rl.sft_config import DiffusionSFTConfig
from lockstitch.sampling.denoiser import Denoiser
from trl import SFTTrainer

logger = logging.getLogger(__name__)


def masked_diffusion_loss(
    logits_MV: torch.Tensor,
    labels_BL: torch.Tensor,
    masked_BL: torch.Tensor,
    ratio_B: torch.Tensor,
    weighting: str,
) -> torch.Tensor:
    """Cross-entropy of the masked positions.

    `inverse_t` is the mean over rows of `1/(t L) * sum over masked of -log p` (LLaDA Eq. 3, in nats per completion
    token, an upper bound on the negative log-likelihood when t is uniform on (0, 1]); `mean` is the plain mean over masked
    positions.
    """
    loss_M = F.cross_entropy(logits_MV.float(), labels_BL[masked_BL], reduction="none")
    if weighting == "mean":
        return loss_M.mean()
    length_B = (labels_BL != IGNORED).sum(dim=1)
    weight_BL = (1 / (ratio_B.to(length_B.device) * length_B)).to(loss_M)[:, None].expand(labels_BL.shape)
    return (loss_M * weight_BL[masked_BL]).sum() / labels_BL.shape[0]


def masked_logits(
    denoiser: Denoiser,
    model: torch.nn.Module,
    noised_BL: torch.Tensor,
    attention_BL: torch.Tensor,
    masked_BL: torch.Tensor,
) -> torch.Tensor:
    """Logits of the masked positions, `(M, V)`, of rows that are padded on the right.

    The head runs on the columns from the first mask of the batch on. Rows of a family that ignores attention masks are run
    in groups of one length, without their padding.
    """
    if denoiser.family.honours_mask:
        start = int(masked_BL.any(dim=0).int().argmax())
        columns = torch.arange(start, noised_BL.shape[1], device=noised_BL.device)
        logits_BCV = denoiser.forward_logits(model, noised_BL, attention_BL, columns)
        return logits_BCV[masked_BL[:, start:]]
    length_B = attention_BL.sum(dim=1)
    place_BL = torch.arange(masked_BL.numel(), device=masked_BL.device).view(masked_BL.shape)
    logits, places = [], []
    for length in sorted(set(length_B.tolist())):
        rows_B = length_B == length
        masked = masked_BL[rows_B, :length]
        logits.append(denoiser.forward_logits(model, noised_BL[rows_B, :length], attention_BL[rows_B, :length])[masked])
        places.append(place_BL[rows_B, :length][masked])
    return torch.cat(logits)[torch.cat(places).argsort()]


class DiffusionSFTTrainer(SFTTrainer):
    """`SFTTrainer` for a `Denoiser`'s model: prompts and completions, or conversations, in; masked-diffusion loss out.

    The noise of a training batch depends on (`args.seed`, optimiser step, micro-step, rank), so a resumed run draws what the
    uninterrupted one would have drawn. That of an evaluation depends on (`args.seed`, batch, rank) alone, and its loss is
    always LLaDA's bound with t uniform on (0, 1]: evaluations of a run, and of runs with different noise, compare.

    Raises `ValueError` for a family that does not attend fully, for a data set without prompts or completions, and for one
    with completions longer than the canvas.
    """

    def __init__(self, denoiser: Denoiser, args: DiffusionSFTConfig, **kwargs: Any) -> None:
        if denoiser.family.layout != "full":
            raise ValueError(
                f"{denoiser.family.name} models attend block by block: a block is to be noised while the ones before it are "
                "clean, which one pass over a noised row does not show; supervised training takes models that attend fully"
            )
        self._denoiser = denoiser
        self._step_of_batches = -1
        self._batches: Counter[bool] = Counter()
        eos, *ends = denoiser.eos_ids
        kwargs.setdefault("data_collator", CanvasCollator(denoiser.pad_id, eos, args.canvas_length, tuple(ends)))
        super().__init__(model=denoiser.model, args=args, processing_class=denoiser.tokenizer, **kwargs)

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: Any,
        args: DiffusionSFTConfig,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        dataset = prompts_and_completions(dataset, dataset_name)
        whole = copy.copy(args)
        whole.max_length = None  # at which TRL would cut rows off
        prepared = super()._prepare_dataset(dataset, processing_class, whole, packing, formatting_func, dataset_name)
        if args.max_length is not None:
            longest = args.max_length
            prepared, unfiltered = prepared.filter(lambda row: len(row["input_ids"]) <= longest), prepared
            if isinstance(prepared, Dataset):
                logger.info("%d of %d %s rows have more than max_length=%d tokens and are left out",
                            len(unfiltered) - len(prepared), len(unfiltered), dataset_name, longest)  # fmt: skip
        if args.canvas_length is not None and isinstance(prepared, Dataset):
            lengths = completion_lengths(prepared)
            long = sum(length > args.canvas_length for length in lengths)
            if long:
                raise ValueError(f"{long} of {len(lengths)} completions of the {dataset_name} data set do not fit "
                                 f"canvas_length={args.canvas_length}; the longest has {max(lengths)} tokens")  # fmt: skip
        return prepared

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Begins with the first batch's noise, every time."""
        self._batches[False] = 0
        return super().evaluation_loop(*args, **kwargs)

    def _noise_key(self, training: bool) -> tuple[int, ...]:
        step = self.state.global_step
        if training and step != self._step_of_batches:
            self._step_of_batches, self._batches[True] = step, 0
        batch = self._batches[training]
        self._batches[training] += 1
        return (self.args.seed, training, step if training else 0, batch, self.args.process_index)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Mean loss of one micro-batch; accumulated micro-batches weigh the same."""
        training = self.model.training
        generator = noise_generator(*self._noise_key(training))
        labels_BL = inputs["labels"]
        weighting = self.args.loss_weighting if training else "inverse_t"
        noise = self.args.noise_at(self.state.global_step / max(1, self.state.max_steps)) if training else ()
        ratio_B = stratified_mask_ratio(labels_BL.shape[0], generator, *noise)
        noised_BL, masked_BL = mask_completion(
            inputs["input_ids"], labels_BL != IGNORED, ratio_B, self._denoiser.mask_id, generator, weighting == "mean"
        )
        logits_MV = masked_logits(self._denoiser, model, noised_BL, inputs["attention_mask"], masked_BL)
        loss = masked_diffusion_loss(logits_MV, labels_BL, masked_BL, ratio_B, weighting)
        if logits_MV.shape[0] > 0:
            right = (logits_MV.detach().argmax(-1) == labels_BL[masked_BL]).float().mean()
            self._metrics["train" if training else "eval"]["masked_token_accuracy"].append(right.item())
        if training and num_items_in_batch is not None:
            loss = loss / self.current_gradient_accumulation_steps
        return (loss, {}) if return_outputs else loss
