"""Named settings: what papers and checkpoints decode with, as values of `SamplerConfig`.

A preset hides nothing: `preset("fast", canvas_length=256)` is a `SamplerConfig`, and whatever is said beside its name goes
before what it says. One that does not fit a model's layout is refused by `sample`, with the reason.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lockstitch.sampling.config import SamplerConfig, ignored

PRESETS: dict[str, dict[str, Any]] = {
    # LLaDA-Instruct (2502.09992): one token a step in blocks of 32, the most probable first.
    "llada": {"block_length": 32, "policy": "quota"},
    # Fast-dLLM (2505.22618) on full attention: a threshold, and only the block is recomputed. Approximate.
    "fast": {"block_length": 32, "policy": "threshold", "threshold": 0.9, "cache": "dual"},
    # Dream (2508.15487): no blocks, the position of lowest entropy first, by a schedule that hurries at its end.
    "dream": {"policy": "quota", "certainty": "entropy", "temperature": 0.2, "top_p": 0.95, "schedule_eps": 0.001},
    # Block-causal and context-causal models: a threshold in each of the model's blocks, finished blocks kept. Exact.
    "block": {"policy": "threshold", "threshold": 0.9, "cache": "block"},
    # SDAR (2510.06303): the same, with its own threshold, and blocks that are whole.
    "sdar": {"policy": "threshold", "threshold": 0.85, "cache": "block", "whole_blocks": True},
    # Fast-dLLM v2 (2509.26328): a block's first token from the pass before, the others in sub-blocks of 8.
    "fast_dllm_v2": {
        "sub_block_length": 8,
        "policy": "threshold",
        "threshold": 0.9,
        "cache": "block",
        "whole_blocks": True,
    },
    # LLaDA2.x: a high threshold; with `steps`, a step commits at least its quota.
    "llada2": {"policy": "threshold", "threshold": 0.95, "cache": "block", "whole_blocks": True},
    # Fork-dLLM (2609.39859): where nothing reaches the threshold, the leftmost token is drawn.
    "fork": {"block_length": 32, "policy": "threshold", "threshold": 0.8, "fallback": "leftmost", "temperature": 0.8},
    # Deferred commitment (2601.02076): no blocks, a window that slides.
    "dcd": {"policy": "deferred", "threshold": 0.9, "window": 16, "window_limit": 128},
    # Diffusion in Diffusion (2601.13599): a draft in blocks of 4, then the least sure quarter again, seeing everything.
    "draft_revise": {"block_length": 4, "policy": "quota", "correction": "revise", "revise_fraction": 0.25},
    # ReMDM (2503.00307): a random order that takes back a little at each step.
    "remdm": {
        "policy": "random",
        "temperature": 1.0,
        "top_p": 0.9,
        "correction": "remdm",
        "sigma": "cap",
        "eta": 0.008,
    },
    # TiDAR (2511.08923): drafts of 16 after each count of kept tokens, the causal half trusted. The causal model's own text.
    "tidar": {"block_length": 16, "policy": "verify", "trust": 1.0, "drafts": "each", "cache": "block"},
    # I-DLM (2604.11035): drafts of 4 after the last token, kept by the ratio. The causal model's own distribution.
    "idlm": {"block_length": 4, "policy": "verify", "acceptance": "ratio", "drafts": "last", "cache": "block"},
    # DAEDAL (2508.00819): starts at 64 there, and grows to at most 2048.
    "daedal": {"block_length": 32, "policy": "threshold", "threshold": 0.9, "length": "dynamic", "max_length": 2048},
}


def layered(name: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of that name with what is said on top; `None` takes a setting back to its default.

    What the preset alone says gives way where a choice that is said leaves it without a meaning: `threshold` of `fast`
    under `policy="quota"`. Raises `ValueError` for an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is not one of {', '.join(PRESETS)}")
    chosen = {key: value for key, value in {**PRESETS[name], **said}.items() if value is not None}
    every = {one.name: one.default for one in fields(SamplerConfig)} | chosen
    return {key: value for key, value in chosen.items() if key in said or ignored(key, every) is None}


def preset(name: str, canvas_length: int, **settings: Any) -> SamplerConfig:
    """The settings of that name for a canvas of `canvas_length` tokens; `settings` go before its own, as in `layered`.

    Raises `ValueError` for an unknown name, and whatever `SamplerConfig` raises: a canvas that the preset's blocks do not
    divide, for one.
    """
    return SamplerConfig(canvas_length=canvas_length, **layered(name, settings))
