"""How to sample with uniform noise: DiffusionGemma's schedule as one flat, validated record.

Names and defaults are those of transformers' generation config for it (2505.24857 for the entropy bound).
"""

from dataclasses import dataclass
from typing import Any

MODEL_TYPE = "diffusion_gemma"
_SCHEDULE = ("max_denoising_steps", "t_max", "t_min", "stability_threshold", "confidence_threshold")


@dataclass(frozen=True)
class UniformConfig:
    """Settings of `sample_uniform`.

    Attributes:
        canvas_length: tokens of the whole canvas, G.
        block_length: positions denoised together before the next ones; None is the model's own number, which it was
            trained with. Must divide G.
        max_denoising_steps: most denoising steps of a block.
        entropy_bound: in nats. Positions are accepted in the order of their entropies, as long as the entropies of those
            before come to no more than this; so at least one is. 0 accepts one (and any of no entropy).
        t_max, t_min: the temperature falls linearly from `t_max` at a block's first step to just above `t_min` at its
            last one; entropies are those of the distribution at that temperature.
        stability_threshold: for how many steps in a row the most likely tokens must have stayed the same before a block
            may end early.
        confidence_threshold: in nats, what the block's mean entropy must then be below. Both None: no early end.
        stop_at_eos: a row ends with the block that holds its first EOS.
        batch_size: most rows in one forward pass. Changes speed and memory, never results.

    Raises `ValueError` for values out of range and for options that would be ignored.
    """

    canvas_length: int
    block_length: int | None = None
    max_denoising_steps: int = 48
    entropy_bound: float = 0.1
    t_max: float = 0.8
    t_min: float = 0.4
    stability_threshold: int | None = 1
    confidence_threshold: float | None = 0.005
    stop_at_eos: bool = True
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("canvas_length", "block_length", "max_denoising_steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        if self.block_length is not None:
            self.blocks(self.block_length)
        if not self.entropy_bound >= 0:
            raise ValueError(f"entropy_bound={self.entropy_bound} must be a number of at least 0")
        if not (0 <= self.t_min <= self.t_max and 0 < self.t_max < float("inf")):
            raise ValueError(
                f"t_min={self.t_min} and t_max={self.t_max}: 0 <= t_min <= t_max, and t_max above 0, "
                "since positions are drawn"
            )
        stability, confidence = self.stability_threshold, self.confidence_threshold
        if (stability is None) != (confidence is None):
            given = "stability_threshold" if confidence is None else "confidence_threshold"
            raise ValueError(
                f"{given}={getattr(self, given)} would be ignored: a block ends early by both, or by neither "
                "(both None)"
            )
        if stability is not None and (not isinstance(stability, int) or stability < 0):
            raise ValueError(f"stability_threshold={stability!r} must be a whole number of at least 0")
        if stability is not None and stability >= self.max_denoising_steps:
            raise ValueError(
                f"stability_threshold={stability} would be ignored: it is not reached within "
                f"max_denoising_steps={self.max_denoising_steps}; None is no early end"
            )
        if confidence is not None and not confidence > 0:
            raise ValueError(f"confidence_threshold={confidence} must be a number above 0")

    @classmethod
    def of_checkpoint(cls, generation_config: Any, canvas_length: int, **settings: Any) -> "UniformConfig":
        """The schedule of a checkpoint's own `generation_config`; `settings` go before it, defaults behind it."""
        known = {name: getattr(generation_config, name) for name in _SCHEDULE}
        if generation_config.sampler_config is not None:
            known["entropy_bound"] = generation_config.sampler_config.entropy_bound
        return cls(canvas_length, **{name: value for name, value in known.items() if value is not None} | settings)

    def blocks(self, block_length: int) -> int:
        """Number of blocks of this length; `ValueError` where it does not divide the canvas."""
        if self.canvas_length % block_length:
            raise ValueError(f"block_length={block_length} does not divide canvas_length={self.canvas_length}")
        return self.canvas_length // block_length

    def temperature(self, step: int) -> float:
        """The temperature of a block's denoising step, from 1."""
        left = (self.max_denoising_steps - step + 1) / self.max_denoising_steps
        return self.t_min + (self.t_max - self.t_min) * left
