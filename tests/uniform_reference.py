"""`generate` of transformers fed with a trajectory's own noise: the independent reference for uniform noise.

Its draws come from `torch.randint` (a canvas of noise) and `torch.multinomial` (a token per position). Both are replaced
while it runs by plain functions of the keyed noise; all the rest of it runs as published.
"""

from unittest.mock import patch

import torch
from lockstitch.sampling.noise import uniform
from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig


class _Draws:
    """Numbers of one trajectory for the calls of `generate`, in their order: a canvas, then (token, canvas) per step."""

    def __init__(self, seed: int, length: int, vocabulary: int) -> None:
        self.seed, self.length, self.vocabulary = seed, length, vocabulary
        self.block, self.step, self.drawing = -1, 0, False

    def _numbers(self) -> torch.Tensor:
        positions = torch.arange(self.block * self.length, (self.block + 1) * self.length)
        return uniform(torch.tensor([self.seed]), self.block, self.step, positions)

    def randint(self, low, high, size, device=None):
        assert (low, high, size) == (0, self.vocabulary, (1, self.length))
        if self.drawing:  # after a draw: the noise of the same step
            self.drawing = False
        else:
            self.block, self.step = self.block + 1, 0
        return (self._numbers() * self.vocabulary).long()

    def multinomial(self, probabilities, num_samples):
        assert num_samples == 1
        self.step, self.drawing = self.step + 1, True
        cumulative = probabilities.double().cumsum(-1)
        passed = cumulative <= self._numbers().T * cumulative[:, -1:]
        return passed.sum(-1, keepdim=True)


def generation_arguments(denoiser, config) -> dict:
    """The arguments of `generate` that say what a `UniformConfig` says."""
    return {
        "max_new_tokens": config.canvas_length,
        "max_denoising_steps": config.max_denoising_steps,
        "sampler_config": EntropyBoundSamplerConfig(entropy_bound=config.entropy_bound),
        "t_max": config.t_max,
        "t_min": config.t_min,
        "stability_threshold": config.stability_threshold,
        "confidence_threshold": config.confidence_threshold,
        "eos_token_id": denoiser.eos_ids if config.stop_at_eos else None,
        "pad_token_id": denoiser.pad_id,
    }


def generate_with_noise_of(denoiser, prompt_ids, config, seed) -> tuple[list[int], int]:
    """What `generate` appends to one prompt under the noise of a trajectory's seed, and its decoder passes."""
    passes = []
    handle = denoiser.model.model.decoder.register_forward_pre_hook(lambda *_: passes.append(1))
    draws = _Draws(seed, denoiser.block_length, denoiser.vocabulary)
    with patch.object(torch, "randint", draws.randint), patch.object(torch, "multinomial", draws.multinomial):
        out = denoiser.model.generate(torch.tensor([prompt_ids]), **generation_arguments(denoiser, config))
    handle.remove()
    return out.sequences[0, len(prompt_ids) :].tolist(), len(passes)
