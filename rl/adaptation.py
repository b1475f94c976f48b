"""From an autoregressive model to a diffusion model: one trainer, and the published ways as choices of its settings.

The pass is the supervised stage's: a clean and a noised half, in blocks where the sampler has them. Settings say what the
model attends to, how long blocks are, whose text is trained on, which of it is masked, and what masked positions are
taught: the text (NBDiff, 2512.06776; TiDAR, 2511.08923; I-DLM, 2604.11035; mix-scale, 2601.13599), the frozen parent's
word (OPDLM, 2606.06712), or to be sure of what is right (dParallel, 2509.26488). Leaves out trajectories of other models.

Axes: B rows, L columns (prompt and canvas), M masked positions of the batch in row-major order, V vocabulary.
"""

import copy
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from lockstitch.rl import adaptation_losses as losses
from lockstitch.rl.adaptation_config import AdaptationConfig
from lockstitch.rl.adaptation_states import Teacher, drawn_states
from lockstitch.rl.canvas_data import (
    IGNORED,
    CanvasCollator,
    check_completions,
    check_prompts,
    check_texts,
    first_row,
    prompts_alone,
    text_canvases,
)
from lockstitch.rl.masking import block_mask_ratio, mask_completion, noise_generator, stratified_mask_ratio
from lockstitch.rl.models import prepare_frozen
from lockstitch.rl.packing import Later, block_of_column
from lockstitch.rl.sft import DiffusionSFTTrainer, halves_logits, masked_diffusion_loss, masked_logits
from lockstitch.sampling.adapter_files import ADAPTER_FACTS
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from lockstitch.sampling.mask_gate import MaskGatedLoraConfig, facts_of, gated
from lockstitch.sampling.noise import derive_seed
from peft import PeftConfig, PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from trl.models import unwrap_model_for_generation

from lockstitch.files import to_json, write_whole

Batch = dict[str, torch.Tensor]
_COLUMNS = ({"prompt", "completion"}, {"messages"}, {"text"}, {"input_ids", "labels"})
logger = logging.getLogger(__name__)


def check_rows(dataset: Any, name: str, args: AdaptationConfig, template: bool) -> str:
    """What a data set holds: `prompts` (whose completions the model writes), `texts` or `completions`.

    `template` is whether the tokenizer has one. Raises `ValueError` for columns and rows that are none of these, and where
    texts are to be cut into canvases of no length.
    """
    if args.rolls_out and name == "train":
        check_prompts(dataset, name, template)
        return "prompts"
    first = first_row(dataset, name)
    if "text" in first and not {"prompt", "messages", "input_ids"} & first.keys():
        if args.canvas_length is None:
            raise ValueError("canvas_length=None: texts are cut into canvases, whose length must be said")
        check_texts(dataset, name)
        return "texts"
    if not any(columns <= first.keys() for columns in _COLUMNS):
        prompts = "; text='rollouts' takes prompts alone" if name == "train" and "prompt" in first else ""
        raise ValueError(
            f"the {name} data set has the columns {', '.join(first)}; adaptation takes 'prompt' and "
            f"'completion' (texts or messages), 'messages', 'text', or 'input_ids' and 'labels'{prompts}"
        )
    check_completions(dataset, name, template)
    return "completions"


class AdaptationTrainer(DiffusionSFTTrainer):
    """`DiffusionSFTTrainer` that turns an autoregressive model into a diffusion model, or a diffusion model into another.

    Args:
        denoiser: the model under what it is to become: its family is `args.family(...)`, its weights are the parent's.
        args: the settings.
        teacher: the frozen parent of `objective=distillation`; None is a copy of the model as it is or, under an adapter,
            what lies below it.
        peft_config: of an adapter; under `args.lora_gate` a gated one, as `lora_config(gated=True)` makes it.
        kwargs: as `SFTTrainer` takes them. Rows of the training data need prompts alone where the model writes the text.

    Rollouts and what is drawn of them depend on (`args.seed`, optimizer step, micro-step, rank), as the noise does, and on
    the weights: a resumed run sees what the uninterrupted one would have seen.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        args: AdaptationConfig,
        teacher: Any = None,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        parent = teacher
        if args.objective == "distillation" and teacher is None and peft_config is None:
            parent = copy.deepcopy(denoiser.model).requires_grad_(False)
        if args.rolls_out:
            args.check_rollouts(denoiser.family, denoiser.block_length)
        if args.lora_gate:
            if not isinstance(peft_config, MaskGatedLoraConfig):
                raise ValueError("lora_gate=True: an adapter that acts at mask positions alone is needed (use_peft)")
            set_seed(args.seed)  # which an adapter's first weights are drawn from
            denoiser.model, peft_config = gated(denoiser.model, peft_config), None
        initial = args.text == "initial_rollouts" and peft_config is None and not args.lora_gate
        frozen = copy.deepcopy(denoiser.model).requires_grad_(False) if initial else None
        super().__init__(denoiser, args, peft_config=peft_config, **kwargs)
        self.add_callback(_Unfinished(args, self._block))
        self._initial = None if frozen is None else prepare_frozen(self, frozen.eval())
        self._collates = self.data_collator
        self._teacher: Teacher | None = None
        if args.objective == "distillation":
            student = copy.copy(denoiser)
            student.model = self.accelerator.unwrap_model(self.model)
            self._teacher = Teacher(student, None if parent is None else prepare_frozen(self, parent.eval()))

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Dataset | IterableDataset:
        kind = check_rows(dataset, dataset_name, args, processing_class.chat_template is not None)
        if kind == "prompts":
            dataset = prompts_alone(dataset, processing_class)
        elif kind == "texts":
            eos, length = self._denoiser.eos_ids[0], args.canvas_length
            dataset = text_canvases(dataset, processing_class, eos, length, dataset_name)
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    # --- what is trained on ------------------------------------------------------------------------------------------

    def _block_at(self, step: int) -> int | None:
        """The block length after so many optimizer steps; None where the layout has no blocks."""
        if self._block is None or self.args.block_growth == "constant":
            return self._block
        return losses.block_at(step, self._block, self.args.block_growth_steps)

    def _roll_out(self, inputs: Batch, key: tuple[int, ...]) -> tuple[Batch, list[Any]]:
        """The batch with the model's completions in the place of its own, and their trajectories.

        Initial rollouts are those of a frozen copy or, under an adapter, of what lies below it.
        """
        prompts = [
            row[real & (label == IGNORED)].tolist()
            for row, real, label in zip(
                inputs["input_ids"], inputs["attention_mask"].bool(), inputs["labels"], strict=True
            )
        ]
        step = self.state.global_step
        config = self.args.rollout_config(self._denoiser.family, step, self._block_at(step))
        with unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs
        ) as model:
            denoiser, training = copy.copy(self._denoiser), model.training
            below = self.args.text == "initial_rollouts" and self._initial is None
            denoiser.model = model.eval() if self._initial is None else self._initial
            try:
                seeds = [derive_seed(*key, row) for row in range(len(prompts))]
                with model.disable_adapter() if below else nullcontext():
                    trajectories = sample(denoiser, prompts, config, seed=seeds)
            finally:
                model.train(training)
        own = self._collates
        collate = CanvasCollator(own.pad_id, own.eos_id, config.canvas_length, own.ends, own.pads_left)
        rows = [
            {"input_ids": [*prompt, *t.completion_ids], "labels": [IGNORED] * len(prompt) + [*t.completion_ids]}
            for prompt, t in zip(prompts, trajectories, strict=True)
        ]
        batch = {name: values.to(inputs["input_ids"].device) for name, values in collate(rows).items()}
        sums = torch.tensor([[t.ledger.nfe, t.length, t.finished, 1.0] for t in trajectories]).sum(0)
        nfe, length, finished, count = self.accelerator.reduce(sums.to(inputs["input_ids"].device), "sum").tolist()
        log = self._metrics["train"]
        log["rollout/nfe_per_token"].append(nfe / length)
        log["rollout/length"].append(length / count)
        log["rollout/eos_rate"].append(finished / count)
        return batch, trajectories

    def _through_end(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the text stands, bool `(B, L)` each: before the completion's first end, and with that."""
        completion_BL = batch["labels"] != IGNORED
        ends = torch.tensor(self._denoiser.eos_ids, device=completion_BL.device)
        ended_BL = (torch.isin(batch["input_ids"], ends) & completion_BL).long().cumsum(1)
        before_BL = completion_BL & (ended_BL == 0)
        first_BL = completion_BL & (ended_BL == 1) & torch.isin(batch["input_ids"], ends)
        return before_BL, before_BL | first_BL

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Mean loss of one micro-batch. An evaluation's is the supervised stage's: the bound, at the full block."""
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        args, key = self.args, self._noise_key(True)
        generator = noise_generator(*key)
        trajectories: list[Any] = []
        if args.rolls_out:
            inputs, trajectories = self._roll_out(inputs, key)
        loss = self._loss(model, inputs, trajectories, generator)
        if num_items_in_batch is not None:
            loss = loss / self.current_gradient_accumulation_steps
        return (loss, {}) if return_outputs else loss

    def _loss(
        self, model: torch.nn.Module, batch: Batch, trajectories: list[Any], generator: torch.Generator
    ) -> torch.Tensor:
        args, family, denoiser = self.args, self._denoiser.family, self._denoiser
        ids_BL, labels_BL, real_BL = batch["input_ids"], batch["labels"], batch["attention_mask"].bool()
        completion_BL, (before_BL, text_BL) = labels_BL != IGNORED, self._through_end(batch)
        canvas, step = int(completion_BL[0].sum()), self.state.global_step
        # Canvases of any length are not the sampler's, and what a batch's longest one is must not move their blocks.
        alone = False if args.canvas_length is None else None
        longest, block_B = self._block_at(step), None
        number_BL = torch.zeros_like(ids_BL)
        if longest is not None:
            block_B = torch.full((len(ids_BL),), longest, device=ids_BL.device)
            if args.whole_canvas_fraction:
                whole_B = torch.rand(len(ids_BL), generator=generator) < args.whole_canvas_fraction
                block_B[whole_B.to(block_B.device)] = canvas
            number_BL = block_of_column(real_BL[:, :-canvas], canvas, block_B, family.layout, alone)
        ratio_BL, masked_BL = self._masked(batch, number_BL, trajectories, generator)
        noised_BL = torch.where(masked_BL, denoiser.mask_id, ids_BL)

        asked_BL = masked_BL
        if args.objective == "distillation":
            asked_BL = masked_BL & (text_BL if args.distill_end else before_BL)
        if family.layout == "causal":  # a block's first token is the clean half's to predict
            asked_BL = asked_BL & (number_BL.roll(1, dims=1) == number_BL)
        next_BL = None if args.ar_loss == "none" else text_BL
        if args.objective == "distillation":  # before the student, whose layers may be run once more for the gradient
            assert self._teacher is not None
            student = self.accelerator.unwrap_model(model)
            teacher_MV = self._teacher.logits(student, ids_BL, real_BL, asked_BL)
        if block_B is None:
            logits_MV, next_NV = masked_logits(denoiser, model, noised_BL, batch["attention_mask"], asked_BL), None
        else:
            share = losses.share_at(step, args.attention_annealing_steps)
            later = None if share == 1 else Later(share, generator)
            attention_BL = batch["attention_mask"]
            logits_MV, next_NV = halves_logits(
                denoiser, model, ids_BL, noised_BL, attention_BL, asked_BL, next_BL, canvas, block_B, alone, later
            )
        if args.objective == "distillation":
            kl_M = losses.forward_kl(teacher_MV, logits_MV, args.teacher_top_k)
            loss = losses.mean_of_rows(kl_M, asked_BL.nonzero()[:, 0], len(ids_BL))
        elif not bool(asked_BL.any()):
            loss = logits_MV.sum()  # 0, and a gradient that other ranks wait for
        else:
            loss = masked_diffusion_loss(logits_MV, labels_BL, asked_BL, ratio_BL, args.loss_weighting)
        own: dict[str, torch.Tensor] = {args.objective: loss}
        if args.certainty_weight is not None:
            own["certainty"] = losses.certainty_loss(logits_MV, ids_BL[asked_BL], args.certainty_temperature)
            loss = loss + args.certainty_weight * own["certainty"]
        if next_BL is not None:
            assert next_NV is not None
            own["next_token"] = F.cross_entropy(next_NV.float(), ids_BL[next_BL])
            loss = losses.with_next_token(loss, own["next_token"], args.ar_loss, args.ar_weight or 1.0)
        means = self.accelerator.reduce(
            torch.stack([value.detach().float() for value in own.values()]), "mean"
        ).tolist()
        for name, mean in zip(own, means, strict=True):
            self._metrics["train"][f"loss/{name}"].append(mean)
        if longest is not None:
            self._metrics["train"]["block_length"].append(longest)
        self._log_accuracy("train", logits_MV, ids_BL[asked_BL])
        return loss

    def _masked(
        self, batch: Batch, number_BL: torch.Tensor, trajectories: list[Any], generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mask ratio of each position (of on-policy states: 1 everywhere), and which positions are masked, `(B, L)`."""
        args, completion_BL = self.args, batch["labels"] != IGNORED
        if args.states == "on_policy":
            own = number_BL[completion_BL].view(len(trajectories), -1).tolist()
            drawn = drawn_states(trajectories, own, generator)
            state_BG = torch.tensor(drawn, device=completion_BL.device)
            masked_BL = torch.zeros_like(completion_BL)
            masked_BL[completion_BL] = state_BG.flatten()
            return torch.ones(completion_BL.shape), masked_BL
        noise = args.noise_at(self.state.global_step / max(1, self.state.max_steps))
        if self._block is None:
            ratio_BL = stratified_mask_ratio(len(completion_BL), generator, *noise)[:, None]
        else:
            ratio_BL = block_mask_ratio(number_BL, generator, *noise)
        mean = args.objective == "distillation" or args.loss_weighting == "mean"
        _, masked_BL = mask_completion(
            batch["input_ids"], completion_BL, ratio_BL, self._denoiser.mask_id, generator, mean
        )
        return ratio_BL, masked_BL

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        model = self.accelerator.unwrap_model(self.model)
        if self.args.should_save and isinstance(
            model, PeftModel
        ):  # whose base says that it is autoregressive, or nothing
            write_whole(Path(output_dir or self.args.output_dir) / ADAPTER_FACTS, to_json(facts_of(model)))


class _Unfinished(TrainerCallback):
    """Warns at the start of a training that ends before blocks, or attention, are what the model is sampled with."""

    def __init__(self, args: AdaptationConfig, longest: int | None) -> None:
        self.growth, self.longest = args.block_growth_steps, longest
        self.annealing = args.attention_annealing_steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        last, least = state.max_steps - 1, "%d steps are the least that show it"
        if self.longest is not None and self.growth is not None:
            reached = losses.block_at(last, self.longest, self.growth)
            if reached < self.longest:
                logger.warning(
                    "block_growth_steps=%d: in %d steps blocks grow to %d, and the model is sampled in blocks of "
                    f"block_length=%d; {least} one",
                    self.growth,
                    state.max_steps,
                    reached,
                    self.longest,
                    (self.longest - 1).bit_length() * self.growth + 1,
                )
        share = losses.share_at(last, self.annealing)
        if share < 1:
            assert self.annealing is not None
            logger.warning(
                "attention_annealing_steps=%d: in %d steps attention shows %.0f %% of what follows, and the model is "
                f"sampled under its whole layout; {least}",
                self.annealing,
                state.max_steps,
                100 * share,
                self.annealing + 1,
            )
