"""What is asked of a DiffusionGemma, row by row: `lockstitch sample` between its files and the schedule of uniform noise.

The counterpart of `prompts.py`, whose requests it makes. A row is a prompt: without a mask token there are neither blanks
nor canvases of one's own. What is not said of the schedule is what the checkpoint was published with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lockstitch.sampling import blanks
from lockstitch.sampling.canvases import Look
from lockstitch.sampling.diffusion_gemma import DiffusionGemmaDenoiser
from lockstitch.sampling.noise import derive_seed
from lockstitch.sampling.prompts import Request
from lockstitch.sampling.trajectory import Trajectory
from lockstitch.sampling.uniform import sample_uniform
from lockstitch.sampling.uniform_config import MODEL_TYPE, UniformConfig
from transformers import AutoConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from lockstitch.files import read_rows


def config_of(model: str, settings: Mapping[str, Any]) -> UniformConfig:
    """The checkpoint's schedule with `settings` before its own.

    Raises `ValueError` for settings that are for models with a mask token, for none of `canvas_length`, and for what
    `UniformConfig` refuses.
    """
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import DiffusionGemmaGenerationConfig

    known = [field.name for field in fields(UniformConfig)]
    for name, value in settings.items():
        if name not in known:
            raise ValueError(
                f"{name}={value!r} is for models with a mask token; {MODEL_TYPE} takes {', '.join(known)}"
            )
    if "canvas_length" not in settings:
        raise ValueError("canvas_length is needed")
    try:
        schedule = DiffusionGemmaGenerationConfig.from_pretrained(model)
    except OSError:  # none was published
        schedule = DiffusionGemmaGenerationConfig()
    config = UniformConfig.of_checkpoint(schedule, **settings)
    config.blocks(config.block_length or AutoConfig.from_pretrained(model).canvas_length)
    return config


@dataclass(frozen=True)
class UniformReader:
    """Makes requests of rows, all with the same settings."""

    tokenizer: Tokenizer
    config: UniformConfig

    def read(self, path: Path) -> list[Request]:
        """The requests of a file; `ValueError` names every bad line."""
        return read_rows(path, lambda row: self.request(row.get("prompt"), row.get("canvas")).of_row(row))

    def request(self, text: object, canvas: object = None) -> Request:
        """One request; `ValueError` says what is wrong with it."""
        if not isinstance(text, str) or not text:
            raise ValueError(f"'prompt' must be a non-empty text, not {text!r}")
        parts = blanks.parse(text)
        if canvas is not None or any(isinstance(part, blanks.Blank) for part in parts):
            what = "blanks" if canvas is None else "a canvas"
            raise ValueError(
                f"the prompt has {what}: {MODEL_TYPE} models, whose noise is uniform, keep no position pinned"
            )
        (prompt,) = (part for part in parts if isinstance(part, str))
        prompt_ids = tuple(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        if not prompt_ids:
            raise ValueError(f"prompt {prompt!r} has no tokens")
        return Request(text, prompt_ids, self.config)

    def asked(self, row: Mapping[str, Any]) -> Request:
        """The request of a task's row, whose prompt is a text as it is."""
        prompt: str = row["prompt"]
        prompt_ids = tuple(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        if not prompt_ids:
            raise ValueError(f"prompt {prompt!r} has no tokens")
        return Request(prompt, prompt_ids, self.config).of_row(row)


def draw(
    denoiser: DiffusionGemmaDenoiser,
    requests: Sequence[Request],
    first: int,
    n: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
    on_step: Callable[[Look], None] | None = None,
) -> list[list[Trajectory]]:
    """The `n` trajectories of each request, as `lockstitch.sampling.prompts.draw` does with a mask token."""
    config = requests[0].config
    assert isinstance(config, UniformConfig), "requests of `UniformReader`"
    trajectories = sample_uniform(
        denoiser,
        [request.prompt_ids for request in requests],
        config,
        n=n,
        seed=[derive_seed(seed, first + i) for i in range(len(requests))],
        progress=progress,
        on_step=on_step,
    )
    numbered = [replace(trajectory, prompt=first + trajectory.prompt) for trajectory in trajectories]
    return [numbered[i * n : (i + 1) * n] for i in range(len(requests))]
