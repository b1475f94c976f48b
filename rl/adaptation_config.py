"""Settings of the adaptation of an autoregressive model: the supervised stage's, and the choices that papers differ in."""

from dataclasses import dataclass, field, fields
from typing import Any

from lockstitch.rl.adaptation_losses import AR_LOSSES
from lockstitch.rl.sft_config import DiffusionSFTConfig
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.families import (
    BIDIRECTIONAL,
    BIDIRECTIONAL_SHIFTED,
    BLOCK_CAUSAL,
    BLOCK_CAUSAL_SHIFTED,
    CONTEXT_CAUSAL,
    IDLM,
    TIDAR,
    Family,
)

OBJECTIVES = ("masked_diffusion", "distillation")
TEXTS = ("data", "rollouts", "initial_rollouts")
STATES = ("random", "on_policy")
GROWTHS = ("constant", "doubling")
# What a layout and a shift are called.
BUILT = {
    ("context_causal", True): CONTEXT_CAUSAL,
    ("context_causal", False): TIDAR,
    ("block_causal", False): BLOCK_CAUSAL,
    ("block_causal", True): BLOCK_CAUSAL_SHIFTED,
    ("full", False): BIDIRECTIONAL,
    ("full", True): BIDIRECTIONAL_SHIFTED,
    ("causal", True): IDLM,
}
LAYOUTS = tuple(dict.fromkeys(layout for layout, _ in BUILT))
_CHOICES = {
    "layout": (*LAYOUTS, None),
    "objective": OBJECTIVES,
    "text": TEXTS,
    "states": STATES,
    "block_growth": GROWTHS,
    "ar_loss": AR_LOSSES,
}
_NOISE = (
    "mask_ratio_low",
    "mask_ratio_high",
    "full_mask_fraction",
    "mask_ratio_low_end",
    "mask_ratio_high_end",
    "full_mask_fraction_end",
)
# An option belongs to some values of another: elsewhere it is refused unless it is at its default.
_BELONGS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "block_growth_steps": ("block_growth", ("doubling",)),
    "ar_weight": ("ar_loss", ("sum", "mean")),
    "certainty_weight": ("objective", ("masked_diffusion",)),
    "loss_weighting": ("objective", ("masked_diffusion",)),
    "teacher_name_or_path": ("objective", ("distillation",)),
    "teacher_top_k": ("objective", ("distillation",)),
    "distill_end": ("objective", ("distillation",)),
    "rollout_threshold": ("text", TEXTS[1:]),
    "rollout_temperature": ("text", TEXTS[1:]),
    "rollout_block_length": ("text", TEXTS[1:]),
    "rollout_length_start": ("text", TEXTS[1:]),
    "rollout_ramp_steps": ("text", TEXTS[1:]),
    "rollout_micro_batch_size": ("text", TEXTS[1:]),
    **dict.fromkeys(_NOISE, ("states", ("random",))),
}


@dataclass
class AdaptationConfig(DiffusionSFTConfig):
    """`DiffusionSFTConfig` plus what an autoregressive model is turned into, and by which loss on which states."""

    layout: str | None = field(
        default=None,
        metadata={
            "help": "How the model will attend: context_causal, block_causal, full or causal. None keeps that of a "
            "diffusion model; an autoregressive one needs it said."
        },
    )
    shift: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the logits at a position go on to predict the next token. None: under context_causal and "
            "causal they do, under block_causal and full they do not."
        },
    )
    block_growth: str = field(
        default="constant",
        metadata={"help": "'constant', or 'doubling': blocks grow from 1 to block_length (NBDiff)."},
    )
    block_growth_steps: int | None = field(
        default=None, metadata={"help": "Optimizer steps after which block_growth=doubling doubles."}
    )
    attention_annealing_steps: int | None = field(
        default=None,
        metadata={
            "help": "Optimizer steps in which attention goes from causal to the layout's: of what stands after a position, "
            "and the layout shows it, a random share is seen that rises from 0 to 1. None: the layout's from the start."
        },
    )
    whole_canvas_fraction: float = field(
        default=0.0,
        metadata={"help": "Share of the rows whose block is the whole canvas (mix-scale training: .1)."},
    )
    objective: str = field(
        default="masked_diffusion",
        metadata={
            "help": "What masked positions are taught: 'masked_diffusion', the text's tokens; 'distillation', what the "
            "frozen autoregressive parent says of them (forward KL, OPDLM)."
        },
    )
    text: str = field(
        default="data",
        metadata={
            "help": "Whose completions are trained on: those of the 'data', the model's own 'rollouts' of its prompts, or "
            "'initial_rollouts', those of the model as it was before this training."
        },
    )
    states: str = field(
        default="random",
        metadata={
            "help": "Which positions are masked: 'random' ones, or those of a denoising state of the rollout, one drawn for "
            "each block ('on_policy')."
        },
    )
    ar_loss: str = field(
        default="none",
        metadata={
            "help": "The next-token loss on the clean half of the pass: 'none'; 'sum', ar_weight times it is added; 'mean', "
            "(ar_weight times it + the other) / (1 + ar_weight); 'balanced', scaled to the size of the other."
        },
    )
    ar_weight: float | None = field(
        default=None, metadata={"help": "Weight of the next-token loss (ar_loss=sum, mean)."}
    )
    certainty_weight: float | None = field(
        default=None,
        metadata={"help": "Adds so many times the entropy of what is predicted right (CAP, dParallel): fewer steps."},
    )
    certainty_temperature: float = field(
        default=1.0, metadata={"help": "Logits are divided by it in that entropy (dParallel: .5)."}
    )
    teacher_name_or_path: str | None = field(
        default=None,
        metadata={"help": "The autoregressive teacher of objective=distillation; None is the model before training."},
    )
    teacher_top_k: int | None = field(
        default=None,
        metadata={
            "help": "Tell the teacher's so many most likely tokens apart, all others as one. None: every token."
        },
    )
    distill_end: bool = field(
        default=False,
        metadata={"help": "Whether distillation teaches the end of the text, too; what follows it is never taught."},
    )
    rollout_threshold: float = field(
        default=0.9, metadata={"help": "Rollouts commit what is at least so certain, always one; above 1: one a step."}
    )
    rollout_temperature: float = field(default=1.0, metadata={"help": "Temperature of rollouts."})
    rollout_block_length: int | None = field(
        default=None, metadata={"help": "Block of the rollouts where the layout is full; None is the whole canvas."}
    )
    rollout_length_start: int | None = field(
        default=None, metadata={"help": "Rollouts begin with canvases of so many tokens; None is canvas_length."}
    )
    rollout_ramp_steps: int | None = field(
        default=None, metadata={"help": "Optimizer steps in which they grow to canvas_length, linearly."}
    )
    rollout_micro_batch_size: int = field(
        default=64, metadata={"help": "Most rollouts denoised at a time. Changes speed and memory, never results."}
    )
    lora_gate: bool = field(
        default=False,
        metadata={
            "help": "The adapter acts at mask positions alone: what the model makes of written text stays the parent's, bit "
            "for bit (I-DLM). Needs use_peft."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                said = ", ".join(str(choice) for choice in choices if choice is not None)
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {said}")
        defaults = {one.name: one.default for one in fields(self)}
        for name, (axis, values) in _BELONGS.items():
            if getattr(self, name) != defaults[name] and getattr(self, axis) not in values:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} would be ignored by {axis}={getattr(self, axis)!r}; it is for "
                    f"{', '.join(values)}"
                )
        for name, least in (
            ("block_growth_steps", 1),
            ("attention_annealing_steps", 1),
            ("teacher_top_k", 1),
            ("rollout_block_length", 1),
            ("rollout_length_start", 1),
            ("rollout_ramp_steps", 1),
            ("rollout_micro_batch_size", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        for name in ("ar_weight", "certainty_weight", "certainty_temperature"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be positive")
        if not 0 <= self.whole_canvas_fraction <= 1:
            raise ValueError(f"whole_canvas_fraction={self.whole_canvas_fraction} must be from 0 to 1")
        self._check_together()

    def _check_together(self) -> None:
        if self.layout is not None and (self.layout, self._shifted) not in BUILT:
            raise ValueError(
                f"shift={self.shift}: a {self.layout} layout predicts the next token; shift=true, or none"
            )
        if self.layout is None and self.shift is not None:
            raise ValueError(
                f"shift={self.shift} would be ignored: layout=None keeps the model's own; say a layout, too"
            )
        for name, needed, when in (
            ("block_growth_steps", self.block_growth == "doubling", "block_growth='doubling' needs it"),
            ("ar_weight", self.ar_loss in ("sum", "mean"), f"ar_loss={self.ar_loss!r} needs a weight"),
            ("canvas_length", self.rolls_out, f"text={self.text!r} needs the length of their canvases"),
            ("canvas_length", self.whole_canvas_fraction > 0, "whole_canvas_fraction needs a canvas of one length"),
        ):
            if needed and getattr(self, name) is None:
                raise ValueError(f"{name}=None: {when}")
        if self.states == "on_policy" and not self.rolls_out:
            raise ValueError(f"states='on_policy' are those of rollouts, and text={self.text!r}: text='rollouts'")
        if self.states == "on_policy" and self.objective == "masked_diffusion" and self.loss_weighting != "mean":
            raise ValueError(
                f"loss_weighting={self.loss_weighting!r} weighs by a mask ratio that states='on_policy' do not have: 'mean'"
            )
        if self.certainty_weight is None and self.certainty_temperature != 1:
            raise ValueError(
                f"certainty_temperature={self.certainty_temperature} would be ignored: certainty_weight=None"
            )
        if (self.rollout_length_start is None) != (self.rollout_ramp_steps is None):
            raise ValueError(
                f"rollout_length_start={self.rollout_length_start}, rollout_ramp_steps={self.rollout_ramp_steps}: "
                "both or neither"
            )
        if self.rollout_length_start is not None and self.rollout_length_start > (self.canvas_length or 0):
            raise ValueError(
                f"rollout_length_start={self.rollout_length_start} is above canvas_length={self.canvas_length}, "
                "to which they grow"
            )
        if self.ar_loss != "none" and self.lora_gate:
            raise ValueError(
                f"ar_loss={self.ar_loss!r} would be ignored: under lora_gate nothing that reads the clean half "
                "is trained; none"
            )
        if self.ar_loss != "none" and self.rolls_out:
            raise ValueError(
                f"ar_loss={self.ar_loss!r} would teach the model its own text={self.text!r} token by token; none"
            )

    @property
    def rolls_out(self) -> bool:
        """Whether the model writes the completions, so that data needs prompts alone."""
        return self.text != "data"

    @property
    def _shifted(self) -> bool:
        return self.layout in ("context_causal", "causal") if self.shift is None else self.shift

    def family(self, own: Family | None) -> Family:
        """What the model is turned into.

        Args:
            own: the family of the model that it starts from; None for an autoregressive model.

        Raises `ValueError` where nothing says the layout, for a block length that is missing or has no meaning, and for a
        canvas that ends within a block.
        """
        from dataclasses import replace

        from lockstitch.rl.packing import check_block_length

        if self.layout is None and own is None:
            raise ValueError(f"layout=None: the model is autoregressive; say what it becomes: {', '.join(LAYOUTS)}")
        family = own if self.layout is None else BUILT[self.layout, self._shifted]
        assert family is not None
        block = self.block_length if self.block_length is not None or self.layout is not None else family.block_length
        check_block_length(family, block, self.canvas_length)
        for name, given in (
            ("block_growth", self.block_growth != "constant"),
            ("attention_annealing_steps", self.attention_annealing_steps is not None),
            ("whole_canvas_fraction", self.whole_canvas_fraction > 0),
        ):
            if given and family.layout == "full":
                raise ValueError(f"{name}={getattr(self, name)!r} would be ignored: a full layout has no blocks")
        if self.attention_annealing_steps is not None and family.layout == "causal":
            raise ValueError(
                f"attention_annealing_steps={self.attention_annealing_steps} would be ignored: a causal layout shows "
                "nothing of what follows"
            )
        if self.ar_loss != "none" and family.layout not in ("context_causal", "causal"):
            raise ValueError(
                f"ar_loss={self.ar_loss!r}: the clean half of a {family.layout} layout is not causal, and shows "
                "the next token"
            )
        if self.rollout_block_length is not None and family.layout != "full":
            raise ValueError(
                f"rollout_block_length={self.rollout_block_length} would be ignored: block_length says it"
            )
        if family.layout == "causal" and block == 1:
            raise ValueError("block_length=1: under a causal layout no mask is left to be trained; at least 2")
        return replace(family, block_length=block)

    def check_rollouts(self, family: Family, block: int | None) -> None:
        """Raises `ValueError` where rollouts cannot be denoised, in blocks of every length that these come to have."""
        lengths = {block}
        if block is not None and self.block_growth != "constant":
            lengths |= {min(block, 2**k) for k in range(block.bit_length())}
        for length in sorted(lengths, key=lambda one: one or 0):
            try:
                self.rollout_config(family, 0, length)
            except ValueError as error:
                if length == block:
                    raise
                raise ValueError(f"block_growth={self.block_growth!r}: {error}") from error

    def rollout_config(self, family: Family, step: int, block: int | None) -> SamplerConfig:
        """How rollouts are denoised after so many optimizer steps, in blocks of that length."""
        assert self.canvas_length is not None
        length, block = self.canvas_length, self.rollout_block_length if block is None else block
        if self.rollout_length_start is not None and self.rollout_ramp_steps is not None:
            share = min(1.0, step / self.rollout_ramp_steps)
            length = round(self.rollout_length_start + share * (length - self.rollout_length_start))
            length = min(self.canvas_length, -(-length // (block or 1)) * (block or 1))
        return SamplerConfig(
            canvas_length=length,
            block_length=block,
            policy="threshold",
            threshold=self.rollout_threshold,
            temperature=self.rollout_temperature,
            cache="none" if family.layout == "full" else "block",
            batch_size=self.rollout_micro_batch_size,
        )
