"""Settings of the supervised stage: TRL's `SFTConfig`, the diffusion loss and the noise it is trained under."""

from dataclasses import dataclass, field
from typing import Any

import torch
from lockstitch.sampling.compiled import check_asked
from lockstitch.sampling.loading import usable_device
from trl import SFTConfig

WEIGHTINGS = ("inverse_t", "mean")


def precision_of(args: Any) -> bool | None:
    """TRL's `bf16`, which is on unless it is said otherwise: off on a CPU, where it is many times slower."""
    if args.bf16 is None and (args.use_cpu or not torch.accelerator.is_available()):
        return False
    said: bool | None = args.bf16
    return said


def check_device(args: Any) -> None:
    """Raises `ValueError` for a device that cannot hold what noise is drawn in (float64), as Apple's cannot."""
    try:
        usable_device(args.device)
    except ValueError as error:
        raise ValueError(f"{error}; use_cpu=True trains on the CPU") from error


def check_counts(args: Any, *names: str) -> None:
    """Raises `ValueError` for a number of things that is there and below 1, which the library would not name."""
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", *names):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def check_rates(args: Any) -> None:
    """Raises `ValueError` for a learning rate or weight decay below 0, which would train backwards."""
    for name in ("learning_rate", "weight_decay"):
        if not getattr(args, name) >= 0:
            raise ValueError(f"{name}={getattr(args, name)} must be at least 0")


def check_length(args: Any) -> None:
    """Raises `ValueError` for a training that ends before its first step: what it saved would be the model it began with."""
    if args.max_steps == 0 or args.max_steps < -1:
        raise ValueError(f"max_steps={args.max_steps} must be at least 1, or -1 for num_train_epochs to count")
    if args.max_steps < 0 and not args.num_train_epochs > 0:
        raise ValueError(f"num_train_epochs={args.num_train_epochs} must be above 0, where max_steps does not count")


@dataclass
class CheckedSFTConfig(SFTConfig):
    """TRL's `SFTConfig`, whose precision is what the machine has; what would train nothing, or backwards, is refused."""

    def __post_init__(self) -> None:
        check_counts(self)
        check_rates(self)
        check_length(self)
        self.bf16 = precision_of(self)
        super().__post_init__()


@dataclass
class DiffusionSFTConfig(CheckedSFTConfig):
    """TRL's `SFTConfig` plus the diffusion loss; what has no meaning for it is refused."""

    canvas_length: int | None = field(
        default=None,
        metadata={
            "help": "Completions are padded with EOS to this many tokens and trained on all of them, as the "
            "sampler's canvas will be. None pads to the longest completion of the batch."
        },
    )
    block_length: int | None = field(
        default=None,
        metadata={
            "help": "The sampler's block length, for models that denoise block by block: each block has a mask ratio "
            "of its own and sees the ones before it clean. None: the model's own, none where it attends "
            "fully."
        },
    )
    loss_weighting: str = field(
        default="inverse_t",
        metadata={
            "help": "'inverse_t': LLaDA's likelihood bound, cross-entropies weighted by 1/t over completion "
            "tokens. 'mean': plain mean over masked tokens, which small models learn from faster."
        },
    )
    mask_ratio_low: float = field(
        default=1e-3, metadata={"help": "Lowest mask ratio t; t is uniform from here to mask_ratio_high."}
    )
    mask_ratio_high: float = field(default=1.0, metadata={"help": "Highest mask ratio t."})
    full_mask_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Share of the rows (with block_length, of the blocks) that are masked whole (t=1), which is what "
            "sampling starts from and random masks hardly ever show. The others' t is drawn as ever."
        },
    )
    mask_ratio_low_end: float | None = field(
        default=None, metadata={"help": "mask_ratio_low moves here linearly until the last step. None: it stays."}
    )
    mask_ratio_high_end: float | None = field(
        default=None, metadata={"help": "mask_ratio_high moves here linearly until the last step. None: it stays."}
    )
    full_mask_fraction_end: float | None = field(
        default=None, metadata={"help": "full_mask_fraction moves here linearly until the last step. None: it stays."}
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Rows with more tokens than this are left out. They are not cut off: the model would be taught to "
            "end where the cut is."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("eos_token", "pad_token"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: a canvas ends and is filled with the tokenizer's; set it there"
                )
        path = self.chat_template_path
        if path is not None and not path.endswith((".jinja", ".j2")):
            raise ValueError(
                f"chat_template_path={path!r} would change the model's tokens; a .jinja file changes none"
            )
        check_device(self)
        if self.torch_compile:
            check_asked(self.torch_compile_backend, self.torch_compile_mode, self.device)
        if self.canvas_length is not None and self.canvas_length < 1:
            raise ValueError(f"canvas_length={self.canvas_length}: a positive number of tokens, or none at all")
        if self.block_length is not None and self.block_length < 1:
            raise ValueError(f"block_length={self.block_length}: a positive number of tokens, or none at all")
        if self.loss_weighting not in WEIGHTINGS:
            raise ValueError(f"loss_weighting={self.loss_weighting!r} is not one of 'inverse_t', 'mean'")
        for end in ("", "_end"):
            low, high = self._at_end("mask_ratio_low", end), self._at_end("mask_ratio_high", end)
            if not 0 < low <= high <= 1:
                raise ValueError(
                    f"mask_ratio_low{end}={low} and mask_ratio_high{end}={high}: not 0 < low <= high <= 1"
                )
            fraction = self._at_end("full_mask_fraction", end)
            if not 0 <= fraction <= 1:
                raise ValueError(f"full_mask_fraction{end}={fraction} must be from 0 to 1")
        for name, meaningless, why in (
            ("packing", True, "noise is drawn per row"),
            ("padding_free", True, "bidirectional attention would cross rows"),
            ("assistant_only_loss", True, "a canvas is one completion; use prompt-completion data"),
            ("completion_only_loss", False, "a canvas is one completion, and prompts are not noised"),
            ("eval_packing", True, "noise is drawn per row"),
        ):
            if getattr(self, name) is meaningless:
                raise ValueError(f"{name}={meaningless} has no meaning for a diffusion model: {why}")
        for name, default in (
            ("loss_type", "nll"),
            ("label_smoothing_factor", 0.0),
            ("truncation_mode", "keep_start"),
        ):
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} would be ignored: the loss is loss_weighting's, and rows "
                    "longer than max_length are left out"
                )
        for name, usual, why in (
            ("packing_strategy", ("bfd",), "rows are not packed"),
            (
                "pad_to_multiple_of",
                ("auto", None),
                "a canvas has canvas_length positions, or those of the longest completion",
            ),
            ("router_aux_loss_coef", (None, 0.0), "the loss is loss_weighting's, without router logits"),
            ("dataset_text_field", ("text",), "columns have the names prompt, completion, messages or text"),
        ):
            if getattr(self, name) not in usual:
                raise ValueError(f"{name}={getattr(self, name)!r} would be ignored: {why}")
        self.completion_only_loss = True

    def _at_end(self, name: str, end: str) -> float:
        value: float | None = getattr(self, name + end)
        return getattr(self, name) if value is None else value

    def noise_at(self, progress: float) -> tuple[float, float, float]:
        """`mask_ratio_low`, `mask_ratio_high` and `full_mask_fraction` after a share of the training, from 0 to 1."""
        low, high, full = (
            getattr(self, name) + progress * (self._at_end(name, "_end") - getattr(self, name))
            for name in ("mask_ratio_low", "mask_ratio_high", "full_mask_fraction")
        )
        return low, high, full
