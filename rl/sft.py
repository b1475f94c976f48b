"""Supervised fine-tuning of a masked diffusion language model: TRL's `SFTTrainer` with the masked-diffusion loss.

Data preparation, PEFT, logging, checkpoints, resume and accelerate stay TRL's; only the collator (completions are
padded with EOS up to a canvas, which is what the sampler will show the model) and the loss are ours.

Follows LLaDA (arXiv 2502.09992, Algorithm 2). Families that denoise block by block are trained on all blocks of a canvas in
one pass, each noised by a ratio t of its own and seeing the blocks before it clean (BD3-LM, 2503.09573, Algorithm 1; SDAR,
2510.06303). Leaves out packing of several rows into one.

Axes: B rows, L positions, K columns of a pass, M masked positions of the batch in row-major order, V vocabulary.
"""

import copy
import logging
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from lockstitch.rl.canvas_data import IGNORED, CanvasCollator, completion_lengths, prompts_and_completions
from lockstitch.rl.checkpoints import WholeCheckpoints
from lockstitch.rl.masking import block_mask_ratio, mask_completion, noise_generator, stratified_mask_ratio
from lockstitch.rl.models import as_denoiser, loading_of_arguments, name_of
from lockstitch.rl.packing import Later, block_of_column, check_block_length, packed_pass
from lockstitch.rl.scoring import check_trains
from lockstitch.rl.sft_config import DiffusionSFTConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loading import write_facts
from trl import SFTTrainer

logger = logging.getLogger(__name__)


def masked_diffusion_loss(
    logits_MV: torch.Tensor,
    labels_BL: torch.Tensor,
    masked_BL: torch.Tensor,
    ratio_BL: torch.Tensor,
    weighting: str,
) -> torch.Tensor:
    """Cross-entropy of the masked positions.

    `inverse_t` is the mean over rows of `1/L * sum over masked of -1/t log p` (LLaDA Eq. 3, in nats per completion token, an
    upper bound on the negative log-likelihood when t is uniform on (0, 1]; so is BD3-LM's sum over blocks, whose t is the
    block's); `mean` is the plain mean over masked positions. `ratio_BL` is t, `(B, 1)` where it is the row's.
    """
    loss_M = F.cross_entropy(logits_MV.float(), labels_BL[masked_BL], reduction="none")
    if weighting == "mean":
        return loss_M.mean()
    length_B = (labels_BL != IGNORED).sum(dim=1)
    weight_BL = (1 / (ratio_BL.to(length_B.device) * length_B[:, None])).to(loss_M).expand(labels_BL.shape)
    return (loss_M * weight_BL[masked_BL]).sum() / labels_BL.shape[0]


def masked_logits(
    denoiser: Denoiser,
    model: torch.nn.Module,
    noised_BL: torch.Tensor,
    attention_BL: torch.Tensor,
    masked_BL: torch.Tensor,
) -> torch.Tensor:
    """Logits of the masked positions, `(M, V)`, of rows that are padded on the right.

    The head runs on the columns from the first mask of the batch on.
    """
    start = int(masked_BL.any(dim=0).int().argmax())
    columns = torch.arange(start, noised_BL.shape[1], device=noised_BL.device)
    logits_BCV = denoiser.forward_logits(model, noised_BL, attention_BL, columns)
    return logits_BCV[masked_BL[:, start:]]


def packed_logits(
    denoiser: Denoiser,
    model: torch.nn.Module,
    input_ids_BL: torch.Tensor,
    noised_BL: torch.Tensor,
    attention_BL: torch.Tensor,
    masked_BL: torch.Tensor,
    canvas: int,
    block: int | torch.Tensor,
    alone: bool | None = None,
) -> torch.Tensor:
    """Logits of the masked positions, `(M, V)`, of models that denoise block by block: of each block after clean ones.

    Rows are padded on the left and end with the canvas, which is clean in `input_ids_BL`; `block` and `alone` as in
    `block_of_column`. The head runs on masked positions alone.
    """
    return halves_logits(
        denoiser, model, input_ids_BL, noised_BL, attention_BL, masked_BL, None, canvas, block, alone
    )[0]


def halves_logits(
    denoiser: Denoiser,
    model: torch.nn.Module,
    input_ids_BL: torch.Tensor,
    noised_BL: torch.Tensor,
    attention_BL: torch.Tensor,
    masked_BL: torch.Tensor,
    next_BL: torch.Tensor | None,
    canvas: int,
    block: int | torch.Tensor,
    alone: bool | None = None,
    later: Later | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, and what the clean half, if it is causal, says of the tokens at `next_BL`, `(N, V)`: of each after the clean
    ones before it. Both by one pass.
    """
    width = input_ids_BL.shape[1] - canvas
    packed = packed_pass(
        input_ids_BL[:, :width],
        attention_BL[:, :width].bool(),
        input_ids_BL[:, width:],
        noised_BL[:, width:],
        block,
        denoiser.family,
        denoiser.model.dtype,
        alone,
        later,
    )
    row_M, column_M = masked_BL.nonzero(as_tuple=True)
    place_M = packed.columns(row_M, column_M, denoiser.family.shifted)
    row_N, column_N = (torch.zeros_like(masked_BL) if next_BL is None else next_BL).nonzero(as_tuple=True)
    columns = packed.arguments["input_ids"].shape[1]
    # A shifted model answers some masks from the clean half.
    place_A = torch.cat([row_M * columns + place_M, row_N * columns + packed.next_columns(column_N)])
    logits_AV = denoiser.raw_logits(model, packed.arguments, None, place_A)
    return logits_AV[: len(row_M)], logits_AV[len(row_M) :]


class DiffusionSFTTrainer(WholeCheckpoints, SFTTrainer):
    """`SFTTrainer` for a diffusion language model: prompts and completions, or conversations, in; a diffusion loss out.

    `model` is a name on the hub, a directory, `embedded:NAME`, one of transformers' models or a `Denoiser`; the other
    arguments are `SFTTrainer`'s.

    The noise of a training batch depends on (`args.seed`, optimiser step, micro-step, rank), so a resumed run draws what the
    uninterrupted one would have drawn. That of an evaluation depends on (`args.seed`, batch, rank) alone, and its loss is
    always LLaDA's bound with t uniform on (0, 1]: evaluations of a run, and of runs with different noise, compare.

    Raises `ValueError` for a block length that the family needs or has no use for, for a canvas that ends within a block,
    for a data set without prompts or completions, for one with completions longer than the canvas, and where `max_length`
    leaves no row.
    """

    def __init__(
        self, model: Any, args: DiffusionSFTConfig | None = None, processing_class: Any = None, **kwargs: Any
    ) -> None:
        if args is not None and not isinstance(args, DiffusionSFTConfig):
            raise ValueError(f"args is a {type(args).__name__}: DiffusionSFTConfig takes the same options, and more")
        denoiser = as_denoiser(model, processing_class, loading_of_arguments(model, args))
        args = args if args is not None else DiffusionSFTConfig(f"{name_of(model)}-SFT")
        args.model_init_kwargs = None  # TRL is handed a model
        # The model's own block, where blocks are part of it and the settings say none.
        self._block = denoiser.block_length if args.block_length is None else args.block_length
        check_block_length(denoiser.family, self._block, args.canvas_length)
        check_trains(denoiser)
        if self._block != denoiser.block_length:  # what is saved says in which blocks it was trained
            write_facts(denoiser.model, replace(denoiser.family, block_length=self._block), denoiser.mask_id)
        self._denoiser = denoiser
        self._step_of_batches = -1
        self._batches: Counter[bool] = Counter()
        for name in ("compute_loss_func", "compute_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} would be ignored: losses and accuracies are those of masked tokens")
        eos, *ends = denoiser.eos_ids
        collator = CanvasCollator(denoiser.pad_id, eos, args.canvas_length, tuple(ends), self._block is not None)
        kwargs.setdefault("data_collator", collator)
        super().__init__(model=denoiser.model, args=args, processing_class=denoiser.tokenizer, **kwargs)

    def _log_accuracy(self, mode: str, logits_MV: torch.Tensor, labels_M: torch.Tensor) -> None:
        """Logs the share of masked tokens that are right, over all processes: by it the best checkpoint may be chosen."""
        right_M = logits_MV.detach().argmax(-1) == labels_M
        counts = torch.stack([right_M.sum(), torch.ones_like(right_M).sum()]).float()
        right, asked = self.accelerator.reduce(counts, "sum").tolist()
        if asked:
            self._metrics[mode]["masked_token_accuracy"].append(right / asked)

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: Any,
        args: DiffusionSFTConfig,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        dataset = prompts_and_completions(dataset, dataset_name, processing_class.chat_template is not None)
        whole = copy.copy(args)
        whole.max_length = None  # at which TRL would cut rows off
        prepared = super()._prepare_dataset(dataset, processing_class, whole, packing, formatting_func, dataset_name)
        if args.max_length is not None:
            longest = args.max_length
            prepared, unfiltered = prepared.filter(lambda row: len(row["input_ids"]) <= longest), prepared
            if isinstance(prepared, Dataset):
                logger.info(
                    "%d of %d %s rows have more than max_length=%d tokens and are left out",
                    len(unfiltered) - len(prepared),
                    len(unfiltered),
                    dataset_name,
                    longest,
                )
                if not len(prepared):
                    raise ValueError(
                        f"all {len(unfiltered)} rows of the {dataset_name} data set have more than max_length={longest} "
                        "tokens: nothing is left"
                    )
        if args.canvas_length is not None and isinstance(prepared, Dataset):
            lengths = completion_lengths(prepared)
            long = sum(length > args.canvas_length for length in lengths)
            if long:
                raise ValueError(
                    f"{long} of {len(lengths)} completions of the {dataset_name} data set do not fit "
                    f"canvas_length={args.canvas_length}; the longest has {max(lengths)} tokens"
                )
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
        ids_BL, labels_BL, attention_BL = inputs["input_ids"], inputs["labels"], inputs["attention_mask"]
        completion_BL, block = labels_BL != IGNORED, self._block
        weighting = self.args.loss_weighting if training else "inverse_t"
        noise = self.args.noise_at(self.state.global_step / max(1, self.state.max_steps)) if training else ()
        canvas = int(completion_BL[0].sum())
        if block is None:
            ratio_BL = stratified_mask_ratio(len(labels_BL), generator, *noise)[:, None]
        else:
            if not bool(completion_BL[:, -canvas:].all()):
                raise ValueError(
                    "block_length wants canvases of one length at the end of rows that are padded on the left, "
                    "as CanvasCollator(pads_left=True) makes them: data_collator does not"
                )
            real_BP = attention_BL[:, :-canvas]
            # Canvases of any length are not the sampler's, and what a batch's longest one is must not move their blocks.
            alone = False if self.args.canvas_length is None else None
            number_BL = block_of_column(real_BP, canvas, block, self._denoiser.family.layout, alone)
            ratio_BL = block_mask_ratio(number_BL, generator, *noise)
        noised_BL, masked_BL = mask_completion(
            ids_BL, completion_BL, ratio_BL, self._denoiser.mask_id, generator, weighting == "mean"
        )
        if block is None:
            logits_MV = masked_logits(self._denoiser, model, noised_BL, attention_BL, masked_BL)
        else:
            logits_MV = packed_logits(
                self._denoiser, model, ids_BL, noised_BL, attention_BL, masked_BL, canvas, block, alone
            )
        loss = masked_diffusion_loss(logits_MV, labels_BL, masked_BL, ratio_BL, weighting)
        self._log_accuracy("train" if training else "eval", logits_MV, labels_BL[masked_BL])
        if training and num_items_in_batch is not None:
            loss = loss / self.current_gradient_accumulation_steps
        return (loss, {}) if return_outputs else loss
