"""How to sample: four orthogonal choices (policy, cache, length, correction) as one flat, validated record.

The layout is the model's own and comes with the `Denoiser`. Present so far: policies `quota` and `threshold`, no cache,
fixed length with EOS stop, no correction.
"""

from dataclasses import dataclass

POLICIES = ("quota", "threshold")


@dataclass(frozen=True)
class SamplerConfig:
    """Settings of `sample`.

    Attributes:
        canvas_length: tokens of the canvas, G.
        block_length: positions denoised together before the next ones; None is the whole canvas. Must divide G.
        policy: `quota` commits a fixed number of positions a step (LLaDA, 2502.09992), `threshold` every position whose
            confidence reaches `threshold`, and at least one (Fast-dLLM, 2505.22618).
        steps: denoising steps of the whole canvas under `quota`; None is one token a step. A multiple of the number of
            blocks.
        threshold: confidence in [0, 1] under `threshold`; above 1 means one token a step.
        temperature: tokens are drawn from softmax(logits / temperature); 0 takes the most likely one.
        stop_at_eos: a row ends once everything before its first EOS is committed.
        batch_size: most rows in one forward pass. Changes speed and memory, never results.

    Raises `ValueError` for values out of range and for options that the chosen policy would ignore.
    """

    canvas_length: int
    block_length: int | None = None
    policy: str = "quota"
    steps: int | None = None
    threshold: float | None = None
    temperature: float = 0.0
    stop_at_eos: bool = True
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("canvas_length", "block_length", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        if self.policy not in POLICIES:
            raise ValueError(f"policy={self.policy!r} is not one of {', '.join(POLICIES)}")
        if self.canvas_length % self.block:
            raise ValueError(f"block_length={self.block} does not divide canvas_length={self.canvas_length}")
        if self.policy == "quota":
            if self.threshold is not None:
                raise ValueError(f"threshold={self.threshold} would be ignored by policy='quota'")
            if not self.blocks <= self.total_steps <= self.canvas_length or self.total_steps % self.blocks:
                raise ValueError(
                    f"steps={self.total_steps} must be a multiple of the {self.blocks} blocks and at most "
                    f"canvas_length={self.canvas_length}"
                )
        else:
            if self.steps is not None:
                raise ValueError(f"steps={self.steps} would be ignored by policy='threshold'")
            if self.threshold is None or self.threshold < 0:
                raise ValueError(f"threshold={self.threshold} must be a number of at least 0 with policy='threshold'")
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must be at least 0")

    @property
    def block(self) -> int:
        """Positions in a block."""
        return self.block_length or self.canvas_length

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.canvas_length // self.block

    @property
    def total_steps(self) -> int:
        """Denoising steps of the whole canvas under `quota`."""
        return self.steps or self.canvas_length
